//! Batches of one shard: records serialised once, kept as bytes, sliced when a batch must be split.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::mem;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use shared::backend::{Record, SequenceNumber};
use shared::clock::UnixMillis;
use shared::dead_letter::DeadLetter;
use shared::event::UsageEvent;
use shared::meter_record;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// Chosen by `make bench`: level 1 takes 0.46 µs an event, level 2 0.72 for bodies 30 % smaller, level 6
/// 1.56 for bodies 40 % smaller. The account is billed by events, not by bytes, so CPU time counts.
const GZIP_LEVEL: Compression = Compression::new(1);

/// Of what a record has waited to be read, this fraction of the linger counts as lingered at most. With 1 s that is the
/// usual wait on Kinesis, where a busy shard is read five times a second; a quiet one is read more rarely, and its records
/// wait longer in all. Were more counted, a worker that catches up would send many small batches.
pub const COUNTED_FRACTION: f64 = 0.2;

/// How large a batch may grow and how long it may wait.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Most records in a batch.
    pub max_events: NonZeroUsize,
    /// Most bytes of a request body before compression.
    pub max_bytes: NonZeroUsize,
    /// How long the first record waits for company. What it has waited to be read counts, as far as
    /// [`COUNTED_FRACTION`] of it.
    pub linger: Duration,
}

/// Why a batch was sent: a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// It held `max_events`.
    Count,
    /// The next record would have made it larger than `max_bytes`.
    Bytes,
    /// Its first record had waited for `linger`.
    Linger,
    /// The shard was being given up.
    Drain,
}

impl Trigger {
    /// All triggers.
    pub const ALL: [Self; 4] = [Self::Count, Self::Bytes, Self::Linger, Self::Drain];

    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Bytes => "bytes",
            Self::Linger => "linger",
            Self::Drain => "drain",
        }
    }
}

/// One record of a batch.
pub struct Item {
    /// Where its bytes lie in [`Batch::body`].
    bytes: Range<usize>,
    /// Equal for records of one meter and tenant.
    group: u64,
    /// The record as it arrived: what a dead letter is made of.
    pub record: Record,
}

/// What [`Batcher::push`] added, to be joined with its record.
#[must_use]
pub struct Pushed {
    bytes: Range<usize>,
    group: u64,
}

/// A stretch of one shard, ready to be settled as a whole: records to deliver, dead letters to store, duplicates to
/// count. The checkpoint may pass `last` when all of it is settled.
#[derive(Default)]
pub struct Batch {
    body: Vec<u8>,
    /// The records to deliver.
    pub items: Vec<Item>,
    /// The records that were refused before they were sent.
    pub letters: Vec<DeadLetter>,
    /// The copies that were dropped.
    pub duplicates: u64,
    /// Events per meter.
    pub meters: HashMap<String, u64>,
    /// The stretch's last record, whatever became of it, and when it arrived.
    pub last: Option<(SequenceNumber, UnixMillis)>,
    /// When the stretch's first record arrived.
    pub first_arrival: Option<UnixMillis>,
    /// The dedup window's mark after this stretch.
    pub window_mark: u64,
    /// Holds the stretch's share of the buffer until it is settled.
    memory: Vec<Arc<OwnedSemaphorePermit>>,
}

