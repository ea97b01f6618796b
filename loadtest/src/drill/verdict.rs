//! What fired, held against what should have.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::scenarios::Scenario;

/// A deployment and `Name/severity`.
pub type Key = (String, String);

/// All that was seen.
#[derive(Debug)]
pub struct Verdict {
    scenarios: BTreeMap<&'static str, Scenario>,
    fired: BTreeMap<Key, Firing>,
}

/// An alert that fired.
#[derive(Debug)]
struct Firing {
    /// Since the injection; `None` before it.
    after: Option<Duration>,
    /// Whether it fired when last looked.
    is_firing: bool,
    /// The heading of the runbook's section that has pointed at the injected cause and at no other; until then, what
    /// else it did.
    led_by: Result<String, String>,
}

impl Verdict {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(scenarios: &[Scenario]) -> Self {
        let scenarios = scenarios.iter().map(|scenario| (scenario.name, scenario.clone())).collect();
        Self { scenarios, fired: BTreeMap::new() }
    }

    /// Notes which alerts fire at this moment; answers those that had not before.
    pub fn see(&mut self, firing: &BTreeSet<Key>, after: Option<Duration>) -> Vec<Key> {
        for (key, fired) in &mut self.fired {
            fired.is_firing = firing.contains(key);
        }
        let new: Vec<Key> = firing.iter().filter(|key| !self.fired.contains_key(*key)).cloned().collect();
        for key in &new {
            let led_by = Err("it was not asked".to_owned());
            self.fired.insert(key.clone(), Firing { after, is_firing: true, led_by });
        }
        new
    }

    /// The cause to which the runbook has yet to lead from this alert.
    #[must_use]
    pub fn sought(&self, key: &Key) -> Option<&'static str> {
        let is_found = self.fired.get(key).is_some_and(|firing| firing.led_by.is_ok());
        self.scenarios.get(key.0.as_str())?.cause.filter(|_| !is_found)
    }

    /// Notes to what the runbook led from this alert: the heading of its section, or what was wrong.
    pub fn led(&mut self, key: &Key, led_by: Result<String, String>) {
        if let Some(firing) = self.fired.get_mut(key) {
            firing.led_by = led_by;
        }
    }

    /// What differs from what the scenarios expect, each beginning with the deployment.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for ((cluster, alert), firing) in &self.fired {
            let scenario = self.scenarios.get(cluster.as_str());
            if !scenario.is_some_and(|scenario| scenario.alerts.contains(&alert.as_str())) {
                problems.push(format!("{cluster}: {alert} fired, and should not have"));
            } else if firing.after.is_none() {
                problems.push(format!("{cluster}: {alert} fired before anything was injected"));
            } else if let Err(reason) = &firing.led_by {
                problems.push(format!("{cluster}: the runbook does not lead from {alert} to its cause: {reason}"));
            }
            if firing.is_firing && scenario.is_some_and(|scenario| scenario.resolved.contains(&alert.as_str())) {
                problems.push(format!("{cluster}: {alert} still fires, although its cause is gone"));
            }
        }
        for scenario in self.scenarios.values() {
            let fired = |alert: &str| self.fired.contains_key(&(scenario.name.to_owned(), alert.to_owned()));
            let missing = scenario.alerts.iter().filter(|alert| !fired(alert));
            problems.extend(missing.map(|alert| format!("{}: {alert} did not fire", scenario.name)));
        }
        problems
    }

    /// Every scenario with what followed from it.
    #[must_use]
    pub fn table(&self) -> String {
        let mut rows = vec![["deployment", "injected", "alert", "after", "runbook"].map(str::to_owned)];
        for scenario in self.scenarios.values() {
            let mut head = [scenario.name.to_owned(), scenario.injected.to_owned()];
            let mut row = |rest: [String; 3]| {
                let [name, injected] = std::mem::take(&mut head);
                let [alert, after, led] = rest;
                rows.push([name, injected, alert, after, led]);
            };
            let fired: Vec<_> = self.fired.iter().filter(|((cluster, _), _)| cluster == scenario.name).collect();
            if fired.is_empty() {
                row(["none".to_owned(), String::new(), String::new()]);
            }
            for ((_, alert), firing) in fired {
                let after = firing.after.map_or("too early".to_owned(), |after| format!("{} s", after.as_secs()));
                let led = match &firing.led_by {
                    Ok(section) => format!("{section}: {}", scenario.cause.unwrap_or_default()),
                    Err(_) => "leads elsewhere".to_owned(),
                };
                row([alert.clone(), after, led]);
            }
        }
        aligned(&rows)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const LAG: &str = "MeteringLagRising/page";
    const BURN: &str = "MeteringLatencyBudgetBurn/page";

    fn key(cluster: &str, alert: &str) -> Key {
        (cluster.to_owned(), alert.to_owned())
    }

    /// A deployment with two alerts, of which the first must resolve, and one without any.
    fn verdict() -> Verdict {
        let all = super::super::scenarios::all();
        let outage = all.iter().find(|scenario| scenario.name == "outage").unwrap();
        let healthy = all.iter().find(|scenario| scenario.name == "healthy").unwrap();
        Verdict::new(&[Scenario { alerts: &[LAG, BURN], resolved: &[LAG], ..outage.clone() }, healthy.clone()])
    }

    fn led(verdict: &mut Verdict) {
        for alert in [LAG, BURN] {
            verdict.led(&key("outage", alert), Ok("section".to_owned()));
        }
    }

    #[test]
    fn what_is_expected_and_led_is_no_problem() {
        let mut verdict = verdict();
        let (both, burn) = ([key("outage", LAG), key("outage", BURN)], key("outage", BURN));
        assert_eq!(verdict.see(&both.clone().into(), Some(Duration::from_secs(7))), both);
        assert_eq!(verdict.sought(&burn), Some("amberflo-down"));
        led(&mut verdict);
        assert_eq!(verdict.sought(&burn), None);
        assert_eq!(verdict.problems(), ["outage: MeteringLagRising/page still fires, although its cause is gone"]);
        assert!(verdict.see(&[burn].into(), Some(Duration::from_secs(8))).is_empty(), "it is not new");
        assert_eq!(verdict.problems(), [""; 0]);
        let table = verdict.table();
        assert!(table.contains("MeteringLagRising/page          7 s    section: amberflo-down"), "{table}");
        assert!(table.contains("nothing                        none"), "{table}");
    }

    #[test]
    fn missing_unexpected_early_and_misleading_alerts_are_named() {
        let mut verdict = verdict();
        verdict.see(&[key("outage", LAG)].into(), None);
        verdict.see(&[key("outage", BURN), key("healthy", LAG), key("", LAG)].into(), Some(Duration::ZERO));
        verdict.led(&key("outage", BURN), Err("it points elsewhere".to_owned()));
        assert_eq!(
            verdict.problems(),
            [
                ": MeteringLagRising/page fired, and should not have",
                "healthy: MeteringLagRising/page fired, and should not have",
                "outage: MeteringLagRising/page fired before anything was injected",
                "outage: the runbook does not lead from MeteringLatencyBudgetBurn/page to its cause: it points elsewhere",
            ]
        );
        let silent = self::verdict().problems();
        assert_eq!(silent, [LAG, BURN].map(|alert| format!("outage: {alert} did not fire")));
    }
}
