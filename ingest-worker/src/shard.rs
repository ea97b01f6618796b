//! The path of an event: read, parsed, deduplicated, batched, settled, checkpointed. One task per shard.
//!
//! A batch is a stretch of the shard: what is to be delivered, and also the duplicates and dead letters in between, so
//! that the checkpoint can pass them in order. `submit.rs` settles it; `lease.rs` writes the checkpoint to the lease.

mod spare;

use std::collections::VecDeque;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt as _, StreamExt as _};
use shared::backend::{Checkpoint, Position, Record, SequenceNumber, hash};
use shared::clock::{UnixMillis, millis};
use shared::event;
use shared::reason::Reason;
use shared::service::metrics::together;
use spare::SparePlaces;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use crate::batch::{Batch, Batcher, Pushed, Trigger};
use crate::context::ShardContext;
use crate::dedup::{Seen, Window};
use crate::metrics::SHARD_FAILURES;
use crate::reader::{BufferedPage, Pages, Reading, Since};
use crate::spans;
use crate::submit::{Settled, settle};

/// Arrival times are approximate on Kinesis: the rebuild of the dedup window reaches back this much further.
pub const REBUILD_SLACK: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_secs(1);
/// A reader that works has a page more often than this, be it an empty one: a throttled one waits for 9 s at most.
const SILENCE: Duration = Duration::from_secs(10);

/// Why a shard's task is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The fence fell, a drain was asked for, or something failed: another owner goes on from the checkpoint.
    GivenUp,
    /// The shard was split or merged, and all its records are settled.
    Ended,
}

/// Runs the shard until it ends, until the fence falls, or until `stop` asks for a drain and the drain is over.
///
/// `checkpoint` receives every settled position, in stream order.
pub async fn run(shard: Arc<ShardContext>, checkpoint: &watch::Sender<Checkpoint>, stop: CancellationToken) -> Outcome {
    let start = checkpoint.borrow().clone();
    let pages = Pages::start(Arc::clone(&shard.stream), reading(&shard, &start), shard.buffer.clone());
    run_on(pages, shard, checkpoint, stop).await
}

