//! What every implementation of a seam must do, as `backend.rs` says it. Each suite takes a fresh, empty store: a
//! stream of at least two shards, a table without leases, an empty queue.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shared::backend::{
    Checkpoint, DeadLetters, Lease, Leases, NewRecord, Position, Record, SequenceNumber, Shard, ShardId, ShardReader,
    Stream, WorkerId, hash,
};
use shared::dead_letter::{DeadLetter, Payload, SCHEMA_VERSION};
use tokio::time::{Instant, timeout};

/// Reads are waited for this long: a real stream shows a record some time after it was published.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn stream_contract(stream: &dyn Stream) {
    let shards = stream.shards().await.unwrap();
    assert!(shards.len() >= 2);
    assert_eq!(shards.iter().map(|shard| &shard.id).collect::<HashSet<_>>().len(), shards.len());
    assert_eq!(stream.shards().await.unwrap(), shards);
    assert_hashes_are_whole(&shards);

    at_the_tip_an_empty_page_comes_soon(stream, &shards).await;
    stream.publish(Vec::new()).await.unwrap();

    let first = records("first", 100);
    stream.publish(first.clone()).await.unwrap();
    let by_shard = read(stream, Position::TrimHorizon, first.len(), 1 << 20).await;
    assert_same_records(&first, &by_shard);
    assert_keys_keep_to_one_shard(&by_shard);
    assert_keys_lie_in_their_range(&shards, &by_shard);
    let small_pages = read(stream, Position::TrimHorizon, first.len(), 1).await;
    assert_eq!(small_pages, by_shard, "pages of one record skip nothing");

    for (shard, records) in &by_shard {
        let middle = &records[records.len() / 2];
        let tail = read_shard(stream, shard, Position::After(middle.sequence_number.clone()), 1).await;
        assert_eq!(tail.first(), records.get(records.len() / 2 + 1), "the record that follows");
        let itself = read_shard(stream, shard, Position::At(middle.sequence_number.clone()), 1).await;
        assert_eq!(itself.first(), Some(middle), "the record itself");
        let from_time = read_shard(stream, shard, Position::AtTime(middle.arrived_at), 1).await;
        assert!(from_time[0].sequence_number <= middle.sequence_number);
        assert!(from_time[0].arrived_at >= middle.arrived_at);
    }
    a_waiting_reader_gets_what_is_published(stream, &by_shard).await;
    nothing_is_seen_before_its_time(stream, &by_shard).await;
}

/// The shards of a stream that was never split or merged take every key, each key one shard.
fn assert_hashes_are_whole(shards: &[Shard]) {
    let mut ranges: Vec<_> = shards.iter().map(|shard| (*shard.hashes.start(), *shard.hashes.end())).collect();
    ranges.sort_unstable();
    assert_eq!((ranges[0].0, ranges[ranges.len() - 1].1), (0, u128::MAX));
    assert!(ranges.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0), "{ranges:?}");
    assert!(shards.iter().all(|shard| shard.parents.is_empty()));
}

async fn at_the_tip_an_empty_page_comes_soon(stream: &dyn Stream, shards: &[Shard]) {
    let mut reader = stream.reader(&shards[0].id, Position::TrimHorizon).await.unwrap();
    let page = timeout(Duration::from_secs(5), reader.next(1 << 20)).await.unwrap().unwrap();
    assert!(page.records.is_empty() && !page.is_end);
    assert_eq!(page.millis_behind_latest, 0);
}

async fn a_waiting_reader_gets_what_is_published(stream: &dyn Stream, by_shard: &BTreeMap<ShardId, Vec<Record>>) {
    let (shard, records) = by_shard.first_key_value().unwrap();
    let last = records.last().unwrap();
    let mut reader = stream.reader(shard, Position::After(last.sequence_number.clone())).await.unwrap();
    let new = NewRecord { partition_key: last.partition_key.clone(), data: Bytes::from_static(b"later") };
    let (page, published) = tokio::join!(reader.next(1 << 20), stream.publish(vec![new.clone()]));
    published.unwrap();
    let mut records = page.unwrap().records;
    let deadline = Instant::now() + PATIENCE;
    while records.is_empty() && Instant::now() < deadline {
        records = reader.next(1 << 20).await.unwrap().records;
    }
    assert_eq!(records.iter().map(|record| &record.data).collect::<Vec<_>>(), [&new.data]);
    assert!(records[0].sequence_number > last.sequence_number);
}

