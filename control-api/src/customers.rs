//! Tenants that come and go, as customers in Amberflo: what SBT says of them on the bus.

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use shared::amberflo::Segment;

use crate::amberflo::{Amberflo, Effect};
use crate::problem::Problem;

const PATH: &str = "/customers";
const STAGE_PATH: &str = "/customers/stage";
const OPERATION: &str = "customers";
const OFFBOARDED: &str = "OFFBOARDED";
/// What newer versions of SBT put before the names of their events.
const PREFIX: &str = "sbt_aws_";

/// What is said of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It comes.
    Onboarding,
    /// It goes.
    Offboarding,
}

impl Change {
    /// The change that events of this `detail-type` are about.
    #[must_use]
    pub fn of(detail_type: &str) -> Option<Self> {
        match detail_type.strip_prefix(PREFIX).unwrap_or(detail_type) {
            "onboardingRequest" => Some(Self::Onboarding),
            "offboardingRequest" => Some(Self::Offboarding),
            _ => None,
        }
    }
}

/// What became of a customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is new in Amberflo.
    Created,
    /// Amberflo knew it, and has its name and email now.
    Updated,
    /// Amberflo had all of this already.
    Unchanged,
    /// It is in its last stage. It stays enabled: late usage still follows.
    Offboarded,
    /// Amberflo does not know it: there is nobody to offboard.
    Unknown,
}

impl Outcome {
    /// Its name in answers and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
            Self::Offboarded => "offboarded",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a customer is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum CustomerError {
    /// The event says too little, or has another form.
    #[error("{0}")]
    Malformed(String),
    /// Amberflo did not do it. The text has no email in it.
    #[error("customer {tenant_id}: {step}: {reason}")]
    Amberflo {
        /// The tenant.
        tenant_id: String,
        /// What was attempted.
        step: &'static str,
        /// What came of it.
        reason: String,
    },
}

/// The part of an event's `detail` that customers are made of. Both generations of SBT send it flat.
/// Source: the functions tenant-management and tenant-registrations of awslabs/sbt-aws.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Detail {
    #[serde(default)]
    tenant_id: Value,
    #[serde(default)]
    tenant_name: Value,
    #[serde(default)]
    email: Value,
}

/// A tenant, checked.
struct Tenant {
    id: Segment,
    name: Option<String>,
    email: Option<String>,
}

type Customer = Map<String, Value>;

/// Makes Amberflo's customer what an event's `detail` says; however often that is done, it ends the same.
///
/// # Errors
/// See [`CustomerError`].
pub async fn apply(amberflo: &Amberflo, change: Change, detail: &Value) -> Result<Outcome, CustomerError> {
    let tenant = Tenant::read(detail).map_err(CustomerError::Malformed)?;
    let done = match change {
        Change::Onboarding => onboard(amberflo, &tenant).await,
        Change::Offboarding => offboard(amberflo, &tenant).await,
    };
    let tenant_id = tenant.id.as_str();
    match done {
        Ok(outcome) => {
            if outcome == Outcome::Unknown {
                tracing::warn!(tenant_id, "Amberflo does not know the customer that is to be offboarded");
            }
            Ok(outcome)
        }
        Err((step, problem)) => {
            let mut reason = problem.detail().to_owned();
            if let Some(email) = &tenant.email {
                // Amberflo may quote what it refuses.
                reason = reason.replace(email.as_str(), "(the email)");
            }
            Err(CustomerError::Amberflo { tenant_id: tenant_id.to_owned(), step, reason })
        }
    }
}

/// The tenant that an event's `detail` is about, if it says so.
#[must_use]
pub fn tenant_id(detail: &Value) -> Option<String> {
    Tenant::read(detail).ok().map(|tenant| tenant.id.as_str().to_owned())
}

