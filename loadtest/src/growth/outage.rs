//! Longer and longer outages of the worker, and how long it takes to catch up while new events come.
//!
//! Nobody waits for them: a worker starts on what an outage would have left in the stream. One that a worker lives through
//! is in `live_outage.rs`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::clock::{Clock, millis};
use tokio::time::Instant;

use super::Size;
use super::results::number;
use super::worker::{UNLIMITED, Worker, fleet, mebibytes, on_kinesis};
use crate::bench::fleet::Place;
use crate::bench::flow::{Fill, Flow};
use crate::bench_peers::lab::Lab;
use crate::bench_peers::sink::Times;
use crate::chart::{Chart, Scale, Series};
use crate::report_dir::ReportDir;

/// Events a second, before, in and after the outage.
pub const RATE: u64 = 1000;
pub const SHARDS: usize = 8;
/// Caught up is who has delivered all that is older: a linger, and what a request takes.
pub const BEHIND: Duration = Duration::from_secs(3);
/// Events a second that the default limits allow.
const LIMIT: f64 = 10_000.0;
/// Events a second that a worker reads from a shard at most: Kinesis gives 2 MB/s.
const SHARD_LIMIT: f64 = 2_000.0;

/// One outage with one set of limits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    outage_seconds: u64,
    /// Whether requests are limited as they are by default.
    is_limited: bool,
    /// From the start of the worker.
    catch_up_seconds: f64,
    /// Events that were delivered in that time.
    events: u64,
    /// User and system time, to the end of the worker.
    cpu_seconds: f64,
    /// The kernel's own peak of resident memory.
    peak_resident_mib: f64,
}

pub async fn measure(lab: &Lab, size: Size) -> anyhow::Result<Vec<Point>> {
    let all: &[u64] = size.pick(&[5, 10], &[60, 240], &[60, 300, 900, 3600]);
    let mut points = Vec::new();
    for is_limited in [true, false] {
        for &outage_seconds in all {
            let point = catch_up(lab, outage_seconds, is_limited).await?;
            eprintln!(
                "backlog of {outage_seconds} s, {:<12} caught up after {:.1} s, {:.1} MiB",
                point.limits(),
                point.catch_up_seconds,
                point.peak_resident_mib
            );
            points.push(point);
        }
    }
    Ok(points)
}

async fn catch_up(lab: &Lab, outage_seconds: u64, is_limited: bool) -> anyhow::Result<Point> {
    let (flow, name, clock) = (Flow::start().await?, lab.fresh(), Clock::system());
    let since = clock.now() - millis(Duration::from_secs(outage_seconds));
    flow.add(&name, SHARDS, Fill::Steady { since, per_second: u32::try_from(RATE / SHARDS as u64)? });
    let place = Place { kinesis: &flow.url, dynamodb: &fleet(lab)?.moto.url, stream: &name };
    let env: &[_] = if is_limited { &[] } else { &[UNLIMITED] };
    lab.sink.reset(Times::default()).await?;
    let started = Instant::now();
    let mut worker = Worker::start(on_kinesis(lab, place, env)?).await?;
    let is_caught_up = |records| records >= flow.arrived(&name, clock.now() - millis(BEHIND));
    let seen = worker.until(&lab.sink, |seen| is_caught_up(seen.records)).await?;
    let catch_up = started.elapsed();
    let usage = worker.finish(&lab.sink, flow.stop(&name)).await?.usage;
    Ok(Point {
        outage_seconds,
        is_limited,
        catch_up_seconds: catch_up.as_secs_f64(),
        events: seen.records,
        cpu_seconds: usage.cpu.as_secs_f64(),
        peak_resident_mib: mebibytes(usage.peak_resident),
    })
}

impl Point {
    fn limits(&self) -> &'static str {
        if self.is_limited { "10 requests/s" } else { "none" }
    }

    /// How long it takes if nothing but limits takes time: new events come meanwhile.
    fn bound_seconds(&self) -> f64 {
        let limit = SHARDS as f64 * SHARD_LIMIT;
        (self.outage_seconds * RATE) as f64 / (if self.is_limited { limit.min(LIMIT) } else { limit } - RATE as f64)
    }
}

pub fn report(points: &[Point], report: &mut ReportDir) -> anyhow::Result<()> {
    report.text(&format!(
        "{RATE} events/s of 1,000 bytes, spread evenly over {SHARDS} shards of a stand-in for Kinesis that makes records when they are \
         read: when the worker starts, the events of the outage lie there with the times of their arrival, and new ones keep \
         coming. No outage is waited for: it is a worker that was off. Caught up is when all that is older than {} s has been delivered; the \
         start of the process counts. Theory: outage x {RATE} / (limit - {RATE}), where the limit is 10,000 events/s (10 requests/s of \
         1,000 events), or else {} events/s (what a worker reads from {SHARDS} shards: 2 MB/s each, as Kinesis allows).",
        BEHIND.as_secs(),
        number(SHARDS as f64 * SHARD_LIMIT, 0)
    ));
    let row = |point: &Point| {
        [
            number(point.outage_seconds as f64, 0),
            point.limits().to_owned(),
            number(point.catch_up_seconds, 1),
            number(point.bound_seconds(), 1),
            number(point.events as f64, 0),
            number(point.events as f64 / point.catch_up_seconds, 0),
            number(point.cpu_seconds * 1e6 / point.events as f64, 2),
            number(point.peak_resident_mib, 1),
        ]
    };
    let rows: Vec<_> = points.iter().map(row).collect();
    let heads = ["outage s", "limit", "catch-up s", "theory s", "events", "events/s", "CPU µs/event", "peak RSS MiB"];
    report.table(heads, &rows);
    let series = |name: &str, is_limited: bool, of: fn(&Point) -> f64| {
        let points = points.iter().filter(|point| point.is_limited == is_limited);
        Series::new(name, points.map(|point| (point.outage_seconds as f64, of(point))).collect())
    };
    report.chart(
        "outage",
        &Chart {
            title: format!("Time to catch up after a start, with {RATE} new events/s"),
            x_label: "outage, seconds".to_owned(),
            y_label: "seconds, or MiB".to_owned(),
            x_scale: Scale::Log,
            y_scale: Scale::Log,
            series: vec![
                series("10 requests/s", true, |point| point.catch_up_seconds),
                series("theory for that", true, Point::bound_seconds),
                series("no limit of requests", false, |point| point.catch_up_seconds),
                series("theory for that", false, Point::bound_seconds),
                series("peak RSS MiB, 10 requests/s", true, |point| point.peak_resident_mib),
                series("peak RSS MiB, no limit", false, |point| point.peak_resident_mib),
            ],
            ..Chart::default()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_events_take_their_part_of_the_limit() {
        let point = Point {
            outage_seconds: 3600,
            is_limited: true,
            catch_up_seconds: 0.0,
            events: 0,
            cpu_seconds: 0.0,
            peak_resident_mib: 0.0,
        };
        assert_eq!(point.bound_seconds(), 400.0);
    }
}
