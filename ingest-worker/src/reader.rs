//! Reads one shard ahead of its task, inside the worker's memory budget.

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use shared::backend::{BackendError, Page, Position, Shard, ShardId, ShardReader, Stream};
use shared::clock::{UnixMillis, millis};
use shared::service::Trouble;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::backoff::Backoff;
use crate::lineage::{self, Lineage};

/// Units of the memory budget.
const UNIT: usize = 1024;
/// What a record costs besides its payload: the parsed and the serialised copy are about as large as the payload.
const COST_PER_RECORD: usize = 256;
const COST_FACTOR: usize = 3;
/// A page may turn out dearer than its bytes: this much is reserved before it is read.
const RESERVE_FACTOR: usize = 4;
const MAX_PAGE_BYTES: usize = 1024 * 1024;
const MIN_PAGE_BYTES: usize = 16 * 1024;

static UNREAD: Trouble = Trouble::new();

/// The memory that read but unsettled records of all shards may take together.
#[derive(Clone, Debug)]
pub struct Buffer {
    units: Arc<Semaphore>,
    all: usize,
    page_bytes: usize,
}

impl Buffer {
    /// A budget of `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        let page_bytes = (max_bytes / 16).clamp(MIN_PAGE_BYTES, MAX_PAGE_BYTES);
        let units = (max_bytes / UNIT).max(RESERVE_FACTOR * MIN_PAGE_BYTES / UNIT);
        Self { units: Arc::new(Semaphore::new(units)), all: units, page_bytes }
    }

    /// Bytes of the budget that are taken.
    #[must_use]
    pub fn used(&self) -> usize {
        (self.all - self.units.available_permits()) * UNIT
    }

    /// Bytes of the budget.
    #[must_use]
    pub fn size(&self) -> usize {
        self.all * UNIT
    }

    /// Reserves room for the dearest page of so many bytes.
    async fn reserve(&self, page_bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = (RESERVE_FACTOR * page_bytes / UNIT).try_into().ok()?;
        Arc::clone(&self.units).acquire_many_owned(units).await.ok()
    }
}

/// A page with the memory it occupies; records hold on to it until they are settled.
#[derive(Debug)]
pub struct BufferedPage {
    /// What was read.
    pub page: Page,
    /// Returned to the budget when the last holder drops it.
    pub memory: Arc<OwnedSemaphorePermit>,
    /// Its records are an ancestor's: they were settled before the shard began.
    pub is_of_ancestor: bool,
}

/// What to read for a shard.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The shard, and those it continues: their last records belong to its dedup window.
    pub lineage: Lineage,
    /// Where to begin in it.
    pub from: Position,
    /// Where to begin in its ancestors.
    pub ancestors_since: Since,
}

/// A time from which on records belong to a dedup window.
#[derive(Clone, Copy, Debug)]
pub enum Since {
    /// This time.
    Time(UnixMillis),
    /// This long before the arrival of the shard's own first record.
    BeforeFirst(Duration),
}

/// The reading side of a shard; reading stops when it is dropped.
pub struct Pages {
    receiver: mpsc::Receiver<BufferedPage>,
    _task: Option<AbortOnDropHandle<()>>,
}

impl Pages {
    /// Starts to read.
    #[must_use]
    pub fn start(stream: Arc<dyn Stream>, reading: Reading, buffer: Buffer) -> Self {
        let (sender, receiver) = mpsc::channel(1);
        let ahead = Ahead::unknown(&buffer);
        let reader = Reader { stream, buffer, pages: sender, backoff: Backoff::default(), is_failing: false, ahead };
        let task = tokio::spawn(async move { reader.run(reading).await });
        Self { receiver, _task: Some(AbortOnDropHandle::new(task)) }
    }

    /// This page, which holds all there is, and no other. Its memory counts in no budget.
    #[must_use]
    pub fn of(page: Page) -> Self {
        let (sender, receiver) = mpsc::channel(1);
        let nothing = Arc::new(Semaphore::new(0)).try_acquire_many_owned(0);
        let page = nothing.map(|memory| BufferedPage { page, memory: Arc::new(memory), is_of_ancestor: false });
        // Neither can fail: nothing of nothing is asked for, and the channel is new.
        let _ = page.map(|page| sender.try_send(page));
        Self { receiver, _task: None }
    }

    /// The next page, in order; empty ones included, so that a caller learns that it is at the tip. Cancel-safe.
    pub async fn next(&mut self) -> Option<BufferedPage> {
        self.receiver.recv().await
    }
}

struct Reader {
    stream: Arc<dyn Stream>,
    buffer: Buffer,
    pages: mpsc::Sender<BufferedPage>,
    backoff: Backoff,
    /// Its last read failed: what goes well elsewhere says nothing about this shard.
    is_failing: bool,
    ahead: Ahead,
}

/// How much a reader asks for. At the tip little more than came since it was there last: else idle shards would take the
/// memory that busy ones need. But not less: what a page leaves behind waits for the next read, which on Kinesis is 200 ms
/// later.
#[derive(Debug)]
struct Ahead {
    page_bytes: usize,
    /// What was read since the tip was reached.
    since_tip: usize,
}

impl Ahead {
    fn unknown(buffer: &Buffer) -> Self {
        Self { page_bytes: buffer.page_bytes, since_tip: 0 }
    }

    fn learn(&mut self, page: &Page, buffer: &Buffer) {
        let bytes: usize = page.records.iter().map(|record| record.data.len()).sum();
        self.since_tip = self.since_tip.saturating_add(bytes);
        let before = mem::replace(&mut self.page_bytes, buffer.page_bytes);
        if page.millis_behind_latest == 0 {
            // One read that finds nothing does not make a shard idle.
            let much = mem::take(&mut self.since_tip).saturating_mul(2).max(before / 2);
            self.page_bytes = much.clamp(MIN_PAGE_BYTES, buffer.page_bytes);
        }
    }
}

