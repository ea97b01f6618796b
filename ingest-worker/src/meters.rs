//! Counts events per meter and hour against Amberflo's guardrail: a warning and a metric, never a brake.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use shared::clock::UnixMillis;

/// More meters than this are counted together as one: a hostile producer invents names faster than we can warn.
const MAX_METERS: usize = 10_000;
const MILLIS_PER_HOUR: UnixMillis = 3_600_000;
const WARN_ABOVE: f64 = 0.8;

/// Events per meter in the present hour.
#[derive(Debug)]
pub struct MeterBudget {
    per_hour: u64,
    hour: Mutex<Hour>,
}

#[derive(Debug, Default)]
struct Hour {
    number: UnixMillis,
    events: HashMap<String, u64>,
}

impl MeterBudget {
    /// A budget of `per_hour` events for each meter; 0 turns it off.
    #[must_use]
    pub fn new(per_hour: u64) -> Self {
        Self { per_hour, hour: Mutex::default() }
    }

    /// Adds a settled batch's events.
    pub fn count(&self, meters: &HashMap<String, u64>, now: UnixMillis) {
        if self.per_hour == 0 {
            return;
        }
        let mut hour = self.hour(now);
        for (meter, &more) in meters {
            let is_known = hour.events.contains_key(meter);
            let name = if is_known || hour.events.len() < MAX_METERS { meter } else { "(others)" };
            let events = hour.events.entry(name.to_owned()).or_default();
            let before = self.ratio(*events);
            *events += more;
            let after = self.ratio(*events);
            if before <= WARN_ABOVE && after > WARN_ABOVE {
                tracing::warn!(meter = name, budget = self.per_hour, "a meter nears Amberflo's events per hour");
            }
        }
        self.show(&hour);
    }

    /// Shows how much of the budget the busiest meter has used: nothing at the beginning of an hour.
    pub fn observe(&self, now: UnixMillis) {
        self.show(&self.hour(now));
    }

    fn hour(&self, now: UnixMillis) -> MutexGuard<'_, Hour> {
        let mut hour = self.hour.lock().unwrap_or_else(PoisonError::into_inner);
        if hour.number != now / MILLIS_PER_HOUR {
            *hour = Hour { number: now / MILLIS_PER_HOUR, events: HashMap::new() };
        }
        hour
    }

    fn show(&self, hour: &Hour) {
        let max = hour.events.values().copied().max().map_or(0.0, |events| self.ratio(events));
        metrics::gauge!("ingest_meter_budget_max_ratio").set(max);
    }

    fn ratio(&self, events: u64) -> f64 {
        events as f64 / self.per_hour as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_hours_start_anew() {
        let budget = MeterBudget::new(100);
        for n in 0..20_000 {
            budget.count(&HashMap::from([(format!("m{n}"), 1)]), 0);
        }
        assert_eq!(budget.hour.lock().unwrap().events.len(), MAX_METERS + 1);
        assert_eq!(budget.hour.lock().unwrap().events["(others)"], 10_000);
        budget.count(&HashMap::from([("m".to_owned(), 7)]), MILLIS_PER_HOUR);
        assert_eq!(budget.hour.lock().unwrap().events, HashMap::from([("m".to_owned(), 7)]));
    }
}
