//! What the sandbox takes for true of Amberflo, fact by fact, so that each can be turned round.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::human;

/// How Amberflo behaves when nothing goes wrong. The default is what its contract is assumed to be; any other value is an
/// Amberflo that is different from what the pipeline was built for, such as `loadtest verify-amberflo` must notice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Facts {
    /// A record like an earlier one is not billed.
    pub absorbs_copies: bool,
    /// Also where both are in one request.
    pub absorbs_copies_within_a_request: bool,
    /// For how long after the first; `None` is for ever.
    #[serde(with = "human::option")]
    pub remembers_copies_for: Option<Duration>,
    /// Another order of keys or other white space makes no other record.
    pub compares_values_not_bytes: bool,
    /// Another `meterTimeInMillis` makes another record, which is billed.
    pub compares_times: bool,
    /// Another `meterValue` does so.
    pub compares_values: bool,
    /// Another dimension does so.
    pub compares_dimensions: bool,

    /// `POST /ingest` answers how many records it took; otherwise `accepted`.
    pub answers_the_count: bool,
    /// That count includes copies of earlier records.
    pub counts_copies_in_the_answer: bool,
    /// A request with an invalid record is refused whole; otherwise the other records are taken and counted.
    pub refuses_whole_requests: bool,
    /// A top-level key that is unknown changes nothing; otherwise the request is refused.
    pub ignores_unknown_keys: bool,
    /// Objects one after another are taken.
    pub takes_ndjson: bool,
    /// One object without an array around it is taken.
    pub takes_single_objects: bool,
    /// Compressed bodies are taken.
    pub takes_gzip: bool,
    /// A request with more records is taken, but only the first so many are billed; `None` bills all.
    pub bills_of_a_request: Option<NonZeroUsize>,
    /// Usage of a meter that does not exist is taken.
    pub takes_unknown_meters: bool,
    /// Usage of a customer who does not exist is taken.
    pub takes_unknown_customers: bool,
    /// The status of a refusal of bad records.
    pub bad_record_status: u16,
    /// The status of a refusal of a key, everywhere.
    pub bad_key_status: u16,
    /// How long usage stays out of queries.
    #[serde(with = "human")]
    pub usage_visible_after: Duration,

    /// The columns of `GET /usage/events` that are not called as in a record, with their other names.
    pub renamed_event_columns: BTreeMap<String, String>,
    /// `GET /usage/events` without a customer answers those of all; otherwise 400.
    pub shows_events_of_all_customers: bool,
    /// A page of events names the next; otherwise what does not fit on the first is not shown.
    pub pages_events: bool,

    /// The values of `meterType` that are taken; `None` takes any.
    pub meter_types: Option<BTreeSet<String>>,
    /// `POST /meters` gives an id of its own to a meter that is sent with one.
    pub ignores_sent_meter_ids: bool,
    /// `PUT /meters` refuses a meter without id; otherwise it finds it by its api name.
    pub updates_meters_by_id_only: bool,
    /// A meter's `lockingStatus` never goes back.
    pub locking_is_one_way: bool,
    /// `lockingStatus` may be `close_to_deletions`.
    pub closes_to_deletions: bool,
    /// A meter that is `close_to_deletions` can be deprecated, and so deleted.
    pub deprecates_what_is_closed_to_deletions: bool,
    /// `DELETE /meters/{id}` refuses a meter that is not deprecated.
    pub deletes_deprecated_meters_only: bool,
    /// `DELETE /meters/{api name}` does nothing and says 200; otherwise the name stands for the id.
    pub ignores_deletion_by_name: bool,
    /// `GET /customers/{id}` of an unknown customer is 200 without a body; otherwise 404.
    pub answers_nothing_for_unknown_customers: bool,

    /// `POST /ingest-snapshot/custom-filtering-rules` takes rules with the known fields; otherwise 400.
    pub takes_known_rule_fields: bool,
    /// A rule's range is of the time at which events were ingested; otherwise of their own time.
    pub rules_go_by_ingestion: bool,
    /// How long a rule cancels nothing.
    #[serde(with = "human")]
    pub rules_cancel_after: Duration,
    /// `GET` of the same path answers the rules; otherwise 405.
    pub lists_rules: bool,
    /// `DELETE` of a rule by its id removes it; otherwise 405.
    pub deletes_rules: bool,
    /// A record with the dimension `aflo.cancel_previous_resource_event` takes the event of the same customer, meter and
    /// `uniqueId` out of usage.
    pub cancels_previous_events: bool,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            absorbs_copies: true,
            absorbs_copies_within_a_request: true,
            remembers_copies_for: None,
            compares_values_not_bytes: true,
            compares_times: true,
            compares_values: true,
            compares_dimensions: true,
            answers_the_count: true,
            counts_copies_in_the_answer: true,
            refuses_whole_requests: true,
            ignores_unknown_keys: true,
            takes_ndjson: true,
            takes_single_objects: true,
            takes_gzip: true,
            bills_of_a_request: None,
            takes_unknown_meters: true,
            takes_unknown_customers: true,
            bad_record_status: 400,
            bad_key_status: 401,
            usage_visible_after: Duration::ZERO,
            renamed_event_columns: BTreeMap::new(),
            shows_events_of_all_customers: true,
            pages_events: true,
            // What the live API took in reports of its use.
            meter_types: Some(["sum_of_all_usage", "active_users", "event_duration"].map(str::to_owned).into()),
            ignores_sent_meter_ids: true,
            updates_meters_by_id_only: true,
            locking_is_one_way: true,
            closes_to_deletions: true,
            deprecates_what_is_closed_to_deletions: true,
            deletes_deprecated_meters_only: true,
            ignores_deletion_by_name: true,
            answers_nothing_for_unknown_customers: true,
            takes_known_rule_fields: true,
            rules_go_by_ingestion: true,
            rules_cancel_after: Duration::ZERO,
            lists_rules: false,
            deletes_rules: false,
            cancels_previous_events: true,
        }
    }
}

/// A fact outside its allowed range.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {given}; allowed is a status from 400 to 499")]
pub struct InvalidFact {
    name: &'static str,
    given: u16,
}

impl Facts {
    /// Reads JSON such as the admin endpoint takes: what is left out is as assumed.
    ///
    /// # Errors
    /// Says where the JSON is wrong, and names the field.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let facts: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        facts.check().map_err(|error| error.to_string())?;
        Ok(facts)
    }

    pub(crate) fn check(&self) -> Result<(), InvalidFact> {
        let statuses = [("bad_record_status", self.bad_record_status), ("bad_key_status", self.bad_key_status)];
        let invalid = statuses.into_iter().find(|(_, status)| !(400..500).contains(status));
        invalid.map_or(Ok(()), |(name, given)| Err(InvalidFact { name, given }))
    }
}
