//! A report: a directory of `report.md`, the charts that it shows, and `result.json`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;

use crate::chart::Chart;

/// Makes the directory of a report, before the work whose result it is to hold: where it cannot be made, that is said at
/// once and not in the end.
///
/// # Errors
/// When it cannot be made.
pub fn prepare(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("--report {}", dir.display()))
}

/// A report in the making.
pub struct ReportDir {
    dir: PathBuf,
    text: String,
}

impl ReportDir {
    /// Begins one in this directory, which is made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(dir: &Path, title: &str) -> anyhow::Result<Self> {
        prepare(dir)?;
        Ok(Self { dir: dir.to_owned(), text: format!("# {title}\n") })
    }

    /// A paragraph, a list, or whatever else is Markdown.
    pub fn text(&mut self, markdown: &str) {
        // Writing to a String cannot fail.
        let _ = write!(self.text, "\n{}\n", markdown.trim_end());
    }

    /// A heading.
    pub fn section(&mut self, title: &str) {
        self.text(&format!("## {title}"));
    }

    /// A table.
    pub fn table<const N: usize>(&mut self, heads: [&str; N], rows: &[[String; N]]) {
        let line = |cells: &[String]| {
            let cells: Vec<_> = cells.iter().map(|text| cell(text)).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let mut table =
            line(&heads.map(str::to_owned)) + &line(&[const { String::new() }; N].map(|_| "---".to_owned()));
        table.extend(rows.iter().map(|row| line(row)));
        self.text(&table);
    }

    /// A chart, in a file of this name beside the report.
    ///
    /// # Errors
    /// When it cannot be drawn or written.
    pub fn chart(&mut self, name: &str, chart: &Chart) -> anyhow::Result<()> {
        let file = format!("{name}.svg");
        self.write(&file, &chart.svg()?)?;
        self.text(&format!("![{}]({file})", chart.title));
        Ok(())
    }

    /// Writes the report, and its result as JSON.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn finish(self, result: &impl Serialize) -> anyhow::Result<()> {
        self.write("result.json", &(serde_json::to_string_pretty(result)? + "\n"))?;
        self.write("report.md", &self.text)
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let file = self.dir.join(name);
        std::fs::write(&file, text).with_context(|| format!("the report's {}", file.display()))
    }
}

/// A text that may stand in a table.
#[must_use]
pub fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
