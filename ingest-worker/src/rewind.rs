//! Goes back in the stream, for operators: what arrived since a time is processed again.

use shared::backend::{BackendError, Checkpoint, Lease, Leases, ShardId};
use shared::clock::UnixMillis;

/// Sets leases back to the first record that arrived at `to` or later; answers those that were. Their owners lose them,
/// and take them again at the new position. A lease whose checkpoint lies before `to` stays as it is: nothing is
/// skipped.
///
/// What is delivered again is byte for byte what was delivered before, so Amberflo's deduplication absorbs it, as far
/// back as it remembers. The dedup window is rebuilt first, so that copies stay copies.
///
/// # Errors
/// When the table fails; the leases that were set back by then stay so.
pub async fn rewind(leases: &dyn Leases, to: UnixMillis, shard: Option<&ShardId>) -> Result<Vec<Lease>, BackendError> {
    let mut rewound = Vec::new();
    for lease in leases.list().await? {
        if shard.is_none_or(|shard| lease.shard == *shard) {
            rewound.extend(rewind_one(leases, lease, to).await?);
        }
    }
    Ok(rewound)
}

async fn rewind_one(leases: &dyn Leases, mut lease: Lease, to: UnixMillis) -> Result<Option<Lease>, BackendError> {
    loop {
        let is_later = match lease.checkpoint {
            Checkpoint::Settled { arrived_at: time, .. } | Checkpoint::Rewound(time) => time >= to,
            Checkpoint::Ended => true,
            Checkpoint::Start(_) => false,
        };
        if !is_later {
            return Ok(None);
        }
        if let Some(rewound) = leases.reset(&lease, Checkpoint::Rewound(to)).await? {
            return Ok(Some(rewound));
        }
        // Its owner renewed it meanwhile: again, with the row as it is now.
        let Some(now) = leases.list().await?.into_iter().find(|row| row.shard == lease.shard) else {
            return Ok(None);
        };
        lease = now;
    }
}
