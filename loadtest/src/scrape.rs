//! The worker's own numbers, read from its /metrics.

use std::time::Duration;

use crate::target::http_client;

/// What the worker said at one moment. Counters start at zero with each process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Records read from the stream.
    pub read: u64,
    /// Records that were copies.
    pub duplicates: u64,
    /// Records stored as dead letters.
    pub dead_lettered: u64,
    /// Records settled or handed back, copies included.
    pub ended: u64,
    /// The slowest shard's lag.
    pub lag: Duration,
    /// Batches that were sent.
    pub batches: u64,
    /// Records in them.
    pub batched: u64,
    /// Requests that may be in flight.
    pub concurrency_limit: f64,
    /// Requests in flight.
    pub in_flight: f64,
    /// Requests that Amberflo answered with 429.
    pub throttled: u64,
    /// Requests that Amberflo answered with 5xx, or not in time, or not at all.
    pub failed: u64,
}

impl Sample {
    /// Whether nothing is under way. The gauges are up to a second old: ask again.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.read == self.ended && self.lag.is_zero()
    }

    fn parse(text: &str) -> Self {
        let shards = |name: &str| samples(text, name).map(|(_, value)| value).fold(0.0, f64::max);
        let lag = shards("ingest_shard_lag_seconds").max(shards("ingest_oldest_unsettled_seconds"));
        let events = || samples(text, "ingest_events_total");
        let outcome = |name: &str| {
            let label = format!("\"{name}\"");
            events().filter(|(labels, _)| labels.contains(&label)).map(|(_, value)| value as u64).sum()
        };
        let sum = |name: &str| samples(text, name).map(|(_, value)| value).sum::<f64>();
        let requests = |outcomes: &[&str]| {
            let ingest = samples(text, "amberflo_requests_total")
                .filter(|(labels, _)| labels.contains("\"ingest\""))
                .filter(|(labels, _)| outcomes.iter().any(|outcome| labels.contains(&format!("\"{outcome}\""))));
            ingest.map(|(_, value)| value as u64).sum()
        };
        Self {
            batches: sum("ingest_batch_events_count") as u64,
            batched: sum("ingest_batch_events_sum") as u64,
            concurrency_limit: sum("ingest_concurrency_limit"),
            in_flight: sum("ingest_in_flight_requests"),
            throttled: requests(&["429"]),
            failed: requests(&["5xx", "timeout", "connect"]),
            read: samples(text, "ingest_records_read_total").map(|(_, value)| value as u64).sum(),
            duplicates: outcome("duplicate"),
            dead_lettered: outcome("dead_lettered"),
            ended: events().map(|(_, value)| value as u64).sum(),
            lag: Duration::try_from_secs_f64(lag).unwrap_or_default(),
        }
    }
}

/// Labels and value of every line of this metric.
fn samples<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    text.lines().filter_map(move |line| {
        let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        (labels.is_empty() || labels.starts_with('{')).then_some((labels, value.parse().ok()?))
    })
}

/// Reads from the worker's admin endpoint.
#[derive(Clone, Debug)]
pub struct Scraper {
    http: reqwest::Client,
    base: String,
}

impl Scraper {
    /// For the worker with this admin endpoint.
    ///
    /// # Errors
    /// When the HTTP client cannot start.
    pub fn new(admin: std::net::SocketAddr) -> anyhow::Result<Self> {
        Self::of(&format!("http://{admin}"))
    }

    /// For the worker whose admin endpoint has this URL, with or without `/metrics`.
    ///
    /// # Errors
    /// When the HTTP client cannot start.
    pub fn of(url: &str) -> anyhow::Result<Self> {
        let base = url.trim_end_matches('/').trim_end_matches("/metrics").to_owned();
        Ok(Self { http: http_client(&base, Duration::from_secs(2))?, base })
    }

    /// Whether the worker does its work.
    pub async fn is_ready(&self) -> bool {
        let answer = self.http.get(format!("{}/ready", self.base)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// The numbers at this moment; `None` where the worker does not answer.
    pub async fn sample(&self) -> Option<Sample> {
        let answer = self.http.get(format!("{}/metrics", self.base)).send().await.ok()?;
        Some(Sample::parse(&answer.text().await.ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_text_format() {
        let text = "# HELP ingest_records_read_total Records\n\
            ingest_records_read_total 12\n\
            ingest_records_read_total_other 99\n\
            ingest_events_total{outcome=\"delivered\"} 8\n\
            ingest_events_total{outcome=\"duplicate\"} 3\n\
            ingest_shard_lag_seconds{shard=\"0\"} 0\n\
            ingest_shard_lag_seconds{shard=\"1\"} 0.25\n\
            ingest_batch_events_bucket{le=\"10\"} 1\n\
            ingest_batch_events_sum 8\n\
            ingest_batch_events_count 2\n\
            ingest_concurrency_limit 4\n\
            amberflo_requests_total{operation=\"ingest\",outcome=\"2xx\"} 2\n\
            amberflo_requests_total{operation=\"ingest\",outcome=\"429\"} 3\n\
            amberflo_requests_total{operation=\"ingest\",outcome=\"timeout\"} 1\n\
            amberflo_requests_total{operation=\"usage\",outcome=\"5xx\"} 7\n";
        let sample = Sample {
            read: 12,
            duplicates: 3,
            ended: 11,
            lag: Duration::from_millis(250),
            batches: 2,
            batched: 8,
            concurrency_limit: 4.0,
            throttled: 3,
            failed: 1,
            ..Sample::default()
        };
        assert_eq!(Sample::parse(text), sample);
        assert!(!Sample::parse(text).is_idle());
        assert!(Sample::parse("ingest_records_read_total 0\n").is_idle());
    }
}
