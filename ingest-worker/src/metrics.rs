//! The worker's metrics: names, units and meanings in one place. None has a label that a tenant can choose.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use shared::amberflo::describe_metrics;
use shared::backend::DeadLetters;
use shared::reason::Reason;
use tokio::time::sleep;

use crate::batch::Trigger;
use crate::context::Common;
use crate::limiter::LIMITS;

/// Gauges that are changed by steps.
pub const STEPPED: &[&str] = &["ingest_in_flight_records"];

/// How often the dead letters are counted.
const DEPTH_INTERVAL: Duration = Duration::from_secs(30);

/// Counts tasks of shards that failed by an error of the program: what a loop of them leaves undelivered shows nowhere else.
pub const SHARD_FAILURES: &str = "ingest_shard_failures_total";

/// Counts failed attempts to store dead letters: a shard that waits for them looks like one with too much to do.
pub const LETTER_STORE_FAILURES: &str = "ingest_dead_letter_store_failures_total";

/// Describes all metrics, and lets them begin at zero: an alert cannot tell a metric that is not there from a worker
/// that is not.
///
/// Records read (rebuild reads excluded) = sum of `ingest_events_total` + `ingest_in_flight_records`, in every scrape.
pub fn describe() {
    describe_counter!("ingest_records_read_total", "Records read from the stream, rebuild reads excluded");
    describe_counter!("ingest_events_total", "Records by outcome; `released` ones were handed back unsettled");
    describe_gauge!(
        "ingest_in_flight_records",
        "Records that were read and are neither settled nor handed back, of all shards of this worker"
    );
    describe_counter!("ingest_dead_letters_total", "Dead letters stored, by reason");
    describe_counter!(
        "ingest_dead_letters_omitted_total",
        "Dead letters stored without their payload, which only the stream holds: redrive them before it forgets"
    );
    describe_counter!(
        LETTER_STORE_FAILURES,
        "Attempts to store dead letters that failed; their shard stands still until one succeeds"
    );
    describe_counter!("ingest_batches_total", "Batches sent, by what made them due");
    describe_histogram!("ingest_batch_events", Unit::Count, "Records in a batch");
    describe_histogram!("ingest_batch_bytes", Unit::Bytes, "Bytes of a batch before compression");
    describe_histogram!("ingest_batch_compressed_bytes", Unit::Bytes, "Bytes of a request body as sent");
    describe_histogram!("ingest_delivery_latency_seconds", Unit::Seconds, "From arrival in the stream to the 2xx");
    describe_gauge!(
        "ingest_shard_lag_seconds",
        Unit::Seconds,
        "How far a shard's reader lies behind its newest record"
    );
    describe_gauge!("ingest_oldest_unsettled_seconds", Unit::Seconds, "Age of a shard's oldest record in flight");
    describe_counter!("ingest_checkpoints_total", "Writes of lease rows, by result");
    describe_gauge!("ingest_leases_held", "Leases that this worker holds");
    describe_gauge!("ingest_shards", "Leases that some worker should hold, as this one saw them last");
    describe_counter!("ingest_lease_events_total", "Leases taken, stolen, lost, released");
    describe_gauge!("ingest_dedup_keys", "Keys in all dedup windows");
    describe_counter!("ingest_dedup_evicted_total", "Keys that left early because DEDUP_MAX_KEYS was reached");
    describe_histogram!("ingest_dedup_rebuild_seconds", Unit::Seconds, "Time to rebuild a dedup window");
    describe_counter!("ingest_dedup_rebuild_records_total", "Records read to rebuild dedup windows");
    describe_counter!(
        "ingest_trimmed_reads_total",
        "Reads that began later than asked, because the stream had forgotten what came before"
    );
    describe_counter!(
        SHARD_FAILURES,
        "Tasks of shards that failed by an error of the program; another reads them again"
    );
    describe_counter!("ingest_shards_gone_total", "Shards that the stream forgot before all of them was read");
    describe_counter!("ingest_limiter_wait_seconds_total", Unit::Seconds, "Time that requests waited, by limit");
    describe_gauge!("ingest_concurrency_limit", "Requests that may be in flight at present");
    describe_gauge!("ingest_in_flight_requests", "Requests in flight");
    describe_gauge!(
        "ingest_rate_limit_requests_per_second",
        "This worker's share of RATE_REQUESTS_PER_SECOND; 0 is off"
    );
    describe_gauge!(
        "ingest_paused",
        "1 while nothing is sent because Amberflo's answers say that the key or the URL is wrong"
    );
    describe_gauge!("ingest_ready", "1 while leases can be read and Amberflo accepts our key");
    describe_gauge!(
        "ingest_stream_retention_seconds",
        Unit::Seconds,
        "How long the stream keeps records, settled or not; a local stream keeps what is not settled, and has none"
    );
    describe_gauge!("ingest_dead_letter_queue_messages", "Dead letters that are stored, of all workers");
    describe_gauge!("ingest_meter_budget_max_ratio", "The busiest meter's events this hour over METER_HOURLY_BUDGET");
    describe_counter!(
        "amberflo_count_mismatches_total",
        "Batches of which Amberflo twice counted fewer records than sent"
    );

    begin();
}

