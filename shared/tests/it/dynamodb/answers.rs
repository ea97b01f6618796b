//! Answers that do not come, come late, or say "later".

use std::time::Duration;

use shared::backend::dynamodb::{DynamoLeases, WRITE_TIMEOUT};
use shared::backend::{BackendError, Checkpoint, Lease, Leases, Position};
use tokio::time::Instant;

use super::proxy::{Fate, error};
use super::{behind_proxy, text, worker};
use crate::contract::{settled, shard};

/// What DynamoDB says when it has enough.
const THROTTLED: [&str; 3] = ["ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded"];

/// Where the emulator has so much to do that the SDK's second attempt gets no answer either, the caller calls again.
async fn called<T>(mut call: impl AsyncFnMut() -> Result<T, BackendError>) -> T {
    for _ in 0..5 {
        match call().await {
            Err(BackendError::Unavailable(_)) => {}
            result => return result.unwrap(),
        }
    }
    panic!("it is unavailable");
}

#[tokio::test]
async fn writes_that_landed_unheard_are_recognised_when_the_sdk_repeats_them() {
    let Some((table, proxy)) = behind_proxy("landed").await else { return };
    let ada = worker("ada");
    for (n, fate) in [Fate::Unheard, Fate::Broken].into_iter().enumerate() {
        let name = format!("s-{n}");
        proxy.next("PutItem", [fate.clone()]);
        let start = Checkpoint::Start(Position::TrimHorizon);
        called(async || table.leases.create(&shard(&name, &[]), start.clone()).await).await;
        let free = table.lease(&name).await;
        assert_eq!(free.counter, 0);

        proxy.next("UpdateItem", [fate.clone()]);
        let held = called(async || table.leases.claim(&free, &ada).await).await.expect("the claim landed");
        assert_eq!(held, Lease { owner: Some(ada.clone()), counter: 1, ..free });

        proxy.next("UpdateItem", [fate.clone()]);
        let further = Lease { checkpoint: settled("5", 50), ..held };
        let renewed = called(async || table.leases.renew(&further).await).await.expect("the renewal landed");
        assert_eq!(renewed, Lease { counter: 2, ..further });

        proxy.next("UpdateItem", [fate.clone()]);
        called(async || table.leases.release(&renewed).await).await;
        let free = table.lease(&name).await;
        assert_eq!((&free.owner, free.counter), (&None, 3), "released once");

        proxy.next("UpdateItem", [fate.clone()]);
        let reset =
            called(async || table.leases.reset(&free, Checkpoint::Rewound(9)).await).await.expect("the reset landed");
        assert_eq!(reset, Lease { checkpoint: Checkpoint::Rewound(9), counter: 4, ..free });

        proxy.next("DeleteItem", [fate]);
        called(async || table.leases.forget(&reset).await).await;
        assert_eq!(table.row(&name).await, None);
    }
}

/// Two processes that were given one WORKER_ID claim one row: it is the claim of one of them alone.
#[tokio::test]
async fn a_claim_of_a_namesake_is_not_taken_for_ours() {
    let Some((table, _proxy)) = behind_proxy("namesake").await else { return };
    let free = table.create("s").await;
    let namesake = DynamoLeases::open(&emulators::configuration(&table.url), &table.name, false).await.unwrap();
    assert!(namesake.claim(&free, &worker("ada")).await.unwrap().is_some());
    assert_eq!(table.leases.claim(&free, &worker("ada")).await.unwrap(), None);
}

#[tokio::test]
async fn someone_elses_write_is_not_taken_for_ours_that_landed() {
    let Some((table, _proxy)) = behind_proxy("not-ours").await else { return };
    let free = table.create("s").await;
    let held = table.leases.claim(&free, &worker("ada")).await.unwrap().unwrap();
    let further = Lease { checkpoint: settled("5", 50), ..held.clone() };
    let other = Lease { checkpoint: settled("6", 60), ..held.clone() };
    table.leases.renew(&other).await.unwrap().unwrap();
    assert_eq!(table.leases.renew(&further).await.unwrap(), None, "another checkpoint at the next counter");
    assert_eq!(table.leases.claim(&free, &worker("bob")).await.unwrap(), None);
    let held = table.lease("s").await;
    table.leases.claim(&held, &worker("bob")).await.unwrap().unwrap();
    assert_eq!(table.leases.renew(&held).await.unwrap(), None, "bob has it at the next counter");
    assert_eq!(table.leases.reset(&held, held.checkpoint.clone()).await.unwrap(), None);
}

