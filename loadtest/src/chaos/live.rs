//! What is to be seen while a run goes on: one line for each deployment.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use tokio::time::interval;
use tokio_util::task::AbortOnDropHandle;

use super::board::Board;

const EVERY: Duration = Duration::from_millis(500);
/// Off a terminal a line is printed with every so manieth look.
const LINES_EVERY: u64 = 20;

/// Shows the run until it is dropped.
pub struct Live {
    bar: Option<ProgressBar>,
    _task: AbortOnDropHandle<()>,
}

impl Live {
    /// A live line where people watch, plain lines elsewhere.
    #[must_use]
    pub fn start(boards: Vec<Arc<Board>>, length: Duration) -> Self {
        let is_watched = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let bar = is_watched.then(|| ProgressBar::new(length.as_secs()));
        if let Some(bar) = &bar {
            // The template is a constant; a wrong one would only look plain.
            let style = ProgressStyle::with_template("{spinner} [{wide_bar}] {elapsed_precise}\n{msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        }
        let task = AbortOnDropHandle::new(tokio::spawn(show(boards, bar.clone())));
        Self { bar, _task: task }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

async fn show(boards: Vec<Arc<Board>>, bar: Option<ProgressBar>) {
    let mut ticks = interval(EVERY);
    for count in 0.. {
        ticks.tick().await;
        let lines = boards.iter().map(|board| line(board));
        match &bar {
            Some(bar) => {
                bar.set_position(boards.first().map_or(0, |board| board.now().as_secs()));
                bar.set_message(lines.collect::<Vec<_>>().join("\n"));
            }
            None if count % LINES_EVERY == 0 => lines.for_each(|line| println!("{line}")),
            None => {}
        }
    }
}

fn line(board: &Board) -> String {
    let state = board.state();
    let point = state.points.last().copied().unwrap_or_default();
    let lag = point.lag.map_or("no worker".to_owned(), |lag| format!("{lag:.1}s"));
    let faults = if state.active.is_empty() { "none".to_owned() } else { state.active.join(", ") };
    let failed = state.notes.iter().filter(|note| note.text.starts_with("FAILED")).count();
    let failed = if failed > 0 { format!("  FAILED {failed}") } else { String::new() };
    format!(
        "{:>6.1}s  {:<8} emitted {}  delivered {}  absorbed by Amberflo {}  lag {lag}  workers {}{failed}  faults: {faults}",
        point.at,
        board.arena(),
        HumanCount(point.emitted),
        HumanCount(point.delivered),
        HumanCount(point.absorbed),
        point.alive,
    )
}
