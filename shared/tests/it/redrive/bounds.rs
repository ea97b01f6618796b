//! Redrives of some letters, of some seconds, and what they leave behind.

use std::collections::HashSet;
use std::time::Duration;

use shared::backend::{BackendError, DeadLetters as _};
use shared::dead_letter::DeadLetter;
use shared::dead_letters::Filter;
use shared::reason::Reason;
use shared::redrive::{self, Counts, Options};
use tokio::time::Instant;

use super::{NOW, Narrow, records, store, with_payload};
use crate::contract::letter;
use crate::dead_letters::{Slow, visible};

fn conflict(n: i64) -> DeadLetter {
    DeadLetter { reason: "conflict".to_owned(), ..with_payload(n) }
}

fn only(reasons: &[Reason]) -> Filter {
    Filter { reasons: Some(reasons.iter().copied().collect::<HashSet<_>>()), ..Filter::default() }
}

#[tokio::test]
async fn letters_that_stay_are_visible_at_once_and_counted_by_reason() {
    let store = store();
    store.send(&[with_payload(1), conflict(2), letter(3), with_payload(4)]).await.unwrap();
    for round in 0..2 {
        let report = redrive::run(&store, &store, &Options::all(NOW)).await.unwrap();
        let redriven = if round == 0 { 2 } else { 0 };
        assert_eq!((report.totals.redriven, report.skipped, report.more), (redriven, 2, false));
        let skipped = Counts { redriven: 0, skipped: 1 };
        assert_eq!((report.by_reason["conflict"], report.by_reason["not_json"]), (skipped, skipped));
        let examples: Vec<_> = report.examples.iter().map(|left| (&*left.sequence_number, &*left.reason)).collect();
        assert_eq!(examples, [("2", "conflict"), ("3", "not_json")]);
        assert!(report.examples[1].why.contains("why \"it\" failed"), "the parser's words of then");
    }
    let form = serde_json::to_value(redrive::run(&store, &store, &Options::all(NOW)).await.unwrap()).unwrap();
    let members: Vec<_> = form.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = ["byReason", "conflicts", "examples", "forgotten", "more", "notRedrivable", "redriven", "skipped"];
    assert_eq!(members, expected);
}

#[tokio::test]
async fn conflicts_go_when_they_are_allowed() {
    let store = store();
    store.send(&[with_payload(1), conflict(2)]).await.unwrap();
    let options = Options { conflicts: true, filter: only(&[Reason::Conflict]), ..Options::all(NOW) };
    let report = redrive::run(&store, &store, &options).await.unwrap();
    assert_eq!((report.totals.redriven, report.skipped), (1, 0));
    assert_eq!(visible(&store).await, [1]);
}

#[tokio::test]
async fn a_filter_finds_its_letters_behind_many_others() {
    let store = store();
    let others: Vec<_> = (0..350).map(with_payload).collect();
    store.send(&others).await.unwrap();
    let tenant = |n| DeadLetter { tenant_id: Some("other".to_owned()), ..with_payload(n) };
    store.send(&[tenant(400), tenant(401)]).await.unwrap();
    let filter = Filter { tenant_id: Some("other".to_owned()), ..Filter::default() };
    let deadline = Some(Instant::now() + Duration::from_secs(60));
    let report = redrive::run(&store, &store, &Options { filter, deadline, ..Options::all(NOW) }).await.unwrap();
    assert_eq!((report.totals.redriven, report.skipped, report.more), (2, 0, false));
    assert_eq!(visible(&store).await, Vec::from_iter(0..350));
}

#[tokio::test]
async fn letters_that_come_meanwhile_are_left_and_hide_nothing() {
    let store = store();
    let newer: Vec<_> = (1000..1100).map(with_payload).collect();
    store.send(&newer).await.unwrap();
    store.send(&[with_payload(1), with_payload(2)]).await.unwrap();
    let deadline = Some(Instant::now() + Duration::from_secs(60));
    let report = redrive::run(&store, &store, &Options { deadline, ..Options::all(1000) }).await.unwrap();
    assert_eq!((report.totals.redriven, report.skipped, report.more), (2, 0, false));
    assert_eq!(visible(&store).await, Vec::from_iter(1000..1100));
}