/// As [`run`], on pages that come from elsewhere.
pub async fn run_on(
    mut pages: Pages,
    shard: Arc<ShardContext>,
    checkpoint: &watch::Sender<Checkpoint>,
    stop: CancellationToken,
) -> Outcome {
    let mut path = Path::new(Arc::clone(&shard), &checkpoint.borrow().clone());
    let mut in_flight = FuturesOrdered::new();
    // Once polled it may hold the head of the limiter's queue, so the loop must go on polling it: a batch that is due and
    // needs a permit stays so until it is taken, and the room for it is not taken back.
    let mut permit = pin!(Arc::clone(&shard.limiter).acquire());
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut drain_until = None;
    let mut is_evidence_due = false;
    let mut spare = SparePlaces::default();

    loop {
        // A submit that searches its batch for a bad record holds up the checkpoint of those behind it. One batch a tick
        // goes all the same: whether it is delivered tells an outage from a bad record.
        let is_behind = in_flight.len() >= shard.max_in_order || shard.unsettled() >= shard.max_in_flight;
        let has_room = !is_behind || is_evidence_due;
        let due_at = path.batcher.due_at().filter(|_| has_room && !shard.closing.is_cancelled());
        let needs_permit = path.batcher.needs_permit();
        tokio::select! {
            biased;
            () = shard.fence.fallen() => break,
            () = stop.cancelled(), if drain_until.is_none() => {
                drain_until = Some(Instant::now() + shard.drain);
                path.batcher.drain();
            }
            Some(settled) = in_flight.next() => match settled {
                Ok(settled) => path.settled(settled, checkpoint),
                Err(error) => {
                    tracing::error!(shard = %shard.id, %error, "a submit failed: the shard is given up and read again");
                    metrics::counter!(SHARD_FAILURES).increment(1);
                    break;
                }
            },
            permit_for_due = async {
                if let Some(due_at) = due_at.filter(|due_at| *due_at > Instant::now()) {
                    sleep_until(due_at).await;
                }
                if needs_permit { Some(permit.as_mut().await) } else { None }
            }, if due_at.is_some() => {
                if permit_for_due.is_some() {
                    permit.set(Arc::clone(&shard.limiter).acquire());
                }
                let (batch, trigger) = path.take_batch();
                let waited = due_at.map_or(Duration::ZERO, |due_at| due_at.elapsed());
                let span = spans::batch(&shard, &batch, trigger, waited);
                shard.count_submitted();
                let submit = tokio::spawn(settle(Arc::clone(&shard), batch, permit_for_due).instrument(span));
                in_flight.push_back(AbortOnDropHandle::new(submit));
                is_evidence_due = false;
            }
            page = pages.next(), if !path.batcher.is_full() && drain_until.is_none() && !path.is_ended => match page {
                Some(page) => path.take_page(page),
                None => {
                    tracing::error!(shard = %shard.id, "the reader failed: the shard is given up and read again");
                    metrics::counter!(SHARD_FAILURES).increment(1);
                    break;
                }
            },
            _ = tick.tick() => {
                path.observe();
                // Once due it stays so until a batch has gone: the permit that it waits for must not be forgotten.
                let is_wanted = shard.wants_evidence();
                let places = shard.max_in_flight + spare.places(is_behind, is_wanted, shard.max_in_flight);
                is_evidence_due |= is_wanted && shard.unsettled() < places;
            }
        }
        let is_done = in_flight.is_empty() && path.batcher.due_at().is_none();
        if path.is_ended && is_done {
            return Outcome::Ended;
        }
        if let Some(until) = drain_until {
            let is_over = is_done || (in_flight.is_empty() && shard.closing.is_cancelled());
            if is_over || shard.is_stuck() || Instant::now() >= until {
                break;
            }
        }
    }
    // What is settled by now counts, also where the end came first.
    while let Some(Some(Ok(settled))) = in_flight.next().now_or_never() {
        path.settled(settled, checkpoint);
    }
    Outcome::GivenUp
}

/// What to read for the shard: its dedup window's share of what was settled before, and what follows.
fn reading(shard: &ShardContext, checkpoint: &Checkpoint) -> Reading {
    let reach = shard.dedup_window + REBUILD_SLACK;
    let (from, ancestors_since) = match checkpoint {
        Checkpoint::Settled { arrived_at: time, .. } | Checkpoint::Rewound(time) => {
            let since = time - millis(reach);
            (Position::AtTime(since), Since::Time(since))
        }
        Checkpoint::Start(position) => (position.clone(), Since::BeforeFirst(reach)),
        Checkpoint::Ended => (Position::TrimHorizon, Since::BeforeFirst(reach)),
    };
    Reading { lineage: shard.lineage.clone(), from, ancestors_since }
}

/// What an earlier owner has settled: it only fills the window.
enum Rebuild {
    /// Everything up to this record.
    Through(SequenceNumber),
    /// Everything before the first record that arrived at this time or later.
    Until(UnixMillis),
}

/// The state of the path; nothing in it waits.
struct Path {
    shard: Arc<ShardContext>,
    window: Window,
    batcher: Batcher,
    rebuild: Option<Rebuild>,
    is_rebuild_told: bool,
    /// The shard's last page was taken.
    is_ended: bool,
    started: Instant,
    /// When the last page came; at first, when reading began.
    heard: Instant,
    millis_behind_latest: i64,
    /// The batches in flight, oldest first.
    submitted: VecDeque<Submitted>,
    /// This shard's part of `ingest_in_flight_records`.
    in_flight_shown: u64,
}

/// What is known of a batch while its submit has it.
struct Submitted {
    records: u64,
    first_arrival: UnixMillis,
}

