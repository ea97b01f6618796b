//! Every setting: a flag and an environment variable each, checked before anything starts.

use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use shared::api_key::{ApiKey, Source};
use shared::backend::{Position, WorkerId};
use shared::clock::Clock;
use shared::event::EventRules;
use shared::reason::Reason;
use shared::service::{ConfigError, LogArgs};

use crate::batch::BatchLimits;
use crate::shard::REBUILD_SLACK;

const DEFAULT_BASE_URL: &str = "https://app.amberflo.io";
const DEFAULT_INGEST_URL: &str = "https://ingest.amberflo.io";

/// Moves usage events from a stream to Amberflo: deduplicated, batched, inside its limits, nothing lost.
///
/// Exit codes: 0 drained after a signal, 2 settings it cannot work with, 1 anything else.
#[derive(Debug, Parser)]
#[command(name = "ingest-worker", version)]
pub struct Cli {
    /// Something other than the worker itself.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The worker's settings.
    #[command(flatten)]
    pub settings: Settings,
}

/// What the program does besides working.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Looks at dead letters, or sends them through the pipeline again.
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
}

/// What can be done with dead letters.
#[derive(Clone, Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// Prints every dead letter as one line of JSON.
    List,
    /// Publishes dead letters to the stream again, each with the identity and time it had, and removes them.
    ///
    /// Leaves conflicts and invalid payloads where they are, hidden from another redrive for a minute. Amberflo receives identical records, so an event that
    /// it took after all is not billed again.
    Redrive,
    /// Removes dead letters for good, without delivering them; prints each as `list` does, so keep the output.
    Delete {
        /// Only those with this reason.
        #[arg(long, required_unless_present = "before", value_parser = reason)]
        reason: Option<Reason>,
        /// Only those that were dead-lettered before this RFC 3339 time.
        #[arg(long, value_name = "TIME")]
        before: Option<jiff::Timestamp>,
    },
}

