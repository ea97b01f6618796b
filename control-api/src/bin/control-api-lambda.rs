//! The admin API as an AWS Lambda function; see [`control_api::lambda`].

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    control_api::lambda::main(std::env::args_os()).await
}
