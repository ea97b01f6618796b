//! The Amberflo client. Its errors carry the decision about what to do next.
//!
//! Facts about the API come from Amberflo's public documentation and SDKs; answers are treated as opaque beyond them.

mod call;
mod http_transport;
mod metrics;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use crate::api_key::ApiKey;
use crate::clock::Clock;
use crate::service::traces;
pub use call::{Call, InvalidSegment, Segment};
pub use http_transport::HttpTransport;
pub(crate) use http_transport::client_builder;
pub use metrics::describe_metrics;

/// A `Retry-After` counts for at most this long.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// How much of an answer goes into errors and dead letters.
const EXCERPT_CHARS: usize = 500;

/// One HTTP exchange in bytes: the seam between the client and the network.
///
/// Implementations follow no redirects, bound the answer's size and give up after their timeout.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Sends the request and reads the whole answer.
    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, TransportError>;
}

/// Why there was no answer. The request may have been carried out all the same.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Nothing came back in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection failed, or broke before the answer was complete.
    #[error("connection failed: {0}")]
    Connect(String),
    /// The answer is longer than the transport takes, in bytes.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

/// What to do after a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The service is failing: try the same again, later (not before this, if it was said), for ever.
    Backoff(Option<Duration>),
    /// We are too fast: everyone waits (this long, if it was said), then the same again.
    SlowDown(Option<Duration>),
    /// Something in this request is wrong: find the record.
    Isolate,
    /// The request is too large: split it.
    Split,
    /// The key or the address is wrong: nobody sends until that is mended.
    Pause,
}

/// A request that did not succeed.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// The answer's status; `None` when no answer came.
    pub status: Option<StatusCode>,
    /// The beginning of the answer, or what happened instead of one.
    pub answer: String,
    /// What to do.
    pub decision: Decision,
    /// Whether the answer did not come in time: what was asked for may be done all the same.
    pub timed_out: bool,
    /// Whether the key that was sent has been replaced meanwhile: an answer that blames the key blames the old one.
    pub key_was_replaced: bool,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "Amberflo answered {status}: {}", self.answer),
            None => f.write_str(&self.answer),
        }
    }
}

impl std::error::Error for ApiError {}

/// A 2xx answer to an ingest call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ingested {
    /// How many records Amberflo says it took; `None` where the answer has another form.
    pub records: Option<u64>,
}

/// Talks to one Amberflo account.
pub struct Client {
    transport: Box<dyn Transport>,
    base_url: String,
    key: watch::Receiver<ApiKey>,
    clock: Clock,
}

impl Client {
    /// A client for the endpoints below `base_url`, using the newest key that `key` shows. (Ingestion has a base URL of
    /// its own.)
    #[must_use]
    pub fn new(transport: Box<dyn Transport>, base_url: &str, key: watch::Receiver<ApiKey>, clock: Clock) -> Self {
        Self { transport, base_url: base_url.trim_end_matches('/').to_owned(), key, clock }
    }

    /// Sends a gzipped JSON array of records.
    ///
    /// # Errors
    /// An [`ApiError`] for every answer but a 2xx that Amberflo can have sent.
    pub async fn ingest(&self, gzipped: Bytes) -> Result<Ingested, ApiError> {
        let mut request = self.request(http::Method::POST, "/ingest", gzipped)?;
        request.headers_mut().insert(CONTENT_ENCODING, http::HeaderValue::from_static("gzip"));
        let answer = self.exchange("ingest", request).await?;
        Ok(Ingested { records: leading_number(answer.body()) })
    }

    fn request(&self, method: http::Method, path_and_query: &str, body: Bytes) -> Result<Request<Bytes>, ApiError> {
        let url = format!("{}{path_and_query}", self.base_url);
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = url.parse().map_err(|error| ApiError {
            status: None,
            answer: format!("invalid URL: {error}"),
            decision: Decision::Pause,
            timed_out: false,
            key_was_replaced: false,
        })?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        Ok(request)
    }

