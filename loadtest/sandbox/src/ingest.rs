//! `POST /ingest`: the stages a request passes, in order.

use std::borrow::Cow;
use std::error::Error as _;
use std::io::Read as _;
use std::num::NonZeroUsize;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, HeaderName, StatusCode, header};
use http_body_util::LengthLimitError;

use crate::Sandbox;
use crate::armed::{Kind, Rolls};
use crate::faults::{Faults, Poison, RetryAfterFormat};
use crate::record::{Batch, Record};
use crate::stats::{Ceiling, LoggedRequest};

/// The largest body read at all, before and after decompression: a bomb should not take the machine down.
pub(crate) const BODY_LIMIT: usize = 64 * 1024 * 1024;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

pub(crate) async fn ingest(State(sandbox): State<Sandbox>, request: Request) -> Response {
    let mut attempt = Attempt::arrive(&sandbox);
    let answer = attempt.pass(request).await.unwrap_or_else(|early| early);
    attempt.log.status = Some(answer.status.as_u16());
    answer.into_response()
}

/// One request from arrival to answer. Dropping it counts its end, so that one whose client goes away is counted too.
struct Attempt<'a> {
    sandbox: &'a Sandbox,
    ceiling: Option<Ceiling>,
    rolls: Rolls,
    log: LoggedRequest,
}

impl<'a> Attempt<'a> {
    fn arrive(sandbox: &'a Sandbox) -> Self {
        let at = sandbox.elapsed();
        let state = &mut *sandbox.lock();
        let faults = state.armed.faults();
        let rate = faults.requests_per_second.map(|rate| rate.get() as usize);
        let ceiling = state.journal.arrive(at, rate, faults.max_concurrent.map(NonZeroUsize::get));
        let rolls = state.armed.roll();
        let log =
            LoggedRequest { at, took: Duration::ZERO, status: None, records: None, accepted: 0, faults: Vec::new() };
        Self { sandbox, ceiling, rolls, log }
    }

    /// The stages. `Err` is an answer that ends them early.
    async fn pass(&mut self, request: Request) -> Result<Answer, Answer> {
        // Read first, whatever the answer will be: an answer ahead of the body breaks the client's connection.
        let (head, body) = request.into_parts();
        let body = to_bytes(body, BODY_LIMIT).await.map_err(|error| {
            let too_long = error.source().is_some_and(|source| source.is::<LengthLimitError>());
            let status = if too_long { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST };
            Answer::new(status, error.to_string())
        })?;
        self.sandbox.lock().journal.body(body.len());

        self.check_ceiling()?;
        if self.fires(Kind::Slow) {
            let latency = self.sandbox.lock().armed.latency(&self.rolls);
            tokio::time::sleep(latency).await;
        }
        self.check_key(&head.headers)?;
        self.fail_before().await?;

        let text = self.decompress(&head.headers, body)?;
        let batch = Batch::parse(&text).map_err(|error| Answer::bad_request(error.to_string()))?;
        self.check_batch(&text, &batch)?;

        let accepted = self.accept(&batch.records);
        self.fail_after().await?;
        let missing = if self.fires(Kind::PartialAnswer) { self.faults(|faults| faults.missing.get()) } else { 0 };
        let count = accepted.saturating_sub(missing);
        Ok(Answer::new(StatusCode::OK, format!("{count} records were ingested")))
    }

    fn check_ceiling(&mut self) -> Result<(), Answer> {
        match self.ceiling {
            None => return Ok(()),
            Some(Ceiling::Rate) => self.note("requests_per_second"),
            Some(Ceiling::Concurrency) => self.note("max_concurrent"),
        }
        Err(self.too_many_requests())
    }

