//! On paper: what a deployment for 1 million events/s takes, from what was measured and AWS's list prices.

use anyhow::Context as _;

use super::results::number;
use super::shards::Point;
use crate::report_dir::ReportDir;

/// The prices are those of the table in `infra/README.md`: one place for all.
const PRICES: &str = include_str!("../../../infra/costs.mjs");

const EVENTS_PER_SECOND: f64 = 1e6;
/// What a shard takes: <https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html>. A record with its
/// envelope is below 1 KB, so that the records bind, not the 1 MB/s.
const RECORDS_PER_SHARD_SECOND: f64 = 1000.0;
/// How full shards are: keys are never spread quite evenly.
const SHARD_FILL: f64 = 0.8;
/// How busy a task's cores are: when one fails the others take its shards and catch up; and TLS was not measured.
const CPU_FILL: f64 = 0.3;
const TASK_CPUS: f64 = 2.0;
const TASK_MEMORY_GB: f64 = 4.0;
/// Bytes/s that a task reads, assumed; a record comes as base64, with 200 bytes around it.
const TASK_BYTES_PER_SECOND: f64 = 100e6;
const RECORD_BYTES: f64 = 1000.0;
const WIRE_BYTES: f64 = RECORD_BYTES * 4.0 / 3.0 + 200.0;
/// The worker's defaults.
const BATCH: f64 = 1000.0;
const DEDUP_WINDOW_SECONDS: f64 = 120.0;
const ASSUMED_REQUESTS_PER_SECOND: f64 = 10.0;
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
    cpu_micros_per_event: f64,
    lease_writes_per_shard_minute: f64,
    lease_scans_per_worker_minute: f64,
    wire_bytes_per_event: f64,
    bytes_per_key: Option<f64>,
}

/// One way to bring the events to Amberflo.
#[derive(Clone, Copy, Debug)]
struct Way {
    name: &'static str,
    has_event_bridge: bool,
    /// Events/s on the stream.
    rate: f64,
}

const WAYS: [Way; 3] = [
    Way { name: "EventBridge, then Kinesis", has_event_bridge: true, rate: EVENTS_PER_SECOND },
    Way { name: "straight to Kinesis", has_event_bridge: false, rate: EVENTS_PER_SECOND },
    Way { name: "summed up first, then Kinesis", has_event_bridge: false, rate: TENANTS * METERS / AGGREGATED_SECONDS },
];

/// What it takes.
struct Needs {
    shards: f64,
    cores: f64,
    tasks: f64,
    lease_writes_per_second: f64,
    lease_reads_per_second: f64,
}

impl Way {
    fn needs(&self, measured: &Measured) -> Needs {
        let shards = (self.rate / RECORDS_PER_SHARD_SECOND / SHARD_FILL).ceil();
        let cores = self.rate * measured.cpu_micros_per_event / 1e6;
        let by_cpu = cores / CPU_FILL / TASK_CPUS;
        let by_network = self.rate * WIRE_BYTES / TASK_BYTES_PER_SECOND;
        // Two, so that one may fail.
        let tasks = by_cpu.max(by_network).ceil().max(2.0);
        let scan_units = (shards * LEASE_BYTES / READ_UNIT_BYTES).ceil();
        Needs {
            shards,
            cores,
            tasks,
            lease_writes_per_second: shards * measured.lease_writes_per_shard_minute / 60.0,
            lease_reads_per_second: tasks * measured.lease_scans_per_worker_minute / 60.0 * scan_units,
        }
    }

