//! The API as an AWS Lambda function, behind an HTTP API of API Gateway (payload format 2.0); and the function to which
//! SBT sends what becomes of tenants, `createCustomerFunction` and `deleteCustomerFunction`.
//!
//! Nothing works on after the answer, for Lambda freezes the process then: what has to be done from time to time is done
//! when an event comes.

pub mod gateway;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse as _;
use clap::Parser;
use http::StatusCode;
use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use shared::api_key::ApiKeys;
use shared::backends::api_keys;
use shared::clock::{Clock, UnixMillis};
use shared::service::{self, ConfigError, EmbeddedMetrics, EmbeddedMetricsArgs, Ready};
use shared::settings::StreamName;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};
use tower::ServiceExt as _;

use crate::app::{self, App};
use crate::auth::Auth;
use crate::config::Settings;
use crate::customers::{self, Change};
use crate::problem::Problem;
use crate::surroundings::{self, audit};
use gateway::{Answer, HttpEvent};

/// The longest that an event waits for the API key to be read again.
const KEY_TIME: Duration = Duration::from_secs(3);
/// How long before Lambda would end the invocation a request is given up; at most a fifth of its time.
const MARGIN: Duration = Duration::from_millis(500);
/// How much of an event that is none of ours is named.
const MAX_NAMES: usize = 10;

/// The admin API of metering as an AWS Lambda function: for an HTTP API of API Gateway (payload format 2.0), and for SBT's
/// events onboardingRequest and offboardingRequest.
///
/// Takes the settings of `control-api`, but for those of the server. Nothing but the API key is read before it is needed.
#[derive(Debug, Parser)]
#[command(name = "control-api-lambda", version)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    metrics: EmbeddedMetricsArgs,
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
    let logs = cli.settings.logs.clone();
    match serve(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => service::failed("control-api-lambda", &error, &logs),
    }
}

/// Answers events for as long as Lambda has some.
async fn serve(Cli { settings, metrics, runtime_api }: Cli) -> anyhow::Result<()> {
    service::init_logs(&settings.logs)?;
    service::warn_of_no_traces(&settings.traces);
    if let StreamName::Local(_) = &settings.backends.stream {
        let given = &settings.backends.stream;
        return Err(ConfigError(format!("STREAM: {given}; allowed in Lambda is kinesis:NAME-OR-ARN")).into());
    }
    settings.check(None)?;
    let key = settings.amberflo.key()?;
    if runtime_api.is_none() {
        let hint = "`control-api-lambda` runs inside AWS Lambda, which sets it; elsewhere run `control-api`";
        return Err(ConfigError(format!("AWS_LAMBDA_RUNTIME_API: not set; {hint}")).into());
    }
    let metrics = EmbeddedMetrics::install(metrics, &[])?;
    surroundings::describe();
    let function = Arc::new(Function::new(settings, api_keys(key).await?)?);
    let answer = service_fn(move |event: LambdaEvent<Value>| {
        let (function, metrics) = (Arc::clone(&function), metrics.clone());
        async move {
            let deadline = i64::try_from(event.context.deadline).unwrap_or(i64::MAX);
            let answer = function.answer(event.payload, deadline).await;
            if let Some(metrics) = metrics {
                metrics.print(Clock::system().now());
            }
            answer.map_err(|error| {
                let error = format!("{error:#}");
                tracing::error!(error, "an event failed");
                lambda_runtime::Error::from(error)
            })
        }
    });
    lambda_runtime::run(answer).await.map_err(|error| anyhow::anyhow!("the runtime API of Lambda: {error}"))
}

/// What is kept from one event to the next.
pub struct Function {
    app: Arc<App>,
    router: Router,
    keys: ApiKeys,
    /// By wall time: other clocks may stand still between events, and timers do.
    key_read_at: Mutex<UnixMillis>,
    clock: Clock,
}

impl Function {
    /// A function with an API key that was read just now.
    ///
    /// # Errors
    /// When the HTTP client cannot start, or access is not set up.
    pub fn new(settings: Settings, keys: ApiKeys) -> anyhow::Result<Self> {
        Self::of(App::new(settings, keys.clone(), Ready::default())?, keys)
    }