/// The fence falls 4.7 s after a renewal begins, at a failover time of 10 s.
#[tokio::test]
async fn a_renewal_without_any_answer_ends_in_time_to_be_tried_again() {
    let Some((table, proxy)) = behind_proxy("no-answer").await else { return };
    let held = table.leases.claim(&table.create("s").await, &worker("ada")).await.unwrap().unwrap();
    let further = Lease { checkpoint: settled("5", 50), ..held };
    proxy.next("UpdateItem", vec![Fate::Unheard; 10]);
    let begun = Instant::now();
    let error = table.leases.renew(&further).await.unwrap_err();
    assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
    assert!(error.to_string().starts_with("cannot write the row s of lease table no-answer: "), "{error}");
    assert!(begun.elapsed() < WRITE_TIMEOUT + Duration::from_millis(500), "{:?}", begun.elapsed());
    proxy.next("UpdateItem", []);
    let renewed = table.leases.renew(&further).await.unwrap().expect("it had landed");
    assert_eq!(renewed, Lease { counter: further.counter + 1, ..further });
}

#[tokio::test]
async fn a_throttled_table_is_retried_at_once_and_then_unavailable() {
    let Some((table, proxy)) = behind_proxy("throttled").await else { return };
    let mut lease = table.leases.claim(&table.create("s").await, &worker("ada")).await.unwrap().unwrap();
    for code in THROTTLED {
        proxy.next("UpdateItem", [error(code)]);
        lease = table.leases.renew(&lease).await.unwrap().expect("a retry goes through");
    }
    for code in THROTTLED {
        for operation in ["UpdateItem", "PutItem", "Scan", "DeleteItem"] {
            proxy.next(operation, vec![error(code); 100]);
        }
        let begun = Instant::now();
        let errors = [
            table.leases.renew(&lease).await.unwrap_err(),
            table.leases.create(&shard("t", &[]), Checkpoint::Start(Position::TrimHorizon)).await.unwrap_err(),
            table.leases.forget(&lease).await.unwrap_err(),
        ];
        assert!(begun.elapsed() < WRITE_TIMEOUT, "three writes take {:?}", begun.elapsed());
        for error in errors.into_iter().chain([table.leases.list().await.unwrap_err()]) {
            assert!(matches!(&error, BackendError::Unavailable(text) if text.contains(code)), "{error:?}");
        }
    }
    for operation in ["UpdateItem", "PutItem", "Scan", "DeleteItem"] {
        proxy.next(operation, []);
    }
    assert_eq!(table.lease("s").await, lease, "nothing has happened");
    table.leases.renew(&lease).await.unwrap().expect("the lease is still ours");
}

#[tokio::test]
async fn a_page_that_is_throttled_on_the_way_loses_no_rows() {
    let Some((table, proxy)) = behind_proxy("throttled-page").await else { return };
    let names: Vec<_> = (0..1_100).map(|n| format!("s-{n}")).collect();
    super::rows::fill(&table, &names).await;
    // The first page comes, the second is refused until the SDK gives up.
    let key = table.client.scan().table_name(&table.name).send().await.unwrap().last_evaluated_key.unwrap();
    let key = key["leaseKey"].as_s().unwrap();
    let first = serde_json::json!({ "Items": [], "Count": 0, "LastEvaluatedKey": { "leaseKey": { "S": key } } });
    let pages = std::iter::once(Fate::Answered(200, first)).chain(vec![error(THROTTLED[0]); 100]);
    proxy.next("Scan", pages);
    let error = table.leases.list().await.unwrap_err();
    assert!(matches!(error, BackendError::Unavailable(_)), "not a part of the leases: {error:?}");
    proxy.next("Scan", []);
    assert_eq!(table.leases.list().await.unwrap().len(), names.len());
}

#[tokio::test]
async fn a_table_deleted_at_run_time_is_misconfigured() {
    let Some((table, _proxy)) = behind_proxy("deleted-table").await else { return };
    let held = table.leases.claim(&table.create("s").await, &worker("ada")).await.unwrap().unwrap();
    table.client.delete_table().table_name(&table.name).send().await.unwrap();
    let errors = [
        table.leases.renew(&held).await.unwrap_err(),
        table.leases.list().await.unwrap_err(),
        table.leases.create(&shard("t", &[]), Checkpoint::Start(Position::TrimHorizon)).await.unwrap_err(),
        table.leases.forget(&held).await.unwrap_err(),
    ];
    for error in errors {
        assert!(
            matches!(&error, BackendError::Misconfigured(text) if text.contains("lease table deleted-table")),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_refused_write_names_a_row_that_cannot_be_understood() {
    let Some((table, _proxy)) = behind_proxy("refused-row").await else { return };
    let free = table.create("s").await;
    let mut row = table.row("s").await.unwrap();
    row.insert("checkpoint".to_owned(), text("LATEST"));
    row.insert("leaseCounter".to_owned(), super::number(8));
    table.put(row).await;
    let error = table.leases.claim(&free, &worker("ada")).await.unwrap_err();
    assert!(error.to_string().contains("row s: attribute checkpoint is LATEST"), "{error}");
}
