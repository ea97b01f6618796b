//! More and more shards: a backlog, and a steady load.

use std::time::Duration;

use bytes::Bytes;
use emulators::{CannedKinesis, CannedSettings, CannedShard};
use serde::{Deserialize, Serialize};
use shared::clock::Clock;

use super::Size;
use super::results::number;
use super::steady::{self, RATE, Steady};
use super::worker::{Cost, UNLIMITED, drain, fleet, on_kinesis};
use crate::bench::fleet::Place;
use crate::bench::payload::Generator;
use crate::bench_peers::lab::Lab;
use crate::chart::{Chart, Scale, Series};
use crate::report_dir::ReportDir;

/// The stand-in does not throttle: with events of 450 bytes, the five reads a second that a shard allows give its 2 MB/s.
const PAGE_RECORDS: usize = 880;
const PARTITION_KEY: &str = "tenant";
/// With more, requests wait for the limit: 10/s.
const QUEUEING_SHARDS: usize = 64;
/// The emulated DynamoDB takes some hundred writes a second beside a worker that uses all it can get: not the renewals of 256
/// leases at the default of 10 s. What those cost, the steady load shows.
const SLOW_LEASES: (&str, &str) = ("FAILOVER_TIME", "60s");
/// What Kinesis gives from a shard, and a worker asks for.
const SHARD_BYTES_PER_SECOND: f64 = 2e6;

/// One number of shards.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    /// How many.
    pub shards: usize,
    /// Of a record of the backlog, on average; 0 where it was not noted.
    #[serde(default)]
    pub record_bytes: f64,
    /// A backlog, without a limit of requests.
    pub drained: Cost,
    /// A steady load, without a limit of requests.
    pub unlimited: Steady,
    /// The same with default settings.
    pub limited: Steady,
}

impl Point {
    /// Events/s of the backlog that its shards give at most; infinite where the size of a record was not noted.
    fn shards_give(&self) -> f64 {
        self.shards as f64 * SHARD_BYTES_PER_SECOND / self.record_bytes
    }

    /// Writes to the lease table, of each shard.
    pub fn lease_writes_per_shard_minute(&self) -> f64 {
        self.unlimited.lease_writes_per_minute / self.shards as f64
    }
}

pub async fn measure(lab: &Lab, size: Size) -> anyhow::Result<Vec<Point>> {
    fleet(lab)?;
    let all: &[usize] = size.pick(&[1, 4], &[1, 16, 256], &[1, 4, 16, 64, 256]);
    // Large beside what it takes to claim a lease; a shard gives some 4,000 a second.
    let of_a_shard = size.pick(500, 2_000, 10_000);
    let (shard, record_bytes) = backlog(of_a_shard);
    let mut points = Vec::new();
    for &shards in all {
        let events = (shards * of_a_shard) as u64;
        let drained = {
            let settings = CannedSettings { page: PAGE_RECORDS, ..CannedSettings::default() };
            let stream = CannedKinesis::start(vec![shard.clone(); shards], settings);
            let mut costs = Vec::new();
            for _ in 0..size.rounds() {
                let name = lab.fresh();
                let place = Place { kinesis: &stream.url, dynamodb: &fleet(lab)?.moto.url, stream: &name };
                costs.push(drain(lab, on_kinesis(lab, place, &[UNLIMITED, SLOW_LEASES])?, events).await?);
            }
            Cost::median(&costs)
        };
        drained.told(&format!("shards {shards}"));
        let [settle, window] = size.pick([3, 3], [10, 10], [30, 40]).map(Duration::from_secs);
        let unlimited = steady::run(lab, shards, &[UNLIMITED], [settle, window]).await?;
        // Batches that wait for their turn are fuller and fuller, until as many go as come.
        let settle = if shards > QUEUEING_SHARDS { 2 * settle } else { settle };
        let limited = steady::run(lab, shards, &[], [settle, window]).await?;
        eprintln!(
            "shards {shards:<25}{:>10.1} requests/s, with default limits {:.1} and p99 {:.0} ms",
            unlimited.requests_per_second, limited.requests_per_second, limited.p99_ms
        );
        points.push(Point { shards, record_bytes, drained, unlimited, limited });
    }
    Ok(points)
}

/// So many events as EventBridge hands them on, and their size on average. The same for every shard: a dedup window is that
/// of one shard, so that none is taken for a copy.
fn backlog(events: usize) -> (CannedShard, f64) {
    let mut generator = Generator::new();
    let record = |_| {
        let event = generator.event();
        generator.envelope(&event)
    };
    let records: Vec<Bytes> = (0..events).map(record).collect();
    let bytes: usize = records.iter().map(Bytes::len).sum();
    let shard = CannedShard::new(Clock::system().now(), records.iter().map(|record| (PARTITION_KEY, record)));
    (shard, bytes as f64 / events as f64)
}

