//! Requests and answers as an HTTP API of API Gateway hands them over, in payload format 2.0.
//!
//! The crate `lambda_http` is not used: up to 1.3.2 it panics where a path is not yet encoded, as an HTTP API hands it
//! over, and it leaves the stage in the path.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, SET_COOKIE};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use crate::auth::GatewayClaims;
use crate::problem::Problem;

/// The largest answer. Lambda takes 6 MB, all included; of what is larger its caller sees nothing but a 502.
/// Source: the quotas of Lambda.
const MAX_ANSWER_BYTES: usize = 6_000_000;
/// An HTTP API decodes the path, and function URLs do not: what can be in an encoded path is left as it is.
const NOT_IN_A_PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpEvent {
    raw_path: String,
    #[serde(default)]
    raw_query_string: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    is_base64_encoded: bool,
    request_context: RequestContext,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RequestContext {
    http: Http,
    #[serde(default)]
    stage: String,
    #[serde(default)]
    request_id: String,
    #[serde(default)]
    authorizer: Option<Authorizer>,
}

#[derive(Deserialize)]
struct Http {
    method: String,
}

#[derive(Deserialize)]
struct Authorizer {
    #[serde(default)]
    jwt: Option<Jwt>,
}

#[derive(Deserialize)]
struct Jwt {
    #[serde(default)]
    claims: Option<Map<String, Value>>,
}

impl HttpEvent {
    /// Whether an event is a request.
    #[must_use]
    pub fn is_one(event: &Value) -> bool {
        event.get("version").is_some_and(|version| version == "2.0")
            && event.get("requestContext").and_then(|context| context.get("http")).is_some()
    }

    /// The request that the event is.
    ///
    /// # Errors
    /// A problem where it is not HTTP.
    pub fn request(event: Value) -> Result<Request<Body>, Problem> {
        let malformed =
            |what: String| Problem::bad_request(format!("the request, as it came from API Gateway: {what}"));
        let event: Self = serde_json::from_value(event).map_err(|error| malformed(error.to_string()))?;
        let context = event.request_context;
        let body = match (event.body, event.is_base64_encoded) {
            (None, _) => Bytes::new(),
            (Some(text), false) => text.into(),
            (Some(text), true) => BASE64.decode(text).map_err(|error| malformed(format!("body: {error}")))?.into(),
        };
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = Method::from_bytes(context.http.method.as_bytes())
            .map_err(|error| malformed(format!("method: {error}")))?;
        let mut target = encoded(without_stage(&event.raw_path, &context.stage));
        if !event.raw_query_string.is_empty() {
            target.push('?');
            target.push_str(&event.raw_query_string.replace(' ', "+").replace('#', "%23"));
        }
        *request.uri_mut() = target.parse().map_err(|error| malformed(format!("path and query: {error}")))?;
        for (name, value) in event.headers {
            // One that was dropped could be the key that keeps events from being billed twice.
            let refused = || malformed(format!("header {name:?}"));
            let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| refused())?;
            request.headers_mut().insert(HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused())?, value);
        }
        if !request.headers().contains_key(REQUEST_ID)
            && let Ok(id) = HeaderValue::from_str(&context.request_id)
            && !id.is_empty()
        {
            request.headers_mut().insert(REQUEST_ID, id);
        }
        if let Some(claims) = context.authorizer.and_then(|authorizer| authorizer.jwt).and_then(|jwt| jwt.claims) {
            request.extensions_mut().insert(GatewayClaims(claims));
        }
        Ok(request)
    }
}

/// The path behind the stage, which comes first unless the stage is `$default`.
fn without_stage<'a>(path: &'a str, stage: &str) -> &'a str {
    match path.strip_prefix('/').and_then(|path| path.strip_prefix(stage)) {
        _ if stage.is_empty() => path,
        Some("") => "/",
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    }
}

