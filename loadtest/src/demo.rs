//! The demo: an application plane, a real worker and a faulty Amberflo, and what remains of every event.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use amberflo_sandbox::{Sandbox, SandboxConfig};
use anyhow::{Context as _, bail, ensure};
use shared::backend::local::{LocalOptions, LocalStore};
use shared::dead_letter::DeadLetter;
use shared::service;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::audit::{Audit, Bill};
use crate::faults::{self, FIRST_KEY, SECOND_KEY};
use crate::producer::{Load, Plane};
use crate::progress::{Progress, Teller};
use crate::report::{Report, Speed};
use crate::service_process::{ServiceProcess, ServiceSettings};
use crate::target::{DETAIL_TYPE, SOURCE};

/// Everything is kept in memory for the audit, about a kilobyte an event.
const EVENTS_MAX: f64 = 5e6;
/// How long the plane may take to be rid of its last events, and the worker to settle them.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The worker counts as settled when it was idle for so long: longer than its gauges are old and a page takes.
const IDLE_FOR: Duration = Duration::from_millis(2500);
/// How often the plane makes what is due.
const TICK: Duration = Duration::from_millis(20);
const POLL: Duration = Duration::from_millis(100);
const INTERRUPTED: u8 = 130;

/// Runs the whole pipeline on this machine, breaks what can break, and accounts for every event.
///
/// 50 tenants emit usage of 5 meters through PutEvents: 5 % producer retries, 0.5 % malformed events, some conflicts,
/// some events that Amberflo refuses. Meanwhile a stand-in for Amberflo throttles, fails and hangs, and the worker is
/// killed with SIGKILL once. Exit code 0: no event was lost and none billed twice.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// For how long events are emitted. From 2m on, the API key is rotated too.
    #[arg(long, default_value = "20s", value_parser = duration)]
    duration: Duration,
    /// Entries per second.
    #[arg(long, default_value = "2000")]
    rate: NonZeroU32,
    /// Print the result as one JSON object, the last line of standard output; everything else goes to standard error.
    #[arg(long)]
    json: bool,
    /// Leave everything running afterwards, and say how to send an event by hand. Ctrl-C ends it.
    #[arg(long)]
    keep: bool,
    /// Where the random sequences of events and faults start.
    #[arg(long, default_value = "1")]
    seed: u64,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let range = Duration::from_secs(2)..=Duration::from_secs(24 * 3600);
    range.contains(&duration).then_some(duration).ok_or_else(|| "allowed is 2s to 24h".to_owned())
}

