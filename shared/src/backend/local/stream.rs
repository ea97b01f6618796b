//! Publishing with group commit, and reading by shard.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};
use tokio::sync::oneshot;

use super::database::to_backend_error;
use super::{Inner, LocalStore, shard_id, shard_index};
use crate::backend::{
    BackendError, NewRecord, Page, Position, Record, SequenceNumber, Shard, ShardId, ShardReader, Stream, hash,
};
use crate::clock::UnixMillis;

/// How long a reader at the tip waits for this process to publish. Another process's records are found after it.
const TIP_WAIT: Duration = Duration::from_millis(200);

/// A transaction takes waiting calls up to about this much payload, to bound its time under the write lock.
const GROUP_MAX_BYTES: u64 = 8 << 20;

#[async_trait]
impl Stream for LocalStore {
    async fn shards(&self) -> Result<Vec<Shard>, BackendError> {
        let shards = self.inner.shards;
        let shard = |index| Shard { id: shard_id(index), parents: Vec::new(), hashes: hashes_of(index, shards) };
        Ok((0..shards).map(shard).collect())
    }

    async fn reader(&self, shard: &ShardId, from: Position) -> Result<Box<dyn ShardReader>, BackendError> {
        let Some(index) = shard_index(shard, self.inner.shards) else {
            return Err(BackendError::Misconfigured(format!("{} has no {shard}", self.inner.database.name())));
        };
        let (after, not_before) = match from {
            Position::TrimHorizon => (0, UnixMillis::MIN),
            Position::At(sequence_number) => (position_of(&sequence_number)? - 1, UnixMillis::MIN),
            Position::After(sequence_number) => (position_of(&sequence_number)?, UnixMillis::MIN),
            Position::AtTime(time) => {
                let first = self.inner.database.read(move |tx| first_at_or_after(tx, index, time)).await?;
                (first - 1, time)
            }
        };
        Ok(Box::new(LocalReader { store: self.clone(), shard: index, after, not_before }))
    }

    /// Calls that wait at the same time share one transaction and one sync of the disk: the first that gets the write
    /// lock commits for all. A call that is dropped while it waits is not stored.
    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), BackendError> {
        if records.is_empty() {
            return Ok(());
        }
        let (reply, mut answer) = oneshot::channel();
        self.inner.queue.push(Call { size: stored_size(&records), records, reply });
        loop {
            let writer = tokio::select! {
                biased;
                answer = &mut answer => return answer.unwrap_or_else(|_| Err(self.inner.lost())),
                writer = self.inner.database.lock_writer() => writer,
            };
            let store = Arc::clone(&self.inner);
            let commit = move |connection: &mut Connection| {
                store.commit_waiting(connection);
                Ok(())
            };
            self.inner.database.run(writer, commit).await?;
        }
    }
}

/// Calls of `publish` that wait to be committed.
#[derive(Default)]
pub(super) struct Queue(Mutex<VecDeque<Call>>);

struct Call {
    records: Vec<NewRecord>,
    /// About the bytes that the records will take in the file.
    size: u64,
    reply: oneshot::Sender<Result<(), BackendError>>,
}

impl Queue {
    fn push(&self, call: Call) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(call);
    }

    /// The calls of the next transaction, oldest first, without those whose caller has gone.
    fn take_group(&self) -> Vec<Call> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut group = Vec::new();
        let mut size = 0;
        while size < GROUP_MAX_BYTES
            && let Some(call) = waiting.pop_front()
        {
            if !call.reply.is_closed() {
                size += call.size;
                group.push(call);
            }
        }
        group
    }
}

impl Inner {
    fn commit_waiting(&self, connection: &mut Connection) {
        let group = self.queue.take_group();
        if group.is_empty() {
            return;
        }
        let result = self.commit(connection, &group);
        self.published.notify_waiters();
        for (index, call) in group.into_iter().enumerate() {
            let answer = match &result {
                Ok(stored) if stored[index] => Ok(()),
                Ok(_) => Err(self.full()),
                Err(error) => Err(to_backend_error(self.database.name(), error)),
            };
            // The caller may have gone since.
            let _ = call.reply.send(answer);
        }
    }

