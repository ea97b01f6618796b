//! What a token's claims say, once somebody has checked its signature.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Caller, GatewayClaims, Refusal};

/// Most bytes of a subject or client. OpenID Connect's subjects have at most 255.
const MAX_NAME_BYTES: usize = 256;
/// How far the issuer's clock and ours may be apart, in seconds.
const LEEWAY: f64 = 60.0;

/// What a token must say to be meant for us.
pub(super) struct Expected {
    pub(super) issuer: String,
    pub(super) audiences: Vec<String>,
}

/// Checks a token's claims at `now`, in seconds since the Unix epoch.
pub(super) fn token_caller(claims: &Map<String, Value>, expected: &Expected, now: f64) -> Result<Caller, Refusal> {
    match text(claims, "iss")? {
        Some(issuer) if issuer == expected.issuer => {}
        Some(_) => return Err(Refusal::token("iss: not the issuer of this API's tokens")),
        None => return Err(Refusal::token("iss: missing")),
    }
    match time(claims, "exp")? {
        Some(expiry) if now < expiry + LEEWAY => {}
        Some(_) => return Err(Refusal::token("exp: the token has expired")),
        None => return Err(Refusal::token("exp: missing")),
    }
    if time(claims, "nbf")?.is_some_and(|start| now < start - LEEWAY) {
        return Err(Refusal::token("nbf: the token is not valid yet"));
    }
    check_audience(claims, expected)?;
    caller(claims)
}

/// Takes the claims that API Gateway has checked.
pub(super) fn gateway_caller(GatewayClaims(claims): &GatewayClaims) -> Result<Caller, Refusal> {
    let mut claims = claims.clone();
    if let Some(Value::String(scope)) = claims.get_mut("scope")
        && let Some(list) = scope.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'))
    {
        *scope = list.to_owned();
    }
    caller(&claims)
}

fn check_audience(claims: &Map<String, Value>, expected: &Expected) -> Result<(), Refusal> {
    let ours = |name: &str| expected.audiences.iter().any(|audience| audience == name);
    let meant = match claims.get("aud") {
        Some(Value::String(audience)) => ours(audience),
        Some(Value::Array(audiences)) => audiences.iter().filter_map(Value::as_str).any(ours),
        Some(_) => return Err(Refusal::token("aud: neither text nor a list")),
        // Cognito's access tokens have no audience; its other tokens do.
        None if text(claims, "token_use")? == Some("access") => {
            let meant = text(claims, "client_id")?.is_some_and(ours);
            return if meant { Ok(()) } else { Err(Refusal::token("client_id: not a client of this API")) };
        }
        None => return Err(Refusal::token("aud: missing, and token_use is not access")),
    };
    if meant { Ok(()) } else { Err(Refusal::token("aud: the token is not meant for this API")) }
}

fn caller(claims: &Map<String, Value>) -> Result<Caller, Refusal> {
    let client_id = name(claims, "client_id")?;
    let subject = match name(claims, "sub")? {
        Some(subject) => subject,
        None => client_id.ok_or_else(|| Refusal::token("sub: missing, and so is client_id"))?,
    };
    let client = match client_id {
        Some(client) => Some(client),
        None => name(claims, "azp")?,
    };
    let scopes: BTreeSet<String> =
        text(claims, "scope")?.unwrap_or_default().split(' ').filter(|s| !s.is_empty()).map(str::to_owned).collect();
    Ok(Caller { subject: subject.to_owned(), client: client.map(str::to_owned), scopes })
}

/// A text that goes into logs and into keys of limits. One that is cut could be another caller's.
fn name<'a>(claims: &'a Map<String, Value>, claim: &'static str) -> Result<Option<&'a str>, Refusal> {
    match text(claims, claim)? {
        Some("") => Err(Refusal::token(format!("{claim}: empty"))),
        Some(name) if name.len() > MAX_NAME_BYTES => {
            Err(Refusal::token(format!("{claim}: longer than {MAX_NAME_BYTES} bytes")))
        }
        Some(name) if name.contains(char::is_control) => {
            Err(Refusal::token(format!("{claim}: holds control characters")))
        }
        other => Ok(other),
    }
}

fn text<'a>(claims: &'a Map<String, Value>, claim: &'static str) -> Result<Option<&'a str>, Refusal> {
    match claims.get(claim) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Refusal::token(format!("{claim}: not text"))),
    }
}

/// Seconds since the Unix epoch, perhaps with a fraction.
fn time(claims: &Map<String, Value>, claim: &'static str) -> Result<Option<f64>, Refusal> {
    match claims.get(claim) {
        None => Ok(None),
        Some(Value::Number(time)) => Ok(time.as_f64()),
        Some(_) => Err(Refusal::token(format!("{claim}: not a number"))),
    }
}