impl Batch {
    /// Records of the stretch, whatever became of them.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.items.len() as u64 + self.letters.len() as u64 + self.duplicates
    }

    /// Whether the stretch holds no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all records before compression.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.body.len() + 2
    }

    /// Bytes of a request body with these items, before compression.
    #[must_use]
    pub fn bytes_of(&self, items: &[usize]) -> usize {
        items.iter().map(|&item| self.items[item].bytes.len() + 1).sum::<usize>() + 1
    }

    /// The request body for some of the items: a gzipped JSON array.
    #[must_use]
    pub fn gzip(&self, items: &[usize]) -> Bytes {
        let is_whole = items.len() == self.items.len();
        let mut encoder = GzEncoder::new(Vec::with_capacity(4096 + self.body.len() / 3), GZIP_LEVEL);
        // Writing to a Vec cannot fail.
        let _ = encoder.write_all(b"[");
        if is_whole {
            let _ = encoder.write_all(&self.body);
        } else {
            for (index, &item) in items.iter().enumerate() {
                if index > 0 {
                    let _ = encoder.write_all(b",");
                }
                let _ = encoder.write_all(&self.body[self.items[item].bytes.clone()]);
            }
        }
        let _ = encoder.write_all(b"]");
        encoder.finish().unwrap_or_default().into()
    }

    /// Two halves of `items`, cut between two (meter, tenant) groups where there are several.
    #[must_use]
    pub fn split(&self, mut items: Vec<usize>) -> (Vec<usize>, Vec<usize>) {
        items.sort_by_key(|&item| (self.items[item].group, item));
        let group = |index: usize| self.items[items[index]].group;
        let middle = items.len() / 2;
        let boundary = (1..items.len())
            .filter(|&index| group(index - 1) != group(index))
            .min_by_key(|index| index.abs_diff(middle));
        let right = items.split_off(boundary.unwrap_or(middle));
        (items, right)
    }
}

/// Fills batches in stream order.
pub struct Batcher {
    limits: BatchLimits,
    open: Batch,
    opened_at: Option<Instant>,
    full: VecDeque<(Batch, Trigger)>,
    draining: bool,
}

impl Batcher {
    /// An empty batcher.
    #[must_use]
    pub fn new(limits: BatchLimits) -> Self {
        Self { limits, open: Batch::default(), opened_at: None, full: VecDeque::new(), draining: false }
    }

    /// Adds an event's record to the body; `None`: it alone is larger than a request may be, and it was not added.
    ///
    /// The event borrows from what it was read from, so that comes later, with [`advance`](Self::advance).
    #[must_use]
    pub fn push(&mut self, event: &UsageEvent<'_>) -> Option<Pushed> {
        let start = self.open.body.len();
        let comma = usize::from(start > 0);
        self.open.body.extend_from_slice(&b","[..comma]);
        meter_record::write(event, &mut self.open.body);
        let bytes = start + comma..self.open.body.len();
        if bytes.len() + 2 > self.limits.max_bytes.get() {
            self.open.body.truncate(start);
            return None;
        }
        let bytes = if self.open.body_bytes() > self.limits.max_bytes.get() {
            let serialised = self.open.body.split_off(bytes.start);
            self.open.body.truncate(start);
            self.close(Trigger::Bytes);
            self.open.body = serialised;
            0..self.open.body.len()
        } else {
            bytes
        };
        match self.open.meters.get_mut(event.meter_api_name.as_ref()) {
            Some(count) => *count += 1,
            None => _ = self.open.meters.insert(event.meter_api_name.to_string(), 1),
        }
        Some(Pushed { bytes, group: group(event) })
    }

    /// Adds a dead letter.
    pub fn push_letter(&mut self, letter: DeadLetter) {
        self.open.letters.push(letter);
    }

    /// Counts a duplicate.
    pub fn push_duplicate(&mut self) {
        self.open.duplicates += 1;
    }

