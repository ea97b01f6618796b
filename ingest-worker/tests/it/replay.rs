//! What an archive of EventBridge replays: the event with its id and time, and the replay's name beside them.
//! Source: <https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-archive.html>.

use serde_json::{Value, json};
use shared::backend::{NewRecord, Stream as _};
use tokio::time::sleep;

use crate::harness::{MINUTE, World, usage};

/// Neither idempotency key nor time in `detail`: both are the envelope's.
fn event() -> Value {
    let mut detail = usage("tenant", 7);
    detail.as_object_mut().unwrap().remove("uniqueId");
    json!({"detail-type": "ingestUsage", "id": "e-7", "time": "2026-01-01T00:00:00Z", "detail": detail})
}

async fn put(world: &World, mut event: Value, replay: Option<&str>) {
    if let Some(name) = replay {
        event["replay-name"] = name.into();
    }
    let record = NewRecord { partition_key: "tenant".to_owned(), data: event.to_string().into() };
    world.store.publish(vec![record]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_replay_is_a_duplicate_or_the_identical_record() {
    let world = World::new(1);
    let worker = world.start().await;
    put(&world, event(), None).await;
    world.settle_within(MINUTE).await;
    put(&world, event(), Some("within-the-window")).await;
    world.settle_within(MINUTE).await;
    world.assert_billed_without_copies(1);

    sleep(60 * MINUTE).await;
    put(&world, event(), Some("later")).await;
    world.settle_within(MINUTE).await;
    worker.drain().await;
    world.assert_billed_once(1);
    let sent = world.wire.sent();
    assert_eq!((sent.len(), world.sandbox.ledger().absorbed_copies), (2, 1));
    assert_eq!(sent[0].gzipped, sent[1].gzipped, "byte for byte");
    assert_eq!(sent[0].records()[0]["uniqueId"], "e-7");
    assert!(world.letters().await.is_empty());
}
