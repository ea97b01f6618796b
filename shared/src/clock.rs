//! The one source of wall-clock time.
//!
//! Waiting and measuring use [`tokio::time`], which tests can pause. Wall time is needed only where it leaves the
//! process: arrival times in the local stream, the time of a dead letter, a `Retry-After` date.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Milliseconds since the Unix epoch, UTC.
pub type UnixMillis = i64;

/// Tells the wall time; cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// A wall time and the instant it belongs to. `None`: ask the operating system.
    anchor: Option<(UnixMillis, Instant)>,
}

impl Clock {
    /// The operating system's clock.
    #[must_use]
    pub const fn system() -> Self {
        Self { anchor: None }
    }

    /// A clock that shows `start` now and then follows [`tokio::time`], so that paused time moves it too.
    #[must_use]
    pub fn following_tokio(start: UnixMillis) -> Self {
        Self { anchor: Some((start, Instant::now())) }
    }

    /// The wall time in milliseconds since the Unix epoch.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the clock module")]
    pub fn now(&self) -> UnixMillis {
        match self.anchor {
            Some((start, at)) => start + millis(at.elapsed()),
            None => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis),
        }
    }

    /// How long ago `then` was; zero when it lies in the future.
    #[must_use]
    pub fn since(&self, then: UnixMillis) -> Duration {
        Duration::from_millis(u64::try_from(self.now() - then).unwrap_or(0))
    }

    /// How long it is until `then`; zero when it lies in the past.
    #[must_use]
    pub fn until(&self, then: UnixMillis) -> Duration {
        Duration::from_millis(u64::try_from(then - self.now()).unwrap_or(0))
    }
}

/// A duration as whole milliseconds, saturating.
#[must_use]
pub fn millis(duration: Duration) -> UnixMillis {
    UnixMillis::try_from(duration.as_millis()).unwrap_or(UnixMillis::MAX)
}
