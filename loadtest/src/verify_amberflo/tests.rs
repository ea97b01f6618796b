//! The probes on the sandbox in both of its moods, and on peers that are no Amberflo.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use amberflo_sandbox::{Facts, Faults, Operation, Sandbox, SandboxConfig, Trigger};
use axum::Router;
use axum::body::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::JoinSet;

use super::probe::Cost;
use super::*;

const KEY: &str = "sandbox-key";

fn settings() -> Settings {
    Settings {
        patience: Duration::from_secs(30),
        settle: Duration::from_millis(60),
        repeat_after: [20, 50, 100].map(Duration::from_millis).to_vec(),
        max_records: 1_000,
        max_bytes: 1 << 20,
        rate: 2_000.0,
        request_timeout: Duration::from_secs(20),
    }
}

fn run_at(address: &str, settings: Settings, cost: &Cost) -> Arc<Run> {
    let url = format!("http://{address}");
    let client =
        Client::new(ApiKey::new(KEY).unwrap(), settings.rate, cost.requests, settings.request_timeout).unwrap();
    Arc::new(Run {
        client,
        base_url: url.clone(),
        ingest_url: url,
        settings,
        prefix: "verify".to_owned(),
        meter: "verify".to_owned(),
        customer: "verify".to_owned(),
        started: Clock::system().now(),
        account: Account::default(),
    })
}

async fn verify_at(address: &str, settings: Settings, only: &[&str]) -> (Result<Report, String>, Cost) {
    let probes: Vec<_> = probes::all().filter(|probe| only.is_empty() || only.contains(&probe.id)).collect();
    let cost = Plan::cost(&probes, &settings);
    let (_signals, mut received) = unbounded_channel();
    (session::perform(&run_at(address, settings, &cost), &probes, &mut received, |_| ()).await, cost)
}

async fn serve(sandbox: &Sandbox) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(amberflo_sandbox::serve(listener, sandbox.clone(), std::future::pending()));
    address
}

fn sandbox(facts: Facts, faults: Faults) -> Sandbox {
    let sandbox = Sandbox::new(SandboxConfig::default());
    sandbox.set_facts(facts).unwrap();
    sandbox.set_faults(faults).unwrap();
    sandbox
}

async fn verify(sandbox: &Sandbox, settings: Settings, only: &[&str]) -> Report {
    verify_at(&serve(sandbox).await, settings, only).await.0.unwrap()
}

fn ids(report: &Report, verdict: Verdict) -> BTreeSet<&'static str> {
    report.outcomes.iter().filter(|outcome| outcome.verdict == verdict).map(|outcome| outcome.id).collect()
}

