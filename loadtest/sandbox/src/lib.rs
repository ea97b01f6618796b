//! A stand-in for Amberflo: its rules for ingest, meters, usage, cancelling and customers, its deduplication, and faults
//! on demand.
//!
//! It shares no code with the client it is used to test, so that a misreading of Amberflo's contract in one of them is
//! not repeated in the other. It is meant for tests (in process, through [`Sandbox::router`]), demos and load runs
//! (over a socket, through [`serve`]), and keeps an exact ledger of what it would have billed.

mod account;
mod admin;
mod armed;
mod attempt;
mod billed;
mod customers;
mod facts;
mod faults;
mod filtering_rules;
mod human;
mod ingest;
mod ledger;
mod meters;
mod operation;
mod record;
mod report;
mod stats;
mod time_grouping;
mod usage;
mod usage_events;

use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::time::Instant;

use account::Account;
use armed::Armed;
pub use facts::{Facts, InvalidFact};
pub use faults::{Faults, InvalidFault, Latency, Poison, RetryAfterFormat, Trigger};
use ledger::Ledger;
pub use operation::Operation;
pub use report::{DoubleBilled, LedgerLine, LedgerSnapshot, StoredRecord, Total};
use stats::Journal;
pub use stats::{LoggedRequest, OperationStats, Stats};

/// How long [`serve`] lets open requests finish once its shutdown future completes.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// What a [`Sandbox`] is made with. Everything that may change while it runs is in [`Faults`]
/// and [`Facts`].
#[derive(Clone, Debug)]
pub struct SandboxConfig {
    /// The values of `X-API-KEY` that are accepted, unless [`Faults::valid_keys`] replaces them.
    pub api_keys: BTreeSet<String>,
    /// Keep every billed record whole. Without it only hashes are kept (some 80 bytes an event), and
    /// [`Sandbox::records`] and [`Sandbox::absorbed_copies`] stay empty and usage cannot be queried.
    pub keep_records: bool,
    /// How many events deduplication remembers, the oldest leaving first; `None` remembers for ever. A forgotten event
    /// also leaves the audit of events billed more than once.
    pub max_remembered: Option<NonZeroUsize>,
    /// How many of the latest requests the request log holds.
    pub request_log: usize,
    /// The wall time at which the sandbox starts, advanced by tokio's clock, so that it follows paused time: used in HTTP-date
    /// answers, for the times of meters and customers, and as the time of ingestion. `None` takes the machine's.
    pub started_at: Option<SystemTime>,
}

impl Default for SandboxConfig {
    /// One key, `sandbox-key`; records kept; remembered for ever; a log of 10,000 requests.
    fn default() -> Self {
        Self {
            api_keys: BTreeSet::from(["sandbox-key".to_owned()]),
            keep_records: true,
            max_remembered: None,
            request_log: 10_000,
            started_at: None,
        }
    }
}

/// A handle to one sandbox; clones share it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: SandboxConfig,
    origin: Instant,
    started_at: SystemTime,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    account: Account,
    journal: Journal,
    armed: Armed,
    /// Read by every request, and shared with it.
    facts: Arc<Facts>,
}

impl Sandbox {
    /// A sandbox with an empty ledger and no faults.
    #[must_use]
    pub fn new(config: SandboxConfig) -> Self {
        let state = State {
            ledger: Ledger::new(config.keep_records, config.max_remembered),
            account: Account::default(),
            journal: Journal::new(config.request_log),
            armed: Armed::new(Faults::default()),
            facts: Arc::default(),
        };
        let started_at = config.started_at.unwrap_or_else(machine_time);
        let shared = Shared { config, origin: Instant::now(), started_at, state: Mutex::new(state) };
        Self { shared: Arc::new(shared) }
    }

