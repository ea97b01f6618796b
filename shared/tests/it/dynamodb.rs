//! Leases in DynamoDB, on the emulator `moto`. Where it is not installed a test says so and passes, except with
//! `CI=true`.

mod answers;
mod opening;
mod proxy;
mod rows;

use std::collections::HashMap;
use std::sync::Arc;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use emulators::Moto;
use shared::backend::dynamodb::DynamoLeases;
use shared::backend::{Checkpoint, Lease, Leases, Position, SequenceNumber, ShardId, WorkerId};
use tokio::sync::OnceCell;

use crate::contract::{leases_contract, settled, shard};
use proxy::Proxy;

type Item = HashMap<String, AttributeValue>;

/// All tests use one emulator, each a table of its own; it ends with this process.
static MOTO: OnceCell<Result<Moto, String>> = OnceCell::const_new();

/// A table that is there for one test.
struct Table {
    /// The address of the emulator.
    url: String,
    name: String,
    /// Past all that is tested.
    client: Client,
    leases: DynamoLeases,
}

/// The address of the emulator; `None`: it is not installed, and that has been said.
async fn moto(suite: &str) -> Option<String> {
    match MOTO.get_or_init(Moto::start).await {
        Ok(moto) => Some(moto.url.clone()),
        Err(reason) => {
            emulators::skip(&format!("dynamodb-{suite}"), reason);
            None
        }
    }
}

/// An empty table named after the test.
async fn table(test: &str) -> Option<Table> {
    let url = moto(test).await?;
    let configuration = emulators::configuration(&url);
    let leases = DynamoLeases::open(&configuration, test, true).await.unwrap();
    Some(Table { url, name: test.to_owned(), client: Client::new(&configuration), leases })
}

/// A table behind a proxy.
async fn behind_proxy(test: &str) -> Option<(Table, Proxy)> {
    let mut table = table(test).await?;
    let proxy = Proxy::start(&table.url).await;
    table.leases = DynamoLeases::open(&emulators::configuration(&proxy.url), &table.name, false).await.unwrap();
    Some((table, proxy))
}

impl Table {
    /// The row as it lies there.
    async fn row(&self, key: &str) -> Option<Item> {
        let request = self.client.get_item().table_name(&self.name).key("leaseKey", text(key)).consistent_read(true);
        request.send().await.unwrap().item
    }

    async fn put(&self, item: Item) {
        self.client.put_item().table_name(&self.name).set_item(Some(item)).send().await.unwrap();
    }

    async fn delete(&self, key: &str) {
        self.client.delete_item().table_name(&self.name).key("leaseKey", text(key)).send().await.unwrap();
    }

    /// Adds a lease that starts at the oldest record.
    async fn create(&self, name: &str) -> Lease {
        self.leases.create(&shard(name, &[]), Checkpoint::Start(Position::TrimHorizon)).await.unwrap();
        self.lease(name).await
    }

    async fn lease(&self, name: &str) -> Lease {
        self.leases.list().await.unwrap().into_iter().find(|lease| lease.shard.0 == name).unwrap()
    }
}

fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn number(number: i64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

fn item(attributes: &[(&str, AttributeValue)]) -> Item {
    attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

fn worker(name: &str) -> WorkerId {
    WorkerId(name.to_owned())
}

#[tokio::test]
async fn the_contract_of_leases_holds() {
    let Some((table, _proxy)) = behind_proxy("contract").await else { return };
    leases_contract(Arc::new(table.leases)).await;
}

#[tokio::test]
async fn a_row_deleted_under_a_live_worker_is_not_made_again() {
    let Some(table) = table("deleted-row").await else { return };
    let free = table.create("s").await;
    let held = table.leases.claim(&free, &worker("ada")).await.unwrap().unwrap();
    table.delete("s").await;

    assert_eq!(table.leases.renew(&held).await.unwrap(), None, "the worker finds out");
    let further = Lease { checkpoint: settled("5", 50), ..held.clone() };
    assert_eq!(table.leases.renew(&further).await.unwrap(), None);
    assert_eq!(table.leases.claim(&held, &worker("ada")).await.unwrap(), None);
    assert_eq!(table.leases.reset(&held, Checkpoint::Rewound(1)).await.unwrap(), None);
    table.leases.ask(&held, &worker("bob")).await.unwrap();
    table.leases.release(&further).await.unwrap();
    table.leases.forget(&held).await.unwrap();
    assert_eq!(table.row("s").await, None, "an update of DynamoDB makes rows unless it has a condition");

    // Made again by another worker, the row comes to the same counter.
    let free = table.create("s").await;
    let bobs = table.leases.claim(&free, &worker("bob")).await.unwrap().unwrap();
    assert_eq!(bobs.counter, held.counter);
    assert_eq!(table.leases.renew(&further).await.unwrap(), None, "it is not ada's");
    table.leases.release(&further).await.unwrap();
    table.leases.ask(&further, &worker("eve")).await.unwrap();
    assert_eq!(table.lease("s").await, bobs);
}

#[tokio::test]
async fn a_late_release_takes_no_newer_checkpoint_back() {
    let Some(table) = table("late-release").await else { return };
    let first = table.leases.claim(&table.create("s").await, &worker("ada")).await.unwrap().unwrap();
    // The release of `first` is on its way, the worker has given it up and holds the lease again.
    let again = table.leases.claim(&first, &worker("ada")).await.unwrap().unwrap();
    let further = Lease { checkpoint: settled("7", 70), ..again };
    let further = table.leases.renew(&further).await.unwrap().unwrap();
    table.leases.release(&first).await.unwrap();
    assert_eq!(table.lease("s").await, further);

    // What is not late: the answer to the last renewal was lost, so the caller's copy is one behind.
    let newest = Lease { checkpoint: settled("8", 80), ..further.clone() };
    table.leases.renew(&newest).await.unwrap().unwrap();
    table.leases.release(&newest).await.unwrap();
    let released = table.lease("s").await;
    assert_eq!((released.owner, released.checkpoint), (None, settled("8", 80)));
}

#[tokio::test]
async fn owner_switches_are_counted_until_the_checkpoint_moves() {
    let Some(table) = table("owner-switches").await else { return };
    let switches = async || table.row("s").await.unwrap()["ownerSwitchesSinceCheckpoint"].as_n().unwrap().clone();
    let free = table.create("s").await;
    let ada = table.leases.claim(&free, &worker("ada")).await.unwrap().unwrap();
    assert_eq!(switches().await, "0", "taking a free lease is no switch");
    let bob = table.leases.claim(&ada, &worker("bob")).await.unwrap().unwrap();
    let eve = table.leases.claim(&bob, &worker("eve")).await.unwrap().unwrap();
    assert_eq!(switches().await, "2");
    let eve = table.leases.claim(&eve, &worker("eve")).await.unwrap().unwrap();
    assert_eq!(switches().await, "2", "she had it");
    let eve = table.leases.renew(&eve).await.unwrap().unwrap();
    let eve = table.leases.renew(&eve).await.unwrap().unwrap();
    assert_eq!(switches().await, "2", "a renewal is no progress");
    let eve = table.leases.renew(&Lease { checkpoint: settled("3", 30), ..eve }).await.unwrap().unwrap();
    assert_eq!(switches().await, "0");

    let ada = table.leases.claim(&eve, &worker("ada")).await.unwrap().unwrap();
    table.leases.release(&ada).await.unwrap();
    assert_eq!(switches().await, "1", "a release without progress");
    let ada = table.leases.claim(&table.lease("s").await, &worker("ada")).await.unwrap().unwrap();
    table.leases.release(&Lease { checkpoint: settled("4", 40), ..ada }).await.unwrap();
    assert_eq!(switches().await, "0", "a release with progress");
}

#[tokio::test]
async fn sequence_numbers_of_any_length_are_kept() {
    let Some(table) = table("long-numbers").await else { return };
    let longest = "9".repeat(129);
    let held = table.leases.claim(&table.create("s").await, &worker("ada")).await.unwrap().unwrap();
    let further = Lease { checkpoint: settled(&longest, i64::MAX), ..held };
    let renewed = table.leases.renew(&further).await.unwrap().unwrap();
    assert_eq!(renewed.checkpoint, settled(&longest, i64::MAX));
    assert_eq!(table.lease("s").await, renewed);
    let after = Position::After(SequenceNumber(longest));
    table.leases.create(&shard("t", &[]), Checkpoint::Start(after.clone())).await.unwrap();
    assert_eq!(table.lease("t").await.checkpoint, Checkpoint::Start(after));
}

#[tokio::test]
async fn more_than_a_thousand_leases_come_in_several_pages() {
    let Some((table, proxy)) = behind_proxy("pages").await else { return };
    let names: Vec<_> = (0..1_100).map(|n| format!("shardId-{n:012}")).collect();
    rows::fill(&table, &names).await;
    let mut listed = table.leases.list().await.unwrap();
    listed.sort_by(|a, b| a.shard.cmp(&b.shard));
    let shards: Vec<_> = listed.into_iter().map(|lease| lease.shard).collect();
    assert_eq!(shards, names.into_iter().map(ShardId).collect::<Vec<_>>(), "each once");
    assert!(proxy.count("Scan") >= 2, "{} pages", proxy.count("Scan"));
}
