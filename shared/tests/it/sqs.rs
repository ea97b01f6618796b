//! Dead letters in SQS: the contract, what letters may hold, and what a queue may answer.

mod answers;

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName;
use bytes::Bytes;
use emulators::Moto;
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::sqs::SqsDeadLetters;
use shared::backend::{BackendError, DeadLetters, Received};
use shared::dead_letter::{DeadLetter, Omitted, Payload, sha256};
use shared::dead_letters::{Filter, peek, purge};
use shared::redrive;
use tokio::time::Instant;

use crate::contract::{dead_letters_contract, letter};

const RETENTION: Duration = Duration::from_secs(24 * 3600);

/// An emulated SQS, or a word on why there is none.
async fn moto(suite: &str) -> Option<(Moto, Client)> {
    match Moto::start().await {
        Ok(moto) => {
            let client = Client::new(&emulators::configuration(&moto.url));
            Some((moto, client))
        }
        Err(reason) => {
            emulators::skip(suite, &reason);
            None
        }
    }
}

async fn create(client: &Client, name: &str, attributes: &[(QueueAttributeName, &str)]) -> String {
    let attributes: HashMap<_, _> =
        attributes.iter().map(|(name, value)| (name.clone(), (*value).to_owned())).collect();
    let queue = client.create_queue().queue_name(name).set_attributes(Some(attributes)).send().await.unwrap();
    queue.queue_url.unwrap()
}

async fn open(moto: &Moto, url: &str) -> SqsDeadLetters {
    SqsDeadLetters::open(&emulators::configuration(&moto.url), url, RETENTION).await.unwrap()
}

