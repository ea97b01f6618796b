//! What the control API costs: a real process between this one, which asks, and a sandbox in this one, which answers.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use amberflo_sandbox::{Sandbox, SandboxConfig};
use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, StatusCode};
use reqwest::{Client, Request};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::measure::{cpu_time_of, grouped, heading, percentile, row};
use super::payload::Generator;
use crate::service_process::{ServiceProcess, ServiceSettings};

const KEY: &str = "sandbox-key";
const WARM_UP: usize = 200;
const CONNECTIONS: usize = 8;
const BODIES: usize = 64;
const BATCH: usize = 100;
const PATIENCE: Duration = Duration::from_secs(30);

/// Prints the latency that the API adds over so many calls, and what it bears for so long.
pub async fn run(calls: usize, load: Duration) -> anyhow::Result<()> {
    let stage = Stage::set().await?;
    stage.latency(calls).await?;
    stage.throughput(load).await
}

/// In order of dropping: what uses another goes before it.
struct Stage {
    control_api: ServiceProcess,
    _worker: ServiceProcess,
    amberflo: Amberflo,
    client: Client,
    _directory: TempDir,
}

impl Stage {
    async fn set() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let amberflo = Amberflo::start().await?;
        let worker = ServiceSettings::ingest_worker(directory.path(), amberflo.address);
        std::fs::write(worker.key_file(), KEY)?;
        let worker = ServiceProcess::start(worker).await?;
        let mut settings = ServiceSettings::control_api(directory.path(), amberflo.address, worker.listen());
        settings.env.push(("CALLER_REQUESTS_PER_SECOND", "0".to_owned()));
        let control_api = ServiceProcess::start(settings).await?;
        let client = Client::builder().no_proxy().tcp_nodelay(true).timeout(PATIENCE).build()?;
        Ok(Self { control_api, _worker: worker, amberflo, client, _directory: directory })
    }

    async fn latency(&self, calls: usize) -> anyhow::Result<()> {
        let direct = self.amberflo.meter_request(&self.client)?;
        let through = self.meter_request()?;
        let (mut direct_times, mut through_times) = (Vec::new(), Vec::new());
        for call in 0..WARM_UP + calls {
            let times = [self.timed(&direct).await?, self.timed(&through).await?];
            if call >= WARM_UP {
                direct_times.push(times[0]);
                through_times.push(times[1]);
            }
        }
        heading(
            "Control API: latency of GET /meters/{id}",
            &[
                &format!("{calls} calls of each in turns, by one client, connections kept open; default settings"),
                "the sandbox over a loopback socket, in the process of the benchmark; the API in a process of its own",
            ],
        );
        row("", ["median", "99 % of calls"].map(str::to_owned));
        let [direct, through] =
            [direct_times, through_times].map(|times| [0.5, 0.99].map(|p| percentile(times.clone(), p)));
        let microseconds = |milliseconds: f64| format!("{:.0} µs", milliseconds * 1000.0);
        row("the sandbox, asked directly", direct.map(microseconds));
        row("through the control API", through.map(microseconds));
        row("added", [0, 1].map(|column| microseconds(through[column] - direct[column])));
        Ok(())
    }

    async fn throughput(&self, load: Duration) -> anyhow::Result<()> {
        heading(
            "Control API: requests per CPU-second of its process",
            &[
                &format!("{CONNECTIONS} connections, each waits for its answer; {load:?} each; no limit per caller"),
                "the bus is a local worker, which makes events durable and delivers them meanwhile, on the same cores",
            ],
        );
        row("", ["requests/s", "per CPU second", "events per CPU s", "99 % of calls"].map(str::to_owned));
        let meter = self.meter_request()?;
        let one = self.ingest_requests(1)?;
        let many = self.ingest_requests(BATCH)?;
        for (name, requests, status, events) in [
            ("GET /meters/{id}", vec![meter], StatusCode::OK, 0),
            ("POST /ingest, 1 event", one, StatusCode::ACCEPTED, 1),
            (&format!("POST /ingest, {BATCH} events"), many, StatusCode::ACCEPTED, BATCH),
        ] {
            let seen = self.bear(requests.into(), status, load).await?;
            let calls = seen.times.len() as f64;
            let per_cpu = seen.cpu.map(|cpu| calls / cpu.as_secs_f64());
            let shown = |number: Option<f64>| number.map_or("-".to_owned(), grouped);
            row(
                name,
                [
                    grouped(calls / seen.elapsed.as_secs_f64()),
                    shown(per_cpu),
                    if events == 0 { "-".to_owned() } else { shown(per_cpu.map(|each| each * events as f64)) },
                    format!("{:.2} ms", percentile(seen.times, 0.99)),
                ],
            );
        }
        Ok(())
    }

    /// Sends these in turn on every connection; answers what was seen of the API.
    async fn bear(&self, requests: Arc<[Request]>, status: StatusCode, load: Duration) -> anyhow::Result<Seen> {
        let process = self.control_api.id().context("the control API has ended")?;
        let (started, cpu_started) = (Instant::now(), cpu_time_of(process));
        let end = started + load;
        let mut clients = JoinSet::new();
        for first in 0..CONNECTIONS {
            let (client, requests) = (self.client.clone(), Arc::clone(&requests));
            clients.spawn(async move {
                let mut times = Vec::new();
                for request in requests.iter().cycle().skip(first) {
                    if Instant::now() >= end {
                        break;
                    }
                    times.push(timed(&client, request, status).await?);
                }
                anyhow::Ok(times)
            });
        }
        let times = clients.join_all().await.into_iter().collect::<anyhow::Result<Vec<_>>>()?.concat();
        let cpu = cpu_time_of(process).zip(cpu_started).map(|(now, before)| now - before);
        Ok(Seen { times, elapsed: started.elapsed(), cpu })
    }

    async fn timed(&self, request: &Request) -> anyhow::Result<f64> {
        timed(&self.client, request, StatusCode::OK).await
    }

    fn meter_request(&self) -> anyhow::Result<Request> {
        let url = format!("http://{}/meters/{}", self.control_api.listen(), self.amberflo.meter);
        Ok(self.client.get(url).build()?)
    }

    /// Requests with other events each, used in turn: neither API nor bus look whether they have seen an event before.
    fn ingest_requests(&self, events: usize) -> anyhow::Result<Vec<Request>> {
        let mut generator = Generator::new();
        let url = format!("http://{}/ingest", self.control_api.listen());
        let mut request = || {
            let details: Vec<_> = (0..events).map(|_| generator.event().detail).collect();
            let body = if events == 1 { details.concat() } else { format!("[{}]", details.join(",")) };
            let request = self.client.request(Method::POST, &url).header("content-type", "application/json");
            Ok(request.body(Bytes::from(body)).build()?)
        };
        (0..BODIES).map(|_| request()).collect()
    }
}

