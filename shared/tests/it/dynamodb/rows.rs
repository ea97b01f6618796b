//! What lies in the table, attribute by attribute. The rows of the KCL are as its `DynamoDBLeaseSerializer` makes them.

use aws_sdk_dynamodb::types::{AttributeValue, PutRequest, WriteRequest};
use shared::backend::{BackendError, Checkpoint, Lease, Leases, Position, SequenceNumber, Shard, ShardId};

use super::{Item, Table, item, number, table, text, worker};
use crate::contract::settled;

/// Rows of nearly a kilobyte, past the code that is tested.
pub async fn fill(table: &Table, names: &[String]) {
    for names in names.chunks(25) {
        let writes = names.iter().map(|name| {
            let mut row = kcl_row(name, "TRIM_HORIZON", 0);
            row.insert("pad".to_owned(), text(&"x".repeat(900)));
            let put = PutRequest::builder().set_item(Some(row)).build().unwrap();
            WriteRequest::builder().put_request(put).build()
        });
        let request = table.client.batch_write_item().request_items(&table.name, writes.collect());
        let left = request.send().await.unwrap().unprocessed_items.unwrap_or_default();
        assert!(left.is_empty());
    }
}

/// A row that a worker of the KCL holds.
fn kcl_row(key: &str, checkpoint: &str, sub_sequence_number: i64) -> Item {
    item(&[
        ("leaseKey", text(key)),
        ("leaseOwner", text("kcl-worker")),
        ("leaseCounter", number(41)),
        ("ownerSwitchesSinceCheckpoint", number(3)),
        ("checkpoint", text(checkpoint)),
        ("checkpointSubSequenceNumber", number(sub_sequence_number)),
        ("startingHashKey", text("0")),
        ("endingHashKey", text("340282366920938463463374607431768211455")),
        // What the KCL keeps there and we do not know.
        ("childShardIds", AttributeValue::Ss(vec!["child-1".to_owned(), "child-2".to_owned()])),
        ("throughputKBps", AttributeValue::N("12.5".to_owned())),
        ("pendingCheckpoint", text("77")),
        ("pendingCheckpointState", AttributeValue::B(vec![0, 0xff].into())),
    ])
}

fn with(mut row: Item, attributes: &[(&str, AttributeValue)]) -> Item {
    row.extend(item(attributes));
    row
}

#[tokio::test]
async fn a_row_is_laid_out_as_the_kcl_does_it() {
    let Some(table) = table("layout").await else { return };
    let id = |name: &str| ShardId(name.to_owned());
    let child = Shard { id: id("child"), parents: vec![id("left"), id("right")], hashes: 10..=u128::MAX };
    table.leases.create(&child, Checkpoint::Start(Position::TrimHorizon)).await.unwrap();
    let constant = [
        ("leaseKey", text("child")),
        ("startingHashKey", text("10")),
        ("endingHashKey", text("340282366920938463463374607431768211455")),
        ("entityType", text("LEASE")),
        ("checkpointSubSequenceNumber", number(0)),
    ];
    let expect = async |changing: &[(&str, AttributeValue)], when: &str| {
        let mut row = table.row("child").await.unwrap();
        assert_eq!(row.remove("claimedBy").is_some(), when != "created");
        let Some(AttributeValue::Ss(mut parents)) = row.remove("parentShardId") else { panic!("no set of parents") };
        parents.sort();
        assert_eq!(parents, ["left", "right"]);
        assert_eq!(row, with(item(&constant), changing), "{when}");
    };
    let switches = ("ownerSwitchesSinceCheckpoint", number(0));
    let free = [("leaseCounter", number(0)), switches.clone(), ("checkpoint", text("TRIM_HORIZON"))];
    expect(&free, "created").await;

    let held = table.leases.claim(&table.lease("child").await, &worker("ada")).await.unwrap().unwrap();
    let owner = ("leaseOwner", text("ada"));
    let claimed = [owner.clone(), ("leaseCounter", number(1)), switches.clone(), ("checkpoint", text("TRIM_HORIZON"))];
    expect(&claimed, "claimed").await;

    let held = table.leases.renew(&Lease { checkpoint: settled("123", 456), ..held }).await.unwrap().unwrap();
    let ours = [("arrivedAt", number(456)), ("annotatedCheckpoint", text("123"))];
    let renewed = [owner, ("leaseCounter", number(2)), switches.clone(), ("checkpoint", text("123"))];
    expect(&[&renewed[..], &ours].concat(), "renewed").await;

    table.leases.ask(&held, &worker("bob")).await.unwrap();
    expect(&[&renewed[..], &ours, &[("wantedBy", text("bob"))]].concat(), "asked for").await;

    table.leases.release(&Lease { checkpoint: Checkpoint::Ended, ..held }).await.unwrap();
    let wish = ("wantedBy", text("bob"));
    let ended = [("leaseCounter", number(3)), switches.clone(), ("checkpoint", text("SHARD_END")), wish];
    expect(&ended, "released").await;

    table.leases.reset(&table.lease("child").await, Checkpoint::Rewound(99)).await.unwrap().unwrap();
    let rewound = [("leaseCounter", number(4)), switches, ("checkpoint", text("AT_TIMESTAMP"))];
    let kind = [("checkpointKind", text("REWOUND")), ("annotatedCheckpoint", text("AT_TIMESTAMP"))];
    expect(&[&rewound[..], &kind, &[("arrivedAt", number(99))]].concat(), "rewound").await;
}

