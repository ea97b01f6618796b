//! The lines of an audit: what each customer must pay for each meter, against what is billed, and what is wrong with it.

use std::collections::{BTreeMap, HashMap};

use amberflo_sandbox::{StoredRecord, Total};
use serde::Serialize;

use super::findings::{Differences, Kind};
use super::{Audit, Bill};
use crate::truth::ValidEvent;

/// The reconciliation of one tenant's use of one meter.
#[derive(Debug, Default, Serialize)]
pub struct TenantLine {
    /// `tenantId`; empty where an event, or a dead letter that nobody emitted, names none.
    pub tenant: String,
    /// The counts and totals. Its meter is empty where none is named.
    #[serde(flatten)]
    pub line: MeterLine,
    /// Contents that differ from the event's first with the same key, as emitted.
    pub conflicts_emitted: u64,
    /// Of those pairs, how many lie in the dead letters as `conflict`.
    pub conflicts: u64,
    /// What is wrong with it.
    #[serde(flatten)]
    pub differences: Differences,
    /// The ledger shows none of its events: nothing is said of lost, late and misbilled ones.
    pub is_judged_by_total: bool,
    /// Whether nothing is wrong with it.
    pub is_sound: bool,
}

/// One meter's reconciliation.
#[derive(Debug, Default, Serialize)]
pub struct MeterLine {
    /// `meterApiName`
    pub meter: String,
    /// Entries with a valid form.
    pub emitted: u64,
    /// Events.
    pub unique_valid: u64,
    /// Events billed.
    pub delivered: u64,
    /// Events that Amberflo refused, now in the dead letters.
    pub refused: u64,
    /// What must be billed.
    pub expected: Total,
    /// What is billed.
    pub billed: Total,
}

/// What each customer must pay for each meter.
#[derive(Default)]
pub(super) struct Expected<'a> {
    lines: BTreeMap<(&'a str, &'a str), Line>,
    /// What is billed to them for events of others: how many, and their sum.
    foreign: HashMap<(&'a str, &'a str), (u64, Total)>,
}

/// One customer's use of one meter.
#[derive(Default)]
pub(super) struct Line {
    /// The counts; the totals come with the bill.
    pub(super) sums: MeterLine,
    /// Values that must be billed.
    pub(super) expected: Vec<String>,
    /// Values that may be billed besides.
    pub(super) possible: Vec<String>,
    pub(super) conflicts_emitted: u64,
    pub(super) conflicts: u64,
    /// An event on it was billed more than once: that explains a total that is too high.
    pub(super) has_double: bool,
    /// An event on it is lost, or billed wrongly: that explains a total that is too low.
    pub(super) has_finding: bool,
}

impl<'a> Expected<'a> {
    pub(super) fn line(&mut self, event: &'a ValidEvent) -> &mut Line {
        self.lines.entry((&event.tenant, &event.meter)).or_default()
    }

    pub(super) fn foreign(&mut self, record: &'a StoredRecord) {
        let foreign = self.foreign.entry((&record.customer_id, &record.meter_api_name)).or_default();
        foreign.0 += 1;
        foreign.1 = plus(foreign.1, parse(record.value.as_deref().unwrap_or_default()));
    }
}

