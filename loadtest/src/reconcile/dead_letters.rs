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
use shared::dead_letters::{Filter, Peek, peek};
use shared::reason::Reason;
use shared::settings::{Secret, check_url};
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
    /// Why they are not all, and what to do: then nothing can be said for certain.
    pub unread: Option<String>,
    /// How many this look has left hidden, so that the next may miss them.
    pub hidden: usize,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').unwrap_or_default();
        let url = || check_url(kind, rest).map(|()| rest.trim_end_matches('/').to_owned()).map_err(|e| e.to_string());
        match kind {
            "local" if !rest.is_empty() => Ok(Self::Local(rest.into())),
            "sqs" => url().map(Self::Sqs),
            "control-api" => url().map(Self::ControlApi),
            _ => Err("allowed is local:DIR, sqs:QUEUE-URL or control-api:URL".to_owned()),
        }
    }
}

impl Place {
    /// All letters that can be seen. They stay where they are.
    ///
    /// # Errors
    /// When they cannot be read.
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
        let Some(&(last, _)) = page.last() else {
            return Ok(Found { letters, notes: Vec::new(), unread: None, hidden: 0 });
        };
        after = last;
        letters.extend(page.into_iter().map(|(_, letter)| letter));
    }
}

async fn sqs(url: &str) -> anyhow::Result<Found> {
    let queue = SqsDeadLetters::open(&aws::configuration(None).await?, url, RETENTION).await?;
    Ok(peek(&queue, &Filter::default(), SQS_MAX, Instant::now() + SQS_TIME).await?.into())
}

impl Found {
    /// Of a look after one that left so many letters hidden: until they show again it cannot see them all.
    pub fn follow(&mut self, hidden: usize) {
        if self.letters.len() < hidden {
            let text = format!("{hidden} of them were left hidden by an earlier look. Audit again in a minute");
            self.unread.get_or_insert(text);
            // They are still owed.
            self.hidden = hidden;
        }
    }
}

impl From<Peek> for Found {
    fn from(seen: Peek) -> Self {
        let omitted = seen.letters.iter().filter(|letter| letter.payload.stored().is_none()).count();
        let mut notes = Vec::new();
        if omitted > 0 {
            notes.push(format!(
                "{omitted} dead letters lack their payload (too large for the queue) and are not recognised"
            ));
        }
        if seen.hidden {
            notes.push("the dead letters that were looked at stay hidden from others for up to a minute".to_owned());
        }
        let unread = seen.more.then(|| {
            format!(
                "more dead letters may be in SQS than the {} that were read: it shows {SQS_MAX} at most, and so many as {} s \
                 allow. Audit again when nobody else reads the queue; where it is too large, remove or redrive what \
                 belongs to no run that is to be audited",
                seen.letters.len(),
                SQS_TIME.as_secs()
            )
        });
        let hidden = if seen.hidden { seen.letters.len() } else { 0 };
        Self { letters: seen.letters, notes, unread, hidden }
    }
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
        let (mut letters, mut unread) = (Vec::new(), None);
        for reason in Reason::ALL.iter().map(|reason| reason.as_str()) {
            let page = self.page(&[("reason", reason)]).await?;
            if !page.more {
                letters.extend(page.letters);
                continue;
            }
            let tenants: BTreeSet<&str> = truth.valid.iter().map(|event| event.tenant.as_str()).collect();
            for tenant in tenants {
                let page = self.page(&[("reason", reason), ("tenantId", tenant)]).await?;
                if page.more {
                    unread.get_or_insert_with(|| {
                        format!(
                            "tenant {tenant} has more than {API_MAX} letters of reason {reason}, which the control API does \
                             not show. Audit with local:DIR or sqs:QUEUE-URL"
                        )
                    });
                }
                letters.extend(page.letters);
            }
        }
        let note = "dead letters were seen through the control API: those that another receiver has in hand, and those of \
                    which no tenant is known where there are many, are not among them";
        Ok(Found { letters, notes: vec![note.to_owned()], unread, hidden: 0 })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_was_not_read_to_its_end_is_told_apart() {
        let seen = |more, hidden| Found::from(Peek { letters: Vec::new(), more, hidden });
        assert!(seen(false, false).unread.is_none());
        // Letters that stay hidden were read.
        assert!(seen(false, true).unread.is_none());
        assert!(seen(true, false).unread.unwrap().contains("Audit again"));
    }

    #[test]
    fn letters_that_an_earlier_look_left_hidden_are_missed() {
        let look = |hidden| Found { letters: Vec::new(), notes: Vec::new(), unread: None, hidden };
        let mut first = look(0);
        first.follow(0);
        assert!(first.unread.is_none());
        let mut next = look(0);
        next.follow(5);
        assert!(next.unread.is_some_and(|text| text.contains("5 of them")) && next.hidden == 5);
    }
}
