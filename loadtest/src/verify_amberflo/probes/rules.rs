//! Filtering rules: whether they are taken, what they cancel, and whether they can be seen or taken back.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use shared::clock::Clock;
use tokio::time::{Instant, sleep};

use crate::verify_amberflo::account::LOOKS;
use crate::verify_amberflo::client::{Answer, Unclear};
use crate::verify_amberflo::probe::{Cost, Evidence, Finding, Probe, Sureness};
use crate::verify_amberflo::probing::{Probing, Record};
use crate::verify_amberflo::usage;

const RULES: &str = "/ingest-snapshot/custom-filtering-rules";
const HOUR_SECONDS: i64 = 3_600;
/// Far enough from the present that a range around it ends long before.
const EVENT_AGE_SECONDS: i64 = 6 * HOUR_SECONDS;
/// How far in the future a rule ends, as clocks differ: as far as the control API allows.
const AHEAD_SECONDS: i64 = 60;

pub const PROBES: &[Probe] = &[
    Probe {
        id: "rule-fields",
        sureness: Sureness::Stated,
        claim: "A filtering rule is taken with `id`, `meterApiName`, `ingestionTimeRange` and `type`.",
        does: "Creates a rule for the throwaway meter and an hour before it existed: it cancels nothing.",
        confirmed_if: "A success.",
        refuted_if: "A refusal.",
        if_refuted: "The control API cannot cancel usage by rule.",
        cost: |_| Cost { rules: 1, ..Cost::requests(1) },
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
        cost: |_| Cost { rules: 1, ..Cost::requests(2) },
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
        cost: |_| Cost { rules: 1, ..Cost::requests(3) },
        run: |at| Box::pin(rule_deletion(at)),
    },
    Probe {
        id: "rule-time",
        sureness: Sureness::Assumed,
        claim: "The range of a rule is of the time at which events were ingested, while usage goes by their own time.",
        does: "Sends an event of six hours ago to each of two meters of its own. When both are billed it makes a rule for each \
               meter: for the first of the last hour, for the second of the hours around the event's time.",
        confirmed_if: "The first event no longer counts, the second does.",
        refuted_if: "The second no longer counts. If neither rule shows effect within --patience, it is unclear: Amberflo allows one \
                     batch of rules in twelve hours (`--only rule-time --patience 13h`).",
        if_refuted: "A cancellation takes other events than the control API says: those of the range by their own time, so \
                     also late ones.",
        cost: |settings| {
            let meters = Cost::meters(2, 2 * (1 + LOOKS));
            // The customer and both records; what is billed before and after the rules; the rules.
            let requests = 2 + 4 * usage::polls(settings) + 2;
            let sent = Cost { records: 2, customers: 1, rules: 2, ..Cost::requests(requests) };
            meters.plus(sent)
        },
        run: |at| Box::pin(rule_time(at)),
    },
];

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

/// A rule that cancels nothing.
async fn create_rule(at: &Probing) -> Result<Answer, Unclear> {
    // Before the meter was there, and within the time for which usage can be changed at all.
    let end = at.run.started_seconds() - 24 * HOUR_SECONDS;
    create(at, &rule_id(at), &at.run.meter, end - HOUR_SECONDS..end).await
}

fn rule_id(at: &Probing) -> String {
    format!("{}-{}", at.run.prefix, at.id)
}

async fn create(at: &Probing, id: &str, meter: &str, seconds: Range<i64>) -> Result<Answer, Unclear> {
    let rule = json!({
        "id": id, "meterApiName": meter, "type": "by_property_filter_out",
        "ingestionTimeRange": { "startTimeInSeconds": seconds.start, "endTimeInSeconds": seconds.end },
    });
    at.run.account.remember_rule(id);
    let answer = at.api(Method::POST, RULES, Some(rule)).await?;
    if !answer.is_ok() {
        at.run.account.forget_rule(id);
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

async fn rule_time(at: Arc<Probing>) -> Finding {
    let customer = at.customer();
    let [present, past] = ["-present", "-past"].map(|suffix| at.meter_name(suffix));
    for meter in [&present, &past] {
        at.create_meter(meter).await?;
    }
    at.register_customer().await?;
    let time = at.run.started - EVENT_AGE_SECONDS * 1_000;
    let [first, second] = [&present, &past].map(|meter| Record { meter: meter.clone(), time, ..at.record(0) });
    let sent = Clock::system().now() / 1_000;
    at.send(&[&first, &second]).await?;
    // One that never was billed would look cancelled.
    tokio::try_join!(at.settled(&present, &customer, 1, 1), at.settled(&past, &customer, 1, 1))?;

    let now = Clock::system().now() / 1_000;
    let event = time / 1_000;
    let ranges = [
        (&present, "-present", sent - HOUR_SECONDS..now + AHEAD_SECONDS),
        (&past, "-past", event - HOUR_SECONDS..event + HOUR_SECONDS),
    ];
    for (meter, suffix, seconds) in ranges {
        needed(&create(&at, &format!("{}{suffix}", rule_id(&at)), meter, seconds).await?)?;
    }
    match after_rules(&at, &present, &past).await? {
        (0.0, 1.0) => Ok(Evidence::Confirmed("only the rule of the present cancels".to_owned())),
        (1.0, 0.0) => Ok(Evidence::Refuted("only the rule of the event's own time cancels".to_owned())),
        (0.0, 0.0) => Ok(Evidence::Refuted("both cancel: also the one in whose range nothing was ingested".to_owned())),
        other => Err(Unclear(format!("the meters are billed {other:?}, where one event was sent to each"))),
    }
}

/// What both meters are billed once that has changed, and then stayed the same.
async fn after_rules(at: &Probing, present: &str, past: &str) -> Result<(f64, f64), Unclear> {
    let (settings, customer, started) = (&at.run.settings, at.customer(), Instant::now());
    let (mut seen, mut since) = ((1.0, 1.0), started);
    for wait in usage::waits(settings) {
        // Usage could be read a moment ago: what fails now may pass.
        if let Ok(billed) = tokio::try_join!(at.sum(present, &customer), at.sum(past, &customer)) {
            if billed != seen {
                (seen, since) = (billed, Instant::now());
            }
            let doubts = if billed == (0.0, 1.0) { 1 } else { usage::DOUBTS };
            if billed != (1.0, 1.0) && since.elapsed() >= settings.settle * doubts {
                return Ok(billed);
            }
        }
        if started.elapsed() >= settings.patience {
            break;
        }
        sleep(wait).await;
    }
    let waited = humantime::format_duration(Duration::from_secs(started.elapsed().as_secs()));
    Err(Unclear(format!(
        "no rule shows effect after {waited}: Amberflo allows one batch of rules in twelve hours; try --only rule-time \
         --patience 13h"
    )))
}
