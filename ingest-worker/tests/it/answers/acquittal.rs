//! Troubles of everybody that come and go: each request fails or not by chance, and no record is to blame.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::harness::{MINUTE, Options, SECOND, Verdict, World, answer, usage};

/// Steady traffic, while of all requests `percent(time)` fail with `status`: all is delivered.
async fn nobody_is_to_blame(status: u16, percent: fn(Duration) -> u8, lasts: Duration) {
    for batch_max_events in [1, 10] {
        let world = World::new(4);
        let (began, random) = (Instant::now(), Mutex::new(fastrand::Rng::with_seed(7)));
        world.wire.script(move |sent| {
            let fails = random.lock().unwrap().u8(..100) < percent(sent.at - began);
            // Slow, so that others which left later have been delivered.
            (SECOND / 2, if fails { Verdict::Answer(answer(status, &[], "no")) } else { Verdict::Pass })
        });
        let _worker = world.start_with(Options { batch_max_events, ..Options::default() }).await;
        let mut events = 0;
        while began.elapsed() < lasts {
            world.put((0..4).map(|n| usage(&format!("tenant-{n}"), events + n))).await;
            events += 4;
            sleep(SECOND).await;
        }
        world.settle_within(20 * MINUTE).await;
        let letters: Vec<_> = world.letters().await.into_iter().map(|letter| letter.detail).collect();
        assert!(letters.is_empty(), "{} of {events}: {letters:?}", letters.len());
        world.assert_billed_without_copies(events);
    }
}

#[tokio::test(start_paused = true)]
async fn a_403_that_comes_and_goes_for_minutes_dead_letters_nothing() {
    nobody_is_to_blame(403, |time| if time < 5 * MINUTE { 50 } else { 0 }, 7 * MINUTE).await;
}

/// Longer than what makes a suspect.
#[tokio::test(start_paused = true)]
async fn an_outage_of_half_an_hour_that_ends_unevenly_dead_letters_nothing() {
    let percent = |time| match time {
        outage if outage < 31 * MINUTE => 100,
        shedding if shedding < 36 * MINUTE => 80,
        _ => 0,
    };
    nobody_is_to_blame(503, percent, 38 * MINUTE).await;
}
