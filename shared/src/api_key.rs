//! Amberflo's API key: read from a setting, a file or AWS Secrets Manager, refreshed while running, never printed.

mod secrets_manager;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use memchr::memmem;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::backend::BackendError;
use crate::service::Trouble;
pub use secrets_manager::Secret;

/// After an answer that blames the key, it is read again at most this often. Well below the 30 s between the probes of a
/// worker that is paused: each probe that is refused reads it, unless its answer came 25 s sooner than the one before.
pub const MIN_REFRESH_INTERVAL: Duration = Duration::from_secs(5);

/// A shorter key is no secret, and may be a part of any word.
const MIN_REDACTED_BYTES: usize = 8;

static UNREAD: Trouble = Trouble::new();

/// An API key. Its `Debug` shows no part of it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(HeaderValue);

impl ApiKey {
    /// Checks that the key can be sent as a header; surrounding white space is dropped.
    ///
    /// # Errors
    /// [`InvalidKey`], which does not show the key.
    pub fn new(text: &str) -> Result<Self, InvalidKey> {
        let text = text.trim();
        if text.is_empty() {
            return Err(InvalidKey("is empty"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidKey("has characters other than visible ASCII"));
        }
        let mut value = HeaderValue::from_str(text).map_err(|_| InvalidKey("cannot be a header"))?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// The key as the value of a header, marked as sensitive.
    #[must_use]
    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    /// `text` without the key, where the key is in it: a proxy's error page may show what it was sent.
    #[must_use]
    pub fn redacted(&self, text: &[u8]) -> Option<Bytes> {
        let key = self.0.as_bytes();
        let finder = memmem::Finder::new(key);
        if key.len() < MIN_REDACTED_BYTES || finder.find(text).is_none() {
            return None;
        }
        let (mut redacted, mut from) = (Vec::with_capacity(text.len()), 0);
        for at in finder.find_iter(text) {
            redacted.extend_from_slice(&text[from..at]);
            redacted.extend_from_slice(b"(redacted)");
            from = at + key.len();
        }
        redacted.extend_from_slice(&text[from..]);
        Some(redacted.into())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(redacted)")
    }
}

/// Why a text is not an API key.
#[derive(Debug, thiserror::Error)]
#[error("the API key {0}")]
pub struct InvalidKey(&'static str);

/// Where the key comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Given as a setting; it cannot change while the process runs.
    Setting(ApiKey),
    /// A file that holds nothing but the key, such as a mounted secret.
    File(PathBuf),
    /// A member of a secret in AWS Secrets Manager.
    SecretsManager(Secret),
}

impl Source {
    async fn read(&self) -> Result<ApiKey, BackendError> {
        match self {
            Self::Setting(key) => Ok(key.clone()),
            Self::File(path) => {
                let refused = |error: &dyn fmt::Display| {
                    BackendError::Misconfigured(format!("AMBERFLO_API_KEY_FILE: {}: {error}", path.display()))
                };
                let text = tokio::fs::read_to_string(path).await.map_err(|error| refused(&error))?;
                ApiKey::new(&text).map_err(|error| refused(&error))
            }
            Self::SecretsManager(secret) => secret.read().await,
        }
    }
}

/// The current key, and the ways to renew it.
#[derive(Clone)]
pub struct ApiKeys {
    source: Source,
    current: watch::Sender<ApiKey>,
    last_refresh: Arc<Mutex<Option<Instant>>>,
    reading: Arc<Mutex<()>>,
}

impl ApiKeys {
    /// Reads the key for the first time.
    ///
    /// # Errors
    /// In one line the setting and what is wrong, without the key: [`BackendError::Misconfigured`], or
    /// [`BackendError::Unavailable`] where the source does not answer now.
    pub async fn load(source: Source) -> Result<Self, BackendError> {
        let current = watch::Sender::new(source.read().await?);
        Ok(Self { source, current, last_refresh: Arc::default(), reading: Arc::default() })
    }

    /// Shows the newest key.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<ApiKey> {
        self.current.subscribe()
    }

    /// Reads the key again because Amberflo refused it; a call within [`MIN_REFRESH_INTERVAL`] of the last, or while
    /// another is under way, does nothing. A new key shows itself to subscribers.
    pub async fn refresh(&self) {
        let Ok(mut last) = self.last_refresh.try_lock() else {
            return;
        };
        if last.is_some_and(|last| last.elapsed() < MIN_REFRESH_INTERVAL) {
            return;
        }
        self.reload().await;
        // Afterwards: a call that is dropped half way has read nothing.
        *last = Some(Instant::now());
    }

    /// Reads the key again every `interval`, for ever.
    pub async fn refresh_every(&self, interval: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            self.reload().await;
        }
    }

