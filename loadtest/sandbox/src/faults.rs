//! Which faults the sandbox is to show, as tests and the admin endpoint write them.

use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use http::{HeaderValue, Method};
use serde::{Deserialize, Serialize};

use crate::human;
use crate::operation::Operation;

/// Everything that can go wrong, all off by default and all combinable.
///
/// A request passes these stages, and in each the first fault that fires answers it:
/// 1. the ceilings `requests_per_second` and `max_concurrent`;
/// 2. the API key;
/// 3. nothing accepted yet: `redirect`, `html`, `throttle`, `fail_before`, `hang_before`;
/// 4. the body: limits, syntax, records, `poison`;
/// 5. accepting, where `partial_ingest` drops the tail;
/// 6. everything accepted: `hang_after`, `fail_after`, `partial_answer`.
///
/// `slow` delays a request after stage 1. The ceilings, limits, `poison` and the partial faults are those of
/// `POST /ingest`; the keys count everywhere; the other faults hit the requests that `operations` and `methods` name,
/// where "accepted" means carried out. A request that they hit draws all its random numbers on arrival, so the same requests in
/// the same order with the same `seed` meet the same faults, whatever other faults are set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Where the random sequence starts.
    pub seed: u64,
    /// Which operations meet faults: only `POST /ingest` by default.
    pub operations: BTreeSet<Operation>,
    /// Which methods meet faults, such as `PUT`; all where it is empty.
    pub methods: BTreeSet<String>,

    /// Answers 429, nothing accepted.
    pub throttle: Trigger,
    /// Answers a redirect, nothing accepted.
    pub redirect: Trigger,
    /// Answers 200 with an HTML page, nothing accepted: what a wrong URL or a captive proxy does.
    pub html: Trigger,
    /// Answers one of `fail_statuses`, nothing accepted.
    pub fail_before: Trigger,
    /// Does not answer for `hang_for`, then 504; nothing accepted.
    pub hang_before: Trigger,
    /// Accepts all but the last `missing` records and answers that smaller count.
    pub partial_ingest: Trigger,
    /// Accepts, then does not answer for `hang_for`, then 504.
    pub hang_after: Trigger,
    /// Accepts, then answers one of `fail_statuses`.
    pub fail_after: Trigger,
    /// Accepts every record but answers a count smaller by `missing`.
    pub partial_answer: Trigger,
    /// Delays by a time drawn from `latency`.
    pub slow: Trigger,

    /// Sent with every 429, including those of the ceilings.
    #[serde(with = "human::option")]
    pub retry_after: Option<Duration>,
    /// How `retry_after` is written.
    pub retry_after_format: RetryAfterFormat,
    /// What `fail_before` and `fail_after` choose from: 500 to 599.
    pub fail_statuses: Vec<u16>,
    /// How long a hang lasts. Longer than any client's patience by default (1 hour).
    #[serde(with = "human")]
    pub hang_for: Duration,
    /// The range of `slow`.
    pub latency: Latency,
    /// By how many records the partial faults fall short (no further than zero).
    pub missing: NonZeroUsize,
    /// 301, 302, 303, 307 or 308.
    pub redirect_status: u16,
    /// The `Location` of a redirect.
    pub redirect_location: String,

    /// Requests holding such a record are refused whole.
    pub poison: Vec<Poison>,

    /// Above this many requests in any second: 429, counted in `rate_violations`. Refused requests do not use it up.
    pub requests_per_second: Option<NonZeroU32>,
    /// Above this many requests at once: 429, counted in `concurrency_violations`.
    pub max_concurrent: Option<NonZeroUsize>,
    /// Above this many bytes after decompression: 413. At most 64 MiB, which is also the default.
    pub max_body_bytes: Option<NonZeroUsize>,
    /// Above this many records in a request: 413.
    pub max_records: Option<NonZeroUsize>,

    /// Replaces the configured API keys while set.
    pub valid_keys: Option<BTreeSet<String>>,
    /// Keys that answer 401 although they are valid otherwise.
    pub revoked_keys: BTreeSet<String>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            seed: 0,
            operations: BTreeSet::from([Operation::Ingest]),
            methods: BTreeSet::new(),
            throttle: Trigger::NEVER,
            redirect: Trigger::NEVER,
            html: Trigger::NEVER,
            fail_before: Trigger::NEVER,
            hang_before: Trigger::NEVER,
            partial_ingest: Trigger::NEVER,
            hang_after: Trigger::NEVER,
            fail_after: Trigger::NEVER,
            partial_answer: Trigger::NEVER,
            slow: Trigger::NEVER,
            retry_after: None,
            retry_after_format: RetryAfterFormat::Seconds,
            fail_statuses: vec![500, 502, 503],
            hang_for: Duration::from_secs(3600),
            latency: Latency { min: Duration::from_millis(5), max: Duration::from_millis(50) },
            missing: NonZeroUsize::MIN,
            redirect_status: 302,
            redirect_location: "https://example.invalid/login".to_owned(),
            poison: Vec::new(),
            requests_per_second: None,
            max_concurrent: None,
            max_body_bytes: None,
            max_records: None,
            valid_keys: None,
            revoked_keys: BTreeSet::new(),
        }
    }
}

