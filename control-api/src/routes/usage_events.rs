//! Raw events: what a usage is made of, one by one.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::Data;
use super::time_range::{TimeRange, TimeRangeParams};
use super::usage::meter_api_name;
use crate::amberflo::data;
use crate::app::App;
use crate::extract::{Id, Query};
use crate::problem::{Problem, ProblemBody};

const PATH: &str = "/usage/events";
const OPERATION: &str = "usage_events";

/// The events behind a meter's usage, for a billing dispute.
///
/// `data` is Amberflo's answer: `columns` names what stands in each of the `rows`, `nextPageToken` leads to the next page,
/// and `query` is what was asked. Amberflo has no raw events of meters that it squashes into sums, nor of meters of very
/// high frequency, and answers at most 100,000 rows or 6 MB. The range is of event time.
#[utoipa::path(
    get,
    path = "/usage/{meterId}/events",
    tag = "Usage",
    operation_id = "listUsageEvents",
    params(
        Id,
        ("meterApiName" = Option<String>, Query, min_length = 1,
            description = "The meter's name. Given it, the id in the path is not looked up, and may be any text"),
        TimeRangeParams,
        ("tenantId" = Option<String>, Query, min_length = 1,
            description = "Only the events of this tenant. Default: those of all"),
        ("isAscending" = Option<bool>, Query,
            description = "Whether the oldest events come first. Default: Amberflo's, the latest first"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100_000,
            description = "How many events all pages hold together. Default: Amberflo's"),
        ("pageSize" = Option<u32>, Query, minimum = 1, maximum = 1000,
            description = "How many events a page holds. Default: Amberflo's"),
        ("nextPageToken" = Option<String>, Query, min_length = 1,
            description = "Of the page before. The other parameters must be those of that page, with both times given: \
                           they stand in its `query`"),
    ),
    responses(
        (status = 200, description = "A page of events", body = Data<serde_json::Value>, example = json!({"data": {
            "columns": ["uniqueId", "customerId", "meterApiName", "meterValue", "meterTimeInMillis"],
            "rows": [["order-17", "tenant-1", "sbt-meter", "42", "1724630400000"]],
            "nextPageToken": null,
            "query": {"meterApiName": "sbt-meter", "customerId": "tenant-1"}
        }})),
        (status = "default", description = "A problem; 404 where no meter has this id", body = ProblemBody,
            content_type = "application/problem+json"),
    )
)]
pub async fn get(State(app): State<Arc<App>>, Id(id): Id, query: Query) -> Result<Response, Problem> {
    let [start, end] = TimeRange::NAMES;
    query.only(&["meterApiName", start, end, "tenantId", "isAscending", "limit", "pageSize", "nextPageToken"])?;
    let name = query.one("meterApiName")?;
    let next_page_token = query.one("nextPageToken")?;
    let is_whole = query.one(start)?.is_some() && query.one(end)?.is_some();
    if next_page_token.is_some() && !is_whole {
        let needed = format!("nextPageToken needs {start} and {end}: those in the `query` of the page before");
        return Err(Problem::bad_request(needed));
    }
    let range = TimeRange::of_query(&query, app.clock)?;
    let is_ascending = query.parsed::<bool>("isAscending", "true or false")?;
    let limit = query.number("limit", 1..=100_000)?;
    let page_size = query.number("pageSize", 1..=1000)?;
    let tenant = query.one("tenantId")?;

    let deadline = app.amberflo.deadline();
    let name = meter_api_name(&app, &id, name, deadline).await?;
    let optional = [
        ("customerId", tenant.map(str::to_owned)),
        ("isAscending", is_ascending.map(|yes| yes.to_string())),
        ("limit", limit.map(|limit| limit.to_string())),
        ("pageSize", page_size.map(|size| size.to_string())),
        ("nextPageToken", next_page_token.map(str::to_owned)),
    ];
    let mut asked = vec![("meterApiName", name), (start, range.start().to_string()), (end, range.end().to_string())];
    asked.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    let asked: Vec<_> = asked.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let answer = deadline.share(1, app.amberflo.get(OPERATION, PATH, None, &asked)).await?;
    Ok(Data::ok(data(&answer)))
}
