//! The runbook as the drill reads it: headings, and the queries that tell causes apart.
//!
//! A query stands in a fenced block whose info string is `promql cause=NAME`: it gives a result where this is the cause,
//! and none otherwise. Blocks with the info string `promql` are for orientation.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};

use super::prometheus::Prometheus;
use super::rescale::promql;

const FENCE: &str = "```";

/// A runbook.
#[derive(Debug)]
pub struct Runbook {
    parts: Vec<Part>,
}

#[derive(Debug, PartialEq)]
enum Part {
    Heading { level: usize, title: String },
    Query { cause: Option<String>, text: String, line: usize },
}

impl Runbook {
    /// Reads a runbook.
    ///
    /// # Errors
    /// When there is none, or one of its blocks is not as above.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut parts = Vec::new();
        // The indentation of a block in a list, and whether the block is one for us.
        let mut block: Option<(usize, bool)> = None;
        for (number, line) in text.lines().enumerate() {
            let trimmed = line.trim();
            match (block, trimmed.strip_prefix(FENCE)) {
                (Some(_), Some(_)) => block = None,
                (None, Some(info)) => {
                    let mut words = info.split_whitespace();
                    let is_query = words.next() == Some("promql");
                    block = Some((line.len() - line.trim_start().len(), is_query));
                    if is_query {
                        let cause = cause(words).with_context(|| format!("line {}: {trimmed}", number + 1))?;
                        parts.push(Part::Query { cause, text: String::new(), line: number + 1 });
                    }
                }
                (Some((indent, true)), None) => {
                    if let Some(Part::Query { text, .. }) = parts.last_mut() {
                        text.push_str(line.get(indent..).unwrap_or(trimmed));
                        text.push('\n');
                    }
                }
                (Some((_, false)), None) => {}
                (None, None) => {
                    let level = line.len() - line.trim_start_matches('#').len();
                    if let Some(title) = line[level..].strip_prefix(' ').filter(|_| (1..=6).contains(&level)) {
                        parts.push(Part::Heading { level, title: title.trim().to_owned() });
                    }
                }
            }
        }
        ensure!(block.is_none(), "a block without an end");
        Ok(Self { parts })
    }

    /// The title of the section with this anchor, and its queries that name a cause.
    ///
    /// # Errors
    /// When there is no such heading.
    pub fn section(&self, anchor: &str) -> anyhow::Result<Section<'_>> {
        let heading = |part: &Part| matches!(part, Part::Heading { title, .. } if slug(title) == anchor);
        let at = self.parts.iter().position(heading);
        let Some(at) = at else { bail!("the runbook has no heading #{anchor}") };
        let Part::Heading { level: own, title } = &self.parts[at] else { bail!("no heading") };
        let inside = |part: &&Part| !matches!(part, Part::Heading { level, .. } if level <= own);
        let queries = self.parts[at + 1..].iter().take_while(inside).filter_map(|part| match part {
            Part::Query { cause: Some(cause), text, .. } => Some((cause.as_str(), text.as_str())),
            _ => None,
        });
        Ok(Section { title, queries: queries.collect() })
    }

    /// Runs every query; answers those that cannot be run.
    pub async fn broken_queries(&self, prometheus: &Prometheus, factor: u64) -> Vec<String> {
        let mut broken = Vec::new();
        for part in &self.parts {
            if let Part::Query { text, line, .. } = part
                && let Err(error) = prometheus.query(&promql(text, factor)).await
            {
                broken.push(format!("the runbook's query in line {line} cannot be run: {error:#}"));
            }
        }
        broken
    }
}

/// What the runbook has to say about one alert.
#[derive(Debug, PartialEq)]
pub struct Section<'a> {
    /// Its heading.
    pub title: &'a str,
    /// Causes, each with the query that shows it.
    pub queries: Vec<(&'a str, &'a str)>,
}

impl Section<'_> {
    /// The causes at which the section points, for a deployment, at this moment.
    ///
    /// # Errors
    /// When a query cannot be run.
    pub async fn causes(&self, prometheus: &Prometheus, factor: u64, cluster: &str) -> anyhow::Result<Vec<&str>> {
        let mut causes = Vec::new();
        for (cause, query) in &self.queries {
            let answer = prometheus.query(&promql(query, factor)).await.with_context(|| format!("{cause}: {query}"))?;
            if answer.iter().any(|series| series.labels.get("cluster").is_some_and(|label| label == cluster)) {
                causes.push(*cause);
            }
        }
        Ok(causes)
    }
}

/// From the words of an info string after `promql`.
fn cause<'a>(mut words: impl Iterator<Item = &'a str>) -> anyhow::Result<Option<String>> {
    let Some(word) = words.next() else { return Ok(None) };
    let cause = word.strip_prefix("cause=").filter(|cause| !cause.is_empty());
    ensure!(words.next().is_none(), "one cause a block");
    Ok(Some(cause.context("expected cause=NAME")?.to_owned()))
}

/// The anchor of a heading, as GitHub makes it.
fn slug(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# Runbook
## MeteringA
### How to tell the causes apart
```promql cause=one
x > 0
  and y
```
- in a list:

  ```promql cause=two
  z
  ```
```promql
w
```
```sh
## MeteringB
```
## MeteringB
```promql cause=three
v
```
";

    #[test]
    fn a_section_has_its_queries_and_not_its_neighbours() {
        let runbook = Runbook::parse(TEXT).unwrap();
        let a = runbook.section("meteringa").unwrap();
        assert_eq!(a, Section { title: "MeteringA", queries: vec![("one", "x > 0\n  and y\n"), ("two", "z\n")] });
        assert_eq!(runbook.section("meteringb").unwrap().queries, [("three", "v\n")]);
        assert_eq!(runbook.section("how-to-tell-the-causes-apart").unwrap().queries.len(), 2);
        assert!(runbook.section("meteringc").is_err());
    }

    #[test]
    fn a_slip_in_a_block_is_an_error() {
        for text in
            ["```promql reason=x\n```", "```promql cause=\n```", "```promql cause=a cause=b\n```", "```promql\nx"]
        {
            assert!(Runbook::parse(text).is_err(), "{text}");
        }
    }
}
