//! `METRICS.md`, read and compared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::exposition::{Exposition, Family};

/// By program, by name.
pub struct Document {
    programs: BTreeMap<String, BTreeMap<String, Row>>,
    bounds: BTreeMap<String, String>,
}

struct Row {
    kind: String,
    /// By name, the values that are there from the start.
    labels: BTreeMap<String, BTreeSet<String>>,
    is_about_kinesis: bool,
}

impl Document {
    pub fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/observability/METRICS.md");
        Self::parse(&std::fs::read_to_string(path).unwrap())
    }

    pub fn parse(text: &str) -> Self {
        let mut document = Self { programs: BTreeMap::new(), bounds: BTreeMap::new() };
        let mut section = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("## ") {
                name.clone_into(&mut section);
            } else if line.starts_with("| `") {
                let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
                if section == "Buckets" {
                    document.bounds.extend(codes(cells[0]).into_iter().map(|name| (name, cells[1].to_owned())));
                    continue;
                }
                let [name, kind, labels, meaning, _] = cells[..] else { panic!("{line}") };
                let row = Row {
                    kind: kind.to_owned(),
                    labels: labels.split(';').filter_map(|label| label.split_once(':')).map(label).collect(),
                    is_about_kinesis: meaning.starts_with("Kinesis only:"),
                };
                assert!(!meaning.is_empty(), "{line}");
                let name = codes(name).pop_first().unwrap();
                assert!(
                    document.programs.entry(section.clone()).or_default().insert(name, row).is_none(),
                    "twice: {line}"
                );
            }
        }
        document
    }

    /// Where a program that works on a local stream differs from what is written.
    pub fn differences(&self, program: &str, exposed: &Exposition) -> Vec<String> {
        let written = &self.programs[program];
        let mut told = Vec::new();
        for (name, row) in written.iter().filter(|(_, row)| !row.is_about_kinesis) {
            match exposed.0.get(name) {
                None => told.push(format!("{name}: is not exposed")),
                Some(family) => {
                    told.extend(row.differences(family).into_iter().map(|difference| format!("{name}: {difference}")));
                    told.extend(self.difference_of_bounds(name, family));
                }
            }
        }
        let unwritten = exposed.0.keys().filter(|name| written.get(*name).is_none_or(|row| row.is_about_kinesis));
        told.extend(unwritten.map(|name| format!("{name}: is not documented")));
        told
    }

    fn difference_of_bounds(&self, name: &str, family: &Family) -> Option<String> {
        let bounds: Vec<&str> = family.bounds.iter().map(|bound| bound.0.as_str()).collect();
        let (exposed, written) = (bounds.join(", "), self.bounds.get(name).map_or("", String::as_str));
        (exposed != written).then(|| format!("{name}: the bounds are {exposed}, not {written}"))
    }
}

impl Row {
    fn differences(&self, family: &Family) -> Vec<String> {
        let mut told = Vec::new();
        if family.kind != self.kind {
            told.push(format!("is a {}, not a {}", family.kind, self.kind));
        }
        if !family.has_help {
            told.push("has no HELP".to_owned());
        }
        let labels: BTreeSet<&String> = self.labels.keys().collect();
        for series in &family.series {
            let given: BTreeSet<&String> = series.0.keys().collect();
            if given != labels {
                told.push(format!("the labels are {given:?}, not {labels:?}"));
                return told;
            }
        }
        for (label, values) in self.labels.iter().filter(|(_, values)| !values.is_empty()) {
            let given: BTreeSet<String> = family.series.iter().map(|(labels, _)| labels[label].clone()).collect();
            if given != *values {
                told.push(format!("the values of {label} are {given:?}, not {values:?}"));
            }
        }
        told
    }
}

fn label((name, values): (&str, &str)) -> (String, BTreeSet<String>) {
    (codes(name).pop_first().unwrap(), codes(values))
}

/// What stands in backticks.
fn codes(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}
