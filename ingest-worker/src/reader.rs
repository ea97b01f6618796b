//! Reads one shard ahead of its task, inside the worker's memory budget.

use std::sync::Arc;
use std::time::Duration;

use shared::backend::{Page, Position, ShardId, ShardReader, Stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::backoff::Backoff;

/// Units of the memory budget.
const UNIT: usize = 1024;
/// What a record costs besides its payload: the parsed and the serialised copy are about as large as the payload.
const COST_PER_RECORD: usize = 256;
const COST_FACTOR: usize = 3;
/// A page may turn out dearer than its bytes: this much is reserved before it is read.
const RESERVE_FACTOR: usize = 4;
const MAX_PAGE_BYTES: usize = 1024 * 1024;
const MIN_PAGE_BYTES: usize = 16 * 1024;

/// The memory that read but unsettled records of all shards may take together.
#[derive(Clone, Debug)]
pub struct Buffer {
    units: Arc<Semaphore>,
    page_bytes: usize,
}

impl Buffer {
    /// A budget of `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        let page_bytes = (max_bytes / 16).clamp(MIN_PAGE_BYTES, MAX_PAGE_BYTES);
        let units = (max_bytes / UNIT).max(RESERVE_FACTOR * MIN_PAGE_BYTES / UNIT);
        Self { units: Arc::new(Semaphore::new(units)), page_bytes }
    }

    /// Reserves room for the dearest page.
    async fn reserve(&self) -> Option<OwnedSemaphorePermit> {
        let units = (RESERVE_FACTOR * self.page_bytes / UNIT).try_into().ok()?;
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
}

/// The reading side of a shard; reading stops when it is dropped.
pub struct Pages {
    receiver: mpsc::Receiver<BufferedPage>,
    _task: AbortOnDropHandle<()>,
}

impl Pages {
    /// Starts to read `shard` at `from`.
    #[must_use]
    pub fn start(stream: Arc<dyn Stream>, shard: ShardId, from: Position, buffer: Buffer) -> Self {
        let (sender, receiver) = mpsc::channel(1);
        let task = tokio::spawn(async move { read(&*stream, &shard, from, &buffer, sender).await });
        Self { receiver, _task: AbortOnDropHandle::new(task) }
    }

    /// The next page, in order; empty ones included, so that a caller learns that it is at the tip. Cancel-safe.
    pub async fn next(&mut self) -> Option<BufferedPage> {
        self.receiver.recv().await
    }
}

async fn read(
    stream: &dyn Stream,
    shard: &ShardId,
    from: Position,
    buffer: &Buffer,
    pages: mpsc::Sender<BufferedPage>,
) {
    let mut reader = open(stream, shard, from).await;
    let mut backoff = Backoff::default();
    while let Some(mut memory) = buffer.reserve().await {
        let page = match reader.next(buffer.page_bytes).await {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(%shard, %error, "the stream could not be read; trying again");
                drop(memory);
                sleep(backoff.next_delay().max(Duration::from_millis(50))).await;
                continue;
            }
        };
        backoff = Backoff::default();
        let cost: usize = page.records.iter().map(|record| COST_FACTOR * record.data.len() + COST_PER_RECORD).sum();
        let surplus = memory.num_permits().saturating_sub(cost.div_ceil(UNIT));
        drop(memory.split(surplus));
        if pages.send(BufferedPage { page, memory: Arc::new(memory) }).await.is_err() {
            return;
        }
    }
}

async fn open(stream: &dyn Stream, shard: &ShardId, from: Position) -> Box<dyn ShardReader> {
    let mut backoff = Backoff::default();
    loop {
        match stream.reader(shard, from.clone()).await {
            Ok(reader) => return reader,
            Err(error) => {
                tracing::warn!(%shard, %error, "the shard could not be opened; trying again");
                sleep(backoff.next_delay()).await;
            }
        }
    }
}
