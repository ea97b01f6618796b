//! What the worker's status page shows: limits and what set them, leases with their lag, dead letters.

mod board;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use shared::backend::{Checkpoint, ShardId};
use shared::clock::Clock;
use shared::service::status::{
    Cell, Chart, Rate, Report, Samples, Setting, Table, View, bytes, count, decimal, seconds, timestamp,
};

use crate::context::Common;
use crate::limiter::Observed;
use crate::submit::BodyLimit;

pub use board::{Board, HeldLease};

/// The service level: an event is delivered within this time of its arrival.
const DELIVERED_WITHIN: f64 = 60.0;

const fn outcome(name: &'static str, outcome: &'static str) -> Rate {
    Rate { name, metric: "ingest_events_total", label: Some(("outcome", outcome)) }
}

const CHARTS: &[Chart] = &[
    Chart::Rates {
        title: "Records per second",
        rates: &[
            Rate { name: "read", metric: "ingest_records_read_total", label: None },
            outcome("delivered", "delivered"),
            outcome("duplicates", "duplicate"),
            outcome("dead letters", "dead_lettered"),
        ],
    },
    Chart::Times { title: "From arrival in the stream to delivery", metric: "ingest_delivery_latency_seconds" },
];

/// The page of a worker whose admin endpoint is at `address`.
#[must_use]
pub fn view(common: Arc<Common>, address: SocketAddr, settings: Vec<Setting>) -> View {
    View {
        service: "ingest-worker",
        address,
        facts: vec![
            ("Worker", common.worker.to_string()),
            ("Stream", common.stream_name.clone()),
            ("Process", std::process::id().to_string()),
        ],
        settings,
        charts: CHARTS,
        report: Box::new(move |samples| report(&common, samples)),
    }
}

fn report(common: &Common, samples: &Samples) -> Report {
    let limits = common.limiter.observe();
    Report {
        tiles: tiles(&limits, samples),
        tables: vec![
            limits_table(common, &limits, samples),
            shards(&common.board.leases(), samples, common.clock),
            latest_letters(&common.board),
            records(samples),
            letters_by_reason(samples),
            answers(samples),
        ],
    }
}

fn tiles(limits: &Observed, samples: &Samples) -> Vec<(&'static str, Cell)> {
    let worst = |metric: &'static str| {
        let worst = samples.series(metric).map(|(_, value)| value).fold(0.0, f64::max);
        Cell::of(format!("max({metric})"), worst, seconds).marked(worst > DELIVERED_WITHIN)
    };
    let delivered = samples.with("ingest_events_total", "outcome", "delivered");
    let letters = samples.with("ingest_events_total", "outcome", "dead_lettered");
    let (held, all) = (samples.get("ingest_leases_held").unwrap_or_default(), limits.shards.1);
    let mut tiles = vec![
        ("Worst lag", worst("ingest_shard_lag_seconds")),
        ("Oldest unsettled", worst("ingest_oldest_unsettled_seconds")),
        ("Delivered since start", Cell::of("ingest_events_total{outcome=\"delivered\"}", delivered, count)),
        (
            "Dead letters since start",
            Cell::of("ingest_events_total{outcome=\"dead_lettered\"}", letters, count).marked(letters > 0.0),
        ),
    ];
    if let Some(stored) = samples.get("ingest_dead_letter_queue_messages") {
        let stored = Cell::of("ingest_dead_letter_queue_messages", stored, count).marked(stored > 0.0);
        tiles.push(("Dead letters stored", stored));
    }
    tiles.push((
        "Leases held",
        Cell { text: format!("{held} of {all}"), ..Cell::of("ingest_leases_held", held, count) },
    ));
    tiles
}

