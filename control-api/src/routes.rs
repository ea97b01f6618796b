//! The endpoints, one file for each kind of thing.

mod ingest;
mod meters;

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;

/// The answer of every endpoint that succeeds: what was asked for, under `data`, as the original plugin answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct Data<T> {
    /// What was asked for.
    data: T,
}

impl<T: Serialize> Data<T> {
    /// 200.
    pub fn ok(data: T) -> Response {
        Self::with(StatusCode::OK, data)
    }

    /// With another status.
    pub fn with(status: StatusCode, data: T) -> Response {
        (status, Json(Self { data })).into_response()
    }
}

/// All endpoints, without what surrounds them.
pub fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(meters::get)).routes(routes!(ingest::post))
}
