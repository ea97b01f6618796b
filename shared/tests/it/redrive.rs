//! Redrive of letters that are not all whole, of some letters only, and of letters that are repaired.

mod bounds;
mod repair;

use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::{
    BackendError, DeadLetters, NewRecord, Position, Received, Record, Shard, ShardId, ShardReader, Stream,
};
use shared::clock::Clock;
use shared::dead_letter::{DeadLetter, Omitted, Payload, sha256};
use shared::redrive::{self, Options, Totals};

use crate::contract::{letter, read_shard};

/// Later than every letter of these tests.
const NOW: i64 = i64::MAX;

fn store() -> LocalStore {
    LocalStore::open_in_memory(LocalOptions { shards: 1, ..LocalOptions::default() }).unwrap()
}

fn event(n: i64) -> Bytes {
    // White space and order are the producer's: they must survive.
    format!(r#"{{ "tenantId":"t", "meterValue":  {n}, "meterApiName":"m" }}"#).into()
}

async fn records(store: &LocalStore) -> Vec<Record> {
    read_shard(store, &ShardId("shard-00000".to_owned()), Position::TrimHorizon, usize::MAX).await
}

/// A letter that was stored without its payload.
fn without_payload(n: i64, record: &Record) -> DeadLetter {
    let payload = &record.data;
    let omitted = Omitted { bytes: payload.len() as u64, sha256: sha256(payload), forgotten_at: 1 };
    DeadLetter {
        reason: "rejected".to_owned(),
        sequence_number: record.sequence_number.0.clone(),
        payload: Payload::Omitted(omitted),
        ..letter(n)
    }
}

fn with_payload(n: i64) -> DeadLetter {
    DeadLetter { reason: "rejected".to_owned(), payload: Payload::Stored(event(n)), ..letter(n) }
}

#[tokio::test]
async fn an_omitted_payload_is_read_from_the_stream_and_redriven_byte_for_byte() {
    let store = store();
    let published = (0..3).map(|n| NewRecord { partition_key: "tenant".to_owned(), data: event(n) }).collect();
    store.publish(published).await.unwrap();
    let original = records(&store).await;
    store.send(&[without_payload(1, &original[1])]).await.unwrap();

    let report = redrive::run(&store, &store, &Options::all(NOW)).await.unwrap();
    assert_eq!(report.totals, Totals { redriven: 1, ..Totals::default() });
    assert_eq!(store.depth().await.unwrap(), 0);
    let redriven = records(&store).await.pop().unwrap();
    let text = String::from_utf8(redriven.data.to_vec()).unwrap();
    assert!(text.ends_with(&format!("\"detail\":{}}}", String::from_utf8_lossy(&event(1)))), "{text}");
    let marker = &serde_json::from_str::<Value>(&text).unwrap()["metering:redrive"];
    assert_eq!(*marker, json!({"count": 3, "uniqueId": "unique-1", "meterTimeInMillis": 1}));
}

#[tokio::test]
async fn a_forgotten_payload_stays_and_is_counted_and_the_others_go() {
    let store = store();
    store.publish(vec![NewRecord { partition_key: "tenant".to_owned(), data: event(0) }]).await.unwrap();
    let record = records(&store).await.remove(0);
    let elsewhere = |sequence_number: &str| DeadLetter {
        sequence_number: sequence_number.to_owned(),
        ..without_payload(1, &record)
    };
    let other_payload = Record { data: event(9), ..record.clone() };
    let left = [
        elsewhere("0"),
        elsewhere("999"),
        elsewhere("not a number"),
        DeadLetter { shard: "shard-00007".to_owned(), ..without_payload(1, &record) },
        without_payload(2, &other_payload),
    ];
    store.send(&left).await.unwrap();
    store.send(&[with_payload(7)]).await.unwrap();

    let report = redrive::run(&store, &store, &Options::all(NOW)).await.unwrap();
    assert_eq!(report.totals, Totals { redriven: 1, forgotten: 5, ..Totals::default() });
    let stay: Vec<_> = store.peek_dead_letters(0, 100).await.unwrap().into_iter().map(|(_, letter)| letter).collect();
    assert_eq!(stay, left, "as they were");
}

/// A queue that says every other time that it is empty, and shows what it showed before: as SQS may.
struct Forgetful {
    letters: Mutex<Vec<DeadLetter>>,
    calls: Mutex<usize>,
}

#[async_trait]
impl DeadLetters for Forgetful {
    fn name(&self) -> &str {
        "forgetful"
    }

    async fn send(&self, letters: &[DeadLetter]) -> Result<(), BackendError> {
        self.letters.lock().unwrap().extend_from_slice(letters);
        Ok(())
    }

    async fn receive(&self, _: usize) -> Result<Vec<Received>, BackendError> {
        let mut calls = self.calls.lock().unwrap();
        *calls += 1;
        if !calls.is_multiple_of(2) {
            return Ok(Vec::new());
        }
        let letters = self.letters.lock().unwrap();
        let start = if calls.is_multiple_of(4) { letters.len() / 2 } else { 0 };
        let page = letters.iter().skip(start).take(letters.len().div_ceil(2));
        Ok(page
            .map(|letter| Received { receipt: letter.dead_lettered_at.to_string(), letter: letter.clone() })
            .collect())
    }

    async fn delete(&self, receipts: &[String]) -> Result<(), BackendError> {
        self.letters.lock().unwrap().retain(|letter| !receipts.contains(&letter.dead_lettered_at.to_string()));
        Ok(())
    }

    async fn release(&self, _: &[String]) -> Result<(), BackendError> {
        Ok(())
    }

    async fn depth(&self) -> Result<u64, BackendError> {
        Ok(self.letters.lock().unwrap().len() as u64)
    }
}

#[tokio::test]
async fn an_empty_answer_is_not_the_end_and_letters_that_come_again_count_once() {
    let (store, queue) = (store(), Forgetful { letters: Mutex::default(), calls: Mutex::default() });
    let conflict = |n| DeadLetter { reason: "conflict".to_owned(), ..with_payload(n) };
    queue.send(&[conflict(1), with_payload(2), conflict(3), with_payload(4), letter(5)]).await.unwrap();
    let report = redrive::run(&queue, &store, &Options::all(NOW)).await.unwrap();
    assert_eq!(report.totals, Totals { redriven: 2, conflicts: 2, not_redrivable: 1, forgotten: 0 });
    assert_eq!(queue.depth().await.unwrap(), 3);
    assert_eq!(records(&store).await.len(), 2);
}

/// A stream that takes no record above a size, and refuses the whole call for it: as Kinesis does.
struct Narrow(LocalStore, usize);

#[async_trait]
impl Stream for Narrow {
    async fn shards(&self) -> Result<Vec<Shard>, BackendError> {
        self.0.shards().await
    }

    async fn reader(&self, shard: &ShardId, from: Position) -> Result<Box<dyn ShardReader>, BackendError> {
        self.0.reader(shard, from).await
    }

    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), BackendError> {
        if records.iter().any(|record| record.data.len() > self.1) {
            return Err(BackendError::Misconfigured("too large".to_owned()));
        }
        self.0.publish(records).await
    }
}

