//! The results as Markdown.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use super::contender::Contender;
use super::faults::{Damage, FAIL_AFTER, SDK_RATE};
use super::latency::{Latency, RATE};
use super::speed::Speed;
use super::targets;
use crate::bench;
use crate::bench::measure::{grouped, median};
use crate::machine;

/// The region of a file that is rewritten lies between two of these lines.
pub const MARK: &str = "<!-- bench-peers -->";
const REQUIREMENTS: &str = include_str!("../../peers/requirements.txt");
/// Above this share of its one thread the sink may have been what was measured.
const SINK_BUSY: f64 = 0.8;

/// What all runs showed.
pub struct Results {
    events: usize,
    is_quick: bool,
    /// The machine, the program, and when the benchmark began.
    context: String,
    /// Python and the peers' packages.
    python: Option<String>,
    /// Of the machine, when the benchmark began: 0 is idle.
    load: String,
    speeds: Vec<(Contender, Vec<Speed>)>,
    latencies: Vec<(Contender, Vec<Latency>)>,
    damages: Vec<(Contender, Vec<Damage>)>,
    /// Who could not run, and why.
    pub missing: Vec<(Contender, String)>,
    /// What failed, and why.
    pub failed: Vec<(String, String)>,
}

impl Results {
    /// Of no runs yet.
    pub fn new(events: usize, is_quick: bool, python: Option<&Path>) -> Self {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            events,
            is_quick,
            context: format!("{}taken    {}\n", bench::context(), machine::now()),
            python: python.and_then(versions),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
            speeds: Vec::new(),
            latencies: Vec::new(),
            damages: Vec::new(),
            missing: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Adds a run.
    pub fn speed(&mut self, contender: Contender, speed: Speed) {
        add(&mut self.speeds, contender, speed);
    }

    /// Adds a run.
    pub fn latency(&mut self, contender: Contender, latency: Latency) {
        add(&mut self.latencies, contender, latency);
    }

    /// Adds a run.
    pub fn damage(&mut self, contender: Contender, damage: Damage) {
        add(&mut self.damages, contender, damage);
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.speeds.is_empty() && self.latencies.is_empty() && self.damages.is_empty()
    }

    /// All tables.
    pub fn tables(&self) -> String {
        let mut text = self.context();
        let targets = targets::table(self.events, &self.speeds, &self.latencies);
        for part in [self.speed_table(), self.latency_table(), self.damage_table(), targets] {
            if !part.is_empty() {
                text.push('\n');
                text.push_str(&part);
            }
        }
        text
    }

    fn context(&self) -> String {
        let mut text = format!("```text\n{}", self.context);
        let _ = writeln!(text, "python   {}", self.python.as_deref().unwrap_or("not installed"));
        let _ = writeln!(text, "load     {} when it began", self.load);
        let _ = writeln!(text, "command  {}", command_line());
        if self.is_quick {
            text.push_str("a quick run: its figures mean little\n");
        }
        for (contender, reason) in &self.missing {
            let _ = writeln!(text, "left out {}: {reason}", contender.title());
        }
        for (what, reason) in &self.failed {
            let _ = writeln!(text, "failed   {what}: {reason}");
        }
        text + "```\n"
    }

    fn speed_table(&self) -> String {
        if self.speeds.is_empty() {
            return String::new();
        }
        let mut text = format!("### Speed and cost\n\n{}\n\n", medians(&self.speeds));
        text.push_str(
            "| | events | events/s | events per CPU-second | bytes per event | peak RSS, MB | sink busy, % |\n",
        );
        text.push_str("|---|--:|--:|--:|--:|--:|--:|\n");
        for (contender, runs) in &self.speeds {
            let spread = |value: fn(&Speed) -> f64| spread(runs.iter().map(value).collect());
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} |",
                contender.title(),
                grouped(runs[0].events as f64),
                spread(|run| run.pace.per_second),
                spread(|run| run.per_cpu_second),
                grouped(median(runs.iter().map(|run| run.bytes_per_event).collect())),
                spread(|run| megabytes(run.peak_resident)),
                spread(|run| 100.0 * run.pace.sink_busy),
            );
        }
        let held_up = self.speeds.iter().filter(|(contender, _)| {
            median_of(&self.speeds, *contender, |run| run.pace.sink_busy).is_some_and(|busy| busy > SINK_BUSY)
        });
        let held_up: Vec<_> = held_up.map(|(contender, _)| contender.title()).collect();
        if !held_up.is_empty() {
            let _ = writeln!(
                text,
                "\nThe sink was busy for more than {:.0} % of the time, so that these could be faster than the table \
                 says: {}.",
                100.0 * SINK_BUSY,
                held_up.join("; "),
            );
        }
        text
    }

    fn latency_table(&self) -> String {
        if self.latencies.is_empty() {
            return String::new();
        }
        let mut text = format!("### Latency at {RATE} events/s\n\n{}\n\n", medians(&self.latencies));
        text.push_str("| | p50, ms | p99, ms |\n|---|--:|--:|\n");
        for (contender, runs) in &self.latencies {
            let accepted = median(runs.iter().map(|run| run.accepted).collect());
            let late = if accepted < 0.999 {
                format!(": falls behind, {:.0} % accepted in time", 100.0 * accepted)
            } else {
                String::new()
            };
            let spread = |value: fn(&Latency) -> f64| spread(runs.iter().map(value).collect());
            let (p50, p99) = (spread(|run| run.p50), spread(|run| run.p99));
            let _ = writeln!(text, "| {}{late} | {p50} | {p99} |", contender.title());
        }
        text
    }

    fn damage_table(&self) -> String {
        if self.damages.is_empty() {
            return String::new();
        }
        let mut text = format!(
            "### {:.0} % of requests fail after they were accepted, and one SIGKILL\n\n{} The rows of the Python SDK are given {SDK_RATE} \
             events/s; all others work off a backlog.\n\n",
            100.0 * FAIL_AFTER,
            medians(&self.damages),
        );
        text.push_str(
            "| | runs | events | failed requests | lost | billed twice | copies that the sandbox recognised |\n",
        );
        text.push_str("|---|--:|--:|--:|--:|--:|--:|\n");
        for (contender, runs) in &self.damages {
            let spread = |value: fn(&Damage) -> f64| spread(runs.iter().map(value).collect());
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} |",
                contender.title(),
                runs.len(),
                grouped(runs[0].events as f64),
                spread(|run| run.failed as f64),
                spread(|run| run.lost as f64),
                spread(|run| run.doubled as f64),
                spread(|run| run.absorbed as f64),
            );
        }
        text
    }
}

