//! `POST /usage`: sums of billed events by the time they happened.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Sandbox;
use crate::attempt::Answer;
use crate::billed::{Event, events};
use crate::operation::{Operation, answer};
use crate::report::Total;
use crate::time_grouping::TimeGrouping;

/// Amberflo's limit on a query: groups times intervals.
const ROWS_MAX: usize = 100_000;

pub(crate) fn routes() -> Router<Sandbox> {
    Router::new().route("/usage", post(usage))
}

async fn usage(State(sandbox): State<Sandbox>, request: Request) -> Response {
    answer(&sandbox, Operation::Usage, request, |state, call| {
        let asked = call.object()?;
        let query: Query = call.json()?;
        call.needs_records()?;
        let window = Window::of(&query, call.now_millis() / 1000)?;
        let mut report = Report::of(&query, &window, events(call.sandbox, state))?;
        let metadata = [
            ("account", Value::Null),
            ("aggregation", asked.get("aggregation").cloned().unwrap_or_else(|| "SUM".into())),
            ("timeRange", json!({"startTimeInSeconds": window.start, "endTimeInSeconds": window.end})),
        ];
        report.metadata = asked;
        report.metadata.extend(metadata.map(|(name, value)| (name.to_owned(), value)));
        Ok(Answer::json(&report))
    })
    .await
}

/// Stricter than Amberflo may be: an unknown property, or a number written as a string, is refused.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Query {
    meter_api_name: String,
    time_grouping_interval: TimeGrouping,
    time_range: TimeRange,
    #[serde(default)]
    aggregation: Aggregation,
    #[serde(default)]
    group_by: Option<Vec<String>>,
    #[serde(default)]
    filter: Option<BTreeMap<String, Vec<String>>>,
    #[serde(default)]
    take: Option<Take>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TimeRange {
    start_time_in_seconds: i64,
    #[serde(default)]
    end_time_in_seconds: Option<i64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum Aggregation {
    #[default]
    #[serde(rename = "SUM", alias = "sum", alias = "Sum")]
    Sum,
    #[serde(rename = "COUNT", alias = "count", alias = "Count")]
    Count,
    #[serde(rename = "MIN", alias = "min", alias = "Min")]
    Min,
    #[serde(rename = "MAX", alias = "max", alias = "Max")]
    Max,
}

/// The groups of greatest value, or of least.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Take {
    limit: NonZeroUsize,
    #[serde(default)]
    is_ascending: Option<bool>,
}

/// The seconds asked for, the end not part of them, and the starts of the intervals that hold them.
#[derive(Debug)]
struct Window {
    start: i64,
    end: i64,
    intervals: Vec<i64>,
}

impl Window {
    fn of(query: &Query, now: i64) -> Result<Self, Answer> {
        let start = query.time_range.start_time_in_seconds;
        let end = query.time_range.end_time_in_seconds.unwrap_or(now);
        if [start, end].into_iter().any(|second| Timestamp::from_second(second).is_err()) || start >= end {
            return Err(Answer::bad_request("invalid timeRange: it must start before it ends, both in seconds"));
        }
        let grouping = query.time_grouping_interval;
        let starts = std::iter::successors(Some(grouping.start_of(start)), |&start| Some(grouping.after(start)));
        let intervals: Vec<_> = starts.take_while(|&start| start < end).take(ROWS_MAX + 1).collect();
        if intervals.len() > ROWS_MAX {
            return Err(too_many_rows());
        }
        Ok(Self { start, end, intervals })
    }

