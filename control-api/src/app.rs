//! The API: settings in, a server until a signal, a drain with a deadline, an exit code out.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use http::StatusCode;
use shared::api_key::ApiKeys;
use shared::backend::{BackendError, DeadLetters, Stream};
use shared::backends::{Backends, api_keys};
use shared::clock::Clock;
use shared::event::EventRules;
use shared::service::status::{Setting, StatusPage};
use shared::service::{self, ConfigError, Ready};
use shared::settings::{StreamName, warn_of_clear_text};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::amberflo::Amberflo;
use crate::auth::Auth;
use crate::bus::Bus;
use crate::config::{Cli, ServerArgs, Settings};
use crate::problem::Problem;
use crate::{routes, status, surroundings};

/// How long the start waits to find out whether Amberflo takes our key.
const PROBE_TIME: Duration = Duration::from_secs(3);

/// What the handlers work with.
pub struct App {
    /// Amberflo's API.
    pub amberflo: Amberflo,
    /// Where POST /ingest puts events.
    pub bus: Bus,
    /// What an event may be.
    pub rules: EventRules,
    /// Tells the time.
    pub clock: Clock,
    /// As they were given.
    pub settings: Settings,
    /// Mutations that are being carried out: a drain waits for them.
    pub mutations: TaskTracker,
    queues: OnceCell<Queues>,
}

/// The dead letters, and the stream to which they go back.
pub struct Queues {
    /// The dead letters.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// The stream.
    pub stream: Arc<dyn Stream>,
}

impl App {
    /// Makes what the handlers work with; opens nothing yet.
    ///
    /// # Errors
    /// When the HTTP client cannot start.
    pub fn new(settings: Settings, keys: ApiKeys, ready: Ready) -> anyhow::Result<Self> {
        let base_url = &settings.amberflo.amberflo_base_url;
        let amberflo = Amberflo::new(base_url, keys, ready, settings.limits.request_timeout)
            .context("the HTTP client cannot start")?;
        let rules = settings.events.rules();
        let bus = Bus::new(&settings.bus, &settings.backends.stream);
        let (mutations, queues) = (TaskTracker::new(), OnceCell::new());
        Ok(Self { amberflo, bus, rules, clock: Clock::system(), settings, mutations, queues })
    }

    /// The dead letters and the stream, opened at first use: a Lambda function that has no use for them starts without.
    ///
    /// # Errors
    /// The setting, and what is wrong with what it names.
    pub async fn queues(&self) -> anyhow::Result<&Queues> {
        let open = async || {
            // What the worker does not use is not its queue, and an empty one looks as if all were well.
            if let StreamName::Local(directory) = &self.settings.backends.stream
                && !directory.is_dir()
            {
                let given = &self.settings.backends.stream;
                let text = format!("STREAM: {given}: there is no such directory; give the worker's, or start it first");
                return Err(ConfigError(text).into());
            }
            // Pruning is the worker's: the retention counts for nothing here.
            let backends = Backends::open(&self.settings.backends, Duration::MAX).await?;
            let dead_letters = backends.dead_letters(&self.settings.backends).await?;
            Ok(Queues { dead_letters, stream: backends.stream })
        };
        self.queues.get_or_try_init(open).await
    }
}

/// The whole API, with all that surrounds the endpoints.
pub fn router(app: Arc<App>, auth: Auth) -> Router {
    let (endpoints, documentation) = routes::documented();
    let endpoints = surroundings::around_endpoints(endpoints, &app, auth);
    let cors_origins = app.settings.cors_origins.clone();
    let router = endpoints
        .merge(routes::documentation(documentation))
        .fallback(async || Problem::not_found("there is no such endpoint; GET /docs lists those that there are"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this endpoint has no such method; GET /docs lists them")
        })
        .with_state(app);
    surroundings::around_everything(router, &cors_origins)
}

/// Runs the program with these arguments, the first of which is its name.
pub async fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let (cli, told): (Cli, Vec<Setting>) = match service::parse_told(args) {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    let (logs, traces) = (cli.settings.logs.clone(), cli.settings.traces.clone());
    let result = match service::init_logs_and_traces(&logs, &traces, "control-api") {
        Ok(traces) => {
            let result = serve(cli.settings, &cli.server, told).await;
            traces.end().await;
            result
        }
        Err(error) => Err(error.into()),
    };
    result.unwrap_or_else(|error| service::failed("control-api", &error, &logs))
}

