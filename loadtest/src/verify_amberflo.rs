//! Asks the real Amberflo whether it does what the pipeline was built on.
//!
//! Each assumption is a probe: an experiment with usage of a throwaway meter, whose outcome confirms or refutes it. An
//! outcome that says neither is unclear, and never a reason for the other probes to stop.

mod account;
mod client;
mod exchange;
mod plan;
mod probe;
mod probes;
mod probing;
mod report;
mod session;
#[cfg(test)]
mod tests;
mod usage;

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytesize::ByteSize;
use clap::Args;
use clap::builder::PossibleValuesParser;
use shared::api_key::ApiKey;
use shared::backends::api_keys;
use shared::clock::Clock;
use shared::service::{self, EXIT_CONFIGURATION};
use shared::settings::{AmberfloArgs, check_url, duration, rate, size, within, within_time};
use uuid::Uuid;

use account::Account;
use client::Client;
use plan::Plan;
use probe::{Probe, Settings};
use probing::Run;
use report::{Report, Verdict};

const EXIT_REFUTED: u8 = 1;
const EXIT_UNCLEAR: u8 = 3;
const EXIT_INTERRUPTED: u8 = 130;

/// Checks on your own Amberflo account what the pipeline assumes of Amberflo: above all, that a repeated record counts once.
///
/// It creates a throwaway meter and customers, sends usage, reads what was billed, and cleans up as far as Amberflo lets
/// it. It says what it is going to do, and asks, before it sends anything. Use an account for tests.
///
/// Exit codes: 0 all is confirmed, 1 something is refuted, 3 nothing is refuted but something is unclear, 2 it could not
/// run, 130 interrupted.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct VerifyArgs {
    /// The meter that takes the usage: a new name, or a meter without usage. Default: a random name. It is deleted at the
    /// end unless it was there before.
    #[arg(long, value_name = "NAME")]
    meter: Option<String>,
    /// What the ids of the customers begin with, before a random part. Default: verify-amberflo.
    #[arg(long, value_name = "ID")]
    customer: Option<String>,
    /// Runs these probes only. Those that may leave a meter behind for ever run only if they are named.
    #[arg(long, value_name = "PROBE", value_delimiter = ',', hide_possible_values = true)]
    #[arg(value_parser = PossibleValuesParser::new(probes::all().map(|probe| probe.id)))]
    only: Vec<String>,
    /// Shows the probes, what each does and what depends on it, and sends nothing.
    #[arg(long)]
    list: bool,
    /// Does not ask.
    #[arg(long)]
    yes: bool,
    /// Writes all that was found, with every exchange: to a file that ends in .md or .json, or to both kinds in this
    /// directory.
    #[arg(long, value_name = "DIR|FILE")]
    report: Option<PathBuf>,
    /// Prints the result as JSON.
    #[arg(long)]
    json: bool,
    /// How long to wait for usage to show, and after what time the last copy is sent.
    #[arg(long, default_value = "10m", value_parser = duration)]
    patience: Duration,
    /// How long usage must stay the same to be believed.
    #[arg(long, default_value = "30s", value_parser = duration)]
    settle: Duration,
    /// Requests a second, at most.
    #[arg(long, default_value = "5", value_parser = rate)]
    rate: f64,
    /// Most records in a request: batch-size goes up to it, and sends about twice as many.
    #[arg(long, default_value_t = probes::BATCH_RECORDS)]
    max_records: usize,
    /// Largest body: body-size goes up to it.
    #[arg(long, default_value_t = ByteSize(probes::BATCH_BYTES as u64), value_parser = size)]
    max_bytes: ByteSize,
    #[command(flatten)]
    amberflo: AmberfloArgs,
    /// Amberflo's ingest endpoint. Default: ingest.amberflo.io, or the base URL where that was changed.
    #[arg(long, env, value_name = "URL", help_heading = "Amberflo")]
    amberflo_ingest_url: Option<String>,
    /// How long a request may take.
    #[arg(long, env, default_value = "30s", value_parser = duration, help_heading = "Amberflo")]
    request_timeout: Duration,
}

/// Runs until all probes have a verdict, or a signal comes.
///
/// # Errors
/// When the report cannot be written.
pub async fn run(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    if args.list {
        println!("{}", list());
        return Ok(ExitCode::SUCCESS);
    }
    let could_not = |error: anyhow::Error| {
        eprintln!("loadtest: {error:#}");
        Ok(EXIT_CONFIGURATION.into())
    };
    let probes = args.probes();
    let run = match args.prepare(&probes).await {
        Ok(run) => Arc::new(run),
        Err(error) => return could_not(error),
    };
    let mut signals = service::signals()?;
    let done = std::cell::Cell::new(0);
    let result = session::perform(&run, &probes, &mut signals, |outcome| {
        done.set(done.get() + 1);
        let finding = exchange::brief(&outcome.finding);
        eprintln!("[{:>2}/{}] {:<9}  {}: {finding}", done.get(), probes.len(), outcome.verdict.name(), outcome.id);
    });
    let report = match result.await {
        Ok(report) => report,
        Err(reason) => {
            return could_not(anyhow::anyhow!("no probe could run: {}", run.client.redact(reason.as_bytes())));
        }
    };
    match args.show(&report, &run.client) {
        Ok(()) => Ok(exit_code(&report)),
        Err(error) => could_not(error),
    }
}

fn exit_code(report: &Report) -> ExitCode {
    match report {
        report if report.is_interrupted => EXIT_INTERRUPTED.into(),
        report if report.count(Verdict::Refuted) > 0 => EXIT_REFUTED.into(),
        report if report.count(Verdict::Unclear) > 0 => EXIT_UNCLEAR.into(),
        _ => ExitCode::SUCCESS,
    }
}

