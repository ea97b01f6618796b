//! The probes on the sandbox with all facts as assumed, and with each of them inverted.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use amberflo_sandbox::Poison;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn facts_as_assumed_are_confirmed_within_what_was_announced() {
    let sandbox = sandbox(Facts::default(), Faults::default());
    let address = serve(&sandbox).await;
    let (report, cost) = verify_at(&address, settings(), &[]).await;
    let report = report.unwrap();
    assert_eq!(
        report.summary(),
        format!("{} confirmed, 0 refuted, 0 unclear", probes::all().count()),
        "{}",
        report.text()
    );
    for id in ["meter-update", "meter-types"] {
        let outcome = report.outcomes.iter().find(|outcome| outcome.id == id).unwrap();
        assert!(outcome.finding.ends_with(", the reported text"), "{}", outcome.finding);
    }
    assert!(report.requests <= cost.requests, "{} of {}", report.requests, cost.requests);
    let ledger = sandbox.ledger();
    assert!(ledger.events + ledger.absorbed_copies <= cost.records, "{ledger:?} of {cost:?}");
    assert_eq!(get(&address, "/meters").await, json!([]));
    let customer = get(&address, "/customers/verify-repeat").await;
    assert_eq!(customer["enabled"], false);
    let customers = format!("{} customers, switched off: ", cost.customers);
    assert!(report.left[0].starts_with(&customers), "{:?}", report.left);
    assert!(report.left[1].starts_with("5 filtering rules") && report.left.len() == 2, "{:?}", report.left);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_inverted_fact_refutes_what_depends_on_it_and_nothing_else() {
    fn facts(set: impl FnOnce(&mut Facts)) -> (Facts, Faults) {
        let mut facts = Facts::default();
        set(&mut facts);
        (facts, Faults::default())
    }
    fn limit(max_records: Option<usize>, max_body_bytes: Option<usize>) -> (Facts, Faults) {
        let limit = |limit: Option<usize>| limit.and_then(NonZeroUsize::new);
        let (max_records, max_body_bytes) = (limit(max_records), limit(max_body_bytes));
        (Facts::default(), Faults { max_records, max_body_bytes, ..Faults::default() })
    }
    let copies = "repeat repeat-later repeat-in-request repeat-reordered repeat-recompressed";
    let renamed = |column: &str, name: &str| BTreeMap::from([(column.to_owned(), name.to_owned())]);
    let one_type = || Some(BTreeSet::from(["sum_of_all_usage".to_owned()]));
    // What is inverted; what that refutes; what it leaves unclear.
    let cases = [
        (facts(|facts| facts.absorbs_copies = false), copies, ""),
        (facts(|facts| facts.absorbs_copies_within_a_request = false), "repeat-in-request", ""),
        (facts(|facts| facts.compares_values_not_bytes = false), "repeat-reordered", ""),
        (facts(|facts| facts.compares_times = false), "other-time", ""),
        (facts(|facts| facts.compares_values = false), "other-value", ""),
        // The cancelling event is then a copy of the one that it cancels.
        (facts(|facts| facts.compares_dimensions = false), "other-dimension cancel-event", ""),
        (facts(|facts| facts.answers_the_count = false), "answer", ""),
        (facts(|facts| facts.counts_copies_in_the_answer = false), "answer-to-copies", ""),
        (facts(|facts| facts.refuses_whole_requests = false), "partial", ""),
        (facts(|facts| facts.ignores_unknown_keys = false), "unknown-key", ""),
        (facts(|facts| facts.takes_ndjson = false), "ndjson", ""),
        (facts(|facts| facts.takes_single_objects = false), "single-object", ""),
        (facts(|facts| facts.takes_gzip = false), "gzip", "repeat-recompressed"),
        (facts(|facts| facts.takes_unknown_meters = false), "unknown-meter", ""),
        (facts(|facts| facts.takes_unknown_customers = false), "unknown-customer", ""),
        (facts(|facts| facts.bad_record_status = 422), "bad-record", ""),
        (facts(|facts| facts.bad_key_status = 403), "bad-key", ""),
        (facts(|facts| facts.meter_types = None), "meter-types", ""),
        (facts(|facts| facts.meter_types = one_type()), "meter-types", ""),
        (facts(|facts| facts.ignores_sent_meter_ids = false), "meter-id", ""),
        (facts(|facts| facts.updates_meters_by_id_only = false), "meter-update", ""),
        (facts(|facts| facts.locking_is_one_way = false), "meter-locking meter-locking-deletions", ""),
        (facts(|facts| facts.closes_to_deletions = false), "meter-locking-deletions", ""),
        (facts(|facts| facts.deletes_deprecated_meters_only = false), "meter-deletion", ""),
        (facts(|facts| facts.ignores_deletion_by_name = false), "meter-deletion-by-name", ""),
        (facts(|facts| facts.answers_nothing_for_unknown_customers = false), "customer-unknown", ""),
        (facts(|facts| facts.takes_known_rule_fields = false), "rule-fields", "rule-list rule-deletion rule-time"),
        (facts(|facts| facts.rules_go_by_ingestion = false), "rule-time", ""),
        (facts(|facts| facts.lists_rules = true), "rule-list", ""),
        (facts(|facts| facts.deletes_rules = true), "", "rule-deletion"),
        (facts(|facts| (facts.lists_rules, facts.deletes_rules) = (true, true)), "rule-list rule-deletion", ""),
        (facts(|facts| facts.renamed_event_columns = renamed("uniqueId", "id")), "raw-events", ""),
        (facts(|facts| facts.renamed_event_columns = renamed("customerId", "customer")), "raw-events", ""),
        (facts(|facts| facts.renamed_event_columns = renamed("meterValue", "value")), "raw-events", ""),
        (facts(|facts| facts.renamed_event_columns = renamed("meterTimeInMillis", "time")), "raw-events", ""),
        (facts(|facts| facts.renamed_event_columns = renamed("region", "Region")), "raw-events", ""),
        // As the audit, it does not mind the case of these.
        (facts(|facts| facts.renamed_event_columns = renamed("meterValue", "METERVALUE")), "", ""),
        (facts(|facts| facts.shows_events_of_all_customers = false), "raw-events", ""),
        (facts(|facts| facts.pages_events = false), "raw-events", ""),
        (facts(|facts| facts.cancels_previous_events = false), "cancel-event", ""),
        (facts(|facts| facts.bills_of_a_request = NonZeroUsize::new(500)), "batch-size body-size", ""),
        (limit(Some(950), None), "batch-size", ""),
        (limit(None, Some(512 * 1024)), "body-size", ""),
    ];
    // A few at a time: they mostly wait.
    let (mut running, room) = (JoinSet::new(), Arc::new(Semaphore::new(4)));
    for ((facts, faults), refuted, unclear) in cases {
        let room = Arc::clone(&room);
        running.spawn(async move {
            let _permit = room.acquire().await.unwrap();
            let inverted = serde_json::to_string(&facts).unwrap();
            let report = verify(&sandbox(facts, faults), settings(), &[]).await;
            let named = |names: &'static str| names.split_whitespace().collect::<BTreeSet<_>>();
            let found = (ids(&report, Verdict::Refuted), ids(&report, Verdict::Unclear));
            assert_eq!(found, (named(refuted), named(unclear)), "{inverted}\n{}", report.text());
            for outcome in report.outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Refuted) {
                assert!(!outcome.exchanges.is_empty(), "{}: the exchange is shown", outcome.id);
            }
        });
    }
    while let Some(case) = running.join_next().await {
        case.unwrap();
    }
}

