//! The billed events as queries see them: one for each meter of a record, without those that a rule cancels.

use std::borrow::Cow;
use std::time::SystemTime;

use crate::State;
use crate::record::Batch;
use crate::report::StoredRecord;

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
pub(crate) fn events(state: &State, started_at: SystemTime) -> impl Iterator<Item = Event<'_>> {
    let rules = &state.account.filtering_rules;
    let all = state.ledger.records().iter().flat_map(of_record);
    all.filter(move |event| !rules.cancel(&event.meter_api_name, started_at + event.record.at))
}

fn of_record(record: &StoredRecord) -> Vec<Event<'_>> {
    // The values of several meters are kept in the raw text only.
    if record.raw.contains("\"values\"")
        && let Ok(batch) = Batch::parse(&record.raw)
    {
        let billed = batch.records.iter().flat_map(|parsed| parsed.billed());
        let owned = billed.map(|(meter, value)| (Cow::Owned(meter.to_owned()), Cow::Borrowed(value)));
        return owned.map(|(meter_api_name, value)| Event { record, meter_api_name, value }).collect();
    }
    let value = record.value.as_deref().map(Cow::Borrowed);
    let meter_api_name = Cow::Borrowed(record.meter_api_name.as_str());
    value.map(|value| Event { record, meter_api_name, value }).into_iter().collect()
}
