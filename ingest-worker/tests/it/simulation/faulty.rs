//! The real seams with faults around them: calls that fail before or after they took effect, and a process that can
//! die at any of them.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amberflo_sandbox::Sandbox;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use shared::amberflo::{Transport, TransportError};
use shared::backend::local::LocalStore;
use shared::backend::{
    BackendError, Checkpoint, DeadLetters, Lease, Leases, NewRecord, Page, Position, Received, Shard, ShardId,
    ShardReader, Stream, WorkerId,
};
use shared::dead_letter::DeadLetter;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;

use super::stream::SimulatedStream;
use super::truth::Truth;

/// The life of one worker process. Once it is over, nothing that belongs to it has any effect.
#[derive(Debug)]
pub struct Life {
    /// Calls until it dies; negative: it lives.
    calls_left: AtomicI64,
    is_over: AtomicBool,
    /// Fires when it dies by itself.
    pub died: Notify,
    /// The process was stopped and lost its leases meanwhile: until it takes one anew, it may begin no request.
    pub is_disowned: AtomicBool,
}

impl Life {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            calls_left: AtomicI64::new(-1),
            is_over: AtomicBool::new(false),
            died: Notify::new(),
            is_disowned: AtomicBool::new(false),
        })
    }

    /// Lets it die at the `calls`th call from now, before or after that call's effect.
    pub fn die_after(&self, calls: u32) {
        self.calls_left.store(i64::from(calls), Ordering::Relaxed);
    }

    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// A place where the process may die.
    async fn step(&self) {
        if self.calls_left.load(Ordering::Relaxed) > 0 && self.calls_left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.end();
            self.died.notify_one();
        }
        if self.is_over.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

/// How often the seams fail, changed while the simulation runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    pub stream: f64,
    pub leases: f64,
    pub dead_letters: f64,
}

/// What all workers of a simulation share.
pub struct World {
    pub stream: SimulatedStream,
    /// Leases and dead letters, and in some simulations the stream.
    pub store: LocalStore,
    pub sandbox: Sandbox,
    pub truth: Mutex<Truth>,
    pub rates: Mutex<Rates>,
}

/// One worker's view of the world.
#[derive(Clone)]
pub struct Faulty {
    pub world: Arc<World>,
    pub life: Arc<Life>,
    pub request_timeout: Duration,
}

impl Faulty {
    /// Runs a call that may fail before or after its effect, and at which the process may die before or after it.
    async fn call<T>(
        &self,
        rate: impl Fn(&Rates) -> f64,
        call: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        self.life.step().await;
        let rate = rate(&self.world.rates.lock().unwrap());
        let lost = || BackendError::Unavailable("simulated".to_owned());
        if fastrand::f64() < rate / 2.0 {
            return Err(lost());
        }
        let result = call.await;
        self.life.step().await;
        if fastrand::f64() < rate / 2.0 { Err(lost()) } else { result }
    }
}

#[async_trait]
impl Stream for Faulty {
    async fn shards(&self) -> Result<Vec<Shard>, BackendError> {
        // The service tells of new shards late at times.
        let late = if fastrand::u32(0..4) == 0 { fastrand::u64(0..3_000) } else { 0 };
        let shards = async { Ok(self.world.stream.shards_before(Duration::from_millis(late))) };
        self.call(|rates| rates.stream, shards).await
    }

    async fn reader(&self, shard: &ShardId, from: Position) -> Result<Box<dyn ShardReader>, BackendError> {
        let inner = self.call(|rates| rates.stream, self.world.stream.reader(shard, from)).await?;
        Ok(Box::new(FaultyReader { inner, faulty: self.clone() }))
    }

    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), BackendError> {
        self.call(|rates| rates.stream, self.world.stream.publish(records)).await
    }
}

struct FaultyReader {
    inner: Box<dyn ShardReader>,
    faulty: Faulty,
}

#[async_trait]
impl ShardReader for FaultyReader {
    async fn next(&mut self, max_bytes: usize) -> Result<Page, BackendError> {
        // A page that was read but did not arrive is lost to this reader, so it fails before its effect only.
        self.faulty.life.step().await;
        if fastrand::f64() < self.faulty.world.rates.lock().unwrap().stream {
            return Err(BackendError::Unavailable("simulated".to_owned()));
        }
        let page = self.inner.next(max_bytes).await;
        self.faulty.life.step().await;
        page
    }
}

