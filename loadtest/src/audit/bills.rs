//! The totals of an audit: what each customer must pay for each meter, against what is billed.

use std::collections::{BTreeMap, HashMap};

use amberflo_sandbox::{StoredRecord, Total};

use super::{Audit, Bill, MeterLine, TenantLine};
use crate::truth::ValidEvent;

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
    pub(super) lost: u64,
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
            self.double_billed += 1;
            self.find(format!("{} pays for {}, and used none", names.0, names.1));
        }
        let mut meters = BTreeMap::<&str, MeterLine>::new();
        for ((tenant, meter), line) in expected.lines {
            let billed = billed.get(&(tenant, meter)).map(|(_, total)| *total).unwrap_or_default();
            let sum = |values: &[String]| values.iter().fold(Total::default(), |sum, value| plus(sum, parse(value)));
            let must = sum(&line.expected);
            let most = plus(must, sum(&line.possible));
            // A sum of doubles is rounded at each of them. More would hide an event on a large total.
            let roundings = (line.expected.len() + line.possible.len()) as f64;
            let tolerance = if bill.is_rounded { roundings * f64::EPSILON * most.as_f64().abs() } else { 0.0 };
            let is_high = difference(billed, most) > tolerance;
            let is_low = difference(must, billed) > tolerance;
            if is_high && !line.has_double {
                self.double_billed += 1;
                self.find(format!("{tenant} pays {} for {meter}, more than {}", billed.as_f64(), most.as_f64()));
            }
            if is_low && !line.has_finding {
                self.underbilled += 1;
                self.find(format!("{tenant} pays {} for {meter}, less than {}", billed.as_f64(), must.as_f64()));
            }
            let of_tenant = MeterLine { meter: meter.to_owned(), expected: must, billed, ..line.sums };
            let of_all = meters.entry(meter).or_default();
            of_all.emitted += of_tenant.emitted;
            of_all.unique_valid += of_tenant.unique_valid;
            of_all.delivered += of_tenant.delivered;
            of_all.refused += of_tenant.refused;
            of_all.expected = plus(of_all.expected, must);
            of_all.billed = plus(of_all.billed, billed);
            let is_sound = !is_high && !is_low && !line.has_double && !line.has_finding;
            self.lines.push(TenantLine { tenant: tenant.to_owned(), line: of_tenant, lost: line.lost, is_sound });
        }
        self.meters = meters.into_iter().map(|(meter, line)| MeterLine { meter: meter.to_owned(), ..line }).collect();
    }
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

fn difference(a: Total, b: Total) -> f64 {
    let difference = minus(a, b);
    difference.integers as f64 + difference.decimals
}
