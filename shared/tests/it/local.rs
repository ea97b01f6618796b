//! The local store: the contracts on file and in memory, and what only a file can get wrong.

mod crash;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shared::backend::local::{FILE_NAME, LocalOptions, LocalStore};
use shared::backend::{
    BackendError, Checkpoint, DeadLetters, Lease, Leases, NewRecord, Position, Record, Stream, WorkerId,
};
use shared::clock::Clock;
use tempfile::TempDir;

use crate::contract::{dead_letters_contract, leases_contract, letter, read_shard, settled, stream_contract};

fn open(dir: &Path, options: LocalOptions) -> LocalStore {
    LocalStore::open(dir, options).unwrap()
}

fn in_memory() -> LocalStore {
    LocalStore::open_in_memory(LocalOptions::default()).unwrap()
}

fn one_shard() -> LocalOptions {
    LocalOptions { shards: 1, ..LocalOptions::default() }
}

fn record(data: impl Into<Bytes>) -> NewRecord {
    NewRecord { partition_key: "tenant".to_owned(), data: data.into() }
}

async fn read_all(store: &LocalStore) -> Vec<Record> {
    let mut records = Vec::new();
    for shard in store.shards().await.unwrap() {
        let mut reader = store.reader(&shard.id, Position::TrimHorizon).await.unwrap();
        loop {
            let page = reader.next(1 << 20).await.unwrap();
            if page.records.is_empty() {
                break;
            }
            records.extend(page.records);
        }
    }
    records
}

/// Makes all that lies in a store of one shard settled.
async fn settle_all(store: &LocalStore) {
    let shard = &store.shards().await.unwrap()[0];
    store.create(shard, Checkpoint::Start(Position::TrimHorizon)).await.unwrap();
    let last = read_all(store).await.pop().unwrap();
    let lease = store.list().await.unwrap().remove(0);
    let lease = store.claim(&lease, &WorkerId("w".to_owned())).await.unwrap().unwrap();
    let checkpoint = settled(&last.sequence_number.0, last.arrived_at);
    Leases::release(store, &Lease { checkpoint, ..lease }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_contracts_in_a_file() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), LocalOptions::default());
    stream_contract(&store).await;
    leases_contract(Arc::new(store.clone())).await;
    dead_letters_contract(&store).await;
}

#[tokio::test(start_paused = true)]
async fn keeps_the_contracts_in_memory() {
    let store = in_memory();
    stream_contract(&store).await;
    leases_contract(Arc::new(store.clone())).await;
    dead_letters_contract(&store).await;
}

#[test]
fn in_memory_a_call_is_done_at_its_first_poll_without_a_runtime() {
    fn now<T>(future: impl Future<Output = T>) -> T {
        match std::pin::pin!(future).poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(answer) => answer,
            std::task::Poll::Pending => panic!("it waits"),
        }
    }
    let store = in_memory();
    now(store.publish(vec![record("a")])).unwrap();
    now(store.send(&[letter(1)])).unwrap();
    assert_eq!(now(store.receive(1)).unwrap().len(), 1);
    assert_eq!(now(store.prune()).unwrap(), 0);
    let shard = now(store.shards()).unwrap().remove(0);
    now(store.create(&shard, Checkpoint::Start(Position::TrimHorizon))).unwrap();
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), LocalOptions { shards: 3, ..LocalOptions::default() });
    let mebibyte: Vec<u8> = (0..1 << 20).map(|n| (n % 251) as u8).collect();
    store.publish(vec![record("small"), record(mebibyte.clone()), record("")]).await.unwrap();
    store.send(&[letter(1)]).await.unwrap();
    store.create(&store.shards().await.unwrap()[1], Checkpoint::Start(Position::TrimHorizon)).await.unwrap();
    let leases = store.list().await.unwrap();
    drop(store);

    let store = open(dir.path(), LocalOptions { shards: 8, ..LocalOptions::default() });
    assert_eq!(store.shards().await.unwrap().len(), 3, "the file's shard count, not the configured one");
    let data: Vec<_> = read_all(&store).await.into_iter().map(|record| record.data).collect();
    assert_eq!(data, [Bytes::from("small"), Bytes::from(mebibyte), Bytes::new()]);
    assert_eq!(store.list().await.unwrap(), leases);
    assert_eq!(store.receive(1).await.unwrap()[0].letter, letter(1));
}