async fn nothing_is_seen_before_its_time(stream: &dyn Stream, by_shard: &BTreeMap<ShardId, Vec<Record>>) {
    let (shard, records) = by_shard.last_key_value().unwrap();
    let after_all = records.last().unwrap().arrived_at + 3_600_000;
    let mut reader = stream.reader(shard, Position::AtTime(after_all)).await.unwrap();
    assert!(reader.next(1 << 20).await.unwrap().records.is_empty());
}

/// Records of many keys, in an order of their own for each key, with payloads that are neither text nor tidy.
fn records(name: &str, count: usize) -> Vec<NewRecord> {
    let data =
        |n: usize| Bytes::from([name.as_bytes(), &[0, 0xff, b'\n'], &n.to_be_bytes(), &vec![7; n * 10]].concat());
    (0..count).map(|n| NewRecord { partition_key: format!("tenänt {}", n % 16), data: data(n) }).collect()
}

/// Reads all shards until `count` records have come, and once more each.
async fn read(stream: &dyn Stream, from: Position, count: usize, max_bytes: usize) -> BTreeMap<ShardId, Vec<Record>> {
    let mut readers = Vec::new();
    for shard in stream.shards().await.unwrap() {
        let reader = stream.reader(&shard.id, from.clone()).await.unwrap();
        readers.push((shard.id, reader));
    }
    let mut found: BTreeMap<ShardId, Vec<Record>> = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let complete = found.values().map(Vec::len).sum::<usize>() >= count;
        for (shard, reader) in &mut readers {
            let records = read_to_the_tip(reader.as_mut(), max_bytes).await;
            if !records.is_empty() {
                found.entry(shard.clone()).or_default().extend(records);
            }
        }
        if complete || Instant::now() > deadline {
            return found;
        }
    }
}

/// Pages until one is empty.
async fn read_to_the_tip(reader: &mut dyn ShardReader, max_bytes: usize) -> Vec<Record> {
    let mut records = Vec::new();
    loop {
        let page = reader.next(max_bytes).await.unwrap();
        assert!(page.millis_behind_latest >= 0);
        if page.records.is_empty() {
            return records;
        }
        let bytes: usize = page.records.iter().map(|record| record.data.len()).sum();
        assert!(page.records.len() == 1 || bytes <= max_bytes);
        records.extend(page.records);
    }
}

/// At least `count` records of one shard, or what there is.
pub async fn read_shard(stream: &dyn Stream, shard: &ShardId, from: Position, count: usize) -> Vec<Record> {
    let mut reader = stream.reader(shard, from).await.unwrap();
    let (mut records, mut empty_pages) = (Vec::new(), 0);
    while records.len() < count && empty_pages < 3 {
        let page = reader.next(1 << 20).await.unwrap();
        empty_pages += usize::from(page.records.is_empty());
        records.extend(page.records);
    }
    records
}

fn assert_same_records(published: &[NewRecord], by_shard: &BTreeMap<ShardId, Vec<Record>>) {
    for records in by_shard.values() {
        assert!(records.is_sorted_by(|a, b| a.sequence_number < b.sequence_number), "ascending sequence numbers");
        let in_order: Vec<_> = records.iter().map(|record| position(published, record)).collect();
        assert!(in_order.is_sorted(), "the order of publishing is kept in a shard");
    }
    assert_eq!(by_shard.values().map(Vec::len).sum::<usize>(), published.len(), "each once");
}

fn position(published: &[NewRecord], record: &Record) -> usize {
    let same = |new: &NewRecord| new.partition_key == record.partition_key && new.data == record.data;
    published.iter().position(same).expect("only what was published, byte for byte")
}