    /// The interval of a time, if it is asked for at all.
    fn interval(&self, millis: i64) -> Option<usize> {
        let second = millis.div_euclid(1000);
        let asked = (self.start..self.end).contains(&second);
        asked.then(|| self.intervals.partition_point(|&start| start <= second) - 1)
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    metadata: serde_json::Map<String, Value>,
    seconds_since_epoch_intervals: Vec<i64>,
    client_meters: Vec<ClientMeter>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ClientMeter {
    group: Group,
    group_value: f64,
    values: Vec<IntervalValue>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    group_info: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct IntervalValue {
    percentage_from_previous: f64,
    value: f64,
    seconds_since_epoch_utc: i64,
}

/// One group's events: in each interval, and in all.
#[derive(Debug, Default)]
struct Tally {
    whole: Aggregate,
    by_interval: BTreeMap<usize, Aggregate>,
}

impl Report {
    /// Groups are in the order of their names unless `take` orders them by value. A group without events in an interval
    /// has 0 there; without any event there is no group.
    fn of<'a>(query: &Query, window: &Window, events: impl Iterator<Item = Event<'a>>) -> Result<Self, Answer> {
        let group_by = query.group_by.as_deref().unwrap_or_default();
        let mut tallies = BTreeMap::<Vec<&str>, Tally>::new();
        for event in events.filter(|event| query.selects(event)) {
            let Some(interval) = window.interval(event.record.time_millis) else { continue };
            // An event without the dimension still counts, under the empty name.
            let group = group_by.iter().map(|name| event.attribute(name).unwrap_or_default()).collect();
            let tally = tallies.entry(group).or_default();
            tally.whole.add(&event.value);
            tally.by_interval.entry(interval).or_default().add(&event.value);
        }
        if tallies.len().saturating_mul(window.intervals.len()) > ROWS_MAX {
            return Err(too_many_rows());
        }
        let named = tallies.into_iter().map(|(group, tally)| ClientMeter {
            group: Group { group_info: group_by.iter().cloned().zip(group.into_iter().map(str::to_owned)).collect() },
            group_value: tally.whole.value(query.aggregation),
            values: values(&tally, window, query.aggregation),
        });
        let mut client_meters: Vec<_> = named.collect();
        if let Some(Take { limit, is_ascending }) = &query.take {
            client_meters.sort_by(|a, b| a.group_value.total_cmp(&b.group_value));
            if !is_ascending.unwrap_or(false) {
                client_meters.reverse();
            }
            client_meters.truncate(limit.get());
        }
        Ok(Self {
            metadata: serde_json::Map::new(),
            seconds_since_epoch_intervals: window.intervals.clone(),
            client_meters,
        })
    }
}

impl Query {
    fn selects(&self, event: &Event<'_>) -> bool {
        let mut filters = self.filter.iter().flatten();
        event.meter_api_name == self.meter_api_name
            && filters.all(|(name, allowed)| {
                event.attribute(name).is_some_and(|value| allowed.iter().any(|allowed| allowed == value))
            })
    }
}

fn values(tally: &Tally, window: &Window, aggregation: Aggregation) -> Vec<IntervalValue> {
    let mut previous = 0.0;
    let intervals = window.intervals.iter().enumerate();
    let with_value = intervals.map(|(at, &seconds_since_epoch_utc)| {
        let value = tally.by_interval.get(&at).map_or(0.0, |aggregate| aggregate.value(aggregation));
        let percentage = if at == 0 { 0.0 } else { percentage(previous, value) };
        previous = value;
        IntervalValue { percentage_from_previous: percentage, value, seconds_since_epoch_utc }
    });
    with_value.collect()
}

/// As Amberflo's guide shows it: from nothing to something is 100.
fn percentage(previous: f64, value: f64) -> f64 {
    if previous == value {
        0.0
    } else if previous == 0.0 {
        100.0
    } else {
        (value - previous) / previous * 100.0
    }
}

#[derive(Debug, Default)]
struct Aggregate {
    count: u64,
    total: Total,
    least: Option<f64>,
    most: Option<f64>,
}

impl Aggregate {
    fn add(&mut self, value: &str) {
        self.count += 1;
        self.total.add(value);
        let value = value.parse().unwrap_or_default();
        self.least = Some(self.least.map_or(value, |least| least.min(value)));
        self.most = Some(self.most.map_or(value, |most| most.max(value)));
    }

    fn value(&self, aggregation: Aggregation) -> f64 {
        match aggregation {
            Aggregation::Sum => self.total.as_f64(),
            Aggregation::Count => self.count as f64,
            Aggregation::Min => self.least.unwrap_or_default(),
            Aggregation::Max => self.most.unwrap_or_default(),
        }
    }
}

fn too_many_rows() -> Answer {
    Answer::bad_request(format!("the query has more than {ROWS_MAX} rows"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_follow_the_example_of_the_guide() {
        assert_eq!(percentage(0.0, 0.0), 0.0);
        assert_eq!(percentage(0.0, 4040.0), 100.0);
        assert!((percentage(4040.0, 19605.0) - 385.272_277_227_722_8).abs() < 1e-9);
        assert_eq!(percentage(10.0, 0.0), -100.0);
    }

    #[test]
    fn the_window_covers_whole_intervals_but_only_the_seconds_asked_for() {
        let time_range = TimeRange { start_time_in_seconds: 1_619_294_851, end_time_in_seconds: Some(1_619_467_650) };
        let query = Query {
            meter_api_name: "m".to_owned(),
            time_grouping_interval: TimeGrouping::Day,
            time_range,
            aggregation: Aggregation::Sum,
            group_by: None,
            filter: None,
            take: None,
        };
        let window = Window::of(&query, 0).unwrap();
        assert_eq!(window.intervals, [1_619_222_400, 1_619_308_800, 1_619_395_200]);
        let interval = |second: i64| window.interval(second * 1000);
        assert_eq!([interval(1_619_294_850), interval(1_619_294_851)], [None, Some(0)]);
        assert_eq!([interval(1_619_308_799), interval(1_619_308_800)], [Some(0), Some(1)]);
        assert_eq!([interval(1_619_467_649), interval(1_619_467_650)], [Some(2), None]);
    }
}
