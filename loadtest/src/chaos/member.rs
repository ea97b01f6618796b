//! One process of a deployment, kept running as a supervisor would: what ends is started again.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::scrape::Scraper;
use crate::service_process::{Addresses, ServiceProcess, ServiceSettings, free_ports};

/// A process that ended by itself is started again so much later.
const RESTART_AFTER: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);
/// Longer than a drain may take: the longest pause, SHUTDOWN_GRACE, and a few seconds for the machine.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// A process, running or not.
pub struct Member {
    /// What it is called in the report.
    pub name: String,
    settings: ServiceSettings,
    addresses: Addresses,
    process: Option<ServiceProcess>,
    state: State,
    /// Whether it was ready since it started.
    was_ready: bool,
    scraper: Scraper,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Up,
    /// Asked to end, at this time.
    Ending(Instant),
    /// Held down until somebody says [`Member::release`].
    Held,
    /// Down until this time.
    Down(Instant),
}

/// What a look at a member showed.
#[derive(Debug)]
pub enum News {
    /// It ended, as it was told to.
    Drained(String),
    /// It ended although nobody had asked it to: how, and whether it had been ready before.
    EndedByItself { how: String, was_ready: bool },
    /// It was told to end, and does not.
    DoesNotEnd,
}

impl Member {
    /// Starts it.
    ///
    /// # Errors
    /// When there can be no such process.
    pub async fn start(name: &str, settings: ServiceSettings) -> anyhow::Result<Self> {
        let addresses = free_ports().await?;
        let scraper = Scraper::new(addresses.admin)?;
        let process = ServiceProcess::start_on(settings.clone(), addresses).await;
        let process = process.with_context(|| {
            format!("{name}: {} ends with:\n{}", settings.log_file().display(), settings.log_tail())
        })?;
        let name = name.to_owned();
        Ok(Self { name, settings, addresses, process: Some(process), state: State::Up, was_ready: true, scraper })
    }

    /// How it is set up.
    #[must_use]
    pub fn settings(&self) -> &ServiceSettings {
        &self.settings
    }

    /// Where it answers, also while it is down.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Reads its metrics.
    #[must_use]
    pub fn scraper(&self) -> Scraper {
        self.scraper.clone()
    }

    /// Kills it with SIGKILL; it stays down until [`Member::release`]. Answers whether there was a process.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(&mut self) -> anyhow::Result<bool> {
        self.state = State::Held;
        let Some(mut process) = self.process.take() else { return Ok(false) };
        if process.ended()?.is_some() {
            return Ok(false);
        }
        process.kill().await.map(|()| true)
    }

    /// Asks it to end with SIGTERM; it stays down until [`Member::release`]. Answers whether there was a process.
    pub fn terminate(&mut self) -> bool {
        let sent = self.signal(Signal::TERM);
        if sent {
            self.state = State::Ending(Instant::now());
        }
        sent
    }

    /// It may run again.
    pub fn release(&mut self) {
        match self.state {
            State::Held => self.state = State::Down(Instant::now()),
            State::Up | State::Ending(_) | State::Down(_) => {}
        }
    }

    /// Sends it a signal; answers whether there was a process.
    pub fn signal(&self, signal: Signal) -> bool {
        self.process.as_ref().is_some_and(|process| process.signal(signal).is_ok())
    }

    /// Asks it to end with SIGTERM, for good, and answers how it did; `None` where it was not running, or did not end within
    /// `limit`.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn end(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        self.state = State::Held;
        let Some(mut process) = self.process.take() else { return Ok(None) };
        process.signal(Signal::TERM)?;
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = process.ended()? {
                return Ok(Some(status));
            }
            sleep(POLL).await;
        }
        Ok(None)
    }

    /// Sees what became of it, and starts what has to run.
    ///
    /// # Errors
    /// When there can be no such process.
    pub async fn look(&mut self) -> anyhow::Result<Option<News>> {
        let ended = self.process.as_mut().map(ServiceProcess::ended).transpose()?.flatten();
        if let Some(status) = ended {
            self.process = None;
            let state = std::mem::replace(&mut self.state, State::Down(Instant::now() + RESTART_AFTER));
            let how = status.to_string();
            return Ok(Some(match state {
                State::Ending(_) => News::Drained(how),
                _ => News::EndedByItself { how, was_ready: self.was_ready },
            }));
        }
        match self.state {
            State::Down(until) if Instant::now() >= until => {
                self.process = Some(ServiceProcess::spawn_on(self.settings.clone(), self.addresses)?);
                (self.state, self.was_ready) = (State::Up, false);
            }
            State::Up if !self.was_ready => self.was_ready = self.scraper.is_ready().await,
            State::Ending(since) if since.elapsed() > DRAIN_LIMIT => {
                self.kill().await?;
                self.release();
                return Ok(Some(News::DoesNotEnd));
            }
            State::Up | State::Ending(_) | State::Held | State::Down(_) => {}
        }
        Ok(None)
    }
}
