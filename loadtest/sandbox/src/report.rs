//! The forms in which the ledger is reported.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The ledger at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LedgerSnapshot {
    /// Records billed.
    pub events: u64,
    /// Records recognised as identical to a billed one, and not billed.
    pub absorbed_copies: u64,
    /// Of those, how many were not the same bytes (another order of keys, say). Only counted while records are kept.
    pub absorbed_with_other_bytes: u64,
    /// Records billed although an event of the same meter, time and `uniqueId` was there: some attribute differed.
    pub conflicting_copies: u64,
    /// Records billed although the same customer was billed for the same meter and `uniqueId` before, whatever differed.
    pub billed_again: u64,
    /// One for each customer and meter that has any, sorted by them. With a filter, only those that match; the counts
    /// above are always of the whole ledger.
    pub lines: Vec<LedgerLine>,
}

impl LedgerSnapshot {
    /// The line of this customer and meter, if anything was received for them.
    #[must_use]
    pub fn line(&self, customer_id: &str, meter_api_name: &str) -> Option<&LedgerLine> {
        self.lines.iter().find(|line| line.customer_id == customer_id && line.meter_api_name == meter_api_name)
    }
}

/// The bill of one customer for one meter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerLine {
    /// Whom.
    pub customer_id: String,
    /// For what.
    pub meter_api_name: String,
    /// How many events were billed.
    pub events: u64,
    /// The sum of their values.
    pub total: Total,
    /// How many identical copies were not billed.
    pub absorbed_copies: u64,
}

/// A sum of meter values: exact for integers; the others by floating point, in order of arrival.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Total {
    /// The sum of values written without a fraction or exponent.
    pub integers: i128,
    /// The sum of all other values.
    pub decimals: f64,
}

impl Total {
    /// Both sums together, rounded to a double.
    #[must_use]
    pub fn as_f64(&self) -> f64 {
        self.integers as f64 + self.decimals
    }

    pub(crate) fn add(&mut self, text: &str) {
        // Integers of 39 digits and more do not fit; as doubles they lose digits but stay in the sum.
        match text.parse::<i128>() {
            Ok(integer) => self.integers = self.integers.saturating_add(integer),
            Err(_) => self.decimals += text.parse::<f64>().unwrap_or_default(),
        }
    }
}

/// A billed record, kept whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRecord {
    /// Its position among all billed records, from 0.
    pub index: u64,
    /// Time since the sandbox started, when it was accepted.
    #[serde(rename = "at_ms", serialize_with = "crate::human::millis", deserialize_with = "crate::human::from_millis")]
    pub at: Duration,
    /// `customerId`
    pub customer_id: String,
    /// `meterApiName`; empty for a record with `values` only.
    pub meter_api_name: String,
    /// `meterTimeInMillis`
    pub time_millis: i64,
    /// The text of `meterValue`.
    pub value: Option<String>,
    /// `uniqueId`
    pub unique_id: Option<String>,
    /// `dimensions`
    pub dimensions: BTreeMap<String, String>,
    /// The record as it was sent.
    pub raw: String,
    /// How many identical copies of it were absorbed later.
    pub copies: u64,
}

/// An event that a customer pays for more than once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoubleBilled {
    /// `customerId`
    pub customer_id: String,
    /// `meterApiName`
    pub meter_api_name: String,
    /// `uniqueId`
    pub unique_id: String,
    /// How many times it was billed: 2 or more.
    pub times: u64,
}
