//! What an audit found, for people and for programs.

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
    /// Of an audit that is over. `has_times`: the ledger tells of absorbed copies and times.
    pub fn new(
        runs: Vec<Header>,
        mut audit: Audit,
        speed: &Speed,
        absorbed_copies: u64,
        has_times: bool,
        notes: Vec<String>,
    ) -> Self {
        let [p50_ms, p90_ms, p99_ms, max_ms] = [0.5, 0.9, 0.99, 1.0].map(|share| speed.percentile_ms(share));
        let delivery_latency = has_times.then_some(DeliveryLatency { p50_ms, p90_ms, p99_ms, max_ms });
        let tenants = std::mem::take(&mut audit.lines);
        let absorbed_copies = has_times.then_some(absorbed_copies);
        Self { passed: audit.passed(), runs, audit, tenants, absorbed_copies, delivery_latency, notes }
    }

    /// Whether every promise was kept.
    pub fn passed(&self) -> bool {
        self.passed
    }

    /// The result in lines.
    pub fn text(&self) -> String {
        let mut text: String = self.lines().iter().map(|[name, value]| format!("{name:<21}{value}\n")).collect();
        text.extend(self.audit.findings.iter().map(|finding| format!("  finding: {finding}\n")));
        text.extend(self.notes.iter().map(|note| format!("  note: {note}\n")));
        text + self.verdict()
    }

    fn verdict(&self) -> &'static str {
        match self.passed {
            true if self.audit.judged_by_sums > 0 => "PASSED, as far as totals can show it",
            true => "PASSED: every event is accounted for, once",
            false => "FAILED: there are differences",
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
        report.text(&format!("**{}**", self.verdict()));
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
        let mut tenants: Vec<_> = self.tenants.iter().collect();
        tenants.sort_by_key(|line| line.is_sound);
        report.section("By tenant and meter");
        let shown = &tenants[..tenants.len().min(LINES_MAX)];
        let heads = ["tenant", "meter", "unique", "billed", "lost", "expected total", "billed total", ""];
        report.table(heads, &shown.iter().map(|line| tenant_row(line)).collect::<Vec<_>>());
        if tenants.len() > shown.len() {
            report.text(&format!("{} more are in result.json.", tenants.len() - shown.len()));
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

fn tenant_row(tenant: &TenantLine) -> [String; 8] {
    let line = &tenant.line;
    let counts = [line.unique_valid, line.delivered, tenant.lost].map(|number| HumanCount(number).to_string());
    let [unique, billed, lost] = counts;
    let verdict = if tenant.is_sound { "equal" } else { "**differs**" };
    [
        tenant.tenant.clone(),
        line.meter.clone(),
        unique,
        billed,
        lost,
        amount(line.expected),
        amount(line.billed),
        verdict.to_owned(),
    ]
}

fn amount(total: Total) -> String {
    if total.decimals == 0.0 { total.integers.to_string() } else { total.as_f64().to_string() }
}
