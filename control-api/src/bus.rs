//! The event bus, as POST /ingest sees it: puts usage events with EventBridge's `PutEvents`.

use std::ops::Range;
use std::sync::OnceLock;
use std::time::Duration;

use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::primitives::DateTime;
use aws_sdk_eventbridge::types::{PutEventsRequestEntry, PutEventsResultEntry};
use futures_util::{StreamExt as _, stream};
use shared::backend::{BackendError, aws};
use shared::clock::UnixMillis;
use shared::service::Trouble;
use shared::settings::StreamName;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout_at};

use crate::config::BusArgs;

/// Entries of one call. Source: the EventBridge API reference.
const MAX_ENTRIES: usize = 10;
/// Bytes of one entry, and of all entries of one call, as EventBridge counts them. Most regions take 1 MiB since January
/// 2026; this is what all take. Source: the EventBridge user guide.
pub const MAX_BYTES: usize = 256 << 10;
/// What EventBridge counts for an entry's time. Source: the EventBridge user guide.
const TIME_BYTES: usize = 14;
/// Calls under way at a time for one request.
const CONCURRENCY: usize = 4;
/// The waits before entries that failed alone are put again.
const WAITS: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(300), Duration::from_millis(900), Duration::from_millis(2700)];
/// The local worker's bus, where nothing is set.
const LOCAL_BUS: &str = "http://127.0.0.1:4010";
const SERVICE_ID: &str = "EventBridge";

static UNPUT: Trouble = Trouble::new();

/// Codes of entries that the same entry will meet again. Source: the EventBridge API reference.
const FINAL: [&str; 5] = [
    "InvalidArgument",
    "MalformedDetail",
    "NotAuthorizedException",
    "NotAuthorizedForDetailTypeException",
    "NotAuthorizedForSourceException",
];

/// The bus that the settings name.
pub struct Bus {
    settings: BusArgs,
    stream: StreamName,
    client: OnceCell<Client>,
}

/// Why an event is not known to be on the bus. It may be there all the same.
#[derive(Clone, Debug)]
pub struct NotPut {
    /// What happened.
    pub detail: String,
    /// Whether the same will happen again until an operator changes something.
    pub is_final: bool,
}

impl Bus {
    /// The bus that goes with this stream; the client is made at first use.
    pub fn new(settings: &BusArgs, stream: &StreamName) -> Self {
        Self { settings: settings.clone(), stream: stream.clone(), client: OnceCell::new() }
    }

    /// The bus behind this client.
    pub fn with_client(settings: &BusArgs, stream: &StreamName, client: Client) -> Self {
        Self { client: OnceCell::new_with(Some(client)), ..Self::new(settings, stream) }
    }

    /// Makes the client, and says where events go.
    ///
    /// # Errors
    /// When no region is known.
    pub async fn open(&self) -> Result<(), BackendError> {
        self.client().await.map(|_| ())
    }

    /// The bytes that an event may have.
    pub fn max_detail_bytes(&self) -> usize {
        MAX_BYTES - 1 - self.size("")
    }

    /// Puts each of these events, at this time. A call that got no answer, and an entry that failed, may be repeated
    /// within this: its copies have the same time. Answers by `deadline`, in the order of the events: their ids.
    pub async fn put(&self, details: &[&str], time: UnixMillis, deadline: Instant) -> Vec<Result<String, NotPut>> {
        if details.is_empty() {
            return Vec::new();
        }
        let client = match self.client().await {
            Ok(client) => client,
            Err(error) => {
                let not_put = NotPut { detail: error.to_string(), is_final: true };
                return details.iter().map(|_| Err(not_put.clone())).collect();
            }
        };
        // What one call is refused for, the others would be too.
        let refused = OnceLock::new();
        let calls = self.calls(details).into_iter().map(|range| {
            let call = Call { bus: self, client, refused: &refused, deadline };
            let entries = details[range].iter().map(|detail| self.entry(detail, time)).collect();
            async move { call.put(entries).await }
        });
        let calls: Vec<_> = calls.collect();
        stream::iter(calls).buffered(CONCURRENCY).collect::<Vec<_>>().await.concat()
    }

    async fn client(&self) -> Result<&Client, BackendError> {
        let make = async || {
            let configuration = match &self.stream {
                StreamName::Kinesis(name) => aws::configuration(name.region()).await?,
                StreamName::Local(_) => aws::configuration_without_aws(SERVICE_ID, LOCAL_BUS).await,
            };
            let region = configuration.region().map(ToString::to_string);
            let BusArgs { event_bus, event_source, event_detail_type } = &self.settings;
            tracing::info!(event_bus, event_source, event_detail_type, region, "where POST /ingest puts events");
            Ok(Client::new(&configuration))
        };
        self.client.get_or_try_init(make).await
    }

    /// The events of each call.
    fn calls(&self, details: &[&str]) -> Vec<Range<usize>> {
        let (mut calls, mut start, mut bytes) = (Vec::new(), 0, 0);
        for (index, detail) in details.iter().enumerate() {
            let size = self.size(detail);
            if index > start && (index - start == MAX_ENTRIES || bytes + size >= MAX_BYTES) {
                calls.push(start..index);
                (start, bytes) = (index, 0);
            }
            bytes += size;
        }
        if start < details.len() {
            calls.push(start..details.len());
        }
        calls
    }

    /// The size of an entry as EventBridge counts it.
    fn size(&self, detail: &str) -> usize {
        self.settings.event_source.len() + self.settings.event_detail_type.len() + TIME_BYTES + detail.len()
    }

