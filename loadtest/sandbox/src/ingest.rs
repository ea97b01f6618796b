//! `POST /ingest`: the stages a request passes, in order.

use std::io::Read as _;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, Method, StatusCode, header};

use crate::Sandbox;
use crate::armed::Kind;
use crate::attempt::{Answer, Attempt, BODY_LIMIT, read, status_code};
use crate::facts::Facts;
use crate::faults::{Faults, Poison};
use crate::operation::Operation;
use crate::record::{Batch, Form, Record};
use crate::stats::{Ceiling, LoggedRequest};

pub(crate) async fn ingest(State(sandbox): State<Sandbox>, request: Request) -> Response {
    let mut ingestion = Ingestion::arrive(&sandbox);
    let answer = ingestion.pass(request).await.unwrap_or_else(|early| early);
    ingestion.log.status = Some(answer.status.as_u16());
    answer.into_response()
}

/// One request from arrival to answer. Dropping it counts its end, so that one whose client goes away is counted too.
struct Ingestion<'a> {
    attempt: Attempt<'a>,
    ceiling: Option<Ceiling>,
    log: LoggedRequest,
}

impl<'a> Ingestion<'a> {
    fn arrive(sandbox: &'a Sandbox) -> Self {
        let at = sandbox.elapsed();
        let state = &mut *sandbox.lock();
        let faults = state.armed.faults();
        let rate = faults.requests_per_second.map(|rate| rate.get() as usize);
        let ceiling = state.journal.arrive(at, rate, faults.max_concurrent.map(NonZeroUsize::get));
        let attempt = Attempt::arrive(sandbox, state, Operation::Ingest, &Method::POST);
        let log =
            LoggedRequest { at, took: Duration::ZERO, status: None, records: None, accepted: 0, faults: Vec::new() };
        Self { attempt, ceiling, log }
    }

    /// The stages. `Err` is an answer that ends them early.
    async fn pass(&mut self, request: Request) -> Result<Answer, Answer> {
        // Read first, whatever the answer will be: an answer ahead of the body breaks the client's connection.
        let (head, body) = request.into_parts();
        let body = read(body).await?;
        self.attempt.sandbox.lock().journal.body(body.len());

        self.check_ceiling()?;
        self.attempt.slow_down().await;
        self.attempt.check_key(&head.headers)?;
        self.attempt.fail_before().await?;

        let facts = Arc::clone(&self.attempt.sandbox.lock().facts);
        let text = self.decompress(&head.headers, body, &facts)?;
        let batch = parse(&text, &facts)?;
        self.check_batch(&text, &batch)?;
        self.check_names(&batch.records, &facts)?;

        let (accepted, absorbed) = self.accept(&batch.records, &facts);
        self.attempt.fail_after().await?;
        let missing = self.missing(Kind::PartialAnswer);
        let copies = if facts.counts_copies_in_the_answer { 0 } else { absorbed };
        let count = accepted.saturating_sub(missing + copies);
        if !facts.answers_the_count {
            return Ok(Answer::new(StatusCode::OK, "accepted"));
        }
        Ok(Answer::new(StatusCode::OK, format!("{count} records were ingested")))
    }

    fn check_ceiling(&mut self) -> Result<(), Answer> {
        match self.ceiling {
            None => return Ok(()),
            Some(Ceiling::Rate) => self.attempt.note("requests_per_second"),
            Some(Ceiling::Concurrency) => self.attempt.note("max_concurrent"),
        }
        Err(self.attempt.too_many_requests())
    }

    fn decompress(&self, headers: &HeaderMap, body: Bytes, facts: &Facts) -> Result<String, Answer> {
        let limit = self.attempt.faults(|faults| faults.max_body_bytes).map_or(BODY_LIMIT, NonZeroUsize::get);
        let encoding = headers.get(header::CONTENT_ENCODING).map(|encoding| encoding.as_bytes());
        let bytes = match encoding {
            None | Some(b"identity") => body.into(),
            Some(b"gzip") if facts.takes_gzip => {
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
        String::from_utf8(bytes).map_err(|_| Answer::bad_request("the body is not UTF-8"))
    }

    fn check_batch(&mut self, text: &str, batch: &Batch<'_>) -> Result<(), Answer> {
        let records = &batch.records;
        self.log.records = Some(records.len());
        let (max_records, poisoned) = {
            let state = &mut *self.attempt.sandbox.lock();
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
                self.attempt.note("poison");
                // As opaque as the real one: finding the culprit is the client's task.
                Err(Answer::new(status_code(status), r#"{"message":"request could not be processed"}"#))
            }
        }
    }

    /// Whether there are such meters and customers, where that matters.
    fn check_names(&self, records: &[Record<'_>], facts: &Facts) -> Result<(), Answer> {
        let account = &self.attempt.sandbox.lock().account;
        for record in records {
            if !facts.takes_unknown_customers && !account.customers.has(&record.customer_id) {
                return Err(Answer::bad_request(format!("Unknown customer: {}", record.customer_id)));
            }
            let unknown = record.billed().find(|(meter, _)| !account.meters.has(meter));
            if let Some((meter, _)) = unknown.filter(|_| !facts.takes_unknown_meters) {
                return Err(Answer::bad_request(format!("Unknown meter: {meter}")));
            }
        }
        Ok(())
    }

    /// Ledgers the records, all under one lock: another request sees all of them or none. Returns how many, and how many
    /// of them were copies.
    fn accept(&mut self, records: &[Record<'_>], facts: &Facts) -> (usize, usize) {
        let accepted = records.len().saturating_sub(self.missing(Kind::PartialIngest));
        let sandbox = self.attempt.sandbox;
        let at = sandbox.elapsed();
        let state = &mut *sandbox.lock();
        let billed = facts.bills_of_a_request.map_or(accepted, |most| accepted.min(most.get()));
        let absorbed = state.ledger.accept(&records[..billed], at, facts);
        self.log.accepted = accepted;
        (accepted, absorbed)
    }

    /// By how many records a partial fault falls short.
    fn missing(&mut self, kind: Kind) -> usize {
        if self.attempt.fires(kind) { self.attempt.faults(|faults| faults.missing.get()) } else { 0 }
    }
}

/// The records of a body, as far as its form is one that is taken.
fn parse<'a>(text: &'a str, facts: &Facts) -> Result<Batch<'a>, Answer> {
    let refused = |reason: String| Answer::new(status_code(facts.bad_record_status), reason);
    let batch = Batch::parse(text, facts.refuses_whole_requests).map_err(|error| refused(error.to_string()))?;
    let takes_form = match batch.form {
        Form::Array => true,
        Form::SingleObject => facts.takes_single_objects,
        Form::Ndjson => facts.takes_ndjson,
    };
    match batch.unknown_keys.first() {
        _ if !takes_form => Err(refused("the body is not a JSON array".to_owned())),
        Some(key) if !facts.ignores_unknown_keys => Err(refused(format!("unknown key {key}"))),
        _ => Ok(batch),
    }
}

impl Drop for Ingestion<'_> {
    fn drop(&mut self) {
        let sandbox = self.attempt.sandbox;
        self.log.took = sandbox.elapsed().saturating_sub(self.log.at);
        self.log.faults = std::mem::take(&mut self.attempt.met);
        sandbox.lock().journal.end(self.log.clone());
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