fn limits_table(common: &Common, limits: &Observed, samples: &Samples) -> Table {
    let (held, all) = limits.shards;
    let ago = |time: Duration| format!("{} ago", seconds(time.as_secs_f64()));
    let sending = |text: &str| Cell {
        text: text.to_owned(),
        ..Cell::of("ingest_paused", samples.get("ingest_paused").unwrap_or_default(), count)
    };
    let sending = match &limits.pause {
        None => [sending("open"), Cell::text(""), Cell::text("Amberflo, which accepts our requests")],
        Some(pause) => [
            sending("paused").marked(true),
            Cell::text(""),
            Cell::text(format!(
                "Amberflo's answer {}: {}. One batch tries again in {}",
                ago(pause.lasted),
                pause.cause,
                seconds(pause.next_probe.as_secs_f64())
            )),
        ],
    };
    let retry_after = match limits.retry_after {
        None => [Cell::text("none"), Cell::text("5 min"), Cell::text("")],
        Some(left) => [
            Cell::text(format!("{} left", seconds(left.as_secs_f64()))).marked(true),
            Cell::text("5 min"),
            Cell::text("Amberflo asked for it; nobody sends until it is over"),
        ],
    };
    let rate = if limits.account_rate > 0.0 {
        [
            Cell::of("ingest_rate_limit_requests_per_second", limits.rate, decimal),
            Cell::text(decimal(limits.account_rate)),
            Cell::text(format!("RATE_REQUESTS_PER_SECOND × {held} held of {all} shards")),
        ]
    } else {
        [Cell::text("unlimited"), Cell::text(""), Cell::text("RATE_REQUESTS_PER_SECOND=0")]
    };
    let lowered = limits.last_cut.as_ref().map(|cut| (ago(cut.ago), cut));
    let concurrency = [
        Cell::of("ingest_concurrency_limit", f64::from(limits.concurrency), count)
            .marked(limits.concurrency < limits.max_in_flight),
        Cell::text(limits.max_in_flight.to_string()),
        Cell::text(match lowered {
            None => "MAX_IN_FLIGHT; not lowered since the start".to_owned(),
            Some((ago, cut)) => format!("lowered {ago} to {}, after: {}", cut.to, cut.cause),
        }),
    ];
    let body = match common.body_limit.learnt() {
        None => [Cell::text("no limit known"), Cell::text(""), Cell::text("no 413 in the last 10 min")],
        Some((limit, since)) => [
            Cell::text(bytes(limit as f64)).marked(true),
            Cell::text(""),
            Cell::text(format!(
                "a 413 of Amberflo {}; a larger one is tried in {}",
                ago(since),
                seconds(BodyLimit::MEMORY.saturating_sub(since).as_secs_f64())
            )),
        ],
    };
    let memory = [
        Cell::text(bytes(common.buffer.used() as f64)),
        Cell::text(bytes(common.buffer.size() as f64)),
        Cell::text("BUFFER_MAX_BYTES"),
    ];
    let keys = samples.get("ingest_dedup_keys").unwrap_or_default();
    let keys = [
        Cell::of("ingest_dedup_keys", keys, count),
        Cell::text(count(common.dedup_keys.max() as f64)),
        Cell::text("DEDUP_MAX_KEYS"),
    ];
    let row = |name: &str, [now, ceiling, by]: [Cell; 3]| vec![Cell::text(name), now, ceiling, by];
    let mut rows = vec![
        row("Sending", sending),
        row("Retry-After", retry_after),
        row("Requests per second", rate),
        row("Requests in flight", concurrency),
        row("Request body before gzip", body),
        row("Memory for unsettled records", memory),
        row("Dedup keys", keys),
    ];
    if let Some(ratio) = samples.get("ingest_meter_budget_max_ratio") {
        let now = Cell::of("ingest_meter_budget_max_ratio", ratio, |ratio| format!("{} %", decimal(100.0 * ratio)));
        let by = Cell::text("METER_HOURLY_BUDGET; it warns and does not brake");
        rows.push(row("Busiest meter, this hour", [now.marked(ratio > 0.8), Cell::text("100 %"), by]));
    }
    Table {
        title: "Limits",
        about: format!("{} requests are in flight.", limits.in_flight),
        columns: &["Limit", "Now", "Ceiling", "Set by"],
        rows,
        none: "",
    }
}

/// The leases, the slowest shards first.
fn shards(leases: &[(ShardId, HeldLease)], samples: &Samples, clock: Clock) -> Table {
    const LAG: &str = "ingest_shard_lag_seconds";
    const OLDEST: &str = "ingest_oldest_unsettled_seconds";
    let of_shards = |metric| -> HashMap<&str, f64> {
        samples.series(metric).filter_map(|(labels, value)| Some((labels.get("shard")?, value))).collect()
    };
    let (lags, oldest) = (of_shards(LAG), of_shards(OLDEST));
    let of = |values: &HashMap<&str, f64>, shard: &ShardId| values.get(&*shard.0).copied();
    let mut slowest_first: Vec<_> = leases.iter().collect();
    slowest_first.sort_by(|(a, _), (b, _)| {
        let [a, b] = [a, b].map(|shard| of(&lags, shard).unwrap_or_default());
        b.total_cmp(&a)
    });
    let rows = slowest_first.into_iter().map(|(shard, lease)| {
        let time = |metric: &str, value: Option<f64>| match value {
            None => Cell::text("not known yet"),
            Some(value) => {
                Cell::of(format!("{metric}{{shard=\"{shard}\"}}"), value, seconds).marked(value > DELIVERED_WITHIN)
            }
        };
        let checkpoint = lease.checkpoint.borrow().clone();
        let age = match &checkpoint {
            Checkpoint::Settled { arrived_at, .. } => {
                format!("{} ago", seconds(clock.since(*arrived_at).as_secs_f64()))
            }
            _ => "nothing yet".to_owned(),
        };
        let left = lease.fence.left();
        vec![
            Cell::text(shard.to_string()),
            time(LAG, of(&lags, shard)),
            time(OLDEST, of(&oldest, shard)),
            Cell::text(checkpoint.to_string()),
            Cell::text(age),
            Cell::text(timestamp(lease.since)),
            Cell::text(seconds(left.as_secs_f64())).marked(left.is_zero()),
        ]
    });
    Table {
        title: "Shards",
        about:
            "The leases that this worker holds, the slowest shard first. The checkpoint's age is that of the record at \
                it: on a shard without traffic it grows and means nothing."
                .to_owned(),
        columns: &[
            "Shard",
            "Lag",
            "Oldest unsettled",
            "Checkpoint",
            "Its record arrived",
            "Held since",
            "Lease valid for",
        ],
        rows: rows.collect(),
        none: "This worker holds no lease. The other workers hold all of them, or there are none to take.",
    }
}