#[async_trait]
impl Leases for Faulty {
    async fn list(&self) -> Result<Vec<Lease>, BackendError> {
        self.call(|rates| rates.leases, self.world.store.list()).await
    }

    async fn create(&self, shard: &Shard, checkpoint: Checkpoint) -> Result<(), BackendError> {
        // Meanwhile the stream may be split, and others make rows too.
        sleep(Duration::from_millis(fastrand::u64(0..50))).await;
        self.call(|rates| rates.leases, self.world.store.create(shard, checkpoint)).await
    }

    async fn claim(&self, lease: &Lease, owner: &WorkerId) -> Result<Option<Lease>, BackendError> {
        let claimed = self.call(|rates| rates.leases, self.world.store.claim(lease, owner)).await?;
        if claimed.is_some() {
            self.world.check_parents(lease).await;
            self.life.is_disowned.store(false, Ordering::Relaxed);
        }
        Ok(claimed)
    }

    async fn renew(&self, lease: &Lease) -> Result<Option<Lease>, BackendError> {
        let write = async {
            let row = self.world.store.renew(lease).await?;
            if row.is_some() {
                self.world.check_checkpoint(lease).await;
            }
            Ok(row)
        };
        self.call(|rates| rates.leases, write).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), BackendError> {
        let write = async {
            Leases::release(&self.world.store, lease).await?;
            self.world.check_checkpoint(lease).await;
            Ok(())
        };
        self.call(|rates| rates.leases, write).await
    }

    async fn ask(&self, lease: &Lease, worker: &WorkerId) -> Result<(), BackendError> {
        self.call(|rates| rates.leases, self.world.store.ask(lease, worker)).await
    }

    async fn reset(&self, lease: &Lease, checkpoint: Checkpoint) -> Result<Option<Lease>, BackendError> {
        self.call(|rates| rates.leases, self.world.store.reset(lease, checkpoint)).await
    }

    async fn forget(&self, lease: &Lease) -> Result<(), BackendError> {
        self.call(|rates| rates.leases, self.world.store.forget(lease)).await
    }
}

#[async_trait]
impl DeadLetters for Faulty {
    fn name(&self) -> &str {
        self.world.store.name()
    }

    async fn send(&self, letters: &[DeadLetter]) -> Result<(), BackendError> {
        let write = async {
            // A queue takes its time: what happens meanwhile matters.
            sleep(Duration::from_millis(fastrand::u64(0..200))).await;
            self.life.step().await;
            self.world.store.send(letters).await
        };
        self.call(|rates| rates.dead_letters, write).await
    }

    async fn receive(&self, max: usize) -> Result<Vec<Received>, BackendError> {
        self.world.store.receive(max).await
    }

    async fn delete(&self, receipts: &[String]) -> Result<(), BackendError> {
        self.world.store.delete(receipts).await
    }

    async fn release(&self, receipts: &[String]) -> Result<(), BackendError> {
        DeadLetters::release(&self.world.store, receipts).await
    }

    async fn depth(&self) -> Result<u64, BackendError> {
        self.world.store.depth().await
    }
}

#[async_trait]
impl Transport for Faulty {
    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
        self.life.step().await;
        assert!(!self.life.is_disowned.load(Ordering::Relaxed), "a request began after every lease was lost");
        self.world.check_request(request.body()).await;
        let exchange = async {
            sleep(Duration::from_millis(fastrand::u64(1..60))).await;
            let answer = self.world.sandbox.router().oneshot(request.map(axum::body::Body::from)).await.unwrap();
            let (head, body) = answer.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            self.life.step().await;
            sleep(Duration::from_millis(fastrand::u64(1..60))).await;
            Response::from_parts(head, body)
        };
        let answer = timeout(self.request_timeout, exchange).await;
        self.life.step().await;
        answer.map_err(|_| TransportError::Timeout(self.request_timeout))
    }
}