/// The worker's settings.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Where events come from: `local:DIR` keeps stream, leases and dead letters in one file in DIR.
    #[arg(long, env, default_value = "local:./metering-data", help_heading = "Stream", global = true)]
    pub stream: StreamName,
    /// Where a shard without a checkpoint starts: `trim-horizon`, `latest`, or an RFC 3339 time.
    #[arg(long, env, default_value = "trim-horizon", help_heading = "Stream")]
    pub initial_position: InitialPosition,
    /// A lease not renewed for this long may be taken by another worker.
    #[arg(long, env, default_value = "10s", value_parser = duration, help_heading = "Stream")]
    pub failover_time: Duration,
    /// This worker's name in leases and dead letters; must be unique. Default: host name and a random suffix.
    #[arg(long, env, help_heading = "Stream")]
    pub worker_id: Option<String>,
    /// Local bus: where PutEvents answers (local streams only).
    #[arg(long, env, default_value = "127.0.0.1:4010", value_name = "ADDR:PORT", value_parser = address, help_heading = "Stream")]
    pub listen: SocketAddr,
    /// Size at which the local store takes no more events; what it holds is kept.
    #[arg(long, env, default_value = "8GiB", value_name = "SIZE", value_parser = size, help_heading = "Stream")]
    pub local_max_bytes: ByteSize,

    /// Amberflo's API.
    #[arg(long, env, default_value = DEFAULT_BASE_URL, value_name = "URL", help_heading = "Amberflo")]
    pub amberflo_base_url: String,
    /// Amberflo's ingest endpoint. Default: ingest.amberflo.io, or the base URL where that was changed.
    #[arg(long, env, value_name = "URL", help_heading = "Amberflo")]
    pub amberflo_ingest_url: Option<String>,
    /// The API key. Prefer the file: a process's environment is easy to read.
    #[arg(long, env, hide_env_values = true, value_name = "KEY", help_heading = "Amberflo")]
    pub amberflo_api_key: Option<Secret>,
    /// A file that holds the API key; read again every API_KEY_REFRESH and when Amberflo refuses the key.
    #[arg(long, env, value_name = "PATH", help_heading = "Amberflo")]
    pub amberflo_api_key_file: Option<PathBuf>,
    /// How often the API key is read again.
    #[arg(long, env, default_value = "5m", value_parser = duration, help_heading = "Amberflo")]
    pub api_key_refresh: Duration,
    /// How long a request may take.
    #[arg(long, env, default_value = "30s", value_parser = duration, help_heading = "Amberflo")]
    pub request_timeout: Duration,

    /// Most records in a batch.
    #[arg(long, env, default_value = "1000", value_parser = positive::<NonZeroUsize>, help_heading = "Batches")]
    pub batch_max_events: NonZeroUsize,
    /// Most bytes in a batch, before compression.
    #[arg(long, env, default_value = "1MiB", value_name = "SIZE", value_parser = size, help_heading = "Batches")]
    pub batch_max_bytes: ByteSize,
    /// How long a batch waits for more records.
    #[arg(long, env, default_value = "1s", value_parser = duration, help_heading = "Batches")]
    pub batch_linger: Duration,

    /// Most requests in flight per worker; lowered while Amberflo is slow or refuses.
    #[arg(long, env, default_value = "8", value_parser = positive::<NonZeroU32>, help_heading = "Limits")]
    pub max_in_flight: NonZeroU32,
    /// Requests per second of the whole account; 0 turns the limit off.
    #[arg(long, env, default_value = "10", value_parser = rate, help_heading = "Limits")]
    pub rate_requests_per_second: f64,
    /// Events per meter and hour; above 80 % of it a warning is logged. 0 turns it off.
    #[arg(long, env, default_value = "1000000", value_parser = whole, help_heading = "Limits")]
    pub meter_hourly_budget: u64,
    /// Memory for records that were read and are not settled.
    #[arg(long, env, default_value = "64MiB", value_name = "SIZE", value_parser = size, help_heading = "Limits")]
    pub buffer_max_bytes: ByteSize,

    /// How long a copy of an event is recognised, in time of arrival.
    #[arg(long, env, default_value = "2m", value_parser = duration, help_heading = "Events")]
    pub dedup_window: Duration,
    /// Most keys in all dedup windows; about 40 bytes each.
    #[arg(long, env, default_value = "5000000", value_parser = positive::<NonZeroUsize>, help_heading = "Events")]
    pub dedup_max_keys: NonZeroUsize,
    /// How far before its arrival an event's time may lie.
    #[arg(long, env, default_value = "60d", value_parser = duration, help_heading = "Events")]
    pub max_event_age: Duration,
    /// How far after its arrival an event's time may lie.
    #[arg(long, env, default_value = "1h", value_parser = duration, help_heading = "Events")]
    pub max_event_ahead: Duration,
    /// Allow dimensions whose names begin with `aflo.`: they can cancel usage in Amberflo.
    #[arg(long, env, default_value = "false", num_args = 0..=1, default_missing_value = "true", help_heading = "Events")]
    #[arg(action = clap::ArgAction::Set)]
    pub allow_aflo_dimensions: bool,

    /// How long a drain may take after SIGTERM or SIGINT; a second signal ends the process at once.
    #[arg(long, env, default_value = "25s", value_parser = duration, help_heading = "Operation")]
    pub shutdown_grace: Duration,
    /// Where /health, /ready and /metrics answer.
    #[arg(long, env, default_value = "127.0.0.1:9464", value_name = "ADDR:PORT", value_parser = address, help_heading = "Operation")]
    pub admin_listen: SocketAddr,
    /// Logs.
    #[command(flatten)]
    pub logs: LogArgs,
}

/// Where events come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamName {
    /// One file in this directory.
    Local(PathBuf),
}