    /// Stores the calls that fit, in one transaction; answers for each whether it was stored.
    fn commit(&self, connection: &mut Connection, group: &[Call]) -> rusqlite::Result<Vec<bool>> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (mut used, mut free) = page_bytes(&transaction)?;
        let arrived_at = next_arrival(&transaction, self.options.clock.now())?;
        let mut disk = self.database.free_disk().saturating_sub(self.options.reserve_bytes);
        let mut stored = Vec::with_capacity(group.len());
        for call in group {
            // Pages that pruning freed are used again before the file grows.
            let room = if call.size <= free { &mut free } else { &mut disk };
            let fits = used.saturating_add(call.size) <= self.options.max_bytes && call.size <= *room;
            if fits {
                *room -= call.size;
                used += call.size;
                insert(&transaction, &call.records, self.shards, arrived_at)?;
            }
            stored.push(fits);
        }
        transaction.commit()?;
        Ok(stored)
    }

    fn full(&self) -> BackendError {
        let (name, limit, reserve) = (self.database.name(), self.options.max_bytes, self.options.reserve_bytes);
        BackendError::Full(format!(
            "{name} has reached its limit of {limit} bytes, or its disk has less than {reserve} bytes free: nothing was \
             stored"
        ))
    }

    fn lost(&self) -> BackendError {
        BackendError::Unavailable(format!("{}: the commit was interrupted", self.database.name()))
    }
}

fn insert(
    transaction: &Transaction<'_>,
    records: &[NewRecord],
    shards: u32,
    arrived_at: UnixMillis,
) -> rusqlite::Result<()> {
    let mut statement = transaction
        .prepare_cached("INSERT INTO records (shard, arrived_at, partition_key, data) VALUES (?1, ?2, ?3, ?4)")?;
    for record in records {
        let shard = shard_of(&record.partition_key, shards);
        statement.execute(params![shard, arrived_at, record.partition_key, &record.data[..]])?;
    }
    Ok(())
}

/// The shard whose share of the 128-bit hash space holds the key's MD5, as in Kinesis.
fn shard_of(partition_key: &str, shards: u32) -> u32 {
    let hash = hash(partition_key);
    let (high, low) = (hash >> 64, hash & u128::from(u64::MAX));
    // hash * shards / 2^128, without overflow; less than `shards`, so it fits.
    ((high * u128::from(shards) + ((low * u128::from(shards)) >> 64)) >> 64) as u32
}

/// The hashes of the keys for which [`shard_of`] answers `index`.
fn hashes_of(index: u32, shards: u32) -> RangeInclusive<u128> {
    let last = if index + 1 == shards { u128::MAX } else { first_hash(index + 1, shards) - 1 };
    first_hash(index, shards)..=last
}

/// index * 2^128 / shards, rounded up, without overflow.
fn first_hash(index: u32, shards: u32) -> u128 {
    if index == 0 {
        return 0;
    }
    let (index, shards) = (u128::from(index), u128::from(shards));
    // 2^128 - 1 = quotient * shards + remainder
    let (quotient, remainder) = (u128::MAX / shards, u128::MAX % shards);
    index * quotient + (index * (remainder + 1)).div_ceil(shards)
}

/// The time of a new record: never before the newest one's, so that arrival grows with position even where the wall
/// clock was set back.
fn next_arrival(transaction: &Transaction<'_>, now: UnixMillis) -> rusqlite::Result<UnixMillis> {
    let newest: Option<UnixMillis> = transaction
        .prepare_cached("SELECT arrived_at FROM records ORDER BY position DESC LIMIT 1")?
        .query_row((), |row| row.get(0))
        .optional()?;
    Ok(newest.map_or(now, |newest| newest.max(now)))
}

