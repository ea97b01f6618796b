//! The stand-in for Amberflo under several faults at once.

use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use amberflo_sandbox::{Faults, InvalidFault, Latency, Poison, RetryAfterFormat, Sandbox, Stats, Trigger};

use crate::faults::POISON_PREFIX;

/// What the sandbox calls it.
const PARTIAL_INGEST: &str = "partial_ingest";

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

impl Quirk {
    /// How many requests were answered as it says, by whatever quirk in force; `None` where its answers cannot be told from
    /// others.
    #[must_use]
    pub fn count(self, stats: &Stats) -> Option<u64> {
        let fault = match self {
            Self::Throttle | Self::ThrottleSeconds | Self::ThrottleDate => "throttle",
            Self::Redirect => "redirect",
            Self::Html => "html",
            Self::FailBefore => "fail_before",
            Self::FailAfter => "fail_after",
            Self::HangBefore => "hang_before",
            Self::HangAfter => "hang_after",
            Self::PartialIngest => PARTIAL_INGEST,
            Self::PartialAnswer => "partial_answer",
            Self::Slow => "slow",
            Self::RateCeiling => "requests_per_second",
            Self::ConcurrencyCeiling => "max_concurrent",
            Self::KeyRevoked => "revoked_keys",
            Self::BodyCeiling | Self::RecordCeiling => return Some(stats.by_status.get(&413).copied().unwrap_or(0)),
            // Some records are refused all the time.
            Self::TenantRefused | Self::TenantsRefused | Self::TenantForbidden => return None,
        };
        Some(stats.by_fault.get(fault).copied().unwrap_or(0))
    }
}

/// What is wrong with Amberflo now.
#[derive(Clone, Debug)]
pub struct Condition {
    /// Where random sequences start.
    pub seed: u64,
    /// The quirks in force. [`Quirk::PartialIngest`] leaves when it has happened: it is to happen once.
    pub quirks: BTreeSet<Quirk>,
    /// The only key that it takes.
    pub key: String,
    /// Whether it refuses what begins with [`POISON_PREFIX`].
    pub has_poison: bool,
    /// How many batches were accepted in part before the quirk that is in force, or the last one.
    pub parts_before: u64,
}

impl Condition {
    /// Lets the sandbox do so. All its triggers begin anew, so that one which has fired must be taken back first.
    ///
    /// # Errors
    /// When the sandbox does not know the fault.
    pub fn apply_to(&mut self, sandbox: &Sandbox) -> Result<(), InvalidFault> {
        self.take_back(sandbox);
        sandbox.set_faults(self.faults())?;
        // Between the two it may have fired. The same batch comes again after its answer only: not so soon.
        if self.take_back(sandbox) {
            sandbox.set_faults(self.faults())?;
        }
        Ok(())
    }

    /// Answers whether there was something to take back.
    fn take_back(&mut self, sandbox: &Sandbox) -> bool {
        let parts = Quirk::PartialIngest.count(&sandbox.stats()).unwrap_or(0);
        parts > self.parts_before && {
            self.parts_before = parts;
            self.quirks.remove(&Quirk::PartialIngest)
        }
    }

    /// As the sandbox wants it.
    #[must_use]
    pub fn faults(&self) -> Faults {
        let valid_keys = Some(BTreeSet::from([self.key.clone()]));
        let mut faults = Faults { seed: self.seed, valid_keys, ..Faults::default() };
        if self.has_poison {
            let unique_id_prefixes = vec![POISON_PREFIX.to_owned()];
            faults.poison.push(Poison { unique_id_prefixes, ..Poison::default() });
        }
        for &quirk in &self.quirks {
            self.apply(quirk, &mut faults);
        }
        faults
    }

    fn apply(&self, quirk: Quirk, faults: &mut Faults) {
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
            Quirk::PartialIngest => faults.partial_ingest = Trigger::next(1),
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
    use amberflo_sandbox::SandboxConfig;

    use super::*;
    use crate::chaos::kind::{Act, KINDS};

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
        let quirks = quirks.iter().copied().collect();
        Condition { seed: 1, quirks, key: "key-1".to_owned(), has_poison: true, parts_before: 0 }
    }

    #[test]
    fn every_quirk_makes_a_difference_alone_and_among_all() {
        let calm = condition(&[]).faults();
        calm.check().unwrap();
        condition(&ALL).faults().check().unwrap();
        for quirk in ALL {
            let faults = condition(&[quirk]).faults();
            faults.check().unwrap();
            assert_ne!(faults, calm, "{quirk:?}");
        }
    }

    #[test]
    fn every_quirk_can_be_drawn() {
        for quirk in ALL {
            assert!(KINDS.iter().any(|kind| kind.act == Act::Amberflo(quirk)), "{quirk:?}");
        }
    }

    #[tokio::test]
    async fn a_batch_is_accepted_in_part_once_whatever_else_changes() {
        let sandbox = Sandbox::new(SandboxConfig { request_log: 0, ..SandboxConfig::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/ingest", listener.local_addr().unwrap());
        tokio::spawn(amberflo_sandbox::serve(listener, sandbox.clone(), std::future::pending()));
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = crate::target::http_client(&url, Duration::from_secs(5)).unwrap();
        let send = || async {
            let body = r#"[{"customerId":"c","meterApiName":"m","meterValue":1,"meterTimeInMillis":1790000000000}]"#;
            let request = http.post(&url).header("x-api-key", "key-1").header("content-type", "application/json");
            request.body(body).send().await.unwrap();
        };
        let mut condition = Condition { has_poison: false, ..condition(&[Quirk::PartialIngest]) };
        let times = || Quirk::PartialIngest.count(&sandbox.stats()).unwrap();
        condition.apply_to(&sandbox).unwrap();
        // Another quirk comes before a request does.
        condition.quirks.insert(Quirk::RecordCeiling);
        condition.apply_to(&sandbox).unwrap();
        send().await;
        assert_eq!(times(), 1);
        condition.apply_to(&sandbox).unwrap();
        send().await;
        assert_eq!(times(), 1);
        assert!(!condition.quirks.contains(&Quirk::PartialIngest));
    }
}
