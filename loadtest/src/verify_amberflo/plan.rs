//! What a run is going to do to the account, said before anything is sent.

use std::fmt;
use std::time::Duration;

use indicatif::HumanCount;
use shared::settings::is_clear_text;

use super::account::LOOKS;
use super::probe::{Cost, Probe, Settings};

/// To look for the throwaway meter, for its usage, and to create it.
const PREPARATION: u64 = 3 + LOOKS;
/// To find a meter, deprecate it, delete it, and see that it is gone.
const DELETION: u64 = 3 + LOOKS;

/// A run as it is announced. It sends no more than this.
#[derive(Debug)]
pub struct Plan<'a> {
    pub base_url: &'a str,
    pub ingest_url: &'a str,
    pub prefix: &'a str,
    pub meter: &'a str,
    pub customer: &'a str,
    pub probes: usize,
    /// Of all probes, the throwaway meter and cleaning up included.
    pub cost: Cost,
    pub rate: f64,
    pub longest: Duration,
}

impl Plan<'_> {
    /// What these probes cost at most, with what is created for all of them and cleaning up.
    pub fn cost(probes: &[&Probe], settings: &Settings) -> Cost {
        let throwaway = Cost { meters: 1, ..Cost::requests(PREPARATION) };
        let cost = probes.iter().map(|probe| (probe.cost)(settings)).fold(throwaway, Cost::plus);
        cost.plus(Cost::requests(cost.meters * DELETION + cost.customers))
    }

    /// How long it takes at most when every request is answered in time.
    pub fn longest(cost: &Cost, settings: &Settings) -> Duration {
        let repeats = settings.repeat_after.last().copied().unwrap_or_default();
        repeats + settings.patience + settings.settle + Duration::from_secs_f64(cost.requests as f64 / settings.rate)
    }
}

impl fmt::Display for Plan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base_url, ingest_url, prefix, meter, customer, probes, cost, rate, longest } = self;
        writeln!(
            f,
            "This asks the Amberflo account behind your API key whether {probes} things that the pipeline relies on"
        )?;
        writeln!(f, "are so, at {base_url}, with usage to {ingest_url}. Use an account for tests. It will")?;
        let mut line = |verb: &str, text: String| writeln!(f, "  {verb:<7} {text}");
        line(
            "send",
            format!("at most {} usage records, all for the meters below or one that", HumanCount(cost.records)),
        )?;
        line("", "does not exist; Amberflo bills its customers by the events they ingest".to_owned())?;
        line("ask", format!("at most {} requests, {rate} a second", HumanCount(cost.requests)))?;
        line("create", format!("at most {} meters, {meter} and others that begin with {prefix}-,", cost.meters))?;
        line("", "and delete them at the end (only deprecated meters can be deleted: what fails is named)".to_owned())?;
        if cost.customers > 0 {
            line(
                "create",
                format!("{} customers that begin with {customer}-, one for each probe that needs one", cost.customers),
            )?;
        }
        if cost.rules > 0 {
            line(
                "create",
                format!("{} filtering rules of these meters, which cancel no usage but this run's", cost.rules),
            )?;
        }
        if cost.lasting_meters > 0 {
            line(
                "leave",
                "behind for ever, perhaps, a meter that is close_to_deletions: that Amberflo lets it be".to_owned(),
            )?;
            line("", "deprecated, and so deleted, is not known".to_owned())?;
        }
        line(
            "leave",
            "behind what Amberflo does not delete: the usage, the customers (switched off), the rules".to_owned(),
        )?;
        let minutes = humantime::format_duration(Duration::from_secs(longest.as_secs()));
        line("take", format!("up to {minutes}, mostly waiting for usage to show; Ctrl-C stops it and cleans up"))?;
        if [base_url, ingest_url].into_iter().any(|url| is_clear_text(url)) {
            line("show", "your API key to whoever is on the way: this is http, not https".to_owned())?;
        }
        Ok(())
    }
}