/// When a fault happens: with probability `rate` for each request, at most `count` times. In JSON `{"rate": 0.1}`,
/// `{"count": 3}` (the next three), or both.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trigger {
    /// 0 (never) to 1 (always, the default in JSON).
    #[serde(default = "always")]
    pub rate: f64,
    /// How many times at most; `None` is without limit.
    #[serde(default)]
    pub count: Option<u64>,
}

impl Trigger {
    /// Off.
    pub const NEVER: Self = Self::rate(0.0);

    /// For each request with this probability.
    #[must_use]
    pub const fn rate(rate: f64) -> Self {
        Self { rate, count: None }
    }

    /// For the next `count` requests that get as far.
    #[must_use]
    pub const fn next(count: u64) -> Self {
        Self { rate: 1.0, count: Some(count) }
    }
}

const fn always() -> f64 {
    1.0
}

/// The two forms `Retry-After` may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryAfterFormat {
    /// A number of seconds, rounded up.
    #[default]
    Seconds,
    /// An HTTP date, rounded up to the second.
    HttpDate,
}

/// A range of delays, uniform between its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// Shortest.
    #[serde(with = "human")]
    pub min: Duration,
    /// Longest.
    #[serde(with = "human")]
    pub max: Duration,
}

/// Records the sandbox will not take: a request holding one that matches any of the lists is answered `status` with a
/// body that does not say which, and nothing of it is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Poison {
    /// 400 to 599.
    pub status: u16,
    /// Starts of `uniqueId`.
    pub unique_id_prefixes: Vec<String>,
    /// Whole `customerId`s.
    pub customer_ids: BTreeSet<String>,
    /// Whole `meterApiName`s.
    pub meter_api_names: BTreeSet<String>,
}

impl Default for Poison {
    fn default() -> Self {
        Self {
            status: 400,
            unique_id_prefixes: Vec::new(),
            customer_ids: BTreeSet::new(),
            meter_api_names: BTreeSet::new(),
        }
    }
}

/// A fault whose value makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, allowed: {allowed}")]
pub struct InvalidFault {
    /// Where in [`Faults`], as a path such as `poison[0].status`.
    pub field: String,
    /// The value given.
    pub value: String,
    /// What would have been accepted.
    pub allowed: &'static str,
}

impl Faults {
    /// Whether a request of this kind meets faults at all.
    pub(crate) fn hit(&self, operation: Operation, method: &Method) -> bool {
        self.operations.contains(&operation) && (self.methods.is_empty() || self.methods.contains(method.as_str()))
    }

    /// Checks the ranges that the types do not.
    ///
    /// # Errors
    /// The first value outside its range.
    pub fn check(&self) -> Result<(), InvalidFault> {
        ensure(!self.operations.is_empty(), || "operations".into(), "[]", "at least one operation")?;
        for method in &self.methods {
            let known = ["GET", "POST", "PUT", "DELETE"].contains(&method.as_str());
            ensure(known, || "methods".into(), method, "GET, POST, PUT or DELETE")?;
        }
        for (field, trigger) in [
            ("throttle", self.throttle),
            ("redirect", self.redirect),
            ("html", self.html),
            ("fail_before", self.fail_before),
            ("hang_before", self.hang_before),
            ("partial_ingest", self.partial_ingest),
            ("hang_after", self.hang_after),
            ("fail_after", self.fail_after),
            ("partial_answer", self.partial_answer),
            ("slow", self.slow),
        ] {
            let ok = (0.0..=1.0).contains(&trigger.rate);
            ensure(ok, || format!("{field}.rate"), trigger.rate, "0 to 1")?;
        }
        ensure(!self.fail_statuses.is_empty(), || "fail_statuses".into(), "[]", "at least one of 500 to 599")?;
        for (at, &status) in self.fail_statuses.iter().enumerate() {
            ensure((500..=599).contains(&status), || format!("fail_statuses[{at}]"), status, "500 to 599")?;
        }
        let Latency { min, max } = self.latency;
        ensure(min <= max, || "latency.min".into(), humantime::format_duration(min), "no more than latency.max")?;
        let redirects = [301, 302, 303, 307, 308].contains(&self.redirect_status);
        ensure(redirects, || "redirect_status".into(), self.redirect_status, "301, 302, 303, 307 or 308")?;
        let location = HeaderValue::from_str(&self.redirect_location).is_ok();
        ensure(location, || "redirect_location".into(), &self.redirect_location, "visible ASCII")?;
        let limit = self.max_body_bytes.is_none_or(|limit| limit.get() <= crate::attempt::BODY_LIMIT);
        ensure(limit, || "max_body_bytes".into(), self.max_body_bytes.map_or(0, NonZeroUsize::get), "1 to 67108864")?;
        self.poison.iter().enumerate().try_for_each(|(at, poison)| poison.check(at))
    }
}

