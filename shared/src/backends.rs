//! Opens what the settings name: one file on this machine, or services of AWS. Everything that can be checked before
//! work begins is checked here.

use std::sync::Arc;
use std::time::Duration;

use crate::api_key::Secret;
use crate::api_key::{ApiKeys, Source};
use crate::backend::kinesis::KinesisStream;
use crate::backend::local::{LocalOptions, LocalStore};
use crate::backend::sqs::SqsDeadLetters;
use crate::backend::{DeadLetters, Stream, aws};
use anyhow::Context as _;
use aws_config::SdkConfig;

use crate::settings::{BackendArgs, KeySetting, StreamName};

/// Where events come from, and what belongs to it.
pub struct Backends {
    /// The stream.
    pub stream: Arc<dyn Stream>,
    /// Where all else lies.
    pub kind: Kind,
}

/// The two kinds of backends.
pub enum Kind {
    /// Everything lies in this store.
    Local(LocalStore),
    /// Services of AWS.
    Aws {
        /// The configuration of all clients.
        configuration: Box<SdkConfig>,
        /// The stream.
        stream: KinesisStream,
    },
}

impl Backends {
    /// Opens the stream. `retention` is how long a local store that is pruned keeps what is settled.
    ///
    /// # Errors
    /// The setting, and what is wrong with what it names.
    pub async fn open(settings: &BackendArgs, retention: Duration) -> anyhow::Result<Self> {
        match &settings.stream {
            StreamName::Local(directory) => {
                let options =
                    LocalOptions { retention, max_bytes: settings.local_max_bytes.as_u64(), ..LocalOptions::default() };
                let store = LocalStore::open(directory, options);
                let store = store.with_context(|| format!("STREAM: {}", settings.stream))?;
                Ok(Self { stream: Arc::new(store.clone()), kind: Kind::Local(store) })
            }
            StreamName::Kinesis(name) => {
                let configuration = Box::new(aws::configuration(name.region()).await?);
                let stream = KinesisStream::open(&configuration, &name.to_string()).await.context("STREAM")?;
                Ok(Self { stream: Arc::new(stream.clone()), kind: Kind::Aws { configuration, stream } })
            }
        }
    }

    /// Opens the dead letters.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub async fn dead_letters(&self, settings: &BackendArgs) -> anyhow::Result<Arc<dyn DeadLetters>> {
        match &self.kind {
            Kind::Local(store) => Ok(Arc::new(store.clone())),
            Kind::Aws { configuration, stream } => {
                let queue = SqsDeadLetters::open(configuration, settings.queue()?, stream.retention());
                Ok(Arc::new(queue.await.context("DEAD_LETTER_QUEUE")?))
            }
        }
    }
}

/// Reads the API key for the first time.
///
/// # Errors
/// The setting, and what is wrong with what it names; never the key.
pub async fn api_keys(key: KeySetting) -> anyhow::Result<ApiKeys> {
    let source = match key {
        KeySetting::Value(key) => Source::Setting(key),
        KeySetting::File(path) => Source::File(path),
        KeySetting::Secret { name, member } => {
            let configuration = aws::configuration(None).await?;
            Source::SecretsManager(Secret::new(&configuration, &name, &member)?)
        }
    };
    Ok(ApiKeys::load(source).await?)
}
