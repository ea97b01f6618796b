//! The demo's application plane: many events, and the patience of a good producer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use shared::clock::Clock;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::generator::{Entry, Generator};
use crate::mix::Mix;
use crate::target::{Bus, Event, Outcome, Target};
use crate::truth::Truth;

/// Calls under way at a time.
const PRODUCERS: usize = 8;
/// An attempt that takes longer is given up and made again; it may have been carried out.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between a call that failed and the next.
const PAUSE: Duration = Duration::from_millis(100);

/// What the plane has done so far.
#[derive(Debug, Default)]
pub struct Emission {
    /// Entries that were acknowledged.
    pub acknowledged: AtomicU64,
    /// Calls that failed, and were made again.
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
    /// How often entries are made: what falls due in between is put together.
    pub tick: Duration,
    /// How many a call has at most, where the target would take more.
    pub call: usize,
}

impl Plane {
    /// Starts to emit to `endpoint`. Times in the truth count from `origin`.
    ///
    /// # Errors
    /// When `endpoint` is not on this machine.
    pub async fn start(endpoint: &str, load: Load, origin: Instant) -> anyhow::Result<Self> {
        let bus = Bus::local(endpoint, ATTEMPT_TIMEOUT).await?;
        Ok(Self::start_on(Arc::new(bus), Mix::demo(), load, origin))
    }

    /// Starts to emit this mix to any target.
    #[must_use]
    pub fn start_on(target: Arc<dyn Target>, mix: Mix, load: Load, origin: Instant) -> Self {
        let (emission, truth) = (Arc::<Emission>::default(), Arc::<Mutex<Truth>>::default());
        // Unbounded: while the worker is down the plane goes on making events, and a producer does not forget them.
        let (sender, receiver) = mpsc::unbounded_channel();
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        let mut tasks = JoinSet::new();
        let limit = target.limit().events.min(load.call);
        tasks.spawn(generate(Generator::new(mix, load.seed, Arc::clone(&truth)), load, sender));
        for _ in 0..PRODUCERS {
            let (target, receiver) = (Arc::clone(&target), Arc::clone(&receiver));
            let (emission, truth) = (Arc::clone(&emission), Arc::clone(&truth));
            tasks.spawn(async move {
                loop {
                    let mut call = Vec::new();
                    // All that waits, so that who is behind makes fuller calls.
                    if receiver.lock().await.recv_many(&mut call, limit).await == 0 {
                        return;
                    }
                    put(&*target, call, &emission, &truth, origin).await;
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

async fn generate(mut generator: Generator<Arc<Mutex<Truth>>>, load: Load, sender: mpsc::UnboundedSender<Entry>) {
    let (clock, started) = (Clock::system(), Instant::now());
    let mut ticks = interval(load.tick);
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
        if entries.into_iter().any(|entry| sender.send(entry).is_err()) {
            return;
        }
        if is_over {
            return;
        }
    }
}

/// Puts the entries until every one is acknowledged, each with the same `uniqueId` however often it is sent.
async fn put(target: &dyn Target, mut entries: Vec<Entry>, emission: &Emission, truth: &Mutex<Truth>, origin: Instant) {
    while !entries.is_empty() {
        let sent = origin.elapsed();
        let events: Vec<_> =
            entries.iter().map(|entry| Event { tenant: &entry.tenant, detail: &entry.detail }).collect();
        let error = match target.put(&events).await {
            Ok(outcomes) => {
                let mut truth = truth.lock().unwrap_or_else(PoisonError::into_inner);
                let mut last_error = None;
                let mut outcomes = outcomes.into_iter();
                let before = entries.len();
                entries.retain(|entry| match outcomes.next() {
                    Some(Outcome::Acknowledged) => {
                        truth.acknowledge(entry.origin, sent);
                        false
                    }
                    Some(Outcome::Refused(error) | Outcome::Failed(error)) => {
                        last_error = Some(error);
                        true
                    }
                    None => true,
                });
                emission.acknowledged.fetch_add((before - entries.len()) as u64, Ordering::Relaxed);
                last_error
            }
            Err(error) => Some(error.to_string()),
        };
        if !entries.is_empty() {
            emission.failed_calls.fetch_add(1, Ordering::Relaxed);
            *emission.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
            sleep(PAUSE).await;
        }
    }
}
