//! The emulators start, answer the SDKs, and end with what started them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::net::TcpStream;
use std::time::Duration;

use aws_sdk_kinesis::types::StreamStatus;
use emulators::{Kinesis, Moto, configuration, skip};

/// A start, some calls and an end; the machine may be busy with the other tests.
const TIME_LIMIT: Duration = Duration::from_secs(120);

#[tokio::test]
async fn kinesis_answers_until_it_is_dropped() {
    let kinesis = match Kinesis::start().await {
        Ok(kinesis) => kinesis,
        Err(reason) => return skip("emulator-kinesis", &reason),
    };
    let calls = async {
        let client = aws_sdk_kinesis::Client::new(&configuration(&kinesis.url));
        client.create_stream().stream_name("usage").shard_count(2).send().await.unwrap();
        let summary = client.describe_stream_summary().stream_name("usage").send().await.unwrap();
        let summary = summary.stream_description_summary().unwrap();
        assert_eq!(summary.stream_status(), &StreamStatus::Active);
        assert_eq!(summary.open_shard_count(), 2);
    };
    tokio::time::timeout(TIME_LIMIT, calls).await.unwrap();

    let url = kinesis.url.clone();
    drop(kinesis);
    assert!(!listens(&url));
}

#[tokio::test]
async fn moto_answers_for_every_service_until_it_is_dropped() {
    let moto = match Moto::start().await {
        Ok(moto) => moto,
        Err(reason) => return skip("emulator-moto", &reason),
    };
    let calls = async {
        let configuration = configuration(&moto.url);
        let tables = aws_sdk_dynamodb::Client::new(&configuration).list_tables().send().await.unwrap();
        assert!(tables.table_names().is_empty());
        let queue = aws_sdk_sqs::Client::new(&configuration).create_queue().queue_name("dead").send().await.unwrap();
        assert_eq!(queue.queue_url(), Some(format!("{}/123456789012/dead", moto.url).as_str()));
        let secrets = aws_sdk_secretsmanager::Client::new(&configuration);
        secrets.create_secret().name("key").secret_string("{}").send().await.unwrap();
        assert_eq!(secrets.get_secret_value().secret_id("key").send().await.unwrap().secret_string(), Some("{}"));
        let buses = aws_sdk_eventbridge::Client::new(&configuration).list_event_buses().send().await.unwrap();
        assert_eq!(buses.event_buses().len(), 1);
    };
    tokio::time::timeout(TIME_LIMIT, calls).await.unwrap();

    let url = moto.url.clone();
    drop(moto);
    assert!(!listens(&url));
}

fn listens(url: &str) -> bool {
    TcpStream::connect(url.strip_prefix("http://").unwrap()).is_ok()
}
