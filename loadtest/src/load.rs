//! Open-loop load: events arrive by the clock, whatever the target does, and their latency counts from the time at which
//! they were to be sent. A target that stalls therefore shows in the latency of every event that had to wait for it,
//! and not only in that of the few calls that were under way. (This is what is called avoiding coordinated omission.)

mod tally;

use std::sync::Arc;
use std::time::Duration;

use shared::backend::BackendError;
use shared::clock::Clock;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::generator::{Entry, Generator};
use crate::manifest::{Lines, Writer};
use crate::target::{CallLimit, Event, Outcome, Target};

pub use tally::{Latency, Second, Tally, Totals};

const TICK: Duration = Duration::from_millis(1);
/// Events made in one go, after which what is made is handed over: when the machine had no time for a while.
const TICK_EVENTS: usize = 10_000;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// What is sent, how fast, and with how much patience.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Events per second, copies included.
    pub rate: f64,
    /// For how long.
    pub duration: Duration,
    /// Calls under way at a time.
    pub connections: usize,
    /// Events in a call, at most; the target may take fewer.
    pub batch: usize,
    /// How long a call waits for more events after its first, unless it has all it may carry.
    pub linger: Duration,
    /// Events that wait to be sent, at most. What arrives beyond is not sent, and counted.
    pub backlog: usize,
    /// How long after its time an event is given up that no call could deliver.
    pub patience: Duration,
}

impl Plan {
    /// How many events arrive in all, but for copies that come after the end.
    #[must_use]
    pub fn events(&self) -> u64 {
        (self.duration.as_secs_f64() * self.rate).round() as u64
    }
}

/// An event that waits to be sent.
struct Waiting {
    entry: Entry,
    /// When it was to be sent.
    intended: Instant,
}

/// What all parts of a run know.
struct Shared {
    target: Arc<dyn Target>,
    limit: CallLimit,
    plan: Plan,
    tally: Arc<Tally>,
    manifest: Writer,
    clock: Clock,
    /// Ends everything: the target will never take anything.
    hopeless: mpsc::UnboundedSender<BackendError>,
}

/// Sends until the plan is carried out and every event is acknowledged, refused or given up. No event is made any more
/// once `stop` is cancelled; what waits then is still sent. Dropping the future ends it at once.
///
/// # Errors
/// When the manifest cannot be written, or when the first calls show that the target will never take anything.
pub async fn run(
    target: Arc<dyn Target>,
    plan: Plan,
    generator: Generator<Lines>,
    manifest: Writer,
    tally: Arc<Tally>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (hopeless, mut end) = mpsc::unbounded_channel();
    let limit = target.limit();
    let limit = CallLimit { events: limit.events.min(plan.batch), ..limit };
    let (sender, receiver) = mpsc::channel(plan.backlog);
    let receiver = Arc::new(Mutex::new(receiver));
    let shared = Arc::new(Shared { target, limit, plan, tally, manifest, clock: Clock::system(), hopeless });
    let mut tasks = JoinSet::new();
    tasks.spawn(arrive(Arc::clone(&shared), generator, sender, stop));
    for _ in 0..shared.plan.connections {
        tasks.spawn(connection(Arc::clone(&shared), Arc::clone(&receiver)));
    }
    drop(shared);
    loop {
        tokio::select! {
            biased;
            Some(error) = end.recv() => return Err(error.into()),
            ended = tasks.join_next() => match ended {
                Some(ended) => ended??,
                None => return Ok(()),
            },
        }
    }
}

async fn arrive(
    shared: Arc<Shared>,
    mut generator: Generator<Lines>,
    queue: mpsc::Sender<Waiting>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (rate, total) = (shared.plan.rate, shared.plan.events());
    let started = shared.tally.started();
    let mut ticks = interval(TICK);
    // Late ticks are made up for by the count below, not by more ticks.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut made = 0;
    while made < total {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        let due = ((started.elapsed().as_secs_f64() * rate) as u64 + 1).min(total);
        while made < due {
            let next = due.min(made + TICK_EVENTS as u64);
            let now = shared.clock.now();
            let wait = |number: u64| {
                let offset = Duration::from_secs_f64(number as f64 / rate);
                Waiting { entry: generator.next(offset, now), intended: started + offset }
            };
            let events = (made..next).map(wait).collect();
            made = next;
            hand_over(&shared, &mut generator, events, &queue).await?;
        }
    }
    // Copies that were to come later.
    let intended = Instant::now();
    let rest = generator.rest().into_iter().map(|entry| Waiting { entry, intended }).collect();
    hand_over(&shared, &mut generator, rest, &queue).await
}

