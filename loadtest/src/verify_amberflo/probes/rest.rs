//! Customers, cancelling, and when usage shows.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::verify_amberflo::client::{Answer, Unclear};
use crate::verify_amberflo::probe::{Cost, Evidence, Finding, Probe, Sureness};
use crate::verify_amberflo::probing::{Probing, Record};

const RULES: &str = "/ingest-snapshot/custom-filtering-rules";
const HOUR_SECONDS: i64 = 3_600;

pub const PROBES: &[Probe] = &[
    Probe {
        id: "visibility",
        sureness: Sureness::Assumed,
        claim: "Usage shows in /usage soon after it was taken; how soon is not published.",
        does: "Sends a record, and asks until it shows.",
        confirmed_if: "It shows within --patience; after how long is said.",
        refuted_if: "Never: usage that does not show leaves it unclear, as it does all probes that read usage.",
        if_refuted: "A cancellation's dry run and all reports of the control API lag behind by that time.",
        cost: |settings| Cost::billed(0, 0, settings),
        run: |at| Box::pin(visibility(at)),
    },
    Probe {
        id: "raw-events",
        sureness: Sureness::Reported,
        claim: "`GET /usage/events` answers `columns` and `rows`, with the `uniqueId` of each event in a column of that name.",
        does: "Sends a record twice, waits until it is billed, and asks for the raw events of its customer.",
        confirmed_if: "A row has its `uniqueId`; how many have, so whether copies are shown, is said.",
        refuted_if: "A refusal, another form, or no such row.",
        if_refuted: "The control API passes raw events on as they are, whatever their form. An audit cannot find an event in them.",
        cost: |settings| Cost::billed(2, 3, settings),
        run: |at| Box::pin(raw_events(at)),
    },
    Probe {
        id: "customer-unknown",
        sureness: Sureness::Reported,
        claim: "`GET /customers/{id}` of an unknown customer is answered 200 with an empty body.",
        does: "Asks for a customer that nobody has created.",
        confirmed_if: "200, and nothing in it.",
        refuted_if: "Any other answer.",
        if_refuted: "None: both that and a 404 are read as not there.",
        cost: |_| Cost::requests(1),
        run: |at| Box::pin(customer_unknown(at)),
    },
    Probe {
        id: "rule-fields",
        sureness: Sureness::Stated,
        claim: "A filtering rule is taken with `id`, `meterApiName`, `ingestionTimeRange` and `type`.",
        does: "Creates a rule for the throwaway meter and an hour before it existed: it cancels nothing.",
        confirmed_if: "A success.",
        refuted_if: "A refusal.",
        if_refuted: "The control API cannot cancel usage by rule.",
        cost: |_| Cost::requests(1),
        run: |at| Box::pin(rule_fields(at)),
    },
    Probe {
        id: "rule-list",
        sureness: Sureness::Assumed,
        claim: "Filtering rules cannot be listed.",
        does: "Creates such a rule, and asks for the list with GET.",
        confirmed_if: "GET is refused.",
        refuted_if: "GET answers a list with the rule.",
        if_refuted: "The control API could show which cancellations are in force. It does not.",
        cost: |_| Cost::requests(2),
        run: |at| Box::pin(rule_list(at)),
    },
    Probe {
        id: "rule-deletion",
        sureness: Sureness::Assumed,
        claim: "A filtering rule cannot be deleted.",
        does: "Creates such a rule, and tries to delete it by its id.",
        confirmed_if: "DELETE is refused.",
        refuted_if: "The rule is no longer in the list.",
        if_refuted: "The control API could take a cancellation back. It does not.",
        cost: |_| Cost::requests(3),
        run: |at| Box::pin(rule_deletion(at)),
    },
    Probe {
        id: "cancel-event",
        sureness: Sureness::Stated,
        claim: "An event is cancelled by sending it again with the dimension `aflo.cancel_previous_resource_event`.",
        does: "Sends two records, then the first once more with that dimension.",
        confirmed_if: "The first no longer counts, the second does.",
        refuted_if: "The first still counts.",
        if_refuted: "A single event cannot be cancelled (ALLOW_AFLO_DIMENSIONS), and trying bills it once more.",
        cost: |settings| Cost::billed(3, 2, settings),
        run: |at| Box::pin(cancel_event(at)),
    },
];

async fn visibility(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let after = at.settled_after_marker(0, 0).await?.visible_after;
    let after = humantime::format_duration(Duration::from_millis(after.as_millis() as u64));
    Ok(Evidence::Confirmed(format!("shows after {after} or less")))
}

