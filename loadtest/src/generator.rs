//! The application plane's events: of many tenants and some meters, with the mistakes that producers make.
//!
//! Every event carries a `uniqueId`. Without one, a PutEvents call whose answer is lost cannot be repeated safely: the
//! copy gets a new event id and is a new event for everyone behind EventBridge, so there would be nothing to audit.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use shared::clock::UnixMillis;
use shared::reason::Reason;

use crate::faults::POISON_PREFIX;
use crate::mix::{Mix, Places, Tenants};
use crate::truth::{MalformedEvent, Origin, ValidEvent, Variant, Witness};

const REGIONS: [&str; 3] = ["eu-west-1", "us-east-1", "ap-south-1"];
const PLANS: [&str; 3] = ["free", "pro", "enterprise"];

/// One entry of a call to a target.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it carries.
    pub origin: Origin,
    /// Whose usage it is. A malformed event may not say so itself.
    pub tenant: Arc<str>,
    /// Its `detail`.
    pub detail: Arc<str>,
}

/// Makes entries, and tells the witness what they are.
pub struct Generator<W> {
    rng: Rng,
    mix: Mix,
    tenants: Tenants,
    names: Vec<Arc<str>>,
    witness: W,
    places: Mistakes,
    made: u64,
    valid: usize,
    malformed: usize,
    retried: u64,
    /// Retries and conflicts that come after their event, by the time they are due.
    later: BinaryHeap<Reverse<(Duration, u64)>>,
    later_entries: BTreeMap<u64, Entry>,
    filling: String,
    dimensions: HashMap<(usize, usize, usize), Arc<BTreeMap<String, String>>>,
}

struct Mistakes {
    malformed: Places,
    retried: Places,
    conflict: Places,
    poison: Places,
}

impl<W: Witness> Generator<W> {
    /// The same `seed` and mix give the same events, but for their times.
    #[must_use]
    pub fn new(mix: Mix, seed: u64, witness: W) -> Self {
        let mut rng = Rng::with_seed(seed);
        let places = Mistakes {
            malformed: Places::new(mix.malformed, 1.0 / 3.0),
            retried: Places::new(mix.duplicates, 0.0),
            conflict: Places::new(mix.conflicts, 0.5),
            poison: Places::new(mix.poison, 0.05),
        };
        let dash = if mix.run.is_empty() { "" } else { "-" };
        let name = |number| Arc::from(format!("tenant-{}{dash}{number:02}", mix.run));
        Self {
            tenants: Tenants::new(mix.tenants, mix.skew),
            names: (1..=mix.tenants.max(1)).map(name).collect(),
            filling: std::iter::repeat_with(|| rng.alphanumeric()).take(mix.size).collect(),
            mix: Mix { run: format!("{}{dash}", mix.run), ..mix },
            rng,
            witness,
            places,
            made: 0,
            valid: 0,
            malformed: 0,
            retried: 0,
            later: BinaryHeap::new(),
            later_entries: BTreeMap::new(),
            dimensions: HashMap::new(),
        }
    }

    /// Whom it tells.
    pub fn witness(&mut self) -> &mut W {
        &mut self.witness
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
        if self.places.malformed.has(number) {
            return self.malformed(number, now);
        }
        // Counted among themselves, or two kinds of mistakes could always meet.
        let place = self.valid as u64;
        let mut event = self.valid(number, now);
        let (tenant, detail) = (Arc::from(event.tenant.as_str()), Arc::clone(&event.variants[0].detail));
        let conflict = self.places.conflict.has(place).then(|| another_value(&event.variants[0].value, &detail));
        event.variants.extend(conflict.clone());
        self.witness.valid(event);
        let index = self.valid;
        self.valid += 1;
        let first = Entry { origin: Origin::Valid { event: index, variant: 0 }, tenant, detail };
        if self.places.retried.has(place) {
            // Half the retries follow in the same call, and half come in a later one with a new envelope time.
            let is_later = self.retried.is_multiple_of(2);
            self.retried += 1;
            let delay = if is_later { self.millis(1000..3000) } else { Duration::ZERO };
            self.put_off(elapsed + delay, first.clone());
        }
        if let Some(variant) = conflict {
            let delay = self.millis(0..1500);
            let origin = Origin::Valid { event: index, variant: 1 };
            self.put_off(elapsed + delay, Entry { origin, detail: variant.detail, ..first.clone() });
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

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(range))
    }

    fn tenant(&mut self) -> Arc<str> {
        Arc::clone(&self.names[self.tenants.choose(&mut self.rng) - 1])
    }

    fn meter(&mut self) -> Arc<str> {
        Arc::clone(&self.mix.meters[self.rng.usize(..self.mix.meters.len())])
    }

