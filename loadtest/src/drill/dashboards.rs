//! The queries of the dashboards, run as Grafana would run them: an error or an empty answer is a broken panel.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::prometheus::{Prometheus, Series};
use super::rescale::promql;

/// Between two points of a panel, and its `$__interval`.
const STEP: Duration = Duration::from_secs(5);
/// Grafana's `$__rate_interval` is longer than a step by a scrape (of the drill's Prometheus: a second), or what happens
/// between the last sample of one step and the first of the next would be in no rate.
const RATE_INTERVAL: Duration = Duration::from_secs(6);

/// One query of a dashboard, its variables filled in.
#[derive(Debug, PartialEq)]
struct Query {
    dashboard: String,
    /// The title of the panel, or what else it belongs to.
    place: String,
    text: String,
}

/// What is wrong with the dashboards.
#[derive(Debug, Default)]
pub struct Findings {
    /// How many queries were run.
    pub queries: usize,
    /// Those that are errors.
    pub errors: Vec<String>,
    /// Those whose answer has no value.
    pub empty: Vec<String>,
}

/// Runs every query of the dashboards in `dir` over `times` (seconds since 1970).
///
/// # Errors
/// When there are no dashboards, or one cannot be read.
pub async fn check(dir: &Path, prometheus: &Prometheus, times: (f64, f64), factor: u64) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    for entry in std::fs::read_dir(dir).with_context(|| format!("the dashboards in {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let dashboard: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        let found = read(&dashboard, times, factor).with_context(|| path.display().to_string())?;
        findings.queries += found.queries.len() + found.variables.len();
        for query in &found.queries {
            match prometheus.query_range(&promql(&query.text, factor), times, STEP).await {
                Err(error) => findings.errors.push(format!("{query}: {error:#}: {}", query.text)),
                Ok(series) if is_empty(&series) => findings.empty.push(format!("{query} is empty: {}", query.text)),
                Ok(_) => {}
            }
        }
        for query in &found.variables {
            match options(prometheus, &query.text).await {
                Err(error) => findings.errors.push(format!("{query}: {error:#}: {}", query.text)),
                Ok(options) if options.is_empty() => {
                    findings.empty.push(format!("{query} offers nothing: {}", query.text));
                }
                Ok(_) => {}
            }
        }
    }
    ensure!(findings.queries > 0, "no dashboards in {}", dir.display());
    Ok(findings)
}

fn is_empty(series: &[Series]) -> bool {
    series.iter().flat_map(|series| &series.values).all(|value| value.is_nan())
}

/// What a variable offers.
async fn options(prometheus: &Prometheus, query: &str) -> anyhow::Result<Vec<String>> {
    let arguments = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
    let arguments = arguments.context("not of the form label_values(...)")?;
    let (selector, label) = match arguments.rsplit_once(',') {
        Some((selector, label)) => (Some(selector.trim()), label.trim()),
        None => (None, arguments.trim()),
    };
    prometheus.label_values(label, selector).await
}

#[derive(Debug, Default)]
struct Found {
    queries: Vec<Query>,
    variables: Vec<Query>,
}

fn read(dashboard: &Value, times: (f64, f64), factor: u64) -> anyhow::Result<Found> {
    let title = dashboard["title"].as_str().context("a dashboard without a title")?.to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let templates = list(&dashboard["templating"]["list"]);
    let values = values(&templates, times, factor);
    let query = |place: &str, text: &str| {
        let text = filled(text, &values).with_context(|| format!("{title} / {place}"))?;
        anyhow::Ok(Query { dashboard: title.clone(), place: place.to_owned(), text })
    };
    let mut found = Found::default();
    let mut panels = list(&dashboard["panels"]);
    while let Some(panel) = panels.pop() {
        panels.extend(list(&panel["panels"]));
        for target in list(&panel["targets"]) {
            let text = target["expr"].as_str().context("a target without an expression")?;
            found.queries.push(query(panel["title"].as_str().context("a panel without a title")?, text)?);
        }
    }
    for annotation in list(&dashboard["annotations"]["list"]) {
        if let Some(text) = annotation["expr"].as_str().or_else(|| annotation["target"]["expr"].as_str()) {
            found.queries.push(query(&named("annotation", &annotation), text)?);
        }
    }
    for template in templates.iter().filter(|template| template["type"] == "query") {
        let text = template["query"].as_str().or_else(|| template["query"]["query"].as_str());
        let text = text.context("a variable without a query")?;
        found.variables.push(query(&named("variable", template), text)?);
    }
    ensure!(!found.queries.is_empty(), "{title} has no panels");
    Ok(found)
}

