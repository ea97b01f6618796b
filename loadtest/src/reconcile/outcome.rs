//! What an audit found, for people and for programs.

mod tenants;

use std::path::Path;

use amberflo_sandbox::Total;
use indicatif::HumanCount;
use serde::Serialize;

use crate::audit::{Audit, MeterLine, TenantLine};
use crate::manifest::Header;
use crate::report::Speed;
use crate::report_dir::ReportDir;

/// Lines of tenants in the report, at most; all are in result.json.
const LINES_MAX: usize = 100;
/// The same on the terminal, where only those that differ are shown.
const SHOWN_MAX: usize = 20;

/// What an audit comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every promise was kept, as far as it can be seen.
    Passed,
    /// There are differences.
    Failed,
    /// Not all dead letters could be read: what seems lost or missing may be among them, and so may what should not be
    /// there.
    Incomplete,
}

/// The result of an audit.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Whether every promise was kept, as far as it can be seen.
    passed: bool,
    runs: Vec<Header>,
    #[serde(flatten)]
    audit: Audit,
    /// By tenant and meter.
    tenants: Vec<TenantLine>,
    /// Identical copies that the ledger's own deduplication absorbed, of all runs; where it tells.
    absorbed_copies: Option<u64>,
    /// From the call that was acknowledged to the ledger, where that tells when.
    delivery_latency: Option<DeliveryLatency>,
    /// Why not all dead letters were read, and what to do.
    unread_dead_letters: Option<String>,
    /// What could not be seen, and what is odd.
    notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct DeliveryLatency {
    p50_ms: u64,
    p90_ms: u64,
    p99_ms: u64,
    max_ms: u64,
}

impl Outcome {
    /// Of an audit that is over. Speed and absorbed copies are there where the ledger tells of them.
    pub fn new(
        runs: Vec<Header>,
        mut audit: Audit,
        speed: Option<&Speed>,
        absorbed_copies: Option<u64>,
        unread_dead_letters: Option<String>,
        notes: Vec<String>,
    ) -> Self {
        let delivery_latency = speed.map(|speed| {
            let [p50_ms, p90_ms, p99_ms, max_ms] = [0.5, 0.9, 0.99, 1.0].map(|share| speed.percentile_ms(share));
            DeliveryLatency { p50_ms, p90_ms, p99_ms, max_ms }
        });
        let tenants = std::mem::take(&mut audit.lines);
        let passed = audit.passed() && unread_dead_letters.is_none();
        Self { passed, runs, audit, tenants, absorbed_copies, delivery_latency, unread_dead_letters, notes }
    }

    /// What it comes to.
    pub fn verdict(&self) -> Verdict {
        match self.passed {
            true => Verdict::Passed,
            false if self.unread_dead_letters.is_some() => Verdict::Incomplete,
            false => Verdict::Failed,
        }
    }

    /// The result in lines.
    pub fn text(&self) -> String {
        let mut text: String = self.lines().iter().map(|[name, value]| format!("{name:<21}{value}\n")).collect();
        text.extend(self.audit.findings.iter().map(|finding| format!("  finding: {finding}\n")));
        let differing: Vec<_> = self.tenants.iter().filter(|line| !line.is_sound).collect();
        let shown = differing.iter().take(SHOWN_MAX);
        text.extend(shown.map(|line| format!("  differs: {}\n", tenants::differences(line))));
        if differing.len() > SHOWN_MAX {
            let more = HumanCount((differing.len() - SHOWN_MAX) as u64);
            text += &format!("  {more} more tenants and meters differ: they are in the report\n");
        }
        text.extend(self.notes.iter().map(|note| format!("  note: {note}\n")));
        text.extend(
            self.unread_dead_letters.iter().map(|unread| format!("  not all dead letters were read: {unread}\n")),
        );
        text + self.words()
    }

