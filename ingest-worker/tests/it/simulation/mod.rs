//! Seeded simulations of the whole pipeline in paused time.
//!
//! Plain tokio on one thread: the clock stands still while anything can run, the store runs inline, every random choice
//! comes from the seed, so a seed repeats its run. (turmoil and madsim simulate networks between hosts; there is one
//! host here, and what matters is where a process dies and which answers it does not see. Neither has SQLite.)
//!
//! `SIM_SEEDS=n` runs n seeds, `SIM_SEED=n` one of them with logs. A seed that fails prints itself: pin it below.

mod faulty;
mod script;
pub mod stream;
mod truth;
mod worker;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use amberflo_sandbox::{Sandbox, SandboxConfig};
use fastrand::Rng;
use shared::backend::local::{LocalOptions, LocalStore};
use shared::clock::Clock;

use faulty::World;
use script::Play;
use stream::{Resharding, SimulatedStream};
use truth::Truth;
use worker::DEDUP_WINDOW;

use crate::harness::Counters;

const DEFAULT_SEEDS: u64 = 300;
/// Seeds that once failed.
const PINNED: &[u64] = &[
    1458, // halves of a refused batch were given up as `unconfirmed` although they had failed only shortly
    3276, // the simulation took a shard without a lease for settled
    40,   // a parent that one list lacked was not read for the dedup window of its child
    706,  // claims whose answers were lost were taken for those of another process of the same name
];
/// 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600_000;

#[test]
fn nothing_is_lost_and_nothing_is_billed_twice() {
    if let Some(seed) = setting("SIM_SEED") {
        return simulate(seed);
    }
    let seeds = setting("SIM_SEEDS").unwrap_or(DEFAULT_SEEDS);
    let next = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while failed.lock().unwrap().len() < 3 {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let seed = match usize::try_from(index).ok().and_then(|index| PINNED.get(index)) {
                        Some(pinned) => *pinned,
                        None if index < seeds => index,
                        None => break,
                    };
                    if catch_unwind(AssertUnwindSafe(|| simulate(seed))).is_err() {
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "failed seeds: {failed:?}; repeat one with SIM_SEED=n");
}

thread_local! {
    /// Panics on this thread, those of tasks included: a worker survives a panic of a shard, a simulation must not.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = take_hook();
        set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            default(info);
        }));
    });
    PANICS.set(0);
}

fn simulate(seed: u64) {
    count_panics();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    fastrand::seed(seed);
    let counters = Counters::default();
    metrics::with_local_recorder(&counters, || runtime.block_on(play(seed, &counters)));
    assert_eq!(PANICS.get(), 0, "a task panicked");
}

async fn play(seed: u64, counters: &Counters) {
    let mut rng = Rng::with_seed(seed);
    let clock = Clock::following_tokio(START);
    let retention = 2 * DEDUP_WINDOW + Duration::from_secs(30);
    let shards = rng.u32(1..=3);
    let options = LocalOptions { shards, retention, clock, ..LocalOptions::default() };
    let store = LocalStore::open_in_memory(options).unwrap();
    let world = Arc::new(World {
        stream: match rng.bool() {
            true => SimulatedStream::Local(store.clone()),
            false => SimulatedStream::Resharding(Resharding::new(shards, clock)),
        },
        store,
        sandbox: Sandbox::new(SandboxConfig::default()),
        truth: Mutex::new(Truth::default()),
        rates: Mutex::default(),
    });
    let steps = rng.u32(10..80);
    let mut play = Play::new(Arc::clone(&world), rng, clock);
    for _ in 0..steps {
        play.step().await;
        counters.assert_balance();
    }
    play.settle().await;
    counters.assert_balance();
    world.check_balance().await;
    play.redrive_all().await;
    world.check_all_billed().await;
    play.stop().await;
    drop(play);
    // Tasks that were told to end do so when they are polled next.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(counters.assert_balance(), 0, "no worker is left, but records are in flight");
}

#[expect(clippy::disallowed_methods, reason = "settings of the test run, not of the product")]
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}
