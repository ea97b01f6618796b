//! The same path behind the Kinesis client: what HTTP, SigV4, JSON and base64 add.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use emulators::{CannedKinesis, CannedSettings, CannedShard};
use shared::backend::kinesis::KinesisStream;
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::{
    BackendError, Checkpoint, DeadLetters as _, Leases as _, NewRecord, Page, Position, Record, Shard, ShardId,
    ShardReader, Stream,
};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::measure::{cpu_time, grouped, heading, median, nanos_each, row};
use super::path;
use super::payload::Payload;

/// A shard gives 2 MB/s, so that a round of few shards would be long.
const SHARDS: usize = 32;
/// What a worker's reader asks for.
const PAGE_BYTES: usize = 1 << 20;

/// Prints what an event costs behind the Kinesis client, beside what it costs from memory.
pub async fn run(payload: &Payload, rounds: usize) -> anyhow::Result<()> {
    path::use_real_metrics();
    let shards = split(payload);
    let (mut memory, mut alone, mut kinesis) = (Vec::new(), Vec::new(), Vec::new());
    let mut wall = Vec::new();
    for _ in 0..rounds {
        memory.push(nanos_each(path::through_the_worker(payload).await?, payload.events));
        alone.push(nanos_each(read_alone(&shards, payload.events).await?.cpu, payload.events));
        let spent = through_the_worker(&shards, payload.events).await?;
        kinesis.push(nanos_each(spent.cpu, payload.events));
        wall.push(payload.events as f64 / spent.wall.as_secs_f64());
    }
    let added = kinesis.iter().zip(&memory).map(|(kinesis, memory)| kinesis - memory).collect();
    let size = payload.bytes as f64 / payload.events.max(1) as f64;
    heading(
        "Kinesis path: the same, with the Kinesis client before it",
        &[
            &format!("{} events of {size:.0} bytes on average, {SHARDS} shards", payload.events),
            "canned Kinesis endpoint in this process, over a loopback socket; the CPU time of its thread is subtracted",
            "(the emulators take and give a few thousand records a second, far less than a worker: not used here)",
            "wall time: a shard gives 2 MB/s, and a worker holds 64 MiB unsettled (BUFFER_MAX_BYTES), 3 to 4 MiB a page",
            "client: GetRecords of 1 MiB, SigV4, HTTP without TLS, JSON, base64; all else as for the path",
            &format!("median of {rounds} rounds in turns"),
        ],
    );
    let print =
        |name, nanos: f64| row(name, [format!("{} events/s", grouped(1e9 / nanos)), format!("{nanos:.0} ns/event")]);
    row("per second of CPU time", [String::new(), String::new()]);
    print("worker, stream in memory", median(memory));
    print("Kinesis client alone", median(alone));
    print("worker, Kinesis", median(kinesis));
    row("added by the client", [String::new(), format!("{:.0} ns/event", median(added))]);
    row("delivered, wall time", [format!("{} events/s", grouped(median(wall))), String::new()]);
    Ok(())
}

struct Spent {
    cpu: Duration,
    wall: Duration,
}

/// The payload has fewer shards: each is cut into several.
fn split(payload: &Payload) -> Vec<CannedShard> {
    let records: Vec<&Record> = payload.records().collect();
    let shard = |records: &[&Record]| {
        let arrived_at = records.first().map_or(0, |record| record.arrived_at);
        CannedShard::new(arrived_at, records.iter().map(|record| (&record.partition_key, &record.data)))
    };
    records.chunks(records.len().div_ceil(SHARDS)).map(shard).collect()
}

/// Runs `work` on a new endpoint; answers what it cost beside the endpoint.
async fn measure<F: Future<Output = anyhow::Result<()>>>(
    shards: &[CannedShard],
    work: impl FnOnce(KinesisStream) -> F,
) -> anyhow::Result<Spent> {
    let endpoint = CannedKinesis::start(shards.to_vec(), CannedSettings::default());
    let stream = KinesisStream::open(&emulators::configuration(&endpoint.url), "bench").await?;
    let (started, cpu, canned) = (Instant::now(), cpu_time(), endpoint.cpu_time().await);
    work(stream).await?;
    let canned = endpoint.cpu_time().await - canned;
    Ok(Spent { cpu: (cpu_time() - cpu).saturating_sub(canned), wall: started.elapsed() })
}

