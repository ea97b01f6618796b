use super::*;
use tokio::time::{advance, sleep, timeout};

fn limiter(max_in_flight: u32, rate: f64) -> Arc<Limiter> {
    Limiter::new(NonZeroU32::new(max_in_flight).unwrap(), rate)
}

async fn permit(limiter: &Arc<Limiter>) -> Permit {
    Arc::clone(limiter).acquire().await
}

async fn is_blocked(limiter: &Arc<Limiter>) -> bool {
    timeout(Duration::from_millis(1), permit(limiter)).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn no_second_holds_more_than_the_rate_and_one() {
    let limiter = limiter(100, 10.0);
    let mut sent = Vec::new();
    for _ in 0..50 {
        drop(permit(&limiter).await);
        sent.push(Instant::now());
    }
    for (index, start) in sent.iter().enumerate() {
        let within = sent[index..].iter().take_while(|at| **at - *start <= Duration::from_secs(1)).count();
        assert!(within <= 11, "{within} requests in one second");
    }
    let took = sent[49] - sent[0];
    assert!((4.85..4.95).contains(&took.as_secs_f64()), "full speed is kept: {took:?}");
}

/// Timers have milliseconds: the periods of most rates have not.
#[tokio::test(start_paused = true)]
async fn late_timers_take_nothing_of_the_rate_and_give_nothing_to_it() {
    for rate in [3.0, 30.0, 70.0, 300.0] {
        let limiter = limiter(100, rate);
        let mut sent = Vec::new();
        for _ in 0..10 * rate as usize {
            drop(permit(&limiter).await);
            sent.push(Instant::now());
        }
        let took = (sent[sent.len() - 1] - sent[0]).as_secs_f64();
        assert!(took < 10.01, "{rate} a second: the requests of 10 s took {took} s");
        for (index, start) in sent.iter().enumerate() {
            let within = sent[index..].iter().take_while(|at| **at - *start <= Duration::from_secs(1)).count();
            assert!(within <= rate as usize + 1, "{within} requests in one second at {rate} a second");
        }
        // What was not asked for is not made up for, nor what a waiter that has gone was promised.
        assert!(is_blocked(&limiter).await);
        advance(Duration::from_secs(60)).await;
        drop(permit(&limiter).await);
        assert!(is_blocked(&limiter).await, "{rate} a second: two at once");
    }
}

/// Or each scan during a rebalancing would send one request more.
#[tokio::test(start_paused = true)]
async fn a_new_share_gives_nothing_for_nothing() {
    let limiter = limiter(100, 10.0);
    drop(permit(&limiter).await);
    for (owned, wait) in [(3, 133), (4, 100), (1, 400)] {
        let sent = Instant::now();
        for owned in [2, 1, owned] {
            limiter.set_share(owned, 4);
        }
        drop(permit(&limiter).await);
        let waited = sent.elapsed().as_millis();
        assert!((wait..=wait + 2).contains(&waited), "{owned} of 4 shards: {waited} ms after the last request");
    }
}

#[tokio::test(start_paused = true)]
async fn a_share_of_the_shards_is_a_share_of_the_rate() {
    let limiter = limiter(100, 10.0);
    limiter.set_share(1, 4);
    drop(permit(&limiter).await);
    let started = Instant::now();
    for _ in 0..10 {
        drop(permit(&limiter).await);
    }
    assert_eq!(started.elapsed().as_millis(), 4000);
}

#[tokio::test(start_paused = true)]
async fn retry_after_holds_for_everyone_and_the_longest_counts() {
    let limiter = limiter(8, 0.0);
    let (first, second) = (permit(&limiter).await, permit(&limiter).await);
    first.report(Outcome::SlowDown(Some(Duration::from_secs(20))));
    second.report(Outcome::SlowDown(Some(Duration::from_secs(5))));
    assert!(limiter.is_blocked());
    let started = Instant::now();
    drop(permit(&limiter).await);
    assert_eq!(started.elapsed().as_secs(), 20);
    assert!(!limiter.is_blocked());
}

#[tokio::test(start_paused = true)]
async fn concurrency_is_halved_once_a_window_and_grows_by_one() {
    let limiter = limiter(16, 0.0);
    let permits: Vec<Permit> = [permit(&limiter).await, permit(&limiter).await, permit(&limiter).await].into();
    for permit in permits {
        permit.report(Outcome::SlowDown(None));
    }
    assert_eq!(limiter.concurrency(), 8, "one cut for one burst of refusals");
    advance(WINDOW).await;
    permit(&limiter).await.report(Outcome::Failed(None));
    assert_eq!(limiter.concurrency(), 7);
    for _ in 0..3 {
        advance(WINDOW).await;
        permit(&limiter).await.report(Outcome::Delivered);
    }
    assert_eq!(limiter.concurrency(), 7, "what was not used does not grow");
    for expected in [8, 9, 10] {
        advance(WINDOW).await;
        // The first report ends the window in which the limit was not reached; then the limit is reached.
        permit(&limiter).await.report(Outcome::Delivered);
        let mut held = Vec::new();
        for _ in 0..limiter.concurrency() {
            held.push(permit(&limiter).await);
        }
        assert!(is_blocked(&limiter).await);
        advance(WINDOW).await;
        held.pop().unwrap().report(Outcome::Delivered);
        assert_eq!(limiter.concurrency(), expected);
        drop(held);
        advance(WINDOW).await;
        permit(&limiter).await.report(Outcome::Delivered);
        advance(WINDOW).await;
        permit(&limiter).await.report(Outcome::Delivered);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_lets_one_probe_through_at_a_time_until_one_succeeds() {
    let limiter = limiter(8, 0.0);
    permit(&limiter).await.report(Outcome::Refused);
    assert!(limiter.is_paused());
    let started = Instant::now();
    let probe = permit(&limiter).await;
    assert_eq!(started.elapsed(), PROBE_INTERVAL);
    assert!(is_blocked(&limiter).await, "one probe only");
    probe.report(Outcome::Refused);
    assert!(is_blocked(&limiter).await);
    limiter.key_changed();
    permit(&limiter).await.report(Outcome::Delivered);
    assert!(!limiter.is_paused());
    assert!(!is_blocked(&limiter).await);
}

/// Whoever is refused for what is sent was most likely not refused for the key: the next may try at once.
#[tokio::test(start_paused = true)]
async fn after_a_probe_whose_records_are_refused_comes_the_next() {
    let limiter = limiter(8, 0.0);
    let early = permit(&limiter).await;
    advance(Duration::from_secs(1)).await;
    permit(&limiter).await.report(Outcome::Refused);
    for outcome in [Outcome::Failed(None), Outcome::SlowDown(None)] {
        permit(&limiter).await.report(outcome);
        assert!(is_blocked(&limiter).await, "{outcome:?}");
    }
    early.report(Outcome::Answered);
    let answered = Instant::now();
    for outcome in [Outcome::Answered, Outcome::Answered] {
        let probe = permit(&limiter).await;
        assert!(is_blocked(&limiter).await, "one at a time");
        probe.report(outcome);
        assert!(limiter.is_paused(), "the first was sent before the refused one");
    }
    // A refusal of the key begins the count anew.
    permit(&limiter).await.report(Outcome::Refused);
    assert!(answered.elapsed() < Duration::from_secs(1));
    for _ in 0..2 {
        permit(&limiter).await.report(Outcome::Answered);
        assert!(limiter.is_paused());
    }
    // The third says that it cannot be the key.
    permit(&limiter).await.report(Outcome::Answered);
    assert!(!limiter.is_paused() && !is_blocked(&limiter).await);
    assert_eq!(answered.elapsed().as_secs(), PROBE_INTERVAL.as_secs());
}

/// Else those that are suspected of being refused alone would use up the probes, one in 30 s.
#[tokio::test(start_paused = true)]
async fn after_a_probe_that_told_nothing_comes_the_next_soon() {
    let limiter = limiter(8, 0.0);
    permit(&limiter).await.report(Outcome::Refused);
    permit(&limiter).await.report(Outcome::Inconclusive);
    let reported = Instant::now();
    for n in 1..4 {
        let probe = permit(&limiter).await;
        assert_eq!(reported.elapsed().as_secs(), n);
        assert!(is_blocked(&limiter).await, "one at a time");
        probe.report(Outcome::Inconclusive);
    }
    assert!(limiter.is_paused());
}

#[tokio::test(start_paused = true)]
async fn a_delivery_from_before_a_pause_lets_one_try() {
    let limiter = limiter(8, 0.0);
    let early = permit(&limiter).await;
    advance(Duration::from_secs(1)).await;
    permit(&limiter).await.report(Outcome::Refused);
    early.report(Outcome::Delivered);
    assert!(limiter.is_paused());
    let reported = Instant::now();
    let probe = permit(&limiter).await;
    assert_eq!(reported.elapsed(), Duration::ZERO);
    assert!(is_blocked(&limiter).await, "one probe only");
    probe.report(Outcome::Delivered);
    assert!(!limiter.is_paused());
}

/// However late it is answered: it was sent after what was refused.
#[tokio::test(start_paused = true)]
async fn a_delivery_of_what_was_sent_after_the_refused_request_ends_the_pause() {
    let limiter = limiter(8, 0.0);
    let refused = permit(&limiter).await;
    advance(Duration::from_secs(1)).await;
    let later = permit(&limiter).await;
    advance(Duration::from_secs(1)).await;
    let last = permit(&limiter).await;
    refused.report(Outcome::Refused);
    last.report(Outcome::Refused);
    later.report(Outcome::Delivered);
    assert!(limiter.is_paused(), "a later one was refused too");
    permit(&limiter).await.report(Outcome::Delivered);
    assert!(!limiter.is_paused());
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_a_fresh_start_and_the_end_of_a_pause_is_none() {
    let limiter = limiter(8, 0.0);
    let then = async || {
        let now = Instant::now();
        advance(Duration::from_secs(1)).await;
        assert!(!limiter.evidence().has_begun_anew_since(now));
        now
    };
    let began = then().await;
    permit(&limiter).await.report(Outcome::Refused);
    advance(10 * PROBE_INTERVAL).await;
    permit(&limiter).await.report(Outcome::Delivered);
    assert!(!limiter.is_paused() && !limiter.evidence().has_begun_anew_since(began));
    let ended = then().await;
    limiter.key_changed();
    assert!(limiter.evidence().has_begun_anew_since(ended));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_wait_takes_nothing_and_permits_go_in_order() {
    let limiter = limiter(1, 0.0);
    let held = permit(&limiter).await;
    assert!(is_blocked(&limiter).await);
    let order = Arc::new(Mutex::new(Vec::new()));
    let tasks: Vec<_> = (0..4)
        .map(|n| {
            let (limiter, order) = (Arc::clone(&limiter), Arc::clone(&order));
            tokio::spawn(async move {
                let _permit = limiter.acquire().await;
                order.lock().unwrap().push(n);
                sleep(Duration::from_secs(1)).await;
            })
        })
        .collect();
    sleep(Duration::from_secs(1)).await;
    tasks[1].abort();
    drop(held);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(*order.lock().unwrap(), [0, 2, 3]);
    assert!(!is_blocked(&limiter).await, "nothing leaked");
}

#[tokio::test(start_paused = true)]
async fn scans_that_find_the_same_share_do_not_add_requests() {
    for rate in [0.1, 1.0, 10.0] {
        let limiter = limiter(100, rate);
        let scanned = Arc::clone(&limiter);
        let scans = tokio::spawn(async move {
            loop {
                scanned.set_share(4, 4);
                sleep(Duration::from_secs(2)).await;
            }
        });
        let (until, mut sent) = (Instant::now() + Duration::from_secs(100), 0.0);
        while let Ok(permit) = tokio::time::timeout_at(until, permit(&limiter)).await {
            drop(permit);
            sent += 1.0;
        }
        assert!(sent <= rate * 100.0 + 1.0, "{sent} requests in 100 s at {rate} a second");
        scans.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_refusal_of_the_old_key_does_not_pause_again() {
    let limiter = limiter(8, 0.0);
    let (old, first) = (permit(&limiter).await, permit(&limiter).await);
    first.report(Outcome::Refused);
    advance(Duration::from_secs(1)).await;
    limiter.key_changed();
    permit(&limiter).await.report(Outcome::Delivered);
    old.report(Outcome::Refused);
    assert!(!limiter.is_paused());
}
