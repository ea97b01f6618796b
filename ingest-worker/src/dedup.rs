//! The dedup window of one shard: which events were seen lately, and whether a copy says the same.
//!
//! All copies of one event reach one shard, so no store is shared. Per event the window keeps 28 bytes in arrival order
//! plus 5 bytes in a hash index; nothing of the event itself.

use std::collections::VecDeque;
use std::hash::Hasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hashbrown::HashTable;
use shared::clock::UnixMillis;
use shared::event::UsageEvent;
use siphasher::sip128::{Hasher128 as _, SipHasher13};

/// Entries are allocated in chunks, so that a growing window is never copied and a shrinking one gives memory back.
const CHUNK: usize = 4096;

/// What the window knows of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: it was added.
    New,
    /// The same event was seen before.
    Duplicate,
    /// An event with this idempotency key was seen before, but it said something else.
    Conflict,
}

/// The keys that all windows of a worker hold together, and how many they may.
#[derive(Debug)]
pub struct KeyBudget {
    used: AtomicUsize,
    windows: AtomicUsize,
    max: usize,
}

impl KeyBudget {
    /// Room for `max` keys.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), windows: AtomicUsize::new(0), max })
    }

    /// Keys held now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// How many keys there may be.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    /// Whether a window of `len` keys has to give some up: only one that holds more than its equal share, or an idle
    /// shard's keys would leave no room for those of a busy one.
    fn is_over(&self, len: usize) -> bool {
        self.used() > self.max && len > self.max / self.windows.load(Ordering::Relaxed).max(1)
    }
}

/// 28 bytes; the fields are 32-bit words so that nothing is lost to alignment.
struct Entry {
    key: [u32; 4],
    fingerprint: [u32; 2],
    /// Seconds since the window's epoch.
    arrived: u32,
}

/// The window of one shard.
///
/// It runs on stream arrival time, never on wall time: a replay sees the same window as the first pass. A key whose
/// event is not settled yet never leaves, whatever its age.
pub struct Window {
    hash_key: [u8; 16],
    span: u32,
    budget: Arc<KeyBudget>,
    chunks: VecDeque<Vec<Entry>>,
    /// Positions of entries, as the low 32 bits of their number; numbers ascend from 0 for the life of the window.
    index: HashTable<u32>,
    /// The number of the first entry in `chunks`, and of the oldest entry that is still a member.
    base: u64,
    oldest: u64,
    next: u64,
    settled: u64,
    epoch: Option<UnixMillis>,
    newest_arrival: u32,
}

impl Window {
    /// An empty window that remembers events for `span` of arrival time.
    #[must_use]
    pub fn new(span: Duration, budget: Arc<KeyBudget>) -> Self {
        budget.windows.fetch_add(1, Ordering::Relaxed);
        Self {
            hash_key: uuid::Uuid::new_v4().into_bytes(),
            // Arrivals are kept in whole seconds: one more, so that no key leaves early.
            span: u32::try_from(span.as_secs()).unwrap_or(u32::MAX).saturating_add(1),
            budget,
            chunks: VecDeque::new(),
            index: HashTable::new(),
            base: 0,
            oldest: 0,
            next: 0,
            settled: 0,
            epoch: None,
            newest_arrival: 0,
        }
    }

    /// Looks the event up, and adds it where it is new.
    pub fn insert(&mut self, event: &UsageEvent<'_>, arrived_at: UnixMillis) -> Seen {
        let (key, fingerprint) = (self.key(event), self.fingerprint(event));
        let epoch = *self.epoch.get_or_insert(arrived_at);
        let arrived = u32::try_from((arrived_at - epoch).max(0) / 1000).unwrap_or(u32::MAX);
        self.newest_arrival = self.newest_arrival.max(arrived);
        // Before the search: what a replay would not see any more is not seen now.
        self.trim();
        let found = self.index.find(table_hash(key), |&slot| self.entry(slot).key == key);
        if let Some(&slot) = found {
            return if self.entry(slot).fingerprint == fingerprint { Seen::Duplicate } else { Seen::Conflict };
        }
        self.push(Entry { key, fingerprint, arrived: self.newest_arrival });
        Seen::New
    }

