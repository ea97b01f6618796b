//! What is settled, what is answered, and what comes again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use amberflo_sandbox::{Faults, Poison};
use async_trait::async_trait;
use ingest_worker::context::Common;
use serde_json::json;
use shared::backend::local::LocalStore;
use shared::backend::{BackendError, DeadLetters, NewRecord, Received, Stream as _};
use shared::dead_letter::DeadLetter;

use super::{ARRIVED, NONE, SHARD, Sandbox, envelope, number, record_in, tens, usage, usages};
use crate::harness::{MINUTE, Options, Verdict, World, answer};

#[tokio::test(start_paused = true)]
async fn what_is_settled_is_no_failure() {
    let world = World::new(1);
    let lambda = Sandbox::start(&world, tens()).await;
    assert_eq!(lambda.invoke(&usages(0..95)).await, NONE);
    world.assert_billed_without_copies(95);
    assert_eq!(world.wire.sent().len(), 10);
    assert_eq!(lambda.invoke(&[]).await, NONE);
    assert_eq!(lambda.common.dedup_keys.used(), 0, "the window lives for one invocation");
}

#[tokio::test(start_paused = true)]
async fn the_last_batch_does_not_wait_for_more_records() {
    let world = World::new(1);
    let options = Options { batch_linger: MINUTE, ..Options::default() };
    let lambda = Sandbox::start(&world, options).await;
    let started = tokio::time::Instant::now();
    assert_eq!(lambda.invoke(&usages(0..7)).await, NONE);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    world.assert_billed_without_copies(7);
}

#[tokio::test(start_paused = true)]
async fn bad_records_are_dead_letters_and_no_failures() {
    let world = World::new(1);
    let poison = Poison { status: 422, unique_id_prefixes: vec!["13".to_owned()], ..Poison::default() };
    world.set_faults(Faults { poison: vec![poison], ..Faults::default() });
    let lambda = Sandbox::start(&world, Options::default()).await;
    let mut records = usages(10..30);
    records.push(record_in(SHARD, 30, "\u{0}not json"));
    records.push(record_in(SHARD, 31, b""));
    records.push(record_in(SHARD, 32, [&[0xf3, 0x89, 0x9a, 0xc2][..], &[0; 32]].concat()));
    assert_eq!(lambda.invoke(&records).await, NONE);
    world.assert_billed_without_copies(19);
    let letters = world.letters().await;
    let found: Vec<_> = letters.iter().map(|letter| (letter.reason.as_str(), &*letter.sequence_number)).collect();
    let expected = ["not_json", "empty", "kpl_aggregate", "rejected"];
    let mut reasons: Vec<_> = found.iter().map(|(reason, _)| *reason).collect();
    reasons.sort_by_key(|reason| expected.iter().position(|known| known == reason));
    assert_eq!(reasons, expected, "{found:?}");
    assert!(found.contains(&("rejected", &number(13))), "{found:?}");
    assert!(letters.iter().all(|letter| letter.shard == SHARD && letter.arrived_at == 1_767_225_600_100));
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_begins_half_way_comes_again_from_the_first_unsettled_record() {
    let world = World::new(1);
    let lambda = Sandbox::start(&world, tens()).await;
    let requests = std::sync::atomic::AtomicUsize::new(0);
    world.wire.script(move |_| match requests.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => (Duration::ZERO, Verdict::Pass),
        _ => (Duration::ZERO, Verdict::Answer(answer(503, &[], ""))),
    });
    assert_eq!(lambda.invoke(&usages(0..50)).await, [number(20)]);
    world.wire.mend();
    assert_eq!(lambda.invoke(&usages(20..60)).await, NONE);
    world.assert_billed_without_copies(60);
}

/// Amberflo took what it did not confirm.
#[tokio::test(start_paused = true)]
async fn a_retry_in_another_sandbox_is_absorbed() {
    let world = World::new(1);
    let first = Sandbox::start(&world, tens()).await;
    world.wire.script(|_| (Duration::ZERO, Verdict::Instead(answer(503, &[], ""))));
    assert_eq!(first.invoke(&usages(0..30)).await, [number(0)]);
    world.wire.mend();
    let second = Sandbox::start(&world, Options::default()).await;
    assert_eq!(second.invoke(&usages(0..30)).await, NONE);
    world.assert_billed_once(30);
    assert!(world.sandbox.ledger().absorbed_copies >= 30);
}

