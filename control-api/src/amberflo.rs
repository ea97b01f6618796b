//! Calls of Amberflo on behalf of a caller: repeated where that is safe, and their failures in the caller's terms.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::value::RawValue;
use shared::amberflo::{ApiError, Call, Client, Decision, HttpTransport, Segment};
use shared::api_key::ApiKeys;
use shared::clock::Clock;
use shared::service::{Ready, Trouble};
use tokio::time::{Instant, sleep, timeout};

use crate::problem::Problem;

/// The largest answer that is passed on: a query of usage answers at most 6 MB.
/// Source: Amberflo's documented guardrails.
const MAX_ANSWER_BYTES: usize = 16 << 20;
const PROBE: &str = "probe";
/// How often Amberflo is asked while it refuses our key.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// The waits before a call is made again.
const WAITS: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];
/// A `Retry-After` up to this is waited for where the call may be repeated; a longer one is the caller's to wait for.
const MAX_WAIT: Duration = Duration::from_secs(2);

static REFUSED: Trouble = Trouble::new();

/// Amberflo, as the handlers see it.
pub struct Amberflo {
    client: Client,
    keys: ApiKeys,
    ready: Ready,
    timeout: Duration,
}

impl Amberflo {
    /// Calls the API below `base_url`. A caller gets an answer within `timeout`: an attempt may take a third of it.
    /// `ready` is false while Amberflo refuses our key.
    ///
    /// # Errors
    /// When the system's TLS roots cannot be loaded.
    pub fn new(base_url: &str, keys: ApiKeys, ready: Ready, timeout: Duration) -> anyhow::Result<Self> {
        let transport = HttpTransport::new(timeout / 3)?.with_whole_answers(MAX_ANSWER_BYTES);
        let client = Client::new(Box::new(transport), base_url, keys.subscribe(), Clock::system());
        Ok(Self { client, keys, ready, timeout })
    }

    /// When a request that takes several calls must be done with them, counted from now.
    pub fn deadline(&self) -> Deadline {
        Deadline(Instant::now() + self.timeout.mul_f64(0.95))
    }

    /// Asks for a meter that nobody has, to find out whether Amberflo takes our key; `ready` says so then. Where Amberflo
    /// does not answer nothing is known, and nothing changes.
    pub async fn probe(&self) {
        let (method, query) = (Method::GET, &[("meterApiName", "metering:probe")][..]);
        let call = Call { operation: PROBE, method, path: "/meters", id: None, query, body: Bytes::new() };
        if let Err(error) = self.attempt(&call).await {
            tracing::debug!(%error, "the probe failed");
        }
    }

    /// Probes every few seconds while Amberflo refuses our key, for ever: behind a load balancer that takes a service out
    /// that is not ready, no request comes that could show that the key is good again.
    pub async fn probe_while_not_ready(&self) {
        loop {
            sleep(PROBE_INTERVAL).await;
            if !self.ready.get() {
                self.probe().await;
            }
        }
    }

    /// `GET path/id?query`.
    ///
    /// # Errors
    /// What the caller is to be told.
    pub async fn get(
        &self,
        operation: &'static str,
        path: &'static str,
        id: Option<&Segment>,
        query: &[(&str, &str)],
    ) -> Result<Bytes, Problem> {
        let call = Call { operation, method: Method::GET, path, id, query, body: Bytes::new() };
        self.make(&call, Effect::Reads).await
    }

    /// `DELETE path/id`.
    ///
    /// # Errors
    /// What the caller is to be told.
    pub async fn delete(&self, operation: &'static str, path: &'static str, id: &Segment) -> Result<Bytes, Problem> {
        let call = Call { operation, method: Method::DELETE, path, id: Some(id), query: &[], body: Bytes::new() };
        self.make(&call, Effect::Replaces).await
    }

    /// A call with a JSON body.
    ///
    /// # Errors
    /// What the caller is to be told.
    pub async fn send(
        &self,
        operation: &'static str,
        (effect, method): (Effect, Method),
        path: &'static str,
        body: &impl Serialize,
    ) -> Result<Bytes, Problem> {
        self.make(&Call { operation, method, path, id: None, query: &[], body: json(body)? }, effect).await
    }

    async fn make(&self, call: &Call<'_>, effect: Effect) -> Result<Bytes, Problem> {
        let started = Instant::now();
        let mut waits = WAITS.into_iter();
        // Whether an attempt may have been carried out: then it is so whatever the last one is answered.
        let mut is_ambiguous = false;
        loop {
            let error = match self.attempt(call).await {
                Ok(body) => return Ok(body),
                Err(error) => error,
            };
            is_ambiguous |= effect != Effect::Reads && may_be_done(&error);
            let wait = match error.decision {
                _ if effect == Effect::Creates => None,
                Decision::Backoff(wait) | Decision::SlowDown(wait) => waits.next().map(|least| match wait {
                    Some(wait) => wait.max(least),
                    None => least.mul_f64(0.5 + fastrand::f64()),
                }),
                Decision::Isolate | Decision::Split | Decision::Pause => None,
            };
            match wait {
                // The next attempt must be able to end in time.
                Some(wait) if wait <= MAX_WAIT && started.elapsed() + wait + self.timeout / 3 < self.timeout => {
                    tracing::debug!(operation = call.operation, %error, ?wait, "trying again");
                    sleep(wait).await;
                }
                _ => return Err(problem(&error, is_ambiguous)),
            }
        }
    }

