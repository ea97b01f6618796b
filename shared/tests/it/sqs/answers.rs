//! What a queue may answer, and what comes of it.

use std::sync::atomic::{AtomicUsize, Ordering};

use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use shared::backend::local::{LocalOptions, LocalStore};
use shared::backend::sqs::SqsDeadLetters;
use shared::backend::{BackendError, DeadLetters};
use shared::dead_letter::{DeadLetter, Payload};
use shared::redrive;

use super::RETENTION;
use crate::canned::{Canned, ServiceError};
use crate::contract::letter;

async fn open(server: &Canned) -> SqsDeadLetters {
    let url = format!("{}/123456789012/q", server.url);
    SqsDeadLetters::open(&emulators::configuration(&server.url), &url, RETENTION).await.unwrap()
}

fn attributes(max_bytes: usize) -> Value {
    json!({"Attributes": {"MaximumMessageSize": max_bytes.to_string()}})
}

fn ids(call: &Value) -> Vec<String> {
    call["Entries"].as_array().unwrap().iter().map(|entry| entry["Id"].as_str().unwrap().to_owned()).collect()
}

fn bodies(call: &Value) -> Vec<DeadLetter> {
    let body = |entry: &Value| serde_json::from_str(entry["MessageBody"].as_str().unwrap()).unwrap();
    call["Entries"].as_array().unwrap().iter().map(body).collect()
}

fn is_one_of(ids: &[&str]) -> impl Fn(&String) -> bool {
    let ids: Vec<_> = ids.iter().map(|&id| id.to_owned()).collect();
    move |id| ids.contains(id)
}

/// The answer to a batch call of which the entries with these ids failed, and those are not spoken of.
fn batch_answer(call: &Value, failed: &[&str], unspoken: &[&str]) -> Value {
    let (has_failed, is_unspoken) = (is_one_of(failed), is_one_of(unspoken));
    let (bad, good): (Vec<_>, Vec<_>) = ids(call).into_iter().filter(|id| !is_unspoken(id)).partition(has_failed);
    let stored = |id: String| json!({"Id": id, "MessageId": "m", "MD5OfMessageBody": "d"});
    let refused = |id: String| json!({"Id": id, "Code": "InternalError", "SenderFault": false, "Message": "later"});
    json!({
        "Successful": good.into_iter().map(stored).collect::<Vec<_>>(),
        "Failed": bad.into_iter().map(refused).collect::<Vec<_>>(),
    })
}

#[tokio::test]
async fn of_a_batch_only_what_failed_is_sent_again() {
    let calls = AtomicUsize::new(0);
    let server = Canned::start(move |operation, input| match operation {
        "GetQueueAttributes" => Ok(attributes(1 << 20)),
        _ => Ok(match calls.fetch_add(1, Ordering::Relaxed) {
            0 => batch_answer(input, &["1", "7"], &["3"]),
            1 => batch_answer(input, &["7"], &[]),
            _ => batch_answer(input, &[], &[]),
        }),
    })
    .await;
    let sent: Vec<_> = (0..12).map(letter).collect();
    open(&server).await.send(&sent).await.unwrap();
    let calls = server.calls("SendMessageBatch");
    let sent_in = |call: usize| bodies(&calls[call]).iter().map(|letter| letter.dead_lettered_at).collect::<Vec<_>>();
    assert_eq!(calls.len(), 4);
    assert_eq!(sent_in(0), Vec::from_iter(0..10));
    assert_eq!((sent_in(1), sent_in(2), sent_in(3)), (vec![1, 3, 7], vec![7], vec![10, 11]));
    assert_eq!(bodies(&calls[2])[0], sent[7]);
}

#[tokio::test]
async fn a_letter_that_is_refused_again_and_again_is_an_outage_that_the_caller_waits_out() {
    let server = Canned::start(|operation, input| match operation {
        "GetQueueAttributes" => Ok(attributes(1 << 20)),
        _ => Ok(batch_answer(input, &["0"], &[])),
    })
    .await;
    let error = open(&server).await.send(&[letter(0), letter(1)]).await.unwrap_err();
    let BackendError::Unavailable(text) = error else { panic!("{error}") };
    assert!(text.contains("1 of 2 letters") && text.contains("InternalError: later"), "{text}");
    assert_eq!(server.calls("SendMessageBatch").len(), 5);
}

#[tokio::test]
async fn a_queue_that_is_down_is_an_outage_of_every_call() {
    let server = Canned::start(|_, _| Ok(attributes(1 << 20))).await;
    let queue = open(&server).await;
    let (config, url) = (emulators::configuration(&server.url), format!("{}/123456789012/q", server.url));
    server.stop().await;
    let opened = SqsDeadLetters::open(&config, &url, RETENTION).await.map(|_| ());
    let receipts = ["r".to_owned()];
    let letters = [letter(0)];
    let (shown, calls) = tokio::join!(queue.release(&receipts), async {
        tokio::join!(queue.send(&letters), queue.receive(1), queue.delete(&receipts), queue.depth())
    });
    for result in [opened, shown, calls.0, calls.1.map(|_| ()), calls.2, calls.3.map(|_| ())] {
        assert!(matches!(result, Err(BackendError::Unavailable(_))), "{result:?}");
    }
}

