//! Looks at Prometheus again and again, and follows the link of every alert that fires.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use tokio::time::Instant;

use super::prometheus::{Alert, Prometheus};
use super::runbook::Runbook;
use super::scenarios::Scenario;
use super::verdict::{Key, Verdict};

/// Somebody who watches the alerts with the runbook at hand.
pub struct Watch<'a> {
    prometheus: &'a Prometheus,
    runbook: &'a Runbook,
    factor: u64,
    started: Instant,
    injected: Option<Instant>,
    /// What was seen so far.
    pub verdict: Verdict,
}

impl<'a> Watch<'a> {
    /// Watches these deployments from now on.
    #[must_use]
    pub fn new(prometheus: &'a Prometheus, runbook: &'a Runbook, factor: u64, scenarios: &[Scenario]) -> Self {
        let verdict = Verdict::new(scenarios);
        Self { prometheus, runbook, factor, started: Instant::now(), injected: None, verdict }
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
        let firing: BTreeMap<Key, &Alert> =
            alerts.iter().filter(|alert| alert.state == "firing").map(|alert| (key(alert), alert)).collect();
        let keys: BTreeSet<Key> = firing.keys().cloned().collect();
        for (cluster, alert) in self.verdict.see(&keys, self.injected.map(|injected| injected.elapsed())) {
            println!("{:>5} s  {cluster:<15} {alert}", self.started.elapsed().as_secs());
        }
        for (key, alert) in firing {
            if let Some(cause) = self.verdict.sought(&key) {
                let led_by = self.follow(alert, &key.0, cause).await?;
                self.verdict.led(&key, led_by);
            }
        }
        Ok(())
    }

    /// Follows an alert's link: the heading that leads to the cause, or what is wrong with it.
    async fn follow(&self, alert: &Alert, cluster: &str, cause: &str) -> anyhow::Result<Result<String, String>> {
        let link = alert.annotations.get("runbook_url").map_or("", String::as_str);
        let Some((_, anchor)) = link.split_once('#') else { return Ok(Err(format!("its runbook_url is {link:?}"))) };
        let section = match self.runbook.section(anchor) {
            Ok(section) => section,
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        let causes = section.causes(self.prometheus, self.factor, cluster).await;
        let causes = causes.with_context(|| format!("the runbook's section {}", section.title))?;
        Ok(if causes == [cause] {
            Ok(section.title.to_owned())
        } else {
            Err(format!("the section {} points at {causes:?} and not at {cause}", section.title))
        })
    }
}

fn key(alert: &Alert) -> Key {
    let label = |name: &str| alert.labels.get(name).map_or("", String::as_str);
    (label("cluster").to_owned(), format!("{}/{}", label("alertname"), label("severity")))
}