fn assert_keys_lie_in_their_range(shards: &[Shard], by_shard: &BTreeMap<ShardId, Vec<Record>>) {
    for shard in shards {
        let mut keys = by_shard.get(&shard.id).into_iter().flatten().map(|record| &record.partition_key);
        assert!(keys.all(|key| shard.hashes.contains(&hash(key))));
    }
}

fn assert_keys_keep_to_one_shard(by_shard: &BTreeMap<ShardId, Vec<Record>>) {
    let mut home = BTreeMap::new();
    for (shard, records) in by_shard {
        for record in records {
            assert_eq!(home.entry(&record.partition_key).or_insert(shard), &shard);
        }
    }
    assert!(by_shard.len() >= 2, "sixteen keys lie in more than one shard");
}

pub async fn leases_contract(leases: Arc<dyn Leases>) {
    assert!(leases.list().await.unwrap().is_empty());
    let (ada, bob) = (WorkerId("ada".to_owned()), WorkerId("bob".to_owned()));
    let start = Position::AtTime(1_700_000_000_123);
    leases.create(&shard("s-0", &["s-parent"]), Checkpoint::Start(start.clone())).await.unwrap();
    leases.create(&shard("s-0", &[]), Checkpoint::Start(Position::TrimHorizon)).await.unwrap();
    let free = one(&*leases, "s-0").await;
    assert_eq!(
        (&free.owner, &free.checkpoint),
        (&None, &Checkpoint::Start(start)),
        "the second create changed nothing"
    );

    // Claiming.
    let mine = leases.claim(&free, &ada).await.unwrap().unwrap();
    assert_eq!(mine, Lease { owner: Some(ada.clone()), counter: mine.counter, ..free.clone() });
    assert!(mine.counter > free.counter);
    assert_eq!(one(&*leases, "s-0").await, mine);
    assert_eq!(leases.claim(&free, &ada).await.unwrap(), Some(mine.clone()), "a repeated claim that had landed");
    assert_eq!(leases.claim(&free, &bob).await.unwrap(), None, "bob saw an old row");

    // Renewing.
    let settled = Lease { checkpoint: settled("9", 90), ..mine.clone() };
    let renewed = leases.renew(&settled).await.unwrap().unwrap();
    assert!(renewed.counter > mine.counter);
    assert_eq!(renewed, Lease { counter: renewed.counter, ..settled.clone() });
    assert_eq!(leases.renew(&settled).await.unwrap(), Some(renewed.clone()), "a repeated renewal that had landed");
    let further = Lease { checkpoint: self::settled("10", 100), ..renewed.clone() };
    let kept = leases.renew(&further).await.unwrap().unwrap();
    assert_eq!(leases.renew(&mine).await.unwrap(), None, "a row that is too old is not renewed");

    // Taking over.
    let stolen = leases.claim(&kept, &bob).await.unwrap().unwrap();
    assert_eq!((&stolen.owner, &stolen.checkpoint), (&Some(bob.clone()), &kept.checkpoint), "the checkpoint stays");
    assert_eq!(leases.renew(&kept).await.unwrap(), None, "ada has lost it");
    leases.ask(&kept, &WorkerId("eve".to_owned())).await.unwrap();
    leases.release(&kept).await.unwrap();
    assert_eq!(one(&*leases, "s-0").await, stolen, "ada cannot release what is bob's");

    // Asking.
    leases.ask(&stolen, &ada).await.unwrap();
    let wanted = Lease { wanted_by: Some(ada.clone()), ..stolen.clone() };
    assert_eq!(one(&*leases, "s-0").await, wanted, "a wish leaves the counter alone");
    let renewed = leases.renew(&stolen).await.unwrap().unwrap();
    assert_eq!(renewed, Lease { counter: renewed.counter, ..wanted }, "a renewal tells of it");

    // Releasing.
    let last = Lease { checkpoint: self::settled("11", 110), ..renewed };
    leases.release(&last).await.unwrap();
    leases.release(&last).await.unwrap();
    let released = one(&*leases, "s-0").await;
    assert_eq!(
        (&released.owner, &released.checkpoint, &released.wanted_by),
        (&None, &last.checkpoint, &Some(ada.clone())),
        "the wish stays until somebody claims it"
    );
    assert!(released.counter > stolen.counter);
    assert_eq!(leases.renew(&stolen).await.unwrap(), None);
    leases.ask(&released, &bob).await.unwrap();
    assert_eq!(one(&*leases, "s-0").await, released, "nobody has it, so nobody can be asked");

    // Resetting.
    let released = reset_contract(&*leases, released, &ada).await;
    let unknown = Lease { shard: ShardId("unknown".to_owned()), ..stolen };
    assert_eq!(leases.renew(&unknown).await.unwrap(), None);
    assert_eq!(leases.claim(&unknown, &ada).await.unwrap(), None);
    assert_eq!(leases.reset(&unknown, Checkpoint::Ended).await.unwrap(), None);
    leases.release(&unknown).await.unwrap();
    leases.ask(&unknown, &ada).await.unwrap();
    assert_eq!(leases.list().await.unwrap().len(), 1, "no write makes a row that was not there");
    one_of_many_claims_wins(&leases, released).await;
    every_checkpoint_is_kept(&*leases).await;
}

