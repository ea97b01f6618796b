//! Settles one batch: every record delivered, or stored as a dead letter with its reason.
//!
//! This is the whole table of what Amberflo's answers mean. Nothing here gives up: a batch ends settled, or its task
//! is dropped because the shard now belongs to another worker, which will read the same records again.

mod blame;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blame::{Blame, History};
use bytes::Bytes;
use http::StatusCode;
use shared::amberflo::{ApiError, Decision, Ingested};
use shared::backend::SequenceNumber;
use shared::clock::UnixMillis;
use shared::dead_letter::DeadLetter;
use shared::reason::Reason;
use shared::service::Trouble;
use tokio::time::{Instant, sleep};
use tracing::{Instrument as _, Span};

use crate::backoff::Backoff;
use crate::batch::Batch;
use crate::context::ShardContext;
use crate::limiter::{Outcome, Permit};
use crate::metrics::LETTER_STORE_FAILURES;
use crate::spans;

/// How long a parcel stands aside in a pause that it may be to blame for: long enough to be seen by its shard.
const STANDS_ASIDE: Duration = Duration::from_millis(1500);

static FAILING: Trouble = Trouble::new();
/// Of all batches, since the last line about failures: what one that hangs has met must not be hidden behind others.
static MOST_FAILURES: AtomicU32 = AtomicU32::new(0);
static REFUSED: Trouble = Trouble::new();
static FORBIDDEN: Trouble = Trouble::new();
static UNSTORED: Trouble = Trouble::new();

/// What became of a batch.
#[derive(Debug)]
pub struct Settled {
    /// The last record of its stretch: the checkpoint may go here.
    pub last: Option<(SequenceNumber, UnixMillis)>,
    /// The dedup window's mark after the stretch.
    pub window_mark: u64,
    /// Records that Amberflo took.
    pub delivered: u64,
    /// Records that were stored as dead letters.
    pub dead_lettered: u64,
    /// Copies that were dropped.
    pub duplicates: u64,
}

/// Delivers the batch's records, starting with `permit`, and stores its dead letters.
pub async fn settle(shard: Arc<ShardContext>, mut batch: Batch, permit: Option<Permit>) -> Settled {
    let mut letters = std::mem::take(&mut batch.letters);
    let refused = deliver(&shard, &batch, permit).await;
    let delivered = (batch.items.len() - refused.len()) as u64;
    shard.meters.count(&batch.meters, shard.clock.now());
    letters.extend(refused);
    if !letters.is_empty() {
        store(&shard, &letters).instrument(spans::store(&letters)).await;
    }
    for letter in &letters {
        metrics::counter!("ingest_dead_letters_total", "reason" => letter.reason.clone()).increment(1);
    }
    shard.count_settled();
    Span::current().record("metering.delivered", delivered).record("metering.dead_lettered", letters.len() as u64);
    Settled {
        last: batch.last.clone(),
        window_mark: batch.window_mark,
        delivered,
        dead_lettered: letters.len() as u64,
        duplicates: batch.duplicates,
    }
}

/// Some of a batch's records, sent as one request.
#[derive(Default)]
struct Parcel {
    items: Vec<usize>,
    body: Option<Bytes>,
    /// For as long as it is not known whose fault it is that it fails.
    backoff: Backoff,
    /// It was sent once more because the answer counted fewer records than it holds.
    was_resent: bool,
    /// Why it is not the first attempt to send these records.
    why: Option<String>,
    history: History,
}

impl Parcel {
    fn new(items: Vec<usize>) -> Self {
        Self { items, ..Self::default() }
    }
}

/// Sends every record of the batch; answers the dead letters of those that Amberflo will not take.
async fn deliver(shard: &ShardContext, batch: &Batch, mut first_permit: Option<Permit>) -> Vec<DeadLetter> {
    let mut letters = Vec::new();
    // First in, first out: one that fails again and again must not keep the others of its batch from being delivered.
    let mut parcels = VecDeque::new();
    // Of what everyone meets.
    let mut backoff = Backoff::default();
    let mut attempts = 0_u64;
    if !batch.items.is_empty() {
        parcels.push_back(Parcel::new((0..batch.items.len()).collect()));
    }
    while let Some(mut parcel) = parcels.pop_front() {
        if parcel.items.len() > 1 && batch.bytes_of(&parcel.items) > shard.body_limit.current() {
            split(batch, parcel, &mut parcels);
            continue;
        }
        let asked = Instant::now();
        let permit = match first_permit.take() {
            Some(permit) => permit,
            None => shard.permit().await,
        };
        let body = parcel.body.get_or_insert_with(|| batch.gzip(&parcel.items)).clone();
        metrics::histogram!("ingest_batch_compressed_bytes").record(body.len() as f64);
        let span = spans::attempt(parcel.items.len(), body.len(), attempts, parcel.why.as_deref(), asked.elapsed());
        attempts += 1;
        let error = match shard.fence.guard(shard.client.ingest(body).instrument(span.clone())).await {
            Ok(answer) => {
                permit.report(Outcome::Delivered);
                if is_short(&answer, &parcel) && !parcel.was_resent {
                    parcel.was_resent = true;
                    parcel.why = Some("short count".to_owned());
                    parcels.push_back(parcel);
                    continue;
                }
                if parcel.history.acquits() {
                    shard.limiter.begin_anew();
                }
                backoff = Backoff::default();
                delivered(shard, batch, &parcel, &answer);
                continue;
            }
            Err(error) => error,
        };
        span.record("metering.decision", tracing::field::debug(&error.decision));
        parcel.why = Some(why(&error));
        if error.decision == Decision::Split && parcel.items.len() > 1 {
            shard.body_limit.shrink_below(batch.bytes_of(&parcel.items));
        }
        match next_step(shard, &mut parcel, &mut backoff, &error, permit).await {
            Next::Again => parcels.push_back(parcel),
            Next::Divide(_) if parcel.items.len() > 1 => split(batch, parcel, &mut parcels),
            Next::Divide(reason) => {
                letters.push(shard.letter_of_refusal(&batch.items[parcel.items[0]].record, reason, &error));
            }
        }
    }
    Span::current().record("metering.attempts", attempts);
    letters
}

