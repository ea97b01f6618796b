//! A run's result, for people and for programs.

use std::fmt::Write as _;
use std::time::Duration;

use amberflo_sandbox::{Stats, StoredRecord, Total};
use indicatif::HumanCount;
use serde::Serialize;

use crate::audit::Audit;
use crate::truth::Truth;

/// The result of a demo.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether every promise was kept.
    pub passed: bool,
    /// The reconciliation.
    #[serde(flatten)]
    pub audit: Audit,
    /// How often the worker was killed.
    pub worker_kills: u64,
    /// Delivered events over the time from the first call to the last delivery.
    pub events_per_second: f64,
    /// Median latency: from the start of the first acknowledged PutEvents call with the event to its entry in the
    /// sandbox's ledger, over all delivered events, faults and kill included.
    pub p50_ms: u64,
    /// 99th percentile of the same.
    pub p99_ms: u64,
    /// From the start of the program to the first entry in the ledger.
    pub first_delivery_ms: u64,
    /// Copies that only Amberflo's deduplication caught: replays after faults and the kill.
    pub absorbed_by_amberflo: u64,
    /// PutEvents calls that failed; the producers repeated them.
    pub failed_calls: u64,
    /// What the sandbox did to the worker, by fault.
    pub faults: std::collections::BTreeMap<&'static str, u64>,
}

/// Speed, as the ledger shows it.
#[derive(Debug, Default)]
pub struct Speed {
    /// See [`Report::events_per_second`].
    pub events_per_second: f64,
    /// Sorted latencies of all delivered events.
    latencies: Vec<Duration>,
}

impl Speed {
    /// Of these deliveries. Times of truth and records have the same origin.
    #[must_use]
    pub fn of(truth: &Truth, records: &[StoredRecord]) -> Self {
        let variants = truth.valid.iter().flat_map(|event| event.variants.iter().map(move |variant| (event, variant)));
        let sent: std::collections::HashMap<_, _> = variants
            .filter_map(|(event, variant)| Some(((event.unique_id.as_str(), variant.value.as_str()), variant.sent?)))
            .collect();
        let latency = |record: &StoredRecord| {
            let sent = sent.get(&(record.unique_id.as_deref()?, record.value.as_deref()?))?;
            // An event can be delivered by way of an earlier call, whose answer was lost.
            Some(record.at.saturating_sub(*sent))
        };
        let mut latencies: Vec<_> = records.iter().filter_map(latency).collect();
        latencies.sort_unstable();
        let first = sent.values().min().copied().unwrap_or_default();
        let last = records.iter().map(|record| record.at).max().unwrap_or_default();
        let seconds = last.saturating_sub(first).as_secs_f64();
        let events_per_second =
            if seconds > 0.0 { (latencies.len() as f64 / seconds * 10.0).round() / 10.0 } else { 0.0 };
        Self { events_per_second, latencies }
    }

    /// The latency that this share of the events did not exceed, in milliseconds.
    #[must_use]
    pub fn percentile_ms(&self, share: f64) -> u64 {
        let rank = (share * self.latencies.len() as f64).ceil() as usize;
        let latency = self.latencies.get(rank.saturating_sub(1)).copied().unwrap_or_default();
        latency.as_millis().try_into().unwrap_or(u64::MAX)
    }
}

