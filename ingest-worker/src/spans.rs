//! The spans of traces: one trace for each batch. Attributes are OpenTelemetry's where it has one, and else begin with
//! `metering.`; none holds anything of an event.

use std::time::Duration;

use shared::dead_letter::DeadLetter;
use shared::service::traces::TARGET;
use tracing::field::{Empty, display};
use tracing::{Span, info_span};

use crate::batch::{Batch, Trigger};
use crate::context::ShardContext;

/// A batch, from its first request to its last dead letter; it has waited this long for a permit.
pub fn batch(shard: &ShardContext, batch: &Batch, trigger: Trigger, waited: Duration) -> Span {
    let first = batch.items.first().map(|item| display(&item.record.sequence_number));
    let last = batch.last.as_ref().map(|(sequence_number, _)| display(sequence_number));
    info_span!(
        target: TARGET,
        parent: None,
        "process",
        otel.name = format!("process {}", shard.stream_name),
        otel.kind = "consumer",
        messaging.system = if shard.stream_name.starts_with("kinesis:") { "aws.kinesis" } else { "local" },
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.client.id = shard.worker.0,
        messaging.destination.name = shard.stream_name,
        messaging.destination.partition.id = %shard.id,
        messaging.batch.message_count = batch.len(),
        metering.sequence_number.first = first,
        metering.sequence_number.last = last,
        metering.batch.trigger = trigger.as_str(),
        metering.batch.events = batch.items.len() as u64,
        metering.batch.bytes = batch.body_bytes() as u64,
        metering.batch.duplicates = batch.duplicates,
        metering.limiter.wait_seconds = waited.as_secs_f64(),
        metering.attempts = Empty,
        metering.delivered = Empty,
        metering.dead_lettered = Empty,
    )
}

/// One attempt to send records of a batch; `why` it is not their first. It has waited this long for a permit.
pub fn attempt(records: usize, body_bytes: usize, attempts: u64, why: Option<&str>, waited: Duration) -> Span {
    info_span!(
        target: TARGET,
        "attempt",
        metering.batch.events = records as u64,
        metering.request.body_bytes = body_bytes as u64,
        http.request.resend_count = attempts,
        metering.retry.reason = why,
        metering.limiter.wait_seconds = waited.as_secs_f64(),
        metering.decision = Empty,
    )
}

/// Storing dead letters, however often it is tried.
pub fn store(letters: &[DeadLetter]) -> Span {
    info_span!(
        target: TARGET,
        "send dead letters",
        otel.kind = "producer",
        messaging.operation.name = "send",
        messaging.operation.type = "send",
        messaging.batch.message_count = letters.len() as u64,
        metering.reason = letters.first().map(|letter| letter.reason.as_str()),
        metering.attempts = Empty,
    )
}