/// What an attempt met, in a word.
fn why(error: &ApiError) -> String {
    match error.status {
        Some(status) => status.as_str().to_owned(),
        None if error.timed_out => "timeout".to_owned(),
        None => "connection".to_owned(),
    }
}

/// What to do with a parcel that failed.
enum Next {
    /// Send the same bytes again.
    Again,
    /// Split it; a single record becomes a dead letter with this reason.
    Divide(Reason),
}

async fn next_step(
    shard: &ShardContext,
    parcel: &mut Parcel,
    backoff: &mut Backoff,
    error: &ApiError,
    permit: Permit,
) -> Next {
    tracing::debug!(shard = %shard.id, records = parcel.items.len(), %error, decision = ?error.decision, "not delivered");
    match error.decision {
        Decision::Isolate => {
            permit.report(Outcome::Answered);
            Next::Divide(Reason::Rejected)
        }
        Decision::Split => {
            // It may come from a gateway that has not looked at the key.
            permit.report(Outcome::Inconclusive);
            Next::Divide(Reason::Oversized)
        }
        Decision::SlowDown(wait) => {
            permit.report_because(Outcome::SlowDown(wait), &answered(error));
            // A date that is past by our clock, or a 0, is no leave to hurry.
            shard.waiting_for(sleep(backoff.next_delay().max(wait.unwrap_or_default()))).await;
            Next::Again
        }
        Decision::Backoff(wait) => {
            permit.report_because(Outcome::Failed(wait), &answered(error));
            on_failure(shard, parcel, backoff, error).await
        }
        Decision::Pause if error.key_was_replaced => {
            permit.report(Outcome::Inconclusive);
            Next::Again
        }
        Decision::Pause => on_refusal(shard, parcel, backoff, error, permit).await,
    }
}

/// 5xx, timeouts, broken connections: an outage, unless this parcel alone has met them for a long time.
async fn on_failure(shard: &ShardContext, parcel: &mut Parcel, backoff: &mut Backoff, error: &ApiError) -> Next {
    let blame = parcel.history.failed(&shard.limiter.evidence(), parcel.items.len() == 1);
    MOST_FAILURES.fetch_max(parcel.history.failures(), Ordering::Relaxed);
    if let Some(omitted) = FAILING.again() {
        let failures = MOST_FAILURES.swap(0, Ordering::Relaxed);
        tracing::warn!(shard = %shard.id, %error, omitted, failures, "Amberflo fails; trying again");
    }
    match blame {
        Blame::Parcel => {
            tracing::warn!(shard = %shard.id, records = parcel.items.len(), %error, "failing alone: dividing it");
            return Next::Divide(Reason::Unconfirmed);
        }
        Blame::Unclear => shard.waiting_for_evidence(sleep(parcel.backoff.next_delay())).await,
        Blame::Everyone => shard.waiting_for(sleep(backoff.next_delay())).await,
    }
    Next::Again
}

