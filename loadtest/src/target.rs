//! Where events are put: one way for each entrance of a deployment.

pub mod api;
pub mod bus;
pub mod stream;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use reqwest::Url;
use shared::backend::{BackendError, aws};

pub use api::Api;
pub use bus::Bus;
pub use stream::EventStream;

/// SBT's event source for the application plane.
pub const SOURCE: &str = "sbt.application.plane";
/// SBT's detail type for usage.
pub const DETAIL_TYPE: &str = "ingestUsage";

/// An event, as every target takes it.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Whose usage it is: the partition key where the target has one.
    pub tenant: &'a str,
    /// The `detail`, as JSON.
    pub detail: &'a str,
}

/// What became of one event of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The target has it.
    Acknowledged,
    /// The target will never take it: it is no usage event, and the caller is told why.
    Refused(String),
    /// The target did not take it this time.
    Failed(String),
}

/// How much a call may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallLimit {
    /// Events.
    pub events: usize,
    /// Bytes of all their `detail`s.
    pub bytes: usize,
}

/// An entrance of a deployment.
#[async_trait]
pub trait Target: Send + Sync + 'static {
    /// How much a call may carry.
    fn limit(&self) -> CallLimit;

    /// Makes one call, without retries, and answers of each event in order what became of it.
    ///
    /// # Errors
    /// When nothing is known of any: events may have been taken all the same. [`BackendError::Misconfigured`] where it
    /// will never work like this.
    async fn put(&self, events: &[Event<'_>]) -> Result<Vec<Outcome>, BackendError>;
}

/// The configuration of clients of AWS: of the environment, or of a service at `endpoint`. One on this machine needs
/// neither a region nor credentials, and gets placeholders. Nothing is retried by the SDK: a producer who counts its
/// failures retries itself.
///
/// # Errors
/// When no region is known.
pub async fn aws_configuration(
    endpoint: Option<&str>,
    region: Option<&str>,
    timeout: Duration,
) -> anyhow::Result<SdkConfig> {
    let configuration = match endpoint {
        Some(url) if is_on_this_machine(url) => emulators::configuration(url),
        Some(url) => aws::configuration(region).await?.into_builder().endpoint_url(url).build(),
        None => aws::configuration(region).await?,
    };
    let timeouts = TimeoutConfig::builder().connect_timeout(timeout).operation_attempt_timeout(timeout).build();
    Ok(configuration.into_builder().retry_config(RetryConfig::disabled()).timeout_config(timeouts).build())
}

/// Whether a URL names this machine: nothing that costs money listens there.
#[must_use]
pub fn is_on_this_machine(url: &str) -> bool {
    let host = Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// A client for plain HTTP, which uses a proxy only to get away from this machine.
///
/// # Errors
/// When it cannot start.
pub fn http_client(url: &str, timeout: Duration) -> anyhow::Result<reqwest::Client> {
    // reqwest asks for a TLS provider even where it never speaks TLS. An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().timeout(timeout);
    let client = if is_on_this_machine(url) { client.no_proxy() } else { client };
    client.build().context("the HTTP client cannot start")
}

/// Puts all events with one call.
///
/// # Errors
/// When any of them was not taken.
pub async fn put_all(target: &dyn Target, events: &[Event<'_>]) -> anyhow::Result<()> {
    for outcome in target.put(events).await? {
        if let Outcome::Refused(reason) | Outcome::Failed(reason) = outcome {
            anyhow::bail!(reason);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_told_from_others() {
        for url in ["http://127.0.0.1:4010", "http://localhost:4566/", "http://[::1]:80", "http://127.8.0.1/x"] {
            assert!(is_on_this_machine(url), "{url}");
        }
        for url in ["https://events.eu-west-1.amazonaws.com", "http://localhost.example.com", "http://10.0.0.1", "x"] {
            assert!(!is_on_this_machine(url), "{url}");
        }
    }
}
