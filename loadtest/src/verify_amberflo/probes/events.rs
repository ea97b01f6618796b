//! Raw events, asked for and read as `loadtest audit --ledger amberflo` does (`reconcile/amberflo.rs`): what that needs
//! more one day must be looked for here, too.

use std::sync::Arc;

use http::Method;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::verify_amberflo::account::LOOKS;
use crate::verify_amberflo::client::{Answer, Unclear};
use crate::verify_amberflo::probe::{Cost, Evidence, Finding, Probe, Sureness};
use crate::verify_amberflo::probing::{Probing, Record};
use crate::verify_amberflo::usage;

const HOUR_SECONDS: i64 = 3_600;
/// The audit's page.
const PAGE: usize = 1_000;
/// Pages of one event that are followed: one for each record that was sent, should copies be shown, and an empty last one.
const PAGES: u64 = 4;

pub const PROBES: &[Probe] = &[Probe {
    id: "raw-events",
    sureness: Sureness::Reported,
    claim: "`GET /usage/events` of a meter answers `columns` and `rows` of text for all its customers, page by page, with \
            columns `uniqueId`, `customerId`, `meterValue`, `meterTimeInMillis` and one for each dimension.",
    does: "Sends a record twice and another once to a meter of its own, waits until they are billed, and asks for the meter's \
           events as the audit does: without a customer, 1,000 in a page. Then it asks for one in a page, and for the pages \
           that follow.",
    confirmed_if: "Both are there each time, with their customer, value, time and dimension; how many rows, so whether copies \
                   are shown, is said.",
    refuted_if: "A refusal, another form, a column that is missing, another value in it, or no such rows within --patience; \
                 pages that end without one of them, or do not end.",
    if_refuted: "`loadtest audit --ledger amberflo` cannot read the events and judges totals alone, or finds events lost or \
                 misbilled that are not. The control API passes raw events on as they are, whatever their form.",
    cost: |settings| {
        // The customer, and two requests of records.
        let requests = 3 + 2 * usage::polls(settings) + PAGES;
        let sent = Cost { records: 3, customers: 1, ..Cost::requests(requests) };
        Cost::meters(1, 1 + LOOKS).plus(sent)
    },
    run: |at| Box::pin(raw_events(at)),
}];

/// As the audit reads it: anything else is an error to it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Events {
    columns: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
    next_page_token: Option<String>,
}

impl Events {
    /// What an answer holds, or why the audit cannot read it.
    fn read(answer: &Answer) -> Result<Self, String> {
        if !answer.is_ok() {
            return Err(answer.brief());
        }
        serde_json::from_str(&answer.body).map_err(|error| format!("{error}: {}", answer.brief()))
    }

    /// Where a column is. The audit looks for it in any case.
    fn column(&self, wanted: &str) -> Result<usize, String> {
        let place = self.columns.iter().position(|name| name.eq_ignore_ascii_case(wanted));
        place.ok_or_else(|| format!("no column {wanted} among {:?}", self.columns))
    }

    /// How many rows each record has; or what the audit would not find, or find to be another.
    fn rows_of(&self, [first, second]: &[Record; 2]) -> Result<[usize; 2], String> {
        match self.rows[..] {
            // Before there are rows there may be no columns.
            [] => Ok([0, 0]),
            _ => Ok([self.rows(first)?, self.rows(second)?]),
        }
    }

    fn rows(&self, record: &Record) -> Result<usize, String> {
        let unique_id = self.column("uniqueId")?;
        let (customer, value, time) =
            (self.column("customerId")?, self.column("meterValue")?, self.column("meterTimeInMillis")?);
        // It takes the names of dimensions as they are.
        let region = self.columns.iter().position(|name| name == "region");
        let region = region.ok_or_else(|| format!("no column region among {:?}", self.columns))?;
        let mut rows = 0;
        for row in &self.rows {
            let cell = |place: usize| row.get(place).and_then(Option::as_deref).unwrap_or_default();
            if cell(unique_id) != record.unique_id {
                continue;
            }
            let is_right = cell(customer) == record.customer
                && cell(value).parse() == Ok(record.value as f64)
                && cell(time).parse() == Ok(record.time)
                && cell(region) == record.region;
            if !is_right {
                return Err(format!("the record {} has the row {row:?} of {:?}", record.text(), self.columns));
            }
            rows += 1;
        }
        Ok(rows)
    }
}