    /// One attempt, or two where the key has changed since: a call whose key is refused is not carried out.
    async fn attempt(&self, call: &Call<'_>) -> Result<Bytes, ApiError> {
        let mut result = self.client.call(call).await;
        if let Err(error) = &result
            && is_about_our_key(error)
        {
            let mut keys = self.keys.subscribe();
            keys.mark_unchanged();
            if !error.key_was_replaced {
                self.keys.refresh().await;
            }
            if error.key_was_replaced || keys.has_changed().unwrap_or(false) {
                result = self.client.call(call).await;
            }
        }
        match &result {
            Err(error) if is_about_our_key(error) => {
                if let Some(omitted) = REFUSED.again() {
                    let status = error.status.map(|status| status.as_u16());
                    tracing::error!(operation = call.operation, status, omitted, "Amberflo refuses our key");
                }
                self.ready.set_not("Amberflo refuses our API key", &error.to_string());
            }
            // Who looks at what was asked for has let us in.
            Ok(_) | Err(ApiError { status: Some(StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND), .. }) => {
                if let Some(over) = REFUSED.over() {
                    tracing::info!(lasted = over.lasted.as_secs(), "Amberflo takes our key again");
                }
                self.ready.set();
            }
            Err(_) => {}
        }
        result
    }
}

/// What a call does in Amberflo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Reads,
    /// The same however often it is made.
    Replaces,
    /// More each time it is made: one whose answer is lost is not repeated.
    Creates,
}

/// When the last of several calls must have ended.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// Makes a call in an even share of the time that is left to it and the calls after it, `calls` together.
    ///
    /// # Errors
    /// The call's own; 504 when its time is up. It may have been carried out then.
    pub async fn share<T>(self, calls: u32, call: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
        let left = self.0.saturating_duration_since(Instant::now());
        timeout(left / calls, call)
            .await
            .unwrap_or_else(|_| Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "Amberflo did not answer in time")))
    }
}

fn is_about_our_key(error: &ApiError) -> bool {
    matches!(error.status, Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
}

fn json(body: &impl Serialize) -> Result<Bytes, Problem> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| Problem::bad_request(format!("the body: {error}")))
}

/// Whether a call that ended so may have been carried out.
fn may_be_done(error: &ApiError) -> bool {
    match error.status {
        None => true,
        Some(StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY) => true,
        Some(status) => !status.is_client_error(),
    }
}

/// A failed call in the caller's terms. Of an ambiguous one nobody knows whether it was carried out.
fn problem(error: &ApiError, is_ambiguous: bool) -> Problem {
    let answer = &error.answer;
    let (status, detail) = match error.status {
        None if error.timed_out => (StatusCode::GATEWAY_TIMEOUT, "Amberflo did not answer in time".to_owned()),
        None if error.decision == Decision::Split => {
            (StatusCode::BAD_GATEWAY, format!("Amberflo: {answer}: ask for less"))
        }
        None => (StatusCode::BAD_GATEWAY, format!("Amberflo could not be reached: {answer}")),
        Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            let detail =
                "Amberflo refuses our API key: an operator must set a valid one (AMBERFLO_API_KEY or its secret)";
            (StatusCode::BAD_GATEWAY, detail.to_owned())
        }
        Some(status @ StatusCode::TOO_MANY_REQUESTS) => (status, format!("Amberflo: too many requests: {answer}")),
        Some(StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY) => {
            (StatusCode::GATEWAY_TIMEOUT, format!("Amberflo: {answer}"))
        }
        Some(status) if status.is_client_error() && status != StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            (status, format!("Amberflo: {answer}"))
        }
        Some(status) if status.is_server_error() => {
            (StatusCode::BAD_GATEWAY, format!("Amberflo answered {status}: {answer}"))
        }
        // A redirect, or a page where JSON belongs.
        Some(status) => {
            let detail = format!("what answers at AMBERFLO_BASE_URL is not Amberflo's API: it answered {status}");
            (StatusCode::BAD_GATEWAY, detail)
        }
    };
    let wait = match error.decision {
        Decision::SlowDown(wait) => Some(wait.unwrap_or(Duration::from_secs(1))),
        _ => None,
    };
    if !is_ambiguous {
        return Problem::new(status, detail).with_retry_after(wait);
    }
    // Not a refusal, although the last attempt was answered with one.
    let status = if status.is_client_error() { StatusCode::BAD_GATEWAY } else { status };
    let detail = format!("{detail}; it may have been carried out all the same: look before you try again");
    Problem::new(status, detail).with_retry_after(wait)
}

/// An answer of Amberflo as JSON, untouched: text that is not JSON becomes a string, nothing becomes `{}`.
pub fn data(body: &Bytes) -> Box<RawValue> {
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    if text.is_empty() {
        return RawValue::from_string("{}".to_owned()).unwrap_or_default();
    }
    match RawValue::from_string(text.to_owned()) {
        Ok(json) => json,
        Err(_) => serde_json::value::to_raw_value(text).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_share_the_time_that_is_left() {
        let started = Instant::now();
        let deadline = Deadline(started + Duration::from_secs(8));
        assert_eq!(deadline.share(4, async { Ok(7) }).await.unwrap(), 7);
        for (calls, ends_after) in [(4, 2), (3, 4), (2, 6), (1, 8), (1, 8)] {
            let never = std::future::pending::<Result<(), Problem>>();
            assert_eq!(deadline.share(calls, never).await.unwrap_err().status(), StatusCode::GATEWAY_TIMEOUT);
            let late = started.elapsed() - Duration::from_secs(ends_after);
            assert!(late < Duration::from_millis(10), "{calls}: {late:?}");
        }
    }
}