/// Bytes of the pages in use, and of the free ones.
fn page_bytes(transaction: &Transaction<'_>) -> rusqlite::Result<(u64, u64)> {
    transaction
        .prepare_cached(
            "SELECT (page_count - freelist_count) * page_size, freelist_count * page_size
             FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
        )?
        .query_row((), |row| Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.get::<_, i64>(1)?.unsigned_abs())))
}

/// An estimate of what the records take in table and index. It decides only within one transaction: the next one
/// begins with the real number of pages.
fn stored_size(records: &[NewRecord]) -> u64 {
    let size = |record: &NewRecord| {
        let payload = record.data.len() + record.partition_key.len();
        (payload + payload / 64 + 64) as u64
    };
    records.iter().map(size).sum()
}

struct LocalReader {
    store: LocalStore,
    shard: u32,
    /// The last position that was returned.
    after: i64,
    /// Leaves out what arrives before this time; matters where a reader starts at a time that is yet to come.
    not_before: UnixMillis,
}

#[async_trait]
impl ShardReader for LocalReader {
    async fn next(&mut self, max_bytes: usize) -> Result<Page, BackendError> {
        let inner = Arc::clone(&self.store.inner);
        // Enabled before the read, or a commit between read and wait would go unnoticed.
        let mut published = std::pin::pin!(inner.published.notified());
        published.as_mut().enable();
        let page = self.read(max_bytes).await?;
        if !page.records.is_empty() {
            return Ok(page);
        }
        // Elapsed or not, the file may have something: another process can have published.
        let _ = tokio::time::timeout(TIP_WAIT, published).await;
        self.read(max_bytes).await
    }
}

impl LocalReader {
    async fn read(&mut self, max_bytes: usize) -> Result<Page, BackendError> {
        let (shard, after, not_before) = (self.shard, self.after, self.not_before);
        let (page, last) = self
            .store
            .inner
            .database
            .read(move |transaction| read_page(transaction, shard, after, not_before, max_bytes))
            .await?;
        self.after = last;
        Ok(page)
    }
}

/// The next records and the position of the last one.
fn read_page(
    transaction: &Transaction<'_>,
    shard: u32,
    after: i64,
    not_before: UnixMillis,
    max_bytes: usize,
) -> rusqlite::Result<(Page, i64)> {
    let mut statement = transaction.prepare_cached(
        "SELECT position, arrived_at, partition_key, data FROM records
         WHERE shard = ?1 AND position > ?2 AND arrived_at >= ?3 ORDER BY position",
    )?;
    let mut rows = statement.query(params![shard, after, not_before])?;
    let (mut page, mut last, mut bytes) = (Page::default(), after, 0);
    while let Some(row) = rows.next()? {
        let data = row.get_ref(3)?.as_blob()?;
        bytes += data.len();
        if bytes > max_bytes && !page.records.is_empty() {
            break;
        }
        last = row.get(0)?;
        page.records.push(Record {
            data: Bytes::copy_from_slice(data),
            partition_key: row.get(2)?,
            sequence_number: SequenceNumber(last.to_string()),
            arrived_at: row.get(1)?,
        });
    }
    if let Some(record) = page.records.last() {
        page.millis_behind_latest = newest_arrival(transaction, shard)?.map_or(0, |newest| newest - record.arrived_at);
    }
    Ok((page, last))
}

fn newest_arrival(transaction: &Transaction<'_>, shard: u32) -> rusqlite::Result<Option<UnixMillis>> {
    transaction
        .prepare_cached("SELECT arrived_at FROM records WHERE shard = ?1 ORDER BY position DESC LIMIT 1")?
        .query_row([shard], |row| row.get(0))
        .optional()
}

