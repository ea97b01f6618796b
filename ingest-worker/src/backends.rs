//! Opens what the settings name: one file on this machine, or services of AWS. Everything that can be checked before
//! work begins is checked here.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use aws_config::SdkConfig;
use shared::api_key::Secret;
use shared::api_key::{ApiKeys, Source};
use shared::backend::dynamodb::DynamoLeases;
use shared::backend::kinesis::KinesisStream;
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::sqs::SqsDeadLetters;
use shared::backend::{DeadLetters, Leases, Stream, aws, kinesis};
use shared::service::ConfigError;

use crate::config::{KeySetting, Settings, StreamName};

/// Where events come from, and where they go that cannot be delivered.
pub struct Backends {
    /// The stream.
    pub stream: Arc<dyn Stream>,
    /// The dead letters.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// Which of the two kinds it is.
    pub kind: Kind,
}

/// What else belongs to the stream.
pub enum Kind {
    /// All of it lies in this store.
    Local(LocalStore),
    /// Services of AWS.
    Aws {
        /// The configuration of all clients.
        configuration: Box<SdkConfig>,
        /// How long the stream keeps a record.
        retention: Duration,
        /// The stream's ARN, and when it was created.
        stream: String,
    },
}

impl Backends {
    /// Opens the stream and the dead letters.
    ///
    /// # Errors
    /// The setting, and what is wrong with what it names.
    pub async fn open(settings: &Settings) -> anyhow::Result<Self> {
        match &settings.stream {
            StreamName::Local(_) => {
                let store = local(settings)?;
                let stream = Arc::new(store.clone());
                Ok(Self { dead_letters: Arc::new(store.clone()), stream, kind: Kind::Local(store) })
            }
            StreamName::Kinesis(name) => open_aws(settings, name).await,
        }
    }

    /// Opens the table of leases.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub async fn leases(&self, settings: &Settings) -> anyhow::Result<Arc<dyn Leases>> {
        match &self.kind {
            Kind::Local(store) => Ok(Arc::new(store.clone())),
            Kind::Aws { configuration, .. } => {
                let leases = DynamoLeases::open(configuration, &settings.lease_table, settings.create_lease_table);
                Ok(Arc::new(leases.await.context("LEASE_TABLE")?))
            }
        }
    }
}

/// Opens a Kinesis stream and the queue of its dead letters.
///
/// # Errors
/// As for [`Backends::open`].
pub async fn open_aws(settings: &Settings, name: &kinesis::StreamName) -> anyhow::Result<Backends> {
    let configuration = aws::configuration(name.region()).await?;
    let stream = KinesisStream::open(&configuration, &name.to_string()).await.context("STREAM")?;
    let retention = stream.retention();
    let queue = settings.dead_letter_queue.as_deref().unwrap_or_default();
    let dead_letters = SqsDeadLetters::open(&configuration, queue, retention).await.context("DEAD_LETTER_QUEUE")?;
    let kind = Kind::Aws { configuration: Box::new(configuration), retention, stream: stream.arn().to_owned() };
    Ok(Backends { stream: Arc::new(stream), dead_letters: Arc::new(dead_letters), kind })
}

/// Opens the local store.
///
/// # Errors
/// What is wrong with it.
pub fn local(settings: &Settings) -> anyhow::Result<LocalStore> {
    let StreamName::Local(directory) = &settings.stream else {
        return Err(ConfigError(format!("STREAM: {}; allowed here is local:DIR", settings.stream)).into());
    };
    let options = LocalOptions {
        retention: settings.local_retention(),
        max_bytes: settings.local_max_bytes.as_u64(),
        ..LocalOptions::default()
    };
    LocalStore::open(directory, options).with_context(|| format!("STREAM: {}", settings.stream))
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
