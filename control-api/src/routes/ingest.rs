//! Ingestion: usage events put on the bus, from which the worker takes them.

mod batch;
mod schema;

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::Data;
use crate::app::App;
use crate::auth::Caller;
use crate::bus::NotPut;
use crate::extract::{Query, body};
use crate::problem::{Problem, ProblemBody};
use crate::surroundings::IDEMPOTENCY_KEY;
use crate::surroundings::audit::Audit;
use batch::{Event, EventError, Ids, Judge, Repeatable};
use schema::Body;

const MAX_KEY_BYTES: usize = 255;
/// What is left of REQUEST_TIMEOUT for the answer; at most a fifth of it.
const MARGIN: Duration = Duration::from_secs(2);
/// When a caller should repeat a request that failed.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// What became of the events.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Ingested {
    /// How many are on the bus.
    accepted: usize,
    /// How many were refused, and are not sent.
    rejected: usize,
    /// Each event, in the order of the request.
    events: Vec<EventOutcome>,
}

/// What became of one event.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct EventOutcome {
    /// Its place in the request, from 0.
    index: usize,
    /// Its idempotency key: its own, or else derived from the `Idempotency-Key`, or else made here. Absent where the
    /// event was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_id: Option<String>,
    /// The id that EventBridge gave it. Absent where it is not known to be on the bus.
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<String>,
    /// For how long it may be sent again under this `uniqueId` without being billed again: `always`, where it has a
    /// `meterTimeInMillis`, for then each copy makes the identical record, which Amberflo counts once; or else
    /// `within_dedup_window` (DEDUP_WINDOW, 2 minutes), for then each copy has the time at which it was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    repeatable: Option<Repeatable>,
    /// Why it was refused, or (`not_put`) is not known to be on the bus.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<EventError>,
}