#[tokio::test]
async fn a_first_shard_has_no_empty_set_of_parents() {
    let Some(table) = table("no-parents").await else { return };
    table.create("s").await;
    assert!(!table.row("s").await.unwrap().contains_key("parentShardId"));
}

#[tokio::test]
async fn rows_of_the_kcl_are_read() {
    let Some(table) = table("kcl-rows").await else { return };
    let digits = "49590338271490256608559692538361571095921575989136588898";
    let after = |number: &str| Checkpoint::Start(Position::After(SequenceNumber(number.to_owned())));
    let at = |number: &str| Checkpoint::Start(Position::At(SequenceNumber(number.to_owned())));
    for (row, checkpoint) in [
        (kcl_row("digits", digits, 0), after(digits)),
        (kcl_row("part-of-a-record", digits, 2), at(digits)),
        (kcl_row("oldest", "TRIM_HORIZON", 0), Checkpoint::Start(Position::TrimHorizon)),
        (kcl_row("ended", "SHARD_END", 0), Checkpoint::Ended),
        (with(kcl_row("kcl-3", "5", 0), &[("entityType", text("LEASE"))]), after("5")),
    ] {
        let key = row["leaseKey"].as_s().unwrap().clone();
        table.put(row).await;
        let expected = Lease {
            shard: ShardId(key.clone()),
            owner: Some(worker("kcl-worker")),
            counter: 41,
            checkpoint,
            parents: vec![],
            wanted_by: None,
        };
        assert_eq!(table.lease(&key).await, expected);
    }
    assert_eq!(table.leases.list().await.unwrap().len(), 5);
}

#[tokio::test]
async fn what_others_keep_in_a_row_survives() {
    let Some(table) = table("foreign-attributes").await else { return };
    let before = with(kcl_row("s", "5", 0), &[("checkpointOwner", text("kcl-2")), ("wantedBy", text("bob"))]);
    table.put(before.clone()).await;
    let held = table.leases.claim(&table.lease("s").await, &worker("ada")).await.unwrap().unwrap();
    let mut claimed = with(
        before,
        &[("leaseOwner", text("ada")), ("leaseCounter", number(42)), ("ownerSwitchesSinceCheckpoint", number(4))],
    );
    claimed.remove("checkpointOwner");
    claimed.remove("wantedBy");
    let mut row = table.row("s").await.unwrap();
    assert!(row.remove("claimedBy").is_some());
    assert_eq!(row, claimed);

    let held = table.leases.renew(&Lease { checkpoint: settled("6", 60), ..held }).await.unwrap().unwrap();
    table.leases.release(&held).await.unwrap();
    table.leases.reset(&table.lease("s").await, Checkpoint::Ended).await.unwrap().unwrap();
    let after = table.row("s").await.unwrap();
    for name in ["childShardIds", "throughputKBps", "pendingCheckpoint", "pendingCheckpointState", "startingHashKey"] {
        assert_eq!(after[name], claimed[name], "{name}");
    }
    assert!(!after.contains_key("entityType"), "nothing is added that a row of an older KCL has not");
}

