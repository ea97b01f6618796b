//! The time of an invocation: what is done with it, and what is kept for the next.

use std::collections::BTreeSet;
use std::time::Duration;

use amberflo_sandbox::Faults;
use ingest_worker::context::Common;
use ingest_worker::limiter::Limiter;
use shared::api_key::Source;
use tokio::time::{Instant, sleep};

use super::{KEY_REFRESH, NONE, Sandbox, number, tens, usages};
use crate::harness::{MINUTE, Options, SECOND, Verdict, World};

/// Runs `work`; answers what it answers, and how long it took.
async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let started = Instant::now();
    (work.await, started.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_request_that_hangs_is_dropped_in_time_and_nothing_is_begun_after() {
    for limit in [3 * SECOND, 10 * SECOND, 45 * SECOND, MINUTE] {
        let world = World::new(1);
        let lambda = Sandbox::start(&world, tens()).await;
        world.wire.script(|_| (24 * 60 * MINUTE, Verdict::Pass));
        let (failures, took) = timed(lambda.invoke_within(limit, &usages(0..50))).await;
        assert_eq!(failures, [number(0)]);
        assert!(took < limit && took > limit / 2, "{took:?} of {limit:?}");
        let sent = world.wire.sent().len();
        sleep(10 * MINUTE).await;
        assert_eq!(world.wire.sent().len(), sent, "a request was begun after the answer");
    }
}

/// Requests that could not end in time are not begun, so nothing is sent twice.
#[tokio::test(start_paused = true)]
async fn slow_requests_are_not_begun_near_the_end() {
    let world = World::new(1);
    let lambda = Sandbox::start(&world, tens()).await;
    world.wire.script(|_| (4 * SECOND, Verdict::Pass));
    let (mut first, mut invocations) = (0, 0);
    while first < 1000 && invocations < 6 {
        let (failures, took) = timed(lambda.invoke_within(30 * SECOND, &usages(first..1000))).await;
        assert!(took < 30 * SECOND, "{took:?}");
        first = failures.first().map_or(1000, |number| number.strip_prefix("4959").unwrap().parse().unwrap());
        invocations += 1;
    }
    assert!((2..=5).contains(&invocations), "{invocations}");
    world.assert_billed_without_copies(1000);
}

#[tokio::test(start_paused = true)]
async fn without_time_nothing_is_begun() {
    let world = World::new(1);
    let lambda = Sandbox::start(&world, Options::default()).await;
    assert_eq!(lambda.invoke_within(Duration::ZERO, &usages(3..9)).await, [number(3)]);
    assert!(world.wire.sent().is_empty());
}

/// What the rate lets through is settled, the rest comes again: no copy is sent.
#[tokio::test(start_paused = true)]
async fn what_the_rate_does_not_let_through_in_time_comes_again() {
    let world = World::new(1);
    let limiter = Limiter::new(8.try_into().unwrap(), 0.5);
    let lambda = Sandbox::with(Common { limiter, ..world.common(tens()).await });
    let (failures, took) = timed(lambda.invoke_within(20 * SECOND, &usages(0..200))).await;
    assert!(took < 20 * SECOND, "{took:?}");
    let first: u64 = failures[0].strip_prefix("4959").unwrap().parse().unwrap();
    assert!((60..=100).contains(&first), "{first}");
    world.assert_billed_without_copies(first);
    assert_eq!(lambda.invoke_within(5 * MINUTE, &usages(first..200)).await, NONE);
    world.assert_billed_without_copies(200);
}

#[tokio::test(start_paused = true)]
async fn an_outage_ends_the_invocation_early() {
    for status in [500, 503, 429] {
        let world = World::new(1);
        let lambda = Sandbox::start(&world, tens()).await;
        world.wire.answer_all(status, &[], "");
        let (failures, took) = timed(lambda.invoke_within(15 * MINUTE, &usages(0..50))).await;
        assert_eq!(failures, [number(0)]);
        assert!((10 * SECOND..MINUTE).contains(&took), "{took:?}");
        world.wire.mend();
        assert_eq!(lambda.invoke(&usages(0..50)).await, NONE);
        world.assert_billed_without_copies(50);
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_is_waited_out() {
    let world = World::new(1);
    let lambda = Sandbox::start(&world, tens()).await;
    let until = Instant::now() + 5 * SECOND;
    world.wire.script(move |_| match Instant::now() < until {
        true => (Duration::ZERO, Verdict::Answer(crate::harness::answer(503, &[], ""))),
        false => (Duration::ZERO, Verdict::Pass),
    });
    assert_eq!(lambda.invoke(&usages(0..50)).await, NONE);
    world.assert_billed_without_copies(50);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_outlives_the_invocation() {
    let world = World::new(1);
    let lambda = Sandbox::start(&world, Options::default()).await;
    world.wire.answer_all(429, &[("retry-after", "60")], "");
    let (failures, took) = timed(lambda.invoke(&usages(0..5))).await;
    assert_eq!(failures, [number(0)]);
    assert!(took < 20 * SECOND, "{took:?}");
    world.wire.mend();
    for _ in 0..3 {
        assert_eq!(lambda.invoke(&usages(0..5)).await, [number(0)]);
    }
    assert_eq!(world.wire.sent().len(), 1, "it holds for the whole minute");
    sleep(30 * SECOND).await;
    assert_eq!(lambda.invoke(&usages(0..5)).await, NONE);
    world.assert_billed_without_copies(5);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_rotated_between_invocations_takes_effect() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, "old-key").unwrap();
    let world = World::new(1);
    let only = |key: &str| Faults { valid_keys: Some(BTreeSet::from([key.to_owned()])), ..Faults::default() };
    world.set_faults(only("old-key"));
    let options = Options { key: Source::File(file.clone()), ..tens() };
    let lambda = Sandbox::start(&world, options).await;
    assert_eq!(lambda.invoke(&usages(0..10)).await, NONE);

    // Refused: the answer itself says that there may be another.
    std::fs::write(&file, "new-key").unwrap();
    world.set_faults(only("new-key"));
    let (failures, took) = timed(lambda.invoke(&usages(10..20))).await;
    assert_eq!(failures, NONE);
    assert!(took < 5 * SECOND, "{took:?}");

    // No other: the invocation does not wait for one, and sends nothing more until a probe is due.
    world.set_faults(only("newest-key"));
    let refused = world.answered(401);
    let (failures, took) = timed(lambda.invoke(&usages(20..60))).await;
    assert_eq!(failures, [number(20)]);
    assert!(took < 20 * SECOND, "{took:?}");
    assert!(world.answered(401) - refused <= 8, "what was in flight already");
    let refused = world.answered(401);
    assert_eq!(lambda.invoke(&usages(20..60)).await, [number(20)]);
    assert_eq!(world.answered(401), refused);

    // In time: before the first request.
    std::fs::write(&file, "newest-key").unwrap();
    sleep(KEY_REFRESH).await;
    let refused = world.answered(401);
    assert_eq!(lambda.invoke(&usages(20..60)).await, NONE);
    assert_eq!(world.answered(401), refused);
    world.assert_billed_without_copies(60);
    assert!(world.letters().await.is_empty());
}
