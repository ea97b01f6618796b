//! What an answer from Amberflo means: the table of the design, row by row, in paused time.
//!
//! Every test looks at the ledger (what would be billed), the dead letters, and what was sent.

mod acquittal;
mod forbidden;
mod isolation;
mod lines;
mod pause;
mod shutdown;
mod waiting;

use std::time::Duration;

use amberflo_sandbox::{Faults, Trigger};
use bytes::Bytes;

use crate::harness::{Counters, MINUTE, Verdict, World, answer, usage};

#[tokio::test(start_paused = true)]
async fn a_2xx_settles() {
    let world = World::new(3);
    let _worker = world.start().await;
    world.put((0..2500).map(|n| usage(&format!("tenant-{}", n % 7), n))).await;
    world.settle_within(MINUTE).await;
    world.assert_billed_without_copies(2500);
    assert!(world.letters().await.is_empty());
    let stats = world.sandbox.stats();
    assert_eq!(stats.by_status.into_iter().collect::<Vec<_>>(), [(200, stats.requests)]);
    assert!(stats.requests <= 6, "2500 events of 3 shards need no {} requests", stats.requests);
    assert!(stats.unknown_keys.is_empty(), "Amberflo would ignore {:?}", stats.unknown_keys);
}

#[tokio::test(start_paused = true)]
async fn a_short_count_is_sent_once_more_byte_for_byte() {
    let world = World::new(1);
    let counters = Counters::default();
    let _recording = metrics::set_default_local_recorder(&counters);
    let missing = std::num::NonZeroUsize::new(3).unwrap();
    world.set_faults(Faults { partial_ingest: Trigger::next(1), missing, ..Faults::default() });
    let _worker = world.start().await;
    world.put((0..100).map(|n| usage("tenant", n))).await;
    world.settle_within(MINUTE).await;
    world.assert_billed_once(100);
    assert_eq!(world.sandbox.ledger().absorbed_copies, 97);
    let sent = world.wire.sent();
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[0].gzipped, sent[1].gzipped);
    assert_eq!(counters.get("amberflo_count_mismatches_total"), 0);
    assert!(world.letters().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_count_that_stays_short_is_settled_and_counted() {
    let world = World::new(1);
    let counters = Counters::default();
    let _recording = metrics::set_default_local_recorder(&counters);
    world.set_faults(Faults { partial_answer: Trigger::rate(1.0), ..Faults::default() });
    let _worker = world.start().await;
    world.put((0..100).map(|n| usage("tenant", n))).await;
    world.settle_within(MINUTE).await;
    tokio::time::sleep(10 * MINUTE).await;
    world.assert_billed_once(100);
    let sent = world.wire.sent();
    assert_eq!(sent.len(), 2, "sent once more, not for ever");
    assert_eq!(sent[0].gzipped, sent[1].gzipped);
    assert_eq!(counters.get("amberflo_count_mismatches_total"), 1);
    assert!(world.letters().await.is_empty(), "whoever has no number to go by must not guess");
}

#[tokio::test(start_paused = true)]
async fn a_2xx_without_a_count_is_a_delivery() {
    for (status, headers, body) in [
        (200, &[][..], "ok"),
        (200, &[("content-type", "application/json")], r#"{"status":"ingested"}"#),
        (202, &[], "\u{fffd}"),
        (204, &[], ""),
    ] {
        let world = World::new(1);
        let counters = Counters::default();
        let _recording = metrics::set_default_local_recorder(&counters);
        world.wire.script(move |_| (Duration::ZERO, Verdict::Instead(answer(status, headers, body))));
        let _worker = world.start().await;
        world.put((0..10).map(|n| usage("tenant", n))).await;
        world.settle_within(MINUTE).await;
        world.assert_billed_without_copies(10);
        assert_eq!(world.wire.sent().len(), 1, "{status} {body}");
        assert_eq!(counters.get("amberflo_count_mismatches_total"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_count_larger_than_the_batch_is_a_delivery() {
    let world = World::new(1);
    world.wire.script(|_| (Duration::ZERO, Verdict::Instead(answer(200, &[], "1000000 records were ingested"))));
    let _worker = world.start().await;
    world.put((0..10).map(|n| usage("tenant", n))).await;
    world.settle_within(MINUTE).await;
    world.assert_billed_without_copies(10);
    assert_eq!(world.wire.sent().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_same_events_make_the_same_request() {
    let body = async || -> Vec<Bytes> {
        let world = World::new(1);
        let _worker = world.start().await;
        world.put((0..500).map(|n| usage("tenant", n))).await;
        world.settle_within(MINUTE).await;
        world.wire.sent().into_iter().map(|sent| sent.gzipped).collect()
    };
    assert_eq!(body().await, body().await);
}
