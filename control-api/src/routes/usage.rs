//! Usage: how much of a meter was used, by the time at which it was used.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::Method;
use serde::Serialize;
use shared::amberflo::Segment;
use utoipa::ToSchema;

use super::time_range::{TimeRange, TimeRangeParams};
use super::{Data, meters};
use crate::amberflo::{Deadline, Effect, data};
use crate::app::App;
use crate::extract::{Id, Query};
use crate::problem::{Problem, ProblemBody};

const PATH: &str = "/usage";
const OPERATION: &str = "usage";
pub(super) const CUSTOMER: &str = "customerId";
const TENANT: &str = "tenantId";
const DIMENSION: &str = "dimension.";

/// The length of the intervals into which usage is grouped; they begin at UTC's hours, days, weeks and months.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Interval {
    Hour,
    Day,
    Week,
    Month,
}

const INTERVALS: [(&str, Interval); 4] =
    [("HOUR", Interval::Hour), ("DAY", Interval::Day), ("WEEK", Interval::Week), ("MONTH", Interval::Month)];

/// What is made of the values of the events of an interval.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Aggregation {
    Sum,
    Count,
    Min,
    Max,
}

const AGGREGATIONS: [(&str, Aggregation); 4] =
    [("SUM", Aggregation::Sum), ("COUNT", Aggregation::Count), ("MIN", Aggregation::Min), ("MAX", Aggregation::Max)];

/// A text of at least one character.
#[derive(ToSchema)]
#[schema(min_length = 1)]
#[expect(dead_code, reason = "describes what Query::only lets through")]
struct NonEmpty(String);

/// A query as Amberflo takes it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UsageQuery<'a> {
    pub meter_api_name: &'a str,
    pub time_grouping_interval: Interval,
    pub time_range: TimeRange,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<Aggregation>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub group_by: Vec<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub filter: BTreeMap<&'a str, Vec<&'a str>>,
}

/// The usage of a meter, by event time.
///
/// `data` is Amberflo's answer: `secondsSinceEpochIntervals` are the starts of the intervals, and `clientMeters` holds
/// for each group its `groupValue` over the whole range and its `values` by interval. An event counts in the interval of
/// its own time (`meterTimeInMillis`), whenever it was ingested, and may take some minutes to show up. Amberflo answers at
/// most 100,000 rows (groups times intervals).
#[utoipa::path(
    get,
    path = "/usage/{meterId}",
    tag = "Usage",
    operation_id = "getUsage",
    params(
        Id,
        ("meterApiName" = Option<String>, Query, min_length = 1,
            description = "The meter's name. Given it, the id in the path is not looked up, and may be any text"),
        TimeRangeParams,
        ("timeGroupingInterval" = inline(Option<Interval>), Query,
            description = "The length of the intervals, which begin in UTC. Default: `DAY`"),
        ("aggregation" = inline(Option<Aggregation>), Query,
            description = "What is made of the events of an interval. Default: the meter's own"),
        ("groupBy" = inline(Option<Vec<NonEmpty>>), Query, explode,
            description = "A dimension by whose values to group, or `tenantId`, which Amberflo answers as `customerId`. May be repeated"),
        ("tenantId" = Option<String>, Query, min_length = 1, description = "Only the usage of this tenant"),
        ("dimension.NAME" = inline(Option<Vec<NonEmpty>>), Query, explode,
            description = "Only usage with this value of the dimension NAME, as in `dimension.region=eu`. Repeated with \
                           one name, any of the values; with several names, all of them"),
    ),
    responses(
        (status = 200, description = "The usage", body = Data<serde_json::Value>, example = json!({"data": {
            "secondsSinceEpochIntervals": [1_724_630_400],
            "clientMeters": [{
                "group": {"groupInfo": {"customerId": "tenant-1"}}, "groupValue": 42.0,
                "values": [{"value": 42.0, "percentageFromPrevious": 0.0, "secondsSinceEpochUtc": 1_724_630_400}]
            }]
        }})),
        (status = "default", description = "A problem; 404 where no meter has this id", body = ProblemBody,
            content_type = "application/problem+json"),
    )
)]
pub async fn get(State(app): State<Arc<App>>, Id(id): Id, query: Query) -> Result<Response, Problem> {
    let [start, end] = TimeRange::NAMES;
    let own = ["meterApiName", start, end, "timeGroupingInterval", "aggregation", "groupBy", TENANT, DIMENSION];
    query.only(&own)?;
    let name = query.one("meterApiName")?;
    let time_range = TimeRange::of_query(&query, app.clock)?;
    let interval = query.choice("timeGroupingInterval", &INTERVALS)?.unwrap_or(Interval::Day);
    let aggregation = query.choice("aggregation", &AGGREGATIONS)?;
    let filter = filter(&query)?;

    let deadline = app.amberflo.deadline();
    let name = meter_api_name(&app, &id, name, deadline).await?;
    let usage = UsageQuery {
        meter_api_name: &name,
        time_grouping_interval: interval,
        time_range,
        aggregation,
        group_by: query.all("groupBy").map(|name| if name == TENANT { CUSTOMER } else { name }).collect(),
        filter,
    };
    let answer = deadline.share(1, ask(&app, &usage)).await?;
    Ok(Data::ok(data(&answer)))
}

/// Asks Amberflo. Only reads, although it is a POST.
pub(super) async fn ask(app: &App, query: &UsageQuery<'_>) -> Result<Bytes, Problem> {
    app.amberflo.send(OPERATION, (Effect::Reads, Method::POST), PATH, query).await
}

/// The name that the caller gave, or that of the meter with this id. One call after this one is left.
pub(super) async fn meter_api_name(
    app: &App,
    id: &Segment,
    given: Option<&str>,
    deadline: Deadline,
) -> Result<String, Problem> {
    match given {
        Some(name) => Ok(name.to_owned()),
        None => deadline.share(2, meters::api_name(app, id)).await,
    }
}

fn filter(query: &Query) -> Result<BTreeMap<&str, Vec<&str>>, Problem> {
    let mut filter = BTreeMap::<&str, Vec<&str>>::new();
    for (name, value) in query.with_prefix(DIMENSION) {
        match name {
            "" => return Err(Problem::bad_request(format!("{DIMENSION}: the name of a dimension must follow"))),
            CUSTOMER => return Err(Problem::bad_request(format!("{DIMENSION}{CUSTOMER}: give tenantId instead"))),
            name => filter.entry(name).or_default().push(value),
        }
    }
    if let Some(tenant) = query.one(TENANT)? {
        filter.insert(CUSTOMER, vec![tenant]);
    }
    Ok(filter)
}
