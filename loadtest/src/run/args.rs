//! What a load run is told.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use shared::settings::{Secret, StreamName, check_url, duration};

use crate::load::Plan;
use crate::mix::{METERS, Mix};
use crate::target::bus::BusNames;
use crate::target::{Api, Bus, DETAIL_TYPE, EventStream, SOURCE, Target, aws_configuration, is_on_this_machine};

/// EventBridge drops what no rule matches, and answers success.
const OF_THE_RULE: &str = "what the deployment's rule wants, or else EventBridge drops every event without a word: \
                           --source applicationPlaneEventSource --detail-type ingestUsage for SBT 0.5, \
                           --source sbt.application.plane --detail-type sbt_aws_ingestUsage for SBT's main";
/// What fits into an entry of `PutEvents`, and leaves room for the envelope.
const SIZE_MAX: usize = 200_000;
const TENANTS_MAX: u32 = 1_000_000;
/// As far as memory and ports go.
const CONNECTIONS_MAX: usize = 10_000;
const BACKLOG_MAX: usize = 10_000_000;

/// Puts load on a deployment at a steady rate, whatever the deployment does, and reports how that went.
///
/// Events are made by the clock; latency counts from the time at which an event was to be sent. Every event is written to
/// a manifest, from which `loadtest audit` tells later whether each was billed once. Calls that fail are made again, with
/// the same uniqueId. Exit codes: 0 every event was acknowledged or refused, 1 some were not, 2 the run could not be
/// carried out, 130 it was ended by a signal.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Where events are put: on an event bus, straight on the stream, or on the control API.
    #[arg(long, value_enum, default_value = "bus")]
    target: TargetKind,
    /// Events per second, copies included.
    #[arg(long, default_value = "100")]
    rate: f64,
    /// For how long.
    #[arg(long, default_value = "30s", value_parser = duration)]
    duration: Duration,
    /// Calls under way at a time.
    #[arg(long, default_value = "32")]
    connections: NonZeroUsize,
    /// Events in a call, at most. EventBridge takes 10, Kinesis 500, the control API 1,000.
    #[arg(long, default_value = "1000")]
    batch: NonZeroUsize,
    /// How long a call waits for more events after its first. The control API limits the requests of a caller: fuller ones
    /// carry more.
    #[arg(long, default_value = "0ms", value_parser = duration)]
    linger: Duration,
    /// Events that may wait to be sent; what arrives beyond is counted as not sent. They are kept in memory.
    #[arg(long, default_value = "200000")]
    backlog: NonZeroUsize,
    /// How long after its time an event is given up for which no call has succeeded.
    #[arg(long, default_value = "60s", value_parser = duration)]
    patience: Duration,
    /// How long a call may take.
    #[arg(long, default_value = "10s", value_parser = duration)]
    timeout: Duration,
    /// Do not ask before putting load on a deployment that is not on this machine.
    #[arg(long)]
    pub yes: bool,

    /// How many tenants.
    #[arg(long, default_value = "50", help_heading = "Events")]
    pub tenants: u32,
    /// How uneven they are: Zipf's exponent. 0 is even; with 1 the second makes half as many events as the first.
    #[arg(long, default_value = "0", allow_negative_numbers = true, help_heading = "Events")]
    skew: f64,
    /// Meters, each event one of them.
    #[arg(long = "meter", value_name = "NAME", value_delimiter = ',', default_values = METERS, help_heading = "Events")]
    pub meters: Vec<String>,
    /// Bytes of an event's detail, filled up with a dimension; 0 leaves them as they are, some 220.
    #[arg(long, default_value = "0", help_heading = "Events")]
    size: usize,
    /// Share of events that are sent twice, 0 to 1.
    #[arg(long, default_value = "0", help_heading = "Events")]
    duplicates: f64,
    /// Share of events that are no usage events, 0 to 1: the worker must dead-letter them.
    #[arg(long, default_value = "0", help_heading = "Events")]
    malformed: f64,
    /// Share of events that are followed by one with the same uniqueId and another value, 0 to 1.
    #[arg(long, default_value = "0", help_heading = "Events")]
    conflicts: f64,
    /// Share of events that carry meterTimeInMillis, 0 to 1. Copies of the others are told only within DEDUP_WINDOW.
    #[arg(long, default_value = "1", help_heading = "Events")]
    timed: f64,
    /// Where the random sequence starts.
    #[arg(long, default_value = "1", help_heading = "Events")]
    pub seed: u64,

    /// Bus: its endpoint, such as the LISTEN of a worker; EventBridge by the usual AWS settings where none is given.
    #[arg(long, env = "AWS_ENDPOINT_URL_EVENTBRIDGE", value_name = "URL", help_heading = "Target")]
    endpoint_url: Option<String>,
    /// Bus: its name or ARN; the account's default bus where none is given.
    #[arg(long, value_name = "NAME", help_heading = "Target")]
    bus_name: Option<String>,
    /// Bus: the events' source, as the deployment's rule wants it; needed for EventBridge itself.
    #[arg(long, help_heading = "Target")]
    source: Option<String>,
    /// Bus: the events' detail type, as the deployment's rule wants it; needed for EventBridge itself.
    #[arg(long, help_heading = "Target")]
    detail_type: Option<String>,
    /// Kinesis: the stream, as for the worker. (local:DIR is taken too.)
    #[arg(long, env = "STREAM", value_name = "kinesis:NAME-OR-ARN", help_heading = "Target")]
    stream: Option<StreamName>,
    /// Kinesis: its endpoint; AWS's own where none is given.
    #[arg(long, env = "AWS_ENDPOINT_URL_KINESIS", value_name = "URL", help_heading = "Target")]
    kinesis_endpoint_url: Option<String>,
    /// Api: the control API.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", help_heading = "Target")]
    api_url: String,
    /// Api: the bearer token, where it wants one.
    #[arg(long, env = "LOADTEST_API_TOKEN", hide_env_values = true, value_name = "TOKEN", help_heading = "Target")]
    api_token: Option<Secret>,

    /// Where every event is written to, for the audit. Default: RUN.manifest.jsonl beside the report, or here.
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    pub manifest: Option<PathBuf>,
    /// Write a report with charts into this directory: report.md, *.svg and result.json.
    #[arg(long, value_name = "DIR", help_heading = "Result")]
    pub report: Option<PathBuf>,
    /// A worker's /metrics, for the report: lag, batches, concurrency, 429s. May be given for each worker.
    #[arg(long, value_name = "URL", value_delimiter = ',', help_heading = "Result")]
    pub worker_metrics: Vec<String>,
    /// Print the result as one JSON object, the last line of standard output; everything else goes to standard error.
    #[arg(long, help_heading = "Result")]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TargetKind {
    /// PutEvents.
    Bus,
    /// PutRecords, as EventBridge's rule would.
    Kinesis,
    /// POST /ingest.
    Api,
}