#[tokio::test]
async fn two_handles_on_one_file_see_each_other() {
    let dir = TempDir::new().unwrap();
    let (one, two) = (open(dir.path(), one_shard()), open(dir.path(), one_shard()));
    let shard = one.shards().await.unwrap().remove(0).id;
    let mut reader = one.reader(&shard, Position::TrimHorizon).await.unwrap();
    for n in 0..20 {
        let publisher = if n % 2 == 0 { &one } else { &two };
        publisher.publish(vec![record(n.to_string())]).await.unwrap();
        let page = reader.next(1 << 20).await.unwrap();
        assert_eq!(page.records.iter().map(|record| &record.data[..]).collect::<Vec<_>>(), [n.to_string().as_bytes()]);
    }
    let publish = |store: &LocalStore| {
        let calls = (0..50).map(|n| {
            let store = store.clone();
            tokio::spawn(async move { store.publish(vec![record(n.to_string())]).await })
        });
        calls.collect::<Vec<_>>()
    };
    for call in publish(&one).into_iter().chain(publish(&two)) {
        call.await.unwrap().unwrap();
    }
    assert_eq!(read_all(&two).await.len(), 120);
}

#[tokio::test(start_paused = true)]
async fn arrival_times_grow_even_when_the_clock_steps_back() {
    let dir = TempDir::new().unwrap();
    let at = |now| LocalOptions { clock: Clock::following_tokio(now), ..one_shard() };
    open(dir.path(), at(1_000_000)).publish(vec![record("a")]).await.unwrap();
    open(dir.path(), at(5)).publish(vec![record("b")]).await.unwrap();
    open(dir.path(), at(2_000_000)).publish(vec![record("c")]).await.unwrap();
    let store = open(dir.path(), one_shard());
    let records = read_all(&store).await;
    assert!(records[0].arrived_at >= 1_000_000 && records[1].arrived_at >= records[0].arrived_at);
    let shard = store.shards().await.unwrap().remove(0).id;
    for (time, first) in [(0, "a"), (records[1].arrived_at + 1, "c"), (records[2].arrived_at, "c")] {
        let found = read_shard(&store, &shard, Position::AtTime(time), 1).await;
        assert_eq!(found[0].data, first, "from {time}");
    }
    let mut reader = store.reader(&shard, Position::TrimHorizon).await.unwrap();
    let page = reader.next(1).await.unwrap();
    assert_eq!(page.millis_behind_latest, records[2].arrived_at - records[0].arrived_at);
}

#[tokio::test(start_paused = true)]
async fn a_start_in_the_future_leaves_out_what_comes_before() {
    let clock = Clock::following_tokio(1_000_000);
    let store = LocalStore::open_in_memory(LocalOptions { clock, ..one_shard() }).unwrap();
    store.publish(vec![record("a")]).await.unwrap();
    let shard = store.shards().await.unwrap().remove(0).id;
    let mut reader = store.reader(&shard, Position::AtTime(1_060_000)).await.unwrap();
    store.publish(vec![record("b")]).await.unwrap();
    assert!(reader.next(1 << 20).await.unwrap().records.is_empty());
    tokio::time::advance(Duration::from_secs(60)).await;
    store.publish(vec![record("c")]).await.unwrap();
    assert_eq!(reader.next(1 << 20).await.unwrap().records[0].data, "c");
}

#[tokio::test(start_paused = true)]
async fn a_received_letter_comes_back_after_a_minute_and_its_old_receipt_is_void() {
    let clock = Clock::following_tokio(0);
    let store = LocalStore::open_in_memory(LocalOptions { clock, ..LocalOptions::default() }).unwrap();
    store.send(&[letter(1)]).await.unwrap();
    let first = store.receive(10).await.unwrap().remove(0).receipt;
    tokio::time::advance(Duration::from_secs(59)).await;
    assert!(store.receive(10).await.unwrap().is_empty());
    assert_eq!(store.peek_dead_letters(0, 10).await.unwrap(), [(1, letter(1))], "peeking shows hidden letters");
    tokio::time::advance(Duration::from_secs(2)).await;
    let second = store.receive(10).await.unwrap().remove(0).receipt;
    store.delete(&[first, "nonsense".to_owned(), "7:7".to_owned()]).await.unwrap();
    assert_eq!(store.depth().await.unwrap(), 1, "someone else has it now");
    store.delete(&[second]).await.unwrap();
    assert_eq!(store.depth().await.unwrap(), 0);
}

