//! The same events in larger and larger requests.

use serde::{Deserialize, Serialize};

use super::Size;
use super::results::number;
use super::worker::{Backlog, Cost};
use crate::bench_peers::lab::Lab;
use crate::chart::{Chart, Scale, Series};
use crate::report_dir::ReportDir;

/// The default would cut the largest batches; a quarter of the buffer's default is allowed.
const MAX_BYTES: &str = "16MiB";
/// A point with small requests gets fewer events.
const REQUESTS_MAX: usize = 20_000;
const TENANTS: usize = 50;

/// One size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    batch_max_events: usize,
    #[serde(flatten)]
    cost: Cost,
}

pub async fn measure(lab: &Lab, size: Size) -> anyhow::Result<Vec<Point>> {
    let all: &[usize] = size.pick(&[10, 1000], &[1, 100, 10_000], &[1, 3, 10, 30, 100, 300, 1000, 3000, 10_000]);
    let events = size.pick(8_000, 200_000, 1_000_000);
    let mut points = Vec::new();
    let mut backlog: Option<Backlog> = None;
    for &batch_max_events in all {
        let events = events.min(batch_max_events * REQUESTS_MAX);
        let waiting = match backlog.take() {
            Some(made) if made.events() == events as u64 => made,
            _ => Backlog::make(lab, events, TENANTS).await?,
        };
        let env = [("BATCH_MAX_EVENTS", batch_max_events.to_string()), ("BATCH_MAX_BYTES", MAX_BYTES.to_owned())];
        let cost = waiting.drain(lab, size.rounds(), &env).await?;
        cost.told(&format!("batches of {batch_max_events}"));
        points.push(Point { batch_max_events, cost });
        backlog = Some(waiting);
    }
    Ok(points)
}

pub fn report(points: &[Point], report: &mut ReportDir) -> anyhow::Result<()> {
    report.text(&format!(
        "A backlog in the local store, 4 shards, no limit of requests, `BATCH_MAX_EVENTS` as the table says, \
         `BATCH_MAX_BYTES={MAX_BYTES}`. Points of more than {} requests get fewer events.",
        number(REQUESTS_MAX as f64, 0)
    ));
    let row = |Point { batch_max_events, cost }: &Point| {
        [
            number(*batch_max_events as f64, 0),
            number(cost.events as f64, 0),
            number(cost.events_per_request, 1),
            number(cost.cpu_micros_per_event, 2),
            number(cost.events_per_second, 0),
            number(cost.wire_bytes_per_event, 1),
            number(cost.peak_resident_mib, 1),
        ]
    };
    let rows: Vec<_> = points.iter().map(row).collect();
    let heads = ["at most", "events", "events/request", "CPU µs/event", "events/s", "wire bytes/event", "peak RSS MiB"];
    report.table(heads, &rows);
    let series = |name: &str, of: fn(&Cost) -> f64| {
        Series::new(name, points.iter().map(|point| (point.batch_max_events as f64, of(&point.cost))).collect())
    };
    report.chart(
        "batch-size",
        &Chart {
            title: "Cost by batch size".to_owned(),
            x_label: "events in a request, at most".to_owned(),
            y_label: "µs, or bytes".to_owned(),
            x_scale: Scale::Log,
            y_scale: Scale::Log,
            series: vec![
                series("CPU µs per event", |cost| cost.cpu_micros_per_event),
                series("wire bytes per event", |cost| cost.wire_bytes_per_event),
            ],
            ..Chart::default()
        },
    )?;
    report.chart(
        "batch-size-speed",
        &Chart {
            title: "Speed by batch size".to_owned(),
            x_label: "events in a request, at most".to_owned(),
            y_label: "events/s".to_owned(),
            x_scale: Scale::Log,
            y_scale: Scale::Log,
            series: vec![series("events/s", |cost| cost.events_per_second)],
            ..Chart::default()
        },
    )
}
