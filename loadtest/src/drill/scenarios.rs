//! What is injected, and which alerts have to follow from it: exactly those.

use std::collections::BTreeSet;
use std::time::Duration;

use amberflo_sandbox::{Faults, Operation, Poison, Trigger};

use super::load::Mix;
use crate::faults::POISON_PREFIX;

/// One deployment, in which at most one thing goes wrong.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The deployment's `cluster` label.
    pub name: &'static str,
    /// The cause as the runbook names it; none where nothing goes wrong.
    pub cause: Option<&'static str>,
    /// What is done, for people.
    pub injected: &'static str,
    /// What is done.
    pub fault: Fault,
    /// After how long it is undone; `None` leaves it to the end.
    pub heals_after: Option<Duration>,
    /// Settings of the worker beside the drill's own.
    pub settings: &'static [(&'static str, &'static str)],
    /// Emission before the injection.
    pub mix: Mix,
    /// On emulated Kinesis, DynamoDB and SQS, with two workers; otherwise one worker on its local store.
    pub is_on_kinesis: bool,
    /// Whether a control API runs beside it, which is asked something all the time.
    pub has_control_api: bool,
    /// The alerts that must fire after the injection, and no others: `Name/severity`.
    pub alerts: &'static [&'static str],
    /// Those of them that must have resolved at the end, because the fault is undone.
    pub resolved: &'static [&'static str],
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// Amberflo misbehaves.
    Amberflo(Box<Faults>),
    /// The application plane emits something else.
    Events(Mix),
    /// SIGKILL to all workers.
    KillWorkers,
    /// SIGKILL to the only worker soon after each start of it, from now on.
    CrashLoop,
    /// SIGSTOP to one of the workers.
    StallWorker,
    /// The queue of dead letters is gone, and producers emit what has to go there.
    DeleteQueue(Mix),
    /// SIGKILL to the control API.
    KillControlApi,
}

impl Fault {
    /// Whether every process goes on answering.
    #[must_use]
    pub fn leaves_all_running(&self) -> bool {
        matches!(self, Self::None | Self::Amberflo(_) | Self::Events(_) | Self::DeleteQueue(_))
    }
}

/// Longer than events may take by the service level (60 s), which no drill can make pass faster.
const LONG_OUTAGE: Duration = Duration::from_secs(75);