/// A target that is ready.
pub struct Opened {
    /// The target.
    pub target: Arc<dyn Target>,
    /// What it is called in the result.
    pub name: String,
    /// Nothing leaves this machine by it.
    pub is_on_this_machine: bool,
}

impl RunArgs {
    /// Checks what a single value cannot show.
    ///
    /// # Errors
    /// One line that names the flag, what was given and what is allowed.
    pub fn check(&self) -> anyhow::Result<()> {
        let share = 0.0..=1.0;
        let shares = [
            ("--duplicates", self.duplicates),
            ("--malformed", self.malformed),
            ("--conflicts", self.conflicts),
            ("--timed", self.timed),
        ];
        for (name, given) in shares {
            ensure!(share.contains(&given), "{name}: {given}; allowed is 0 to 1");
        }
        ensure!((0.001..=1e6).contains(&self.rate), "--rate: {}; allowed is 0.001 to 1000000", self.rate);
        ensure!((0.0..=10.0).contains(&self.skew), "--skew: {}; allowed is 0 to 10", self.skew);
        ensure!(self.size <= SIZE_MAX, "--size: {}; allowed is 0 to {SIZE_MAX}", self.size);
        let tenants = 1..=TENANTS_MAX;
        ensure!(tenants.contains(&self.tenants), "--tenants: {}; allowed is 1 to {TENANTS_MAX}", self.tenants);
        let times = Duration::from_millis(100)..=Duration::from_secs(7 * 86_400);
        for (name, given) in [("--duration", self.duration), ("--patience", self.patience), ("--timeout", self.timeout)]
        {
            let text = humantime::format_duration(given);
            ensure!(times.contains(&given), "{name}: {text}; allowed is 100ms to 7d");
        }
        let text = humantime::format_duration(self.linger);
        // What lingered for longer would be given up without a call.
        ensure!(self.linger < self.patience, "--linger: {text}; allowed is less than --patience");
        let bounds = [
            ("--connections", self.connections.get(), CONNECTIONS_MAX),
            ("--backlog", self.backlog.get(), BACKLOG_MAX),
        ];
        for (name, given, max) in bounds {
            ensure!(given <= max, "{name}: {given}; allowed is 1 to {max}");
        }
        let text = humantime::format_duration(self.duration);
        ensure!(
            self.plan().events() > 0,
            "--rate {} for --duration {text} makes no event: raise one of them",
            self.rate
        );
        let is_name =
            |name: &String| !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic() && c != '"' && c != '\\');
        let bad = self.meters.iter().find(|name| !is_name(name));
        if let Some(bad) = bad {
            bail!("--meter: {bad:?}; allowed is visible ASCII without quotes");
        }
        for (name, url) in
            [("--endpoint-url", &self.endpoint_url), ("--kinesis-endpoint-url", &self.kinesis_endpoint_url)]
        {
            url.iter().try_for_each(|url| check_url(name, url))?;
        }
        check_url("--api-url", &self.api_url)?;
        if let TargetKind::Bus = self.target
            && self.endpoint_url.is_none()
        {
            for (name, given) in [("--source", &self.source), ("--detail-type", &self.detail_type)] {
                ensure!(given.is_some(), "{name}: not given; {OF_THE_RULE}");
            }
        }
        self.worker_metrics.iter().try_for_each(|url| check_url("--worker-metrics", url))?;
        Ok(())
    }

    /// What the events are like.
    pub fn mix(&self, run: String) -> Mix {
        Mix {
            tenants: self.tenants,
            skew: self.skew,
            meters: self.meters.iter().map(|name| Arc::from(name.as_str())).collect(),
            size: self.size,
            duplicates: self.duplicates,
            malformed: self.malformed,
            conflicts: self.conflicts,
            timed: self.timed,
            ..Mix::sound(run)
        }
    }

    /// How they are sent.
    pub fn plan(&self) -> Plan {
        Plan {
            rate: self.rate,
            duration: self.duration,
            connections: self.connections.get(),
            batch: self.batch.get(),
            linger: self.linger,
            backlog: self.backlog.get(),
            patience: self.patience,
        }
    }

    /// Opens the target.
    ///
    /// # Errors
    /// When it can be seen not to be there.
    pub async fn open(&self) -> anyhow::Result<Opened> {
        match self.target {
            TargetKind::Bus => {
                let endpoint = self.endpoint_url.as_deref();
                let names = BusNames {
                    bus: self.bus_name.clone(),
                    source: self.source.clone().unwrap_or_else(|| SOURCE.to_owned()),
                    detail_type: self.detail_type.clone().unwrap_or_else(|| DETAIL_TYPE.to_owned()),
                };
                let configuration = aws_configuration(endpoint, None, self.timeout).await?;
                let region = configuration.region().map_or_else(String::new, ToString::to_string);
                let bus = self.bus_name.as_deref().unwrap_or("default");
                let name = match endpoint {
                    Some(url) => format!("the bus {bus} at {url}"),
                    None => format!("the EventBridge bus {bus} in {region}"),
                };
                let target = Arc::new(Bus::new(&configuration, names));
                Ok(Opened { target, name, is_on_this_machine: endpoint.is_some_and(is_on_this_machine) })
            }
            TargetKind::Kinesis => {
                let stream = self.stream.as_ref().context("--target kinesis needs --stream kinesis:NAME-OR-ARN")?;
                let endpoint = self.kinesis_endpoint_url.as_deref();
                let target = EventStream::open(stream, endpoint, self.timeout).await;
                let target = Arc::new(target.with_context(|| format!("--stream {stream}"))?);
                let name =
                    endpoint.map_or(format!("the stream {stream}"), |url| format!("the stream {stream} at {url}"));
                let is_local = matches!(stream, StreamName::Local(_));
                Ok(Opened { target, name, is_on_this_machine: is_local || endpoint.is_some_and(is_on_this_machine) })
            }
            TargetKind::Api => {
                let target = Arc::new(Api::new(&self.api_url, self.api_token.clone(), self.timeout)?);
                let name = format!("the control API at {}", self.api_url);
                Ok(Opened { target, name, is_on_this_machine: is_on_this_machine(&self.api_url) })
            }
        }
    }
}
