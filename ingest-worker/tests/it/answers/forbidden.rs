//! 403 for one record: it becomes a dead letter, but only when it cannot be the key.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;
use shared::reason::Reason;
use tokio::time::{Instant, sleep};

use super::isolation::{assert_only_the_bad_one_is_dead, bad, poisoned};
use crate::harness::{MINUTE, Options, SECOND, Verdict, World, answer, usage};

#[tokio::test(start_paused = true)]
async fn a_403_for_one_record_while_others_succeed_is_isolated() {
    let world = World::new(4);
    world.set_faults(poisoned(403));
    world.wire.script(|_| (SECOND / 10, Verdict::Pass));
    let worker = world.start().await;
    let mut events = 0;
    // Steady traffic on all shards, one record of which is forbidden.
    for second in 0..300 {
        world.put((0..20).map(|n| usage(&format!("tenant-{n}"), second * 20 + n))).await;
        events += 20;
        if second == 10 {
            world.put([bad("tenant-3")]).await;
        }
        sleep(SECOND).await;
    }
    world.settle_within(10 * MINUTE).await;
    world.assert_billed_without_copies(events);
    assert_only_the_bad_one_is_dead(&world, Reason::Rejected, 403).await;
    assert!(!worker.common.limiter.is_paused());
}

/// Nobody's batch alone: what is refused for everyone waits, even where a request that was under way just succeeded.
#[tokio::test(start_paused = true)]
async fn a_403_for_everyone_that_begins_beside_a_delivery_dead_letters_nothing() {
    let world = World::new(4);
    let began = Instant::now();
    world.wire.script(move |sent| {
        // Both leave together; one is answered before access ends, the other after it.
        let is_first = sent.records().iter().any(|record| record["uniqueId"] == "0");
        let forbidden = answer(403, &[], "Forbidden");
        match sent.at.duration_since(began) {
            early if early < 10 * SECOND && is_first => (SECOND, Verdict::Pass),
            _ => (2 * SECOND, Verdict::Answer(forbidden)),
        }
    });
    let options = Options { batch_max_events: 1, ..Options::default() };
    let _worker = world.start_with(options).await;
    world.put((0..16).map(|n| usage(&format!("tenant-{n}"), n))).await;
    sleep(10 * MINUTE).await;
    let letters: Vec<_> = world.letters().await.into_iter().map(|letter| letter.detail).collect();
    assert!(letters.is_empty(), "{letters:?}");
    world.wire.mend();
    world.settle_within(2 * MINUTE).await;
    world.assert_billed_without_copies(16);
}

/// A key that has just been replaced may be known to some of Amberflo's servers before others.
#[tokio::test(start_paused = true)]
async fn a_403_now_and_then_while_others_succeed_dead_letters_nothing() {
    let world = World::new(4);
    let (requests, first_seen) = (AtomicU32::new(0), Mutex::new(HashMap::new()));
    world.wire.script(move |sent| {
        let id = sent.records()[0]["uniqueId"].to_string();
        let first = *first_seen.lock().unwrap().entry(id).or_insert(sent.at);
        let is_known = requests.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) || sent.at - first > 28 * SECOND;
        (SECOND / 10, if is_known { Verdict::Pass } else { Verdict::Answer(answer(403, &[], "Forbidden")) })
    });
    let options = Options { batch_max_events: 1, ..Options::default() };
    let _worker = world.start_with(options).await;
    for second in 0..120 {
        world.put((0..8).map(|n| usage(&format!("tenant-{n}"), second * 8 + n))).await;
        sleep(SECOND).await;
    }
    world.settle_within(10 * MINUTE).await;
    assert!(world.wire.sent().len() > 960 + 200, "{} requests", world.wire.sent().len());
    let letters: Vec<_> = world.letters().await.into_iter().map(|letter| letter.detail).collect();
    assert!(letters.is_empty(), "{letters:?}");
    world.assert_billed_without_copies(960);
}

/// What was held against a record before everyone was refused says nothing afterwards.
#[tokio::test(start_paused = true)]
async fn a_403_for_everyone_clears_a_record_that_was_suspected_before() {
    for (access_ends, access_returns) in [(5, 20), (5, 60), (10, 600)] {
        // Meanwhile nothing else is sent, or something all the time.
        for is_quiet in [true, false] {
            let world = World::new(4);
            let began = Instant::now();
            let refusals_after = AtomicU32::new(0);
            world.wire.script(move |sent| {
                let elapsed = sent.at.duration_since(began).as_secs();
                let is_suspect = sent.records().iter().any(|record| record["uniqueId"] == "bad-1");
                let is_refused = match elapsed {
                    early if early < access_ends => is_suspect,
                    late if late > access_returns => is_suspect && refusals_after.fetch_add(1, Ordering::Relaxed) == 0,
                    _ => true,
                };
                let forbidden = answer(403, &[], "Forbidden");
                // Slow, so that others are delivered before its first refusal is known.
                let takes = if is_suspect { 2 * SECOND } else { SECOND / 10 };
                (takes, if is_refused { Verdict::Answer(forbidden) } else { Verdict::Pass })
            });
            let _worker = world.start_with(Options { batch_max_events: 1, ..Options::default() }).await;
            world.put([bad("tenant-3")]).await;
            let mut events = 1;
            for second in 0..access_returns + 100 {
                if !is_quiet || second < access_ends || second > access_returns {
                    world.put((0..4).map(|n| usage(&format!("tenant-{n}"), second * 4 + n))).await;
                    events += 4;
                }
                sleep(SECOND).await;
            }
            world.settle_within(5 * MINUTE).await;
            let letters: Vec<_> = world.letters().await.into_iter().map(|letter| letter.detail).collect();
            assert!(letters.is_empty(), "{letters:?}, {access_returns} s, {is_quiet}");
            world.assert_billed_without_copies(events);
        }
    }
}