impl Audit {
    /// Compares the totals of each customer and meter, and sums them up by meter.
    pub(super) fn bills(&mut self, expected: Expected<'_>, bill: &Bill) {
        let ours = |names: (&str, &str), events: u64, total: Total| {
            let (count, foreign) = expected.foreign.get(&names).copied().unwrap_or_default();
            (events.saturating_sub(count), minus(total, foreign))
        };
        let billed: HashMap<(&str, &str), (u64, Total)> = bill
            .ledger
            .lines
            .iter()
            .map(|line| ((line.customer_id.as_str(), line.meter_api_name.as_str()), (line.events, line.total)))
            .map(|(names, (events, total))| (names, ours(names, events, total)))
            .collect();
        for (names, _) in
            billed.iter().filter(|(names, (events, _))| *events > 0 && !expected.lines.contains_key(*names))
        {
            let text = format!("{} pays for {}, and used none", names.0, names.1);
            self.found.add(Kind::DoubleBilled, *names, text);
        }
        let mut meters = BTreeMap::<&str, MeterLine>::new();
        for ((tenant, meter), line) in expected.lines {
            let billed = total_of(&billed, (tenant, meter));
            let sum = |values: &[String]| values.iter().fold(Total::default(), |sum, value| plus(sum, parse(value)));
            let must = sum(&line.expected);
            let most = plus(must, sum(&line.possible));
            // A sum of doubles is rounded at each of them. More would hide an event on a large total.
            let roundings = (line.expected.len() + line.possible.len()) as f64;
            let tolerance = if bill.is_rounded { roundings * f64::EPSILON * most.as_f64().abs() } else { 0.0 };
            if excess(billed, most) > tolerance && !line.has_double {
                let text = format!("{tenant} pays {} for {meter}, more than {}", billed.as_f64(), most.as_f64());
                self.found.add(Kind::DoubleBilled, (tenant, meter), text);
            }
            if excess(must, billed) > tolerance && !line.has_finding {
                let text = format!("{tenant} pays {} for {meter}, less than {}", billed.as_f64(), must.as_f64());
                self.found.add(Kind::Underbilled, (tenant, meter), text);
            }
            let of_tenant = MeterLine { meter: meter.to_owned(), expected: must, billed, ..line.sums };
            let of_all = meters.entry(meter).or_default();
            of_all.emitted += of_tenant.emitted;
            of_all.unique_valid += of_tenant.unique_valid;
            of_all.delivered += of_tenant.delivered;
            of_all.refused += of_tenant.refused;
            of_all.expected = plus(of_all.expected, must);
            of_all.billed = plus(of_all.billed, billed);
            let differences = self.found.by_line.remove(&(tenant.to_owned(), meter.to_owned())).unwrap_or_default();
            self.lines.push(TenantLine {
                tenant: tenant.to_owned(),
                line: of_tenant,
                conflicts_emitted: line.conflicts_emitted,
                conflicts: line.conflicts,
                differences,
                is_judged_by_total: bill.sums_only.contains(meter),
                is_sound: differences.is_none(),
            });
        }
        // Of tenants and meters without a valid event.
        for ((tenant, meter), differences) in std::mem::take(&mut self.found.by_line) {
            let line = MeterLine { billed: total_of(&billed, (&tenant, &meter)), meter, ..MeterLine::default() };
            self.lines.push(TenantLine { tenant, line, differences, ..TenantLine::default() });
        }
        self.lines.sort_by(|a, b| (&a.tenant, &a.line.meter).cmp(&(&b.tenant, &b.line.meter)));
        self.meters = meters.into_iter().map(|(meter, line)| MeterLine { meter: meter.to_owned(), ..line }).collect();
    }
}

fn total_of<'a>(billed: &HashMap<(&'a str, &'a str), (u64, Total)>, names: (&'a str, &'a str)) -> Total {
    billed.get(&names).map(|(_, total)| *total).unwrap_or_default()
}

pub(super) fn parse(value: &str) -> Total {
    match value.parse() {
        Ok(integers) => Total { integers, decimals: 0.0 },
        Err(_) => Total { integers: 0, decimals: value.parse().unwrap_or_default() },
    }
}

pub(super) fn plus(a: Total, b: Total) -> Total {
    Total { integers: a.integers + b.integers, decimals: a.decimals + b.decimals }
}

fn minus(a: Total, b: Total) -> Total {
    Total { integers: a.integers - b.integers, decimals: a.decimals - b.decimals }
}

/// By how much `a` is more than `b`.
fn excess(a: Total, b: Total) -> f64 {
    let excess = minus(a, b);
    excess.integers as f64 + excess.decimals
}
