//! The lines of tenants and meters.

use indicatif::HumanCount;

use super::amount;
use crate::audit::TenantLine;

/// Of the table below.
pub(super) const HEADS: [&str; 13] = [
    "tenant",
    "meter",
    "unique",
    "billed",
    "lost",
    "double-billed",
    "late",
    "conflicting",
    "missing letters",
    "other",
    "expected total",
    "billed total",
    "",
];

/// A line of the report. What the ledger cannot show is a question mark.
pub(super) fn row(tenant: &TenantLine, is_late_judged: bool) -> [String; 13] {
    let (line, found) = (&tenant.line, &tenant.differences);
    let other = found.misbilled + found.underbilled + found.unexpected;
    let count = |number: u64| HumanCount(number).to_string();
    let seen = |number: u64, is_seen: bool| if is_seen { count(number) } else { "?".to_owned() };
    let is_by_event = !tenant.is_judged_by_total;
    [
        named(&tenant.tenant).to_owned(),
        named(&line.meter).to_owned(),
        count(line.unique_valid),
        seen(line.delivered, is_by_event),
        seen(found.lost, is_by_event),
        count(found.double_billed),
        seen(found.late, is_by_event && is_late_judged),
        count(tenant.conflicts_emitted),
        count(found.missing_dead_letters),
        count(other),
        amount(line.expected),
        amount(line.billed),
        verdict(tenant),
    ]
}

/// Equal is only a line of which every event is billed once and none conflicts.
fn verdict(tenant: &TenantLine) -> String {
    if !tenant.is_sound {
        return "**differs**".to_owned();
    }
    let equal = if tenant.is_judged_by_total { "equal total" } else { "equal" };
    match tenant.conflicts_emitted {
        0 => equal.to_owned(),
        _ => "conflicts dead-lettered".to_owned(),
    }
}

/// What is wrong with a line, in words.
pub(super) fn differences(tenant: &TenantLine) -> String {
    let found = &tenant.differences;
    let kinds = [
        (found.lost, "lost"),
        (found.double_billed, "double-billed"),
        (found.late, "late"),
        (found.misbilled, "misbilled"),
        (found.underbilled, "underbilled"),
        (found.missing_dead_letters, "missing in the dead letters"),
        (found.unexpected, "unexpected"),
    ];
    let kinds = kinds.into_iter().filter(|(number, _)| *number > 0);
    let words: Vec<_> = kinds.map(|(number, kind)| format!("{} {kind}", HumanCount(number))).collect();
    format!("{} {}: {}", named(&tenant.tenant), named(&tenant.line.meter), words.join(", "))
}

/// An event that is none may name no tenant or no meter.
fn named(name: &str) -> &str {
    if name.is_empty() { "(none named)" } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Differences;

    #[test]
    fn no_line_with_anything_on_it_is_called_equal() {
        let none = Differences::default();
        for (differences, words) in [
            (Differences { lost: 1, ..none }, "acme calls: 1 lost"),
            (Differences { double_billed: 1200, ..none }, "acme calls: 1,200 double-billed"),
            (Differences { late: 1, ..none }, "acme calls: 1 late"),
            (Differences { misbilled: 1, ..none }, "acme calls: 1 misbilled"),
            (Differences { underbilled: 1, ..none }, "acme calls: 1 underbilled"),
            (Differences { missing_dead_letters: 1, ..none }, "acme calls: 1 missing in the dead letters"),
            (Differences { unexpected: 1, ..none }, "acme calls: 1 unexpected"),
        ] {
            let line = line(differences, 0, false);
            assert_eq!(super::differences(&line), words);
            let row = row(&line, true);
            assert_eq!(row[12], "**differs**");
            assert_eq!(row[4..10].iter().filter(|cell| *cell != "0").count(), 1, "{row:?}");
        }
        assert_eq!(row(&line(none, 0, false), true)[12], "equal");
        assert_eq!(row(&line(none, 0, true), true)[12], "equal total");
        let conflicting = row(&line(none, 2, false), true);
        assert_eq!((&*conflicting[7], &*conflicting[12]), ("2", "conflicts dead-lettered"));
    }

    #[test]
    fn what_the_ledger_cannot_show_is_not_called_none() {
        let line = |is_judged_by_total| line(Differences::default(), 0, is_judged_by_total);
        let cells = |row: [String; 13]| [3, 4, 6].map(|cell: usize| row[cell].clone());
        assert_eq!(cells(row(&line(false), true)), ["0", "0", "0"]);
        assert_eq!(cells(row(&line(false), false)), ["0", "0", "?"]);
        assert_eq!(cells(row(&line(true), true)), ["?", "?", "?"]);
    }

    fn line(differences: Differences, conflicts_emitted: u64, is_judged_by_total: bool) -> TenantLine {
        let mut line =
            TenantLine { tenant: "acme".to_owned(), differences, conflicts_emitted, ..TenantLine::default() };
        line.line.meter = "calls".to_owned();
        (line.is_judged_by_total, line.is_sound) = (is_judged_by_total, differences.is_none());
        line
    }
}
