//! Cancellation: rules that take wrong events out of the usage.

mod estimate;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::Method;
use shared::clock::Clock;
use utoipa::ToSchema;

use super::Data;
use super::time_range::{TimeRange, now_in_seconds};
use crate::amberflo::{Effect, data};
use crate::app::App;
use crate::extract::{Json, Properties, Query};
use crate::problem::{Problem, ProblemBody};
use crate::surroundings::audit::Audit;
use estimate::estimate;

const PATH: &str = "/ingest-snapshot/custom-filtering-rules";
const OPERATION: &str = "filtering_rules";

const RANGE: &str = "ingestionTimeRange";
const TYPE: &str = "type";
const FILTER_OUT: &str = "by_property_filter_out";
const DRY_RUN: &str = "dryRun";

/// How far in the future a rule may end: as far as clocks may differ. What is not yet ingested is nobody's to cancel.
const AHEAD_SECONDS: u64 = 60;

/// A rule that cancels events. Properties that are not named here are passed on too; what is in them is Amberflo's to
/// judge.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "describes what Rule::check looks at; a rule is passed on as it came")]
struct FilteringRule {
    /// The rule's id, chosen by the caller. One that was used before replaces that rule.
    #[schema(min_length = 1, example = "sbt-filtering-rule")]
    id: String,
    /// The name of the meter whose events are cancelled.
    #[schema(min_length = 1, example = "sbt-trial")]
    meter_api_name: String,
    /// When the events were *ingested*. May end at most 60 s in the future.
    ingestion_time_range: TimeRange,
    /// Default: `by_property_filter_out`.
    #[serde(rename = "type")]
    #[schema(min_length = 1, example = "by_property_filter_out")]
    kind: Option<String>,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

/// Cancels usage events.
///
/// Creates a filtering rule of Amberflo's, or replaces the one with the same id: all events of the meter that were
/// ingested in the range are taken out of its usage, narrowed by whatever other properties of Amberflo's rules the body
/// has. Amberflo carries out one batch of at most 250 rules per 12 hours, so usage changes later.
///
/// **Which properties narrow a rule is Amberflo's to say, and was not verified here: one that it does not know may be
/// passed over, and then the usage of every tenant vanishes. Look at the usage of others after it took effect.**
///
/// With `dryRun=true` nothing is created, and `data` is an estimate of what would vanish: `eventCount` and `sum`, the same
/// `byTenant` (unless there are too many), always `exact: false`, in `basis` what they were taken from, and in
/// `meterExists` whether Amberflo lists a meter of this name. Amberflo answers usage by *event* time while a rule goes by
/// *ingestion* time; and a rule that has any property beyond those below is answered 400, because usage cannot be
/// narrowed as it would narrow the rule.
#[utoipa::path(
    delete,
    path = "/usage",
    tag = "Usage",
    operation_id = "cancelUsage",
    params(
        ("dryRun" = Option<bool>, Query, description = "`true` creates nothing and estimates. Default: `false`"),
    ),
    request_body(content = FilteringRule, example = json!({
        "id": "sbt-filtering-rule",
        "meterApiName": "sbt-trial",
        "ingestionTimeRange": {"startTimeInSeconds": 1_724_367_600, "endTimeInSeconds": 1_724_371_200}
    })),
    responses(
        (status = 200, description = "Amberflo's answer, or the estimate", body = Data<serde_json::Value>, examples(
            ("created" = (value = json!({"data": {
                "id": "sbt-filtering-rule",
                "meterApiName": "sbt-trial",
                "ingestionTimeRange": {"startTimeInSeconds": 1_724_367_600, "endTimeInSeconds": 1_724_371_200},
                "type": "by_property_filter_out"
            }}))),
            ("estimate" = (value = json!({"data": {
                "dryRun": true, "exact": false, "meterExists": true, "eventCount": 12, "sum": 340.5,
                "byTenant": [{"tenantId": "acme", "eventCount": 12, "sum": 340.5}],
                "basis": "Amberflo's usage of \"sbt-trial\" by event time"
            }}))),
        )),
        (status = "default", description = "A problem", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn cancel(
    State(app): State<Arc<App>>,
    audit: Audit,
    query: Query,
    Json(mut rule): Json<Properties>,
) -> Result<Response, Problem> {
    query.only(&[DRY_RUN])?;
    audit.note("rule", &rule);
    let dry_run = query.parsed(DRY_RUN, "true or false")?.unwrap_or(false);
    let range = check(&rule, app.clock)?;
    if dry_run {
        return Ok(Data::ok(estimate(&app, &rule, range).await?));
    }
    if !rule.has(TYPE) {
        rule.set(TYPE, FILTER_OUT);
    }
    // Creates or updates by id: twice is as good as once.
    let answer = app.amberflo.send(OPERATION, (Effect::Replaces, Method::POST), PATH, &rule).await?;
    Ok(Data::ok(data(&answer)))
}

/// The range of a rule that may be sent.
fn check(rule: &Properties, clock: Clock) -> Result<TimeRange, Problem> {
    if let Some(name) = rule.names().find(|name| is_like_dry_run(name)) {
        return Err(Problem::bad_request(format!(
            "the body: {name}: {DRY_RUN} is a parameter of the query: ?{DRY_RUN}=true"
        )));
    }
    // Amberflo has no such name: it might pass it over, and cancel the usage of all.
    if rule.has("tenantId") {
        return Err(Problem::bad_request(
            "the body: tenantId: a rule has none. Properties by which Amberflo narrows a rule are passed on as they are",
        ));
    }
    rule.require_texts(&["id", "meterApiName"])?;
    if rule.has(TYPE) {
        rule.require_texts(&[TYPE])?;
    }
    let range = rule.object::<TimeRange>(RANGE)?.checked().map_err(|problem| problem.during(RANGE))?;
    let latest = now_in_seconds(clock) + AHEAD_SECONDS;
    if range.end() > latest {
        let end = range.end();
        return Err(Problem::bad_request(format!(
            "{RANGE}: endTimeInSeconds is {end}, in the future: it would cancel what is not ingested yet; allowed is up to \
             {latest}"
        )));
    }
    Ok(range)
}

/// Whoever writes it there, however spelt, does not mean to create the rule.
fn is_like_dry_run(name: &str) -> bool {
    let letters = name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase);
    letters.eq("dryrun".chars())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dry_run_is_recognised_however_it_is_spelt() {
        for name in ["dryRun", "DRYRUN", "dry_run", "dry-run", " Dry Run"] {
            assert!(is_like_dry_run(name), "{name}");
        }
        for name in ["", "run", "dryRuns", "type"] {
            assert!(!is_like_dry_run(name), "{name}");
        }
    }
}
