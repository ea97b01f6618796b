//! `/ingest-snapshot/custom-filtering-rules`: rules that cancel events.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::{delete, post};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::Sandbox;
use crate::attempt::Answer;
use crate::billed::Event;
use crate::facts::Facts;
use crate::operation::{Operation, answer, optional, required};

/// The only known type.
const FILTER_OUT: &str = "by_property_filter_out";

pub(crate) fn routes() -> Router<Sandbox> {
    Router::new()
        .route("/ingest-snapshot/custom-filtering-rules", post(put).get(list))
        .route("/ingest-snapshot/custom-filtering-rules/{id}", delete(remove))
}

async fn put(State(sandbox): State<Sandbox>, request: Request) -> Response {
    answer(&sandbox, Operation::FilteringRules, request, |state, call| {
        if !state.facts.takes_known_rule_fields {
            return Err(Answer::bad_request("Invalid filtering rule"));
        }
        let created = call.sandbox.elapsed();
        state.account.filtering_rules.put(call.object()?, created).map(|rule| Answer::json(&rule))
    })
    .await
}

/// Whether Amberflo has this is not known.
async fn list(State(sandbox): State<Sandbox>, request: Request) -> Response {
    answer(&sandbox, Operation::FilteringRules, request, |state, _| {
        let rules: Vec<_> = state.account.filtering_rules.all().collect();
        if state.facts.lists_rules { Ok(Answer::json(&rules)) } else { Err(not_allowed()) }
    })
    .await
}

/// Nor this.
async fn remove(State(sandbox): State<Sandbox>, Path(id): Path<String>, request: Request) -> Response {
    answer(&sandbox, Operation::FilteringRules, request, |state, _| {
        if !state.facts.deletes_rules {
            return Err(not_allowed());
        }
        state.account.filtering_rules.0.remove(&id);
        Ok(Answer::new(StatusCode::OK, ""))
    })
    .await
}

fn not_allowed() -> Answer {
    Answer::new(StatusCode::METHOD_NOT_ALLOWED, "")
}

/// The rules by id, whole.
///
/// A rule cancels all events of its meter that were ingested in its time range. Amberflo's rules can be narrowed to a
/// customer or a dimension, but by which properties is not known here: such properties are kept and change nothing.
#[derive(Debug, Default)]
pub(crate) struct FilteringRules(BTreeMap<String, Rule>);

#[derive(Debug)]
struct Rule {
    meter_api_name: String,
    /// How long after the sandbox's start it was put.
    created: Duration,
    /// Of ingestion, since the epoch; the end is not part of it.
    start: Duration,
    end: Duration,
    whole: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TimeRange {
    start_time_in_seconds: u64,
    end_time_in_seconds: u64,
}

impl FilteringRules {
    /// Creates the rule, or replaces the one that has its id.
    fn put(&mut self, whole: Map<String, Value>, created: Duration) -> Result<Map<String, Value>, Answer> {
        let id = required(&whole, "id")?;
        let meter_api_name = required(&whole, "meterApiName")?;
        let range =
            whole.get("ingestionTimeRange").ok_or_else(|| Answer::bad_request("ingestionTimeRange is missing"))?;
        let range = TimeRange::deserialize(range)
            .map_err(|error| Answer::bad_request(format!("invalid ingestionTimeRange: {error}")))?;
        if range.start_time_in_seconds >= range.end_time_in_seconds {
            return Err(Answer::bad_request("invalid ingestionTimeRange: it ends before it starts"));
        }
        if optional(&whole, "type")?.is_some_and(|kind| kind != FILTER_OUT) {
            return Err(Answer::bad_request("Invalid filtering rule type"));
        }
        let rule = Rule {
            meter_api_name,
            created,
            start: Duration::from_secs(range.start_time_in_seconds),
            end: Duration::from_secs(range.end_time_in_seconds),
            whole: whole.clone(),
        };
        self.0.insert(id, rule);
        Ok(whole)
    }

    /// The rules as they were sent, by id.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Map<String, Value>> {
        self.0.values().map(|rule| &rule.whole)
    }

    /// Whether an event is cancelled as `elapsed` is the time since the sandbox's start, at `started_at`.
    pub(crate) fn cancel(&self, event: &Event<'_>, started_at: SystemTime, elapsed: Duration, facts: &Facts) -> bool {
        let time = if facts.rules_go_by_ingestion {
            (started_at + event.record.at).duration_since(UNIX_EPOCH).unwrap_or_default()
        } else {
            Duration::from_millis(event.record.time_millis.try_into().unwrap_or_default())
        };
        let cancels = |rule: &Rule| {
            rule.meter_api_name == event.meter_api_name
                && rule.created + facts.rules_cancel_after <= elapsed
                && (rule.start..rule.end).contains(&time)
        };
        self.0.values().any(cancels)
    }
}