#[tokio::test]
async fn one_record_too_large_for_the_stream_does_not_keep_the_others_from_it() {
    let store = store();
    let long = Bytes::from([b"{".as_slice(), &[b' '; 2000], &event(2)[1..]].concat());
    let large = DeadLetter { payload: Payload::Stored(long), ..with_payload(2) };
    store.send(&[with_payload(1), large, with_payload(3)]).await.unwrap();

    let report = redrive::run(&store, &Narrow(store.clone(), 1000), &Options::all(NOW)).await.unwrap();
    assert_eq!(report.totals, Totals { redriven: 2, not_redrivable: 1, ..Totals::default() });
    assert_eq!((store.depth().await.unwrap(), records(&store).await.len()), (1, 2));

    // Where it takes nothing at all, that is an error and not a property of the letters.
    let none = LocalStore::open_in_memory(LocalOptions { clock: Clock::system(), ..LocalOptions::default() }).unwrap();
    none.send(&[with_payload(1), with_payload(2)]).await.unwrap();
    let error = redrive::run(&none, &Narrow(none.clone(), 0), &Options::all(NOW)).await.unwrap_err().error;
    assert!(matches!(error, BackendError::Misconfigured(_)), "{error}");
    assert_eq!(none.depth().await.unwrap(), 2);
}