async fn read_alone(shards: &[CannedShard], events: usize) -> anyhow::Result<Spent> {
    let read = async |stream: KinesisStream| {
        let mut readers = JoinSet::new();
        for shard in stream.shards().await? {
            let stream = stream.clone();
            readers.spawn(async move {
                let mut reader = stream.reader(&shard.id, Position::TrimHorizon).await?;
                let mut read = 0;
                loop {
                    let page = reader.next(PAGE_BYTES).await?;
                    read += page.records.len();
                    if page.millis_behind_latest == 0 {
                        return Ok::<_, BackendError>(read);
                    }
                }
            });
        }
        let mut read = 0;
        while let Some(one) = readers.join_next().await {
            read += one??;
        }
        anyhow::ensure!(read == events, "{read} of {events} events were read");
        Ok(())
    };
    measure(shards, read).await
}

async fn through_the_worker(shards: &[CannedShard], events: usize) -> anyhow::Result<Spent> {
    let store = LocalStore::open_in_memory(LocalOptions { shards: 1, ..LocalOptions::default() })?;
    let work = async |stream: KinesisStream| {
        let stream = Arc::new(Watched::new(stream, events));
        let worker = path::worker(stream.clone(), &store).await?;
        path::work_until(worker, &stream.taken).await
    };
    let spent = measure(shards, work).await?;

    let mut settled = 0;
    for lease in store.list().await? {
        let Checkpoint::Settled { sequence_number, .. } = lease.checkpoint else {
            anyhow::bail!("nothing of {} is settled", lease.shard);
        };
        // The endpoint numbers the records of a shard from 0, in the last digits.
        let digits = sequence_number.0.split_at_checked(sequence_number.0.len().saturating_sub(18));
        settled += digits.context("a sequence number")?.1.parse::<usize>()? + 1;
    }
    anyhow::ensure!(settled == events, "{settled} of {events} events are settled");
    let letters = store.receive(1).await?;
    anyhow::ensure!(letters.is_empty(), "events were dead-lettered: {letters:?}");
    Ok(spent)
}

/// A stream that tells when the path has taken all its records.
struct Watched {
    stream: KinesisStream,
    left: Arc<AtomicUsize>,
    taken: Arc<Notify>,
}

impl Watched {
    fn new(stream: KinesisStream, records: usize) -> Self {
        Self { stream, left: Arc::new(AtomicUsize::new(records)), taken: Arc::default() }
    }
}

#[async_trait]
impl Stream for Watched {
    async fn shards(&self) -> Result<Vec<Shard>, BackendError> {
        self.stream.shards().await
    }

    async fn reader(&self, shard: &ShardId, from: Position) -> Result<Box<dyn ShardReader>, BackendError> {
        let reader = self.stream.reader(shard, from).await?;
        let (left, taken) = (Arc::clone(&self.left), Arc::clone(&self.taken));
        Ok(Box::new(WatchedReader { reader, left, taken, pages: [0; 2] }))
    }

    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), BackendError> {
        self.stream.publish(records).await
    }
}

struct WatchedReader {
    reader: Box<dyn ShardReader>,
    left: Arc<AtomicUsize>,
    taken: Arc<Notify>,
    /// Records in the last two pages, the older first.
    pages: [usize; 2],
}

#[async_trait]
impl ShardReader for WatchedReader {
    async fn next(&mut self, max_bytes: usize) -> Result<Page, BackendError> {
        // The reader's channel holds one page: whoever asks for another has handed the last one over, and so the path
        // has taken the one before.
        let taken = std::mem::take(&mut self.pages[0]);
        if taken > 0 && self.left.fetch_sub(taken, Ordering::AcqRel) == taken {
            self.taken.notify_one();
        }
        let page = self.reader.next(max_bytes).await?;
        self.pages = [self.pages[1], page.records.len()];
        Ok(page)
    }
}
