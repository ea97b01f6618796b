//! The shards of a local stream: their names, and the share of the hash space that each has.

use std::ops::RangeInclusive;

use crate::backend::{ShardId, hash};

/// A shard's name.
pub(super) fn shard_id(index: u32) -> ShardId {
    ShardId(format!("shard-{index:05}"))
}

/// The number in a shard's name, where it is one of `shards`.
pub(super) fn shard_index(shard: &ShardId, shards: u32) -> Option<u32> {
    shard.0.strip_prefix("shard-")?.parse().ok().filter(|&index| index < shards && shard_id(index) == *shard)
}

/// The shard whose share of the 128-bit hash space holds the key's MD5, as in Kinesis.
pub(super) fn shard_of(partition_key: &str, shards: u32) -> u32 {
    let hash = hash(partition_key);
    let (high, low) = (hash >> 64, hash & u128::from(u64::MAX));
    // hash * shards / 2^128, without overflow; less than `shards`, so it fits.
    ((high * u128::from(shards) + ((low * u128::from(shards)) >> 64)) >> 64) as u32
}

/// The hashes of the keys for which [`shard_of`] answers `index`.
pub(super) fn hashes_of(index: u32, shards: u32) -> RangeInclusive<u128> {
    let last = if index + 1 == shards { u128::MAX } else { first_hash(index + 1, shards) - 1 };
    first_hash(index, shards)..=last
}

/// index * 2^128 / shards, rounded up, without overflow.
fn first_hash(index: u32, shards: u32) -> u128 {
    if index == 0 {
        return 0;
    }
    let (index, shards) = (u128::from(index), u128::from(shards));
    // 2^128 - 1 = quotient * shards + remainder
    let (quotient, remainder) = (u128::MAX / shards, u128::MAX % shards);
    index * quotient + (index * (remainder + 1)).div_ceil(shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_the_hash_space_evenly_and_in_order() {
        let counts = (0..4000).fold([0; 4], |mut counts, n| {
            counts[shard_of(&format!("tenant-{n}"), 4) as usize] += 1;
            counts
        });
        assert!(counts.iter().all(|&count| (900..1100).contains(&count)), "{counts:?}");
        // MD5("") = d41d8cd9..., MD5("a") = 0cc175b9...: in the last and the first quarter.
        assert_eq!((shard_of("", 4), shard_of("a", 4)), (3, 0));
        assert_eq!((shard_of("", 1), shard_of("", 16), shard_of("", 1024)), (0, 0xd, 0xd41d >> 6));
        for shards in [1, 2, 3, 7, 16, 1000] {
            for index in 0..shards {
                let hashes = hashes_of(index, shards);
                assert!(*hashes.start() == 0 || hashes_of(index - 1, shards).end() + 1 == *hashes.start());
                assert!((index + 1 == shards) == (*hashes.end() == u128::MAX));
            }
            for key in ["", "a", "b", "tenant-1"] {
                assert!(hashes_of(shard_of(key, shards), shards).contains(&hash(key)), "{key} of {shards}");
            }
        }
    }
}
