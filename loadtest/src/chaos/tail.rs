//! Reads the stream beside the workers, to know which events lie behind their checkpoints.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde::Deserialize;
use shared::backend::{
    BackendError, Checkpoint, Leases, Position, Record, SequenceNumber, ShardId, ShardReader, Stream,
};
use tokio::task::JoinSet;

/// A look reads at most so many pages of a shard; the next one goes on.
const PAGES: usize = 20;
const PAGE_BYTES: usize = 1 << 20;

/// One reader for each shard, from its first record on.
pub struct Tail {
    stream: Arc<dyn Stream>,
    leases: Arc<dyn Leases>,
    shards: HashMap<ShardId, Shard>,
}

struct Shard {
    reader: Box<dyn ShardReader>,
    is_read: bool,
    is_at_tip: bool,
    /// The ids of events that were read and are not known to be passed, by their place.
    waiting: VecDeque<(SequenceNumber, Option<String>)>,
}

impl Tail {
    /// Begins with the oldest record.
    #[must_use]
    pub fn new(stream: Arc<dyn Stream>, leases: Arc<dyn Leases>) -> Self {
        Self { stream, leases, shards: HashMap::new() }
    }

    /// The `uniqueId`s of the events that checkpoints have passed since the last look.
    ///
    /// # Errors
    /// When a service does not answer; the next look makes up for it.
    pub async fn look(&mut self) -> Result<Vec<String>, BackendError> {
        // First: what they have passed is settled from then on, whatever is read later.
        let leases = self.leases.list().await?;
        for shard in self.stream.shards().await? {
            if !self.shards.contains_key(&shard.id) {
                let reader = self.stream.reader(&shard.id, Position::TrimHorizon).await?;
                self.shards
                    .insert(shard.id, Shard { reader, is_read: false, is_at_tip: false, waiting: VecDeque::new() });
            }
        }
        self.read().await?;
        let mut ids = Vec::new();
        for lease in leases {
            if let Some(shard) = self.shards.get_mut(&lease.shard) {
                shard.pass(&lease.checkpoint, &mut ids);
            }
        }
        Ok(ids)
    }

    /// Whether all that was in the stream at the last look was behind checkpoints.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.shards.values().all(|shard| shard.is_at_tip && shard.waiting.is_empty())
    }

    /// All shards at once: each reader waits at its tip.
    async fn read(&mut self) -> Result<(), BackendError> {
        let mut reading = JoinSet::new();
        for (id, mut shard) in self.shards.drain() {
            reading.spawn(async move {
                let result = shard.read().await;
                (id, shard, result)
            });
        }
        let mut outcome = Ok(());
        while let Some(read) = reading.join_next().await {
            let Ok((id, shard, result)) = read else { continue };
            self.shards.insert(id, shard);
            outcome = outcome.and(result);
        }
        outcome
    }
}

impl Shard {
    async fn read(&mut self) -> Result<(), BackendError> {
        for _ in 0..PAGES {
            if self.is_read {
                break;
            }
            let page = self.reader.next(PAGE_BYTES).await?;
            self.is_at_tip = page.records.is_empty() || page.is_end;
            self.waiting
                .extend(page.records.into_iter().map(|record| (record.sequence_number.clone(), unique_id(&record))));
            self.is_read = page.is_end;
            if self.is_at_tip {
                break;
            }
        }
        Ok(())
    }

    fn pass(&mut self, checkpoint: &Checkpoint, ids: &mut Vec<String>) {
        let is_passed = |number: &SequenceNumber| match checkpoint {
            Checkpoint::Start(_) | Checkpoint::Rewound(_) => false,
            Checkpoint::Settled { sequence_number, .. } => number <= sequence_number,
            Checkpoint::Ended => true,
        };
        while self.waiting.front().is_some_and(|(number, _)| is_passed(number)) {
            ids.extend(self.waiting.pop_front().and_then(|(_, id)| id));
        }
    }
}

/// Of a record that is an event with one.
fn unique_id(record: &Record) -> Option<String> {
    #[derive(Deserialize)]
    struct Envelope {
        detail: Detail,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Detail {
        unique_id: String,
    }
    serde_json::from_slice::<Envelope>(&record.data).ok().map(|envelope| envelope.detail.unique_id)
}

#[cfg(test)]
mod tests {
    use shared::backend::NewRecord;
    use shared::backend::local::{LocalOptions, LocalStore};

    use super::*;

    #[tokio::test]
    async fn what_a_checkpoint_has_passed_is_told_once() {
        let store = LocalStore::open_in_memory(LocalOptions { shards: 1, ..LocalOptions::default() }).unwrap();
        let record = |id: &str| {
            let data = format!(r#"{{"detail":{{"uniqueId":"{id}"}}}}"#).into();
            NewRecord { partition_key: "tenant".to_owned(), data }
        };
        let malformed = NewRecord { partition_key: "tenant".to_owned(), data: "{".into() };
        store.publish(vec![record("a"), malformed, record("b"), record("c")]).await.unwrap();
        let shard = store.shards().await.unwrap().remove(0);
        let mut reader = store.reader(&shard.id, Position::TrimHorizon).await.unwrap();
        let third = reader.next(1 << 20).await.unwrap().records[2].clone();
        let mut tail = Tail::new(Arc::new(store.clone()), Arc::new(store.clone()));
        assert!(tail.look().await.unwrap().is_empty());
        assert!(!tail.is_settled());

        store.create(&shard, Checkpoint::Start(Position::TrimHorizon)).await.unwrap();
        let lease = store.list().await.unwrap().remove(0);
        assert!(tail.look().await.unwrap().is_empty());
        let settled = Checkpoint::Settled { sequence_number: third.sequence_number, arrived_at: third.arrived_at };
        let lease = store.reset(&lease, settled).await.unwrap().unwrap();
        assert_eq!(tail.look().await.unwrap(), ["a", "b"]);
        assert!(tail.look().await.unwrap().is_empty());
        store.reset(&lease, Checkpoint::Ended).await.unwrap().unwrap();
        assert!(!tail.is_settled());
        assert_eq!(tail.look().await.unwrap(), ["c"]);
        assert!(tail.is_settled());
    }
}