#[tokio::test]
async fn a_limit_is_kept_and_the_rest_can_be_had_at_once() {
    let store = store();
    store.send(&(0..25).map(with_payload).collect::<Vec<_>>()).await.unwrap();
    store.send(&[conflict(30)]).await.unwrap();
    for (limit, redriven, more) in [(0, 0, true), (12, 12, true), (12, 12, true), (12, 1, false)] {
        let options = Options { limit: Some(limit), ..Options::all(NOW) };
        let report = redrive::run(&store, &store, &options).await.unwrap();
        assert_eq!((report.totals.redriven, report.more), (redriven, more));
    }
    assert_eq!((records(&store).await.len(), visible(&store).await), (25, vec![30]));
}

/// Letters that the stream refuses do not use the limit up.
#[tokio::test]
async fn a_refused_record_makes_room_for_the_next() {
    let store = store();
    let large = |n| {
        let payload = [b"{".as_slice(), &[b' '; 2000], &super::event(n)[1..]].concat();
        DeadLetter { payload: shared::dead_letter::Payload::Stored(payload.into()), ..with_payload(n) }
    };
    store.send(&[with_payload(0), large(1), with_payload(2), large(3), with_payload(4)]).await.unwrap();
    let options = Options { limit: Some(2), ..Options::all(NOW) };
    let report = redrive::run(&store, &Narrow(store.clone(), 1000), &options).await.unwrap();
    assert_eq!((report.totals.redriven, report.totals.not_redrivable, report.more), (2, 1, true));
    assert_eq!(visible(&store).await, [1, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn after_the_deadline_nothing_is_begun_and_all_is_released() {
    let store = store();
    store.send(&(0..100).map(with_payload).collect::<Vec<_>>()).await.unwrap();
    let slow = Slow { receive: Duration::from_secs(3), ..Slow::new(&store) };
    let (start, limit) = (Instant::now(), Duration::from_secs(20));
    let options = Options { deadline: Some(start + limit), ..Options::all(NOW) };
    let report = redrive::run(&slow, &store, &options).await.unwrap();
    // The seventh page comes too late to be published.
    assert_eq!((report.totals.redriven, report.skipped, report.more), (60, 0, true));
    assert_eq!(start.elapsed(), Duration::from_secs(21));
    assert_eq!(visible(&store).await.len(), 40);
    assert_eq!(records(&store).await.len(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_does_not_answer_ends_the_run_and_harms_no_letter() {
    let store = store();
    store.send(&(0..5).map(with_payload).collect::<Vec<_>>()).await.unwrap();
    let slow = Slow { publish: Duration::from_secs(3600), ..Slow::new(&store) };
    let start = Instant::now();
    let options = Options { deadline: Some(start + Duration::from_secs(20)), ..Options::all(NOW) };
    let stopped = redrive::run(&slow, &slow, &options).await.unwrap_err();
    assert!(matches!(stopped.error, BackendError::Unavailable(_)), "{stopped}");
    assert!(stopped.done.more && stopped.done.totals.redriven == 0);
    assert!(start.elapsed() < Duration::from_secs(28), "{:?}", start.elapsed());
    assert_eq!(visible(&store).await.len(), 5);
}

#[tokio::test]
async fn a_failure_tells_what_was_done_and_releases_the_rest() {
    let store = store();
    store.send(&(0..30).map(with_payload).collect::<Vec<_>>()).await.unwrap();
    store.send(&[conflict(40)]).await.unwrap();
    let broken = Slow { publishes: Some(1), ..Slow::new(&store) };
    let deadline = Some(Instant::now() + Duration::from_secs(60));
    let options = Options { deadline, ..Options::all(NOW) };
    let stopped = redrive::run(&store, &broken, &options).await.unwrap_err();
    assert!(stopped.to_string().contains("down"), "{stopped}");
    assert_eq!((stopped.done.totals.redriven, stopped.done.more), (10, true));
    assert_eq!(visible(&store).await.len(), 21);
}
