//! The process's metrics: their registry, the buckets of histograms, and what every program tells of itself.

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use metrics::{Unit, describe_counter, describe_gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;
use tokio::runtime::Handle;

/// From a local sandbox's few milliseconds to a day of outage; 60 is the service level's threshold.
const DELIVERY_LATENCY: &[f64] =
    &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0];
/// Up to twice what a request may take by default: what is beyond was waited for on purpose.
const REQUEST_DURATION: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// A window that fits in one page, to millions of keys read at the pace of a shard: 2 MB a second.
const REBUILD_DURATION: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];
/// Dense near the default `BATCH_MAX_EVENTS`: a batch is good when it is nearly full.
const BATCH_EVENTS: &[f64] = &[1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0, 5000.0, 10_000.0];
/// From a single record up to the largest `BATCH_MAX_BYTES`.
const BATCH_BYTES: &[f64] =
    &[1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 524_288.0, 1_048_576.0, 4_194_304.0, 16_777_216.0, 67_108_864.0];

const BUCKETS: &[(&str, &[f64])] = &[
    ("ingest_delivery_latency_seconds", DELIVERY_LATENCY),
    ("ingest_dedup_rebuild_seconds", REBUILD_DURATION),
    ("ingest_batch_events", BATCH_EVENTS),
    ("ingest_batch_bytes", BATCH_BYTES),
    ("ingest_batch_compressed_bytes", BATCH_BYTES),
    ("amberflo_request_duration_seconds", REQUEST_DURATION),
    ("control_api_request_duration_seconds", REQUEST_DURATION),
];

/// A gauge that was not set for so long is no longer shown: of shards that have gone to other workers, or are gone,
/// nothing stays. Whoever sets a gauge sets it again well within this time.
const GAUGE_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// Samples of histograms wait in memory until they are sorted into buckets.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Held by a scrape alone, or by any number of updates.
static SCRAPE: RwLock<()> = RwLock::new(());

/// Changes several metrics so that every scrape sees all of the changes or none.
///
/// A scrape waits for `update`, and while one runs (about a millisecond) `update` waits for it. Not to be nested.
pub fn together<T>(update: impl FnOnce() -> T) -> T {
    let _no_scrape = SCRAPE.read().unwrap_or_else(PoisonError::into_inner);
    update()
}

/// The registry of the process's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    service: &'static str,
    stepped: &'static [&'static str],
    registry: PrometheusHandle,
}

/// Installs the process's metrics registry. `stepped` are gauges that are changed by steps: these stay, however long
/// nobody touches them, because they would begin at zero again and be wrong for ever.
///
/// # Errors
/// When one is installed already.
pub fn init_metrics(service: &'static str, stepped: &'static [&'static str]) -> anyhow::Result<Metrics> {
    let metrics = Metrics { service, stepped, registry: builder(GAUGE_LIFETIME)?.install_recorder()? };
    metrics_process::Collector::default().describe();
    describe_gauge!("build_info", "1, with the name and the version of the program as labels");
    describe_gauge!("tokio_workers", "Threads that run tasks");
    describe_gauge!("tokio_alive_tasks", "Tasks that were spawned and have not ended");
    describe_gauge!("tokio_global_queue_depth", "Tasks that wait for a thread in the queue that all threads share");
    describe_counter!(
        "tokio_worker_busy_seconds_total",
        Unit::Seconds,
        "Time for which threads ran tasks, of all threads"
    );
    metrics.collect();
    Ok(metrics)
}

/// Keeps the memory of the registry bounded; never returns.
pub async fn metrics_upkeep(metrics: Metrics) {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        metrics.registry.run_upkeep();
    }
}

