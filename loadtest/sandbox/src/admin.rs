//! The endpoints under `/sandbox`, by which demos and load runs look inside and change faults and facts.

use std::time::SystemTime;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::facts::{Facts, InvalidFact};
use crate::faults::Faults;
use crate::operation::NO_RECORDS;
use crate::report::{DoubleBilled, LedgerSnapshot, StoredRecord};
use crate::stats::{LoggedRequest, Stats};
use crate::{InvalidFault, Sandbox};

pub(crate) fn routes() -> Router<Sandbox> {
    Router::new()
        .route("/ledger", get(ledger))
        .route("/stats", get(stats))
        .route("/requests", get(requests))
        .route("/faults", get(faults).put(put_faults).delete(delete_faults))
        .route("/facts", get(facts).put(put_facts).delete(delete_facts))
        .route("/events", get(events))
        .route("/records", get(records))
        .route("/double-billed", get(double_billed))
        .route("/filtering-rules", get(filtering_rules))
        .route("/reset", post(reset))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LedgerQuery {
    customer_id: Option<String>,
    meter_api_name: Option<String>,
}

async fn ledger(State(sandbox): State<Sandbox>, Query(query): Query<LedgerQuery>) -> Json<LedgerSnapshot> {
    let state = sandbox.lock();
    Json(state.ledger.snapshot(query.customer_id.as_deref(), query.meter_api_name.as_deref()))
}

async fn stats(State(sandbox): State<Sandbox>) -> Json<Stats> {
    Json(sandbox.stats())
}

/// Part of a longer list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    #[serde(default)]
    offset: usize,
    #[serde(default = "page_size")]
    limit: usize,
}

fn page_size() -> usize {
    100
}

#[derive(Serialize)]
struct Page<T> {
    /// Of the whole list.
    total: usize,
    /// Where the next page starts; `None` at the end.
    next_offset: Option<usize>,
    items: Vec<T>,
}

impl<T> Page<T> {
    fn of(items: impl ExactSizeIterator<Item = T>, query: &PageQuery) -> Json<Self> {
        let total = items.len();
        let next = query.offset.saturating_add(query.limit);
        let items = items.skip(query.offset).take(query.limit).collect();
        Json(Self { total, next_offset: (next < total).then_some(next), items })
    }
}

/// Latest first.
async fn requests(State(sandbox): State<Sandbox>, Query(query): Query<PageQuery>) -> Json<Page<LoggedRequest>> {
    Page::of(sandbox.requests().into_iter().rev(), &query)
}

async fn double_billed(State(sandbox): State<Sandbox>, Query(query): Query<PageQuery>) -> Json<Page<DoubleBilled>> {
    Page::of(sandbox.billed_more_than_once().into_iter(), &query)
}

async fn faults(State(sandbox): State<Sandbox>) -> Json<Faults> {
    Json(sandbox.faults())
}

/// Replaces all faults. The content type is not looked at, so that plain `curl -d` works.
async fn put_faults(State(sandbox): State<Sandbox>, body: Bytes) -> Result<Json<Faults>, Refusal> {
    sandbox.set_faults(parse_faults(&body)?)?;
    Ok(Json(sandbox.faults()))
}

async fn delete_faults(State(sandbox): State<Sandbox>) -> Result<Json<Faults>, Refusal> {
    sandbox.set_faults(Faults::default())?;
    Ok(Json(sandbox.faults()))
}

async fn facts(State(sandbox): State<Sandbox>) -> Json<Facts> {
    Json(sandbox.facts())
}

/// Replaces all facts.
async fn put_facts(State(sandbox): State<Sandbox>, body: Bytes) -> Result<Json<Facts>, Refusal> {
    sandbox.set_facts(Facts::from_json(&body).map_err(|reason| Refusal(StatusCode::BAD_REQUEST, reason))?)?;
    Ok(Json(sandbox.facts()))
}

async fn delete_facts(State(sandbox): State<Sandbox>) -> Result<Json<Facts>, Refusal> {
    sandbox.set_facts(Facts::default())?;
    Ok(Json(sandbox.facts()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EventsQuery {
    unique_id: Option<String>,
    customer_id: Option<String>,
    meter_api_name: Option<String>,
    #[serde(default = "page_size")]
    limit: usize,
}

/// Billed records that match all that is given.
async fn events(
    State(sandbox): State<Sandbox>,
    Query(query): Query<EventsQuery>,
) -> Result<Json<Vec<StoredRecord>>, Refusal> {
    if !sandbox.shared.config.keep_records {
        return Err(Refusal(StatusCode::CONFLICT, NO_RECORDS.to_owned()));
    }
    let wanted = |record: &&StoredRecord| {
        query.unique_id.as_ref().is_none_or(|id| record.unique_id.as_ref() == Some(id))
            && query.customer_id.as_ref().is_none_or(|id| record.customer_id == *id)
            && query.meter_api_name.as_ref().is_none_or(|name| record.meter_api_name == *name)
    };
    let state = sandbox.lock();
    Ok(Json(state.ledger.records().iter().filter(wanted).take(query.limit).cloned().collect()))
}

/// All billed records in order of acceptance, for an audit.
async fn records(State(sandbox): State<Sandbox>, Query(query): Query<PageQuery>) -> Result<Json<RecordsPage>, Refusal> {
    if !sandbox.shared.config.keep_records {
        return Err(Refusal(StatusCode::CONFLICT, NO_RECORDS.to_owned()));
    }
    let started_at = sandbox.shared.started_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let state = sandbox.lock();
    let Json(page) = Page::of(state.ledger.records().iter().cloned(), &query);
    Ok(Json(RecordsPage { started_at_ms: started_at.as_secs_f64() * 1000.0, page }))
}

#[derive(Serialize)]
struct RecordsPage {
    /// The Unix time from which records count.
    started_at_ms: f64,
    #[serde(flatten)]
    page: Page<StoredRecord>,
}

/// By id, as they were sent. The ledger does not follow them: `POST /usage` shows what they leave.
async fn filtering_rules(State(sandbox): State<Sandbox>) -> Json<Vec<Map<String, Value>>> {
    Json(sandbox.lock().account.filtering_rules.all().cloned().collect())
}

async fn reset(State(sandbox): State<Sandbox>) -> StatusCode {
    sandbox.reset();
    StatusCode::NO_CONTENT
}

impl Faults {
    /// Reads JSON such as the admin endpoint takes.
    ///
    /// # Errors
    /// Says where the JSON is wrong, and names the field.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let parsed = Json::<Self>::from_bytes(json).map_err(|rejection| rejection.body_text());
        parsed.map(|Json(faults)| faults)
    }
}

fn parse_faults(json: &[u8]) -> Result<Faults, Refusal> {
    Faults::from_json(json).map_err(|reason| Refusal(StatusCode::BAD_REQUEST, reason))
}

/// An admin request that is not done: `{"error": "..."}`.
struct Refusal(StatusCode, String);

impl From<InvalidFault> for Refusal {
    fn from(invalid: InvalidFault) -> Self {
        Self(StatusCode::BAD_REQUEST, invalid.to_string())
    }
}

impl From<InvalidFact> for Refusal {
    fn from(invalid: InvalidFact) -> Self {
        Self(StatusCode::BAD_REQUEST, invalid.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            error: String,
        }
        (self.0, Json(Body { error: self.1 })).into_response()
    }
}
