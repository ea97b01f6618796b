//! The worker as an AWS Lambda function; see [`ingest_worker::lambda`].

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    ingest_worker::lambda::main(std::env::args_os()).await
}
