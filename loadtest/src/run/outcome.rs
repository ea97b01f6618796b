//! How a run went, for people and for programs.

use std::path::Path;

use indicatif::HumanCount;
use serde::Serialize;

use super::workers::Look;
use crate::chart::{Chart, Scale, Series};
use crate::load::{Latency, Plan, Second, Tally, Totals};
use crate::manifest::Header;
use crate::report_dir::ReportDir;

/// Points of a line, at most: seconds are put together where there are more.
const POINTS_MAX: usize = 600;

/// The result of a run.
#[derive(Debug, Serialize)]
pub struct Outcome {
    #[serde(flatten)]
    header: Header,
    /// Whether a signal ended it.
    interrupted: bool,
    /// Events per second that were asked for.
    rate: f64,
    /// Seconds for which they were.
    duration_seconds: f64,
    connections: usize,
    #[serde(flatten)]
    totals: Totals,
    /// Events that were still under way when a signal ended the run.
    left: u64,
    /// Acknowledged events per second, from the first second to the last that had any.
    acknowledged_per_second: f64,
    manifest: String,
    seconds: Vec<Second>,
    workers: Vec<Look>,
}

impl Outcome {
    /// Of a run that is over.
    pub fn new(
        header: Header,
        plan: &Plan,
        tally: &Tally,
        workers: Vec<Look>,
        manifest: &Path,
        interrupted: bool,
    ) -> Self {
        let (totals, seconds) = (tally.totals(), tally.seconds());
        let Totals { arrived, acknowledged, refused, given_up, not_sent, .. } = totals;
        let busy = seconds.iter().rposition(|second| second.acknowledged > 0).map_or(1, |last| last + 1);
        // A run that ends within a second has not had the whole of it.
        let busy = (busy as f64).min(tally.started().elapsed().as_secs_f64().max(0.001));
        Self {
            header,
            interrupted,
            rate: plan.rate,
            duration_seconds: plan.duration.as_secs_f64(),
            connections: plan.connections,
            left: arrived - acknowledged - refused - given_up - not_sent,
            acknowledged_per_second: (acknowledged as f64 / busy * 10.0).round() / 10.0,
            totals,
            manifest: manifest.display().to_string(),
            seconds,
            workers,
        }
    }

    /// Whether the target has answered for every event.
    pub fn is_complete(&self) -> bool {
        self.totals.given_up + self.totals.not_sent + self.left == 0
    }

    /// The result in lines.
    pub fn text(&self) -> String {
        self.lines().iter().map(|[name, value]| format!("\n{name:<13}{value}")).collect()
    }

    fn lines(&self) -> Vec<[String; 2]> {
        let Totals { arrived, acknowledged, refused, given_up, not_sent, good_calls, .. } = self.totals;
        let counts = |counts: &std::collections::BTreeMap<String, u64>| -> String {
            counts.iter().map(|(what, count)| format!("; {} × {what}", HumanCount(*count))).collect()
        };
        let Latency { p50_ms, p90_ms, p99_ms, p999_ms, max_ms } = self.totals.latency;
        let calls = self.totals.failed_calls.values().sum::<u64>();
        let mut lines = vec![
            ("arrived", format!("{} events, {}/s asked for", HumanCount(arrived), self.rate)),
            ("acknowledged", format!("{}, {}/s", HumanCount(acknowledged), self.acknowledged_per_second)),
            ("refused", format!("{}{}", HumanCount(refused), counts(&self.totals.refusals))),
            ("given up", format!("{} (the target may have some of them all the same)", HumanCount(given_up))),
            ("not sent", format!("{} (no place in the backlog)", HumanCount(not_sent))),
            ("failed calls", {
                let all = HumanCount(good_calls + calls);
                format!("{} of {all}{}", HumanCount(calls), counts(&self.totals.failed_calls))
            }),
            (
                "latency",
                format!("p50 {p50_ms:.1} ms, p90 {p90_ms:.1}, p99 {p99_ms:.1}, p99.9 {p999_ms:.1}, max {max_ms:.1}"),
            ),
        ];
        if self.left > 0 {
            lines.push(("left", format!("{} were under way at the end", HumanCount(self.left))));
        }
        if !self.workers.is_empty() && self.workers.iter().all(|look| look.workers == 0) {
            lines
                .push(("workers", "none answered at --worker-metrics: nothing is known of lag and batches".to_owned()));
        }
        lines.push(("manifest", self.manifest.clone()));
        lines.into_iter().map(|(name, value)| [name.to_owned(), value]).collect()
    }

