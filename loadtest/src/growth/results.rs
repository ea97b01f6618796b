//! All curves, in a file that keeps those which are not measured anew, and the report of them.

use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::{Size, batch_size, dedup_keys, live_outage, outage, plan, shards, sink_latency, tenants};
use crate::bench::measure::grouped;
use crate::bench_peers::report::command_line;
use crate::machine;
use crate::report_dir::ReportDir;

/// The file in the report's directory.
const FILE: &str = "result.json";

/// All curves that were ever measured into a directory.
#[derive(Default, Serialize, Deserialize)]
pub struct Results {
    pub shards: Option<Taken<shards::Point>>,
    pub tenants: Option<Taken<tenants::Point>>,
    pub dedup_keys: Option<Taken<dedup_keys::Point>>,
    pub batch_size: Option<Taken<batch_size::Point>>,
    pub sink_latency: Option<Taken<sink_latency::Point>>,
    pub outage: Option<Taken<outage::Point>>,
    pub live_outage: Option<Taken<live_outage::Point>>,
}

/// A curve, and how it was measured.
#[derive(Serialize, Deserialize)]
pub struct Taken<P> {
    /// The machine, the program and the command.
    context: String,
    pub points: Vec<P>,
}

impl<P> Taken<P> {
    /// Just now, by this program on this machine.
    pub fn new(machine: &str, size: Size, points: Vec<P>) -> Self {
        let rounds = size.rounds();
        let size = match size {
            Size::Full if rounds > 1 => format!("full: medians of {rounds} runs where a run takes seconds"),
            Size::Full => "full".to_owned(),
            Size::Quick => "quick: the figures mean little".to_owned(),
            Size::Tiny => "a test: the figures mean nothing".to_owned(),
        };
        let (now, command) = (machine::now(), command_line());
        let version = env!("CARGO_PKG_VERSION");
        let context = format!("{machine}worker   {version}\nsize     {size}\ntaken    {now}\ncommand  {command}\n");
        Self { context, points }
    }

    /// Its size, and when it was taken.
    fn origin(&self) -> String {
        let of = |name: &str| {
            let line = self.context.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.map_or("not noted", str::trim)
        };
        format!("{}, taken {}", of("size"), of("taken"))
    }
}

impl Results {
    /// What the directory has; nothing where it is new.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join(FILE);
        if !file.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        serde_json::from_str(&text)
            .with_context(|| format!("{}: not of this program; choose another --report, or remove it", file.display()))
    }

    /// Writes all of it.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let mut report = ReportDir::create(dir, "Growth: how cost grows with work")?;
        report.text(
            "Written by `loadtest growth`; [GROWTH.md](../../GROWTH.md) says where the curves bend, and why. Every run made \
             sure that the sink got as many events as there were. CPU is user and system time of the whole worker process.",
        );
        section(&mut report, "Shards", self.shards.as_ref(), shards::report)?;
        section(&mut report, "Tenants", self.tenants.as_ref(), tenants::report)?;
        section(&mut report, "Dedup keys", self.dedup_keys.as_ref(), dedup_keys::report)?;
        section(&mut report, "Batch size", self.batch_size.as_ref(), batch_size::report)?;
        section(&mut report, "Sink latency", self.sink_latency.as_ref(), sink_latency::report)?;
        section(&mut report, "Outage", self.outage.as_ref(), outage::report)?;
        section(&mut report, "Outage of Amberflo", self.live_outage.as_ref(), live_outage::report)?;
        if let Some(shards) = &self.shards {
            let keys = self.dedup_keys.as_ref().and_then(|taken| dedup_keys::bytes_per_key(&taken.points));
            report.section("Plan for 1 million events/s");
            let mut origin = format!("shards: {}", shards.origin());
            if let (Some(taken), Some(_)) = (&self.dedup_keys, keys) {
                origin += &format!("; dedup keys: {}", taken.origin());
            }
            plan::report(&shards.points, keys, &origin, &mut report)?;
        }
        report.finish(self)
    }
}

fn section<P>(
    report: &mut ReportDir,
    title: &str,
    taken: Option<&Taken<P>>,
    body: fn(&[P], &mut ReportDir) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Some(Taken { context, points }) = taken else { return Ok(()) };
    report.section(title);
    report.text(&format!("```text\n{context}```"));
    body(points, report)
}

/// A number with so many decimals, in groups of three digits.
pub fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.split_once('.') {
        Some((whole, rest)) => format!("{}.{rest}", grouped(whole.parse().unwrap_or(value))),
        None => grouped(value),
    }
}

/// Each value as a multiple of the first.
pub fn relative(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let points: Vec<_> = points.collect();
    let first = points.first().map_or(f64::NAN, |point| point.1);
    points.into_iter().map(|(x, y)| (x, y / first)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_groups_and_decimals() {
        let pairs = [(0.0, 0, "0"), (999.96, 1, "1,000.0"), (1_234_567.0, 0, "1,234,567")];
        for (value, decimals, text) in pairs {
            assert_eq!(number(value, decimals), text);
        }
    }

    #[test]
    fn a_curve_says_its_size_and_its_date() {
        let taken = Taken::<u8> { context: "size     quick\ntaken    2026-11-23\n".to_owned(), points: Vec::new() };
        assert_eq!(taken.origin(), "quick, taken 2026-11-23");
    }

    #[test]
    fn values_are_multiples_of_the_first() {
        assert_eq!(relative([(1.0, 4.0), (2.0, 6.0)].into_iter()), [(1.0, 1.0), (2.0, 1.5)]);
    }
}
