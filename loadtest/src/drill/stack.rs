//! One small deployment: a stand-in for Amberflo, workers, perhaps a control API, and an application plane.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use amberflo_sandbox::{Faults, Sandbox, SandboxConfig};
use anyhow::Context as _;
use aws_sdk_sqs::types::QueueAttributeName;
use emulators::{Kinesis, Moto};
use reqwest::header::CONTENT_TYPE;
use rustix::process::Signal;
use shared::backend::kinesis::Writer;
use tokio::net::TcpListener;
use tokio::time::{interval, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::load::{CALL_TIMEOUT, Mix, Plane, SMALL_MESSAGE_BYTES};
use super::prometheus::Target;
use super::scenarios::{Fault, Scenario, with_poison};
use crate::mix::METERS;
use crate::service_process::{ServiceProcess, ServiceSettings};
use crate::target::{Bus, EventStream};

const SANDBOX_KEY: &str = "sandbox-key";
const SHARDS: i32 = 2;
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long a worker lives that crashes again and again.
const LIFE: Duration = Duration::from_secs(3);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The emulators that all deployments on Kinesis share.
pub struct Aws {
    kinesis: Kinesis,
    moto: Moto,
}

impl Aws {
    /// Starts them.
    ///
    /// # Errors
    /// What is not installed.
    pub async fn start() -> Result<Self, String> {
        let (kinesis, moto) = tokio::join!(Kinesis::start(), Moto::start());
        Ok(Self { kinesis: kinesis?, moto: moto? })
    }
}

/// A running deployment. In order of dropping: what uses another goes before it.
pub struct Stack {
    /// What happens in it.
    pub scenario: Scenario,
    plane: Plane,
    _questions: Option<AbortOnDropHandle<()>>,
    control_api: Option<ServiceProcess>,
    workers: Vec<ServiceProcess>,
    crash_loop: Option<AbortOnDropHandle<()>>,
    /// Addresses outlive their processes: Prometheus goes on asking.
    targets: Vec<Target>,
    sandbox: Sandbox,
    _server: AbortOnDropHandle<std::io::Result<()>>,
    /// The last deployment ends the emulators.
    aws: Option<Arc<Aws>>,
}

impl Stack {
    /// Starts everything, with files in `dir`.
    ///
    /// # Errors
    /// When something does not start: the end of its log.
    pub async fn start(scenario: Scenario, dir: &Path, aws: Option<Arc<Aws>>) -> anyhow::Result<Self> {
        let name = scenario.name;
        Self::set(scenario, &dir.join(name), aws).await.with_context(|| format!("the deployment {name}"))
    }

    async fn set(scenario: Scenario, dir: &Path, aws: Option<Arc<Aws>>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let amberflo = listener.local_addr()?;
        let sandbox =
            Sandbox::new(SandboxConfig { api_keys: [SANDBOX_KEY.to_owned()].into(), ..SandboxConfig::default() });
        sandbox.set_faults(with_poison(Faults::default()))?;
        let server = tokio::spawn(amberflo_sandbox::serve(listener, sandbox.clone(), std::future::pending()));
        let server = AbortOnDropHandle::new(server);

        let own = scenario.settings.iter().map(|&(name, value)| (name, value.to_owned()));
        let mut settings = ServiceSettings::ingest_worker(dir, amberflo);
        settings.env = own.collect();
        let (workers, plane) = match &aws {
            Some(aws) => on_kinesis(scenario.name, settings, aws, scenario.mix).await?,
            None => {
                let worker = start(settings).await?;
                let bus = Bus::local(&format!("http://{}", worker.listen()), CALL_TIMEOUT).await?;
                let plane = Plane::start(Arc::new(bus), scenario.mix);
                (vec![worker], plane)
            }
        };
        let (control_api, questions) = if scenario.has_control_api {
            let process = start(ServiceSettings::control_api(dir, amberflo, workers[0].listen())).await?;
            let questions = tokio::spawn(ask(process.listen()));
            (Some(process), Some(AbortOnDropHandle::new(questions)))
        } else {
            (None, None)
        };
        let processes = workers.iter().chain(&control_api);
        let target = |process: &ServiceProcess| Target {
            job: process.settings().service.name(),
            cluster: scenario.name.to_owned(),
            address: process.admin(),
        };
        let targets = processes.map(target).collect();
        Ok(Self {
            plane,
            _questions: questions,
            control_api,
            workers,
            crash_loop: None,
            targets,
            sandbox,
            _server: server,
            aws,
            scenario,
        })
    }

    /// What Prometheus is to scrape.
    #[must_use]
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Lets go wrong what the scenario says.
    ///
    /// # Errors
    /// When a process had ended by itself before.
    pub async fn inject(&mut self) -> anyhow::Result<()> {
        match &self.scenario.fault {
            Fault::None => {}
            Fault::Amberflo(faults) => self.sandbox.set_faults(with_poison((**faults).clone()))?,
            Fault::Events(mix) => self.plane.set(*mix),
            Fault::KillWorkers => {
                for worker in &mut self.workers {
                    worker.kill().await?;
                }
            }
            Fault::CrashLoop => {
                let worker = self.workers.pop().context("no worker")?;
                self.crash_loop = Some(AbortOnDropHandle::new(tokio::spawn(crash_again_and_again(worker))));
            }
            Fault::StallWorker => self.workers.last().context("no worker")?.signal(Signal::STOP)?,
            Fault::DeleteQueue(mix) => {
                let aws = self.aws.as_ref().context("no emulated SQS")?;
                let sqs = sqs(aws);
                let queue = sqs.get_queue_url().queue_name(self.scenario.name).send().await?;
                sqs.delete_queue().set_queue_url(queue.queue_url).send().await?;
                self.plane.set(*mix);
            }
            Fault::KillControlApi => self.control_api.as_mut().context("no control API")?.kill().await?,
        }
        Ok(())
    }

    /// Ends what [`Stack::inject`] began, where it can be ended.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn heal(&self) -> anyhow::Result<()> {
        match &self.scenario.fault {
            Fault::Amberflo(_) => self.sandbox.set_faults(with_poison(Faults::default()))?,
            Fault::Events(_) => self.plane.set(self.scenario.mix),
            Fault::StallWorker => self.workers.last().context("no worker")?.signal(Signal::CONT)?,
            Fault::None | Fault::KillWorkers | Fault::CrashLoop | Fault::DeleteQueue(_) | Fault::KillControlApi => {}
        }
        Ok(())
    }

    /// What the deployment's services logged last.
    #[must_use]
    pub fn logs(&self) -> String {
        let processes = self.workers.iter().chain(&self.control_api);
        let log = |process: &ServiceProcess| {
            let settings = process.settings();
            format!("the log of {} in {} ends with:\n{}\n", settings.service, self.scenario.name, settings.log_tail())
        };
        processes.map(log).collect()
    }
}

