//! What is to be seen while a run goes on.

use std::io::IsTerminal as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use amberflo_sandbox::Sandbox;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::producer::Emission;
use crate::scrape::{Sample, Scraper};

/// How often the numbers are read.
const REFRESH: Duration = Duration::from_millis(250);
/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Where the run's story is told: standard output, or standard error where that is kept for JSON.
#[derive(Clone)]
pub struct Teller {
    bar: Option<ProgressBar>,
    is_json: bool,
}

impl Teller {
    /// A live line where people watch, plain lines elsewhere.
    #[must_use]
    pub fn new(is_json: bool) -> Self {
        let is_watched = !is_json && std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        Self { bar: is_watched.then(ProgressBar::no_length), is_json }
    }

    /// Begins to show how far something of this length has come.
    pub fn begin(&self, length: Duration) {
        if let Some(bar) = &self.bar {
            bar.set_length(length.as_millis().try_into().unwrap_or(u64::MAX));
            // The template is a constant; a wrong one would only look plain.
            let style = ProgressStyle::with_template("{spinner} [{wide_bar}] {elapsed_precise}\n  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        }
    }

    /// Shows how far it is; where nobody watches as a line, if one is due.
    pub fn show(&self, elapsed: Duration, next_line: &mut Duration, text: String) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(elapsed.as_millis().try_into().unwrap_or(u64::MAX));
                bar.set_message(text);
            }
            None if elapsed >= *next_line => {
                *next_line += LINE_EVERY;
                self.say(&format!("{:>5.1}s  {text}", elapsed.as_secs_f64()));
            }
            None => {}
        }
    }

    /// Ends it.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Says something that stays.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| println!("{text}")),
            None if self.is_json => eprintln!("{text}"),
            None => println!("{text}"),
        }
    }
}

/// The run as it is now, shared between those who change it and those who show it.
#[derive(Default)]
pub struct State {
    /// What goes wrong at present.
    pub fault: &'static str,
    /// The worker's numbers; `None` while it is down.
    pub worker: Option<Sample>,
    /// What earlier worker processes had counted when they were last asked.
    before: Sample,
    last: Sample,
}

/// Shows the run until it is dropped.
pub struct Progress {
    /// The run as it is now.
    pub state: Arc<Mutex<State>>,
    teller: Teller,
    task: tokio::task::JoinHandle<()>,
}

impl Progress {
    /// Starts to read and to show.
    #[must_use]
    pub fn start(
        teller: &Teller,
        duration: Duration,
        emission: Arc<Emission>,
        sandbox: Sandbox,
        scraper: Scraper,
    ) -> Self {
        let state = Arc::new(Mutex::new(State { fault: "none", ..State::default() }));
        teller.begin(duration);
        let task = tokio::spawn(watch(teller.clone(), Arc::clone(&state), emission, sandbox, scraper));
        Self { state, teller: teller.clone(), task }
    }

    /// Names what goes wrong from now on.
    pub fn fault(&self, fault: &'static str) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).fault = fault;
    }

    /// The worker's numbers, at most a moment old.
    #[must_use]
    pub fn worker(&self) -> Option<Sample> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).worker
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.task.abort();
        self.teller.end();
    }
}

async fn watch(teller: Teller, state: Arc<Mutex<State>>, emission: Arc<Emission>, sandbox: Sandbox, scraper: Scraper) {
    let started = Instant::now();
    let mut ticks = interval(REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_line = LINE_EVERY;
    loop {
        ticks.tick().await;
        let sample = scraper.sample().await;
        let line = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.take(sample);
            state.line(&emission, &sandbox)
        };
        teller.show(started.elapsed(), &mut next_line, line);
    }
}

impl State {
    fn take(&mut self, sample: Option<Sample>) {
        self.worker = sample;
        if let Some(sample) = sample {
            // Fewer than before: another process has begun to count.
            if sample.read < self.last.read {
                self.before.duplicates += self.last.duplicates;
                self.before.dead_lettered += self.last.dead_lettered;
            }
            self.last = sample;
        }
    }

    fn line(&self, emission: &Emission, sandbox: &Sandbox) -> String {
        let ledger = sandbox.ledger();
        let count = HumanCount;
        let lag = match &self.worker {
            Some(sample) => format!("{:.1}s", sample.lag.as_secs_f64()),
            None => "worker down".to_owned(),
        };
        format!(
            "emitted {}  delivered {}  duplicates absorbed {} + {} by Amberflo  dead-lettered {}  oldest unsettled {lag}  fault: {}",
            count(emission.acknowledged.load(Ordering::Relaxed)),
            count(ledger.events),
            count(self.before.duplicates + self.last.duplicates),
            count(ledger.absorbed_copies),
            count(self.before.dead_lettered + self.last.dead_lettered),
            self.fault,
        )
    }
}
