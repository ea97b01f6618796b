//! The result of a run: `report.md` with its charts beside it, and `result.json`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use super::board::{Note, Point};
use super::finish::Outcome;
use super::kind::{ArenaName, KINDS};
use crate::chart::{Chart, Mark, Series};
use crate::machine::Machine;
use crate::report_dir::cell;

/// How a run was asked for, and what came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether every promise was kept.
    pub passed: bool,
    /// The command that repeats it.
    pub command: String,
    /// Of which source tree.
    pub commit: Option<String>,
    /// The seed.
    pub seed: u64,
    /// Emission and faults, in minutes.
    pub minutes: f64,
    /// Entries per second, by arena.
    pub rates: BTreeMap<ArenaName, u32>,
    /// Kinds that could not be carried out here, and why.
    pub left_out: Vec<String>,
    /// How long nothing may be delivered while nothing is broken, in seconds; `None` where that was not checked.
    pub patience: Option<f64>,
    /// On what.
    pub machine: Machine,
    /// How often each fault was to be injected, by arena.
    pub planned: BTreeMap<ArenaName, BTreeMap<&'static str, u64>>,
    /// By arena.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// Writes all files into this directory.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            // Errors of a local store name it; where this repository lies tells a reader nothing.
            let text = text.replace(concat!(env!("CARGO_MANIFEST_DIR"), "/../"), "");
            std::fs::write(&path, text).with_context(|| path.display().to_string())
        };
        for outcome in &self.outcomes {
            for (name, chart) in charts(outcome) {
                write(&format!("{}-{name}.svg", outcome.arena), chart.svg()?)?;
            }
        }
        write("result.json", serde_json::to_string_pretty(self)? + "\n")?;
        write("report.md", self.markdown())
    }

    /// The verdict, for who waited for it.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for outcome in &self.outcomes {
            let Outcome { arena, passed, failures, audit, kills, absorbed_by_amberflo, .. } = outcome;
            // Writing to a String cannot fail.
            if !outcome.is_complete {
                let _ = writeln!(text, "{arena}: FAILED: it did not come to its end");
                failures.iter().for_each(|failure| {
                    let _ = writeln!(text, "  FAILED  {failure}");
                });
                continue;
            }
            let letters = audit.dead_lettered;
            let verdict = if *passed { "passed" } else { "FAILED" };
            let events = audit.unique_valid;
            let _ = writeln!(
                text,
                "{arena}: {verdict}: {events} events, {} billed, lost {}, billed twice {}, misbilled {}, underbilled {}; \
                 {letters} dead letters, {} missing; {kills} kills, {absorbed_by_amberflo} copies absorbed by Amberflo",
                audit.delivered,
                audit.lost,
                audit.double_billed,
                audit.misbilled,
                audit.underbilled,
                audit.missing_dead_letters
            );
            failures.iter().for_each(|failure| {
                let _ = writeln!(text, "  FAILED  {failure}");
            });
        }
        text + &self.verdict("PASSED")
    }

    /// A run that left things out does not pass for one that did not.
    fn verdict(&self, passed: &str) -> String {
        match (self.passed, self.left_out.is_empty()) {
            (false, _) => "FAILED".to_owned(),
            (true, true) => format!("{passed}: every event is accounted for, once"),
            (true, false) => format!("{passed}, without: {}", self.left_out.join("; ")),
        }
    }

    fn markdown(&self) -> String {
        let mut text = String::new();
        let Machine { cores, cpu, os, rustc, profile } = &self.machine;
        let verdict = self.verdict("passed");
        let commit = self.commit.as_ref().map(|commit| format!("| commit | {commit} |\n")).unwrap_or_default();
        let patience = match self.patience {
            Some(seconds) => format!("nothing delivered for {seconds:.0} s while nothing is broken"),
            None => "not checked: the calms are too short".to_owned(),
        };
        let rates: Vec<_> = self.rates.iter().map(|(arena, rate)| format!("{arena} {rate}")).collect();
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "# Chaos run, seed {}\n\n**Result: {verdict}.**\n\n    {}\n\n| | |\n|---|---|\n{commit}| length | {} min of faults, then \
             the settling |\n| load | {} events/s, copies included |\n| machine | {cores} cores, {cpu}, \
             {os} |\n| built with | {rustc}, {profile} |\n| a standstill | {patience} |\n| left out | {} |\n",
            self.seed,
            self.command,
            self.minutes,
            rates.join(", "),
            if self.left_out.is_empty() { "nothing".to_owned() } else { self.left_out.join("; ") },
        );
        for outcome in &self.outcomes {
            outcome_section(outcome, &mut text);
        }
        self.actions_section(&mut text);
        for outcome in &self.outcomes {
            timeline(outcome.arena, &outcome.notes, &mut text);
        }
        text
    }

    fn actions_section(&self, text: &mut String) {
        text.push_str(
            "\n## What was done to them\n\nPlanned; done, as some faults find nothing to befall; and how many calls met \
             them. Calls are not counted where connections are refused, and where the answers look like others.\n\n\
             | fault | |",
        );
        for outcome in &self.outcomes {
            let _ = write!(text, " {}: planned | done | calls |", outcome.arena);
        }
        text.push_str("\n|---|---|");
        self.outcomes.iter().for_each(|_| text.push_str("--:|--:|--:|"));
        text.push('\n');
        for kind in KINDS {
            let _ = write!(text, "| {} | {} |", kind.name, kind.what);
            for outcome in &self.outcomes {
                let planned = self.planned.get(&outcome.arena).and_then(|counts| counts.get(kind.name));
                let done = planned.map(|_| outcome.done.get(kind.name).unwrap_or(&0));
                let befell = done.filter(|_| kind.is_counted() && outcome.is_complete);
                let befell = befell.map(|_| outcome.befell.get(kind.name).unwrap_or(&0));
                for count in [planned, done, befell] {
                    let _ = write!(text, " {} |", count.map_or("-".to_owned(), u64::to_string));
                }
            }
            text.push('\n');
        }
    }
}