impl Report {
    /// The result as a table.
    #[must_use]
    pub fn table(&self) -> String {
        let audit = &self.audit;
        let mut out = String::new();
        let widths = [21, 10, 10, 10, 8, 20, 20];
        let mut row = |cells: [String; 7], end: &str| {
            for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
                // Writing to a String cannot fail.
                let _ = if index == 0 { write!(out, "{cell:<width$}") } else { write!(out, "{cell:>width$}") };
            }
            out.push_str(end);
            out.push('\n');
        };
        let heads = ["meter", "well-formed", "unique", "delivered", "rejected", "expected total", "billed total"];
        row(heads.map(str::to_owned), "");
        for meter in &audit.meters {
            let counts = [meter.emitted, meter.unique_valid, meter.delivered, meter.refused].map(count);
            let [emitted, unique, delivered, refused] = counts;
            let totals = [amount(meter.expected), amount(meter.billed)];
            let verdict = if meter.expected == meter.billed { "  equal" } else { "  DIFFERENT" };
            let [expected, billed] = totals;
            row([meter.meter.clone(), emitted, unique, delivered, refused, expected, billed], verdict);
        }
        let valid = audit.emitted - audit.malformed;
        let [emitted, unique, delivered, refused] =
            [valid, audit.unique_valid, audit.delivered, audit.refused].map(count);
        row(["all".to_owned(), emitted, unique, delivered, refused, String::new(), String::new()], "");
        self.sums(&mut out);
        let lines: Vec<_> = out.lines().map(str::trim_end).collect();
        format!("\n{}", lines.join("\n"))
    }

    fn sums(&self, out: &mut String) {
        let audit = &self.audit;
        let mut line = |name: &str, text: String| {
            let _ = writeln!(out, "{name:<21}{text}");
        };
        line("", String::new());
        line(
            "emitted",
            format!(
                "{} = {} unique valid + {} producer retries + {} conflicts + {} malformed",
                count(audit.emitted),
                count(audit.unique_valid),
                count(audit.duplicates),
                count(audit.conflicts_emitted),
                count(audit.malformed)
            ),
        );
        let reasons: Vec<_> = audit.dead_letters.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        line("dead letters", format!("{} = {}", count(audit.dead_lettered), reasons.join(" + ")));
        let copies = format!(
            "{} absorbed by Amberflo's deduplication, {} more stored as dead letters again",
            count(self.absorbed_by_amberflo),
            count(audit.dead_letter_copies)
        );
        line("copies of replays", copies);
        let faults: Vec<_> = self.faults.iter().map(|(fault, n)| format!("{n} {fault}")).collect();
        let faults = if faults.is_empty() { "none".to_owned() } else { faults.join(", ") };
        line(
            "faults met",
            format!(
                "{faults}; {} kill -9; {} failed PutEvents calls, repeated",
                self.worker_kills,
                count(self.failed_calls)
            ),
        );
        let speed = format!(
            "{} events/s, latency p50 {} ms, p99 {} ms, first delivery {} ms after the start",
            self.events_per_second, self.p50_ms, self.p99_ms, self.first_delivery_ms
        );
        line("speed", speed);
        line("lost", audit.lost.to_string());
        line("double-billed", audit.double_billed.to_string());
        let others = [audit.misbilled, audit.missing_dead_letters, audit.unexpected];
        line("misbilled", format!("{}; missing dead letters {}; unexpected {}", others[0], others[1], others[2]));
        for finding in &audit.findings {
            line("  finding", finding.clone());
        }
        let verdict = if self.passed { "PASSED: every event is accounted for, once" } else { "FAILED" };
        line(verdict, String::new());
    }
}

/// Faults that the sandbox showed, with its refusals of a key.
#[must_use]
pub fn faults(stats: &Stats) -> std::collections::BTreeMap<&'static str, u64> {
    let mut faults = stats.by_fault.clone();
    if let Some(&count) = stats.by_status.get(&401) {
        faults.insert("key_refused", count);
    }
    faults
}

fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

fn amount(total: Total) -> String {
    // Quarters, and sums of them, are exact.
    let whole = total.integers + total.decimals.trunc() as i128;
    let whole_text = HumanCount(u64::try_from(whole).unwrap_or(u64::MAX)).to_string();
    match total.decimals.fract() {
        0.0 => whole_text,
        fraction => format!("{whole_text}{}", &format!("{fraction:.2}")[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_latencies() {
        let latencies = (1..=200).map(Duration::from_millis).collect();
        let speed = Speed { events_per_second: 0.0, latencies };
        assert_eq!([speed.percentile_ms(0.5), speed.percentile_ms(0.99)], [100, 198]);
        assert_eq!(Speed::default().percentile_ms(0.5), 0);
    }

    #[test]
    fn amounts_keep_their_quarters() {
        assert_eq!(amount(Total { integers: 1_234_567, decimals: 0.0 }), "1,234,567");
        assert_eq!(amount(Total { integers: 0, decimals: 1234.75 }), "1,234.75");
    }
}
