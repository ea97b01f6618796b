//! One process of a deployment, kept running as a supervisor would: what ends is started again.

use std::os::unix::process::ExitStatusExt as _;
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
/// Rust's exit code for a panic.
pub const PANICKED: i32 = 101;

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
    is_paused: bool,
    /// Whether it was paused since it was asked to end: then it may overstep its grace.
    was_paused_amid_drain: bool,
    /// Found when it was to be killed or asked to end, and not told yet.
    untold: Option<News>,
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
    Drained(ExitStatus),
    /// It was told to end, and did otherwise.
    DrainFailed(ExitStatus),
    /// It ended although nobody had asked it to, and had been ready before.
    EndedByItself(ExitStatus),
    /// It ended before it was ready.
    DidNotStart(ExitStatus),
    /// It panicked, or died of a signal that nobody had sent.
    Crashed(ExitStatus),
    /// It was told to end, and does not.
    DoesNotEnd,
}

impl News {
    /// Of a process that ended.
    fn of(status: ExitStatus, was_ready: bool, was_asked: bool, is_excused: bool) -> Self {
        // Before it can handle SIGTERM it dies of it.
        let may_be_killed = was_asked && status.signal() == Some(Signal::TERM.as_raw());
        match status.code() {
            Some(PANICKED) => Self::Crashed(status),
            None if !may_be_killed => Self::Crashed(status),
            _ if was_asked && was_ready && !is_excused && !status.success() => Self::DrainFailed(status),
            _ if was_asked => Self::Drained(status),
            _ if was_ready => Self::EndedByItself(status),
            _ => Self::DidNotStart(status),
        }
    }
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
        Ok(Self {
            name,
            settings,
            addresses,
            process: Some(process),
            state: State::Up,
            was_ready: true,
            is_paused: false,
            was_paused_amid_drain: false,
            untold: None,
            scraper,
        })
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
        self.reap()?;
        self.state = State::Held;
        let Some(mut process) = self.process.take() else { return Ok(false) };
        process.kill().await.map(|()| true)
    }

    /// Asks it to end with SIGTERM; a second after it has, it starts again. Answers whether there was a process, and none
    /// that is about to end: a second signal would end it at once.
    ///
    /// # Errors
    /// When the system does not tell whether it runs.
    pub fn terminate(&mut self) -> anyhow::Result<bool> {
        self.reap()?;
        let sent = self.state == State::Up && self.signal(Signal::TERM);
        if sent {
            self.state = State::Ending(Instant::now());
            self.was_paused_amid_drain = self.is_paused;
        }
        Ok(sent)
    }

    /// Pauses it. Answers whether there was a process.
    pub fn pause(&mut self) -> bool {
        self.is_paused = self.signal(Signal::STOP);
        self.was_paused_amid_drain |= self.is_paused;
        self.is_paused
    }

    /// Lets it go on.
    pub fn unpause(&mut self) {
        self.is_paused = false;
        self.signal(Signal::CONT);
    }

    /// It may run again.
    pub fn release(&mut self) {
        match self.state {
            State::Held => self.state = State::Down(Instant::now()),
            State::Up | State::Ending(_) | State::Down(_) => {}
        }
    }

    fn signal(&self, signal: Signal) -> bool {
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
        self.reap()?;
        if let Some(news) = self.untold.take() {
            return Ok(Some(news));
        }
        match self.state {
            State::Down(until) if Instant::now() >= until => {
                self.process = Some(ServiceProcess::spawn_on(self.settings.clone(), self.addresses)?);
                (self.state, self.was_ready, self.is_paused) = (State::Up, false, false);
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

    /// Sees whether it has ended, for the next look to tell.
    fn reap(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.process.as_mut().map(ServiceProcess::ended).transpose()?.flatten() else {
            return Ok(());
        };
        self.process = None;
        let state = std::mem::replace(&mut self.state, State::Down(Instant::now() + RESTART_AFTER));
        let was_asked = matches!(state, State::Ending(_));
        self.untold = Some(News::of(status, self.was_ready, was_asked, self.was_paused_amid_drain));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_process_ended_is_judged() {
        let code = |code: i32| ExitStatus::from_raw(code << 8);
        let signal = |signal: Signal| ExitStatus::from_raw(signal.as_raw());
        let of = |status, was_ready, was_asked| News::of(status, was_ready, was_asked, false);
        assert!(matches!(of(code(0), true, true), News::Drained(_)));
        assert!(matches!(of(code(1), false, true), News::Drained(_)), "it had not started");
        assert!(matches!(of(signal(Signal::TERM), false, true), News::Drained(_)));
        assert!(matches!(of(code(1), true, true), News::DrainFailed(_)));
        assert!(matches!(News::of(code(1), true, true, true), News::Drained(_)), "it was paused");
        assert!(matches!(of(code(1), true, false), News::EndedByItself(_)));
        assert!(matches!(of(code(1), false, false), News::DidNotStart(_)));
        for (was_ready, was_asked) in [(true, true), (true, false), (false, true), (false, false)] {
            for status in [code(101), signal(Signal::SEGV), signal(Signal::KILL)] {
                assert!(matches!(of(status, was_ready, was_asked), News::Crashed(_)), "{status}");
            }
        }
        assert!(matches!(of(signal(Signal::TERM), true, false), News::Crashed(_)));
    }
}