impl Path {
    fn new(shard: Arc<ShardContext>, checkpoint: &Checkpoint) -> Self {
        let rebuild = match checkpoint {
            Checkpoint::Settled { sequence_number, .. } => Some(Rebuild::Through(sequence_number.clone())),
            Checkpoint::Rewound(time) => Some(Rebuild::Until(*time)),
            Checkpoint::Start(_) | Checkpoint::Ended => None,
        };
        Self {
            window: Window::new(shard.dedup_window, Arc::clone(&shard.dedup_keys)),
            batcher: Batcher::new(shard.batch),
            rebuild,
            is_rebuild_told: false,
            is_ended: false,
            started: Instant::now(),
            heard: Instant::now(),
            millis_behind_latest: 0,
            submitted: VecDeque::new(),
            in_flight_shown: 0,
            shard,
        }
    }

    fn take_page(&mut self, page: BufferedPage) {
        let BufferedPage { page, memory, is_of_ancestor } = page;
        self.heard = Instant::now();
        if is_of_ancestor {
            for record in page.records {
                if self.shard.lineage.hashes.contains(&hash(&record.partition_key)) {
                    self.remember(&record);
                }
            }
            return;
        }
        self.millis_behind_latest = page.millis_behind_latest;
        if page.records.is_empty() && page.millis_behind_latest == 0 {
            // What was settled stays so, should the stream have said too early that this is its end.
            self.tell_of_rebuild();
        }
        let mut read = 0;
        let now = self.shard.clock.now();
        for record in page.records {
            if self.is_settled_before(&record) {
                self.remember(&record);
                continue;
            }
            self.end_rebuild();
            let pushed = self.take_record(&record);
            let age = Duration::from_millis(now.saturating_sub(record.arrived_at).try_into().unwrap_or_default());
            self.batcher.advance(record, age, pushed, self.window.mark(), &memory);
            read += 1;
        }
        together(|| {
            metrics::counter!("ingest_records_read_total").increment(read);
            self.show_in_flight();
        });
        if page.is_end {
            self.is_ended = true;
            self.batcher.drain();
        }
    }

    fn is_settled_before(&self, record: &Record) -> bool {
        match &self.rebuild {
            Some(Rebuild::Through(last)) => record.sequence_number <= *last,
            Some(Rebuild::Until(time)) => record.arrived_at < *time,
            None => false,
        }
    }

    /// Puts the record where it belongs; answers what of it is to be delivered.
    fn take_record(&mut self, record: &Record) -> Option<Pushed> {
        let event = match event::parse(record, &self.shard.id, &self.shard.rules) {
            Ok(event) => event,
            Err(rejection) => {
                let letter = self.shard.letter(record, rejection.reason, rejection.detail, rejection.identity);
                self.batcher.push_letter(letter);
                return None;
            }
        };
        let (reason, detail) = match self.window.insert(&event, record.arrived_at) {
            Seen::Duplicate => {
                self.batcher.push_duplicate();
                return None;
            }
            Seen::Conflict => {
                let detail = "another event with this idempotency key and other contents came before";
                (Reason::Conflict, detail.to_owned())
            }
            Seen::New => match self.batcher.push(&event) {
                Some(pushed) => return Some(pushed),
                None => {
                    let max_bytes = self.shard.batch.max_bytes;
                    (Reason::Oversized, format!("its record alone exceeds BATCH_MAX_BYTES={max_bytes}"))
                }
            },
        };
        self.batcher.push_letter(self.shard.letter(record, reason, detail, event.identity()));
        None
    }

    /// Rebuild: the record was settled by an earlier owner of the shard, or of its parents.
    fn remember(&mut self, record: &Record) {
        if let Ok(event) = event::parse(record, &self.shard.id, &self.shard.rules) {
            self.window.insert(&event, record.arrived_at);
            self.window.settle(self.window.mark());
        }
        metrics::counter!("ingest_dedup_rebuild_records_total").increment(1);
    }

    fn end_rebuild(&mut self) {
        self.tell_of_rebuild();
        self.rebuild = None;
    }

    fn tell_of_rebuild(&mut self) {
        if self.rebuild.is_some() && !mem::replace(&mut self.is_rebuild_told, true) {
            let took = self.started.elapsed();
            metrics::histogram!("ingest_dedup_rebuild_seconds").record(took.as_secs_f64());
            tracing::info!(shard = %self.shard.id, keys = self.window.len(), ?took, "dedup window rebuilt");
        }
    }

