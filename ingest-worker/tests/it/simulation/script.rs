//! What happens in a simulation: seeded operations on producers, Amberflo, the seams and the workers.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use amberflo_sandbox::{Faults, Latency, Poison, Trigger};
use bytes::Bytes;
use fastrand::Rng;
use http::Request;
use ingest_worker::bus;
use ingest_worker::rewind::rewind;
use serde_json::json;
use shared::backend::{Checkpoint, Lease, Leases as _, NewRecord, Position, Stream as _, WorkerId};
use shared::clock::Clock;
use shared::redrive;
use tokio::time::{Instant, advance, sleep};
use tower::ServiceExt as _;

use super::faulty::{Rates, World};
use super::stream::SimulatedStream;
use super::worker::{DEDUP_WINDOW, FAILOVER, SimulatedWorker};

/// Copies are put within this time, so that the window must catch them.
const COPIES_WITHIN: Duration = Duration::from_secs(DEDUP_WINDOW.as_secs() * 2 / 3);

/// An event as its producer remembers it.
struct Put {
    at: Instant,
    number: u32,
    detail: serde_json::Value,
}

/// The play: the world, its workers, and what the producers remember.
pub struct Play {
    pub world: Arc<World>,
    pub rng: Rng,
    pub clock: Clock,
    pub workers: Vec<SimulatedWorker>,
    puts: Vec<Put>,
    next_number: u32,
    thefts: u32,
    is_faulty: bool,
    /// No copy may reach Amberflo in the whole play.
    is_calm: bool,
}

impl Play {
    pub fn new(world: Arc<World>, mut rng: Rng, clock: Clock) -> Self {
        let is_calm = rng.u32(0..5) == 0;
        let mut play = Self {
            world,
            rng,
            clock,
            workers: Vec::new(),
            puts: Vec::new(),
            next_number: 0,
            thefts: 0,
            is_faulty: false,
            is_calm,
        };
        for _ in 0..play.rng.usize(1..=2) {
            play.start_worker();
        }
        play
    }

    /// One operation, and some time after it.
    pub async fn step(&mut self) {
        match self.rng.u32(0..100) {
            operation if self.is_calm => self.calm_step(operation).await,
            0..35 => self.put_events().await,
            35..50 => self.put_copies().await,
            50..54 => self.put_conflict().await,
            54..62 => self.put_malformed().await,
            62..72 => self.set_faults(),
            72..78 => {
                self.world.sandbox.set_faults(Faults::default()).unwrap();
                self.is_faulty = false;
            }
            78..83 => self.break_seams(),
            83..86 => self.kill_worker(),
            86..89 => self.reshard().await,
            89..91 => self.steal_leases().await,
            91..94 => self.freeze().await,
            94..96 => self.drain_worker().await,
            96..97 => self.redrive().await,
            97..98 => self.rewind().await,
            98..99 => self.start_another_worker(),
            _ => _ = self.world.store.prune().await.unwrap(),
        }
        let millis = match self.rng.u32(0..10) {
            0..6 => self.rng.u64(1..500),
            6..9 => self.rng.u64(500..4_000),
            _ => self.rng.u64(4_000..25_000),
        };
        sleep(Duration::from_millis(millis)).await;
        self.bury_and_replace().await;
    }

    /// Nothing fails, but workers come and go, and shards too.
    async fn calm_step(&mut self, operation: u32) {
        match operation {
            0..55 => self.put_events().await,
            55..65 => self.put_copies().await,
            65..70 => self.put_malformed().await,
            70..85 => self.start_another_worker(),
            85..93 => self.drain_worker().await,
            _ => self.reshard().await,
        }
    }

    /// All faults end, a worker runs, and everything that was put is settled.
    pub async fn settle(&mut self) {
        self.world.sandbox.set_faults(Faults::default()).unwrap();
        *self.world.rates.lock().unwrap() = Rates::default();
        let deadline = Instant::now() + Duration::from_secs(20 * 60);
        while !self.is_settled().await {
            assert!(Instant::now() < deadline, "not settled after 20 minutes without faults");
            sleep(Duration::from_millis(500)).await;
            self.bury_and_replace().await;
        }
    }

