//! `GET /usage/events`: the billed events themselves, page by page.

use std::collections::BTreeSet;
use std::hash::{Hash as _, Hasher as _};
use std::num::NonZeroUsize;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use crate::Sandbox;
use crate::attempt::Answer;
use crate::billed::{Event, events};
use crate::operation::{Operation, answer};

const PAGE_SIZE_DEFAULT: usize = 100;
const PAGE_SIZE_MAX: usize = 1_000;

/// The columns every row has; a column for each dimension follows.
const COLUMNS: [&str; 5] = ["uniqueId", "customerId", "meterApiName", "meterValue", "meterTimeInMillis"];

pub(crate) fn routes() -> Router<Sandbox> {
    Router::new().route("/usage/events", get(usage_events))
}

async fn usage_events(State(sandbox): State<Sandbox>, request: Request) -> Response {
    answer(&sandbox, Operation::UsageEvents, request, |state, call| {
        let query: Query = call.query()?;
        if query.customer_id.is_none() && !state.facts.shows_events_of_all_customers {
            return Err(Answer::bad_request("customerId is missing"));
        }
        call.needs_records()?;
        let page_size = query.page_size()?;
        let from = match &query.next_page_token {
            None => Token { seen: state.ledger.records().len() as u64, offset: 0 },
            Some(text) => Token::read(text, &query).ok_or_else(|| Answer::bad_request("Invalid nextPageToken"))?,
        };
        let mut found: Vec<_> = events(call.sandbox, state)
            .filter(|event| event.record.index < from.seen && query.selects(event))
            .collect();
        found.sort_by_key(|event| event.record.time_millis);
        if !query.is_ascending.unwrap_or(false) {
            found.reverse();
        }
        found.truncate(query.limit.map_or(usize::MAX, NonZeroUsize::get));
        let mut page = Page::of(&found, query, page_size, from);
        for column in &mut page.columns {
            if let Some(name) = state.facts.renamed_event_columns.get(column) {
                column.clone_from(name);
            }
        }
        if !state.facts.pages_events {
            page.next_page_token = None;
        }
        Ok(Answer::json(&page))
    })
    .await
}

/// Stricter than Amberflo may be: an unknown parameter is refused.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Query {
    customer_id: Option<String>,
    meter_api_name: Option<String>,
    start_time_in_seconds: Option<i64>,
    /// Not part of the range.
    end_time_in_seconds: Option<i64>,
    /// By the time of the event; the latest come first by default.
    is_ascending: Option<bool>,
    /// Of all pages together.
    limit: Option<NonZeroUsize>,
    page_size: Option<NonZeroUsize>,
    next_page_token: Option<String>,
    /// Of unknown form: taken and not looked at.
    dimensions: Option<String>,
}

impl Query {
    fn page_size(&self) -> Result<usize, Answer> {
        let size = self.page_size.map_or(PAGE_SIZE_DEFAULT, NonZeroUsize::get);
        if size > PAGE_SIZE_MAX {
            return Err(Answer::bad_request(format!("pageSize is {size}, at most {PAGE_SIZE_MAX}")));
        }
        Ok(size)
    }

    fn selects(&self, event: &Event<'_>) -> bool {
        let second = event.record.time_millis.div_euclid(1000);
        self.customer_id.as_ref().is_none_or(|id| event.record.customer_id == *id)
            && self.meter_api_name.as_ref().is_none_or(|name| event.meter_api_name == *name)
            && self.start_time_in_seconds.is_none_or(|start| start <= second)
            && self.end_time_in_seconds.is_none_or(|end| second < end)
    }

    /// Of all that decides which events follow each other.
    fn fingerprint(&self) -> u64 {
        let mut hasher = SipHasher13::new();
        (&self.customer_id, &self.meter_api_name, self.start_time_in_seconds, self.end_time_in_seconds)
            .hash(&mut hasher);
        (self.is_ascending.unwrap_or(false), self.limit, &self.dimensions).hash(&mut hasher);
        hasher.finish()
    }
}

/// Where the next page starts, among the records that were there when the first was asked for: later ones would shift
/// the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    seen: u64,
    offset: usize,
}

impl Token {
    /// Only good for the same query.
    fn write(self, query: &Query) -> String {
        format!("{:016x}{:x}-{:x}", query.fingerprint(), self.seen, self.offset)
    }

    fn read(text: &str, query: &Query) -> Option<Self> {
        let (seen, offset) = text.strip_prefix(&format!("{:016x}", query.fingerprint()))?.split_once('-')?;
        let token = Self { seen: u64::from_str_radix(seen, 16).ok()?, offset: usize::from_str_radix(offset, 16).ok()? };
        (token.write(query) == text).then_some(token)
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    columns: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
    next_page_token: Option<String>,
    query: Query,
}

impl Page {
    fn of(found: &[Event<'_>], query: Query, page_size: usize, from: Token) -> Self {
        // Of all pages, so that the columns stay where they are.
        let dimensions: BTreeSet<&str> =
            found.iter().flat_map(|event| event.record.dimensions.keys()).map(String::as_str).collect();
        let columns = COLUMNS.into_iter().chain(dimensions.iter().copied()).map(str::to_owned).collect();
        let end = from.offset.saturating_add(page_size);
        let rows = found.iter().skip(from.offset).take(page_size).map(|event| row(event, &dimensions)).collect();
        let next_page_token = (end < found.len()).then(|| Token { offset: end, ..from }.write(&query));
        Self { columns, rows, next_page_token, query }
    }
}

fn row(event: &Event<'_>, dimensions: &BTreeSet<&str>) -> Vec<Option<String>> {
    let record = event.record;
    let fixed = [
        record.unique_id.clone(),
        Some(record.customer_id.clone()),
        Some(event.meter_api_name.to_string()),
        Some(event.value.to_string()),
        Some(record.time_millis.to_string()),
    ];
    fixed.into_iter().chain(dimensions.iter().map(|name| record.dimensions.get(*name).cloned())).collect()
}
