//! The manifest of a run: every event that was made, and which of them the target acknowledged, as JSON Lines.
//!
//! An event's line is with the operating system before the event is sent, so that a run that is killed has sent nothing
//! that is not in its manifest. (A machine that loses power may lose lines.) An acknowledgement is written when it comes;
//! one that is missing makes an event one that may be billed, and need not.

mod reader;
mod writer;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::clock::UnixMillis;

use crate::mix::Mix;
use crate::truth::Truth;

pub use reader::read;
pub use writer::{Lines, Writer};

/// The version of the format.
pub const VERSION: u32 = 1;

/// The first line: which run it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub struct Header {
    /// [`VERSION`]
    pub version: u32,
    /// A part of every `uniqueId` of the run, and of no other's.
    pub run: String,
    /// Where the random sequence began.
    pub seed: u64,
    /// Where the events were put, in words.
    pub target: String,
    /// When the run began.
    pub started_at: UnixMillis,
    /// What the events were like.
    pub mix: Mix,
}

/// What a manifest tells.
#[derive(Debug)]
pub struct Manifest {
    /// Which run it was.
    pub header: Header,
    /// Every event. Times of acknowledged calls count from the Unix epoch.
    pub truth: Truth,
    /// What is odd about the file, for whoever reads the result: above all that the run did not come to its end.
    pub warnings: Vec<String>,
}

/// A line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    Run(Header),
    #[serde(borrow)]
    Valid(Valid<'a>),
    #[serde(borrow)]
    Malformed(Malformed<'a>),
    Acknowledged(Acknowledged),
    /// The run is over: nothing follows.
    End {},
}

/// A valid event was made. All that is not here is in its `detail`.
#[derive(Debug, Serialize, Deserialize)]
struct Valid<'a> {
    number: usize,
    #[serde(borrow)]
    detail: &'a RawValue,
    /// What a faulty producer sends with the same key and another value.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    conflict: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    poison: bool,
}

/// An event that is none was made.
#[derive(Debug, Serialize, Deserialize)]
struct Malformed<'a> {
    number: usize,
    /// Why it must be in the dead letters.
    reason: &'a str,
    #[serde(borrow)]
    detail: &'a RawValue,
}

/// A call was acknowledged.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Acknowledged {
    /// Numbers of valid events, with the content that was sent: 0, or 1 for the conflict.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    valid: Vec<(usize, usize)>,
    /// Numbers of malformed events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    malformed: Vec<usize>,
    /// When the call began.
    sent: UnixMillis,
    /// When its answer came.
    at: UnixMillis,
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;
    use crate::generator::Generator;
    use crate::truth::Witness as _;

    fn header() -> Header {
        let mix = Mix { run: "lt7".to_owned(), size: 300, poison: 0.01, ..Mix::demo() };
        Header { version: VERSION, run: "lt7".to_owned(), seed: 1, target: "test".to_owned(), started_at: 5, mix }
    }

    /// Writes a run of so many entries, all acknowledged at 1,000, and answers what was made.
    async fn run(path: &std::path::Path, entries: usize) -> Truth {
        let header = header();
        let truth = Arc::new(Mutex::new(Truth::default()));
        let mut memory = Generator::new(header.mix.clone(), header.seed, Arc::clone(&truth));
        let mut generator = Generator::new(header.mix.clone(), header.seed, Lines::default());
        // A temporary file that is there already.
        std::fs::remove_file(path).unwrap();
        let (writer, end) = Writer::create(path, &header).unwrap();
        assert!(Writer::create(path, &header).err().unwrap().to_string().contains("exists"));
        for number in 0..entries {
            let elapsed = Duration::from_millis(number as u64);
            let entry = memory.next(elapsed, 1_790_000_000_000);
            assert_eq!(generator.next(elapsed, 1_790_000_000_000).detail, entry.detail);
            writer.made(generator.witness()).await.unwrap();
            writer.acknowledged([entry.origin].iter().copied(), 1000, 1001).await;
            truth.lock().unwrap().acknowledge(entry.origin, Duration::from_millis(1000));
        }
        writer.ended().await;
        drop(writer);
        end.await.unwrap().unwrap();
        std::mem::take(&mut *truth.lock().unwrap())
    }

    #[tokio::test]
    async fn tells_what_was_made_and_acknowledged() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let made = run(file.path(), 2000).await;
        let manifest = read(file.path()).unwrap();
        assert_eq!(manifest.header, header());
        assert_eq!(manifest.warnings, Vec::<String>::new());
        assert_eq!(format!("{:?}", manifest.truth), format!("{made:?}"));
        assert!(made.valid.iter().any(|event| event.is_poison) && made.valid.iter().any(|e| e.variants.len() > 1));
    }

    #[tokio::test]
    async fn half_a_last_line_is_left_out_and_said() {
        let file = tempfile::NamedTempFile::new().unwrap();
        run(file.path(), 50).await;
        let text = std::fs::read_to_string(file.path()).unwrap();
        let cut = text.trim_end().rfind("\"sent\"").unwrap();
        std::fs::write(file.path(), &text[..cut]).unwrap();
        let manifest = read(file.path()).unwrap();
        assert_eq!(manifest.warnings.len(), 2, "{:?}", manifest.warnings);
        let acknowledged: u64 = manifest.truth.valid.iter().map(|event| event.acknowledged()).sum();
        let malformed: u64 = manifest.truth.malformed.iter().map(|event| event.acknowledged).sum();
        assert_eq!(acknowledged + malformed, 49);
    }

    #[tokio::test]
    async fn a_broken_manifest_is_refused_with_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        run(file.path(), 50).await;
        let text = std::fs::read_to_string(file.path()).unwrap();
        let refused = |text: String| {
            std::fs::write(file.path(), text).unwrap();
            format!("{:#}", read(file.path()).unwrap_err())
        };
        let without = |line: usize| {
            text.lines().enumerate().filter(|(at, _)| *at != line).map(|(_, l)| format!("{l}\n")).collect()
        };
        assert!(refused(without(0)).contains("line 1"), "no header");
        assert!(refused(without(1)).contains("never made"));
        assert!(refused(text.replacen("\"number\":1,", "\"number\":7,", 1)).contains("lines are missing"));
        assert!(refused(text.replacen("\"detail\"", "\"retail\"", 1)).contains("line 2"));
        assert!(refused(text.replacen("\"version\":1", "\"version\":2", 1)).contains("version 2"));
        assert!(refused(String::new()).contains("empty"));
        std::fs::File::create(file.path()).unwrap().write_all(&[0xff; 9]).unwrap();
        assert!(read(file.path()).is_err());
    }

    #[test]
    fn origins_outside_are_no_panic() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut lines = Lines::default();
        lines.malformed(crate::truth::MalformedEvent {
            detail: "{}".into(),
            reason: shared::reason::Reason::MissingField,
            acknowledged: 0,
        });
        let header = serde_json::to_string(&Line::Run(header())).unwrap();
        let text =
            format!("{header}\n{}{{\"acknowledged\":{{\"malformed\":[1],\"sent\":1,\"at\":1}}}}\n", lines.text());
        std::fs::write(file.path(), text).unwrap();
        assert!(format!("{:#}", read(file.path()).unwrap_err()).contains("line 3"));
    }
}
