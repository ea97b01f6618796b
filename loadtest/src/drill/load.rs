//! A small, steady application plane, whose mix of events a scenario can change while it runs.
//!
//! Unlike the demo's it makes no mistakes of its own: an alert has one cause only where nothing else is wrong.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde_json::{Value, json};
use shared::backend::kinesis::KinesisStream;
use shared::backend::{NewRecord, Stream as _};
use shared::clock::Clock;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::generator::METERS;
use crate::producer::{DETAIL_TYPE, SOURCE};

const TICK: Duration = Duration::from_millis(500);
/// EventBridge takes at most this many entries in a call.
const CALL_ENTRIES: usize = 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// One event in so many is sent twice at all times: producers retry.
const RETRIED_EVERY: u64 = 20;
const TENANTS: u64 = 20;
/// As random text it does not fit into [`SMALL_MESSAGE_BYTES`], compressed or not.
const LARGE_BYTES: usize = 100_000;
/// The size of a message of a queue for which some events are too large.
pub const SMALL_MESSAGE_BYTES: usize = 64 << 10;

/// What is emitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// Events per second.
    pub rate: u64,
    /// Every event is sent so many times.
    pub copies: u64,
    /// One event in so many lacks its meter; 0 is none.
    pub malformed_every: u64,
    /// One event in so many has a `uniqueId` that begins with [`crate::faults::POISON_PREFIX`]; 0 is none.
    pub poison_every: u64,
    /// Those that lack their meter are too large for a message of SQS.
    pub is_large: bool,
}

impl Default for Mix {
    fn default() -> Self {
        Self { rate: 20, copies: 1, malformed_every: 0, poison_every: 0, is_large: false }
    }
}

/// Where events go.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Puts the `detail`s of at most ten events.
    async fn put(&self, details: &[Value]) -> anyhow::Result<()>;
}

/// A plane at work. Dropping it ends it.
pub struct Plane {
    mix: watch::Sender<Mix>,
    _task: AbortOnDropHandle<()>,
}

impl Plane {
    /// Starts to emit. A call that fails is made again with the next tick.
    pub fn start(bus: impl Bus, mix: Mix) -> Self {
        let (sender, receiver) = watch::channel(mix);
        Self { mix: sender, _task: AbortOnDropHandle::new(tokio::spawn(emit(bus, receiver))) }
    }

    /// Emits this from now on.
    pub fn set(&self, mix: Mix) {
        self.mix.send_replace(mix);
    }
}

async fn emit(bus: impl Bus, mix: watch::Receiver<Mix>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut number = 0;
    let mut waiting: Vec<Value> = Vec::new();
    loop {
        ticks.tick().await;
        let mix = *mix.borrow();
        for _ in 0..mix.rate / 2 {
            number += 1;
            let event = event(number, mix);
            let retries = u64::from(number.is_multiple_of(RETRIED_EVERY));
            waiting.extend(std::iter::repeat_n(event, (mix.copies + retries) as usize));
        }
        while !waiting.is_empty() {
            let call = waiting.len().min(CALL_ENTRIES);
            // A worker that was killed on purpose does not answer; its producers keep their events.
            if bus.put(&waiting[..call]).await.is_err() {
                break;
            }
            waiting.drain(..call);
        }
    }
}

/// The `detail` of one event, with everything that makes its copies recognisable.
fn event(number: u64, mix: Mix) -> Value {
    let is_each = |every: u64| every > 0 && number.is_multiple_of(every);
    let prefix = if is_each(mix.poison_every) { crate::faults::POISON_PREFIX } else { "drill-" };
    let mut event = json!({
        "tenantId": format!("tenant-{:02}", number % TENANTS),
        "meterApiName": METERS[number as usize % METERS.len()],
        "meterValue": number % 100,
        "uniqueId": format!("{prefix}{number:08}"),
        "meterTimeInMillis": Clock::system().now(),
    });
    if is_each(mix.malformed_every)
        && let Some(members) = event.as_object_mut()
    {
        members.remove("meterApiName");
        if mix.is_large {
            let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(LARGE_BYTES).collect();
            members.insert("noise".to_owned(), STANDARD.encode(noise).into());
        }
    }
    event
}

/// The local bus of a worker.
pub struct LocalBus {
    http: reqwest::Client,
    url: String,
}

impl LocalBus {
    /// The bus at this address.
    ///
    /// # Errors
    /// When the HTTP client cannot start.
    pub fn new(address: SocketAddr) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).build()?;
        Ok(Self { http, url: format!("http://{address}/") })
    }
}

#[async_trait]
impl Bus for LocalBus {
    async fn put(&self, details: &[Value]) -> anyhow::Result<()> {
        let entry =
            |detail: &Value| json!({ "Source": SOURCE, "DetailType": DETAIL_TYPE, "Detail": detail.to_string() });
        let entries: Vec<_> = details.iter().map(entry).collect();
        let request = self.http.post(&self.url).header("x-amz-target", "AWSEvents.PutEvents");
        let answer = request.body(json!({ "Entries": entries }).to_string()).send().await?;
        anyhow::ensure!(answer.status() == StatusCode::OK, "PutEvents: {}", answer.status());
        let answer: Value = serde_json::from_slice(&answer.bytes().await?)?;
        anyhow::ensure!(answer["FailedEntryCount"] == 0, "PutEvents: {answer}");
        Ok(())
    }
}

#[async_trait]
impl Bus for KinesisStream {
    /// As a rule of EventBridge does: a record for each event, its tenant as the partition key.
    async fn put(&self, details: &[Value]) -> anyhow::Result<()> {
        let now = jiff::Timestamp::from_millisecond(Clock::system().now()).unwrap_or_default();
        let record = |detail: &Value| {
            let envelope = json!({
                "version": "0", "id": uuid::Uuid::new_v4().to_string(), "detail-type": DETAIL_TYPE, "source": SOURCE,
                "account": "000000000000", "time": now.to_string(), "region": emulators::REGION, "resources": [],
                "detail": detail,
            });
            let partition_key = detail["tenantId"].as_str().unwrap_or_default().to_owned();
            NewRecord { partition_key, data: envelope.to_string().into() }
        };
        self.publish(details.iter().map(record).collect()).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_makes_the_mistakes_that_it_names_and_no_others() {
        let made = |mix| (1..=100).map(|number| event(number, mix)).collect::<Vec<_>>();
        let lack_meter = |events: &[Value]| events.iter().filter(|event| event["meterApiName"].is_null()).count();
        let is_poison = |event: &&Value| event["uniqueId"].as_str().unwrap().starts_with(crate::faults::POISON_PREFIX);
        let sound = made(Mix::default());
        assert_eq!((lack_meter(&sound), sound.iter().filter(is_poison).count()), (0, 0));
        let malformed = made(Mix { malformed_every: 10, is_large: true, ..Mix::default() });
        assert_eq!((lack_meter(&malformed), malformed.iter().filter(is_poison).count()), (10, 0));
        assert!(LARGE_BYTES > SMALL_MESSAGE_BYTES && malformed[9].to_string().len() > LARGE_BYTES);
        let poison = made(Mix { poison_every: 50, ..Mix::default() });
        assert_eq!((lack_meter(&poison), poison.iter().filter(is_poison).count()), (0, 2));
    }
}
