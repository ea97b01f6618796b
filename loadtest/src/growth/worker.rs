//! One worker process at work, and what it costs.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::{NewRecord, Stream as _};
use tokio::time::Instant;

use crate::bench::fleet::{Fleet, Place};
use crate::bench::measure::{median, memory_of};
use crate::bench::payload::Generator;
use crate::bench_peers::inputs::copy;
use crate::bench_peers::lab::{Lab, Launch, Running};
use crate::bench_peers::process::{Usage, has_ended, watch};
use crate::bench_peers::sink::{Seen, Sink, Times};
use crate::bench_peers::speed::{self, ASK_EVERY, PATIENCE};
use crate::service_process::ServiceSettings;

/// The setting that takes the limit of requests away.
pub const UNLIMITED: (&str, &str) = ("RATE_REQUESTS_PER_SECOND", "0");

const PUBLISH_AT_ONCE: usize = 2000;

/// What it cost a worker to deliver a backlog.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    /// How many events that were.
    pub events: u64,
    /// Between the acceptance of the first twentieth and that of the last.
    pub events_per_second: f64,
    /// User and system time of the whole process, from its start to its end.
    pub cpu_micros_per_event: f64,
    /// How full requests were.
    pub events_per_request: f64,
    /// Request line, headers and body.
    pub wire_bytes_per_event: f64,
    /// The kernel's own peak of resident memory.
    pub peak_resident_mib: f64,
}

/// What is known of a worker that has ended.
pub struct Ended {
    /// What it used.
    pub usage: Usage,
    /// What it delivered.
    pub seen: Seen,
}

/// A worker process. Dropping it kills it.
pub struct Worker {
    launch: Launch,
    running: Running,
    usage: Usage,
}

impl Worker {
    /// Starts it.
    pub async fn start(settings: ServiceSettings) -> anyhow::Result<Self> {
        let launch = Launch::Service(settings);
        let running = launch.start().await?;
        Ok(Self { launch, running, usage: Usage::default() })
    }

    /// Its process id.
    pub fn id(&self) -> anyhow::Result<u32> {
        self.running.id()
    }

    /// Waits until what was seen is enough, and answers that.
    pub async fn until(&mut self, sink: &Sink, mut is_enough: impl FnMut(&Seen) -> bool) -> anyhow::Result<Seen> {
        let process = self.id()?;
        let mut asked = None::<Instant>;
        let mut latest = (Seen::default(), Instant::now());
        let watched = watch(process, &mut self.usage, async || {
            if asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY) {
                return Ok(false);
            }
            asked = Some(Instant::now());
            let seen = sink.seen().await?;
            let is_over = is_enough(&seen);
            if is_over || seen.records > latest.0.records {
                latest = (seen, Instant::now());
            }
            let records = latest.0.records;
            anyhow::ensure!(latest.1.elapsed() < PATIENCE, "{records} events delivered, then no more");
            Ok(is_over)
        });
        watched.await.with_context(|| self.launch.errors())?;
        anyhow::ensure!(!has_ended(process), "the worker ended by itself; {}", self.launch.errors());
        Ok(latest.0)
    }

    /// Looks at its memory for so long, whether it delivers or not; answers the most that was resident.
    pub async fn resident_for(&mut self, duration: Duration) -> anyhow::Result<u64> {
        let (process, end) = (self.id()?, Instant::now() + duration);
        let mut most = 0;
        let watched = watch(process, &mut self.usage, async || {
            most = most.max(memory_of(process).map_or(0, |memory| memory.now));
            Ok(Instant::now() >= end)
        });
        watched.await.with_context(|| self.launch.errors())?;
        anyhow::ensure!(!has_ended(process), "the worker ended by itself; {}", self.launch.errors());
        Ok(most)
    }

    /// User and system time so far.
    pub fn cpu(&self) -> Duration {
        self.usage.cpu
    }

    /// Waits until so many events are delivered, ends the worker as its users do, and makes sure that it were not more.
    pub async fn finish(mut self, sink: &Sink, events: u64) -> anyhow::Result<Ended> {
        self.until(sink, |seen| seen.records >= events).await?;
        speed::end(&mut self.running, &mut self.usage).await?;
        let seen = sink.seen().await?;
        // More: a lease was lost, or an answer came too late. Its log says which.
        let records = seen.records;
        anyhow::ensure!(
            records == events,
            "{records} events were delivered instead of {events}; {}",
            self.launch.errors()
        );
        Ok(Ended { usage: self.usage, seen })
    }
}