    fn take_batch(&mut self) -> (Batch, Trigger) {
        let (batch, trigger) = self.batcher.take();
        let first_arrival = batch.first_arrival.unwrap_or(UnixMillis::MAX);
        self.submitted.push_back(Submitted { records: batch.len(), first_arrival });
        if !batch.items.is_empty() {
            metrics::counter!("ingest_batches_total", "trigger" => trigger.as_str()).increment(1);
            metrics::histogram!("ingest_batch_events").record(batch.items.len() as f64);
            metrics::histogram!("ingest_batch_bytes").record(batch.body_bytes() as f64);
        }
        (batch, trigger)
    }

    /// The oldest batch in flight is settled: the checkpoint may follow.
    fn settled(&mut self, settled: Settled, checkpoint: &watch::Sender<Checkpoint>) {
        self.submitted.pop_front();
        self.window.settle(settled.window_mark);
        together(|| {
            let outcomes = &self.shard.outcomes;
            for (outcome, total, records) in [
                ("delivered", &outcomes.delivered, settled.delivered),
                ("dead_lettered", &outcomes.dead_lettered, settled.dead_lettered),
                ("duplicate", &outcomes.duplicates, settled.duplicates),
            ] {
                total.fetch_add(records, Ordering::Relaxed);
                count(outcome, records);
            }
            self.show_in_flight();
        });
        if let Some((sequence_number, arrived_at)) = settled.last {
            checkpoint.send_replace(Checkpoint::Settled { sequence_number, arrived_at });
        }
    }

    /// Records that were read and are neither settled nor handed back: counted here, not reckoned from the outcomes, so
    /// that one that is forgotten shows as an imbalance.
    fn in_flight(&self) -> u64 {
        self.batcher.len() + self.submitted.iter().map(|batch| batch.records).sum::<u64>()
    }

    fn show_in_flight(&mut self) {
        let in_flight = self.in_flight();
        let more = in_flight as f64 - self.in_flight_shown as f64;
        metrics::gauge!("ingest_in_flight_records").increment(more);
        self.in_flight_shown = in_flight;
    }

    fn observe(&mut self) {
        self.shard.tell_of_letters();
        self.window.trim();
        let shard = self.shard.id.to_string();
        let oldest = self.submitted.front().map(|batch| batch.first_arrival).or_else(|| self.batcher.first_arrival());
        let age = oldest.map_or(Duration::ZERO, |arrival| self.shard.clock.since(arrival));
        metrics::gauge!("ingest_oldest_unsettled_seconds", "shard" => shard.clone()).set(age.as_secs_f64());
        let behind = Duration::from_millis(self.millis_behind_latest.try_into().unwrap_or_default());
        metrics::gauge!("ingest_shard_lag_seconds", "shard" => shard)
            .set((behind + self.silence()).max(age).as_secs_f64());
        metrics::gauge!("ingest_dedup_keys").set(self.shard.dedup_keys.used() as f64);
    }

    /// How long the shard has not been read. What came since then is unknown: were it not counted as lag, a stream that
    /// cannot be read would look like one that is idle.
    fn silence(&self) -> Duration {
        Some(self.heard.elapsed()).filter(|silence| *silence > SILENCE && !self.is_ended).unwrap_or_default()
    }
}

impl Drop for Path {
    /// What was read and not settled goes back to the stream: the next owner reads it again.
    fn drop(&mut self) {
        self.shard.tell_of_all_letters();
        together(|| {
            // As shown, not as counted: after a panic in the midst of a page the two differ, and that page was not read.
            count("released", self.in_flight_shown);
            metrics::gauge!("ingest_in_flight_records").decrement(self.in_flight_shown as f64);
        });
        // Until they are no longer shown.
        for name in ["ingest_oldest_unsettled_seconds", "ingest_shard_lag_seconds"] {
            metrics::gauge!(name, "shard" => self.shard.id.to_string()).set(0.0);
        }
    }
}

fn count(outcome: &'static str, events: u64) {
    metrics::counter!("ingest_events_total", "outcome" => outcome).increment(events);
}