fn is_unavailable(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<BackendError>(), Some(BackendError::Unavailable(_)))
}

/// The server, from its first check to its last answer.
async fn serve(settings: Settings, server: &ServerArgs, told: Vec<Setting>) -> anyhow::Result<ExitCode> {
    settings.check(Some(server.listen))?;
    let key = settings.amberflo.key()?;
    let registry = service::init_metrics("control-api", &[])?;
    surroundings::describe();
    let mut signals = service::signals()?;

    let keys = api_keys(key).await?;
    let ready = Ready::default();
    let app = Arc::new(App::new(settings, keys.clone(), ready.clone())?);
    match app.queues().await {
        Err(error) if is_unavailable(&error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "the dead letters cannot be reached now; all else can be used"
            );
        }
        opened => drop(opened?),
    }
    app.bus.open().await?;
    let auth = Auth::new(&app.settings.auth, Some(server.listen), app.settings.cors_origins.clone(), app.clock)?;
    ready.set();
    // An issuer or an Amberflo that does not answer must not keep the API from starting.
    let _ = tokio::join!(auth.warm(), timeout(PROBE_TIME, app.amberflo.probe()));
    let listener = service::bind("LISTEN", server.listen).await?;
    let admin_listener = service::bind("ADMIN_LISTEN", server.admin_listen).await?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        api = format!("http://{}", listener.local_addr()?),
        admin = format!("http://{}", admin_listener.local_addr()?),
        stream = %app.settings.backends.stream,
        dead_letter_queue = app.settings.backends.dead_letter_queue,
        auth = ?app.settings.auth.auth,
        issuer = app.settings.auth.jwt_issuer,
        amberflo = app.settings.amberflo.amberflo_base_url,
        "started"
    );
    warn_of_clear_text(&app.settings.amberflo.amberflo_base_url);

    let (stop, end) = (CancellationToken::new(), CancellationToken::new());
    let mut servers = JoinSet::new();
    let status = StatusPage::new(status::view(&app, admin_listener.local_addr()?, told));
    let mut background = JoinSet::new();
    background.spawn(status.keep_history(registry.clone()));
    let admin = service::admin_router(registry.clone(), ready.clone(), status);
    servers.spawn(service::serve(admin_listener, admin, end.clone().cancelled_owned()));
    background.spawn(service::metrics_upkeep(registry));
    background.spawn(surroundings::show_ready(ready.clone()));
    let refresh = app.settings.amberflo.api_key_refresh;
    background.spawn(async move { keys.refresh_every(refresh).await });
    let probed = Arc::clone(&app);
    background.spawn(async move { probed.amberflo.probe_while_not_ready().await });
    let router = router(Arc::clone(&app), auth);
    let mutations = app.mutations.clone();
    let stopped = stop.clone().cancelled_owned();
    let mut api = tokio::spawn(async move {
        service::serve(listener, router, stopped).await?;
        // Those whose caller has gone away.
        mutations.close();
        mutations.wait().await;
        std::io::Result::Ok(())
    });

    tokio::select! {
        Some(signal) = signals.recv() => tracing::info!(signal, "draining"),
        Some(ended) = servers.join_next() => {
            ended.context("a server failed")?.context("a server failed")?;
            anyhow::bail!("a server ended by itself");
        }
        Some(ended) = background.join_next() => anyhow::bail!("a background task ended by itself: {ended:?}"),
        ended = &mut api => {
            ended.context("the server failed")?.context("the server failed")?;
            anyhow::bail!("the server ended by itself");
        }
    }
    ready.close();
    stop.cancel();
    tokio::select! {
        drained = timeout(server.shutdown_grace, api) => match drained {
            Ok(ended) => ended.context("the server failed")?.context("the server failed")?,
            Err(_) => tracing::warn!("requests were still open after SHUTDOWN_GRACE: they are cut off"),
        },
        Some(signal) = signals.recv() => {
            tracing::warn!(signal, "second signal: ending at once");
            return Ok(service::EXIT_FAILURE.into());
        }
    }
    end.cancel();
    // Clients that keep a connection open do not hold the process.
    let _ = timeout(Duration::from_millis(500), async { while servers.join_next().await.is_some() {} }).await;
    tracing::info!("drained");
    Ok(ExitCode::SUCCESS)
}
