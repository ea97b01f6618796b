//! How much one caller may ask.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock as _, MonotonicClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use http::StatusCode;

use crate::auth::Caller;
use crate::problem::Problem;

/// So many callers are remembered before those are forgotten who have not called for a while.
const MAX_CALLERS: usize = 10_000;

type Limiter = RateLimiter<String, HashMapStateStore<String>, MonotonicClock, NoOpMiddleware<std::time::Instant>>;

/// Requests per second of each caller.
#[derive(Clone)]
pub struct CallerLimit(Option<Arc<Limiter>>);

impl CallerLimit {
    /// A caller may save up what it does not use for a second. 0 turns the limit off.
    pub fn new(per_second: f64) -> Self {
        let burst = NonZeroU32::new(per_second.ceil() as u32).unwrap_or(NonZeroU32::MIN);
        let quota = (per_second > 0.0).then(|| Quota::with_period(Duration::from_secs_f64(1.0 / per_second))).flatten();
        Self(quota.map(|quota| {
            let quota = quota.allow_burst(burst);
            Arc::new(RateLimiter::new(quota, HashMapStateStore::default(), MonotonicClock))
        }))
    }

    /// The middleware: lets a request pass, or answers 429.
    pub async fn check(State(limit): State<Self>, request: Request, next: Next) -> Response {
        match request.extensions().get::<Caller>().and_then(|caller| limit.wait(&caller.subject)) {
            None => next.run(request).await,
            Some(wait) => Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many requests of this caller")
                .with_retry_after(Some(wait))
                .into_response(),
        }
    }

    fn wait(&self, caller: &str) -> Option<Duration> {
        let limiter = self.0.as_ref()?;
        if limiter.len() > MAX_CALLERS {
            limiter.retain_recent();
        }
        let refused = limiter.check_key(&caller.to_owned()).err()?;
        Some(refused.wait_time_from(MonotonicClock.now()).max(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_has_its_own_limit() {
        let limit = CallerLimit::new(2.0);
        assert_eq!([limit.wait("a"), limit.wait("a"), limit.wait("b")], [None; 3]);
        assert!(limit.wait("a").is_some_and(|wait| wait <= Duration::from_millis(500)));
        assert_eq!(limit.wait("b"), None);
        let slow = CallerLimit::new(0.001);
        assert_eq!(slow.wait("a"), None);
        assert!(slow.wait("a").is_some_and(|wait| wait > Duration::from_secs(900)));
        assert!((0..1000).all(|_| CallerLimit::new(0.0).wait("a").is_none()));
    }

    #[test]
    fn callers_who_left_are_forgotten() {
        let limit = CallerLimit::new(1e6);
        for number in 0..3 * MAX_CALLERS {
            limit.wait(&number.to_string());
        }
        let callers = limit.0.as_ref().map_or(0, |limiter| limiter.len());
        assert!(callers <= MAX_CALLERS + 1, "{callers}");
    }
}
