//! The `ingest-worker` program; see [`ingest_worker::app`].

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    ingest_worker::app::main(std::env::args_os()).await
}
