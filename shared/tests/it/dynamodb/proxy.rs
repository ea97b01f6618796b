//! Stands between the SDK and the emulator, and decides what becomes of single requests.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Fate {
    /// It goes no further and gets this answer.
    Answered(u16, Value),
    /// It is carried out, but its answer never comes.
    Unheard,
    /// It is carried out, but the answer is an error of the service.
    Broken,
}

/// An error as DynamoDB words it.
pub fn error(code: &str) -> Fate {
    let prefix = "com.amazonaws.dynamodb.v20120810";
    Fate::Answered(400, json!({ "__type": format!("{prefix}#{code}"), "message": "from the proxy" }))
}

/// Runs until the test's runtime ends.
pub struct Proxy {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    inner: Arc<Inner>,
}

struct Inner {
    upstream: String,
    http: reqwest::Client,
    /// By operation.
    fates: Mutex<HashMap<&'static str, VecDeque<Fate>>>,
    counts: Mutex<HashMap<String, usize>>,
}

impl Proxy {
    pub async fn start(upstream: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
        let (fates, counts) = Default::default();
        let inner = Arc::new(Inner { upstream: upstream.to_owned(), http, fates, counts });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, inner }
    }

    /// The next requests of this operation meet these fates, later ones pass.
    pub fn next(&self, operation: &'static str, fates: impl IntoIterator<Item = Fate>) {
        self.inner.fates.lock().unwrap().insert(operation, fates.into_iter().collect());
    }

    /// How many requests of this operation have come.
    pub fn count(&self, operation: &str) -> usize {
        self.inner.counts.lock().unwrap().get(operation).copied().unwrap_or_default()
    }
}

async fn answer(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers["x-amz-target"].to_str().unwrap();
    let operation = target.split_once('.').unwrap().1.to_owned();
    *inner.counts.lock().unwrap().entry(operation.clone()).or_default() += 1;
    let fate = inner.fates.lock().unwrap().get_mut(&*operation).and_then(VecDeque::pop_front);
    match fate {
        None => inner.forward(headers, body).await,
        Some(Fate::Answered(status, body)) => (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response(),
        Some(Fate::Unheard) => {
            // The caller hangs up while it waits; the request is carried out nevertheless.
            tokio::spawn(async move { inner.forward(headers, body).await });
            pending().await
        }
        Some(Fate::Broken) => {
            inner.forward(headers, body).await;
            let error = json!({ "__type": "InternalServerError", "message": "from the proxy" });
            (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}

impl Inner {
    async fn forward(&self, mut headers: HeaderMap, body: Bytes) -> Response {
        headers.remove("host");
        let answer = self.http.post(&self.upstream).headers(headers).body(body).send().await.unwrap();
        let status = answer.status();
        let kind = answer.headers().get("content-type").cloned();
        let body = answer.bytes().await.unwrap();
        let mut response = (status, body).into_response();
        response.headers_mut().extend(kind.map(|kind| (http::header::CONTENT_TYPE, kind)));
        response
    }
}
