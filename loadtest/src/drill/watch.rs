//! Which alerts fired, when, and whether the runbook led from each to its cause.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

use super::prometheus::{Alert, Prometheus};
use super::runbook::Runbook;
use super::scenarios::Scenario;

/// What was seen so far.
pub struct Watch<'a> {
    prometheus: &'a Prometheus,
    runbook: &'a Runbook,
    factor: u64,
    scenarios: BTreeMap<&'static str, Scenario>,
    started: Instant,
    injected: Option<Instant>,
    fired: BTreeMap<Key, Firing>,
}

/// A deployment and `Name/severity`.
type Key = (String, String);

/// An alert that fired.
#[derive(Debug)]
struct Firing {
    /// Since the injection; `None` before it.
    after: Option<Duration>,
    /// Whether it fired when last looked.
    is_firing: bool,
    /// The section's heading, once the section has pointed at the injected cause and at no other.
    led_by: Option<String>,
    /// At what the section pointed last instead.
    misled: String,
}

impl<'a> Watch<'a> {
    /// Watches these deployments from now on.
    #[must_use]
    pub fn new(prometheus: &'a Prometheus, runbook: &'a Runbook, factor: u64, scenarios: &[Scenario]) -> Self {
        let scenarios = scenarios.iter().map(|scenario| (scenario.name, scenario.clone())).collect();
        let (started, injected, fired) = (Instant::now(), None, BTreeMap::new());
        Self { prometheus, runbook, factor, scenarios, started, injected, fired }
    }

    /// From now on alerts may fire.
    pub fn injected(&mut self) {
        self.injected = Some(Instant::now());
    }

    /// Looks once.
    ///
    /// # Errors
    /// When Prometheus does not answer, or a query of the runbook cannot be run.
    pub async fn look(&mut self) -> anyhow::Result<()> {
        let alerts = self.prometheus.alerts().await?;
        self.fired.values_mut().for_each(|firing| firing.is_firing = false);
        for alert in alerts.iter().filter(|alert| alert.state == "firing") {
            let key = key(alert);
            let after = self.injected.map(|injected| injected.elapsed());
            let is_new = !self.fired.contains_key(&key);
            let firing = Firing { after, is_firing: true, led_by: None, misled: String::new() };
            let firing = self.fired.entry(key.clone()).or_insert(firing);
            firing.is_firing = true;
            if is_new {
                println!("{:>5} s  {:<15} {}", self.started.elapsed().as_secs(), key.0, key.1);
            }
            let cause = self.scenarios.get(key.0.as_str()).and_then(|scenario| scenario.cause);
            if let Some(cause) = cause.filter(|_| firing.led_by.is_none()) {
                match lead(self.prometheus, self.runbook, self.factor, alert, &key.0, cause).await? {
                    Ok(section) => firing.led_by = Some(section),
                    Err(misled) => firing.misled = misled,
                }
            }
        }
        Ok(())
    }

    /// Whether everything that was expected has happened, so that only the unexpected can still come.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.problems().is_empty()
    }

    /// What differs from what the scenarios expect.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for ((cluster, alert), firing) in &self.fired {
            let Some(scenario) = self.scenarios.get(cluster.as_str()) else {
                problems.push(format!("{alert} fired for the unknown deployment {cluster:?}"));
                continue;
            };
            if !scenario.alerts.contains(&alert.as_str()) {
                problems.push(format!("{cluster}: {alert} fired, and should not have"));
            } else if firing.after.is_none() {
                problems.push(format!("{cluster}: {alert} fired before anything was injected"));
            } else if firing.led_by.is_none() {
                problems
                    .push(format!("{cluster}: the runbook does not lead from {alert} to its cause: {}", firing.misled));
            }
            if firing.is_firing && scenario.resolved.contains(&alert.as_str()) {
                problems.push(format!("{cluster}: {alert} still fires, although its cause is gone"));
            }
        }
        let fired: BTreeSet<_> = self.fired.keys().map(|(cluster, alert)| (cluster.as_str(), alert.as_str())).collect();
        for scenario in self.scenarios.values() {
            let missing = scenario.alerts.iter().filter(|alert| !fired.contains(&(scenario.name, **alert)));
            problems.extend(missing.map(|alert| format!("{}: {alert} did not fire", scenario.name)));
        }
        problems
    }

    /// Every scenario with what followed from it.
    #[must_use]
    pub fn table(&self) -> String {
        let mut rows = vec![["deployment", "injected", "alert", "after", "runbook led to"].map(str::to_owned)];
        for scenario in self.scenarios.values() {
            let mut head = [scenario.name.to_owned(), scenario.injected.to_owned()];
            let fired: Vec<_> = self.fired.iter().filter(|((cluster, _), _)| cluster == scenario.name).collect();
            if fired.is_empty() {
                let [name, injected] = std::mem::take(&mut head);
                rows.push([name, injected, "none".to_owned(), String::new(), String::new()]);
            }
            for ((_, alert), firing) in fired {
                let [name, injected] = std::mem::take(&mut head);
                let after = firing.after.map_or("too early".to_owned(), |after| format!("{} s", after.as_secs()));
                let led = match &firing.led_by {
                    Some(section) => format!("{} by {section}", scenario.cause.unwrap_or_default()),
                    None => "NOTHING".to_owned(),
                };
                rows.push([name, injected, alert.clone(), after, led]);
            }
        }
        aligned(&rows)
    }

    /// The deployments that are not as they should be.
    pub fn suspects(&self) -> BTreeSet<String> {
        let problems = self.problems();
        let clusters = problems.iter().filter_map(|problem| Some(problem.split_once(':')?.0.to_owned()));
        clusters.collect()
    }
}

/// Follows an alert's link: the heading that it leads to, or where else the section pointed.
async fn lead(
    prometheus: &Prometheus,
    runbook: &Runbook,
    factor: u64,
    alert: &Alert,
    cluster: &str,
    cause: &str,
) -> anyhow::Result<Result<String, String>> {
    let link = alert.annotations.get("runbook_url").map_or("", String::as_str);
    let Some((_, anchor)) = link.split_once('#') else { return Ok(Err(format!("its runbook_url is {link:?}"))) };
    let section = match runbook.section(anchor) {
        Ok(section) => section,
        Err(error) => return Ok(Err(format!("{error:#}"))),
    };
    let causes = section.causes(prometheus, factor, cluster).await;
    let causes = causes.with_context(|| format!("the runbook's section {}", section.title))?;
    Ok(if causes == [cause] {
        Ok(section.title.to_owned())
    } else {
        Err(format!("the section {} points at {causes:?} and not at {cause}", section.title))
    })
}

fn key(alert: &Alert) -> Key {
    let label = |name: &str| alert.labels.get(name).map_or("", String::as_str);
    (label("cluster").to_owned(), format!("{}/{}", label("alertname"), label("severity")))
}

fn aligned(rows: &[[String; 5]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..5).map(width).collect();
    let line = |row: &[String; 5]| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
