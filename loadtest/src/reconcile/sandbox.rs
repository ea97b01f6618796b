//! What a stand-in for Amberflo has billed, by its admin endpoints.

use std::time::Duration;

use amberflo_sandbox::{DoubleBilled, LedgerSnapshot, StoredRecord};
use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Shown;
use crate::audit::Bill;
use crate::target::http_client;

const TIMEOUT: Duration = Duration::from_secs(60);
const PAGE: usize = 10_000;

/// A stand-in that is running.
pub struct SandboxLedger {
    http: reqwest::Client,
    base: String,
}

#[derive(Deserialize)]
struct Records {
    started_at_ms: f64,
    next_offset: Option<usize>,
    items: Vec<StoredRecord>,
}

#[derive(Deserialize)]
struct Doubles {
    next_offset: Option<usize>,
    items: Vec<DoubleBilled>,
}

impl SandboxLedger {
    /// The stand-in at this URL.
    ///
    /// # Errors
    /// When the HTTP client cannot start.
    pub fn open(url: &str) -> anyhow::Result<Self> {
        Ok(Self { http: http_client(url, TIMEOUT)?, base: url.trim_end_matches('/').to_owned() })
    }

    /// Everything. Times of records count from the Unix epoch.
    ///
    /// # Errors
    /// When it does not answer, or keeps no records.
    pub(super) async fn show(&self) -> anyhow::Result<Shown> {
        // While events are still billed the totals may be ahead of the records; what is told in the end is at rest.
        let ledger: LedgerSnapshot = self.get("/sandbox/ledger").await?;
        let (mut records, mut next) = (Vec::new(), Some(0));
        while let Some(offset) = next {
            let page: Records = self.get(&format!("/sandbox/records?offset={offset}&limit={PAGE}")).await?;
            let started = Duration::from_secs_f64(page.started_at_ms / 1000.0);
            records.extend(page.items.into_iter().map(|record| StoredRecord { at: started + record.at, ..record }));
            next = page.next_offset;
        }
        let (mut billed_more_than_once, mut next) = (Vec::new(), Some(0));
        while let Some(offset) = next {
            let page: Doubles = self.get(&format!("/sandbox/double-billed?offset={offset}&limit={PAGE}")).await?;
            billed_more_than_once.extend(page.items);
            next = page.next_offset;
        }
        let bill = Bill { records, ledger, billed_more_than_once, ..Bill::default() };
        let blind = "the ledger is a stand-in's, which absorbs identical copies for as long as it runs: how long Amberflo \
                     does is for Amberflo to show";
        Ok(Shown { bill, blind_spots: vec![blind.to_owned()], has_times: true })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let url = format!("{}{path}", self.base);
        let answer = self.http.get(&url).send().await.with_context(|| format!("the ledger {url}"))?;
        let status = answer.status();
        let body = answer.bytes().await.with_context(|| format!("the ledger {url}"))?;
        ensure!(status.is_success(), "the ledger {url}: {status} {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).with_context(|| format!("the ledger {url}: the answer is none of a stand-in"))
    }
}