    /// Reads the key again; answers whether it changed. One that cannot be read leaves the present one in use.
    pub async fn reload(&self) -> bool {
        // One at a time: what was read first must not be stored last.
        let _reading = self.reading.lock().await;
        match self.source.read().await {
            Ok(key) => {
                let changed = self.current.send_if_modified(|current| {
                    let changed = *current != key;
                    *current = key;
                    changed
                });
                if let Some(over) = UNREAD.over() {
                    tracing::info!(lasted = over.lasted.as_secs(), "the API key can be read again");
                }
                if changed {
                    tracing::info!("the API key changed");
                }
                changed
            }
            Err(error) => {
                if let Some(omitted) = UNREAD.again() {
                    tracing::warn!(%error, omitted, "the API key could not be read again; the present one stays in use");
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_visible_ascii_and_never_shown() {
        let key = ApiKey::new(" s3cret-key\n").unwrap();
        assert_eq!(key.header(), "s3cret-key");
        assert!(!format!("{key:?} {:?}", Source::Setting(key.clone())).contains("s3cret"));
        assert!(!format!("{:?}", key.header()).contains("s3cret"));
        for bad in ["", " \n", "a b", "ü", "a\u{7f}"] {
            assert!(ApiKey::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_key_in_an_answer_is_redacted() {
        let key = ApiKey::new("s3cret-key").unwrap();
        assert_eq!(
            key.redacted(b"s3cret-key, s3cret-ke s3cret-keys3cret-key").unwrap(),
            "(redacted), s3cret-ke (redacted)(redacted)"
        );
        assert_eq!(key.redacted(b"nothing of it"), None);
        assert_eq!(ApiKey::new("short").unwrap().redacted(b"short"), None);
    }

    #[tokio::test]
    async fn a_changed_file_takes_effect_and_a_broken_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "first").unwrap();
        let keys = ApiKeys::load(Source::File(path.clone())).await.unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(!keys.reload().await);
        std::fs::write(&path, "second").unwrap();
        assert!(keys.reload().await);
        assert_eq!(keys.subscribe().borrow().header(), "second");
        let error = ApiKeys::load(Source::File(dir.path().join("none"))).await.err().unwrap();
        assert!(matches!(&error, BackendError::Misconfigured(error) if error.contains("none")), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_read_the_key_every_few_seconds_and_a_call_that_was_dropped_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "first").unwrap();
        let keys = ApiKeys::load(Source::File(path.clone())).await.unwrap();
        std::fs::write(&path, "second").unwrap();
        let reading = keys.reading.lock().await;
        assert!(tokio::time::timeout(Duration::from_millis(1), keys.refresh()).await.is_err());
        drop(reading);
        keys.refresh().await;
        assert_eq!(keys.subscribe().borrow().header(), "second");
        std::fs::write(&path, "third").unwrap();
        keys.refresh().await;
        assert_eq!(keys.subscribe().borrow().header(), "second", "a moment after the last");
        tokio::time::advance(MIN_REFRESH_INTERVAL).await;
        keys.refresh().await;
        assert_eq!(keys.subscribe().borrow().header(), "third");
    }
}
