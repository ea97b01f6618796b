//! On paper: what a deployment for 1 million events/s takes, from what was measured and AWS's list prices.

mod costs;

use super::results::number;
use super::shards::Point;
use crate::report_dir::ReportDir;
use costs::{Costs, price, text};

const EVENTS_PER_SECOND: f64 = 1e6;
/// What a shard takes: <https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html>. A record with its
/// envelope is below 1 KB, so that the records bind, not the 1 MB/s.
const RECORDS_PER_SHARD_SECOND: f64 = 1000.0;
/// How full shards are: keys are never spread quite evenly.
const SHARD_FILL: f64 = 0.8;
/// How busy a task's cores are: when one fails the others take its shards and catch up; and TLS was not measured.
const CPU_FILL: f64 = 0.3;
const MEMORY_FILL: f64 = 0.7;
const TASK_CPUS: f64 = 2.0;
/// What Fargate allows with 2 vCPU, in steps of 1 GB:
/// <https://docs.aws.amazon.com/AmazonECS/latest/userguide/task-cpu-memory-error.html>.
const TASK_MEMORY_GB: std::ops::RangeInclusive<f64> = 4.0..=16.0;
/// Bytes/s that a task reads, assumed; a record comes as base64, with 200 bytes around it.
const TASK_BYTES_PER_SECOND: f64 = 100e6;
const RECORD_BYTES: f64 = 1000.0;
const WIRE_BYTES: f64 = RECORD_BYTES * 4.0 / 3.0 + 200.0;
/// The worker's defaults.
const BATCH: f64 = 1000.0;
const LINGER_SECONDS: f64 = 1.0;
const IN_FLIGHT: f64 = 8.0;
const BUFFER_MIB: f64 = 64.0;
const DEDUP_KEYS: f64 = 5e6;
const DEDUP_WINDOW_SECONDS: f64 = 120.0;
const ASSUMED_REQUESTS_PER_SECOND: f64 = 10.0;
/// What `BUFFER_MAX_BYTES` is charged with: see `ingest-worker/src/reader.rs`.
const BUFFERED_BYTES: f64 = 3.0 * RECORD_BYTES + 256.0;
const RESERVED_BYTES: f64 = 4.0 * MIB;
const MIB: f64 = 1024.0 * 1024.0;
/// Batches of a shard in the buffer: one waits for its linger, one is in flight.
const BATCHES: f64 = 2.0;
/// How long Amberflo takes to answer, assumed; and how much of what may be in flight that uses.
const ANSWER_SECONDS: f64 = 0.2;
const IN_FLIGHT_FILL: f64 = 0.5;
/// Where it was not measured.
const BYTES_PER_KEY: f64 = 40.0;
/// Amberflo's guardrails for a meter.
const METER_EVENTS_PER_HOUR: f64 = 1e6;
const ROLL_UP_EVENTS_PER_HOUR: f64 = 100e6;
/// Of a lease in the table, estimated.
const LEASE_BYTES: f64 = 400.0;
/// A scan reads all, eventually consistently: half a unit for 4 KB.
const READ_UNIT_BYTES: f64 = 8192.0;
/// The last way: one record of each tenant and meter in this time.
const TENANTS: f64 = 100_000.0;
const METERS: f64 = 5.0;
const AGGREGATED_SECONDS: f64 = 600.0;

/// What was measured.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// The shards of the backlog that is nearest to what a task gets.
    backlog_shards: f64,
    /// Of that backlog: its shards have more than they can give.
    backlog_cpu_micros: f64,
    /// Of a steady load on shards about as busy as those of the plan, with all that a worker does besides: more than it
    /// will be.
    steady_cpu_micros: f64,
    lease_writes_per_shard_minute: f64,
    lease_scans_per_worker_minute: f64,
    wire_bytes_per_event: f64,
    /// Of a worker with one shard.
    process_mib: f64,
    bytes_per_key: Option<f64>,
}

/// One way to bring the events to Amberflo.
#[derive(Clone, Copy, Debug)]
struct Way {
    name: &'static str,
    has_event_bridge: bool,
    /// Events/s on the stream.
    rate: f64,
    /// `BATCH_LINGER`.
    linger_seconds: f64,
}

/// In the first two a batch of 1,000 takes 1.25 s to fill.
const WAYS: [Way; 3] = [
    Way {
        name: "EventBridge, then Kinesis",
        has_event_bridge: true,
        rate: EVENTS_PER_SECOND,
        linger_seconds: 2.0 * LINGER_SECONDS,
    },
    Way {
        name: "straight to Kinesis",
        has_event_bridge: false,
        rate: EVENTS_PER_SECOND,
        linger_seconds: 2.0 * LINGER_SECONDS,
    },
    Way {
        name: "summed up first, then Kinesis",
        has_event_bridge: false,
        rate: TENANTS * METERS / AGGREGATED_SECONDS,
        linger_seconds: LINGER_SECONDS,
    },
];

