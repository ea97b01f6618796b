//! What a setting's text can be, and what it means.

use std::str::FromStr;

use shared::backend::Position;
use shared::clock::Clock;

/// Where a shard without a checkpoint starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitialPosition {
    /// With the oldest record.
    TrimHorizon,
    /// With what arrives from now on.
    Latest,
    /// With what arrived from this time on.
    Time(jiff::Timestamp),
}

impl FromStr for InitialPosition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "trim-horizon" => Ok(Self::TrimHorizon),
            "latest" => Ok(Self::Latest),
            _ => text.parse().map(Self::Time).map_err(|_| {
                "allowed is trim-horizon, latest, or an RFC 3339 time such as 2026-01-31T00:00:00Z".to_owned()
            }),
        }
    }
}

impl InitialPosition {
    /// As a position. "Latest" is pinned to the present, so that a crash before the first checkpoint loses nothing.
    #[must_use]
    pub fn resolve(&self, clock: Clock) -> Position {
        match self {
            Self::TrimHorizon => Position::TrimHorizon,
            Self::Latest => Position::AtTime(clock.now()),
            Self::Time(time) => Position::AtTime(time.as_millisecond()),
        }
    }
}
