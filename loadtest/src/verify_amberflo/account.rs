//! What a run creates in the account, and how it goes away again.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use super::client::{Answer, Unclear};
use super::probing::Probing;

/// The properties of a meter that an update may carry; what else an answer shows is Amberflo's own.
const METER_FIELDS: [&str; 6] = ["id", "meterApiName", "label", "meterType", "dimensions", "useInBilling"];

/// How many times at most a meter is looked for.
pub const LOOKS: u64 = 3;
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The names of all that a run has asked Amberflo to create: noted before it is asked, because an answer may get lost.
#[derive(Debug, Default)]
pub struct Account {
    meters: Mutex<BTreeSet<String>>,
    customers: Mutex<BTreeSet<String>>,
    rules: Mutex<BTreeSet<String>>,
}

fn note(names: &Mutex<BTreeSet<String>>, name: &str) {
    names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
}

fn noted(names: &Mutex<BTreeSet<String>>) -> Vec<String> {
    names.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

impl Account {
    pub fn remember_customer(&self, id: &str) {
        note(&self.customers, id);
    }

    pub fn forget_customer(&self, id: &str) {
        self.customers.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    pub fn remember_rule(&self, id: &str) {
        note(&self.rules, id);
    }

    pub fn forget_rule(&self, id: &str) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// All names that are not gone as far as is known.
    pub fn names(&self) -> Vec<String> {
        let kinds = [("meter", &self.meters), ("customer", &self.customers), ("filtering rule", &self.rules)];
        kinds
            .iter()
            .flat_map(|(kind, names)| noted(names).into_iter().map(move |name| format!("{kind} {name}")))
            .collect()
    }
}

/// A meter as it is created, without an id.
pub fn meter(name: &str, meter_type: &str) -> Value {
    json!({
        "meterApiName": name, "label": name, "meterType": meter_type, "dimensions": ["region"], "useInBilling": false,
    })
}

impl Probing {
    /// The name of a meter of this probe's own.
    pub fn meter_name(&self, suffix: &str) -> String {
        format!("{}-{}{suffix}", self.run.prefix, self.id)
    }

    /// Creates a meter; answers its id.
    pub async fn create_meter(&self, name: &str) -> Result<String, Unclear> {
        let answer = self.post_meter(name, meter(name, "sum_of_all_usage")).await?;
        if !answer.is_ok() {
            return Err(Unclear(format!("no meter: answered {}", answer.brief())));
        }
        let meter = self.look_for_meter(name, true).await?;
        let id = meter.as_ref().and_then(|meter| meter.get("id")).and_then(Value::as_str).map(str::to_owned);
        id.ok_or_else(|| Unclear(format!("the meter that was created is not to be found: {}", answer.brief())))
    }

    /// Asks for a meter, whatever the answer.
    pub async fn post_meter(&self, name: &str, meter: Value) -> Result<Answer, Unclear> {
        note(&self.run.account.meters, name);
        self.api(Method::POST, "/meters", Some(meter)).await
    }

    /// The meter of this name, if there is one.
    pub async fn find_meter(&self, name: &str) -> Result<Option<Map<String, Value>>, Unclear> {
        let answer = self.api(Method::GET, &format!("/meters?meterApiName={name}"), None).await?;
        let unknown = || Unclear(format!("GET /meters: answered {}", answer.brief()));
        let meters = answer.json()?.as_array().cloned().filter(|_| answer.is_ok()).ok_or_else(unknown)?;
        let is_it = |meter: &Value| meter.get("meterApiName").and_then(Value::as_str) == Some(name);
        Ok(meters.into_iter().find(is_it).and_then(|meter| meter.as_object().cloned()))
    }

    /// The same, asked again for a moment while the answer is not the wanted one: it may be behind.
    pub async fn look_for_meter(&self, name: &str, is_wanted: bool) -> Result<Option<Map<String, Value>>, Unclear> {
        let mut found = self.find_meter(name).await?;
        for look in 1..LOOKS {
            if found.is_some() == is_wanted {
                break;
            }
            sleep(LOOK_AGAIN_AFTER * look as u32).await;
            found = self.find_meter(name).await?;
        }
        Ok(found)
    }

    /// Moves a meter to another locking status.
    pub async fn lock_meter(&self, meter: &Map<String, Value>, locking_status: &str) -> Result<Answer, Unclear> {
        let known = METER_FIELDS.iter().filter_map(|field| Some(((*field).to_owned(), meter.get(*field)?.clone())));
        let mut update: Map<_, _> = known.filter(|(_, value)| !value.is_null()).collect();
        update.insert("lockingStatus".to_owned(), locking_status.into());
        self.api(Method::PUT, "/meters", Some(update.into())).await
    }

    /// Removes what can be removed of all that the run has created: what stays behind, and why.
    ///
    /// After an interruption a creation may still be under way, so that a meter that is not there is looked for again.
    pub async fn clean_up(&self, is_interrupted: bool) -> Vec<String> {
        let account = &self.run.account;
        let mut left = Vec::new();
        for name in noted(&account.meters) {
            match self.delete_meter(&name, is_interrupted).await {
                Ok(()) => {
                    account.meters.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
                }
                Err(Unclear(reason)) => left.push(format!("meter {name}: {reason}")),
            }
        }
        let (mut off, mut on) = (Vec::new(), Vec::new());
        for id in noted(&account.customers) {
            let update = json!({ "customerId": id, "customerName": id, "enabled": false });
            match self.api(Method::PUT, "/customers", Some(update)).await {
                Ok(answer) if answer.is_ok() => off.push(id),
                Ok(answer) => on.push(format!("customer {id}: not switched off: {}", answer.brief())),
                Err(Unclear(reason)) => on.push(format!("customer {id}: not switched off: {reason}")),
            }
        }
        if !off.is_empty() {
            left.push(format!("{} customers, switched off: {}", off.len(), off.join(", ")));
        }
        left.extend(on);
        let rules = noted(&account.rules);
        if !rules.is_empty() {
            left.push(format!(
                "{} filtering rules, which cancel no usage but this run's: {}",
                rules.len(),
                rules.join(", ")
            ));
        }
        left
    }

    async fn delete_meter(&self, name: &str, is_interrupted: bool) -> Result<(), Unclear> {
        let meter = if is_interrupted { self.look_for_meter(name, true).await } else { self.find_meter(name).await };
        let Some(meter) = meter? else { return Ok(()) };
        let text = |field: &str| meter.get(field).and_then(Value::as_str).unwrap_or_default();
        let must = |what: &str, answer: Answer| {
            if answer.is_ok() { Ok(()) } else { Err(Unclear(format!("not {what}: {}", answer.brief()))) }
        };
        if text("lockingStatus") != "deprecated" {
            must("deprecated", self.lock_meter(&meter, "deprecated").await?)?;
        }
        must("deleted", self.api(Method::DELETE, &format!("/meters/{}", text("id")), None).await?)?;
        match self.look_for_meter(name, false).await? {
            None => Ok(()),
            Some(_) => Err(Unclear("deleted, and still there".to_owned())),
        }
    }
}
