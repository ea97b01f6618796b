//! Workers as processes that share a Kinesis stream: several at once, killed, paused, drained, and on services that
//! fail. Every test ends with the sandbox's ledger, the dead letters in SQS, and the rows of the leases.

mod crash;
mod faults;
mod front;
mod metrics;
mod operator;
mod refusals;
mod resharding;
mod sharing;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use emulators::{Kinesis, Moto, Stream, create_queue, environment, skip, take_messages};
use serde_json::{Value, json};
use shared::backend::dynamodb::DynamoLeases;
use shared::backend::{Checkpoint, Lease, Leases as _, SequenceNumber, ShardId};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use tokio::time::sleep;

use crate::process::{Amberflo, KEY, Process, Site, eventually};

/// Fleets at once: more would only slow each other down.
static ROOM: Semaphore = Semaphore::const_new(3);
static EMULATORS: OnceCell<Result<(Kinesis, Moto), String>> = OnceCell::const_new();

/// A stream, a table, a queue and a sandbox of its own for every test, in emulators that all share.
struct Fleet {
    amberflo: Amberflo,
    stream: Stream,
    queue: String,
    kinesis: &'static str,
    moto: &'static str,
    table: String,
    failover: &'static str,
    leases: DynamoLeases,
    valid: RefCell<BTreeSet<u64>>,
    invalid: RefCell<Vec<String>>,
    letters: RefCell<Vec<Value>>,
    next: Cell<u64>,
    _room: SemaphorePermit<'static>,
}

/// A worker, and the directory of its logs.
struct Worker {
    process: Process,
    _site: Site,
}

/// A record of the stream.
struct Placed {
    shard: ShardId,
    number: SequenceNumber,
    data: String,
}

impl Fleet {
    /// `None` without the emulators.
    async fn start(name: &str, shards: i32, failover: &'static str) -> Option<Self> {
        let room = ROOM.acquire().await.unwrap();
        let both = async { Ok((Kinesis::start().await?, Moto::start().await?)) };
        let (kinesis, moto) = match EMULATORS.get_or_init(|| both).await {
            Ok((kinesis, moto)) => (&*kinesis.url, &*moto.url),
            Err(reason) => {
                skip(&format!("fleet-{name}"), reason);
                return None;
            }
        };
        let table = format!("leases-{name}");
        let leases = DynamoLeases::open(&emulators::configuration(moto), &table, true).await.unwrap();
        Some(Self {
            amberflo: Amberflo::start().await,
            stream: Stream::create(kinesis, name, shards).await,
            queue: create_queue(moto, name).await,
            kinesis,
            moto,
            table,
            failover,
            leases,
            valid: RefCell::default(),
            invalid: RefCell::default(),
            letters: RefCell::default(),
            next: Cell::new(0),
            _room: room,
        })
    }

    /// What a worker of this name is told.
    fn site(&self, name: &str) -> Site {
        let site = Site::new(&self.amberflo)
            .with("STREAM", &format!("kinesis:{}", self.stream.name))
            .with("WORKER_ID", name)
            .with("DEAD_LETTER_QUEUE", &self.queue)
            .with("LEASE_TABLE", &self.table)
            .with("FAILOVER_TIME", self.failover)
            .with("BATCH_MAX_EVENTS", "50");
        environment(self.kinesis, self.moto).iter().fold(site, |site, (name, value)| site.with(name, value))
    }

    async fn worker(&self, name: &str) -> Worker {
        Worker::start(self.site(name)).await
    }

    /// Puts so many new events.
    async fn put(&self, count: u64) -> Range<u64> {
        let first = self.next.replace(self.next.get() + count);
        let numbers = first..first + count;
        self.put_numbers(numbers.clone()).await;
        numbers
    }

    /// Puts events with these idempotency keys and no time but the envelope's: each call makes new envelopes.
    async fn put_numbers(&self, numbers: Range<u64>) {
        self.valid.borrow_mut().extend(numbers.clone());
        self.stream.put(numbers.map(|n| (tenant(n), envelope(n)))).await;
    }

