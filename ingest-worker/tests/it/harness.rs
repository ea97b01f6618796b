//! One worker in paused time: the real [`Worker`] over a store in memory and a sandbox behind a scripted wire.

pub mod lines;

use std::collections::HashMap;
use std::io::Read as _;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use amberflo_sandbox::{Faults, Sandbox, SandboxConfig};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use ingest_worker::batch::BatchLimits;
use ingest_worker::context::Common;
use ingest_worker::dedup::KeyBudget;
use ingest_worker::limiter::Limiter;
use ingest_worker::meters::MeterBudget;
use ingest_worker::reader::Buffer;
use ingest_worker::submit::BodyLimit;
use ingest_worker::worker::Worker;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use serde_json::{Value, json};
use shared::amberflo::{Client, Transport, TransportError};
use shared::api_key::{ApiKey, ApiKeys, Source};
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::{Checkpoint, Leases as _, NewRecord, Position, Stream, WorkerId};
use shared::clock::Clock;
use shared::dead_letter::DeadLetter;
use shared::event::EventRules;
use shared::service::{ConfigError, Ready};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600_000;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a drain may take in these tests.
pub const DRAIN: Duration = Duration::from_secs(25);
pub const SECOND: Duration = Duration::from_secs(1);
pub const MINUTE: Duration = Duration::from_secs(60);

/// Stream, Amberflo and the wire between; workers come and go.
pub struct World {
    pub store: LocalStore,
    pub sandbox: Sandbox,
    pub wire: Wire,
    clock: Clock,
}

/// How a worker is set up, where tests differ.
pub struct Options {
    pub batch_max_events: usize,
    pub batch_linger: Duration,
    pub key: Source,
    /// Instead of the world's store.
    pub stream: Option<Arc<dyn Stream>>,
}

impl Default for Options {
    fn default() -> Self {
        let key = Source::Setting(ApiKey::new("sandbox-key").unwrap());
        Self { batch_max_events: 1000, batch_linger: Duration::from_millis(100), key, stream: None }
    }
}

/// A worker at work; dropped, it ends as a crash would end it.
pub struct Running {
    pub common: Arc<Common>,
    pub ready: Ready,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ConfigError>>,
}

impl World {
    /// An empty world with `shards` shards and a wire that takes no time.
    pub fn new(shards: u32) -> Self {
        let clock = Clock::following_tokio(START);
        let options = LocalOptions { shards, clock, ..LocalOptions::default() };
        let started_at = Some(UNIX_EPOCH + Duration::from_millis(START.unsigned_abs()));
        let sandbox = Sandbox::new(SandboxConfig { started_at, request_log: 1_000_000, ..SandboxConfig::default() });
        let wire = Wire { sandbox: sandbox.clone(), script: Arc::default(), sent: Arc::default() };
        Self { store: LocalStore::open_in_memory(options).unwrap(), sandbox, wire, clock }
    }

    pub async fn start(&self) -> Running {
        self.start_with(Options::default()).await
    }

    /// What the shards of a worker share.
    pub async fn common(&self, options: Options) -> Common {
        let keys = ApiKeys::load(options.key).await.unwrap();
        let max_in_flight = NonZeroU32::new(8).unwrap();
        Common {
            worker: WorkerId(format!("worker-{}", fastrand::u32(..))),
            stream_name: "test".to_owned(),
            stream: options.stream.unwrap_or_else(|| Arc::new(self.store.clone())),
            dead_letters: Arc::new(self.store.clone()),
            client: Client::new(Box::new(self.wire.clone()), "http://amberflo", keys.subscribe(), self.clock),
            keys,
            limiter: Limiter::new(max_in_flight, 0.0),
            body_limit: BodyLimit::default(),
            meters: MeterBudget::new(1_000_000),
            dedup_keys: KeyBudget::new(1_000_000),
            buffer: Buffer::new(64 << 20),
            rules: EventRules {
                max_age: Duration::from_secs(60 * 86_400),
                max_ahead: Duration::from_secs(3600),
                allow_aflo_dimensions: false,
            },
            batch: BatchLimits {
                max_events: NonZeroUsize::new(options.batch_max_events).unwrap(),
                max_bytes: NonZeroUsize::new(1 << 20).unwrap(),
                linger: options.batch_linger,
            },
            max_in_flight: max_in_flight.get() as usize,
            max_in_order: 4 * max_in_flight.get() as usize,
            dedup_window: Duration::from_secs(120),
            drain: DRAIN,
            board: ingest_worker::status::Board::default(),
            clock: self.clock,
        }
    }