/// Answers the free row as it is at the end.
async fn reset_contract(leases: &dyn Leases, free: Lease, worker: &WorkerId) -> Lease {
    let held = leases.claim(&free, worker).await.unwrap().unwrap();
    assert_eq!(held.wanted_by, None, "a claim fulfils the wish");
    let rewound = Checkpoint::Rewound(1_600_000_000_000);
    assert_eq!(leases.reset(&free, rewound.clone()).await.unwrap(), None, "a row that is too old is not reset");
    let reset = leases.reset(&held, rewound.clone()).await.unwrap().unwrap();
    assert_eq!((&reset.owner, &reset.checkpoint), (&None, &rewound), "back, and taken from its owner");
    assert_eq!(leases.reset(&held, rewound).await.unwrap(), Some(reset.clone()), "a repeated reset that had landed");
    assert_eq!(leases.renew(&held).await.unwrap(), None, "the owner has lost it");

    let held = leases.claim(&reset, worker).await.unwrap().unwrap();
    let ended = Lease { checkpoint: Checkpoint::Ended, ..held };
    leases.release(&ended).await.unwrap();
    let ended = one(leases, "s-0").await;
    assert_eq!(ended.checkpoint, Checkpoint::Ended);
    leases.forget(&reset).await.unwrap();
    assert_eq!(one(leases, "s-0").await, ended, "a row that is too old is not forgotten");
    leases.forget(&ended).await.unwrap();
    leases.forget(&ended).await.unwrap();
    assert!(leases.list().await.unwrap().is_empty());

    leases.create(&shard("s-0", &[]), Checkpoint::Start(Position::TrimHorizon)).await.unwrap();
    one(leases, "s-0").await
}

async fn one_of_many_claims_wins(leases: &Arc<dyn Leases>, free: Lease) {
    let claims = (0..16).map(|n| {
        let (leases, free) = (Arc::clone(leases), free.clone());
        tokio::spawn(async move { leases.claim(&free, &WorkerId(format!("w-{n}"))).await.unwrap() })
    });
    let mut won = Vec::new();
    for claim in claims.collect::<Vec<_>>() {
        won.extend(claim.await.unwrap());
    }
    assert_eq!(won, [one(&**leases, "s-0").await]);
}

async fn every_checkpoint_is_kept(leases: &dyn Leases) {
    let huge = SequenceNumber("4".repeat(129));
    let starts = [Position::TrimHorizon, Position::AtTime(-5), Position::At(huge.clone()), Position::After(huge)];
    let others = [settled(&"7".repeat(56), 1_700_000_000_000), Checkpoint::Rewound(5), Checkpoint::Ended];
    for (n, checkpoint) in starts.map(Checkpoint::Start).into_iter().chain(others).enumerate() {
        let name = format!("s-{}", n + 1);
        leases.create(&shard(&name, &["s-parent", "s-adjacent"]), checkpoint.clone()).await.unwrap();
        assert_eq!(one(leases, &name).await.checkpoint, checkpoint);
    }
    assert_eq!(leases.list().await.unwrap().len(), 8);
}