/// Makes sure that a file has a region that can be rewritten.
pub fn check(file: &Path) -> anyhow::Result<()> {
    region(file).map(|_| ())
}

/// Rewrites the marked region of a file.
pub fn write(file: &Path, tables: &str) -> anyhow::Result<()> {
    let (before, after) = region(file)?;
    std::fs::write(file, format!("{before}{MARK}\n\n{tables}\n{MARK}{after}"))
        .with_context(|| file.display().to_string())
}

/// What is before and after the marked region.
fn region(file: &Path) -> anyhow::Result<(String, String)> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let [before, _, after] = text.split(MARK).collect::<Vec<_>>()[..] else {
        anyhow::bail!("{} needs exactly two lines {MARK}, between which the tables go", file.display());
    };
    Ok((before.to_owned(), after.to_owned()))
}

/// The median of a contender's runs.
pub fn median_of<T>(all: &[(Contender, Vec<T>)], contender: Contender, value: fn(&T) -> f64) -> Option<f64> {
    let (_, runs) = all.iter().find(|(one, _)| *one == contender)?;
    Some(median(runs.iter().map(value).collect()))
}

fn add<T>(all: &mut Vec<(Contender, Vec<T>)>, contender: Contender, run: T) {
    match all.iter_mut().find(|(one, _)| *one == contender) {
        Some((_, runs)) => runs.push(run),
        None => all.push((contender, vec![run])),
    }
}

