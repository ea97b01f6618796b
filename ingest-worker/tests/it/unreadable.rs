//! What a worker tells of a shard that it cannot read, as where a permission or a key was taken away, in paused time.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use shared::backend::local::LocalStore;
use shared::backend::{BackendError, NewRecord, Page, Position, Shard, ShardId, ShardReader, Stream};
use tokio::time::sleep;

use crate::harness::lines::Lines;
use crate::harness::{Counters, MINUTE, Options, SECOND, World};

/// A stream of which one shard cannot be read while it is named here.
#[derive(Clone)]
struct Unreadable {
    store: LocalStore,
    shard: Arc<Mutex<Option<ShardId>>>,
    /// Instead of an error.
    panics: bool,
}

struct Reader {
    inner: Box<dyn ShardReader>,
    id: ShardId,
    unreadable: Arc<Mutex<Option<ShardId>>>,
    panics: bool,
}

impl Unreadable {
    fn of(world: &World) -> (Self, Options) {
        Self::with(world, false)
    }

    fn with(world: &World, panics: bool) -> (Self, Options) {
        let stream = Self { store: world.store.clone(), shard: Arc::default(), panics };
        let options = Options { stream: Some(Arc::new(stream.clone())), ..Options::default() };
        (stream, options)
    }

    async fn set_last_shard(&self) -> ShardId {
        let shard = self.store.shards().await.unwrap().pop().unwrap().id;
        *self.shard.lock().unwrap() = Some(shard.clone());
        shard
    }

    fn mend(&self) {
        *self.shard.lock().unwrap() = None;
    }
}

#[async_trait]
impl Stream for Unreadable {
    async fn shards(&self) -> Result<Vec<Shard>, BackendError> {
        self.store.shards().await
    }

    async fn reader(&self, shard: &ShardId, from: Position) -> Result<Box<dyn ShardReader>, BackendError> {
        let inner = self.store.reader(shard, from).await?;
        let (id, unreadable) = (shard.clone(), Arc::clone(&self.shard));
        Ok(Box::new(Reader { inner, id, unreadable, panics: self.panics }))
    }

    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), BackendError> {
        self.store.publish(records).await
    }
}

#[async_trait]
impl ShardReader for Reader {
    async fn next(&mut self, max_bytes: usize) -> Result<Page, BackendError> {
        if self.unreadable.lock().unwrap().as_ref() == Some(&self.id) {
            assert!(!self.panics, "planted");
            return Err(BackendError::Unavailable("access denied".to_owned()));
        }
        self.inner.next(max_bytes).await
    }
}

#[tokio::test(start_paused = true)]
async fn it_falls_behind() {
    let lag = |counters: &Counters| counters.gauge("ingest_shard_lag_seconds");
    let counters = Counters::default();
    let _recording = metrics::set_default_local_recorder(&counters);
    let world = World::new(1);
    let (stream, options) = Unreadable::of(&world);
    let worker = world.start_with(options).await;
    for _ in 0..60 {
        sleep(SECOND).await;
        assert_eq!(lag(&counters), 0.0, "an idle shard is not behind");
    }
    stream.set_last_shard().await;
    sleep(5 * MINUTE).await;
    assert!((290.0..=310.0).contains(&lag(&counters)), "{} s behind", lag(&counters));
    sleep(5 * MINUTE).await;
    assert!((590.0..=610.0).contains(&lag(&counters)), "{} s behind", lag(&counters));
    stream.mend();
    // It tries again within 30 s.
    sleep(MINUTE).await;
    assert_eq!(lag(&counters), 0.0);
    worker.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_loop_of_panics_is_counted() {
    let counters = Counters::default();
    let _recording = metrics::set_default_local_recorder(&counters);
    let world = World::new(2);
    let (stream, options) = Unreadable::with(&world, true);
    let worker = world.start_with(options).await;
    sleep(MINUTE).await;
    assert_eq!(counters.get("ingest_shard_failures_total"), 0);
    stream.set_last_shard().await;
    for _ in 0..3 {
        let before = counters.get("ingest_shard_failures_total");
        sleep(MINUTE).await;
        assert!(counters.get("ingest_shard_failures_total") > before, "in every scrape there are more");
    }
    stream.mend();
    worker.drain().await;
}

/// Other tests of this process may tell of the same trouble instead, so some lines may be missing, but none is added.
#[tokio::test(start_paused = true)]
async fn a_neighbour_that_can_be_read_does_not_end_the_trouble() {
    let lines = Lines::capture();
    let world = World::new(4);
    let (stream, options) = Unreadable::of(&world);
    let worker = world.start_with(options).await;
    sleep(MINUTE).await;
    let shard = stream.set_last_shard().await;
    sleep(10 * MINUTE).await;
    stream.mend();
    sleep(MINUTE).await;
    let over: Vec<_> = lines.take().into_iter().filter(|line| line.contains("can be read again")).collect();
    assert!(over.len() <= 1 && over.iter().all(|line| line.contains(&format!("shard={shard}"))), "{over:#?}");
    worker.drain().await;
}