async fn receive_all(queue: &SqsDeadLetters) -> Vec<Received> {
    let mut all = Vec::new();
    loop {
        let some = queue.receive(100).await.unwrap();
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

async fn letters(queue: &SqsDeadLetters) -> Vec<DeadLetter> {
    let mut letters: Vec<_> = receive_all(queue).await.into_iter().map(|received| received.letter).collect();
    letters.sort_by_key(|letter| letter.dead_lettered_at);
    letters
}

#[tokio::test]
async fn keeps_the_contract() {
    let Some((moto, client)) = moto("sqs-contract").await else { return };
    let queue = open(&moto, &create(&client, "dead-letters", &[]).await).await;
    dead_letters_contract(&queue).await;
    assert_eq!(queue.name(), "dead-letters");
    let unknown = ["nonsense", "", "x y\u{0}z"].map(str::to_owned);
    queue.delete(&unknown).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 5, "unknown receipts are ignored");
}

#[tokio::test]
async fn a_queue_that_cannot_work_is_refused_in_one_line() {
    let Some((moto, client)) = moto("sqs-refusals").await else { return };
    let config = emulators::configuration(&moto.url);
    let fifo = create(&client, "letters.fifo", &[(QueueAttributeName::FifoQueue, "true")]).await;
    let small = create(&client, "small", &[(QueueAttributeName::MaximumMessageSize, "32767")]).await;
    let missing = format!("{}/123456789012/missing", moto.url);
    for (url, reason) in [
        (missing.as_str(), "does not exist"),
        (&fifo, "FIFO"),
        (&small, "MaximumMessageSize is 32767; allowed is at least 32768"),
        ("arn:aws:sqs:us-east-1:123456789012:dead-letters", "ARN"),
        ("https://sqs.eu-west-1.amazonaws.com/123456789012/dead-letters", "eu-west-1"),
        ("dead-letters", "not a URL"),
    ] {
        let error = SqsDeadLetters::open(&config, url, RETENTION).await.unwrap_err();
        let BackendError::Misconfigured(text) = error else { panic!("{url}: {error}") };
        assert!(text.contains(reason) && text.contains(url) && !text.contains('\n'), "{url}: {text}");
    }
}

/// Letters of whatever producers and Amberflo may send, through a real client and server.
#[tokio::test]
async fn hostile_letters_come_back_as_they_were() {
    let Some((moto, client)) = moto("sqs-hostile-letters").await else { return };
    let queue = open(&moto, &create(&client, "hostile", &[]).await).await;
    let controls: String = (0..=0x20).chain(0x7f..=0x9f).filter_map(char::from_u32).collect();
    let texts = [
        String::new(),
        controls,
        "\u{fffe}\u{ffff}\u{fffd}\u{feff}\u{d7ff}\u{e000}\u{1fffe}\u{10ffff}\u{2028}".to_owned(),
        "\"\\\u{0}\"]]>&amp;<x/>\r\n".to_owned(),
        "🦀é".repeat(50),
    ];
    let invalid: [&[u8]; 3] = [&[0xff, 0xfe, 0, 0xc0], &[0xed, 0xa0, 0x80], b"\xef\xbf\xbe\xef\xbf\xbf"];
    let payloads = texts.iter().map(|text| text.as_bytes()).chain(invalid);
    let sent: Vec<_> = payloads
        .zip(texts.iter().cycle())
        .zip(0..)
        .map(|((payload, text), n)| DeadLetter {
            payload: Payload::Stored(Bytes::copy_from_slice(payload)),
            tenant_id: Some(text.clone()),
            unique_id: Some(text.clone()),
            detail: text.clone(),
            amberflo_answer: Some(text.clone()),
            partition_key: text.clone(),
            ..letter(n)
        })
        .collect();
    queue.send(&sent).await.unwrap();
    assert_eq!(letters(&queue).await, sent);
}

#[tokio::test]
async fn letters_near_and_over_every_limit_are_stored() {
    let Some((moto, client)) = moto("sqs-large-letters").await else { return };
    let url = create(&client, "large", &[(QueueAttributeName::MaximumMessageSize, "262144")]).await;
    let queue = open(&moto, &url).await;
    // The emulator counts characters: these letters are ASCII.
    let text = |len: usize| Payload::Stored(vec![b'x'; len].into());
    let noise = |len: usize| {
        let mut state = 7_u64;
        let next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        Bytes::from_iter(std::iter::repeat_with(next).take(len))
    };
    let omitted = noise(1 << 20);
    let payloads = (0..30).map(|n| text(100_000 - n)).chain((0..8).map(|n| text(261_300 + n * 50))).chain([
        text(5 << 20),
        Payload::Stored(noise(190_000)),
        Payload::Stored(omitted.clone()),
    ]);
    let sent: Vec<_> = payloads.zip(0..).map(|(payload, n)| DeadLetter { payload, ..letter(n) }).collect();
    queue.send(&sent).await.unwrap();

    let mut received = letters(&queue).await;
    let (last, expected) = (received.pop().unwrap(), sent.len() - 1);
    assert_eq!(received, sent[..expected]);
    let forgotten_at = last.arrived_at + 24 * 3_600_000;
    let left = Omitted { bytes: 1 << 20, sha256: sha256(&omitted), forgotten_at };
    assert_eq!(last, DeadLetter { payload: Payload::Omitted(left), ..sent[expected].clone() });
}

#[tokio::test]
async fn messages_of_others_and_of_newer_versions_stay_and_hold_up_nothing() {
    let Some((moto, client)) = moto("sqs-foreign-messages").await else { return };
    let url = create(&client, "shared-queue", &[]).await;
    let queue = open(&moto, &url).await;
    let newer = DeadLetter { schema_version: u32::MAX, ..letter(1) };
    let foreign = ["hello".to_owned(), "{}".to_owned(), serde_json::to_string(&newer).unwrap()];
    for text in foreign.iter().cycle().take(12) {
        client.send_message().queue_url(&url).message_body(text).send().await.unwrap();
    }
    queue.send(&[letter(7)]).await.unwrap();
    assert_eq!(queue.receive(1).await.unwrap().len(), 1, "behind more foreign messages than one call gives");
    assert_eq!(queue.depth().await.unwrap(), 13);
}

#[tokio::test]
async fn what_was_looked_at_can_be_redriven_and_purged_at_once() {
    let Some((moto, client)) = moto("sqs-looked-at").await else { return };
    let queue = open(&moto, &create(&client, "looked-at", &[]).await).await;
    let stream = LocalStore::open_in_memory(LocalOptions::default()).unwrap();
    let payload = Payload::Stored(Bytes::from_static(br#"{"tenantId":"t","meterApiName":"m","meterValue":1}"#));
    let good = |n| DeadLetter { reason: "rejected".to_owned(), payload: payload.clone(), ..letter(n) };
    let sent: Vec<_> = (0..12).map(letter).chain((20..35).map(good)).collect();
    queue.send(&sent).await.unwrap();
    let deadline = || Instant::now() + Duration::from_secs(20);
    for _ in 0..2 {
        let peek = peek(&queue, &Filter::default(), 50, deadline()).await.unwrap();
        assert_eq!((peek.letters.len(), peek.more, peek.hidden), (27, false, false));
    }
    let options = redrive::Options { deadline: Some(deadline()), ..redrive::Options::all(i64::MAX) };
    let report = redrive::run(&queue, &stream, &options).await.unwrap();
    assert_eq!((report.totals.redriven, report.skipped, report.more), (15, 12, false));
    let purged = purge(&queue, &Filter::default(), 10, Some(deadline())).await.unwrap();
    assert_eq!((purged.removed, purged.more), (10, false));
    assert_eq!(letters(&queue).await, sent[10..12]);
}

#[tokio::test]
async fn the_reason_and_the_tenant_are_message_attributes() {
    let Some((moto, client)) = moto("sqs-attributes").await else { return };
    let url = create(&client, "attributes", &[]).await;
    let queue = open(&moto, &url).await;
    let nobody = DeadLetter { tenant_id: None, ..letter(1) };
    let odd = DeadLetter { tenant_id: Some("\u{1}".to_owned()), ..letter(2) };
    queue.send(&[letter(0), nobody, odd]).await.unwrap();
    let request = client.receive_message().queue_url(&url).max_number_of_messages(10).message_attribute_names("All");
    let mut found: Vec<_> = request
        .send()
        .await
        .unwrap()
        .messages
        .unwrap()
        .into_iter()
        .map(|message| {
            let letter: DeadLetter = serde_json::from_str(&message.body.unwrap()).unwrap();
            let attributes = message.message_attributes.unwrap();
            let text = |name: &str| Some(attributes.get(name)?.string_value.clone().unwrap());
            (letter.dead_lettered_at, text("reason").unwrap(), text("tenantId"))
        })
        .collect();
    found.sort();
    let reason = || "not_json".to_owned();
    assert_eq!(found, [(0, reason(), Some("tenant".to_owned())), (1, reason(), None), (2, reason(), None)]);
}