fn begin() {
    describe_metrics(&["ingest"]);
    for name in [
        "ingest_records_read_total",
        "ingest_dead_letters_omitted_total",
        LETTER_STORE_FAILURES,
        "ingest_dedup_evicted_total",
        "ingest_dedup_rebuild_records_total",
        "ingest_trimmed_reads_total",
        "ingest_shards_gone_total",
        SHARD_FAILURES,
        "amberflo_count_mismatches_total",
    ] {
        metrics::counter!(name).increment(0);
    }
    let reasons: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    for (name, label, values) in [
        ("ingest_events_total", "outcome", &["delivered", "duplicate", "dead_lettered", "released"][..]),
        ("ingest_dead_letters_total", "reason", &reasons),
        ("ingest_batches_total", "trigger", &Trigger::ALL.map(Trigger::as_str)),
        ("ingest_checkpoints_total", "result", &["ok", "error"]),
        ("ingest_lease_events_total", "event", &["taken", "stolen", "lost", "released"]),
        ("ingest_limiter_wait_seconds_total", "limit", &LIMITS),
    ] {
        for &value in values {
            metrics::counter!(name, label => value.to_owned()).increment(0);
        }
    }
    for name in [
        "ingest_batch_events",
        "ingest_batch_bytes",
        "ingest_batch_compressed_bytes",
        "ingest_delivery_latency_seconds",
        "ingest_dedup_rebuild_seconds",
    ] {
        let _ = metrics::histogram!(name);
    }
    for name in ["ingest_ready", "ingest_in_flight_records", "ingest_leases_held"] {
        metrics::gauge!(name).set(0.0);
    }
}

/// Shows what holds for all shards of the worker. Gauges that nobody sets for some minutes are no longer shown.
pub fn observe(common: &Common) {
    common.limiter.set_gauges();
    common.meters.observe(common.clock.now());
    metrics::gauge!("ingest_dedup_keys").set(common.dedup_keys.used() as f64);
    if let Some(retention) = common.stream.retention() {
        metrics::gauge!("ingest_stream_retention_seconds").set(retention.as_secs_f64());
    }
}

/// Counts the stored dead letters from time to time; never returns. While they cannot be counted the last number stays
/// for some minutes, and then there is none: an old one must not keep an alert silent.
pub async fn watch_dead_letters(queue: Arc<dyn DeadLetters>) {
    let mut is_failing = false;
    loop {
        match queue.depth().await {
            Ok(depth) => {
                metrics::gauge!("ingest_dead_letter_queue_messages").set(depth as f64);
                is_failing = false;
            }
            Err(error) if !std::mem::replace(&mut is_failing, true) => {
                tracing::warn!(%error, "the dead letters cannot be counted; trying again");
            }
            Err(error) => tracing::debug!(%error, "the dead letters cannot be counted; trying again"),
        }
        // Workers that were started together do not ask together.
        sleep(DEPTH_INTERVAL.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
    }
}
