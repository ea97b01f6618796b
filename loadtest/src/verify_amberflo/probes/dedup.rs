//! Which records Amberflo takes for copies of earlier ones: what the promise to bill nothing twice rests on.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::verify_amberflo::client::Unclear;
use crate::verify_amberflo::probe::{Cost, Evidence, Finding, Probe, Sureness};
use crate::verify_amberflo::probing::{Probing, Record};

pub const PROBES: &[Probe] = &[
    Probe {
        id: "repeat",
        sureness: Sureness::Stated,
        claim: "A record that is sent again, identical, counts once.",
        does: "Sends a record twice, in two requests, one after the other.",
        confirmed_if: "It counts once.",
        refuted_if: "It counts twice.",
        if_refuted: "Every retry, replay and redrive may bill again. Do not use this pipeline.",
        cost: |settings| Cost::billed(2, 2, settings),
        run: |at| Box::pin(repeat(at)),
    },
    Probe {
        id: "repeat-later",
        sureness: Sureness::Assumed,
        claim: "It still counts once when the copy comes later; how long Amberflo remembers is not published.",
        does: "Sends five records, and a copy of each after a growing time, the last after --patience.",
        confirmed_if: "Each counts once: Amberflo remembers for at least that long.",
        refuted_if: "A copy counts.",
        if_refuted: "What is sent again later than that bills again: a batch whose answer was lost, through an outage of that \
                     length; a replay after all workers stood still for so long; the redrive of an `unconfirmed` dead letter.",
        cost: |settings| {
            let repeats = settings.repeat_after.len() as u64;
            Cost::billed(2 * repeats, 1 + repeats, settings)
        },
        run: |at| Box::pin(repeat_later(at)),
    },
    Probe {
        id: "repeat-in-request",
        sureness: Sureness::Stated,
        claim: "Identical records in one request count once.",
        does: "Sends a request that holds a record twice.",
        confirmed_if: "It counts once.",
        refuted_if: "It counts twice.",
        if_refuted: "Copies that meet in a batch bill twice. The worker's window keeps copies out of a batch; with \
                     DEDUP_MAX_KEYS or DEDUP_WINDOW too small for the load it no longer does.",
        cost: |settings| Cost::billed(2, 1, settings),
        run: |at| Box::pin(repeat_in_request(at)),
    },
    Probe {
        id: "repeat-reordered",
        sureness: Sureness::Assumed,
        claim: "A copy with its keys in another order, and other white space, is still a copy.",
        does: "Sends a record, then the same with other bytes.",
        confirmed_if: "It counts once.",
        refuted_if: "It counts twice: bytes are compared, not values.",
        if_refuted: "None while all workers run one version: it writes identical bytes. An upgrade that changes the bytes of a \
                     record (a breaking release) must not run beside the old version, nor replay what that delivered.",
        cost: |settings| Cost::billed(2, 2, settings),
        run: |at| Box::pin(repeat_reordered(at)),
    },
    Probe {
        id: "repeat-recompressed",
        sureness: Sureness::Assumed,
        claim: "How a request is compressed does not matter to what is a copy.",
        does: "Sends a record plain, then compressed at two levels of gzip.",
        confirmed_if: "It counts once.",
        refuted_if: "It counts more than once.",
        if_refuted: "A copy in another batch, which is always compressed to other bytes, bills again. Do not use this pipeline.",
        cost: |settings| Cost::billed(3, 3, settings),
        run: |at| Box::pin(repeat_recompressed(at)),
    },
    Probe {
        id: "other-time",
        sureness: Sureness::Stated,
        claim: "The same `uniqueId` at another `meterTimeInMillis` counts again.",
        does: "Sends a record, then one that differs in its time only.",
        confirmed_if: "Both count.",
        refuted_if: "One counts.",
        if_refuted: "Better than assumed: a producer's retry without `meterTimeInMillis` would not bill twice. But events of \
                     one `uniqueId` that are meant to count twice do not.",
        cost: |settings| Cost::billed(2, 2, settings),
        run: |at| Box::pin(other_time(at)),
    },
    Probe {
        id: "other-value",
        sureness: Sureness::Stated,
        claim: "The same `uniqueId` with another `meterValue` counts again.",
        does: "Sends a record, then one that differs in its value only.",
        confirmed_if: "Both count.",
        refuted_if: "One counts; which one is said.",
        if_refuted: "A conflict that slips past the worker's window is settled by Amberflo in silence, for the first or for the \
                     last value: keep conflicts out of redrives.",
        cost: |settings| Cost::billed(2, 2, settings),
        run: |at| Box::pin(other_value(at)),
    },
    Probe {
        id: "other-dimension",
        sureness: Sureness::Stated,
        claim: "The same `uniqueId` with another dimension counts again.",
        does: "Sends a record, then one that differs in the value of a dimension only.",
        confirmed_if: "Both count.",
        refuted_if: "One counts.",
        if_refuted: "As for other-value: Amberflo keeps one of two conflicting events in silence.",
        cost: |settings| Cost::billed(2, 2, settings),
        run: |at| Box::pin(other_dimension(at)),
    },
];

