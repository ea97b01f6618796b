use std::collections::HashMap;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use shared::backend::{NewRecord, Record, SequenceNumber, Shard};

use super::*;

type Script = Vec<Result<Page, BackendError>>;

/// A stream whose shards answer what is written for them, one call after the other; `opened` tells from where.
#[derive(Clone, Default)]
struct Scripted {
    answers: Arc<Mutex<HashMap<ShardId, Script>>>,
    opened: Arc<Mutex<Vec<(String, Position)>>>,
}

fn id(name: &str) -> ShardId {
    ShardId(name.to_owned())
}

fn page(arrivals: &[i64], is_end: bool) -> Result<Page, BackendError> {
    let record = |&arrived_at: &i64| Record {
        data: Bytes::from_static(b"{}"),
        partition_key: "t".to_owned(),
        sequence_number: SequenceNumber(arrived_at.to_string()),
        arrived_at,
    };
    Ok(Page { records: arrivals.iter().map(record).collect(), millis_behind_latest: 1, is_end })
}

fn gone() -> Result<Page, BackendError> {
    Err(BackendError::Gone("there is no such shard".to_owned()))
}

impl Scripted {
    fn with(self, shard: &str, mut script: Script) -> Self {
        script.reverse();
        self.answers.lock().unwrap().insert(id(shard), script);
        self
    }
}

#[async_trait]
impl Stream for Scripted {
    async fn shards(&self) -> Result<Vec<Shard>, BackendError> {
        Ok(Vec::new())
    }

    async fn reader(&self, shard: &ShardId, from: Position) -> Result<Box<dyn ShardReader>, BackendError> {
        self.opened.lock().unwrap().push((shard.to_string(), from));
        Ok(Box::new(ScriptedReader(self.clone(), shard.clone())))
    }

    async fn publish(&self, _: Vec<NewRecord>) -> Result<(), BackendError> {
        Ok(())
    }
}

struct ScriptedReader(Scripted, ShardId);

#[async_trait]
impl ShardReader for ScriptedReader {
    async fn next(&mut self, _: usize) -> Result<Page, BackendError> {
        let answer = self.0.answers.lock().unwrap().get_mut(&self.1).and_then(Vec::pop);
        answer.expect("no more calls than there are answers")
    }
}

/// What comes until the end: whether it is an ancestor's, and the arrivals. Each ancestor is the parent of the next.
async fn read(stream: &Scripted, ancestors: &[&str], ancestors_since: Since) -> Vec<(bool, Vec<i64>)> {
    let shard = |(index, name): (usize, &&str)| Shard {
        id: id(name),
        parents: index.checked_sub(1).map(|before| id(ancestors[before])).into_iter().collect(),
        hashes: 0..=u128::MAX,
    };
    let lineage = Lineage {
        id: id("child"),
        hashes: 0..=u128::MAX,
        parents: ancestors.last().map(|name| id(name)).into_iter().collect(),
        ancestors: ancestors.iter().enumerate().map(shard).collect(),
    };
    let reading = Reading { lineage, from: Position::TrimHorizon, ancestors_since };
    let mut pages = Pages::start(Arc::new(stream.clone()), reading, Buffer::new(1 << 20));
    let mut found = Vec::new();
    while let Some(page) = pages.next().await {
        found.push((page.is_of_ancestor, page.page.records.iter().map(|record| record.arrived_at).collect()));
        if page.page.is_end {
            break;
        }
    }
    found
}