#[tokio::test]
async fn rows_that_are_no_leases_are_left_alone() {
    let Some(table) = table("foreign-entities").await else { return };
    let foreign = item(&[("leaseKey", text("Migration3.0")), ("entityType", text("COORDINATOR_STATE"))]);
    let odd = item(&[("leaseKey", text("odd")), ("entityType", number(1))]);
    table.put(foreign.clone()).await;
    table.put(odd.clone()).await;
    let lease = table.create("s").await;
    assert_eq!(table.leases.list().await.unwrap(), [lease]);
    assert_eq!(table.row("Migration3.0").await, Some(foreign));
    assert_eq!(table.row("odd").await, Some(odd));
}

#[tokio::test]
async fn a_checkpoint_that_the_kcl_moved_has_no_arrival_time_of_ours() {
    let Some(table) = table("kcl-moved-it").await else { return };
    let number_of = |number: &str| SequenceNumber(number.to_owned());
    let starts = [("settled", settled("5", 50)), ("at", Checkpoint::Start(Position::At(number_of("5"))))];
    for (name, checkpoint) in starts {
        let lease = table.create(name).await;
        table.leases.reset(&lease, checkpoint.clone()).await.unwrap().unwrap();
        let row = table.row(name).await.unwrap();
        table.put(with(row.clone(), &[("checkpoint", text("900"))])).await;
        assert_eq!(table.lease(name).await.checkpoint, Checkpoint::Start(Position::After(number_of("900"))));
        table.put(with(row, &[("checkpoint", text("5"))])).await;
        assert_eq!(table.lease(name).await.checkpoint, checkpoint, "it is the same still");
    }
    let rewound = table.leases.reset(&table.create("rewound").await, Checkpoint::Rewound(7)).await.unwrap();
    assert_eq!(rewound.unwrap().checkpoint, Checkpoint::Rewound(7));
    table.put(with(table.row("rewound").await.unwrap(), &[("checkpoint", text("900"))])).await;
    let after = Checkpoint::Start(Position::After(number_of("900")));
    assert_eq!(table.lease("rewound").await.checkpoint, after, "the replay is not begun again");
}

#[tokio::test]
async fn a_row_that_cannot_be_understood_is_named() {
    let Some(table) = table("bad-rows").await else { return };
    table.create("good").await;
    let row = |attributes: &[(&str, AttributeValue)]| with(kcl_row("bad", "5", 0), attributes);
    let without = |attribute: &str| {
        let mut row = row(&[]);
        row.remove(attribute);
        row
    };
    let secret = "x".repeat(5_000);
    for (bad, what) in [
        (row(&[("checkpoint", text("LATEST"))]), "checkpoint is LATEST, which tells no place in the shard: delete the"),
        (row(&[("checkpoint", text("AT_TIMESTAMP"))]), "checkpoint is AT_TIMESTAMP, which tells no place"),
        (row(&[("checkpoint", text("yesterday"))]), "checkpoint is S(\"yesterday\"), expected a sequence number"),
        (row(&[("checkpoint", text(""))]), "checkpoint is S(\"\"), expected"),
        (row(&[("checkpoint", number(5))]), "checkpoint is N(\"5\"), expected a string"),
        (without("checkpoint"), "checkpoint is missing"),
        (row(&[("leaseCounter", text("41"))]), "leaseCounter is S(\"41\"), expected a whole number"),
        (row(&[("leaseCounter", number(-1))]), "leaseCounter is N(\"-1\"), expected a whole number"),
        (without("leaseCounter"), "leaseCounter is missing"),
        (row(&[("leaseOwner", AttributeValue::Null(true))]), "leaseOwner is Null(true), expected a string"),
        (row(&[("arrivedAt", text("noon"))]), "arrivedAt is S(\"noon\"), expected a whole number"),
        (row(&[("checkpointKind", text("LATER"))]), "checkpointKind is S(\"LATER\"), expected one that fits"),
        (row(&[("wantedBy", AttributeValue::Ss(vec![secret.clone()]))]), "wantedBy is Ss([\"xxx"),
    ] {
        table.put(bad).await;
        let error = table.leases.list().await.unwrap_err();
        let BackendError::Misconfigured(text) = error else { panic!("{what}: {error:?}") };
        assert!(text.starts_with(&format!("lease table bad-rows, row bad: attribute {what}")), "{text}");
        assert!(text.len() < 300, "{text}");
    }
    table.delete("bad").await;
    assert_eq!(table.leases.list().await.unwrap().len(), 1, "an operator has deleted it");
}