#[tokio::test]
async fn permission_that_is_missing_is_refused_at_the_start() {
    let message = "User: arn:aws:iam::1:user/u is not authorized to perform: sqs:getqueueattributes";
    let server = Canned::start(move |_, _| Err(ServiceError(403, "com.amazonaws.sqs#AccessDenied", message))).await;
    let url = format!("{}/123456789012/q", server.url);
    let error = SqsDeadLetters::open(&emulators::configuration(&server.url), &url, RETENTION).await.unwrap_err();
    let BackendError::Misconfigured(text) = error else { panic!("{error}") };
    assert!(text.contains("not authorized") && text.contains(&url), "{text}");
}

#[tokio::test]
async fn a_batch_keeps_within_the_bytes_of_the_queue() {
    const LIMIT: usize = 100_000;
    let server = Canned::start(|operation, input| match operation {
        "GetQueueAttributes" => Ok(attributes(LIMIT)),
        _ => Ok(batch_answer(input, &[], &[])),
    })
    .await;
    let of =
        |n: i64| DeadLetter { payload: Payload::Stored(vec![b'x'; 9_000 + n as usize * 1000].into()), ..letter(n) };
    let sent: Vec<_> = (0..60).map(of).collect();
    open(&server).await.send(&sent).await.unwrap();
    let calls = server.calls("SendMessageBatch");
    let size = |entry: &Value| {
        let attributes = entry["MessageAttributes"].as_object().unwrap();
        let attribute = |(name, value): (&String, &Value)| {
            name.len() + "String".len() + value["StringValue"].as_str().unwrap().len()
        };
        entry["MessageBody"].as_str().unwrap().len() + attributes.iter().map(attribute).sum::<usize>()
    };
    for call in &calls {
        let entries = call["Entries"].as_array().unwrap();
        assert!(entries.len() <= 10 && entries.iter().map(size).sum::<usize>() <= LIMIT);
    }
    assert_eq!(calls.iter().flat_map(bodies).collect::<Vec<_>>(), sent);
}

#[tokio::test]
async fn a_limit_that_was_lowered_holds_from_the_next_attempt() {
    let asked = AtomicUsize::new(0);
    let server = Canned::start(move |operation, input| match operation {
        "GetQueueAttributes" if asked.fetch_add(1, Ordering::Relaxed) == 0 => Ok(attributes(1 << 20)),
        "GetQueueAttributes" => Ok(attributes(50_000)),
        _ if input.to_string().len() > 60_000 => {
            Err(ServiceError(400, "com.amazonaws.sqs#BatchRequestTooLong", "too long"))
        }
        _ => Ok(batch_answer(input, &[], &[])),
    })
    .await;
    let queue = open(&server).await;
    let sent = [DeadLetter { payload: Payload::Stored(vec![b'x'; 80_000].into()), ..letter(0) }];
    assert!(queue.send(&sent).await.is_err());
    queue.send(&sent).await.unwrap();
    let calls = server.calls("SendMessageBatch");
    assert!(calls.last().unwrap().to_string().contains("payloadGzipBase64"));
    assert_eq!(bodies(calls.last().unwrap()), sent);
}

#[tokio::test]
async fn letters_that_came_before_an_error_are_not_dropped() {
    let body = serde_json::to_string(&letter(3)).unwrap();
    let received = AtomicUsize::new(0);
    let server = Canned::start(move |operation, _| match operation {
        "GetQueueAttributes" => Ok(attributes(1 << 20)),
        _ if received.fetch_add(1, Ordering::Relaxed) == 0 => {
            Ok(json!({"Messages": [{"MessageId": "m", "ReceiptHandle": "r", "Body": body}]}))
        }
        _ => Err(ServiceError(400, "com.amazonaws.sqs#OverLimit", "too many in flight")),
    })
    .await;
    let queue = open(&server).await;
    let letters = queue.receive(50).await.unwrap();
    assert_eq!((letters.len(), &*letters[0].receipt, &letters[0].letter), (1, "r", &letter(3)));
    assert!(matches!(queue.receive(50).await, Err(BackendError::Unavailable(_))));
    let first = &server.calls("ReceiveMessage")[0];
    assert_eq!((&first["MaxNumberOfMessages"], &first["VisibilityTimeout"]), (&json!(10), &json!(60)));
}

