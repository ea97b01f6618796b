//! What the shards of a worker share, and what one shard's task shares with its submits.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::amberflo::{ApiError, Client};
use shared::api_key::ApiKeys;
use shared::backend::{DeadLetters, Record, ShardId, Stream, WorkerId};
use shared::clock::Clock;
use shared::dead_letter::{DeadLetter, Origin};
use shared::event::{self, EventRules, Identity};
use shared::reason::Reason;
use tokio_util::sync::CancellationToken;

use tokio::time::Instant;

use crate::batch::BatchLimits;
use crate::dedup::KeyBudget;
use crate::lease::Fence;
use crate::limiter::{Limiter, Permit};
use crate::lineage::Lineage;
use crate::meters::MeterBudget;
use crate::reader::Buffer;
use crate::status::Board;
use crate::submit::BodyLimit;

/// Bad events may come by the thousand.
const LETTERS_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What a shard's task and its submits work with.
pub struct ShardContext {
    /// The shard.
    pub id: ShardId,
    /// Where it came from.
    pub lineage: Lineage,
    /// While it stands, this worker may act for the shard.
    pub fence: Fence,
    /// What all shards of the worker share.
    pub common: Arc<Common>,
    /// Submits that have not settled their batch yet.
    unsettled: AtomicUsize,
    /// Submits that are waiting for better times.
    waiting: AtomicUsize,
    /// Submits that cannot tell an outage from a bad record of theirs until another batch is tried.
    wanting_evidence: AtomicUsize,
    /// Once cancelled, no request is begun for the shard; those under way go on.
    pub closing: CancellationToken,
    /// What became of the shard's records so far.
    pub outcomes: Outcomes,
    untold_letters: Mutex<UntoldLetters>,
}

/// Dead letters since the last line about them.
#[derive(Debug, Default)]
struct UntoldLetters {
    count: usize,
    /// Reason and sequence number of the last.
    last: Option<(String, String)>,
    told_at: Option<Instant>,
}

/// Settled records, by what became of them.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// Amberflo took them.
    pub delivered: AtomicU64,
    /// They are stored as dead letters.
    pub dead_lettered: AtomicU64,
    /// They were copies.
    pub duplicates: AtomicU64,
}

/// What all shards of a worker share.
pub struct Common {
    /// The name of this worker.
    pub worker: WorkerId,
    /// The name of the stream, for dead letters.
    pub stream_name: String,
    /// Where records come from.
    pub stream: Arc<dyn Stream>,
    /// Where records go that cannot be delivered.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// Where records go.
    pub client: Client,
    /// The API key, for a refresh when it is refused.
    pub keys: ApiKeys,
    /// The limits of the account.
    pub limiter: Arc<Limiter>,
    /// The body size that Amberflo takes.
    pub body_limit: BodyLimit,
    /// Events per meter and hour.
    pub meters: MeterBudget,
    /// Keys of all dedup windows.
    pub dedup_keys: Arc<KeyBudget>,
    /// Memory of all shards.
    pub buffer: Buffer,
    /// What an event may be.
    pub rules: EventRules,
    /// How batches are cut.
    pub batch: BatchLimits,
    /// Batches of one shard that may be unsettled at a time.
    pub max_in_flight: usize,
    /// Batches of one shard that may be unsettled, or settled and waiting for an older one, at a time.
    pub max_in_order: usize,
    /// How long a dedup window reaches.
    pub dedup_window: Duration,
    /// How long a drain may take.
    pub drain: Duration,
    /// What the status page shows and no metric can.
    pub board: Board,
    /// Wall time.
    pub clock: Clock,
}

impl std::ops::Deref for ShardContext {
    type Target = Common;

    fn deref(&self) -> &Common {
        &self.common
    }
}

impl ShardContext {
    /// The context of one shard.
    #[must_use]
    pub fn new(lineage: Lineage, fence: Fence, common: Arc<Common>) -> Self {
        Self {
            id: lineage.id.clone(),
            lineage,
            fence,
            common,
            unsettled: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            wanting_evidence: AtomicUsize::new(0),
            closing: CancellationToken::new(),
            outcomes: Outcomes::default(),
            untold_letters: Mutex::default(),
        }
    }