pub fn report(points: &[Point], report: &mut ReportDir) -> anyhow::Result<()> {
    report.text(
        "**A backlog**: every shard of a stand-in for Kinesis, which is not in the worker's process, has as many events; one \
         worker without a limit of requests; leases in an emulated DynamoDB, with `FAILOVER_TIME=60s`, which takes fewer writes. A worker reads at most 2 MB/s from a shard, as \
         Kinesis allows: where the speed is nearly all of that, it is that of the shards and not of the worker.",
    );
    let row = |point: &Point| {
        let Point { shards, drained, .. } = point;
        [
            number(*shards as f64, 0),
            number(drained.events as f64, 0),
            number(drained.cpu_micros_per_event, 2),
            number(drained.events_per_second, 0),
            if point.record_bytes > 0.0 {
                format!("{} %", number(100.0 * drained.events_per_second / point.shards_give(), 0))
            } else {
                "-".to_owned()
            },
            number(drained.events_per_request, 0),
            number(drained.wire_bytes_per_event, 1),
            number(drained.peak_resident_mib, 1),
        ]
    };
    let rows: Vec<_> = points.iter().map(row).collect();
    let heads = [
        "shards",
        "events",
        "CPU µs/event",
        "events/s",
        "of the shards' 2 MB/s",
        "events/request",
        "wire bytes/event",
        "peak RSS MiB",
    ];
    report.table(heads, &rows);
    let chart = |title: &str, y_label: &str, series| Chart {
        title: title.to_owned(),
        x_label: "shards".to_owned(),
        y_label: y_label.to_owned(),
        x_scale: Scale::Log,
        y_scale: Scale::Log,
        series,
        ..Chart::default()
    };
    let series = |name: &str, of: fn(&Point) -> f64| {
        Series::new(name, points.iter().map(|point| (point.shards as f64, of(point))).collect())
    };
    let cost = vec![
        series("a backlog", |point| point.drained.cpu_micros_per_event),
        series(&format!("{RATE} events/s"), |point| point.unlimited.cpu_micros_per_event),
    ];
    let speed = vec![
        series("events/s", |point| point.drained.events_per_second),
        series("2 MB/s a shard", |point| point.shards_give()),
    ];
    report.chart("shards-speed", &chart("Speed by shards, of a backlog", "events/s", speed))?;
    report.chart("shards-cpu", &chart("CPU by shards", "µs per event", cost))?;
    report.text(&format!(
        "**A steady load** of {} events/s in all, spread evenly: without a limit of requests, and with default settings \
         (10 requests/s). Latency is from an event's arrival in its shard to its acceptance by the sink.",
        number(f64::from(RATE), 0)
    ));
    let row = |name: &str, point: &Point, steady: &Steady| {
        [
            number(point.shards as f64, 0),
            name.to_owned(),
            number(steady.requests_per_second, 1),
            number(steady.events_per_request, 1),
            number(steady.p50_ms, 0),
            number(steady.p99_ms, 0),
            number(steady.cpu_micros_per_event, 1),
            number(steady.lease_writes_per_minute, 0),
            number(steady.lease_writes_per_minute / point.shards as f64, 1),
            number(steady.lease_scans_per_minute, 0),
            number(steady.peak_resident_mib, 1),
        ]
    };
    let both = |point: &Point| [row("none", point, &point.unlimited), row("10 requests/s", point, &point.limited)];
    let rows: Vec<_> = points.iter().flat_map(both).collect();
    let heads = [
        "shards",
        "limit",
        "requests/s",
        "events/request",
        "p50 ms",
        "p99 ms",
        "CPU µs/event",
        "lease writes/min",
        "... of a shard",
        "lease scans/min",
        "peak RSS MiB",
    ];
    report.table(heads, &rows);
    let requests = vec![
        series("requests/s, no limit", |point| point.unlimited.requests_per_second),
        series("requests/s, limit 10/s", |point| point.limited.requests_per_second),
        series("events in one, no limit", |point| point.unlimited.events_per_request),
        series("events in one, limit 10/s", |point| point.limited.events_per_request),
        series("p99 latency in s, limit 10/s", |point| point.limited.p99_ms / 1000.0),
    ];
    let title = format!("Requests by shards, at {RATE} events/s");
    report.chart("shards", &chart(&title, "requests/s, events, seconds", requests))?;
    let leases = vec![series("lease writes", |point| point.unlimited.lease_writes_per_minute)];
    report.chart("shards-leases", &chart("Lease writes by shards", "writes a minute", leases))
}
