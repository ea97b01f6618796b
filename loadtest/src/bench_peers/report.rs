//! The results as Markdown.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use super::contender::Contender;
use super::faults::{Damage, FAIL_AFTER, SDK_RATE};
use super::latency::{Latency, RATE};
use super::speed::Speed;
use crate::bench;
use crate::bench::measure::{grouped, median};

/// The region of a file that is rewritten lies between two of these lines.
pub const MARK: &str = "<!-- bench-peers -->";
const REQUIREMENTS: &str = include_str!("../../peers/requirements.txt");
/// The default of `BATCH_LINGER`, in milliseconds.
const LINGER: f64 = 1000.0;

/// What all runs showed.
pub struct Results {
    events: usize,
    is_quick: bool,
    /// Python and the peers' packages.
    python: Option<String>,
    /// Of the machine, when the benchmark began: 0 is idle.
    load: String,
    speeds: Vec<(Contender, Vec<Speed>)>,
    latencies: Vec<(Contender, Vec<Latency>)>,
    damages: Vec<(Contender, Damage)>,
    /// Who could not run, and why.
    pub missing: Vec<(Contender, String)>,
}

impl Results {
    /// Of no runs yet.
    pub fn new(events: usize, is_quick: bool, python: Option<&Path>) -> Self {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            events,
            is_quick,
            python: python.and_then(versions),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
            speeds: Vec::new(),
            latencies: Vec::new(),
            damages: Vec::new(),
            missing: Vec::new(),
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
        self.damages.push((contender, damage));
    }

    /// All tables.
    pub fn tables(&self) -> String {
        let mut text = self.context();
        for part in [self.speed_table(), self.latency_table(), self.damage_table(), self.targets()] {
            if !part.is_empty() {
                text.push('\n');
                text.push_str(&part);
            }
        }
        text
    }

    fn context(&self) -> String {
        let mut text = format!("```text\n{}", bench::context());
        let _ = writeln!(text, "python   {}", self.python.as_deref().unwrap_or("not installed"));
        let _ = writeln!(text, "load     {} when it began", self.load);
        let _ = writeln!(text, "command  {}", command_line());
        if self.is_quick {
            text.push_str("a quick run: its figures mean little\n");
        }
        for (contender, reason) in &self.missing {
            let _ = writeln!(text, "left out {}: {reason}", contender.title());
        }
        text + "```\n"
    }

