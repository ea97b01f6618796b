//! Publishing with PutRecords.

use std::time::Duration;

use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, PutRecordsResultEntry};
use backon::{BackoffBuilder as _, ExponentialBuilder};

use super::KinesisStream;
use crate::backend::{BackendError, NewRecord};

const MAX_RECORDS: usize = 500;
/// Data and partition keys of one call. The service takes 10 MiB (5 MiB until 2025); half of it is as fast and comes
/// through a slow line before the attempt times out.
const MAX_BYTES: usize = 5 << 20;

/// Tries in a row that stored nothing, after which a call gives up.
const MAX_TRIES: usize = 10;
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// A shard's budget is per second, so a longer wait gains nothing.
const MAX_DELAY: Duration = Duration::from_secs(5);

impl KinesisStream {
    pub(super) async fn put(&self, records: Vec<NewRecord>) -> Result<(), BackendError> {
        let total = records.len();
        let mut stored = 0;
        // One after the other: a later call would overtake the retries of an earlier one.
        for chunk in chunks(records) {
            self.put_chunk(chunk, &mut stored).await.map_err(|error| with_count(error, stored, total))?;
        }
        Ok(())
    }

    async fn put_chunk(
        &self,
        mut entries: Vec<PutRecordsRequestEntry>,
        stored: &mut usize,
    ) -> Result<(), BackendError> {
        let delays =
            ExponentialBuilder::new().with_min_delay(FIRST_DELAY).with_max_delay(MAX_DELAY).with_max_times(MAX_TRIES);
        let mut backoff = delays.build();
        loop {
            let request = self.client.put_records().set_records(Some(entries.clone()));
            let request = request.set_stream_name(self.by_name()).set_stream_arn(self.by_arn());
            // The SDK has retried a call that failed as a whole.
            let answer = request.send().await.map_err(|error| self.error("records could not be published", &error))?;
            if answer.records.len() != entries.len() {
                return Err(self.unavailable("PutRecords did not answer for every record"));
            }
            let sent = entries.len();
            let reason = answer.records.iter().find(|result| !is_stored(result)).map(reason);
            let mut results = answer.records.iter();
            entries.retain(|_| results.next().is_some_and(|result| !is_stored(result)));
            *stored += sent - entries.len();
            let Some(reason) = reason else { return Ok(()) };
            if entries.len() < sent {
                backoff = delays.build();
            }
            let Some(delay) = backoff.next() else {
                return Err(self.unavailable(&format!("records were refused {MAX_TRIES} times in a row: {reason}")));
            };
            tokio::time::sleep(delay.mul_f64(fastrand::f64())).await;
        }
    }
}

/// Cuts the records into calls that the service takes. A record that is too large for any goes alone, and is refused.
fn chunks(records: Vec<NewRecord>) -> Vec<Vec<PutRecordsRequestEntry>> {
    let mut chunks: Vec<Vec<_>> = Vec::new();
    let mut bytes = 0;
    for record in records {
        let size = record.data.len() + record.partition_key.len();
        bytes += size;
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < MAX_RECORDS && bytes <= MAX_BYTES => chunk.push(entry(record)),
            _ => {
                chunks.push(vec![entry(record)]);
                bytes = size;
            }
        }
    }
    chunks
}

#[expect(clippy::expect_used, reason = "both required fields are set")]
fn entry(record: NewRecord) -> PutRecordsRequestEntry {
    let data = Blob::new(Vec::from(record.data));
    let entry = PutRecordsRequestEntry::builder().data(data).partition_key(record.partition_key);
    entry.build().expect("data and partition key are there")
}

fn is_stored(result: &PutRecordsResultEntry) -> bool {
    result.error_code.is_none() && result.sequence_number.is_some()
}

fn reason(result: &PutRecordsResultEntry) -> String {
    let code = result.error_code.as_deref().unwrap_or("no code");
    format!("{code}: {}", result.error_message.as_deref().unwrap_or("no message"))
}

fn with_count(error: BackendError, stored: usize, total: usize) -> BackendError {
    let count = |text: String| format!("{text} ({stored} of {total} records were stored)");
    match error {
        BackendError::Unavailable(text) => BackendError::Unavailable(count(text)),
        BackendError::Misconfigured(text) => BackendError::Misconfigured(count(text)),
        error => error,
    }
}
