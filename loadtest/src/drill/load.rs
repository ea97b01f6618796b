//! A small, steady application plane, whose mix of events a scenario can change while it runs.
//!
//! Unlike the demo's it makes no mistakes of its own: an alert has one cause only where nothing else is wrong.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use shared::clock::Clock;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::mix::METERS;
use crate::target::{Event, Target, put_all};

const TICK: Duration = Duration::from_millis(500);
/// EventBridge takes at most this many entries in a call.
const CALL_ENTRIES: usize = 10;
/// How long a call may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
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

/// A plane at work. Dropping it ends it.
pub struct Plane {
    mix: watch::Sender<Mix>,
    _task: AbortOnDropHandle<()>,
}

impl Plane {
    /// Starts to emit. A call that fails is made again with the next tick.
    pub fn start(target: Arc<dyn Target>, mix: Mix) -> Self {
        let (sender, receiver) = watch::channel(mix);
        Self { mix: sender, _task: AbortOnDropHandle::new(tokio::spawn(emit(target, receiver))) }
    }

    /// Emits this from now on.
    pub fn set(&self, mix: Mix) {
        self.mix.send_replace(mix);
    }
}

async fn emit(target: Arc<dyn Target>, mix: watch::Receiver<Mix>) {
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
            if put(&*target, &waiting[..call]).await.is_err() {
                break;
            }
            waiting.drain(..call);
        }
    }
}

async fn put(target: &dyn Target, details: &[Value]) -> anyhow::Result<()> {
    let texts: Vec<_> = details.iter().map(Value::to_string).collect();
    let tenants = details.iter().map(|detail| detail["tenantId"].as_str().unwrap_or_default());
    let events: Vec<_> = tenants.zip(&texts).map(|(tenant, detail)| Event { tenant, detail }).collect();
    put_all(target, &events).await
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