    fn valid(&mut self, number: u64, now: UnixMillis) -> ValidEvent {
        let (tenant, meter) = (self.tenant(), self.meter());
        let value = match &*meter {
            // Sums of quarters are exact in floating point, so totals can be compared to the last digit.
            "storage-gb-hours" => format!("{}.{}", self.rng.u64(0..500), ["25", "75"][self.rng.usize(..2)]),
            "compute-seconds" => self.rng.u64(1..3600).to_string(),
            "data-transfer-bytes" => self.rng.u64(1..5_000_000_000).to_string(),
            "active-seats" => self.rng.u64(1..5).to_string(),
            _ => self.rng.u64(1..20).to_string(),
        };
        let is_poison = self.places.poison.has(self.valid as u64);
        let kind = if is_poison { POISON_PREFIX } else { "event-" };
        let unique_id = format!("{kind}{}{number:08}", self.mix.run);
        let time = (self.rng.f64() < self.mix.timed).then(|| now - self.rng.i64(0..5000));
        let (region, plan) = (self.rng.usize(..REGIONS.len()), self.rng.usize(..PLANS.len()));
        let time_field = time.map_or(String::new(), |time| format!(r#""meterTimeInMillis":{time},"#));
        // Some producers send numbers as text; both must be billed alike.
        let quote = if number.is_multiple_of(7) { "\"" } else { "" };
        let mut detail =
            format!(r#"{{"tenantId":"{tenant}","meterApiName":"{meter}","meterValue":{quote}{value}{quote},"#)
                + &format!(r#""uniqueId":"{unique_id}",{time_field}"region":"{}","#, REGIONS[region])
                + &format!(r#""dimensions":{{"plan":"{}"}}"#, PLANS[plan]);
        let room = self.mix.size.saturating_sub(detail.len() + r#","filling":""}"#.len());
        if room > 0 {
            detail += &format!(r#","filling":"{}""#, &self.filling[..room]);
        }
        detail.push('}');
        let dimensions = self.dimensions(region, plan, room);
        let variant = Variant { value, detail: detail.into(), acknowledged: 0, sent: None };
        let (tenant, variants) = (tenant.to_string(), vec![variant]);
        ValidEvent { tenant, meter, unique_id, time, dimensions, variants, is_poison }
    }

    fn dimensions(&mut self, region: usize, plan: usize, filling: usize) -> Arc<BTreeMap<String, String>> {
        let made = self.dimensions.entry((region, plan, filling)).or_insert_with(|| {
            let given = [("plan", PLANS[plan]), ("region", REGIONS[region]), ("filling", &self.filling[..filling])];
            let given = given.into_iter().filter(|(_, value)| !value.is_empty());
            Arc::new(given.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
        });
        Arc::clone(made)
    }

    fn malformed(&mut self, number: u64, now: UnixMillis) -> Entry {
        let owner = self.tenant();
        let tenant = format!(r#""tenantId":"{owner}""#);
        let meter = format!(r#""meterApiName":"{}""#, self.meter());
        let id = format!(r#""uniqueId":"malformed-{}{number:08}""#, self.mix.run);
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
        let kind = self.malformed % kinds.len();
        let (reason, detail) = (kinds[kind].0, Arc::<str>::from(kinds[kind].1.as_str()));
        self.witness.malformed(MalformedEvent { detail: Arc::clone(&detail), reason, acknowledged: 0 });
        self.malformed += 1;
        Entry { origin: Origin::Malformed(self.malformed - 1), tenant: owner, detail }
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
    use std::sync::Mutex;

    use super::*;
    use crate::truth::Truth;

    fn run(seed: u64, entries: usize) -> (Vec<Entry>, Truth) {
        run_of(Mix::demo(), seed, entries)
    }

    fn run_of(mix: Mix, seed: u64, entries: usize) -> (Vec<Entry>, Truth) {
        let truth = Arc::new(Mutex::new(Truth::default()));
        let mut generator = Generator::new(mix, seed, Arc::clone(&truth));
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
        assert!((370..=400).contains(&copies), "{copies} copies: 5 %");
        assert!((35..=40).contains(&truth.malformed.len()), "{}: 0.5 %", truth.malformed.len());
        assert!((14..=16).contains(&conflicts), "{conflicts}");
        assert!(truth.valid.iter().filter(|event| event.is_poison).count() >= 1);
        assert!(truth.valid.iter().any(|event| event.time.is_some()));
        assert!(truth.valid.iter().any(|event| event.time.is_none()));
        let tenants: HashSet<_> = truth.valid.iter().map(|event| &event.tenant).collect();
        assert_eq!(tenants.len(), 50);
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

    #[test]
    fn a_run_makes_what_it_is_asked_for_under_its_own_name() {
        let mix = Mix { size: 700, duplicates: 0.5, malformed: 0.25, tenants: 3, ..Mix::sound("lt1".to_owned()) };
        let (entries, truth) = run_of(mix, 3, 1000);
        let originals = truth.valid.len() + truth.malformed.len();
        assert!((0.2..0.3).contains(&(truth.malformed.len() as f64 / originals as f64)), "{}", truth.malformed.len());
        let copies = entries.len() - originals;
        assert!(
            (0.35..0.55).contains(&(copies as f64 / truth.valid.len() as f64)),
            "{copies} of {}",
            truth.valid.len()
        );
        for event in &truth.valid {
            let detail: serde_json::Value = serde_json::from_str(&event.variants[0].detail).unwrap();
            assert_eq!(event.variants[0].detail.len(), 700);
            assert_eq!(detail["filling"].as_str(), event.dimensions.get("filling").map(String::as_str));
            assert!(event.unique_id.starts_with("event-lt1-") && event.tenant.starts_with("tenant-lt1-"));
            assert!(event.time.is_some() && !event.is_poison);
        }
        assert!(truth.malformed.iter().all(|event| event.detail.contains("malformed-lt1-")));
    }
}
