//! The writing end: a thread with the file, fed by whoever has lines.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::value::RawValue;
use shared::clock::UnixMillis;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{Acknowledged, Header, Line, Malformed, Valid};
use crate::truth::{MalformedEvent, Origin, ValidEvent, Witness};

/// Pieces of text that wait for the disk; a sender waits when there are more.
const QUEUE: usize = 1024;

/// Where lines go; cheap to clone.
#[derive(Clone)]
pub struct Writer {
    chunks: mpsc::Sender<Chunk>,
}

struct Chunk {
    text: Vec<u8>,
    /// Is told when the operating system has it.
    written: Option<oneshot::Sender<()>>,
}

/// Lines of events that were made, and not written yet.
#[derive(Debug, Default)]
pub struct Lines {
    text: Vec<u8>,
    valid: usize,
    malformed: usize,
}

impl Writer {
    /// Creates the file and writes its first line. The task ends when all writers are gone, and tells
    /// whether all was written.
    ///
    /// # Errors
    /// When the file cannot be created, or exists: it may be all that is known of another run.
    pub fn create(path: &Path, header: &Header) -> anyhow::Result<(Self, JoinHandle<anyhow::Result<()>>)> {
        let place = format!("the manifest {}", path.display());
        let mut file = match File::create_new(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!("{place} exists: it belongs to another run. Name another file, or remove it")
            }
            result => result.with_context(|| place.clone())?,
        };
        file.write_all(&line(&Line::Run(header.clone()))).with_context(|| place.clone())?;
        let (chunks, receiver) = mpsc::channel(QUEUE);
        let end = tokio::task::spawn_blocking(move || write(file, receiver).context(place));
        Ok((Self { chunks }, end))
    }

    /// Without a file, for tests in paused time: a thread would stop the clock. The task answers the lines.
    #[cfg(test)]
    pub fn in_memory() -> (Self, JoinHandle<String>) {
        let (chunks, mut receiver) = mpsc::channel::<Chunk>(QUEUE);
        let lines = tokio::spawn(async move {
            let mut text = Vec::new();
            while let Some(chunk) = receiver.recv().await {
                text.extend(chunk.text);
                let _ = chunk.written.map(|written| written.send(()));
            }
            String::from_utf8_lossy(&text).into_owned()
        });
        (Self { chunks }, lines)
    }

    /// Writes the lines of new events; they may be sent when this returns.
    ///
    /// # Errors
    /// When they could not be written: the task of [`create`](Self::create) tells why.
    pub async fn made(&self, lines: &mut Lines) -> anyhow::Result<()> {
        let text = std::mem::take(&mut lines.text);
        if text.is_empty() {
            return Ok(());
        }
        let (sender, written) = oneshot::channel();
        // Where the thread has ended, nobody writes.
        let _ = self.chunks.send(Chunk { text, written: Some(sender) }).await;
        written.await.context("the manifest cannot be written")
    }

    /// Writes that a call, begun at `sent` and answered at `at`, was acknowledged for these.
    pub async fn acknowledged(&self, origins: impl Iterator<Item = Origin>, sent: UnixMillis, at: UnixMillis) {
        let mut call = Acknowledged { sent, at, ..Acknowledged::default() };
        for origin in origins {
            match origin {
                Origin::Valid { event, variant } => call.valid.push((event, variant)),
                Origin::Malformed(number) => call.malformed.push(number),
            }
        }
        if !call.valid.is_empty() || !call.malformed.is_empty() {
            self.note(line(&Line::Acknowledged(call))).await;
        }
    }

    /// Writes that the run is over.
    pub async fn ended(&self) {
        self.note(line(&Line::End {})).await;
    }

    async fn note(&self, text: Vec<u8>) {
        // An error of the thread is told by its end, and by the next event.
        let _ = self.chunks.send(Chunk { text, written: None }).await;
    }
}

impl Witness for Lines {
    fn valid(&mut self, event: ValidEvent) {
        let mut details = event.variants.iter().filter_map(|variant| raw(&variant.detail));
        if let Some(detail) = details.next() {
            let valid = Valid { number: self.valid, detail, conflict: details.next(), poison: event.is_poison };
            self.text.extend(line(&Line::Valid(valid)));
        }
        self.valid += 1;
    }

    fn malformed(&mut self, event: MalformedEvent) {
        if let Some(detail) = raw(&event.detail) {
            let reason = event.reason.as_str();
            self.text.extend(line(&Line::Malformed(Malformed { number: self.malformed, reason, detail })));
        }
        self.malformed += 1;
    }
}

impl Lines {
    /// What waits.
    #[cfg(test)]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }
}

/// Every generated `detail` is JSON.
fn raw(detail: &str) -> Option<&RawValue> {
    serde_json::from_str(detail).ok()
}

fn line(line: &Line<'_>) -> Vec<u8> {
    // What is written is text and numbers, which always have a form.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text
}

fn write(mut file: File, mut chunks: mpsc::Receiver<Chunk>) -> std::io::Result<()> {
    let mut waiting = Vec::new();
    while chunks.blocking_recv_many(&mut waiting, QUEUE) > 0 {
        let text: Vec<&[u8]> = waiting.iter().map(|chunk| &*chunk.text).collect();
        file.write_all(&text.concat())?;
        for chunk in waiting.drain(..) {
            // Nobody may wait any more.
            let _ = chunk.written.map(|written| written.send(()));
        }
    }
    file.flush()
}
