//! `leases` and `dead-letters` while workers run.

use std::time::Duration;

use amberflo_sandbox::{Faults, Poison};
use serde_json::{Value, json};
use shared::backend::DeadLetters as _;
use shared::backend::sqs::SqsDeadLetters;
use tokio::time::sleep;

use super::Fleet;
use crate::process::redrive::totals;
use crate::process::{KEY, eventually, run, text};

/// Runs a subcommand; answers its lines and what it wrote to standard error.
async fn operator(fleet: &Fleet, window: &str, arguments: &[&str]) -> (Vec<Value>, String) {
    let site = fleet.site("operator").with("DEDUP_WINDOW", window);
    let output = run(site.command().args(arguments)).await;
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(!stdout.contains(KEY) && !stderr.contains(KEY));
    (stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewind_under_live_workers_sends_identical_records_again() {
    let Some(fleet) = Fleet::start("rewind", 4, "10s").await else { return };
    let workers = [fleet.worker("first").await, fleet.worker("second").await];
    fleet.until_loads(&[("first", 2), ("second", 2)]).await;
    fleet.put(200).await;
    fleet.reconcile().await;
    sleep(Duration::from_millis(50)).await;
    #[expect(clippy::disallowed_methods, reason = "an operator has a clock")]
    let since = jiff::Timestamp::try_from(std::time::SystemTime::now()).unwrap().to_string();
    sleep(Duration::from_millis(50)).await;
    let newer = fleet.put(300).await;
    assert_eq!(fleet.reconcile().await, 0);

    let (leases, _) = operator(&fleet, "2m", &["leases", "list"]).await;
    let owners: Vec<_> = leases.iter().map(|lease| lease["owner"].as_str().unwrap()).collect();
    assert_eq!(owners.iter().filter(|owner| **owner == "first").count(), 2, "{owners:?}");
    for lease in &leases {
        let settled = lease["checkpoint"]["settledThrough"].as_str().unwrap();
        assert!(settled.bytes().all(|byte| byte.is_ascii_digit()) && lease["shard"].is_string(), "{lease}");
    }

    let far = "further back than the dedup window";
    let (rewound, stderr) = operator(&fleet, "1s", &["leases", "rewind", "--to", &since]).await;
    assert!(rewound.len() == 4 && stderr.contains(far), "{rewound:?} {stderr}");
    let is_absorbed = async || fleet.amberflo.sandbox.ledger().absorbed_copies >= 300;
    eventually("all of it to be sent again", is_absorbed).await;
    assert_eq!(fleet.reconcile().await, 300, "no more than that");
    let absorbed = fleet.amberflo.sandbox.absorbed_copies();
    assert!(absorbed.iter().all(|(id, copies)| *copies == 1 && newer.contains(&id.parse().unwrap())), "{absorbed:?}");

    // One shard alone, and not far enough for a warning.
    let shard = leases[0]["shard"].as_str().unwrap();
    let arguments = ["leases", "rewind", "--to", &since, "--shard", shard];
    let (rewound, stderr) = operator(&fleet, "1h", &arguments).await;
    assert!(rewound.len() == 1 && !stderr.contains(far), "{rewound:?} {stderr}");
    assert_eq!(rewound[0]["shard"], *shard);
    eventually("it to be sent again", async || fleet.amberflo.sandbox.ledger().absorbed_copies > 300).await;
    fleet.put(100).await;
    assert!((301..600).contains(&fleet.reconcile().await));
    for worker in workers {
        worker.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_in_sqs_are_redriven_listed_and_deleted() {
    let Some(fleet) = Fleet::start("letters", 2, "10s").await else { return };
    let poison = Poison { status: 422, unique_id_prefixes: vec!["1".to_owned()], ..Poison::default() };
    fleet.amberflo.sandbox.set_faults(Faults { poison: vec![poison], ..Faults::default() }).unwrap();
    let worker = fleet.worker("worker").await;
    let aws = emulators::configuration(fleet.moto);
    let queue = SqsDeadLetters::open(&aws, &fleet.queue, Duration::from_secs(86_400)).await.unwrap();
    let until_depth = async |depth: u64| {
        eventually(&format!("{depth} letters"), async || queue.depth().await.unwrap() == depth).await;
    };
    fleet.put(20).await;
    until_depth(11).await;
    fleet.until_billed(9).await;

    fleet.amberflo.sandbox.set_faults(Faults::default()).unwrap();
    let (report, _) = operator(&fleet, "2m", &["dead-letters", "redrive"]).await;
    let expected = json!({"redriven": 11, "conflicts": 0, "notRedrivable": 0, "forgotten": 0});
    assert_eq!(report.iter().map(totals).collect::<Vec<_>>(), [expected]);
    fleet.until_billed(20).await;
    until_depth(0).await;

    fleet.put_invalid().await;
    until_depth(3).await;
    let (letters, _) = operator(&fleet, "2m", &["dead-letters", "list"]).await;
    let mut payloads: Vec<_> = letters.iter().map(|letter| letter["payload"].as_str().unwrap()).collect();
    payloads.sort_unstable();
    let mut invalid = fleet.invalid.borrow().clone();
    invalid.sort();
    assert_eq!(payloads, invalid);

    let arguments = ["dead-letters", "delete", "--reason", "not_json"];
    let (deleted, _) = operator(&fleet, "2m", &arguments).await;
    assert_eq!(deleted.len(), 1);
    assert_eq!(deleted[0]["payload"], "not json");
    until_depth(2).await;
    worker.drain().await;
    fleet.amberflo.assert_billed_once(20);
    assert_eq!(fleet.amberflo.sandbox.ledger().absorbed_copies, 0);
}
