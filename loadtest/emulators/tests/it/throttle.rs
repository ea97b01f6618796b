use std::time::Duration;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::config::timeout::TimeoutConfig;
use aws_sdk_kinesis::error::ProvideErrorMetadata as _;
use bytes::Bytes;
use emulators::{
    Calls, CannedKinesis, CannedSettings, CannedShard, Fault, Kinesis, Stream, THROUGHPUT_EXCEEDED, Throttle,
    configuration, skip,
};

use crate::in_time;

/// One attempt for each call, and not for long.
fn client(url: &str) -> Client {
    let timeouts = TimeoutConfig::builder().operation_attempt_timeout(Duration::from_millis(500)).build();
    let config = aws_sdk_kinesis::config::Builder::from(&configuration(url));
    Client::from_conf(config.retry_config(RetryConfig::disabled()).timeout_config(timeouts).build())
}

/// Without an emulator: the faults are the proxy's own.
#[tokio::test]
async fn faults_befall_the_calls_they_name() {
    let canned = CannedKinesis::start(vec![CannedShard::idle()], CannedSettings::default());
    let proxy = Throttle::start(&canned.url).await;
    let client = client(&proxy.url);
    let list = || client.list_shards().stream_name("usage").send();
    let describe = || client.describe_stream_summary().stream_name("usage").send();
    in_time(async {
        assert_eq!(list().await.unwrap().shards().len(), 1);

        proxy.set([Fault::refuse(THROUGHPUT_EXCEEDED).on("ListShards").times(2).named("throughput")]);
        assert_eq!(describe().await.unwrap().stream_description_summary().unwrap().open_shard_count(), 1);
        for _ in 0..2 {
            assert_eq!(list().await.unwrap_err().code(), Some(THROUGHPUT_EXCEEDED));
        }
        list().await.unwrap();
        assert_eq!(proxy.calls("ListShards"), Calls { arrived: 4, faulted: 2 });
        assert_eq!(proxy.befell(), [("throughput", 2)].into());
        assert_eq!(proxy.calls("DescribeStreamSummary"), Calls { arrived: 1, faulted: 0 });

        proxy.set([Fault::refuse("InternalFailure").share(0.5)]);
        for _ in 0..100 {
            let _ = list().await;
        }
        let met = proxy.calls("ListShards").faulted - 2;
        assert!((25..75).contains(&met), "{met} of 100");

        proxy.set([Fault::hang()]);
        let error = list().await.unwrap_err();
        assert!(matches!(error, aws_sdk_kinesis::error::SdkError::TimeoutError(_)), "{error:?}");
        proxy.set([Fault::slow(Duration::from_secs(3600))]);
        let error = list().await.unwrap_err();
        assert!(matches!(error, aws_sdk_kinesis::error::SdkError::TimeoutError(_)), "{error:?}");
        proxy.set([Fault::slow(Duration::from_millis(1))]);
        list().await.unwrap();
        proxy.clear();
        list().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_proxy_that_is_down_refuses_connections_and_comes_back() {
    let canned = CannedKinesis::start(vec![CannedShard::idle()], CannedSettings::default());
    let proxy = Throttle::start(&canned.url).await;
    let client = client(&proxy.url);
    let list = || client.list_shards().stream_name("usage").send();
    in_time(async {
        list().await.unwrap();
        for _ in 0..3 {
            proxy.down().await;
            let error = list().await.unwrap_err();
            assert!(matches!(error, aws_sdk_kinesis::error::SdkError::DispatchFailure(_)), "{error:?}");
            proxy.up().await;
            list().await.unwrap();
        }
        assert_eq!(proxy.calls("ListShards").arrived, 4);
    })
    .await;
}

#[tokio::test]
async fn a_call_whose_answer_is_lost_has_taken_effect() {
    let kinesis = match Kinesis::start().await {
        Ok(kinesis) => kinesis,
        Err(reason) => return skip("emulator-lost-answers", &reason),
    };
    let proxy = Throttle::start(&kinesis.url).await;
    let client = client(&proxy.url);
    let create = |name: &str| client.create_stream().stream_name(name).shard_count(1).send();
    in_time(async {
        proxy.set([Fault::refuse(THROUGHPUT_EXCEEDED).times(1), Fault::lose(THROUGHPUT_EXCEEDED).times(1)]);
        assert_eq!(create("refused").await.unwrap_err().code(), Some(THROUGHPUT_EXCEEDED));
        assert_eq!(create("lost").await.unwrap_err().code(), Some(THROUGHPUT_EXCEEDED));
        proxy.set([Fault::swallow()]);
        create("swallowed").await.unwrap_err();
        proxy.clear();
        assert_eq!(client.list_streams().send().await.unwrap().stream_names(), ["lost", "swallowed"]);

        // A large body passes whole in both directions.
        let stream = Stream::create(&proxy.url, "large", 1).await;
        let data = Bytes::from(vec![7; 1_000_000]);
        stream.put([("tenant", data.clone()), ("tenant", data)]).await;
    })
    .await;
}
