//! One request under the faults in force: what every endpoint shares.

use std::borrow::Cow;
use std::error::Error as _;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::{Body, Bytes, to_bytes};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use http_body_util::LengthLimitError;
use serde::Serialize;

use crate::armed::{Kind, Rolls};
use crate::faults::{Faults, RetryAfterFormat};
use crate::operation::Operation;
use crate::{Sandbox, State};

/// The largest body read at all, before and after decompression: a bomb should not take the machine down.
pub(crate) const BODY_LIMIT: usize = 64 * 1024 * 1024;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) operation: Operation,
    /// `None` where the faults do not hit this request: it then leaves the random sequence to those they do hit.
    rolls: Option<Rolls>,
    /// The faults met so far, in order.
    pub(crate) met: Vec<&'static str>,
}

impl<'a> Attempt<'a> {
    pub(crate) fn arrive(sandbox: &'a Sandbox, state: &mut State, operation: Operation, method: &Method) -> Self {
        let rolls = state.armed.faults().hit(operation, method).then(|| state.armed.roll());
        Self { sandbox, operation, rolls, met: Vec::new() }
    }

    pub(crate) async fn slow_down(&mut self) {
        if self.fires(Kind::Slow) {
            let latency = self.rolls.map(|rolls| self.sandbox.lock().armed.latency(&rolls));
            tokio::time::sleep(latency.unwrap_or_default()).await;
        }
    }

    pub(crate) fn check_key(&mut self, headers: &HeaderMap) -> Result<(), Answer> {
        let key = headers.get(API_KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
        let configured = &self.sandbox.shared.config.api_keys;
        let (valid, revoked) = self.faults(|faults| {
            (faults.valid_keys.as_ref().unwrap_or(configured).contains(key), faults.revoked_keys.contains(key))
        });
        if revoked {
            self.note("revoked_keys");
        }
        if valid && !revoked {
            return Ok(());
        }
        let status = status_code(self.sandbox.lock().facts.bad_key_status);
        Err(Answer::new(status, status.canonical_reason().unwrap_or("Refused")))
    }

    /// The faults that come while nothing is carried out.
    pub(crate) async fn fail_before(&mut self) -> Result<(), Answer> {
        if self.fires(Kind::Redirect) {
            let (status, location) = self.faults(|faults| (faults.redirect_status, faults.redirect_location.clone()));
            return Err(Answer::new(status_code(status), "").with(header::LOCATION, location));
        }
        if self.fires(Kind::Html) {
            let page = Answer::new(StatusCode::OK, "<!doctype html><html><title>Sign in</title></html>");
            return Err(page.with(header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()));
        }
        if self.fires(Kind::Throttle) {
            return Err(self.too_many_requests());
        }
        if self.fires(Kind::FailBefore) {
            return Err(self.failure());
        }
        if self.fires(Kind::HangBefore) {
            return Err(self.hang().await);
        }
        Ok(())
    }

    /// The faults that come when all is carried out.
    pub(crate) async fn fail_after(&mut self) -> Result<(), Answer> {
        if self.fires(Kind::HangAfter) {
            return Err(self.hang().await);
        }
        if self.fires(Kind::FailAfter) {
            return Err(self.failure());
        }
        Ok(())
    }

    pub(crate) fn too_many_requests(&self) -> Answer {
        let answer = Answer::new(StatusCode::TOO_MANY_REQUESTS, "Too many requests");
        let (retry_after, format) = self.faults(|faults| (faults.retry_after, faults.retry_after_format));
        let Some(retry_after) = retry_after else { return answer };
        if self.operation == Operation::Ingest {
            self.sandbox.lock().journal.retry_after_until(self.sandbox.elapsed() + retry_after);
        }
        let text = match format {
            RetryAfterFormat::Seconds => whole_seconds(retry_after).to_string(),
            RetryAfterFormat::HttpDate => {
                let until = (self.sandbox.wall_time() + retry_after).duration_since(UNIX_EPOCH).unwrap_or_default();
                httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(whole_seconds(until)))
            }
        };
        answer.with(header::RETRY_AFTER, text)
    }

    fn failure(&self) -> Answer {
        let status = self.rolls.map(|rolls| self.sandbox.lock().armed.fail_status(&rolls));
        let status = status.map_or(StatusCode::INTERNAL_SERVER_ERROR, status_code);
        Answer::new(status, status.canonical_reason().unwrap_or("Failure"))
    }

    async fn hang(&self) -> Answer {
        tokio::time::sleep(self.faults(|faults| faults.hang_for)).await;
        Answer::new(StatusCode::GATEWAY_TIMEOUT, "Gateway timeout")
    }

    pub(crate) fn fires(&mut self, kind: Kind) -> bool {
        let Some(rolls) = &self.rolls else { return false };
        let fires = self.sandbox.lock().armed.fires(kind, rolls);
        if fires {
            self.note(kind.name());
        }
        fires
    }

    pub(crate) fn note(&mut self, fault: &'static str) {
        self.met.push(fault);
        self.sandbox.lock().journal.fault(self.operation, fault);
    }

    pub(crate) fn faults<T>(&self, read: impl FnOnce(&Faults) -> T) -> T {
        read(self.sandbox.lock().armed.faults())
    }
}

/// A request's body, up to [`BODY_LIMIT`].
pub(crate) async fn read(body: Body) -> Result<Bytes, Answer> {
    to_bytes(body, BODY_LIMIT).await.map_err(|error| {
        let too_long = error.source().is_some_and(|source| source.is::<LengthLimitError>());
        let status = if too_long { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST };
        Answer::new(status, error.to_string())
    })
}

/// An answer with at most one header of its own; text unless that header says otherwise.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    header: Option<(HeaderName, String)>,
    body: Cow<'static, str>,
}

impl Answer {
    pub(crate) fn new(status: StatusCode, body: impl Into<Cow<'static, str>>) -> Self {
        Self { status, header: None, body: body.into() }
    }

    pub(crate) fn bad_request(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    pub(crate) fn json(value: &impl Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(body) => Self::new(StatusCode::OK, body).with(header::CONTENT_TYPE, "application/json".to_owned()),
            Err(error) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    pub(crate) fn with(self, name: HeaderName, value: String) -> Self {
        Self { header: Some((name, value)), ..self }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        (self.status, self.header.map(|header| [header]), self.body).into_response()
    }
}

fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// Statuses were checked when the faults were set.
pub(crate) fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