    async fn exchange(
        &self,
        operation: &'static str,
        mut request: Request<Bytes>,
    ) -> Result<Response<Bytes>, ApiError> {
        let span = span(operation, &request);
        let key = self.key.borrow().clone();
        request.headers_mut().insert(API_KEY, key.header());
        // A header only: the body is the same bytes at every attempt.
        traces::inject(&span, request.headers_mut());
        let started = Instant::now();
        let result = self.transport.exchange(request).instrument(span.clone()).await;
        record(&span, &result);
        metrics::count(operation, &result, started.elapsed());
        let mut answer = result.map_err(|error| ApiError {
            status: None,
            answer: error.to_string(),
            decision: match error {
                TransportError::TooLong(_) => Decision::Split,
                TransportError::Timeout(_) | TransportError::Connect(_) => Decision::Backoff(None),
            },
            timed_out: matches!(error, TransportError::Timeout(_)),
            key_was_replaced: false,
        })?;
        if let Some(redacted) = key.redacted(answer.body()) {
            *answer.body_mut() = redacted;
        }
        let decision = match decide(&answer, self.clock) {
            None => return Ok(answer),
            Some(decision) => decision,
        };
        let text = String::from_utf8_lossy(answer.body());
        // It goes into logs, where a line break would begin another line.
        let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        let answer_text = printable.take(EXCERPT_CHARS).collect();
        let key_was_replaced = *self.key.borrow() != key;
        Err(ApiError {
            status: Some(answer.status()),
            answer: answer_text,
            decision,
            timed_out: false,
            key_was_replaced,
        })
    }
}

/// The span of one request. Names and ids in the path stay out of it.
fn span(operation: &'static str, request: &Request<Bytes>) -> Span {
    let (method, uri) = (request.method().as_str(), request.uri());
    tracing::info_span!(
        target: traces::TARGET,
        "request",
        otel.name = format!("{method} {operation}"),
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = method,
        http.request.body.size = request.body().len() as u64,
        http.response.status_code = Empty,
        server.address = uri.host(),
        server.port = uri.port_u16().or(Some(if uri.scheme_str() == Some("http") { 80 } else { 443 })),
        error.type = Empty,
    )
}

fn record(span: &Span, result: &Result<Response<Bytes>, TransportError>) {
    let status = result.as_ref().map(|answer| answer.status());
    match &status {
        Ok(status) => span.record("http.response.status_code", status.as_u16()),
        Err(TransportError::Timeout(_)) => span.record("error.type", "timeout"),
        Err(TransportError::Connect(_)) => span.record("error.type", "connection"),
        Err(TransportError::TooLong(_)) => span.record("error.type", "answer too long"),
    };
    if !status.is_ok_and(|status| status.is_success()) {
        span.record("otel.status_code", "ERROR");
    }
}

/// `None` for success.
fn decide(answer: &Response<Bytes>, clock: Clock) -> Option<Decision> {
    let status = answer.status();
    Some(match status {
        // A proxy or a login page answers 200 too: Amberflo never answers with a page.
        _ if status.is_success() && is_html(answer.headers()) => Decision::Pause,
        _ if status.is_success() => return None,
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Decision::Isolate,
        StatusCode::PAYLOAD_TOO_LARGE => Decision::Split,
        StatusCode::TOO_MANY_REQUESTS => Decision::SlowDown(retry_after(answer.headers(), clock)),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => Decision::Backoff(retry_after(answer.headers(), clock)),
        _ if status.is_server_error() => Decision::Backoff(retry_after(answer.headers(), clock)),
        // 401, 403, 404, redirects, and whatever else says that this is not the endpoint or not the key.
        _ => Decision::Pause,
    })
}

fn is_html(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.to_ascii_lowercase().starts_with("text/html")
}

