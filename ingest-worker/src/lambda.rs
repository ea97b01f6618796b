//! The worker as an AWS Lambda function: the path of an event as in [`shard`](crate::shard), fed by one Kinesis event of
//! one shard an invocation.
//!
//! Lambda keeps the checkpoint and says who reads a shard: there are no leases. What is not settled in time is answered
//! as a failure, and Lambda invokes again from that record on. The event source mapping needs
//! `ReportBatchItemFailures`; without it Lambda takes every answer for a complete success.
//!
//! The same program is the [forwarder](forward) where the function's handler says so.

pub mod event;
pub mod forward;
pub mod function;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use lambda_runtime::{LambdaEvent, service_fn};
use shared::api_key::ApiKeys;
use shared::backend::kinesis;
use shared::backends::{Kind, api_keys};
use shared::clock::Clock;
use shared::service::{self, ConfigError, EmbeddedMetrics, EmbeddedMetricsArgs};
use shared::settings::StreamName;
use tokio::sync::OnceCell;

use crate::config::Settings;
use crate::context::Common;
use crate::{app, backends, metrics};
use event::{Answer, Event};
use forward::KeyPath;
use function::{DRAIN, Function};

/// Gauges that mean something between two invocations.
const GAUGES: [&str; 3] = ["ingest_concurrency_limit", "ingest_meter_budget_max_ratio", "ingest_paused"];

/// The worker as an AWS Lambda function, for a Kinesis event source mapping with ReportBatchItemFailures; or, where the
/// function's handler is `forward`, what puts events on the stream for it.
///
/// Takes the settings of `ingest-worker`. Those of leases, of the local stream and of the admin endpoint have no meaning
/// here. Without STREAM, the stream is the one that the first event comes from.
///
/// The forwarder needs STREAM=kinesis:NAME-OR-ARN, and of the other settings reads only PARTITION_KEY_PATH and those of
/// logs.
#[derive(Debug, Parser)]
#[command(name = "bootstrap", version)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    metrics: EmbeddedMetricsArgs,
    /// What this function does: `deliver` events of the stream to Amberflo (`bootstrap` is another name for that), or
    /// `forward` events of EventBridge to the stream. Lambda sets it to the function's handler.
    #[arg(long, env = "_HANDLER", default_value = "deliver", value_parser = handler, help_heading = "Function")]
    handler: Handler,
    /// Forwarder: where in an event its partition key stands. An event that has none there goes by its id.
    #[arg(long, env, default_value = KeyPath::DEFAULT, value_name = "PATH", help_heading = "Function")]
    partition_key_path: KeyPath,
    /// Where Lambda hands out events.
    #[arg(long, env = "AWS_LAMBDA_RUNTIME_API", hide = true)]
    runtime_api: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum Handler {
    Deliver,
    Forward,
}

fn handler(text: &str) -> Result<Handler, String> {
    match text {
        // The name that deployments of custom runtimes use where there is only one; some tools leave it empty.
        "deliver" | "bootstrap" | "" => Ok(Handler::Deliver),
        "forward" => Ok(Handler::Forward),
        _ => Err("allowed is deliver (or bootstrap, which is the same) or forward: the function's handler".to_owned()),
    }
}

/// Runs the program with these arguments, the first of which is its name.
pub async fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli: Cli = match service::parse(args) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let logs = cli.settings.logs.clone();
    match serve(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => service::failed("bootstrap", &error, &logs),
    }
}

/// Answers events for as long as Lambda has some.
async fn serve(cli: Cli) -> anyhow::Result<()> {
    let Cli { settings, metrics, handler, partition_key_path, runtime_api } = cli;
    service::init_logs(&settings.logs)?;
    service::warn_of_no_traces(&settings.traces);
    match handler {
        Handler::Deliver => deliver(settings, metrics, runtime_api).await,
        Handler::Forward => {
            let StreamName::Kinesis(stream) = settings.backends.stream else {
                let hint = "the handler `forward` needs kinesis:NAME-OR-ARN";
                return Err(ConfigError(format!("STREAM: {}; {hint}", settings.backends.stream)).into());
            };
            check_runtime_api(runtime_api)?;
            forward::serve(stream, partition_key_path).await
        }
    }
}

async fn deliver(settings: Settings, embedded: EmbeddedMetricsArgs, runtime_api: Option<String>) -> anyhow::Result<()> {
    let (settings, stream) = check(settings)?;
    let key = settings.amberflo.key()?;
    check_runtime_api(runtime_api)?;
    let embedded = EmbeddedMetrics::install(embedded, &GAUGES)?;
    metrics::describe();
    let keys = api_keys(key).await?;
    let lambda = Arc::new(Lambda { settings, keys, function: OnceCell::new() });
    if let Some(stream) = stream {
        lambda.function(&stream).await?;
    }
    let answer = service_fn(move |event| {
        let (lambda, embedded) = (Arc::clone(&lambda), embedded.clone());
        async move {
            let answer = lambda.answer(event).await;
            if let Some(metrics) = embedded {
                metrics.print(Clock::system().now());
            }
            answer
        }
    });
    lambda_runtime::run(answer).await.map_err(|error| anyhow::anyhow!("the runtime API of Lambda: {error}"))
}

fn check_runtime_api(address: Option<String>) -> Result<(), ConfigError> {
    let hint = "`bootstrap` runs inside AWS Lambda, which sets it; elsewhere run `ingest-worker`";
    address.map(|_| ()).ok_or_else(|| ConfigError(format!("AWS_LAMBDA_RUNTIME_API: not set; {hint}")))
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
            let stream_arn = match &backends.kind {
                Kind::Local(_) => None,
                Kind::Aws { stream, .. } => Some(stream.arn().to_owned()),
            };
            let common = app::common(&settings, backends.stream, dead_letters, self.keys.clone())?;
            let common = Arc::new(Common { drain: DRAIN, ..common });
            tracing::info!(
                version = env!("CARGO_PKG_VERSION"),
                %stream,
                stream_arn,
                dead_letter_queue = settings.backends.dead_letter_queue,
                ingest_url = settings.ingest_url(),
                "started"
            );
            Ok(Function::new(common, stream.name(), settings.amberflo.api_key_refresh))
        };
        self.function.get_or_try_init(open).await
    }
}