#[tokio::test]
async fn peeking_goes_through_the_letters_page_by_page() {
    let store = in_memory();
    store.send(&(0..5).map(letter).collect::<Vec<_>>()).await.unwrap();
    let page = store.peek_dead_letters(0, 3).await.unwrap();
    assert_eq!(page.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 3]);
    let page = store.peek_dead_letters(3, 3).await.unwrap();
    assert_eq!(page.into_iter().map(|(_, letter)| letter).collect::<Vec<_>>(), [letter(3), letter(4)]);
    assert_eq!(store.receive(5).await.unwrap().len(), 5, "peeking hid nothing");
}

#[tokio::test]
async fn a_letter_of_a_newer_version_stays_and_holds_up_no_other() {
    let store = in_memory();
    store.send(&[shared::dead_letter::DeadLetter { schema_version: 99, ..letter(0) }, letter(1)]).await.unwrap();
    let received = store.receive(10).await.unwrap();
    assert_eq!(received.iter().map(|received| &received.letter).collect::<Vec<_>>(), [&letter(1)]);
    assert_eq!(store.depth().await.unwrap(), 2);
}

#[tokio::test]
async fn a_full_store_refuses_to_publish_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let options = LocalOptions { max_bytes: 1 << 20, retention: Duration::ZERO, ..one_shard() };
    let store = open(dir.path(), options);
    let full = |result| matches!(result, Err(BackendError::Full(_)));
    assert!(full(store.publish(vec![record(vec![0; 1 << 20])]).await), "more than fits into an empty store");
    assert!(read_all(&store).await.is_empty());

    let batch = || vec![record(vec![1; 30_000]), record(vec![2; 30_000])];
    let mut stored = 0;
    while store.publish(batch()).await.is_ok() {
        stored += 2;
        assert!(stored < 100);
    }
    assert!(full(store.publish(batch()).await));
    assert_eq!(read_all(&store).await.len(), stored, "nothing of a refused call");

    store.send(&(0..200).map(letter).collect::<Vec<_>>()).await.unwrap();
    settle_all(&store).await;
    // The records share a few arrival times; those of the newest stay.
    assert!(store.prune().await.unwrap() > 10);
    store.publish(batch()).await.unwrap();
}

#[tokio::test]
async fn a_disk_with_too_little_room_takes_events_again_into_what_pruning_freed() {
    let dir = TempDir::new().unwrap();
    let options = LocalOptions { retention: Duration::ZERO, ..one_shard() };
    let store = open(dir.path(), options.clone());
    for _ in 0..8 {
        store.publish(vec![record(vec![1; 1 << 20])]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    store.publish(vec![record(vec![2; 10])]).await.unwrap();
    settle_all(&store).await;
    assert!(store.prune().await.unwrap() > 4);
    drop(store);
    let store = open(dir.path(), LocalOptions { reserve_bytes: u64::MAX, ..options });
    store.publish(vec![record(vec![3; 1 << 20])]).await.unwrap();
    let error = store.publish(vec![record(vec![4; 16 << 20])]).await.unwrap_err();
    assert!(matches!(error, BackendError::Full(_)), "{error}");
}

#[tokio::test]
async fn a_disk_with_too_little_room_takes_no_events_but_checkpoints_and_dead_letters() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), one_shard());
    store.publish(vec![record(vec![1; 100])]).await.unwrap();
    drop(store);
    // More than any disk has free.
    let store = open(dir.path(), LocalOptions { reserve_bytes: u64::MAX, ..one_shard() });
    let error = store.publish(vec![record(vec![2; 100])]).await.unwrap_err();
    assert!(matches!(error, BackendError::Full(_)), "{error}");
    assert_eq!(read_all(&store).await.len(), 1);
    store.send(&[letter(1)]).await.unwrap();
    settle_all(&store).await;
    store.prune().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn prunes_what_is_settled_and_older_than_the_retention() {
    let clock = Clock::following_tokio(1_000_000);
    let options = LocalOptions { clock, retention: Duration::from_secs(10), ..one_shard() };
    let store = LocalStore::open_in_memory(options).unwrap();
    for n in 0..30 {
        store.publish(vec![record(n.to_string())]).await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(store.prune().await.unwrap(), 0, "nothing is settled");
    let records = read_all(&store).await;
    store.create(&store.shards().await.unwrap()[0], Checkpoint::Start(Position::TrimHorizon)).await.unwrap();
    assert_eq!(store.prune().await.unwrap(), 0);
    let lease = store.list().await.unwrap().remove(0);
    let lease = store.claim(&lease, &WorkerId("w".to_owned())).await.unwrap().unwrap();
    let checkpoint = settled(&records[20].sequence_number.0, records[20].arrived_at);
    store.renew(&Lease { checkpoint, ..lease }).await.unwrap().unwrap();
    assert_eq!(store.prune().await.unwrap(), 10);
    assert_eq!(store.prune().await.unwrap(), 0);
    assert_eq!(read_all(&store).await, records[10..]);
}

#[tokio::test(start_paused = true)]
async fn the_file_does_not_grow_for_ever() {
    let dir = TempDir::new().unwrap();
    let clock = Clock::following_tokio(1_000_000);
    let store = open(dir.path(), LocalOptions { clock, retention: Duration::ZERO, ..one_shard() });
    let mut sizes = Vec::new();
    for _ in 0..12 {
        let batch = (0..2_000).map(|n| record(vec![n as u8; 1_000])).collect();
        store.publish(batch).await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        store.publish(vec![record("newest")]).await.unwrap();
        settle_all(&store).await;
        assert_eq!(store.prune().await.unwrap(), 2_000 + u64::from(!sizes.is_empty()));
        let size = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
        sizes.push((size(FILE_NAME), size(&format!("{FILE_NAME}-wal"))));
    }
    assert!(sizes.iter().all(|&(file, log)| file < 6 << 20 && log < 40 << 20), "{sizes:?}");
}

#[tokio::test]
async fn positions_do_not_start_again_when_everything_is_gone() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), one_shard());
    store.publish(vec![record("a"), record("b")]).await.unwrap();
    let last = read_all(&store).await.pop().unwrap().sequence_number;
    drop(store);
    rusqlite::Connection::open(dir.path().join(FILE_NAME)).unwrap().execute("DELETE FROM records_0", ()).unwrap();
    let store = open(dir.path(), one_shard());
    store.publish(vec![record("c")]).await.unwrap();
    assert!(read_all(&store).await[0].sequence_number > last);
    let shard = store.shards().await.unwrap().remove(0).id;
    assert_eq!(read_shard(&store, &shard, Position::After(last), 1).await.len(), 1);
}