    fn check_key(&mut self, headers: &HeaderMap) -> Result<(), Answer> {
        let key = headers.get(API_KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
        let configured = &self.sandbox.shared.config.api_keys;
        let (valid, revoked) = self.faults(|faults| {
            (faults.valid_keys.as_ref().unwrap_or(configured).contains(key), faults.revoked_keys.contains(key))
        });
        if revoked {
            self.note("revoked_keys");
        }
        if valid && !revoked { Ok(()) } else { Err(Answer::new(StatusCode::UNAUTHORIZED, "Unauthorized")) }
    }

    async fn fail_before(&mut self) -> Result<(), Answer> {
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

    fn decompress(&self, headers: &HeaderMap, body: Bytes) -> Result<String, Answer> {
        let limit = self.faults(|faults| faults.max_body_bytes).map_or(BODY_LIMIT, NonZeroUsize::get);
        let encoding = headers.get(header::CONTENT_ENCODING).map(|encoding| encoding.as_bytes());
        let bytes = match encoding {
            None | Some(b"identity") => body.into(),
            Some(b"gzip") => {
                let mut bytes = Vec::new();
                let mut decoder = MultiGzDecoder::new(&body[..]).take(limit as u64 + 1);
                let read = decoder.read_to_end(&mut bytes);
                read.map_err(|error| Answer::bad_request(format!("invalid gzip: {error}")))?;
                bytes
            }
            Some(_) => return Err(Answer::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported content encoding")),
        };
        if bytes.len() > limit {
            return Err(Answer::new(StatusCode::PAYLOAD_TOO_LARGE, "Payload too large"));
        }
        String::from_utf8(bytes).map_err(|_| Answer::bad_request("the body is not UTF-8".to_owned()))
    }

    fn check_batch(&mut self, text: &str, batch: &Batch<'_>) -> Result<(), Answer> {
        let records = &batch.records;
        self.log.records = Some(records.len());
        let (max_records, poisoned) = {
            let state = &mut *self.sandbox.lock();
            state.journal.batch(text.len(), records.len(), &batch.unknown_keys);
            let Faults { max_records, poison, .. } = state.armed.faults();
            let culprit = poison.iter().find(|poison| records.iter().any(|record| poison.matches(record)));
            (*max_records, culprit.map(|poison| poison.status))
        };
        if max_records.is_some_and(|max| records.len() > max.get()) {
            return Err(Answer::new(StatusCode::PAYLOAD_TOO_LARGE, "Payload too large"));
        }
        match poisoned {
            None => Ok(()),
            Some(status) => {
                self.note("poison");
                // As opaque as the real one: finding the culprit is the client's task.
                Err(Answer::new(status_code(status), r#"{"message":"request could not be processed"}"#))
            }
        }
    }

    /// Ledgers the records, all under one lock: another request sees all of them or none. Returns how many.
    fn accept(&mut self, records: &[Record<'_>]) -> usize {
        let missing = if self.fires(Kind::PartialIngest) { self.faults(|faults| faults.missing.get()) } else { 0 };
        let accepted = records.len().saturating_sub(missing);
        let at = self.sandbox.elapsed();
        let state = &mut *self.sandbox.lock();
        for record in &records[..accepted] {
            state.ledger.accept(record, at);
        }
        self.log.accepted = accepted;
        accepted
    }

    async fn fail_after(&mut self) -> Result<(), Answer> {
        if self.fires(Kind::HangAfter) {
            return Err(self.hang().await);
        }
        if self.fires(Kind::FailAfter) {
            return Err(self.failure());
        }
        Ok(())
    }

    fn too_many_requests(&self) -> Answer {
        let answer = Answer::new(StatusCode::TOO_MANY_REQUESTS, "Too many requests");
        let (retry_after, format) = self.faults(|faults| (faults.retry_after, faults.retry_after_format));
        let Some(retry_after) = retry_after else { return answer };
        self.sandbox.lock().journal.retry_after_until(self.sandbox.elapsed() + retry_after);
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
        let status = status_code(self.sandbox.lock().armed.fail_status(&self.rolls));
        Answer::new(status, status.canonical_reason().unwrap_or("Failure"))
    }

    async fn hang(&self) -> Answer {
        tokio::time::sleep(self.faults(|faults| faults.hang_for)).await;
        Answer::new(StatusCode::GATEWAY_TIMEOUT, "Gateway timeout")
    }

    fn fires(&mut self, kind: Kind) -> bool {
        let fires = self.sandbox.lock().armed.fires(kind, &self.rolls);
        if fires {
            self.note(kind.name());
        }
        fires
    }

    fn note(&mut self, fault: &'static str) {
        self.log.faults.push(fault);
        self.sandbox.lock().journal.fault(fault);
    }

    fn faults<T>(&self, read: impl FnOnce(&Faults) -> T) -> T {
        read(self.sandbox.lock().armed.faults())
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.log.took = self.sandbox.elapsed().saturating_sub(self.log.at);
        self.sandbox.lock().journal.end(self.log.clone());
    }
}

/// An answer with at most one header of its own; text unless that header says otherwise.
struct Answer {
    status: StatusCode,
    header: Option<(HeaderName, String)>,
    body: Cow<'static, str>,
}

impl Answer {
    fn new(status: StatusCode, body: impl Into<Cow<'static, str>>) -> Self {
        Self { status, header: None, body: body.into() }
    }

    fn bad_request(reason: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    fn with(self, name: HeaderName, value: String) -> Self {
        Self { header: Some((name, value)), ..self }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        (self.status, self.header.map(|header| [header]), self.body).into_response()
    }
}

impl Poison {
    fn matches(&self, record: &Record<'_>) -> bool {
        let prefixed = |unique_id: &str| self.unique_id_prefixes.iter().any(|prefix| unique_id.starts_with(prefix));
        record.unique_id.as_deref().is_some_and(prefixed)
            || self.customer_ids.contains(record.customer_id.as_ref())
            || record.billed().any(|(meter, _)| self.meter_api_names.contains(meter))
    }
}

fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// Statuses were checked when the faults were set.
fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
