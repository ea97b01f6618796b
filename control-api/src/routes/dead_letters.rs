//! Dead letters: looking at them, sending them through the pipeline again, removing them.

use std::collections::HashSet;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use shared::backend::{BackendError, DeadLetters};
use shared::dead_letter::DeadLetter;
use shared::dead_letters::{Filter, Stopped, peek, purge};
use shared::reason::Reason;
use shared::redrive::{self, Options, Patch, Repair};
use tokio::time::Instant;
use utoipa::ToSchema;

use super::Data;
use crate::app::{App, Queues};
use crate::extract::{Json, NoBody, Query};
use crate::problem::{Problem, ProblemBody};
use crate::surroundings::audit::Audit;

/// The time for the work of one request. A letter stays hidden for a minute, and a caller waits for half of one.
const WORK_TIME: Duration = Duration::from_secs(20);
const PEEK_TIME: Duration = Duration::from_secs(5);
const MAX_PEEK: usize = 100;
/// Letters beyond this are left out of an answer: as a Lambda function we may answer 6 MB.
const MAX_PEEK_BYTES: usize = 4 << 20;
const FILTERS: [&str; 4] = ["reason", "tenantId", "meterApiName", "sequenceNumber"];

/// What the queue of dead letters holds.
#[derive(Serialize, ToSchema)]
pub struct Peeked {
    /// The name of the queue: what a purge wants as its `confirm`.
    queue: String,
    /// How many letters are stored, whoever has them in hand (approximate on SQS).
    depth: u64,
    /// Some of those that match, in no order.
    #[schema(value_type = Vec<Object>)]
    letters: Vec<Box<RawValue>>,
    /// More letters that match may be there.
    more: bool,
    /// What is to be known of this answer.
    note: &'static str,
}

/// Depth of the queue, and a sample of its letters.
///
/// Looking at letters of SQS means receiving them, which hides them from everybody else for as long as this request
/// takes (up to a minute, should it be cut off). Letters that somebody else has in hand are not shown, and which come
/// first is chance.
#[utoipa::path(
    get,
    path = "/dead-letters",
    tag = "Dead letters",
    operation_id = "peekDeadLetters",
    params(
        ("reason" = Option<Vec<String>>, Query, description = "Only letters with one of these reasons, such as `rejected`"),
        ("tenantId" = Option<String>, Query, description = "Only letters of this tenant"),
        ("meterApiName" = Option<String>, Query, description = "Only letters of this meter"),
        ("sequenceNumber" = Option<String>, Query, description = "Only the letter of the record at this place of the stream"),
        ("limit" = Option<u8>, Query, minimum = 1, maximum = 100, description = "At most so many letters; 10 if not given"),
    ),
    responses(
        (status = 200, description = "The queue", body = Data<Peeked>),
        (status = "default", description = "A problem", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(State(app): State<Arc<App>>, query: Query) -> Result<Response, Problem> {
    query.only(&[&FILTERS[..], &["limit"]].concat())?;
    let filter = filter(&query)?;
    let allowed = "a whole number from 1 to 100";
    let limit: usize = query.parsed("limit", allowed)?.unwrap_or(10);
    if !(1..=MAX_PEEK).contains(&limit) {
        return Err(Problem::bad_request(format!("limit: {limit}; allowed is {allowed}")));
    }
    let queue = &*queues(&app).await?.dead_letters;
    let peeked = peek(queue, &filter, limit, Instant::now() + PEEK_TIME).await.map_err(|error| failed(&error))?;
    let depth = queue.depth().await.map_err(|error| failed(&error))?;
    let (letters, has_all) = fitting(&peeked.letters);
    let note = match peeked.hidden {
        true => "The letters could not be shown to others again: nobody sees them for up to a minute.",
        false => "A sample: letters that another receiver has in hand are not in it.",
    };
    let more = peeked.more || !has_all;
    Ok(Data::ok(Peeked { queue: queue.name().to_owned(), depth, letters, more, note }))
}

/// As many letters as fit into an answer, and whether those are all.
fn fitting(letters: &[DeadLetter]) -> (Vec<Box<RawValue>>, bool) {
    let mut bytes = 0;
    let json = letters.iter().filter_map(|letter| serde_json::value::to_raw_value(letter).ok());
    let fitting: Vec<_> = json
        .take_while(|letter| {
            bytes += letter.get().len();
            bytes <= MAX_PEEK_BYTES
        })
        .collect();
    let has_all = fitting.len() == letters.len();
    (fitting, has_all)
}

/// One name, or a list of names.
#[derive(Deserialize, Serialize)]
#[serde(untagged, expecting = "a reason, or a list of reasons")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn names(&self) -> impl Iterator<Item = &str> {
        let names = match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::More(names) => names,
        };
        names.iter().map(String::as_str)
    }
}

