use super::*;
use crate::audit::Audit;
use crate::chaos::board::{Board, Done};

fn report(failures: Vec<String>) -> Report {
    let points = (0..60).map(|at| Point { at: f64::from(at), emitted: 10 * at as u64, alive: 3, ..Point::default() });
    let note =
        |at, text: &str| Note { at, arena: ArenaName::Kinesis, subject: "kill".to_owned(), text: text.to_owned() };
    let outcome = Outcome {
        arena: ArenaName::Kinesis,
        passed: failures.is_empty(),
        failures,
        audit: Audit::default(),
        records_checked: 7,
        checkpoints_checked: 6,
        kills: 1,
        done: BTreeMap::from([("kill", 2)]),
        befell: BTreeMap::from([("fail-before", 17)]),
        is_complete: true,
        absorbed_by_amberflo: 5,
        failed_calls: 4,
        settled_after: 3.0,
        points: points.collect(),
        notes: vec![
            note(12.0, "worker-1 killed"),
            note(14.0, "over"),
            note(20.0, "left out: worker-1 is down or ending already"),
        ],
    };
    Report {
        passed: outcome.passed,
        command: "make chaos ARGS='--minutes 1 --seed 9'".to_owned(),
        commit: Some("0123abc, changed".to_owned()),
        patience: None,
        seed: 9,
        minutes: 1.0,
        rates: BTreeMap::from([(ArenaName::Kinesis, 10)]),
        left_out: Vec::new(),
        machine: Machine::here(),
        planned: BTreeMap::from([(
            ArenaName::Kinesis,
            BTreeMap::from([("kill", 3), ("fail-before", 1), ("sqs-lost", 1)]),
        )]),
        outcomes: vec![outcome],
    }
}

#[test]
fn a_report_says_what_happened_and_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    report(Vec::new()).write(dir.path()).unwrap();
    let text = std::fs::read_to_string(dir.path().join("report.md")).unwrap();
    for part in [
        "seed 9",
        "passed",
        "--minutes 1 --seed 9",
        "| kill | SIGKILL to a worker, restart | 3 | 2 | - |",
        "| fail-before | 5xx, nothing accepted | 1 | 0 | 17 |",
        "| sqs-lost | letters are stored, the answers fail | 1 | 0 | 0 |",
        "| commit | 0123abc, changed |",
        "| a standstill | not checked",
        "worker-1 killed",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let images: Vec<_> = text.lines().filter_map(|line| line.strip_suffix(')')?.rsplit_once('(')).collect();
    assert_eq!(images.len(), 3);
    images.iter().for_each(|(_, image)| assert!(dir.path().join(image).exists(), "{image}"));
    let result: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("result.json")).unwrap()).unwrap();
    assert_eq!((&result["passed"], &result["seed"]), (&true.into(), &9.into()));
    assert_eq!(result["outcomes"][0]["absorbed_by_amberflo"], 5);
}

#[test]
fn a_run_that_left_something_out_says_so_in_its_verdict() {
    let mut report = report(Vec::new());
    assert!(report.summary().ends_with("PASSED: every event is accounted for, once"));
    report.left_out = vec!["a full disk: no room".to_owned()];
    assert!(report.summary().ends_with("PASSED, without: a full disk: no room"), "{}", report.summary());
    assert!(report.markdown().contains("**Result: passed, without: a full disk: no room.**"));
}

#[test]
fn a_run_that_broke_off_has_a_report() {
    let board = Board::new(ArenaName::Local);
    board.did("kill", Done::Yes("worker-1 killed".to_owned()));
    let outcome = Outcome::aborted(&board, &anyhow::anyhow!("moto ended"));
    let report = Report { passed: false, outcomes: vec![outcome], ..report(Vec::new()) };
    let dir = tempfile::tempdir().unwrap();
    report.write(dir.path()).unwrap();
    let text = std::fs::read_to_string(dir.path().join("report.md")).unwrap();
    for part in ["FAILED", "it could not go on: moto ended", "worker-1 killed", "no audit"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(report.summary().contains("did not come to its end"));
}

#[test]
fn marks_are_of_kills_that_happened() {
    for (_, chart) in charts(&report(Vec::new()).outcomes[0]) {
        assert_eq!(chart.marks.len(), 1);
    }
}

#[test]
fn a_failure_is_said_first() {
    let text = report(vec!["audit: lost: a|b".to_owned()]).markdown();
    assert!(text.find("FAILED").unwrap() < text.find("## What was done").unwrap());
    assert!(text.contains("- audit: lost: a\\|b"), "{text}");
}

#[test]
fn a_rate_is_what_was_gained_in_the_last_seconds() {
    let rates = rate(&report(Vec::new()).outcomes[0].points, |point| point.emitted);
    assert_eq!(rates.len(), 59);
    assert!(rates.iter().all(|(_, rate)| (*rate - 10.0).abs() < 1e-9), "{rates:?}");
}
