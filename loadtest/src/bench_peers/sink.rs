//! The HTTP sink that all peers deliver to: it takes `/ingest` as Amberflo does, counts, and does as little else as it can.
//!
//! It runs in a process of its own, on one thread. It decompresses, because it counts records and Amberflo's answer says
//! how many there were; it does not parse.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use axum::{Json, Router};
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http::request::Parts;
use http::{StatusCode, header};
use memchr::memmem::Finder;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::process::{Peer, announced};
use super::programs::client;
use crate::bench::measure::cpu_time;

/// Printed before the address, once it listens.
pub const ANNOUNCEMENT: &str = "Running on ";
const MAX_BODY: usize = 64 << 20;
/// Not for each request: to read the CPU time is a system call.
const SAMPLE_EVERY_MICROS: i64 = 1000;

/// What came since the last reset.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Requests.
    pub requests: u64,
    /// Bytes of requests: line, headers and body, as they were on the wire.
    pub wire_bytes: u64,
    /// Records.
    pub records: u64,
    /// When the latest request was taken, in Unix microseconds.
    pub last: i64,
    /// Where times are read: from when an event was due to its acceptance, in microseconds.
    pub latencies: Vec<i64>,
}

/// How far the sink was, and what that had cost it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// When the latest request was taken, in Unix microseconds.
    pub at: i64,
    /// Records since the last reset.
    pub records: u64,
    /// User and system time of the sink since its start.
    pub cpu: Duration,
}

/// The speed of a run without its ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Records a second.
    pub per_second: f64,
    /// The share of that time for which the sink was at work; it has one thread.
    pub sink_busy: f64,
}

/// What a reset begins.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Times {
    /// The `meterValue` of a record is when it was due, in Unix microseconds: its latency is kept where that is between
    /// these two.
    #[serde(default)]
    pub from: i64,
    /// The end.
    #[serde(default)]
    pub until: i64,
}

/// The sink, seen from the benchmark.
pub struct Sink {
    /// Where it listens.
    pub address: SocketAddr,
    http: reqwest::Client,
    _process: Peer,
}

impl Sink {
    /// Starts one.
    pub async fn start() -> anyhow::Result<Self> {
        let (process, address) = Peer::announcing(&["sink".into()]).await.context("the sink")?;
        let http = client()?;
        Ok(Self { address, http, _process: process })
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came since the last reset.
    pub async fn seen(&self) -> anyhow::Result<Seen> {
        let answer = self.http.get(format!("{}/seen", self.url())).send().await.context("the sink")?;
        Ok(serde_json::from_slice(&answer.error_for_status()?.bytes().await?)?)
    }

    /// The pace at which these records came, all that came since the last reset. `None`: they came in one request.
    pub async fn pace(&self, records: u64) -> anyhow::Result<Option<Pace>> {
        let answer = self.http.get(format!("{}/samples", self.url())).send().await.context("the sink")?;
        let samples: Vec<Sample> = serde_json::from_slice(&answer.error_for_status()?.bytes().await?)?;
        Ok(Pace::amid(&samples, records))
    }

    /// Lets every answer wait for so long from now on, as a service far away does.
    pub async fn delay(&self, duration: Duration) -> anyhow::Result<()> {
        let url = format!("{}/delay?millis={}", self.url(), duration.as_millis());
        self.http.post(url).send().await.context("the sink")?.error_for_status()?;
        Ok(())
    }

    /// Refuses deliveries with 503 from now on, and does not count them; or takes them again.
    pub async fn refuse(&self, refuses: bool) -> anyhow::Result<()> {
        let url = format!("{}/refuse?refuses={refuses}", self.url());
        self.http.post(url).send().await.context("the sink")?.error_for_status()?;
        Ok(())
    }

    /// Begins anew.
    pub async fn reset(&self, Times { from, until }: Times) -> anyhow::Result<()> {
        let url = format!("{}/reset?from={from}&until={until}", self.url());
        self.http.post(url).send().await.context("the sink")?.error_for_status()?;
        Ok(())
    }
}

impl Pace {
    /// Between the first and the last twentieth of the records: at the end the last batches wait for their linger.
    /// Between the first request and the last one where that was too short to be seen.
    fn amid(samples: &[Sample], records: u64) -> Option<Self> {
        let (from, until) = (records / 20, records - records / 20);
        let start = samples.iter().find(|sample| sample.records >= from);
        let end = samples.iter().rfind(|sample| sample.records <= until);
        Self::between(start, end).or_else(|| Self::between(samples.first(), samples.last()))
    }

    fn between(start: Option<&Sample>, end: Option<&Sample>) -> Option<Self> {
        let (start, end) = (start?, end?);
        let seconds = (end.at - start.at) as f64 / 1e6;
        (seconds > 0.0).then(|| Self {
            per_second: (end.records - start.records) as f64 / seconds,
            sink_busy: end.cpu.saturating_sub(start.cpu).as_secs_f64() / seconds,
        })
    }
}

/// The sink's side of its hidden subcommand.
pub async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    announced(listener.local_addr()?);
    let routes = Router::new()
        .route("/seen", get(seen))
        .route("/samples", get(samples))
        .route("/reset", post(reset))
        .route("/delay", post(delay))
        .route("/refuse", post(refuse))
        .fallback(ingest);
    let router = routes.layer(DefaultBodyLimit::disable()).with_state(Arc::<Shared>::default());
    let listener = listener.tap_io(|stream| {
        // Only costs time where it fails.
        let _ = stream.set_nodelay(true);
    });
    Ok(axum::serve(listener, router).await?)
}

