//! Who may call: the bearer of a token that we check, a caller whom API Gateway let in, or, on loopback only, anybody.

mod args;
mod claims;
mod issuer;
mod jwks;
mod key;
mod local;
mod refusal;
mod token;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderValue, Method};
use serde_json::{Map, Value};
use shared::clock::Clock;

pub use args::{AuthArgs, AuthMode};
use local::LocalOnly;
use refusal::Refusal;
use token::Tokens;

/// Who calls; in the extensions of every request that [`Auth::authenticate`] let through.
///
/// Its texts are the token's: at most 256 bytes each and free of control characters. In a log line they are still to
/// be recorded as text values, which are quoted, and not by `%`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The token's `sub`, its `client_id` where it has none (client credentials), or `local`.
    pub subject: String,
    /// The application that calls: the token's `client_id`, or else `azp`.
    pub client: Option<String>,
    /// What the token's `scope` allows.
    pub scopes: BTreeSet<String>,
}

/// The claims that API Gateway's JWT authorizer passes on: `requestContext.authorizer.jwt.claims` of an HTTP API's
/// event (payload 2.0). An adapter puts them in the request's extensions, and only from there: what a Lambda authorizer
/// returns (`authorizer.lambda`) counts for nothing.
///
/// Values come as text, lists as `[a b]`. The event's `scopes` are left out: AWS does not document whether they are the
/// token's or the route's, and the token's are in its claims.
#[derive(Clone, Debug, Default)]
pub struct GatewayClaims(pub Map<String, Value>);

/// Decides who may call; cheap to clone.
#[derive(Clone)]
pub struct Auth(Arc<Rules>);

struct Rules {
    mode: Mode,
    scope_read: Option<String>,
    scope_write: Option<String>,
}

enum Mode {
    Jwt(Tokens),
    Gateway,
    Local(LocalOnly),
}

impl Auth {
    /// Checks the settings ([`AuthArgs::check`]) and acts on them. `listen` is `None` in a Lambda. With `AUTH=none`
    /// pages of `allowed_origins` may call too, beside those on loopback.
    ///
    /// # Errors
    /// A `ConfigError`, or when the system's TLS roots cannot be loaded.
    pub fn new(
        args: &AuthArgs,
        listen: Option<SocketAddr>,
        allowed_origins: Vec<HeaderValue>,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        args.check(listen)?;
        let mode = match args.auth {
            AuthMode::Jwt => Mode::Jwt(Tokens::new(args, clock)?),
            AuthMode::Gateway => Mode::Gateway,
            AuthMode::None => Mode::Local(LocalOnly { allowed_origins }),
        };
        let [scope_read, scope_write] = [args.scope_read(), args.scope_write()].map(|scope| scope.map(str::to_owned));
        Ok(Self(Arc::new(Rules { mode, scope_read, scope_write })))
    }

    /// Fetches the issuer's keys ahead of the first request. A failure is logged: the first request tries again.
    pub async fn warm(&self) {
        if let Mode::Jwt(tokens) = &self.0.mode {
            tokens.warm().await;
        }
    }

    /// The middleware (`axum::middleware::from_fn_with_state`): lets a request through with its [`Caller`], or answers
    /// a problem. CORS preflights carry no token, so the CORS layer lies outside of it.
    pub async fn authenticate(State(auth): State<Self>, request: Request, next: Next) -> Response {
        let (mut parts, body) = request.into_parts();
        match auth.0.caller(&parts).await {
            Ok(caller) => {
                // Nothing behind this needs the token, and what is not there cannot leak.
                parts.headers.remove(AUTHORIZATION);
                parts.extensions.insert(caller);
                next.run(Request::from_parts(parts, body)).await
            }
            Err(refusal) => refusal.into_response(),
        }
    }
}

impl Rules {
    async fn caller(&self, request: &Parts) -> Result<Caller, Refusal> {
        let caller = match &self.mode {
            Mode::Jwt(tokens) => tokens.caller(&request.headers).await?,
            Mode::Gateway => {
                let claims = request.extensions.get::<GatewayClaims>().ok_or(Refusal::NoToken)?;
                claims::gateway_caller(claims)?
            }
            Mode::Local(local) => return local.caller(request),
        };
        let reads = matches!(request.method, Method::GET | Method::HEAD);
        match if reads { &self.scope_read } else { &self.scope_write } {
            Some(needed) if !caller.scopes.contains(needed) => Err(Refusal::Scope { needed: needed.clone(), caller }),
            _ => Ok(caller),
        }
    }
}