/// What was seen of the API under load.
struct Seen {
    /// Of each call, in milliseconds.
    times: Vec<f64>,
    elapsed: Duration,
    cpu: Option<Duration>,
}

async fn timed(client: &Client, request: &Request, expected: StatusCode) -> anyhow::Result<f64> {
    let request = request.try_clone().context("the request cannot be repeated")?;
    let started = Instant::now();
    let answer = client.execute(request).await?;
    let (status, body) = (answer.status(), answer.bytes().await?);
    let elapsed = started.elapsed();
    anyhow::ensure!(status == expected, "{status}: {}", String::from_utf8_lossy(&body));
    Ok(elapsed.as_secs_f64() * 1000.0)
}

/// A sandbox with one meter.
pub struct Amberflo {
    /// Where it answers.
    pub address: SocketAddr,
    /// The meter's id.
    pub meter: String,
    _server: AbortOnDropHandle<std::io::Result<()>>,
}

impl Amberflo {
    /// Starts it in this process.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let sandbox = Sandbox::new(SandboxConfig { keep_records: false, ..SandboxConfig::default() });
        let serve = amberflo_sandbox::serve(listener, sandbox, std::future::pending());
        let server = AbortOnDropHandle::new(tokio::spawn(serve));
        // reqwest asks for a TLS provider even where it never speaks TLS. An error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let meter = json!({ "label": "API calls", "meterApiName": "api-calls", "meterType": "sum_of_all_usage" });
        let request = Client::builder().no_proxy().timeout(PATIENCE).build()?.post(format!("http://{address}/meters"));
        let answer = request.header("x-api-key", KEY).body(meter.to_string()).send().await?.error_for_status()?;
        let created: Value = serde_json::from_slice(&answer.bytes().await?)?;
        let meter = created["id"].as_str().context("the new meter has no id")?.to_owned();
        Ok(Self { address, meter, _server: server })
    }

    fn meter_request(&self, client: &Client) -> anyhow::Result<Request> {
        let url = format!("http://{}/meters/{}", self.address, self.meter);
        Ok(client.get(url).header("x-api-key", KEY).build()?)
    }
}