/// Each makes a pause of its own, in which the only evidence against it comes late.
#[tokio::test(start_paused = true)]
async fn forbidden_records_between_few_others_are_found() {
    let world = World::new(1);
    world.set_faults(poisoned(403));
    let _worker = world.start_with(Options { batch_max_events: 1, ..Options::default() }).await;
    for n in 0..60 {
        world.put([forbidden(n)]).await;
        sleep(MINUTE).await;
        world.put([usage("tenant-1", n)]).await;
        sleep(MINUTE).await;
    }
    let found = world.letters().await.len();
    assert!(found >= 50, "{found} of 60");
    for n in 60..400 {
        world.put([usage("tenant-1", n)]).await;
        sleep(SECOND).await;
    }
    world.settle_within(MINUTE).await;
    world.assert_billed_without_copies(400);
    assert_dead(&world, 0..60).await;
}

fn forbidden(n: u64) -> serde_json::Value {
    let mut event = usage("tenant-1", n);
    event["uniqueId"] = json!(format!("bad-{n}"));
    event
}

async fn assert_dead(world: &World, numbers: std::ops::Range<u64>) {
    let dead: BTreeSet<_> = world.letters().await.into_iter().map(|letter| letter.unique_id.unwrap()).collect();
    assert_eq!(dead, numbers.map(|n| format!("bad-{n}")).collect());
}

#[tokio::test(start_paused = true)]
async fn many_forbidden_records_of_one_shard_are_all_found() {
    let world = World::new(1);
    world.set_faults(poisoned(403));
    world.wire.script(|sent| {
        let is_bad = sent.records().iter().any(|record| record["uniqueId"].as_str().unwrap().starts_with("bad"));
        // Slow, so that others which left later have been delivered.
        (if is_bad { 2 * SECOND } else { SECOND / 10 }, Verdict::Pass)
    });
    let worker = world.start_with(Options { batch_max_events: 2, ..Options::default() }).await;
    // More than may usually be under way.
    for n in 0..16 {
        world.put([usage("tenant-0", 3 * n), forbidden(n)]).await;
        world.put([usage("tenant-0", 3 * n + 1), usage("tenant-0", 3 * n + 2)]).await;
    }
    for n in 48..600 {
        world.put([usage("tenant-0", n)]).await;
        sleep(SECOND).await;
    }
    world.settle_within(MINUTE).await;
    world.assert_billed_without_copies(600);
    assert_dead(&world, 0..16).await;
    assert!(!worker.common.limiter.is_paused());
}

#[tokio::test(start_paused = true)]
async fn a_hundred_forbidden_records_of_one_batch_are_found_in_minutes() {
    let world = World::new(2);
    world.set_faults(poisoned(403));
    let _worker = world.start().await;
    let event = |n: u64| if n.is_multiple_of(10) { forbidden(n / 10) } else { usage("tenant-0", n) };
    world.put((0..1000).map(event)).await;
    for n in 1000..1600 {
        world.put([usage(&format!("tenant-{}", n % 10), n)]).await;
        sleep(SECOND).await;
    }
    assert_dead(&world, 0..100).await;
    world.assert_billed_without_copies(900 + 600);
}

/// It cannot be told from a wrong key, until a part of a batch is delivered: whichever part is searched first.
#[tokio::test(start_paused = true)]
async fn a_forbidden_record_in_every_batch_is_no_pause_for_ever() {
    for (good, forbidden_ones) in [("tenant-0", 1), ("tenant-1", 5), ("tenant-2", 1), ("tenant-3", 5)] {
        let world = World::new(1);
        world.set_faults(poisoned(403));
        let options = Options { batch_max_events: 1 + forbidden_ones as usize, ..Options::default() };
        let _worker = world.start_with(options).await;
        for n in 0..8 {
            let all = (0..forbidden_ones).map(|m| forbidden(n * forbidden_ones + m)).chain([usage(good, n)]);
            world.put(all).await;
        }
        sleep(120 * MINUTE).await;
        world.assert_billed_without_copies(8);
        for n in 8..1200 {
            world.put([usage(good, n)]).await;
            sleep(SECOND).await;
        }
        world.settle_within(MINUTE).await;
        world.assert_billed_without_copies(1200);
        assert_dead(&world, 0..8 * forbidden_ones).await;
    }
}

/// A refusal that pauses nothing, because others are delivered, is not sent again at once and for ever.
#[tokio::test(start_paused = true)]
async fn a_404_for_one_batch_while_others_succeed_does_not_use_up_the_rate() {
    let world = World::new(4);
    world.wire.script(|sent| {
        let is_bad = sent.records().iter().any(|record| record["uniqueId"] == "bad-1");
        // Slow, so that others which left later have been delivered.
        if is_bad { (2 * SECOND, Verdict::Answer(answer(404, &[], "no"))) } else { (SECOND / 10, Verdict::Pass) }
    });
    let _worker = world.start_with(Options { batch_max_events: 1, ..Options::default() }).await;
    world.put([bad("tenant-3")]).await;
    for second in 0..600 {
        world.put((0..4).map(|n| usage(&format!("tenant-{n}"), second * 4 + n))).await;
        sleep(SECOND).await;
    }
    let tries = world.wire.sent().iter().filter(|sent| sent.records()[0]["uniqueId"] == "bad-1").count();
    assert!((20..=100).contains(&tries), "{tries} requests");
    assert!(world.letters().await.is_empty(), "404 says nothing of a record");
}