type Failed = (&'static str, Problem);

async fn onboard(amberflo: &Amberflo, tenant: &Tenant) -> Result<Outcome, Failed> {
    if let Some(known) = read(amberflo, tenant).await? {
        return update(amberflo, tenant, known).await;
    }
    let mut customer = Customer::new();
    customer.insert("customerId".to_owned(), tenant.id.as_str().into());
    customer.insert("customerName".to_owned(), tenant.name.as_deref().unwrap_or(tenant.id.as_str()).into());
    if let Some(email) = &tenant.email {
        customer.insert("customerEmail".to_owned(), email.as_str().into());
    }
    match amberflo.send(OPERATION, (Effect::Creates, Method::POST), PATH, &customer).await {
        Ok(_) => Ok(Outcome::Created),
        // It may exist all the same: by another event, or by this call, whose answer was lost.
        Err(problem) => match read(amberflo, tenant).await {
            Ok(Some(known)) => update(amberflo, tenant, known).await,
            _ => Err(("creating it", problem)),
        },
    }
}

/// Sets what the event says, and keeps all else that Amberflo has.
async fn update(amberflo: &Amberflo, tenant: &Tenant, known: Customer) -> Result<Outcome, Failed> {
    let mut customer = known.clone();
    customer.insert("customerId".to_owned(), tenant.id.as_str().into());
    let mut set = |name: &str, value: &str| customer.insert(name.to_owned(), value.into());
    if let Some(name) = &tenant.name {
        set("customerName", name);
    } else if known.get("customerName").is_none_or(Value::is_null) {
        set("customerName", tenant.id.as_str());
    }
    if let Some(email) = &tenant.email {
        set("customerEmail", email);
    }
    if customer == known {
        return Ok(Outcome::Unchanged);
    }
    // Stages move forward only: one that was read a moment ago may be past.
    customer.remove("lifecycleStage");
    let done = amberflo.send(OPERATION, (Effect::Replaces, Method::PUT), PATH, &customer).await;
    done.map(|_| Outcome::Updated).map_err(|problem| ("updating it", problem))
}

async fn offboard(amberflo: &Amberflo, tenant: &Tenant) -> Result<Outcome, Failed> {
    let is_offboarded = |customer: &Customer| customer.get("lifecycleStage").is_some_and(|stage| stage == OFFBOARDED);
    match read(amberflo, tenant).await? {
        None => return Ok(Outcome::Unknown),
        Some(customer) if is_offboarded(&customer) => return Ok(Outcome::Offboarded),
        Some(_) => {}
    }
    let stage = json!({ "customerId": tenant.id.as_str(), "lifecycleStage": OFFBOARDED });
    match amberflo.send(OPERATION, (Effect::Replaces, Method::PUT), STAGE_PATH, &stage).await {
        Ok(_) => Ok(Outcome::Offboarded),
        // Amberflo refuses a move to where the customer is already: a first attempt may have succeeded unseen.
        Err(problem) => match read(amberflo, tenant).await {
            Ok(Some(customer)) if is_offboarded(&customer) => Ok(Outcome::Offboarded),
            _ => Err(("moving it to OFFBOARDED", problem)),
        },
    }
}

/// The customer in Amberflo; an unknown one is answered with an empty body, or with 404.
async fn read(amberflo: &Amberflo, tenant: &Tenant) -> Result<Option<Customer>, Failed> {
    const STEP: &str = "reading it";
    let body = match amberflo.get(OPERATION, PATH, Some(&tenant.id), &[]).await {
        Ok(body) => body,
        Err(problem) if problem.status() == StatusCode::NOT_FOUND => return Ok(None),
        Err(problem) => return Err((STEP, problem)),
    };
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    match serde_json::from_slice(&body) {
        Ok(Value::Null) => Ok(None),
        Ok(Value::Object(customer)) if customer.is_empty() => Ok(None),
        Ok(Value::Object(customer)) if customer.get("customerId").is_some_and(|id| id == tenant.id.as_str()) => {
            Ok(Some(customer))
        }
        _ => Err((STEP, Problem::bad_gateway("Amberflo's answer is not this customer"))),
    }
}

impl Tenant {
    fn read(detail: &Value) -> Result<Self, String> {
        let Ok(Detail { tenant_id, tenant_name, email }) = Detail::deserialize(detail) else {
            return Err("detail is missing, or is not an object".to_owned());
        };
        let id = text("tenantId", tenant_id)?.ok_or("detail.tenantId is missing or empty")?;
        let id = Segment::new(id).map_err(|error| format!("detail.tenantId: {error}"))?;
        Ok(Self { id, name: text("tenantName", tenant_name)?, email: text("email", email)? })
    }
}

/// A text, or a number as usage events may have it; an empty one counts as none.
fn text(name: &str, value: Value) -> Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text).filter(|text| !text.is_empty())),
        Value::Number(number) => Ok(Some(number.to_string())),
        _ => Err(format!("detail.{name} is not a text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_generations_of_events_are_known() {
        for prefix in ["", PREFIX] {
            assert_eq!(Change::of(&format!("{prefix}onboardingRequest")), Some(Change::Onboarding));
            assert_eq!(Change::of(&format!("{prefix}offboardingRequest")), Some(Change::Offboarding));
        }
        assert_eq!(Change::of("onboardingSuccess"), None);
        assert_eq!(Change::of("sbt_aws_sbt_aws_onboardingRequest"), None);
    }

    #[test]
    fn a_malformed_event_is_named_without_its_contents() {
        let error = |detail: Value| Tenant::read(&detail).err().unwrap();
        assert!(error(Value::Null).contains("detail is missing"));
        for id in [json!({}), json!({"tenantId": null}), json!({"tenantId": ""})] {
            assert!(error(id).contains("detail.tenantId is missing"));
        }
        assert!(error(json!({"tenantId": ["secret"]})).contains("detail.tenantId is not a text"));
        assert!(error(json!({"tenantId": "a/b"})).contains("detail.tenantId: allowed"));
        let email = error(json!({"tenantId": "t", "email": {"a": "secret"}}));
        assert!(email.contains("detail.email") && !email.contains("secret"));
        let tenant = Tenant::read(&json!({"tenantId": 7, "tenantName": "", "email": "e"})).unwrap();
        assert_eq!((tenant.id.as_str(), tenant.name, tenant.email.as_deref()), ("7", None, Some("e")));
    }
}
