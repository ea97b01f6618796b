//! An event bus: EventBridge, or a worker's local bus.

use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::types::{PutEventsRequestEntry, PutEventsResultEntry};
use shared::backend::{BackendError, aws};

use super::{CallLimit, DETAIL_TYPE, Event, Outcome, SOURCE, Target, aws_configuration};

/// EventBridge takes at most this many entries in a call.
const CALL_EVENTS: usize = 10;
/// A call may have 256 KiB, source and detail type included.
const CALL_BYTES: usize = 240 << 10;

/// Puts events with `PutEvents`.
#[derive(Clone, Debug)]
pub struct Bus {
    client: Client,
    names: BusNames,
}

/// What an entry says beside its `detail`.
#[derive(Clone, Debug)]
pub struct BusNames {
    /// The bus; the account's default bus where there is none.
    pub bus: Option<String>,
    /// `Source`
    pub source: String,
    /// `DetailType`
    pub detail_type: String,
}

impl Default for BusNames {
    fn default() -> Self {
        Self { bus: None, source: SOURCE.to_owned(), detail_type: DETAIL_TYPE.to_owned() }
    }
}

impl Bus {
    /// The bus that `config` leads to.
    #[must_use]
    pub fn new(config: &SdkConfig, names: BusNames) -> Self {
        Self { client: Client::new(config), names }
    }

    /// The local bus of a worker on this machine. A call that takes longer than `timeout` has failed.
    ///
    /// # Errors
    /// When `url` is elsewhere and no region is known.
    pub async fn local(url: &str, timeout: Duration) -> anyhow::Result<Self> {
        Ok(Self::new(&aws_configuration(Some(url), None, timeout).await?, BusNames::default()))
    }

    fn entry(&self, event: &Event<'_>) -> PutEventsRequestEntry {
        let BusNames { bus, source, detail_type } = &self.names;
        let entry = PutEventsRequestEntry::builder().source(source).detail_type(detail_type).detail(event.detail);
        entry.set_event_bus_name(bus.clone()).build()
    }
}

#[async_trait]
impl Target for Bus {
    fn limit(&self) -> CallLimit {
        CallLimit { events: CALL_EVENTS, bytes: CALL_BYTES }
    }

    async fn put(&self, events: &[Event<'_>]) -> Result<Vec<Outcome>, BackendError> {
        let entries = events.iter().map(|event| self.entry(event)).collect();
        let answer = self.client.put_events().set_entries(Some(entries)).send().await;
        let answer = answer.map_err(|error| aws::error("PutEvents", &error))?;
        if answer.entries().len() != events.len() {
            return Err(BackendError::Unavailable("PutEvents did not answer for every entry".to_owned()));
        }
        Ok(answer.entries().iter().map(outcome).collect())
    }
}

fn outcome(result: &PutEventsResultEntry) -> Outcome {
    if result.event_id().is_some() {
        return Outcome::Acknowledged;
    }
    let code = result.error_code().unwrap_or("no code");
    let text = format!("PutEvents: {code}: {}", result.error_message().unwrap_or("no message"));
    // What EventBridge calls malformed is malformed the next time too.
    if code.starts_with("Malformed") || code == "InvalidArgument" {
        Outcome::Refused(text)
    } else {
        Outcome::Failed(text)
    }
}
