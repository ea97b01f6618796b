//! What no metric can tell: the leases that are held, and the latest dead letters.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shared::backend::{Checkpoint, ShardId};
use shared::clock::UnixMillis;
use shared::dead_letter::DeadLetter;
use tokio::sync::watch;

use crate::lease::Fence;

const LETTERS: usize = 20;
/// As much of a letter's detail as helps to recognise it.
const MAX_DETAIL_CHARS: usize = 160;

/// Where shards note what the status page shows of them.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    leases: BTreeMap<ShardId, HeldLease>,
    /// The latest first.
    letters: VecDeque<Letter>,
}

/// A lease that this worker holds.
#[derive(Clone, Debug)]
pub struct HeldLease {
    /// Since when.
    pub since: UnixMillis,
    /// The newest.
    pub checkpoint: watch::Receiver<Checkpoint>,
    /// How long it is valid.
    pub fence: Fence,
}

/// What is shown of a dead letter: nothing of the payload but what the detail quotes, which the log leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    pub at: UnixMillis,
    pub shard: String,
    pub sequence_number: String,
    pub reason: String,
    pub detail: String,
}

/// Takes the lease from the board when it is dropped.
pub struct PostedLease {
    board: Board,
    shard: ShardId,
}

impl Board {
    /// Shows a lease, for as long as the answer lives.
    #[must_use]
    pub(crate) fn post_lease(&self, shard: ShardId, lease: HeldLease) -> PostedLease {
        self.notes().leases.insert(shard.clone(), lease);
        PostedLease { board: self.clone(), shard }
    }

    /// Shows the last of these.
    pub(crate) fn note_letters(&self, letters: &[DeadLetter]) {
        let mut notes = self.notes();
        for letter in &letters[letters.len().saturating_sub(LETTERS)..] {
            notes.letters.push_front(Letter {
                at: letter.dead_lettered_at,
                shard: letter.shard.clone(),
                sequence_number: letter.sequence_number.clone(),
                reason: letter.reason.clone(),
                detail: letter.detail.chars().take(MAX_DETAIL_CHARS).collect(),
            });
        }
        notes.letters.truncate(LETTERS);
    }

    pub(super) fn leases(&self) -> Vec<(ShardId, HeldLease)> {
        self.notes().leases.iter().map(|(shard, lease)| (shard.clone(), lease.clone())).collect()
    }

    pub(super) fn letters(&self) -> Vec<Letter> {
        let mut letters: Vec<Letter> = self.notes().letters.iter().cloned().collect();
        // They are noted when they are stored, which batches are in any order.
        letters.sort_by_key(|letter| std::cmp::Reverse(letter.at));
        letters
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        // Nothing in here panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PostedLease {
    fn drop(&mut self) {
        self.board.notes().leases.remove(&self.shard);
    }
}
