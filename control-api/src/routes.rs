//! The endpoints, one file for each kind of thing.

mod cancel;
mod dead_letters;
mod ingest;
mod meter_deletion;
mod meter_list;
mod meters;
mod time_range;
mod usage;
mod usage_events;

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use http::header::CONTENT_SECURITY_POLICY;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

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

#[derive(OpenApi)]
#[openapi(
    info(title = "Amberflo metering for AWS SBT", license(name = "Apache-2.0", identifier = "Apache-2.0")),
    modifiers(&Access),
)]
struct Documentation;

/// The endpoints need a bearer token; with `AUTH=none` whatever is sent in its place is ignored.
struct Access;

impl Modify for Access {
    fn modify(&self, documentation: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        let components = documentation.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
        documentation.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>("bearer", [])]);
    }
}

/// The endpoints, without what surrounds them, and their description.
pub fn documented() -> (Router<Arc<App>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Documentation::openapi())
        .routes(routes!(meter_list::list, meters::create))
        .routes(routes!(meters::get, meters::update, meter_deletion::delete))
        .routes(routes!(usage::get))
        .routes(routes!(usage_events::get))
        .routes(routes!(cancel::cancel))
        .routes(routes!(ingest::post))
        .routes(routes!(dead_letters::list, dead_letters::remove))
        .routes(routes!(dead_letters::redrive))
        .split_for_parts()
}

/// `GET /openapi.json`, and `GET /docs`, a page that shows it without asking any other server for anything.
pub fn documentation(documentation: utoipa::openapi::OpenApi) -> Router<Arc<App>> {
    let policy = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";
    let policy = SetResponseHeaderLayer::overriding(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    Router::from(SwaggerUi::new("/docs").url("/openapi.json", documentation)).layer(policy)
}
