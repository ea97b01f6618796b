//! What Amberflo bills: asked until it stays the same, because it shows only some time after it was ingested.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::client::{Answer, Unclear};
use super::probe::Settings;
use super::probing::Probing;

const DAY_SECONDS: i64 = 86_400;
/// How many times as long a sum that is not the expected must stay the same.
pub const DOUBTS: u32 = 4;
const SHORTEST_WAIT: Duration = Duration::from_millis(20);

/// Usage that no longer changes.
#[derive(Debug)]
pub struct Settled {
    pub sum: u64,
    /// How long after the question was first asked it showed.
    pub visible_after: Duration,
}

impl Probing {
    /// The sum of a customer's values of a meter once it is at least `at_least` and has not changed for a while. One that is not the
    /// expected must stay for longer: what was sent last may show first, and copies may be found only afterwards.
    pub async fn settled(&self, meter: &str, customer: &str, at_least: u64, expected: u64) -> Result<Settled, Unclear> {
        let settings = &self.run.settings;
        let started = Instant::now();
        let mut seen: Option<(f64, Instant)> = None;
        let mut visible_after = None;
        let mut trouble = None;
        for wait in waits(settings) {
            match self.sum(meter, customer).await {
                Ok(sum) => {
                    let since = seen.filter(|(before, _)| *before == sum).map_or_else(Instant::now, |(_, since)| since);
                    seen = Some((sum, since));
                    if sum >= at_least as f64 {
                        let visible_after = *visible_after.get_or_insert_with(|| started.elapsed());
                        let doubts = if sum == expected as f64 { 1 } else { DOUBTS };
                        if since.elapsed() >= settings.settle * doubts {
                            return Ok(Settled { sum: whole(sum)?, visible_after });
                        }
                    }
                }
                Err(unclear) => trouble = Some(unclear),
            }
            if started.elapsed() >= settings.patience {
                break;
            }
            sleep(wait).await;
        }
        let waited = humantime::format_duration(Duration::from_millis(started.elapsed().as_millis() as u64));
        Err(match (seen, trouble) {
            (None, Some(Unclear(trouble))) => Unclear(format!("usage cannot be read: {trouble}")),
            (Some((sum, _)), _) if sum > 0.0 => Unclear(format!(
                "usage was still {sum} after {waited}, where all that was sent last would make it at least {at_least}, or it \
                 kept changing: try a longer --patience"
            )),
            _ => Unclear(format!("no usage to be seen after {waited}: try a longer --patience")),
        })
    }

    /// What is billed of a meter to a customer, as is shown now.
    pub async fn sum(&self, meter: &str, customer: &str) -> Result<f64, Unclear> {
        let filter = json!({ "customerId": [customer] });
        let answer = self.usage(meter, Some(filter), self.run.started_seconds() - 2 * DAY_SECONDS).await?;
        total(&answer, Some(customer))
    }

    pub async fn usage(&self, meter: &str, filter: Option<Value>, from: i64) -> Result<Answer, Unclear> {
        let mut query = json!({
            "meterApiName": meter, "timeGroupingInterval": "DAY", "aggregation": "SUM", "groupBy": ["customerId"],
            "timeRange": { "startTimeInSeconds": from - from.rem_euclid(DAY_SECONDS) },
        });
        if let Some(filter) = filter {
            query["filter"] = filter;
        }
        let answer = self.api(Method::POST, "/usage", Some(query)).await?;
        if answer.is_ok() { Ok(answer) } else { Err(Unclear(format!("usage: answered {}", answer.brief()))) }
    }
}

/// All values of an answer, of one customer or of all.
pub fn total(answer: &Answer, customer: Option<&str>) -> Result<f64, Unclear> {
    let usage = answer.json()?;
    let unknown = || Unclear(format!("usage of unknown form: {}", answer.brief()));
    let groups = usage.get("clientMeters").and_then(Value::as_array).ok_or_else(unknown)?;
    let mut sum = 0.0;
    for group in groups {
        let of = group.pointer("/group/groupInfo/customerId").and_then(Value::as_str);
        if customer.is_some_and(|customer| of.is_some_and(|of| of != customer)) {
            continue;
        }
        for value in group.get("values").and_then(Value::as_array).ok_or_else(unknown)? {
            sum += value.get("value").and_then(Value::as_f64).ok_or_else(unknown)?;
        }
    }
    Ok(sum)
}

/// All values that are sent are whole, and so are their sums.
fn whole(sum: f64) -> Result<u64, Unclear> {
    if sum >= 0.0 && sum.fract() == 0.0 && sum < 1e15 {
        Ok(sum as u64)
    } else {
        Err(Unclear(format!("usage is {sum}, which no number of the records that were sent makes")))
    }
}

/// How many questions [`Probing::settled`] asks at most.
pub fn polls(settings: &Settings) -> u64 {
    let mut left = settings.patience;
    let asked = waits(settings).take_while(|wait| {
        let goes_on = !left.is_zero();
        left = left.saturating_sub(*wait);
        goes_on
    });
    asked.count() as u64 + 1
}

/// Growing, so that quick answers are noticed and slow ones cost few requests.
pub fn waits(settings: &Settings) -> impl Iterator<Item = Duration> {
    let longest = settings.settle.max(SHORTEST_WAIT);
    let first = (settings.settle / 6).max(SHORTEST_WAIT);
    std::iter::successors(Some(first), move |wait| Some((*wait * 2).min(longest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &str) -> Answer {
        Answer { status: 200, is_html: false, body: body.to_owned() }
    }

    #[test]
    fn values_of_all_intervals_and_of_one_customer_are_added() {
        let usage = answer(
            r#"{"clientMeters":[{"group":{"groupInfo":{"customerId":"a"}},"values":[{"value":1},{"value":2.5}]},
                {"group":{"groupInfo":{"customerId":"b"}},"values":[{"value":10}]}]}"#,
        );
        assert_eq!(total(&usage, Some("a")).unwrap(), 3.5);
        assert_eq!(total(&usage, None).unwrap(), 13.5);
        assert_eq!(total(&answer(r#"{"clientMeters":[]}"#), None).unwrap(), 0.0);
        for odd in ["{}", "[]", "", r#"{"clientMeters":[{"values":[{"value":"1"}]}]}"#] {
            assert!(total(&answer(odd), None).is_err(), "{odd}");
        }
        assert!(whole(2.5).is_err() && whole(-1.0).is_err() && whole(3.0).is_ok_and(|sum| sum == 3));
    }

    #[test]
    fn questions_are_few() {
        let seconds = Duration::from_secs;
        let settings = Settings {
            patience: seconds(600),
            settle: seconds(30),
            repeat_after: Settings::repeat_after(seconds(600)),
            max_records: 1,
            max_bytes: 1,
            rate: 5.0,
            request_timeout: seconds(1),
        };
        assert_eq!(polls(&settings), 23);
        assert_eq!(settings.repeat_after.last(), Some(&seconds(600)));
    }
}
