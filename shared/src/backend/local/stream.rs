//! Publishing with group commit, and reading by shard.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};
use tokio::sync::oneshot;

use super::database::to_backend_error;
use super::schema::records_of;
use super::shards::{hashes_of, shard_id, shard_index, shard_of};
use super::{Inner, LocalStore};
use crate::backend::{
    BackendError, NewRecord, Page, Position, Record, SequenceNumber, Shard, ShardId, ShardReader, Stream,
};
use crate::clock::UnixMillis;

/// How long a reader at the tip waits for this process to publish. Another process's records are found after it.
const TIP_WAIT: Duration = Duration::from_millis(200);
/// Room for a page's payloads is taken at once, up to so much.
const RESERVED_BYTES: usize = 1024 * 1024;

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
        let mut inserter =
            Inserter { transaction: &transaction, now: self.options.clock.now(), shards: BTreeMap::new() };
        let mut disk = self.database.free_disk().saturating_sub(self.options.reserve_bytes);
        let mut stored = Vec::with_capacity(group.len());
        for call in group {
            // Pages that pruning freed are used again before the file grows.
            let room = if call.size <= free { &mut free } else { &mut disk };
            let fits = used.saturating_add(call.size) <= self.options.max_bytes && call.size <= *room;
            if fits {
                *room -= call.size;
                used += call.size;
                for record in &call.records {
                    inserter.insert(record, shard_of(&record.partition_key, self.shards))?;
                }
            }
            stored.push(fits);
        }
        drop(inserter);
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

/// Stores records in one transaction.
struct Inserter<'a> {
    transaction: &'a Transaction<'a>,
    now: UnixMillis,
    /// Of each shard that got something: its statement, and the time of its new records.
    shards: BTreeMap<u32, (CachedStatement<'a>, UnixMillis)>,
}

impl Inserter<'_> {
    fn insert(&mut self, record: &NewRecord, shard: u32) -> rusqlite::Result<()> {
        let (statement, arrived_at) = match self.shards.entry(shard) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let sql =
                    format!("INSERT INTO {} (arrived_at, partition_key, data) VALUES (?1, ?2, ?3)", records_of(shard));
                // Never before the newest record's, so that arrival grows with position even where the wall clock was
                // set back.
                let newest = newest_arrival(self.transaction, shard)?;
                let arrived_at = newest.map_or(self.now, |newest| newest.max(self.now));
                new.insert((self.transaction.prepare_cached(&sql)?, arrived_at))
            }
        };
        statement.execute(params![*arrived_at, record.partition_key, &record.data[..]])?;
        Ok(())
    }
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

/// An estimate of what the records take in their tables. It decides only within one transaction: the next one
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
    let mut statement = transaction.prepare_cached(&format!(
        "SELECT position, arrived_at, partition_key, data FROM {}
         WHERE position > ?1 AND arrived_at >= ?2 ORDER BY position",
        records_of(shard)
    ))?;
    let mut rows = statement.query(params![after, not_before])?;
    let (mut page, mut last) = (Page::default(), after);
    // In one piece for all: the records are dropped by other threads, which costs an allocator more than the rest of a read.
    let (mut payloads, mut lengths) = (Vec::new(), Vec::new());
    while let Some(row) = rows.next()? {
        let data = row.get_ref(3)?.as_blob()?;
        if payloads.len() + data.len() > max_bytes && !page.records.is_empty() {
            break;
        }
        if payloads.is_empty() {
            payloads.reserve(max_bytes.min(RESERVED_BYTES));
        }
        payloads.extend_from_slice(data);
        lengths.push(data.len());
        last = row.get(0)?;
        page.records.push(Record {
            data: Bytes::new(),
            partition_key: row.get(2)?,
            sequence_number: SequenceNumber(last.to_string()),
            arrived_at: row.get(1)?,
        });
    }
    // A few small records must not hold, for as long as they wait, the room of a page.
    if payloads.len() < payloads.capacity() / 2 {
        payloads.shrink_to_fit();
    }
    let mut payloads = Bytes::from(payloads);
    for (record, length) in page.records.iter_mut().zip(lengths) {
        record.data = payloads.split_to(length);
    }
    if let Some(record) = page.records.last() {
        page.millis_behind_latest = newest_arrival(transaction, shard)?.map_or(0, |newest| newest - record.arrived_at);
    }
    Ok((page, last))
}

fn newest_arrival(transaction: &Transaction<'_>, shard: u32) -> rusqlite::Result<Option<UnixMillis>> {
    transaction
        .prepare_cached(&format!("SELECT arrived_at FROM {} ORDER BY position DESC LIMIT 1", records_of(shard)))?
        .query_row((), |row| row.get(0))
        .optional()
}

/// The position of the shard's first record that arrived at or after `time`, or the one after its last record. A
/// binary search, because arrival grows with position: it needs no second index.
pub(super) fn first_at_or_after(transaction: &Transaction<'_>, shard: u32, time: UnixMillis) -> rusqlite::Result<i64> {
    let records = records_of(shard);
    let (mut low, mut high): (i64, i64) = transaction
        .prepare_cached(&format!(
            "SELECT (SELECT min(position) FROM {records}), (SELECT max(position) FROM {records})"
        ))?
        .query_row((), |row| {
            let (first, last): (Option<i64>, Option<i64>) = (row.get(0)?, row.get(1)?);
            Ok((first.unwrap_or(1), last.unwrap_or(0) + 1))
        })?;
    let mut probe = transaction.prepare_cached(&format!(
        "SELECT position, arrived_at FROM {records} WHERE position >= ?1 ORDER BY position LIMIT 1"
    ))?;
    // The answer lies in low..=high.
    while low < high {
        let middle = low + (high - low) / 2;
        let (position, arrived_at): (i64, UnixMillis) =
            probe.query_row([middle], |row| Ok((row.get(0)?, row.get(1)?)))?;
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
}
