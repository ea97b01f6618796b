//! The forwarder: puts usage events on the stream where EventBridge's rule has a Lambda function for its target.
//!
//! An event goes on as it came, byte for byte, so that the worker makes the same record of it as of one that EventBridge
//! puts on the stream itself. What cannot be put comes again: EventBridge invokes asynchronously, so an error has Lambda
//! try again, and a queue keeps the messages that are answered as failures. Copies are absorbed like any others.

mod incoming;
mod key;

use std::sync::Arc;
use std::time::Duration;

use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::value::RawValue;
use shared::backend::kinesis::{StreamName, Writer};
use shared::backend::{NewRecord, aws};
use shared::clock::Clock;
use tokio::time::Instant;

use super::event::Answer;
use incoming::{Incoming, Message, UsageEvent};
pub use key::KeyPath;

/// How long before Lambda would end the invocation it is answered; at most a fifth of its time.
const MARGIN: Duration = Duration::from_secs(1);

/// Answers events for as long as Lambda has some.
///
/// # Errors
/// When Lambda's runtime API fails, or no AWS region is known.
pub async fn serve(stream: StreamName, path: KeyPath) -> anyhow::Result<()> {
    let configuration = aws::configuration(stream.region()).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %stream, partition_key = %path, "started as forwarder");
    let forwarder = Arc::new(Forwarder { writer: Writer::new(&configuration, stream), path, clock: Clock::system() });
    let answer = service_fn(move |event: LambdaEvent<Box<RawValue>>| {
        let forwarder = Arc::clone(&forwarder);
        async move { forwarder.answer(event).await }
    });
    lambda_runtime::run(answer).await.map_err(|error| anyhow::anyhow!("the runtime API of Lambda: {error}"))
}

struct Forwarder {
    writer: Writer,
    path: KeyPath,
    clock: Clock,
}

impl Forwarder {
    /// An error has the whole payload come again.
    async fn answer(&self, event: LambdaEvent<Box<RawValue>>) -> Result<Answer, lambda_runtime::Error> {
        let deadline = i64::try_from(event.context.deadline).unwrap_or(i64::MAX);
        let left = self.clock.until(deadline);
        let end = Instant::now() + left - MARGIN.min(left / 5);
        let forwarded = match Incoming::read(event.payload.get()) {
            Ok(Incoming::Event(event)) => self.forward(&event, end).await.map(|()| Answer::default()),
            Ok(Incoming::Messages(messages)) => Ok(self.redrive(messages, end).await),
            Err(error) => Err(error),
        };
        forwarded.map_err(|error| {
            tracing::error!(error, "not forwarded");
            error.into()
        })
    }

    async fn forward(&self, event: &UsageEvent<'_>, end: Instant) -> Result<(), String> {
        let results = self.writer.put_until(vec![self.record(event)], end).await;
        results.into_iter().collect::<Result<(), _>>().map_err(|error| error.to_string())?;
        tracing::debug!(id = %event.id, "event forwarded");
        Ok(())
    }

    /// Answers the messages that stay in the queue.
    async fn redrive(&self, messages: Vec<Message>, end: Instant) -> Answer {
        let total = messages.len();
        let mut answer = Answer::default();
        let (mut ids, mut records) = (Vec::new(), Vec::new());
        for Message { id, body } in messages {
            match UsageEvent::read_message(&body) {
                Some(event) => {
                    records.push(self.record(&event));
                    ids.push(id);
                }
                None => {
                    tracing::error!(message_id = id, "a message is no event of EventBridge, and stays in the queue");
                    answer.fail(id);
                }
            }
        }
        for (id, result) in ids.into_iter().zip(self.writer.put_until(records, end).await) {
            if let Err(error) = result {
                tracing::error!(message_id = id, %error, "a message is not forwarded, and stays in the queue");
                answer.fail(id);
            }
        }
        let failed = answer.batch_item_failures.len();
        tracing::info!(messages = total, forwarded = total - failed, failed, "messages of a queue");
        answer
    }

    fn record(&self, event: &UsageEvent<'_>) -> NewRecord {
        let partition_key = self.path.key(event.text).unwrap_or_else(|| event.id.clone().into_owned());
        NewRecord { partition_key, data: event.text.to_owned().into() }
    }
}
