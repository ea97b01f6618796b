//! An outage that a worker lives through: the sink refuses everything for a while, and new events come all the time.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::clock::{Clock, millis};
use tokio::time::Instant;

use super::Size;
use super::outage::{BEHIND, RATE, SHARDS};
use super::results::number;
use super::worker::{Worker, fleet, mebibytes, on_kinesis};
use crate::bench::fleet::Place;
use crate::bench::flow::{Fill, Flow};
use crate::bench_peers::lab::Lab;
use crate::bench_peers::sink::{Sink, Times};
use crate::report_dir::ReportDir;

/// How often is asked whether it has caught up.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Longer is no catching up.
const PATIENCE: Duration = Duration::from_secs(300);

/// One outage, with default settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    outage_seconds: f64,
    /// From its end on.
    catch_up_seconds: f64,
    /// From its end to the first delivery: the rest of the delay of a retry.
    first_delivery_seconds: f64,
    /// Events that were delivered while it caught up.
    events: u64,
    /// The most memory that was seen resident, every 20 ms.
    before_mib: f64,
    during_mib: f64,
    catching_up_mib: f64,
    after_mib: f64,
}

pub async fn measure(lab: &Lab, size: Size) -> anyhow::Result<Vec<Point>> {
    let [before, outage, after] = size.pick([2, 5, 1], [5, 10, 5], [20, 120, 20]).map(Duration::from_secs);
    let point = live_through(lab, [before, outage, after]).await;
    // The sink is everybody's.
    lab.sink.refuse(false).await?;
    let point = point?;
    eprintln!(
        "live outage of {:.0} s: caught up after {:.1} s, {:.1} MiB before, {:.1} during",
        point.outage_seconds, point.catch_up_seconds, point.before_mib, point.during_mib
    );
    Ok(vec![point])
}

async fn live_through(lab: &Lab, [before, outage, after]: [Duration; 3]) -> anyhow::Result<Point> {
    let (flow, name, clock) = (Flow::start().await?, lab.fresh(), Clock::system());
    flow.add(&name, SHARDS, Fill::Steady { since: clock.now(), per_second: u32::try_from(RATE / SHARDS as u64)? });
    let place = Place { kinesis: &flow.url, dynamodb: &fleet(lab)?.moto.url, stream: &name };
    lab.sink.reset(Times::default()).await?;
    let mut worker = Worker::start(on_kinesis(lab, place, &[])?).await?;
    let is_caught_up = |records| records >= flow.arrived(&name, clock.now() - millis(BEHIND));
    worker.until(&lab.sink, |seen| seen.records > 0 && is_caught_up(seen.records)).await?;
    let before = worker.resident_for(before).await?;

    lab.sink.refuse(true).await?;
    let began = Instant::now();
    let during = worker.resident_for(outage).await?;
    let delivered = lab.sink.seen().await?.records;
    let arrived = flow.arrived(&name, clock.now() - millis(BEHIND));
    anyhow::ensure!(delivered < arrived, "the outage delayed nothing: {delivered} of {arrived} were delivered before");
    lab.sink.refuse(false).await?;
    let (ended, outage) = (Instant::now(), began.elapsed());

    let mut catching_up = 0;
    let mut first_delivery = None;
    let records = loop {
        let records = records(&lab.sink).await?;
        if records > delivered {
            first_delivery.get_or_insert(ended.elapsed());
        }
        if is_caught_up(records) {
            break records;
        }
        anyhow::ensure!(ended.elapsed() < PATIENCE, "not caught up {PATIENCE:?} after an outage of {outage:?}");
        catching_up = worker.resident_for(ASK_EVERY).await?.max(catching_up);
    };
    let catch_up = ended.elapsed();
    let after = worker.resident_for(after).await?;
    worker.finish(&lab.sink, flow.stop(&name)).await?;
    Ok(Point {
        outage_seconds: outage.as_secs_f64(),
        catch_up_seconds: catch_up.as_secs_f64(),
        first_delivery_seconds: first_delivery.unwrap_or(catch_up).as_secs_f64(),
        events: records - delivered,
        before_mib: mebibytes(before),
        during_mib: mebibytes(during),
        catching_up_mib: mebibytes(catching_up),
        after_mib: mebibytes(after),
    })
}

async fn records(sink: &Sink) -> anyhow::Result<u64> {
    Ok(sink.seen().await?.records)
}

pub fn report(points: &[Point], report: &mut ReportDir) -> anyhow::Result<()> {
    report.text(&format!(
        "The same {RATE} events/s on {SHARDS} shards, and a worker with default settings that has caught up. Then the sink answers 503 to everything for so \
         long, while events go on arriving; then it takes them again. Until the first delivery the worker waits for the rest of the \
         delay of its retry. Memory is what was seen resident, the most of each time.",
    ));
    let row = |point: &Point| {
        [
            number(point.outage_seconds, 0),
            number(point.first_delivery_seconds, 1),
            number(point.catch_up_seconds, 1),
            number(point.events as f64, 0),
            number(point.before_mib, 1),
            number(point.during_mib, 1),
            number(point.catching_up_mib, 1),
            number(point.after_mib, 1),
        ]
    };
    let rows: Vec<_> = points.iter().map(row).collect();
    let heads = [
        "outage s",
        "first delivery s",
        "catch-up s",
        "events",
        "RSS MiB before",
        "... during",
        "... catching up",
        "... after",
    ];
    report.table(heads, &rows);
    Ok(())
}
