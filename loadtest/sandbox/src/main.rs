//! The sandbox as a server: `amberflo-sandbox --help`.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::process::ExitCode;
use std::time::Duration;

use amberflo_sandbox::{Facts, Faults, Latency, Poison, RetryAfterFormat, Sandbox, SandboxConfig, Trigger};
use anyhow::Context as _;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// A setting or a port that cannot be used; other failures exit with 1.
const EXIT_UNUSABLE: u8 = 2;

/// A stand-in for Amberflo, with its rules, its deduplication, and faults on demand.
///
/// It answers POST /ingest, /meters, POST /usage, GET /usage/events, POST /ingest-snapshot/custom-filtering-rules and
/// /customers. What it received is at GET /sandbox/ledger, /sandbox/stats, /sandbox/events, /sandbox/records, /sandbox/double-billed
/// and /sandbox/filtering-rules; faults can be changed while it runs with PUT /sandbox/faults, and what it takes for true
/// of Amberflo with PUT /sandbox/facts.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Address to listen on; port 0 takes a free one, which is logged.
    #[arg(long, env = "SANDBOX_LISTEN", default_value = "127.0.0.1:4020")]
    listen: SocketAddr,
    /// Accepted values of X-API-KEY.
    #[arg(
        long,
        env = "SANDBOX_API_KEYS",
        value_delimiter = ',',
        default_value = "sandbox-key",
        hide_env_values = true
    )]
    api_keys: Vec<String>,
    /// Keep every record, for /usage, /usage/events and /sandbox/events. Without it, hashes only: some 80 bytes an event.
    #[arg(long, env = "SANDBOX_KEEP_RECORDS")]
    keep_records: bool,
    /// How many events deduplication remembers; for ever if not given.
    #[arg(long, env = "SANDBOX_MAX_REMEMBERED")]
    max_remembered: Option<NonZeroUsize>,
    /// What Amberflo does unlike what is assumed, as JSON: as PUT /sandbox/facts takes it, and GET shows it.
    #[arg(long, env = "SANDBOX_FACTS", value_parser = |json: &str| Facts::from_json(json.as_bytes()))]
    facts: Option<Facts>,
    /// What to log, as tracing's filters are written.
    #[arg(long, env = "LOG", default_value = "info")]
    log: String,
    #[command(flatten)]
    faults: FaultArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Faults")]
