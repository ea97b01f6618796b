//! Publishing with PutRecords.

use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, PutRecordsResultEntry};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::time::{Instant, sleep, timeout_at};

use super::{KinesisStream, StreamName, client, error_of};
use crate::backend::{BackendError, NewRecord};

const MAX_RECORDS: usize = 500;
/// Data and partition keys of one call. The service takes 10 MiB (5 MiB until 2025); half of it is as fast and comes
/// through a slow line before the attempt times out.
const MAX_BYTES: usize = 5 << 20;
/// Data and partition key of a record that every stream takes. A larger one goes alone: where the stream does not take
/// it, the whole call is refused.
const MAX_RECORD_BYTES: usize = 1 << 20;

/// Tries in a row that stored nothing, after which a call gives up.
const MAX_TRIES: usize = 10;
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// A shard's budget is per second, so a longer wait gains nothing.
const MAX_DELAY: Duration = Duration::from_secs(5);

impl KinesisStream {
    pub(super) async fn put(&self, records: Vec<NewRecord>) -> Result<(), BackendError> {
        let total = records.len();
        let mut stored = 0;
        let writer =
            Writer { client: self.client.clone(), address: self.address.clone(), region: Arc::clone(&self.region) };
        // One after the other: a later call would overtake the retries of an earlier one.
        for chunk in chunks(records) {
            writer.put_all(chunk, &mut stored).await.map_err(|error| with_count(error, stored, total))?;
        }
        Ok(())
    }
}

/// Puts records on a stream, with no permission but `kinesis:PutRecords`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Writer {
    client: Client,
    address: StreamName,
    region: Arc<str>,
}

impl Writer {
    /// A writer to this stream, which is not looked for. An ARN's region goes before the one of `config`.
    #[must_use]
    pub fn new(config: &SdkConfig, address: StreamName) -> Self {
        let (client, region) = client(config, &address);
        Self { client, address, region }
    }

    /// Puts the records, and those that are refused again and again until `deadline`; answers of each whether it is
    /// stored. A record may be stored although the answer says otherwise: where the service's own did not come in time.
    pub async fn put_until(&self, records: Vec<NewRecord>, deadline: Instant) -> Vec<Result<(), Arc<BackendError>>> {
        let late = Arc::new(self.unavailable("PutRecords did not answer in time"));
        let mut results: Vec<_> = records.iter().map(|_| Err(Arc::clone(&late))).collect();
        let mut open: Vec<_> = records.into_iter().enumerate().collect();
        let mut backoff = delays().without_max_times().build();
        // All have their turn before one has a second: a record that is always refused does not hold up the others.
        while !open.is_empty() {
            let (places, records): (Vec<usize>, Vec<_>) = std::mem::take(&mut open).into_iter().unzip();
            let mut places = places.into_iter();
            for records in chunks(records) {
                let places: Vec<_> = places.by_ref().take(records.len()).collect();
                match timeout_at(deadline, self.call(&records)).await {
                    Err(_) => return results,
                    Ok(Ok(answer)) => {
                        let reason = answer.reason.map(|reason| format!("records were refused: {reason}"));
                        let refused = Arc::new(self.unavailable(&reason.unwrap_or_default()));
                        for ((place, record), is_stored) in places.into_iter().zip(records).zip(answer.is_stored) {
                            results[place] = if is_stored { Ok(()) } else { Err(Arc::clone(&refused)) };
                            if !is_stored {
                                open.push((place, record));
                            }
                        }
                    }
                    Ok(Err(error)) => {
                        let is_final = matches!(error, BackendError::Misconfigured(_));
                        let error = Arc::new(error);
                        places.iter().for_each(|place| results[*place] = Err(Arc::clone(&error)));
                        if !is_final {
                            open.extend(places.into_iter().zip(records));
                        }
                    }
                }
            }
            let delay = backoff.next().unwrap_or(MAX_DELAY).mul_f64(fastrand::f64());
            if open.is_empty() || Instant::now() + delay >= deadline {
                break;
            }
            sleep(delay).await;
        }
        results
    }

    /// Puts the records; gives up when too many tries in a row stored nothing.
    async fn put_all(&self, mut records: Vec<NewRecord>, stored: &mut usize) -> Result<(), BackendError> {
        let delays = delays().with_max_times(MAX_TRIES);
        let mut backoff = delays.build();
        loop {
            let sent = records.len();
            let answer = self.call(&records).await?;
            let mut is_stored = answer.is_stored.into_iter();
            records.retain(|_| is_stored.next().is_some_and(|is_stored| !is_stored));
            *stored += sent - records.len();
            let Some(reason) = answer.reason else { return Ok(()) };
            if records.len() < sent {
                backoff = delays.build();
            }
            let Some(delay) = backoff.next() else {
                return Err(self.unavailable(&format!("records were refused {MAX_TRIES} times in a row: {reason}")));
            };
            sleep(delay.mul_f64(fastrand::f64())).await;
        }
    }

    /// Makes one call, which must not be larger than the service takes, and does not repeat what was refused.
    ///
    /// # Errors
    /// When the call failed as a whole: records may be stored all the same.
    pub async fn call(&self, records: &[NewRecord]) -> Result<Answer, BackendError> {
        let request = self.client.put_records().set_records(Some(records.iter().map(entry).collect()));
        let request = match self.address.arn() {
            Some(arn) => request.stream_arn(arn),
            None => request.stream_name(self.address.name()),
        };
        let failed = |error| error_of(&self.address, &self.region, "records could not be published", &error);
        // The SDK has retried a call that failed as a whole.
        let answer = request.send().await.map_err(failed)?;
        if answer.records.len() != records.len() {
            return Err(self.unavailable("PutRecords did not answer for every record"));
        }
        let reason = answer.records.iter().find(|result| !is_stored(result)).map(reason);
        Ok(Answer { is_stored: answer.records.iter().map(is_stored).collect(), reason })
    }

    fn unavailable(&self, what: &str) -> BackendError {
        BackendError::Unavailable(format!("Kinesis stream {}: {what}", self.address))
    }
}

/// What became of the records of one call.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Of each in order, whether it is stored.
    pub is_stored: Vec<bool>,
    /// Why the first one was refused; `None`: none was.
    pub reason: Option<String>,
}

fn delays() -> ExponentialBuilder {
    ExponentialBuilder::new().with_min_delay(FIRST_DELAY).with_max_delay(MAX_DELAY)
}

/// Cuts the records into calls that the service takes. A record that is too large for any goes alone, and is refused.
fn chunks(records: Vec<NewRecord>) -> Vec<Vec<NewRecord>> {
    let mut chunks: Vec<Vec<_>> = Vec::new();
    let mut bytes = 0;
    for record in records {
        let size = record.data.len() + record.partition_key.len();
        bytes += size;
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < MAX_RECORDS && bytes <= MAX_BYTES && size <= MAX_RECORD_BYTES => {
                chunk.push(record);
            }
            _ => {
                chunks.push(vec![record]);
                // Nothing joins a large one.
                bytes = if size > MAX_RECORD_BYTES { MAX_BYTES } else { size };
            }
        }
    }
    chunks
}

#[expect(clippy::expect_used, reason = "both required fields are set")]
fn entry(record: &NewRecord) -> PutRecordsRequestEntry {
    let data = Blob::new(record.data.as_ref());
    let entry = PutRecordsRequestEntry::builder().data(data).partition_key(&record.partition_key);
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
