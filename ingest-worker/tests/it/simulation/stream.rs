//! A stream that can be split and merged, as Kinesis streams are: the local store's shards are for ever.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use fastrand::Rng;
use futures_util::FutureExt as _;
use shared::backend::local::LocalStore;
use shared::backend::{
    BackendError, NewRecord, Page, Position, Record, SequenceNumber, Shard, ShardId, ShardReader, Stream, hash,
};
use shared::clock::{Clock, UnixMillis};
use std::sync::Arc;
use tokio::time::{Instant, sleep};

/// The stream of a simulation.
#[derive(Clone)]
pub enum SimulatedStream {
    Local(LocalStore),
    Resharding(Resharding),
}

impl SimulatedStream {
    /// The shards that there were so long ago; but for the first ones, which were always there.
    pub fn shards_before(&self, age: Duration) -> Vec<Shard> {
        match self {
            Self::Local(store) => store.shards().now_or_never().unwrap().unwrap(),
            Self::Resharding(stream) => {
                let shards = stream.shards.lock().unwrap();
                let is_old = |held: &&Held| held.shard.parents.is_empty() || held.since.elapsed() >= age;
                let mut shards: Vec<Shard> = shards.iter().filter(is_old).map(|held| held.shard.clone()).collect();
                if !age.is_zero() && fastrand::u32(0..4) == 0 && shards.len() > 1 {
                    // Incomplete: none of the rules of the service promises otherwise.
                    shards.remove(fastrand::usize(..shards.len()));
                }
                shards
            }
        }
    }
}

#[async_trait]
impl Stream for SimulatedStream {
    async fn shards(&self) -> Result<Vec<Shard>, BackendError> {
        match self {
            Self::Local(store) => store.shards().await,
            Self::Resharding(stream) => stream.shards().await,
        }
    }

    async fn reader(&self, shard: &ShardId, from: Position) -> Result<Box<dyn ShardReader>, BackendError> {
        match self {
            Self::Local(store) => store.reader(shard, from).await,
            Self::Resharding(stream) => stream.reader(shard, from).await,
        }
    }

    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), BackendError> {
        match self {
            Self::Local(store) => store.publish(records).await,
            Self::Resharding(stream) => stream.publish(records).await,
        }
    }
}

/// Shards in memory, open ones and closed ones.
#[derive(Clone)]
pub struct Resharding {
    shards: Arc<Mutex<Vec<Held>>>,
    clock: Clock,
}

struct Held {
    shard: Shard,
    records: Vec<Record>,
    is_open: bool,
    since: Instant,
}

impl Resharding {
    pub fn new(shards: u32, clock: Clock) -> Self {
        let stream = Self { shards: Arc::default(), clock };
        let width = u128::MAX / u128::from(shards);
        for index in 0..u128::from(shards) {
            let last = if index + 1 == u128::from(shards) { u128::MAX } else { (index + 1) * width - 1 };
            stream.add(Vec::new(), index * width, last);
        }
        stream
    }

    /// Splits an open shard somewhere, or merges two that lie beside each other.
    pub fn reshard(&self, rng: &mut Rng) {
        let mut open: Vec<Shard> = {
            let shards = self.shards.lock().unwrap();
            shards.iter().filter(|held| held.is_open).map(|held| held.shard.clone()).collect()
        };
        open.sort_by_key(|shard| *shard.hashes.start());
        let index = rng.usize(0..open.len());
        let (first, last) = open[index].hashes.clone().into_inner();
        let id = open[index].id.clone();
        if let Some(next) = open.get(index + 1).filter(|_| open.len() > 4 || rng.bool()) {
            self.close(&[&id, &next.id]);
            self.add(vec![id, next.id.clone()], first, *next.hashes.end());
        } else if last - first > 1 << 100 {
            self.close(&[&id]);
            let middle = first + (last - first) / 100 * rng.u128(10..90);
            self.add(vec![id.clone()], first, middle);
            self.add(vec![id], middle + 1, last);
        }
    }

    /// Its retention has passed.
    pub fn forget(&self, id: &ShardId) {
        self.shards.lock().unwrap().retain(|held| held.shard.id != *id);
    }

    fn add(&self, parents: Vec<ShardId>, first: u128, last: u128) {
        let mut shards = self.shards.lock().unwrap();
        let id = ShardId(format!("shardId-{:012}", shards.len()));
        let shard = Shard { id, parents, hashes: first..=last };
        shards.push(Held { shard, records: Vec::new(), is_open: true, since: Instant::now() });
    }

    fn close(&self, ids: &[&ShardId]) {
        for held in self.shards.lock().unwrap().iter_mut().filter(|held| ids.contains(&&held.shard.id)) {
            held.is_open = false;
        }
    }
}

#[async_trait]
impl Stream for Resharding {
    async fn shards(&self) -> Result<Vec<Shard>, BackendError> {
        Ok(self.shards.lock().unwrap().iter().map(|held| held.shard.clone()).collect())
    }

    async fn reader(&self, shard: &ShardId, from: Position) -> Result<Box<dyn ShardReader>, BackendError> {
        let shards = self.shards.lock().unwrap();
        let index = shards.iter().position(|held| held.shard.id == *shard);
        let index = index.ok_or_else(|| BackendError::Gone(format!("there is no {shard}")))?;
        let is_before = |record: &Record| match &from {
            Position::TrimHorizon => false,
            Position::AtTime(time) => record.arrived_at < *time,
            Position::At(number) => record.sequence_number < *number,
            Position::After(number) => record.sequence_number <= *number,
        };
        let next = shards[index].records.partition_point(is_before);
        Ok(Box::new(Reader { stream: self.clone(), index, next }))
    }

    async fn publish(&self, records: Vec<NewRecord>) -> Result<(), BackendError> {
        let arrived_at: UnixMillis = self.clock.now();
        let mut shards = self.shards.lock().unwrap();
        for NewRecord { partition_key, data } in records {
            let number = shards.iter().map(|held| held.records.len()).sum::<usize>() + 1;
            let hash = hash(&partition_key);
            let home = shards.iter_mut().find(|held| held.is_open && held.shard.hashes.contains(&hash)).unwrap();
            let sequence_number = SequenceNumber(number.to_string());
            home.records.push(Record { data, partition_key, sequence_number, arrived_at });
        }
        Ok(())
    }
}

struct Reader {
    stream: Resharding,
    index: usize,
    next: usize,
}

#[async_trait]
impl ShardReader for Reader {
    async fn next(&mut self, max_bytes: usize) -> Result<Page, BackendError> {
        let mut page = self.read(max_bytes);
        if page.records.is_empty() && !page.is_end {
            sleep(Duration::from_millis(200)).await;
            page = self.read(max_bytes);
        }
        self.next += page.records.len();
        Ok(page)
    }
}

impl Reader {
    fn read(&self, max_bytes: usize) -> Page {
        let shards = self.stream.shards.lock().unwrap();
        let held = &shards[self.index];
        let rest = &held.records[self.next..];
        let mut bytes = 0;
        let fits = rest.iter().take_while(|record| {
            bytes += record.data.len();
            bytes <= max_bytes
        });
        let count = fits.count().max(usize::from(!rest.is_empty()));
        let records = rest[..count].to_vec();
        let behind = |last: &Record| held.records.last().map_or(0, |newest| newest.arrived_at - last.arrived_at);
        Page {
            millis_behind_latest: records.last().map_or(0, behind),
            is_end: !held.is_open && count == rest.len(),
            records,
        }
    }
}