fn medians<T>(all: &[(Contender, Vec<T>)]) -> String {
    let counts = || all.iter().map(|(_, runs)| runs.len());
    let runs = counts().max().unwrap_or_default();
    let up_to = if counts().all(|count| count == runs) { "" } else { "up to " };
    match runs {
        2.. => format!("Medians of {up_to}{runs} runs in turns, and in parentheses the least and the most."),
        _ => "One run each.".to_owned(),
    }
}

/// `middle (least to most)`
fn spread(values: Vec<f64>) -> String {
    let (least, most) = values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(*value), most.max(*value)));
    let number = |value: f64| if value.is_finite() { grouped(value) } else { "never".to_owned() };
    match values.len() {
        1 => number(least),
        _ => format!("{} ({} to {})", number(median(values)), number(least), number(most)),
    }
}

/// Python's version, and those of the packages that are compared.
fn versions(python: &Path) -> Option<String> {
    let output = Command::new(python).arg("--version").output().ok()?;
    let mut versions = vec![String::from_utf8_lossy(&output.stdout).trim().to_owned()];
    let compared =
        |line: &&str| ["amberflo-metering-python=", "kcl-rs=", "requests="].iter().any(|name| line.starts_with(name));
    versions.extend(REQUIREMENTS.lines().filter(compared).map(|line| line.replace("==", " ")));
    Some(versions.join(", "))
}

/// Bytes as MB: 10^6.
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The command that repeats this run, in the repository.
pub fn command_line() -> String {
    let mut args = std::env::args().skip(1);
    let target = args.next().unwrap_or_default();
    let args: Vec<_> = args.collect();
    if args.is_empty() { format!("make {target}") } else { format!("make {target} ARGS='{}'", args.join(" ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_marked_region_of_a_file_is_rewritten() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.md");
        std::fs::write(&file, format!("one\n{MARK}\nold\n{MARK}\ntwo\n")).unwrap();
        write(&file, "new\n").unwrap();
        write(&file, "newer\n").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("one\n{MARK}\n\nnewer\n\n{MARK}\ntwo\n"));
        std::fs::write(&file, "no marks").unwrap();
        let error = write(&file, "new").unwrap_err().to_string();
        assert!(error.contains("a.md") && error.contains(MARK), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "no marks");
    }

    #[test]
    fn the_document_has_a_region_for_the_tables() {
        check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("BENCHMARK.md")).unwrap();
    }

    #[test]
    fn runs_have_a_spread_and_a_busy_sink_and_failures_are_named() {
        let mut results = Results::new(1000, true, None);
        assert!(results.is_empty());
        for (per_second, sink_busy) in [(10.0, 0.7), (30.0, 0.9), (20.0, 0.85)] {
            let pace = super::super::sink::Pace { per_second, sink_busy };
            let (bytes_per_event, peak_resident) = (50.0, 2_000_000);
            let speed = Speed { events: 1000, pace, per_cpu_second: 1000.0, bytes_per_event, peak_resident };
            results.speed(Contender::BareLoop, speed);
        }
        results.failed.push(("Python SDK, speed 1/3".to_owned(), "it ended".to_owned()));
        let tables = results.tables();
        for text in [
            "Medians of 3 runs",
            "| bare Rust loop | 1,000 | 20 (10 to 30) | 1,000 (1,000 to 1,000) | 50 | 2 (2 to 2) | 85 (70 to 90) |",
            "faster than the table says: bare Rust loop.\n",
            "failed   Python SDK, speed 1/3: it ended\n",
        ] {
            assert!(tables.contains(text), "{text}\n{tables}");
        }
    }
}
