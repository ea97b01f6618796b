//! The stand-in for Amberflo under several faults at once.

use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use amberflo_sandbox::{Faults, Latency, Poison, RetryAfterFormat, Trigger};

use crate::faults::POISON_PREFIX;

/// One way in which Amberflo misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quirk {
    /// 429 without `Retry-After`.
    Throttle,
    /// 429 with `Retry-After` in seconds.
    ThrottleSeconds,
    /// 429 with `Retry-After` as a date.
    ThrottleDate,
    /// A redirect.
    Redirect,
    /// 200 and HTML.
    Html,
    /// 5xx, nothing accepted.
    FailBefore,
    /// 5xx, everything accepted.
    FailAfter,
    /// No answer, nothing accepted.
    HangBefore,
    /// No answer, everything accepted.
    HangAfter,
    /// The next batch is accepted but for its end, and says so.
    PartialIngest,
    /// Everything accepted, a smaller count answered.
    PartialAnswer,
    /// Slow answers.
    Slow,
    /// 429 above a rate.
    RateCeiling,
    /// 429 above a number of requests at once.
    ConcurrencyCeiling,
    /// 413 above a size.
    BodyCeiling,
    /// 413 above a number of records.
    RecordCeiling,
    /// 400 for what belongs to one tenant.
    TenantRefused,
    /// 422 for what belongs to some tenants.
    TenantsRefused,
    /// 403 for what belongs to one tenant.
    TenantForbidden,
    /// 401 for the key in use.
    KeyRevoked,
}

/// What is wrong with Amberflo now.
#[derive(Clone, Debug)]
pub struct Condition {
    /// Where random sequences start.
    pub seed: u64,
    /// The quirks in force.
    pub quirks: BTreeSet<Quirk>,
    /// The only key that it takes.
    pub key: String,
    /// Whether it refuses what begins with [`POISON_PREFIX`].
    pub has_poison: bool,
}

impl Condition {
    /// As the sandbox wants it. `injected` is the quirk that begins now, if one does: what is to happen once happens
    /// with its injection, not again with every change of the others.
    #[must_use]
    pub fn faults(&self, injected: Option<Quirk>) -> Faults {
        let valid_keys = Some(BTreeSet::from([self.key.clone()]));
        let mut faults = Faults { seed: self.seed, valid_keys, ..Faults::default() };
        if self.has_poison {
            let unique_id_prefixes = vec![POISON_PREFIX.to_owned()];
            faults.poison.push(Poison { unique_id_prefixes, ..Poison::default() });
        }
        for &quirk in &self.quirks {
            self.apply(quirk, injected == Some(quirk), &mut faults);
        }
        faults
    }

    fn apply(&self, quirk: Quirk, begins: bool, faults: &mut Faults) {
        let often = Trigger::rate(0.4);
        match quirk {
            Quirk::Throttle => faults.throttle = often,
            Quirk::ThrottleSeconds => {
                faults.throttle = often;
                faults.retry_after = Some(Duration::from_secs(1));
            }
            Quirk::ThrottleDate => {
                faults.throttle = often;
                faults.retry_after = Some(Duration::from_secs(2));
                faults.retry_after_format = RetryAfterFormat::HttpDate;
            }
            Quirk::Redirect => faults.redirect = often,
            Quirk::Html => faults.html = often,
            Quirk::FailBefore => faults.fail_before = often,
            Quirk::FailAfter => faults.fail_after = often,
            Quirk::HangBefore => faults.hang_before = often,
            Quirk::HangAfter => faults.hang_after = often,
            Quirk::PartialIngest if begins => faults.partial_ingest = Trigger::next(1),
            Quirk::PartialIngest => {}
            Quirk::PartialAnswer => faults.partial_answer = often,
            Quirk::Slow => {
                faults.slow = Trigger::rate(1.0);
                faults.latency = Latency { min: Duration::from_millis(200), max: Duration::from_millis(1500) };
            }
            Quirk::RateCeiling => faults.requests_per_second = NonZeroU32::new(5),
            Quirk::ConcurrencyCeiling => faults.max_concurrent = NonZeroUsize::new(1),
            Quirk::BodyCeiling => faults.max_body_bytes = NonZeroUsize::new(16 << 10),
            Quirk::RecordCeiling => faults.max_records = NonZeroUsize::new(20),
            Quirk::TenantRefused => faults.poison.push(refused(400, &["tenant-02"])),
            Quirk::TenantsRefused => {
                faults.poison.push(refused(422, &["tenant-05", "tenant-15", "tenant-25", "tenant-35", "tenant-45"]));
            }
            Quirk::TenantForbidden => faults.poison.push(refused(403, &["tenant-03"])),
            Quirk::KeyRevoked => faults.revoked_keys = BTreeSet::from([self.key.clone()]),
        }
    }
}

/// Whether Amberflo may refuse this tenant at some time.
#[must_use]
pub fn is_ever_refused(tenant: &str) -> bool {
    ["tenant-02", "tenant-03", "tenant-05", "tenant-15", "tenant-25", "tenant-35", "tenant-45"].contains(&tenant)
}

fn refused(status: u16, tenants: &[&str]) -> Poison {
    debug_assert!(tenants.iter().all(|tenant| is_ever_refused(tenant)));
    let customer_ids = tenants.iter().map(|&tenant| tenant.to_owned()).collect();
    Poison { status, customer_ids, ..Poison::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Quirk; 20] = [
        Quirk::Throttle,
        Quirk::ThrottleSeconds,
        Quirk::ThrottleDate,
        Quirk::Redirect,
        Quirk::Html,
        Quirk::FailBefore,
        Quirk::FailAfter,
        Quirk::HangBefore,
        Quirk::HangAfter,
        Quirk::PartialIngest,
        Quirk::PartialAnswer,
        Quirk::Slow,
        Quirk::RateCeiling,
        Quirk::ConcurrencyCeiling,
        Quirk::BodyCeiling,
        Quirk::RecordCeiling,
        Quirk::TenantRefused,
        Quirk::TenantsRefused,
        Quirk::TenantForbidden,
        Quirk::KeyRevoked,
    ];

    fn condition(quirks: &[Quirk]) -> Condition {
        Condition { seed: 1, quirks: quirks.iter().copied().collect(), key: "key-1".to_owned(), has_poison: true }
    }

    #[test]
    fn every_quirk_makes_a_difference_alone_and_among_all() {
        let calm = condition(&[]).faults(None);
        calm.check().unwrap();
        condition(&ALL).faults(None).check().unwrap();
        for quirk in ALL {
            let faults = condition(&[quirk]).faults(Some(quirk));
            faults.check().unwrap();
            assert_ne!(faults, calm, "{quirk:?}");
        }
    }

    #[test]
    fn a_batch_is_accepted_in_part_once() {
        let condition = condition(&[Quirk::PartialIngest, Quirk::Slow]);
        assert_eq!(condition.faults(Some(Quirk::PartialIngest)).partial_ingest, Trigger::next(1));
        assert_eq!(condition.faults(Some(Quirk::Slow)).partial_ingest, Trigger::NEVER);
    }
}
