//! Load on the metering pipeline, and the proof that it bills each event once: `loadtest demo` is where to start.

mod audit;
mod bench;
mod demo;
mod dev;
mod drill;
mod faults;
mod generator;
mod log_watch;
mod producer;
mod progress;
mod put;
mod report;
mod scrape;
mod service_process;
mod truth;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use service_process::Service;

/// Puts load on the metering pipeline and audits what became of every event.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Dev(dev::DevArgs),
    Drill(drill::DrillArgs),
    /// Measures what the pipeline costs, and prints it as tables.
    Bench(bench::BenchArgs),
    Put(put::PutArgs),
    /// Runs the ingest worker: how the other commands start one, because `cargo run` builds this program only.
    #[command(name = Service::IngestWorker.name(), hide = true, disable_help_flag = true)]
    IngestWorker {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Runs the control API, for the same reason.
    #[command(name = Service::ControlApi.name(), hide = true, disable_help_flag = true)]
    ControlApi {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Becomes Prometheus, and ends with the drill that started it.
    #[command(name = drill::PROMETHEUS, hide = true, disable_help_flag = true)]
    Prometheus {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(args).await,
        Command::Dev(args) => dev::run(args).await,
        Command::Drill(args) => drill::run(args).await,
        Command::Bench(args) => bench::run(&args).await.map(|()| ExitCode::SUCCESS),
        Command::Put(args) => put::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::IngestWorker { args } => return service_process::child_main(Service::IngestWorker, args).await,
        Command::ControlApi { args } => return service_process::child_main(Service::ControlApi, args).await,
        Command::Prometheus { args } => return drill::become_prometheus(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("loadtest: {error:#}");
        ExitCode::FAILURE
    })
}
