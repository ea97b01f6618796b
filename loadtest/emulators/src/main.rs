//! Kinesis, DynamoDB, SQS and Secrets Manager on this machine, to try the worker on AWS's interfaces without AWS.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use emulators::{Kinesis, Moto, Stream, create_queue, environment, put_secret};

const STREAM: &str = "usage";
const SECRET: &str = "amberflo";
const MEMBER: &str = "apiKey";

/// Starts the emulators with a stream, a queue and a secret, and writes what a worker needs to use them into a file.
#[derive(Debug, Parser)]
#[command(name = "emulators", version)]
struct Cli {
    /// Shards of the stream.
    #[arg(long, default_value = "4")]
    shards: i32,
    /// Where the environment variables go.
    #[arg(default_value = "target/emulators.env")]
    file: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("emulators: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), String> {
    let (kinesis, moto) = (Kinesis::start().await?, Moto::start().await?);
    Stream::create(&kinesis.url, STREAM, cli.shards).await;
    let queue = create_queue(&moto.url, "dead-letters").await;
    put_secret(&moto.url, SECRET, &format!(r#"{{"{MEMBER}": "sandbox-key"}}"#)).await;

    let mut variables = environment(&kinesis.url, &moto.url);
    // Nothing leads from the emulated bus to the stream: whoever puts an event there would wait for it in vain.
    variables.retain(|(name, _)| !name.ends_with("_EVENTBRIDGE") && !name.ends_with("_COGNITO_IDENTITY_PROVIDER"));
    variables.extend([
        ("STREAM", format!("kinesis:{STREAM}")),
        ("CREATE_LEASE_TABLE", "true".to_owned()),
        ("DEAD_LETTER_QUEUE", queue),
        ("API_KEY_SECRET_NAME", SECRET.to_owned()),
        ("API_KEY_SECRET_ID", MEMBER.to_owned()),
    ]);
    let lines: String = variables.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
    std::fs::write(&cli.file, lines).map_err(|error| format!("{}: {error}", cli.file.display()))?;
    println!("a stream with {} shards is there; in each terminal: . {}", cli.shards, cli.file.display());
    println!("Ctrl-C ends the emulators, and all that they hold");
    tokio::signal::ctrl_c().await.map_err(|error| error.to_string())?;
    Ok(())
}
