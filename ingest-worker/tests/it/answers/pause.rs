//! 401, 403, 404, redirects and web pages: the key or the address is wrong, so nothing is sent until it is mended.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use amberflo_sandbox::{Faults, Poison, Trigger};
use shared::api_key::Source;
use tokio::time::{Instant, sleep};

use crate::harness::{MINUTE, Options, SECOND, Sent, Verdict, World, answer, usage};

/// How long each pause lasts.
const PAUSE: Duration = Duration::from_secs(10 * 60);

/// Several shards, and so several requests under way when the refusals begin; later at most one in 30 s.
fn assert_probes_are_rare(sent: &[Sent], since: Instant) {
    let times: Vec<_> = sent.iter().map(|sent| sent.at).filter(|&at| at >= since).collect();
    let (first, probes) = times.split_at(times.iter().filter(|&&at| at < times[0] + SECOND).count());
    assert!(first.len() <= 8, "{} requests before the pause", first.len());
    let mut last = times[0];
    for &probe in probes {
        assert!(probe - last >= 30 * SECOND, "a probe {:?} after the last", probe - last);
        last = probe;
    }
    let expected = (PAUSE.as_secs() / 30) as usize;
    assert!((expected / 2..=expected).contains(&probes.len()), "{} probes in the pause", probes.len());
}

#[tokio::test(start_paused = true)]
async fn a_wrong_key_or_address_pauses_everything_and_ends_by_itself() {
    let page = &[("content-type", "text/html; charset=utf-8")];
    for (status, headers, body) in [
        (401, &[][..], "Unauthorized"),
        (403, &[], r#"{"message":"Forbidden"}"#),
        (404, &[], "Not Found"),
        (405, &[], ""),
        (301, &[("location", "https://example.invalid/")], ""),
        (302, &[("location", "https://example.invalid/login")], ""),
        (307, &[("location", "https://example.invalid/ingest")], ""),
        (200, page, "<!doctype html><title>Sign in</title>"),
    ] {
        let world = World::new(2);
        let worker = world.start().await;
        world.put((0..50).map(|n| usage(&format!("tenant-{}", n % 10), n))).await;
        world.settle_within(MINUTE).await;
        sleep(MINUTE).await;
        assert!(worker.ready.get());

        world.wire.answer_all(status, headers, body);
        let since = Instant::now();
        world.put((50..100).map(|n| usage(&format!("tenant-{}", n % 10), n))).await;
        sleep(5 * SECOND).await;
        assert!(worker.common.limiter.is_paused() && !worker.ready.get(), "{status}");
        sleep(PAUSE).await;
        assert!(!worker.ready.get(), "{status}");
        assert!(world.letters().await.is_empty(), "{status}");
        assert_probes_are_rare(&world.wire.sent(), since);

        world.wire.mend();
        world.settle_within(2 * MINUTE).await;
        world.assert_billed_without_copies(100);
        assert!(world.letters().await.is_empty());
        sleep(5 * SECOND).await;
        assert!(worker.ready.get(), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_sandboxes_redirects_and_pages_pause_too() {
    let always = Trigger::rate(1.0);
    for faults in [Faults { redirect: always, ..Faults::default() }, Faults { html: always, ..Faults::default() }] {
        let world = World::new(2);
        world.set_faults(faults);
        let worker = world.start().await;
        world.put((0..50).map(|n| usage(&format!("tenant-{}", n % 10), n))).await;
        sleep(10 * MINUTE).await;
        assert!(!worker.ready.get() && world.letters().await.is_empty());
        world.set_faults(Faults::default());
        world.settle_within(2 * MINUTE).await;
        world.assert_billed_without_copies(50);
    }
}

#[tokio::test(start_paused = true)]
async fn a_replaced_key_file_is_picked_up_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, "old-key\n").unwrap();
    let world = World::new(2);
    let only = |key: &str| Faults { valid_keys: Some(BTreeSet::from([key.to_owned()])), ..Faults::default() };
    world.set_faults(only("old-key"));
    let worker = world.start_with(Options { key: Source::File(file.clone()), ..Options::default() }).await;
    world.put((0..50).map(|n| usage(&format!("tenant-{}", n % 10), n))).await;
    world.settle_within(MINUTE).await;

    world.set_faults(only("new-key"));
    world.put((50..100).map(|n| usage(&format!("tenant-{}", n % 10), n))).await;
    sleep(5 * MINUTE).await;
    assert!(!worker.ready.get() && world.answered(401) > 0);
    // A file that is being replaced may be empty or absent for a moment.
    std::fs::write(&file, "").unwrap();
    sleep(2 * MINUTE).await;
    std::fs::remove_file(&file).unwrap();
    sleep(2 * MINUTE).await;
    std::fs::write(&file, "new-key\n").unwrap();
    // By the next probe, not the one after it.
    world.settle_within(40 * SECOND).await;
    world.assert_billed_without_copies(100);
    assert!(world.letters().await.is_empty());
}

/// A probe that meets another trouble neither ends the pause nor starts a storm.
#[tokio::test(start_paused = true)]
async fn a_pause_survives_a_probe_that_fails_in_another_way() {
    let world = World::new(4);
    let worker = world.start().await;
    let began = Instant::now();
    world.wire.script(move |sent| {
        let elapsed = sent.at - began;
        let status = if elapsed < 2 * MINUTE || elapsed > 4 * MINUTE { 401 } else { 503 };
        (Duration::ZERO, Verdict::Answer(answer(status, &[], "no")))
    });
    world.put((0..50).map(|n| usage(&format!("tenant-{}", n % 10), n))).await;
    sleep(PAUSE).await;
    assert!(!worker.ready.get());
    assert_probes_are_rare(&world.wire.sent(), began);
    world.wire.mend();
    world.settle_within(2 * MINUTE).await;
    world.assert_billed_without_copies(50);
}

/// Answers take longer now and then: a probe that is refused reads the key all the same, and not only every second one.
#[tokio::test(start_paused = true)]
async fn each_refused_probe_reads_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, "old-key").unwrap();
    let world = World::new(1);
    let new_key = Some(BTreeSet::from(["new-key".to_owned()]));
    world.set_faults(Faults { valid_keys: new_key, ..Faults::default() });
    let attempts = AtomicU32::new(0);
    world.wire.script(move |_| {
        let is_slow = attempts.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        (if is_slow { 5 * SECOND } else { Duration::ZERO }, Verdict::Pass)
    });
    let _worker = world.start_with(Options { key: Source::File(file.clone()), ..Options::default() }).await;
    world.put([usage("tenant", 1)]).await;
    // Probes leave after 35, 65 and 95 s; the second is answered after 70.
    sleep(80 * SECOND).await;
    assert_eq!(world.answered(401), 3);
    std::fs::write(&file, "new-key").unwrap();
    world.settle_within(30 * SECOND).await;
    assert_eq!(world.answered(401), 4);
    world.assert_billed_without_copies(1);
}