struct FaultArgs {
    /// All faults as JSON, as PUT /sandbox/faults takes them; the flags below go on top. Shares of requests are those of
    /// POST /ingest unless `operations` names others: meters, usage, usage_events, filtering_rules, customers.
    #[arg(long, env = "SANDBOX_FAULTS", value_parser = |json: &str| Faults::from_json(json.as_bytes()))]
    faults: Option<Faults>,
    /// Where the random sequence starts.
    #[arg(long, env = "SANDBOX_SEED")]
    seed: Option<u64>,
    /// Share of requests answered 500, 502 or 503 before accepting anything, 0 to 1.
    #[arg(long, env = "SANDBOX_FAIL_RATE")]
    fail_rate: Option<f64>,
    /// Share of requests answered 500, 502 or 503 after accepting everything.
    #[arg(long, env = "SANDBOX_FAIL_AFTER_RATE")]
    fail_after_rate: Option<f64>,
    /// Share of requests answered 429.
    #[arg(long, env = "SANDBOX_THROTTLE_RATE")]
    throttle_rate: Option<f64>,
    /// Retry-After of every 429, such as 2s.
    #[arg(long, env = "SANDBOX_RETRY_AFTER", value_parser = humantime::parse_duration)]
    retry_after: Option<Duration>,
    /// Write Retry-After as an HTTP date.
    #[arg(long, env = "SANDBOX_RETRY_AFTER_DATE")]
    retry_after_date: bool,
    /// Share of requests that get no answer, nothing accepted.
    #[arg(long, env = "SANDBOX_HANG_RATE")]
    hang_rate: Option<f64>,
    /// Share of requests that get no answer, everything accepted.
    #[arg(long, env = "SANDBOX_HANG_AFTER_RATE")]
    hang_after_rate: Option<f64>,
    /// How long a hang lasts.
    #[arg(long, env = "SANDBOX_HANG_FOR", value_parser = humantime::parse_duration)]
    hang_for: Option<Duration>,
    /// Delay of every request: 20ms, or a range such as 5ms-50ms.
    #[arg(long, env = "SANDBOX_LATENCY", value_parser = parse_latency)]
    latency: Option<Latency>,
    /// Share of requests of which the last record is dropped and not counted in the answer.
    #[arg(long, env = "SANDBOX_PARTIAL_INGEST_RATE")]
    partial_ingest_rate: Option<f64>,
    /// Share of requests accepted whole whose answer counts one record too few.
    #[arg(long, env = "SANDBOX_PARTIAL_ANSWER_RATE")]
    partial_answer_rate: Option<f64>,
    /// Share of requests redirected.
    #[arg(long, env = "SANDBOX_REDIRECT_RATE")]
    redirect_rate: Option<f64>,
    /// Share of requests answered 200 with an HTML page.
    #[arg(long, env = "SANDBOX_HTML_RATE")]
    html_rate: Option<f64>,
    /// Requests above this rate get 429.
    #[arg(long, env = "SANDBOX_REQUESTS_PER_SECOND")]
    requests_per_second: Option<NonZeroU32>,
    /// Requests above this many at once get 429.
    #[arg(long, env = "SANDBOX_MAX_CONCURRENT")]
    max_concurrent: Option<NonZeroUsize>,
    /// Bodies above this size (decompressed) get 413.
    #[arg(long, env = "SANDBOX_MAX_BODY_BYTES")]
    max_body_bytes: Option<NonZeroUsize>,
    /// Requests with more records get 413.
    #[arg(long, env = "SANDBOX_MAX_RECORDS")]
    max_records: Option<NonZeroUsize>,
    /// Requests holding a record whose uniqueId starts so are refused.
    #[arg(long, env = "SANDBOX_POISON_UNIQUE_ID_PREFIX")]
    poison_unique_id_prefix: Option<String>,
    /// Requests holding a record of this customer are refused.
    #[arg(long, env = "SANDBOX_POISON_CUSTOMER_ID")]
    poison_customer_id: Option<String>,
    /// Requests holding a record of this meter are refused.
    #[arg(long, env = "SANDBOX_POISON_METER_API_NAME")]
    poison_meter_api_name: Option<String>,
    /// The status of such a refusal.
    #[arg(long, env = "SANDBOX_POISON_STATUS", default_value_t = 400)]
    poison_status: u16,
    /// Keys that answer 401.
    #[arg(long, env = "SANDBOX_REVOKED_KEYS", value_delimiter = ',', hide_env_values = true)]
    revoked_keys: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(args).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("amberflo-sandbox: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let unusable = |message: String| {
        eprintln!("amberflo-sandbox: {message}");
        Ok(ExitCode::from(EXIT_UNUSABLE))
    };
    let filter = match args.log.parse::<tracing_subscriber::EnvFilter>() {
        Ok(filter) => filter,
        Err(error) => return unusable(format!("--log {:?}: {error}", args.log)),
    };
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();

    let sandbox = Sandbox::new(SandboxConfig {
        api_keys: args.api_keys.into_iter().collect(),
        keep_records: args.keep_records,
        max_remembered: args.max_remembered,
        ..SandboxConfig::default()
    });
    if let Err(invalid) = sandbox.set_faults(args.faults.into_faults()) {
        return unusable(format!("faults: {invalid}"));
    }
    if let Err(invalid) = sandbox.set_facts(args.facts.unwrap_or_default()) {
        return unusable(format!("facts: {invalid}"));
    }
    let listener = match TcpListener::bind(args.listen).await {
        Ok(listener) => listener,
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let port = args.listen.port();
            return unusable(format!("port {port} is taken ({}): choose another with --listen", args.listen));
        }
        Err(error) => return unusable(format!("cannot listen on {}: {error}", args.listen)),
    };
    let address = listener.local_addr().context("the listener has no address")?;
    let stop = stop_signal().context("cannot listen for signals")?;
    tracing::info!(%address, keep_records = args.keep_records, "sandbox listens");
    amberflo_sandbox::serve(listener, sandbox.clone(), stop).await.context("serving failed")?;
    let ledger = sandbox.ledger();
    tracing::info!(events = ledger.events, absorbed_copies = ledger.absorbed_copies, "sandbox stopped");
    Ok(ExitCode::SUCCESS)
}

