//! 429, 5xx, timeouts and broken connections: wait and send the same again, for as long as it takes.

use std::time::Duration;

use amberflo_sandbox::{Faults, RetryAfterFormat, Trigger};
use shared::amberflo::TransportError;
use tokio::time::sleep;

use crate::harness::{MINUTE, SECOND, Verdict, World, answer, usage};

const HOUR: Duration = Duration::from_secs(3600);

async fn put_on_all_shards(world: &World, events: u64) {
    world.put((0..events).map(|n| usage(&format!("tenant-{}", n % 10), n))).await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_holds_for_everyone_in_seconds_and_as_a_date() {
    for retry_after_format in [RetryAfterFormat::Seconds, RetryAfterFormat::HttpDate] {
        let world = World::new(4);
        let worker = world.start().await;
        let retry_after = Some(Duration::from_millis(17_300));
        let mut n = 0;
        for _ in 0..3 {
            let throttle = Trigger::next(1);
            world.set_faults(Faults { throttle, retry_after, retry_after_format, ..Faults::default() });
            // One request meets the 429; all shards have something to send while it holds.
            world.put([usage("tenant-0", n)]).await;
            sleep(SECOND).await;
            assert!(worker.common.limiter.concurrency() <= 4, "not halved");
            for _ in 0..10 {
                world.put((1..=100).map(|event| usage(&format!("tenant-{}", event % 10), n + event))).await;
                n += 100;
                sleep(SECOND).await;
            }
            n += 1;
            world.settle_within(MINUTE).await;
        }
        let stats = world.sandbox.stats();
        assert_eq!((world.answered(429), stats.early_requests), (3, 0), "{retry_after_format:?}");
        world.assert_billed_without_copies(n);
        assert!(world.letters().await.is_empty());
    }
}

/// As of a date that is past by the worker's clock.
#[tokio::test(start_paused = true)]
async fn a_retry_after_of_nothing_is_no_leave_to_hurry() {
    for headers in [&[("retry-after", "0")], &[("retry-after", "Thu, 01 Jan 2004 00:00:00 GMT")]] {
        let world = World::new(1);
        world.wire.answer_all(429, headers, "");
        let _worker = world.start().await;
        world.put([usage("tenant", 0)]).await;
        sleep(5 * MINUTE).await;
        let requests = world.wire.sent().len();
        assert!((10..100).contains(&requests), "{requests} requests");
        world.wire.mend();
        world.settle_within(MINUTE).await;
        world.assert_billed_without_copies(1);
    }
}

#[tokio::test(start_paused = true)]
async fn concurrency_is_halved_by_a_429_and_grows_again_one_by_one() {
    let world = World::new(4);
    let worker = world.start().await;
    let limiter = &worker.common.limiter;
    world.set_faults(Faults { throttle: Trigger::next(1), retry_after: Some(3 * SECOND), ..Faults::default() });
    put_on_all_shards(&world, 100).await;
    sleep(2 * SECOND).await;
    assert_eq!(limiter.concurrency(), 4);
    // Idle time proves nothing: it grows only by use.
    world.settle_within(MINUTE).await;
    sleep(10 * MINUTE).await;
    assert!(limiter.concurrency() <= 5, "{}", limiter.concurrency());
    world.wire.script(|_| (2 * SECOND, Verdict::Pass));
    let mut seen = vec![limiter.concurrency()];
    for second in 1..=120 {
        let n = 10_000 + second * 100;
        world.put((0..40).map(|event| usage(&format!("tenant-{}", event % 10), n + event))).await;
        sleep(SECOND).await;
        seen.push(limiter.concurrency());
    }
    assert_eq!(seen.last(), Some(&8), "{seen:?}");
    assert!(seen.windows(2).all(|pair| pair[0] <= pair[1] && pair[1] <= pair[0] + 1), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_429_never_dead_letters_however_long_it_lasts() {
    for (retry_after, lasting) in [(Some(30 * SECOND), 2 * HOUR), (None, HOUR / 2)] {
        let world = World::new(1);
        world.set_faults(Faults { throttle: Trigger::rate(1.0), retry_after, ..Faults::default() });
        let _worker = world.start().await;
        put_on_all_shards(&world, 50).await;
        sleep(lasting).await;
        assert!(world.letters().await.is_empty());
        assert_eq!((world.sandbox.ledger().events, world.sandbox.stats().early_requests), (0, 0));
        assert!(world.wire.sent().len() < 300, "{} attempts in {lasting:?}", world.wire.sent().len());
        world.set_faults(Faults::default());
        world.settle_within(2 * MINUTE).await;
        world.assert_billed_without_copies(50);
        assert!(world.letters().await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_of_a_day_counts_for_five_minutes() {
    let world = World::new(1);
    let retry_after = Some(24 * HOUR);
    world.set_faults(Faults { throttle: Trigger::next(1), retry_after, ..Faults::default() });
    let _worker = world.start().await;
    put_on_all_shards(&world, 50).await;
    world.settle_within(10 * MINUTE).await;
    let requests = world.sandbox.requests();
    assert_eq!(requests[0].status, Some(429));
    let waited = requests[1].at - requests[0].at;
    assert!((5 * MINUTE..5 * MINUTE + SECOND).contains(&waited), "{waited:?}");
    world.assert_billed_without_copies(50);
}

#[tokio::test(start_paused = true)]
async fn an_outage_stalls_and_drops_nothing() {
    let refused = || Verdict::Fail(|| TransportError::Connect("refused".to_owned()));
    let too_early = || Verdict::Answer(answer(425, &[], ""));
    let unavailable = || Verdict::Answer(answer(503, &[("retry-after", "5")], ""));
    let always = Trigger::rate(1.0);
    let faults: [(Faults, fn() -> Verdict); 7] = [
        (Faults { fail_before: always, ..Faults::default() }, || Verdict::Pass),
        (Faults { fail_after: always, ..Faults::default() }, || Verdict::Pass),
        (Faults { hang_before: always, ..Faults::default() }, || Verdict::Pass),
        (Faults { hang_after: always, ..Faults::default() }, || Verdict::Pass),
        (Faults::default(), refused),
        (Faults::default(), too_early),
        (Faults::default(), unavailable),
    ];
    for (faults, verdict) in faults {
        let world = World::new(1);
        world.set_faults(faults);
        world.wire.script(move |_| (Duration::ZERO, verdict()));
        let worker = world.start().await;
        put_on_all_shards(&world, 50).await;
        sleep(15 * MINUTE).await;
        assert!(world.letters().await.is_empty());
        assert!(worker.ready.get(), "an outage of Amberflo is no fault of ours");
        let sent = world.wire.sent();
        // Source: Amberflo's documentation; a regional failover can take 20 s.
        let later = sent.iter().filter(|later| later.at > sent[0].at + 20 * SECOND).count();
        assert!(later >= 2, "{later} attempts more than 20 s after the first");
        assert!(sent.len() < 150, "{} attempts in a quarter of an hour are no backing off", sent.len());
        assert!(worker.common.limiter.concurrency() < 8);
        world.set_faults(Faults::default());
        world.wire.mend();
        world.settle_within(5 * MINUTE).await;
        world.assert_billed_once(50);
        assert!(world.letters().await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_hours_dead_letters_nothing() {
    let world = World::new(1);
    world.set_faults(Faults { fail_after: Trigger::rate(1.0), ..Faults::default() });
    let _worker = world.start().await;
    put_on_all_shards(&world, 50).await;
    sleep(2 * HOUR).await;
    assert!(world.letters().await.is_empty());
    world.set_faults(Faults::default());
    world.settle_within(5 * MINUTE).await;
    world.assert_billed_once(50);
}

#[tokio::test(start_paused = true)]
async fn every_attempt_of_a_batch_is_the_same_bytes() {
    let world = World::new(1);
    world.set_faults(Faults { fail_after: Trigger::next(5), throttle: Trigger::next(2), ..Faults::default() });
    let _worker = world.start().await;
    put_on_all_shards(&world, 50).await;
    world.settle_within(10 * MINUTE).await;
    let sent = world.wire.sent();
    assert_eq!(sent.len(), 8);
    assert!(sent.iter().all(|attempt| attempt.gzipped == sent[0].gzipped));
    world.assert_billed_once(50);
}

/// While nothing can be sent, memory is bounded and the stream holds the rest.
#[tokio::test(start_paused = true)]
async fn a_backlog_of_an_outage_is_delivered_in_full_batches() {
    let world = World::new(1);
    world.set_faults(Faults { fail_before: Trigger::rate(1.0), ..Faults::default() });
    let _worker = world.start().await;
    for burst in 0..600 {
        world.put((0..50).map(|n| usage("tenant", burst * 50 + n))).await;
        sleep(3 * SECOND).await;
    }
    world.set_faults(Faults::default());
    world.settle_within(10 * MINUTE).await;
    world.assert_billed_without_copies(30_000);
    let delivered: Vec<_> =
        world.sandbox.requests().into_iter().filter(|request| request.status == Some(200)).collect();
    assert!(delivered.len() <= 30 + 10, "{} requests for 30,000 events", delivered.len());
}

/// A failure, a delivery of another, and then an outage: the delivery is no evidence for what fails an hour later.
#[tokio::test(start_paused = true)]
async fn an_outage_after_a_flap_is_an_outage() {
    let world = World::new(2);
    let _worker = world.start().await;
    world.set_faults(Faults { fail_before: Trigger::next(1), ..Faults::default() });
    world.put([usage("tenant-0", 1)]).await;
    sleep(Duration::from_millis(110)).await;
    world.put([usage("tenant-1", 2)]).await;
    while world.sandbox.ledger().events == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    world.set_faults(Faults { fail_before: Trigger::rate(1.0), ..Faults::default() });
    for n in 0..1200 {
        world.put([usage("tenant-0", 100 + n)]).await;
        sleep(3 * SECOND).await;
    }
    assert!(world.letters().await.is_empty(), "{:?}", world.letters().await);
    let attempts = world.wire.sent().len();
    assert!(attempts < 5000, "{attempts} attempts in an hour of outage");
    world.set_faults(Faults::default());
    world.settle_within(10 * MINUTE).await;
    world.assert_billed_once(1202);
    let requests = world.wire.sent().len() - attempts;
    assert!(requests <= 40, "{requests} requests for the backlog");
}