impl Metrics {
    /// All metrics as they are now, in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.collect();
        // So that the scrape itself has little left to do.
        self.registry.run_upkeep();
        let _no_updates = SCRAPE.write().unwrap_or_else(PoisonError::into_inner);
        self.registry.render()
    }

    /// Sets what nobody else does.
    fn collect(&self) {
        for name in self.stepped {
            metrics::gauge!(*name).increment(0.0);
        }
        metrics_process::Collector::default().collect();
        metrics::gauge!("build_info", "service" => self.service, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        let Ok(runtime) = Handle::try_current().map(|handle| handle.metrics()) else { return };
        metrics::gauge!("tokio_workers").set(runtime.num_workers() as f64);
        metrics::gauge!("tokio_alive_tasks").set(runtime.num_alive_tasks() as f64);
        metrics::gauge!("tokio_global_queue_depth").set(runtime.global_queue_depth() as f64);
        let busy: Duration = (0..runtime.num_workers()).map(|worker| runtime.worker_total_busy_duration(worker)).sum();
        metrics::counter!("tokio_worker_busy_seconds_total").absolute(busy.as_secs());
    }
}

fn builder(gauge_lifetime: Duration) -> anyhow::Result<PrometheusBuilder> {
    let mut builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::GAUGE, Some(gauge_lifetime));
    for (name, buckets) in BUCKETS {
        builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)?;
    }
    Ok(builder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_as_the_rules_select_them() {
        let recorder = builder(GAUGE_LIFETIME).unwrap().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            for (name, _) in BUCKETS {
                metrics::histogram!(*name).record(60.0);
            }
        });
        let text = recorder.handle().render();
        assert!(text.contains("ingest_delivery_latency_seconds_bucket{le=\"60\"} 1\n"), "{text}");
        assert!(text.contains("ingest_delivery_latency_seconds_bucket{le=\"30\"} 0\n"), "{text}");
        for (name, buckets) in BUCKETS {
            assert!(buckets.is_sorted_by(|a, b| a < b), "{name}");
            let lines = text.lines().filter(|line| line.starts_with(&format!("{name}_bucket{{")));
            assert_eq!(lines.count(), buckets.len() + 1, "{name}");
        }
    }

    #[tokio::test]
    async fn a_gauge_that_nobody_sets_any_more_is_gone_and_nothing_else_is() {
        let recorder = builder(Duration::from_millis(20)).unwrap().build_recorder();
        let registry = recorder.handle();
        let shards = |text: &str| text.lines().filter(|line| line.starts_with("lag{")).count();
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("read").increment(7);
            metrics::histogram!("latency").record(1.0);
            metrics::gauge!("lag", "shard" => "gone").set(1.0);
            metrics::gauge!("lag", "shard" => "kept").set(1.0);
        });
        assert_eq!(shards(&registry.render()), 2);
        let rendered = async {
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                metrics::with_local_recorder(&recorder, || metrics::gauge!("lag", "shard" => "kept").set(2.0));
                let text = registry.render();
                if shards(&text) == 1 {
                    return text;
                }
            }
        };
        let text = tokio::time::timeout(Duration::from_secs(10), rendered).await.unwrap();
        for line in ["lag{shard=\"kept\"} 2\n", "read 7\n", "latency_count 1\n"] {
            assert!(text.contains(line), "{text}");
        }
        metrics::with_local_recorder(&recorder, || metrics::gauge!("lag", "shard" => "gone").set(3.0));
        assert!(registry.render().contains("lag{shard=\"gone\"} 3\n"), "a shard that comes back is shown again");
    }

    /// A process that was stopped for longer than gauges live, for one.
    #[tokio::test]
    async fn a_gauge_that_is_changed_by_steps_is_right_after_any_time() {
        let recorder = builder(Duration::from_millis(1)).unwrap().build_recorder();
        let metrics = Metrics { service: "test", stepped: &["in_flight"], registry: recorder.handle() };
        let _recording = metrics::set_default_local_recorder(&recorder);
        metrics::gauge!("in_flight").increment(5.0);
        metrics::gauge!("other").increment(5.0);
        let _ = metrics.render();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let text = metrics.render();
        assert!(text.contains("in_flight 5\n") && !text.contains("other"), "{text}");
        metrics::gauge!("in_flight").decrement(2.0);
        assert!(metrics.render().contains("in_flight 3\n"));
    }
}
