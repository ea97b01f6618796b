//! A worker process of the simulation: the real [`Worker`] over faulty seams, which can be killed and drained.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use ingest_worker::batch::BatchLimits;
use ingest_worker::context::Common;
use ingest_worker::dedup::KeyBudget;
use ingest_worker::limiter::Limiter;
use ingest_worker::meters::MeterBudget;
use ingest_worker::reader::Buffer;
use ingest_worker::submit::BodyLimit;
use ingest_worker::worker::Worker;
use shared::amberflo::Client;
use shared::api_key::{ApiKey, ApiKeys, Source};
use shared::backend::{Position, WorkerId};
use shared::clock::Clock;
use shared::event::EventRules;
use shared::service::Ready;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::faulty::{Faulty, Life, World};

pub const FAILOVER: Duration = Duration::from_secs(10);
pub const DEDUP_WINDOW: Duration = Duration::from_secs(60);
pub const DRAIN: Duration = Duration::from_secs(5);

pub struct SimulatedWorker {
    pub life: Arc<Life>,
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl SimulatedWorker {
    pub fn start(world: &Arc<World>, rng: &mut Rng, clock: Clock, may_be_slow: bool) -> Self {
        let request_timeout = Duration::from_secs(3);
        let faulty = Faulty { world: Arc::clone(world), life: Life::new(), request_timeout };
        let limits = BatchLimits {
            max_events: NonZeroUsize::new(rng.usize(1..40)).unwrap(),
            max_bytes: NonZeroUsize::new(rng.usize(2_000..20_000)).unwrap(),
            linger: Duration::from_millis(rng.u64(10..2_000)),
        };
        let max_in_flight = NonZeroU32::new(rng.u32(1..8)).unwrap();
        // What waits for the rate when a drain must end is sent again by the next owner.
        let rate = if rng.bool() && may_be_slow { 10.0 } else { 0.0 };
        let buffer = rng.usize(100_000..2_000_000);
        let name = WorkerId(format!("worker-{}", rng.u32(..)));
        let life = Arc::clone(&faulty.life);
        let stop = CancellationToken::new();
        let token = stop.clone();
        let task = tokio::spawn(async move {
            let key = ApiKey::new("sandbox-key").unwrap();
            let keys = ApiKeys::load(Source::Setting(key)).await.unwrap();
            let common = Arc::new(Common {
                worker: name,
                stream_name: "simulated".to_owned(),
                stream: Arc::new(faulty.clone()),
                dead_letters: Arc::new(faulty.clone()),
                client: Client::new(Box::new(faulty.clone()), "http://amberflo", keys.subscribe(), clock),
                keys,
                limiter: Limiter::new(max_in_flight, rate),
                body_limit: BodyLimit::default(),
                meters: MeterBudget::new(1_000_000),
                dedup_keys: KeyBudget::new(1_000_000),
                buffer: Buffer::new(buffer),
                rules: EventRules {
                    max_age: Duration::from_secs(60 * 86_400),
                    max_ahead: Duration::from_secs(3600),
                    allow_aflo_dimensions: false,
                },
                batch: limits,
                max_in_flight: max_in_flight.get() as usize,
                max_in_order: 4 * max_in_flight.get() as usize,
                dedup_window: DEDUP_WINDOW,
                drain: DRAIN,
                board: ingest_worker::status::Board::default(),
                clock,
            });
            let worker = Worker {
                common,
                leases: Arc::new(faulty),
                failover: FAILOVER,
                initial_position: Position::TrimHorizon,
                is_alone: false,
                ready: Ready::default(),
            };
            worker.run(token).await.unwrap();
        });
        let abort = task.abort_handle();
        let watched = Arc::clone(&life);
        tokio::spawn(async move {
            watched.died.notified().await;
            abort.abort();
        });
        Self { life, task, stop }
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.life.end();
        self.task.abort();
    }

    pub fn is_dead(&self) -> bool {
        self.task.is_finished()
    }

    /// SIGTERM, and then whatever happens first: it drains, or it dies of an earlier order.
    pub async fn drain(mut self) {
        self.stop.cancel();
        let limit = DRAIN + Duration::from_secs(20);
        match tokio::time::timeout(limit, &mut self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.is_cancelled() => {}
            Ok(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            Err(_) => panic!("the drain took longer than {limit:?}"),
        }
    }
}

impl Drop for SimulatedWorker {
    fn drop(&mut self) {
        self.kill();
    }
}
