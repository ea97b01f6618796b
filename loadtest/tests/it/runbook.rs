//! What the runbook says works: its commands are taken from it as they stand, and run in order against real processes.

mod aws_only;
mod kinesis;
mod local;
mod names;
mod site;

use std::collections::BTreeSet;
use std::path::Path;

use crate::document::{Block, blocks};
use crate::shell::Shell;

const RUNBOOK: &str = include_str!("../../../infra/observability/RUNBOOK.md");

const SET_FIRST: &str = "Set these first";
const FIRST_MINUTE: &str = "The first minute";
const REDRIVE: &str = "Redrive dead letters";
const ROTATE: &str = "Rotate the Amberflo key";
const RAISE: &str = "Raise a limit";
const DRAIN: &str = "Drain a worker for maintenance";
const REPLAY: &str = "Replay from a time";
const RESIZE: &str = "Resize the stream";
const LOST_TABLE: &str = "Recover a lost lease table";
const CANCEL: &str = "Cancel a wrong bill";
const VERIFY: &str = "Verify that a bill is right";

/// What a mark of a shell block says: where it can run.
const LOCAL: &str = "local";
const KINESIS: &str = "kinesis";
const AWS_ONLY: &str = "aws-only";

/// The shell blocks of one section that can run in one place, in order. All of them have to be run.
struct Steps(Vec<Block>);

impl Steps {
    fn of(section: &str, place: &str) -> Self {
        let is_meant = |block: &Block| block.section == section && (block.mark.is_empty() || block.mark == place);
        let mut steps: Vec<_> = shell_blocks().into_iter().filter(is_meant).collect();
        assert!(!steps.is_empty(), "{section} has no commands");
        steps.reverse();
        Self(steps)
    }

    /// Pastes the next block; answers what it printed.
    async fn next(&mut self, shell: &mut Shell) -> String {
        let block = self.0.pop().expect("the section has another block");
        let printed = shell.paste(&block.text).await;
        println!("{}\n{printed}", block.text);
        printed
    }

    fn done(self) {
        assert_eq!(self.0, [], "blocks that nobody has run");
    }
}

/// Pastes what is to be set first, and what is set first there.
async fn set_first(shell: &mut Shell, place: &str) {
    let mut steps = Steps::of(SET_FIRST, place);
    while !steps.0.is_empty() {
        steps.next(shell).await;
    }
}

fn shell_blocks() -> Vec<Block> {
    blocks(RUNBOOK).into_iter().filter(|block| block.language == "sh").collect()
}

/// Those of the alerts.
fn alerts() -> Vec<String> {
    let sections = RUNBOOK.lines().filter_map(|line| line.strip_prefix("## "));
    sections.filter(|section| section.starts_with("Metering")).map(str::to_owned).collect()
}

/// A command that nobody has run is wrong.
#[test]
fn every_command_is_tried_where_its_mark_says() {
    for Block { section, mark, text, .. } in shell_blocks() {
        let is_tried = match mark.as_str() {
            "" => {
                local::TRIED.contains(&&*section) || kinesis::TRIED.contains(&&*section) || alerts().contains(&section)
            }
            LOCAL => local::TRIED.contains(&&*section),
            KINESIS => kinesis::TRIED.contains(&&*section),
            AWS_ONLY => true,
            other => panic!("{other}: no mark that the runbook explains"),
        };
        assert!(is_tried, "{section}: nobody runs\n{text}");
    }
}

#[test]
fn only_what_calls_aws_or_deploys_is_left_to_aws() {
    for block in shell_blocks().iter().filter(|block| block.mark == AWS_ONLY) {
        assert!(block.text.contains("aws ") || block.text.contains("npx cdk"), "{block:?}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/observability");
    let mut links = 0;
    for link in RUNBOOK.split("](").skip(1) {
        let target = link.split(')').next().unwrap();
        let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
        let text = match file {
            "" => RUNBOOK.to_owned(),
            file => std::fs::read_to_string(directory.join(file)).unwrap_or_else(|error| panic!("{target}: {error}")),
        };
        assert!(anchor.is_empty() || anchors(&text).contains(anchor), "{target}");
        links += 1;
    }
    assert!(links > 50, "{links}");
}

/// The anchors that GitHub makes of headings.
fn anchors(document: &str) -> BTreeSet<String> {
    let headings =
        document.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let is_kept = |character: &char| character.is_alphanumeric() || " -_".contains(*character);
    headings
        .map(|heading| heading.to_lowercase().chars().filter(is_kept).collect::<String>().replace(' ', "-"))
        .collect()
}

#[test]
fn every_alert_has_its_meaning_a_first_check_causes_and_whom_to_call() {
    let alerts = alerts();
    assert!(alerts.len() > 15, "{alerts:?}");
    for alert in &alerts {
        let text =
            RUNBOOK.split(&format!("\n## {alert}\n")).nth(1).and_then(|text| text.split("\n## ").next()).unwrap();
        for part in ["**What it means.**", "**Money:", "**First:", "| cause |", "```promql cause=", "**Escalate"] {
            assert!(text.contains(part), "{alert} lacks {part}");
        }
        let in_table: BTreeSet<_> = text.split("\n| `").skip(1).filter_map(|row| row.split('`').next()).collect();
        let causes: Vec<_> = text.split("```promql cause=").skip(1).filter_map(|block| block.lines().next()).collect();
        let unique: BTreeSet<_> = causes.iter().copied().collect();
        assert_eq!(unique.len(), causes.len(), "{alert}: {causes:?}");
        assert_eq!(in_table, unique, "{alert}: causes of the table, and those with a query");
    }
}
