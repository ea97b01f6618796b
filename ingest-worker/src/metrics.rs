//! The worker's metrics: names, units and meanings in one place. None has a label that a tenant can choose.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use shared::reason::Reason;

/// Describes all metrics, and lets the counters that alerts divide by start at zero.
///
/// Records read (rebuild reads excluded) = sum of `ingest_events_total` + records in flight, at any time.
pub fn describe() {
    describe_counter!("ingest_records_read_total", "Records read from the stream, rebuild reads excluded");
    describe_counter!("ingest_events_total", "Records by outcome; `released` ones were handed back unsettled");
    describe_counter!("ingest_dead_letters_total", "Dead letters stored, by reason");
    describe_counter!(
        "ingest_dead_letters_omitted_total",
        "Dead letters stored without their payload, which only the stream holds: redrive them before it forgets"
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
    describe_counter!("ingest_lease_events_total", "Leases taken, stolen, lost, released");
    describe_gauge!("ingest_dedup_keys", "Keys in all dedup windows");
    describe_counter!("ingest_dedup_evicted_total", "Keys that left early because DEDUP_MAX_KEYS was reached");
    describe_histogram!("ingest_dedup_rebuild_seconds", Unit::Seconds, "Time to rebuild a dedup window");
    describe_counter!("ingest_dedup_rebuild_records_total", "Records read to rebuild dedup windows");
    describe_counter!(
        "ingest_trimmed_reads_total",
        "Reads that began later than asked, because the stream had forgotten what came before"
    );
    describe_counter!("ingest_shards_gone_total", "Shards that the stream forgot before all of them was read");
    describe_counter!("ingest_limiter_wait_seconds_total", Unit::Seconds, "Time that requests waited, by limit");
    describe_gauge!("ingest_concurrency_limit", "Requests that may be in flight at present");
    describe_gauge!("ingest_in_flight_requests", "Requests in flight");
    describe_gauge!("ingest_ready", "1 while leases can be read and Amberflo accepts our key");
    describe_gauge!("ingest_meter_budget_max_ratio", "The busiest meter's events this hour over METER_HOURLY_BUDGET");
    describe_counter!("amberflo_requests_total", "Requests to Amberflo, by operation and outcome");
    describe_histogram!("amberflo_request_duration_seconds", Unit::Seconds, "Duration of requests to Amberflo");
    describe_counter!(
        "amberflo_count_mismatches_total",
        "Batches of which Amberflo twice counted fewer records than sent"
    );

    metrics::counter!("ingest_records_read_total").absolute(0);
    for outcome in ["delivered", "duplicate", "dead_lettered", "released"] {
        metrics::counter!("ingest_events_total", "outcome" => outcome).absolute(0);
    }
    for reason in Reason::ALL {
        metrics::counter!("ingest_dead_letters_total", "reason" => reason.as_str()).absolute(0);
    }
    metrics::counter!("ingest_dead_letters_omitted_total").absolute(0);
    for event in ["taken", "stolen", "lost", "released"] {
        metrics::counter!("ingest_lease_events_total", "event" => event).absolute(0);
    }
    metrics::counter!("ingest_trimmed_reads_total").absolute(0);
    metrics::counter!("ingest_shards_gone_total").absolute(0);
    metrics::counter!("ingest_dedup_evicted_total").absolute(0);
    metrics::counter!("amberflo_count_mismatches_total").absolute(0);
    metrics::gauge!("ingest_ready").set(0.0);
}
