//! Events through larger and larger deduplication windows, each of which is full and forgets a key for every new one.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::clock::{Clock, millis};

use super::Size;
use super::results::number;
use super::worker::{Ended, UNLIMITED, Worker, fleet, mebibytes, on_kinesis};
use crate::bench::fleet::Place;
use crate::bench::flow::{Fill, Flow};
use crate::bench_peers::lab::Lab;
use crate::bench_peers::sink::Times;
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
    /// `DEDUP_MAX_KEYS`.
    keys: usize,
    /// Events that were delivered before the window was full, and were not looked at; 0 where those were looked at too.
    #[serde(default)]
    filled_with: u64,
    /// Events that were looked at.
    events: u64,
    events_per_second: f64,
    /// User and system time of the whole process.
    cpu_micros_per_event: f64,
    /// The kernel's own peak of resident memory.
    peak_resident_mib: f64,
}

/// Resident bytes for each key more, from the smallest window to the largest.
pub fn bytes_per_key(points: &[Point]) -> Option<f64> {
    let (first, last) = (points.first()?, points.last()?);
    let more = (last.peak_resident_mib - first.peak_resident_mib) * 1024.0 * 1024.0;
    let keys = last.keys.checked_sub(first.keys).filter(|keys| *keys >= KEYS_SEEN)?;
    (more > 0.0).then(|| more / keys as f64)
}

pub async fn measure(lab: &Lab, size: Size) -> anyhow::Result<Vec<Point>> {
    let all: &[usize] = size.pick(
        &[1_000, 4_000],
        &[10_000, 100_000, 1_000_000],
        &[10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000],
    );
    let look_at = size.pick(4_000, 500_000, 2_000_000);
    // A worker reads at most 2 MB/s from a shard, as Kinesis allows.
    let shards = size.pick(4, 64, 64);
    let mut points = Vec::new();
    for &keys in all {
        let point = measure_one(lab, keys, look_at, shards).await?;
        eprintln!(
            "dedup keys {keys:<21}{:>10.0} events/s {:>8.2} µs CPU/event {:>8.1} MiB",
            point.events_per_second, point.cpu_micros_per_event, point.peak_resident_mib
        );
        points.push(point);
    }
    Ok(points)
}

/// Fills the window, and looks at what comes after that.
async fn measure_one(lab: &Lab, keys: usize, look_at: usize, shards: usize) -> anyhow::Result<Point> {
    let (flow, name) = (Flow::start().await?, lab.fresh());
    let per_second = (keys + look_at).div_ceil(shards).div_ceil(usize::try_from(ARRIVED_IN.as_secs())?);
    let since = Clock::system().now() - millis(ARRIVED_IN);
    flow.add(&name, shards, Fill::Steady { since, per_second: u32::try_from(per_second)? });
    let arrived = flow.stop(&name);
    let place = Place { kinesis: &flow.url, dynamodb: &fleet(lab)?.moto.url, stream: &name };
    let max_keys = keys.to_string();
    let env = [UNLIMITED, ("DEDUP_MAX_KEYS", max_keys.as_str()), ("DEDUP_WINDOW", WINDOW), ("BATCH_LINGER", LINGER)];
    lab.sink.reset(Times::default()).await?;
    let mut worker = Worker::start(on_kinesis(lab, place, &env)?).await?;
    // One round: it takes long enough.
    let filled = worker.until(&lab.sink, |seen| seen.records >= keys as u64).await?;
    let cpu = worker.cpu();
    let Ended { usage, seen, .. } = worker.finish(&lab.sink, arrived).await?;
    // In a test one look may see all of it.
    let events = arrived - filled.records;
    let seconds = (seen.last - filled.last) as f64 / 1e6;
    Ok(Point {
        keys,
        filled_with: filled.records,
        events,
        events_per_second: if seconds > 0.0 { events as f64 / seconds } else { 0.0 },
        cpu_micros_per_event: (usage.cpu - cpu).as_secs_f64() * 1e6 / events.max(1) as f64,
        peak_resident_mib: mebibytes(usage.peak_resident),
    })
}

pub fn report(points: &[Point], report: &mut ReportDir) -> anyhow::Result<()> {
    report.text(&format!(
        "Distinct events of 1,000 bytes from 64 shards (4 in a test), made while they are read; no limit of requests; \
         `BATCH_LINGER={LINGER}`, `DEDUP_WINDOW={WINDOW}`, `DEDUP_MAX_KEYS` as the table says. First as many events are delivered \
         as the window has keys; CPU and speed are those of the events after that, for each of which every window forgets another. \
         (A key is kept until its event is settled, so that windows smaller than what is in flight hold more.) Leases in an emulated \
         DynamoDB.",
    ));
    if let (Some(first), Some(last)) = (points.first(), points.last()) {
        let bytes = bytes_per_key(points).map_or("not measured".to_owned(), |bytes| number(bytes, 1));
        report.text(&format!(
            "From the smallest window to the largest: bytes a key {bytes}; CPU from {} to {} µs an event.",
            number(first.cpu_micros_per_event, 2),
            number(last.cpu_micros_per_event, 2)
        ));
    }
    let row = |point: &Point| {
        [
            number(point.keys as f64, 0),
            number(point.filled_with as f64, 0),
            number(point.events as f64, 0),
            number(point.peak_resident_mib, 1),
            number(point.cpu_micros_per_event, 2),
            number(point.events_per_second, 0),
        ]
    };
    let rows: Vec<_> = points.iter().map(row).collect();
    report.table(["keys", "filled with", "events after that", "peak RSS MiB", "CPU µs/event", "events/s"], &rows);
    let series = |name: &str, of: fn(&Point) -> f64| {
        Series::new(name, points.iter().map(|point| (point.keys as f64, of(point))).collect())
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
    let memory = series("peak RSS", |point| point.peak_resident_mib);
    report.chart("dedup-keys", &chart("Memory by dedup keys", "peak RSS, MiB", Scale::Log, memory))?;
    let cpu = series("CPU", |point| point.cpu_micros_per_event);
    report.chart("dedup-keys-cpu", &chart("CPU by dedup keys", "µs per event", Scale::Linear, cpu))
}