/// All scenarios, which run side by side.
#[must_use]
pub fn all() -> Vec<Scenario> {
    let local = Scenario {
        name: "",
        cause: None,
        injected: "nothing",
        fault: Fault::None,
        heals_after: None,
        settings: &[],
        mix: Mix::default(),
        is_on_kinesis: false,
        has_control_api: false,
        alerts: &[],
        resolved: &[],
    };
    let amberflo = |faults: Faults| Fault::Amberflo(Box::new(faults));
    let always = Trigger::rate(1.0);
    let idle = Mix { rate: 0, ..Mix::default() };
    vec![
        Scenario { name: "healthy", has_control_api: true, ..local.clone() },
        Scenario {
            name: "outage",
            cause: Some("amberflo-down"),
            injected: "Amberflo answers 5xx for 75 s",
            fault: amberflo(Faults { fail_before: always, ..Faults::default() }),
            heals_after: Some(LONG_OUTAGE),
            alerts: &["MeteringLagRising/page", "MeteringLatencyBudgetBurn/page", "MeteringLatencyBudgetBurn/ticket"],
            resolved: &["MeteringLagRising/page", "MeteringLatencyBudgetBurn/page"],
            ..local.clone()
        },
        Scenario {
            name: "throttled",
            cause: Some("amberflo-throttles"),
            injected: "Amberflo answers 429 to every third request",
            fault: amberflo(Faults { throttle: Trigger::rate(0.3), ..Faults::default() }),
            alerts: &["MeteringThrottled/ticket"],
            ..local.clone()
        },
        Scenario {
            name: "key-refused",
            cause: Some("key-refused"),
            injected: "Amberflo refuses the API key for 75 s",
            fault: amberflo(Faults { valid_keys: Some(BTreeSet::new()), ..Faults::default() }),
            heals_after: Some(LONG_OUTAGE),
            alerts: &[
                "MeteringLagRising/page",
                "MeteringLatencyBudgetBurn/page",
                "MeteringLatencyBudgetBurn/ticket",
                "MeteringSendingPaused/page",
            ],
            resolved: &["MeteringLagRising/page", "MeteringLatencyBudgetBurn/page", "MeteringSendingPaused/page"],
            ..local.clone()
        },
        Scenario {
            name: "malformed",
            cause: Some("malformed-events"),
            injected: "a producer leaves the meter out",
            fault: Fault::Events(Mix { malformed_every: 20, ..Mix::default() }),
            alerts: &["MeteringDeadLetters/ticket"],
            ..local.clone()
        },
        Scenario {
            name: "rejected",
            cause: Some("amberflo-rejects"),
            injected: "Amberflo answers 400 to some records",
            fault: Fault::Events(Mix { poison_every: 100, ..Mix::default() }),
            alerts: &["MeteringDeadLetters/ticket"],
            ..local.clone()
        },
        Scenario {
            name: "duplicates",
            cause: Some("producer-copies"),
            injected: "producers send every event four times",
            fault: Fault::Events(Mix { copies: 4, ..Mix::default() }),
            alerts: &["MeteringDuplicatesJump/ticket"],
            ..local.clone()
        },
        Scenario {
            name: "count-mismatch",
            cause: Some("partial-counts"),
            injected: "Amberflo counts one record less than sent",
            fault: amberflo(Faults { partial_answer: always, ..Faults::default() }),
            alerts: &["MeteringCountMismatch/ticket"],
            ..local.clone()
        },
        Scenario {
            name: "evicted",
            cause: Some("dedup-keys-few"),
            injected: "DEDUP_MAX_KEYS=100 for 20 events/s",
            fault: Fault::Events(Mix::default()),
            settings: &[("DEDUP_MAX_KEYS", "100")],
            mix: idle,
            alerts: &["MeteringDedupKeysEvicted/ticket"],
            ..local.clone()
        },
        Scenario {
            name: "meter-budget",
            cause: Some("meter-over-budget"),
            injected: "METER_HOURLY_BUDGET=100 for 4 events/s of each meter",
            fault: Fault::Events(Mix::default()),
            settings: &[("METER_HOURLY_BUDGET", "100")],
            mix: idle,
            alerts: &["MeteringMeterBudget/ticket"],
            ..local.clone()
        },
        Scenario {
            name: "rate-limit",
            cause: Some("rate-limit"),
            injected: "RATE_REQUESTS_PER_SECOND=1 and BATCH_MAX_EVENTS=5 for 20 events/s",
            fault: Fault::Events(Mix::default()),
            settings: &[("RATE_REQUESTS_PER_SECOND", "1"), ("BATCH_MAX_EVENTS", "5")],
            mix: idle,
            alerts: &["MeteringLagRising/page", "MeteringLatencyBudgetBurn/page", "MeteringLatencyBudgetBurn/ticket"],
            ..local.clone()
        },
        Scenario {
            name: "no-worker",
            cause: Some("worker-down"),
            injected: "kill -9 of the only worker",
            fault: Fault::KillWorkers,
            alerts: &["MeteringNoWorker/page"],
            ..local.clone()
        },
        Scenario {
            name: "crash-loop",
            cause: Some("worker-restarts"),
            injected: "kill -9 of the only worker, again and again",
            fault: Fault::CrashLoop,
            alerts: &["MeteringCrashLoop/page"],
            ..local.clone()
        },
        Scenario {
            name: "api-errors",
            cause: Some("amberflo-down"),
            injected: "Amberflo answers 5xx to the control API",
            fault: amberflo(Faults {
                operations: BTreeSet::from([Operation::Meters, Operation::Usage]),
                fail_before: always,
                ..Faults::default()
            }),
            has_control_api: true,
            alerts: &["MeteringControlApiErrors/ticket"],
            ..local.clone()
        },
        Scenario {
            name: "api-down",
            cause: Some("control-api-down"),
            injected: "kill -9 of the control API",
            fault: Fault::KillControlApi,
            has_control_api: true,
            alerts: &["MeteringControlApiDown/ticket"],
            ..local.clone()
        },
        Scenario {
            name: "stalled",
            cause: Some("worker-stalled"),
            injected: "SIGSTOP to one of two workers",
            fault: Fault::StallWorker,
            is_on_kinesis: true,
            alerts: &["MeteringShardsUnowned/page"],
            resolved: &["MeteringShardsUnowned/page"],
            ..local.clone()
        },
        Scenario {
            name: "queue-gone",
            cause: Some("letters-not-stored"),
            injected: "the queue of dead letters is deleted",
            fault: Fault::DeleteQueue(Mix { malformed_every: 20, ..Mix::default() }),
            is_on_kinesis: true,
            alerts: &["MeteringLagRising/page"],
            ..local.clone()
        },
        Scenario {
            name: "omitted",
            cause: Some("payload-omitted"),
            injected: "malformed events too large for a message of SQS",
            fault: Fault::Events(Mix { malformed_every: 40, is_large: true, ..Mix::default() }),
            is_on_kinesis: true,
            alerts: &["MeteringDeadLetters/ticket", "MeteringPayloadOmitted/ticket"],
            ..local
        },
    ]
}

/// Records that Amberflo refuses at any time; only a mix with poison emits such.
#[must_use]
pub fn with_poison(faults: Faults) -> Faults {
    let poison = Poison { status: 400, unique_id_prefixes: vec![POISON_PREFIX.to_owned()], ..Poison::default() };
    Faults { poison: vec![poison], ..faults }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_each_fault_has_a_cause_and_its_alerts() {
        let all = all();
        assert_eq!(all.iter().map(|scenario| scenario.name).collect::<BTreeSet<_>>().len(), all.len());
        for scenario in &all {
            let is_fault = !matches!(scenario.fault, Fault::None);
            assert_eq!((scenario.cause.is_some(), !scenario.alerts.is_empty()), (is_fault, is_fault), "{scenario:?}");
            assert!(scenario.resolved.iter().all(|alert| scenario.alerts.contains(alert)), "{scenario:?}");
            if let Fault::Amberflo(faults) = &scenario.fault {
                with_poison((**faults).clone()).check().unwrap();
            }
        }
    }
}