/// Seconds or an HTTP date, at most [`MAX_RETRY_AFTER`].
fn retry_after(headers: &HeaderMap, clock: Clock) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let now = std::time::UNIX_EPOCH + Duration::from_millis(clock.now().try_into().ok()?);
            httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default()
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// The `12` of `12 records were ingested`.
fn leading_number(answer: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(answer).ok()?.trim_start();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    rest.trim_start().starts_with("record").then(|| number.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&str, &str)]) -> Response<Bytes> {
        let mut builder = Response::builder().status(status);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(Bytes::new()).unwrap()
    }

    #[test]
    fn the_answer_table() {
        let clock = Clock::system();
        for (status, decision) in [
            (200, None),
            (204, None),
            (301, Some(Decision::Pause)),
            (307, Some(Decision::Pause)),
            (400, Some(Decision::Isolate)),
            (401, Some(Decision::Pause)),
            (403, Some(Decision::Pause)),
            (404, Some(Decision::Pause)),
            (405, Some(Decision::Pause)),
            (408, Some(Decision::Backoff(None))),
            (413, Some(Decision::Split)),
            (422, Some(Decision::Isolate)),
            (429, Some(Decision::SlowDown(None))),
            (500, Some(Decision::Backoff(None))),
            (503, Some(Decision::Backoff(None))),
        ] {
            assert_eq!(decide(&answer(status, &[]), clock), decision, "{status}");
        }
        let page = answer(200, &[("content-type", "Text/HTML; charset=utf-8")]);
        assert_eq!(decide(&page, clock), Some(Decision::Pause));
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_is_seconds_or_a_date_and_capped() {
        // 1994-11-06T08:49:00Z
        let clock = Clock::following_tokio(784_111_740_000);
        for (value, wait) in [
            ("7", Some(Duration::from_secs(7))),
            ("0", Some(Duration::ZERO)),
            ("86400", Some(MAX_RETRY_AFTER)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(Duration::from_secs(37))),
            ("Sun, 06 Nov 1994 08:48:00 GMT", Some(Duration::ZERO)),
            ("soon", None),
            ("-1", None),
        ] {
            let given = answer(429, &[("retry-after", value)]);
            assert_eq!(decide(&given, clock), Some(Decision::SlowDown(wait)), "{value}");
            let given = answer(503, &[("retry-after", value)]);
            assert_eq!(decide(&given, clock), Some(Decision::Backoff(wait)), "{value}");
        }
    }

    #[test]
    fn the_count_in_an_answer() {
        assert_eq!(leading_number(b"12 records were ingested"), Some(12));
        assert_eq!(leading_number(b" 1 record was ingested\n"), Some(1));
        for other in [&b""[..], b"ok", b"{\"ok\":1}", b"99999999999999999999 records", b"200 OK", b"\xff"] {
            assert_eq!(leading_number(other), None);
        }
    }

    /// Refuses the key and names it; meanwhile the key may be replaced.
    struct Echo(Option<(watch::Sender<ApiKey>, ApiKey)>);

    #[async_trait]
    impl Transport for Echo {
        async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
            let sent = request.headers()[API_KEY].to_str().unwrap().to_owned();
            if let Some((keys, next)) = &self.0 {
                keys.send_replace(next.clone());
            }
            Ok(Response::builder().status(401).body(format!("no: {sent}").into()).unwrap())
        }
    }

    #[tokio::test]
    async fn a_key_that_is_replaced_while_its_request_is_under_way_is_told_apart_and_never_shown() {
        for next in [None, Some("second-key"), Some("first-key")] {
            let keys = watch::Sender::new(ApiKey::new("first-key").unwrap());
            let replaced = next.map(|next| (keys.clone(), ApiKey::new(next).unwrap()));
            let client = Client::new(Box::new(Echo(replaced)), "http://127.0.0.1:1", keys.subscribe(), Clock::system());
            let error = client.ingest(Bytes::new()).await.unwrap_err();
            assert_eq!(error.answer, "no: (redacted)");
            assert_eq!(error.key_was_replaced, next == Some("second-key"));
        }
    }
}
