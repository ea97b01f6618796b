//! The way to Amberflo: paced, bounded, and kept in a log. It shares nothing with the pipeline's own client, so that a
//! misreading of the contract is not made twice.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use http::{HeaderMap, HeaderValue, Method, header};
use reqwest::redirect::Policy;
use serde_json::Value;
use shared::api_key::ApiKey;
use tokio::sync::Mutex;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};

use super::exchange::{Exchange, Log, brief, cut};

/// More of an answer is not read.
const ANSWER_BYTES: usize = 1024 * 1024;
/// Attempts of a request that is answered 429.
const ATTEMPTS: u32 = 3;
/// A `Retry-After` is honoured up to this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Why a probe has no verdict. It never holds the key.
#[derive(Debug)]
pub struct Unclear(pub String);

/// A request.
pub struct Call {
    pub method: Method,
    pub url: String,
    /// As it goes over the wire.
    pub body: Vec<u8>,
    /// As it is shown.
    pub shown: String,
    pub is_gzip: bool,
    /// Instead of the account's key.
    pub key: Option<HeaderValue>,
}

impl Call {
    pub fn new(method: Method, url: String) -> Self {
        Self { method, url, body: Vec::new(), shown: String::new(), is_gzip: false, key: None }
    }

    pub fn with_text(self, text: String) -> Self {
        Self { body: text.clone().into_bytes(), shown: text, ..self }
    }
}

/// An answer, whatever its status; the key is not in it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub is_html: bool,
    pub body: String,
}

impl Answer {
    /// A success that is not a page for people, such as a captive proxy shows.
    pub fn is_ok(&self) -> bool {
        (200..300).contains(&self.status) && !self.is_html
    }

    /// A refusal of this request itself: not of the key, and not for now only.
    pub fn is_refusal(&self) -> bool {
        (400..500).contains(&self.status) && ![401, 403, 408, 429].contains(&self.status)
    }

    /// Only where it says something of the request.
    pub fn usable(self) -> Result<Self, Unclear> {
        if self.is_ok() || self.is_refusal() { Ok(self) } else { Err(Unclear(format!("answered {}", self.brief()))) }
    }

    pub fn json(&self) -> Result<Value, Unclear> {
        serde_json::from_str(&self.body)
            .map_err(|error| Unclear(format!("answered {}: not JSON: {error}", self.brief())))
    }

    /// Status and beginning of the body.
    pub fn brief(&self) -> String {
        let page = if self.is_html { " (an HTML page)" } else { "" };
        format!("{}{page} {:?}", self.status, brief(&self.body))
    }
}

/// What was seen without being looked for.
#[derive(Debug, Default)]
pub struct Observed {
    pub requests: AtomicU64,
    pub throttled: AtomicU64,
    pub retry_after: AtomicU64,
    pub failed: AtomicU64,
}

pub struct Client {
    http: reqwest::Client,
    key: ApiKey,
    pace: Mutex<Interval>,
    max_requests: AtomicU64,
    pub observed: Observed,
}

impl Client {
    /// At most `rate` requests a second and `max_requests` in all.
    pub fn new(key: ApiKey, rate: f64, max_requests: u64, timeout: Duration) -> anyhow::Result<Self> {
        // An error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("sbt-amberflo-metering-verify/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .timeout(timeout)
            .build()
            .context("no HTTP client")?;
        let mut pace = interval(Duration::from_secs_f64(1.0 / rate));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { http, key, pace: Mutex::new(pace), max_requests: max_requests.into(), observed: Observed::default() })
    }

    /// Takes the bound away: cleaning up is never too much.
    pub fn lift_bound(&self) {
        self.max_requests.store(u64::MAX, Ordering::Relaxed);
    }

    /// A text without the key.
    pub fn redact(&self, text: &[u8]) -> String {
        let redacted = self.key.redacted(text);
        String::from_utf8_lossy(redacted.as_deref().unwrap_or(text)).into_owned()
    }

    /// One exchange, waited for in turn. Only a 429 is tried again: anything else may have been carried out.
    pub async fn exchange(&self, log: &Log, call: Call) -> Result<Answer, Unclear> {
        let mut attempt = 1;
        loop {
            let (answer, retry_after) = self.attempt(log, &call).await?;
            if answer.status != 429 || attempt == ATTEMPTS {
                return Ok(answer);
            }
            sleep(retry_after.unwrap_or(Duration::from_secs(1) * 2_u32.pow(attempt)).min(RETRY_AFTER_MAX)).await;
            attempt += 1;
        }
    }

    async fn attempt(&self, log: &Log, call: &Call) -> Result<(Answer, Option<Duration>), Unclear> {
        self.pace.lock().await.tick().await;
        let max = self.max_requests.load(Ordering::Relaxed);
        if self.observed.requests.fetch_add(1, Ordering::Relaxed) >= max {
            return Err(Unclear(format!("the {max} requests that were announced are used up")));
        }
        let started = Instant::now();
        let result = self.send(call).await;
        let mut exchange = Exchange {
            method: call.method.to_string(),
            url: self.redact(call.url.as_bytes()),
            sent_as: match (call.is_gzip, &call.key) {
                (_, Some(_)) => Some("with another key".to_owned()),
                (true, None) => Some(format!("{} bytes of gzip", call.body.len())),
                (false, None) => None,
            },
            request: cut(&self.redact(call.shown.as_bytes())),
            status: None,
            headers: BTreeMap::new(),
            answer: String::new(),
            took_ms: started.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
            times: 1,
        };
        match result {
            Err(error) => {
                self.observed.failed.fetch_add(1, Ordering::Relaxed);
                let reason = self.redact(chain(&error.without_url()).as_bytes());
                exchange.answer.clone_from(&reason);
                log.push(exchange);
                Err(Unclear(format!("no answer: {reason}")))
            }
            Ok((status, headers, body)) => {
                // The whole body, before anything is cut: a cut may leave a part of the key.
                let body = self.redact(&body);
                exchange.status = Some(status);
                exchange.answer = cut(&body);
                for name in ["content-type", "retry-after", "location"] {
                    if let Some(value) = headers.get(name) {
                        exchange.headers.insert(name, self.redact(value.as_bytes()));
                    }
                }
                let is_html = exchange.headers.get("content-type").is_some_and(|kind| kind.starts_with("text/html"));
                let retry_after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
                if status == 429 {
                    self.observed.throttled.fetch_add(1, Ordering::Relaxed);
                    self.observed.retry_after.fetch_add(u64::from(retry_after.is_some()), Ordering::Relaxed);
                }
                // A date is as good a reason to wait as long as is allowed.
                let retry_after =
                    retry_after.map(|text| text.trim().parse().map_or(RETRY_AFTER_MAX, Duration::from_secs));
                log.push(exchange);
                Ok((Answer { status, is_html, body }, retry_after))
            }
        }
    }

    async fn send(&self, call: &Call) -> reqwest::Result<(u16, HeaderMap, Vec<u8>)> {
        let key = call.key.clone().unwrap_or_else(|| self.key.header());
        let mut request = self.http.request(call.method.clone(), &call.url).header("x-api-key", key);
        if !call.body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json").body(call.body.clone());
        }
        if call.is_gzip {
            request = request.header(header::CONTENT_ENCODING, "gzip");
        }
        let mut answer = request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            body.extend_from_slice(&chunk[..chunk.len().min(ANSWER_BYTES - body.len())]);
            if body.len() == ANSWER_BYTES {
                break;
            }
        }
        Ok((status, headers, body))
    }
}

/// reqwest's own text stops at the first cause.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