/// What happens to the larger requests says nothing of those that a worker sends.
#[tokio::test(flavor = "multi_thread")]
async fn trouble_beyond_what_a_worker_sends_is_told_and_refutes_nothing() {
    let probes = ["batch-size", "body-size"];
    let beyond = || Settings { max_records: 10_000, max_bytes: 8 << 20, ..settings() };
    let larger = ["verify-batch-size-10000-".to_owned(), "verify-body-size-8388608-".to_owned()];
    for (status, expected) in [(413, "413"), (503, "may be taken or not")] {
        let poison = Poison { status, unique_id_prefixes: larger.to_vec(), ..Poison::default() };
        let faults = Faults { poison: vec![poison], ..Faults::default() };
        let report = verify(&sandbox(Facts::default(), faults), beyond(), &probes).await;
        assert_eq!(ids(&report, Verdict::Confirmed), BTreeSet::from(probes), "{}", report.text());
        for (outcome, largest) in report.outcomes.iter().zip(["5000 records", "4194304 bytes"]) {
            let is_said = outcome.finding.starts_with(largest) && outcome.finding.contains(expected);
            assert!(is_said, "{}", outcome.finding);
        }
    }
    // Taken, and not billed in full.
    let facts = Facts { bills_of_a_request: NonZeroUsize::new(2_000), ..Facts::default() };
    let report = verify(&sandbox(facts, Faults::default()), beyond(), &probes).await;
    assert_eq!(ids(&report, Verdict::Refuted), BTreeSet::from(probes), "{}", report.text());

    // Up to what a worker sends, the same trouble leaves it unclear.
    let within = ["verify-batch-size-1000-".to_owned(), "verify-body-size-1048576-".to_owned()];
    let poison = Poison { status: 503, unique_id_prefixes: within.to_vec(), ..Poison::default() };
    let faults = Faults { poison: vec![poison], ..Faults::default() };
    let report = verify(&sandbox(Facts::default(), faults), settings(), &probes).await;
    assert_eq!(ids(&report, Verdict::Unclear), BTreeSet::from(probes), "{}", report.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_cancel_late_are_waited_for_and_those_that_never_do_are_unclear() {
    let late = |after| {
        sandbox(Facts { rules_cancel_after: Duration::from_millis(after), ..Facts::default() }, Faults::default())
    };
    let report = verify(&late(700), settings(), &["rule-time"]).await;
    assert_eq!(ids(&report, Verdict::Confirmed), BTreeSet::from(["rule-time"]), "{}", report.text());
    let settings = Settings { patience: Duration::from_millis(500), ..settings() };
    let report = verify(&late(3_600_000), settings, &["rule-time"]).await;
    assert_eq!(ids(&report, Verdict::Unclear), BTreeSet::from(["rule-time"]), "{}", report.text());
    assert!(report.outcomes[0].finding.contains("--patience"), "{}", report.outcomes[0].finding);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_meter_that_can_no_longer_be_deprecated_is_named_and_made_on_request_only() {
    let facts = Facts { deprecates_what_is_closed_to_deletions: false, ..Facts::default() };
    let report = verify(&sandbox(facts, Faults::default()), settings(), &["meter-locking-deletions"]).await;
    assert_eq!(ids(&report, Verdict::Confirmed), BTreeSet::from(["meter-locking-deletions"]), "{}", report.text());
    assert!(report.left[0].starts_with("meter verify-meter-locking-deletions: not deprecated"), "{:?}", report.left);

    let by_default: Vec<_> = probes::by_default().collect();
    assert!(by_default.iter().all(|probe| probe.id != "meter-locking-deletions"));
    assert_eq!(Plan::cost(&by_default, &settings()).lasting_meters, 0);
    assert!(list().contains("meter-locking-deletions (reported; only if named by --only)"), "{}", list());
}
