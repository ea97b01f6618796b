//! The stream itself, written as EventBridge's rule writes it: an envelope for each event, its tenant as partition key.

use std::time::Duration;

use async_trait::async_trait;
use shared::backend::kinesis::{KinesisStream, Writer};
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::{BackendError, NewRecord, Stream as _};
use shared::clock::Clock;
use shared::settings::StreamName;

use super::{CallLimit, DETAIL_TYPE, Event, Outcome, SOURCE, Target, aws_configuration};

/// `PutRecords` takes at most this many records of together 5 MiB; envelope and key take some.
const CALL_EVENTS: usize = 500;
const CALL_BYTES: usize = 4 << 20;

/// Puts events on a stream that a worker reads.
#[derive(Clone)]
pub enum EventStream {
    /// With `PutRecords`.
    Kinesis(Writer),
    /// Into a local store, beside the worker that has it open.
    Local(LocalStore),
}

impl EventStream {
    /// Opens the stream; `endpoint` is that of Kinesis where it is not AWS's own.
    ///
    /// # Errors
    /// When it is not there, or cannot be written to.
    pub async fn open(name: &StreamName, endpoint: Option<&str>, timeout: Duration) -> anyhow::Result<Self> {
        Ok(match name {
            StreamName::Local(directory) => Self::Local(LocalStore::open(directory, LocalOptions::default())?),
            StreamName::Kinesis(name) => {
                let configuration = aws_configuration(endpoint, name.region(), timeout).await?;
                // It looks whether the stream is there.
                KinesisStream::open(&configuration, &name.to_string()).await?;
                Self::Kinesis(Writer::new(&configuration, name.clone()))
            }
        })
    }
}

#[async_trait]
impl Target for EventStream {
    fn limit(&self) -> CallLimit {
        CallLimit { events: CALL_EVENTS, bytes: CALL_BYTES }
    }

    async fn put(&self, events: &[Event<'_>]) -> Result<Vec<Outcome>, BackendError> {
        let records: Vec<_> = events.iter().map(record).collect();
        match self {
            Self::Local(store) => {
                store.publish(records).await?;
                Ok(events.iter().map(|_| Outcome::Acknowledged).collect())
            }
            Self::Kinesis(writer) => {
                let answer = writer.call(&records).await?;
                let reason = answer.reason.unwrap_or_default();
                let outcome = |is_stored| match is_stored {
                    true => Outcome::Acknowledged,
                    false => Outcome::Failed(format!("PutRecords: {reason}")),
                };
                Ok(answer.is_stored.into_iter().map(outcome).collect())
            }
        }
    }
}

fn record(event: &Event<'_>) -> NewRecord {
    let Event { tenant, detail } = event;
    let time = jiff::Timestamp::from_millisecond(Clock::system().now()).unwrap_or_default();
    let id = uuid::Uuid::new_v4();
    // The detail stays as it is, byte for byte.
    let envelope = format!(r#"{{"version":"0","id":"{id}","detail-type":"{DETAIL_TYPE}","source":"{SOURCE}","#)
        + &format!(
            r#""account":"000000000000","time":"{time}","region":"us-east-1","resources":[],"detail":{detail}}}"#
        );
    NewRecord { partition_key: (*tenant).to_owned(), data: envelope.into() }
}
