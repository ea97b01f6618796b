//! The measure of the path: what a straightforward program would do with the same payloads, and nothing else.
//!
//! No duplicates recognised, no checks, no checkpoints, no limits, one thread. Numbers go through `f64`, so a long
//! integer would lose digits; the path keeps them.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::Write as _;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use shared::amberflo::Transport;

use super::payload::Payload;

const BATCH: usize = 1000;

#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "detail-type")]
    detail_type: String,
    id: String,
    time: String,
    detail: Detail,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Detail {
    tenant_id: String,
    meter_api_name: String,
    meter_value: f64,
    unique_id: Option<String>,
    meter_time_in_millis: Option<i64>,
    #[serde(default)]
    dimensions: BTreeMap<String, String>,
}

/// What Amberflo takes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeterRecord {
    customer_id: String,
    meter_api_name: String,
    meter_time_in_millis: i64,
    /// `meterValue`
    pub meter_value: f64,
    unique_id: String,
    dimensions: BTreeMap<String, String>,
}

/// How far the loop goes with each event.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub enum Depth {
    /// Parses it.
    Parse,
    /// Writes its record too.
    Serialise,
    /// Compresses 1000 records at a time too.
    Gzip,
    /// Sends them too.
    Send,
}

/// Runs the loop over all events.
pub async fn run(payload: &Payload, depth: Depth, transport: &dyn Transport) -> anyhow::Result<()> {
    let mut bare_loop = BareLoop::new(depth, transport);
    for record in payload.records() {
        bare_loop.take(&record.data).await?;
    }
    bare_loop.end().await
}

/// The loop, turned by whoever has the events.
pub struct BareLoop<'a> {
    depth: Depth,
    transport: &'a dyn Transport,
    body: Vec<u8>,
    records: usize,
}

impl<'a> BareLoop<'a> {
    /// Before the first event.
    pub fn new(depth: Depth, transport: &'a dyn Transport) -> Self {
        Self { depth, transport, body: Vec::new(), records: 0 }
    }

    /// The next event.
    pub async fn take(&mut self, event: &[u8]) -> anyhow::Result<()> {
        let envelope: Envelope = serde_json::from_slice(event)?;
        if self.depth == Depth::Parse {
            black_box(envelope);
            return Ok(());
        }
        self.body.push(if self.records == 0 { b'[' } else { b',' });
        serde_json::to_writer(&mut self.body, &meter_record(envelope)?)?;
        self.records += 1;
        if self.records == BATCH { self.send().await } else { Ok(()) }
    }

    /// After the last event: sends what is left.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        if self.records > 0 { self.send().await } else { Ok(()) }
    }

    async fn send(&mut self) -> anyhow::Result<()> {
        self.body.push(b']');
        if self.depth >= Depth::Gzip {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::new(1));
            encoder.write_all(&self.body)?;
            let compressed = Bytes::from(encoder.finish()?);
            if self.depth >= Depth::Send {
                let answer = self.transport.exchange(http::Request::new(compressed)).await?;
                anyhow::ensure!(answer.status().is_success(), "answered {}", answer.status());
            } else {
                black_box(compressed);
            }
        }
        black_box(&self.body);
        self.body.clear();
        self.records = 0;
        Ok(())
    }
}

/// The record of an event, as EventBridge hands it on.
pub fn parse(event: &[u8]) -> anyhow::Result<MeterRecord> {
    meter_record(serde_json::from_slice(event)?)
}

fn meter_record(envelope: Envelope) -> anyhow::Result<MeterRecord> {
    let Envelope { detail_type, id, time, detail } = envelope;
    anyhow::ensure!(detail_type == "ingestUsage", "unknown detail type {detail_type}");
    let meter_time_in_millis = match detail.meter_time_in_millis {
        Some(millis) => millis,
        None => humantime::parse_rfc3339(&time)?.duration_since(UNIX_EPOCH)?.as_millis().try_into()?,
    };
    Ok(MeterRecord {
        customer_id: detail.tenant_id,
        meter_api_name: detail.meter_api_name,
        meter_time_in_millis,
        meter_value: detail.meter_value,
        unique_id: detail.unique_id.unwrap_or(id),
        dimensions: detail.dimensions,
    })
}
