//! Where dead letters lie, and a look at them that leaves them there.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use shared::backend::aws;
use shared::backend::local::{FILE_NAME, LocalOptions, LocalStore};
use shared::backend::sqs::SqsDeadLetters;
use shared::dead_letter::DeadLetter;
use shared::dead_letters::{Filter, peek};
use shared::reason::Reason;
use shared::settings::Secret;
use tokio::time::Instant;

use crate::target::http_client;
use crate::truth::Truth;

const PAGE: usize = 1000;
/// So many letters of SQS can be looked at: it hides no more than 120,000 messages of a queue at a time.
const SQS_MAX: usize = 100_000;
const SQS_TIME: Duration = Duration::from_secs(50);
/// Only to say in a letter what is too large for it; none is written here.
const RETENTION: Duration = Duration::from_secs(86_400);
/// The control API shows at most so many.
const API_MAX: usize = 100;
const TIMEOUT: Duration = Duration::from_secs(60);

/// A queue of dead letters.
#[derive(Clone, Debug)]
pub enum Place {
    /// The local store in this directory.
    Local(PathBuf),
    /// The SQS queue with this URL.
    Sqs(String),
    /// Whatever queue the control API at this URL has.
    ControlApi(String),
}

/// What was found.
pub struct Found {
    /// The letters, copies included.
    pub letters: Vec<DeadLetter>,
    /// What is to be known of them.
    pub notes: Vec<String>,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').unwrap_or_default();
        let is_url = rest.starts_with("http://") || rest.starts_with("https://");
        match kind {
            "local" if !rest.is_empty() => Ok(Self::Local(rest.into())),
            "sqs" if is_url => Ok(Self::Sqs(rest.to_owned())),
            "control-api" if is_url => Ok(Self::ControlApi(rest.trim_end_matches('/').to_owned())),
            _ => Err("allowed is local:DIR, sqs:QUEUE-URL or control-api:URL".to_owned()),
        }
    }
}

impl Place {
    /// All letters. They stay where they are.
    ///
    /// # Errors
    /// When they cannot be read, or cannot all be seen.
    pub async fn letters(&self, token: Option<&Secret>, truth: &Truth) -> anyhow::Result<Found> {
        match self {
            Self::Local(dir) => local(dir).await.with_context(|| format!("the dead letters local:{}", dir.display())),
            Self::Sqs(url) => sqs(url).await.with_context(|| format!("the dead letters sqs:{url}")),
            Self::ControlApi(url) => {
                let api = Api { http: http_client(url, TIMEOUT)?, url, token };
                api.letters(truth).await.with_context(|| format!("the dead letters control-api:{url}"))
            }
        }
    }
}

async fn local(dir: &std::path::Path) -> anyhow::Result<Found> {
    // Opening makes a store where there is none, and a wrong directory would look like a clean slate.
    ensure!(dir.join(FILE_NAME).is_file(), "there is no {FILE_NAME}");
    let store = LocalStore::open(dir, LocalOptions::default())?;
    let (mut letters, mut after) = (Vec::new(), 0);
    loop {
        let page = store.peek_dead_letters(after, PAGE).await?;
        let Some(&(last, _)) = page.last() else { return Ok(Found { letters, notes: Vec::new() }) };
        after = last;
        letters.extend(page.into_iter().map(|(_, letter)| letter));
    }
}

async fn sqs(url: &str) -> anyhow::Result<Found> {
    let queue = SqsDeadLetters::open(&aws::configuration(None).await?, url, RETENTION).await?;
    let seen = peek(&queue, &Filter::default(), SQS_MAX, Instant::now() + SQS_TIME).await?;
    let omitted = seen.letters.iter().filter(|letter| letter.payload.stored().is_none()).count();
    let mut notes = Vec::new();
    if seen.more {
        notes.push(format!("more dead letters may be in SQS than the {} that were seen", seen.letters.len()));
    }
    if omitted > 0 {
        notes.push(format!(
            "{omitted} dead letters lack their payload (too large for the queue) and are not recognised"
        ));
    }
    if seen.hidden {
        notes.push("the dead letters that were looked at stay hidden from others for up to a minute".to_owned());
    }
    Ok(Found { letters: seen.letters, notes })
}

/// The control API, which shows a sample of its queue: all of it where that is small enough.
struct Api<'a> {
    http: reqwest::Client,
    url: &'a str,
    token: Option<&'a Secret>,
}

#[derive(Deserialize)]
struct Answer {
    data: Page,
}

#[derive(Deserialize)]
struct Page {
    letters: Vec<DeadLetter>,
    more: bool,
}

impl Api<'_> {
    /// By reason, and where those are too many by reason and tenant.
    async fn letters(&self, truth: &Truth) -> anyhow::Result<Found> {
        let mut letters = Vec::new();
        for reason in Reason::ALL.iter().map(|reason| reason.as_str()) {
            let page = self.page(&[("reason", reason)]).await?;
            if !page.more {
                letters.extend(page.letters);
                continue;
            }
            let tenants: BTreeSet<&str> = truth.valid.iter().map(|event| event.tenant.as_str()).collect();
            for tenant in tenants {
                let page = self.page(&[("reason", reason), ("tenantId", tenant)]).await?;
                ensure!(
                    !page.more,
                    "tenant {tenant} has more than {API_MAX} letters of reason {reason}, which the control API does not \
                     show; use local:DIR or sqs:QUEUE-URL"
                );
                letters.extend(page.letters);
            }
        }
        let note = "dead letters were seen through the control API: those that another receiver has in hand, and those of \
                    which no tenant is known where there are many, are not among them";
        Ok(Found { letters, notes: vec![note.to_owned()] })
    }

    async fn page(&self, filter: &[(&str, &str)]) -> anyhow::Result<Page> {
        let query = form_urlencoded::Serializer::new(format!("limit={API_MAX}")).extend_pairs(filter).finish();
        let mut request = self.http.get(format!("{}/dead-letters?{query}", self.url));
        if let Some(token) = self.token {
            request = request.bearer_auth(token.reveal());
        }
        let answer = request.send().await?;
        let (status, body) = (answer.status(), answer.bytes().await?);
        ensure!(status.is_success(), "{status} {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice::<Answer>(&body)?.data)
    }
}