    /// Ends the handling of `record`, of which `pushed` was added: the open batch now reaches up to it. The record arrived
    /// `age` ago.
    pub fn advance(
        &mut self,
        record: Record,
        age: Duration,
        pushed: Option<Pushed>,
        window_mark: u64,
        memory: &Arc<OwnedSemaphorePermit>,
    ) {
        if self.opened_at.is_none() {
            let (now, counted) = (Instant::now(), age.min(self.limits.linger.mul_f64(COUNTED_FRACTION)));
            self.opened_at = now.checked_sub(counted).or(Some(now));
        }
        match &mut self.open.last {
            // Written over, not allocated anew: this runs for every record.
            Some((sequence_number, arrived_at)) => {
                sequence_number.0.clone_from(&record.sequence_number.0);
                *arrived_at = record.arrived_at;
            }
            last => *last = Some((record.sequence_number.clone(), record.arrived_at)),
        }
        self.open.first_arrival.get_or_insert(record.arrived_at);
        self.open.window_mark = window_mark;
        if self.open.memory.last().is_none_or(|last| !Arc::ptr_eq(last, memory)) {
            self.open.memory.push(Arc::clone(memory));
        }
        if let Some(Pushed { bytes, group }) = pushed {
            self.open.items.push(Item { bytes, group, record });
        }
        let max_events = self.limits.max_events.get();
        if self.open.items.len() >= max_events || self.open.letters.len() >= max_events {
            self.close(Trigger::Count);
        }
    }

    /// Records that were added and not taken, whatever became of them.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.full.iter().map(|(batch, _)| batch.len()).sum::<u64>() + self.open.len()
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a batch is full: no more pages until it is taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// From now on everything is due at once.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// When the next batch is due; `None` while there is nothing.
    #[must_use]
    pub fn due_at(&self) -> Option<Instant> {
        let opened_at = self.opened_at;
        match self.full.front() {
            Some(_) => Some(Instant::now()),
            None if self.draining => opened_at,
            None => opened_at.map(|at| at + self.limits.linger),
        }
    }

    /// Whether the next batch holds records to deliver, so that it needs a permit.
    #[must_use]
    pub fn needs_permit(&self) -> bool {
        !self.full.front().map_or(&self.open, |(batch, _)| batch).items.is_empty()
    }

    /// When the oldest record that is still here arrived.
    #[must_use]
    pub fn first_arrival(&self) -> Option<UnixMillis> {
        self.full.front().map_or(&self.open, |(batch, _)| batch).first_arrival
    }

    /// The next batch in stream order; it may be empty.
    pub fn take(&mut self) -> (Batch, Trigger) {
        if self.full.is_empty() {
            self.close(if self.draining { Trigger::Drain } else { Trigger::Linger });
        }
        self.full.pop_front().unwrap_or((Batch::default(), Trigger::Linger))
    }

    fn close(&mut self, trigger: Trigger) {
        // The next batch will be about as large: it need not grow into that by copying.
        let next = Batch {
            body: Vec::with_capacity(self.open.body.len()),
            items: Vec::with_capacity(self.open.items.len()),
            ..Batch::default()
        };
        let batch = mem::replace(&mut self.open, next);
        self.opened_at = None;
        if !batch.is_empty() {
            self.full.push_back((batch, trigger));
        }
    }
}

/// A collision puts two groups together, which costs a request; so a fixed key will do, and isolation is repeatable.
fn group(event: &UsageEvent<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&event.meter_api_name, &event.tenant_id).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use shared::backend::SequenceNumber;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_a_record_waited_to_be_read_counts_but_not_for_much() {
        let linger = Duration::from_secs(1);
        let limits = BatchLimits { max_events: NonZeroUsize::MIN, max_bytes: NonZeroUsize::MIN, linger };
        let memory = Arc::new(Arc::new(Semaphore::new(0)).try_acquire_many_owned(0).unwrap());
        for (age, due_in) in [(0, 1000), (150, 850), (200, 800), (86_400_000, 800)] {
            let mut batcher = Batcher::new(limits);
            for age in [age, 0] {
                let sequence_number = SequenceNumber("1".to_owned());
                let record =
                    Record { data: Bytes::new(), partition_key: String::new(), sequence_number, arrived_at: 0 };
                batcher.push_duplicate();
                batcher.advance(record, Duration::from_millis(age), None, 0, &memory);
            }
            assert_eq!(batcher.due_at(), Some(Instant::now() + Duration::from_millis(due_in)), "{age}");
        }
    }
}