    /// Puts new events until told to stop, some every now and then.
    async fn produce(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.put(10).await;
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Does something while events are put.
    async fn under_load<T>(&self, work: impl Future<Output = T>) -> T {
        let stop = AtomicBool::new(false);
        let work = async {
            let result = work.await;
            stop.store(true, Ordering::Relaxed);
            result
        };
        tokio::join!(self.produce(&stop), work).1
    }

    /// Puts records that are no usage events.
    async fn put_invalid(&self) {
        let records = [
            "not json".to_owned(),
            json!({"meterApiName": "calls", "meterValue": 1}).to_string(),
            json!({"tenantId": "t", "meterApiName": "calls", "meterValue": "many", "uniqueId": "x"}).to_string(),
        ];
        self.invalid.borrow_mut().extend(records.clone());
        self.stream.put(records.into_iter().enumerate().map(|(n, data)| (tenant(n as u64), data.into()))).await;
    }

    async fn rows(&self) -> BTreeMap<ShardId, Lease> {
        let rows = self.leases.list().await.unwrap();
        rows.into_iter().map(|lease| (lease.shard.clone(), lease)).collect()
    }

    /// How many leases of shards that have not ended each worker holds.
    async fn loads(&self) -> BTreeMap<String, usize> {
        let mut loads = BTreeMap::new();
        for lease in self.rows().await.into_values().filter(|lease| lease.checkpoint != Checkpoint::Ended) {
            *loads.entry(lease.owner.map_or("(free)".to_owned(), |owner| owner.0)).or_default() += 1;
        }
        loads
    }

    async fn until_loads(&self, wanted: &[(&str, usize)]) {
        let wanted = wanted.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect::<BTreeMap<_, _>>();
        let is_so = async || self.loads().await == wanted;
        eventually(&format!("the leases to be held as in {wanted:?}"), is_so).await;
    }

    async fn until_billed(&self, events: u64) {
        eventually("events to be billed", async || self.amberflo.sandbox.ledger().events >= events).await;
    }

    /// All records of the stream, shard by shard, and the shards that are closed.
    async fn records(&self) -> (Vec<Placed>, BTreeSet<ShardId>) {
        let (mut records, mut closed) = (Vec::new(), BTreeSet::new());
        for shard in self.stream.shards().await {
            let call = self.stream.client.get_shard_iterator().stream_name(&self.stream.name);
            let call = call.shard_id(&shard.shard_id).shard_iterator_type("TRIM_HORIZON".into());
            let mut iterator = call.send().await.unwrap().shard_iterator;
            let shard = ShardId(shard.shard_id);
            while let Some(current) = iterator {
                let page = self.stream.client.get_records().shard_iterator(current).send().await.unwrap();
                iterator = page.next_shard_iterator;
                if page.records.is_empty() && iterator.is_some() {
                    break;
                }
                records.extend(page.records.into_iter().map(|record| Placed {
                    shard: shard.clone(),
                    number: SequenceNumber(record.sequence_number),
                    data: String::from_utf8(record.data.into_inner()).unwrap(),
                }));
                if iterator.is_none() {
                    closed.insert(shard.clone());
                }
            }
        }
        (records, closed)
    }

    /// Every event is billed exactly once, every other record lies in the queue exactly once, and every row says that
    /// all is settled. Answers how many copies the sandbox absorbed.
    async fn reconcile(&self) -> u64 {
        let valid = self.valid.borrow().clone();
        self.until_billed(valid.len() as u64).await;
        let (records, closed) = self.records().await;
        let mut last: BTreeMap<&ShardId, &SequenceNumber> = BTreeMap::new();
        for record in &records {
            last.insert(&record.shard, &record.number);
        }
        let is_settled = async || {
            let rows = self.rows().await;
            self.stream.shards().await.into_iter().all(|shard| {
                let shard = ShardId(shard.shard_id);
                match (rows.get(&shard).map(|row| &row.checkpoint), last.get(&shard)) {
                    (Some(Checkpoint::Ended), _) => closed.contains(&shard),
                    (Some(Checkpoint::Settled { sequence_number, .. }), Some(last)) => sequence_number == *last,
                    (row, last) => row.is_some() && last.is_none() && !closed.contains(&shard),
                }
            })
        };
        eventually("every row to say that all is settled", is_settled).await;

        self.amberflo.assert_billed_once(valid.len() as u64);
        let billed = self.amberflo.sandbox.records().into_iter();
        let billed: BTreeSet<u64> = billed.map(|record| record.unique_id.unwrap().parse().unwrap()).collect();
        assert_eq!(billed, valid);
        let mut payloads: Vec<String> =
            self.take_letters().await.iter().map(|letter| letter["payload"].as_str().unwrap().to_owned()).collect();
        let mut invalid = self.invalid.borrow().clone();
        payloads.sort();
        invalid.sort();
        assert_eq!(payloads, invalid);
        self.amberflo.sandbox.ledger().absorbed_copies
    }

    /// Takes what lies in the queue; answers all that was ever taken.
    async fn take_letters(&self) -> Vec<Value> {
        let messages = take_messages(self.moto, &self.queue).await;
        let letters = messages.iter().map(|message| serde_json::from_str(message.body().unwrap()).unwrap());
        self.letters.borrow_mut().extend(letters);
        self.letters.borrow().clone()
    }

    /// As [`reconcile`](Self::reconcile), where workers that went well send nothing twice.
    async fn reconcile_without_copies(&self, workers: &[Worker]) {
        let absorbed = self.reconcile().await;
        let logs: Vec<String> = workers.iter().map(|worker| worker.logs()).collect();
        assert_eq!(
            absorbed,
            0,
            "copies were sent of {:?}\n{}",
            self.amberflo.sandbox.absorbed_copies(),
            logs.join("\n")
        );
    }

    /// The copies that were absorbed are only of events behind the checkpoints of these rows, which one worker had
    /// when it went; and no more than one of each.
    async fn assert_absorbed_only_behind(&self, rows: &BTreeMap<ShardId, Lease>, worker: &str) {
        let (records, _) = self.records().await;
        for (id, copies) in self.amberflo.sandbox.absorbed_copies() {
            assert_eq!(copies, 1, "{id} was sent {copies} times more");
            let number: u64 = id.parse().unwrap();
            let record = records.iter().find(|record| number_of(&record.data) == Some(number)).unwrap();
            let row = &rows[&record.shard];
            assert_eq!(row.owner.as_ref().map(|owner| &*owner.0), Some(worker), "{id} of {}", row.shard);
            if let Checkpoint::Settled { sequence_number, .. } = &row.checkpoint {
                assert!(record.number > *sequence_number, "{id} was sent again although the checkpoint had passed it");
            }
        }
    }
}

impl Worker {
    async fn start(site: Site) -> Self {
        Self { process: site.start().await, _site: site }
    }