    fn words(&self) -> &'static str {
        match self.verdict() {
            Verdict::Passed if self.audit.judged_by_sums > 0 => "PASSED, as far as totals can show it",
            Verdict::Passed => "PASSED: every event is accounted for, once",
            Verdict::Failed => "FAILED: there are differences",
            Verdict::Incomplete => "INCOMPLETE: not all dead letters could be read, so nothing here is certain",
        }
    }

    fn lines(&self) -> Vec<[String; 2]> {
        let audit = &self.audit;
        let count = |number: u64| HumanCount(number).to_string();
        let parts = [
            (audit.unique_valid, "unique valid"),
            (audit.duplicates, "copies"),
            (audit.conflicts_emitted, "conflicts"),
            (audit.malformed, "malformed"),
        ];
        let parts: Vec<_> = parts.map(|(number, what)| format!("{} {what}", count(number))).into();
        let reasons: Vec<_> = audit.dead_letters.iter().map(|(reason, n)| format!("{} {reason}", count(*n))).collect();
        let mut lines = vec![
            ("acknowledged", format!("{} = {}", count(audit.emitted), parts.join(" + "))),
            ("never acknowledged", format!("{} (billed or not, both is right)", count(audit.unacknowledged))),
            ("billed", count(audit.delivered)),
            (
                "dead letters",
                match &reasons[..] {
                    [] => "0".to_owned(),
                    reasons => format!("{} = {}", count(audit.dead_lettered), reasons.join(" + ")),
                },
            ),
            ("lost", count(audit.lost)),
            ("double-billed", count(audit.double_billed)),
            ("underbilled", count(audit.underbilled)),
            ("misbilled", count(audit.misbilled)),
            ("late", count(audit.late)),
            ("missing dead letters", format!("{} (malformed or conflicting)", count(audit.missing_dead_letters))),
            ("unexpected", count(audit.unexpected)),
        ];
        if audit.judged_by_sums > 0 {
            lines.insert(3, ("judged by totals", count(audit.judged_by_sums)));
        }
        if let Some(copies) = self.absorbed_copies {
            lines.push((
                "absorbed copies",
                format!("{} identical ones, of all that the ledger has, by its deduplication", count(copies)),
            ));
        }
        if let Some(DeliveryLatency { p50_ms, p90_ms, p99_ms, max_ms }) = self.delivery_latency {
            lines.push(("delivery", format!("p50 {p50_ms} ms, p90 {p90_ms}, p99 {p99_ms}, max {max_ms}")));
        }
        if audit.dead_letter_copies > 0 {
            lines.push(("letter copies", format!("{} more of the same dead letters", count(audit.dead_letter_copies))));
        }
        if audit.foreign_records + audit.foreign_letters > 0 {
            let (records, letters) = (count(audit.foreign_records), count(audit.foreign_letters));
            lines.push(("of others", format!("{records} records and {letters} dead letters, not judged")));
        }
        lines.into_iter().map(|(name, value)| [name.to_owned(), value]).collect()
    }

    /// Writes the report.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn report(&self, dir: &Path) -> anyhow::Result<()> {
        let mut report = ReportDir::create(dir, "Audit")?;
        report.text(&format!("**{}**", self.words()));
        if let Some(unread) = &self.unread_dead_letters {
            report.text(unread);
        }
        for run in &self.runs {
            let began = jiff::Timestamp::from_millisecond(run.started_at).unwrap_or_default();
            report.text(&format!("Run `{}` of {began} on {}, seed {}.", run.run, run.target, run.seed));
        }
        report.table(["", "events"], &self.lines());
        if !self.audit.findings.is_empty() {
            report.section("First differences");
            report.text(&list(&self.audit.findings));
        }
        report.section("By meter");
        let heads = ["meter", "emitted", "unique", "billed", "rejected", "expected total", "billed total"];
        report.table(heads, &self.audit.meters.iter().map(row).collect::<Vec<_>>());
        // What differs first.
        let mut lines: Vec<_> = self.tenants.iter().collect();
        lines.sort_by_key(|line| line.is_sound);
        report.section("By tenant and meter");
        let shown = &lines[..lines.len().min(LINES_MAX)];
        let rows = shown.iter().map(|line| tenants::row(line, self.audit.late_judged));
        report.table(tenants::HEADS, &rows.collect::<Vec<_>>());
        if lines.len() > shown.len() {
            report.text(&format!("{} more are in result.json.", lines.len() - shown.len()));
        }
        if !self.notes.is_empty() {
            report.section("What this does not show");
            report.text(&list(&self.notes));
        }
        report.finish(self)
    }
}

fn list(items: &[String]) -> String {
    items.iter().map(|item| format!("- {}\n", item.replace('\n', " "))).collect()
}

fn row(line: &MeterLine) -> [String; 7] {
    let [emitted, unique, billed, refused] =
        [line.emitted, line.unique_valid, line.delivered, line.refused].map(|number| HumanCount(number).to_string());
    [line.meter.clone(), emitted, unique, billed, refused, amount(line.expected), amount(line.billed)]
}

fn amount(total: Total) -> String {
    if total.decimals == 0.0 { total.integers.to_string() } else { total.as_f64().to_string() }
}