/// The position of the shard's first record that arrived at or after `time`, or the one after its last record. A
/// binary search, because arrival grows with position: it needs no second index.
pub(super) fn first_at_or_after(transaction: &Transaction<'_>, shard: u32, time: UnixMillis) -> rusqlite::Result<i64> {
    let (mut low, mut high): (i64, i64) = transaction
        .prepare_cached(
            "SELECT (SELECT position FROM records WHERE shard = ?1 ORDER BY position LIMIT 1),
                    (SELECT position FROM records WHERE shard = ?1 ORDER BY position DESC LIMIT 1)",
        )?
        .query_row([shard], |row| {
            let (first, last): (Option<i64>, Option<i64>) = (row.get(0)?, row.get(1)?);
            Ok((first.unwrap_or(1), last.unwrap_or(0) + 1))
        })?;
    let mut probe = transaction.prepare_cached(
        "SELECT position, arrived_at FROM records WHERE shard = ?1 AND position >= ?2 ORDER BY position LIMIT 1",
    )?;
    // The answer lies in low..=high.
    while low < high {
        let middle = low + (high - low) / 2;
        let (position, arrived_at): (i64, UnixMillis) =
            probe.query_row(params![shard, middle], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if arrived_at < time {
            low = position + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// The position behind a sequence number.
pub(super) fn position_of(sequence_number: &SequenceNumber) -> Result<i64, BackendError> {
    sequence_number.0.parse().ok().filter(|&position| position >= 0).ok_or_else(|| {
        BackendError::Misconfigured(format!("{sequence_number} is not a sequence number of a local stream"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::local::LocalOptions;

    #[tokio::test]
    async fn waiting_calls_share_one_transaction_and_those_whose_caller_left_are_not_stored() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path(), LocalOptions { shards: 1, ..LocalOptions::default() }).unwrap();
        // While the write lock is held here, nobody else can commit.
        let mut writer = store.inner.database.lock_writer().await;
        let publish = |n: usize| {
            let store = store.clone();
            let data = Bytes::from(n.to_string());
            tokio::spawn(async move { store.publish(vec![NewRecord { partition_key: "t".to_owned(), data }]).await })
        };
        let mut calls: Vec<_> = (0..20).map(publish).collect();
        while store.inner.queue.0.lock().unwrap().len() < calls.len() {
            tokio::task::yield_now().await;
        }
        let left = calls.remove(7);
        left.abort();
        left.await.unwrap_err();
        store.inner.commit_waiting(&mut writer);
        for call in calls {
            call.await.unwrap().unwrap();
        }
        drop(writer);
        let mut reader = store.reader(&shard_id(0), Position::TrimHorizon).await.unwrap();
        let stored = reader.next(1 << 20).await.unwrap().records;
        let expected: Vec<_> = (0..20).filter(|&n| n != 7).map(|n: usize| Bytes::from(n.to_string())).collect();
        assert_eq!(stored.iter().map(|record| record.data.clone()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn splits_the_hash_space_evenly_and_in_order() {
        let counts = (0..4000).fold([0; 4], |mut counts, n| {
            counts[shard_of(&format!("tenant-{n}"), 4) as usize] += 1;
            counts
        });
        assert!(counts.iter().all(|&count| (900..1100).contains(&count)), "{counts:?}");
        // MD5("") = d41d8cd9..., MD5("a") = 0cc175b9...: in the last and the first quarter.
        assert_eq!((shard_of("", 4), shard_of("a", 4)), (3, 0));
        assert_eq!((shard_of("", 1), shard_of("", 16), shard_of("", 1024)), (0, 0xd, 0xd41d >> 6));
        for shards in [1, 2, 3, 7, 16, 1000] {
            for index in 0..shards {
                let hashes = hashes_of(index, shards);
                assert!(*hashes.start() == 0 || hashes_of(index - 1, shards).end() + 1 == *hashes.start());
                assert!((index + 1 == shards) == (*hashes.end() == u128::MAX));
            }
            for key in ["", "a", "b", "tenant-1"] {
                assert!(hashes_of(shard_of(key, shards), shards).contains(&hash(key)), "{key} of {shards}");
            }
        }
    }
}
