//! Load on the metering pipeline, and the proof that it bills each event once: `loadtest demo` is where to start.

mod audit;
mod bench;
mod bench_peers;
mod chaos;
mod chart;
mod demo;
mod dev;
mod drill;
mod faults;
mod generator;
mod growth;
mod load;
mod log_watch;
mod machine;
mod manifest;
mod mix;
mod producer;
mod progress;
mod put;
mod reconcile;
mod report;
mod report_dir;
mod run;
mod scrape;
mod service_process;
mod target;
mod truth;
mod verify_amberflo;

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
    Run(Box<run::RunArgs>),
    Audit(Box<reconcile::AuditArgs>),
    Chaos(chaos::ChaosArgs),
    Drill(drill::DrillArgs),
    VerifyAmberflo(Box<verify_amberflo::VerifyArgs>),
    /// Measures what the pipeline costs, and prints it as tables.
    Bench(bench::BenchArgs),
    BenchPeers(bench_peers::BenchPeersArgs),
    Growth(growth::GrowthArgs),
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
    /// Becomes a process of the benchmark against peers.
    #[command(name = bench_peers::PROGRAM, hide = true, subcommand)]
    Peer(bench_peers::Program),
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
        Command::Run(args) => return run::run(*args).await,
        Command::Audit(args) => return reconcile::run(*args).await,
        Command::Chaos(args) => chaos::run(args).await,
        Command::Drill(args) => drill::run(args).await,
        Command::VerifyAmberflo(args) => verify_amberflo::run(*args).await,
        Command::Bench(args) => bench::run(&args).await.map(|()| ExitCode::SUCCESS),
        Command::BenchPeers(args) => bench_peers::run(&args).await,
        Command::Growth(args) => growth::run(&args).await.map(|()| ExitCode::SUCCESS),
        Command::Put(args) => put::run(args).await.map(|()| ExitCode::SUCCESS),
        Command::Peer(program) => bench_peers::main(program).map(|()| ExitCode::SUCCESS),
        Command::IngestWorker { args } => return service_process::child_main(Service::IngestWorker, args).await,
        Command::ControlApi { args } => return service_process::child_main(Service::ControlApi, args).await,
        Command::Prometheus { args } => return drill::become_prometheus(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("loadtest: {error:#}");
        ExitCode::FAILURE
    })
}
