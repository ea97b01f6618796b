//! What leases cost in DynamoDB.

use std::time::Duration;

use emulators::Throttle;
use shared::clock::Clock;
use tokio::time::{Instant, sleep};

use super::fleet::{Fleet, Place, wait_for};
use super::flow::{Fill, Flow};
use super::measure::{heading, row, skipped};

const TITLE: &str = "Lease table: calls, counted in front of it";
const SHARDS: usize = 8;
/// Enough that something is settled between any two checkpoints.
const RECORDS_PER_SECOND: u32 = 20;
const START_LIMIT: Duration = Duration::from_secs(30);
/// All shards write in their rhythm by then.
const SETTLED: Duration = Duration::from_secs(8);

/// Prints the calls of a worker, counted for so long.
pub async fn run(duration: Duration) -> anyhow::Result<()> {
    let fleet = match Fleet::start().await {
        Ok(fleet) => fleet,
        Err(reason) => {
            skipped(TITLE, &reason);
            return Ok(());
        }
    };
    let flow = Flow::start().await?;
    let now = Clock::system().now();
    flow.add("idle", SHARDS, Fill::At(vec![now]));
    flow.add("busy", SHARDS, Fill::Steady { since: now, per_second: RECORDS_PER_SECOND });
    let (idle, busy) =
        tokio::try_join!(count(&fleet, &flow, "idle", duration), count(&fleet, &flow, "busy", duration))?;
    heading(
        TITLE,
        &[
            &format!("two worker processes, FAILOVER_TIME=10s, each with {SHARDS} shards of its own; leases in moto"),
            &format!("busy: {RECORDS_PER_SECOND} records a second in every shard; counted for {duration:?}"),
            "(the KCL's renewals alone are about 18 writes a shard and minute; its checkpoints come on top)",
        ],
    );
    let each = |count: u64, of: usize| format!("{:.1}", count as f64 / of as f64 * 60.0 / duration.as_secs_f64());
    row("", ["idle".to_owned(), "busy".to_owned()]);
    row("UpdateItem per shard and minute", [each(idle.updates, SHARDS), each(busy.updates, SHARDS)]);
    row("Scan per worker and minute", [each(idle.scans, 1), each(busy.scans, 1)]);
    row("all else in that time", [idle.others.to_string(), busy.others.to_string()]);
    Ok(())
}

struct Counted {
    updates: u64,
    scans: u64,
    others: u64,
}

async fn count(fleet: &Fleet, flow: &Flow, stream: &str, duration: Duration) -> anyhow::Result<Counted> {
    let table = Throttle::start(&fleet.moto.url).await;
    let place = Place { kinesis: &flow.url, dynamodb: &table.url, stream };
    let mut worker = fleet.worker(place, &[]).await?;
    let all = SHARDS as u64;
    wait_for("all shards are delivered from", START_LIMIT, || (worker.delivered() >= all).then_some(())).await?;
    sleep(SETTLED).await;
    let seen = || {
        let calls = table.all_calls();
        let all = calls.values().map(|calls| calls.arrived).sum::<u64>();
        let [updates, scans] = ["UpdateItem", "Scan"].map(|name| calls.get(name).map_or(0, |calls| calls.arrived));
        Counted { updates, scans, others: all - updates - scans }
    };
    let (before, started) = (seen(), Instant::now());
    sleep(duration).await;
    let (after, took) = (seen(), started.elapsed());
    worker.process.check()?;
    anyhow::ensure!(took < duration + Duration::from_secs(1), "counted for {took:?} instead of {duration:?}");
    Ok(Counted {
        updates: after.updates - before.updates,
        scans: after.scans - before.scans,
        others: after.others - before.others,
    })
}
