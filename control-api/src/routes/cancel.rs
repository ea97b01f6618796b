//! Cancellation: rules that take wrong events out of the usage.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::Number;
use shared::clock::Clock;
use utoipa::ToSchema;

use super::Data;
use super::time_range::{TimeRange, now_in_seconds};
use super::usage::{Aggregation, Interval, UsageQuery, ask};
use crate::amberflo::data;
use crate::app::App;
use crate::extract::{Json, Properties, Query};
use crate::problem::{Problem, ProblemBody};
use crate::surroundings::audit::Audit;

const PATH: &str = "/ingest-snapshot/custom-filtering-rules";
const OPERATION: &str = "filtering_rules";

const RANGE: &str = "ingestionTimeRange";
const TYPE: &str = "type";
const FILTER_OUT: &str = "by_property_filter_out";
const DRY_RUN: &str = "dryRun";

/// How far in the future a rule may end: as far as clocks may differ. What is not yet ingested is nobody's to cancel.
const AHEAD_SECONDS: u64 = 60;
/// A longer range is asked for by day: its hours would be too many rows.
const HOURLY_SECONDS: u64 = 31 * 24 * 60 * 60;

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
/// With `dryRun=true` nothing is created, and `data` is an estimate of what would vanish: `eventCount` and `sum`, always
/// `exact: false`, and in `basis` what they were taken from. Amberflo answers usage by *event* time while a rule goes by
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
                "dryRun": true, "exact": false, "eventCount": 12, "sum": 340.5,
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
    let answer = app.amberflo.send_repeatable(OPERATION, Method::POST, PATH, &rule).await?;
    Ok(Data::ok(data(&answer)))
}

/// The range of a rule that may be sent.
fn check(rule: &Properties, clock: Clock) -> Result<TimeRange, Problem> {
    if let Some(name) = rule.names().find(|name| is_like_dry_run(name)) {
        return Err(Problem::bad_request(format!(
            "the body: {name}: {DRY_RUN} is a parameter of the query: ?{DRY_RUN}=true"
        )));
    }
    rule.require_texts(&["id", "meterApiName"])?;
    if rule.has(TYPE) {
        rule.require_texts(&[TYPE])?;
    }
    let range = rule.parsed::<TimeRange>(RANGE)?.checked().map_err(|problem| problem.during(RANGE))?;
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

/// What a rule would cancel, as far as usage shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Estimate {
    dry_run: bool,
    exact: bool,
    event_count: Number,
    sum: Number,
    basis: String,
}

async fn estimate(app: &App, rule: &Properties, range: TimeRange) -> Result<Estimate, Problem> {
    let known = ["id", "meterApiName", RANGE, TYPE];
    let unknown: Vec<_> = rule.names().filter(|name| !known.contains(name) && rule.has(name)).collect();
    if !unknown.is_empty() {
        let unknown = unknown.join(", ");
        return Err(Problem::bad_request(format!(
            "{DRY_RUN}: no estimate for a rule with {unknown}: usage cannot be narrowed as that would narrow the rule"
        )));
    }
    if rule.has(TYPE) && rule.text(TYPE).as_deref() != Some(FILTER_OUT) {
        return Err(Problem::bad_request(format!("{DRY_RUN}: an estimate needs the {TYPE} {FILTER_OUT}")));
    }
    let meter_api_name = rule.text("meterApiName").unwrap_or_default();
    let is_short = range.end() - range.start() <= HOURLY_SECONDS;
    let total = async |aggregation| {
        let query = UsageQuery {
            meter_api_name: &meter_api_name,
            time_grouping_interval: if is_short { Interval::Hour } else { Interval::Day },
            time_range: range,
            aggregation: Some(aggregation),
            group_by: Vec::new(),
            filter: BTreeMap::new(),
        };
        total(&ask(app, &query).await?)
    };
    let (event_count, sum) = tokio::try_join!(total(Aggregation::Count), total(Aggregation::Sum))?;
    let basis = format!(
        "Amberflo's usage of {meter_api_name:?} with event times from {} up to but not including {}. The rule goes by \
         ingestion time: events that arrived late, or in this range from another, make the difference, and so do events \
         that are cancelled already or not yet counted",
        range.start(),
        range.end()
    );
    Ok(Estimate { dry_run: true, exact: false, event_count, sum, basis })
}

/// What an answer counts or sums up over its whole range: no group where there is no event, one group otherwise.
fn total(answer: &Bytes) -> Result<Number, Problem> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Usage {
        client_meters: Vec<Group>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Group {
        group_value: f64,
    }
    let usage: Usage = serde_json::from_slice(answer).map_err(|error| {
        Problem::bad_gateway(format!("Amberflo answered usage in an unknown form, so there is no estimate: {error}"))
    })?;
    let total: f64 = usage.client_meters.iter().map(|group| group.group_value).sum();
    let is_integer = total.fract() == 0.0 && total.abs() < 9e15;
    let number = if is_integer { Some(Number::from(total as i64)) } else { Number::from_f64(total) };
    number.ok_or_else(|| Problem::bad_gateway("Amberflo answered usage beyond all numbers, so there is no estimate"))
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

    #[test]
    fn totals_keep_whole_numbers_whole() {
        let total = |text: &str| super::total(&Bytes::from(text.to_owned())).map(|number| number.to_string());
        assert_eq!(total(r#"{"clientMeters":[]}"#).unwrap(), "0");
        assert_eq!(total(r#"{"clientMeters":[{"groupValue":3.0,"values":[]}]}"#).unwrap(), "3");
        assert_eq!(total(r#"{"clientMeters":[{"groupValue":-1.5}]}"#).unwrap(), "-1.5");
        for other in ["", "{}", "[]", r#"{"clientMeters":[{}]}"#, r#"{"clientMeters":[{"groupValue":"3"}]}"#] {
            assert!(total(other).is_err(), "{other}");
        }
    }
}
