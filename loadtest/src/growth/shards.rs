//! The same events from more and more shards: a backlog, and a steady load.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::Size;
use super::results::number;
use super::steady::{self, RATE, Steady};
use super::worker::{Cost, UNLIMITED, drain, fleet, on_kinesis};
use crate::bench::fleet::Place;
use crate::bench::payload::Generator;
use crate::bench_peers::lab::Lab;
use crate::bench_peers::process::Peer;
use crate::chart::{Chart, Scale, Series};
use crate::report_dir::ReportDir;

/// One number of shards.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    /// How many.
    pub shards: usize,
    /// A backlog, without a limit of requests.
    pub drained: Cost,
    /// A steady load, without a limit of requests.
    pub unlimited: Steady,
    /// The same with default settings.
    pub limited: Steady,
}

impl Point {
    /// Writes to the lease table, of each shard.
    pub fn lease_writes_per_shard_minute(&self) -> f64 {
        self.unlimited.lease_writes_per_minute / self.shards as f64
    }
}

pub async fn measure(lab: &Lab, size: Size) -> anyhow::Result<Vec<Point>> {
    fleet(lab)?;
    let all: &[usize] = size.pick(&[1, 4], &[1, 16, 256], &[1, 4, 16, 64, 256]);
    // So many that every shard gets as many; few shards get fewer, because a worker reads at most 2 MB/s from each.
    let (most, of_a_shard) = (size.pick(8, 800, 4000) * 256, size.pick(2, 100, 1000) * 256);
    let lines = lab.dir.path().join(lab.fresh());
    let mut points = Vec::new();
    for &shards in all {
        let events = most.min(shards * of_a_shard);
        write(&lines, events)?;
        let drained = {
            let args = ["canned-kinesis".into(), lines.clone().into(), shards.to_string().into()];
            let (_stream, address) = Peer::announcing(&args).await.context("the stand-in for Kinesis")?;
            let url = format!("http://{address}");
            let mut costs = Vec::new();
            for _ in 0..size.rounds() {
                let name = lab.fresh();
                let place = Place { kinesis: &url, dynamodb: &fleet(lab)?.moto.url, stream: &name };
                costs.push(drain(lab, on_kinesis(lab, place, &[UNLIMITED])?, events as u64).await?);
            }
            Cost::median(&costs)
        };
        drained.told(&format!("shards {shards}"));
        let unlimited = steady::run(lab, shards, &[UNLIMITED], size).await?;
        let limited = steady::run(lab, shards, &[], size).await?;
        eprintln!(
            "shards {shards:<25}{:>10.1} requests/s, with default limits {:.1} and p99 {:.0} ms",
            unlimited.requests_per_second, limited.requests_per_second, limited.p99_ms
        );
        points.push(Point { shards, drained, unlimited, limited });
    }
    std::fs::remove_file(lines)?;
    Ok(points)
}

/// The events as EventBridge hands them on, one a line.
fn write(path: &std::path::Path, events: usize) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut file = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    let mut generator = Generator::new();
    for _ in 0..events {
        let event = generator.event();
        file.write_all(&generator.envelope(&event))?;
        file.write_all(b"\n")?;
    }
    Ok(file.flush()?)
}

pub fn report(points: &[Point], report: &mut ReportDir) -> anyhow::Result<()> {
    report.text(
        "**A backlog**: the same events, spread evenly over the shards of a stand-in for Kinesis in a process of its own; one \
         worker without a limit of requests; leases in an emulated DynamoDB. Few shards get fewer events. A worker reads at most \
         2 MB/s from a shard, as Kinesis allows.",
    );
    let row = |Point { shards, drained, .. }: &Point| {
        [
            number(*shards as f64, 0),
            number(drained.events as f64, 0),
            number(drained.cpu_micros_per_event, 2),
            number(drained.events_per_second, 0),
            number(drained.events_per_request, 0),
            number(drained.wire_bytes_per_event, 1),
            number(drained.peak_resident_mib, 1),
        ]
    };
    let rows: Vec<_> = points.iter().map(row).collect();
    let heads = ["shards", "events", "CPU µs/event", "events/s", "events/request", "wire bytes/event", "peak RSS MiB"];
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
    let speed = vec![series("events/s", |point| point.drained.events_per_second)];
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
