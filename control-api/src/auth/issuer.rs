//! The issuer over HTTP: where its keys are, and the keys.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use super::key::Key;
use super::local::is_loopback_host;

/// Discovery and keys together.
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 256 * 1024;

pub(super) struct Issuer {
    http: reqwest::Client,
    name: String,
    jwks_url: Option<Url>,
}

/// What the issuer answered.
pub(super) struct Answer {
    pub(super) keys: Vec<Key>,
    /// Where the keys were found.
    pub(super) found_at: Url,
}

#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

impl Issuer {
    pub(super) fn new(name: &str, jwks_url: Option<&str>) -> anyhow::Result<Self> {
        // Fails only where a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("sbt-amberflo-metering/", env!("CARGO_PKG_VERSION")))
            // The next request is an hour away.
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self { http, name: name.to_owned(), jwks_url: jwks_url.and_then(trusted_url) })
    }

    /// Fetches the keys: from JWKS_URL, or `known`, or else from where discovery says.
    pub(super) async fn keys(&self, known: Option<Url>) -> anyhow::Result<Answer> {
        let fetch = async {
            let found_at = match self.jwks_url.clone().or(known) {
                Some(url) => url,
                None => self.discover().await?,
            };
            let set = self.get(found_at.clone()).await?;
            let keys = Key::usable(&set).with_context(|| format!("{found_at} is not a key set"))?;
            ensure!(!keys.is_empty(), "{found_at} holds no key with an id for RS256 or ES256");
            Ok(Answer { keys, found_at })
        };
        tokio::time::timeout(TIMEOUT, fetch).await.with_context(|| format!("no answer within {TIMEOUT:?}"))?
    }

    /// OpenID Connect Discovery 1.0, section 4.
    async fn discover(&self) -> anyhow::Result<Url> {
        let url = format!("{}/.well-known/openid-configuration", self.name.trim_end_matches('/'));
        let url = trusted_url(&url).context("JWT_ISSUER is not a URL")?;
        let answer = self.get(url.clone()).await?;
        let Configuration { issuer, jwks_uri } =
            serde_json::from_slice(&answer).with_context(|| format!("{url} is not an OpenID configuration"))?;
        ensure!(issuer == self.name, "{url} is of the issuer {:?}; JWT_ISSUER is {:?}", excerpt(&issuer), self.name);
        trusted_url(&jwks_uri)
            .with_context(|| format!("{url}: jwks_uri {:?} is neither https nor on loopback", excerpt(&jwks_uri)))
    }

    async fn get(&self, url: Url) -> anyhow::Result<Vec<u8>> {
        let failed = || format!("GET {url}");
        let mut answer =
            self.http.get(url.clone()).send().await.map_err(reqwest::Error::without_url).with_context(failed)?;
        let status = answer.status();
        ensure!(!status.is_redirection(), "{url} answered {status}; redirects are not followed");
        ensure!(status == StatusCode::OK, "{url} answered {status}");
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url).with_context(failed)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                bail!("{url} answered more than {MAX_ANSWER_BYTES} bytes");
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// A URL whose answer nobody on the way can have changed: https, or http on loopback; without user name and fragment.
pub(super) fn trusted_url(text: &str) -> Option<Url> {
    // The parser passes over spaces, which no `iss` equals.
    let url = Url::parse(text).ok().filter(|_| !text.contains(char::is_whitespace))?;
    let safe = match url.scheme() {
        "https" => true,
        "http" => is_loopback_host(url.host_str()?),
        _ => false,
    };
    let plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    (safe && plain).then_some(url)
}

fn excerpt(text: &str) -> String {
    text.chars().take(200).collect()
}