#[tokio::test]
async fn a_delete_that_failed_is_made_again_and_one_of_an_unknown_receipt_is_not() {
    let deletes = AtomicUsize::new(0);
    let server = Canned::start(move |operation, input| match operation {
        "GetQueueAttributes" => Ok(attributes(1 << 20)),
        _ if deletes.fetch_add(1, Ordering::Relaxed) > 0 => Ok(batch_answer(input, &[], &[])),
        _ => {
            let mut answer = batch_answer(input, &["0", "1"], &[]);
            answer["Failed"][0]["SenderFault"] = true.into();
            Ok(answer)
        }
    })
    .await;
    let receipts: Vec<_> = (0..3).map(|n| format!("r{n}")).collect();
    open(&server).await.delete(&receipts).await.unwrap();
    let calls = server.calls("DeleteMessageBatch");
    assert_eq!(calls.iter().map(ids).collect::<Vec<_>>(), [vec!["0", "1", "2"], vec!["1"]]);
    assert_eq!(calls[1]["Entries"][0]["ReceiptHandle"], "r1");
}

#[tokio::test]
async fn a_release_makes_letters_visible_at_once_and_ignores_those_that_are_not_hidden() {
    let releases = AtomicUsize::new(0);
    let server = Canned::start(move |operation, input| match operation {
        "GetQueueAttributes" => Ok(attributes(1 << 20)),
        _ => Ok(match releases.fetch_add(1, Ordering::Relaxed) {
            0 => {
                let mut answer = batch_answer(input, &["0", "1"], &["7"]);
                let code = "AWS.SimpleQueueService.MessageNotInflight";
                answer["Failed"][0] = json!({"Id": "0", "Code": code, "SenderFault": true});
                answer
            }
            _ => batch_answer(input, &[], &[]),
        }),
    })
    .await;
    let receipts: Vec<_> = (0..12).map(|n| format!("r{n}")).collect();
    open(&server).await.release(&receipts).await.unwrap();
    let calls = server.calls("ChangeMessageVisibilityBatch");
    assert_eq!(calls.iter().map(|call| ids(call).len()).collect::<Vec<_>>(), [10, 2, 2]);
    assert_eq!(ids(&calls[1]), ["1", "7"], "what failed alone, and what the answer did not name");
    assert_eq!(calls[1]["Entries"][1], json!({"Id": "7", "ReceiptHandle": "r7", "VisibilityTimeout": 0}));
}

/// A role that may not release: letters that were looked at stay hidden, and nothing else suffers.
#[tokio::test]
async fn without_the_permission_to_release_a_redrive_still_works() {
    let body = |n| {
        let letter = DeadLetter { reason: "conflict".to_owned(), ..letter(n) };
        json!({"MessageId": "m", "ReceiptHandle": format!("r{n}"), "Body": serde_json::to_string(&letter).unwrap()})
    };
    let received = AtomicUsize::new(0);
    let server = Canned::start(move |operation, _| match operation {
        "GetQueueAttributes" => Ok(attributes(1 << 20)),
        "ReceiveMessage" if received.fetch_add(1, Ordering::Relaxed) == 0 => {
            Ok(json!({"Messages": [body(1), body(2)]}))
        }
        "ReceiveMessage" => Ok(json!({})),
        _ => Err(ServiceError(403, "com.amazonaws.sqs#AccessDenied", "not authorized")),
    })
    .await;
    let stream = LocalStore::open_in_memory(LocalOptions::default()).unwrap();
    let queue = open(&server).await;
    let report = redrive::run(&queue, &stream, &redrive::Options::all(i64::MAX)).await.unwrap();
    assert_eq!((report.skipped, report.totals.conflicts), (2, 2));
    assert_eq!(server.calls("ChangeMessageVisibilityBatch").len(), 1);
}

#[tokio::test]
async fn an_omitted_payload_is_counted_once_its_letter_is_stored() {
    let sends = AtomicUsize::new(0);
    let server = Canned::start(move |operation, input| match operation {
        "GetQueueAttributes" => Ok(attributes(40_000)),
        _ if sends.fetch_add(1, Ordering::Relaxed) == 0 => {
            Err(ServiceError(400, "com.amazonaws.sqs#OverLimit", "not now"))
        }
        _ => Ok(batch_answer(input, &[], &[])),
    })
    .await;
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let counted = || recorder.handle().render();
    let queue = open(&server).await;
    // Digits of numbers compress to less than half, so this is too large in every form.
    let digits: String = (0..100_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_string()).collect();
    let sent = [DeadLetter { payload: Payload::Stored(digits.into()), ..letter(0) }, letter(1)];
    assert!(queue.send(&sent).await.is_err());
    assert!(!counted().contains("omitted"), "{}", counted());
    queue.send(&sent).await.unwrap();
    assert!(counted().contains("ingest_dead_letters_omitted_total 1"), "{}", counted());
}