/// A meter with two events, the first of which was sent twice.
struct Billed {
    meter: String,
    events: [Record; 2],
}

impl Billed {
    async fn prepare(at: &Probing) -> Result<Self, Unclear> {
        let meter = at.meter_name("");
        at.create_meter(&meter).await?;
        at.register_customer().await?;
        let events = [0, 1].map(|slot| Record { meter: meter.clone(), ..at.record(slot) });
        at.send(&[&events[0]]).await?;
        at.send(&[&events[0], &events[1]]).await?;
        at.settled(&meter, &at.customer(), 11, 11).await?;
        Ok(Self { meter, events })
    }

    /// No customer: the audit asks for those of all.
    async fn page(&self, at: &Probing, size: usize, token: Option<&str>) -> Result<Answer, Unclear> {
        let (from, until) = (at.run.started_seconds() - HOUR_SECONDS, at.run.started_seconds() + HOUR_SECONDS);
        let range = format!("startTimeInSeconds={from}&endTimeInSeconds={until}");
        let token = token.map(|token| format!("&nextPageToken={}", encoded(token))).unwrap_or_default();
        let path = format!("/usage/events?meterApiName={}&{range}&pageSize={size}{token}", self.meter);
        at.api(Method::GET, &path, None).await
    }
}

/// A token is Amberflo's, and may hold anything.
fn encoded(token: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    token.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

async fn raw_events(at: Arc<Probing>) -> Finding {
    let billed = Billed::prepare(&at).await?;
    let started = Instant::now();
    for wait in usage::waits(&at.run.settings) {
        let answer = billed.page(&at, PAGE, None).await?;
        match Events::read(&answer).and_then(|events| events.rows_of(&billed.events)) {
            Err(wrong) => return Ok(Evidence::Refuted(wrong)),
            Ok([0, _] | [_, 0]) => {}
            Ok([copied, _]) => return pages(&at, &billed, copied).await,
        }
        if started.elapsed() >= at.run.settings.patience {
            break;
        }
        sleep(wait).await;
    }
    Ok(Evidence::Refuted("events that are billed are not among them".to_owned()))
}

/// The same, one in a page.
async fn pages(at: &Probing, billed: &Billed, copied: usize) -> Finding {
    let (mut token, mut rows): (Option<String>, [usize; 2]) = (None, [0, 0]);
    for page in 1..=PAGES {
        let answer = billed.page(at, 1, token.as_deref()).await?;
        if page == 1 && !answer.is_ok() {
            return Err(Unclear(format!("a page of one event is not to be had: {}", answer.brief())));
        }
        let read =
            Events::read(&answer).and_then(|events| Ok((events.rows_of(&billed.events)?, events.next_page_token)));
        let (shown, next) = match read {
            Ok(read) => read,
            Err(wrong) => return Ok(Evidence::Refuted(format!("page {page}: {wrong}"))),
        };
        token = next.filter(|token| !token.is_empty());
        rows = [rows[0] + shown[0], rows[1] + shown[1]];
        if token.is_none() {
            let text = format!("{copied} rows for a record that was sent twice; {page} pages of one event");
            return Ok(match rows {
                [0, _] | [_, 0] => Evidence::Refuted(format!("the pages end without one of the events; {text}")),
                _ => Evidence::Confirmed(text),
            });
        }
    }
    Ok(Evidence::Refuted(format!("{PAGES} pages of one event each do not end")))
}
