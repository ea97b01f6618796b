//! Publishes valid events straight to the stream, where there is no bus in front of it.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use shared::backend::BackendError;
use shared::clock::Clock;
use shared::settings::StreamName;
use tokio::time::{Instant, sleep, sleep_until};

use crate::mix::METERS;
use crate::target::{Event, EventStream, Target as _, put_all};

const TENANTS: u64 = 50;
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A call that fails is made again, for stores that are busy and shards that are full; not for ever.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);

/// Publishes usage events to a stream: as EventBridge's rule would, without EventBridge.
#[derive(Debug, Args)]
pub struct PutArgs {
    /// The stream, as for the worker.
    #[arg(long, env, default_value = "local:./metering-data")]
    stream: StreamName,
    /// The endpoint of Kinesis, where it is not AWS's own.
    #[arg(long, value_name = "URL", env = "AWS_ENDPOINT_URL_KINESIS")]
    kinesis_endpoint_url: Option<String>,
    /// How many events.
    #[arg(long, default_value = "1000")]
    events: u64,
    /// How many a second, at most: one call follows the other.
    #[arg(long, default_value = "200")]
    rate: u64,
}

pub async fn run(args: PutArgs) -> anyhow::Result<()> {
    anyhow::ensure!(args.rate > 0, "--rate: 0; allowed is a whole number from 1");
    let stream = EventStream::open(&args.stream, args.kinesis_endpoint_url.as_deref(), CALL_TIMEOUT).await;
    let stream = stream.with_context(|| format!("--stream {}", args.stream))?;
    let run = fastrand::u64(..);
    let started = Instant::now();
    let mut put = 0;
    while put < args.events {
        let count = (args.events - put).min(stream.limit().events as u64).min(args.rate.div_ceil(5));
        let now = Clock::system().now();
        let events: Vec<_> = (put..put + count).map(|number| event(run, number, now)).collect();
        let events: Vec<_> = events.iter().map(|(tenant, detail)| Event { tenant, detail }).collect();
        publish(&stream, &events).await.with_context(|| format!("after {put} events"))?;
        put += count;
        sleep_until(started + Duration::from_secs_f64(put as f64 / args.rate as f64)).await;
    }
    println!("published {put} events");
    Ok(())
}

/// Events are known by their `uniqueId`, so that what a failed call stored all the same is billed once.
async fn publish(stream: &EventStream, events: &[Event<'_>]) -> anyhow::Result<()> {
    let mut tries = 1;
    loop {
        let Err(error) = put_all(stream, events).await else { return Ok(()) };
        if tries == TRIES || matches!(error.downcast_ref(), Some(BackendError::Misconfigured(_))) {
            return Err(error);
        }
        tries += 1;
        sleep(PAUSE).await;
    }
}

/// Its tenant, and its `detail`.
fn event(run: u64, number: u64, now: i64) -> (String, String) {
    let tenant = format!("tenant-{}", number % TENANTS);
    let detail = json!({
        "tenantId": &tenant, "meterApiName": METERS[number as usize % METERS.len()], "meterValue": number % 100,
        "uniqueId": format!("{run:x}-{number}"), "meterTimeInMillis": now,
    });
    (tenant, detail.to_string())
}