/// A path that can be parsed: as it is where it is encoded, or else encoded.
fn encoded(path: &str) -> String {
    let is_hex = |digit: Option<&u8>| digit.is_some_and(u8::is_ascii_hexdigit);
    let mut encoded = String::with_capacity(path.len());
    for (place, piece) in path.split('%').enumerate() {
        if place > 0 {
            let bytes = piece.as_bytes();
            encoded.push_str(if is_hex(bytes.first()) && is_hex(bytes.get(1)) { "%" } else { "%25" });
        }
        encoded.extend(utf8_percent_encode(piece, NOT_IN_A_PATH));
    }
    encoded
}

/// An answer, as API Gateway takes it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    status_code: u16,
    headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cookies: Vec<String>,
    body: String,
    is_base64_encoded: bool,
}

impl Answer {
    /// The whole answer as JSON; a problem in its place where it is too large. `is_read` says whether nothing but reading
    /// was asked for.
    pub async fn of(response: Response, is_read: bool) -> Box<RawValue> {
        let json = Self::whole(response).await;
        if json.get().len() <= MAX_ANSWER_BYTES {
            return json;
        }
        let size = json.get().len();
        let hint = if is_read {
            "ask for less at a time: fewer intervals, groups or pages"
        } else {
            "what was asked for has been done all the same"
        };
        let detail = format!("the answer has {size} bytes; Lambda passes on {MAX_ANSWER_BYTES}: {hint}");
        tracing::warn!(size, "an answer is too large for Lambda");
        Self::whole(Problem::bad_gateway(detail).into_response()).await
    }

    async fn whole(response: Response) -> Box<RawValue> {
        let (mut parts, body) = response.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                tracing::error!(%error, "an answer broke off");
                parts.status = StatusCode::INTERNAL_SERVER_ERROR;
                Bytes::new()
            }
        };
        let mut answer = Self {
            status_code: parts.status.as_u16(),
            headers: BTreeMap::new(),
            cookies: Vec::new(),
            body: String::new(),
            is_base64_encoded: false,
        };
        for (name, value) in &parts.headers {
            let value = String::from_utf8_lossy(value.as_bytes());
            if name == SET_COOKIE {
                answer.cookies.push(value.into_owned());
                continue;
            }
            // Repeated ones are joined, as RFC 9110 allows.
            let joined = answer.headers.entry(name.to_string()).or_default();
            if !joined.is_empty() {
                joined.push_str(", ");
            }
            joined.push_str(&value);
        }
        match String::from_utf8(body.to_vec()) {
            Ok(text) if !parts.headers.contains_key(CONTENT_ENCODING) => answer.body = text,
            _ => (answer.body, answer.is_base64_encoded) = (BASE64.encode(body), true),
        }
        to_raw_value(&answer).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stage_is_no_part_of_the_path() {
        for (path, stage, expected) in [
            ("/meters", "$default", "/meters"),
            ("/prod/meters/1", "prod", "/meters/1"),
            ("/prod", "prod", "/"),
            ("/prod/", "prod", "/"),
            ("/production/meters", "prod", "/production/meters"),
            ("/meters", "prod", "/meters"),
            ("//meters", "", "//meters"),
        ] {
            assert_eq!(without_stage(path, stage), expected);
        }
    }

    #[test]
    fn a_path_can_be_parsed_whether_it_came_decoded_or_not() {
        for (path, expected) in [
            ("/meters/a-b_c.d~e:@!$&'()*+,;=", "/meters/a-b_c.d~e:@!$&'()*+,;="),
            ("/meters/a%20b%2Fc", "/meters/a%20b%2Fc"),
            ("/meters/a b", "/meters/a%20b"),
            ("/meters/ä?x=1#f", "/meters/%C3%A4%3Fx=1%23f"),
            ("/meters/100%", "/meters/100%25"),
            ("/meters/%zz%4", "/meters/%25zz%254"),
            ("/{}|\\^`\"<>[]\u{7f}", "/%7B%7D%7C%5C%5E%60%22%3C%3E%5B%5D%7F"),
        ] {
            assert_eq!(encoded(path), expected);
            expected.parse::<http::Uri>().unwrap();
        }
    }
}
