//! The control API's `POST /ingest`.

use std::time::Duration;

use async_trait::async_trait;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use shared::backend::BackendError;
use shared::settings::Secret;

use super::{CallLimit, Event, Outcome, Target, http_client};

/// What a request of the control API may have.
const CALL_EVENTS: usize = 1000;
const CALL_BYTES: usize = 1000 << 10;
/// The reason of an event that is not known to be on the bus; every other one is a refusal.
const NOT_PUT: &str = "not_put";

/// Posts events to a control API.
pub struct Api {
    http: reqwest::Client,
    url: String,
    token: Option<Secret>,
}

impl Api {
    /// The control API at this base URL, called with this bearer token.
    ///
    /// # Errors
    /// When the HTTP client cannot start.
    pub fn new(base_url: &str, token: Option<Secret>, timeout: Duration) -> anyhow::Result<Self> {
        let url = format!("{}/ingest", base_url.trim_end_matches('/'));
        Ok(Self { http: http_client(base_url, timeout)?, url, token })
    }
}

/// What the answer says of the events: in `data`, or beside a problem's other members.
#[derive(Deserialize)]
struct Answer {
    data: Option<Events>,
    events: Option<Vec<Told>>,
    detail: Option<String>,
}

#[derive(Deserialize)]
struct Events {
    events: Vec<Told>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    event_id: Option<String>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    reason: String,
    detail: String,
}

#[async_trait]
impl Target for Api {
    fn limit(&self) -> CallLimit {
        CallLimit { events: CALL_EVENTS, bytes: CALL_BYTES }
    }

    async fn put(&self, events: &[Event<'_>]) -> Result<Vec<Outcome>, BackendError> {
        let details: Vec<_> = events.iter().map(|event| event.detail).collect();
        let body = format!("[{}]", details.join(","));
        let mut request = self.http.post(&self.url).header(CONTENT_TYPE, "application/json").body(body);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.reveal());
        }
        let answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(failed)?;
        read(status, &body, events.len())
    }
}

fn read(status: StatusCode, body: &[u8], count: usize) -> Result<Vec<Outcome>, BackendError> {
    let answer = serde_json::from_slice::<Answer>(body).ok();
    let (told, detail) = match answer {
        Some(Answer { data: Some(Events { events }), .. }) => (Some(events), None),
        Some(Answer { events, detail, .. }) => (events, detail),
        None => (None, None),
    };
    if let Some(told) = told.filter(|told| told.len() == count) {
        return Ok(told.into_iter().map(outcome).collect());
    }
    let text = format!("POST /ingest: {status}: {}", detail.unwrap_or_else(|| "no answer for every event".to_owned()));
    let may_pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status.is_success();
    Err(if may_pass { BackendError::Unavailable(text) } else { BackendError::Misconfigured(text) })
}

fn outcome(told: Told) -> Outcome {
    match told {
        Told { event_id: Some(_), .. } => Outcome::Acknowledged,
        Told { error: Some(error), .. } if error.reason != NOT_PUT => {
            Outcome::Refused(format!("POST /ingest: {}", error.reason))
        }
        Told { error: Some(error), .. } => Outcome::Failed(format!("POST /ingest: {}", error.detail)),
        Told { .. } => Outcome::Failed("POST /ingest: an event without id or error".to_owned()),
    }
}

/// The kind of the failure; the whole error differs from call to call.
fn failed(error: reqwest::Error) -> BackendError {
    let kind = match error {
        // Everything else in the request was checked, or is made here.
        error if error.is_builder() => {
            let text = "POST /ingest: no request can be made with this bearer token; allowed is visible ASCII";
            return BackendError::Misconfigured(text.to_owned());
        }
        error if error.is_timeout() => "timeout",
        error if error.is_connect() => "cannot connect",
        _ => "the connection broke",
    };
    BackendError::Unavailable(format!("POST /ingest: {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_gets_its_outcome() {
        let body = br#"{"data": {"accepted": 1, "rejected": 1, "events": [
            {"index": 0, "uniqueId": "a", "eventId": "1", "repeatable": "always"},
            {"index": 1, "error": {"reason": "missing_field", "detail": "meterValue"}}]}}"#;
        let refused = Outcome::Refused("POST /ingest: missing_field".to_owned());
        assert_eq!(read(StatusCode::ACCEPTED, body, 2).unwrap(), [Outcome::Acknowledged, refused.clone()]);
        let problem = br#"{"title": "x", "detail": "some events are not on the bus", "events": [
            {"index": 0, "uniqueId": "a", "error": {"reason": "not_put", "detail": "too late"}},
            {"index": 1, "error": {"reason": "missing_field", "detail": "meterValue"}}]}"#;
        let failed = Outcome::Failed("POST /ingest: too late".to_owned());
        assert_eq!(read(StatusCode::SERVICE_UNAVAILABLE, problem, 2).unwrap(), [failed, refused]);
    }

    #[tokio::test]
    async fn a_token_that_no_header_takes_ends_a_run() {
        let token = Secret::from("s3cret\n".to_owned());
        let api = Api::new("http://127.0.0.1:1", Some(token), Duration::from_secs(1)).unwrap();
        let refused = api.put(&[Event { tenant: "t", detail: "{}" }]).await.unwrap_err();
        assert!(matches!(&refused, BackendError::Misconfigured(text) if text.contains("bearer token")), "{refused}");
        assert!(!refused.to_string().contains("s3cret"), "{refused}");
    }

    #[test]
    fn an_answer_that_tells_nothing_of_the_events_is_a_failure() {
        let of = |status, body: &str| read(status, body.as_bytes(), 1).unwrap_err();
        let problem = r#"{"title": "Unauthorized", "detail": "no token"}"#;
        assert!(
            matches!(of(StatusCode::UNAUTHORIZED, problem), BackendError::Misconfigured(text) if text.contains("no token"))
        );
        assert!(matches!(of(StatusCode::TOO_MANY_REQUESTS, problem), BackendError::Unavailable(_)));
        assert!(matches!(of(StatusCode::BAD_GATEWAY, "<html>"), BackendError::Unavailable(_)));
        assert!(matches!(of(StatusCode::ACCEPTED, r#"{"data": {"events": []}}"#), BackendError::Unavailable(_)));
    }
}
