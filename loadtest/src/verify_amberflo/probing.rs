//! What a probe works with: an account of its own, as far as that goes, and a log of its own.

use std::io::Write as _;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::Method;
use serde_json::{Value, json};

use super::account::Account;
use super::client::{Answer, Call, Client, Unclear};
use super::exchange::Log;
use super::probe::Settings;
use super::usage::Settled;

/// What all probes of a run share.
pub struct Run {
    pub client: Client,
    pub base_url: String,
    pub ingest_url: String,
    pub settings: Settings,
    /// Begins all names of this run.
    pub prefix: String,
    /// The throwaway meter that takes the usage.
    pub meter: String,
    /// Begins the ids of the customers.
    pub customer: String,
    /// Milliseconds since the epoch.
    pub started: i64,
    pub account: Account,
}

impl Run {
    pub fn started_seconds(&self) -> i64 {
        self.started.div_euclid(1000)
    }
}

/// One probe at work.
pub struct Probing {
    pub run: Arc<Run>,
    pub id: &'static str,
    pub log: Log,
}

/// A usage record, written in the order of its fields.
#[derive(Clone, Debug)]
pub struct Record {
    pub customer: String,
    pub meter: String,
    pub time: i64,
    pub value: u64,
    pub unique_id: String,
    pub region: String,
    /// More dimensions, as JSON members: empty, or beginning with a comma.
    pub more_dimensions: String,
}

impl Record {
    pub fn text(&self) -> String {
        let Self { customer, meter, time, value, unique_id, region, more_dimensions } = self;
        format!(
            r#"{{"customerId":"{customer}","meterApiName":"{meter}","meterTimeInMillis":{time},"meterValue":{value},"uniqueId":"{unique_id}","dimensions":{{"region":"{region}"{more_dimensions}}}}}"#
        )
    }

    /// The same attributes, with keys in another order and white space between them.
    pub fn text_reordered(&self) -> String {
        let Self { customer, meter, time, value, unique_id, region, more_dimensions } = self;
        format!(
            r#"{{ "dimensions": {{ "region": "{region}"{more_dimensions} }}, "uniqueId": "{unique_id}", "meterValue": {value}, "meterTimeInMillis": {time}, "meterApiName": "{meter}", "customerId": "{customer}" }}"#
        )
    }
}

impl Probing {
    /// The customer of this probe.
    pub fn customer(&self) -> String {
        format!("{}-{}", self.run.customer, self.id)
    }

    /// Registers it, so that its usage is not that of a stranger.
    pub async fn register_customer(&self) -> Result<(), Unclear> {
        let id = self.customer();
        self.run.account.remember_customer(&id);
        let customer = json!({ "customerId": id, "customerName": id });
        let answer = self.api(Method::POST, "/customers", Some(customer)).await?;
        if answer.is_ok() {
            return Ok(());
        }
        // One that is not ours must not be switched off.
        self.run.account.forget_customer(&id);
        Err(Unclear(format!("no customer: answered {}", answer.brief())))
    }

    /// A record whose value is one followed by `slot` zeros: a digit of the sum of all tells how often it counts.
    pub fn record(&self, slot: u32) -> Record {
        Record {
            customer: self.customer(),
            meter: self.run.meter.clone(),
            // In the past whatever the clocks, and recent enough to be processed at once.
            time: self.run.started - 60_000,
            value: 10_u64.pow(slot),
            unique_id: format!("{}-{}-{slot}", self.run.prefix, self.id),
            region: "eu".to_owned(),
            more_dimensions: String::new(),
        }
    }

    /// Sends an array of records that must be taken for the probe to go on.
    pub async fn send(&self, records: &[&Record]) -> Result<Answer, Unclear> {
        let texts: Vec<_> = records.iter().map(|record| record.text()).collect();
        self.taken(&format!("[{}]", texts.join(","))).await
    }

    /// Sends a body that must be taken for the probe to go on.
    pub async fn taken(&self, body: &str) -> Result<Answer, Unclear> {
        let answer = self.ingest(body).await?;
        if answer.is_ok() { Ok(answer) } else { Err(Unclear(format!("not taken: {}", answer.brief()))) }
    }

    /// Sends a body; the answer is a success or a refusal of this body.
    pub async fn ingest(&self, body: &str) -> Result<Answer, Unclear> {
        self.ingest_raw(body).await?.usable()
    }

    /// Sends a body, whatever the answer.
    pub async fn ingest_raw(&self, body: &str) -> Result<Answer, Unclear> {
        self.run.client.exchange(&self.log, self.ingestion().with_text(body.to_owned())).await
    }

    /// Sends a compressed body.
    pub async fn ingest_gzip(&self, body: &str, level: u32) -> Result<Answer, Unclear> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
        let compressed = encoder.write_all(body.as_bytes()).and_then(|()| encoder.finish());
        let compressed = compressed.map_err(|error| Unclear(format!("gzip: {error}")))?;
        let call = Call { body: compressed, shown: body.to_owned(), is_gzip: true, ..self.ingestion() };
        self.run.client.exchange(&self.log, call).await?.usable()
    }

    pub fn ingestion(&self) -> Call {
        Call::new(Method::POST, format!("{}/ingest", self.run.ingest_url))
    }

    /// Any other operation; the answer is a success or a refusal of this request.
    pub async fn api(&self, method: Method, path: &str, body: Option<Value>) -> Result<Answer, Unclear> {
        self.api_raw(method, path, body).await?.usable()
    }

    /// Any other operation, whatever the answer.
    pub async fn api_raw(&self, method: Method, path: &str, body: Option<Value>) -> Result<Answer, Unclear> {
        let call = Call::new(method, format!("{}{path}", self.run.base_url));
        let call = body.map(|body| body.to_string()).into_iter().fold(call, Call::with_text);
        self.run.client.exchange(&self.log, call).await
    }

    /// How often each record counts, in order of their slots, once a record that was sent after them all does. `expected`
    /// has a number for each slot.
    pub async fn counts(&self, expected: &[u64]) -> Result<Vec<u64>, Unclear> {
        let slots = expected.len() as u32;
        let sum = (0..).zip(expected).map(|(slot, times)| times * 10_u64.pow(slot)).sum();
        let sum = self.settled_after_marker(slots, sum).await?.sum;
        if sum / 10_u64.pow(slots) != 1 {
            return Err(Unclear(format!("usage is {sum}: the marker {} does not count once", 10_u64.pow(slots))));
        }
        Ok((0..slots).map(|slot| sum / 10_u64.pow(slot) % 10).collect())
    }

    /// Sends a record of its own, the marker, and waits until it and all before it, `expected` in sum, show.
    pub async fn settled_after_marker(&self, slot: u32, expected: u64) -> Result<Settled, Unclear> {
        let marker = self.record(slot);
        self.send(&[&marker]).await?;
        self.settled(&self.run.meter, &self.customer(), marker.value, marker.value + expected).await
    }
}
