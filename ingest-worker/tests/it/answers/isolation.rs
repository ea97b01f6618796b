//! 400, 422, 413 for one record, and the record that only ever meets 5xx: the culprit is found, its neighbours
//! are delivered.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use amberflo_sandbox::{Faults, Poison};
use serde_json::json;
use shared::reason::Reason;
use tokio::time::{Instant, sleep};

use crate::harness::{MINUTE, SECOND, Verdict, World, answer, usage};

pub fn poisoned(status: u16) -> Faults {
    let poison = Poison { status, unique_id_prefixes: vec!["bad".to_owned()], ..Poison::default() };
    Faults { poison: vec![poison], ..Faults::default() }
}

pub fn bad(tenant: &str) -> serde_json::Value {
    let mut detail = usage(tenant, 7);
    detail["uniqueId"] = json!("bad-1");
    detail
}

/// The one dead letter, if it is the bad event, whole, with Amberflo's answer.
pub async fn assert_only_the_bad_one_is_dead(world: &World, reason: Reason, status: u16) {
    let letters = world.letters().await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    let letter = &letters[0];
    assert_eq!((&*letter.reason, letter.amberflo_status), (reason.as_str(), Some(status)));
    assert!(!letter.amberflo_answer.as_ref().unwrap().is_empty());
    assert_eq!(letter.unique_id.as_deref(), Some("bad-1"));
    let payload: serde_json::Value = serde_json::from_slice(letter.payload.stored().unwrap()).unwrap();
    assert_eq!(payload["detail"]["uniqueId"], "bad-1");
}

