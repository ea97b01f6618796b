//! What Amberflo shows of its bill: totals by `/usage`, and events by `/usage/events` where it has them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use amberflo_sandbox::{LedgerLine, LedgerSnapshot, StoredRecord, Total};
use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use shared::amberflo::{ApiError, Call, Client, Decision, HttpTransport};
use shared::backends::api_keys;
use shared::clock::Clock;
use shared::settings::AmberfloArgs;
use tokio::time::sleep;

use super::Shown;
use crate::audit::Bill;
use crate::truth::Truth;

const TIMEOUT: Duration = Duration::from_secs(60);
const MAX_ANSWER_BYTES: usize = 64 << 20;
const PAGE: usize = 1000;
/// The waits before a call that failed is made again.
const WAITS: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(10), Duration::from_secs(30)];
/// Events may be some time older than the run, and clocks differ.
const MARGIN_SECONDS: i64 = 3600;

/// An Amberflo account.
pub struct Amberflo {
    client: Client,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Usage {
    client_meters: Vec<ClientMeter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientMeter {
    group: Group,
    group_value: f64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    group_info: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Events {
    columns: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
    next_page_token: Option<String>,
}

/// What of a run is asked for.
struct Asked {
    tenants: BTreeSet<String>,
    meters: BTreeSet<String>,
    /// Names of dimensions; other columns are Amberflo's own.
    dimensions: BTreeSet<String>,
    start: i64,
    end: i64,
}

impl Amberflo {
    /// The account of this key.
    ///
    /// # Errors
    /// The setting that is missing or wrong.
    pub async fn open(args: &AmberfloArgs) -> anyhow::Result<Self> {
        args.check()?;
        let keys = api_keys(args.key()?).await?;
        // The client asks for a TLS provider. An error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let transport = HttpTransport::new(TIMEOUT)?.with_whole_answers(MAX_ANSWER_BYTES);
        let client = Client::new(Box::new(transport), &args.amberflo_base_url, keys.subscribe(), Clock::system());
        Ok(Self { client })
    }

    /// Everything that can be seen of this run.
    ///
    /// # Errors
    /// When Amberflo does not answer, or in a form that is not known.
    pub(super) async fn show(&self, truth: &Truth) -> anyhow::Result<Shown> {
        let asked = Asked::of(truth);
        let mut bill = Bill { is_rounded: true, ..Bill::default() };
        let mut blind_spots = vec![
            "Amberflo does not show which copies it absorbed, nor when a record was ingested: nothing is said of late \
             events or of how much its deduplication had to do"
                .to_owned(),
            "usage shows some time after its ingestion, of some kinds within a day: what is missing may still come, and so \
             may a second bill for what is there; audit again later"
                .to_owned(),
        ];
        let mut lines = Vec::new();
        for meter in &asked.meters {
            lines.extend(self.totals(meter, &asked).await?);
            match self.events(meter, &asked).await {
                Ok(records) => bill.records.extend(records),
                Err(reason) => {
                    blind_spots.push(format!(
                        "the events of meter {meter} are not shown ({reason:#}; Amberflo shows none of squashed and very \
                         busy meters): it was judged by the total of each tenant alone, in which an event that is lost \
                         and one that is billed twice can make up for each other"
                    ));
                    bill.sums_only.insert(meter.clone());
                }
            }
        }
        bill.ledger = LedgerSnapshot { lines, ..LedgerSnapshot::default() };
        Ok(Shown { bill, blind_spots, has_times: false })
    }

    /// The total of each tenant of the run.
    async fn totals(&self, meter: &str, asked: &Asked) -> anyhow::Result<Vec<LedgerLine>> {
        let query = json!({
            "meterApiName": meter, "timeGroupingInterval": "DAY", "aggregation": "SUM", "groupBy": ["customerId"],
            "timeRange": {"startTimeInSeconds": asked.start, "endTimeInSeconds": asked.end},
        });
        let what = || format!("the usage of meter {meter}");
        let body = self.call(Method::POST, "/usage", &[], query.to_string().into()).await.with_context(what)?;
        let usage: Usage = serde_json::from_slice(&body).with_context(what)?;
        let line = |client_meter: ClientMeter| {
            let customer_id = client_meter.group.group_info.get("customerId")?.clone();
            let total = Total { integers: 0, decimals: client_meter.group_value };
            let events = u64::from(client_meter.group_value != 0.0);
            let meter_api_name = meter.to_owned();
            Some(LedgerLine { customer_id, meter_api_name, events, total, absorbed_copies: 0 })
        };
        let lines = usage.client_meters.into_iter().filter_map(line);
        // Other customers' usage is theirs.
        Ok(lines.filter(|line| asked.tenants.contains(&line.customer_id)).collect())
    }

    /// The events of the run's tenants.
    async fn events(&self, meter: &str, asked: &Asked) -> anyhow::Result<Vec<StoredRecord>> {
        let (start, end, page) = (asked.start.to_string(), asked.end.to_string(), PAGE.to_string());
        let asked_for = [
            ("meterApiName", meter),
            ("startTimeInSeconds", start.as_str()),
            ("endTimeInSeconds", end.as_str()),
            ("pageSize", page.as_str()),
        ];
        let (mut records, mut token): (Vec<StoredRecord>, Option<String>) = (Vec::new(), None);
        loop {
            let mut query = asked_for.to_vec();
            query.extend(token.as_deref().map(|token| ("nextPageToken", token)));
            let body = self.call(Method::GET, "/usage/events", &query, Bytes::new()).await?;
            let events: Events = serde_json::from_slice(&body)?;
            let columns = Columns::find(&events.columns)?;
            for row in events.rows {
                records.extend(columns.record(row, records.len() as u64, meter, asked)?);
            }
            let next = events.next_page_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(records);
            }
            ensure!(next != token, "a page leads to itself");
            token = next;
        }
    }

    /// Makes a call, and makes it again where that may help.
    async fn call(
        &self,
        method: Method,
        path: &'static str,
        query: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Bytes, ApiError> {
        let call = Call { operation: "audit", method, path, id: None, query, body };
        for wait in WAITS {
            match self.client.call(&call).await {
                Err(error) if may_pass(&error) => sleep(wait).await,
                result => return result,
            }
        }
        self.client.call(&call).await
    }
}

fn may_pass(error: &ApiError) -> bool {
    let is_certain =
        error.status.is_some_and(|status| status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS);
    !is_certain && !matches!(error.decision, Decision::Pause)
}

impl Asked {
    fn of(truth: &Truth) -> Self {
        let now = Clock::system().now() / 1000;
        let sent = |event: &crate::truth::ValidEvent| {
            let first = event.variants.iter().filter_map(|variant| variant.sent).min();
            let first = first.map(|sent| sent.as_secs() as i64);
            event.time.map(|time| time / 1000).into_iter().chain(first).min()
        };
        let start = truth.valid.iter().filter_map(sent).min().unwrap_or(now);
        Self {
            tenants: truth.valid.iter().map(|event| event.tenant.clone()).collect(),
            meters: truth.valid.iter().map(|event| event.meter.to_string()).collect(),
            dimensions: truth.valid.iter().flat_map(|event| event.dimensions.keys().cloned()).collect(),
            start: start - MARGIN_SECONDS,
            end: now + MARGIN_SECONDS,
        }
    }
}

/// Where in a row something is.
struct Columns<'a> {
    names: &'a [String],
    unique_id: usize,
    customer_id: usize,
    value: usize,
    time: usize,
}

impl<'a> Columns<'a> {
    /// The names of columns are Amberflo's to choose: those of an ingested record are looked for, in any case.
    fn find(names: &'a [String]) -> anyhow::Result<Self> {
        let find = |wanted: &str| {
            let place = names.iter().position(|name| name.eq_ignore_ascii_case(wanted));
            place.with_context(|| format!("there is no column {wanted} among {names:?}"))
        };
        Ok(Self {
            names,
            unique_id: find("uniqueId")?,
            customer_id: find("customerId")?,
            value: find("meterValue")?,
            time: find("meterTimeInMillis")?,
        })
    }

    /// The record of a row, where its customer is one of the run's.
    fn record(
        &self,
        row: Vec<Option<String>>,
        index: u64,
        meter: &str,
        asked: &Asked,
    ) -> anyhow::Result<Option<StoredRecord>> {
        let cell = |place: usize| row.get(place).cloned().flatten();
        let Some(customer_id) = cell(self.customer_id).filter(|customer| asked.tenants.contains(customer)) else {
            return Ok(None);
        };
        let named = self.names.iter().zip(&row).filter(|(name, _)| asked.dimensions.contains(*name));
        let dimensions = named.filter_map(|(name, value)| Some((name.clone(), value.clone()?))).collect();
        let time = cell(self.time).and_then(|time| time.parse().ok());
        // Left out, it would look like an event that is lost.
        let (Some(value), Some(time_millis)) = (cell(self.value), time) else {
            bail!("a row without a value or a time in milliseconds: {row:?}")
        };
        Ok(Some(StoredRecord {
            index,
            at: Duration::ZERO,
            customer_id,
            meter_api_name: meter.to_owned(),
            time_millis,
            value: Some(plain(value)),
            unique_id: cell(self.unique_id),
            dimensions,
            raw: row.iter().map(|cell| cell.as_deref().unwrap_or("")).collect::<Vec<_>>().join(","),
            copies: 0,
        }))
    }
}

/// `5.0` is 5, and `4.2E9` is 4200000000, whoever writes it; digits without point or exponent stay as they are.
fn plain(value: String) -> String {
    match value.parse::<f64>() {
        Ok(number) if value.contains(['.', 'e', 'E']) => number.to_string(),
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_the_same_in_every_notation() {
        let notations = [
            ("5", "5"),
            ("5.0", "5"),
            ("4.999999999E9", "4999999999"),
            ("5e-1", "0.5"),
            ("499.250", "499.25"),
            ("9007199254740993", "9007199254740993"),
            ("no number.", "no number."),
        ];
        for (given, expected) in notations {
            assert_eq!(plain(given.to_owned()), expected);
        }
    }
    #[test]
    fn a_row_that_cannot_be_read_is_an_error_unless_it_is_of_others() {
        let names = ["uniqueId", "customerId", "meterValue", "meterTimeInMillis"].map(str::to_owned);
        let columns = Columns::find(&names).unwrap();
        let asked = Asked {
            tenants: ["acme".to_owned()].into(),
            meters: BTreeSet::new(),
            dimensions: BTreeSet::new(),
            start: 0,
            end: 0,
        };
        let read = |row: [&str; 4]| columns.record(row.map(|cell| Some(cell.to_owned())).to_vec(), 0, "calls", &asked);
        assert_eq!(read(["a", "acme", "5.0", "7"]).unwrap().unwrap().value.as_deref(), Some("5"));
        assert!(read(["a", "other", "", "yesterday"]).unwrap().is_none());
        let error = read(["a", "acme", "5", "yesterday"]).unwrap_err().to_string();
        assert!(error.contains("yesterday"), "{error}");
    }
}
