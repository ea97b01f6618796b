//! Opening the table, creating it, and refusing what is none of ours.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableStatus,
};
use serde_json::{Value, json};
use shared::backend::dynamodb::DynamoLeases;
use shared::backend::{BackendError, Checkpoint, Leases, Position};

use super::proxy::{Fate, Proxy, error};
use super::{moto, table};
use crate::contract::shard;

fn misconfigured(result: Result<DynamoLeases, BackendError>) -> String {
    match result {
        Err(BackendError::Misconfigured(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// The answer of DescribeTable for a table with our key.
fn described(table: &str, status: &str) -> Fate {
    let table: Value = json!({
        "TableName": table,
        "TableStatus": status,
        "KeySchema": [{ "AttributeName": "leaseKey", "KeyType": "HASH" }],
        "AttributeDefinitions": [{ "AttributeName": "leaseKey", "AttributeType": "S" }],
    });
    Fate::Answered(200, json!({ "Table": table }))
}

#[tokio::test]
async fn a_missing_table_is_refused_unless_it_is_to_be_created() {
    let Some(url) = moto("missing").await else { return };
    let configuration = emulators::configuration(&url);
    let text = misconfigured(DynamoLeases::open(&configuration, "missing", false).await);
    assert_eq!(text, "lease table missing does not exist in us-east-1: create it, or start with --create-lease-table");
    let created = DynamoLeases::open(&configuration, "missing", true).await.unwrap();
    assert!(created.list().await.unwrap().is_empty());
    let client = Client::new(&configuration);
    let table = client.describe_table().table_name("missing").send().await.unwrap().table.unwrap();
    assert_eq!(table.billing_mode_summary().unwrap().billing_mode(), Some(&BillingMode::PayPerRequest));
    assert_eq!(table.key_schema().len(), 1);
    assert_eq!(table.table_status(), Some(&TableStatus::Active));
    DynamoLeases::open(&configuration, "missing", false).await.unwrap();
    DynamoLeases::open(&configuration, table.table_arn().unwrap(), false).await.unwrap().list().await.unwrap();
}

#[tokio::test]
async fn workers_that_create_the_table_at_once_all_open_it() {
    let Some(url) = moto("creation-race").await else { return };
    let configuration = emulators::configuration(&url);
    let open = || DynamoLeases::open(&configuration, "creation-race", true);
    tokio::try_join!(open(), open(), open()).unwrap();

    // The order of which the emulator makes too little: the other was faster, and the table takes its time.
    let proxy = Proxy::start(&url).await;
    let missing = || error("ResourceNotFoundException");
    let name = "creation-race";
    proxy.next("DescribeTable", [missing(), missing(), described(name, "CREATING"), described(name, "CREATING")]);
    DynamoLeases::open(&emulators::configuration(&proxy.url), name, true).await.unwrap();
    assert_eq!((proxy.count("CreateTable"), proxy.count("DescribeTable")), (1, 5), "refused as it is in use");
}

#[tokio::test]
async fn a_creation_whose_answer_is_lost_is_none_the_less_one() {
    let Some(url) = moto("creation-unheard").await else { return };
    let proxy = Proxy::start(&url).await;
    proxy.next("CreateTable", [Fate::Broken]);
    DynamoLeases::open(&emulators::configuration(&proxy.url), "creation-unheard", true).await.unwrap();
    assert_eq!(proxy.count("CreateTable"), 2);
}

#[tokio::test]
async fn a_table_that_another_worker_is_creating_is_waited_for() {
    let Some(url) = moto("creating").await else { return };
    DynamoLeases::open(&emulators::configuration(&url), "creating", true).await.unwrap();
    let proxy = Proxy::start(&url).await;
    proxy.next("DescribeTable", [described("creating", "CREATING")]);
    DynamoLeases::open(&emulators::configuration(&proxy.url), "creating", false).await.unwrap();
    assert_eq!(proxy.count("DescribeTable"), 2);
}

#[tokio::test]
async fn a_table_that_cannot_be_used_is_refused_at_once() {
    let Some(url) = moto("unusable").await else { return };
    let proxy = Proxy::start(&url).await;
    let configuration = emulators::configuration(&proxy.url);
    proxy.next("DescribeTable", [described("unusable", "ARCHIVED")]);
    let text = misconfigured(DynamoLeases::open(&configuration, "unusable", true).await);
    assert_eq!(text, "lease table unusable cannot be used: its status is ARCHIVED");
    proxy.next("DescribeTable", [error("AccessDeniedException")]);
    let text = misconfigured(DynamoLeases::open(&configuration, "unusable", true).await);
    assert_eq!(text, "cannot describe lease table unusable: AccessDeniedException: from the proxy");
    proxy.next("DescribeTable", [error("ResourceNotFoundException")]);
    proxy.next("CreateTable", [error("AccessDeniedException")]);
    let text = misconfigured(DynamoLeases::open(&configuration, "unusable", true).await);
    assert_eq!(text, "cannot create lease table unusable: AccessDeniedException: from the proxy");
    proxy.next("DescribeTable", vec![error("ThrottlingException"); 10]);
    let error = DynamoLeases::open(&configuration, "unusable", true).await.unwrap_err();
    assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn a_table_with_another_key_is_refused() {
    let Some(url) = moto("foreign-schema").await else { return };
    let configuration = emulators::configuration(&url);
    let client = Client::new(&configuration);
    let foreign = [
        ("foreign-name", vec![("id", ScalarAttributeType::S)], "id: S (HASH)"),
        ("foreign-type", vec![("leaseKey", ScalarAttributeType::N)], "leaseKey: N (HASH)"),
        (
            "foreign-range",
            vec![("leaseKey", ScalarAttributeType::S), ("at", ScalarAttributeType::N)],
            "leaseKey: S (HASH), at: N (RANGE)",
        ),
    ];
    for (name, key, found) in foreign {
        let mut request = client.create_table().table_name(name).billing_mode(BillingMode::PayPerRequest);
        for ((attribute, kind), key_type) in key.into_iter().zip([KeyType::Hash, KeyType::Range]) {
            let definition = AttributeDefinition::builder().attribute_name(attribute).attribute_type(kind);
            let element = KeySchemaElement::builder().attribute_name(attribute).key_type(key_type);
            request = request.attribute_definitions(definition.build().unwrap()).key_schema(element.build().unwrap());
        }
        request.send().await.unwrap();
        for create in [false, true] {
            let text = misconfigured(DynamoLeases::open(&configuration, name, create).await);
            let expected = "expected leaseKey: S (HASH): it is a table for something else";
            assert_eq!(text, format!("lease table {name} has the key {found}, {expected}"));
        }
    }
}

/// No request is made: nothing listens there.
#[tokio::test]
async fn names_that_no_table_can_have_are_refused() {
    let configuration = emulators::configuration("http://127.0.0.1:9");
    let long = "x".repeat(256);
    for name in [
        "",
        "ab",
        &long,
        "täble",
        "my table",
        "a/b/c",
        "arn:aws:dynamodb:us-east-1:123456789012:stream/leases",
        "arn:aws:dynamodb:us-east-1:123456789012:table/a",
        "arn:aws:dynamodb:us-east-1:table/leases",
        "arn:aws:kinesis:us-east-1:123456789012:table/leases",
    ] {
        let text = misconfigured(DynamoLeases::open(&configuration, name, true).await);
        assert!(text.starts_with(&format!("{name:?} is no name of a DynamoDB table: ")), "{text}");
    }
    let arn = "arn:aws-cn:dynamodb:cn-north-1:123456789012:table/leases";
    let text = misconfigured(DynamoLeases::open(&configuration, arn, true).await);
    assert_eq!(text, format!("lease table {arn} is in another region than the configured us-east-1"));
}

/// Shards of all streams have the same names: a table that is shared by two streams, or outlives its stream, would give
/// checkpoints of one to the other.
#[tokio::test]
async fn a_table_of_another_stream_is_refused() {
    let Some(table) = table("other-stream").await else { return };
    let configuration = emulators::configuration(&table.url);
    let open = async |stream: &str| {
        DynamoLeases::open(&configuration, &table.name, false).await.unwrap().for_stream(stream.to_owned())
    };
    let (ours, theirs) = (open("ours created at 1").await, open("ours created at 2").await);
    ours.create(&shard("s", &[]), Checkpoint::Start(Position::TrimHorizon)).await.unwrap();
    assert_eq!(ours.list().await.unwrap().len(), 1);
    let error = theirs.list().await.unwrap_err();
    assert!(matches!(error, BackendError::Misconfigured(_)), "{error:?}");
    let text = error.to_string();
    assert!([&*table.name, "created at 1", "created at 2"].iter().all(|name| text.contains(name)), "{text}");
}
