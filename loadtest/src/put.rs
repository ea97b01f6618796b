//! Publishes valid events straight to the stream, where there is no bus in front of it.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use shared::backend::kinesis::KinesisStream;
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::{NewRecord, Stream, aws};
use shared::clock::Clock;
use shared::settings::StreamName;
use tokio::time::{Instant, sleep_until};

use crate::generator::{METERS, TENANTS};

/// Records in a call of `publish`.
const CALL: u64 = 500;

/// Publishes usage events to a stream: as EventBridge's rule would, without EventBridge.
#[derive(Debug, Args)]
pub struct PutArgs {
    /// The stream, as for the worker.
    #[arg(long, env, default_value = "local:./metering-data")]
    stream: StreamName,
    /// How many events.
    #[arg(long, default_value = "1000")]
    events: u64,
    /// How many a second, at most: one call follows the other.
    #[arg(long, default_value = "200")]
    rate: u64,
}

pub async fn run(args: PutArgs) -> anyhow::Result<()> {
    anyhow::ensure!(args.rate > 0, "--rate: 0; allowed is a whole number from 1");
    let stream: Box<dyn Stream> = match &args.stream {
        StreamName::Local(directory) => Box::new(LocalStore::open(directory, LocalOptions::default())?),
        StreamName::Kinesis(name) => {
            let configuration = aws::configuration(name.region()).await?;
            Box::new(KinesisStream::open(&configuration, &name.to_string()).await.context("--stream")?)
        }
    };
    let run = fastrand::u64(..);
    let started = Instant::now();
    let mut put = 0;
    while put < args.events {
        let count = (args.events - put).min(CALL).min(args.rate.div_ceil(5));
        let now = Clock::system().now();
        let records = (put..put + count).map(|number| record(run, number, now)).collect();
        stream.publish(records).await.with_context(|| format!("after {put} events"))?;
        put += count;
        sleep_until(started + Duration::from_secs_f64(put as f64 / args.rate as f64)).await;
    }
    println!("published {put} events");
    Ok(())
}

fn record(run: u64, number: u64, now: i64) -> NewRecord {
    let tenant = format!("tenant-{}", number % TENANTS);
    let time = jiff::Timestamp::from_millisecond(now).unwrap_or_default();
    let envelope = json!({
        "version": "0", "id": format!("{run:x}-{number}"), "detail-type": "ingestUsage", "source": "loadtest",
        "account": "000000000000", "time": time.to_string(), "region": "us-east-1", "resources": [],
        "detail": {
            "tenantId": &tenant, "meterApiName": METERS[number as usize % METERS.len()], "meterValue": number % 100,
            "uniqueId": format!("{run:x}-{number}"), "meterTimeInMillis": now,
        },
    });
    NewRecord { partition_key: tenant, data: envelope.to_string().into() }
}
