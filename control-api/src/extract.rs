//! What a request carries, read strictly: what is wrong with it is a [`Problem`] that names it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use http::StatusCode;
use http::request::Parts;
use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use shared::amberflo::Segment;
use tokio::time::timeout;
use utoipa::IntoParams;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};

use crate::problem::Problem;

/// How long a body may take: a mutation is not ended by its caller, so neither may it wait for one for ever.
const BODY_TIME: Duration = Duration::from_secs(15);

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

impl IntoParams for Id {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let schema = ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1))
            .max_length(Some(256))
            // Neither `.` nor `..`, and no `/`, `\\` or control character.
            .pattern(Some(r"^(?!\.\.?$)[^/\\\x00-\x1f\x7f-\x9f]+$"));
        let parameter = ParameterBuilder::new()
            .name("meterId")
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some("Amberflo's id of the meter (a UUID), not its `meterApiName`"))
            .schema(Some(schema));
        vec![parameter.build()]
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

/// A JSON object that is passed on: its values keep their text, so that no digit is lost.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Properties(BTreeMap<String, Box<RawValue>>);

impl<'de> Deserialize<'de> for Properties {
    /// A name that is given twice says two things, and which of them counts would be chance.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Properties;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Properties, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if members.contains_key(&name) {
                        return Err(A::Error::custom(format!("{name:?} is given twice")));
                    }
                    members.insert(name, value);
                }
                Ok(Properties(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl Properties {
    /// Refuses an object in which one of these is not a non-empty string.
    ///
    /// # Errors
    /// 400 with every property that is missing or wrong.
    pub fn require_texts(&self, names: &[&str]) -> Result<(), Problem> {
        let wrong = names.iter().filter_map(|name| match self.0.get(*name) {
            None => Some(format!("{name} is missing")),
            Some(_) if self.text(name).is_none_or(|text| text.is_empty()) => {
                Some(format!("{name} is not a non-empty string"))
            }
            Some(_) => None,
        });
        let wrong: Vec<_> = wrong.collect();
        if wrong.is_empty() { Ok(()) } else { Err(Problem::bad_request(format!("the body: {}", wrong.join(", ")))) }
    }

    /// The property, if it is a string.
    pub fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.0.get(name)?.get()).ok()
    }

    /// Whether the property is there and not null.
    pub fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| value.get() != "null")
    }

    /// The property in this form.
    ///
    /// # Errors
    /// 400 where it is missing or has another form.
    pub fn object<T: DeserializeOwned>(&self, name: &str) -> Result<T, Problem> {
        let value = self.0.get(name).ok_or_else(|| Problem::bad_request(format!("the body: {name} is missing")))?;
        // serde takes an array for a struct.
        if !value.get().starts_with('{') {
            return Err(Problem::bad_request(format!("the body: {name}: allowed is a JSON object")));
        }
        serde_json::from_str(value.get()).map_err(|error| Problem::bad_request(format!("the body: {name}: {error}")))
    }

    /// Sets a property to a text.
    pub fn set(&mut self, name: &str, text: &str) {
        // A text is always a JSON string.
        self.0.insert(name.to_owned(), to_raw_value(text).unwrap_or_default());
    }

    /// The names of the properties.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// No body: one that is there says something that this endpoint would pass over.
pub struct NoBody;

impl<S: Send + Sync> FromRequest<S> for NoBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match body(request, state).await? {
            body if body.is_empty() => Ok(Self),
            _ => Err(Problem::bad_request("the body: allowed is none: everything is said in the path and the query")),
        }
    }
}

/// Reads the whole body.
///
/// # Errors
/// 413 where it is too large, 408 where it does not come.
pub async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    let read = timeout(BODY_TIME, Bytes::from_request(request, state)).await;
    let late = |_| Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"));
    read.map_or_else(late, |read| read.map_err(refusal))
}

fn refusal(rejection: BytesRejection) -> Problem {
    match rejection {
        BytesRejection::FailedToBufferBody(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 1 MiB")
        }
        error => Problem::bad_request(format!("the body: {}", error.body_text())),
    }
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
    /// Refuses names other than these, one that ends in `.` standing for all that begin so; and names without a value,
    /// such as an unset variable of a script leaves behind.
    ///
    /// # Errors
    /// 400 with the name and the allowed ones: a misspelt name must not change what is answered.
    pub fn only(&self, allowed: &[&str]) -> Result<(), Problem> {
        let is_known = |name: &str| {
            allowed.iter().any(|known| if known.ends_with('.') { name.starts_with(known) } else { name == *known })
        };
        match self.0.iter().find(|(name, _)| !is_known(name)) {
            Some((name, _)) => {
                let allowed: Vec<_> = allowed
                    .iter()
                    .map(|name| if name.ends_with('.') { format!("{name}NAME") } else { (*name).to_owned() })
                    .collect();
                let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
                Err(Problem::bad_request(format!("{name:?} is not a parameter of this endpoint; allowed: {allowed}")))
            }
            None => match self.0.iter().find(|(_, value)| value.is_empty()) {
                Some((name, _)) => Err(Problem::bad_request(format!("{name} has no value; leave it out instead"))),
                None => Ok(()),
            },
        }
    }

    /// The value of a parameter that may be given once.
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

    /// The values of a parameter that may be repeated.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(given, _)| given == name).map(|(_, value)| &**value)
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

    /// The value of a parameter that is one of these, in any case.
    ///
    /// # Errors
    /// 400 with the name, what was given and what is allowed.
    pub fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<Option<T>, Problem> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        match choices.iter().find(|(choice, _)| choice.eq_ignore_ascii_case(text)) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let allowed: Vec<_> = choices.iter().map(|(choice, _)| *choice).collect();
                let allowed = allowed.join(", ");
                Err(Problem::bad_request(format!("{name}: {text:?}; allowed is one of {allowed}")))
            }
        }
    }

    /// The value of a parameter that is a whole number in this range.
    ///
    /// # Errors
    /// 400 with the name, what was given and what is allowed.
    pub fn number(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Problem> {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        let number = self.parsed(name, &allowed)?;
        match number {
            Some(number) if !range.contains(&number) => {
                Err(Problem::bad_request(format!("{name}: {number}; allowed is {allowed}")))
            }
            number => Ok(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use futures_util::stream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_given_up() {
        let body_of = |content: Body| body(Request::new(content), &());
        let endless = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(body_of(endless).await.unwrap_err().status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(body_of(Body::from("{}")).await.unwrap(), "{}");
    }

    #[test]
    fn properties_keep_every_digit() {
        let text = r#"{"a":12345678901234567890123.10,"b":{ "c":[1e400] },"d":null}"#;
        let mut properties: Properties = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&properties).unwrap(), text);
        properties.set("d", "\"quoted\"");
        assert_eq!(properties.text("d").as_deref(), Some("\"quoted\""));
        assert_eq!(serde_json::to_string(&properties).unwrap(), text.replace("null", r#""\"quoted\"""#));
    }
}