/// What it takes.
struct Needs {
    shards: f64,
    cores: f64,
    tasks: f64,
    /// When one task has failed.
    shards_of_a_task: f64,
    events_per_request: f64,
    requests_per_second: f64,
    max_in_flight: f64,
    buffer_mib: f64,
    dedup_keys: f64,
    memory_mib: f64,
    task_memory_gb: f64,
    lease_writes_per_second: f64,
    lease_reads_per_second: f64,
}

impl Measured {
    /// From the backlog whose shards are nearest to those that a task gets; `None` without points.
    fn of(points: &[Point], bytes_per_key: Option<f64>, way: &Way) -> Option<Self> {
        let busiest = points.iter().min_by_key(|point| point.shards)?;
        let with = |backlog: &Point| Self {
            backlog_shards: backlog.shards as f64,
            backlog_cpu_micros: backlog.drained.cpu_micros_per_event,
            steady_cpu_micros: busiest.unlimited.cpu_micros_per_event,
            lease_writes_per_shard_minute: busiest.lease_writes_per_shard_minute(),
            lease_scans_per_worker_minute: busiest.unlimited.lease_scans_per_minute,
            wire_bytes_per_event: backlog.drained.wire_bytes_per_event,
            process_mib: busiest.unlimited.peak_resident_mib,
            bytes_per_key,
        };
        let distance = |measured: &Self| {
            let needs = way.needs(measured);
            (measured.backlog_shards * needs.tasks / needs.shards).ln().abs()
        };
        points.iter().map(with).min_by(|one, other| distance(one).total_cmp(&distance(other)))
    }
}

impl Way {
    fn needs(&self, measured: &Measured) -> Needs {
        let shards = (self.rate / RECORDS_PER_SHARD_SECOND / SHARD_FILL).ceil();
        let cores = self.rate * measured.backlog_cpu_micros.max(measured.steady_cpu_micros) / 1e6;
        let by_cpu = cores / CPU_FILL / TASK_CPUS;
        let by_network = self.rate * WIRE_BYTES / TASK_BYTES_PER_SECOND;
        // Two, so that one may fail.
        let tasks = by_cpu.max(by_network).ceil().max(2.0);
        let scan_units = (shards * LEASE_BYTES / READ_UNIT_BYTES).ceil();
        // A task must do when another has failed.
        let others = tasks - 1.0;
        let shards_of_a_task = (shards / others).ceil();
        let events_per_request = (self.rate / shards * self.linger_seconds).min(BATCH);
        let requests_per_second = self.rate / events_per_request;
        let max_in_flight = requests_per_second / others * ANSWER_SECONDS / IN_FLIGHT_FILL;
        let buffer = shards_of_a_task * (BATCHES * events_per_request * BUFFERED_BYTES + RESERVED_BYTES);
        let buffer_mib = ((buffer / MIB / BUFFER_MIB).ceil() * BUFFER_MIB).max(BUFFER_MIB);
        let dedup_keys = self.rate * DEDUP_WINDOW_SECONDS / others;
        let keys_mib = dedup_keys * measured.bytes_per_key.unwrap_or(BYTES_PER_KEY) / MIB;
        let memory_mib = measured.process_mib + keys_mib + buffer_mib;
        let memory_gb = (memory_mib / 1024.0 / MEMORY_FILL).ceil();
        Needs {
            shards,
            cores,
            tasks,
            shards_of_a_task,
            events_per_request,
            requests_per_second,
            max_in_flight: max_in_flight.ceil().max(IN_FLIGHT),
            buffer_mib,
            dedup_keys,
            memory_mib,
            task_memory_gb: memory_gb.clamp(*TASK_MEMORY_GB.start(), *TASK_MEMORY_GB.end()),
            lease_writes_per_second: shards * measured.lease_writes_per_shard_minute / 60.0,
            lease_reads_per_second: tasks * measured.lease_scans_per_worker_minute / 60.0 * scan_units,
        }
    }
}