    fn entry(&self, detail: &str, time: UnixMillis) -> PutEventsRequestEntry {
        PutEventsRequestEntry::builder()
            .event_bus_name(&self.settings.event_bus)
            .source(&self.settings.event_source)
            .detail_type(&self.settings.event_detail_type)
            // EventBridge keeps whole seconds.
            .time(DateTime::from_secs(time.div_euclid(1000)))
            .detail(detail)
            .build()
    }
}

/// One call of `PutEvents`, repeated for the entries that fail.
struct Call<'a> {
    bus: &'a Bus,
    client: &'a Client,
    refused: &'a OnceLock<NotPut>,
    deadline: Instant,
}

impl Call<'_> {
    async fn put(self, entries: Vec<PutEventsRequestEntry>) -> Vec<Result<String, NotPut>> {
        let late = || NotPut {
            detail: "EventBridge did not answer in time: the event may be on the bus all the same".to_owned(),
            is_final: false,
        };
        let mut outcomes: Vec<_> = entries.iter().map(|_| Err(late())).collect();
        let _ = timeout_at(self.deadline, self.put_all(entries, &mut outcomes)).await;
        outcomes
    }

    /// Writes down each outcome when it is known: this may be dropped at any await.
    async fn put_all(&self, entries: Vec<PutEventsRequestEntry>, outcomes: &mut [Result<String, NotPut>]) {
        let mut pending: Vec<_> = entries.into_iter().enumerate().collect();
        let mut waits = WAITS.into_iter();
        loop {
            if let Some(refused) = self.refused.get() {
                pending.iter().for_each(|(index, _)| outcomes[*index] = Err(refused.clone()));
                return;
            }
            let answer = self.attempt(pending.iter().map(|(_, entry)| entry.clone()).collect()).await;
            let mut answer = match answer {
                Ok(answer) => answer.into_iter(),
                Err(not_put) => {
                    if not_put.is_final {
                        let _ = self.refused.set(not_put.clone());
                    }
                    pending.iter().for_each(|(index, _)| outcomes[*index] = Err(not_put.clone()));
                    return;
                }
            };
            pending.retain(|(index, _)| {
                let outcome = outcome(answer.next());
                let is_to_be_repeated = outcome.as_ref().is_err_and(|not_put| !not_put.is_final);
                outcomes[*index] = outcome;
                is_to_be_repeated
            });
            match waits.next() {
                Some(wait) if !pending.is_empty() => {
                    tracing::debug!(entries = pending.len(), "entries failed: trying again");
                    sleep(wait.mul_f64(0.5 + fastrand::f64())).await;
                }
                _ => return,
            }
        }
    }

    /// The SDK repeats a call that fails as a whole.
    async fn attempt(&self, entries: Vec<PutEventsRequestEntry>) -> Result<Vec<PutEventsResultEntry>, NotPut> {
        let answer = self.client.put_events().set_entries(Some(entries)).send().await;
        if answer.is_ok()
            && let Some(over) = UNPUT.over()
        {
            tracing::info!(lasted = over.lasted.as_secs(), "events can be put on the bus again");
        }
        answer.map(|answer| answer.entries.unwrap_or_default()).map_err(|error| {
            let bus = &self.bus.settings.event_bus;
            let error = aws::error(&format!("PutEvents on the bus {bus:?}"), &error);
            if let Some(omitted) = UNPUT.again() {
                tracing::warn!(%error, omitted, "events could not be put on the bus");
            }
            let hint = match &self.bus.stream {
                StreamName::Local(_) => "; with STREAM=local:... the running ingest-worker is the bus",
                StreamName::Kinesis(_) => "",
            };
            NotPut { detail: format!("{error}{hint}"), is_final: matches!(error, BackendError::Misconfigured(_)) }
        })
    }
}

/// What became of an entry. What the answer does not name is not known to be put.
fn outcome(entry: Option<PutEventsResultEntry>) -> Result<String, NotPut> {
    let Some(entry) = entry else {
        return Err(NotPut { detail: "EventBridge did not say what became of it".to_owned(), is_final: false });
    };
    match (entry.event_id, entry.error_code) {
        (Some(id), None) => Ok(id),
        (_, code) => {
            let code = code.unwrap_or_else(|| "no reason".to_owned());
            let message = entry.error_message.unwrap_or_default();
            Err(NotPut { is_final: FINAL.contains(&&*code), detail: format!("EventBridge: {code}: {message}") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bus() -> Bus {
        let settings = BusArgs {
            event_bus: "default".to_owned(),
            event_source: "s".to_owned(),
            event_detail_type: "d".to_owned(),
        };
        Bus::new(&settings, &StreamName::Local("x".into()))
    }

    #[test]
    fn a_call_has_at_most_ten_entries_and_as_many_bytes_as_every_region_takes() {
        let bus = bus();
        let small = vec!["{}"; 25];
        assert_eq!(bus.calls(&small), [0..10, 10..20, 20..25]);
        assert!(bus.calls(&[]).is_empty());
        let largest = "x".repeat(bus.max_detail_bytes());
        assert_eq!(bus.size(&largest), MAX_BYTES - 1);
        assert_eq!(bus.calls(&["{}", &largest, "{}", "{}"]), [0..1, 1..2, 2..4]);
        let half = "x".repeat(MAX_BYTES / 2 - bus.size(""));
        assert_eq!(bus.calls(&[&half, &half[1..], &half, &half]), [0..2, 2..3, 3..4]);
    }
}
