//! The same events through larger and larger deduplication windows.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::clock::{Clock, millis};

use super::Size;
use super::results::number;
use super::worker::{Cost, UNLIMITED, drain, fleet, on_kinesis};
use crate::bench::fleet::Place;
use crate::bench::flow::{Fill, Flow};
use crate::bench_peers::lab::Lab;
use crate::chart::{Chart, Scale, Series};
use crate::report_dir::ReportDir;

/// The events arrived in that time; none is forgotten for its age.
const ARRIVED_IN: Duration = Duration::from_secs(100);
const WINDOW: &str = "12h";
/// With so many shards the buffer holds only a part of a batch of each, which would wait for the default of a second.
const LINGER: &str = "100ms";

/// Fewer are lost in what else a process needs.
const KEYS_SEEN: usize = 500_000;

/// One size of the window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    /// `DEDUP_MAX_KEYS`, all of which are used at the end.
    keys: usize,
    #[serde(flatten)]
    cost: Cost,
}

/// Resident bytes for each key more, from the smallest window to the largest.
pub fn bytes_per_key(points: &[Point]) -> Option<f64> {
    let (first, last) = (points.first()?, points.last()?);
    let more = (last.cost.peak_resident_mib - first.cost.peak_resident_mib) * 1024.0 * 1024.0;
    let keys = last.keys.checked_sub(first.keys).filter(|keys| *keys >= KEYS_SEEN)?;
    (more > 0.0).then(|| more / keys as f64)
}

pub async fn measure(lab: &Lab, size: Size) -> anyhow::Result<Vec<Point>> {
    let all: &[usize] = size.pick(
        &[1_000, 4_000],
        &[10_000, 100_000, 1_000_000],
        &[10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000],
    );
    let events = all.iter().copied().max().unwrap_or_default();
    // A worker reads at most 2 MB/s from a shard, as Kinesis allows.
    let shards = size.pick(4, 64, 64);
    let flow = Flow::start().await?;
    let mut points = Vec::new();
    for &keys in all {
        let max_keys = keys.to_string();
        let name = lab.fresh();
        let per_second = u32::try_from(events as u64 / shards as u64 / ARRIVED_IN.as_secs())?;
        let since = Clock::system().now() - millis(ARRIVED_IN);
        flow.add(&name, shards, Fill::Steady { since, per_second });
        let arrived = flow.stop(&name);
        let place = Place { kinesis: &flow.url, dynamodb: &fleet(lab)?.moto.url, stream: &name };
        let env =
            [UNLIMITED, ("DEDUP_MAX_KEYS", max_keys.as_str()), ("DEDUP_WINDOW", WINDOW), ("BATCH_LINGER", LINGER)];
        // One round: it takes long enough.
        let cost = drain(lab, on_kinesis(lab, place, &env)?, arrived).await?;
        cost.told(&format!("dedup keys {keys}"));
        points.push(Point { keys, cost });
    }
    Ok(points)
}

pub fn report(points: &[Point], report: &mut ReportDir) -> anyhow::Result<()> {
    report.text(&format!(
        "The same distinct events of 1,000 bytes from 64 shards (4 in a test), made while they are read; no limit of requests; \
         `BATCH_LINGER={LINGER}`, `DEDUP_WINDOW={WINDOW}`, `DEDUP_MAX_KEYS` as the table says. There are as many events as the largest window has keys, so \
         that every window is full at the end. Leases in an emulated DynamoDB.",
    ));
    if let Some(bytes) = bytes_per_key(points) {
        report.text(&format!("From the smallest window to the largest, a key takes {} bytes.", number(bytes, 1)));
    }
    let row = |Point { keys, cost }: &Point| {
        [
            number(*keys as f64, 0),
            number(cost.events as f64, 0),
            number(cost.peak_resident_mib, 1),
            number(cost.cpu_micros_per_event, 2),
            number(cost.events_per_second, 0),
        ]
    };
    let rows: Vec<_> = points.iter().map(row).collect();
    report.table(["keys", "events", "peak RSS MiB", "CPU µs/event", "events/s"], &rows);
    let series = |name: &str, of: fn(&Cost) -> f64| {
        Series::new(name, points.iter().map(|point| (point.keys as f64, of(&point.cost))).collect())
    };
    let chart = |title: &str, y_label: &str, y_scale, series| Chart {
        title: title.to_owned(),
        x_label: "keys".to_owned(),
        y_label: y_label.to_owned(),
        x_scale: Scale::Log,
        y_scale,
        series: vec![series],
        ..Chart::default()
    };
    let memory = series("peak RSS", |cost| cost.peak_resident_mib);
    report.chart("dedup-keys", &chart("Memory by dedup keys", "peak RSS, MiB", Scale::Log, memory))?;
    let cpu = series("CPU", |cost| cost.cpu_micros_per_event);
    report.chart("dedup-keys-cpu", &chart("CPU by dedup keys", "µs per event", Scale::Linear, cpu))
}
