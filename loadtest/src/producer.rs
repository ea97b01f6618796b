//! The application plane's side of the wire: the AWS SDK, and the patience of a good producer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::config::retry::RetryConfig;
use aws_sdk_eventbridge::config::timeout::TimeoutConfig;
use aws_sdk_eventbridge::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_eventbridge::error::DisplayErrorContext;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use shared::clock::Clock;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::generator::{Entry, Generator};
use crate::truth::Truth;

/// SBT's event source for the application plane.
pub const SOURCE: &str = "sbt.application.plane";
/// SBT's detail type for usage.
pub const DETAIL_TYPE: &str = "ingestUsage";

/// EventBridge takes at most this many entries in a call.
const CALL_ENTRIES: usize = 10;
/// Calls under way at a time.
const PRODUCERS: usize = 8;
const TICK: Duration = Duration::from_millis(20);
/// An attempt that takes longer is given up and made again; it may have been carried out.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between calls of our own; the SDK has tried three times within each.
const PAUSE: Duration = Duration::from_millis(100);

/// What the plane has done so far.
#[derive(Debug, Default)]
pub struct Emission {
    /// Entries that were acknowledged.
    pub acknowledged: AtomicU64,
    /// Calls that failed, each after the SDK's own retries.
    pub failed_calls: AtomicU64,
    last_error: Mutex<Option<String>>,
}

/// An application plane at work. Dropping it ends it.
pub struct Plane {
    /// What it has done.
    pub emission: Arc<Emission>,
    /// What it emitted.
    pub truth: Arc<Mutex<Truth>>,
    tasks: JoinSet<()>,
}

/// How long and how fast a plane emits.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// For how long.
    pub duration: Duration,
    /// Entries per second, copies included.
    pub rate: u32,
    /// Where the random sequence starts.
    pub seed: u64,
}

impl Plane {
    /// Starts to emit to `endpoint`. Times in the truth count from `origin`.
    #[must_use]
    pub fn start(endpoint: &str, load: Load, origin: Instant) -> Self {
        let (emission, truth) = (Arc::<Emission>::default(), Arc::<Mutex<Truth>>::default());
        let client = client(endpoint);
        // Unbounded: while the worker is down the plane goes on making events, and a producer does not forget them.
        let (sender, receiver) = mpsc::unbounded_channel();
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        let mut tasks = JoinSet::new();
        tasks.spawn(generate(Generator::new(load.seed, Arc::clone(&truth)), load, sender));
        for _ in 0..PRODUCERS {
            let (client, receiver) = (client.clone(), Arc::clone(&receiver));
            let (emission, truth) = (Arc::clone(&emission), Arc::clone(&truth));
            tasks.spawn(async move {
                loop {
                    let call = receiver.lock().await.recv().await;
                    let Some(call) = call else { return };
                    put(&client, call, &emission, &truth, origin).await;
                }
            });
        }
        Self { emission, truth, tasks }
    }

    /// Waits until everything is acknowledged.
    ///
    /// # Errors
    /// When that takes longer than `patience`, with the last error seen; or when a task panicked.
    pub async fn finish(&mut self, patience: Duration) -> anyhow::Result<()> {
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended?;
            }
            anyhow::Ok(())
        };
        timeout(patience, all).await.with_context(|| {
            let last = self.emission.last_error.lock().unwrap_or_else(PoisonError::into_inner).take();
            let last = last.unwrap_or_else(|| "none".to_owned());
            format!("producers are not rid of their events {patience:?} after the end; their last error: {last}")
        })?
    }
}

async fn generate(mut generator: Generator, load: Load, calls: mpsc::UnboundedSender<Vec<Entry>>) {
    let (clock, started) = (Clock::system(), Instant::now());
    let mut ticks = interval(TICK);
    // Late ticks are made up for by the count below, not by more ticks.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut made = 0;
    loop {
        ticks.tick().await;
        let elapsed = started.elapsed().min(load.duration);
        let due = (elapsed.as_secs_f64() * f64::from(load.rate)) as u64;
        let mut entries: Vec<Entry> = (made..due).map(|_| generator.next(elapsed, clock.now())).collect();
        made = due.max(made);
        let is_over = elapsed >= load.duration;
        if is_over {
            entries.extend(generator.rest());
        }
        for call in entries.chunks(CALL_ENTRIES) {
            if calls.send(call.to_vec()).is_err() {
                return;
            }
        }
        if is_over {
            return;
        }
    }
}

/// Puts the entries until every one is acknowledged, each with the same `uniqueId` however often it is sent.
async fn put(client: &Client, mut entries: Vec<Entry>, emission: &Emission, truth: &Mutex<Truth>, origin: Instant) {
    while !entries.is_empty() {
        let sent = origin.elapsed();
        let error = match client.put_events().set_entries(Some(entries.iter().map(entry).collect())).send().await {
            Ok(answer) => {
                let mut truth = truth.lock().unwrap_or_else(PoisonError::into_inner);
                let mut refused = None;
                let mut results = answer.entries().iter();
                let before = entries.len();
                entries.retain(|entry| match results.next() {
                    Some(result) if result.event_id().is_some() => {
                        truth.acknowledge(entry.origin, sent);
                        false
                    }
                    result => {
                        refused = result.and_then(|result| result.error_message()).map(str::to_owned);
                        true
                    }
                });
                emission.acknowledged.fetch_add((before - entries.len()) as u64, Ordering::Relaxed);
                refused
            }
            Err(error) => Some(DisplayErrorContext(&error).to_string()),
        };
        if !entries.is_empty() {
            emission.failed_calls.fetch_add(1, Ordering::Relaxed);
            *emission.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
            sleep(PAUSE).await;
        }
    }
}

fn entry(entry: &Entry) -> PutEventsRequestEntry {
    PutEventsRequestEntry::builder().source(SOURCE).detail_type(DETAIL_TYPE).detail(&*entry.detail).build()
}

fn client(endpoint: &str) -> Client {
    // The endpoint is plain HTTP, but a client without TLS is not part of the documented API.
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let config = Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("demo", "demo", None, None, "demo"))
        .endpoint_url(endpoint)
        .http_client(http)
        .retry_config(RetryConfig::standard().with_max_attempts(3).with_initial_backoff(Duration::from_millis(100)))
        .timeout_config(TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT).build())
        .build();
    Client::from_conf(config)
}