/// What was sent with the old key may be refused after the new one is in use.
#[tokio::test(start_paused = true)]
async fn a_refusal_of_a_key_that_was_replaced_meanwhile_pauses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    std::fs::write(&file, "old-key").unwrap();
    let world = World::new(1);
    let new_key = Some(BTreeSet::from(["new-key".to_owned()]));
    world.set_faults(Faults { valid_keys: new_key, ..Faults::default() });
    world.wire.script(|sent| match sent.key.as_str() {
        "new-key" => (Duration::ZERO, Verdict::Pass),
        _ => (10 * SECOND, Verdict::Answer(answer(401, &[], "Unauthorized"))),
    });
    let worker = world.start_with(Options { key: Source::File(file.clone()), ..Options::default() }).await;
    world.put([usage("tenant", 1)]).await;
    sleep(5 * SECOND).await;
    std::fs::write(&file, "new-key").unwrap();
    assert!(worker.common.keys.reload().await);
    world.settle_within(10 * SECOND).await;
    assert_eq!(world.wire.sent().len(), 2);
    assert!(worker.ready.get() && !worker.common.limiter.is_paused());
}

/// The search for them takes many requests: they do not wait for a probe each.
#[tokio::test(start_paused = true)]
async fn bad_records_in_a_probe_do_not_prolong_the_pause() {
    let world = World::new(2);
    let poison = || Poison { unique_id_prefixes: vec!["1".to_owned()], ..Poison::default() };
    let revoked = Some(BTreeSet::from(["another-key".to_owned()]));
    world.set_faults(Faults { valid_keys: revoked, poison: vec![poison()], ..Faults::default() });
    let worker = world.start().await;
    world.put((0..50).map(|n| usage(&format!("tenant-{}", n % 10), n))).await;
    sleep(10 * SECOND).await;
    assert!(worker.common.limiter.is_paused());
    world.set_faults(Faults { poison: vec![poison()], ..Faults::default() });
    world.settle_within(40 * SECOND).await;
    assert_eq!(world.letters().await.len(), 11, "1, and 10 to 19");
    world.assert_billed_without_copies(39);
}