/// The plan. `origin` says how and when the figures were taken.
pub fn report(
    points: &[Point],
    bytes_per_key: Option<f64>,
    origin: &str,
    report: &mut ReportDir,
) -> anyhow::Result<()> {
    let measured = WAYS.each_ref().map(|way| Measured::of(points, bytes_per_key, way));
    let [Some(first), Some(second), Some(third)] = measured else { return Ok(()) };
    report.text(&format!(
        "Computed from the figures above ({origin}), and from the prices in `infra/costs.mjs` (list prices of {}, {}).",
        text("region")?,
        text("taken")?,
    ));
    report.text(&format!(
        "Measured: {} µs of CPU an event of a backlog on {} shards, which is nearest to what a task gets; {} µs of a steady load on \
         the fewest shards, in which all else is that a worker does: the larger one counts. {} lease writes a minute of a busy shard, \
         {} scans of the leases a minute of a worker, {} bytes an event to Amberflo, {} bytes of a dedup key, {} MiB of a worker with \
         little to do.",
        number(first.backlog_cpu_micros, 2),
        number(first.backlog_shards, 0),
        number(first.steady_cpu_micros, 2),
        number(first.lease_writes_per_shard_minute, 1),
        number(first.lease_scans_per_worker_minute, 1),
        number(first.wire_bytes_per_event, 1),
        bytes_per_key.map_or(format!("(not measured: {BYTES_PER_KEY})"), |bytes| number(bytes, 1)),
        number(first.process_mib, 0),
    ));
    report.text(&format!(
        "Assumed: records of {} bytes; shards {} % full; tasks of {TASK_CPUS} vCPU, {} % busy, that read {} MB/s at most (that was not \
         measured, nor was TLS), and whose memory is {} % full; Amberflo answers after {} ms, and what may be in flight is half used; \
         {} bytes a lease; endpoints and NAT gateways in two zones. The settings are those with which the others can do when a task \
         has failed; a buffer holds of each shard a batch that waits, one in flight, and a page. `RATE_REQUESTS_PER_SECOND` is what \
         Amberflo agrees to. The last way: {} tenants with {METERS} meters, for each of which the application puts one sum in {} \
         minutes.",
        number(RECORD_BYTES, 0),
        number(100.0 * SHARD_FILL, 0),
        number(100.0 * CPU_FILL, 0),
        number(TASK_BYTES_PER_SECOND / 1e6, 0),
        number(100.0 * MEMORY_FILL, 0),
        number(1000.0 * ANSWER_SECONDS, 0),
        number(LEASE_BYTES, 0),
        number(TENANTS, 0),
        number(AGGREGATED_SECONDS / 60.0, 0),
    ));
    let measured = [first, second, third];
    report.table(["", WAYS[0].name, WAYS[1].name, WAYS[2].name], &rows(&measured)?);
    report.text(&format!(
        "Through EventBridge, its part is {} times all the rest.",
        number(Costs::of(&WAYS[0], &WAYS[0].needs(&first))?.event_bridge_share(), 0)
    ));
    Ok(())
}

fn rows(measured: &[Measured; 3]) -> anyhow::Result<Vec<[String; 4]>> {
    let needs: [Needs; 3] = std::array::from_fn(|index| WAYS[index].needs(&measured[index]));
    let month = price("hoursPerMonth")? * 3600.0;
    let row = |name: &str, decimals: usize, of: &dyn Fn(usize) -> f64| {
        [name.to_owned(), number(of(0), decimals), number(of(1), decimals), number(of(2), decimals)]
    };
    let need = |name: &str, decimals: usize, of: fn(&Needs) -> f64| row(name, decimals, &|index| of(&needs[index]));
    let rate = |index: usize| WAYS[index].rate;
    let an_hour = |index: usize| rate(index) * 3600.0;
    let mut rows = vec![
        row("events/s on the stream", 0, &rate),
        need("shards", 0, |needs| needs.shards),
        need("cores busy with it, at most", 2, |needs| needs.cores),
        need("tasks", 0, |needs| needs.tasks),
        need("shards of a task, when one has failed", 0, |needs| needs.shards_of_a_task),
        row("`BATCH_LINGER`, s", 0, &|index| WAYS[index].linger_seconds),
        need("`MAX_IN_FLIGHT`", 0, |needs| needs.max_in_flight),
        need("`BUFFER_MAX_BYTES`, MiB", 0, |needs| needs.buffer_mib),
        need("`DEDUP_MAX_KEYS` (5 million if fewer are held)", 0, |needs| needs.dedup_keys.max(DEDUP_KEYS)),
        need("memory that a task uses, MiB", 0, |needs| needs.memory_mib),
        need("memory of a task, GB", 0, |needs| needs.task_memory_gb),
        need("events in a request", 0, |needs| needs.events_per_request),
        need("requests/s to Amberflo", 1, |needs| needs.requests_per_second),
        need("times the 10 requests/s that are assumed", 1, |needs| {
            needs.requests_per_second / ASSUMED_REQUESTS_PER_SECOND
        }),
        row("MB/s from Kinesis", 1, &|index| rate(index) * WIRE_BYTES / 1e6),
        row("MB/s to Amberflo", 1, &|index| rate(index) * measured[index].wire_bytes_per_event / 1e6),
        row("million events an hour", 1, &|index| an_hour(index) / 1e6),
        row("meters, at 1 million an hour each", 0, &|index| (an_hour(index) / METER_EVENTS_PER_HOUR).ceil()),
        row("roll-up meters, at 100 million", 0, &|index| (an_hour(index) / ROLL_UP_EVENTS_PER_HOUR).ceil()),
        need("DynamoDB writes/s", 1, |needs| needs.lease_writes_per_second),
        row("million events a month", 0, &|index| rate(index) * month / 1e6),
    ];
    let [first, second, third] = [0, 1, 2].map(|index| Costs::of(&WAYS[index], &needs[index]));
    let costs = [first?, second?, third?];
    let dollars =
        |name: &str, of: &dyn Fn(&Costs) -> f64| row(&format!("{name}, US$ a month"), 0, &|index| of(&costs[index]));
    rows.extend(costs[0].items.iter().enumerate().map(|(item, (name, _))| dollars(name, &|of| of.items[item].1)));
    rows.push(dollars("**in all**", &Costs::sum));
    rows.push(dollars("not in it: the same reading through a NAT gateway", &|of| of.through_nat));
    Ok(rows)
}

#[cfg(test)]
mod tests;
