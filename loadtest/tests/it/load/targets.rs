//! Runs on the other targets: the control API, the local stream and Kinesis.

use std::collections::BTreeSet;

use aws_sdk_eventbridge::Client;
use emulators::{Kinesis, Moto, Stream, configuration, create_queue, environment, skip, take_messages};
use serde_json::Value;
use tempfile::TempDir;

use super::{Ended, audit, file, ledger_of, letters_of, sandbox};
use crate::harness::{Dev, loadtest};

#[tokio::test(flavor = "multi_thread")]
async fn the_control_api_refuses_what_is_no_event() {
    let (dev, dir) = (Dev::start().await, TempDir::new().unwrap());
    let manifest = file(&dir, "manifest");
    let mut command = loadtest(&["run", "--json", "--target=api", "--rate=200", "--duration=2s", "--linger=200ms"]);
    command.args(["--malformed=0.1", "--duplicates=0.1"]).arg(format!("--api-url={}", dev.url("control API")));
    let run = Ended::of(command.arg("--manifest").arg(&manifest)).await;
    assert_eq!(run.code, Some(0), "{}", run.said);
    assert!(run.number("refused") > 0, "{}", run.said);
    assert_eq!(run.number("acknowledged") + run.number("refused"), run.number("arrived"), "{}", run.said);
    let told = Ended::of(&mut audit(&[&manifest], &ledger_of(&dev), &letters_of(&dev))).await;
    assert_eq!((told.code, told.number("emitted")), (Some(0), run.number("acknowledged")), "{}", told.said);
    // Their producer was told: they are in no queue.
    assert_eq!((told.number("malformed"), told.number("dead_lettered")), (0, 0), "{}", told.said);
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_stream_takes_events_beside_its_worker() {
    let (dev, dir) = (Dev::start().await, TempDir::new().unwrap());
    let manifest = file(&dir, "manifest");
    let mut command =
        loadtest(&["run", "--json", "--target=kinesis", "--rate=200", "--duration=2s", "--malformed=0.1"]);
    command.arg("--size=2000").arg(format!("--stream={}", letters_of(&dev)));
    let run = Ended::of(command.arg("--manifest").arg(&manifest)).await;
    assert_eq!((run.code, run.number("acknowledged")), (Some(0), 400), "{}", run.said);
    let told = Ended::of(&mut audit(&[&manifest], &ledger_of(&dev), &letters_of(&dev))).await;
    assert_eq!((told.code, told.number("delivered")), (Some(0), 360), "{}", told.said);
    dev.stop().await;
}

/// EventBridge as moto emulates it, with a rule on a bus of its own, as SBT has them.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_bus_of_aws_gives_events_to_its_rules() {
    let moto = match Moto::start().await {
        Ok(moto) => moto,
        Err(reason) => return skip("load-eventbridge", &reason),
    };
    let dir = TempDir::new().unwrap();
    let queue = create_queue(&moto.url, "usage").await;
    let client = Client::new(&configuration(&moto.url));
    client.create_event_bus().name("sbt").send().await.unwrap();
    let pattern = r#"{"detail": {"tenantId": [{"exists": true}]}}"#;
    client.put_rule().name("usage").event_bus_name("sbt").event_pattern(pattern).send().await.unwrap();
    let to_queue = aws_sdk_eventbridge::types::Target::builder().id("queue");
    let to_queue = to_queue.arn("arn:aws:sqs:us-east-1:123456789012:usage").build().unwrap();
    client.put_targets().rule("usage").event_bus_name("sbt").targets(to_queue).send().await.unwrap();

    let mut command = loadtest(&["run", "--json", "--target=bus", "--bus-name=sbt", "--rate=50", "--duration=2s"]);
    command.arg(format!("--endpoint-url={}", moto.url)).envs(environment(&moto.url, &moto.url));
    let run = Ended::of(command.arg("--manifest").arg(file(&dir, "manifest"))).await;
    assert_eq!((run.code, run.number("acknowledged")), (Some(0), 100), "{}", run.said);
    let messages = take_messages(&moto.url, &queue).await;
    let envelopes = messages.iter().map(|message| serde_json::from_str::<Value>(message.body().unwrap()).unwrap());
    let ids: BTreeSet<_> = envelopes.map(|envelope| envelope["detail"]["uniqueId"].to_string()).collect();
    assert_eq!((messages.len(), ids.len()), (100, 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn kinesis_and_sqs_are_put_to_and_audited() {
    let started = async { Ok::<_, String>((Kinesis::start().await?, Moto::start().await?)) };
    let (kinesis, moto) = match started.await {
        Ok(started) => started,
        Err(reason) => return skip("load-kinesis", &reason),
    };
    let dir = TempDir::new().unwrap();
    let (_sandbox, url, _server) = sandbox().await;
    let stream = Stream::create(&kinesis.url, "usage", 2).await;
    let queue = create_queue(&moto.url, "dead-letters").await;
    let aws = environment(&kinesis.url, &moto.url);
    let mut worker = loadtest(&["ingest-worker"]);
    worker.envs(aws.clone()).env("STREAM", format!("kinesis:{}", stream.name)).env("DEAD_LETTER_QUEUE", &queue);
    worker.env("CREATE_LEASE_TABLE", "true").env("AMBERFLO_BASE_URL", &url).env("AMBERFLO_API_KEY", "sandbox-key");
    worker.env("ADMIN_LISTEN", "127.0.0.1:0").stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut worker = worker.spawn().unwrap();

    let manifest = file(&dir, "manifest");
    let mut command = loadtest(&["run", "--json", "--target=kinesis", "--rate=100", "--duration=3s", "--linger=100ms"]);
    command.args(["--duplicates=0.1", "--malformed=0.1"]).envs(aws.clone());
    command.arg(format!("--stream=kinesis:{}", stream.name)).arg("--manifest").arg(&manifest);
    let run = Ended::of(&mut command).await;
    assert_eq!(run.code, Some(0), "{}", run.said);
    let mut command = audit(&[&manifest], &format!("sandbox={url}"), &format!("sqs:{queue}"));
    for _ in 0..2 {
        let told = Ended::of(command.envs(aws.clone())).await;
        assert_eq!((told.code, told.number("emitted")), (Some(0), run.number("acknowledged")), "{}", told.said);
        // The second time as well: looking has taken none away.
        assert!(
            told.number("malformed") > 0 && told.number("malformed") == told.number("dead_lettered"),
            "{}",
            told.said
        );
    }
    worker.kill().await.unwrap();
}