/// Runs the demo until it is over or a signal ends it.
///
/// # Errors
/// When it could not be carried out; a failed audit is not an error, but exit code 1.
pub async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let events = args.duration.as_secs_f64() * f64::from(args.rate.get());
    ensure!(events <= EVENTS_MAX, "{events} events do not fit into memory: lower --duration or --rate");
    let teller = Teller::new(args.json);
    let mut signals = service::signals()?;
    // Dropping what runs kills the worker and removes the directory.
    let (mut stage, passed) = tokio::select! {
        result = perform(&args, &teller, started) => result?,
        _ = signals.recv() => return Ok(INTERRUPTED.into()),
    };
    if args.keep {
        stage.worker.restart().await?;
        teller.say(&stage.invitation());
        signals.recv().await;
        stage.worker.terminate().await?;
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn perform(args: &DemoArgs, teller: &Teller, started: Instant) -> anyhow::Result<(Stage, bool)> {
    let mut stage = Stage::set().await?;
    match stage.play(args, teller, started).await {
        Ok(report) => {
            if !report.passed {
                teller.say(&stage.log());
            }
            teller.say(&report.table());
            if args.json {
                println!("{}", serde_json::to_string(&report)?);
            }
            Ok((stage, report.passed))
        }
        Err(error) => bail!("{error:#}\n{}", stage.log()),
    }
}

/// All that a run needs. In order of dropping: the worker goes first and its directory last.
struct Stage {
    worker: ServiceProcess,
    settings: ServiceSettings,
    sandbox: Sandbox,
    sandbox_address: SocketAddr,
    /// The instant from which the sandbox counts.
    origin: Instant,
    server: JoinHandle<std::io::Result<()>>,
    _dir: TempDir,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Stage {
    async fn set() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("metering-demo-").tempdir().context("no temporary directory")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let sandbox_address = listener.local_addr()?;
        let api_keys = [FIRST_KEY, SECOND_KEY].map(str::to_owned).into();
        let sandbox = Sandbox::new(SandboxConfig { api_keys, ..SandboxConfig::default() });
        let origin = Instant::now();
        let server = tokio::spawn(amberflo_sandbox::serve(listener, sandbox.clone(), std::future::pending()));
        let env = [
            // Short, so that a request that hangs costs the run a second and not half a minute.
            ("REQUEST_TIMEOUT", "1s"),
            ("BATCH_LINGER", "250ms"),
            ("LOG", "info"),
        ];
        let env = env.map(|(name, value)| (name, value.to_owned())).into();
        let settings = ServiceSettings { env, ..ServiceSettings::ingest_worker(dir.path(), sandbox_address) };
        std::fs::write(settings.key_file(), FIRST_KEY)?;
        let worker = match ServiceProcess::start(settings.clone()).await {
            Ok(worker) => worker,
            Err(error) => bail!("{error:#}\nthe worker's log ends with:\n{}", settings.log_tail()),
        };
        Ok(Self { worker, settings, sandbox, sandbox_address, origin, server, _dir: dir })
    }

    /// From the first event to the result; the worker has ended then.
    async fn play(&mut self, args: &DemoArgs, teller: &Teller, started: Instant) -> anyhow::Result<Report> {
        teller.say(&format!(
            "sandbox http://{}/sandbox/stats   PutEvents http://{}   metrics http://{}/metrics",
            self.sandbox_address,
            self.worker.listen(),
            self.worker.admin()
        ));
        let load =
            Load { duration: args.duration, rate: args.rate.get(), seed: args.seed, tick: TICK, call: usize::MAX };
        let mut plane = Plane::start(&format!("http://{}", self.worker.listen()), load, self.origin).await?;
        let emission = std::sync::Arc::clone(&plane.emission);
        let scraper = self.worker.scraper();
        let progress = Progress::start(teller, args.duration, emission.clone(), self.sandbox.clone(), scraper);

        let worker_kills = self.misbehave(args, teller, &progress).await?;
        plane.finish(SETTLE_TIMEOUT).await?;
        self.settle(&progress).await?;
        drop(progress);
        let status = self.worker.terminate().await?;
        ensure!(status.success(), "the worker drained with {status} instead of exit code 0");

        let letters = dead_letters(&self.settings).await?;
        let truth = std::mem::take(&mut *plane.truth.lock().unwrap_or_else(PoisonError::into_inner));
        let bill = Bill::of(&self.sandbox);
        let audit = Audit::of(&truth, &bill, &letters);
        let speed = Speed::of(&truth, &bill.records);
        let first_delivery = bill.records.first().map(|record| self.origin + record.at - started).unwrap_or_default();
        Ok(Report {
            passed: audit.passed(),
            audit,
            worker_kills,
            events_per_second: speed.events_per_second,
            p50_ms: speed.percentile_ms(0.5),
            p99_ms: speed.percentile_ms(0.99),
            first_delivery_ms: first_delivery.as_millis().try_into().unwrap_or(u64::MAX),
            absorbed_by_amberflo: bill.ledger.absorbed_copies,
            failed_calls: emission.failed_calls.load(Ordering::Relaxed),
            faults: crate::report::faults(&self.sandbox.stats()),
        })
    }

    /// Goes through the schedule, with the kill in its middle; answers the number of kills.
    async fn misbehave(&mut self, args: &DemoArgs, teller: &Teller, progress: &Progress) -> anyhow::Result<u64> {
        let begin = Instant::now();
        let kill_at = args.duration.mul_f64(faults::KILL_AT);
        let mut kills = 0;
        for phase in faults::schedule(args.duration, args.seed) {
            if kills == 0 && phase.at > kill_at {
                sleep_until(begin + kill_at).await;
                self.kill_and_restart(args, teller).await?;
                kills += 1;
            }
            sleep_until(begin + phase.at).await;
            self.worker.check()?;
            if phase.rotates_key {
                std::fs::write(self.settings.key_file(), SECOND_KEY)?;
            }
            self.sandbox.set_faults(phase.faults)?;
            progress.fault(phase.name);
        }
        Ok(kills)
    }

    async fn kill_and_restart(&mut self, args: &DemoArgs, teller: &Teller) -> anyhow::Result<()> {
        let in_flight = self.sandbox.stats().in_flight;
        self.worker.kill().await?;
        teller.say(&format!("kill -9: the worker is gone, with {in_flight} requests under way"));
        sleep(args.duration.mul_f64(0.05).min(Duration::from_secs(1))).await;
        let restarted = Instant::now();
        self.worker.restart().await?;
        teller.say(&format!("the worker is back, ready after {} ms", restarted.elapsed().as_millis()));
        Ok(())
    }

    /// Waits until the worker has nothing left to do.
    async fn settle(&mut self, progress: &Progress) -> anyhow::Result<()> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        let mut idle: Option<(Instant, u64)> = None;
        loop {
            self.worker.check()?;
            let sample = progress.worker();
            idle = match (sample.filter(|sample| sample.is_idle()), idle) {
                (Some(sample), Some((since, read))) if sample.read == read => Some((since, read)),
                (Some(sample), _) => Some((Instant::now(), sample.read)),
                (None, _) => None,
            };
            if idle.is_some_and(|(since, _)| since.elapsed() >= IDLE_FOR) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let stats = self.sandbox.stats();
                bail!("not settled {SETTLE_TIMEOUT:?} after the last event: {sample:?}; the sandbox saw {stats:?}");
            }
            sleep(POLL).await;
        }
    }

    fn log(&self) -> String {
        format!("the worker's log ends with:\n{}", self.settings.log_tail())
    }

    fn invitation(&self) -> String {
        let (bus, admin, sandbox) = (self.worker.listen(), self.worker.admin(), self.sandbox_address);
        let detail = r#"{\"tenantId\":\"tenant-01\",\"meterApiName\":\"api-calls\",\"meterValue\":3,\"uniqueId\":\"my-event-1\",\"meterTimeInMillis\":NOW}"#;
        let detail = detail.replace("NOW", &shared::clock::Clock::system().now().to_string());
        format!(
            "\nEverything is still running; Ctrl-C ends it.\n\
             \n\
             ledger    http://{sandbox}/sandbox/ledger\n\
             faults    http://{sandbox}/sandbox/faults   (GET, PUT, DELETE)\n\
             metrics   http://{admin}/metrics\n\
             PutEvents http://{bus}\n\
             stream    {stream}\n\
             \n\
             Send an event:\n\
             \n\
             AWS_ENDPOINT_URL_EVENTBRIDGE=http://{bus} AWS_ACCESS_KEY_ID=demo AWS_SECRET_ACCESS_KEY=demo \
             AWS_DEFAULT_REGION=us-east-1 aws events put-events --entries \
             '[{{\"Source\":\"{SOURCE}\",\"DetailType\":\"{DETAIL_TYPE}\",\"Detail\":\"{detail}\"}}]'\n\
             \n\
             A second or two later, see it billed: once, however often it was sent:\n\
             \n\
             curl 'http://{sandbox}/sandbox/events?uniqueId=my-event-1'\n",
            stream = self.settings.stream_dir().display()
        )
    }
}

async fn dead_letters(settings: &ServiceSettings) -> anyhow::Result<Vec<DeadLetter>> {
    let store = LocalStore::open(&settings.stream_dir(), LocalOptions::default())?;
    let (mut letters, mut after) = (Vec::new(), 0);
    loop {
        let page = store.peek_dead_letters(after, 500).await?;
        let Some(&(last, _)) = page.last() else { return Ok(letters) };
        after = last;
        letters.extend(page.into_iter().map(|(_, letter)| letter));
    }
}
