//! What workers tell of the services that they share.

use super::Fleet;
use crate::process::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn every_worker_tells_of_the_stream_and_of_all_dead_letters() {
    let Some(fleet) = Fleet::start("metrics", 2, "10s").await else { return };
    let workers = [fleet.worker("first").await, fleet.worker("second").await];
    fleet.until_loads(&[("first", 1), ("second", 1)]).await;
    fleet.put(20).await;
    fleet.put_invalid().await;
    fleet.until_billed(20).await;
    for worker in &workers {
        let is_seen = async || worker.metrics().await.sum("ingest_dead_letter_queue_messages") == 3.0;
        eventually("the dead letters to be counted", is_seen).await;
        let metrics = worker.metrics().await;
        assert_eq!(metrics.sum("ingest_stream_retention_seconds"), 86_400.0);
        assert_eq!((metrics.sum("ingest_shards"), metrics.sum("ingest_leases_held")), (2.0, 1.0));
        // The account's 0 requests a second stand for no limit.
        assert_eq!(metrics.sum("ingest_rate_limit_requests_per_second"), 0.0);
        assert!(metrics.0.contains("# HELP ingest_stream_retention_seconds "), "{}", metrics.0);
    }
    // Those metrics that a worker on a local stream has are compared with the document by loadtest's tests.
    let document = include_str!("../../../../infra/observability/METRICS.md");
    let of_kinesis: Vec<&str> = document.lines().filter(|line| line.contains("| Kinesis only: ")).collect();
    assert_eq!(of_kinesis.len(), 1, "{of_kinesis:?}");
    assert!(of_kinesis[0].starts_with("| `ingest_stream_retention_seconds` | gauge | |"), "{of_kinesis:?}");
    fleet.reconcile_without_copies(&workers).await;
}
