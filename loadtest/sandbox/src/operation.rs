//! The operations of Amberflo's API, and the stages that all but `POST /ingest` pass.

use std::time::UNIX_EPOCH;

use axum::body::Bytes;
use axum::extract::{Query, Request};
use axum::response::{IntoResponse as _, Response};
use http::{StatusCode, Uri};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::attempt::{Answer, Attempt, read};
use crate::{Sandbox, State};

/// A group of endpoints that faults and statistics name together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// `POST /ingest`
    Ingest,
    /// `/meters`
    Meters,
    /// `POST /usage`
    Usage,
    /// `GET /usage/events`
    UsageEvents,
    /// `POST /ingest-snapshot/custom-filtering-rules`
    FilteringRules,
    /// `/customers`
    Customers,
}

/// What an operation is carried out with.
pub(crate) struct Call<'a> {
    pub(crate) sandbox: &'a Sandbox,
    uri: Uri,
    body: Bytes,
}

/// Takes a request through its stages: delay, key, the faults before, `carry_out` under the lock, the faults after.
pub(crate) async fn answer(
    sandbox: &Sandbox,
    operation: Operation,
    request: Request,
    carry_out: impl FnOnce(&mut State, &Call<'_>) -> Result<Answer, Answer> + Send,
) -> Response {
    let mut in_progress = InProgress::arrive(sandbox, operation, &request);
    let answer = in_progress.pass(request, carry_out).await.unwrap_or_else(|early| early);
    in_progress.status = Some(answer.status);
    answer.into_response()
}

/// One request from arrival to answer. Dropping it counts its end, so that one whose client goes away is counted too.
struct InProgress<'a> {
    attempt: Attempt<'a>,
    status: Option<StatusCode>,
}

impl<'a> InProgress<'a> {
    fn arrive(sandbox: &'a Sandbox, operation: Operation, request: &Request) -> Self {
        let state = &mut *sandbox.lock();
        state.journal.operation_arrives(operation, request.method());
        Self { attempt: Attempt::arrive(sandbox, state, operation, request.method()), status: None }
    }

    async fn pass(
        &mut self,
        request: Request,
        carry_out: impl FnOnce(&mut State, &Call<'_>) -> Result<Answer, Answer>,
    ) -> Result<Answer, Answer> {
        let (head, body) = request.into_parts();
        let body = read(body).await?;
        self.attempt.slow_down().await;
        self.attempt.check_key(&head.headers)?;
        self.attempt.fail_before().await?;
        let sandbox = self.attempt.sandbox;
        let answer = carry_out(&mut sandbox.lock(), &Call { sandbox, uri: head.uri, body })?;
        self.attempt.fail_after().await?;
        Ok(answer)
    }
}

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        let status = self.status.map(|status| status.as_u16());
        self.attempt.sandbox.lock().journal.operation_ends(self.attempt.operation, status);
    }
}

impl Call<'_> {
    /// The body as JSON of a known form.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Answer> {
        serde_json::from_slice(&self.body).map_err(|error| Answer::bad_request(format!("invalid body: {error}")))
    }

    /// The body as an object whose unknown properties are kept.
    pub(crate) fn object(&self) -> Result<Map<String, Value>, Answer> {
        self.json()
    }

    pub(crate) fn query<T: DeserializeOwned>(&self) -> Result<T, Answer> {
        let parsed = Query::try_from_uri(&self.uri);
        parsed.map(|Query(query)| query).map_err(|rejection| Answer::bad_request(rejection.body_text()))
    }

    /// The wall time in milliseconds since the epoch.
    pub(crate) fn now_millis(&self) -> i64 {
        let since_epoch = self.sandbox.wall_time().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
    }

    /// Refuses what cannot be answered without kept records.
    pub(crate) fn needs_records(&self) -> Result<(), Answer> {
        if self.sandbox.shared.config.keep_records {
            Ok(())
        } else {
            Err(Answer::new(StatusCode::CONFLICT, NO_RECORDS))
        }
    }
}

pub(crate) const NO_RECORDS: &str = "this sandbox keeps no records: start it with --keep-records";

/// A property that must be there as a non-empty string.
pub(crate) fn required(object: &Map<String, Value>, name: &str) -> Result<String, Answer> {
    match object.get(name) {
        None | Some(Value::Null) => Err(Answer::bad_request(format!("{name} is missing"))),
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        Some(_) => Err(Answer::bad_request(format!("{name} is not a non-empty string"))),
    }
}

/// A property that may be absent or null.
pub(crate) fn optional(object: &Map<String, Value>, name: &str) -> Result<Option<String>, Answer> {
    if object.get(name).is_none_or(Value::is_null) { Ok(None) } else { required(object, name).map(Some) }
}