    /// Writes the report.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn report(&self, dir: &Path) -> anyhow::Result<()> {
        let header = &self.header;
        let mut report = ReportDir::create(dir, &format!("Load run {}", header.run))?;
        let began = jiff::Timestamp::from_millisecond(header.started_at).unwrap_or_default();
        let mix = &header.mix;
        report.text(&format!(
            "{} events/s for {} s on {}, by {} connections, from {began}. {} tenants with Zipf's exponent {}, {} meters, \
             {} duplicates, {} malformed, {} conflicts, details filled up to {} bytes, seed {}.{}",
            self.rate,
            self.duration_seconds,
            header.target,
            self.connections,
            mix.tenants,
            mix.skew,
            mix.meters.len(),
            percent(mix.duplicates),
            percent(mix.malformed),
            percent(mix.conflicts),
            mix.size,
            header.seed,
            if self.interrupted { " **A signal ended it early.**" } else { "" },
        ));
        report.table(["", "result"], &self.lines());
        report.text(
            "Latency counts from the time at which an event was to be sent until the target had answered for it, retries \
             included; an event that was given up counts with the time after which it was, one that was not sent with \
             none. It is the latency of putting events, not that of their delivery to Amberflo.",
        );
        let step = self.seconds.len().div_ceil(POINTS_MAX).max(1);
        report.section("Rate");
        report.chart("rate", &self.rate_chart(step))?;
        report.section("Latency");
        report.chart("latency", &self.latency_chart(step))?;
        if !self.workers.is_empty() {
            report.section("Workers");
            for (name, chart) in self.worker_charts() {
                report.chart(name, &chart)?;
            }
        }
        report.finish(self)
    }

    fn rate_chart(&self, step: usize) -> Chart {
        // The last second is not a whole one: its count would look like a fall.
        let whole = &self.seconds[..self.seconds.len().saturating_sub(1)];
        let line = |name: &str, count: fn(&Second) -> u64| {
            let points = whole.chunks(step).map(|chunk| {
                let sum = chunk.iter().map(count).sum::<u64>();
                (chunk[0].second as f64, sum as f64 / chunk.len() as f64)
            });
            Series::new(name, points.collect())
        };
        let mut series = vec![line("asked for", |second| second.arrived), line("acknowledged", |s| s.acknowledged)];
        if self.totals.not_sent > 0 {
            series.push(line("not sent", |second| second.not_sent));
        }
        if !self.totals.failed_calls.is_empty() {
            series.push(line("failed calls", |second| second.failed_calls));
        }
        chart("Rate", "events/s", Scale::Linear, series)
    }

    fn latency_chart(&self, step: usize) -> Chart {
        let line = |name: &str, of: fn(&Latency) -> f64| {
            let points = self.seconds.chunks(step).filter_map(|chunk| {
                // The worst of the seconds that are put together.
                let worst = chunk.iter().filter_map(|second| second.latency.as_ref()).map(of).reduce(f64::max)?;
                Some((chunk[0].second as f64, worst))
            });
            Series::new(name, points.collect())
        };
        let series = vec![
            line("p50", |latency| latency.p50_ms),
            line("p90", |latency| latency.p90_ms),
            line("p99", |latency| latency.p99_ms),
            line("max", |latency| latency.max_ms),
        ];
        chart("Latency, by the second in which events were to be sent", "ms", Scale::Log, series)
    }

    fn worker_charts(&self) -> [(&'static str, Chart); 4] {
        let step = self.workers.len().div_ceil(POINTS_MAX).max(1);
        let line = |name: &str, of: fn(&Look) -> Option<f64>| {
            // Where no worker answered nothing is known, which is not the same as nothing.
            let looks = self.workers.iter().step_by(step).filter(|look| look.workers > 0);
            let points = looks.filter_map(|look| Some((look.seconds, of(look)?)));
            Series::new(name, points.collect())
        };
        let lag = vec![line("slowest shard", |look| Some(look.lag_seconds))];
        let batch = vec![line("average", |look| look.batch_events)];
        let concurrency =
            vec![line("limit", |look| Some(look.concurrency_limit)), line("in flight", |look| Some(look.in_flight))];
        let errors = vec![
            line("429", |look| Some(look.throttled as f64)),
            line("5xx, timeouts, no connection", |look| Some(look.failed as f64)),
        ];
        [
            ("lag", chart("Lag of the slowest shard", "s", Scale::Linear, lag)),
            ("batch", chart("Batch size", "events", Scale::Linear, batch)),
            ("concurrency", chart("Requests to Amberflo, of all workers", "requests", Scale::Linear, concurrency)),
            ("errors", chart("Failed requests to Amberflo", "requests between two looks", Scale::Linear, errors)),
        ]
    }
}

fn chart(title: &str, y_label: &str, y_scale: Scale, series: Vec<Series>) -> Chart {
    let (title, y_label) = (title.to_owned(), y_label.to_owned());
    Chart { title, x_label: "seconds since the start".to_owned(), y_label, y_scale, series, ..Chart::default() }
}

fn percent(share: f64) -> String {
    format!("{} %", (share * 10_000.0).round() / 100.0)
}
