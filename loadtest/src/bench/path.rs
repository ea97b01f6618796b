//! The worker's whole path in this process, beside the bare loop.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use ingest_worker::batch::BatchLimits;
use ingest_worker::context::Common;
use ingest_worker::dedup::KeyBudget;
use ingest_worker::limiter::Limiter;
use ingest_worker::meters::MeterBudget;
use ingest_worker::reader::Buffer;
use ingest_worker::submit::BodyLimit;
use ingest_worker::worker::Worker;
use shared::amberflo::{Client, Transport, TransportError};
use shared::api_key::{ApiKey, ApiKeys, Source};
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::{
    BackendError, Checkpoint, DeadLetters as _, Leases as _, NewRecord, Page, Position, Shard, ShardId, ShardReader,
    Stream, WorkerId,
};
use shared::clock::Clock;
use shared::event::EventRules;
use shared::service::Ready;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::bare_loop::{self, Depth};
use super::measure::{cpu_time, grouped, heading, median, nanos_each, row};
use super::payload::{Payload, SHARDS};

const MAX_IN_FLIGHT: u32 = 8;

/// Prints what the path costs, and what it is of the bare loop's speed.
pub async fn run(payload: &Payload, rounds: usize) -> anyhow::Result<()> {
    use_real_metrics();
    let transport = Answering;
    let (mut bare, mut path) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let started = cpu_time();
        bare_loop::run(payload, Depth::Send, &transport).await?;
        bare.push(nanos_each(cpu_time() - started, payload.events));
        path.push(nanos_each(through_the_worker(payload).await?, payload.events));
    }
    let ratios = bare.iter().zip(&path).map(|(bare, path)| 100.0 * bare / path).collect();
    heading(
        "Path: parse, dedup, batch, gzip, transport",
        &[
            &payload.describe(),
            "worker: leases, limits off, 1000 a batch, metrics registry, in-memory stream, transport answers at once",
            "bare loop: serde structs, serialise, gzip level 1, same transport; no dedup, no checks, one thread",
            &format!("median of {rounds} rounds in turns"),
        ],
    );
    let print =
        |name, nanos: f64| row(name, [format!("{} events/s", grouped(1e9 / nanos)), format!("{nanos:.0} ns/event")]);
    row("per second of CPU time", [String::new(), String::new()]);
    print("bare loop", median(bare));
    print("worker", median(path));
    row("worker / bare loop", [format!("{:.0} %", median(ratios)), String::new()]);
    Ok(())
}

/// A service counts into a registry, and that costs time too. One that is there already does as well.
pub fn use_real_metrics() {
    if let Ok(registry) = shared::service::init_metrics("loadtest-bench", &[]) {
        tokio::spawn(shared::service::metrics_upkeep(registry));
    }
}

/// Sends all events through a worker; answers the CPU time that took.
pub async fn through_the_worker(payload: &Payload) -> anyhow::Result<Duration> {
    let store = LocalStore::open_in_memory(LocalOptions { shards: 1, ..LocalOptions::default() })?;
    // Copied beforehand: a real stream's records are made by whoever reads them, and that is not measured here.
    let stream = Arc::new(Shelf::new(payload));
    let worker = worker(stream.clone(), &store).await?;
    let started = cpu_time();
    work_until(worker, &stream.taken).await?;
    let spent = cpu_time() - started;

    let leases = store.list().await?;
    for (shard, pages) in payload.shards.iter().enumerate() {
        let last = pages.last().and_then(|page| page.last()).map(|record| &record.sequence_number);
        let lease = leases.iter().find(|lease| lease.shard == shard_id(shard));
        let settled = lease.and_then(|lease| match &lease.checkpoint {
            Checkpoint::Settled { sequence_number, .. } => Some(sequence_number),
            _ => None,
        });
        anyhow::ensure!(settled == last, "shard {shard} is settled up to {settled:?}, not {last:?}");
    }
    let letters = store.receive(1).await?;
    anyhow::ensure!(letters.is_empty(), "events were dead-lettered: {letters:?}");
    Ok(spent)
}

/// A worker with limits off that reads `stream` and keeps all else in `store`.
pub async fn worker(stream: Arc<dyn Stream>, store: &LocalStore) -> anyhow::Result<Worker> {
    Ok(Worker {
        common: common(stream, store.clone()).await?,
        leases: Arc::new(store.clone()),
        failover: Duration::from_secs(10),
        initial_position: Position::TrimHorizon,
        is_alone: true,
        ready: Ready::default(),
    })
}

/// Lets the worker work until all is `taken`, and drain.
pub async fn work_until(worker: Worker, taken: &Notify) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let running = tokio::spawn(worker.run(stop.clone()));
    taken.notified().await;
    stop.cancel();
    Ok(running.await??)
}