    /// Amberflo's endpoints, `GET /health` and the admin endpoints under `/sandbox`.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/ingest", post(ingest::ingest))
            // As the official Python SDK writes it.
            .route("/ingest/", post(ingest::ingest))
            .merge(meters::routes())
            .merge(usage::routes())
            .merge(usage_events::routes())
            .merge(filtering_rules::routes())
            .merge(customers::routes())
            .route("/health", get(|| async { "ok" }))
            .nest("/sandbox", admin::routes())
            .with_state(self.clone())
    }

    /// Replaces all faults, restarts their random sequence from [`Faults::seed`] and re-arms their counts.
    ///
    /// # Errors
    /// A value outside its allowed range; the faults in force are then unchanged.
    pub fn set_faults(&self, faults: Faults) -> Result<(), InvalidFault> {
        faults.check()?;
        self.lock().armed = Armed::new(faults);
        Ok(())
    }

    /// The faults as they were set (counts as set, not as left).
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.lock().armed.faults().clone()
    }

    /// Replaces all that the sandbox takes for true of Amberflo; what was billed stays as it is.
    ///
    /// # Errors
    /// A value outside its allowed range; the facts in force are then unchanged.
    pub fn set_facts(&self, facts: Facts) -> Result<(), InvalidFact> {
        facts.check()?;
        self.lock().facts = Arc::new(facts);
        Ok(())
    }

    /// What it takes for true of Amberflo.
    #[must_use]
    pub fn facts(&self) -> Facts {
        Facts::clone(&self.lock().facts)
    }

    /// What has been billed so far, by customer and meter.
    #[must_use]
    pub fn ledger(&self) -> LedgerSnapshot {
        self.lock().ledger.snapshot(None, None)
    }

    /// Every billed record in order of acceptance. Empty unless [`SandboxConfig::keep_records`].
    #[must_use]
    pub fn records(&self) -> Vec<StoredRecord> {
        self.lock().ledger.records().to_vec()
    }

    /// The records billed after the first `known`, in order of acceptance: for who follows the bill. The number of copies
    /// is that of now.
    #[must_use]
    pub fn records_after(&self, known: usize) -> Vec<StoredRecord> {
        self.lock().ledger.records().get(known..).unwrap_or_default().to_vec()
    }

    /// Events billed more than once: the same customer, meter and `uniqueId` with differing attributes. Sorted; at most
    /// 1,000,000 of them are named, [`LedgerSnapshot::billed_again`] counts all. Works without kept records.
    #[must_use]
    pub fn billed_more_than_once(&self) -> Vec<DoubleBilled> {
        self.lock().ledger.double_billed()
    }

    /// The `uniqueId`s of which identical copies were absorbed, with the number of copies beyond the first, in order of
    /// first acceptance. Empty unless [`SandboxConfig::keep_records`].
    #[must_use]
    pub fn absorbed_copies(&self) -> Vec<(String, u64)> {
        let state = self.lock();
        let absorbed = state.ledger.records().iter().filter(|record| record.copies > 0);
        absorbed.filter_map(|record| Some((record.unique_id.clone()?, record.copies))).collect()
    }

    /// Counts of requests and of what went wrong with them.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.lock().journal.stats().clone()
    }

    /// The latest requests in the order in which they ended, up to [`SandboxConfig::request_log`].
    #[must_use]
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.lock().journal.requests().cloned().collect()
    }

    /// Empties ledger, account (meters, rules, customers), statistics and request log, and re-arms the faults as [`Sandbox::set_faults`] does. Facts stay. Requests in
    /// progress stay counted as in flight.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.ledger = Ledger::new(self.shared.config.keep_records, self.shared.config.max_remembered);
        state.account = Account::default();
        state.journal.reset();
        state.armed = Armed::new(state.armed.faults().clone());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since the sandbox was made, by tokio's clock.
    fn elapsed(&self) -> Duration {
        self.shared.origin.elapsed()
    }

    /// Wall time that follows tokio's clock.
    fn wall_time(&self) -> SystemTime {
        self.shared.started_at + self.elapsed()
    }
}

/// Serves the sandbox until `shutdown` completes, then gives open requests [`SHUTDOWN_GRACE`]: a request held by a hang
/// would otherwise keep the server for an hour.
///
/// # Errors
/// What the listener reports.
pub async fn serve(
    listener: TcpListener,
    sandbox: Sandbox,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let shutdown = async move {
        shutdown.await;
        // The receiver is gone only when the server has already ended.
        let _ = stopping.send(());
    };
    // Without this a keep-alive client pays for delayed acknowledgements on every answer.
    let listener = listener.tap_io(|io| {
        if let Err(error) = io.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY not set");
        }
    });
    let server = axum::serve(listener, sandbox.router()).with_graceful_shutdown(shutdown);
    let deadline = async {
        match stopped.await {
            Ok(()) => tokio::time::sleep(SHUTDOWN_GRACE).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = server.into_future() => ended,
        () = deadline => Ok(()),
    }
}

#[expect(clippy::disallowed_methods, reason = "the sandbox's only reading of wall time; tests give their own")]
fn machine_time() -> SystemTime {
    SystemTime::now()
}
