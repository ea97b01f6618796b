//! Meters: what is counted.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::{Method, StatusCode};
use shared::amberflo::Segment;
use utoipa::ToSchema;

use super::Data;
use crate::amberflo::{Effect, data};
use crate::app::App;
use crate::extract::{Id, Json, Properties, Query};
use crate::problem::{Problem, ProblemBody};
use crate::surroundings::audit::Audit;

pub(super) const PATH: &str = "/meters";
pub(super) const OPERATION: &str = "meters";

const REQUIRED: [&str; 3] = ["label", "meterApiName", "meterType"];

/// A meter. Properties that are not named here are passed on too; what is in them is Amberflo's to judge.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "describes what require_texts checks; a meter is passed on as it came")]
struct Meter {
    /// The name that people read.
    #[schema(min_length = 1, example = "SBT Meter")]
    label: String,
    /// The name that usage events carry.
    #[schema(min_length = 1, example = "sbt-meter")]
    meter_api_name: String,
    /// How usage is counted. Amberflo is known to take `sum_of_all_usage`, `active_users` and `event_duration`.
    #[schema(min_length = 1, example = "sum_of_all_usage")]
    meter_type: String,
    /// `open` (a draft), `close_to_changes` (active), `close_to_deletions` or `deprecated`: it moves forward only.
    locking_status: Option<serde_json::Value>,
    /// The names of the dimensions by which usage can be filtered and grouped.
    dimensions: Option<serde_json::Value>,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

/// Creates a meter.
///
/// Amberflo gives it its id. The call is made once: where its answer is lost, the problem says that the meter may exist
/// all the same, and `GET /meters?meterApiName=` shows whether it does.
#[utoipa::path(
    post,
    path = "/meters",
    tag = "Meters",
    operation_id = "createMeter",
    request_body(
        content = Meter,
        example = json!({"label": "SBT Meter", "meterApiName": "sbt-meter", "meterType": "sum_of_all_usage"})
    ),
    responses(
        (status = 201, description = "The meter, with the id that Amberflo gave it", body = Data<serde_json::Value>),
        (status = "default", description = "A problem", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    audit: Audit,
    query: Query,
    Json(meter): Json<Properties>,
) -> Result<Response, Problem> {
    query.only(&[])?;
    note(&audit, &meter);
    meter.require_texts(&REQUIRED)?;
    let created = app.amberflo.send(OPERATION, (Effect::Creates, Method::POST), PATH, &meter).await?;
    Ok(Data::with(StatusCode::CREATED, data(&created)))
}

/// What tells a meter from others, and the one of its properties that does not go back.
fn note(audit: &Audit, meter: &Properties) {
    for name in ["meterApiName", "meterType", "lockingStatus"] {
        if let Some(text) = meter.text(name) {
            audit.note(name, &text);
        }
    }
}

/// One meter, as Amberflo answers it.
#[utoipa::path(
    get,
    path = "/meters/{meterId}",
    tag = "Meters",
    operation_id = "getMeter",
    params(Id),
    responses(
        (status = 200, description = "The meter", body = Data<serde_json::Value>),
        (status = "default", description = "A problem; 404 where no meter has this id", body = ProblemBody,
            content_type = "application/problem+json"),
    )
)]
pub async fn get(State(app): State<Arc<App>>, Id(id): Id, query: Query) -> Result<Response, Problem> {
    query.only(&[])?;
    let meter = read(&app, &id).await?.ok_or_else(|| unknown(&id))?;
    Ok(Data::ok(data(&meter)))
}

/// Replaces a meter.
///
/// The meter of the path: an `id` in the body may be absent, and must be the same otherwise.
#[utoipa::path(
    put,
    path = "/meters/{meterId}",
    tag = "Meters",
    operation_id = "updateMeter",
    params(Id),
    request_body(
        content = Meter,
        example = json!({"label": "SBT trial meter", "meterApiName": "sbt-trial", "meterType": "sum_of_all_usage"})
    ),
    responses(
        (status = 200, description = "The meter as it is now", body = Data<serde_json::Value>),
        (status = "default", description = "A problem", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn update(
    State(app): State<Arc<App>>,
    Id(id): Id,
    audit: Audit,
    query: Query,
    Json(mut meter): Json<Properties>,
) -> Result<Response, Problem> {
    query.only(&[])?;
    note(&audit, &meter);
    meter.require_texts(&REQUIRED)?;
    if meter.has("id") && meter.text("id").as_deref() != Some(id.as_str()) {
        return Err(Problem::bad_request("the body: id differs from the id in the path; leave it out"));
    }
    meter.set("id", id.as_str());
    let updated = app.amberflo.send(OPERATION, (Effect::Replaces, Method::PUT), PATH, &meter).await?;
    Ok(Data::ok(data(&updated)))
}

/// The meter with this id, as Amberflo answers it, if there is one.
pub(super) async fn read(app: &App, id: &Segment) -> Result<Option<Bytes>, Problem> {
    match app.amberflo.get(OPERATION, PATH, Some(id), &[]).await {
        // How Amberflo answers for an id that it does not know is not documented.
        Ok(body) if ["", "{}", "[]", "null"].map(str::as_bytes).contains(&body.trim_ascii()) => Ok(None),
        Ok(body) => Ok(Some(body)),
        Err(problem) if problem.status() == StatusCode::NOT_FOUND => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// The name by which usage is asked for.
pub(super) async fn api_name(app: &App, id: &Segment) -> Result<String, Problem> {
    let meter = read(app, id).await?.ok_or_else(|| unknown(id))?;
    properties(&meter)?
        .text("meterApiName")
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Problem::bad_gateway("Amberflo answered a meter without a meterApiName"))
}

/// A meter that Amberflo answered.
pub(super) fn properties(meter: &Bytes) -> Result<Properties, Problem> {
    serde_json::from_slice(meter)
        .map_err(|error| Problem::bad_gateway(format!("Amberflo answered something that is not a meter: {error}")))
}

pub(super) fn unknown(id: &Segment) -> Problem {
    let id = id.as_str();
    Problem::not_found(format!(
        "no meter has the id {id:?}; an id is given by Amberflo and is not the meterApiName: GET /meters lists them"
    ))
}
