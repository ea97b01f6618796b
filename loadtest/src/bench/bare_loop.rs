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

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MeterRecord {
    customer_id: String,
    meter_api_name: String,
    meter_time_in_millis: i64,
    meter_value: f64,
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
    let mut body = Vec::new();
    let mut records = 0;
    for record in payload.records() {
        let envelope: Envelope = serde_json::from_slice(&record.data)?;
        if depth == Depth::Parse {
            black_box(envelope);
            continue;
        }
        body.push(if records == 0 { b'[' } else { b',' });
        serde_json::to_writer(&mut body, &meter_record(envelope)?)?;
        records += 1;
        if records == BATCH {
            send(&mut body, depth, transport).await?;
            records = 0;
        }
    }
    if records > 0 {
        send(&mut body, depth, transport).await?;
    }
    Ok(())
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

async fn send(body: &mut Vec<u8>, depth: Depth, transport: &dyn Transport) -> anyhow::Result<()> {
    body.push(b']');
    if depth >= Depth::Gzip {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(1));
        encoder.write_all(body)?;
        let compressed = Bytes::from(encoder.finish()?);
        if depth >= Depth::Send {
            let answer = transport.exchange(http::Request::new(compressed)).await?;
            anyhow::ensure!(answer.status().is_success(), "answered {}", answer.status());
        } else {
            black_box(compressed);
        }
    }
    black_box(&body);
    body.clear();
    Ok(())
}
