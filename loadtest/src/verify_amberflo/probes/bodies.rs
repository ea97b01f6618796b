//! Which forms and sizes of a request Amberflo takes.

use std::sync::Arc;

use crate::verify_amberflo::client::Unclear;
use crate::verify_amberflo::probe::{Cost, Evidence, Finding, Probe, Settings, Sureness};
use crate::verify_amberflo::probing::{Probing, Record};

/// What a worker sends at most by default: BATCH_MAX_EVENTS and BATCH_MAX_BYTES.
pub const BATCH_RECORDS: usize = 1_000;
pub const BATCH_BYTES: usize = 1024 * 1024;

const RECORD_STEPS: [usize; 7] = [100, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000];
const BYTE_STEPS: [usize; 6] = [256 * 1024, 1 << 20, 4 << 20, 8 << 20, 16 << 20, 32 << 20];
/// A value long enough to make few records a large body.
const PADDING: usize = 1_000;
/// The place of the records beyond what a worker sends, above any number of the others.
const BEYOND: u32 = 4;
/// The marker's place, above any number of all of them.
const MARKER: u32 = 12;

pub const PROBES: &[Probe] = &[
    Probe {
        id: "gzip",
        sureness: Sureness::Stated,
        claim: "A body may be compressed with gzip.",
        does: "Sends a record in a compressed request.",
        confirmed_if: "It is taken, and counts once.",
        refuted_if: "It is refused, or does not count.",
        if_refuted: "The worker compresses every request: nothing would be delivered.",
        cost: |settings| Cost::billed(1, 1, settings),
        run: |at| Box::pin(gzip(at)),
    },
    Probe {
        id: "ndjson",
        sureness: Sureness::Stated,
        claim: "A body may be records one after another, each on its line.",
        does: "Sends two records as NDJSON.",
        confirmed_if: "Both are taken, and count.",
        refuted_if: "They are refused, or do not count.",
        if_refuted: "None: the worker sends arrays.",
        cost: |settings| Cost::billed(2, 1, settings),
        run: |at| Box::pin(ndjson(at)),
    },
    Probe {
        id: "single-object",
        sureness: Sureness::Stated,
        claim: "A body may be a single record, without an array around it.",
        does: "Sends a record so.",
        confirmed_if: "It is taken, and counts.",
        refuted_if: "It is refused, or does not count.",
        if_refuted: "None: the worker sends arrays, also of one record.",
        cost: |settings| Cost::billed(1, 1, settings),
        run: |at| Box::pin(single_object(at)),
    },
    Probe {
        id: "batch-size",
        sureness: Sureness::Assumed,
        claim: "A request may hold 1,000 records, as the worker's by default; no limit is published.",
        does: "Sends 100, 1,000, 5,000, 10,000 ... records in a request each, up to --max-records.",
        confirmed_if: "All requests of up to 1,000 are taken, and all records that were taken count.",
        refuted_if: "One of them is refused, or some records do not count.",
        if_refuted: "Set BATCH_MAX_EVENTS to what is taken. (A 413 is handled: the worker halves the batch and remembers.)",
        cost: |settings| {
            let steps = record_steps(settings);
            Cost::billed(steps.iter().sum::<usize>() as u64, steps.len() as u64, settings)
        },
        run: |at| Box::pin(batch_size(at)),
    },
    Probe {
        id: "body-size",
        sureness: Sureness::Assumed,
        claim: "A request may have a body of 1 MiB, as the worker's by default; no limit is published.",
        does: "Sends bodies of 256 KiB, 1 MiB, 4 MiB ..., not compressed, up to --max-bytes.",
        confirmed_if: "All up to 1 MiB are taken, and all records that were taken count.",
        refuted_if: "One of them is refused, or some records do not count.",
        if_refuted: "Set BATCH_MAX_BYTES to what is taken. (A 413 is handled: the worker halves the batch and remembers.)",
        cost: |settings| {
            let steps = byte_steps(settings);
            let records: usize = steps.iter().map(|bytes| bytes / PADDING).sum();
            Cost::billed(records as u64, steps.len() as u64, settings)
        },
        run: |at| Box::pin(body_size(at)),
    },
];

async fn gzip(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let answer = at.ingest_gzip(&format!("[{}]", at.record(0).text()), 6).await?;
    if !answer.is_ok() {
        return Ok(Evidence::Refuted(answer.brief()));
    }
    all_count(&at, 1).await
}

async fn ndjson(at: Arc<Probing>) -> Finding {
    let body = format!("{}\n{}\n", at.record(0).text(), at.record(1).text());
    taken_as(&at, &body, 2).await
}

