//! Why a request is not let through, and the answer that says so (RFC 6750, section 3).

use std::time::Duration;

use axum::Extension;
use axum::response::{IntoResponse, Response};
use http::header::WWW_AUTHENTICATE;
use http::{HeaderValue, StatusCode};

use super::Caller;
use crate::problem::Problem;

const CHALLENGE: &str = "Bearer realm=\"control-api\"";

/// Its texts name claims and headers and never quote them, and are free of quotes and backslashes.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Nothing says who calls.
    NoToken,
    /// The Authorization header cannot be read.
    Request(&'static str),
    /// The token does not count, and why.
    Token(String),
    /// The token does not allow this; needed is this scope.
    Scope { needed: String, caller: Caller },
    /// No keys to check tokens with; try again after this.
    NoKeys(Duration),
    /// The request may come from a web page.
    Page(StatusCode, &'static str),
}

impl Refusal {
    pub(super) fn token(why: impl Into<String>) -> Self {
        Self::Token(why.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let challenged = |status, detail: String, parameters: &str| {
            let challenge = HeaderValue::try_from(format!("{CHALLENGE}{parameters}"));
            let challenge = challenge.unwrap_or(HeaderValue::from_static(CHALLENGE));
            Problem::new(status, detail).with_header(WWW_AUTHENTICATE, challenge)
        };
        let problem = match self {
            Self::NoToken => {
                challenged(StatusCode::UNAUTHORIZED, "a bearer token is needed: Authorization: Bearer TOKEN".into(), "")
            }
            Self::Request(why) => {
                let parameters = format!(", error=\"invalid_request\", error_description=\"{why}\"");
                challenged(StatusCode::BAD_REQUEST, why.to_owned(), &parameters)
            }
            Self::Token(why) => {
                let parameters = format!(", error=\"invalid_token\", error_description=\"{why}\"");
                challenged(StatusCode::UNAUTHORIZED, why, &parameters)
            }
            Self::Scope { needed, caller } => {
                let parameters = format!(", error=\"insufficient_scope\", scope=\"{needed}\"");
                let problem =
                    challenged(StatusCode::FORBIDDEN, format!("scope: the token lacks {needed}"), &parameters);
                // The audit line of what was tried names who tried it.
                return (Extension(caller), problem).into_response();
            }
            Self::NoKeys(wait) => {
                let detail = "the issuer's keys could not be fetched, so no token can be checked; try again later";
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
                    .with_retry_after(Some(wait.max(Duration::from_secs(1))))
            }
            Self::Page(status, why) => Problem::new(status, why),
        };
        problem.into_response()
    }
}
