//! Settings of AWS that cannot work: one line that names the setting, exit code 2, and no loop of retries.

use emulators::{Fault, Throttle, put_secret};
use shared::backend::dynamodb::DynamoLeases;

use super::{Fleet, Worker};
use crate::process::{KEY, free_address, run, text};

/// Starts a worker with these settings, `-` for one that is not set; the line of its refusal is the answer.
async fn refusal(fleet: &Fleet, settings: &[(&str, &str)]) -> String {
    // The emulator's queues keep letters for less than 14 days, which is worth a warning.
    let site = fleet.site("refused").with("LOG", "error");
    let mut command = site.command();
    command.env("ADMIN_LISTEN", free_address().await.to_string());
    for (name, value) in settings {
        match *value {
            "-" => command.env_remove(name),
            value => command.env(name, value),
        };
    }
    let output = run(&mut command).await;
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "{settings:?}\n{stdout}{stderr}");
    assert!(stdout.is_empty() && !stderr.contains("panicked") && !stderr.contains(KEY), "{stdout}{stderr}");
    // clap adds a blank line and a hint.
    let lines: Vec<_> = stderr.lines().filter(|line| !line.is_empty() && !line.contains("--help")).collect();
    assert_eq!(lines.len(), 1, "{settings:?}\n{stderr}");
    lines[0].to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mistake_is_named_in_one_line_at_the_start() {
    let Some(mut fleet) = Fleet::start("refusals", 1, "3s").await else { return };
    for (name, value) in [
        ("refusals/text", KEY),
        ("refusals/list", "[]"),
        ("refusals/other", r#"{"Other": "x"}"#),
        ("refusals/blank", r#"{"ApiKey": "a b"}"#),
    ] {
        put_secret(fleet.moto, name, value).await;
    }
    let proxy = Throttle::start(fleet.moto).await;
    let denying = Throttle::start(fleet.kinesis).await;
    proxy.set([Fault::refuse("AccessDeniedException")]);
    denying.set([Fault::refuse("AccessDeniedException")]);
    foreign_table(&fleet, "refusals-foreign").await;

    let secret = |name: &'static str| {
        vec![("AMBERFLO_API_KEY", "-"), ("API_KEY_SECRET_NAME", name), ("API_KEY_SECRET_ID", "ApiKey")]
    };
    let with = |mut settings: Vec<(&'static str, &'static str)>, name, value| {
        settings.push((name, value));
        settings
    };
    let [proxy_url, denying_url] = [&*proxy.url, &*denying.url].map(|url| url.to_owned().leak() as &'static str);
    let absent_queue: &'static str = fleet.queue.replace("/refusals", "/absent").leak();
    let arn = "arn:aws:kinesis:us-east-1:000000000000:stream";
    let absent_arn: &'static str = format!("kinesis:{arn}/absent").leak();
    let malformed_arn: &'static str = format!("kinesis:{arn}").leak();
    let mut unclear = Vec::new();
    for (settings, setting, part) in [
        (vec![("STREAM", "kinesis:absent")], "STREAM", "Kinesis stream absent does not exist in us-east-1"),
        (vec![("STREAM", absent_arn)], "STREAM", "does not exist in us-east-1"),
        (vec![("STREAM", malformed_arn)], "--stream", "stream/NAME"),
        (vec![("STREAM", "kinesis:arn:aws:sqs:us-east-1:000000000000:stream/s")], "--stream", "another service"),
        (vec![("AWS_ENDPOINT_URL_KINESIS", denying_url)], "STREAM", "AccessDeniedException"),
        (vec![("AWS_REGION", "-")], "AWS_REGION", "no AWS region"),
        (vec![("AWS_ACCESS_KEY_ID", "-"), ("AWS_SECRET_ACCESS_KEY", "-")], "STREAM", "credential"),
        (vec![("DEAD_LETTER_QUEUE", "-")], "DEAD_LETTER_QUEUE", "URL of an SQS queue"),
        (vec![("DEAD_LETTER_QUEUE", absent_queue)], "DEAD_LETTER_QUEUE", "absent"),
        (
            vec![("DEAD_LETTER_QUEUE", "https://sqs.eu-west-1.amazonaws.com/123456789012/q")],
            "DEAD_LETTER_QUEUE",
            "eu-west-1",
        ),
        (
            vec![("DEAD_LETTER_QUEUE", "arn:aws:sqs:us-east-1:123456789012:q")],
            "DEAD_LETTER_QUEUE",
            "https://sqs.REGION.amazonaws.com",
        ),
        (vec![("AWS_ENDPOINT_URL_SQS", proxy_url)], "DEAD_LETTER_QUEUE", "AccessDeniedException"),
        (vec![("LEASE_TABLE", "refusals-absent")], "LEASE_TABLE", "--create-lease-table"),
        (vec![("LEASE_TABLE", "a b")], "LEASE_TABLE", "a b"),
        (vec![("LEASE_TABLE", "refusals-foreign")], "LEASE_TABLE", "userId: N (HASH), expected leaseKey: S (HASH)"),
        (vec![("AWS_ENDPOINT_URL_DYNAMODB", proxy_url)], "LEASE_TABLE", "AccessDeniedException"),
        (secret("refusals/absent"), "API_KEY_SECRET_NAME", "refusals/absent"),
        (secret("refusals/text"), "API_KEY_SECRET_NAME", "is not JSON"),
        (secret("refusals/list"), "API_KEY_SECRET_NAME", "no object"),
        (secret("refusals/other"), "API_KEY_SECRET_ID", "has no member \"ApiKey\""),
        (secret("refusals/blank"), "API_KEY_SECRET_ID", "visible ASCII"),
        (
            with(secret("refusals/other"), "AWS_ENDPOINT_URL_SECRETS_MANAGER", proxy_url),
            "API_KEY_SECRET_NAME",
            "AccessDeniedException",
        ),
        (with(secret("refusals/other"), "API_KEY_SECRET_ID", "-"), "API_KEY_SECRET_ID", "API_KEY_SECRET_NAME"),
        (with(secret("refusals/other"), "AWS_REGION", "-"), "AWS_REGION", "no AWS region"),
    ] {
        let line = refusal(&fleet, &settings).await;
        if !line.contains(setting) || !line.contains(part) {
            unclear.push(format!("{settings:?}: {setting} and {part:?}: {line}"));
        }
    }
    assert!(unclear.is_empty(), "{unclear:#?}");
    // Each was refused at the first try, and nothing is left behind.
    assert!(proxy.all_calls().values().all(|calls| calls.arrived <= 3), "{:?}", proxy.all_calls());
    assert!(denying.all_calls().values().all(|calls| calls.arrived <= 3), "{:?}", denying.all_calls());
    assert!(fleet.rows().await.is_empty());

    // Put right it works; the workers may both try to create the table.
    fleet.table = "refusals-new".to_owned();
    let start = |name: &str| Worker::start(fleet.site(name).with("CREATE_LEASE_TABLE", "true"));
    let (first, second) = tokio::join!(start("first"), start("second"));
    fleet.leases = DynamoLeases::open(&emulators::configuration(fleet.moto), &fleet.table, false).await.unwrap();
    fleet.put(50).await;
    fleet.put_invalid().await;
    assert_eq!(fleet.reconcile().await, 0);
    for worker in [first, second] {
        worker.drain().await;
    }
}

/// A table that belongs to something else.
async fn foreign_table(fleet: &Fleet, name: &str) {
    let request = serde_json::json!({
        "TableName": name,
        "AttributeDefinitions": [{"AttributeName": "userId", "AttributeType": "N"}],
        "KeySchema": [{"AttributeName": "userId", "KeyType": "HASH"}],
        "BillingMode": "PAY_PER_REQUEST",
    });
    let request = crate::process::client()
        .post(fleet.moto)
        .header("x-amz-target", "DynamoDB_20120810.CreateTable")
        .header("content-type", "application/x-amz-json-1.0")
        .header("authorization", "AWS4-HMAC-SHA256 Credential=emulated/20260101/us-east-1/dynamodb/aws4_request")
        .body(request.to_string());
    let answer = request.send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}
