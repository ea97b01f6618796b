use std::process::Stdio;
use std::time::Duration;

use aws_sdk_kinesis::types::{ShardIteratorType, StreamStatus};
use bytes::Bytes;
use emulators::{Kinesis, Moto, Stream, configuration, create_queue, put_secret, skip, take_messages};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::{in_time, listens};

#[tokio::test]
async fn kinesis_answers_until_it_is_dropped() {
    let kinesis = match Kinesis::start().await {
        Ok(kinesis) => kinesis,
        Err(reason) => return skip("emulator-kinesis", &reason),
    };
    in_time(async {
        let client = aws_sdk_kinesis::Client::new(&configuration(&kinesis.url));
        client.create_stream().stream_name("usage").shard_count(2).send().await.unwrap();
        let summary = client.describe_stream_summary().stream_name("usage").send().await.unwrap();
        let summary = summary.stream_description_summary().unwrap();
        assert_eq!(summary.stream_status(), &StreamStatus::Active);
        assert_eq!(summary.open_shard_count(), 2);
    })
    .await;

    let url = kinesis.url.clone();
    drop(kinesis);
    assert!(!listens(&url));
}

#[tokio::test]
async fn a_stream_is_filled_split_and_merged() {
    let kinesis = match Kinesis::start().await {
        Ok(kinesis) => kinesis,
        Err(reason) => return skip("emulator-kinesis-streams", &reason),
    };
    in_time(async {
        let stream = Stream::create(&kinesis.url, "usage", 2).await;
        assert_eq!(stream.arn().await, "arn:aws:kinesis:us-east-1:000000000000:stream/usage");
        let [first, second] = stream.open_shards().await.try_into().unwrap();
        stream.put_to(&first, (0..700).map(|n| ("tenant", Bytes::from(format!("first {n}"))))).await;
        stream.put_to(&second, [("tenant", Bytes::from_static(b"second"))]).await;
        assert_eq!(count(&stream, &first).await, (700, true));
        assert_eq!(count(&stream, &second).await, (1, true));

        let children = stream.split(&first).await;
        let [_, right] = children.clone().try_into().unwrap();
        assert_eq!(stream.open_shards().await, [second.clone(), children[0].clone(), right.clone()]);
        assert_eq!(count(&stream, &first).await, (700, false), "a split ends its shard");
        let merged = stream.merge(&right, &second).await;
        assert_eq!(stream.open_shards().await, [children[0].clone(), merged.clone()]);
        let shards = stream.shards().await;
        let child = shards.iter().find(|shard| shard.shard_id() == merged).unwrap();
        assert_eq!((child.parent_shard_id(), child.adjacent_parent_shard_id()), (Some(&*right), Some(&*second)));

        stream.put((0..20).map(|n| (format!("tenant-{n}"), Bytes::from_static(b"any")))).await;
        assert_eq!(count(&stream, &children[0]).await.0 + count(&stream, &merged).await.0, 20);
        stream.delete().await;
    })
    .await;
}

/// Records in a shard, and whether it is open.
async fn count(stream: &Stream, shard: &str) -> (usize, bool) {
    let call = stream.client.get_shard_iterator().stream_name(&stream.name).shard_id(shard);
    let answer = call.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await.unwrap();
    let mut iterator = answer.shard_iterator;
    let mut records = 0;
    while let Some(current) = iterator {
        let answer = stream.client.get_records().shard_iterator(current).send().await.unwrap();
        records += answer.records().len();
        iterator = answer.next_shard_iterator;
        if answer.records.is_empty() && iterator.is_some() {
            return (records, true);
        }
    }
    (records, false)
}

