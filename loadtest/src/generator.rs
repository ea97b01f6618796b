//! The application plane's events: 50 tenants, 5 meters, and the mistakes that producers make.
//!
//! Every event carries a `uniqueId`. Without one, a PutEvents call whose answer is lost cannot be repeated safely: the
//! copy gets a new event id and is a new event for everyone behind EventBridge, so there would be nothing to audit.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use shared::clock::UnixMillis;
use shared::reason::Reason;

use crate::faults::POISON_PREFIX;
use crate::truth::{MalformedEvent, Origin, Truth, ValidEvent, Variant};

/// How many tenants use the application.
pub const TENANTS: u64 = 50;
/// What is metered.
pub const METERS: [&str; 5] =
    ["api-calls", "storage-gb-hours", "compute-seconds", "data-transfer-bytes", "active-seats"];

/// One event in so many is a mistake or a retry. Fixed places instead of chance, so that a short run has all of them.
const MALFORMED_EVERY: u64 = 200;
const RETRIED_EVERY: u64 = 20;
const CONFLICT_EVERY: u64 = 500;
/// Rarer, because each costs some 20 requests: it is found by halving, and the account has 10 requests a second.
const POISON_EVERY: u64 = 20_000;

const REGIONS: [&str; 3] = ["eu-west-1", "us-east-1", "ap-south-1"];
const PLANS: [&str; 3] = ["free", "pro", "enterprise"];

/// One entry of a PutEvents call.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it carries.
    pub origin: Origin,
    /// Its `detail`.
    pub detail: Arc<str>,
}

/// Makes entries, and writes down what they are in the [`Truth`].
pub struct Generator {
    rng: Rng,
    truth: Arc<Mutex<Truth>>,
    made: u64,
    /// Retries and conflicts that come after their event, by the time they are due.
    later: BinaryHeap<Reverse<(Duration, u64)>>,
    later_entries: BTreeMap<u64, Entry>,
}

impl Generator {
    /// The same `seed` gives the same events, but for their times.
    #[must_use]
    pub fn new(seed: u64, truth: Arc<Mutex<Truth>>) -> Self {
        let (later, later_entries) = (BinaryHeap::new(), BTreeMap::new());
        Self { rng: Rng::with_seed(seed), truth, made: 0, later, later_entries }
    }

    /// The next entry, `elapsed` into the run, at the wall time `now`.
    pub fn next(&mut self, elapsed: Duration, now: UnixMillis) -> Entry {
        if self.later.peek().is_some_and(|Reverse((due, _))| *due <= elapsed)
            && let Some(entry) = self.take_later()
        {
            return entry;
        }
        let number = self.made;
        self.made += 1;
        if number % MALFORMED_EVERY == MALFORMED_EVERY / 3 {
            return self.malformed(number, now);
        }
        let event = self.valid(number, now);
        let (value, detail) = (event.variants[0].value.clone(), Arc::clone(&event.variants[0].detail));
        let conflict = (number % CONFLICT_EVERY == CONFLICT_EVERY / 2).then(|| another_value(&value, &detail));
        let index = self.push(event, conflict.clone());
        let first = Entry { origin: Origin::Valid { event: index, variant: 0 }, detail };
        if number.is_multiple_of(RETRIED_EVERY) {
            // Half the retries follow in the same call, and half come in a later one with a new envelope time.
            let is_later = number.is_multiple_of(2 * RETRIED_EVERY);
            let delay = if is_later { self.millis(1000..3000) } else { Duration::ZERO };
            self.put_off(elapsed + delay, first.clone());
        }
        if let Some(variant) = conflict {
            let delay = self.millis(0..1500);
            let origin = Origin::Valid { event: index, variant: 1 };
            self.put_off(elapsed + delay, Entry { origin, detail: variant.detail });
        }
        first
    }

    /// Retries and conflicts that are not due yet: the run is over.
    pub fn rest(&mut self) -> Vec<Entry> {
        std::iter::from_fn(|| self.take_later()).collect()
    }

    fn take_later(&mut self) -> Option<Entry> {
        let Reverse((_, ticket)) = self.later.pop()?;
        self.later_entries.remove(&ticket)
    }