/// Lambda ended the invocation, or its answer was lost: all comes again.
#[tokio::test(start_paused = true)]
async fn an_invocation_that_is_killed_is_replayed_and_absorbed() {
    let world = World::new(1);
    let first = Sandbox::start(&world, tens()).await;
    world.wire.script(|_| (Duration::from_secs(4), Verdict::Pass));
    let records = usages(0..200);
    let killed = tokio::time::timeout(Duration::from_secs(5), first.invoke(&records)).await;
    assert!(killed.is_err());
    let second = Sandbox::start(&world, Options::default()).await;
    assert_eq!(second.invoke(&records).await, NONE);
    world.assert_billed_once(200);
    assert!(world.sandbox.ledger().absorbed_copies >= 80, "{}", world.sandbox.ledger().absorbed_copies);
}

#[tokio::test(start_paused = true)]
async fn copies_in_one_event_are_dropped_and_other_contents_are_a_conflict() {
    let world = World::new(1);
    let lambda = Sandbox::start(&world, tens()).await;
    let mut records = usages(10..40);
    for (n, time) in (40..70).zip(["2026-01-01T00:00:00Z", "2026-01-01T00:00:07Z"].iter().cycle()) {
        records.push(record_in(SHARD, n, envelope(crate::harness::usage("tenant", n - 30), time)));
    }
    let mut other = crate::harness::usage("tenant", 12);
    other["meterValue"] = json!(13);
    records.push(record_in(SHARD, 70, envelope(other, "2026-01-01T00:00:00Z")));
    assert_eq!(lambda.invoke(&records).await, NONE);
    world.assert_billed_without_copies(30);
    let letters = world.letters().await;
    assert_eq!(letters.iter().map(|letter| letter.reason.as_str()).collect::<Vec<_>>(), ["conflict"]);
}

