//! The time range of a query or a rule.

use serde::{Deserialize, Serialize};
use shared::clock::Clock;
use utoipa::{IntoParams, ToSchema};

use crate::extract::Query;
use crate::problem::Problem;

/// In the year 2286; a time in milliseconds is beyond it.
const MAX_SECONDS: u64 = 9_999_999_999;
const DAY: u64 = 24 * 60 * 60;

const START: &str = "startTimeInSeconds";
const END: &str = "endTimeInSeconds";

/// From `start` up to but not including `end`, in whole seconds since 1970-01-01 UTC. The start lies before the end.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TimeRange {
    /// The first second: whole seconds since 1970-01-01 UTC, before the end.
    #[schema(minimum = 0, maximum = 9_999_999_999_u64, example = 1_724_367_600)]
    start_time_in_seconds: u64,
    /// The second after the last one.
    #[schema(minimum = 0, maximum = 9_999_999_999_u64, example = 1_724_371_200)]
    end_time_in_seconds: u64,
}

/// The parameters of a query that make its [`TimeRange`].
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes what TimeRange::of_query reads")]
pub struct TimeRangeParams {
    /// The first second of the range: whole seconds since 1970-01-01 UTC, before the end. Default: 24 h before the end.
    #[param(minimum = 0, maximum = 9_999_999_999_u64, example = 1_724_630_400)]
    start_time_in_seconds: Option<u64>,
    /// The second after the last one of the range. Default: now, rounded up to a whole second.
    #[param(minimum = 0, maximum = 9_999_999_999_u64, example = 1_724_716_800)]
    end_time_in_seconds: Option<u64>,
}

impl TimeRange {
    /// The names of its parameters.
    pub const NAMES: [&str; 2] = [START, END];

    /// What the query asks for: the 24 h before now where it does not say.
    ///
    /// # Errors
    /// 400 for times that are no whole seconds, and for a start that is not before the end.
    pub fn of_query(query: &Query, clock: Clock) -> Result<Self, Problem> {
        let seconds = |name| query.parsed::<u64>(name, "whole seconds since 1970-01-01 UTC");
        // Rounded up: an event of this very second is part of the range.
        let end_time_in_seconds = seconds(END)?.unwrap_or_else(|| now_in_seconds(clock) + 1);
        let start_time_in_seconds = seconds(START)?.unwrap_or_else(|| end_time_in_seconds.saturating_sub(DAY));
        Self { start_time_in_seconds, end_time_in_seconds }.checked()
    }

    /// Itself, if it is one.
    ///
    /// # Errors
    /// 400 with what is wrong.
    pub fn checked(self) -> Result<Self, Problem> {
        let Self { start_time_in_seconds: start, end_time_in_seconds: end } = self;
        for (name, seconds) in [(START, start), (END, end)] {
            if seconds > MAX_SECONDS {
                return Err(Problem::bad_request(format!(
                    "{name} is {seconds}: are these milliseconds? allowed are 0 to {MAX_SECONDS} seconds since \
                     1970-01-01 UTC"
                )));
            }
        }
        if start >= end {
            return Err(Problem::bad_request(format!("{START} is {start}: it must be before {END}, which is {end}")));
        }
        Ok(self)
    }

    /// Its start.
    pub const fn start(self) -> u64 {
        self.start_time_in_seconds
    }

    /// Its end.
    pub const fn end(self) -> u64 {
        self.end_time_in_seconds
    }
}

/// Whole seconds since 1970-01-01 UTC, rounded down.
pub fn now_in_seconds(clock: Clock) -> u64 {
    u64::try_from(clock.now() / 1000).unwrap_or_default()
}
