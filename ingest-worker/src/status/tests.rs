use std::num::NonZeroU32;

use shared::backend::{Record, SequenceNumber};
use shared::dead_letter::{DeadLetter, Origin};
use shared::event::Identity;
use shared::reason::Reason;
use tokio::sync::watch;
use tokio::time::{Instant, advance};

use super::*;
use crate::lease::Fence;
use crate::limiter::{Limiter, Outcome};

fn held(arrived_at: i64) -> HeldLease {
    let settled = Checkpoint::Settled { sequence_number: SequenceNumber("49".to_owned()), arrived_at };
    let fence = Fence::until(Instant::now() + Duration::from_secs(8));
    HeldLease { since: 0, checkpoint: watch::channel(settled).1, fence }
}

fn texts(table: &Table) -> Vec<Vec<&str>> {
    table.rows.iter().map(|row| row.iter().map(|cell| &*cell.text).collect()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_slowest_shard_comes_first() {
    let board = Board::default();
    let posted = ["a", "b", "c"].map(|shard| board.post_lease(ShardId(shard.to_owned()), held(60_000)));
    let samples = Samples::parse(
        "ingest_shard_lag_seconds{shard=\"a\"} 2\ningest_shard_lag_seconds{shard=\"b\"} 90\n\
         ingest_oldest_unsettled_seconds{shard=\"b\"} 3\n",
    );
    let clock = Clock::following_tokio(90_000);
    advance(Duration::from_secs(2)).await;
    let table = shards(&board.leases(), &samples, clock);
    let tail = ["after 49", "32 s ago", "1970-01-01T00:00:00Z", "6 s"];
    let row = |head: [&'static str; 3]| [&head[..], &tail[..]].concat();
    assert_eq!(
        texts(&table),
        [
            row(["b", "1 min 30 s", "3 s"]),
            row(["a", "2 s", "not known yet"]),
            row(["c", "not known yet", "not known yet"])
        ]
    );
    assert!(table.rows[0][1].needs_attention && !table.rows[1][1].needs_attention);
    drop(posted);
    assert!(board.leases().is_empty(), "a lease that is not held is not shown");
}

#[test]
fn the_latest_dead_letters_come_first_and_they_are_few() {
    let (board, shard) = (Board::default(), ShardId("s".to_owned()));
    let letter = |n: i64| {
        let record = Record {
            data: "payload".into(),
            partition_key: "tenant".to_owned(),
            sequence_number: SequenceNumber(n.to_string()),
            arrived_at: 0,
        };
        let origin = Origin { stream: "local", shard: &shard, worker: "w", now: n * 1000 };
        DeadLetter::new(&record, origin, Reason::Rejected, "x".repeat(1000), Identity::default())
    };
    board.note_letters(&(0..100).map(letter).collect::<Vec<_>>());
    board.note_letters(&[letter(104), letter(103)]);
    board.note_letters(&[letter(102), letter(100), letter(101)]);
    let table = latest_letters(&board);
    assert_eq!((table.rows.len(), texts(&table)[0][4], texts(&table)[19][4]), (20, "104", "85"));
    assert_eq!(texts(&table)[0][0], "1970-01-01T00:01:44Z");
    assert!(texts(&table)[0][2].len() < 200);
}

/// What the page says set a limit is what did.
#[tokio::test(start_paused = true)]
async fn limits_say_what_set_them() {
    let limiter = Limiter::new(NonZeroU32::new(8).unwrap(), 10.0);
    limiter.set_share(1, 4);
    let report = async |outcome, cause| Arc::clone(&limiter).acquire().await.report_because(outcome, cause);
    assert_eq!(limiter.observe().last_cut, None);
    report(Outcome::SlowDown(Some(Duration::from_secs(40))), "429 Too Many Requests: slow down").await;
    advance(Duration::from_secs(3)).await;
    let limits = limiter.observe();
    let cut = limits.last_cut.unwrap();
    assert_eq!((cut.cause.as_str(), cut.to, cut.ago), ("429 Too Many Requests: slow down", 4, Duration::from_secs(3)));
    assert_eq!((limits.retry_after, limits.concurrency), (Some(Duration::from_secs(37)), 4));
    assert_eq!((limits.rate, limits.account_rate, limits.shards), (2.5, 10.0, (1, 4)));

    advance(Duration::from_secs(60)).await;
    report(Outcome::Refused, "401 Unauthorized: no such key").await;
    report(Outcome::Refused, "another answer, while it is paused").await;
    let limits = limiter.observe();
    assert_eq!(limits.retry_after, None);
    let pause = limits.pause.unwrap();
    assert_eq!((pause.cause.as_str(), pause.lasted), ("401 Unauthorized: no such key", Duration::from_secs(30)));
    report(Outcome::Delivered, "").await;
    assert_eq!(limiter.observe().pause, None);
}
