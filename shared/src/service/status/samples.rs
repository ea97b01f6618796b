//! What the registry says at one moment, read from the text that it renders for Prometheus.

use std::collections::HashMap;

/// The series of a registry.
#[derive(Debug, Default)]
pub struct Samples(HashMap<String, Vec<(Labels, f64)>>);

/// The labels of one series.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Labels(Vec<(String, String)>);

impl Samples {
    /// Reads Prometheus text; a line that is none is left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut samples = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, labels, value)) = series(line) {
                samples.0.entry(name.to_owned()).or_default().push((labels, value));
            }
        }
        samples
    }

    /// All series of a metric.
    pub fn series(&self, name: &str) -> impl Iterator<Item = (&Labels, f64)> {
        self.0.get(name).into_iter().flatten().map(|(labels, value)| (labels, *value))
    }

    /// The value of the only series of a metric; `None` where there is none yet.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<f64> {
        self.series(name).next().map(|(_, value)| value)
    }

    /// The sum of the series of a metric whose label has this value.
    #[must_use]
    pub fn with(&self, name: &str, label: &str, value: &str) -> f64 {
        self.series(name).filter(|(labels, _)| labels.get(label) == Some(value)).map(|(_, value)| value).sum()
    }
}

impl Labels {
    /// The value of this label.
    #[must_use]
    pub fn get(&self, label: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == label).map(|(_, value)| &**value)
    }
}

/// Name, labels and value of a line such as `name{label="value"} 1`.
fn series(line: &str) -> Option<(&str, Labels, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, quoted) = rest.split_once("=\"")?;
            let (value, after) = unquoted(quoted)?;
            labels.push((label.to_owned(), value));
            rest = after;
        }
    }
    Some((name, Labels(labels), rest.split_whitespace().next()?.parse().ok()?))
}

/// The text up to the closing quotation mark, and what follows that.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_exporter_writes() {
        let text = "# HELP a_total Things\n# TYPE a_total counter\na_total 12\n\n\
            b{shard=\"s-1\"} 0.25\nb{shard=\"\\\"} 9 \\\\ \\n\",le=\"+Inf\"} 3\nc NaN\nd{x=\"1\" 2\nnothing\n";
        let samples = Samples::parse(text);
        assert_eq!(samples.get("a_total"), Some(12.0));
        assert_eq!(samples.with("b", "shard", "s-1"), 0.25);
        assert_eq!(samples.with("b", "shard", "\"} 9 \\ \n"), 3.0);
        assert_eq!(samples.with("b", "le", "+Inf"), 3.0);
        assert_eq!((samples.get("d"), samples.get("nothing"), samples.with("b", "shard", "?")), (None, None, 0.0));
    }
}
