#!/usr/bin/env bash
# Proves that the tests in paused time bite: plants one deliberate bug at a time in a copy of the sources and expects a
# seed of the simulation to fail, or a test of `answers`. A bug that nothing catches, or a plant that no longer fits the
# sources, fails this script.
#
#   ingest-worker/tests/mutants/run.sh [NAME ...]     all bugs, or the named ones
#   ingest-worker/tests/mutants/run.sh --check        only that every plant fits the sources
set -euo pipefail
cd "$(dirname "$0")/../../.."
root=$PWD
copy=$root/target/mutants
export CARGO_TARGET_DIR=$root/target SIM_SEEDS=${SIM_SEEDS:-600} RUST_BACKTRACE=0
# Nobody debugs a mutant, and each is compiled.
export CARGO_PROFILE_DEV_DEBUG=0

# The crate of the last bug; of an earlier run it is unknown.
planted=shared

# plant FILE OLD NEW: replaces OLD, which must stand in FILE exactly once.
plant() {
    planted=${1%%/*}
    python3 - "$copy/$1" "$2" "$3" <<'PYTHON'
import sys
path, old, new = sys.argv[1:]
text = open(path).read()
if text.count(old) != 1:
    sys.exit(f"{path}: the text to replace stands there {text.count(old)} times:\n{old}")
open(path, "w").write(text.replace(old, new))
PYTHON
}

bugs=(
    checkpoint_on_submit
    key_kept_although_the_request_was_lost
    now_in_the_record
    envelope_time_in_the_fingerprint
    dead_letter_after_the_checkpoint
    isolation_drops_the_right_half
    no_dedup_rebuild
    no_fence_after_a_pause
    redrive_changes_one_byte
    suspicion_after_one_failure
    blame_after_one_403
    pause_for_a_replaced_key
    no_acquittal
    no_tails_of_parents
    ended_before_settled
    child_before_its_parents
    child_of_unknown_parents
    rewind_without_rebuild
    ended_on_one_list
    takes_leases_of_the_living
    hands_over_without_draining
)

# The suites that are tried, in this order; where it is known which one catches it, only that.
declare -A suites=(
    [blame_after_one_403]=answers::forbidden
    [pause_for_a_replaced_key]=answers::pause
    [suspicion_after_one_failure]=answers::isolation
    [no_acquittal]=answers::acquittal
)

bug_checkpoint_on_submit() { # instead of on settle
    plant ingest-worker/src/shard.rs \
        'let (batch, trigger) = path.take_batch();' \
        'let (batch, trigger) = path.take_batch();
                if let Some((sequence_number, arrived_at)) = batch.last.clone() {
                    checkpoint.send_replace(Checkpoint::Settled { sequence_number, arrived_at });
                }'
}
bug_key_kept_although_the_request_was_lost() { # the rebuild takes what lies behind the checkpoint for settled
    plant ingest-worker/src/shard.rs \
        'self.end_rebuild();
            let pushed' \
        'if self.rebuild.is_some() && self.millis_behind_latest > 0 {
                self.remember(&record);
            }
            self.end_rebuild();
            let pushed'
}
bug_now_in_the_record() { # as the original plugin does
    plant ingest-worker/src/batch.rs \
        'meter_record::write(event, &mut self.open.body);' \
        'let mut event = event.clone();
        event.meter_time += tokio::time::Instant::now().elapsed().as_millis() as i64 + fastrand::i64(0..1000);
        let event = &event;
        meter_record::write(event, &mut self.open.body);'
}
bug_envelope_time_in_the_fingerprint() { # a retried PutEvents has a new envelope time
    plant ingest-worker/src/dedup.rs \
        'if event.time_from_detail { event.meter_time } else { UnixMillis::MIN }' \
        'event.meter_time'
}
bug_dead_letter_after_the_checkpoint() { # stored in the background
    plant ingest-worker/src/submit.rs \
        'store(&shard, &letters).instrument(spans::store(&letters)).await;' \
        'let (shard, letters) = (Arc::clone(&shard), letters.clone());
        tokio::spawn(async move { store(&shard, &letters).await });'
}
bug_isolation_drops_the_right_half() {
    plant ingest-worker/src/submit.rs \
        'parcels.push_back(half(right));' \
        'drop(half(right));'
}
bug_no_dedup_rebuild() { # reads on behind the checkpoint with an empty window
    plant ingest-worker/src/shard.rs \
        'Checkpoint::Settled { arrived_at: time, .. } | Checkpoint::Rewound(time) => {' \
        'Checkpoint::Settled { sequence_number, .. } => {
            (Position::After(sequence_number.clone()), Since::BeforeFirst(Duration::ZERO))
        }
        Checkpoint::Rewound(time) => {'
}
bug_no_fence_after_a_pause() {
    plant ingest-worker/src/lease.rs \
        'if Instant::now() >= deadline {
                self.fell.cancel();
                return;
            }' \
        'if false {
                return;
            }
            std::future::pending::<()>().await;'
}
bug_redrive_changes_one_byte() {
    plant shared/src/redrive/record.rs \
        'saturating_add(1), unique_id, meter_time_in_millis })' \
        'saturating_add(1), unique_id, meter_time_in_millis: meter_time_in_millis + 1 })'
}
bug_suspicion_after_one_failure() { # a short trouble beside deliveries is taken for a long one
    plant ingest-worker/src/submit/blame.rs \
        'now - since < UNCONFIRMED_AFTER' \
        'now == since'
}
bug_blame_after_one_403() { # though other servers of Amberflo may not know a new key yet
    plant ingest-worker/src/submit/blame.rs \
        'self.times >= ATTEMPTS' \
        'self.times >= 1'
}
bug_pause_for_a_replaced_key() {
    plant ingest-worker/src/submit.rs \
        'Decision::Pause if error.key_was_replaced => {' \
        'Decision::Pause if false => {'
}
bug_no_acquittal() { # what others meet too is held against a record
    plant ingest-worker/src/submit.rs \
        'shard.limiter.begin_anew();' \
        ''
}
bug_no_tails_of_parents() { # a child begins with an empty window
    plant ingest-worker/src/lineage.rs \
        'filter(|shard| ancestors.contains(&shard.id));' \
        'filter(|shard| ancestors.contains(&shard.id) && shard.id.0.is_empty());'
}
bug_ended_before_settled() { # what is in flight at the end of a shard is forgotten
    plant ingest-worker/src/shard.rs \
        'if path.is_ended && is_done {' \
        'if path.is_ended {'
}
bug_child_before_its_parents() {
    plant ingest-worker/src/balance.rs \
        'Some(row) => row.checkpoint == Checkpoint::Ended,' \
        'Some(_) => true,'
}
bug_child_of_unknown_parents() { # a row that is newer than the list of shards is taken
    plant ingest-worker/src/balance.rs \
        'else { return false };' \
        'else { return lease.checkpoint != Checkpoint::Ended };'
    plant ingest-worker/src/balance.rs \
        'shard.parents.iter().chain(&lease.parents).all(is_settled)' \
        'shard.parents.iter().all(is_settled)'
}
bug_rewind_without_rebuild() {
    plant ingest-worker/src/shard.rs \
        'Checkpoint::Rewound(time) => Some(Rebuild::Until(*time)),' \
        'Checkpoint::Rewound(_) => None,'
}
bug_ended_on_one_list() { # a shard that one list lacks is ended, whether it has children or not
    plant ingest-worker/src/worker.rs \
        'let is_gone = is_old || (since.elapsed() >= GONE_AFTER && parents.contains(&lease.shard));' \
        'let is_gone = !parents.is_empty() || is_old;'
}
bug_takes_leases_of_the_living() {
    plant ingest-worker/src/balance.rs \
        'self.quiet(lease) >= self.failover
    }' \
        'self.quiet(lease) >= self.failover / 5
    }'
}
bug_hands_over_without_draining() { # what is in flight is dropped, and sent again by the next owner
    plant ingest-worker/src/lease.rs \
        'self.hand_over.cancel();' \
        'let _ = self.leases.release(&row).await;
                        return false;'
}

check=
[ "${1:-}" != --check ] || { check=1; shift; }
missed=()
for bug in "${@:-${bugs[@]}}"; do
    rm -rf "$copy"
    mkdir -p "$copy"
    git ls-files --cached --others --exclude-standard -z | tar --null --files-from=- --create | tar --extract --directory "$copy"
    # The files come with the times of the originals, so cargo would take the last bug's build for this one's.
    touch "$copy/$planted/src/lib.rs" "$copy/ingest-worker/src/lib.rs"
    "bug_$bug"
    [ -z "$check" ] || continue
    if ! (cd "$copy" && cargo test --quiet -p ingest-worker --test it --no-run) 2>"$copy/build.log"; then
        cat "$copy/build.log"
        echo "the planted bug $bug does not compile" >&2
        exit 1
    fi
    caught=
    for suite in ${suites[$bug]:-simulation answers}; do
        (cd "$copy" && timeout 300 cargo test --quiet -p ingest-worker --test it "$suite") >"$copy/run.log" 2>&1 || caught=1
        [ -z "$caught" ] || break
    done
    if [ -z "$caught" ]; then
        echo "MISSED  $bug"
        missed+=("$bug")
    else
        seed=$(grep -o 'failed seeds: \[[0-9, ]*\]' "$copy/run.log" | head -n 1 || true)
        first=$(grep -A1 -m1 'panicked at' "$copy/run.log" | tail -n 1 | cut -c 1-100)
        [ -n "$seed" ] || seed=$(grep -o -m1 '^answers::[a-z_:]*' "$copy/run.log" | head -n 1 || true)
        [ -n "$first" ] || { tail -n 20 "$copy/run.log"; echo "$bug: the run failed without a failed test" >&2; exit 1; }
        echo "caught  $bug  (${seed:-answers}: $first)"
    fi
done
rm -rf "$copy"
[ -z "$check" ] || exit 0
[ ${#missed[@]} -eq 0 ] || { echo "not caught: ${missed[*]}" >&2; exit 1; }
echo "ran     mutants: every planted bug was caught" >>"${SUITE_REPORT:-/dev/null}"