impl Poison {
    /// Whether nothing can match.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.unique_id_prefixes.is_empty() && self.customer_ids.is_empty() && self.meter_api_names.is_empty()
    }

    fn check(&self, at: usize) -> Result<(), InvalidFault> {
        let field = |name: &str| format!("poison[{at}].{name}");
        ensure((400..=599).contains(&self.status), || field("status"), self.status, "400 to 599")?;
        // An empty prefix would match every record, and no list at all none: both are slips.
        let empty = self.unique_id_prefixes.iter().any(String::is_empty);
        ensure(!empty, || field("unique_id_prefixes"), "\"\"", "prefixes of at least one character")?;
        ensure(
            !self.is_empty(),
            || format!("poison[{at}]"),
            "empty",
            "at least one of unique_id_prefixes, customer_ids, meter_api_names",
        )
    }
}

fn ensure(
    ok: bool,
    field: impl FnOnce() -> String,
    value: impl ToString,
    allowed: &'static str,
) -> Result<(), InvalidFault> {
    if ok { Ok(()) } else { Err(InvalidFault { field: field(), value: value.to_string(), allowed }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_round_trips_and_defaults() {
        assert_eq!(serde_json::from_str::<Faults>("{}").unwrap(), Faults::default());
        let json = r#"{"seed":7,"throttle":{"count":3},"retry_after":"2s","latency":{"min":"1ms","max":"1s"},
            "poison":[{"status":422,"customer_ids":["c1"]}],"requests_per_second":10,"operations":["ingest","usage_events"],"methods":["GET"]}"#;
        let faults: Faults = serde_json::from_str(json).unwrap();
        assert_eq!(faults.throttle, Trigger::next(3));
        assert_eq!(faults.retry_after, Some(Duration::from_secs(2)));
        faults.check().unwrap();
        let again = serde_json::to_string(&faults).unwrap();
        assert_eq!(serde_json::from_str::<Faults>(&again).unwrap(), faults);
    }

    #[test]
    fn a_wrong_value_is_named_with_what_is_allowed() {
        let wrong = |change: fn(&mut Faults)| {
            let mut faults = Faults::default();
            change(&mut faults);
            faults.check().unwrap_err().to_string()
        };
        assert_eq!(wrong(|f| f.throttle.rate = 1.5), "throttle.rate is 1.5, allowed: 0 to 1");
        assert_eq!(wrong(|f| f.operations.clear()), "operations is [], allowed: at least one operation");
        let lower_case = |f: &mut Faults| f.methods = BTreeSet::from(["put".to_owned()]);
        assert_eq!(wrong(lower_case), "methods is put, allowed: GET, POST, PUT or DELETE");
        assert_eq!(wrong(|f| f.slow.rate = f64::NAN), "slow.rate is NaN, allowed: 0 to 1");
        assert_eq!(wrong(|f| f.fail_statuses = vec![503, 404]), "fail_statuses[1] is 404, allowed: 500 to 599");
        assert_eq!(wrong(|f| f.redirect_status = 304), "redirect_status is 304, allowed: 301, 302, 303, 307 or 308");
        assert!(wrong(|f| f.latency.min = Duration::from_secs(9)).starts_with("latency.min is 9s"));
        assert!(wrong(|f| f.poison.push(Poison::default())).starts_with("poison[0] is empty"));
        assert!(wrong(|f| f.redirect_location = "\n".into()).starts_with("redirect_location"));
        assert!(wrong(|f| f.max_body_bytes = NonZeroUsize::new(1 << 40)).starts_with("max_body_bytes is 1099"));
        assert!(wrong(|f| f.poison.push(Poison { status: 200, ..Poison::default() })).starts_with("poison[0].status"));
    }
}