    /// The number that the next new event will have; what is below it can be settled.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.next
    }

    /// Everything below `mark` is settled and may leave when its time comes.
    pub fn settle(&mut self, mark: u64) {
        self.settled = self.settled.max(mark);
    }

    /// Keys held.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(self.next - self.oldest).unwrap_or(usize::MAX)
    }

    /// Whether no key is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.next == self.oldest
    }

    /// Bytes allocated for keys and index.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        self.chunks.len() * CHUNK * size_of::<Entry>() + self.index.allocation_size()
    }

    fn push(&mut self, entry: Entry) {
        if self.chunks.back().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push_back(Vec::with_capacity(CHUNK));
        }
        let hash = table_hash(entry.key);
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.push(entry);
        }
        let (chunks, base) = (&self.chunks, self.base);
        self.index.insert_unique(hash, self.next as u32, |&slot| table_hash(at(chunks, base, slot).key));
        self.next += 1;
        self.budget.used.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets keys go that are settled and too old, or, over budget, the oldest that are settled. To be called now and then
    /// where nothing is inserted.
    pub fn trim(&mut self) {
        while self.oldest < self.settled {
            let oldest = self.entry(self.oldest as u32);
            let expired = self.newest_arrival - oldest.arrived > self.span;
            if !expired && !self.budget.is_over(self.len()) {
                break;
            }
            if !expired {
                metrics::counter!("ingest_dedup_evicted_total").increment(1);
            }
            let (hash, slot) = (table_hash(oldest.key), self.oldest as u32);
            if let Ok(found) = self.index.find_entry(hash, |&other| other == slot) {
                found.remove();
            }
            self.oldest += 1;
            self.budget.used.fetch_sub(1, Ordering::Relaxed);
            if self.oldest - self.base == CHUNK as u64 {
                self.chunks.pop_front();
                self.base = self.oldest;
                self.shrink_index();
            }
        }
    }

    fn shrink_index(&mut self) {
        if self.index.capacity() > 8 * CHUNK && self.index.len() < self.index.capacity() / 8 {
            let (chunks, base) = (&self.chunks, self.base);
            self.index.shrink_to(2 * self.index.len(), |&slot| table_hash(at(chunks, base, slot).key));
        }
    }

    fn entry(&self, slot: u32) -> &Entry {
        at(&self.chunks, self.base, slot)
    }

    /// (tenant, meter, uniqueId, redrive count): a redriven event is not its own duplicate.
    fn key(&self, event: &UsageEvent<'_>) -> [u32; 4] {
        let mut hasher = SipHasher13::new_with_key(&self.hash_key);
        write_field(&mut hasher, event.tenant_id.as_bytes());
        write_field(&mut hasher, event.meter_api_name.as_bytes());
        write_field(&mut hasher, event.unique_id.as_bytes());
        hasher.write_u32(event.redrive_count);
        words(hasher.finish128().as_u128())
    }

    /// What a copy must agree on. The time counts only where the producer gave it: a retried PutEvents has a new
    /// envelope time.
    fn fingerprint(&self, event: &UsageEvent<'_>) -> [u32; 2] {
        let mut hasher = SipHasher13::new_with_key(&self.hash_key);
        write_field(&mut hasher, event.meter_value.as_bytes());
        hasher.write_i64(if event.time_from_detail { event.meter_time } else { UnixMillis::MIN });
        for (name, value) in &event.dimensions {
            write_field(&mut hasher, name.as_bytes());
            write_field(&mut hasher, value.as_bytes());
        }
        let [a, b, ..] = words(hasher.finish128().as_u128());
        [a, b]
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.len(), Ordering::Relaxed);
        self.budget.windows.fetch_sub(1, Ordering::Relaxed);
    }
}

/// `slot` is the low half of a number that is less than 2^32 above `base`.
fn at(chunks: &VecDeque<Vec<Entry>>, base: u64, slot: u32) -> &Entry {
    let offset = slot.wrapping_sub(base as u32) as usize;
    &chunks[offset / CHUNK][offset % CHUNK]
}

/// The key is a keyed hash already: any 64 of its bits serve the table.
fn table_hash(key: [u32; 4]) -> u64 {
    u64::from(key[0]) << 32 | u64::from(key[1])
}

fn words(value: u128) -> [u32; 4] {
    [value as u32, (value >> 32) as u32, (value >> 64) as u32, (value >> 96) as u32]
}

