//! What a probe is: a sentence about Amberflo, and the experiment that confirms or refutes it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::client::Unclear;
use super::probing::Probing;
use super::usage;

/// How sure the sentence is without the experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sureness {
    /// Stated in Amberflo's documentation or by its SDKs.
    Stated,
    /// Reported by users of the API, or from one source only.
    Reported,
    /// Stated nowhere: the pipeline was built as if it were so.
    Assumed,
}

impl Sureness {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stated => "stated",
            Self::Reported => "reported",
            Self::Assumed => "assumed",
        }
    }
}

pub struct Probe {
    pub id: &'static str,
    pub sureness: Sureness,
    /// The sentence.
    pub claim: &'static str,
    /// The experiment.
    pub does: &'static str,
    pub confirmed_if: &'static str,
    pub refuted_if: &'static str,
    /// What in the pipeline depends on it.
    pub if_refuted: &'static str,
    pub cost: fn(&Settings) -> Cost,
    pub run: fn(Arc<Probing>) -> Running,
}

pub type Running = Pin<Box<dyn Future<Output = Finding> + Send>>;
pub type Finding = Result<Evidence, Unclear>;

/// What an experiment has shown.
#[derive(Debug)]
pub enum Evidence {
    Confirmed(String),
    Refuted(String),
}

impl Evidence {
    pub fn of(is_confirmed: bool, text: impl Into<String>) -> Self {
        if is_confirmed { Self::Confirmed(text.into()) } else { Self::Refuted(text.into()) }
    }
}

/// How far to go, and for how long.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long to wait for usage to show.
    pub patience: Duration,
    /// How long usage must stay the same to be believed.
    pub settle: Duration,
    /// After what times a record is repeated, ascending; at most nine.
    pub repeat_after: Vec<Duration>,
    /// Most records in a request.
    pub max_records: usize,
    /// Largest body.
    pub max_bytes: usize,
    /// Requests a second.
    pub rate: f64,
    pub request_timeout: Duration,
}

impl Settings {
    /// Five growing times, the last of which is `patience`.
    pub fn repeat_after(patience: Duration) -> Vec<Duration> {
        (0..5).rev().map(|nth| patience / 3_u32.pow(nth)).collect()
    }
}

/// What a probe does to the account, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    pub records: u64,
    pub requests: u64,
    /// Created, and deleted at the end.
    pub meters: u64,
    /// Of these, the ones that Amberflo may not let be deleted.
    pub lasting_meters: u64,
    /// Created, and switched off at the end.
    pub customers: u64,
    /// Filtering rules, created and not deleted.
    pub rules: u64,
}

impl Cost {
    /// Of requests alone.
    pub const fn requests(requests: u64) -> Self {
        Self { records: 0, requests, meters: 0, lasting_meters: 0, customers: 0, rules: 0 }
    }

    /// Of a probe that sends these and reads what was billed for a customer of its own.
    pub fn billed(records: u64, requests: u64, settings: &Settings) -> Self {
        // One more to register the customer, and a record that marks the end.
        Self { records: records + 1, customers: 1, ..Self::requests(requests + 2 + usage::polls(settings)) }
    }

    /// Of a probe that sends these for a customer of its own, and looks at the answers only.
    pub const fn sent(records: u64, requests: u64) -> Self {
        Self { records, customers: 1, ..Self::requests(requests + 1) }
    }

    pub const fn meters(meters: u64, requests: u64) -> Self {
        Self { meters, ..Self::requests(requests) }
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            records: self.records + other.records,
            requests: self.requests + other.requests,
            meters: self.meters + other.meters,
            lasting_meters: self.lasting_meters + other.lasting_meters,
            customers: self.customers + other.customers,
            rules: self.rules + other.rules,
        }
    }
}
