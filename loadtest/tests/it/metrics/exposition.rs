//! What a program exposes, read from Prometheus' text format.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub struct Exposition(pub BTreeMap<String, Family>);

/// All series of one metric.
#[derive(Default)]
pub struct Family {
    pub kind: String,
    pub has_help: bool,
    pub series: Vec<(BTreeMap<String, String>, f64)>,
    /// Of a histogram's buckets, without the last, which has none.
    pub bounds: BTreeSet<Bound>,
}

/// As it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound(pub String);

impl Eq for Bound {}

impl PartialOrd for Bound {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Bound {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let number = |bound: &Self| bound.0.parse::<f64>().unwrap();
        number(self).total_cmp(&number(other))
    }
}

impl Exposition {
    pub fn parse(text: &str) -> Self {
        let mut families = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let name = rest.split(' ').next().unwrap();
                families.0.entry(name.to_owned()).or_default().has_help = true;
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                kind.clone_into(&mut families.0.entry(name.to_owned()).or_default().kind);
            } else {
                families.add(line);
            }
        }
        families
    }

    fn add(&mut self, line: &str) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let mut labels = labels_of(labels.strip_suffix('}').unwrap());
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
            let name = name.strip_suffix(suffix)?;
            self.0.get(name).filter(|family| family.kind == "histogram").map(|_| name)
        });
        let family = self.0.entry(family.unwrap_or(name).to_owned()).or_default();
        if let Some(bound) = labels.remove("le").filter(|bound| bound != "+Inf") {
            family.bounds.insert(Bound(bound));
        }
        family.series.push((labels, value.parse().unwrap()));
    }

    /// The sum of all series of a metric.
    pub fn sum(&self, name: &str) -> f64 {
        self.0.get(name).map_or(0.0, |family| family.series.iter().map(|(_, value)| value).sum())
    }

    /// The sum of those with this label.
    pub fn sum_of(&self, name: &str, label: &str, value: &str) -> f64 {
        let series = self.0.get(name).map_or(&[][..], |family| &family.series);
        series
            .iter()
            .filter(|(labels, _)| labels.get(label).is_some_and(|it| it == value))
            .map(|(_, value)| value)
            .sum()
    }
}

/// None of our values holds a quote or a comma.
fn labels_of(text: &str) -> BTreeMap<String, String> {
    let labels = text.split("\",").filter(|label| !label.is_empty());
    labels
        .map(|label| label.split_once("=\"").unwrap())
        .map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned()))
        .collect()
}