    fn speed_table(&self) -> String {
        let Some((_, first)) = self.speeds.first() else { return String::new() };
        let mut text = format!("### Speed and cost\n\n{}\n\n", medians(first.len()));
        text.push_str(
            "| | events | events/s | events per CPU-second | bytes per event | peak RSS, MiB |\n|---|--:|--:|--:|--:|--:|\n",
        );
        for (contender, runs) in &self.speeds {
            let spread = |value: fn(&Speed) -> f64| spread(runs.iter().map(value).collect());
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} |",
                contender.title(),
                grouped(runs[0].events as f64),
                spread(|run| run.per_second),
                spread(|run| run.per_cpu_second),
                grouped(median(runs.iter().map(|run| run.bytes_per_event).collect())),
                spread(|run| mebibytes(run.peak_resident)),
            );
        }
        text
    }

    fn latency_table(&self) -> String {
        let Some((_, first)) = self.latencies.first() else { return String::new() };
        let mut text = format!("### Latency at {RATE} events/s\n\n{}\n\n", medians(first.len()));
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
            "### {:.0} % of requests fail after they were accepted, and one SIGKILL\n\nOne run each; the SDK alone is fed {SDK_RATE} events/s.\n\n",
            100.0 * FAIL_AFTER
        );
        text.push_str("| | events | failed requests | lost | billed twice | copies that Amberflo recognised |\n");
        text.push_str("|---|--:|--:|--:|--:|--:|\n");
        for (contender, damage) in &self.damages {
            let numbers =
                [damage.events, damage.failed as usize, damage.lost, damage.doubled, damage.absorbed as usize];
            let numbers = numbers.map(|number| grouped(number as f64)).join(" | ");
            let _ = writeln!(text, "| {} | {numbers} |", contender.title());
        }
        text
    }

    fn targets(&self) -> String {
        let cpu = |contender| self.median_speed(contender, |run| run.per_cpu_second);
        let sdk = [Contender::Sdk100, Contender::Sdk1000].into_iter().filter_map(cpu).reduce(f64::max);
        let ours = cpu(Contender::OursLocal);
        let resident = self.median_speed(Contender::OursLocal, |run| mebibytes(run.peak_resident));
        let limited = self.median_speed(Contender::OursDefault, |run| run.per_second);
        let p99 = self.latencies.iter().find(|(contender, _)| *contender == Contender::OursDefault);
        let p99 = p99.map(|(_, runs)| median(runs.iter().map(|run| run.p99).collect()));
        let ratio = |over: Option<f64>| Some(ours? / over?);
        let mut rows = Vec::new();
        let mut at_least = |what: &str, value: Option<f64>, target: f64, unit: &str| {
            let Some(value) = value else { return };
            let verdict = if value >= target { "met".to_owned() } else { missed(target, value) };
            let digits = usize::from(target < 10.0);
            rows.push(format!("| {what} | at least {target:.0}{unit} | {value:.digits$}{unit} | {verdict} |"));
        };
        let bare = ratio(cpu(Contender::BareLoop)).map(|ratio| 100.0 * ratio);
        at_least("events per CPU-second, of the bare loop", bare, 60.0, " %");
        at_least("events per CPU-second, over the faster Python SDK", ratio(sdk), 5.0, " times");
        let kept = ratio(cpu(Contender::OnePerEventPython));
        at_least("..., over one POST per event, Python, connection kept", kept, 300.0, " times");
        let connect = ratio(cpu(Contender::OnePerEventConnect));
        at_least("..., over one POST per event, Python, new connection each", connect, 300.0, " times");
        let mut below = |what: &str, value: Option<f64>, target: f64, unit: &str| {
            let Some(value) = value else { return };
            let verdict = if value < target { "met".to_owned() } else { missed(target, value) };
            rows.push(format!("| {what} | below {target:.0}{unit} | {value:.0}{unit} | {verdict} |"));
        };
        below("p99 latency at 1,000 events/s, default settings", p99, LINGER + 50.0, " ms");
        let window = format!("peak RSS at full load, {} dedup keys", grouped(self.events as f64));
        below(&window, resident, 150.0, " MiB");
        if let Some(limited) = limited {
            rows.push(format!("| throughput with the default limits | explained | {} events/s | |", grouped(limited)));
        }
        if rows.is_empty() {
            return String::new();
        }
        format!("### Targets\n\n| | target | measured | |\n|---|---|---|---|\n{}\n", rows.join("\n"))
    }

    fn median_speed(&self, contender: Contender, value: fn(&Speed) -> f64) -> Option<f64> {
        let (_, runs) = self.speeds.iter().find(|(one, _)| *one == contender)?;
        Some(median(runs.iter().map(value).collect()))
    }
}

/// Rewrites the marked region of a file.
pub fn write(file: &Path, tables: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let [before, _, after] = text.split(MARK).collect::<Vec<_>>()[..] else {
        anyhow::bail!("{} needs exactly two lines {MARK}, between which the tables go", file.display());
    };
    std::fs::write(file, format!("{before}{MARK}\n\n{tables}\n{MARK}{after}"))
        .with_context(|| file.display().to_string())
}

fn add<T>(all: &mut Vec<(Contender, Vec<T>)>, contender: Contender, run: T) {
    match all.iter_mut().find(|(one, _)| *one == contender) {
        Some((_, runs)) => runs.push(run),
        None => all.push((contender, vec![run])),
    }
}

fn missed(target: f64, value: f64) -> String {
    format!("**missed** by {:.0} %", 100.0 * (value - target).abs() / target)
}

fn medians(runs: usize) -> String {
    match runs {
        1 => "One run.".to_owned(),
        _ => format!("Medians of {runs} runs in turns, and in parentheses the least and the most."),
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

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// How this run was started, without the path of the program.
/// How this program was called.
pub fn command_line() -> String {
    std::iter::once("loadtest".to_owned()).chain(std::env::args().skip(1)).collect::<Vec<_>>().join(" ")
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
    fn targets_are_told_as_met_or_missed() {
        let mut results = Results::new(1000, true, None);
        let speed = |per_cpu_second| Speed {
            events: 1000,
            per_second: 10.0,
            per_cpu_second,
            bytes_per_event: 50.0,
            peak_resident: 200 << 20,
        };
        results.speed(Contender::BareLoop, speed(1000.0));
        results.speed(Contender::OursLocal, speed(500.0));
        results.speed(Contender::Sdk100, speed(50.0));
        let tables = results.tables();
        for row in [
            "| at least 60 % | 50 % | **missed** by 17 % |",
            "| at least 5 times | 10.0 times | met |",
            "| below 150 MiB | 200 MiB | **missed** by 33 % |",
        ] {
            assert!(tables.contains(row), "{row}\n{tables}");
        }
    }
}