    pub async fn start_with(&self, options: Options) -> Running {
        let common = Arc::new(self.common(options).await);
        let ready = Ready::default();
        let worker = Worker {
            common: Arc::clone(&common),
            leases: Arc::new(self.store.clone()),
            failover: Duration::from_secs(10),
            initial_position: Position::TrimHorizon,
            is_alone: false,
            ready: ready.clone(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(worker.run(stop.clone()));
        Running { common, ready, stop, task }
    }

    /// Puts events on the stream, all in one call, so that those of a shard are read together.
    pub async fn put(&self, details: impl IntoIterator<Item = Value>) {
        let record = |detail: Value| NewRecord {
            partition_key: detail["tenantId"].as_str().unwrap().to_owned(),
            data: json!({"detail-type": "ingestUsage", "id": "e", "time": "2026-01-01T00:00:00Z", "detail": detail})
                .to_string()
                .into(),
        };
        self.store.publish(details.into_iter().map(record).collect()).await.unwrap();
    }

    pub fn set_faults(&self, faults: Faults) {
        self.sandbox.set_faults(faults).unwrap();
    }

    /// Waits until every shard's checkpoint is at its end.
    pub async fn settle_within(&self, limit: Duration) {
        let settled = async {
            while !self.is_settled().await {
                sleep(Duration::from_millis(200)).await;
            }
        };
        timeout(limit, settled).await.unwrap_or_else(|_| panic!("not settled within {limit:?}"));
    }

    pub async fn is_settled(&self) -> bool {
        let leases = self.store.list().await.unwrap();
        for lease in &leases {
            let from = match lease.checkpoint.clone() {
                Checkpoint::Start(position) => position,
                Checkpoint::Settled { sequence_number, .. } => Position::After(sequence_number),
                Checkpoint::Rewound(time) => Position::AtTime(time),
                Checkpoint::Ended => continue,
            };
            if !self.store.reader(&lease.shard, from).await.unwrap().next(1).await.unwrap().records.is_empty() {
                return false;
            }
        }
        !leases.is_empty()
    }

    /// All dead letters, oldest first.
    pub async fn letters(&self) -> Vec<DeadLetter> {
        let letters = self.store.peek_dead_letters(0, 100_000).await.unwrap();
        letters.into_iter().map(|(_, letter)| letter).collect()
    }

    /// `events` were billed, each once, and no copy of any reached Amberflo.
    pub fn assert_billed_without_copies(&self, events: u64) {
        self.assert_billed_once(events);
        assert_eq!(self.sandbox.ledger().absorbed_copies, 0, "copies were sent");
    }

    /// `events` were billed, each once; copies that reached Amberflo were the identical bytes.
    pub fn assert_billed_once(&self, events: u64) {
        let ledger = self.sandbox.ledger();
        assert_eq!(ledger.events, events);
        let wrong = [ledger.absorbed_with_other_bytes, ledger.conflicting_copies, ledger.billed_again];
        assert_eq!(wrong, [0; 3], "billed twice, or copies with other bytes");
    }

    /// Requests answered with `status`.
    pub fn answered(&self, status: u16) -> u64 {
        self.sandbox.stats().by_status.get(&status).copied().unwrap_or_default()
    }

    pub async fn assert_leases_are_free(&self) {
        for lease in self.store.list().await.unwrap() {
            assert_eq!(lease.owner, None, "{}", lease.shard);
        }
    }
}

impl Running {
    /// SIGTERM; answers how long the drain took.
    pub async fn drain(mut self) -> Duration {
        let started = Instant::now();
        self.stop.cancel();
        timeout(10 * MINUTE, &mut self.task).await.expect("the drain does not end").unwrap().unwrap();
        started.elapsed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A usage event; `n` is its idempotency key and its value.
pub fn usage(tenant: &str, n: u64) -> Value {
    json!({"tenantId": tenant, "meterApiName": "calls", "meterValue": n, "uniqueId": n.to_string()})
}

/// What the wire does with a request.
pub enum Verdict {
    /// The sandbox answers.
    Pass,
    /// The sandbox handles it, and this is what arrives of its answer.
    Instead(Response<Bytes>),
    /// It does not reach the sandbox.
    Answer(Response<Bytes>),
    /// As `Answer`, but there is none.
    Fail(fn() -> TransportError),
}

/// A request as the wire saw it.
#[derive(Clone)]
pub struct Sent {
    pub at: Instant,
    pub key: String,
    pub gzipped: Bytes,
}

impl Sent {
    pub fn records(&self) -> Vec<Value> {
        let mut text = String::new();
        flate2::read::GzDecoder::new(&self.gzipped[..]).read_to_string(&mut text).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

type Script = Box<dyn Fn(&Sent) -> (Duration, Verdict) + Send>;

/// The wire between worker and sandbox. It takes no time of its own: a worker that waits for an answer has sent nothing
/// else meanwhile, unless the script says how long an exchange takes.
#[derive(Clone)]
pub struct Wire {
    sandbox: Sandbox,
    script: Arc<Mutex<Option<Script>>>,
    sent: Arc<Mutex<Vec<Sent>>>,
}

impl Wire {
    /// From now on `script` decides about each request, and how long the exchange takes.
    pub fn script(&self, script: impl Fn(&Sent) -> (Duration, Verdict) + Send + 'static) {
        *self.script.lock().unwrap() = Some(Box::new(script));
    }

    /// From now on every request gets this answer instead of the sandbox's.
    pub fn answer_all(&self, status: u16, headers: &'static [(&'static str, &'static str)], body: &'static str) {
        self.script(move |_| (Duration::ZERO, Verdict::Answer(answer(status, headers, body))));
    }

    pub fn mend(&self) {
        *self.script.lock().unwrap() = None;
    }

    /// All requests so far, in order of departure.
    pub fn sent(&self) -> Vec<Sent> {
        self.sent.lock().unwrap().clone()
    }
}

pub fn answer(status: u16, headers: &[(&str, &str)], body: &'static str) -> Response<Bytes> {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Bytes::from_static(body.as_bytes())).unwrap()
}

#[async_trait]
impl Transport for Wire {
    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
        let key = request.headers()["x-api-key"].to_str().unwrap().to_owned();
        let sent = Sent { at: Instant::now(), key, gzipped: request.body().clone() };
        self.sent.lock().unwrap().push(sent.clone());
        let (takes, verdict) =
            self.script.lock().unwrap().as_ref().map_or((Duration::ZERO, Verdict::Pass), |script| script(&sent));
        let exchange = async {
            pass(takes / 2).await;
            let answered = match verdict {
                Verdict::Fail(error) => return Err(error()),
                Verdict::Answer(answer) => answer,
                Verdict::Instead(answer) => {
                    let real = self.ask_sandbox(request).await;
                    assert_eq!(real.status(), StatusCode::OK);
                    answer
                }
                Verdict::Pass => self.ask_sandbox(request).await,
            };
            pass(takes / 2).await;
            Ok(answered)
        };
        timeout(REQUEST_TIMEOUT, exchange).await.map_err(|_| TransportError::Timeout(REQUEST_TIMEOUT))?
    }
}

/// Even a sleep of no time may end a millisecond later.
async fn pass(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

impl Wire {
    async fn ask_sandbox(&self, request: Request<Bytes>) -> Response<Bytes> {
        let answer = self.sandbox.router().oneshot(request.map(axum::body::Body::from)).await.unwrap();
        let (head, body) = answer.into_parts();
        Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    }
}

/// Keeps the counters and gauges of one thread, without their labels.
#[derive(Default)]
pub struct Counters(Mutex<HashMap<String, Arc<AtomicU64>>>);

impl Counters {
    pub fn get(&self, name: &str) -> u64 {
        self.0.lock().unwrap().get(name).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    pub fn gauge(&self, name: &str) -> f64 {
        f64::from_bits(self.get(name))
    }

    /// Every record that was read has an outcome, or is in flight; answers how many are.
    pub fn assert_balance(&self) -> u64 {
        let in_flight = self.gauge("ingest_in_flight_records");
        assert!(in_flight >= 0.0 && in_flight.fract() == 0.0, "{in_flight} records are in flight");
        let (read, ended) = (self.get("ingest_records_read_total"), self.get("ingest_events_total"));
        assert_eq!(read, ended + in_flight as u64, "read, and the sum of {ended} outcomes and {in_flight} in flight");
        in_flight as u64
    }

    fn atomic(&self, key: &Key) -> Arc<AtomicU64> {
        Arc::clone(self.0.lock().unwrap().entry(key.name().to_owned()).or_default())
    }
}

impl Recorder for Counters {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.atomic(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.atomic(key))
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
