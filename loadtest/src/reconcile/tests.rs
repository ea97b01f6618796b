//! Audits of an event that is billed as it must be, by what can be seen of the dead letters.

use amberflo_sandbox::{Sandbox, SandboxConfig};
use axum::Router;
use clap::{Args as _, Command, FromArgMatches as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::mix::Mix;
use crate::target::http_client;

async fn serve(router: Router) -> (String, AbortOnDropHandle<std::io::Result<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (url, AbortOnDropHandle::new(tokio::spawn(async { axum::serve(listener, router).await })))
}

fn args(given: &[&str]) -> Result<AuditArgs, clap::Error> {
    let command = AuditArgs::augment_args(Command::new("audit").no_binary_name(true));
    command.try_get_matches_from(given).and_then(|matches| AuditArgs::from_arg_matches(&matches))
}

#[tokio::test]
async fn an_audit_that_could_not_read_all_dead_letters_does_not_pass() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ledger = format!("http://{}", listener.local_addr().unwrap());
    let sandbox = Sandbox::new(SandboxConfig::default());
    let _server = AbortOnDropHandle::new(tokio::spawn(amberflo_sandbox::serve(
        listener,
        sandbox.clone(),
        std::future::pending(),
    )));
    let now = shared::clock::Clock::system().now();
    let billed = json!([{
        "customerId": "acme-lt7", "meterApiName": "calls", "meterValue": 5, "meterTimeInMillis": now, "uniqueId": "event-lt7",
        "dimensions": {},
    }]);
    let http = http_client(&ledger, Duration::from_secs(10)).unwrap();
    let put = http.post(format!("{ledger}/ingest")).header("x-api-key", "sandbox-key").body(billed.to_string());
    let answer = put.send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());

    let dir = TempDir::new().unwrap();
    let (manifest, report) = (dir.path().join("manifest"), dir.path().join("report"));
    let mix = Mix { run: "lt7".to_owned(), ..Mix::demo() };
    let run = manifest::Header {
        version: manifest::VERSION,
        run: "lt7".to_owned(),
        seed: 1,
        target: "test".to_owned(),
        started_at: now,
        mix,
    };
    let detail = json!({
        "tenantId": "acme-lt7", "meterApiName": "calls", "meterValue": 5, "meterTimeInMillis": now, "uniqueId": "event-lt7",
    });
    let lines = [
        json!({"run": run}),
        json!({"valid": {"number": 0, "detail": detail}}),
        json!({"acknowledged": {"valid": [[0, 0]], "sent": now, "at": now}}),
        json!({"end": {}}),
    ];
    std::fs::write(&manifest, lines.map(|line| format!("{line}\n")).concat()).unwrap();

    for (more, verdict) in [(false, Verdict::Passed), (true, Verdict::Incomplete)] {
        let answer = json!({"data": {"letters": [], "more": more}}).to_string();
        let (control_api, _server) = serve(Router::new().fallback(async || answer)).await;
        let args = args(&[
            &format!("--manifest={}", manifest.display()),
            &format!("--ledger=sandbox={ledger}"),
            &format!("--dead-letters=control-api:{control_api}"),
            &format!("--report={}", report.display()),
            "--settle=0s",
        ]);
        assert_eq!(carry_out(&args.unwrap()).await.unwrap(), verdict);
        let result: Value = serde_json::from_slice(&std::fs::read(report.join("result.json")).unwrap()).unwrap();
        assert_eq!(result["passed"], json!(!more), "{result}");
        assert_eq!(result["unread_dead_letters"].is_string(), more, "{result}");
        let text = std::fs::read_to_string(report.join("report.md")).unwrap();
        assert_eq!(text.contains("INCOMPLETE") && text.contains("Audit with local:DIR"), more, "{text}");
        let line = &result["tenants"][0];
        assert_eq!((&line["tenant"], &line["is_sound"]), (&json!("acme-lt7"), &json!(true)), "{result}");
        for kind in ["lost", "double_billed", "late", "conflicts_emitted", "missing_dead_letters", "unexpected"] {
            assert_eq!(line[kind], 0, "{kind}: {result}");
        }
    }
}

#[test]
fn only_urls_are_taken_for_urls() {
    let parse = |ledger: &str, letters: &str| {
        args(&["--manifest=x", &format!("--ledger={ledger}"), &format!("--dead-letters={letters}")])
    };
    let (ledger, letters) = ("sandbox=http://127.0.0.1:1", "control-api:https://example.com/");
    assert!(parse(ledger, letters).is_ok() && parse("amberflo", "sqs:http://127.0.0.1:1/0/queue").is_ok());
    for wrong in
        ["sandbox=httpfoo", "sandbox=http:", "sandbox=ftp://host", "sandbox=http://user@host", "other=http://a"]
    {
        let error = parse(wrong, letters).unwrap_err().to_string();
        assert!(error.contains("sandbox"), "{error}");
    }
    for wrong in ["sqs:queue", "sqs:https://", "control-api:http://user@host", "other:http://host", "local:"] {
        assert!(parse(ledger, wrong).is_err(), "{wrong}");
    }
}
