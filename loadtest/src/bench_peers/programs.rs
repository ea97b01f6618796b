//! The benchmark's own processes: hidden subcommands of this program.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use emulators::{CannedKinesis, CannedSettings, CannedShard};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use shared::amberflo::{HttpTransport, Transport, TransportError};
use shared::clock::Clock;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::process::announced;
use super::sink::{self, unix_micros};
use crate::bench::bare_loop::{self, BareLoop, Depth};
use crate::service_process::die_with_parent;

/// The hidden subcommand.
pub const PROGRAM: &str = "peer";

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const KEY: HeaderValue = HeaderValue::from_static("sandbox-key");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TIMEOUT: Duration = Duration::from_secs(30);
/// Requests of [`Program::OnePerEvent`] under way at a time.
const CONCURRENCY: usize = 8;

/// Records in an answer of the stand-in for Kinesis, which does not throttle: with events of 450 bytes, the five reads a
/// second that a shard allows give the 2 MB a second that it gives.
const PAGE: usize = 880;

/// A process of the benchmark.
#[derive(Debug, clap::Subcommand)]
pub enum Program {
    /// Takes what the others deliver.
    Sink,
    /// A stream with the events of a file.
    CannedKinesis { input: PathBuf, shards: usize },
    /// Parses, serialises, compresses and sends the events of a file.
    BareLoop { input: PathBuf, url: String },
    /// Sends the events of a file, each in a request of its own.
    OnePerEvent {
        input: PathBuf,
        url: String,
        limit: usize,
        /// Instead: so many a second, open-loop, until it is killed.
        rate: Option<u32>,
    },
}

/// The process's side of the hidden subcommand. One thread does all the work.
pub fn main(program: Program) -> anyhow::Result<()> {
    die_with_parent(PROGRAM);
    let work = move || tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(program.run());
    // Not on the caller's runtime, which has a thread for each core.
    std::thread::spawn(work).join().unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")))
}

impl Program {
    async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Sink => sink::serve().await,
            Self::CannedKinesis { input, shards } => canned_kinesis(&input, shards).await,
            Self::BareLoop { input, url } => bare_loop(&input, &url).await,
            Self::OnePerEvent { input, url, limit, rate: None } => one_per_event(&input, &url, limit).await,
            Self::OnePerEvent { input, url, limit, rate: Some(rate) } => at_a_rate(&input, &url, limit, rate).await,
        }
    }
}

fn lines(input: &Path) -> anyhow::Result<impl Iterator<Item = std::io::Result<Vec<u8>>>> {
    let file = File::open(input).with_context(|| format!("the events in {}", input.display()))?;
    Ok(BufReader::with_capacity(1 << 20, file).split(b'\n'))
}

async fn canned_kinesis(input: &Path, shards: usize) -> anyhow::Result<()> {
    let events = lines(input)?.collect::<Result<Vec<_>, _>>()?;
    let now = Clock::system().now();
    let shards = events.chunks(events.len().div_ceil(shards).max(1));
    let shard = |events: &[Vec<u8>]| CannedShard::new(now, events.iter().map(|event| ("tenant", event)));
    let settings = CannedSettings { page: PAGE, ..CannedSettings::default() };
    let kinesis = CannedKinesis::start(shards.map(shard).collect(), settings);
    drop(events);
    announced(kinesis.url.trim_start_matches("http://").parse()?);
    std::future::pending().await
}

async fn bare_loop(input: &Path, url: &str) -> anyhow::Result<()> {
    let transport = Posts { http: HttpTransport::new(TIMEOUT)?, url: format!("{url}/ingest").parse()? };
    let mut bare_loop = BareLoop::new(Depth::Send, &transport);
    for line in lines(input)? {
        bare_loop.take(&line?).await?;
    }
    bare_loop.end().await
}

/// Makes a POST of each compressed body.
struct Posts {
    http: HttpTransport,
    url: Uri,
}

#[async_trait]
impl Transport for Posts {
    async fn exchange(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        request.headers_mut().extend([
            (API_KEY, KEY),
            (CONTENT_TYPE, JSON),
            (CONTENT_ENCODING, HeaderValue::from_static("gzip")),
        ]);
        self.http.exchange(request).await
    }
}

async fn one_per_event(input: &Path, url: &str, limit: usize) -> anyhow::Result<()> {
    let (http, url) = (client()?, format!("{url}/ingest"));
    let mut posts = JoinSet::new();
    for line in lines(input)?.take(limit) {
        let body = serde_json::to_vec(&bare_loop::parse(&line?)?)?;
        if posts.len() >= CONCURRENCY {
            posts.join_next().await.transpose()?.transpose()?;
        }
        posts.spawn(post(http.clone(), url.clone(), body));
    }
    posts.join_all().await.into_iter().collect()
}

async fn at_a_rate(input: &Path, url: &str, limit: usize, rate: u32) -> anyhow::Result<()> {
    let (http, url) = (client()?, format!("{url}/ingest"));
    let events = lines(input)?.take(limit).collect::<Result<Vec<_>, _>>()?;
    let started = unix_micros();
    let mut posts = JoinSet::new();
    for (number, event) in events.iter().cycle().enumerate() {
        let due = started + number as i64 * 1_000_000 / i64::from(rate);
        let wait = u64::try_from(due - unix_micros()).unwrap_or_default();
        if wait > 0 {
            sleep(Duration::from_micros(wait)).await;
        }
        let mut record = bare_loop::parse(event)?;
        record.meter_value = due as f64;
        posts.spawn(post(http.clone(), url.clone(), serde_json::to_vec(&record)?));
        while let Some(posted) = posts.try_join_next() {
            posted??;
        }
    }
    Ok(())
}

/// A client with connections that are kept.
pub fn client() -> reqwest::Result<reqwest::Client> {
    // An error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().tcp_nodelay(true).timeout(TIMEOUT).build()
}

async fn post(http: reqwest::Client, url: String, body: Vec<u8>) -> anyhow::Result<()> {
    let request = http.post(url).header(API_KEY, KEY).header(CONTENT_TYPE, JSON).body(body);
    request.send().await?.error_for_status()?.bytes().await?;
    Ok(())
}
