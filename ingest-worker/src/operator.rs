//! The subcommands for operators: dead letters and leases.

use std::collections::HashSet;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use shared::backend::local::LocalStore;
use shared::backend::{Checkpoint, DeadLetters, Lease, Leases, Position, ShardId};
use shared::backends::{Backends, Kind};
use shared::clock::{Clock, UnixMillis, millis};
use shared::dead_letter::DeadLetter;
use shared::dead_letters::{Filter, Scan};
use shared::redrive;
use shared::service::{self, ConfigError};
use shared::settings::StreamName;
use tokio::time::Instant;

use crate::backends;
use crate::config::{DeadLettersCommand, LeasesCommand, Settings};
use crate::rewind::rewind;

/// Letters read from the store at a time.
const PAGE: usize = 100;
/// A received letter is hidden for a minute: it is still in hand when it is deleted or shown again at the end.
const LIST_TIME: Duration = Duration::from_secs(45);

/// Lists, redrives or deletes dead letters.
///
/// # Errors
/// When the settings name nothing that works, or the queue or the stream fails.
pub async fn dead_letters(settings: &Settings, command: DeadLettersCommand) -> anyhow::Result<ExitCode> {
    let backends = open(settings).await?;
    let queue = backends.dead_letters(&settings.backends).await?;
    match command {
        DeadLettersCommand::List => read_to_the_end(each(&backends, &*queue, |_| true, false).await)?,
        DeadLettersCommand::Delete { reason, before } => {
            let is_meant = |letter: &DeadLetter| {
                reason.is_none_or(|reason| reason.as_str() == letter.reason)
                    && before.is_none_or(|before| letter.dead_lettered_at < before.as_millisecond())
            };
            each(&backends, &*queue, is_meant, true).await?;
        }
        DeadLettersCommand::Redrive { reason } => {
            let filter = Filter { reasons: reason.map(|reason| HashSet::from([reason])), ..Filter::default() };
            let options = redrive::Options { filter, ..redrive::Options::all(Clock::system().now()) };
            let (report, failure) = match redrive::run(&*queue, &*backends.stream, &options).await {
                Ok(report) => (report, None),
                Err(stopped) => (*stopped.done, Some(stopped.error)),
            };
            print(serde_json::to_string(&report)?)?;
            if let Some(error) = failure {
                return Err(error.into());
            }
            tell_of_hidden(&*queue, report.skipped + report.others).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn open(settings: &Settings) -> anyhow::Result<Backends> {
    service::init_logs(&settings.logs)?;
    settings.check()?;
    if let StreamName::Local(directory) = &settings.backends.stream
        && !directory.is_dir()
    {
        let given = &settings.backends.stream;
        return Err(ConfigError(format!("STREAM: {given}: there is no such directory; give the worker's")).into());
    }
    backends::open(settings).await
}

/// Prints the letters that are meant, and deletes them where that is wanted.
async fn each(
    backends: &Backends,
    queue: &dyn DeadLetters,
    is_meant: impl Fn(&DeadLetter) -> bool,
    delete: bool,
) -> anyhow::Result<()> {
    match &backends.kind {
        Kind::Local(store) => each_local(store, is_meant, delete).await,
        Kind::Aws { .. } => each_received(queue, is_meant, delete).await,
    }
}

async fn each_local(store: &LocalStore, is_meant: impl Fn(&DeadLetter) -> bool, delete: bool) -> anyhow::Result<()> {
    let mut after = 0;
    loop {
        let page = store.peek_dead_letters(after, PAGE).await?;
        let Some((last, _)) = page.last() else {
            return Ok(());
        };
        after = *last;
        let meant: Vec<_> = page.into_iter().filter(|(_, letter)| is_meant(letter)).collect();
        for (_, letter) in &meant {
            print(serde_json::to_string(letter)?)?;
        }
        if delete {
            store.delete_dead_letters(meant.iter().map(|(id, _)| *id).collect()).await?;
        }
    }
}

async fn each_received(
    queue: &dyn DeadLetters,
    is_meant: impl Fn(&DeadLetter) -> bool,
    delete: bool,
) -> anyhow::Result<()> {
    let mut scan = Scan::new(queue, UnixMillis::MAX, Some(Instant::now() + LIST_TIME));
    let result = each_scanned(&mut scan, is_meant, delete).await;
    let is_complete = scan.is_complete();
    scan.finish_and_warn().await;
    let left = result?;
    if !is_complete {
        tracing::warn!(
            "there are more letters than can be received in {LIST_TIME:?}: redrive or delete some of these first"
        );
    }
    tell_of_hidden(queue, left).await
}

/// Prints a line. Where it cannot be written nothing may go on: letters are deleted because they were printed.
fn print(line: impl Display) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}").context("standard output")
}

/// Whoever reads a list may stop early, as `head` does.
fn read_to_the_end(printed: anyhow::Result<()>) -> anyhow::Result<()> {
    let is_closed = |error: &io::Error| error.kind() == ErrorKind::BrokenPipe;
    printed.or_else(|error| if error.downcast_ref().is_some_and(is_closed) { Ok(()) } else { Err(error) })
}

/// Answers how many letters were seen and not deleted.
async fn each_scanned(
    scan: &mut Scan<'_>,
    is_meant: impl Fn(&DeadLetter) -> bool,
    delete: bool,
) -> anyhow::Result<u64> {
    let mut left = 0;
    while let Some(letters) = scan.next().await? {
        left += letters.len() as u64;
        let meant: Vec<_> = letters.into_iter().filter(|received| is_meant(&received.letter)).collect();
        for received in &meant {
            print(serde_json::to_string(&received.letter)?)?;
        }
        if delete {
            let receipts: Vec<String> = meant.into_iter().map(|received| received.receipt).collect();
            scan.remove(&receipts).await?;
            left -= receipts.len() as u64;
        }
    }
    Ok(left)
}

/// Letters that somebody else has received within the last minute are hidden from this program: it must not look as if
/// there were none.
async fn tell_of_hidden(queue: &dyn DeadLetters, seen: u64) -> anyhow::Result<()> {
    let hidden = queue.depth().await?.saturating_sub(seen);
    if hidden > 0 {
        tracing::warn!(
            hidden,
            "more letters are there, in the hand of another list, redrive or delete: try again in a minute"
        );
    }
    Ok(())
}

/// Lists leases, or goes back in the stream.
///
/// # Errors
/// When the settings name nothing that works, or the table fails.
pub async fn leases(settings: &Settings, command: LeasesCommand) -> anyhow::Result<ExitCode> {
    let backends = open(settings).await?;
    // A mistyped name must not make a table.
    let leases = backends::leases(&backends, &Settings { create_lease_table: false, ..settings.clone() }).await?;
    let mut rows = match command {
        LeasesCommand::List => {
            let rows = leases.list().await?;
            if rows.is_empty() {
                tracing::warn!(stream = %settings.backends.stream, "there are no leases: no worker has run yet");
            }
            rows
        }
        LeasesCommand::Rewind { to, shard } => {
            rewound(settings, &backends, leases, to.as_millisecond(), shard.map(ShardId)).await?
        }
    };
    rows.sort_by(|a, b| a.shard.cmp(&b.shard));
    read_to_the_end(rows.iter().try_for_each(|row| print(describe(row))))?;
    Ok(ExitCode::SUCCESS)
}

async fn rewound(
    settings: &Settings,
    backends: &Backends,
    leases: Arc<dyn Leases>,
    to: i64,
    shard: Option<ShardId>,
) -> anyhow::Result<Vec<Lease>> {
    let now = Clock::system().now();
    if to > now {
        return Err(ConfigError("--to: lies ahead; allowed is a time in the past".to_owned()).into());
    }
    if let Some(shard) = &shard
        && leases.list().await?.iter().all(|lease| lease.shard != *shard)
    {
        return Err(
            ConfigError(format!("--shard: {shard} has no lease; `leases list` shows those that there are")).into()
        );
    }
    if let Kind::Aws { stream, .. } = &backends.kind
        && to < now - millis(stream.retention())
    {
        tracing::warn!(retention = ?stream.retention(), "the stream has forgotten the first part: it begins with what it still holds");
    }
    if to < now - millis(settings.dedup_window) {
        tracing::warn!(
            window = ?settings.dedup_window,
            "this goes further back than the dedup window: all that was delivered since then is sent to Amberflo again, \
             as identical records, and only Amberflo's own deduplication keeps it from being billed twice"
        );
    }
    let rewound = rewind(&*leases, &*backends.stream, to, shard.as_ref()).await?;
    if rewound.is_empty() {
        tracing::warn!("no shard was further on than that: nothing changed");
    }
    Ok(rewound)
}

fn describe(lease: &Lease) -> serde_json::Value {
    let time =
        |time: i64| jiff::Timestamp::from_millisecond(time).map_or_else(|_| time.to_string(), |time| time.to_string());
    let checkpoint = match &lease.checkpoint {
        Checkpoint::Start(Position::TrimHorizon) => json!({"start": "trim-horizon"}),
        Checkpoint::Start(Position::AtTime(at)) => json!({"start": time(*at)}),
        Checkpoint::Start(Position::At(number)) => json!({"startAt": number.to_string()}),
        Checkpoint::Start(Position::After(number)) => json!({"startAfter": number.to_string()}),
        Checkpoint::Settled { sequence_number, arrived_at } => {
            json!({"settledThrough": sequence_number.to_string(), "arrivedAt": time(*arrived_at)})
        }
        Checkpoint::Rewound(to) => json!({"rewoundTo": time(*to)}),
        Checkpoint::Ended => json!("ended"),
    };
    json!({
        "shard": lease.shard.to_string(),
        "owner": lease.owner.as_ref().map(ToString::to_string),
        "counter": lease.counter,
        "wantedBy": lease.wanted_by.as_ref().map(ToString::to_string),
        "checkpoint": checkpoint,
    })
}
