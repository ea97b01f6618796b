use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::{Duration, UNIX_EPOCH};

use amberflo_sandbox::{Faults, Latency, Poison, RetryAfterFormat, Sandbox, SandboxConfig, Trigger};
use tokio::time::{Instant, advance, timeout};

use crate::{Answer, batch, event, sandbox, send, send_with};

const SECOND: Duration = Duration::from_secs(1);

/// One request with three records under one fault that happens once; then what the ledger holds.
async fn once(faults: Faults) -> (Answer, u64) {
    let sandbox = sandbox(faults);
    let answer = send(&sandbox, batch(&["1", "2", "3"])).await;
    let events = sandbox.ledger().events;
    assert_eq!(sandbox.requests()[0].accepted as u64, events);
    assert_eq!(sandbox.stats().by_fault.values().sum::<u64>(), 1);
    // The fault is used up: a retry succeeds, and the bill is right in the end.
    assert_eq!(send(&sandbox, batch(&["1", "2", "3"])).await.body, "3 records were ingested");
    assert_eq!(sandbox.ledger().events, 3);
    (answer, events)
}

#[tokio::test]
async fn throttle_answers_429_with_or_without_retry_after() {
    let (answer, events) = once(Faults { throttle: Trigger::next(1), ..Faults::default() }).await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after"), events), (429, "", 0));
    let retry_after = Some(Duration::from_millis(1500));
    let (answer, _) = once(Faults { throttle: Trigger::next(1), retry_after, ..Faults::default() }).await;
    assert_eq!(answer.header("retry-after"), "2");
}

#[tokio::test(start_paused = true)]
async fn an_http_date_follows_paused_time_and_early_requests_are_counted() {
    let started_at = Some(UNIX_EPOCH + SECOND * 784_111_777);
    let sandbox = Sandbox::new(SandboxConfig { started_at, ..SandboxConfig::default() });
    let retry_after_format = RetryAfterFormat::HttpDate;
    let faults =
        Faults { throttle: Trigger::next(1), retry_after: Some(SECOND * 10), retry_after_format, ..Faults::default() };
    sandbox.set_faults(faults).unwrap();
    advance(SECOND * 60).await;
    assert_eq!(send(&sandbox, event("1")).await.header("retry-after"), "Sun, 06 Nov 1994 08:50:47 GMT");
    advance(SECOND * 9).await;
    send(&sandbox, event("1")).await;
    advance(SECOND).await;
    send(&sandbox, event("1")).await;
    assert_eq!(sandbox.stats().early_requests, 1);
}

#[tokio::test]
async fn failures_come_before_or_after_accepting() {
    let fail_statuses = vec![502];
    let (answer, events) = once(Faults { fail_before: Trigger::next(1), fail_statuses, ..Faults::default() }).await;
    assert_eq!((answer.status.as_u16(), events), (502, 0));
    let (answer, events) = once(Faults { fail_after: Trigger::next(1), ..Faults::default() }).await;
    assert!([500, 502, 503].contains(&answer.status.as_u16()));
    assert_eq!(events, 3);
}

