//! What each level of gzip costs and saves, on the bodies of the path's own batches.

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use ingest_worker::batch::Batcher;
use shared::event;
use tokio::sync::Semaphore;

use super::measure::{cpu_time, heading, median, nanos_each, row};
use super::path::{batch_limits, event_rules, shard_id};
use super::payload::Payload;

const LEVELS: [u32; 7] = [0, 1, 2, 3, 4, 6, 9];
/// Enough for a steady number; level 9 is slow.
const MAX_BODIES: usize = 100;

/// Prints a row for each level.
pub fn run(payload: &Payload, rounds: usize) -> anyhow::Result<()> {
    let bodies = bodies(payload)?;
    let events = bodies.len() * batch_limits().max_events.get();
    let bytes: usize = bodies.iter().map(Vec::len).sum();
    heading(
        "Gzip (flate2, zlib-rs): levels",
        &[
            &format!("{} bodies of 1000 records, {} bytes per record before", bodies.len(), bytes / events),
            &format!("median of {rounds} rounds in turns"),
        ],
    );
    let mut times = vec![Vec::new(); LEVELS.len()];
    let mut sizes = [0; LEVELS.len()];
    for _ in 0..rounds {
        for (index, level) in LEVELS.into_iter().enumerate() {
            let started = cpu_time();
            sizes[index] = bodies.iter().map(|body| black_box(compressed(body, level)).len()).sum();
            times[index].push(nanos_each(cpu_time() - started, events));
        }
    }
    row("level", ["ns/event", "bytes/event", "of the original"].map(str::to_owned));
    for ((level, times), size) in LEVELS.into_iter().zip(times).zip(sizes) {
        let ratio = 100.0 * size as f64 / bytes as f64;
        let each = size as f64 / events as f64;
        row(&level.to_string(), [format!("{:.0}", median(times)), format!("{each:.1}"), format!("{ratio:.1} %")]);
    }
    Ok(())
}

fn compressed(body: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::new(level));
    // Writing to a Vec cannot fail.
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default()
}

/// Full batches' bodies as the worker would send them, unpacked again.
fn bodies(payload: &Payload) -> anyhow::Result<Vec<Vec<u8>>> {
    let permit = Arc::new(Semaphore::new(1)).try_acquire_owned()?;
    let (rules, memory) = (event_rules(), Arc::new(permit));
    let mut bodies = Vec::new();
    for (index, pages) in payload.shards.iter().enumerate() {
        let mut batcher = Batcher::new(batch_limits());
        let shard = shard_id(index);
        for record in pages.iter().flatten() {
            let event = event::parse(record, &shard, &rules).map_err(|rejection| anyhow::anyhow!("{rejection:?}"))?;
            let pushed = batcher.push(&event).context("an event is larger than a batch")?;
            batcher.advance(record.clone(), Duration::ZERO, Some(pushed), 0, &memory);
            if batcher.is_full() {
                let (batch, _) = batcher.take();
                let items: Vec<usize> = (0..batch.items.len()).collect();
                let mut body = Vec::new();
                GzDecoder::new(&*batch.gzip(&items)).read_to_end(&mut body)?;
                bodies.push(body);
                if bodies.len() == MAX_BODIES {
                    return Ok(bodies);
                }
            }
        }
    }
    anyhow::ensure!(!bodies.is_empty(), "too few events for one batch");
    Ok(bodies)
}