fn outcome_section(outcome: &Outcome, text: &mut String) {
    // Writing to a String cannot fail.
    let Outcome { arena, audit, .. } = outcome;
    let _ = write!(text, "\n## {arena}: {}\n\n", if outcome.passed { "passed" } else { "FAILED" });
    for failure in &outcome.failures {
        let _ = writeln!(text, "- {}", cell(failure));
    }
    if !outcome.failures.is_empty() {
        text.push('\n');
    }
    if !outcome.is_complete {
        text.push_str("It did not come to its end: there is no audit.\n");
        chart_links(outcome, text);
        return;
    }
    text.push_str("| meter | well-formed | events | billed | lost or left over | total used | total billed |\n|---|--:|--:|--:|--:|--:|--:|\n");
    for meter in &audit.meters {
        let missing = meter.unique_valid as i64 - meter.delivered as i64;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {missing} | {} | {} |",
            meter.meter,
            meter.emitted,
            meter.unique_valid,
            meter.delivered,
            meter.expected.as_f64(),
            meter.billed.as_f64()
        );
    }
    let letters: Vec<_> = audit.dead_letters.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    let rows = [
        ("acknowledged entries", audit.emitted.to_string()),
        ("of these copies by producers", audit.duplicates.to_string()),
        ("lost", audit.lost.to_string()),
        ("billed twice", audit.double_billed.to_string()),
        ("misbilled", audit.misbilled.to_string()),
        ("billed less than used, in sum", audit.underbilled.to_string()),
        ("missing dead letters", audit.missing_dead_letters.to_string()),
        ("unexpected", audit.unexpected.to_string()),
        (
            "dead letters at the end",
            format!("{} ({}), {} copies of them", audit.dead_lettered, letters.join(", "), audit.dead_letter_copies),
        ),
        ("copies that Amberflo's deduplication absorbed", outcome.absorbed_by_amberflo.to_string()),
        ("workers killed with SIGKILL", outcome.kills.to_string()),
        ("calls of producers that failed, and were made again", outcome.failed_calls.to_string()),
        ("records of the bill checked while it ran", outcome.records_checked.to_string()),
        ("events behind checkpoints looked for on the bill", outcome.checkpoints_checked.to_string()),
        ("settled after", format!("{:.0} s", outcome.settled_after)),
    ];
    text.push_str("\n| | |\n|---|---|\n");
    for (name, value) in rows {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    chart_links(outcome, text);
}

fn chart_links(outcome: &Outcome, text: &mut String) {
    for (name, chart) in charts(outcome) {
        let _ = write!(text, "\n![{}]({}-{name}.svg)\n", chart.title, outcome.arena);
    }
}

fn timeline(arena: ArenaName, notes: &[Note], text: &mut String) {
    let _ = write!(text, "\n## Timeline of {arena}\n\n| s | | |\n|--:|---|---|\n");
    for note in notes {
        let _ = writeln!(text, "| {:.1} | {} | {} |", note.at, cell(&note.subject), cell(&note.text));
    }
}

fn charts(outcome: &Outcome) -> Vec<(&'static str, Chart)> {
    let points = &outcome.points;
    let line = |value: fn(&Point) -> Option<f64>| {
        points.iter().filter_map(|point| Some((point.at, value(point)?))).collect::<Vec<_>>()
    };
    let kills = outcome.notes.iter().filter(|note| note.subject == "kill" && note.text.ends_with("killed"));
    let chart = |title: &str, y_label: &str, series| Chart {
        title: format!("{}: {title}", outcome.arena),
        x_label: "time [s]".to_owned(),
        y_label: y_label.to_owned(),
        series,
        marks: kills.clone().map(|note| Mark { at: note.at, label: "kill -9".to_owned() }).collect(),
        ..Chart::default()
    };
    vec![
        (
            "rate",
            chart(
                "emitted and delivered",
                "events/s",
                vec![
                    Series::new("emitted", rate(points, |point| point.emitted)),
                    Series::new("delivered", rate(points, |point| point.delivered)),
                ],
            ),
        ),
        ("lag", chart("lag", "s", vec![Series::new("lag", line(|point| point.lag))])),
        (
            "fleet",
            chart(
                "workers that answer, and faults in force",
                "count",
                vec![
                    Series::new("workers", line(|point| Some(point.alive as f64))),
                    Series::new("faults", line(|point| Some(point.faults as f64))),
                ],
            ),
        ),
    ]
}

/// The mean over five seconds of what a counter gained.
fn rate(points: &[Point], count: fn(&Point) -> u64) -> Vec<(f64, f64)> {
    const MEAN: f64 = 5.0;
    let mut first = 0;
    let mut rates = Vec::new();
    for (index, point) in points.iter().enumerate() {
        while first + 1 < index && points[first + 1].at <= point.at - MEAN {
            first += 1;
        }
        let seconds = point.at - points[first].at;
        if seconds > 0.0 {
            rates.push((point.at, count(point).saturating_sub(count(&points[first])) as f64 / seconds));
        }
    }
    rates
}

#[cfg(test)]
mod tests;
