//! The issuer's keys, kept: fetched when first needed, again every hour, and when a token names a key that is not known.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use reqwest::Url;
use shared::clock::{Clock, UnixMillis};
use shared::service::Trouble;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::issuer::{Answer, Issuer};
use super::key::Key;

/// Keys older than this are fetched again, beside the requests.
const REFRESH_AFTER: Duration = Duration::from_secs(60 * 60);
/// While the issuer is down its keys are used for this long. A key that it withdraws meanwhile is trusted as long.
const USABLE_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Unknown keys are anybody's to name, so between two fetches lies at least this.
const PAUSE: Duration = Duration::from_secs(30);
/// The same while there are no keys at all, and nobody is let in.
const PAUSE_WITHOUT_KEYS: Duration = Duration::from_secs(5);

static UNFETCHED: Trouble = Trouble::new();

pub(super) struct Jwks {
    issuer: Issuer,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: Option<Kept>,
    fetch: Option<Fetch>,
}

struct Kept {
    keys: Vec<Key>,
    /// Wall time: a Lambda that was frozen may not have seen the hours pass otherwise.
    since: UnixMillis,
    /// Where they were found; `None` when that failed lately.
    found_at: Option<Url>,
}

/// The newest fetch, perhaps under way.
struct Fetch {
    started: Instant,
    /// Cancelled when the fetch is over, however it ended.
    over: CancellationToken,
}

/// Why there is no key.
pub(super) enum NoKey {
    /// The issuer has none of this id.
    Unknown,
    /// The issuer's key of this id is for another algorithm.
    OtherAlgorithm,
    /// There are no keys to choose from; the next fetch may be made after this.
    NoKeys(Duration),
}

impl Jwks {
    pub(super) fn new(issuer: Issuer, clock: Clock) -> Arc<Self> {
        Arc::new(Self { issuer, clock, state: Mutex::default() })
    }

    /// Fetches the keys once, unless that was just tried.
    pub(super) async fn warm(self: &Arc<Self>) {
        if let Some(over) = self.refresh() {
            over.cancelled().await;
        }
    }

    /// The key of this id. Where it is not known, waits for at most one fetch.
    pub(super) async fn find(self: &Arc<Self>, kid: &str, algorithm: Algorithm) -> Result<Key, NoKey> {
        match self.kept(kid, algorithm) {
            Err(NoKey::Unknown | NoKey::NoKeys(_)) => {
                self.warm().await;
                self.kept(kid, algorithm)
            }
            found => {
                if self.age().is_some_and(|age| age > REFRESH_AFTER) {
                    drop(self.refresh());
                }
                found
            }
        }
    }

    fn kept(&self, kid: &str, algorithm: Algorithm) -> Result<Key, NoKey> {
        let state = self.state();
        let Some(kept) = state.keys.as_ref().filter(|kept| self.clock.since(kept.since) <= USABLE_FOR) else {
            let waited = state.fetch.as_ref().map_or(Duration::ZERO, |fetch| fetch.started.elapsed());
            return Err(NoKey::NoKeys(self.pause(&state).saturating_sub(waited)));
        };
        let named = || kept.keys.iter().filter(|key| key.id == kid);
        match named().find(|key| key.algorithm == algorithm) {
            Some(key) => Ok(key.clone()),
            None if named().next().is_some() => Err(NoKey::OtherAlgorithm),
            None => Err(NoKey::Unknown),
        }
    }

    fn age(&self) -> Option<Duration> {
        self.state().keys.as_ref().map(|kept| self.clock.since(kept.since))
    }

    fn pause(&self, state: &State) -> Duration {
        let usable = state.keys.as_ref().is_some_and(|kept| self.clock.since(kept.since) <= USABLE_FOR);
        if usable { PAUSE } else { PAUSE_WITHOUT_KEYS }
    }

    /// Starts a fetch, or joins the one under way; `None` while it is too early for another. The fetch is a task of its
    /// own: a caller who leaves does not end it for the others.
    fn refresh(self: &Arc<Self>) -> Option<CancellationToken> {
        let mut state = self.state();
        if let Some(fetch) = &state.fetch {
            if !fetch.over.is_cancelled() {
                return Some(fetch.over.clone());
            }
            if fetch.started.elapsed() < self.pause(&state) {
                return None;
            }
        }
        let fresh = state.keys.as_ref().filter(|kept| self.clock.since(kept.since) <= REFRESH_AFTER);
        let known = fresh.and_then(|kept| kept.found_at.clone());
        let over = CancellationToken::new();
        state.fetch = Some(Fetch { started: Instant::now(), over: over.clone() });
        let (jwks, at_the_end) = (self.clone(), over.clone().drop_guard());
        tokio::spawn(async move {
            let answer = jwks.issuer.keys(known).await;
            jwks.take(answer);
            drop(at_the_end);
        });
        Some(over)
    }

    fn take(&self, answer: anyhow::Result<Answer>) {
        let mut state = self.state();
        match answer {
            Ok(Answer { keys, found_at }) => {
                tracing::debug!(keys = keys.len(), "fetched the issuer's keys");
                if let Some(over) = UNFETCHED.over() {
                    tracing::info!(lasted = over.lasted.as_secs(), "the issuer's keys can be fetched again");
                }
                state.keys = Some(Kept { keys, since: self.clock.now(), found_at: Some(found_at) });
            }
            Err(error) => {
                let error = format!("{error:#}");
                if let Some(omitted) = UNFETCHED.again() {
                    tracing::warn!(error, omitted, "the issuer's keys could not be fetched");
                }
                if let Some(kept) = &mut state.keys {
                    kept.found_at = None;
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
