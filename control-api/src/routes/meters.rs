//! Meters: what is counted.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::Data;
use crate::amberflo::data;
use crate::app::App;
use crate::extract::Id;
use crate::problem::{Problem, ProblemBody};

const PATH: &str = "/meters";
const OPERATION: &str = "meters";

/// One meter, as Amberflo answers it.
#[utoipa::path(
    get,
    path = "/meters/{meterId}",
    tag = "Meters",
    operation_id = "getMeter",
    params(("meterId" = String, Path, description = "Amberflo's id of the meter (a UUID), not its `meterApiName`")),
    responses(
        (status = 200, description = "The meter", body = Data<serde_json::Value>),
        (status = "default", description = "A problem", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn get(State(app): State<Arc<App>>, Id(id): Id) -> Result<Response, Problem> {
    Ok(Data::ok(data(&app.amberflo.get(OPERATION, PATH, Some(&id), &[]).await?)))
}