    /// US dollars a month, by what they are for.
    fn costs(&self, needs: &Needs) -> anyhow::Result<[(&'static str, f64); 6]> {
        let hours = price("hoursPerMonth")?;
        let millions = |per_second: f64| per_second * 3600.0 * hours / 1e6;
        let bridge = if self.has_event_bridge { millions(self.rate) * price("eventBridgePerMillion")? } else { 0.0 };
        let task = TASK_CPUS * price("vcpuHour")? + TASK_MEMORY_GB * price("gbHour")?;
        Ok([
            ("EventBridge: events put", bridge),
            ("Kinesis: records put", millions(self.rate) * price("putPerMillion")?),
            ("Kinesis: shards", needs.shards * price("shardHour")? * hours),
            ("Fargate: tasks", needs.tasks * task * hours),
            ("DynamoDB: writes", millions(needs.lease_writes_per_second) * price("tableWritePerMillion")?),
            ("DynamoDB: reads", millions(needs.lease_reads_per_second) * price("tableReadPerMillion")?),
        ])
    }
}

pub fn report(points: &[Point], bytes_per_key: Option<f64>, report: &mut ReportDir) -> anyhow::Result<()> {
    let Some(dense) = points.first() else { return Ok(()) };
    let measured = Measured {
        // The dearest, to be on the safe side.
        cpu_micros_per_event: points.iter().map(|p| p.drained.cpu_micros_per_event).fold(0.0, f64::max),
        lease_writes_per_shard_minute: dense.lease_writes_per_shard_minute(),
        lease_scans_per_worker_minute: dense.unlimited.lease_scans_per_minute,
        wire_bytes_per_event: dense.drained.wire_bytes_per_event,
        bytes_per_key,
    };
    report.text(&format!(
        "Computed from the figures above, and from the prices in `infra/costs.mjs` (list prices of {}, {}). Measured: {} µs of CPU an \
         event (the dearest number of shards), {} lease writes a minute of a busy shard, {} scans of the leases a minute of a \
         worker, {} bytes an event to Amberflo, {} bytes of a dedup key. Assumed: records of {} bytes; shards {} % full; tasks of \
         {TASK_CPUS} vCPU and {TASK_MEMORY_GB} GB, {} % busy, that read {} MB/s at most (that was not measured, nor was TLS); {} bytes a \
         lease. The last way: {} tenants with {METERS} meters, for each of which the application puts one sum in {} minutes.",
        text("region")?,
        text("taken")?,
        number(measured.cpu_micros_per_event, 2),
        number(measured.lease_writes_per_shard_minute, 1),
        number(measured.lease_scans_per_worker_minute, 1),
        number(measured.wire_bytes_per_event, 1),
        measured.bytes_per_key.map_or("(not measured)".to_owned(), |bytes| number(bytes, 1)),
        number(RECORD_BYTES, 0),
        number(100.0 * SHARD_FILL, 0),
        number(100.0 * CPU_FILL, 0),
        number(TASK_BYTES_PER_SECOND / 1e6, 0),
        number(LEASE_BYTES, 0),
        number(TENANTS, 0),
        number(AGGREGATED_SECONDS / 60.0, 0),
    ));
    report.table(["", WAYS[0].name, WAYS[1].name, WAYS[2].name], &rows(&measured)?);
    Ok(())
}

fn rows(measured: &Measured) -> anyhow::Result<Vec<[String; 4]>> {
    let needs = WAYS.map(|way| way.needs(measured));
    let month = price("hoursPerMonth")? * 3600.0;
    let keys = |index: usize| WAYS[index].rate * DEDUP_WINDOW_SECONDS / needs[index].tasks;
    let key_bytes = measured.bytes_per_key.unwrap_or(40.0);
    let row = |name: &str, decimals: usize, of: &dyn Fn(usize) -> f64| {
        [name.to_owned(), number(of(0), decimals), number(of(1), decimals), number(of(2), decimals)]
    };
    let rate = |index: usize| WAYS[index].rate;
    let an_hour = |index: usize| rate(index) * 3600.0;
    let mut rows = vec![
        row("events/s on the stream", 0, &rate),
        row("shards", 0, &|index| needs[index].shards),
        row("cores busy with it", 2, &|index| needs[index].cores),
        row("tasks", 0, &|index| needs[index].tasks),
        row("shards of a task", 0, &|index| needs[index].shards / needs[index].tasks),
        row("dedup keys of a task (`DEDUP_MAX_KEYS`)", 0, &keys),
        row("memory for them, MiB", 0, &|index| keys(index) * key_bytes / f64::from(1 << 20)),
        row("requests/s to Amberflo, if full", 1, &|index| rate(index) / BATCH),
        row("times the 10 requests/s that are assumed", 1, &|index| rate(index) / BATCH / ASSUMED_REQUESTS_PER_SECOND),
        row("MB/s to Amberflo", 1, &|index| rate(index) * measured.wire_bytes_per_event / 1e6),
        row("million events an hour", 1, &|index| an_hour(index) / 1e6),
        row("meters, at 1 million an hour each", 0, &|index| (an_hour(index) / METER_EVENTS_PER_HOUR).ceil()),
        row("roll-up meters, at 100 million", 0, &|index| (an_hour(index) / ROLL_UP_EVENTS_PER_HOUR).ceil()),
        row("DynamoDB writes/s", 1, &|index| needs[index].lease_writes_per_second),
        row("million events a month", 0, &|index| rate(index) * month / 1e6),
    ];
    let [first, second, third] = [0, 1, 2].map(|index| WAYS[index].costs(&needs[index]));
    let (first, second, third) = (first?, second?, third?);
    for (index, (name, _)) in first.iter().enumerate() {
        rows.push(dollars(name, [first[index].1, second[index].1, third[index].1]));
    }
    let sum = |costs: &[(&str, f64)]| costs.iter().map(|(_, cost)| cost).sum();
    rows.push(dollars("**in all**", [sum(&first), sum(&second), sum(&third)]));
    Ok(rows)
}

fn dollars(name: &str, costs: [f64; 3]) -> [String; 4] {
    let [first, second, third] = costs.map(|cost| number(cost, 0));
    [format!("{name}, US$ a month"), first, second, third]
}

/// A number of `costs.mjs`.
fn price(name: &str) -> anyhow::Result<f64> {
    text(name)?.parse().with_context(|| format!("infra/costs.mjs: {name} is no number"))
}

fn text(name: &str) -> anyhow::Result<&'static str> {
    let value = PRICES.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": ")?.strip_suffix(','));
    value.map(|value| value.trim_matches('\'')).with_context(|| format!("infra/costs.mjs has no {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEASURED: Measured = Measured {
        cpu_micros_per_event: 6.0,
        lease_writes_per_shard_minute: 30.0,
        lease_scans_per_worker_minute: 30.0,
        wire_bytes_per_event: 60.0,
        bytes_per_key: Some(40.0),
    };

    #[test]
    fn a_million_events_a_second_need_what_their_limits_say() {
        let needs = WAYS[1].needs(&MEASURED);
        assert_eq!((needs.shards, needs.cores), (1250.0, 6.0));
        // By the network: 1.53 GB/s; six cores at 30 % would be ten.
        assert_eq!(needs.tasks, 16.0);
        assert_eq!(needs.lease_writes_per_second, 625.0);
        // 62 units a scan, which each worker makes every two seconds.
        assert_eq!(needs.lease_reads_per_second, 16.0 * 0.5 * 62.0);
    }

    #[test]
    fn event_bridge_is_all_but_the_whole_bill() {
        let costs = WAYS[0].costs(&WAYS[0].needs(&MEASURED)).unwrap();
        // 730 hours, a dollar for each of 2,628,000 million events.
        assert_eq!(costs[0].1, 2_628_000.0);
        assert!(costs[1..].iter().map(|cost| cost.1).sum::<f64>() < 0.05 * costs[0].1);
        assert_eq!(WAYS[1].costs(&WAYS[1].needs(&MEASURED)).unwrap()[0].1, 0.0);
    }

    #[test]
    fn every_price_is_found() {
        rows(&MEASURED).unwrap();
        assert_eq!(text("region").unwrap(), "us-east-1");
        assert!(price("hoursPerMont").is_err());
    }
}
