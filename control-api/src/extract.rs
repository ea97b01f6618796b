//! What a request carries, read strictly: what is wrong with it is a [`Problem`] that names it.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use http::StatusCode;
use http::request::Parts;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use shared::amberflo::Segment;

use crate::problem::Problem;

/// The id at the end of a path.
pub struct Id(pub Segment);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(id) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| Problem::bad_request(format!("the id in the path: {}", error.body_text())))?;
        Segment::new(id).map(Self).map_err(|error| Problem::bad_request(format!("the id in the path: {error}")))
    }
}

/// A body that is a JSON object.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let body = body(request, state).await?;
        // serde takes an array for a struct, and an empty one for a struct of optional members.
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(Problem::bad_request("the body: allowed is a JSON object"));
        }
        serde_json::from_slice(&body).map(Self).map_err(|error| Problem::bad_request(format!("the body: {error}")))
    }
}

/// A JSON object that is passed on, with the properties that it must have.
pub type Object = Map<String, Value>;

/// Reads the whole body.
///
/// # Errors
/// 413 where it is too large.
pub async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state).await.map_err(|rejection| match rejection {
        BytesRejection::FailedToBufferBody(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 1 MiB")
        }
        error => Problem::bad_request(format!("the body: {}", error.body_text())),
    })
}

/// The query: names and values, decoded, in order.
pub struct Query(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        Ok(Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect()))
    }
}

impl Query {
    /// Refuses names other than these; one that ends in `.` stands for all that begin so.
    ///
    /// # Errors
    /// 400 with the name and the allowed ones: a misspelt name must not change what is answered.
    pub fn only(&self, allowed: &[&str]) -> Result<(), Problem> {
        let is_known = |name: &str| {
            allowed.iter().any(|known| if known.ends_with('.') { name.starts_with(known) } else { name == *known })
        };
        match self.0.iter().find(|(name, _)| !is_known(name)) {
            Some((name, _)) => {
                let allowed = allowed.join(", ");
                Err(Problem::bad_request(format!("{name:?} is not a parameter of this endpoint; allowed: {allowed}")))
            }
            None => Ok(()),
        }
    }

    /// The value of a parameter that may be given once. An empty one counts as not given.
    ///
    /// # Errors
    /// 400 where it is given twice.
    pub fn one<'a>(&'a self, name: &'a str) -> Result<Option<&'a str>, Problem> {
        let mut values = self.all(name);
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(Problem::bad_request(format!("{name} is given twice; allowed is once"))),
            (value, None) => Ok(value),
        }
    }

    /// The values of a parameter that may be repeated, without empty ones.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(given, value)| given == name && !value.is_empty()).map(|(_, value)| &**value)
    }

    /// Parameters whose names begin with `prefix`, without it.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, &**value)))
    }

    /// The value of a parameter, parsed.
    ///
    /// # Errors
    /// 400 with the name, what was given and what is allowed.
    pub fn parsed<T: std::str::FromStr>(&self, name: &str, allowed: &str) -> Result<Option<T>, Problem> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let parsed =
            text.parse().map_err(|_| Problem::bad_request(format!("{name}: {text:?}; allowed is {allowed}")))?;
        Ok(Some(parsed))
    }
}
