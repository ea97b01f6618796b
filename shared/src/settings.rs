//! Settings that both services read: what a setting's text can be, what it means, and where it is wrong.

mod values;

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;

use crate::api_key::ApiKey;
use crate::event::EventRules;
use crate::service::ConfigError;
pub use values::{KeySetting, Secret, StreamName, address, duration, positive, rate, reason, size, time, whole};

/// Amberflo's API, unless the settings say otherwise.
pub const DEFAULT_BASE_URL: &str = "https://app.amberflo.io";
/// Where it takes usage, unless the settings say otherwise.
const DEFAULT_INGEST_URL: &str = "https://ingest.amberflo.io";

/// Where the stream and the dead letters lie.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Stream")]
pub struct BackendArgs {
    /// Where events come from: `kinesis:NAME-OR-ARN`, or `local:DIR`, which keeps stream, leases and dead letters in one
    /// file in DIR.
    #[arg(long, env, default_value = StreamName::DEFAULT, global = true)]
    pub stream: StreamName,
    /// The SQS queue that takes dead letters (Kinesis only, and required there).
    #[arg(long, env, value_name = "URL", global = true)]
    pub dead_letter_queue: Option<String>,
    /// Size at which the local store takes no more events; what it holds is kept.
    #[arg(long, env, default_value = "8GiB", value_name = "SIZE", value_parser = size)]
    pub local_max_bytes: ByteSize,
}

impl BackendArgs {
    /// Checks what a single value cannot show.
    ///
    /// # Errors
    /// One line that names the setting, what was given and what is allowed.
    pub fn check(&self) -> Result<(), ConfigError> {
        within("LOCAL_MAX_BYTES", self.local_max_bytes, ByteSize::mib(1), ByteSize::pib(1))?;
        match (&self.stream, &self.dead_letter_queue) {
            (StreamName::Local(_), Some(queue)) => Err(ConfigError(format!(
                "DEAD_LETTER_QUEUE: {queue:?}, but with STREAM=local:... the local store takes the dead letters; allowed \
                 is none"
            ))),
            _ => Ok(()),
        }
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
}

/// Amberflo's API and the key to it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Amberflo")]
pub struct AmberfloArgs {
    /// Amberflo's API.
    #[arg(long, env, default_value = DEFAULT_BASE_URL, value_name = "URL")]
    pub amberflo_base_url: String,
    /// The API key. Prefer the file: a process's environment is easy to read.
    #[arg(long, env, hide_env_values = true, value_name = "KEY")]
    pub amberflo_api_key: Option<Secret>,
    /// A file that holds the API key; read again every API_KEY_REFRESH and when Amberflo refuses the key.
    #[arg(long, env, value_name = "PATH")]
    pub amberflo_api_key_file: Option<PathBuf>,
    /// The secret in AWS Secrets Manager that holds the API key: its name or ARN. It is a JSON object; read again every
    /// API_KEY_REFRESH and when Amberflo refuses the key.
    #[arg(long, env, value_name = "NAME-OR-ARN")]
    pub api_key_secret_name: Option<String>,
    /// The member of that JSON object which is the API key.
    #[arg(long, env, value_name = "MEMBER")]
    pub api_key_secret_id: Option<String>,
    /// How often the API key is read again.
    #[arg(long, env, default_value = "5m", value_parser = duration)]
    pub api_key_refresh: Duration,
}

impl AmberfloArgs {
    /// Checks what a single value cannot show.
    ///
    /// # Errors
    /// One line that names the setting, what was given and what is allowed.
    pub fn check(&self) -> Result<(), ConfigError> {
        within_time("API_KEY_REFRESH", self.api_key_refresh, Duration::from_secs(1), DAY)?;
        check_url("AMBERFLO_BASE_URL", &self.amberflo_base_url)
    }

    /// The ingest endpoint's base: what is given, else Amberflo's, or the base URL where that was changed.
    #[must_use]
    pub fn ingest_url(&self, given: Option<&str>) -> String {
        let base = &self.amberflo_base_url;
        let default = if base.trim_end_matches('/') == DEFAULT_BASE_URL { DEFAULT_INGEST_URL } else { base };
        given.unwrap_or(default).to_owned()
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
}

/// What an event may be.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Events")]
pub struct EventArgs {
    /// How far before its arrival an event's time may lie.
    #[arg(long, env, default_value = "60d", value_parser = duration)]
    pub max_event_age: Duration,
    /// How far after its arrival an event's time may lie.
    #[arg(long, env, default_value = "1h", value_parser = duration)]
    pub max_event_ahead: Duration,
    /// Allow dimensions whose names begin with `aflo.`: they can cancel usage in Amberflo.
    #[arg(long, env, default_value = "false", num_args = 0..=1, default_missing_value = "true")]
    #[arg(action = clap::ArgAction::Set)]
    pub allow_aflo_dimensions: bool,
}

impl EventArgs {
    /// Checks what a single value cannot show.
    ///
    /// # Errors
    /// One line that names the setting, what was given and what is allowed.
    pub fn check(&self) -> Result<(), ConfigError> {
        within_time("MAX_EVENT_AGE", self.max_event_age, Duration::from_secs(1), 3660 * DAY)?;
        within_time("MAX_EVENT_AHEAD", self.max_event_ahead, Duration::ZERO, 3660 * DAY)
    }

    /// The rules.
    #[must_use]
    pub fn rules(&self) -> EventRules {
        EventRules {
            max_age: self.max_event_age,
            max_ahead: self.max_event_ahead,
            allow_aflo_dimensions: self.allow_aflo_dimensions,
        }
    }
}

const DAY: Duration = Duration::from_secs(86_400);

/// Checks that a setting lies in a range, both ends included.
///
/// # Errors
/// One line that names the setting, what was given and what is allowed.
pub fn within<T: PartialOrd + std::fmt::Display>(name: &str, given: T, low: T, high: T) -> Result<(), ConfigError> {
    if given < low || given > high {
        return Err(ConfigError(format!("{name}: {given} is out of range; allowed is {low} to {high}")));
    }
    Ok(())
}

/// [`within`] for durations.
///
/// # Errors
/// As [`within`].
pub fn within_time(name: &str, given: Duration, low: Duration, high: Duration) -> Result<(), ConfigError> {
    if given < low || given > high {
        let [given, low, high] = [given, low, high].map(humantime::format_duration);
        return Err(ConfigError(format!("{name}: {given} is out of range; allowed is {low} to {high}")));
    }
    Ok(())
}

/// Checks that a setting is the URL of a server.
///
/// # Errors
/// One line that names the setting, what was given (unless it may hold a password) and what is allowed.
pub fn check_url(name: &str, url: &str) -> Result<(), ConfigError> {
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

/// Whether requests to this URL, and the API key with them, can be read on their way.
#[must_use]
pub fn is_clear_text(url: &str) -> bool {
    let is_local = ["//127.", "//localhost", "//[::1]"].iter().any(|host| url.contains(host));
    url.starts_with("http:") && !is_local
}

/// Warns where requests to this URL, and the API key with them, can be read on their way.
pub fn warn_of_clear_text(url: &str) {
    if is_clear_text(url) {
        tracing::warn!(url, "the API key and all usage leave this machine in clear text: use https");
    }
}
