//! Who may call: the middleware on a real socket, with an issuer on loopback whose keys are the tests' own.

mod gateway;
pub mod issuer;
mod jwks;
mod local;
mod settings;
mod token;

use std::net::SocketAddr;
use std::time::Duration;

use axum::middleware::{from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Json, Router};
use clap::Parser;
use control_api::auth::{Auth, AuthArgs, Caller};
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use shared::clock::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The time at which every test begins, in seconds since the Unix epoch.
const NOW: i64 = 1_800_000_000;
pub const AUDIENCE: &str = "metering";
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    auth: AuthArgs,
}

fn args(flags: &[&str]) -> AuthArgs {
    Cli::try_parse_from([&["it"], flags].concat()).unwrap().auth
}

/// Settings that take the issuer's tokens, and `flags`.
fn jwt_args(issuer: &issuer::Issuer, flags: &[&str]) -> AuthArgs {
    args(&[&["--jwt-issuer", &issuer.name, "--jwt-audience", AUDIENCE], flags].concat())
}

fn auth(args: &AuthArgs, listen: Option<SocketAddr>, origins: &[&'static str]) -> Auth {
    let origins = origins.iter().copied().map(HeaderValue::from_static).collect();
    Auth::new(args, listen, origins, Clock::following_tokio(NOW * 1000)).unwrap()
}

async fn wait(duration: Duration) {
    tokio::time::pause();
    tokio::time::advance(duration).await;
    tokio::time::resume();
}

/// Polls until it holds; for what happens beside the requests.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 5 s: {what}");
}

/// An API of one route, which answers who calls.
#[derive(Clone, Copy)]
struct Api {
    address: SocketAddr,
}

struct Answer {
    status: u16,
    headers: String,
    body: Value,
}

impl Api {
    async fn start(auth: Auth) -> Self {
        Self::start_behind(auth, |router| router).await
    }

    async fn start_behind(auth: Auth, adapter: impl FnOnce(Router) -> Router) -> Self {
        let router = Router::new()
            .route("/", get(who).post(who))
            .layer(from_fn_with_state(auth, Auth::authenticate))
            .layer(map_response(name_the_refused));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = adapter(router);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address }
    }

    async fn for_tokens(issuer: &issuer::Issuer) -> Self {
        Self::start(auth(&jwt_args(issuer, &[]), None, &[])).await
    }

    /// Sends these lines as they are.
    async fn send(&self, lines: &[&str]) -> Answer {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{}\r\nConnection: close\r\n\r\n", lines.join("\r\n"));
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let (status, headers) = head.split_once("\r\n").unwrap();
        Answer {
            status: status.split(' ').nth(1).unwrap().parse().unwrap(),
            headers: headers.to_owned(),
            body: serde_json::from_str(body).unwrap_or_default(),
        }
    }

    async fn get(&self, token: &str) -> Answer {
        self.call("GET", token).await
    }

    async fn call(&self, method: &str, token: &str) -> Answer {
        let line = format!("{method} / HTTP/1.1");
        self.send(&[&line, "Host: api.example.com", &format!("Authorization: Bearer {token}")]).await
    }
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn detail(&self) -> &str {
        self.body["detail"].as_str().unwrap_or_default()
    }

    /// Asserts a refusal that begins with these words, and that tells the client by which rule.
    #[track_caller]
    fn refused(&self, status: u16, error: &str, begins: &str) {
        assert_eq!((self.status, self.detail().starts_with(begins)), (status, true), "{begins}: {}", self.body);
        let challenge = self.header("www-authenticate").unwrap_or_default();
        assert!(challenge.starts_with("Bearer realm="), "{challenge}");
        assert!(challenge.contains(&format!("error=\"{error}\"")), "{challenge}");
    }
}

async fn who(Extension(caller): Extension<Caller>, headers: HeaderMap) -> Json<Value> {
    assert!(!headers.contains_key("authorization") || caller.subject == "local");
    Json(json!({"subject": caller.subject, "client": caller.client, "scopes": caller.scopes}))
}

/// As the audit line does.
async fn name_the_refused(mut response: Response) -> Response {
    if let Some(caller) = response.extensions().get::<Caller>() {
        let subject = HeaderValue::try_from(&caller.subject).unwrap();
        response.headers_mut().insert("x-refused", subject);
    }
    response
}