/// Two workers that share a stream of their own.
async fn on_kinesis(
    name: &str,
    settings: ServiceSettings,
    aws: &Aws,
    mix: Mix,
) -> anyhow::Result<(Vec<ServiceProcess>, Plane)> {
    let stream = emulators::Stream::create(&aws.kinesis.url, name, SHARDS).await;
    let queue = emulators::create_queue(&aws.moto.url, name).await;
    let small = sqs(aws).set_queue_attributes().queue_url(&queue);
    small.attributes(QueueAttributeName::MaximumMessageSize, SMALL_MESSAGE_BYTES.to_string()).send().await?;
    let mut workers = Vec::new();
    for worker in ["worker-1", "worker-2"] {
        let mut settings = ServiceSettings { dir: settings.dir.join(worker), ..settings.clone() };
        std::fs::create_dir_all(&settings.dir)?;
        settings.env.extend(emulators::environment(&aws.kinesis.url, &aws.moto.url));
        settings.env.extend([
            ("STREAM", format!("kinesis:{}", stream.name)),
            ("DEAD_LETTER_QUEUE", queue.clone()),
            ("LEASE_TABLE", format!("leases-{name}")),
            ("CREATE_LEASE_TABLE", "true".to_owned()),
            ("WORKER_ID", worker.to_owned()),
        ]);
        workers.push(start(settings).await?);
    }
    let name = stream.name.parse()?;
    let stream = EventStream::Kinesis(Writer::new(&emulators::configuration(&aws.kinesis.url), name));
    Ok((workers, Plane::start(Arc::new(stream), mix)))
}

fn sqs(aws: &Aws) -> aws_sdk_sqs::Client {
    aws_sdk_sqs::Client::new(&emulators::configuration(&aws.moto.url))
}

async fn start(settings: ServiceSettings) -> anyhow::Result<ServiceProcess> {
    std::fs::write(settings.key_file(), SANDBOX_KEY)?;
    let started = ServiceProcess::start(settings.clone()).await;
    started.with_context(|| format!("{} ends with:\n{}", settings.log_file().display(), settings.log_tail()))
}

/// Until it does not start any more: then other alerts fire, and tell.
async fn crash_again_and_again(mut worker: ServiceProcess) {
    loop {
        sleep(LIFE).await;
        if worker.kill().await.is_err() || worker.restart().await.is_err() {
            return;
        }
    }
}

/// An admin who looks at everything again and again, and does not mind an error.
async fn ask(control_api: SocketAddr) {
    let Ok(http) = reqwest::Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).build() else { return };
    let meters = format!("http://{control_api}/meters");
    for meter in METERS {
        let body = format!(r#"{{"label": "{meter}", "meterApiName": "{meter}", "meterType": "sum_of_all_usage"}}"#);
        let _ = http.post(&meters).header(CONTENT_TYPE, "application/json").body(body).send().await;
    }
    let usage = format!("http://{control_api}/usage/meterId?meterApiName={}", METERS[0]);
    let dead_letters = format!("http://{control_api}/dead-letters");
    let mut ticks = interval(ASK_EVERY);
    for url in [meters, usage, dead_letters].iter().cycle() {
        ticks.tick().await;
        let _ = http.get(url).send().await;
    }
}
