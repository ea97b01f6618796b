//! The list of meters, whole or in pages.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::meters::{OPERATION, PATH};
use crate::amberflo::data;
use crate::app::App;
use crate::extract::Query;
use crate::problem::{Problem, ProblemBody};

const NAME: &str = "meterApiName";
const TOKEN_VERSION: u32 = 1;

/// Some of the meters, or all.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct MeterPage {
    /// The meters, as Amberflo answers them.
    #[schema(value_type = Vec<serde_json::Value>)]
    data: Box<RawValue>,
    /// Given to the next request, it answers the page after this one. Absent after the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
    /// The same, as SBT's own lists name it.
    #[serde(rename = "next_token", skip_serializing_if = "Option::is_none")]
    sbt_next_token: Option<String>,
}

/// All meters, or one page of them.
///
/// Without `limit` and `nextToken`: all, in Amberflo's order. With either: in the order of `meterApiName` and id. A meter
/// that is created or deleted between two pages neither repeats nor hides others.
#[utoipa::path(
    get,
    path = "/meters",
    tag = "Meters",
    operation_id = "listMeters",
    params(
        ("meterApiName" = Option<String>, Query, min_length = 1, description = "Only the meter with this name"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000,
            description = "How many meters to answer at most. Default: all"),
        ("nextToken" = Option<String>, Query, min_length = 1,
            description = "Of the page before, which was asked for with the same `meterApiName`"),
        ("next_token" = Option<String>, Query, min_length = 1,
            description = "The same as `nextToken`, as SBT's own lists name it; only one of them may be given"),
    ),
    responses(
        (status = 200, description = "The meters", body = MeterPage),
        (status = "default", description = "A problem", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(State(app): State<Arc<App>>, query: Query) -> Result<Response, Problem> {
    query.only(&[NAME, "limit", "nextToken", "next_token"])?;
    let name = query.one(NAME)?;
    let limit = query.number("limit", 1..=1000)?;
    let after = match (query.one("nextToken")?, query.one("next_token")?) {
        (Some(_), Some(_)) => return Err(Problem::bad_request("nextToken and next_token are given; allowed is one")),
        (Some(token), None) | (None, Some(token)) => Some(Token::read(token, name)?),
        (None, None) => None,
    };
    let meters = match name {
        Some(name) => named(&app, name).await?,
        None => data(&app.amberflo.get(OPERATION, PATH, None, &[]).await?),
    };
    if limit.is_none() && after.is_none() {
        return Ok(Json(MeterPage { data: meters, next_token: None, sbt_next_token: None }).into_response());
    }
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    page(&meters, limit, after, name).map(|page| Json(page).into_response())
}

/// The meters with this name: one, or none.
pub(super) async fn named(app: &App, name: &str) -> Result<Box<RawValue>, Problem> {
    Ok(data(&app.amberflo.get(OPERATION, PATH, None, &[(NAME, name)]).await?))
}

/// What the meters are sorted by. No two have the same id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    meter_api_name: String,
    id: String,
}

fn page(meters: &RawValue, limit: usize, after: Option<Key>, filter: Option<&str>) -> Result<MeterPage, Problem> {
    let not_a_list =
        |error| Problem::bad_gateway(format!("Amberflo answered something that is not a list of meters: {error}"));
    let meters: Vec<&RawValue> = serde_json::from_str(meters.get()).map_err(not_a_list)?;
    let keyed = meters.into_iter().map(|meter| Ok((serde_json::from_str::<Key>(meter.get())?, meter)));
    let mut keyed: Vec<_> = keyed.collect::<Result<_, serde_json::Error>>().map_err(not_a_list)?;
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    let start = after.map_or(0, |after| keyed.partition_point(|(key, _)| *key <= after));
    let rest = &keyed[start..];
    let on_page = &rest[..limit.min(rest.len())];
    let next_token = match on_page.last() {
        Some((last, _)) if on_page.len() < rest.len() => Some(Token::write(last, filter)),
        _ => None,
    };
    let meters: Vec<_> = on_page.iter().map(|(_, meter)| meter).collect();
    let data = serde_json::value::to_raw_value(&meters).map_err(not_a_list)?;
    Ok(MeterPage { data, next_token: next_token.clone(), sbt_next_token: next_token })
}

/// Where the next page starts, and in which list.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    version: u32,
    after: Key,
    filter: Option<String>,
}

impl Token {
    fn write(after: &Key, filter: Option<&str>) -> String {
        let token = Self { version: TOKEN_VERSION, after: after.clone(), filter: filter.map(str::to_owned) };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    fn read(text: &str, filter: Option<&str>) -> Result<Key, Problem> {
        let bytes = URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(token) if token.version == TOKEN_VERSION && token.filter.as_deref() == filter => Ok(token.after),
            Ok(token) if token.version == TOKEN_VERSION => Err(Problem::bad_request(format!(
                "nextToken belongs to a list with another {NAME}: repeat the parameters of the page before"
            ))),
            _ => Err(Problem::bad_request("nextToken is none that this API gave; leave it out for the first page")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, id: &str) -> Key {
        Key { meter_api_name: name.to_owned(), id: id.to_owned() }
    }

    #[test]
    fn a_token_of_another_version_is_refused() {
        let token = Token { version: TOKEN_VERSION + 1, after: key("a", "1"), filter: None };
        let text = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap());
        assert!(Token::read(&text, None).is_err());
        assert_eq!(Token::read(&Token::write(&key("a", "1"), None), None).unwrap(), key("a", "1"));
    }

    #[test]
    fn a_page_keeps_the_text_of_a_meter() {
        let text = r#"[{"id":"2","meterApiName":"b","n":12345678901234567890123.10},
            { "meterApiName":"b","x":1e400,"id":"1" },{"id":"3","meterApiName":"a"}]"#;
        let meters = RawValue::from_string(text.to_owned()).unwrap();
        let first = page(&meters, 2, None, None).unwrap();
        assert_eq!(first.data.get(), r#"[{"id":"3","meterApiName":"a"},{ "meterApiName":"b","x":1e400,"id":"1" }]"#);
        let after = Token::read(&first.next_token.unwrap(), None).unwrap();
        let second = page(&meters, 2, Some(after), None).unwrap();
        assert_eq!(second.data.get(), r#"[{"id":"2","meterApiName":"b","n":12345678901234567890123.10}]"#);
        assert_eq!(second.next_token, None);
    }

    #[test]
    fn what_is_no_list_of_meters_is_not_paged() {
        for text in ["{}", r#""text""#, r#"[{"id":"1"}]"#, r#"[{"meterApiName":"a"}]"#, "[1]"] {
            let answered = RawValue::from_string(text.to_owned()).unwrap();
            assert!(page(&answered, 1, None, None).is_err(), "{text}");
        }
    }
}
