//! Every setting: a flag and an environment variable each, checked before anything starts.

mod commands;
mod values;

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use shared::backend::WorkerId;
use shared::clock::Clock;
use shared::service::{ConfigError, LogArgs, TraceArgs};
use shared::settings::{
    AmberfloArgs, BackendArgs, EventArgs, address, check_url, duration, positive, rate, size, whole, within,
    within_time,
};

use crate::batch::BatchLimits;
use crate::shard::REBUILD_SLACK;

pub use commands::{Cli, Command, DeadLettersCommand, LeasesCommand};
pub use values::InitialPosition;

/// The worker's settings.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Where the stream and the dead letters lie.
    #[command(flatten)]
    pub backends: BackendArgs,
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
    /// A lease not renewed for this long may be taken by another worker.
    #[arg(long, env, default_value = "10s", value_parser = duration, help_heading = "Stream")]
    pub failover_time: Duration,
    /// This worker's name in leases and dead letters; must be unique. Default: host name and a random suffix.
    #[arg(long, env, help_heading = "Stream")]
    pub worker_id: Option<String>,
    /// Local bus: where PutEvents answers (local streams only).
    #[arg(long, env, default_value = "127.0.0.1:4010", value_name = "ADDR:PORT", value_parser = address, help_heading = "Stream")]
    pub listen: SocketAddr,
    /// Amberflo's API and the key to it.
    #[command(flatten)]
    pub amberflo: AmberfloArgs,
    /// Amberflo's ingest endpoint. Default: ingest.amberflo.io, or the base URL where that was changed.
    #[arg(long, env, value_name = "URL", help_heading = "Amberflo")]
    pub amberflo_ingest_url: Option<String>,
    /// How long a request may take.
    #[arg(long, env, default_value = "30s", value_parser = duration, help_heading = "Amberflo")]
    pub request_timeout: Duration,

    /// Most records in a batch.
    #[arg(long, env, default_value = "1000", value_parser = positive::<NonZeroUsize>, help_heading = "Batches")]
    pub batch_max_events: NonZeroUsize,
    /// Most bytes in a batch, before compression.
    #[arg(long, env, default_value = "1MiB", value_name = "SIZE", value_parser = size, help_heading = "Batches")]
    pub batch_max_bytes: ByteSize,
    /// How long a batch waits for more records. What its first record has waited to be read counts, up to a fifth of this.
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
    /// What an event may be.
    #[command(flatten)]
    pub events: EventArgs,

    /// How long a drain may take after SIGTERM or SIGINT; a second signal ends the process at once.
    #[arg(long, env, default_value = "25s", value_parser = duration, help_heading = "Operation")]
    pub shutdown_grace: Duration,
    /// Where the status page, /health, /ready and /metrics answer.
    #[arg(
        long,
        env,
        default_value = "127.0.0.1:9464",
        value_name = "ADDR:PORT",
        value_parser = address,
        help_heading = "Operation",
        global = true
    )]
    pub admin_listen: SocketAddr,
    /// Logs.
    #[command(flatten)]
    pub logs: LogArgs,
    /// Traces.
    #[command(flatten)]
    pub traces: TraceArgs,
}

impl Settings {
    /// Checks what a single value cannot show.
    ///
    /// # Errors
    /// One line that names the setting, what was given and what is allowed.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.backends.check()?;
        self.amberflo.check()?;
        self.events.check()?;
        let (milli, second, day) = (Duration::from_millis(1), Duration::from_secs(1), Duration::from_secs(86_400));
        within_time("FAILOVER_TIME", self.failover_time, second, 60 * 60 * second)?;
        within_time("BATCH_LINGER", self.batch_linger, milli, 60 * second)?;
        within_time("REQUEST_TIMEOUT", self.request_timeout, milli, 600 * second)?;
        within_time("DEDUP_WINDOW", self.dedup_window, second, day)?;
        within_time("SHUTDOWN_GRACE", self.shutdown_grace, Duration::ZERO, 60 * 60 * second)?;
        within("BATCH_MAX_BYTES", self.batch_max_bytes, ByteSize::kib(1), ByteSize::mib(64))?;
        within("BUFFER_MAX_BYTES", self.buffer_max_bytes, ByteSize::mib(1), ByteSize::gib(64))?;
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
        check_url("AMBERFLO_INGEST_URL", &self.ingest_url())?;
        if let InitialPosition::Time(time) = self.initial_position
            && time.as_millisecond() > Clock::system().now()
        {
            return Err(ConfigError(format!("INITIAL_POSITION: {time} lies ahead; allowed is a time in the past")));
        }
        if self.worker_id.as_deref().is_some_and(|id| id.is_empty() || id.len() > 256) {
            return Err(ConfigError("WORKER_ID: allowed is a text of 1 to 256 bytes".to_owned()));
        }
        Ok(())
    }

    /// The ingest endpoint's base.
    #[must_use]
    pub fn ingest_url(&self) -> String {
        self.amberflo.ingest_url(self.amberflo_ingest_url.as_deref())
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