async fn single_object(at: Arc<Probing>) -> Finding {
    let body = at.record(0).text();
    taken_as(&at, &body, 1).await
}

async fn taken_as(at: &Probing, body: &str, records: usize) -> Finding {
    at.register_customer().await?;
    let answer = at.ingest(body).await?;
    if !answer.is_ok() {
        return Ok(Evidence::Refuted(answer.brief()));
    }
    all_count(at, records).await
}

async fn all_count(at: &Probing, records: usize) -> Finding {
    let counts = at.counts(&vec![1; records]).await?;
    Ok(Evidence::of(counts.iter().all(|count| *count == 1), format!("taken, counting {counts:?} times")))
}

fn record_steps(settings: &Settings) -> Vec<usize> {
    steps(&RECORD_STEPS, settings.max_records)
}

fn byte_steps(settings: &Settings) -> Vec<usize> {
    steps(&BYTE_STEPS, settings.max_bytes)
}

/// Those that are allowed, and what is allowed itself.
fn steps(all: &[usize], max: usize) -> Vec<usize> {
    let mut steps: Vec<_> = all.iter().copied().filter(|step| *step < max).collect();
    steps.push(max);
    steps
}

async fn batch_size(at: Arc<Probing>) -> Finding {
    let steps = record_steps(&at.run.settings);
    growing(&at, &steps, BATCH_RECORDS, "records", |size, slot| {
        let records: Vec<_> = (0..size).map(|nth| record(&at, slot, size, nth).text()).collect();
        (format!("[{}]", records.join(",")), size as u64)
    })
    .await
}

async fn body_size(at: Arc<Probing>) -> Finding {
    let steps = byte_steps(&at.run.settings);
    growing(&at, &steps, BATCH_BYTES, "bytes", |size, slot| padded(&at, slot, size)).await
}

/// Sends requests of growing size until one is not taken, and sees whether all that were taken count. Only what happens
/// up to `needed` refutes; beyond, it is said how far Amberflo goes.
async fn growing(
    at: &Probing,
    sizes: &[usize],
    needed: usize,
    unit: &str,
    body: impl Fn(usize, u32) -> (String, u64),
) -> Finding {
    at.register_customer().await?;
    let (mut within, mut beyond, mut largest) = (0, 0, 0);
    // Of the request beyond of which is not known whether it was taken.
    let mut doubtful = 0;
    let mut stopped = String::new();
    for &size in sizes {
        let (taken, slot) = if size <= needed { (&mut within, 0) } else { (&mut beyond, BEYOND) };
        let (body, records) = body(size, slot);
        match at.ingest(&body).await {
            Ok(answer) if answer.is_ok() => (*taken, largest) = (*taken + records, size),
            Ok(answer) if size <= needed => {
                return Ok(Evidence::Refuted(format!("{size} {unit}: {}", answer.brief())));
            }
            Ok(answer) => {
                stopped = format!("; {size}: {}", answer.brief());
                break;
            }
            Err(unclear) if size <= needed => return Err(unclear),
            Err(Unclear(reason)) => {
                doubtful = records;
                stopped = format!("; {size}: {reason}, which may be taken or not");
                break;
            }
        }
    }
    let expected = within + beyond * 10_u64.pow(BEYOND);
    let sum = at.settled_after_marker(MARKER, expected).await?.sum % 10_u64.pow(MARKER);
    let (counted_within, counted_beyond) = (sum % 10_u64.pow(BEYOND), sum / 10_u64.pow(BEYOND));
    let do_all_count = counted_within == within && (beyond..=beyond + doubtful).contains(&counted_beyond);
    let text = format!(
        "{largest} {unit} in a request are taken{stopped}; {} of {} records count",
        counted_within + counted_beyond,
        within + beyond
    );
    Ok(Evidence::of(do_all_count, text))
}

/// One of a request of its own.
fn record(at: &Probing, slot: u32, size: usize, nth: usize) -> Record {
    Record { unique_id: format!("{}-{}-{size}-{nth}", at.run.prefix, at.id), ..at.record(slot) }
}

/// An array of almost `size` bytes, and how many records it holds.
fn padded(at: &Probing, slot: u32, size: usize) -> (String, u64) {
    let mut body = String::with_capacity(size);
    let mut records = 0;
    loop {
        let record = Record { region: "x".repeat(PADDING), ..record(at, slot, size, records) }.text();
        if records > 0 && body.len() + record.len() + 2 > size {
            body.push(']');
            return (body, records as u64);
        }
        body.push(if records == 0 { '[' } else { ',' });
        body.push_str(&record);
        records += 1;
    }
}
