//! How much a worker logs while nothing goes well.

use amberflo_sandbox::{Faults, Trigger};
use tokio::time::sleep;

use crate::harness::lines::Lines;
use crate::harness::{MINUTE, Options, World, usage};

/// Other tests of this process may be in trouble at the same time, and lines that they tell are missing here: what is
/// told at all, `process::logs` looks at.
#[tokio::test(start_paused = true)]
async fn an_outage_is_about_a_line_a_minute_however_many_shards_there_are() {
    let lines = Lines::capture();
    let world = World::new(8);
    world.set_faults(Faults { fail_before: Trigger::rate(1.0), ..Faults::default() });
    let options = Options { batch_max_events: 10, ..Options::default() };
    let _worker = world.start_with(options).await;
    world.put((0..700).map(|n| usage(&format!("tenant-{n}"), n))).await;
    sleep(MINUTE).await;
    let start = lines.take();
    assert!(start.iter().filter(|line| line.contains("lease taken")).count() == 8, "{start:#?}");
    let before = world.sandbox.stats().requests;
    sleep(10 * MINUTE).await;
    let requests = world.sandbox.stats().requests - before;
    assert!(requests > 200, "only {requests} requests failed");
    let outage = lines.take();
    assert!(outage.len() <= 12, "{} lines: {outage:#?}", outage.len());
    world.set_faults(Faults::default());
    world.settle_within(10 * MINUTE).await;
    assert!(lines.take().len() <= 5);
}
