//! The command line.

use clap::{Parser, Subcommand};
use shared::reason::Reason;

use super::Settings;
use shared::settings::{reason, time};

/// Moves usage events from a stream to Amberflo: deduplicated, batched, inside its limits, nothing lost.
///
/// Exit codes: 0 drained after a signal, 2 settings it cannot work with, 1 anything else.
#[derive(Debug, Parser)]
#[command(name = "ingest-worker", version)]
pub struct Cli {
    /// Something other than the worker itself.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The worker's settings.
    #[command(flatten)]
    pub settings: Settings,
}

/// What the program does besides working.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Looks at dead letters, or sends them through the pipeline again.
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Looks at the leases of the stream's shards, or goes back in the stream.
    #[command(subcommand)]
    Leases(LeasesCommand),
    /// Asks the worker that listens at ADMIN_LISTEN on this machine for its /health; exit code 0 says that it is well, 1
    /// that it is not. For the health check of a container.
    Health,
}

/// What can be done with leases.
#[derive(Clone, Debug, Subcommand)]
pub enum LeasesCommand {
    /// Prints every lease as one line of JSON: its shard, owner and checkpoint.
    List,
    /// Has everything processed again that arrived since a time, also while workers run.
    ///
    /// Amberflo receives the identical records again, and absorbs them as far back as it remembers. Nothing is skipped:
    /// a shard that has not come to that time yet stays where it is.
    Rewind {
        /// The RFC 3339 time to go back to, such as 2026-01-31T00:00:00Z.
        #[arg(long, value_name = "TIME", value_parser = time)]
        to: jiff::Timestamp,
        /// Only this shard.
        #[arg(long)]
        shard: Option<String>,
    },
}

/// What can be done with dead letters.
#[derive(Clone, Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// Prints every dead letter as one line of JSON.
    List,
    /// Publishes dead letters to the stream again, each with the identity and time it had, and removes them.
    ///
    /// Leaves conflicts and invalid payloads where they are. Amberflo receives identical records, so an event that it took
    /// after all is not billed again. Passes the whole queue, however long that takes.
    Redrive {
        /// Only those with this reason.
        #[arg(long, value_parser = reason)]
        reason: Option<Reason>,
    },
    /// Removes dead letters for good, without delivering them; prints each as `list` does, so keep the output.
    Delete {
        /// Only those with this reason.
        #[arg(long, required_unless_present = "before", value_parser = reason)]
        reason: Option<Reason>,
        /// Only those that were dead-lettered before this RFC 3339 time.
        #[arg(long, value_name = "TIME", value_parser = time)]
        before: Option<jiff::Timestamp>,
    },
}