/// Gives events to the connections, once they are in the manifest.
async fn hand_over(
    shared: &Shared,
    generator: &mut Generator<Lines>,
    events: Vec<Waiting>,
    queue: &mpsc::Sender<Waiting>,
) -> anyhow::Result<()> {
    shared.manifest.made(generator.witness()).await?;
    for event in events {
        shared.tally.arrived(event.intended);
        match queue.try_send(event) {
            Ok(()) => {}
            Err(TrySendError::Full(event) | TrySendError::Closed(event)) => shared.tally.not_sent(event.intended),
        }
    }
    Ok(())
}

async fn connection(shared: Arc<Shared>, queue: Arc<Mutex<mpsc::Receiver<Waiting>>>) -> anyhow::Result<()> {
    loop {
        let events = fill(&mut *queue.lock().await, shared.limit.events, shared.plan.linger).await;
        if events.is_empty() {
            return Ok(());
        }
        for call in calls(events, shared.limit.bytes) {
            shared.deliver(call).await;
        }
    }
}

/// The events of a call; none where there will be none.
async fn fill(queue: &mut mpsc::Receiver<Waiting>, max: usize, linger: Duration) -> Vec<Waiting> {
    let mut events = Vec::new();
    queue.recv_many(&mut events, max).await;
    let end = Instant::now() + linger;
    while !linger.is_zero() && !events.is_empty() && events.len() < max {
        let room = max - events.len();
        match timeout_at(end, queue.recv_many(&mut events, room)).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    events
}

/// Cuts events into calls of at most so many bytes; one that is larger goes alone.
fn calls(events: Vec<Waiting>, max_bytes: usize) -> Vec<Vec<Waiting>> {
    let mut calls: Vec<Vec<Waiting>> = Vec::new();
    let mut bytes = 0;
    for event in events {
        bytes += event.entry.detail.len();
        match calls.last_mut() {
            Some(call) if bytes <= max_bytes => call.push(event),
            _ => {
                bytes = event.entry.detail.len();
                calls.push(vec![event]);
            }
        }
    }
    calls
}

impl Shared {
    /// Makes the call until every event is acknowledged, refused or given up, each time with the same content.
    async fn deliver(&self, mut events: Vec<Waiting>) {
        let mut pause = FIRST_PAUSE;
        // What has waited for too long is not sent any more: behind a target that hangs, a backlog would outlast patience by
        // a call's timeout for each of its calls.
        self.give_up(&mut events);
        while !events.is_empty() {
            self.call(&mut events).await;
            let now = self.give_up(&mut events);
            if events.is_empty() {
                return;
            }
            let end = events.iter().map(|event| event.intended).max().unwrap_or(now) + self.plan.patience;
            sleep_until(end.min(now + pause.mul_f64(fastrand::f64()))).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Keeps the events for which there is patience left, as of the moment that it answers.
    fn give_up(&self, events: &mut Vec<Waiting>) -> Instant {
        let now = Instant::now();
        events.retain(|event| {
            let is_given_up = now >= event.intended + self.plan.patience;
            if is_given_up {
                self.tally.given_up(event.intended, now);
            }
            !is_given_up
        });
        now
    }

    /// Makes the call once, and keeps the events that it did not settle.
    async fn call(&self, events: &mut Vec<Waiting>) {
        let entry = |event: &Waiting| (Arc::clone(&event.entry.tenant), Arc::clone(&event.entry.detail));
        let texts: Vec<_> = events.iter().map(entry).collect();
        let call: Vec<_> = texts.iter().map(|(tenant, detail)| Event { tenant, detail }).collect();
        let sent = self.clock.now();
        let outcomes = match self.target.put(&call).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                self.tally.failed_call(&error.to_string());
                if matches!(error, BackendError::Misconfigured(_)) && self.tally.totals().acknowledged == 0 {
                    let _ = self.hopeless.send(error);
                }
                return;
            }
        };
        let (now, at) = (Instant::now(), self.clock.now());
        let (mut acknowledged, mut failure) = (Vec::new(), None);
        let mut outcomes = outcomes.into_iter();
        events.retain(|event| match outcomes.next() {
            Some(Outcome::Acknowledged) => {
                self.tally.acknowledged(event.intended, now);
                acknowledged.push(event.entry.origin);
                false
            }
            Some(Outcome::Refused(reason)) => {
                self.tally.refused(event.intended, now, &reason);
                false
            }
            Some(Outcome::Failed(reason)) => {
                failure = Some(reason);
                true
            }
            None => true,
        });
        self.manifest.acknowledged(acknowledged.into_iter(), sent, at).await;
        match failure {
            Some(reason) => self.tally.failed_call(&reason),
            None => self.tally.good_call(),
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use tokio::time::sleep;

    use super::*;
    use crate::mix::Mix;

    /// Answers after a delay, or never.
    struct Slow(Option<Duration>);

    #[async_trait]
    impl Target for Slow {
        fn limit(&self) -> CallLimit {
            CallLimit { events: 10, bytes: 1 << 20 }
        }

        async fn put(&self, events: &[Event<'_>]) -> Result<Vec<Outcome>, BackendError> {
            match self.0 {
                Some(delay) => sleep(delay).await,
                None => {
                    sleep(Duration::from_secs(1)).await;
                    return Err(BackendError::Unavailable("timeout".to_owned()));
                }
            }
            Ok(events.iter().map(|_| Outcome::Acknowledged).collect())
        }
    }

    fn plan() -> Plan {
        let (duration, patience) = (Duration::from_secs(10), Duration::from_secs(30));
        Plan { rate: 100.0, duration, connections: 2, batch: 10, linger: Duration::ZERO, backlog: 100_000, patience }
    }

    /// The result, and how long it took on a clock that jumps from one event to the next.
    async fn result(target: impl Target, plan: Plan) -> (Totals, Duration) {
        let (writer, lines) = Writer::in_memory();
        let tally = Arc::new(Tally::new(plan.patience));
        let generator = Generator::new(Mix::sound("lt0".to_owned()), 1, Lines::default());
        let (started, stop) = (Instant::now(), CancellationToken::new());
        run(Arc::new(target), plan, generator, writer, Arc::clone(&tally), stop).await.unwrap();
        let made = lines.await.unwrap().lines().filter(|line| line.starts_with(r#"{"valid""#)).count();
        assert_eq!(made, 1000, "every arrival is in the manifest");
        (tally.totals(), started.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_never_answers_slows_no_arrival() {
        let (totals, took) = result(Slow(None), plan()).await;
        // Of the run, of patience, and of a call that was under way then; the clock is the test's own.
        assert!(took < Duration::from_secs(10 + 30 + 2), "a backlog outlasts patience: {took:?}");
        assert_eq!((totals.arrived, totals.acknowledged, totals.given_up, totals.not_sent), (1000, 0, 1000, 0));
        let p50 = totals.latency.p50_ms;
        assert!(p50 >= 30_000.0, "the median waited for as long as anybody was patient, not for one call: {p50}");
        assert!(totals.failed_calls["timeout"] > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn latency_counts_from_the_intended_time() {
        // 2 connections of 10 events in a second: 20 events/s of the 100 that arrive, and the rest waits.
        let plan = Plan { patience: Duration::from_secs(600), ..plan() };
        let (totals, took) = result(Slow(Some(Duration::from_secs(1))), plan).await;
        assert_eq!((totals.arrived, totals.acknowledged, totals.given_up), (1000, 1000, 0));
        assert!(took >= Duration::from_secs(49), "{took:?}");
        // A closed loop would have told of a second each.
        let Latency { p50_ms, max_ms, .. } = totals.latency;
        assert!((15_000.0..25_000.0).contains(&p50_ms) && max_ms >= 39_000.0, "{p50_ms} {max_ms}");
    }

    #[tokio::test(start_paused = true)]
    async fn lingering_fills_calls() {
        let plan = Plan { linger: Duration::from_millis(200), ..plan() };
        let (totals, _) = result(Slow(Some(Duration::ZERO)), plan).await;
        assert_eq!(totals.acknowledged, 1000);
        assert!(totals.good_calls < 150, "{}", totals.good_calls);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_backlog_cannot_hold_is_counted() {
        let plan = Plan { backlog: 50, patience: Duration::from_secs(600), ..plan() };
        let (totals, _) = result(Slow(Some(Duration::from_secs(1))), plan).await;
        assert!(totals.not_sent > 500, "{totals:?}");
        assert_eq!((totals.arrived, totals.acknowledged + totals.not_sent), (1000, 1000));
    }

    #[test]
    fn calls_hold_no_more_bytes_than_the_target_takes() {
        let event = |bytes: usize| {
            let entry = Entry {
                origin: crate::truth::Origin::Malformed(0),
                tenant: "t".into(),
                detail: "x".repeat(bytes).into(),
            };
            Waiting { entry, intended: Instant::now() }
        };
        let sizes = |events: Vec<Waiting>| calls(events, 100).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(vec![event(40), event(60), event(1), event(500), event(99), event(1)]), [2, 1, 1, 2]);
        assert_eq!(sizes(vec![]), [0; 0]);
    }
}
