//! The deletion of a meter, in steps: read, deprecate, delete, verify.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::value::RawValue;
use shared::amberflo::Segment;
use tokio::time::sleep;

use super::Data;
use super::meters::{OPERATION, PATH, properties, read, unknown};
use crate::amberflo::{Deadline, Effect, data};
use crate::app::App;
use crate::extract::{Id, Properties, Query};
use crate::problem::{Problem, ProblemBody};

const LOCKING_STATUS: &str = "lockingStatus";
const DEPRECATED: &str = "deprecated";
const TRUE_OR_FALSE: &str = "true or false";

/// When to look whether the meter is gone: what Amberflo answers may be a moment behind.
const LOOKS_AFTER: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_secs(1)];

/// Deletes a meter.
///
/// Amberflo deletes deprecated meters only, and a deprecated meter never becomes active again. The meter is read,
/// deprecated unless it is already, deleted, and looked for once more. A failure says in `step` which of these failed
/// (`read`, `deprecate`, `delete`, `verify`), and in `meterState` what the meter is then: `unchanged`, `deprecated`,
/// `gone`, or `unknown` where an answer was lost. Deleting again continues where this stopped.
#[utoipa::path(
    delete,
    path = "/meters/{meterId}",
    tag = "Meters",
    operation_id = "deleteMeter",
    params(
        Id,
        ("deprecate" = Option<bool>, Query,
            description = "`false` leaves the deprecation out: Amberflo then refuses a meter that is not deprecated. \
                           Default: `true`"),
    ),
    responses(
        (status = 200, description = "The meter is gone; `data` is Amberflo's answer", body = Data<serde_json::Value>),
        (status = "default", description = "A problem; 404 where no meter has this id", body = ProblemBody,
            content_type = "application/problem+json"),
    )
)]
pub async fn delete(State(app): State<Arc<App>>, Id(id): Id, query: Query) -> Result<Response, Problem> {
    query.only(&["deprecate"])?;
    let deprecate = query.parsed("deprecate", TRUE_OR_FALSE)?.unwrap_or(true);
    let deletion = Deletion { app: &app, id: &id, deadline: app.amberflo.deadline() };
    Ok(Data::ok(deletion.run(deprecate).await?))
}

struct Deletion<'a> {
    app: &'a App,
    id: &'a Segment,
    deadline: Deadline,
}

#[derive(Clone, Copy)]
enum MeterState {
    Unchanged,
    Deprecated,
    Gone,
    Unknown,
}

impl Deletion<'_> {
    async fn run(&self, deprecate: bool) -> Result<Box<RawValue>, Problem> {
        let meter = match self.read().await {
            Err(problem) if problem.status() != StatusCode::NOT_FOUND => {
                return Err(failed(problem, "read", MeterState::Unchanged));
            }
            meter => meter?,
        };
        let mut state = MeterState::Unchanged;
        if deprecate && meter.text(LOCKING_STATUS).as_deref() != Some(DEPRECATED) {
            self.deprecate(meter).await?;
            state = MeterState::Deprecated;
        }
        self.delete(state).await
    }

    async fn read(&self) -> Result<Properties, Problem> {
        let answer = self.deadline.share(4, read(self.app, self.id)).await?;
        the_meter(self.id, answer.as_ref())
    }

    async fn deprecate(&self, mut meter: Properties) -> Result<(), Problem> {
        meter.set(LOCKING_STATUS, DEPRECATED);
        let call = self.app.amberflo.send(OPERATION, (Effect::Replaces, Method::PUT), PATH, &meter);
        let Err(problem) = self.deadline.share(3, call).await else { return Ok(()) };
        let state = match problem.status() {
            StatusCode::NOT_FOUND => MeterState::Gone,
            status if status.is_client_error() => MeterState::Unchanged,
            _ => MeterState::Unknown,
        };
        Err(failed(problem, "deprecate", state))
    }

    /// `state` is the meter's so far.
    async fn delete(&self, state: MeterState) -> Result<Box<RawValue>, Problem> {
        let call = self.app.amberflo.delete(OPERATION, PATH, self.id);
        let deleted = self.deadline.share(2, call).await;
        if let Err(problem) = deleted {
            let status = problem.status();
            // Somebody else may have deleted it meanwhile, and a lost answer may have been a yes.
            let is_refused = status.is_client_error() && status != StatusCode::NOT_FOUND;
            if is_refused {
                return Err(failed(problem, "delete", state));
            }
            return match self.is_gone().await {
                Ok(true) => Ok(data(&Bytes::new())),
                Ok(false) => Err(failed(problem, "delete", state)),
                Err(_) => Err(failed(problem, "delete", MeterState::Unknown)),
            };
        }
        match self.is_gone().await {
            Ok(true) => deleted.map(|answer| data(&answer)),
            Ok(false) => {
                let problem = Problem::bad_gateway("Amberflo answered the deletion, but the meter is still there");
                Err(failed(problem, "verify", state))
            }
            Err(problem) => Err(failed(problem, "verify", MeterState::Unknown)),
        }
    }

    async fn is_gone(&self) -> Result<bool, Problem> {
        self.deadline
            .share(1, async {
                for wait in LOOKS_AFTER {
                    sleep(wait).await;
                    if read(self.app, self.id).await?.is_none() {
                        return Ok(true);
                    }
                }
                Ok(false)
            })
            .await
    }
}

/// The meter that was asked for. `DELETE` with an api name in place of the id answers 200 and does nothing, so that a
/// meter that answers to a name must not be taken for one that answers to an id.
fn the_meter(id: &Segment, answer: Option<&Bytes>) -> Result<Properties, Problem> {
    let meter = properties(answer.ok_or_else(|| unknown(id))?)?;
    match meter.text("id") {
        Some(own) if own != id.as_str() => Err(unknown(id)),
        _ => Ok(meter),
    }
}

fn failed(problem: Problem, step: &str, state: MeterState) -> Problem {
    let (name, words) = match state {
        MeterState::Unchanged => ("unchanged", "the meter is as it was"),
        MeterState::Deprecated => ("deprecated", "the meter is deprecated and still there"),
        MeterState::Gone => ("gone", "the meter is gone: somebody else deleted it meanwhile"),
        MeterState::Unknown => ("unknown", "the meter may have changed: read it before you go on"),
    };
    problem.during(&format!("the step {step:?} failed, and {words}")).with("step", step).with("meterState", name)
}