impl VerifyArgs {
    fn probes(&self) -> Vec<&'static Probe> {
        if self.only.is_empty() {
            return probes::by_default().collect();
        }
        probes::all().filter(|probe| self.only.iter().any(|only| only == probe.id)).collect()
    }

    /// Everything up to the first request: the settings, the key, the announcement and the question.
    async fn prepare(&self, probes: &[&Probe]) -> anyhow::Result<Run> {
        let settings = self.settings()?;
        let base_url = self.amberflo.amberflo_base_url.trim_end_matches('/').to_owned();
        let ingest_url = self.amberflo.ingest_url(self.amberflo_ingest_url.as_deref());
        let ingest_url = ingest_url.trim_end_matches('/').to_owned();
        check_url("AMBERFLO_INGEST_URL", &ingest_url)?;
        let key: ApiKey = api_keys(self.amberflo.key()?).await?.subscribe().borrow().clone();
        let random = Uuid::new_v4().simple().to_string();
        let prefix = format!("verify-amberflo-{}", &random[..8]);
        let meter = self.meter.clone().unwrap_or_else(|| prefix.clone());
        let customer = self.customer.as_deref().unwrap_or("verify-amberflo");
        check_name("--meter", &meter)?;
        check_name("--customer", customer)?;
        // With something random in it no customer is one that was there before.
        let customer = format!("{customer}-{}", &random[..8]);

        let cost = Plan::cost(probes, &settings);
        let plan = Plan {
            base_url: &base_url,
            ingest_url: &ingest_url,
            prefix: &prefix,
            meter: &meter,
            customer: &customer,
            probes: probes.len(),
            cost,
            rate: settings.rate,
            longest: Plan::longest(&cost, &settings),
        };
        eprint!("{plan}");
        self.ask()?;
        self.prepare_report()?;
        let client = Client::new(key, settings.rate, cost.requests, settings.request_timeout)?;
        let (started, account) = (Clock::system().now(), Account::default());
        Ok(Run { client, base_url, ingest_url, settings, prefix, meter, customer, started, account })
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        self.amberflo.check()?;
        let second = Duration::from_secs(1);
        within_time("--request-timeout", self.request_timeout, Duration::from_millis(1), 600 * second)?;
        within_time("--patience", self.patience, Duration::from_millis(100), 86_400 * second)?;
        // An unexpected sum needs several times as long.
        within_time("--settle", self.settle, Duration::from_millis(10), self.patience / (usage::DOUBTS + 1))?;
        within("--rate", self.rate, 0.1, 10_000.0)?;
        within("--max-records", self.max_records, 1, 1_000_000)?;
        within("--max-bytes", self.max_bytes, ByteSize::kib(2), ByteSize::mib(64))?;
        Ok(Settings {
            patience: self.patience,
            settle: self.settle,
            repeat_after: Settings::repeat_after(self.patience),
            max_records: self.max_records,
            max_bytes: self.max_bytes.as_u64() as usize,
            rate: self.rate,
            request_timeout: self.request_timeout,
        })
    }

    fn ask(&self) -> anyhow::Result<()> {
        if self.yes {
            return Ok(());
        }
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            bail!("nothing was sent: this is no terminal, so nobody can be asked; --yes says yes to the above");
        }
        eprint!("Go on? Only yes goes on: ");
        std::io::stderr().flush()?;
        let mut line = String::new();
        stdin.lock().read_line(&mut line).context("no answer")?;
        if line.trim() == "yes" { Ok(()) } else { bail!("nothing was sent") }
    }

    /// Where nothing can be written, that is said before the first request.
    fn prepare_report(&self) -> anyhow::Result<()> {
        let Some(path) = &self.report else { return Ok(()) };
        let can_be_written = match path.extension().and_then(|extension| extension.to_str()) {
            Some("md" | "json") => std::fs::File::options().append(true).create(true).open(path).map(|_| ()),
            _ => std::fs::create_dir_all(path),
        };
        can_be_written.with_context(|| format!("--report {}", path.display()))
    }

    fn show(&self, report: &Report, client: &Client) -> anyhow::Result<()> {
        let json = client.redact(&serde_json::to_vec_pretty(report)?);
        println!("{}", if self.json { json.clone() } else { client.redact(report.text().as_bytes()) });
        let markdown = client.redact(report.markdown().as_bytes());
        let Some(path) = &self.report else { return Ok(()) };
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text).with_context(|| format!("--report {}", path.display()))?;
            eprintln!("report: {}", path.display());
            anyhow::Ok(())
        };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("md") => write(path, &markdown),
            Some("json") => write(path, &json),
            _ => {
                std::fs::create_dir_all(path).with_context(|| format!("--report {}", path.display()))?;
                write(&path.join("verify-amberflo.md"), &markdown)?;
                write(&path.join("verify-amberflo.json"), &json)
            }
        }
    }
}

/// It stands in URLs and JSON as it is.
fn check_name(setting: &str, name: &str) -> anyhow::Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 100 || !name.bytes().all(is_plain) {
        bail!("{setting}: {name:?}; allowed are 1 to 100 letters, digits, `-`, `_` and `.`");
    }
    Ok(())
}

fn list() -> String {
    let lines = probes::all().map(|probe| {
        let only_if_named =
            if probes::on_request().any(|other| other.id == probe.id) { "; only if named by --only" } else { "" };
        let Probe { id, sureness, claim, does, confirmed_if, refuted_if, if_refuted, .. } = probe;
        format!(
            "{id} ({}{only_if_named})\n  {claim}\n  Experiment: {does}\n  Confirmed if: {confirmed_if}\n  Refuted if: {refuted_if}\n  If refuted: \
             {if_refuted}",
            sureness.name()
        )
    });
    lines.collect::<Vec<_>>().join("\n\n")
}
