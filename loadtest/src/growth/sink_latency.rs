//! The same events to a sink that takes longer and longer to answer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Size;
use super::results::number;
use super::worker::{Backlog, Cost};
use crate::bench_peers::lab::Lab;
use crate::chart::{Chart, Scale, Series};
use crate::report_dir::ReportDir;

/// The worker's defaults.
const MAX_IN_FLIGHT: f64 = 8.0;
const BATCH: f64 = 1000.0;
const TENANTS: usize = 50;

/// One latency.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    latency_millis: u64,
    #[serde(flatten)]
    cost: Cost,
}

impl Point {
    /// Events a second if nothing but waiting took time; infinite without waiting.
    fn bound(&self) -> f64 {
        MAX_IN_FLIGHT * BATCH * 1000.0 / self.latency_millis as f64
    }
}

pub async fn measure(lab: &Lab, size: Size) -> anyhow::Result<Vec<Point>> {
    let all: &[u64] = size.pick(&[0, 100], &[0, 20, 100, 500], &[0, 10, 20, 50, 100, 200, 500]);
    let events = size.pick(8_000, 100_000, 500_000);
    let backlog = Backlog::make(lab, events, TENANTS).await?;
    let mut points = Vec::new();
    for &latency_millis in all {
        lab.sink.delay(Duration::from_millis(latency_millis)).await?;
        let cost = backlog.drain(lab, size.rounds(), &[]).await;
        // The sink is everybody's.
        lab.sink.delay(Duration::ZERO).await?;
        let cost = cost?;
        cost.told(&format!("answers after {latency_millis} ms"));
        points.push(Point { latency_millis, cost });
    }
    Ok(points)
}

pub fn report(points: &[Point], report: &mut ReportDir) -> anyhow::Result<()> {
    report.text(
        "A backlog in the local store, no limit of requests, the sink answers so much later. Theory: 8 requests in flight \
         (`MAX_IN_FLIGHT`) x 1,000 events (`BATCH_MAX_EVENTS`) / latency.",
    );
    let row = |point: &Point| {
        let (bound, speed) = (point.bound(), point.cost.events_per_second);
        let is_bound = bound.is_finite();
        [
            number(point.latency_millis as f64, 0),
            number(point.cost.events as f64, 0),
            number(speed, 0),
            if is_bound { number(bound, 0) } else { "-".to_owned() },
            if is_bound { format!("{} %", number(100.0 * speed / bound, 0)) } else { "-".to_owned() },
            number(point.cost.cpu_micros_per_event, 2),
            number(point.cost.peak_resident_mib, 1),
        ]
    };
    let rows: Vec<_> = points.iter().map(row).collect();
    let heads = ["latency ms", "events", "events/s", "theory", "of it", "CPU µs/event", "peak RSS MiB"];
    report.table(heads, &rows);
    let series = |name: &str, of: fn(&Point) -> f64| {
        Series::new(name, points.iter().map(|point| (point.latency_millis as f64, of(point))).collect())
    };
    report.chart(
        "sink-latency",
        &Chart {
            title: "Speed by the time that an answer takes".to_owned(),
            x_label: "ms until the answer".to_owned(),
            y_label: "events/s".to_owned(),
            y_scale: Scale::Log,
            series: vec![
                series("measured", |point| point.cost.events_per_second),
                series("8 x 1,000 / latency", Point::bound),
            ],
            ..Chart::default()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_alone_allows_what_is_in_flight_once_in_each_latency() {
        let at = |latency_millis| Point { latency_millis, cost: Cost::default() }.bound();
        assert_eq!((at(1000), at(500), at(0)), (8_000.0, 16_000.0, f64::INFINITY));
    }
}