/// They balance: read = all outcomes + in flight.
fn records(samples: &Samples) -> Table {
    const METRIC: &str = "ingest_events_total";
    let read = samples.get("ingest_records_read_total").unwrap_or_default();
    let outcomes = ["delivered", "duplicate", "dead_lettered", "released"];
    let outcomes = outcomes.map(|outcome| (outcome, samples.with(METRIC, "outcome", outcome)));
    let in_flight = samples.get("ingest_in_flight_records").unwrap_or_default();
    let in_flight = Cell::of("ingest_in_flight_records", in_flight, count);
    let [delivered, duplicates, letters, released] =
        outcomes.map(|(outcome, value)| Cell::of(format!("{METRIC}{{outcome=\"{outcome}\"}}"), value, count));
    let row = |name: &str, cell, meaning: &str| vec![Cell::text(name), cell, Cell::text(meaning)];
    Table {
        title: "Records since the start",
        about: String::new(),
        columns: &["Records", "Number", "Meaning"],
        rows: vec![
            row(
                "Read",
                Cell::of("ingest_records_read_total", read, count),
                "read from the stream: the sum of what follows",
            ),
            row("Delivered", delivered, "Amberflo took them"),
            row("Duplicates", duplicates, "copies of what was taken before"),
            row("Dead letters", letters, "stored with their reason, to be redriven"),
            row("Released", released, "handed back unsettled with a lease; read again by the next owner"),
            row("In flight", in_flight, "read, and nothing of the above yet"),
        ],
        none: "",
    }
}

fn letters_by_reason(samples: &Samples) -> Table {
    const METRIC: &str = "ingest_dead_letters_total";
    let reasons = samples.series(METRIC).filter_map(|(labels, value)| Some((labels.get("reason")?, value)));
    let mut reasons: Vec<_> = reasons.filter(|(_, value)| *value > 0.0).collect();
    reasons.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let row = |(reason, value): (&str, f64)| {
        vec![Cell::text(reason), Cell::of(format!("{METRIC}{{reason=\"{reason}\"}}"), value, count)]
    };
    Table {
        title: "Dead letters by reason, since the start",
        about: String::new(),
        columns: &["Reason", "Dead letters"],
        rows: reasons.into_iter().map(row).collect(),
        none: "None.",
    }
}

fn latest_letters(board: &Board) -> Table {
    let rows = board.letters().into_iter().map(|letter| {
        let cells = [letter.reason, letter.detail, letter.shard, letter.sequence_number];
        std::iter::once(timestamp(letter.at)).chain(cells).map(Cell::text).collect()
    });
    Table {
        title: "Latest dead letters",
        about: "Without payloads; ingest-worker dead-letters list prints them whole.".to_owned(),
        columns: &["Time", "Reason", "Detail", "Shard", "Sequence number"],
        rows: rows.collect(),
        none: "None since the start.",
    }
}

fn answers(samples: &Samples) -> Table {
    const METRIC: &str = "amberflo_requests_total";
    let mut series: Vec<_> = samples.series(METRIC).collect();
    series.sort_by_key(|(labels, _)| (labels.get("operation"), labels.get("outcome")));
    let rows = series.into_iter().filter_map(|(labels, value)| {
        let (operation, outcome) = (labels.get("operation")?, labels.get("outcome")?);
        let metric = format!("{METRIC}{{operation=\"{operation}\",outcome=\"{outcome}\"}}");
        Some(vec![Cell::text(outcome), Cell::text(operation), Cell::of(metric, value, count)])
    });
    Table {
        title: "Amberflo's answers, since the start",
        about: String::new(),
        columns: &["Answer", "Operation", "Requests"],
        rows: rows.collect(),
        none: "Nothing was asked yet.",
    }
}

#[cfg(test)]
mod tests;
