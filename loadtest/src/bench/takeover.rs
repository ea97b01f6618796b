//! How long nobody works on a shard when its worker ends.

use std::sync::Arc;
use std::time::Duration;

use shared::clock::{Clock, millis};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::fleet::{Fleet, Place, wait_for};
use super::flow::{Fill, Flow, RECORD_BYTES};
use super::measure::{heading, row, skipped};

const TITLE: &str = "Takeover: two worker processes, one is told to end";
/// Of each kind, because the answer depends on when the last renewal was.
const IDLE_SHARDS: u32 = 3;
const FAILOVER: Duration = Duration::from_secs(10);
/// 1 MB/s: the most that a shard takes.
const RECORDS_PER_SECOND: u32 = 1000;
const BYTES_PER_SECOND: f64 = RECORDS_PER_SECOND as f64 * RECORD_BYTES as f64;
/// The most that a shard gives.
const READ_BYTES_PER_SECOND: f64 = 2e6;
const START_LIMIT: Duration = Duration::from_secs(30);
/// Checkpoints are written every 2 s.
const CHECKPOINTED: Duration = Duration::from_secs(4);
/// Tables are looked at every 2 s.
const LOOKED_AT: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Kill,
    Term,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    Idle,
    Full,
}

struct Takeover {
    end: End,
    load: Load,
    /// From the signal to the other worker's first call for the shard.
    lease: Duration,
    /// From the signal to the other worker's first request to Amberflo.
    delivery: Duration,
}

/// Prints takeover times. The time of a full shard grows with the window.
pub async fn run(dedup_window: Duration) -> anyhow::Result<()> {
    let fleet = match Fleet::start().await {
        Ok(fleet) => fleet,
        Err(reason) => {
            skipped(TITLE, &reason);
            return Ok(());
        }
    };
    let (fleet, flow) = (Arc::new(fleet), Arc::new(Flow::start().await?));
    let mut cases = JoinSet::new();
    for end in [End::Kill, End::Term] {
        for (load, phase) in (0..IDLE_SHARDS).map(|phase| (Load::Idle, phase)).chain([(Load::Full, 0)]) {
            let (fleet, flow) = (Arc::clone(&fleet), Arc::clone(&flow));
            cases.spawn(async move { take_over(&fleet, &flow, dedup_window, end, load, phase).await });
        }
    }
    let mut takeovers = Vec::new();
    while let Some(takeover) = cases.join_next().await {
        takeovers.push(takeover??);
    }
    let reach = dedup_window + ingest_worker::shard::REBUILD_SLACK;
    let megabytes = reach.as_secs_f64() * BYTES_PER_SECOND / 1e6;
    let seconds = megabytes * 1e6 / READ_BYTES_PER_SECOND;
    heading(
        TITLE,
        &[
            &format!("FAILOVER_TIME=10s, DEDUP_WINDOW={}; leases in moto", humantime::format_duration(dedup_window)),
            &format!("idle shard: one event long ago, one at the signal; {IDLE_SHARDS} of each, shortest to longest"),
            "full shard: 1,000 records of 1,000 bytes a second, before, during and after, from an endpoint of ours",
            "  (the emulator takes about 1,000 records a second in all: not used); one of each",
            "lease: from the signal until the other worker opens the shard; delivery: until its first request arrives",
            "a delivery includes BATCH_LINGER=1s; a full shard's also the rebuild of the dedup window:",
            &format!("  {megabytes:.0} MB, which Kinesis gives at 2 MB/s, as the reader asks for it: {seconds:.0} s"),
            "  (then what arrived meanwhile is read at 2 MB/s, while 1 MB/s arrives: as long again until it is level)",
        ],
    );
    row("", ["lease".to_owned(), "delivery".to_owned()]);
    for (name, end, load) in [
        ("SIGTERM, idle shard", End::Term, Load::Idle),
        ("SIGTERM, full shard", End::Term, Load::Full),
        ("SIGKILL, idle shard", End::Kill, Load::Idle),
        ("SIGKILL, full shard", End::Kill, Load::Full),
    ] {
        let range = |time: fn(&Takeover) -> Duration| {
            let ours = takeovers.iter().filter(|takeover| takeover.end == end && takeover.load == load);
            let times: Vec<f64> = ours.map(|takeover| time(takeover).as_secs_f64()).collect();
            let (least, most) =
                (times.iter().copied().fold(f64::NAN, f64::min), times.iter().copied().fold(0.0, f64::max));
            if times.len() > 1 { format!("{least:.1} to {most:.1} s") } else { format!("{most:.1} s") }
        };
        row(name, [range(|takeover| takeover.lease), range(|takeover| takeover.delivery)]);
    }
    Ok(())
}

async fn take_over(
    fleet: &Fleet,
    flow: &Flow,
    dedup_window: Duration,
    end: End,
    load: Load,
    phase: u32,
) -> anyhow::Result<Takeover> {
    let now = Clock::system().now();
    let reach = dedup_window + ingest_worker::shard::REBUILD_SLACK;
    let stream = &format!("{load:?}-{end:?}-{phase}");
    let (fill, initial_position) = match load {
        Load::Idle => (Fill::At(vec![now]), "trim-horizon"),
        Load::Full => (Fill::Steady { since: now - millis(reach), per_second: RECORDS_PER_SECOND }, "latest"),
    };
    flow.add(stream, 1, fill);
    let place = Place { kinesis: &flow.url, dynamodb: &fleet.moto.url, stream };
    let window = humantime::format_duration(dedup_window).to_string();
    let settings = [("INITIAL_POSITION", initial_position), ("DEDUP_WINDOW", &window)];

    let mut first = fleet.worker(place, &settings).await?;
    wait_for("the first worker delivers", START_LIMIT, || first.has_delivered().then_some(())).await?;
    let second = fleet.worker(place, &settings).await?;
    sleep(CHECKPOINTED.max(LOOKED_AT) + phase * FAILOVER / 3 / IDLE_SHARDS).await;
    anyhow::ensure!(!second.has_delivered(), "{stream}: the second worker did not wait for its turn");

    let signalled = Instant::now();
    flow.put(stream);
    let ending = tokio::spawn(async move {
        match end {
            End::Kill => first.process.kill().await,
            End::Term => {
                let status = first.process.terminate().await?;
                anyhow::ensure!(status.success(), "drained with {status}");
                Ok(())
            }
        }
    });
    let limit = 4 * FAILOVER + 2 * reach;
    let lease = wait_for("the lease is taken", limit, || flow.opened_after(stream, signalled)).await? - signalled;
    wait_for("the second worker delivers", limit, || second.has_delivered().then_some(())).await?;
    let delivery = signalled.elapsed();
    ending.await??;
    Ok(Takeover { end, load, lease, delivery })
}
