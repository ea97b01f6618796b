//! A steady load on more or fewer shards, and what it does to requests, latency and leases.

use std::time::Duration;

use anyhow::Context as _;
use emulators::Throttle;
use serde::{Deserialize, Serialize};
use shared::clock::Clock;
use tokio::time::{Instant, sleep_until};

use super::worker::{Ended, Worker, fleet, mebibytes, on_kinesis};
use crate::bench::fleet::Place;
use crate::bench::flow::{Fill, Flow};
use crate::bench::measure::cpu_time_of;
use crate::bench_peers::lab::Lab;
use crate::bench_peers::sink::{Times, unix_micros};

/// Events a second in all shards together: a power of two, so that any shard gets a whole number.
pub const RATE: u32 = 1024;

/// What was seen.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Steady {
    /// Requests to the sink.
    pub requests_per_second: f64,
    /// How full they were.
    pub events_per_request: f64,
    /// From an event's arrival in its shard to its acceptance by the sink.
    pub p50_ms: f64,
    /// The same of the slowest in a hundred.
    pub p99_ms: f64,
    /// User and system time in the time looked at, of each event that was accepted in it.
    pub cpu_micros_per_event: f64,
    /// Writes to the lease table.
    pub lease_writes_per_minute: f64,
    /// Reads of the whole lease table.
    pub lease_scans_per_minute: f64,
    /// The kernel's own peak of resident memory.
    pub peak_resident_mib: f64,
}

/// Lets [`RATE`] events a second arrive, and looks at the worker after the first of these times for the second.
pub async fn run(
    lab: &Lab,
    shards: usize,
    env: &[(&'static str, &str)],
    [settle, window]: [Duration; 2],
) -> anyhow::Result<Steady> {
    let table = Throttle::start(&fleet(lab)?.moto.url).await;
    let (flow, name) = (Flow::start().await?, lab.fresh());
    let place = Place { kinesis: &flow.url, dynamodb: &table.url, stream: &name };
    let settings = on_kinesis(lab, place, env)?;

    let started = Instant::now();
    let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    let from = unix_micros() + micros(settle);
    lab.sink.reset(Times { from, until: from + micros(window) }).await?;
    let per_second = RATE / u32::try_from(shards)?;
    flow.add(&name, shards, Fill::Steady { since: Clock::system().now(), per_second });
    let worker = Worker::start(settings).await?;
    let process = worker.id()?;
    let look = async || {
        let calls = table.all_calls();
        let [writes, scans] = ["UpdateItem", "Scan"].map(|name| calls.get(name).map_or(0, |calls| calls.arrived));
        let cpu = cpu_time_of(process).context("the worker has ended")?;
        anyhow::Ok((lab.sink.seen().await?, cpu, writes, scans, Instant::now()))
    };
    sleep_until(started + settle).await;
    let (before, cpu_before, writes_before, scans_before, since) = look().await?;
    sleep_until(started + settle + window).await;
    let (after, cpu, writes, scans, until) = look().await?;
    let total = flow.stop(&name);
    let Ended { usage, seen, .. } = worker.finish(&lab.sink, total).await?;

    let seconds = (until - since).as_secs_f64();
    let events = (after.records - before.records) as f64;
    let requests = (after.requests - before.requests) as f64;
    let mut latencies = seen.latencies;
    latencies.sort_unstable();
    let at =
        |share: f64| latencies.get((latencies.len() as f64 * share) as usize).map_or(0.0, |at| *at as f64 / 1000.0);
    Ok(Steady {
        requests_per_second: requests / seconds,
        events_per_request: events / requests.max(1.0),
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        cpu_micros_per_event: (cpu - cpu_before).as_secs_f64() * 1e6 / events.max(1.0),
        lease_writes_per_minute: (writes - writes_before) as f64 * 60.0 / seconds,
        lease_scans_per_minute: (scans - scans_before) as f64 * 60.0 / seconds,
        peak_resident_mib: mebibytes(usage.peak_resident),
    })
}