fn opened(stream: &Scripted) -> Vec<(String, Position)> {
    stream.opened.lock().unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn an_error_is_tried_again_and_skips_nothing() {
    let failing = || Err(BackendError::Unavailable("for a moment".to_owned()));
    let stream = Scripted::default()
        .with("child", vec![failing(), page(&[1], false), failing(), gone(), page(&[2], false), page(&[], true)]);
    let read = read(&stream, &[], Since::BeforeFirst(Duration::ZERO)).await;
    assert_eq!(read, [(false, vec![1]), (false, vec![2]), (false, vec![])]);
}

#[tokio::test(start_paused = true)]
async fn the_tails_of_ancestors_come_first() {
    let stream = Scripted::default()
        .with("grandparent", vec![page(&[1], true)])
        .with("parent", vec![page(&[2], false), page(&[], false), page(&[2], false), page(&[3], true)])
        .with("child", vec![page(&[4], false), page(&[4], false), page(&[], true)]);
    let read = read(&stream, &["grandparent", "parent"], Since::Time(1)).await;
    let expected = [(true, vec![1]), (true, vec![]), (true, vec![2]), (true, vec![3]), (false, vec![4])];
    assert_eq!(read[..5], expected);
    let tails = [("grandparent".to_owned(), Position::AtTime(1)), ("parent".to_owned(), Position::AtTime(1))];
    assert_eq!(opened(&stream)[2..4], tails, "after a look at where the child and its parent began");
}

#[tokio::test(start_paused = true)]
async fn ancestors_are_left_out_where_the_window_does_not_reach() {
    let stream = Scripted::default()
        .with("parent", vec![page(&[100], false), page(&[600], true)])
        .with("child", vec![page(&[700], false), page(&[700], false), page(&[], true)]);
    let found = read(&stream, &["grandparent", "parent"], Since::Time(500)).await;
    assert_eq!(found, [(true, vec![600]), (false, vec![700]), (false, vec![])]);

    let stream = Scripted::default().with("child", vec![page(&[100], false), page(&[700], true)]);
    let found = read(&stream, &["grandparent", "parent"], Since::Time(500)).await;
    assert_eq!(found, [(false, vec![700])], "the child alone holds the window");
}

/// The window reaches back from the child's first record, which is known only when it comes.
#[tokio::test(start_paused = true)]
async fn a_new_child_waits_for_its_first_record_and_then_reads_its_parents() {
    let first = || page(&[100_000], false);
    let stream = Scripted::default()
        .with("parent", vec![page(&[5_000], false), page(&[99_000], true)])
        .with("child", vec![page(&[], false), first(), first(), first(), page(&[], true)]);
    let read = read(&stream, &["parent"], Since::BeforeFirst(Duration::from_secs(90))).await;
    let expected =
        [(false, vec![]), (true, vec![5_000]), (true, vec![99_000]), (false, vec![100_000]), (false, vec![])];
    assert_eq!(read, expected);
    let opened = opened(&stream);
    assert_eq!(opened[2], ("parent".to_owned(), Position::AtTime(10_000)));
    assert_eq!(opened[3], ("child".to_owned(), Position::TrimHorizon), "from its beginning again");
}

#[tokio::test(start_paused = true)]
async fn an_ancestor_that_is_forgotten_meanwhile_is_passed_over() {
    let stream =
        Scripted::default().with("parent", vec![gone()]).with("child", vec![page(&[700], false), page(&[700], true)]);
    let found = read(&stream, &["parent"], Since::Time(500)).await;
    assert_eq!(found, [(false, vec![700])]);
}

/// Of what came since the last read nothing is left for the next, and an idle shard asks for little.
#[test]
fn at_the_tip_a_page_has_room_for_twice_what_came_last() {
    let buffer = Buffer::new(64 << 20);
    let mut ahead = Ahead::unknown(&buffer);
    let mut after = |bytes: usize, millis_behind_latest| {
        let record = Record {
            data: vec![b' '; bytes].into(),
            partition_key: "t".to_owned(),
            sequence_number: SequenceNumber("1".to_owned()),
            arrived_at: 0,
        };
        ahead.learn(&Page { records: vec![record], millis_behind_latest, is_end: false }, &buffer);
        ahead.page_bytes
    };
    assert_eq!(after(300_000, 0), 600_000);
    assert_eq!(after(150_000, 0), 300_000);
    assert_eq!(after(300_000, 50), MAX_PAGE_BYTES, "more is there");
    assert_eq!(after(50_000, 0), 700_000, "both pages came since the tip");
    assert_eq!(after(900_000, 0), MAX_PAGE_BYTES);
    assert_eq!(after(2, 0), MAX_PAGE_BYTES / 2, "one read that finds little makes no idle shard");
    for _ in 0..5 {
        after(2, 0);
    }
    assert_eq!(after(2, 0), MIN_PAGE_BYTES);
}