#[tokio::test]
async fn moto_answers_for_every_service_until_it_is_dropped() {
    let moto = match Moto::start().await {
        Ok(moto) => moto,
        Err(reason) => return skip("emulator-moto", &reason),
    };
    in_time(async {
        let configuration = configuration(&moto.url);
        let tables = aws_sdk_dynamodb::Client::new(&configuration).list_tables().send().await.unwrap();
        assert!(tables.table_names().is_empty());
        let buses = aws_sdk_eventbridge::Client::new(&configuration).list_event_buses().send().await.unwrap();
        assert_eq!(buses.event_buses().len(), 1);

        let queue = create_queue(&moto.url, "dead").await;
        assert_eq!(queue, format!("{}/123456789012/dead", moto.url));
        let sqs = aws_sdk_sqs::Client::new(&configuration);
        for n in 0..12 {
            sqs.send_message().queue_url(&queue).message_body(n.to_string()).send().await.unwrap();
        }
        assert_eq!(take_messages(&moto.url, &queue).await.len(), 12);
        assert_eq!(take_messages(&moto.url, &queue).await.len(), 0);

        let secrets = aws_sdk_secretsmanager::Client::new(&configuration);
        for value in ["old", "new"] {
            put_secret(&moto.url, "key", value).await;
            let secret = secrets.get_secret_value().secret_id("key").send().await.unwrap();
            assert_eq!(secret.secret_string(), Some(value));
        }
    })
    .await;

    let url = moto.url.clone();
    drop(moto);
    assert!(!listens(&url));
}

/// A row's counter names the round; who finds it there and moves it on has won.
#[tokio::test(flavor = "multi_thread")]
async fn of_concurrent_conditional_writes_one_wins() {
    use aws_sdk_dynamodb::types::{
        AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
    };
    let moto = match Moto::start().await {
        Ok(moto) => moto,
        Err(reason) => return skip("emulator-conditional-writes", &reason),
    };
    let client = aws_sdk_dynamodb::Client::new(&configuration(&moto.url));
    let number = |number: i32| AttributeValue::N(number.to_string());
    let key = || AttributeValue::S("row".to_owned());
    in_time(async {
        let attribute = AttributeDefinition::builder().attribute_name("k").attribute_type(ScalarAttributeType::S);
        let schema = KeySchemaElement::builder().attribute_name("k").key_type(KeyType::Hash);
        let table = client.create_table().table_name("claims").billing_mode(BillingMode::PayPerRequest);
        let table = table.attribute_definitions(attribute.build().unwrap()).key_schema(schema.build().unwrap());
        table.send().await.unwrap();
        client.put_item().table_name("claims").item("k", key()).item("c", number(0)).send().await.unwrap();
        // Long enough for others to come in between.
        let others: String = (0..50).map(|n| format!("a{n} = :next, ")).collect();
        for round in 0..30 {
            let claims: Vec<_> = (0..16)
                .map(|_| {
                    let claim = client.update_item().table_name("claims").key("k", key());
                    let claim =
                        claim.condition_expression("c = :seen").update_expression(format!("SET {others}c = :next"));
                    let claim = claim.expression_attribute_values(":seen", number(round));
                    tokio::spawn(claim.expression_attribute_values(":next", number(round + 1)).send())
                })
                .collect();
            let mut winners = 0;
            for claim in claims {
                match claim.await.unwrap() {
                    Ok(_) => winners += 1,
                    Err(error) => {
                        let error = error.into_service_error();
                        assert!(error.is_conditional_check_failed_exception(), "{error:?}");
                    }
                }
            }
            assert_eq!(winners, 1, "round {round}");
        }
    })
    .await;
}

/// What starts the emulators dies without a word: they end too.
#[tokio::test]
async fn no_emulator_survives_a_killed_test() {
    in_time(async {
        let mut test = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "emulated::held", "--ignored", "--nocapture"])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(test.stdout.take().unwrap()).lines();
        let held = loop {
            let line = lines.next_line().await.unwrap().unwrap();
            if let Some((_, held)) = line.split_once("held: ") {
                break held.to_owned();
            }
        };
        test.kill().await.unwrap();
        let (kinesis, moto) = match serde_json::from_str::<Result<(String, String), String>>(&held).unwrap() {
            Ok(urls) => urls,
            Err(reason) => return skip("emulators-of-a-killed-test", &reason),
        };
        while listens(&kinesis) || listens(&moto) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "no test: the process that `no_emulator_survives_a_killed_test` kills"]
async fn held() {
    let kinesis = Kinesis::start().await;
    let moto = Moto::start().await;
    let urls = match (&kinesis, &moto) {
        (Ok(kinesis), Ok(moto)) => Ok((&kinesis.url, &moto.url)),
        (Err(reason), _) | (_, Err(reason)) => Err(reason),
    };
    println!("held: {}", serde_json::to_string(&urls).unwrap());
    tokio::time::sleep(Duration::from_secs(60)).await;
}