    /// The right to send a request, inside the fence. Never while the shard is closing.
    pub async fn permit(&self) -> Permit {
        tokio::select! {
            biased;
            () = self.closing.cancelled() => self.waiting_for(std::future::pending()).await,
            permit = self.fence.guard(Arc::clone(&self.limiter).acquire()) => permit,
        }
    }

    /// These are stored.
    pub(crate) fn count_letters(&self, letters: &[DeadLetter]) {
        if let Some(last) = letters.last() {
            self.board.note_letters(letters);
            let mut untold = self.untold_letters();
            untold.count += letters.len();
            untold.last = Some((last.reason.clone(), last.sequence_number.clone()));
        }
        self.tell_of_letters();
    }

    /// Logs what was dead-lettered: the first at once, then at most one line a minute. To be called now and then, also
    /// when there are no more.
    pub(crate) fn tell_of_letters(&self) {
        self.tell_of_letters_after(LETTERS_LOG_INTERVAL);
    }

    /// Logs the rest: nobody will call again.
    pub(crate) fn tell_of_all_letters(&self) {
        self.tell_of_letters_after(Duration::ZERO);
    }

    /// Why a letter was written is in the letter: it may name a part of the event, which is not to be in a log.
    fn tell_of_letters_after(&self, interval: Duration) {
        let mut untold = self.untold_letters();
        if untold.told_at.is_some_and(|told_at| told_at.elapsed() < interval) {
            return;
        }
        let Some((reason, sequence_number)) = untold.last.take() else { return };
        tracing::warn!(shard = %self.id, count = untold.count, reason, sequence_number, "dead letters stored; the last:");
        *untold = UntoldLetters { told_at: Some(Instant::now()), ..UntoldLetters::default() };
    }

    fn untold_letters(&self) -> MutexGuard<'_, UntoldLetters> {
        self.untold_letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `wait` inside the fence, and counts this submit as one that makes no progress meanwhile.
    pub async fn waiting_for<T>(&self, wait: impl Future<Output = T>) -> T {
        let _counted = Counted::new(&self.waiting);
        self.fence.guard(wait).await
    }

    /// As [`waiting_for`](Self::waiting_for); other batches are let through meanwhile.
    pub async fn waiting_for_evidence<T>(&self, wait: impl Future<Output = T>) -> T {
        let _counted = Counted::new(&self.wanting_evidence);
        self.waiting_for(wait).await
    }

    /// A batch is handed to a submit, which ends it with [`count_settled`](Self::count_settled).
    pub(crate) fn count_submitted(&self) {
        self.unsettled.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_settled(&self) {
        self.unsettled.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn unsettled(&self) -> usize {
        self.unsettled.load(Ordering::Relaxed)
    }

    pub(crate) fn wants_evidence(&self) -> bool {
        self.wanting_evidence.load(Ordering::Relaxed) > 0
    }

    /// Whether nothing is under way: every batch waits for better times.
    pub(crate) fn is_stuck(&self) -> bool {
        let unsettled = self.unsettled();
        self.limiter.is_blocked() || (unsettled > 0 && self.waiting.load(Ordering::Relaxed) == unsettled)
    }

    /// The dead letter of a record that Amberflo refused. The event is read anew: parsing is pure.
    #[must_use]
    pub fn letter_of_refusal(&self, record: &Record, reason: Reason, error: &ApiError) -> DeadLetter {
        let identity = event::parse(record, &self.id, &self.rules).map(|event| event.identity()).unwrap_or_default();
        DeadLetter {
            amberflo_status: error.status.map(|status| status.as_u16()),
            amberflo_answer: Some(error.answer.clone()),
            ..self.letter(record, reason, error.to_string(), identity)
        }
    }

    pub(crate) fn letter(&self, record: &Record, reason: Reason, detail: String, identity: Identity) -> DeadLetter {
        let (stream, worker) = (self.stream_name.as_str(), self.worker.0.as_str());
        let origin = Origin { stream, shard: &self.id, worker, now: self.clock.now() };
        DeadLetter::new(record, origin, reason, detail, identity)
    }
}

/// Counts one up while it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