async fn raw_events(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let record = at.record(0);
    at.send(&[&record]).await?;
    at.send(&[&record]).await?;
    at.counts(&[1]).await?;
    let from = at.run.started_seconds() - HOUR_SECONDS;
    let (customer, meter, until) = (at.customer(), &at.run.meter, from + 2 * HOUR_SECONDS);
    let range = format!("startTimeInSeconds={from}&endTimeInSeconds={until}");
    let path = format!("/usage/events?customerId={customer}&meterApiName={meter}&{range}");
    let answer = at.api(Method::GET, &path, None).await?;
    if !answer.is_ok() {
        return Ok(Evidence::Refuted(answer.brief()));
    }
    let events = answer.json()?;
    let list = |name: &str| events.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let columns = list("columns");
    let Some(column) = columns.iter().position(|column| column == "uniqueId") else {
        return Ok(Evidence::Refuted(format!("no column uniqueId: {}", answer.brief())));
    };
    let is_ours = |row: &&Value| row.get(column).and_then(Value::as_str) == Some(&record.unique_id);
    let rows = list("rows").iter().filter(is_ours).count();
    Ok(Evidence::of(rows > 0, format!("{rows} rows for a record that was sent twice; {} columns", columns.len())))
}

async fn customer_unknown(at: Arc<Probing>) -> Finding {
    let answer = at.api(Method::GET, &format!("/customers/{}", at.customer()), None).await?;
    let is_empty = ["", "null", "{}"].contains(&answer.body.trim());
    Ok(Evidence::of(answer.status == 200 && is_empty, answer.brief()))
}

async fn rule_fields(at: Arc<Probing>) -> Finding {
    let answer = create_rule(&at).await?;
    Ok(Evidence::of(answer.is_ok(), answer.brief()))
}

async fn rule_list(at: Arc<Probing>) -> Finding {
    needed(&create_rule(&at).await?)?;
    let answer = list_rules(&at).await?;
    match holds_rule(&at, &answer) {
        _ if is_not_offered(&answer) => Ok(Evidence::Confirmed(answer.brief())),
        Some(true) => Ok(Evidence::Refuted(format!("the rule is in the list: {}", answer.brief()))),
        _ => Err(Unclear(format!("a success without the rule: {}", answer.brief()))),
    }
}

async fn rule_deletion(at: Arc<Probing>) -> Finding {
    needed(&create_rule(&at).await?)?;
    let answer = at.api_raw(Method::DELETE, &format!("{RULES}/{}", rule_id(&at)), None).await?;
    if is_not_offered(&answer) {
        return Ok(Evidence::Confirmed(answer.brief()));
    }
    let list = list_rules(&at).await?;
    match holds_rule(&at, &list) {
        Some(false) if answer.is_ok() => {
            at.run.account.forget_rule(&rule_id(&at));
            Ok(Evidence::Refuted(format!("{}, and it is no longer in the list", answer.brief())))
        }
        Some(true) => Ok(Evidence::Confirmed(format!("{}, and it is still in the list", answer.brief()))),
        _ => Err(Unclear(format!("{}; whether it is gone cannot be seen: {}", answer.brief(), list.brief()))),
    }
}

fn rule_id(at: &Probing) -> String {
    format!("{}-{}", at.run.prefix, at.id)
}

async fn create_rule(at: &Probing) -> Result<Answer, Unclear> {
    // Before the meter was there, and within the time for which usage can be changed at all.
    let end = at.run.started_seconds() - 24 * HOUR_SECONDS;
    let rule = json!({
        "id": rule_id(at), "meterApiName": at.run.meter, "type": "by_property_filter_out",
        "ingestionTimeRange": { "startTimeInSeconds": end - HOUR_SECONDS, "endTimeInSeconds": end },
    });
    at.run.account.remember_rule(&rule_id(at));
    let answer = at.api(Method::POST, RULES, Some(rule)).await?;
    if !answer.is_ok() {
        at.run.account.forget_rule(&rule_id(at));
    }
    Ok(answer)
}

fn needed(created: &Answer) -> Result<(), Unclear> {
    if created.is_ok() { Ok(()) } else { Err(Unclear(format!("no rule: answered {}", created.brief()))) }
}

async fn list_rules(at: &Probing) -> Result<Answer, Unclear> {
    at.api_raw(Method::GET, RULES, None).await
}

/// A gateway answers 403 where there is no such route, whatever the key: the rule was created with it a moment ago.
fn is_not_offered(answer: &Answer) -> bool {
    answer.is_refusal() || [401, 403].contains(&answer.status)
}

/// Whether a list holds the rule; `None` where it is no list.
fn holds_rule(at: &Probing, answer: &Answer) -> Option<bool> {
    let rules = answer.json().ok().filter(|_| answer.is_ok())?;
    let id = rule_id(at);
    let is_it = |rule: &Value| rule.get("id").and_then(Value::as_str) == Some(&id);
    Some(rules.as_array()?.iter().any(is_it))
}

async fn cancel_event(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let (first, second) = (at.record(0), at.record(1));
    at.send(&[&first, &second]).await?;
    let more_dimensions = r#","aflo.cancel_previous_resource_event":"true""#.to_owned();
    at.send(&[&Record { more_dimensions, ..first }]).await?;
    match at.counts(&[0, 1]).await?[..] {
        [0, 1] => Ok(Evidence::Confirmed("only the other event counts".to_owned())),
        [times, 1] => Ok(Evidence::Refuted(format!("the cancelled event counts {times} times"))),
        ref other => Err(Unclear(format!("they count {other:?} times"))),
    }
}
