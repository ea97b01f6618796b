//! The result, for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::exchange::{Exchange, brief};
use super::probe::Probe;

/// Exchanges shown on a terminal for each probe that is not confirmed.
const SHOWN: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Confirmed,
    Refuted,
    Unclear,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Refuted => "refuted",
            Self::Unclear => "unclear",
        }
    }
}

/// What became of one probe.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub id: &'static str,
    pub sureness: super::probe::Sureness,
    pub claim: &'static str,
    pub does: &'static str,
    pub confirmed_if: &'static str,
    pub refuted_if: &'static str,
    pub if_refuted: &'static str,
    pub verdict: Verdict,
    pub finding: String,
    pub exchanges: Vec<Exchange>,
}

impl Outcome {
    pub fn of(probe: &Probe, verdict: Verdict, finding: String, exchanges: Vec<Exchange>) -> Self {
        let Probe { id, sureness, claim, does, confirmed_if, refuted_if, if_refuted, .. } = *probe;
        Self { id, sureness, claim, does, confirmed_if, refuted_if, if_refuted, verdict, finding, exchanges }
    }
}

/// A run that came as far as its probes.
#[derive(Debug, Serialize)]
pub struct Report {
    pub version: &'static str,
    pub started: String,
    pub base_url: String,
    pub ingest_url: String,
    pub meter: String,
    /// How long usage was waited for, and how long it had to stay the same.
    pub patience: String,
    pub settle: String,
    pub is_interrupted: bool,
    pub requests: u64,
    /// Answers 429; they are never provoked.
    pub throttled: u64,
    /// Of those, with `Retry-After`.
    pub throttled_with_retry_after: u64,
    /// Requests without an answer.
    pub failed_requests: u64,
    pub outcomes: Vec<Outcome>,
    /// What could not be removed from the account.
    pub left: Vec<String>,
}

impl Report {
    pub fn count(&self, verdict: Verdict) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.verdict == verdict).count()
    }

    /// One line with the counts.
    pub fn summary(&self) -> String {
        let [confirmed, refuted, unclear] =
            [Verdict::Confirmed, Verdict::Refuted, Verdict::Unclear].map(|verdict| self.count(verdict));
        let interrupted = if self.is_interrupted { "; interrupted" } else { "" };
        format!("{confirmed} confirmed, {refuted} refuted, {unclear} unclear{interrupted}")
    }

    fn observed(&self) -> String {
        let Self { requests, throttled, throttled_with_retry_after, failed_requests, .. } = self;
        format!(
            "{requests} requests, {failed_requests} without an answer; 429: {throttled}, of which \
             {throttled_with_retry_after} with Retry-After"
        )
    }

    /// For a terminal: a table, then what is not confirmed with its exchanges, and where all are.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let width = self.outcomes.iter().map(|outcome| outcome.id.len()).max().unwrap_or_default();
        for Outcome { id, verdict, sureness, finding, .. } in &self.outcomes {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{id:<width$}  {:<9}  {:<8}  {}", verdict.name(), sureness.name(), brief(finding));
        }
        for outcome in self.outcomes.iter().filter(|outcome| outcome.verdict != Verdict::Confirmed) {
            let Outcome { id, verdict, claim, finding, if_refuted, exchanges, .. } = outcome;
            let _ = writeln!(out, "\n{id}: {}\n  {claim}\n  {finding}", verdict.name());
            if *verdict == Verdict::Refuted {
                let _ = writeln!(out, "  What follows: {if_refuted}");
            }
            let hidden = exchanges.len().saturating_sub(SHOWN);
            if hidden > 0 {
                let _ = writeln!(out, "    ({hidden} earlier exchanges: --report shows them)");
            }
            for exchange in &exchanges[hidden..] {
                let _ = writeln!(out, "{}", indented(&format!("{exchange:.300}")));
            }
        }
        if self.count(Verdict::Confirmed) > 0 {
            let _ = writeln!(out, "\nThe exchanges of what is confirmed: --report shows them");
        }
        let _ = writeln!(out, "\n{}", self.observed());
        for left in &self.left {
            let _ = writeln!(out, "stays behind: {left}");
        }
        let _ = write!(out, "{}", self.summary());
        out
    }

    /// For a file: everything.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "# What we assume of Amberflo: {}\n", self.summary());
        let _ = writeln!(
            out,
            "{} by loadtest {} at {}, usage to {}; meter `{}`; usage was waited for up to {}, and had to stay the same for \
             {}.\n\n{}.\n",
            self.started,
            self.version,
            self.base_url,
            self.ingest_url,
            self.meter,
            self.patience,
            self.settle,
            self.observed()
        );
        let _ = writeln!(out, "| probe | verdict | without it | assumption | found |\n|---|---|---|---|---|");
        for Outcome { id, verdict, sureness, claim, finding, .. } in &self.outcomes {
            let (verdict, sureness, found) = (verdict.name(), sureness.name(), cell(&brief(finding)));
            let _ = writeln!(out, "| [{id}](#{id}) | {verdict} | {sureness} | {} | {found} |", cell(claim));
        }
        if !self.left.is_empty() {
            let _ = writeln!(out, "\n## What stays behind\n");
        }
        for left in &self.left {
            let _ = writeln!(out, "- {}", cell(left));
        }
        for outcome in &self.outcomes {
            let Outcome { id, verdict, claim, does, confirmed_if, refuted_if, if_refuted, finding, exchanges, .. } =
                outcome;
            let _ = writeln!(out, "\n## {id}\n\n{claim}\n\n**{}**: {}\n", verdict.name(), cell(finding));
            let _ = writeln!(out, "- Experiment: {does}\n- Confirmed if: {confirmed_if}\n- Refuted if: {refuted_if}");
            let _ = writeln!(out, "- If refuted: {if_refuted}");
            for exchange in exchanges {
                // Indented by four, a body cannot end the block it is in.
                let _ = writeln!(out, "\n{}", indented(&exchange.to_string()));
            }
        }
        out
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// Foreign text within a table or a line: no markup of its own.
fn cell(text: &str) -> String {
    crate::report_dir::cell(text).replace('<', "&lt;")
}
