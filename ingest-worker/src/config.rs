//! Every setting: a flag and an environment variable each, checked before anything starts.

mod commands;
mod values;

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use shared::api_key::ApiKey;
use shared::backend::WorkerId;
use shared::clock::Clock;
use shared::event::EventRules;
use shared::service::{ConfigError, LogArgs};

use crate::batch::BatchLimits;
use crate::shard::REBUILD_SLACK;

pub use commands::{Cli, Command, DeadLettersCommand, LeasesCommand};
pub use values::{InitialPosition, KeySetting, Secret, StreamName};
use values::{address, duration, positive, rate, size, whole};

const DEFAULT_BASE_URL: &str = "https://app.amberflo.io";
const DEFAULT_INGEST_URL: &str = "https://ingest.amberflo.io";

/// The worker's settings.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Where events come from: `kinesis:NAME-OR-ARN`, or `local:DIR`, which keeps stream, leases and dead letters in one
    /// file in DIR.
    #[arg(long, env, default_value = StreamName::DEFAULT, help_heading = "Stream", global = true)]
    pub stream: StreamName,
    /// Where a shard without a checkpoint starts: `trim-horizon`, `latest`, or an RFC 3339 time.
    #[arg(long, env, default_value = "trim-horizon", help_heading = "Stream")]
    pub initial_position: InitialPosition,
    /// The DynamoDB table of leases (Kinesis only).
    #[arg(
        long,
        env,
        default_value = "amberflo-ingest-leases",
        value_name = "TABLE",
        help_heading = "Stream",
        global = true
    )]
    pub lease_table: String,
    /// Create the table of leases where there is none.
    #[arg(long, env, default_value = "false", num_args = 0..=1, default_missing_value = "true", help_heading = "Stream")]
    #[arg(action = clap::ArgAction::Set)]
    pub create_lease_table: bool,
    /// The SQS queue that takes dead letters (Kinesis only, and required there).
    #[arg(long, env, value_name = "URL", help_heading = "Stream", global = true)]
    pub dead_letter_queue: Option<String>,
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
    /// The secret in AWS Secrets Manager that holds the API key: its name or ARN. It is a JSON object; read again every
    /// API_KEY_REFRESH and when Amberflo refuses the key.
    #[arg(long, env, value_name = "NAME-OR-ARN", help_heading = "Amberflo")]
    pub api_key_secret_name: Option<String>,
    /// The member of that JSON object which is the API key.
    #[arg(long, env, value_name = "MEMBER", help_heading = "Amberflo")]
    pub api_key_secret_id: Option<String>,
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
        if let InitialPosition::Time(time) = self.initial_position
            && time.as_millisecond() > Clock::system().now()
        {
            return Err(ConfigError(format!("INITIAL_POSITION: {time} lies ahead; allowed is a time in the past")));
        }
        if let (StreamName::Local(_), Some(queue)) = (&self.stream, &self.dead_letter_queue) {
            return Err(ConfigError(format!(
                "DEAD_LETTER_QUEUE: {queue:?}, but with STREAM=local:... the local store takes the dead letters; allowed \
                 is none"
            )));
        }
        if self.worker_id.as_deref().is_some_and(|id| id.is_empty() || id.len() > 256) {
            return Err(ConfigError("WORKER_ID: allowed is a text of 1 to 256 bytes".to_owned()));
        }
        Ok(())
    }

    /// The queue of dead letters.
    ///
    /// # Errors
    /// A line that says that one is needed.
    pub fn queue(&self) -> Result<&str, ConfigError> {
        self.dead_letter_queue.as_deref().filter(|url| !url.is_empty()).ok_or_else(|| {
            ConfigError("DEAD_LETTER_QUEUE: with STREAM=kinesis:... it is needed: the URL of an SQS queue".to_owned())
        })
    }

    /// Where the API key comes from.
    ///
    /// # Errors
    /// A line that says which settings can give one.
    pub fn key(&self) -> Result<KeySetting, ConfigError> {
        let mut found = Vec::new();
        // An empty variable counts as none, as deployments often leave it.
        if let Some(key) = self.amberflo_api_key.as_ref().filter(|key| !key.reveal().is_empty()) {
            let key = ApiKey::new(key.reveal())
                .map_err(|error| ConfigError(format!("AMBERFLO_API_KEY: {error}; allowed is visible ASCII")))?;
            found.push(("AMBERFLO_API_KEY", KeySetting::Value(key)));
        }
        if let Some(path) = &self.amberflo_api_key_file {
            found.push(("AMBERFLO_API_KEY_FILE", KeySetting::File(path.clone())));
        }
        let text = |setting: &Option<String>| setting.clone().filter(|text| !text.is_empty());
        match (text(&self.api_key_secret_name), text(&self.api_key_secret_id)) {
            (Some(name), Some(member)) => found.push(("API_KEY_SECRET_NAME", KeySetting::Secret { name, member })),
            (Some(_), None) => {
                return Err(ConfigError(
                    "API_KEY_SECRET_NAME: needs API_KEY_SECRET_ID too: which member of the secret is the API key"
                        .to_owned(),
                ));
            }
            (None, Some(_)) => {
                return Err(ConfigError("API_KEY_SECRET_ID: needs API_KEY_SECRET_NAME too: which secret".to_owned()));
            }
            (None, None) => {}
        }
        match found.len() {
            0 => Err(ConfigError(
                "no API key: set AMBERFLO_API_KEY, or AMBERFLO_API_KEY_FILE to a file that holds it, or \
                 API_KEY_SECRET_NAME and API_KEY_SECRET_ID"
                    .to_owned(),
            )),
            1 => Ok(found.remove(0).1),
            _ => Err(ConfigError(format!("{} and {} are both set; allowed is one of them", found[0].0, found[1].0))),
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
