//! While the key or the address is wrong nobody sends, but a probe now and then.

use std::time::Duration;

use tokio::time::Instant;

use super::PROBE_INTERVAL;

/// So many requests in a row that are refused for what they hold, and none for the key, prove the key. One does not: that
/// answer may come from a gateway that has not looked at it.
const PROVING_ANSWERS: u32 = 3;
/// Until the next probe, after one that told nothing.
const NEXT_TRY: Duration = Duration::from_secs(1);

/// A pause.
pub struct Paused {
    /// When it began.
    pub since: Instant,
    /// What was answered then.
    pub cause: String,
    /// When one request may try whether it can end.
    pub next_probe: Instant,
    /// When the request began that was refused last.
    refused: Instant,
    answers: u32,
}

impl Paused {
    /// After the refusal of a request that began at `began`.
    pub fn new(began: Instant, cause: &str) -> Self {
        let now = Instant::now();
        Self { since: now, cause: cause.to_owned(), next_probe: now + PROBE_INTERVAL, refused: began, answers: 0 }
    }

    /// One request may try after `wait` whether the pause can end.
    pub fn probe_in(&mut self, wait: Duration) {
        self.next_probe = Instant::now() + wait;
    }

    /// A probe was refused too.
    pub fn refused(&mut self, began: Instant) {
        self.refused = self.refused.max(began);
        self.answers = 0;
    }

    /// A request that began at `began` was delivered. Answers whether that ends the pause.
    pub fn delivered(&mut self, began: Instant) -> bool {
        // Key and address were right then, but may have been changed since. One request finds out.
        self.probe_in(Duration::ZERO);
        began >= self.refused
    }

    /// A request that began at `began` was refused for what it holds. Answers whether that ends the pause.
    pub fn answered(&mut self, began: Instant) -> bool {
        // Or each part of a batch that is searched for a bad record would have to wait for the next probe.
        self.probe_in(Duration::ZERO);
        self.answers += u32::from(began >= self.refused);
        self.answers >= PROVING_ANSWERS
    }

    /// A probe told nothing. Another one may, soon: those that tell nothing must not use up all probes.
    pub fn inconclusive(&mut self) {
        self.next_probe = self.next_probe.min(Instant::now() + NEXT_TRY);
    }
}
