//! The billed events as queries see them: one for each meter of a record, without those that a rule or a later event
//! cancels.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::record::Batch;
use crate::report::StoredRecord;
use crate::{Sandbox, State};

/// The dimension by which an event cancels the one it is like.
const CANCEL: &str = "aflo.cancel_previous_resource_event";

/// One billed event of one meter.
#[derive(Debug)]
pub(crate) struct Event<'a> {
    pub(crate) record: &'a StoredRecord,
    pub(crate) meter_api_name: Cow<'a, str>,
    /// The number as it was written.
    pub(crate) value: Cow<'a, str>,
}

impl<'a> Event<'a> {
    /// What a query groups and filters by: `customerId`, or a dimension.
    pub(crate) fn attribute(&self, name: &str) -> Option<&'a str> {
        match name {
            "customerId" => Some(&self.record.customer_id),
            dimension => self.record.dimensions.get(dimension).map(String::as_str),
        }
    }
}

/// In order of acceptance.
pub(crate) fn events<'a>(sandbox: &Sandbox, state: &'a State) -> impl Iterator<Item = Event<'a>> + use<'a> {
    let (rules, facts) = (&state.account.filtering_rules, &state.facts);
    let (started_at, now) = (sandbox.shared.started_at, sandbox.elapsed());
    let seen = state.ledger.records().iter().filter(move |record| record.at + facts.usage_visible_after <= now);
    let cancelling = seen.clone().filter(|record| facts.cancels_previous_events && is_cancelling(record));
    let cancelled: HashSet<_> = cancelling.map(identity).collect();
    // An event without `uniqueId` is not taken for the one that is meant.
    let is_cancelled = move |record: &StoredRecord| record.unique_id.is_some() && cancelled.contains(&identity(record));
    let all = seen.filter(move |record| !is_cancelled(record)).flat_map(of_record);
    all.filter(move |event| !rules.cancel(event, started_at, now, facts))
}

/// Which event it is, whatever its value.
fn identity(record: &StoredRecord) -> (&str, &str, Option<&str>) {
    (&record.customer_id, &record.meter_api_name, record.unique_id.as_deref())
}

fn is_cancelling(record: &StoredRecord) -> bool {
    record.dimensions.get(CANCEL).is_some_and(|value| value == "true")
}

fn of_record(record: &StoredRecord) -> Vec<Event<'_>> {
    // The values of several meters are kept in the raw text only.
    if record.raw.contains("\"values\"")
        && let Ok(batch) = Batch::parse(&record.raw, true)
    {
        let billed = batch.records.iter().flat_map(|parsed| parsed.billed());
        let owned = billed.map(|(meter, value)| (Cow::Owned(meter.to_owned()), Cow::Borrowed(value)));
        return owned.map(|(meter_api_name, value)| Event { record, meter_api_name, value }).collect();
    }
    let value = record.value.as_deref().map(Cow::Borrowed);
    let meter_api_name = Cow::Borrowed(record.meter_api_name.as_str());
    value.map(|value| Event { record, meter_api_name, value }).into_iter().collect()
}
