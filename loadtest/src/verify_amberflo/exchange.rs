//! What was sent and what came back, fit to be shown: without the key, and cut to a bound.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// How much of a body is kept.
const BODY_CHARS: usize = 1_000;
/// Exchanges kept of one probe; the last ones tell most.
const KEPT: usize = 60;

/// One request and its answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exchange {
    /// Such as `POST`.
    pub method: String,
    /// Where to.
    pub url: String,
    /// How the body was sent, where it is not plain JSON with the account's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_as: Option<String>,
    /// The body before compression, cut.
    pub request: String,
    /// The answer's status; `None` where there was none.
    pub status: Option<u16>,
    /// Those headers of the answer that matter.
    pub headers: BTreeMap<&'static str, String>,
    /// The answer's body, cut; or why there was none.
    pub answer: String,
    /// How long it took.
    pub took_ms: u64,
    /// How many times in a row the same was asked and answered.
    pub times: u32,
}

impl Exchange {
    fn is_like(&self, other: &Self) -> bool {
        let part = |exchange: &Self| Self { took_ms: 0, times: 0, ..exchange.clone() };
        part(self) == part(other)
    }
}

impl fmt::Display for Exchange {
    /// With a precision (`{:.200}`), no more characters than that of each body.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = |text: &str| cut_to(text, f.precision().unwrap_or(usize::MAX));
        let (request, answer) = (body(&self.request), body(&self.answer));
        write!(f, "> {} {}", self.method, self.url)?;
        if let Some(sent_as) = &self.sent_as {
            write!(f, " ({sent_as})")?;
        }
        if !request.is_empty() {
            write!(f, "\n> {}", request.replace('\n', "\n> "))?;
        }
        match self.status {
            Some(status) => write!(f, "\n< {status}")?,
            None => write!(f, "\n< no answer")?,
        }
        write!(f, " after {} ms", self.took_ms)?;
        if self.times > 1 {
            write!(f, ", {} times in a row", self.times)?;
        }
        for (name, value) in &self.headers {
            write!(f, "\n< {name}: {value}")?;
        }
        if answer.is_empty() { Ok(()) } else { write!(f, "\n< {}", answer.replace('\n', "\n< ")) }
    }
}

/// The exchanges of one probe.
#[derive(Debug, Default)]
pub struct Log(Mutex<Vec<Exchange>>);

impl Log {
    pub fn push(&self, exchange: Exchange) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.last_mut() {
            Some(last) if last.is_like(&exchange) => {
                last.times += 1;
                last.took_ms = exchange.took_ms;
            }
            _ => kept.push(exchange),
        }
        if kept.len() > KEPT {
            kept.remove(0);
        }
    }

    pub fn take(&self) -> Vec<Exchange> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The beginning of a text, and how long it is.
#[must_use]
pub fn cut(text: &str) -> String {
    match text.len() {
        bytes if bytes > BODY_CHARS => format!("{} ({bytes} bytes in all)", cut_to(text, BODY_CHARS)),
        _ => text.to_owned(),
    }
}

/// A text as part of a line.
#[must_use]
pub fn brief(text: &str) -> String {
    cut_to(&text.split_whitespace().collect::<Vec<_>>().join(" "), 120)
}

fn cut_to(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(answer: &str) -> Exchange {
        Exchange {
            method: "POST".to_owned(),
            url: "http://a/usage".to_owned(),
            sent_as: None,
            request: "{}".to_owned(),
            status: Some(200),
            headers: BTreeMap::new(),
            answer: answer.to_owned(),
            took_ms: 3,
            times: 1,
        }
    }

    #[test]
    fn what_repeats_is_shown_once() {
        let log = Log::default();
        ["a", "a", "b", "a"].map(exchange).into_iter().for_each(|exchange| log.push(exchange));
        let kept = log.take();
        assert_eq!(kept.iter().map(|exchange| exchange.times).collect::<Vec<_>>(), [2, 1, 1]);
        assert!(kept[0].to_string().contains("2 times in a row"), "{}", kept[0]);
    }

    #[test]
    fn long_bodies_are_cut_between_characters() {
        let text = "ü".repeat(5_000);
        assert!(cut(&text).ends_with("ü... (10000 bytes in all)"));
        assert_eq!(cut("short"), "short");
        assert_eq!(brief("a\n  b"), "a b");
    }
}