#[tokio::test(start_paused = true)]
async fn hangs_last_and_an_abandoned_request_is_counted() {
    let (answer, events) = once(Faults { hang_before: Trigger::next(1), ..Faults::default() }).await;
    assert_eq!((answer.status.as_u16(), events), (504, 0));

    let sandbox = sandbox(Faults { hang_after: Trigger::next(1), ..Faults::default() });
    timeout(SECOND * 30, send(&sandbox, event("1"))).await.unwrap_err();
    assert_eq!((sandbox.ledger().events, sandbox.stats().abandoned, sandbox.stats().in_flight), (1, 1, 0));
    let request = &sandbox.requests()[0];
    assert_eq!((request.status, request.accepted, request.took), (None, 1, SECOND * 30));
    assert_eq!(request.faults, ["hang_after"]);
    send(&sandbox, event("1")).await;
    assert_eq!((sandbox.ledger().events, sandbox.ledger().absorbed_copies), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn slow_answers_take_a_time_within_the_range() {
    let latency = Latency { min: SECOND, max: SECOND * 2 };
    let sandbox = sandbox(Faults { slow: Trigger::rate(1.0), latency, ..Faults::default() });
    let mut times = BTreeSet::new();
    for _ in 0..20 {
        let start = Instant::now();
        assert_eq!(send(&sandbox, event("1")).await.status, 200);
        times.insert(start.elapsed());
    }
    assert!(
        times.len() > 10 && *times.first().unwrap() >= SECOND && *times.last().unwrap() <= SECOND * 2 + SECOND / 500
    );
}

#[tokio::test]
async fn partial_faults_differ_in_what_is_accepted() {
    let (answer, events) = once(Faults { partial_answer: Trigger::next(1), ..Faults::default() }).await;
    assert_eq!((answer.body.as_str(), events), ("2 records were ingested", 3));
    let missing = NonZeroUsize::new(2).unwrap();
    let (answer, events) = once(Faults { partial_ingest: Trigger::next(1), missing, ..Faults::default() }).await;
    assert_eq!((answer.body.as_str(), events), ("1 records were ingested", 1));
    let missing = NonZeroUsize::new(9).unwrap();
    let (answer, events) = once(Faults { partial_ingest: Trigger::next(1), missing, ..Faults::default() }).await;
    assert_eq!((answer.body.as_str(), events), ("0 records were ingested", 0));
}

#[tokio::test]
async fn redirects_and_html_accept_nothing() {
    let redirect_location = "https://elsewhere.example/".to_owned();
    let redirect = Faults { redirect: Trigger::next(1), redirect_status: 307, redirect_location, ..Faults::default() };
    let (answer, events) = once(redirect).await;
    assert_eq!((answer.status.as_u16(), answer.header("location"), events), (307, "https://elsewhere.example/", 0));
    let (answer, events) = once(Faults { html: Trigger::next(1), ..Faults::default() }).await;
    assert_eq!((answer.status.as_u16(), events), (200, 0));
    assert!(answer.header("content-type").starts_with("text/html"));
    assert_eq!(answer.headers.get_all("content-type").iter().count(), 1);
}

#[tokio::test]
async fn poison_refuses_the_whole_request() {
    let set = |name: &str| BTreeSet::from([name.to_owned()]);
    let poison = vec![
        Poison { status: 422, unique_id_prefixes: vec!["bad-".to_owned()], ..Poison::default() },
        Poison { status: 403, customer_ids: set("blocked"), ..Poison::default() },
        Poison { status: 500, meter_api_names: set("broken"), ..Poison::default() },
    ];
    let sandbox = sandbox(Faults { poison, ..Faults::default() });
    let answer = send(&sandbox, batch(&["1", "bad-2"])).await;
    assert_eq!(answer.status, 422);
    assert!(!answer.body.contains("bad-2") && !answer.body.contains('1'));
    assert_eq!(send(&sandbox, event("1").replace("\"c\"", "\"blocked\"")).await.status, 403);
    assert_eq!(send(&sandbox, event("1").replace("\"m\"", "\"broken\"")).await.status, 500);
    assert_eq!(sandbox.ledger().events, 0);
    assert_eq!(send(&sandbox, batch(&["1", "not-bad-2"])).await.status, 200);
    assert_eq!(sandbox.stats().by_fault["poison"], 3);
}

#[tokio::test(start_paused = true)]
async fn the_rate_ceiling_slides() {
    let requests_per_second = NonZeroU32::new(2);
    let sandbox = sandbox(Faults { requests_per_second, ..Faults::default() });
    let mut statuses = Vec::new();
    for step in [0, 600, 300, 100, 500, 500] {
        advance(Duration::from_millis(step)).await;
        statuses.push(send(&sandbox, event("1")).await.status.as_u16());
    }
    assert_eq!(statuses, [200, 200, 429, 200, 429, 200]);
    assert_eq!(sandbox.stats().rate_violations, 2);
    assert_eq!(sandbox.stats().max_requests_in_one_second, 4);
}

#[tokio::test(start_paused = true)]
async fn the_concurrency_ceiling_holds() {
    let latency = Latency { min: SECOND, max: SECOND };
    let max_concurrent = NonZeroUsize::new(2);
    let sandbox = sandbox(Faults { slow: Trigger::rate(1.0), latency, max_concurrent, ..Faults::default() });
    let send = || send(&sandbox, event("1"));
    let answers = tokio::join!(send(), send(), send());
    assert_eq!([answers.0.status, answers.1.status, answers.2.status].map(|s| s.as_u16()), [200, 200, 429]);
    assert_eq!(send().await.status, 200);
    let stats = sandbox.stats();
    assert_eq!((stats.concurrency_violations, stats.max_concurrent, stats.in_flight), (1, 3, 0));
}

#[tokio::test]
async fn keys_can_be_revoked_and_replaced() {
    let sandbox = sandbox(Faults::default());
    let status = async |key: &str| send_with(&sandbox, &[("x-api-key", key)], event("1")).await.status.as_u16();
    assert_eq!(status("sandbox-key").await, 200);
    let revoked_keys = BTreeSet::from(["sandbox-key".to_owned()]);
    sandbox.set_faults(Faults { revoked_keys, ..Faults::default() }).unwrap();
    assert_eq!(status("sandbox-key").await, 401);
    let valid_keys = Some(BTreeSet::from(["second".to_owned()]));
    sandbox.set_faults(Faults { valid_keys, ..Faults::default() }).unwrap();
    assert_eq!([status("sandbox-key").await, status("second").await], [401, 200]);
    assert_eq!(sandbox.stats().by_fault["revoked_keys"], 1);
}

#[tokio::test]
async fn a_seed_repeats_the_same_answers() {
    let run = async |seed| {
        let some = Trigger::rate(0.2);
        let sandbox = sandbox(Faults {
            seed,
            throttle: some,
            fail_before: some,
            fail_after: some,
            partial_answer: some,
            html: some,
            ..Faults::default()
        });
        let mut answers = Vec::new();
        for n in 0..100 {
            let answer = send(&sandbox, event(&n.to_string())).await;
            answers.push((answer.status, answer.body));
        }
        let faults: Vec<_> = sandbox.requests().into_iter().map(|request| request.faults).collect();
        (answers, faults, sandbox.ledger())
    };
    let first = run(1).await;
    assert_eq!(first, run(1).await);
    assert_ne!(first, run(2).await);
}

#[tokio::test]
async fn every_attempt_is_counted_and_logged() {
    let sandbox = sandbox(Faults { throttle: Trigger::next(1), fail_after: Trigger::next(1), ..Faults::default() });
    for body in [batch(&["1"]), batch(&["1", "2"]), "x".to_owned(), batch(&["1", "2", "3"])] {
        send(&sandbox, body).await;
    }
    let stats = sandbox.stats();
    assert_eq!((stats.requests, stats.by_status.values().sum::<u64>(), stats.records_received), (4, 4, 5));
    let log: Vec<_> = sandbox.requests().into_iter().map(|r| (r.records, r.accepted, r.faults)).collect();
    let expected =
        [(None, 0, vec!["throttle"]), (Some(2), 2, vec!["fail_after"]), (None, 0, vec![]), (Some(3), 3, vec![])];
    assert_eq!(log, expected);
}
