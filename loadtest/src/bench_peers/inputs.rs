//! The events, in the form in which each contender gets them.

use std::fs;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::{NewRecord, Stream as _};

use super::lab::{Lab, Mode, run_script};
use crate::bench::payload::Generator;

const PUBLISH_AT_ONCE: usize = 2000;

/// The same events, as EventBridge hands them on.
pub struct Events {
    /// How many.
    pub count: usize,
    /// One a line.
    pub lines: PathBuf,
    /// Parsed for the Python SDK, where there is Python.
    pub parsed: Option<PathBuf>,
    /// All of them in a local store.
    store: PathBuf,
    /// The first of them in a local store, for a run with less.
    small: (usize, PathBuf),
}

impl Events {
    /// Makes `count` events in a directory of the lab, the first `small` of them once more. `is_numbered`: their values
    /// are 1, 2, 3 and so on, by which an audit knows them whatever a peer makes of the rest.
    pub async fn make(lab: &Lab, name: &str, count: usize, small: usize, is_numbered: bool) -> anyhow::Result<Self> {
        let dir = lab.dir.path().join(name);
        fs::create_dir(&dir)?;
        let lines = dir.join("events.jsonl");
        let mut file = BufWriter::with_capacity(1 << 20, fs::File::create(&lines)?);
        let (all_dir, small_dir) = (dir.join("store"), dir.join("small"));
        let stores = [
            (count, LocalStore::open(&all_dir, LocalOptions::default())?),
            (small, LocalStore::open(&small_dir, LocalOptions::default())?),
        ];
        let mut generator = Generator::new();
        for start in (0..count).step_by(PUBLISH_AT_ONCE) {
            let mut records = Vec::new();
            for number in start + 1..=(start + PUBLISH_AT_ONCE).min(count) {
                let event = if is_numbered { generator.event_worth(&number.to_string()) } else { generator.event() };
                let data = generator.envelope(&event);
                file.write_all(&data)?;
                file.write_all(b"\n")?;
                records.push(NewRecord { data, partition_key: event.tenant });
            }
            for (wanted, store) in &stores {
                let some: Vec<_> = records.iter().take(wanted.saturating_sub(start)).cloned().collect();
                if !some.is_empty() {
                    store.publish(some).await?;
                }
            }
        }
        file.flush()?;
        let parsed = match &lab.python {
            Ok(python) => {
                let parsed = dir.join("events.marshal");
                run_script(python, "prepare.py", [&lines, &parsed]).await?;
                Some(parsed)
            }
            Err(_) => None,
        };
        Ok(Self { count, lines, parsed, store: all_dir, small: (small, small_dir) })
    }

    /// The local store for a run.
    pub fn store(&self, mode: Mode) -> &Path {
        match (&self.small, mode) {
            ((count, path), Mode::Drain(limit)) if limit == *count => path,
            _ => &self.store,
        }
    }
}

/// Copies the files of a directory. No process has the store in it open for writing.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(from)? {
        let file = file?;
        fs::copy(file.path(), to.join(file.file_name())).with_context(|| file.path().display().to_string())?;
    }
    Ok(())
}
