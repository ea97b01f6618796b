//! What a rule would cancel, as far as usage shows it.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Number;
use serde_json::value::RawValue;

use super::{DRY_RUN, FILTER_OUT, RANGE, TYPE};
use crate::app::App;
use crate::extract::Properties;
use crate::problem::Problem;
use crate::routes::meter_list;
use crate::routes::time_range::TimeRange;
use crate::routes::usage::{Aggregation, CUSTOMER, Interval, UsageQuery, ask};

/// A longer range is asked for by day: its hours would be too many rows.
const HOURLY_SECONDS: u64 = 31 * 24 * 60 * 60;

/// An estimate.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Estimate {
    dry_run: bool,
    exact: bool,
    meter_exists: bool,
    event_count: Number,
    sum: Number,
    /// Absent where Amberflo does not answer for so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    by_tenant: Option<Vec<TenantShare>>,
    basis: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TenantShare {
    tenant_id: String,
    event_count: Number,
    sum: Number,
}

/// Estimates what `rule` would cancel.
pub(super) async fn estimate(app: &App, rule: &Properties, range: TimeRange) -> Result<Estimate, Problem> {
    let known = ["id", "meterApiName", RANGE, TYPE];
    let unknown: Vec<_> = rule.names().filter(|name| !known.contains(name) && rule.has(name)).collect();
    if !unknown.is_empty() {
        let unknown = unknown.join(", ");
        return Err(Problem::bad_request(format!(
            "{DRY_RUN}: no estimate for a rule with {unknown}: usage cannot be narrowed as that would narrow the rule"
        )));
    }
    if rule.has(TYPE) && rule.text(TYPE).as_deref() != Some(FILTER_OUT) {
        return Err(Problem::bad_request(format!("{DRY_RUN}: an estimate needs the {TYPE} {FILTER_OUT}")));
    }
    let name = rule.text("meterApiName").unwrap_or_default();
    let deadline = app.amberflo.deadline();
    let listed = async { exists(&meter_list::named(app, &name).await?) };
    let (meter_exists, shares) =
        deadline.share(2, async { tokio::try_join!(listed, shares(app, &name, range, vec![CUSTOMER])) }).await?;
    // Refused: too many tenants for one answer.
    let (shares, is_by_tenant) = match shares {
        Some(shares) => (shares, true),
        None => {
            let whole = deadline.share(1, shares_of_all(app, &name, range)).await?;
            (whole, false)
        }
    };
    let basis = format!(
        "Amberflo's usage of {name:?} with event times from {} up to but not including {}. The rule goes by ingestion \
         time: events that arrived late, or in this range from another, make the difference, and so do events that are \
         cancelled already or not yet counted",
        range.start(),
        range.end()
    );
    let (count, sum) = shares.values().fold((0.0, 0.0), |(count, sum), share| (count + share.0, sum + share.1));
    let by_tenant =
        is_by_tenant.then(|| shares.into_iter().map(TenantShare::of).collect::<Result<_, _>>()).transpose()?;
    let (event_count, sum) = (number(count)?, number(sum)?);
    Ok(Estimate { dry_run: true, exact: false, meter_exists, event_count, sum, by_tenant, basis })
}

/// Count and sum of each group.
type Shares = BTreeMap<String, (f64, f64)>;

/// `None` where Amberflo refuses the question.
async fn shares(
    app: &App,
    meter_api_name: &str,
    range: TimeRange,
    group_by: Vec<&str>,
) -> Result<Option<Shares>, Problem> {
    let is_short = range.end() - range.start() <= HOURLY_SECONDS;
    let groups = async |aggregation| {
        let query = UsageQuery {
            meter_api_name,
            time_grouping_interval: if is_short { Interval::Hour } else { Interval::Day },
            time_range: range,
            aggregation: Some(aggregation),
            group_by: group_by.clone(),
            filter: BTreeMap::new(),
        };
        match ask(app, &query).await {
            Ok(answer) => values(&answer).map(Some),
            Err(problem) if problem.status() == http::StatusCode::BAD_REQUEST => Ok(None),
            Err(problem) => Err(problem),
        }
    };
    let (counts, sums) = tokio::try_join!(groups(Aggregation::Count), groups(Aggregation::Sum))?;
    Ok(counts.zip(sums).map(|(counts, mut sums)| {
        let share = |(group, count)| {
            let sum = sums.remove(&group).unwrap_or_default();
            (group, (count, sum))
        };
        counts.into_iter().map(share).collect()
    }))
}

async fn shares_of_all(app: &App, meter_api_name: &str, range: TimeRange) -> Result<Shares, Problem> {
    let refused = || Problem::bad_request(format!("{DRY_RUN}: Amberflo does not answer the usage of so long a range"));
    shares(app, meter_api_name, range, Vec::new()).await?.ok_or_else(refused)
}

impl TenantShare {
    fn of((tenant_id, (count, sum)): (String, (f64, f64))) -> Result<Self, Problem> {
        Ok(Self { tenant_id, event_count: number(count)?, sum: number(sum)? })
    }
}

/// The value of each group over the whole range: none where there is no event.
fn values(answer: &Bytes) -> Result<BTreeMap<String, f64>, Problem> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Usage {
        client_meters: Vec<Meter>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Meter {
        #[serde(default)]
        group: Group,
        group_value: f64,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Group {
        group_info: BTreeMap<String, String>,
    }
    let usage: Usage = serde_json::from_slice(answer).map_err(|error| {
        Problem::bad_gateway(format!("Amberflo answered usage in an unknown form, so there is no estimate: {error}"))
    })?;
    let mut values = BTreeMap::new();
    for Meter { mut group, group_value } in usage.client_meters {
        *values.entry(group.group_info.remove(CUSTOMER).unwrap_or_default()).or_default() += group_value;
    }
    Ok(values)
}

fn number(value: f64) -> Result<Number, Problem> {
    let is_integer = value.fract() == 0.0 && value.abs() < 9e15;
    let number = if is_integer { Some(Number::from(value as i64)) } else { Number::from_f64(value) };
    number.ok_or_else(|| Problem::bad_gateway("Amberflo answered usage beyond all numbers, so there is no estimate"))
}

/// Whether a list of meters has any.
fn exists(meters: &RawValue) -> Result<bool, Problem> {
    let meters: Vec<&RawValue> = serde_json::from_str(meters.get())
        .map_err(|error| Problem::bad_gateway(format!("Amberflo answered no list of meters: {error}")))?;
    Ok(!meters.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_by_tenant_and_whole_numbers_stay_whole() {
        let values = |text: &str| super::values(&Bytes::from(text.to_owned()));
        assert!(values(r#"{"clientMeters":[]}"#).unwrap().is_empty());
        let plain = values(r#"{"clientMeters":[{"groupValue":3.0,"values":[]}]}"#).unwrap();
        assert_eq!(number(plain[""]).unwrap().to_string(), "3");
        let grouped = r#"{"clientMeters":[{"group":{"groupInfo":{"customerId":"b"}},"groupValue":-1.5},
            {"group":{"groupInfo":{"customerId":"a"}},"groupValue":2}]}"#;
        assert_eq!(values(grouped).unwrap(), BTreeMap::from([("a".to_owned(), 2.0), ("b".to_owned(), -1.5)]));
        for other in ["", "{}", "[]", r#"{"clientMeters":[{}]}"#, r#"{"clientMeters":[{"groupValue":"3"}]}"#] {
            assert!(values(other).is_err(), "{other}");
        }
    }
}