#[derive(Default)]
struct Shared {
    counts: Mutex<Counts>,
    /// Of every answer.
    delay_millis: AtomicU64,
    refuses: AtomicBool,
}

#[derive(Default)]
struct Counts {
    seen: Seen,
    times: Times,
    samples: Vec<Sample>,
}

/// How long an answer waits.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Delay {
    millis: u64,
}

/// Whether deliveries are refused.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Refuse {
    refuses: bool,
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn seen(State(shared): State<Arc<Shared>>) -> Json<Seen> {
    Json(shared.counts().seen.clone())
}

async fn samples(State(shared): State<Arc<Shared>>) -> Json<Vec<Sample>> {
    let counts = shared.counts();
    let mut samples = counts.samples.clone();
    samples.push(counts.seen.sample());
    Json(samples)
}

async fn reset(State(shared): State<Arc<Shared>>, Query(times): Query<Times>) {
    *shared.counts() = Counts { times, ..Counts::default() };
}

async fn delay(State(shared): State<Arc<Shared>>, Query(Delay { millis }): Query<Delay>) {
    shared.delay_millis.store(millis, Ordering::Relaxed);
}

async fn refuse(State(shared): State<Arc<Shared>>, Query(Refuse { refuses }): Query<Refuse>) {
    shared.refuses.store(refuses, Ordering::Relaxed);
}

async fn ingest(State(shared): State<Arc<Shared>>, request: Request) -> (StatusCode, String) {
    let (head, body) = request.into_parts();
    if !head.uri.path().trim_end_matches('/').ends_with("/ingest") {
        return (StatusCode::NOT_FOUND, "not /ingest".to_owned());
    }
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return (StatusCode::BAD_REQUEST, "no body".to_owned());
    };
    if shared.refuses.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "an outage".to_owned());
    }
    let now = unix_micros();
    let Some(text) = decompressed(&head, &body) else {
        return (StatusCode::BAD_REQUEST, "invalid gzip".to_owned());
    };
    let records = Finder::new(br#""customerId""#).find_iter(&text).count() as u64;
    count(&mut shared.counts(), now, records, size(&head) + body.len() as u64, &text);
    let delay = shared.delay_millis.load(Ordering::Relaxed);
    if delay > 0 {
        sleep(Duration::from_millis(delay)).await;
    }
    (StatusCode::OK, format!("{records} records were ingested"))
}

impl Seen {
    fn sample(&self) -> Sample {
        Sample { at: self.last, records: self.records, cpu: cpu_time() }
    }
}

fn count(counts: &mut Counts, now: i64, records: u64, wire_bytes: u64, text: &[u8]) {
    let Counts { seen, times, samples } = counts;
    seen.last = now;
    seen.requests += 1;
    seen.records += records;
    seen.wire_bytes += wire_bytes;
    if samples.last().is_none_or(|sample| now >= sample.at + SAMPLE_EVERY_MICROS) {
        samples.push(seen.sample());
    }
    if times.until > times.from {
        let due = values(text).filter(|due| (times.from..times.until).contains(due));
        seen.latencies.extend(due.map(|due| now - due));
    }
}

/// Bytes of line and headers. Hyper keeps each header's name and value, but not the case of the names.
fn size(head: &Parts) -> u64 {
    let line = format!("{} {} HTTP/1.1\r\n\r\n", head.method, head.uri).len();
    let headers: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    (line + headers) as u64
}

fn decompressed(head: &Parts, body: &Bytes) -> Option<Bytes> {
    if head.headers.get(header::CONTENT_ENCODING).is_none_or(|encoding| encoding != "gzip") {
        return Some(body.clone());
    }
    let mut text = Vec::with_capacity(8 * body.len());
    MultiGzDecoder::new(&body[..]).take(MAX_BODY as u64).read_to_end(&mut text).ok()?;
    Some(text.into())
}

/// The whole part of each `meterValue`. Python puts a space after the colon.
fn values(text: &[u8]) -> impl Iterator<Item = i64> {
    const NAME: &[u8] = br#""meterValue":"#;
    memchr::memmem::find_iter(text, NAME).map(|at| {
        let value = text[at + NAME.len()..].trim_ascii_start();
        let digits = value.iter().take_while(|byte| byte.is_ascii_digit());
        digits.fold(0_i64, |number, digit| number.saturating_mul(10).saturating_add(i64::from(digit - b'0')))
    })
}

/// The wall time.
pub fn unix_micros() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_every_client_writes_them() {
        let text = br#"[{"meterValue":12,"a":1},{"meterValue": 345},{"meterValue":1790000000000000.0}]"#;
        assert_eq!(values(text).collect::<Vec<_>>(), [12, 345, 1_790_000_000_000_000]);
    }

    #[test]
    fn the_pace_is_that_of_the_middle() {
        let sample = |(millis, records, busy_millis): (i64, u64, u64)| Sample {
            at: millis * 1000,
            records,
            cpu: Duration::from_millis(busy_millis),
        };
        // A start, a steady second in which it is busy half of the time, and an end that waits.
        let samples = [(0, 10, 7), (500, 100, 100), (1000, 500, 350), (1500, 900, 600), (2500, 1000, 601)].map(sample);
        assert_eq!(Pace::amid(&samples, 1000), Some(Pace { per_second: 800.0, sink_busy: 0.5 }));
        let short = [(0, 500, 0), (500, 1000, 100)].map(sample);
        assert_eq!(Pace::amid(&short, 1000), Some(Pace { per_second: 1000.0, sink_busy: 0.2 }));
        assert_eq!(Pace::amid(&[(0, 1000, 0), (0, 1000, 1)].map(sample), 1000), None);
        assert_eq!(Pace::amid(&[], 1000), None);
    }
}