/// The key or the address is wrong; or, with 403, this parcel alone is not wanted.
async fn on_refusal(
    shard: &ShardContext,
    parcel: &mut Parcel,
    backoff: &mut Backoff,
    error: &ApiError,
    permit: Permit,
) -> Next {
    let blame = match error.status {
        Some(StatusCode::FORBIDDEN) => {
            let evidence = shard.limiter.evidence();
            parcel.history.forbidden(&evidence, permit.given_at(), parcel.items.len() == 1)
        }
        _ => parcel.history.refused(),
    };
    match blame {
        Blame::Everyone => {
            if let Some(omitted) = REFUSED.again() {
                tracing::error!(shard = %shard.id, %error, omitted, "Amberflo refuses us; nothing is lost");
            }
            permit.report_because(Outcome::Refused, &answered(error));
            shard.fence.guard(shard.keys.refresh()).await;
            let is_paused = shard.limiter.is_paused();
            // Where others are delivered all the same it would use up their requests. In a pause there are few anyway.
            let wait = sleep(if is_paused { STANDS_ASIDE } else { backoff.next_delay() });
            if error.status == Some(StatusCode::FORBIDDEN) && parcel.history.is_often_refused() {
                // Else forbidden records in all that may be under way would be a pause for ever: another batch may be
                // taken, and so may a part of this one.
                shard.waiting_for_evidence(wait).await;
                return if parcel.items.len() > 1 { Next::Divide(Reason::Rejected) } else { Next::Again };
            }
            if !is_paused {
                shard.waiting_for(wait).await;
            }
            Next::Again
        }
        Blame::Parcel => {
            permit.report(Outcome::Inconclusive);
            Next::Divide(Reason::Rejected)
        }
        Blame::Unclear => {
            if let Some(omitted) = FORBIDDEN.again() {
                tracing::warn!(shard = %shard.id, records = parcel.items.len(), %error, omitted, "suspected of being refused alone; trying again");
            }
            permit.report(Outcome::Inconclusive);
            shard.fence.guard(shard.keys.refresh()).await;
            shard.waiting_for_evidence(sleep(parcel.backoff.next_delay())).await;
            Next::Again
        }
    }
}

/// What was answered, or happened instead.
fn answered(error: &ApiError) -> String {
    error.status.map_or_else(|| error.answer.clone(), |status| format!("{status}: {}", error.answer))
}

/// Puts both halves of a parcel at the end of the queue.
fn split(batch: &Batch, parcel: Parcel, parcels: &mut VecDeque<Parcel>) {
    let (left, right) = batch.split(parcel.items);
    let half = |items| Parcel { why: parcel.why.clone(), history: parcel.history.of_half(), ..Parcel::new(items) };
    parcels.push_back(half(left));
    parcels.push_back(half(right));
}

fn is_short(answer: &Ingested, parcel: &Parcel) -> bool {
    answer.records.is_some_and(|records| records < parcel.items.len() as u64)
}

fn delivered(shard: &ShardContext, batch: &Batch, parcel: &Parcel, answer: &Ingested) {
    if is_short(answer, parcel) {
        metrics::counter!("amberflo_count_mismatches_total").increment(1);
        let position = |item: Option<&usize>| item.map(|&item| batch.items[item].record.sequence_number.to_string());
        tracing::error!(
            shard = %shard.id,
            first = position(parcel.items.iter().min()),
            last = position(parcel.items.iter().max()),
            sent = parcel.items.len(),
            counted = answer.records,
            "Amberflo counted fewer records than were sent, twice: compare its usage for this stretch"
        );
    }
    if parcel.history.failures() > 0
        && let Some(over) = FAILING.over()
    {
        let lasted = over.lasted.as_secs();
        tracing::info!(shard = %shard.id, lasted, failures = over.times, "Amberflo takes records again");
    }
    let latency = metrics::histogram!("ingest_delivery_latency_seconds");
    let now = shard.clock.now();
    let arrival = |item: &usize| batch.items[*item].record.arrived_at;
    for run in parcel.items.chunk_by(|a, b| arrival(a) == arrival(b)) {
        latency.record_many((now - arrival(&run[0])).max(0) as f64 / 1000.0, run.len());
    }
}

/// Stores the letters, for as long as it takes.
async fn store(shard: &ShardContext, letters: &[DeadLetter]) {
    let mut backoff = Backoff::default();
    let mut attempts = 1_u64;
    while let Err(error) = shard.fence.guard(shard.dead_letters.send(letters)).await {
        attempts += 1;
        metrics::counter!(LETTER_STORE_FAILURES).increment(1);
        if let Some(omitted) = UNSTORED.again() {
            let letters = letters.len();
            tracing::error!(shard = %shard.id, %error, letters, omitted, "dead letters could not be stored");
        }
        shard.waiting_for(sleep(backoff.next_delay())).await;
    }
    if attempts > 1
        && let Some(over) = UNSTORED.over()
    {
        tracing::info!(shard = %shard.id, lasted = over.lasted.as_secs(), "dead letters are stored again");
    }
    Span::current().record("metering.attempts", attempts);
    shard.count_letters(letters);
}

/// The size of a request body that Amberflo takes, learnt from its 413s.
#[derive(Debug, Default)]
pub struct BodyLimit(Mutex<Option<(usize, Instant)>>);

impl BodyLimit {
    /// How long a refusal is remembered; then a full batch tries again.
    pub const MEMORY: Duration = Duration::from_secs(600);

    /// The most bytes to send before compression.
    #[must_use]
    pub fn current(&self) -> usize {
        self.learnt().map_or(usize::MAX, |(bytes, _)| bytes)
    }

    /// The limit, and how long ago it was learnt, where that is not forgotten.
    #[must_use]
    pub fn learnt(&self) -> Option<(usize, Duration)> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.map(|(bytes, at)| (bytes, at.elapsed())).filter(|(_, ago)| *ago < Self::MEMORY)
    }

    /// A body of `bytes` was refused: half of it may pass.
    pub fn shrink_below(&self, bytes: usize) {
        let smaller = self.current().min((bytes / 2).max(1));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((smaller, Instant::now()));
    }
}