    /// Redrives whatever can be, and waits until it is settled again.
    pub async fn redrive_all(&mut self) {
        // Letters that an earlier redrive received are hidden for a while.
        sleep(Duration::from_secs(61)).await;
        self.redrive().await;
        self.settle().await;
    }

    /// Stops all workers as a deployment does.
    pub async fn stop(&mut self) {
        for worker in std::mem::take(&mut self.workers) {
            worker.drain().await;
        }
    }

    fn start_worker(&mut self) {
        let worker = SimulatedWorker::start(&self.world, &mut self.rng, self.clock, !self.is_calm);
        self.workers.push(worker);
    }

    /// It has no lease: it asks the others for some.
    fn start_another_worker(&mut self) {
        if self.workers.len() < 4 {
            self.start_worker();
            self.note_hand_over();
        }
    }

    /// Leases change hands without anything being sent twice, unless something fails meanwhile.
    fn note_hand_over(&self) {
        let rates = *self.world.rates.lock().unwrap();
        if self.is_faulty || rates.leases > 0.0 || rates.dead_letters > 0.0 {
            self.note_overlap(false);
        }
    }

    /// Once, or several times in a row as when the number of shards is changed.
    async fn reshard(&mut self) {
        let SimulatedStream::Resharding(stream) = self.world.stream.clone() else { return };
        for _ in 0..self.rng.choice([1, 1, 1, 3, 6]).unwrap_or(1) {
            stream.reshard(&mut self.rng);
            sleep(Duration::from_millis(self.rng.u64(0..2_000))).await;
        }
    }

    /// An operator has some of the past processed again.
    async fn rewind(&mut self) {
        self.note_overlap(true);
        self.world.truth.lock().unwrap().was_rewound = true;
        let to = self.clock.now() - self.rng.i64(0..100_000);
        rewind(&self.world.store, &self.world.stream, to, None).await.unwrap();
    }

    async fn bury_and_replace(&mut self) {
        self.workers.retain(|worker| !worker.is_dead());
        if self.workers.is_empty() {
            sleep(Duration::from_millis(self.rng.u64(1..3_000))).await;
            self.start_worker();
        }
    }

    async fn put_events(&mut self) {
        let count = self.rng.usize(1..=25);
        let mut details = Vec::new();
        for _ in 0..count {
            let number = self.next_number;
            self.next_number += 1;
            let value = self.rng.i64(1..1000);
            let mut detail = json!({
                "tenantId": format!("tenant-{}", self.rng.u32(0..6)),
                "meterApiName": format!("meter-{}", self.rng.u32(0..3)),
                "meterValue": value,
                "n": number,
            });
            let has_own_id = self.rng.u32(0..5) > 0;
            if has_own_id {
                let prefix = if self.rng.u32(0..20) == 0 { "poison-" } else { "" };
                detail["uniqueId"] = json!(format!("{prefix}{number}"));
            }
            if self.rng.bool() {
                detail["meterTimeInMillis"] = json!(self.clock.now() - self.rng.i64(0..100_000));
            }
            self.world.truth.lock().unwrap().events.insert(number, vec![value]);
            if has_own_id {
                self.puts.push(Put { at: Instant::now(), number, detail: detail.clone() });
            }
            details.push(detail);
        }
        for chunk in details.chunks(10) {
            self.put(chunk).await;
        }
    }

    /// Producers that did not see the answer put the same event again: new envelope id, new envelope time.
    async fn put_copies(&mut self) {
        for _ in 0..self.rng.usize(1..=5) {
            if let Some(index) = self.recent_put() {
                let detail = self.puts[index].detail.clone();
                self.put(&[detail]).await;
            }
        }
    }

    async fn put_conflict(&mut self) {
        if let Some(index) = self.recent_put() {
            let put = &self.puts[index];
            let (number, mut detail) = (put.number, put.detail.clone());
            let value = self.rng.i64(1000..1_000_000);
            detail["meterValue"] = json!(value);
            self.world.truth.lock().unwrap().events.get_mut(&number).unwrap().push(value);
            self.put(&[detail]).await;
        }
    }