/// Which letters are sent again, and how.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedriveRequest {
    /// Only letters with one of these reasons. `conflict` must be named to be meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, example = json!(["rejected"]))]
    reason: Option<OneOrMore>,
    /// Only letters of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant_id: Option<String>,
    /// Only letters of this meter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    meter_api_name: Option<String>,
    /// Only the letter of the record at this place of the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sequence_number: Option<String>,
    /// At most so many; all if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 1)]
    limit: Option<NonZeroU64>,
    /// A JSON merge patch (RFC 7396) of the payload as it arrived: of the envelope, so a usage event's members are under
    /// `detail`, or of the bare event. It needs `reason`, and is written to the audit log.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, required = false, example = json!({"detail": {"meterApiName": "api-calls"}}))]
    patch: Option<Box<RawValue>>,
}

/// `null` is something that was given: without a patch the letters would be sent as they are.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// Sends dead letters through the pipeline again.
///
/// Each gives the record that it would have given the first time, so what Amberflo took after all is not billed again. A
/// letter is removed only after its record is on the stream. It works for up to 20 seconds; `more` in the answer says
/// that letters may be left, and then the same request goes on.
///
/// Conflicts are sent only where `reason` names them and `confirm=conflict` is given: both events are billed then.
/// Letters that are no usage events need a `patch`; one that is redriven twice with the same patch is billed once, with
/// different patches, or after `unconfirmed`, it may be billed twice. One whose cause is not mended comes back.
#[utoipa::path(
    post,
    path = "/dead-letters/redrive",
    tag = "Dead letters",
    operation_id = "redriveDeadLetters",
    params(("confirm" = Option<String>, Query, pattern = "^conflict$", description = "`conflict`, to send conflicts too")),
    request_body = RedriveRequest,
    responses(
        (
            status = 200,
            description = "What was done: letters `redriven`, `skipped` (of these `conflicts`, `notRedrivable` and \
                `forgotten`), the same `byReason`, `more`, up to 20 `examples` of skipped ones with the reason why, and \
                the `depth` of the queue now. Letters that somebody else has in hand, or had within the last minute, \
                are not looked at, and are not in `more`",
            body = Data<serde_json::Value>,
            example = json!({"data": {
                "redriven": 2, "conflicts": 0, "notRedrivable": 1, "forgotten": 0, "skipped": 1, "more": false,
                "byReason": {"missing_field": {"redriven": 2, "skipped": 1}},
                "depth": 1,
                "examples": [{
                    "shard": "shard-0", "sequenceNumber": "17", "reason": "missing_field",
                    "why": "not redrivable: with the patch it is still no usage event"
                }]
            }})
        ),
        (status = "default", description = "A problem", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn redrive(
    State(app): State<Arc<App>>,
    audit: Audit,
    query: Query,
    Json(request): Json<RedriveRequest>,
) -> Result<Response, Problem> {
    query.only(&["confirm"])?;
    audit.note("request", &request);
    let reasons = request.reason.as_ref().map(|names| reasons(names.names())).transpose()?;
    let is_empty = |text: &Option<String>| text.as_ref().is_some_and(String::is_empty);
    if reasons.as_ref().is_some_and(HashSet::is_empty)
        || [&request.tenant_id, &request.meter_api_name, &request.sequence_number].into_iter().any(is_empty)
    {
        return Err(Problem::bad_request("the body: a filter is empty; leave it out instead"));
    }
    let names_conflict = reasons.as_ref().is_some_and(|reasons| reasons.contains(&Reason::Conflict));
    let conflicts = match (query.one("confirm")?, names_conflict) {
        (Some("conflict"), true) => true,
        (None, false) => false,
        (None, true) => {
            return Err(Problem::bad_request("reason: conflict needs ?confirm=conflict: both events are billed"));
        }
        (Some("conflict"), false) => {
            return Err(Problem::bad_request(
                "confirm: conflict, but reason does not name it: allowed with reason [\"conflict\"]",
            ));
        }
        (Some(other), _) => {
            return Err(Problem::bad_request(format!("confirm: {other:?}; allowed is conflict, or none")));
        }
    };
    let repair = match &request.patch {
        None => None,
        Some(_) if reasons.is_none() => {
            return Err(Problem::bad_request("patch: needs reason, so that only the letters meant are changed"));
        }
        Some(patch) => {
            let patch = Patch::parse(patch.get()).map_err(|error| Problem::bad_request(format!("patch: {error}")))?;
            // Two letters under one id would be one event: the second would be dropped as its copy.
            if patch.names_id() && request.sequence_number.is_none() {
                return Err(Problem::bad_request(
                    "patch: it names the event's id, and so needs sequenceNumber: one letter",
                ));
            }
            Some(Repair { patch, rules: app.rules.clone() })
        }
    };
    let filter = Filter {
        reasons,
        tenant_id: request.tenant_id,
        meter_api_name: request.meter_api_name,
        sequence_number: request.sequence_number,
    };
    let options = Options {
        filter,
        conflicts,
        repair,
        limit: request.limit.map(NonZeroU64::get),
        before: app.clock.now(),
        deadline: Some(Instant::now() + work_time(&app)),
    };
    let queues = queues(&app).await?;
    let report = redrive::run(&*queues.dead_letters, &*queues.stream, &options)
        .await
        .map_err(|stopped| stop(&audit, &stopped))?;
    audit.note("redriven", &report.totals.redriven);
    audit.note("byReason", &report.by_reason);
    Ok(Done::answer(report, &*queues.dead_letters).await)
}

/// Removes dead letters for good: their usage is never billed.
///
/// Only letters that were given up before this request are removed. It works for up to 20 seconds; `more` in the answer
/// says that letters may be left.
#[utoipa::path(
    delete,
    path = "/dead-letters",
    tag = "Dead letters",
    operation_id = "purgeDeadLetters",
    params(
        ("confirm" = String, Query, description = "The queue's name, as `GET /dead-letters` tells it"),
        ("reason" = Option<Vec<String>>, Query, description = "Only letters with one of these reasons"),
        ("tenantId" = Option<String>, Query, description = "Only letters of this tenant"),
        ("meterApiName" = Option<String>, Query, description = "Only letters of this meter"),
        ("sequenceNumber" = Option<String>, Query, description = "Only the letter of the record at this place of the stream"),
    ),
    responses(
        (
            status = 200,
            description = "What was done: letters `removed`, the same `byReason`, `more`, and the `depth` of the queue now",
            body = Data<serde_json::Value>,
            example = json!({"data": {"removed": 3, "byReason": {"not_json": 3}, "more": false, "depth": 0}})
        ),
        (status = "default", description = "A problem", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn remove(State(app): State<Arc<App>>, audit: Audit, query: Query, _: NoBody) -> Result<Response, Problem> {
    query.only(&[&FILTERS[..], &["confirm"]].concat())?;
    let filter = filter(&query)?;
    let confirmed = query.one("confirm")?;
    let queue = &*queues(&app).await?.dead_letters;
    if confirmed != Some(queue.name()) {
        let given = confirmed.unwrap_or("nothing");
        return Err(Problem::bad_request(format!("confirm: {given}; allowed is the queue's name, {}", queue.name())));
    }
    let deadline = Some(Instant::now() + work_time(&app));
    let purged = purge(queue, &filter, app.clock.now(), deadline).await.map_err(|stopped| stop(&audit, &stopped))?;
    audit.note("queue", &queue.name());
    audit.note("byReason", &purged.by_reason);
    Ok(Done::answer(purged, queue).await)
}

fn work_time(app: &App) -> Duration {
    WORK_TIME.min(app.settings.limits.request_timeout * 2 / 3)
}

fn filter(query: &Query) -> Result<Filter, Problem> {
    let mut names = query.all("reason").peekable();
    let text = |name| Ok(query.one(name)?.map(str::to_owned));
    Ok(Filter {
        reasons: if names.peek().is_some() { Some(reasons(names)?) } else { None },
        tenant_id: text("tenantId")?,
        meter_api_name: text("meterApiName")?,
        sequence_number: text("sequenceNumber")?,
    })
}

fn reasons<'a>(names: impl Iterator<Item = &'a str>) -> Result<HashSet<Reason>, Problem> {
    names
        .map(|name| {
            Reason::from_name(name).ok_or_else(|| {
                let allowed: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
                Problem::bad_request(format!("reason: {name:?}; allowed is one of {}", allowed.join(", ")))
            })
        })
        .collect()
}

async fn queues(app: &App) -> Result<&Queues, Problem> {
    app.queues().await.map_err(|error| {
        let text = format!("{error:#}");
        tracing::error!(error = text, "the dead letters cannot be opened");
        match error.downcast_ref::<BackendError>() {
            Some(error) => failed(error).during("the dead letters cannot be opened"),
            None => Problem::bad_gateway(format!("the dead letters cannot be opened: {text}")),
        }
    })
}

/// What was done, and how many letters there are now.
#[derive(Serialize)]
struct Done<T> {
    #[serde(flatten)]
    done: T,
    #[serde(skip_serializing_if = "Option::is_none")]
    depth: Option<u64>,
}

impl<T: Serialize> Done<T> {
    async fn answer(done: T, queue: &dyn DeadLetters) -> Response {
        // It is done whether or not the queue can be counted.
        let depth = queue.depth().await.ok();
        Data::ok(Self { done, depth })
    }
}

/// A failure in the middle, with what was done until then.
fn stop<T: Serialize>(audit: &Audit, stopped: &Stopped<T>) -> Problem {
    audit.note("done", &stopped.done);
    let done = serde_json::to_value(&stopped.done).unwrap_or_default();
    failed(&stopped.error).with("done", done)
}

fn failed(error: &BackendError) -> Problem {
    let text = format!("the dead letters or the stream: {error}");
    match error {
        BackendError::Unavailable(_) | BackendError::Full(_) => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, text).with_retry_after(Some(Duration::from_secs(5)))
        }
        BackendError::Gone(_) | BackendError::Misconfigured(_) => Problem::bad_gateway(text),
    }
}