/// Puts usage events on the bus
///
/// One usage event or an array of up to 1,000. Each is validated as the worker will validate it; those that are valid are
/// put on the bus whatever the others are, and the answer says of each event what became of it. That an event is accepted
/// does not mean yet that Amberflo has it: the worker delivers it within seconds.
///
/// **Repeating a request.** Whoever has lost the answer may send the request again, with the same events in the same
/// order and under the same `Idempotency-Key`: events without a `uniqueId` get the same one as before. The same holds
/// for events with a `uniqueId` of their own, such as the returned one. Copies of an event with a `meterTimeInMillis`
/// are billed once whenever they are sent. **Without `meterTimeInMillis` a copy gets the time at which it is sent, and is
/// recognised only within the worker's deduplication window (2 minutes).** Without either a key or a `uniqueId`, the same
/// request sent again is other events. **Events that were refused and then mended go under a new key**, or in their old
/// places beside all the others: an id is made of the key and the place.
#[utoipa::path(
    post,
    path = "/ingest",
    tag = "Ingestion",
    operation_id = "ingest",
    params((
        "Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$",
        description = "Visible ASCII. Names the request for its repetition; a key of another caller is another key. \
                       Events that have a `uniqueId` keep it."
    )),
    request_body(content = Body, content_type = "application/json"),
    responses(
        (status = 202, description = "At least one event is valid, and every valid one is on the bus",
            body = Data<Ingested>),
        (status = 400, description = "No JSON, not 1 to 1,000 events, or no valid one among them; `events` says of each \
            event why", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The body is larger than 1 MiB", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 502, description = "The bus refuses what this API puts on it: an operator must mend that. `events` says \
            what became of each event", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Some valid events are not known to be on the bus: repeat the request. `events` says \
            what became of each event", body = ProblemBody, content_type = "application/problem+json"),
        (status = "default", description = "A problem", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn post(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    audit: Audit,
    query: Query,
    request: Request,
) -> Result<Response, Problem> {
    query.only(&[])?;
    let timeout = app.settings.limits.request_timeout;
    let deadline = Instant::now() + timeout - MARGIN.min(timeout / 5);
    let key = idempotency_key(request.headers())?;
    let ids = key.as_deref().map_or(Ids::New, |key| Ids::Key { subject: &caller.subject, key });
    let body = body(request, &()).await?;
    let now = app.clock.now();
    let judge = Judge { rules: &app.rules, ids, now, max_bytes: app.bus.max_detail_bytes() };
    let judged = judge.judge(&body)?;

    let details: Vec<&str> = judged.iter().flatten().map(|event| &*event.detail).collect();
    let put = app.bus.put(&details, now, deadline).await;
    audit.note("accepted", &put.iter().flatten().count());
    audit.note("notPut", &(put.len() - put.iter().flatten().count()));
    audit.note("rejected", &(judged.len() - put.len()));
    answer(judged, put)
}

/// The request's key, if it has one.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut given = headers.get_all(IDEMPOTENCY_KEY).iter();
    let (Some(key), next) = (given.next(), given.next()) else { return Ok(None) };
    let key = key.as_bytes();
    if next.is_some() || !(1..=MAX_KEY_BYTES).contains(&key.len()) || !key.iter().all(u8::is_ascii_graphic) {
        let allowed = format!("allowed is one, of 1 to {MAX_KEY_BYTES} characters of visible ASCII");
        return Err(Problem::bad_request(format!("Idempotency-Key: {allowed}")));
    }
    Ok(Some(String::from_utf8_lossy(key).into_owned()))
}

/// The answer, from what the events are and what became of those that were put.
fn answer(judged: Vec<Result<Event, EventError>>, put: Vec<Result<String, NotPut>>) -> Result<Response, Problem> {
    let (mut put, mut failed) = (put.into_iter(), Vec::new());
    let (mut accepted, mut rejected) = (0, 0);
    let outcome = |(index, judged): (usize, Result<Event, EventError>)| {
        let mut outcome = EventOutcome { index, unique_id: None, event_id: None, repeatable: None, error: None };
        match judged {
            Err(error) => {
                rejected += 1;
                outcome.error = Some(error);
            }
            Ok(Event { unique_id, repeatable, .. }) => {
                (outcome.unique_id, outcome.repeatable) = (Some(unique_id), Some(repeatable));
                match put.next() {
                    Some(Ok(id)) => {
                        accepted += 1;
                        outcome.event_id = Some(id);
                    }
                    Some(Err(not_put)) => {
                        outcome.error = Some(EventError { reason: "not_put", detail: not_put.detail.clone() });
                        failed.push(not_put);
                    }
                    None => {}
                }
            }
        }
        outcome
    };
    let events: Vec<_> = judged.into_iter().enumerate().map(outcome).collect();
    let problem = match failed.iter().find(|not_put| not_put.is_final).or(failed.first()) {
        None if accepted == 0 => Problem::bad_request(match &events[..] {
            [EventOutcome { error: Some(error), .. }] => format!("the event is refused: {}", error.detail),
            _ => format!("all {rejected} events are refused; `events` says why"),
        }),
        None => {
            return Ok(Data::with(StatusCode::ACCEPTED, Ingested { accepted, rejected, events }));
        }
        Some(not_put) if not_put.is_final => Problem::bad_gateway(not_put_text(failed.len(), not_put)),
        Some(not_put) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, not_put_text(failed.len(), not_put))
            .with_retry_after(Some(RETRY_AFTER)),
    };
    let events = serde_json::to_value(events).unwrap_or_default();
    Err(problem.with("accepted", accepted).with("rejected", rejected).with("events", events))
}

fn not_put_text(count: usize, not_put: &NotPut) -> String {
    let reason = &not_put.detail;
    format!(
        "{count} valid events are not known to be on the bus ({reason}). Repeating the request is safe with the same \
         Idempotency-Key, or with the returned uniqueId in each event; an event whose `repeatable` is \
         \"within_dedup_window\" within 2 minutes only"
    )
}
