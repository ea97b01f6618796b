//! The worker as an AWS Lambda function: the path of an event as in [`shard`](crate::shard), fed by one Kinesis event of
//! one shard an invocation.
//!
//! Lambda keeps the checkpoint and says who reads a shard: there are no leases. What is not settled in time is answered
//! as a failure, and Lambda invokes again from that record on. The event source mapping needs
//! `ReportBatchItemFailures`; without it Lambda takes every answer for a complete success.

pub mod event;
pub mod function;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use lambda_runtime::{LambdaEvent, service_fn};
use shared::api_key::ApiKeys;
use shared::backend::kinesis;
use shared::backends::api_keys;
use shared::service::{self, ConfigError};
use shared::settings::StreamName;
use tokio::sync::OnceCell;

use crate::config::Settings;
use crate::context::Common;
use crate::{app, backends};
use event::{Answer, Event};
use function::{DRAIN, Function};

/// The worker as an AWS Lambda function, for a Kinesis event source mapping with ReportBatchItemFailures.
///
/// Takes the settings of `ingest-worker`. Those of leases, of the local stream and of the admin endpoint have no meaning
/// here. Without STREAM, the stream is the one that the first event comes from.
#[derive(Debug, Parser)]
#[command(name = "bootstrap", version)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    /// Where Lambda hands out events.
    #[arg(long, env = "AWS_LAMBDA_RUNTIME_API", hide = true)]
    runtime_api: Option<String>,
}

/// Runs the program with these arguments, the first of which is its name.
pub async fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli: Cli = match service::parse(args) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match serve(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => service::failed("bootstrap", &error),
    }
}

/// Answers events for as long as Lambda has some.
async fn serve(cli: Cli) -> anyhow::Result<()> {
    let Cli { settings, runtime_api } = cli;
    let (settings, stream) = check(settings)?;
    let key = settings.amberflo.key()?;
    if runtime_api.is_none() {
        let hint = "`bootstrap` runs inside AWS Lambda, which sets it; elsewhere run `ingest-worker`";
        return Err(ConfigError(format!("AWS_LAMBDA_RUNTIME_API: not set; {hint}")).into());
    }
    service::init_logs(&settings.logs)?;
    let keys = api_keys(key).await?;
    let lambda = Arc::new(Lambda { settings, keys, function: OnceCell::new() });
    if let Some(stream) = stream {
        lambda.function(&stream).await?;
    }
    let answer = service_fn(move |event| {
        let lambda = Arc::clone(&lambda);
        async move { lambda.answer(event).await }
    });
    lambda_runtime::run(answer).await.map_err(|error| anyhow::anyhow!("the runtime API of Lambda: {error}"))
}

/// Checks the settings; answers the stream that they name, if they do.
fn check(mut settings: Settings) -> Result<(Settings, Option<kinesis::StreamName>), ConfigError> {
    let stream = match &settings.backends.stream {
        StreamName::Kinesis(name) => Some(name.clone()),
        local if local.is_default() => {
            // The checks are those of a Kinesis stream, whatever its name.
            settings.backends.stream = StreamName::Kinesis(
                "named-by-the-event".parse().map_err(|error| ConfigError(format!("STREAM: {error}")))?,
            );
            None
        }
        local => {
            return Err(ConfigError(format!("STREAM: {local}; allowed in Lambda is kinesis:NAME-OR-ARN, or none")));
        }
    };
    settings.check()?;
    settings.backends.queue()?;
    Ok((settings, stream))
}

struct Lambda {
    settings: Settings,
    keys: ApiKeys,
    function: OnceCell<Function>,
}

impl Lambda {
    /// An error is one of the settings: the whole event comes again.
    async fn answer(&self, event: LambdaEvent<Event>) -> Result<Answer, lambda_runtime::Error> {
        let LambdaEvent { payload: event, context } = event;
        let Some(source) = event.stream() else {
            return Ok(Answer::default());
        };
        let answer = async {
            let stream = source?;
            let function = self.function(&stream).await?;
            Ok(function.answer(event, &stream, i64::try_from(context.deadline).unwrap_or(i64::MAX)).await?)
        };
        answer.await.map_err(|error: anyhow::Error| {
            tracing::error!(error = format!("{error:#}"), "nothing of this event was processed");
            format!("{error:#}").into()
        })
    }

    /// Opens the stream and the queue once; what fails is tried again with the next event.
    async fn function(&self, stream: &kinesis::StreamName) -> anyhow::Result<&Function> {
        let open = async || {
            let mut settings = self.settings.clone();
            settings.backends.stream = StreamName::Kinesis(stream.clone());
            let backends = backends::open(&settings).await?;
            let dead_letters = backends.dead_letters(&settings.backends).await?;
            let common = app::common(&settings, backends.stream, dead_letters, self.keys.clone())?;
            let common = Arc::new(Common { drain: DRAIN, ..common });
            tracing::info!(version = env!("CARGO_PKG_VERSION"), %stream, ingest_url = settings.ingest_url(), "started");
            Ok(Function::new(common, stream.name(), settings.amberflo.api_key_refresh))
        };
        self.function.get_or_try_init(open).await
    }
}
