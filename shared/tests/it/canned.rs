//! An AWS service whose answers a test decides on: what emulators cannot be made to say.

use std::future::IntoFuture as _;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Gets the operation's name and its input, gives the output or an error.
type Answer = dyn Fn(&str, &Value) -> Result<Value, ServiceError> + Send + Sync;

/// An error as AWS services answer it.
pub struct ServiceError(pub u16, pub &'static str, pub &'static str);

/// A service on a loopback port; it is gone when this is dropped.
pub struct Canned {
    pub url: String,
    /// Operations and inputs in the order of their arrival.
    calls: Arc<Mutex<Vec<(String, Value)>>>,
    server: JoinHandle<()>,
}

impl Canned {
    pub async fn start(answer: impl Fn(&str, &Value) -> Result<Value, ServiceError> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let calls = Arc::<Mutex<Vec<_>>>::default();
        let state: (Arc<Answer>, _) = (Arc::new(answer), Arc::clone(&calls));
        let server = axum::serve(listener, Router::new().fallback(call).with_state(state)).into_future();
        Self { url, calls, server: tokio::spawn(async { server.await.unwrap() }) }
    }

    /// The inputs of all calls of one operation.
    pub fn calls(&self, operation: &str) -> Vec<Value> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|(name, _)| name == operation).map(|(_, input)| input.clone()).collect()
    }

    /// Ends it: calls that come after this find nobody.
    pub async fn stop(mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        self.server.abort();
    }
}

type Calls = Arc<Mutex<Vec<(String, Value)>>>;

async fn call(State((answer, calls)): State<(Arc<Answer>, Calls)>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers["x-amz-target"].to_str().unwrap();
    let operation = target.rsplit_once('.').unwrap().1;
    let input: Value = serde_json::from_slice(&body).unwrap();
    calls.lock().unwrap().push((operation.to_owned(), input.clone()));
    let (status, output) = match answer(operation, &input) {
        Ok(output) => (StatusCode::OK, output),
        Err(ServiceError(status, code, message)) => {
            (StatusCode::from_u16(status).unwrap(), json!({"__type": code, "message": message}))
        }
    };
    (status, [("content-type", "application/x-amz-json-1.0")], output.to_string()).into_response()
}