/// Length-prefixed, so that no two lists of fields give the same bytes.
fn write_field(hasher: &mut SipHasher13, field: &[u8]) {
    hasher.write_u64(field.len() as u64);
    hasher.write(field);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    fn event(id: &str) -> UsageEvent<'_> {
        UsageEvent {
            tenant_id: Cow::Borrowed("t"),
            meter_api_name: Cow::Borrowed("m"),
            meter_value: Cow::Borrowed("1"),
            unique_id: Cow::Borrowed(id),
            meter_time: 5,
            time_from_detail: false,
            dimensions: vec![(Cow::Borrowed("a"), Cow::Borrowed("b"))],
            redrive_count: 0,
        }
    }

    fn window(seconds: u64, max: usize) -> Window {
        Window::new(Duration::from_secs(seconds), KeyBudget::new(max))
    }

    #[test]
    fn copies_are_duplicates_and_changed_copies_conflicts() {
        let mut window = window(60, 100);
        assert_eq!(window.insert(&event("1"), 0), Seen::New);
        assert_eq!(window.insert(&event("1"), 9), Seen::Duplicate);
        let with_envelope_time = UsageEvent { meter_time: 6, ..event("1") };
        assert_eq!(window.insert(&with_envelope_time, 9), Seen::Duplicate, "only the envelope's time differs");
        let with_own_time = UsageEvent { time_from_detail: true, ..event("1") };
        assert_eq!(window.insert(&with_own_time, 9), Seen::Conflict);
        assert_eq!(window.insert(&UsageEvent { meter_value: "2".into(), ..event("1") }, 9), Seen::Conflict);
        assert_eq!(window.insert(&UsageEvent { dimensions: vec![], ..event("1") }, 9), Seen::Conflict);
        for other in [
            UsageEvent { tenant_id: "u".into(), ..event("1") },
            UsageEvent { meter_api_name: "n".into(), ..event("1") },
            UsageEvent { redrive_count: 1, ..event("1") },
            UsageEvent { tenant_id: "tm".into(), meter_api_name: "".into(), ..event("1") },
        ] {
            assert_eq!(window.insert(&other, 9), Seen::New, "{other:?}");
        }
    }

    #[test]
    fn only_settled_keys_leave() {
        let mut window = window(10, 1000);
        window.insert(&event("1"), 0);
        window.insert(&event("2"), 60_000);
        assert_eq!(window.len(), 2, "the first is old but in flight");
        window.settle(1);
        window.insert(&event("3"), 61_000);
        assert_eq!(window.len(), 2);
        assert_eq!(window.insert(&event("1"), 61_000), Seen::New);
    }

    #[test]
    fn arrival_that_steps_back_does_not_shorten_the_window() {
        let mut window = window(10, 1000);
        window.insert(&event("1"), 100_000);
        window.insert(&event("2"), 50_000);
        window.settle(window.mark());
        window.insert(&event("3"), 110_000);
        assert_eq!(window.insert(&event("2"), 110_000), Seen::Duplicate);
    }

    #[test]
    fn the_budget_bounds_all_windows_together() {
        let budget = KeyBudget::new(10_000);
        let mut windows: Vec<Window> =
            (0..3).map(|_| Window::new(Duration::from_secs(3600), Arc::clone(&budget))).collect();
        for n in 0..20_000 {
            let window = &mut windows[n % 3];
            window.insert(&event(&n.to_string()), 0);
            window.settle(window.mark());
        }
        assert!((9_990..=10_003).contains(&budget.used()), "{}", budget.used());
        assert_eq!(windows.iter().map(Window::len).sum::<usize>(), budget.used());
        assert_eq!(windows[19_999 % 3].insert(&event("19999"), 0), Seen::Duplicate);
        drop(windows);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn an_idle_window_leaves_room_for_a_busy_one() {
        let budget = KeyBudget::new(1000);
        let (mut idle, mut busy) =
            (Window::new(Duration::from_secs(120), Arc::clone(&budget)), Window::new(Duration::from_secs(120), budget));
        let insert = |window: &mut Window, id: &str, at: i64| {
            let seen = window.insert(&event(id), at);
            window.settle(window.mark());
            seen
        };
        for n in 0..1000 {
            insert(&mut idle, &n.to_string(), 0);
        }
        for n in 0..400_i64 {
            let at = 86_400_000 + n * 10;
            assert_eq!(insert(&mut busy, &n.to_string(), at), Seen::New);
            assert_eq!(insert(&mut busy, &(n - 100).max(0).to_string(), at), Seen::Duplicate, "{n}");
        }
        idle.trim();
        assert_eq!((idle.len(), busy.len()), (600, 400));
    }

    #[test]
    fn a_copy_after_the_window_is_new_also_where_nothing_else_came() {
        let mut window = window(10, 1000);
        window.insert(&event("1"), 0);
        window.settle(1);
        assert_eq!(window.insert(&event("1"), 86_400_000), Seen::New);
    }

    #[test]
    fn a_key_costs_at_most_40_bytes() {
        let mut window = window(3600, 2_000_000);
        for n in 0..1_000_000_u32 {
            window.insert(&event(&n.to_string()), 0);
            window.settle(window.mark());
        }
        let per_key = window.allocated_bytes() as f64 / 1e6;
        assert!(per_key <= 40.0, "{per_key} bytes per key");
    }

    proptest::proptest! {
        /// The window against an obvious model: a map from id to arrival.
        #[test]
        fn agrees_with_a_model(steps in proptest::collection::vec((0..40_u8, 0..4000_i64), 1..300)) {
            let mut window = window(10, 1_000_000);
            let mut model: std::collections::HashMap<u8, i64> = std::collections::HashMap::new();
            let mut now = 0;
            for (id, step) in steps {
                now += step - step % 1000;
                let seen = window.insert(&event(&id.to_string()), now);
                window.settle(window.mark());
                let known = model.get(&id).is_some_and(|arrived| now - arrived <= 11_000);
                if seen == Seen::New {
                    proptest::prop_assert!(!known, "{id} was forgotten early");
                    model.insert(id, now);
                } else {
                    proptest::prop_assert!(model.contains_key(&id));
                }
            }
        }
    }
}
