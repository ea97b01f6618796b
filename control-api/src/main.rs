//! The admin API as a server: `control-api --help`.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    control_api::app::main(std::env::args_os()).await
}