fn named(kind: &str, of: &Value) -> String {
    format!("{kind} {}", of["name"].as_str().unwrap_or_default())
}

/// What Grafana puts in the place of variables, with all options chosen.
fn values(templates: &[Value], times: (f64, f64), factor: u64) -> BTreeMap<String, String> {
    let range = (times.1 - times.0).ceil() as u64;
    let step = STEP.as_secs();
    // They are scaled together with the ranges written in the query.
    let own = [("__rate_interval", RATE_INTERVAL.as_secs()), ("__interval", step), ("__range", range)];
    let own = own.map(|(name, seconds)| (name, format!("{}s", seconds * factor)));
    let mut values: BTreeMap<_, _> = own.map(|(name, value)| (name.to_owned(), value)).into();
    for template in templates {
        let value = match template["type"].as_str() {
            Some("query") => template["allValue"].as_str().filter(|value| !value.is_empty()).unwrap_or(".*"),
            Some("datasource") => continue,
            _ => template["current"]["value"].as_str().or_else(|| template["query"].as_str()).unwrap_or_default(),
        };
        values.insert(template["name"].as_str().unwrap_or_default().to_owned(), value.to_owned());
    }
    values
}

/// The text with `$name`, `${name}` and `${name:format}` replaced.
fn filled(text: &str, values: &BTreeMap<String, String>) -> anyhow::Result<String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        filled.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (inner, after) = match rest.strip_prefix('{') {
            Some(braced) => braced.split_once('}').context("a brace that is not closed")?,
            None => rest.split_at(rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())),
        };
        // The end of a regular expression, or one of its groups.
        if inner.chars().all(|c| c.is_ascii_digit()) {
            filled.extend(["$", inner]);
        } else {
            let name = inner.split_once(':').map_or(inner, |(name, _)| name);
            filled.push_str(values.get(name).with_context(|| format!("nobody defines ${name}"))?);
        }
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

impl std::fmt::Display for Query {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} / {}", self.dashboard, self.place)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_query_is_found_and_filled_in() {
        let dashboard = json!({
            "title": "Metering",
            "templating": { "list": [
                { "type": "datasource", "name": "datasource" },
                { "type": "query", "name": "cluster", "query": { "query": "label_values(up, cluster)" } },
                { "type": "interval", "name": "window", "current": { "value": "10m" } },
            ]},
            "annotations": { "list": [
                { "name": "alerts", "expr": "ALERTS{cluster=~\"$cluster\"}" }, { "name": "of Grafana" },
            ]},
            "panels": [
                { "title": "A", "targets": [{ "expr": "rate(x{cluster=~\"${cluster:regex}\", y!~\"b$\", z=\"$1\"}[$__rate_interval])" }] },
                { "title": "row", "panels": [{ "title": "B", "targets": [{ "expr": "avg_over_time(z[${window}])" }] }] },
            ],
        });
        let found = read(&dashboard, (100.0, 160.0), 60).unwrap();
        let mut texts: Vec<_> = found.queries.iter().map(|query| (query.to_string(), query.text.as_str())).collect();
        texts.sort();
        let expected = [
            ("Metering / A", r#"rate(x{cluster=~".*", y!~"b$", z="$1"}[360s])"#),
            ("Metering / B", "avg_over_time(z[10m])"),
            ("Metering / annotation alerts", r#"ALERTS{cluster=~".*"}"#),
        ];
        assert_eq!(texts, expected.map(|(place, text)| (place.to_owned(), text)));
        assert_eq!(found.variables[0].text, "label_values(up, cluster)");
        let unknown = json!({ "title": "M", "panels": [{ "title": "A", "targets": [{ "expr": "x{a=\"$b\"}" }] }] });
        assert!(format!("{:#}", read(&unknown, (0.0, 1.0), 60).unwrap_err()).contains("M / A: nobody defines $b"));
    }

    #[test]
    fn nothing_and_nothing_but_nan_are_empty() {
        let series = |values: &[f64]| Series { labels: BTreeMap::new(), values: values.to_vec() };
        assert!(is_empty(&[]));
        assert!(is_empty(&[series(&[f64::NAN]), series(&[])]));
        assert!(!is_empty(&[series(&[f64::NAN, 0.0])]));
    }
}
