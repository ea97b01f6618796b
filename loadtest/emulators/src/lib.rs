//! Emulated AWS services for the tests: Kinesis by `kinesis-local`, the others by `moto`. And a [`collector`] of traces.
//!
//! `setup.sh` installs them under `target/tools`. Every emulator is a process of its own, listens on a loopback port
//! that the system chose, keeps all in memory, and ends with the value that stands for it.
//!
//! ```no_run
//! # async fn test() {
//! let kinesis = match emulators::Kinesis::start().await {
//!     Ok(kinesis) => kinesis,
//!     Err(reason) => return emulators::skip("kinesis-contract", &reason),
//! };
//! let client = aws_sdk_kinesis::Client::new(&emulators::configuration(&kinesis.url));
//! # }
//! ```

mod canned;
pub mod collector;
mod fault;
mod process;
mod server;
mod services;
mod streams;
mod throttle;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};

pub use canned::{CannedKinesis, CannedSettings, CannedShard};
pub use collector::Collector;
pub use fault::{Fault, THROUGHPUT_EXCEEDED};
pub use services::{create_queue, put_secret, take_messages};
pub use streams::Stream;
pub use throttle::{Calls, Throttle};

use process::Process;

/// The region of [`configuration`] and [`environment`].
pub const REGION: &str = "us-east-1";

/// What `setup.sh` leaves last in the directory of each.
const KINESIS_COMPLETE: &str = "kinesis/installed-lock.json";
const MOTO_COMPLETE: &str = "moto/requirements.txt";

/// A test on a busy machine waits for long, but not for ever.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// An emulated Kinesis with no streams; several at once do not see each other. Needs Node.js.
#[derive(Debug)]
pub struct Kinesis {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    process: Process,
}

impl Kinesis {
    /// Starts one; it takes connections when this returns.
    ///
    /// Streams, splits and merges are complete at once. A stream is created with at most 1,000 shards. It takes and
    /// gives only a few thousand records a second: [`CannedKinesis`] is for measurements.
    ///
    /// # Errors
    /// What is not installed and how to install it, or what the emulator said instead of its address.
    pub async fn start() -> Result<Self, String> {
        let tools = installed(KINESIS_COMPLETE)?;
        let mut command = Command::new("node");
        command
            .arg("--require")
            .arg(manifest_dir().join("js/loopback.cjs"))
            .arg("main.js")
            // It looks there for its certificate.
            .current_dir(tools.join("kinesis/node_modules/kinesis-local"))
            .env("KINESIS_MOCK_PLAIN_PORT", "1")
            .env("KINESIS_MOCK_TLS_PORT", "2")
            .env("AWS_REGION", REGION)
            .env("SHARD_LIMIT", "10000")
            .env("LOG_LEVEL", "WARN");
        for operation in ["CREATE_STREAM", "DELETE_STREAM", "SPLIT_SHARD", "MERGE_SHARDS", "UPDATE_SHARD_COUNT"] {
            command.env(format!("{operation}_DURATION"), "0ms");
        }
        let (process, url) = Process::start("kinesis-local", &command).await?;
        Ok(Self { url, process })
    }

    /// # Errors
    /// When it has ended by itself: how, and its last words.
    pub fn check(&mut self) -> Result<(), String> {
        self.process.check()
    }
}

/// Emulated DynamoDB, SQS, Secrets Manager, EventBridge and Cognito, all empty. Needs Python.
///
/// As in DynamoDB, of several conditional writes that exclude each other one wins.
#[derive(Debug)]
pub struct Moto {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    process: Process,
}

impl Moto {
    /// Starts one; it takes connections when this returns.
    ///
    /// # Errors
    /// What is not installed and how to install it, or what the emulator said instead of its address.
    pub async fn start() -> Result<Self, String> {
        let tools = installed(MOTO_COMPLETE)?;
        let mut command = Command::new(tools.join("moto/bin/python"));
        command.arg(manifest_dir().join("python/serial.py")).args(["-H", "127.0.0.1", "-p", "0"]);
        // No compiled files beside the source.
        command.env("PYTHONUNBUFFERED", "1").env("PYTHONDONTWRITEBYTECODE", "1");
        let (process, url) = Process::start("moto", &command).await?;
        Ok(Self { url, process })
    }

    /// # Errors
    /// When it has ended by itself: how, and its last words.
    pub fn check(&mut self) -> Result<(), String> {
        self.process.check()
    }
}

/// The configuration of a client that uses the emulator at `url`.
pub fn configuration(url: &str) -> SdkConfig {
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let timeouts = TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT).build();
    let credentials = Credentials::new("emulated", "emulated", None, None, "emulators");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::from_static(REGION))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .http_client(http)
        .timeout_config(timeouts)
        .endpoint_url(url)
        .build()
}

/// The variables of a process that uses the emulators: Kinesis at one address, all other services at the other.
///
/// Nothing of the developer's profiles remains. A service's own `AWS_ENDPOINT_URL_*` may be set over these.
pub fn environment(kinesis: &str, others: &str) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        ("AWS_ACCESS_KEY_ID", "emulated".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "emulated".to_owned()),
        ("AWS_REGION", REGION.to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ("AWS_CONFIG_FILE", "/dev/null".to_owned()),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null".to_owned()),
        ("AWS_ENDPOINT_URL_KINESIS", kinesis.to_owned()),
    ];
    let others_names = [
        "AWS_ENDPOINT_URL_DYNAMODB",
        "AWS_ENDPOINT_URL_SQS",
        "AWS_ENDPOINT_URL_SECRETS_MANAGER",
        "AWS_ENDPOINT_URL_EVENTBRIDGE",
        "AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER",
    ];
    variables.extend(others_names.map(|name| (name, others.to_owned())));
    variables
}

/// Says that a suite did not run, where `make test` collects it.
///
/// # Panics
/// With `CI=true`, where every suite has to run.
pub fn skip(suite: &str, reason: &str) {
    let line = format!("SKIPPED {suite}: {reason}");
    assert_ne!(variable("CI").as_deref(), Some("true"), "{line}");
    println!("{line}");
    if let Some(report) = variable("SUITE_REPORT") {
        let mut file = std::fs::File::options().append(true).create(true).open(report).expect("the report opens");
        writeln!(file, "{line}").expect("the report takes a line");
    }
}

#[expect(clippy::disallowed_methods, reason = "what tests need has no config module")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Whether the emulators are there at all, so that one that does not start can be told from one that is not installed.
///
/// # Errors
/// What is not installed, and how to install it.
pub fn check_installed() -> Result<(), String> {
    installed(KINESIS_COMPLETE)?;
    installed(MOTO_COMPLETE).map(drop)
}

/// The directory of the tools, if `file` says that one of them is complete.
fn installed(file: &str) -> Result<PathBuf, String> {
    match manifest_dir().join("../../target/tools").canonicalize() {
        Ok(tools) if tools.join(file).exists() => Ok(tools),
        _ => Err(format!("target/tools/{file} is missing: run loadtest/emulators/setup.sh")),
    }
}

fn manifest_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