    /// A function around these, which use `keys`.
    ///
    /// # Errors
    /// When access is not set up.
    pub fn of(app: App, keys: ApiKeys) -> anyhow::Result<Self> {
        let (app, clock) = (Arc::new(app), Clock::system());
        let auth = Auth::new(&app.settings.auth, None, app.settings.cors_origins.clone(), clock)?;
        let router = app::router(Arc::clone(&app), auth);
        // It takes mutations all the same; but so they can be waited for.
        app.mutations.close();
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            stream = %app.settings.backends.stream,
            amberflo = app.settings.amberflo.amberflo_base_url,
            "started"
        );
        Ok(Self { app, router, keys, key_read_at: Mutex::new(clock.now()), clock })
    }

    /// Answers an event before `deadline`, by which Lambda ends the invocation.
    ///
    /// # Errors
    /// For a request never; for an event about a tenant when it could not be done: Lambda sends it again, and at last to
    /// where the function's failures go. For any other event, with what it is.
    pub async fn answer(&self, event: Value, deadline: UnixMillis) -> anyhow::Result<Box<RawValue>> {
        let left = self.clock.until(deadline);
        let limit = left - MARGIN.min(left / 5);
        self.refresh_key(left / 5).await;
        // A request must not be taken for an event, whatever is in it.
        let is_request = ["requestContext", "rawPath"].iter().any(|name| event.get(name).is_some());
        if let Some(detail_type) = event.get("detail-type").and_then(Value::as_str).filter(|_| !is_request) {
            let change = Change::of(detail_type).ok_or_else(|| anyhow::anyhow!(unknown(&event)))?;
            return self.change(change, detail_type, &event, limit).await;
        }
        if !HttpEvent::is_one(&event) {
            anyhow::bail!(unknown(&event));
        }
        Ok(self.respond(event, limit).await)
    }

    async fn change(
        &self,
        change: Change,
        detail_type: &str,
        event: &Value,
        limit: Duration,
    ) -> anyhow::Result<Box<RawValue>> {
        let text = |name| event.get(name).and_then(Value::as_str).unwrap_or("unknown");
        let (id, source) = (text("id"), text("source"));
        let detail = event.get("detail").unwrap_or(&Value::Null);
        let done = match timeout(limit, customers::apply(&self.app.amberflo, change, detail)).await {
            Ok(done) => done.map_err(|error| anyhow::anyhow!("{detail_type} event {id}: {error}")),
            Err(_) => Err(anyhow::anyhow!("{detail_type} event {id}: not done in time")),
        };
        let path = customers::tenant_id(detail).unwrap_or_else(|| "unknown".to_owned());
        let outcome = done.as_ref().map_or("failed", |outcome| outcome.as_str());
        tracing::info!(target: audit::TARGET, subject = source, action = detail_type, path, outcome, request_id = id, "mutation");
        Ok(to_raw_value(&json!({ "outcome": done?.as_str() }))?)
    }

    async fn respond(&self, event: Value, limit: Duration) -> Box<RawValue> {
        let request = match HttpEvent::request(event) {
            Ok(request) => request,
            Err(problem) => return Answer::of(problem.into_response(), false).await,
        };
        let is_read = request.method().is_safe();
        let end = Instant::now() + limit;
        let response = match timeout_at(end, self.router.clone().oneshot(request)).await {
            Ok(response) => response.into_response(),
            Err(_) => {
                tracing::error!("an invocation has less time than REQUEST_TIMEOUT");
                let detail = "the function's time was over: it must be longer than REQUEST_TIMEOUT. What was asked for \
                              may have been done";
                Problem::new(StatusCode::GATEWAY_TIMEOUT, detail).into_response()
            }
        };
        // One that was answered as late is still being carried out, and would stand still with the process.
        if timeout_at(end, self.app.mutations.wait()).await.is_err() {
            tracing::error!("a mutation is not done: it goes on with the next event, if there is one");
        }
        Answer::of(response, is_read).await
    }

    /// Reads the key again where it is due. A refusal by Amberflo does so too.
    async fn refresh_key(&self, limit: Duration) {
        let mut read_at = self.key_read_at.lock().await;
        if self.clock.since(*read_at) >= self.app.settings.amberflo.api_key_refresh {
            *read_at = self.clock.now();
            if timeout(KEY_TIME.min(limit), self.keys.reload()).await.is_err() {
                tracing::warn!("the API key could not be read again in time; the present one stays in use");
            }
        }
    }
}

/// Names what came, without its contents.
fn unknown(event: &Value) -> String {
    const ALLOWED: &str = "allowed are requests of API Gateway in payload format 2.0, and the events onboardingRequest and offboardingRequest";
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let record = event.get("Records").and_then(|records| records.get(0));
    let source = record.and_then(|record| record.get("eventSource").or(record.get("EventSource")));
    let what = if let Some(detail_type) = text(event.get("detail-type")) {
        format!("an EventBridge event of detail-type {detail_type:?}")
    } else if let Some(source) = text(source) {
        format!("records of {source}")
    } else if event.get("requestContext").is_some() {
        let version = text(event.get("version")).unwrap_or_else(|| "1.0".to_owned());
        format!("a request in payload format {version:?} or of another kind of API")
    } else if let Some(object) = event.as_object() {
        let names: Vec<_> = object.keys().take(MAX_NAMES).map(String::as_str).collect();
        format!("an object with {:?}", names.join(", "))
    } else {
        "no object".to_owned()
    };
    format!("the event is {what}; {ALLOWED}")
}
