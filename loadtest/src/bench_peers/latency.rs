//! How long an event is under way at a moderate rate: from when it was due to its acceptance by the sink.
//!
//! Open-loop: the events are due at fixed times, whatever became of those before them, so that a contender which falls
//! behind is charged for what it makes wait.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response};
use serde::Deserialize;
use serde_json::json;
use shared::amberflo::{HttpTransport, Transport as _};
use shared::clock::Clock;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::contender::Contender;
use super::inputs::Events;
use super::lab::{Job, Lab, Mode, Running};
use super::process::has_ended;
use super::sink::{Times, unix_micros};
use crate::bench::flow::{Fill, Flow};
use crate::bench::payload::Generator;

/// Events a second.
pub const RATE: u32 = 1000;
/// `kcl-rs` needs half a minute for its first delivery, and then a while for what came meanwhile.
const START_LIMIT: Duration = Duration::from_secs(90);
const WARM_UP: Duration = Duration::from_secs(3);
/// After the last event of interest was due: twice the longest linger.
const COOL_DOWN: Duration = Duration::from_secs(3);
/// PutEvents takes at most this many entries.
const ENTRIES: u32 = 10;
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Shards of the stand-in for Kinesis. One takes 1,000 records a second.
const SHARDS: usize = 1;

/// What one run showed, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// 99 % are below.
    pub p99: f64,
    /// The share of the events that were accepted before the run was over.
    pub accepted: f64,
}

/// Lets a contender deliver [`RATE`] events a second, and looks at `duration` of it.
pub async fn run(lab: &Lab, contender: Contender, events: &Events, duration: Duration) -> anyhow::Result<Latency> {
    let name = lab.fresh();
    let flow = if contender.reads_kinesis() { Some(Flow::start().await?) } else { None };
    if let Some(flow) = &flow {
        flow.add(&name, SHARDS, Fill::Steady { since: Clock::system().now(), per_second: RATE });
    }
    let kinesis = flow.as_ref().map(|flow| flow.url.as_str());
    let job = Job { target: lab.sink.address, events, kinesis, mode: Mode::Rate(RATE) };
    let launch = lab.launch(contender, &name, &job)?;
    lab.sink.reset(Times::default()).await?;
    let running = launch.start().await?;
    let feeding = async {
        match &running {
            Running::Service(service) if flow.is_none() => {
                let feeder = tokio::spawn(put_events(format!("http://{}/", service.listen())));
                AbortOnDropHandle::new(feeder).await?.context("it is not fed any more")
            }
            _ => std::future::pending().await,
        }
    };
    let process = running.id()?;
    let mut latencies = tokio::select! {
        latencies = latencies(lab, process, duration) => latencies,
        fed = feeding => Err(fed.err().unwrap_or_else(|| anyhow::anyhow!("there are no more events"))),
    }
    .with_context(|| launch.errors())?;
    drop(running);
    lab.clean(&name)?;
    latencies.sort_unstable();
    let expected = f64::from(RATE) * duration.as_secs_f64();
    // What was not accepted by now counts as the slowest.
    let at = |share: f64| {
        let latency = latencies.get((expected * share) as usize);
        latency.map_or(f64::INFINITY, |micros| *micros as f64 / 1000.0)
    };
    Ok(Latency { p50: at(0.5), p99: at(0.99), accepted: latencies.len() as f64 / expected })
}

/// Those of the events that are due in `duration`, in microseconds, once the contender delivers.
async fn latencies(lab: &Lab, process: u32, duration: Duration) -> anyhow::Result<Vec<i64>> {
    let deadline = Instant::now() + START_LIMIT;
    while lab.sink.seen().await?.requests == 0 {
        anyhow::ensure!(Instant::now() < deadline, "nothing is delivered within {START_LIMIT:?}");
        anyhow::ensure!(!has_ended(process), "it ended before it delivered anything");
        sleep(Duration::from_millis(100)).await;
    }
    let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    let from = unix_micros() + micros(WARM_UP);
    lab.sink.reset(Times { from, until: from + micros(duration) }).await?;
    sleep(WARM_UP + duration + COOL_DOWN).await;
    // What it left behind would count as events that are late.
    anyhow::ensure!(!has_ended(process), "it ended while it was measured");
    Ok(lab.sink.seen().await?.latencies)
}

/// Puts events on the local bus, [`ENTRIES`] a call.
async fn put_events(url: String) -> anyhow::Result<()> {
    let transport = Arc::new(HttpTransport::new(ATTEMPT_TIMEOUT)?);
    let mut generator = Generator::new();
    let started = unix_micros();
    let mut calls = JoinSet::new();
    for call in 0.. {
        let due = started + call * i64::from(ENTRIES) * 1_000_000 / i64::from(RATE);
        let wait = u64::try_from(due - unix_micros()).unwrap_or_default();
        if wait > 0 {
            sleep(Duration::from_micros(wait)).await;
        }
        let mut entry = || {
            let detail = generator.event_worth(&due.to_string()).detail;
            json!({ "Source": "saas.application.plane", "DetailType": "ingestUsage", "Detail": detail })
        };
        let body = json!({ "Entries": (0..ENTRIES).map(|_| entry()).collect::<Vec<_>>() }).to_string();
        let request = Request::builder()
            .method(Method::POST)
            .uri(&url)
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", "AWSEvents.PutEvents")
            .body(body.into())?;
        let transport = Arc::clone(&transport);
        calls.spawn(async move { accepted(&transport.exchange(request).await?) });
        while let Some(called) = calls.try_join_next() {
            called?.context("PutEvents")?;
        }
    }
    Ok(())
}

/// The fields of an answer to PutEvents that matter here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    failed_entry_count: u64,
}

/// Whether all entries of a call were.
fn accepted(response: &Response<Bytes>) -> anyhow::Result<()> {
    let (status, body) = (response.status(), String::from_utf8_lossy(response.body()));
    anyhow::ensure!(status.is_success(), "answered {status}: {body}");
    let Answer { failed_entry_count } = serde_json::from_str(&body).with_context(|| format!("answered {body}"))?;
    anyhow::ensure!(failed_entry_count == 0, "refused {failed_entry_count} of {ENTRIES} entries: {body}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_an_error_whether_of_the_call_or_of_an_entry() {
        let answer = |status: u16, body: &'static str| {
            accepted(&Response::builder().status(status).body(Bytes::from(body)).unwrap()).map_err(|e| e.to_string())
        };
        assert_eq!(answer(200, r#"{"FailedEntryCount":0,"Entries":[]}"#), Ok(()));
        assert!(answer(200, r#"{"FailedEntryCount":2,"Entries":[]}"#).unwrap_err().contains("refused 2 of 10"));
        assert!(answer(400, "no").unwrap_err().contains("400 Bad Request: no"));
    }
}
