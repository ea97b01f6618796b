//! The intervals into which usage is grouped, in UTC.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use serde::{Deserialize, Deserializer, de};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * DAY;
/// The first Monday of the epoch, which began on a Thursday.
const FIRST_MONDAY: i64 = 4 * DAY;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeGrouping {
    Hour,
    Day,
    /// From Monday, as ISO 8601 has it.
    Week,
    Month,
}

impl TimeGrouping {
    /// The start of the interval that holds this second.
    pub(crate) fn start_of(self, second: i64) -> i64 {
        match self {
            Self::Hour => second - second.rem_euclid(HOUR),
            Self::Day => second - second.rem_euclid(DAY),
            Self::Week => second - (second - FIRST_MONDAY).rem_euclid(WEEK),
            Self::Month => date(second).map_or(second, |date| first_second(date.first_of_month())),
        }
    }

    /// The start of the interval after the one that starts at `start`.
    pub(crate) fn after(self, start: i64) -> i64 {
        match self {
            Self::Hour => start + HOUR,
            Self::Day => start + DAY,
            Self::Week => start + WEEK,
            Self::Month => {
                let next = date(start).and_then(|date| date.checked_add(1.month()).ok());
                next.map_or(i64::MAX, first_second)
            }
        }
    }
}

/// `None` outside the years that have a calendar here.
fn date(second: i64) -> Option<Date> {
    Timestamp::from_second(second).ok().map(|time| time.to_zoned(TimeZone::UTC).date())
}

fn first_second(date: Date) -> i64 {
    date.to_zoned(TimeZone::UTC).map_or(i64::MAX, |midnight| midnight.timestamp().as_second())
}

impl<'de> Deserialize<'de> for TimeGrouping {
    /// In any case: Amberflo's docs write `DAY` and `Day`, its SDKs `day`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.to_ascii_uppercase().as_str() {
            "HOUR" => Ok(Self::Hour),
            "DAY" => Ok(Self::Day),
            "WEEK" => Ok(Self::Week),
            "MONTH" => Ok(Self::Month),
            _ => Err(de::Error::unknown_variant(&text, &["HOUR", "DAY", "WEEK", "MONTH"])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(time: &str) -> i64 {
        time.parse::<Timestamp>().unwrap().as_second()
    }

    #[track_caller]
    fn check(grouping: TimeGrouping, time: &str, start: &str, next: &str) {
        let found = grouping.start_of(second(time));
        assert_eq!(found, second(start), "{grouping:?} of {time}");
        assert_eq!(grouping.start_of(found), found, "{grouping:?} of its own start");
        assert_eq!(grouping.after(found), second(next), "{grouping:?} after {start}");
    }

    #[test]
    fn hours_and_days_are_utc() {
        check(TimeGrouping::Hour, "2024-08-26T23:59:59Z", "2024-08-26T23:00:00Z", "2024-08-27T00:00:00Z");
        check(TimeGrouping::Day, "2024-08-26T01:30:00+02:00", "2024-08-25T00:00:00Z", "2024-08-26T00:00:00Z");
        // The example of Amberflo's guide.
        assert_eq!(TimeGrouping::Day.start_of(1_619_293_642), 1_619_222_400);
    }

    #[test]
    fn weeks_start_on_monday() {
        check(TimeGrouping::Week, "2024-09-01T23:59:59Z", "2024-08-26T00:00:00Z", "2024-09-02T00:00:00Z");
        check(TimeGrouping::Week, "2024-09-02T00:00:00Z", "2024-09-02T00:00:00Z", "2024-09-09T00:00:00Z");
        check(TimeGrouping::Week, "2021-01-03T12:00:00Z", "2020-12-28T00:00:00Z", "2021-01-04T00:00:00Z");
    }

    #[test]
    fn months_have_their_own_lengths() {
        check(TimeGrouping::Month, "2024-02-29T12:00:00Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z");
        check(TimeGrouping::Month, "2023-12-31T23:59:59Z", "2023-12-01T00:00:00Z", "2024-01-01T00:00:00Z");
    }

    #[test]
    fn times_before_the_epoch_round_down() {
        check(TimeGrouping::Hour, "1969-12-31T23:30:00Z", "1969-12-31T23:00:00Z", "1970-01-01T00:00:00Z");
        check(TimeGrouping::Day, "1969-12-31T23:30:00Z", "1969-12-31T00:00:00Z", "1970-01-01T00:00:00Z");
        check(TimeGrouping::Week, "1969-12-28T12:00:00Z", "1969-12-22T00:00:00Z", "1969-12-29T00:00:00Z");
        check(TimeGrouping::Month, "1969-12-31T23:30:00Z", "1969-12-01T00:00:00Z", "1970-01-01T00:00:00Z");
    }

    #[test]
    fn any_case_is_read_and_others_are_named() {
        let read = |json| serde_json::from_str::<TimeGrouping>(json);
        assert_eq!(read(r#""Week""#).unwrap(), TimeGrouping::Week);
        assert!(read(r#""YEAR""#).unwrap_err().to_string().contains("YEAR"));
    }
}