impl FromStr for StreamName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("local", directory)) if !directory.is_empty() => Ok(Self::Local(directory.into())),
            _ => Err("allowed is local:DIR, such as local:./metering-data".to_owned()),
        }
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(directory) => write!(f, "local:{}", directory.display()),
        }
    }
}

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

/// A setting that is never printed.
#[derive(Clone)]
pub struct Secret(String);

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

impl Settings {
    /// Checks what a single value cannot show.
    ///
    /// # Errors
    /// One line that names the setting, what was given and what is allowed.
    pub fn check(&self) -> Result<(), ConfigError> {
        let within = |name: &str, given: Duration, low: Duration, high: Duration| match given {
            _ if given < low || given > high => {
                let [given, low, high] = [given, low, high].map(humantime::format_duration);
                Err(ConfigError(format!("{name}: {given} is out of range; allowed is {low} to {high}")))
            }
            _ => Ok(()),
        };
        let (milli, second, day) = (Duration::from_millis(1), Duration::from_secs(1), Duration::from_secs(86_400));
        within("FAILOVER_TIME", self.failover_time, second, 60 * 60 * second)?;
        within("BATCH_LINGER", self.batch_linger, milli, 60 * second)?;
        within("REQUEST_TIMEOUT", self.request_timeout, milli, 600 * second)?;
        within("API_KEY_REFRESH", self.api_key_refresh, second, day)?;
        within("DEDUP_WINDOW", self.dedup_window, second, day)?;
        within("SHUTDOWN_GRACE", self.shutdown_grace, Duration::ZERO, 60 * 60 * second)?;
        within("MAX_EVENT_AGE", self.max_event_age, second, 3660 * day)?;
        within("MAX_EVENT_AHEAD", self.max_event_ahead, Duration::ZERO, 3660 * day)?;
        let sizes = |name: &str, given: ByteSize, low: ByteSize, high: ByteSize| match given {
            _ if given < low || given > high => {
                Err(ConfigError(format!("{name}: {given} is out of range; allowed is {low} to {high}")))
            }
            _ => Ok(()),
        };
        sizes("BATCH_MAX_BYTES", self.batch_max_bytes, ByteSize::kib(1), ByteSize::mib(64))?;
        sizes("BUFFER_MAX_BYTES", self.buffer_max_bytes, ByteSize::mib(1), ByteSize::gib(64))?;
        sizes("LOCAL_MAX_BYTES", self.local_max_bytes, ByteSize::mib(1), ByteSize::pib(1))?;
        if self.buffer_max_bytes.as_u64() < 4 * self.batch_max_bytes.as_u64() {
            return Err(ConfigError(format!(
                "BUFFER_MAX_BYTES: {} is too small; allowed is at least four times BATCH_MAX_BYTES ({})",
                self.buffer_max_bytes, self.batch_max_bytes
            )));
        }
        if self.rate_requests_per_second != 0.0 && !(0.001..=1e6).contains(&self.rate_requests_per_second) {
            return Err(ConfigError(format!(
                "RATE_REQUESTS_PER_SECOND: {} is out of range; allowed is 0 (off), or 0.001 to 1000000",
                self.rate_requests_per_second
            )));
        }
        if self.dedup_max_keys.get() > 1 << 31 {
            return Err(ConfigError(format!(
                "DEDUP_MAX_KEYS: {}; allowed is up to {}",
                self.dedup_max_keys,
                1_u32 << 31
            )));
        }
        for (name, url) in
            [("AMBERFLO_BASE_URL", &*self.amberflo_base_url), ("AMBERFLO_INGEST_URL", &self.ingest_url())]
        {
            check_url(name, url)?;
        }
        if self.worker_id.as_deref().is_some_and(|id| id.is_empty() || id.len() > 256) {
            return Err(ConfigError("WORKER_ID: allowed is a text of 1 to 256 bytes".to_owned()));
        }
        Ok(())
    }

