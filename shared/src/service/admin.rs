//! The admin endpoint: whether the process runs, whether it does its work or why not, its metrics, its status page.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;

use super::Metrics;
use super::status::StatusPage;
use crate::clock::{Clock, UnixMillis};

/// Of an error's text this much is told: one line.
const MAX_DETAIL_CHARS: usize = 300;

/// Whether the service does its work at the moment, and why not.
#[derive(Clone, Debug)]
pub struct Ready(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    not_ready: Option<NotReady>,
    is_closed: bool,
}

/// Why the service does not do its work. Shown as one line, without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    /// The kind of cause, in words.
    pub cause: &'static str,
    /// What was observed; may be empty.
    pub detail: String,
    /// Since when it has been this cause.
    pub since: UnixMillis,
}

impl Default for Ready {
    /// Not ready: the service starts.
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { not_ready: Some(NotReady::now("starting", "")), is_closed: false })))
    }
}

impl Ready {
    /// From now on the service does its work.
    pub fn set(&self) {
        let mut state = self.state();
        if !state.is_closed {
            state.not_ready = None;
        }
    }

    /// From now on it does not, because of `cause`; `detail` is what was observed of it, of which the beginning is told.
    pub fn set_not(&self, cause: &'static str, detail: &str) {
        self.state().set_not(cause, detail);
    }

    /// From now on the service drains, whatever is set.
    pub fn close(&self) {
        let mut state = self.state();
        state.set_not("draining", "");
        state.is_closed = true;
    }

    /// Whether it does its work.
    #[must_use]
    pub fn get(&self) -> bool {
        self.why_not().is_none()
    }

    /// Why it does not; `None` where it does.
    #[must_use]
    pub fn why_not(&self) -> Option<NotReady> {
        self.state().not_ready.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn set_not(&mut self, cause: &'static str, detail: &str) {
        if self.is_closed {
            return;
        }
        let before = self.not_ready.take().filter(|before| before.cause == cause);
        let now = NotReady::now(cause, detail);
        self.not_ready = Some(NotReady { since: before.map_or(now.since, |before| before.since), ..now });
    }
}

impl NotReady {
    fn now(cause: &'static str, detail: &str) -> Self {
        // A line break would begin another line of the answer.
        let printable = detail.chars().map(|c| if c.is_control() { ' ' } else { c });
        Self { cause, detail: printable.take(MAX_DETAIL_CHARS).collect(), since: Clock::system().now() }
    }

    /// Since when, as RFC 3339 in whole seconds.
    #[must_use]
    pub fn since(&self) -> String {
        super::status::timestamp(self.since)
    }
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} since {}", self.cause, self.since())?;
        if !self.detail.is_empty() {
            f.write_char(':')?;
            write!(f, " {}", self.detail)?;
        }
        Ok(())
    }
}

/// / (the status page), /health (the process runs), /ready (it does its work) and /metrics (Prometheus text).
pub fn admin_router(metrics: Metrics, ready: Ready, status: StatusPage) -> Router {
    Router::new()
        .merge(status.router(metrics.clone(), ready.clone()))
        .route("/health", get(|| async { "ok\n" }))
        .route(
            "/ready",
            get(move || async move {
                match ready.why_not() {
                    None => (StatusCode::OK, "ready\n".to_owned()),
                    Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
                }
            }),
        )
        .route("/metrics", get(move || async move { metrics.render() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_why_and_since_when() {
        let ready = Ready::default();
        assert_eq!(ready.why_not().unwrap().cause, "starting");
        ready.set();
        assert!(ready.get());
        ready.set_not("leases cannot be read", "table\nnot found");
        let first = ready.why_not().unwrap();
        let line = first.to_string();
        assert!(line.starts_with("leases cannot be read since 20") && line.ends_with("Z: table not found"), "{line}");
        ready.0.lock().unwrap().not_ready.as_mut().unwrap().since = 7_000;
        ready.set_not("leases cannot be read", &"x".repeat(1000));
        let why = ready.why_not().unwrap();
        assert_eq!((why.since, why.detail.len()), (7_000, MAX_DETAIL_CHARS), "the same cause, since the same time");
        assert!(why.to_string().starts_with("leases cannot be read since 1970-01-01T00:00:07Z: x"), "{why}");
        ready.set_not("Amberflo refuses our requests", "");
        assert!(ready.why_not().unwrap().since > 7_000);
    }

    #[test]
    fn a_drain_is_final() {
        let ready = Ready::default();
        ready.set();
        ready.close();
        ready.set();
        ready.set_not("another cause", "");
        assert_eq!(ready.why_not().unwrap().cause, "draining");
    }
}