async fn common(stream: Arc<dyn Stream>, store: LocalStore) -> anyhow::Result<Arc<Common>> {
    let keys = ApiKeys::load(Source::Setting(ApiKey::new("bench-key")?)).await?;
    let clock = Clock::system();
    let client = Client::new(Box::new(Answering), "http://amberflo.invalid", keys.subscribe(), clock);
    Ok(Arc::new(Common {
        worker: WorkerId("bench".to_owned()),
        stream_name: "bench".to_owned(),
        stream,
        dead_letters: Arc::new(store),
        client,
        keys,
        limiter: Limiter::new(MAX_IN_FLIGHT.try_into()?, 0.0),
        body_limit: BodyLimit::default(),
        meters: MeterBudget::new(1_000_000_000),
        dedup_keys: KeyBudget::new(5_000_000),
        buffer: Buffer::new(64 << 20),
        rules: event_rules(),
        batch: batch_limits(),
        max_in_flight: MAX_IN_FLIGHT as usize,
        max_in_order: 4 * MAX_IN_FLIGHT as usize,
        dedup_window: Duration::from_secs(120),
        drain: Duration::from_secs(25),
        board: ingest_worker::status::Board::default(),
        clock,
    }))
}

/// The rules of the default settings.
pub fn event_rules() -> EventRules {
    let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(86_400));
    EventRules { max_age: 60 * day, max_ahead: hour, allow_aflo_dimensions: false }
}

/// The batches of the default settings.
pub fn batch_limits() -> BatchLimits {
    let number = |number| NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN);
    BatchLimits { max_events: number(1000), max_bytes: number(1 << 20), linger: Duration::from_secs(1) }
}

/// The name of a shard of the payload.
pub fn shard_id(index: usize) -> ShardId {
    ShardId(format!("shardId-{index:012}"))
}

/// Answers everything at once.
pub struct Answering;

#[async_trait]
impl Transport for Answering {
    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
        drop(request);
        // It does not look: a full batch's number satisfies the client for smaller ones too.
        Ok(Response::new(Bytes::from_static(b"1000 records were ingested")))
    }
}

/// A stream whose pages lie ready.
struct Shelf {
    shards: Vec<Arc<Mutex<VecDeque<Page>>>>,
    shards_left: Arc<AtomicUsize>,
    /// Fired when the path has taken the last page of the last shard.
    taken: Arc<Notify>,
}

impl Shelf {
    fn new(payload: &Payload) -> Self {
        let page = |records: &Vec<_>| Page { records: records.clone(), millis_behind_latest: 1, is_end: false };
        let pages = |pages: &Vec<Vec<_>>| Arc::new(Mutex::new(pages.iter().map(page).collect()));
        let shards = payload.shards.iter().map(pages).collect();
        Self { shards, shards_left: Arc::new(AtomicUsize::new(SHARDS)), taken: Arc::default() }
    }
}

#[async_trait]
impl Stream for Shelf {
    async fn shards(&self) -> Result<Vec<Shard>, BackendError> {
        let shard = |index| Shard { id: shard_id(index), parents: Vec::new(), hashes: 0..=u128::MAX };
        Ok((0..SHARDS).map(shard).collect())
    }

    async fn reader(&self, shard: &ShardId, _from: Position) -> Result<Box<dyn ShardReader>, BackendError> {
        let index = (0..SHARDS).find(|&index| shard_id(index) == *shard);
        let index = index.ok_or_else(|| BackendError::Misconfigured(format!("no shard {shard}")))?;
        Ok(Box::new(ShelfReader {
            pages: Arc::clone(&self.shards[index]),
            empty_pages: 0,
            shards_left: Arc::clone(&self.shards_left),
            taken: Arc::clone(&self.taken),
        }))
    }

    async fn publish(&self, _records: Vec<NewRecord>) -> Result<(), BackendError> {
        Err(BackendError::Misconfigured("the benchmark's stream takes no records".to_owned()))
    }
}

struct ShelfReader {
    pages: Arc<Mutex<VecDeque<Page>>>,
    empty_pages: usize,
    shards_left: Arc<AtomicUsize>,
    taken: Arc<Notify>,
}

#[async_trait]
impl ShardReader for ShelfReader {
    async fn next(&mut self, _max_bytes: usize) -> Result<Page, BackendError> {
        if let Some(page) = self.pages.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
            return Ok(page);
        }
        // The reader's channel holds one page: once an empty one is in it, the path has taken the last full one.
        self.empty_pages += 1;
        if self.empty_pages == 2 && self.shards_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.taken.notify_one();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        Ok(Page::default())
    }
}