    /// Where the API key comes from.
    ///
    /// # Errors
    /// A line that says which settings can give one.
    pub fn api_key(&self) -> Result<Source, ConfigError> {
        let key = self.amberflo_api_key.as_ref().filter(|key| !key.0.is_empty());
        match (key, &self.amberflo_api_key_file) {
            (Some(Secret(key)), None) => ApiKey::new(key)
                .map(Source::Setting)
                .map_err(|error| ConfigError(format!("AMBERFLO_API_KEY: {error}; allowed is visible ASCII"))),
            (None, Some(path)) => Ok(Source::File(path.clone())),
            (None, None) => Err(ConfigError(
                "no API key: set AMBERFLO_API_KEY, or AMBERFLO_API_KEY_FILE to a file that holds it".to_owned(),
            )),
            (Some(_), Some(_)) => Err(ConfigError(
                "AMBERFLO_API_KEY and AMBERFLO_API_KEY_FILE are both set; allowed is one of them".to_owned(),
            )),
        }
    }

    /// The ingest endpoint's base.
    #[must_use]
    pub fn ingest_url(&self) -> String {
        let base = &self.amberflo_base_url;
        let default = if base.trim_end_matches('/') == DEFAULT_BASE_URL { DEFAULT_INGEST_URL } else { base };
        self.amberflo_ingest_url.clone().unwrap_or_else(|| default.to_owned())
    }

    /// What an event may be.
    #[must_use]
    pub fn event_rules(&self) -> EventRules {
        EventRules {
            max_age: self.max_event_age,
            max_ahead: self.max_event_ahead,
            allow_aflo_dimensions: self.allow_aflo_dimensions,
        }
    }

    /// How batches are cut.
    #[must_use]
    pub fn batch_limits(&self) -> BatchLimits {
        let max_bytes = usize::try_from(self.batch_max_bytes.as_u64()).ok().and_then(NonZeroUsize::new);
        BatchLimits {
            max_events: self.batch_max_events,
            max_bytes: max_bytes.unwrap_or(NonZeroUsize::MIN),
            linger: self.batch_linger,
        }
    }

    /// How long the local store keeps records behind the checkpoint: a rebuild reads one window, twice is safe.
    #[must_use]
    pub fn local_retention(&self) -> Duration {
        2 * self.dedup_window + REBUILD_SLACK
    }

    /// This worker's name.
    #[must_use]
    pub fn worker_id(&self) -> WorkerId {
        let suffix = uuid::Uuid::new_v4().simple().to_string();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = if host.trim().is_empty() { "worker" } else { host.trim() };
        WorkerId(self.worker_id.clone().unwrap_or_else(|| format!("{host}-{}", &suffix[..8])))
    }
}

fn check_url(name: &str, url: &str) -> Result<(), ConfigError> {
    let parsed = url.parse::<http::Uri>().ok();
    // It may hold a password, so it is not shown.
    if url.contains('@') {
        return Err(ConfigError(format!(
            "{name}: a URL with a user name or password; allowed is http://HOST or https://HOST"
        )));
    }
    let scheme = parsed.as_ref().and_then(|uri| uri.scheme_str());
    match (scheme, parsed.as_ref().and_then(|uri| uri.host())) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() && !url.contains('?') => Ok(()),
        _ => Err(ConfigError(format!("{name}: {url:?} is not a URL; allowed is http://HOST or https://HOST"))),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "allowed is ADDR:PORT, such as 127.0.0.1:4010".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| "allowed is a number, such as 10".to_owned())
}

fn reason(text: &str) -> Result<Reason, String> {
    let names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    Reason::from_name(text).ok_or_else(|| format!("allowed is one of {}", names.join(", ")))
}

fn positive<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "allowed is a whole number from 1".to_owned())
}

fn whole(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "allowed is a whole number from 0".to_owned())
}

fn size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|_| "allowed is a number with a unit, such as 64KiB, 1MiB or 8GiB".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "allowed is a number with a unit, such as 500ms, 30s, 5m or 1h".to_owned())
}
