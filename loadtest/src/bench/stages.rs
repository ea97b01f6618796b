//! Where the path's time goes: its stages one upon another, on one thread.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ingest_worker::batch::{Batch, Batcher};
use ingest_worker::dedup::{KeyBudget, Window};
use shared::event;
use tokio::sync::Semaphore;

use super::bare_loop::{self, Depth};
use super::measure::{cpu_time, heading, median, nanos_each, row};
use super::path::{Answering, batch_limits, event_rules, shard_id, through_the_worker, use_real_metrics};
use super::payload::Payload;

#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Stage {
    Parse,
    Dedup,
    Serialise,
    Gzip,
}

/// Prints the stages of the path, and those of the bare loop.
pub async fn run(payload: &Payload, rounds: usize) -> anyhow::Result<()> {
    use_real_metrics();
    let stages = [Stage::Parse, Stage::Dedup, Stage::Serialise, Stage::Gzip];
    let depths = [Depth::Parse, Depth::Serialise, Depth::Gzip];
    let (mut path, mut bare) = (vec![Vec::new(); stages.len() + 1], vec![Vec::new(); depths.len()]);
    for _ in 0..rounds {
        for (stage, times) in stages.iter().zip(&mut path) {
            times.push(nanos_each(up_to(*stage, payload).await?, payload.events));
        }
        path[stages.len()].push(nanos_each(through_the_worker(payload).await?, payload.events));
        for (depth, times) in depths.iter().zip(&mut bare) {
            let started = cpu_time();
            bare_loop::run(payload, *depth, &Answering).await?;
            times.push(nanos_each(cpu_time() - started, payload.events));
        }
    }
    heading("Stages: ns of CPU time per event", &[&format!("median of {rounds} rounds in turns")]);
    row("", ["up to here".to_owned(), "this stage".to_owned()]);
    print("path", &["parse", "dedup", "serialise, batch", "gzip", "all else (tasks, limits, answers)"], path);
    print("bare loop", &["parse", "serialise", "gzip"], bare);
    Ok(())
}

fn print(what: &str, names: &[&str], times: Vec<Vec<f64>>) {
    let mut before = 0.0;
    for (name, times) in names.iter().zip(times) {
        let here = median(times);
        row(&format!("{what}: {name}"), [format!("{here:.0}"), format!("{:.0}", here - before)]);
        before = here;
    }
}

/// Runs the path's parts by hand, shard by shard, as far as `stage`; answers the CPU time that took.
async fn up_to(stage: Stage, payload: &Payload) -> anyhow::Result<Duration> {
    let rules = event_rules();
    let budget = KeyBudget::new(5_000_000);
    let memory = Arc::new(Arc::new(Semaphore::new(1)).acquire_owned().await?);
    // Copied beforehand, as for the worker. Batches take records with them; stages before that give them up only
    // after the time is taken.
    let shards = payload.shards.clone();
    let mut kept = Vec::with_capacity(payload.events);
    let started = cpu_time();
    for (index, pages) in shards.into_iter().enumerate() {
        let shard = shard_id(index);
        let mut window = Window::new(Duration::from_secs(120), Arc::clone(&budget));
        let mut batcher = Batcher::new(batch_limits());
        for record in pages.into_iter().flatten() {
            let event = event::parse(&record, &shard, &rules).map_err(|rejection| anyhow::anyhow!("{rejection:?}"))?;
            if stage >= Stage::Dedup {
                black_box(window.insert(&event, record.arrived_at));
                window.settle(window.mark());
            }
            if stage < Stage::Serialise {
                black_box(event);
                kept.push(record);
                continue;
            }
            let pushed = batcher.push(&event).context("an event is larger than a batch")?;
            drop(event);
            batcher.advance(record, Duration::ZERO, Some(pushed), window.mark(), &memory);
            if batcher.is_full() {
                finish(&batcher.take().0, stage);
            }
        }
        finish(&batcher.take().0, stage);
    }
    Ok(cpu_time() - started)
}

fn finish(batch: &Batch, stage: Stage) {
    if stage >= Stage::Gzip {
        let items: Vec<usize> = (0..batch.items.len()).collect();
        black_box(batch.gzip(&items));
    }
}