pub fn shard(name: &str, parents: &[&str]) -> Shard {
    let id = |name: &str| ShardId(name.to_owned());
    Shard { id: id(name), parents: parents.iter().map(|name| id(name)).collect(), hashes: 0..=u128::MAX }
}

pub fn settled(sequence_number: &str, arrived_at: i64) -> Checkpoint {
    Checkpoint::Settled { sequence_number: SequenceNumber(sequence_number.to_owned()), arrived_at }
}

async fn one(leases: &dyn Leases, name: &str) -> Lease {
    leases.list().await.unwrap().into_iter().find(|lease| lease.shard.0 == name).unwrap()
}

pub async fn dead_letters_contract(queue: &dyn DeadLetters) {
    assert_eq!(queue.depth().await.unwrap(), 0);
    assert!(queue.receive(10).await.unwrap().is_empty());
    queue.send(&[]).await.unwrap();

    let sent: Vec<_> = (0..25).map(letter).collect();
    queue.send(&sent).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 25);

    let mut received = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while received.len() < sent.len() && Instant::now() < deadline {
        let some = queue.receive(10).await.unwrap();
        assert!(some.len() <= 10);
        received.extend(some);
    }
    let mut letters: Vec<_> = received.iter().map(|received| received.letter.clone()).collect();
    letters.sort_by_key(|letter| letter.dead_lettered_at);
    assert_eq!(letters, sent, "every letter once: the received ones are hidden");
    assert_eq!(queue.depth().await.unwrap(), 25, "hidden letters count");

    let (done, kept): (Vec<_>, Vec<_>) =
        received.iter().map(|received| received.receipt.clone()).enumerate().partition(|(n, _)| n % 5 < 4);
    assert_eq!((done.len(), kept.len()), (20, 5));
    let done: Vec<_> = done.into_iter().map(|(_, receipt)| receipt).collect();
    queue.delete(&done).await.unwrap();
    queue.delete(&done).await.unwrap();
    queue.delete(&[]).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 5);

    let kept: Vec<_> = kept.into_iter().map(|(_, receipt)| receipt).collect();
    assert!(queue.receive(10).await.unwrap().is_empty(), "they are hidden");
    queue.release(&[]).await.unwrap();
    queue.release(&kept).await.unwrap();
    let mut again = Vec::new();
    while again.len() < 5 && Instant::now() < deadline + PATIENCE {
        again.extend(queue.receive(10).await.unwrap());
    }
    let mut places: Vec<_> = again.iter().map(|received| received.letter.dead_lettered_at).collect();
    places.sort_unstable();
    assert_eq!(places, [4, 9, 14, 19, 24], "released letters come at once, each once");
    let deleted_or_unknown: Vec<_> = done.into_iter().take(12).chain(["nonsense".to_owned(), String::new()]).collect();
    queue.release(&deleted_or_unknown).await.unwrap();
    queue.release(&kept).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 5, "nothing comes back");
    assert!(!queue.name().is_empty() && !queue.name().contains(['/', ' ']), "it can be typed");
}

/// A letter that uses every field; some payloads are not text.
pub fn letter(n: i64) -> DeadLetter {
    let payload =
        if n % 2 == 0 { format!("{{\"n\": {n}, \"ä\": \"\\u0000\"}}").into_bytes() } else { vec![0xff, 0, n as u8] };
    DeadLetter {
        schema_version: SCHEMA_VERSION,
        reason: "not_json".to_owned(),
        detail: "why \"it\" failed\n".to_owned(),
        payload: Payload::Stored(payload.into()),
        partition_key: "tenant".to_owned(),
        stream: "stream".to_owned(),
        shard: "shard-00000".to_owned(),
        sequence_number: n.to_string(),
        arrived_at: 1_700_000_000_000 + n,
        tenant_id: Some("tenant".to_owned()),
        meter_api_name: Some("meter".to_owned()),
        unique_id: Some(format!("unique-{n}")),
        meter_time_in_millis: Some(n),
        redrive_count: 2,
        amberflo_status: Some(400),
        amberflo_answer: Some("no".to_owned()),
        worker: "worker".to_owned(),
        dead_lettered_at: n,
    }
}