/// Lets a worker deliver the events that are waiting for it.
pub async fn drain(lab: &Lab, settings: ServiceSettings, events: u64) -> anyhow::Result<Cost> {
    lab.sink.reset(Times::default()).await?;
    let Ended { usage, seen } = Worker::start(settings).await?.finish(&lab.sink, events).await?;
    Ok(Cost {
        events,
        events_per_second: lab.sink.pace(events).await?.map_or(0.0, |pace| pace.per_second),
        cpu_micros_per_event: usage.cpu.as_secs_f64() * 1e6 / events as f64,
        events_per_request: events as f64 / seen.requests as f64,
        wire_bytes_per_event: seen.wire_bytes as f64 / events as f64,
        peak_resident_mib: mebibytes(usage.peak_resident),
    })
}

impl Cost {
    /// The median of each number.
    pub fn median(rounds: &[Self]) -> Self {
        let of = |value: fn(&Self) -> f64| median(rounds.iter().map(value).collect());
        Self {
            events: rounds.first().map_or(0, |cost| cost.events),
            events_per_second: of(|cost| cost.events_per_second),
            cpu_micros_per_event: of(|cost| cost.cpu_micros_per_event),
            events_per_request: of(|cost| cost.events_per_request),
            wire_bytes_per_event: of(|cost| cost.wire_bytes_per_event),
            peak_resident_mib: of(|cost| cost.peak_resident_mib),
        }
    }

    /// For whoever waits.
    pub fn told(&self, point: &str) {
        eprintln!(
            "{point:<32}{:>10.0} events/s {:>8.2} µs CPU/event {:>8.1} MiB",
            self.events_per_second, self.cpu_micros_per_event, self.peak_resident_mib
        );
    }
}

/// Events that wait in a local store of four shards, from which every run gets a copy.
pub struct Backlog {
    dir: PathBuf,
    events: u64,
}

impl Backlog {
    /// Makes one of seeded events.
    pub async fn make(lab: &Lab, events: usize, tenants: usize) -> anyhow::Result<Self> {
        let dir = lab.dir.path().join(lab.fresh());
        let store = LocalStore::open(&dir, LocalOptions::default())?;
        let mut generator = Generator::with_tenants(tenants);
        for start in (0..events).step_by(PUBLISH_AT_ONCE) {
            let record = |_| {
                let event = generator.event();
                NewRecord { data: generator.envelope(&event), partition_key: event.tenant }
            };
            store.publish((start..events.min(start + PUBLISH_AT_ONCE)).map(record).collect()).await?;
        }
        Ok(Self { dir, events: events as u64 })
    }

    /// How many they are.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Drains it so many times with a worker without a limit of requests.
    pub async fn drain(&self, lab: &Lab, rounds: usize, env: &[(&'static str, String)]) -> anyhow::Result<Cost> {
        let mut costs = Vec::new();
        for _ in 0..rounds {
            let name = lab.dir.path().join(lab.fresh());
            fs::create_dir(&name)?;
            let mut settings = ServiceSettings::ingest_worker(&name, lab.sink.address);
            settings.env = vec![(UNLIMITED.0, UNLIMITED.1.to_owned())];
            settings.env.extend_from_slice(env);
            fs::write(settings.key_file(), "sandbox-key")?;
            copy(&self.dir, &settings.stream_dir())?;
            costs.push(drain(lab, settings, self.events).await?);
            fs::remove_dir_all(name)?;
        }
        Ok(Cost::median(&costs))
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        // It lies in a temporary directory: what cannot be removed now goes with that.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Bytes as MiB.
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The emulators.
pub fn fleet(lab: &Lab) -> anyhow::Result<&Fleet> {
    lab.fleet.as_ref().map_err(|reason| anyhow::anyhow!("{reason}"))
}

/// A worker on a stream.
pub fn on_kinesis(lab: &Lab, place: Place<'_>, env: &[(&'static str, &str)]) -> anyhow::Result<ServiceSettings> {
    fleet(lab)?.settings(place, lab.sink.address, env)
}
