//! Mutations: each is carried to its end, whether or not somebody waits for it, and leaves one line that says who did
//! what, on what, and how it ended.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use shared::dead_letter::sha256;
use tokio::time::timeout;

use super::{RequestId, Spans};
use crate::app::App;
use crate::auth::Caller;
use crate::problem::Problem;

/// The target of audit lines in the log; they are written whatever LOG says of other lines.
pub const TARGET: &str = "audit";

/// The longest path and query in an audit line, and the longest note: collectors cut long lines, and lose their ends.
const MAX_TEXT_BYTES: usize = 512;
const MAX_NOTE_BYTES: usize = 16 << 10;

/// What a handler wants in the audit line of its request: names, and values without secrets. What it notes before it acts
/// is in the line however the act ends.
#[derive(Clone, Debug, Default)]
pub struct Audit(Arc<Mutex<BTreeMap<&'static str, Box<RawValue>>>>);

impl Audit {
    /// Adds a value.
    pub fn note(&self, name: &'static str, value: &impl Serialize) {
        if let Ok(value) = to_raw_value(value) {
            let value = if value.get().len() > MAX_NOTE_BYTES { shortened(&value) } else { value };
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, value);
        }
    }

    /// All values as one JSON object; `None` where there are none.
    fn json(&self) -> Option<String> {
        let notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!notes.is_empty()).then(|| serde_json::to_string(&*notes).unwrap_or_default())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Audit {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}

/// What is left of a value that is too long: its beginning, and what tells it from others.
fn shortened(value: &RawValue) -> Box<RawValue> {
    let text = value.get();
    let beginning = excerpt(text);
    to_raw_value(&json!({"beginning": beginning, "bytes": text.len(), "sha256": sha256(text.as_bytes())}))
        .unwrap_or_default()
}

/// Lets the outer layers know who called.
pub async fn name_the_caller(request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>().cloned();
    let mut response = next.run(request).await;
    if let Some(caller) = caller {
        response.extensions_mut().insert(caller);
    }
    response
}

/// Ends every request in time; a mutation goes on behind that, and is audited.
pub async fn to_its_end(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let in_time = app.settings.limits.request_timeout;
    let late = |what: &str| {
        let detail = format!("no answer within {}{what}", humantime::format_duration(in_time));
        Problem::new(StatusCode::GATEWAY_TIMEOUT, detail).into_response()
    };
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return timeout(in_time, next.run(request)).await.unwrap_or_else(|_| late(""));
    }
    let mut line = Line::of(&request);
    request.extensions_mut().insert(line.audit.clone());
    let spans = request.extensions().get::<Spans>().cloned();
    // In a task of its own: a caller who goes away must not leave a meter half deleted, or a letter published but not
    // removed.
    let task = async move {
        let response = next.run(request).await;
        line.write(&response);
        response
    };
    let task = async move {
        match spans {
            Some(spans) => spans.around(task).await,
            None => task.await,
        }
    };
    match timeout(in_time, app.mutations.spawn(task)).await {
        Ok(Ok(response)) => response,
        // A panic is answered inside of the task; this is the end of the process.
        Ok(Err(_)) => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the API is shutting down").into_response(),
        Err(_) => late("; it is still being carried out: look before you try again"),
    }
}

/// What is known of a mutation before it is carried out.
struct Line {
    action: String,
    path: String,
    query: Option<String>,
    request_id: String,
    audit: Audit,
    is_written: bool,
}

impl Line {
    fn of(request: &Request) -> Self {
        let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str).unwrap_or_default();
        let id = request.extensions().get::<RequestId>().map(|id| id.0.clone());
        Self {
            action: format!("{} {route}", request.method()),
            path: excerpt(request.uri().path()),
            query: request.uri().query().map(excerpt),
            request_id: id.unwrap_or_default(),
            audit: Audit::default(),
            is_written: false,
        }
    }

    fn write(&mut self, response: &Response) {
        self.is_written = true;
        let caller = response.extensions().get::<Caller>();
        let subject = caller.map_or("unknown", |caller| &*caller.subject);
        let client = caller.and_then(|caller| caller.client.as_deref());
        let note = self.audit.json();
        let Self { action, path, request_id, .. } = self;
        // A stranger's could hold anything.
        let query = self.query.as_deref().filter(|_| caller.is_some());
        let status = response.status().as_u16();
        tracing::info!(target: TARGET, subject, client, action, path, query, status, note, request_id, "mutation");
    }
}

impl Drop for Line {
    /// The process ends before the mutation does: it may have been carried out, or a part of it.
    fn drop(&mut self) {
        if !self.is_written {
            let Self { action, path, request_id, .. } = self;
            let note = self.audit.json();
            tracing::warn!(target: TARGET, action, path, note, request_id, "mutation cut off: how it ended is unknown");
        }
    }
}

/// The beginning of a text.
fn excerpt(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_TEXT_BYTES);
    if end < text.len() { format!("{}... ({} bytes)", &text[..end], text.len()) } else { text.to_owned() }
}