    fn put_off(&mut self, due: Duration, entry: Entry) {
        let ticket = self.later_entries.last_key_value().map_or(0, |(last, _)| last + 1);
        self.later_entries.insert(ticket, entry);
        self.later.push(Reverse((due, ticket)));
    }

    fn push(&self, mut event: ValidEvent, conflict: Option<Variant>) -> usize {
        event.variants.extend(conflict);
        let mut truth = self.truth.lock().unwrap_or_else(PoisonError::into_inner);
        truth.valid.push(event);
        truth.valid.len() - 1
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(range))
    }

    fn tenant(&mut self) -> String {
        // A few tenants make most of the traffic, so that shards are not equally busy.
        let skewed = self.rng.f64().powi(2) * TENANTS as f64;
        format!("tenant-{:02}", skewed as u64 + 1)
    }

    fn valid(&mut self, number: u64, now: UnixMillis) -> ValidEvent {
        let tenant = self.tenant();
        let meter = METERS[self.rng.usize(..METERS.len())];
        let value = match meter {
            "api-calls" => self.rng.u64(1..20).to_string(),
            // Sums of quarters are exact in floating point, so totals can be compared to the last digit.
            "storage-gb-hours" => format!("{}.{}", self.rng.u64(0..500), ["25", "75"][self.rng.usize(..2)]),
            "compute-seconds" => self.rng.u64(1..3600).to_string(),
            "data-transfer-bytes" => self.rng.u64(1..5_000_000_000).to_string(),
            _ => self.rng.u64(1..5).to_string(),
        };
        let is_poison = number % POISON_EVERY == POISON_EVERY / 20 + 1;
        let unique_id = format!("{}{number:08}", if is_poison { POISON_PREFIX } else { "event-" });
        let time = self.rng.bool().then(|| now - self.rng.i64(0..5000));
        let region = REGIONS[self.rng.usize(..REGIONS.len())];
        let plan = PLANS[self.rng.usize(..PLANS.len())];
        let time_field = time.map_or(String::new(), |time| format!(r#""meterTimeInMillis":{time},"#));
        // Some producers send numbers as text; both must be billed alike.
        let quote = if number.is_multiple_of(7) { "\"" } else { "" };
        let detail = format!(r#"{{"tenantId":"{tenant}","meterApiName":"{meter}","meterValue":{quote}{value}{quote},"#)
            + &format!(
                r#""uniqueId":"{unique_id}",{time_field}"region":"{region}","dimensions":{{"plan":"{plan}"}}}}"#
            );
        let dimensions = [("plan", plan), ("region", region)].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let variant = Variant { value, detail: detail.into(), acknowledged: 0, sent: None };
        ValidEvent { tenant, meter, unique_id, time, dimensions: dimensions.into(), variants: vec![variant], is_poison }
    }

    fn malformed(&mut self, number: u64, now: UnixMillis) -> Entry {
        let tenant = format!(r#""tenantId":"{}""#, self.tenant());
        let meter = format!(r#""meterApiName":"{}""#, METERS[self.rng.usize(..METERS.len())]);
        let id = format!(r#""uniqueId":"malformed-{number:08}""#);
        let (long_ago, far_ahead) = (now - 90 * 86_400_000, now + 7_200_000);
        let kinds = [
            (Reason::MissingField, format!(r#"{{{meter},{id},"meterValue":1}}"#)),
            (Reason::MissingField, format!(r#"{{{tenant},{meter},{id}}}"#)),
            (Reason::InvalidField, format!(r#"{{"tenantId":"",{meter},{id},"meterValue":1}}"#)),
            (Reason::InvalidField, format!(r#"{{{tenant},"meterApiName":{{"name":"x"}},{id},"meterValue":1}}"#)),
            (Reason::InvalidMeterValue, format!(r#"{{{tenant},{meter},{id}, "meterValue": "a lot"}}"#)),
            (Reason::InvalidMeterValue, format!(r#"{{{tenant},{meter},{id},"meterValue":[1]}}"#)),
            (Reason::TooOld, format!(r#"{{{tenant},{meter},{id},"meterValue":1,"meterTimeInMillis":{long_ago}}}"#)),
            (
                Reason::TooFarAhead,
                format!(r#"{{{tenant},{meter},{id},"meterValue":1,"meterTimeInMillis":{far_ahead}}}"#),
            ),
            (Reason::AfloDimension, format!(r#"{{{tenant},{meter},{id},"meterValue":1,"aflo.cancel":"yes"}}"#)),
            (Reason::ReservedDimension, format!(r#"{{{tenant},{meter},{id},"meterValue":1,"metering:redrive":"1"}}"#)),
            (Reason::NotAnObject, format!(r#"{{{tenant},{meter},{id},"meterValue":1,"dimensions":["\u00e4\t"]}}"#)),
        ];
        let kind = (number / MALFORMED_EVERY) as usize % kinds.len();
        let (reason, detail) = (kinds[kind].0, Arc::<str>::from(kinds[kind].1.as_str()));
        let mut truth = self.truth.lock().unwrap_or_else(PoisonError::into_inner);
        truth.malformed.push(MalformedEvent { detail: Arc::clone(&detail), reason, acknowledged: 0 });
        Entry { origin: Origin::Malformed(truth.malformed.len() - 1), detail }
    }
}

/// The same event with a digit more before its value.
fn another_value(value: &str, detail: &str) -> Variant {
    let other = format!("9{value}");
    let marker = r#""meterValue":"#;
    let detail = match detail.contains(r#""meterValue":""#) {
        true => detail.replace(&format!(r#"{marker}"{value}""#), &format!(r#"{marker}"{other}""#)),
        false => detail.replace(&format!("{marker}{value},"), &format!("{marker}{other},")),
    };
    Variant { value: other, detail: detail.into(), acknowledged: 0, sent: None }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn run(seed: u64, entries: usize) -> (Vec<Entry>, Truth) {
        let truth = Arc::new(Mutex::new(Truth::default()));
        let mut generator = Generator::new(seed, Arc::clone(&truth));
        let step = Duration::from_millis(5);
        let mut made: Vec<_> = (0..entries).map(|i| generator.next(step * i as u32, 1_790_000_000_000)).collect();
        made.extend(generator.rest());
        drop(generator);
        (made, Arc::try_unwrap(truth).unwrap().into_inner().unwrap())
    }

    #[test]
    fn makes_every_kind_of_mistake_in_the_promised_share() {
        let (entries, truth) = run(1, 8000);
        let conflicts = truth.valid.iter().filter(|event| event.variants.len() > 1).count();
        let originals = truth.valid.len() + truth.malformed.len();
        let copies = entries.len() - originals - conflicts;
        assert!((380..=400).contains(&copies), "{copies} copies: 5 %");
        assert!((35..=40).contains(&truth.malformed.len()), "{}: 0.5 %", truth.malformed.len());
        assert!((14..=16).contains(&conflicts), "{conflicts}");
        assert!(truth.valid.iter().filter(|event| event.is_poison).count() >= 1);
        assert!(truth.valid.iter().any(|event| event.time.is_some()));
        assert!(truth.valid.iter().any(|event| event.time.is_none()));
        let tenants: HashSet<_> = truth.valid.iter().map(|event| &event.tenant).collect();
        assert_eq!(tenants.len() as u64, TENANTS);
    }

    #[test]
    fn details_are_json_and_unlike_each_other() {
        let (_, truth) = run(2, 5000);
        let variants = truth.valid.iter().flat_map(|event| &event.variants);
        let details: Vec<_> = variants.map(|v| &v.detail).chain(truth.malformed.iter().map(|m| &m.detail)).collect();
        assert_eq!(details.iter().collect::<HashSet<_>>().len(), details.len());
        for detail in &details {
            serde_json::from_str::<serde_json::Value>(detail).unwrap();
        }
        for event in truth.valid.iter().filter(|event| event.variants.len() > 1) {
            let value = |variant: &Variant| {
                let json: serde_json::Value = serde_json::from_str(&variant.detail).unwrap();
                json["meterValue"].to_string().trim_matches('"').to_owned()
            };
            assert_eq!(
                event.variants.iter().map(value).collect::<Vec<_>>(),
                [&*event.variants[0].value, &*event.variants[1].value]
            );
        }
    }

    #[test]
    fn repeats_with_its_seed() {
        let texts = |seed| run(seed, 300).0.into_iter().map(|entry| entry.detail).collect::<Vec<_>>();
        assert_eq!(texts(7), texts(7));
        assert_ne!(texts(7), texts(8));
    }
}
