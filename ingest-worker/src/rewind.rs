//! Goes back in the stream, for operators: what arrived since a time is processed again.

use shared::backend::{BackendError, Checkpoint, Lease, Leases, Shard, ShardId, Stream};
use shared::clock::{UnixMillis, millis};

use crate::lineage::first_arrival;
use crate::shard::REBUILD_SLACK;

/// Sets leases back to the first record that arrived at `to` or later; answers those that were. Their owners lose them,
/// and take them again at the new position. A lease whose checkpoint lies before `to` stays as it is: nothing is
/// skipped.
///
/// What is delivered again is byte for byte what was delivered before, so Amberflo's deduplication absorbs it, as far
/// back as it remembers. The dedup window is rebuilt first, so that copies stay copies.
///
/// # Errors
/// When the table fails; the leases that were set back by then stay so.
pub async fn rewind(
    leases: &dyn Leases,
    stream: &dyn Stream,
    to: UnixMillis,
    shard: Option<&ShardId>,
) -> Result<Vec<Lease>, BackendError> {
    let shards = stream.shards().await?;
    let mut rewound = Vec::new();
    for lease in leases.list().await? {
        let is_meant = shard.is_none_or(|shard| lease.shard == *shard);
        if is_meant && holds_since(stream, &shards, &lease, to).await? {
            rewound.extend(rewind_one(leases, lease, to).await?);
        }
    }
    Ok(rewound)
}

/// Whether the shard can hold records that arrived at `to` or later: not where it is forgotten, nor where it ended before.
async fn holds_since(
    stream: &dyn Stream,
    shards: &[Shard],
    lease: &Lease,
    to: UnixMillis,
) -> Result<bool, BackendError> {
    if shards.iter().all(|shard| shard.id != lease.shard) {
        return Ok(false);
    }
    for child in shards.iter().filter(|shard| shard.parents.contains(&lease.shard)) {
        if first_arrival(stream, &child.id).await?.is_some_and(|first| first < to - millis(REBUILD_SLACK)) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn rewind_one(leases: &dyn Leases, mut lease: Lease, to: UnixMillis) -> Result<Option<Lease>, BackendError> {
    loop {
        let is_later = match lease.checkpoint {
            Checkpoint::Settled { arrived_at: time, .. } | Checkpoint::Rewound(time) => time >= to,
            Checkpoint::Ended => true,
            Checkpoint::Start(_) => false,
        };
        if !is_later {
            tracing::info!(shard = %lease.shard, checkpoint = %lease.checkpoint, "unchanged: the shard has not passed that time");
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