async fn repeat(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let record = at.record(0);
    at.send(&[&record]).await?;
    at.send(&[&record]).await?;
    counts_once(&at).await
}

async fn repeat_in_request(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let record = at.record(0);
    at.send(&[&record, &record]).await?;
    counts_once(&at).await
}

async fn repeat_reordered(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let record = at.record(0);
    at.send(&[&record]).await?;
    at.taken(&format!("[{}]", record.text_reordered())).await?;
    counts_once(&at).await
}

async fn repeat_recompressed(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let record = at.record(0);
    at.send(&[&record]).await?;
    for level in [1, 9] {
        let answer = at.ingest_gzip(&format!("[{}]", record.text()), level).await?;
        if !answer.is_ok() {
            return Err(Unclear(format!("gzip is not taken: {}", answer.brief())));
        }
    }
    counts_once(&at).await
}

async fn counts_once(at: &Probing) -> Finding {
    match at.counts(&[1]).await?[0] {
        0 => Err(Unclear("it does not count at all, although a later record does".to_owned())),
        1 => Ok(Evidence::Confirmed("counts once".to_owned())),
        times => Ok(Evidence::Refuted(format!("counts {times} times"))),
    }
}

async fn repeat_later(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let delays = at.run.settings.repeat_after.clone();
    let records: Vec<Record> = (0..).zip(&delays).map(|(slot, _)| at.record(slot)).collect();
    at.send(&records.iter().collect::<Vec<_>>()).await?;
    let sent = Instant::now();
    let mut waited = Vec::new();
    for (record, delay) in records.iter().zip(&delays) {
        sleep_until(sent + *delay).await;
        let repeated = sent.elapsed();
        at.send(&[record]).await?;
        waited.push(repeated);
    }
    let counts = at.counts(&vec![1; records.len()]).await?;
    if counts.contains(&0) {
        return Err(Unclear(format!("some do not count at all: {counts:?} times")));
    }
    let of = |is_wanted: fn(u64) -> bool| {
        waited.iter().zip(&counts).filter(move |(_, count)| is_wanted(**count)).map(|(waited, _)| *waited)
    };
    let remembered = of(|count| count == 1).max().map_or_else(|| "not even the shortest time".to_owned(), rounded);
    Ok(match of(|count| count > 1).min() {
        None => Evidence::Confirmed(format!("remembered for at least {remembered}")),
        Some(forgotten) => {
            Evidence::Refuted(format!("a copy after {} counts (remembered: {remembered})", rounded(forgotten)))
        }
    })
}

fn rounded(duration: Duration) -> String {
    let millis = duration.as_millis() as u64;
    let unit = if millis >= 10_000 { 1_000 } else { 10 };
    humantime::format_duration(Duration::from_millis(millis - millis % unit)).to_string()
}

async fn other_time(at: Arc<Probing>) -> Finding {
    let record = at.record(0);
    both_count(&at, &record, &Record { time: record.time + 1_000, ..record.clone() }).await
}

async fn other_dimension(at: Arc<Probing>) -> Finding {
    let record = at.record(0);
    both_count(&at, &record, &Record { region: "us".to_owned(), ..record.clone() }).await
}

async fn both_count(at: &Probing, record: &Record, other: &Record) -> Finding {
    at.register_customer().await?;
    at.send(&[record]).await?;
    at.send(&[other]).await?;
    match at.counts(&[2]).await?[0] {
        2 => Ok(Evidence::Confirmed("both count".to_owned())),
        1 => Ok(Evidence::Refuted("only one of them counts".to_owned())),
        times => Err(Unclear(format!("they count {times} times"))),
    }
}

async fn other_value(at: Arc<Probing>) -> Finding {
    at.register_customer().await?;
    let record = at.record(0);
    at.send(&[&record]).await?;
    at.send(&[&Record { value: 10, ..record.clone() }]).await?;
    match at.counts(&[1, 1]).await?[..] {
        [1, 1] => Ok(Evidence::Confirmed("both count".to_owned())),
        [1, 0] => Ok(Evidence::Refuted("only the first value counts".to_owned())),
        [0, 1] => Ok(Evidence::Refuted("only the last value counts".to_owned())),
        ref other => Err(Unclear(format!("they count {other:?} times"))),
    }
}
