//! Every setting: a flag and an environment variable each, checked before anything starts.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser};
use http::{HeaderValue, Uri};
use shared::event::DETAIL_TYPES;
use shared::service::{ConfigError, LogArgs, TraceArgs};
use shared::settings::{
    AmberfloArgs, BackendArgs, EventArgs, StreamName, address, duration, rate, within, within_time,
};

use crate::auth::AuthArgs;

/// The admin API of metering: meters, usage, cancellation, ingestion, dead letters.
///
/// Exit codes: 0 drained after a signal, 2 settings it cannot work with, 1 anything else.
#[derive(Debug, Parser)]
#[command(name = "control-api", version)]
pub struct Cli {
    /// The settings of every form.
    #[command(flatten)]
    pub settings: Settings,
    /// Those of the server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// What a server has and a Lambda function has not.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Where the API answers.
    #[arg(long, env, default_value = "127.0.0.1:8080", value_name = "ADDR:PORT", value_parser = address)]
    pub listen: SocketAddr,
    /// Where the status page, /health, /ready and /metrics answer.
    #[arg(long, env, default_value = "127.0.0.1:9465", value_name = "ADDR:PORT", value_parser = address)]
    pub admin_listen: SocketAddr,
    /// How long a drain may take after SIGTERM or SIGINT; a second signal ends the process at once.
    #[arg(long, env, default_value = "25s", value_parser = duration)]
    pub shutdown_grace: Duration,
}

/// The settings that every form of the API has.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Where the stream and the dead letters lie.
    #[command(flatten)]
    pub backends: BackendArgs,
    /// Amberflo's API and the key to it.
    #[command(flatten)]
    pub amberflo: AmberfloArgs,
    /// What an event may be.
    #[command(flatten)]
    pub events: EventArgs,
    /// Where POST /ingest puts events.
    #[command(flatten)]
    pub bus: BusArgs,
    /// Who may call.
    #[command(flatten)]
    pub auth: AuthArgs,
    /// The origins, separated by commas, whose pages may call from a browser (CORS), such as `https://admin.example.com`.
    #[arg(long, env, value_delimiter = ',', value_name = "ORIGIN", value_parser = origin, help_heading = "Access")]
    pub cors_origins: Vec<HeaderValue>,
    /// How much callers may ask.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Logs.
    #[command(flatten)]
    pub logs: LogArgs,
    /// Traces.
    #[command(flatten)]
    pub traces: TraceArgs,
}

/// Where POST /ingest puts events.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Bus")]
pub struct BusArgs {
    /// The EventBridge bus: its name or ARN.
    #[arg(long, env, default_value = "default", value_name = "NAME-OR-ARN")]
    pub event_bus: String,
    /// The source of the events.
    #[arg(long, env, default_value = "sbt.application.plane")]
    pub event_source: String,
    /// The detail type of the events.
    #[arg(long, env, default_value = "sbt_aws_ingestUsage")]
    pub event_detail_type: String,
}

/// How much callers may ask.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// How long a request may take.
    #[arg(long, env, default_value = "30s", value_parser = duration)]
    pub request_timeout: Duration,
    /// Requests per second of one caller; 0 turns the limit off.
    #[arg(long, env, default_value = "50", value_parser = rate)]
    pub caller_requests_per_second: f64,
}

impl Settings {
    /// Checks what a single value cannot show. `listen` is where the API answers; `None` in a Lambda.
    ///
    /// # Errors
    /// One line that names the setting, what was given and what is allowed.
    pub fn check(&self, listen: Option<SocketAddr>) -> Result<(), ConfigError> {
        self.backends.check()?;
        self.auth.check(listen)?;
        self.amberflo.check()?;
        self.events.check()?;
        if matches!(self.backends.stream, StreamName::Kinesis(_)) {
            self.backends.queue()?;
        }
        let second = Duration::from_secs(1);
        within_time("REQUEST_TIMEOUT", self.limits.request_timeout, second, 600 * second)?;
        if self.limits.caller_requests_per_second != 0.0 {
            within("CALLER_REQUESTS_PER_SECOND", self.limits.caller_requests_per_second, 0.001, 1e6)?;
        }
        for (name, text) in [
            ("EVENT_BUS", &self.bus.event_bus),
            ("EVENT_SOURCE", &self.bus.event_source),
            ("EVENT_DETAIL_TYPE", &self.bus.event_detail_type),
        ] {
            if text.is_empty() {
                return Err(ConfigError(format!("{name}: is empty; leave it out for the default")));
            }
        }
        self.bus.check()
    }
}

impl BusArgs {
    /// Checks that the worker will find what is put there: of any other event EventBridge would say that it is accepted.
    ///
    /// # Errors
    /// One line that names the setting, what was given and what is allowed.
    fn check(&self) -> Result<(), ConfigError> {
        let BusArgs { event_source, event_detail_type, .. } = self;
        if !DETAIL_TYPES.contains(&&**event_detail_type) {
            let [old, new] = DETAIL_TYPES;
            return Err(ConfigError(format!("EVENT_DETAIL_TYPE: {event_detail_type:?}; allowed is {new} or {old}")));
        }
        if event_source.starts_with("aws.") {
            let allowed = "allowed is what does not begin with aws., which EventBridge keeps for AWS";
            return Err(ConfigError(format!("EVENT_SOURCE: {event_source:?}; {allowed}")));
        }
        Ok(())
    }
}

fn origin(text: &str) -> Result<HeaderValue, String> {
    let allowed = || "allowed is an origin such as https://admin.example.com".to_owned();
    let uri: Uri = text.parse().map_err(|_| allowed())?;
    let is_origin = matches!(uri.scheme_str(), Some("https" | "http")) && uri.path() == "/" && uri.query().is_none();
    // A browser sends it without a slash at its end, and compares letter by letter.
    if !is_origin || text.ends_with('/') || text.contains('@') || text != text.to_ascii_lowercase() {
        return Err(allowed());
    }
    text.parse().map_err(|_| allowed())
}
