//! What shards cost in which nothing happens.

use std::time::Duration;

use anyhow::Context as _;
use emulators::{CannedKinesis, CannedSettings, CannedShard};
use tokio::time::{Instant, sleep};

use super::fleet::{Fleet, Place, wait_for};
use super::measure::{cpu_time_of, heading, mebibytes, memory_of, row, skipped};

const TITLE: &str = "Idle shards: what a worker process spends on them";
const FEW: usize = 1;
const MANY: usize = 200;
const START_LIMIT: Duration = Duration::from_secs(60);
/// All shards are held, and have been read some times.
const SETTLED: Duration = Duration::from_secs(10);
const SAMPLES: u32 = 20;
const SAMPLE_EVERY: Duration = Duration::from_millis(500);

/// Prints a worker's memory, CPU time and calls with many idle shards beside those with one.
pub async fn run() -> anyhow::Result<()> {
    let fleet = match Fleet::start().await {
        Ok(fleet) => fleet,
        Err(reason) => {
            skipped(TITLE, &reason);
            return Ok(());
        }
    };
    let (few, many) = tokio::try_join!(hold(&fleet, FEW), hold(&fleet, MANY))?;
    let (memory, cpu) = match (few.resident.zip(many.resident), few.cpu.zip(many.cpu)) {
        (Some((few, many)), Some(cpu)) => (many.saturating_sub(few), cpu.1.saturating_sub(cpu.0)),
        _ => {
            skipped(TITLE, "there is no /proc");
            return Ok(());
        }
    };
    heading(
        TITLE,
        &[
            "canned Kinesis endpoint over loopback sockets, leases in moto, default settings",
            "(TLS to the real services takes more memory for each open connection)",
        ],
    );
    row("", [format!("{FEW} shard"), format!("{MANY} shards"), "each more".to_owned()]);
    let each = (MANY - FEW) as f64;
    let [resident_few, resident_many] = [&few, &many].map(|seen| mebibytes(seen.resident.unwrap_or_default()));
    row("VmRSS, mean", [resident_few, resident_many, format!("{:.1} KiB", memory as f64 / each / 1024.0)]);
    let share = |seen: &Seen| format!("{:.1} %", 100.0 * seen.cpu.unwrap_or_default().as_secs_f64() / seen.seconds);
    let each_cpu = format!("{:.2} %", 100.0 * cpu.as_secs_f64() / many.seconds / each);
    row("CPU time, of one core", [share(&few), share(&many), each_cpu]);
    let reads = |seen: &Seen, shards: usize| format!("{:.2}", seen.reads as f64 / seen.seconds / shards as f64);
    row("GetRecords per second and shard", [reads(&few, FEW), reads(&many, MANY), String::new()]);
    Ok(())
}

struct Seen {
    resident: Option<u64>,
    cpu: Option<Duration>,
    reads: u64,
    seconds: f64,
}

async fn hold(fleet: &Fleet, shards: usize) -> anyhow::Result<Seen> {
    let endpoint = CannedKinesis::start(vec![CannedShard::idle(); shards], CannedSettings::default());
    let stream = &format!("idle-{shards}");
    let place = Place { kinesis: &endpoint.url, dynamodb: &fleet.moto.url, stream };
    let mut worker = fleet.worker(place, &[]).await?;
    let process = worker.process.id().context("the worker has ended")?;
    let enough = 2 * shards as u64;
    wait_for("all shards are read", START_LIMIT, || (endpoint.reads() >= enough).then_some(())).await?;
    sleep(SETTLED).await;
    let (started, cpu, reads) = (Instant::now(), cpu_time_of(process), endpoint.reads());
    let mut resident = Some(0);
    for _ in 0..SAMPLES {
        sleep(SAMPLE_EVERY).await;
        resident = resident.zip(memory_of(process)).map(|(sum, memory)| sum + memory.now);
    }
    let seen = Seen {
        resident: resident.map(|sum| sum / u64::from(SAMPLES)),
        cpu: cpu_time_of(process).zip(cpu).map(|(now, before)| now - before),
        reads: endpoint.reads() - reads,
        seconds: started.elapsed().as_secs_f64(),
    };
    worker.process.check()?;
    Ok(seen)
}
