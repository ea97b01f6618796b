//! A real API on a free port, in front of a sandbox on another.

use std::net::SocketAddr;
use std::sync::Arc;

use amberflo_sandbox::{Sandbox, SandboxConfig};
use axum::Router;
use clap::Parser as _;
use control_api::app::{self, App};
use control_api::auth::Auth;
use control_api::config::Cli;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use shared::backends::api_keys;
use shared::service::{self, Ready};
use tempfile::TempDir;
use tokio::net::TcpListener;

/// A running API. Everything that it started ends with the test's runtime.
pub struct Api {
    /// The stand-in for Amberflo.
    pub sandbox: Sandbox,
    /// What the handlers work with.
    pub app: Arc<App>,
    /// Where it answers.
    pub url: String,
    /// The client that asks it.
    pub client: reqwest::Client,
    /// What /ready answers.
    pub ready: Ready,
    _directory: TempDir,
}

impl Api {
    /// An API whose stream is local, and empty.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// An API with these flags beside those that it needs.
    pub async fn start_with(flags: &[&str]) -> Self {
        Self::start_changed(flags, |_| ()).await
    }

    /// An API with these flags, and with something in it changed.
    pub async fn start_changed(flags: &[&str], change: impl FnOnce(&mut App)) -> Self {
        let sandbox = Sandbox::new(SandboxConfig::default());
        let amberflo = serve(sandbox.router()).await;
        let Running { app, url, ready, directory } = Running::start(&amberflo, flags, change).await;
        Self { sandbox, app, url, client: client(), ready, _directory: directory }
    }

    /// A request, to which a test may add before it is sent.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    /// `GET path`: status and JSON.
    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path)).await
    }

    /// A request with a JSON body: status and JSON.
    pub async fn send(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let request = self.request(method, path).header("content-type", "application/json");
        answer(request.body(body.to_string())).await
    }
}

/// An API in front of whatever answers at a URL.
pub struct Running {
    /// What the handlers work with.
    pub app: Arc<App>,
    /// Where it answers.
    pub url: String,
    /// What /ready answers.
    pub ready: Ready,
    /// Where its stream lies.
    pub directory: TempDir,
}

impl Running {
    /// Starts it with these flags, and with something in it changed.
    pub async fn start(amberflo: &str, flags: &[&str], change: impl FnOnce(&mut App)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let stream = format!("local:{}", directory.path().display());
        let mut arguments = vec!["control-api", "--amberflo-api-key=sandbox-key"];
        arguments.extend(["--amberflo-base-url", amberflo, "--stream", &stream]);
        if !flags.iter().any(|flag| flag.starts_with("--auth")) {
            arguments.push("--auth=none");
        }
        // A test may ask faster than people do.
        if !flags.iter().any(|flag| flag.starts_with("--caller")) {
            arguments.push("--caller-requests-per-second=0");
        }
        arguments.extend(flags);
        let cli = Cli::parse_from(arguments);
        cli.settings.check(Some(cli.server.listen)).unwrap();
        let keys = api_keys(cli.settings.amberflo.key().unwrap()).await.unwrap();
        let ready = Ready::default();
        let mut app = App::new(cli.settings, keys, ready.clone()).unwrap();
        change(&mut app);
        let app = Arc::new(app);
        let origins = app.settings.cors_origins.clone();
        let auth = Auth::new(&app.settings.auth, Some(cli.server.listen), origins, app.clock).unwrap();
        let url = serve(app::router(Arc::clone(&app), auth)).await;
        Self { app, url, ready, directory }
    }
}

/// Serves on a free port for as long as the test's runtime lives; answers the URL.
pub async fn serve(router: Router) -> String {
    let listener = listen().await;
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(service::serve(listener, router, std::future::pending()));
    url
}

/// Sends the request; status and JSON of its answer.
pub async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let (status, text) = (response.status(), response.text().await.unwrap());
    let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status} {text:?}: {error}"));
    (status, json)
}

/// A free port on this machine.
pub async fn listen() -> TcpListener {
    TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap()
}

/// An HTTP client.
pub fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}