    async fn drain(self) -> String {
        self.process.drain().await
    }

    async fn lease_events(&self, event: &str) -> f64 {
        self.metrics().await.sum(&format!("ingest_lease_events_total{{event=\"{event}\"}}"))
    }
}

impl Deref for Worker {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Worker {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn tenant(n: u64) -> String {
    format!("tenant-{}", n % 23)
}

/// What EventBridge puts on the stream: every call makes another envelope of the same event.
fn envelope(n: u64) -> Bytes {
    #[expect(clippy::disallowed_methods, reason = "the producers of these tests have a clock of their own")]
    let time = jiff::Timestamp::try_from(std::time::SystemTime::now()).unwrap();
    let envelope = json!({
        "version": "0",
        "id": uuid::Uuid::new_v4().to_string(),
        "detail-type": "ingestUsage",
        "source": "app",
        "account": "123456789012",
        "time": time.to_string(),
        "region": emulators::REGION,
        "resources": [],
        "detail": {"tenantId": tenant(n), "meterApiName": "calls", "meterValue": n, "uniqueId": n.to_string()},
    });
    envelope.to_string().into()
}

/// The number of an event.
fn number_of(data: &str) -> Option<u64> {
    serde_json::from_str::<Value>(data).ok()?["detail"]["uniqueId"].as_str()?.parse().ok()
}

/// Answers after a while, so that requests are under way when something happens.
fn slow(millis: Range<u64>) -> amberflo_sandbox::Faults {
    let [min, max] = [millis.start, millis.end].map(Duration::from_millis);
    amberflo_sandbox::Faults {
        slow: amberflo_sandbox::Trigger::rate(1.0),
        latency: amberflo_sandbox::Latency { min, max },
        ..amberflo_sandbox::Faults::default()
    }
}