#[tokio::test(start_paused = true)]
async fn one_bad_record_in_a_thousand_is_found_in_few_requests() {
    for status in [400, 422] {
        for tenants in [1, 20] {
            let world = World::new(1);
            world.set_faults(poisoned(status));
            let _worker = world.start().await;
            let tenant = |n: u64| format!("tenant-{}", n % tenants);
            let event = |n: u64| if n == 617 { bad(&tenant(n)) } else { usage(&tenant(n), n) };
            world.put((0..1000).map(event)).await;
            world.settle_within(10 * MINUTE).await;
            world.assert_billed_without_copies(999);
            assert_only_the_bad_one_is_dead(&world, Reason::Rejected, status).await;
            // Twice the depth of a binary search of 1000, and one request for each group at most.
            let requests = world.sandbox.stats().requests;
            assert!(requests <= 2 * 10 + tenants, "{requests} requests to isolate one of 1000 in {tenants} groups");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_bad_records_are_all_found_and_their_neighbours_delivered() {
    let world = World::new(1);
    world.set_faults(poisoned(400));
    let _worker = world.start().await;
    let event = |n: u64| {
        let mut event = usage(&format!("tenant-{}", n % 3), n);
        if n.is_multiple_of(10) {
            event["uniqueId"] = json!(format!("bad-{n}"));
        }
        event
    };
    world.put((0..1000).map(event)).await;
    world.settle_within(10 * MINUTE).await;
    world.assert_billed_without_copies(900);
    let dead: BTreeSet<_> = world.letters().await.into_iter().map(|letter| letter.unique_id.unwrap()).collect();
    assert_eq!(dead, (0..100).map(|n| format!("bad-{}", n * 10)).collect());
}

#[tokio::test(start_paused = true)]
async fn a_refused_batch_is_split_between_meters_and_tenants_first() {
    let world = World::new(1);
    let poison = Poison { customer_ids: ["tenant-2".to_owned()].into(), ..Poison::default() };
    world.set_faults(Faults { poison: vec![poison], ..Faults::default() });
    let _worker = world.start().await;
    world.put((0..400).map(|n| usage(&format!("tenant-{}", n % 4), n))).await;
    world.settle_within(10 * MINUTE).await;
    world.assert_billed_without_copies(300);
    assert_eq!(world.letters().await.len(), 100);
    for sent in world.wire.sent() {
        let mut tenants = BTreeMap::new();
        for record in sent.records() {
            *tenants.entry(record["customerId"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        }
        let is_cut = tenants.values().any(|&records| records != 100);
        assert!(tenants.len() == 1 || !is_cut, "a request with a part of one tenant and another's: {tenants:?}");
        assert!(!is_cut || tenants.contains_key("tenant-2"), "cut without need: {tenants:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_413_splits_and_is_remembered_for_a_while() {
    let world = World::new(1);
    world.set_faults(Faults { max_body_bytes: NonZeroUsize::new(20_000), ..Faults::default() });
    let _worker = world.start().await;
    world.put((0..1000).map(|n| usage("tenant", n))).await;
    world.settle_within(MINUTE).await;
    let learning = world.answered(413);
    assert!((1..=8).contains(&learning), "{learning} requests were too large");
    for round in 1..=3 {
        world.put((0..1000).map(|n| usage("tenant", round * 1000 + n))).await;
        world.settle_within(MINUTE).await;
        assert_eq!(world.answered(413), learning, "forgotten within the time of memory");
        sleep(2 * MINUTE).await;
    }
    world.assert_billed_without_copies(4000);
    // What is remembered is not for ever: Amberflo may take more again.
    sleep(10 * MINUTE).await;
    world.set_faults(Faults::default());
    let before = world.wire.sent().len();
    world.put((0..1000).map(|n| usage("tenant", 9000 + n))).await;
    world.settle_within(MINUTE).await;
    assert_eq!(world.wire.sent().len() - before, 1, "one full request after the memory has faded");
    world.assert_billed_without_copies(5000);
    assert!(world.letters().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_records_is_met_by_splitting_too() {
    let world = World::new(2);
    world.set_faults(Faults { max_records: NonZeroUsize::new(10), ..Faults::default() });
    let _worker = world.start().await;
    world.put((0..500).map(|n| usage(&format!("tenant-{}", n % 5), n))).await;
    world.settle_within(10 * MINUTE).await;
    world.assert_billed_without_copies(500);
    assert!(world.letters().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_single_record_that_is_too_large_is_dead_lettered_as_oversized() {
    let world = World::new(1);
    world.set_faults(Faults { max_body_bytes: NonZeroUsize::new(4_000), ..Faults::default() });
    let _worker = world.start().await;
    let mut large = bad("tenant");
    large["note"] = json!("x".repeat(5_000));
    let events = (0..50).map(|n| usage("tenant", n)).chain([large]).chain((50..100).map(|n| usage("tenant", n)));
    world.put(events).await;
    world.settle_within(10 * MINUTE).await;
    world.assert_billed_without_copies(100);
    assert_only_the_bad_one_is_dead(&world, Reason::Oversized, 413).await;
}

/// One batch that only ever meets 5xx, while others are delivered.
#[tokio::test(start_paused = true)]
async fn a_batch_that_fails_alone_for_half_an_hour_is_searched_for_its_culprit() {
    let world = World::new(2);
    world.set_faults(poisoned(503));
    let _worker = world.start().await;
    let neighbours = (0..99).map(|n| usage("tenant-0", n));
    world.put(neighbours.chain([bad("tenant-0")])).await;
    let mut events = 99;
    for minute in 0..60 {
        assert!(minute >= 30 || world.letters().await.is_empty(), "dead-lettered after {minute} minutes");
        sleep(MINUTE).await;
        world.put((0..10).map(|n| usage(&format!("tenant-{n}"), 1000 + minute * 10 + n))).await;
        events += 10;
    }
    world.settle_within(10 * MINUTE).await;
    world.assert_billed_without_copies(events);
    assert_only_the_bad_one_is_dead(&world, Reason::Unconfirmed, 503).await;
}

/// A single tenant has all its events in one shard: others are then the batches behind it.
#[tokio::test(start_paused = true)]
async fn a_failing_record_does_not_stop_the_only_shard_for_ever() {
    let world = World::new(1);
    world.set_faults(poisoned(503));
    let _worker = world.start().await;
    world.put((0..99).map(|n| usage("tenant", n)).chain([bad("tenant")])).await;
    let mut events = 99;
    for minute in 0..90 {
        world.put((0..10).map(|n| usage("tenant", 1000 + minute * 10 + n))).await;
        events += 10;
        sleep(MINUTE).await;
    }
    world.settle_within(10 * MINUTE).await;
    world.assert_billed_once(events);
    assert_only_the_bad_one_is_dead(&world, Reason::Unconfirmed, 503).await;
}

/// Only a long time of failures makes a suspect: not a minute of them, and not one before a batch is divided for something
/// else.
#[tokio::test(start_paused = true)]
async fn half_of_a_refused_batch_that_fails_shortly_is_not_given_up() {
    let world = World::new(1);
    let _worker = world.start().await;
    let (attempts, began) = (AtomicU32::new(0), Instant::now());
    world.wire.script(move |sent| {
        let is_first_event = sent.records().iter().any(|record| record["uniqueId"] == "1");
        let attempt = if is_first_event { attempts.fetch_add(1, Ordering::Relaxed) } else { u32::MAX };
        let verdict = match attempt {
            1 => Verdict::Answer(answer(400, &[], "no")),
            u32::MAX => Verdict::Pass,
            _ if sent.at - began > 2 * MINUTE => Verdict::Pass,
            _ => Verdict::Answer(answer(503, &[], "")),
        };
        (Duration::ZERO, verdict)
    });
    world.put([usage("tenant", 1), usage("tenant", 2)]).await;
    for n in 0..180 {
        sleep(SECOND).await;
        world.put([usage("tenant", 100 + n)]).await;
    }
    world.settle_within(10 * MINUTE).await;
    assert_eq!(world.letters().await.len(), 0);
    world.assert_billed_without_copies(182);
}

/// A part that fails does not keep the other parts of its batch waiting.
#[tokio::test(start_paused = true)]
async fn what_fails_holds_up_no_other_part_of_its_batch() {
    let poison =
        |prefix: &str, status| Poison { status, unique_id_prefixes: vec![prefix.to_owned()], ..Poison::default() };
    let faults = Faults { poison: vec![poison("bad", 400), poison("failing", 503)], ..Faults::default() };
    // Whichever part is sent first.
    for (bad_one, failing_one) in [("tenant-1", "tenant-2"), ("tenant-2", "tenant-1")] {
        let world = World::new(1);
        world.set_faults(faults.clone());
        let _worker = world.start().await;
        let named = |tenant: &str, name: &str| {
            let mut event = usage(tenant, 7);
            event["uniqueId"] = json!(name);
            event
        };
        world.put([usage("tenant-0", 1), named(bad_one, "bad-1"), named(failing_one, "failing-1")]).await;
        sleep(20 * SECOND).await;
        let sent: Vec<_> = world.wire.sent().iter().map(|sent| sent.records()).collect();
        assert!(sent.iter().any(|records| records.len() == 1 && records[0]["uniqueId"] == "bad-1"), "{sent:?}");
        sleep(50 * MINUTE).await;
        for n in 100..300 {
            world.put([usage("tenant-0", n)]).await;
            sleep(SECOND).await;
        }
        world.settle_within(10 * MINUTE).await;
        world.assert_billed_without_copies(201);
        let dead: BTreeSet<_> = world.letters().await.into_iter().map(|letter| letter.unique_id.unwrap()).collect();
        assert_eq!(dead, BTreeSet::from(["bad-1".to_owned(), "failing-1".to_owned()]));
    }
}