/// An archive of EventBridge keeps id and time of an event, and adds the replay's name.
#[tokio::test(start_paused = true)]
async fn a_replay_of_an_archive_is_the_identical_record() {
    let world = World::new(1);
    let lambda = Sandbox::start(&world, Options::default()).await;
    let event = envelope(crate::harness::usage("tenant", 7), "2026-01-01T00:00:00Z");
    let replayed = event.replacen('{', r#"{"replay-name":"after-the-outage","#, 1);
    assert_eq!(lambda.invoke(&[record_in(SHARD, 1, event)]).await, NONE);
    assert_eq!(lambda.invoke(&[record_in(SHARD, 2, replayed)]).await, NONE);
    world.assert_billed_once(1);
    let sent = world.wire.sent();
    assert_eq!((sent.len(), world.sandbox.ledger().absorbed_copies), (2, 1));
    assert_eq!(sent[0].gzipped, sent[1].gzipped, "byte for byte");
}

/// The window ends with the invocation. With the producer's own time the copy is the same record.
#[tokio::test(start_paused = true)]
async fn a_copy_in_a_later_event_is_sent_again_and_absorbed() {
    let world = World::new(1);
    let lambda = Sandbox::start(&world, Options::default()).await;
    let timed = |n| {
        let mut detail = crate::harness::usage("tenant", 7);
        detail["meterTimeInMillis"] = json!(1_767_225_500_000_u64);
        record_in(SHARD, n, envelope(detail, &format!("2026-01-01T00:00:0{n}Z")))
    };
    assert_eq!(lambda.invoke(&[timed(1)]).await, NONE);
    assert_eq!(lambda.invoke(&[timed(2)]).await, NONE);
    world.assert_billed_once(1);
    let sent = world.wire.sent();
    assert_eq!((sent.len(), world.sandbox.ledger().absorbed_copies), (2, 1));
    assert_eq!(sent[0].gzipped, sent[1].gzipped, "byte for byte");
}

/// What was settled before is forgotten: the copy is the first of its event.
#[tokio::test(start_paused = true)]
async fn a_copy_that_a_partial_failure_parts_from_its_event_is_billed_again() {
    let world = World::new(1);
    let lambda = Sandbox::start(&world, tens()).await;
    let mut records = usages(0..20);
    let time = "2026-01-01T00:00:07Z";
    records[15] = record_in(SHARD, 15, envelope(crate::harness::usage("tenant", 5), time));
    let is_down = AtomicBool::new(false);
    world.wire.script(move |_| match is_down.swap(true, Ordering::Relaxed) {
        false => (Duration::ZERO, Verdict::Pass),
        true => (Duration::ZERO, Verdict::Answer(answer(503, &[], ""))),
    });
    assert_eq!(lambda.invoke(&records).await, [number(10)]);
    world.wire.mend();
    assert_eq!(lambda.invoke(&records[10..]).await, NONE);
    let ledger = world.sandbox.ledger();
    assert_eq!((ledger.events, ledger.billed_again), (20, 1));
}

/// The redriven record has the identity and the time of the first one, which may have been taken after all.
#[tokio::test(start_paused = true)]
async fn a_redrive_and_the_first_record_are_the_same_bytes() {
    let world = World::new(1);
    let poison = Poison { status: 400, unique_id_prefixes: vec!["13".to_owned()], ..Poison::default() };
    world.set_faults(Faults { poison: vec![poison], ..Faults::default() });
    let lambda = Sandbox::start(&world, Options::default()).await;
    assert_eq!(lambda.invoke(&[usage(13)]).await, NONE);
    let letters = world.letters().await;
    let redriven = shared::redrive::record(&letters[0], &world.store).await.unwrap();
    world.set_faults(Faults::default());
    assert_eq!(lambda.invoke(&[record_in(SHARD, 50, &redriven.data)]).await, NONE);
    assert_eq!(lambda.invoke(&[usage(13)]).await, NONE);
    world.assert_billed_once(1);
    assert_eq!(world.sandbox.ledger().absorbed_copies, 1);
}

/// A long-running worker finds it by what becomes of others. An invocation sees no others, and nothing is dropped.
#[tokio::test(start_paused = true)]
async fn a_record_that_alone_fails_or_is_forbidden_stalls_its_shard() {
    for status in [403, 500] {
        let world = World::new(1);
        let poison = Poison { status, unique_id_prefixes: vec!["13".to_owned()], ..Poison::default() };
        world.set_faults(Faults { poison: vec![poison], ..Faults::default() });
        let lambda = Sandbox::start(&world, tens()).await;
        for _ in 0..150 {
            assert_eq!(lambda.invoke(&usages(10..20)).await, [number(10)], "{status}");
        }
        assert!(world.letters().await.is_empty());
        world.set_faults(Faults::default());
        tokio::time::sleep(MINUTE).await;
        assert_eq!(lambda.invoke(&usages(10..20)).await, NONE);
        world.assert_billed_without_copies(10);
    }
}

/// What the README warns of: the copy has another envelope time, and Amberflo cannot know it.
#[tokio::test(start_paused = true)]
async fn a_copy_without_its_own_time_in_a_later_event_is_billed_again() {
    let world = World::new(1);
    let lambda = Sandbox::start(&world, Options::default()).await;
    let copy =
        |n| record_in(SHARD, n, envelope(crate::harness::usage("tenant", 7), &format!("2026-01-01T00:00:0{n}Z")));
    assert_eq!(lambda.invoke(&[copy(1), copy(2)]).await, NONE);
    world.assert_billed_without_copies(1);
    assert_eq!(lambda.invoke(&[copy(3)]).await, NONE);
    let ledger = world.sandbox.ledger();
    assert_eq!((ledger.events, ledger.billed_again), (2, 1));
}

/// Also where the time of arrival is part of the record.
#[tokio::test(start_paused = true)]
async fn the_records_are_those_of_the_long_running_worker() {
    let bare =
        |n: u64| json!({"tenantId": "tenant", "meterApiName": "calls", "meterValue": n, "uniqueId": format!("u{n}")});
    let lambda_world = World::new(1);
    let lambda = Sandbox::start(&lambda_world, Options::default()).await;
    let records: Vec<_> = (0..20).map(|n| record_in(SHARD, n, bare(n).to_string())).collect();
    assert_eq!(lambda.invoke(&records).await, NONE);

    let world = World::new(1);
    tokio::time::sleep(Duration::from_millis((ARRIVED * 10.0) as u64 % 10 * 100)).await;
    let published = (0..20).map(|n| NewRecord { partition_key: "tenant".to_owned(), data: bare(n).to_string().into() });
    world.store.publish(published.collect()).await.unwrap();
    let _worker = world.start().await;
    world.settle_within(MINUTE).await;
    assert_eq!(lambda_world.wire.sent()[0].records(), world.wire.sent()[0].records());
    assert_eq!(world.wire.sent()[0].records().len(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_queue_that_is_down_is_a_failure_and_no_loss() {
    let world = World::new(1);
    let is_down = Arc::new(AtomicBool::new(true));
    let queue = Queue { store: world.store.clone(), is_down: Arc::clone(&is_down) };
    let common = Common { dead_letters: Arc::new(queue), ..world.common(tens()).await };
    let lambda = Sandbox::with(common);
    let mut records = usages(0..30);
    records[15] = record_in(SHARD, 15, "not json");
    assert_eq!(lambda.invoke(&records).await, [number(10)], "the batch of the bad record is not settled");
    assert!(world.letters().await.is_empty());
    is_down.store(false, Ordering::Relaxed);
    assert_eq!(lambda.invoke(&records[10..]).await, NONE);
    world.assert_billed_once(29);
    assert_eq!(world.letters().await.len(), 1);
}

/// Lambda does not send them; if it did, neither would hide the other's failure.
#[tokio::test(start_paused = true)]
async fn shards_in_one_event_are_answered_one_by_one() {
    let world = World::new(1);
    let lambda = Sandbox::start(&world, Options::default()).await;
    let data = |n| envelope(crate::harness::usage("tenant", n), "2026-01-01T00:00:00Z");
    let records: Vec<_> =
        (0..10).map(|n| record_in(if n % 2 == 0 { "shardId-a" } else { "shardId-b" }, n, data(n))).collect();
    assert_eq!(lambda.invoke(&records).await, NONE);
    world.assert_billed_without_copies(10);
    world.wire.answer_all(503, &[], "");
    assert_eq!(lambda.invoke(&records).await, [number(0), number(1)]);
}

#[tokio::test(start_paused = true)]
async fn an_event_of_another_stream_is_refused() {
    let world = World::new(1);
    let lambda = Sandbox::start(&world, Options::default()).await;
    let event = serde_json::from_value(json!({ "Records": [usage(1)] })).unwrap();
    let error = lambda.function.answer(event, &"others".parse().unwrap(), i64::MAX / 2).await.unwrap_err().to_string();
    assert!(error.contains("STREAM: events") && error.contains("others") && !error.contains('\n'), "{error}");
    assert!(world.wire.sent().is_empty());
}

/// A queue that can be down.
struct Queue {
    store: LocalStore,
    is_down: Arc<AtomicBool>,
}

#[async_trait]
impl DeadLetters for Queue {
    fn name(&self) -> &str {
        self.store.name()
    }

    async fn send(&self, letters: &[DeadLetter]) -> Result<(), BackendError> {
        if self.is_down.load(Ordering::Relaxed) {
            return Err(BackendError::Unavailable("the queue is down".to_owned()));
        }
        self.store.send(letters).await
    }

    async fn receive(&self, max: usize) -> Result<Vec<Received>, BackendError> {
        self.store.receive(max).await
    }

    async fn delete(&self, receipts: &[String]) -> Result<(), BackendError> {
        self.store.delete(receipts).await
    }

    async fn release(&self, receipts: &[String]) -> Result<(), BackendError> {
        DeadLetters::release(&self.store, receipts).await
    }

    async fn depth(&self) -> Result<u64, BackendError> {
        self.store.depth().await
    }
}
