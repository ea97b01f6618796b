//! What the runbook speaks of is there: metrics, settings, lines of the logs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::RUNBOOK;
use crate::document::blocks;
use crate::harness::loadtest;

#[test]
fn every_metric_of_a_query_is_documented_or_recorded() {
    let observability = root().join("infra/observability");
    let [documented, recorded] = ["METRICS.md", "rules/recording.yaml"].map(|file| read(&observability.join(file)));
    let prefixes = ["ingest_", "amberflo_", "control_api_", "process_", "cluster", "instance:"];
    let mut metrics = BTreeSet::new();
    for query in blocks(RUNBOOK).iter().filter(|block| block.language == "promql") {
        let is_part = |character: char| character.is_alphanumeric() || "_:".contains(character);
        let words = query.text.split(|character| !is_part(character)).filter(|word| word.contains(['_', ':']));
        let words = words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)));
        metrics.extend(words.map(str::to_owned));
    }
    assert!(metrics.len() > 20, "{metrics:?}");
    for metric in metrics {
        let is_known = documented.contains(&format!("`{metric}`")) || recorded.contains(&format!("record: {metric}\n"));
        assert!(is_known, "{metric}");
    }
}

#[tokio::test]
async fn every_setting_is_one_of_a_program() {
    let mut known = String::new();
    for program in ["ingest-worker", "control-api"] {
        let help = loadtest(&[program, "--help"]).output().await.unwrap();
        known.push_str(&String::from_utf8(help.stdout).unwrap());
    }
    let settings: BTreeSet<&str> = code().into_iter().filter(|code| code.contains('_') && is_upper(code)).collect();
    assert!(settings.len() > 15, "{settings:?}");
    for setting in settings {
        // A variable of the runbook's own.
        let is_own = RUNBOOK.contains(&format!("read -r {setting}"));
        assert!(is_own || known.contains(&format!("[env: {setting}")), "{setting}");
    }
}

/// Whoever looks for a line in a log has to find it as it is written here.
#[test]
fn every_line_of_a_log_is_written_by_a_program() {
    let mut sources = String::new();
    for crate_ in ["shared", "ingest-worker", "control-api"] {
        read_all(&root().join(crate_).join("src"), &mut sources);
    }
    let first =
        |word: &str| ["its", "dead", "reading", "leases", "sending", "Amberflo"].contains(&word) || word == "the";
    let is_line = |code: &&str| {
        let mut words = code.split(' ');
        words.next().is_some_and(first) && words.count() >= 2 && !code.contains(['$', '=', '/', '|'])
    };
    let lines: BTreeSet<&str> = code().into_iter().filter(is_line).collect();
    assert!(lines.len() >= 8, "{lines:?}");
    for line in lines {
        assert!(sources.contains(line), "{line}");
    }
}

/// What stands in `backticks` outside of code blocks.
fn code() -> Vec<&'static str> {
    let prose = RUNBOOK.split("```").step_by(2);
    prose.flat_map(|prose| prose.split('`').skip(1).step_by(2)).collect()
}

fn is_upper(text: &str) -> bool {
    text.chars().all(|character| character.is_ascii_uppercase() || character == '_')
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn read_all(directory: &Path, text: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, text);
        } else {
            text.push_str(&read(&path));
        }
    }
}