fn http() -> reqwest::Client {
    // An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Asks the sandbox what is in the account.
async fn get(address: &str, path: &str) -> Value {
    let answer = http().get(format!("http://{address}{path}")).header("x-api-key", KEY).send().await.unwrap();
    serde_json::from_str(&answer.text().await.unwrap()).unwrap()
}

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
    assert!(report.requests <= cost.requests, "{} of {}", report.requests, cost.requests);
    let ledger = sandbox.ledger();
    assert!(ledger.events + ledger.absorbed_copies <= cost.records, "{ledger:?} of {cost:?}");
    assert_eq!(get(&address, "/meters").await, json!([]));
    let customer = get(&address, "/customers/verify-repeat").await;
    assert_eq!(customer["enabled"], false);
    let customers = format!("{} customers, switched off: ", cost.customers);
    assert!(report.left[0].starts_with(&customers), "{:?}", report.left);
    assert!(report.left[1].starts_with("3 filtering rules") && report.left.len() == 2, "{:?}", report.left);
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
        (facts(|facts| facts.locking_is_one_way = false), "meter-locking", ""),
        (facts(|facts| facts.deletes_deprecated_meters_only = false), "meter-deletion", ""),
        (facts(|facts| facts.ignores_deletion_by_name = false), "meter-deletion-by-name", ""),
        (facts(|facts| facts.answers_nothing_for_unknown_customers = false), "customer-unknown", ""),
        (facts(|facts| facts.takes_known_rule_fields = false), "rule-fields", "rule-list rule-deletion"),
        (facts(|facts| facts.lists_rules = true), "rule-list", ""),
        (facts(|facts| facts.deletes_rules = true), "", "rule-deletion"),
        (facts(|facts| (facts.lists_rules, facts.deletes_rules) = (true, true)), "rule-list rule-deletion", ""),
        (facts(|facts| facts.names_unique_ids = false), "raw-events", ""),
        (facts(|facts| facts.cancels_previous_events = false), "cancel-event", ""),
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

#[tokio::test(flavor = "multi_thread")]
async fn how_long_copies_are_remembered_is_found() {
    let facts = Facts { remembers_copies_for: Some(Duration::from_millis(500)), ..Facts::default() };
    let repeat_after = vec![Duration::from_millis(1_000)];
    let report =
        verify(&sandbox(facts, Faults::default()), Settings { repeat_after, ..settings() }, &["repeat-later"]).await;
    assert_eq!(report.outcomes[0].verdict, Verdict::Refuted, "{}", report.text());
    assert!(report.outcomes[0].finding.starts_with("a copy after 1s"), "{}", report.outcomes[0].finding);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_that_shows_late_is_waited_for_and_usage_that_never_shows_is_unclear() {
    let late = |after| {
        sandbox(Facts { usage_visible_after: Duration::from_millis(after), ..Facts::default() }, Faults::default())
    };
    // Only the first record shows at once: to look too early would be to find that a copy counts once.
    let facts = Facts { absorbs_copies: false, ..late(700).facts() };
    let twice = sandbox(facts, Faults::default());
    let report = verify(&twice, settings(), &["repeat", "visibility"]).await;
    assert_eq!(ids(&report, Verdict::Refuted), BTreeSet::from(["repeat"]), "{}", report.text());
    assert_eq!(ids(&report, Verdict::Confirmed), BTreeSet::from(["visibility"]));

    let settings = Settings { patience: Duration::from_millis(300), ..settings() };
    let report = verify(&late(3_600_000), settings, &["repeat", "visibility", "answer"]).await;
    assert_eq!(ids(&report, Verdict::Unclear), BTreeSet::from(["repeat", "visibility"]), "{}", report.text());
    assert!(report.outcomes[0].finding.contains("--patience"), "{}", report.outcomes[0].finding);
    assert_eq!(ids(&report, Verdict::Confirmed), BTreeSet::from(["answer"]));
}

/// Without usage nothing of what is in doubt can be refuted.
#[tokio::test(flavor = "multi_thread")]
async fn faults_leave_probes_unclear_and_the_others_go_on() {
    let always = Trigger::rate(1.0);
    let hang_for = Duration::from_secs(3_600);
    for faults in [
        Faults { html: always, ..Faults::default() },
        Faults { redirect: always, ..Faults::default() },
        Faults { hang_before: always, hang_for, ..Faults::default() },
        Faults { fail_after: always, ..Faults::default() },
    ] {
        let settings = Settings { request_timeout: Duration::from_millis(300), ..settings() };
        let report = verify(
            &sandbox(Facts::default(), faults.clone()),
            settings,
            &["repeat", "bad-record", "answer", "meter-id"],
        )
        .await;
        assert_eq!(ids(&report, Verdict::Refuted), BTreeSet::new(), "{faults:?}\n{}", report.text());
        assert_eq!(ids(&report, Verdict::Confirmed), BTreeSet::from(["meter-id"]), "{faults:?}\n{}", report.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_is_waited_out_and_reported() {
    let faults = Faults { throttle: Trigger::next(2), retry_after: Some(Duration::from_secs(1)), ..Faults::default() };
    let report = verify(&sandbox(Facts::default(), faults), settings(), &["answer", "repeat"]).await;
    assert_eq!(report.count(Verdict::Confirmed), 2, "{}", report.text());
    assert_eq!((report.throttled, report.throttled_with_retry_after), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_are_no_amberflo_are_told_apart_at_once() {
    let everything = || [Operation::Ingest, Operation::Meters, Operation::Usage, Operation::Customers].into();
    let all = |faults: Faults| sandbox(Facts::default(), Faults { operations: everything(), ..faults });
    let always = Trigger::rate(1.0);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = listener.local_addr().unwrap().to_string();
    drop(listener);
    let other_key = SandboxConfig { api_keys: BTreeSet::from(["other".to_owned()]), ..SandboxConfig::default() };
    let peers = [
        (dead, "no answer"),
        (garbage().await, "no answer"),
        (serve(&all(Faults { html: always, ..Faults::default() })).await, "HTML"),
        (serve(&all(Faults { hang_before: always, ..Faults::default() })).await, "no answer"),
        (serve(&Sandbox::new(other_key)).await, "401"),
    ];
    for (address, expected) in peers {
        let settings = Settings { request_timeout: Duration::from_millis(300), ..settings() };
        let reason = verify_at(&address, settings, &["repeat"]).await.0.unwrap_err();
        assert!(reason.contains(expected), "{reason}");
    }
}

/// Answers what is no HTTP.
async fn garbage() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 1024]).await;
            let _ = connection.write_all(b"\x00\xffgarbage\r\n\r\n").await;
        }
    });
    address
}

/// A peer that shows every header and body it gets, in headers and bodies, successes and refusals.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_echoed_is_never_shown() {
    async fn echo(
        method: Method,
        uri: Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> (StatusCode, [(&'static str, String); 1], String) {
        let key = headers["x-api-key"].to_str().unwrap();
        let shown = format!("{}{key} {key} {}", "long ".repeat(199), String::from_utf8_lossy(&body));
        let (status, body) = match (method, uri.path()) {
            (Method::GET, "/meters") => {
                let name = uri.query().unwrap().trim_start_matches("meterApiName=");
                (StatusCode::OK, json!([{ "meterApiName": name, "id": key, "label": shown }]).to_string())
            }
            (_, "/usage") => (StatusCode::OK, json!({ "clientMeters": [], "shown": shown }).to_string()),
            (Method::POST, "/meters") => (StatusCode::OK, json!({ "id": key, "shown": shown }).to_string()),
            (_, "/customers") => (StatusCode::OK, shown),
            (_, "/ingest") => (StatusCode::BAD_REQUEST, shown),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, shown),
        };
        (status, [("location", format!("http://{key}@host/{key}"))], body)
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(echo)).await });
    let settings = Settings { patience: Duration::from_millis(200), ..settings() };
    let report = verify_at(&address, settings, &[]).await.0.unwrap();
    let shown = [report.text(), report.markdown(), serde_json::to_string(&report).unwrap()];
    for text in shown {
        assert!(text.contains("(redacted)"), "{text}");
        assert!(!text.contains(KEY), "{text}");
        // Nor the beginning of one at a cut.
        assert!(!text.contains("long sandb"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_meter_that_was_there_is_used_only_without_usage_and_stays() {
    let sandbox = sandbox(Facts::default(), Faults::default());
    let address = serve(&sandbox).await;
    let client = http();
    let post = async |path: &str, body: Value| {
        let request = client.post(format!("http://{address}{path}")).header("x-api-key", KEY).body(body.to_string());
        assert!(request.send().await.unwrap().status().is_success());
    };
    post("/meters", account::meter("verify", "sum_of_all_usage")).await;
    let report = verify_at(&address, settings(), &["repeat"]).await.0.unwrap();
    assert_eq!(report.count(Verdict::Confirmed), 1, "{}", report.text());
    assert_eq!(get(&address, "/meters").await[0]["lockingStatus"], "open", "it is not ours to delete");

    let reason = verify_at(&address, settings(), &["repeat"]).await.0.unwrap_err();
    assert!(reason.contains("has usage already"), "{reason}");
    assert_eq!(get(&address, "/meters").await.as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_cleans_up() {
    let facts = Facts { usage_visible_after: Duration::from_secs(3_600), ..Facts::default() };
    let sandbox = sandbox(facts, Faults::default());
    let address = serve(&sandbox).await;
    let probes: Vec<_> = probes::all().filter(|probe| ["repeat", "meter-id"].contains(&probe.id)).collect();
    let cost = Plan::cost(&probes, &settings());
    let (signals, mut received) = unbounded_channel();
    let run = run_at(&address, settings(), &cost);
    // As soon as the probe that can end has ended.
    let stop = |outcome: &report::Outcome| assert!(outcome.id == "meter-id" && signals.send("SIGINT").is_ok());
    let report = session::perform(&run, &probes, &mut received, stop).await.unwrap();
    assert!(report.is_interrupted);
    assert_eq!(report.summary(), "1 confirmed, 0 refuted, 1 unclear; interrupted");
    assert_eq!(get(&address, "/meters").await, json!([]));
    assert!(report.left.iter().any(|left| left.contains("verify-repeat")), "{:?}", report.left);
}

#[test]
fn what_is_announced_names_all_that_stays() {
    let probes: Vec<_> = probes::all().collect();
    let (settings, url) = (settings(), "https://app.amberflo.io");
    let cost = Plan::cost(&probes, &settings);
    let plan = Plan {
        base_url: url,
        ingest_url: url,
        prefix: "verify-1",
        meter: "verify-1",
        customer: "verify-1",
        probes: probes.len(),
        cost,
        rules: Plan::rules(&probes),
        rate: settings.rate,
        longest: Plan::longest(&cost, &settings),
    };
    let text = plan.to_string();
    for expected in [url, "verify-1", "usage records", "requests", "meters", "customers", "3 filtering rules", "Ctrl-C"]
    {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    let ids: BTreeSet<_> = probes.iter().map(|probe| probe.id).collect();
    assert_eq!(ids.len(), probes.len(), "ids are unique");
    assert!(probes.iter().all(|probe| list().contains(probe.claim) && !probe.if_refuted.is_empty()));
}
