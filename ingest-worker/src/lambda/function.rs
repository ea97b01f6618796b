//! One invocation: settles what it can of an event in the time that is left, and says from where to go on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use shared::api_key::ApiKey;
use shared::backend::{Checkpoint, Page, Position, Record, SequenceNumber, ShardId, kinesis};
use shared::clock::UnixMillis;
use shared::service::ConfigError;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::event::{Answer, Event};
use crate::context::{Common, ShardContext};
use crate::lease::Fence;
use crate::lineage::Lineage;
use crate::reader::Pages;
use crate::shard;

/// How long before Lambda would end the invocation everything that is open is dropped; at most a fifth of its time.
const MARGIN: Duration = Duration::from_secs(2);
/// How long before that no request is begun any more, so that those under way can end; at most a fifth of its time.
pub const DRAIN: Duration = Duration::from_secs(5);
/// An invocation ends early where nothing was delivered or settled for this long and all batches wait for better times:
/// what an outage costs then is a part of each invocation, and Lambda's own pause between them is free.
const PATIENCE: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(500);
/// The longest that an invocation waits for the API key to be read again.
const KEY_TIME: Duration = Duration::from_secs(3);

/// What is kept from one invocation to the next: connections, limits, and the API key.
pub struct Function {
    common: Arc<Common>,
    stream: String,
    key_refresh: Duration,
    /// By wall time: other clocks may stand still between invocations, and timers do.
    key_read_at: Mutex<UnixMillis>,
    /// Tells of a new key.
    key: Mutex<watch::Receiver<ApiKey>>,
}

/// When an invocation has to be over.
#[derive(Clone, Copy)]
struct Ends {
    /// No request is begun any more, and what waits is given up.
    stop: Instant,
    /// Nothing is begun any more, and what is open is dropped.
    fence: Instant,
    /// The answer is given, whatever else is the matter.
    answer: Instant,
}

impl Ends {
    fn within(time: Duration) -> Self {
        let end = Instant::now() + time;
        let margin = MARGIN.min(time / 5);
        let fence = end - margin;
        Self { stop: fence - DRAIN.min(time / 5), fence, answer: end - margin / 2 }
    }
}

impl Function {
    /// A function for the events of the stream of this name, with an API key that was read just now.
    #[must_use]
    pub fn new(common: Arc<Common>, stream: &str, key_refresh: Duration) -> Self {
        let key_read_at = Mutex::new(common.clock.now());
        let key = Mutex::new(common.keys.subscribe());
        Self { common, stream: stream.to_owned(), key_refresh, key_read_at, key }
    }

    /// Settles the records of an event from `source`, and answers in time for `deadline` from where they are to come
    /// again.
    ///
    /// # Errors
    /// When the event is of another stream: a dead letter would name the wrong one.
    pub async fn answer(
        &self,
        event: Event,
        source: &kinesis::StreamName,
        deadline: UnixMillis,
    ) -> Result<Answer, ConfigError> {
        if source.name() != self.stream {
            let (expected, given) = (&self.stream, source.name());
            return Err(ConfigError(format!("STREAM: {expected}, but the event is of {given}; map only that one")));
        }
        let left = self.common.clock.until(deadline);
        let ends = Ends::within(left);
        // Kept between events: a change that comes after the end of one counts in the next.
        let mut key = self.key.lock().await;
        self.refresh_key(left / 5).await;
        let mut answer = Answer::default();
        for (shard, records) in event.into_shards() {
            if let Some(first) = self.settle(shard, records, ends, &mut key).await {
                answer.fail_from(first);
            }
        }
        Ok(answer)
    }

    /// Reads the key again where it is due. A refusal by Amberflo does so too, wherever it comes from.
    async fn refresh_key(&self, limit: Duration) {
        let mut read_at = self.key_read_at.lock().await;
        if self.common.clock.since(*read_at) >= self.key_refresh {
            *read_at = self.common.clock.now();
            if timeout(KEY_TIME.min(limit), self.common.keys.reload()).await.is_err() {
                tracing::warn!("the API key could not be read again in time; the present one stays in use");
            }
        }
    }

    /// Settles records of a shard; answers the first that is not settled.
    async fn settle(
        &self,
        id: ShardId,
        records: Vec<Record>,
        ends: Ends,
        key: &mut watch::Receiver<ApiKey>,
    ) -> Option<SequenceNumber> {
        let started = Instant::now();
        let numbers: Vec<SequenceNumber> = records.iter().map(|record| record.sequence_number.clone()).collect();
        let lineage = Lineage { id, hashes: 0..=u128::MAX, parents: Vec::new(), ancestors: Vec::new() };
        let shard = Arc::new(ShardContext::new(lineage, Fence::until(ends.fence), Arc::clone(&self.common)));
        let (checkpoint, settled) = watch::channel(Checkpoint::Start(Position::TrimHorizon));
        let stop = CancellationToken::new();
        let pages = Pages::of(Page { records, millis_behind_latest: 0, is_end: true });
        tokio::select! {
            biased;
            _ = shard::run_on(pages, Arc::clone(&shard), &checkpoint, stop.clone()) => {}
            () = stop_in_time(&shard, settled.clone(), key, stop, ends) => {}
        }
        let last = settled.borrow().clone();
        let is_settled = |number: &SequenceNumber| match &last {
            Checkpoint::Settled { sequence_number, .. } => number <= sequence_number,
            _ => false,
        };
        let unsettled = numbers.iter().position(|number| !is_settled(number));
        log(&shard, numbers.len(), unsettled, started.elapsed());
        unsettled.and_then(|first| numbers.into_iter().nth(first))
    }
}

/// Asks for an end when the time is near, or when waiting is of no use; returns when it is too late to wait for it.
async fn stop_in_time(
    shard: &ShardContext,
    mut settled: watch::Receiver<Checkpoint>,
    key: &mut watch::Receiver<ApiKey>,
    stop: CancellationToken,
    ends: Ends,
) {
    let mut progress_at = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = sleep_until(ends.stop) => break,
            Ok(()) = key.changed() => shard.limiter.key_changed(),
            Ok(()) = settled.changed() => progress_at = Instant::now(),
            () = sleep(TICK) => {
                if shard.limiter.evidence().is_delivered_since(progress_at) {
                    progress_at = Instant::now();
                }
                if progress_at.elapsed() >= PATIENCE && shard.is_stuck() {
                    break;
                }
            }
        }
    }
    shard.closing.cancel();
    stop.cancel();
    sleep_until(ends.answer).await;
}

/// There is no scrape endpoint: this line is what there is to count.
fn log(shard: &ShardContext, records: usize, unsettled: Option<usize>, took: Duration) {
    let outcomes = &shard.outcomes;
    let unsettled = unsettled.map_or(0, |first| records - first);
    let [delivered, dead_lettered, duplicates] =
        [&outcomes.delivered, &outcomes.dead_lettered, &outcomes.duplicates].map(|count| count.load(Ordering::Relaxed));
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let shard = &shard.id;
    if unsettled > 0 {
        tracing::warn!(%shard, records, delivered, duplicates, dead_lettered, unsettled, took_ms, "event not all settled");
    } else {
        tracing::info!(%shard, records, delivered, duplicates, dead_lettered, unsettled, took_ms, "event settled");
    }
}
