//! The local bus: answers EventBridge's `PutEvents` over HTTP and publishes usage events to the stream.
//!
//! An AWS SDK or the AWS CLI with `AWS_ENDPOINT_URL_EVENTBRIDGE` pointed here works unchanged. There is one rule, as
//! the deployed stack has it: entries of [`DETAIL_TYPES`](shared::event::DETAIL_TYPES) go to the stream, on whatever bus and from whatever
//! source they are put; all others are accepted, as on a bus where no rule matches, and go nowhere. Signatures are not
//! checked: the address it listens on is its only protection. A browser's page cannot reach it, because the
//! `X-Amz-Target` header that it asks for makes a browser ask for leave first, which is never given.
//!
//! Protocol: AWS JSON 1.1. Limits and wordings are those of the EventBridge API reference and of recorded answers.

mod put_events;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use serde::Serialize;
use shared::backend::{BackendError, Stream};
use shared::clock::Clock;
use shared::service::Trouble;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use uuid::Uuid;

use put_events::Outcome;

const TARGET: &str = "AWSEvents.PutEvents";

/// The largest body that is read. Entries of 1 MiB can take three times that as JSON: an SDK may write a two-byte
/// character as a six-byte escape, and every quote of a `Detail` is escaped.
const MAX_BODY_BYTES: usize = 4 << 20;

/// A larger body is read up to here and thrown away: a client that is still sending does not see an early answer.
const MAX_DISCARDED_BYTES: usize = 32 << 20;

/// Requests that are worked on at a time; others wait, unread.
const MAX_REQUESTS: usize = 64;

/// How long a client may take to send its body: a slow one must not keep the others out.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

static UNSTORED: Trouble = Trouble::new();

const ABOUT: &str = "\
This is the local event bus of the metering ingest worker. It answers Amazon EventBridge's PutEvents, so that usage
events can be sent without AWS. Point an AWS SDK or the AWS CLI here, with any credentials and any region:

    export AWS_ENDPOINT_URL_EVENTBRIDGE=http://THIS-ADDRESS AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1
    export AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local
    aws events put-events --entries '[{\"Source\": \"my.application\", \"DetailType\": \"ingestUsage\",
        \"Detail\": \"{\\\"tenantId\\\": \\\"tenant-1\\\", \\\"meterApiName\\\": \\\"api-calls\\\", \\\"meterValue\\\": 1}\"}]'

Entries with the DetailType ingestUsage or sbt_aws_ingestUsage are metered; others are accepted and ignored.
";

/// The bus as a router: `POST /` is `PutEvents`, `GET /` says what this is.
pub fn router(stream: Arc<dyn Stream>, clock: Clock) -> Router {
    let about = || async { ABOUT };
    Router::new()
        .route("/", get(about).post(post))
        .fallback(|| async { (StatusCode::NOT_FOUND, ABOUT) })
        .with_state(Bus { stream, clock, bodies: Arc::new(Semaphore::new(MAX_REQUESTS)) })
}

#[derive(Clone)]
struct Bus {
    stream: Arc<dyn Stream>,
    clock: Clock,
    /// Bounds the memory that bodies take together.
    bodies: Arc<Semaphore>,
}

async fn post(State(bus): State<Bus>, request: Request) -> Response {
    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok()).map(str::to_owned);
    // Read even where it is of no use, so that the connection can be used again.
    let _place = bus.bodies.acquire().await;
    let body = timeout(BODY_TIMEOUT, read_body(request.into_body())).await;
    let body = body.unwrap_or_else(|_| Err(Error::serialization("The body did not arrive in time.")));
    let result = match (body, target.as_deref()) {
        (Err(error), _) => Err(error),
        (Ok(body), Some(TARGET)) => put(&bus, &body).await,
        (Ok(_), target) => Err(unknown_operation(target)),
    };
    match result {
        Ok(answer) => json(StatusCode::OK, &answer),
        Err(error) => {
            tracing::debug!(status = %error.status, code = error.code, message = error.message, "PutEvents refused");
            json(error.status, &ErrorBody { code: error.code, message: &error.message })
        }
    }
}

async fn put(bus: &Bus, body: &[u8]) -> Result<PutEventsAnswer, Error> {
    let mut records = Vec::new();
    let mut failed_entry_count = 0;
    let entries = put_events::judge(body, bus.clock.now())?
        .into_iter()
        .map(|outcome| match outcome {
            Outcome::Accepted { event_id, record } => {
                records.extend(record);
                AnswerEntry::Accepted { event_id }
            }
            Outcome::Failed { error_code, error_message } => {
                failed_entry_count += 1;
                AnswerEntry::Failed { error_code, error_message }
            }
        })
        .collect();
    // Nobody is told an id before its event is durable.
    bus.stream.publish(records).await?;
    if let Some(over) = UNSTORED.over() {
        tracing::info!(lasted = over.lasted.as_secs(), "events are stored again");
    }
    Ok(PutEventsAnswer { failed_entry_count, entries })
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PutEventsAnswer {
    failed_entry_count: usize,
    entries: Vec<AnswerEntry>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum AnswerEntry {
    #[serde(rename_all = "PascalCase")]
    Accepted { event_id: String },
    #[serde(rename_all = "PascalCase")]
    Failed { error_code: &'static str, error_message: String },
}

/// Why a request is refused as a whole.
#[derive(Debug)]
struct Error {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Error {
    fn validation(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: "ValidationException", message: message.into() }
    }

    fn serialization(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: "SerializationException", message: message.into() }
    }
}

impl From<BackendError> for Error {
    /// Answers that every SDK tries again: the events are not stored, and may be later.
    fn from(error: BackendError) -> Self {
        if let Some(omitted) = UNSTORED.again() {
            tracing::warn!(%error, omitted, "events could not be stored");
        }
        let (status, code) = match &error {
            BackendError::Full(_) => (StatusCode::BAD_REQUEST, "ThrottlingException"),
            BackendError::Unavailable(_) | BackendError::Gone(_) | BackendError::Misconfigured(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "InternalException")
            }
        };
        Self { status, code, message: error.to_string() }
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    #[serde(rename = "__type")]
    code: &'a str,
    message: &'a str,
}

fn unknown_operation(target: Option<&str>) -> Error {
    let message = match target {
        Some(target) => format!("The local bus answers {TARGET} only, not {target}."),
        None => format!("The header X-Amz-Target: {TARGET} is missing."),
    };
    Error { status: StatusCode::BAD_REQUEST, code: "UnknownOperationException", message }
}

async fn read_body(body: Body) -> Result<Bytes, Error> {
    let mut chunks = body.into_data_stream();
    let (mut bytes, mut length) = (BytesMut::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Error::serialization(format!("The body could not be read: {error}")))?;
        length += chunk.len();
        if length <= MAX_BODY_BYTES {
            bytes.extend_from_slice(&chunk);
        } else if length > MAX_DISCARDED_BYTES {
            break;
        }
    }
    if length <= MAX_BODY_BYTES {
        return Ok(bytes.freeze());
    }
    let message = format!("The request body is larger than {MAX_BODY_BYTES} bytes.");
    Err(Error { status: StatusCode::PAYLOAD_TOO_LARGE, code: "RequestEntityTooLargeException", message })
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/x-amz-json-1.1".to_owned()),
        (header::HeaderName::from_static("x-amzn-requestid"), Uuid::new_v4().to_string()),
    ];
    match serde_json::to_vec(body) {
        Ok(body) => (status, headers, body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
