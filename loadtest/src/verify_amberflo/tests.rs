//! The probes on the sandbox in both of its moods, and on peers that are no Amberflo.

mod moods;

use std::collections::BTreeSet;

use amberflo_sandbox::{Facts, Faults, Operation, Sandbox, SandboxConfig, Trigger};
use axum::Router;
use axum::body::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::sleep;

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
    // When the probe that can end has ended, and the other has sent what stays behind.
    let (has_ended, seen) = (Arc::new(Notify::new()), sandbox.clone());
    // The channel stays open: its end would be a second signal.
    let (ended, signal) = (Arc::clone(&has_ended), signals.clone());
    tokio::spawn(async move {
        ended.notified().await;
        while !seen.records().iter().any(|record| record.customer_id.contains("repeat")) {
            sleep(Duration::from_millis(5)).await;
        }
        signal.send("SIGINT").unwrap();
    });
    let note = |outcome: &report::Outcome| {
        assert_eq!(outcome.id, "meter-id");
        has_ended.notify_one();
    };
    let report = session::perform(&run, &probes, &mut received, note).await.unwrap();
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
        rate: settings.rate,
        longest: Plan::longest(&cost, &settings),
    };
    let text = plan.to_string();
    for expected in
        [url, "verify-1", "usage records", "requests", "meters", "customers", "5 filtering rules", "for ever", "Ctrl-C"]
    {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    let ids: BTreeSet<_> = probes.iter().map(|probe| probe.id).collect();
    assert_eq!(ids.len(), probes.len(), "ids are unique");
    assert!(probes.iter().all(|probe| list().contains(probe.claim) && !probe.if_refuted.is_empty()));
}