#[tokio::test]
async fn says_what_is_wrong_with_a_file_or_directory() {
    let misconfigured = |dir: &Path| match LocalStore::open(dir, LocalOptions::default()) {
        Err(BackendError::Misconfigured(text)) => text,
        other => panic!("{other:?}"),
    };
    let dir = TempDir::new().unwrap();
    let file = dir.path().join(FILE_NAME);

    drop(open(dir.path(), LocalOptions::default()));
    rusqlite::Connection::open(&file).unwrap().pragma_update(None, "user_version", 1000).unwrap();
    let text = misconfigured(dir.path());
    assert!(text.contains("schema version 1000") && text.contains(FILE_NAME), "{text}");

    std::fs::remove_file(&file).unwrap();
    rusqlite::Connection::open(&file).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let text = misconfigured(dir.path());
    assert!(text.contains("not a metering store"), "{text}");
    let mode: String =
        rusqlite::Connection::open(&file).unwrap().pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!(mode, "delete", "someone else's file is left as it was");

    std::fs::write(&file, vec![b'x'; 5000]).unwrap();
    let text = misconfigured(dir.path());
    assert!(text.contains(FILE_NAME) && text.contains("not a database"), "{text}");
    assert!(misconfigured(&file.join("below")).contains("below"));

    for shards in [0, 1_000_000] {
        let options = LocalOptions { shards, ..LocalOptions::default() };
        assert!(matches!(LocalStore::open_in_memory(options), Err(BackendError::Misconfigured(_))));
    }
    let store = in_memory();
    let unknown = store.reader(&crate::contract::shard("shard-0", &[]).id, Position::TrimHorizon).await;
    assert!(matches!(unknown.err(), Some(BackendError::Misconfigured(_))));
}

#[test]
fn one_worker_a_directory() {
    let dir = TempDir::new().unwrap();
    let lock = LocalStore::try_lock_worker(dir.path()).unwrap();
    let text = LocalStore::try_lock_worker(dir.path()).unwrap_err().to_string();
    let process = format!("process {}", std::process::id());
    assert!(text.contains(dir.path().to_str().unwrap()) && text.contains(&process), "{text}");
    drop(lock);
    LocalStore::try_lock_worker(dir.path()).unwrap();
}
