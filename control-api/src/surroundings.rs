//! What is done for every request, whatever it asks for.
//!
//! From the outside in: a request id, a metric and security headers for everything; CORS; and for the endpoints of the
//! API an end in time, one audit line for each mutation, the check of who calls, a limit for each caller, and JSON.

pub mod audit;
mod limit;
mod observe;

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::body::HttpBody as _;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;
use tower_http::set_header::SetResponseHeaderLayer;

use crate::app::App;
use crate::auth::Auth;
use crate::problem::Problem;
use limit::CallerLimit;
use observe::Spans;
pub use observe::{RequestId, describe, show_ready};

/// The largest body of a request, in bytes.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// The header by which a repeated `POST /ingest` is recognised.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Surrounds the endpoints of the API.
pub fn around_endpoints(endpoints: Router<Arc<App>>, app: &Arc<App>, auth: Auth) -> Router<Arc<App>> {
    let limit = CallerLimit::new(app.settings.limits.caller_requests_per_second);
    // The last one is the outermost.
    endpoints
        .route_layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .route_layer(from_fn(only_json))
        .route_layer(from_fn_with_state(limit, CallerLimit::check))
        .route_layer(from_fn(audit::name_the_caller))
        .route_layer(from_fn_with_state(auth, Auth::authenticate))
        // Within what audits: a mutation that panics is one too.
        .route_layer(CatchPanicLayer::custom(panicked))
        .route_layer(from_fn_with_state(Arc::clone(app), audit::to_its_end))
}

/// Surrounds everything.
pub fn around_everything(router: Router, cors_origins: &[HeaderValue]) -> Router {
    let header = |name: HeaderName, value: &'static str| {
        SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value))
    };
    let cors = (!cors_origins.is_empty()).then(|| cors(cors_origins));
    let layers = ServiceBuilder::new()
        .layer(from_fn(observe::observe))
        .layer(header(X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(header(X_FRAME_OPTIONS, "DENY"))
        .layer(header(REFERRER_POLICY, "no-referrer"))
        .layer(header(CACHE_CONTROL, "no-store"))
        .layer(header(CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"))
        .option_layer(cors)
        .layer(CatchPanicLayer::custom(panicked));
    router.layer(layers)
}

fn cors(origins: &[HeaderValue]) -> CorsLayer {
    CorsLayer::new()
        .allow_origin(origins.to_vec())
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, IDEMPOTENCY_KEY, observe::X_REQUEST_ID])
        .expose_headers([observe::X_REQUEST_ID, RETRY_AFTER])
        .max_age(std::time::Duration::from_secs(600))
}

/// A body is JSON and says so: a form of a web page, which a browser sends without asking, is none.
async fn only_json(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let has_body = !request.body().is_end_stream();
    let needs_type = match *request.method() {
        Method::GET | Method::HEAD => false,
        // A browser asks before it sends one of these to another origin.
        Method::DELETE => has_body,
        _ => true,
    };
    let given = headers.get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let essence =
        given.as_deref().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if needs_type && essence != "application/json" {
        let given = given.as_deref().unwrap_or("nothing");
        let detail = format!("content-type: {given}; allowed is application/json");
        return Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail).into_response();
    }
    next.run(request).await
}

/// The panic's text stays in the log, to which it went as it happened: it may say anything.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "an error in the API itself; its log says more").into_response()
}
