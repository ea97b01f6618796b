//! What a setting's text can be, and what it means.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::api_key::ApiKey;
use crate::backend::{BackendError, kinesis};
use crate::reason::Reason;
use bytesize::ByteSize;

/// Where events come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamName {
    /// One file in this directory.
    Local(PathBuf),
    /// A Kinesis stream.
    Kinesis(kinesis::StreamName),
}

impl StreamName {
    /// Where local streams lie unless the settings say otherwise.
    pub const DEFAULT: &str = "local:./metering-data";

    /// Whether it is what the settings name where nobody has set anything.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.to_string() == Self::DEFAULT
    }
}

impl FromStr for StreamName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("local", directory)) if !directory.is_empty() => Ok(Self::Local(directory.into())),
            Some(("kinesis", name)) => name.parse().map(Self::Kinesis).map_err(|error: BackendError| error.to_string()),
            _ => Err("allowed is local:DIR, such as local:./metering-data, or kinesis:NAME-OR-ARN".to_owned()),
        }
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(directory) => write!(f, "local:{}", directory.display()),
            Self::Kinesis(name) => write!(f, "kinesis:{name}"),
        }
    }
}

/// Where the API key comes from.
#[derive(Clone, Debug)]
pub enum KeySetting {
    /// A setting.
    Value(ApiKey),
    /// A file.
    File(PathBuf),
    /// A member of a secret.
    Secret {
        /// The secret's name or ARN.
        name: String,
        /// The member.
        member: String,
    },
}

/// A setting that is never printed.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The setting, for whom it is meant.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("redacted")
    }
}

/// An address to listen on.
///
/// # Errors
/// What is allowed.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "allowed is ADDR:PORT, such as 127.0.0.1:4010".to_owned())
}

/// A number.
///
/// # Errors
/// What is allowed.
pub fn rate(text: &str) -> Result<f64, String> {
    let rate: Option<f64> = text.parse().ok();
    rate.filter(|rate| rate.is_finite()).ok_or_else(|| "allowed is a number, such as 10".to_owned())
}

/// A dead letter's reason.
///
/// # Errors
/// What is allowed.
pub fn reason(text: &str) -> Result<Reason, String> {
    let names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    Reason::from_name(text).ok_or_else(|| format!("allowed is one of {}", names.join(", ")))
}

/// A whole number from 1 (the type says so).
///
/// # Errors
/// What is allowed.
pub fn positive<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "allowed is a whole number from 1".to_owned())
}

/// A whole number from 0.
///
/// # Errors
/// What is allowed.
pub fn whole(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "allowed is a whole number from 0".to_owned())
}

/// A size with a unit.
///
/// # Errors
/// What is allowed.
pub fn size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|_| "allowed is a number with a unit, such as 64KiB, 1MiB or 8GiB".to_owned())
}

/// A duration with a unit.
///
/// # Errors
/// What is allowed.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "allowed is a number with a unit, such as 500ms, 30s, 5m or 1h".to_owned())
}

/// An RFC 3339 time.
///
/// # Errors
/// What is allowed.
pub fn time(text: &str) -> Result<jiff::Timestamp, String> {
    text.parse().map_err(|_| "allowed is an RFC 3339 time such as 2026-01-31T00:00:00Z".to_owned())
}
