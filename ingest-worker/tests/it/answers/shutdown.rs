//! A drain while nothing can be delivered: the leases are free at once, and the next worker delivers everything.

use std::num::NonZeroUsize;
use std::time::Duration;

use amberflo_sandbox::{Faults, Trigger};
use shared::amberflo::TransportError;
use tokio::time::sleep;

use crate::harness::{DRAIN, MINUTE, Options, SECOND, Verdict, World, usage};

async fn hand_over(world: &World, trouble: Duration, allowed: Duration) {
    let worker = world.start_with(Options { batch_max_events: 5, ..Options::default() }).await;
    world.put((0..200).map(|n| usage(&format!("tenant-{}", n % 10), n))).await;
    sleep(trouble).await;
    let took = worker.drain().await;
    assert!(took <= allowed, "the drain took {took:?}");
    world.assert_leases_are_free().await;
    assert!(world.letters().await.is_empty());
    world.set_faults(Faults::default());
    world.wire.mend();
    let _second = world.start().await;
    world.settle_within(MINUTE).await;
    world.assert_billed_once(200);
    assert!(world.letters().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn while_paused() {
    for status in [401, 404] {
        let world = World::new(4);
        world.wire.answer_all(status, &[], "no");
        hand_over(&world, 95 * SECOND, 2 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn while_backing_off() {
    let world = World::new(4);
    world.set_faults(Faults { fail_before: Trigger::rate(1.0), ..Faults::default() });
    hand_over(&world, 5 * MINUTE, 2 * SECOND).await;
    let world = World::new(4);
    world.wire.script(|_| (Duration::ZERO, Verdict::Fail(|| TransportError::Connect("refused".to_owned()))));
    hand_over(&world, 5 * MINUTE, 2 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn in_a_retry_after() {
    let world = World::new(4);
    let throttle = Trigger::rate(1.0);
    world.set_faults(Faults { throttle, retry_after: Some(5 * MINUTE), ..Faults::default() });
    hand_over(&world, 61 * SECOND, 2 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn while_throttled_without_a_retry_after() {
    let world = World::new(4);
    world.set_faults(Faults { throttle: Trigger::rate(1.0), ..Faults::default() });
    hand_over(&world, 61 * SECOND, 2 * SECOND).await;
}

/// A request under way may still be answered: the drain waits for it, but no longer than its grace.
#[tokio::test(start_paused = true)]
async fn while_requests_hang() {
    for faults in [
        Faults { hang_before: Trigger::rate(1.0), ..Faults::default() },
        Faults { hang_after: Trigger::rate(1.0), ..Faults::default() },
    ] {
        let world = World::new(4);
        world.set_faults(faults);
        hand_over(&world, 3 * SECOND, DRAIN + SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn while_splitting_a_refused_batch() {
    let world = World::new(1);
    world.set_faults(Faults { max_records: NonZeroUsize::new(1), ..Faults::default() });
    world.wire.script(|_| (200 * Duration::from_millis(1), Verdict::Pass));
    hand_over(&world, SECOND, DRAIN + SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_delivers_what_was_read() {
    let world = World::new(4);
    world.wire.script(|_| (SECOND, Verdict::Pass));
    let worker = world.start_with(Options { batch_linger: 30 * SECOND, ..Options::default() }).await;
    world.put((0..200).map(|n| usage(&format!("tenant-{}", n % 10), n))).await;
    sleep(5 * SECOND).await;
    assert_eq!(world.sandbox.ledger().events, 0, "they linger");
    let took = worker.drain().await;
    assert!(took < 5 * SECOND, "{took:?}");
    assert!(world.is_settled().await);
    world.assert_billed_without_copies(200);
    world.assert_leases_are_free().await;
}