impl Reader {
    /// Ends when the shard ends, or when nobody wants its pages any more.
    async fn run(mut self, reading: Reading) {
        let Reading { lineage, from, ancestors_since } = reading;
        let mut needs_ancestors = !lineage.ancestors.is_empty();
        if let Since::Time(time) = ancestors_since {
            self.read_ancestors(&lineage, time).await;
            needs_ancestors = false;
        }
        let mut reader = None;
        while let Some(page) = self.read(&lineage.id, &from, &mut reader).await {
            if let (Some(first), Since::BeforeFirst(reach), true) =
                (page.page.records.first(), ancestors_since, needs_ancestors)
            {
                let since = first.arrived_at - millis(reach);
                // Read again later: were its memory held, shards that all wait for some more could wait for ever.
                drop(page);
                reader = None;
                self.read_ancestors(&lineage, since).await;
                needs_ancestors = false;
                continue;
            }
            let is_end = page.page.is_end;
            if self.pages.send(page).await.is_err() || is_end {
                // Held open: a closed channel would mean that reading failed.
                return self.pages.closed().await;
            }
        }
    }

    async fn read_ancestors(&mut self, lineage: &Lineage, since: UnixMillis) {
        for ancestor in self.recent(lineage, since).await {
            let mut reader = None;
            loop {
                let mut page = match self.try_read(&ancestor, &Position::AtTime(since), &mut reader).await {
                    Ok(Some(page)) => page,
                    // Forgotten, so it is older than any window.
                    Ok(None) | Err(BackendError::Gone(_)) => break,
                    Err(error) => {
                        self.wait_after(&ancestor, &error).await;
                        continue;
                    }
                };
                let is_end = mem::take(&mut page.page.is_end);
                page.is_of_ancestor = true;
                if self.pages.send(page).await.is_err() || is_end {
                    break;
                }
            }
        }
        self.ahead = Ahead::unknown(&self.buffer);
    }

    /// The ancestors that took records since `since`, oldest first: the parents of every shard that began after it.
    async fn recent(&mut self, lineage: &Lineage, since: UnixMillis) -> Vec<ShardId> {
        let ancestor = |id: &ShardId| lineage.ancestors.iter().find(|shard| shard.id == *id);
        let mut recent: BTreeSet<&ShardId> = BTreeSet::new();
        let mut next = vec![(&lineage.id, &lineage.parents)];
        while let Some((id, parents)) = next.pop() {
            let parents: Vec<&Shard> = parents.iter().filter_map(ancestor).collect();
            if parents.is_empty() || self.began_before(id, since).await {
                continue;
            }
            let unseen = parents.into_iter().filter(|parent| recent.insert(&parent.id));
            next.extend(unseen.map(|parent| (&parent.id, &parent.parents)));
        }
        lineage.ancestors.iter().map(|shard| &shard.id).filter(|id| recent.contains(id)).cloned().collect()
    }

    async fn began_before(&mut self, shard: &ShardId, time: UnixMillis) -> bool {
        loop {
            match lineage::first_arrival(&*self.stream, shard).await {
                Ok(first) => {
                    self.backoff = Backoff::default();
                    return first.is_some_and(|first| first < time);
                }
                // Forgotten, so it is older than any window.
                Err(BackendError::Gone(_)) => return true,
                Err(error) => self.wait_after(shard, &error).await,
            }
        }
    }

    async fn wait_after(&mut self, shard: &ShardId, error: &BackendError) {
        self.is_failing = true;
        if let Some(omitted) = UNREAD.again() {
            tracing::warn!(%shard, %error, omitted, "the stream could not be read; trying again");
        }
        sleep(self.backoff.next_delay().max(Duration::from_millis(50))).await;
    }

    /// The next page of a shard, opened first where there is no reader yet. Errors are retried.
    async fn read(
        &mut self,
        shard: &ShardId,
        from: &Position,
        reader: &mut Option<Box<dyn ShardReader>>,
    ) -> Option<BufferedPage> {
        loop {
            match self.try_read(shard, from, reader).await {
                Ok(page) => return page,
                // Its lease is ended when the stream has not listed it for a while: see `worker.rs`.
                Err(error) => self.wait_after(shard, &error).await,
            }
        }
    }

    async fn try_read(
        &mut self,
        shard: &ShardId,
        from: &Position,
        reader: &mut Option<Box<dyn ShardReader>>,
    ) -> Result<Option<BufferedPage>, BackendError> {
        let reader = match reader {
            Some(reader) => reader,
            None => reader.insert(self.stream.reader(shard, from.clone()).await?),
        };
        reader.ready().await;
        let page_bytes = self.ahead.page_bytes;
        let Some(mut memory) = self.buffer.reserve(page_bytes).await else { return Ok(None) };
        let page = reader.next(page_bytes).await?;
        self.backoff = Backoff::default();
        if mem::take(&mut self.is_failing)
            && let Some(over) = UNREAD.over()
        {
            tracing::info!(%shard, lasted = over.lasted.as_secs(), "the stream can be read again");
        }
        self.ahead.learn(&page, &self.buffer);
        let cost: usize = page.records.iter().map(|record| COST_FACTOR * record.data.len() + COST_PER_RECORD).sum();
        let surplus = memory.num_permits().saturating_sub(cost.div_ceil(UNIT));
        drop(memory.split(surplus));
        Ok(Some(BufferedPage { page, memory: Arc::new(memory), is_of_ancestor: false }))
    }
}

#[cfg(test)]
mod tests;