    fn recent_put(&mut self) -> Option<usize> {
        let first = self.puts.partition_point(|put| put.at.elapsed() > COPIES_WITHIN);
        (first < self.puts.len()).then(|| self.rng.usize(first..self.puts.len()))
    }

    async fn put(&self, details: &[serde_json::Value]) {
        let detail_type = if fastrand::bool() { "ingestUsage" } else { "sbt_aws_ingestUsage" };
        let entries: Vec<_> = details
            .iter()
            .map(|detail| json!({"Source": "simulation", "DetailType": detail_type, "Detail": detail.to_string()}))
            .collect();
        let request = Request::post("/")
            .header("x-amz-target", "AWSEvents.PutEvents")
            .header("content-type", "application/x-amz-json-1.1")
            .body(axum::body::Body::from(json!({"Entries": entries}).to_string()))
            .unwrap();
        let router = bus::router(Arc::new(self.world.stream.clone()), self.clock);
        let answer = router.oneshot(request).await.unwrap();
        assert_eq!(answer.status(), 200);
    }

    async fn put_malformed(&mut self) {
        let id = self.rng.u64(..);
        let (payload, reason) = match self.rng.u32(0..8) {
            0 => (format!("not json {id}"), "not_json"),
            1 => (format!("[{id}]"), "not_an_object"),
            2 => (format!(r#"{{"tenantId":"t","meterApiName":"m","bad":{id}}}"#), "missing_field"),
            3 => (
                format!(r#"{{"tenantId":"t","meterApiName":"m","meterValue":"NaN","bad":{id}}}"#),
                "invalid_meter_value",
            ),
            4 => (format!(r#"{{"detail-type":"other","detail":{{"bad":{id}}}}}"#), "unknown_detail_type"),
            5 => (
                format!(r#"{{"tenantId":"t","meterApiName":"m","meterValue":1,"meterTimeInMillis":5,"bad":{id}}}"#),
                "too_old",
            ),
            6 => (
                format!(r#"{{"tenantId":"t","meterApiName":"m","meterValue":1,"a":1,"a":2,"bad":{id}}}"#),
                "duplicate_name",
            ),
            _ => (String::new(), "empty"),
        };
        let data = Bytes::from(payload);
        self.world.truth.lock().unwrap().malformed.insert(data.clone(), reason);
        let partition_key = format!("tenant-{}", self.rng.u32(0..6));
        self.world.stream.publish(vec![NewRecord { partition_key, data }]).await.unwrap();
    }

    fn set_faults(&mut self) {
        let rng = &mut self.rng;
        let mut some = |rate: f64| if rng.u32(0..3) == 0 { Trigger::rate(rate) } else { Trigger::NEVER };
        let mut faults = Faults {
            throttle: some(0.3),
            fail_before: some(0.4),
            fail_after: some(0.4),
            hang_before: some(0.1),
            hang_after: some(0.1),
            partial_answer: some(0.2),
            redirect: some(0.02),
            html: some(0.02),
            ..Faults::default()
        };
        faults.seed = self.rng.u64(..);
        faults.retry_after = self.rng.bool().then(|| Duration::from_secs(self.rng.u64(0..20)));
        if self.rng.u32(0..3) == 0 {
            faults.slow = Trigger::rate(0.5);
            faults.latency = Latency { min: Duration::from_millis(5), max: Duration::from_secs(4) };
        }
        if self.rng.u32(0..3) == 0 {
            let status = self.rng.choice([400, 400, 422, 413, 403]).unwrap();
            faults.poison =
                vec![Poison { status, unique_id_prefixes: vec!["poison-".to_owned()], ..Poison::default() }];
        }
        if self.rng.u32(0..6) == 0 {
            faults.revoked_keys = ["sandbox-key".to_owned()].into();
        }
        if self.rng.u32(0..4) == 0 {
            faults.max_records = NonZeroUsize::new(self.rng.usize(1..20));
        }
        let ambiguous = [&faults.fail_after, &faults.hang_after, &faults.partial_answer, &faults.slow];
        if ambiguous.iter().any(|trigger| **trigger != Trigger::NEVER) {
            self.world.truth.lock().unwrap().is_ambiguous = true;
        }
        self.world.sandbox.set_faults(faults).unwrap();
        self.is_faulty = true;
        if self.workers.len() > 1 {
            self.note_hand_over();
        }
    }

    fn break_seams(&mut self) {
        let rate = |rng: &mut Rng| if rng.u32(0..3) == 0 { 0.5 } else { 0.0 };
        let rates =
            Rates { stream: rate(&mut self.rng), leases: rate(&mut self.rng), dead_letters: rate(&mut self.rng) };
        if rates.leases > 0.0 {
            self.note_overlap(false);
        }
        *self.world.rates.lock().unwrap() = rates;
    }

    /// SIGKILL, now or at some call that the worker is about to make.
    fn kill_worker(&mut self) {
        self.note_overlap(false);
        let worker = self.rng.usize(0..self.workers.len());
        match self.rng.u32(0..40) {
            0 => self.workers[worker].kill(),
            calls => self.workers[worker].life.die_after(calls),
        }
    }

    /// Another worker takes every lease although none has expired, does nothing, and gives them up after a while.
    async fn steal_leases(&mut self) {
        self.note_overlap(true);
        let stolen = self.steal().await;
        sleep(Duration::from_millis(self.rng.u64(0..8_000))).await;
        for lease in stolen {
            self.world.store.release(&lease).await.unwrap();
        }
    }

    /// SIGSTOP for twice the failover time, while another worker takes the leases; then SIGCONT.
    async fn freeze(&mut self) {
        self.note_overlap(true);
        let stolen = self.steal().await;
        for worker in &self.workers {
            worker.life.is_disowned.store(true, Ordering::Relaxed);
        }
        advance(2 * FAILOVER).await;
        sleep(Duration::from_millis(self.rng.u64(0..3_000))).await;
        for lease in stolen {
            self.world.store.release(&lease).await.unwrap();
        }
    }

    async fn steal(&mut self) -> Vec<Lease> {
        self.thefts += 1;
        let thief = WorkerId(format!("thief-{}", self.thefts));
        let mut stolen = Vec::new();
        for lease in self.world.store.list().await.unwrap() {
            stolen.extend(self.world.store.claim(&lease, &thief).await.unwrap());
        }
        stolen
    }

    async fn drain_worker(&mut self) {
        self.note_overlap(false);
        let worker = self.rng.usize(0..self.workers.len());
        self.workers.remove(worker).drain().await;
        if self.workers.is_empty() {
            self.start_worker();
        }
    }

    async fn redrive(&mut self) {
        let before = self.world.letters().await;
        self.world.truth.lock().unwrap().redriven_letters = before;
        redrive::run(&self.world.store, &self.world.stream, &redrive::Options::all(self.clock.now())).await.unwrap();
        // A letter redriven while Amberflo still refuses it comes back, and what was billed meanwhile stays billed.
        self.world.truth.lock().unwrap().had_restart = true;
    }

    fn note_overlap(&self, had_overlap: bool) {
        if self.is_calm {
            return;
        }
        let mut truth = self.world.truth.lock().unwrap();
        truth.is_ambiguous = true;
        truth.had_restart = true;
        truth.had_overlap |= had_overlap;
    }

    /// Whether every shard's checkpoint is at its end.
    async fn is_settled(&self) -> bool {
        let (store, stream) = (&self.world.store, &self.world.stream);
        let leases = store.list().await.unwrap();
        if leases.len() < stream.shards().await.unwrap().len() {
            return false;
        }
        for lease in leases {
            let from = match &lease.checkpoint {
                Checkpoint::Start(position) => position.clone(),
                Checkpoint::Settled { sequence_number, .. } => Position::After(sequence_number.clone()),
                Checkpoint::Rewound(time) => Position::AtTime(*time),
                Checkpoint::Ended => continue,
            };
            let page = stream.reader(&lease.shard, from).await.unwrap().next(1).await.unwrap();
            if page.is_end || !page.records.is_empty() {
                return false;
            }
        }
        true
    }
}