impl FaultArgs {
    fn into_faults(self) -> Faults {
        let mut faults = self.faults.unwrap_or_default();
        for (flag, trigger) in [
            (self.fail_rate, &mut faults.fail_before),
            (self.fail_after_rate, &mut faults.fail_after),
            (self.throttle_rate, &mut faults.throttle),
            (self.hang_rate, &mut faults.hang_before),
            (self.hang_after_rate, &mut faults.hang_after),
            (self.partial_ingest_rate, &mut faults.partial_ingest),
            (self.partial_answer_rate, &mut faults.partial_answer),
            (self.redirect_rate, &mut faults.redirect),
            (self.html_rate, &mut faults.html),
            (self.latency.map(|_| 1.0), &mut faults.slow),
        ] {
            *trigger = flag.map_or(*trigger, Trigger::rate);
        }
        faults.seed = self.seed.unwrap_or(faults.seed);
        faults.retry_after = self.retry_after.or(faults.retry_after);
        if self.retry_after_date {
            faults.retry_after_format = RetryAfterFormat::HttpDate;
        }
        faults.hang_for = self.hang_for.unwrap_or(faults.hang_for);
        faults.latency = self.latency.unwrap_or(faults.latency);
        faults.requests_per_second = self.requests_per_second.or(faults.requests_per_second);
        faults.max_concurrent = self.max_concurrent.or(faults.max_concurrent);
        faults.max_body_bytes = self.max_body_bytes.or(faults.max_body_bytes);
        faults.max_records = self.max_records.or(faults.max_records);
        faults.revoked_keys.extend(self.revoked_keys);
        let poison = Poison {
            status: self.poison_status,
            unique_id_prefixes: self.poison_unique_id_prefix.into_iter().collect(),
            customer_ids: self.poison_customer_id.into_iter().collect(),
            meter_api_names: self.poison_meter_api_name.into_iter().collect(),
        };
        if !poison.is_empty() {
            faults.poison.push(poison);
        }
        faults
    }
}

/// `20ms` or `5ms-50ms`.
fn parse_latency(text: &str) -> Result<Latency, humantime::DurationError> {
    let (min, max) = text.split_once('-').unwrap_or((text, text));
    Ok(Latency { min: humantime::parse_duration(min)?, max: humantime::parse_duration(max)? })
}

/// Completes on the first SIGTERM or SIGINT.
fn stop_signal() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(args: &[&str]) -> Faults {
        let args = Args::try_parse_from(["amberflo-sandbox"].iter().chain(args)).unwrap();
        args.faults.into_faults()
    }

    #[test]
    fn no_flags_mean_no_faults() {
        assert_eq!(faults(&[]), Faults::default());
    }

    #[test]
    fn flags_go_on_top_of_json() {
        let json = r#"{"fail_before":{"rate":0.1},"html":{"count":1}}"#;
        let faults =
            faults(&["--faults", json, "--fail-rate", "0.5", "--latency", "1ms-2s", "--poison-customer-id", "c"]);
        assert_eq!(faults.fail_before, Trigger::rate(0.5));
        assert_eq!(faults.html, Trigger::next(1));
        assert_eq!(faults.slow, Trigger::rate(1.0));
        assert_eq!(faults.latency.max, Duration::from_secs(2));
        assert_eq!(faults.poison.len(), 1);
    }

    #[test]
    fn a_wrong_field_in_json_is_named() {
        let error = Args::try_parse_from(["amberflo-sandbox", "--faults", r#"{"frotz":1}"#]).unwrap_err();
        assert!(error.to_string().contains("frotz"), "{error}");
    }
}
