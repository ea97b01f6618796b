//! Dead letters in a standard queue of SQS.
//!
//! Each letter is a message: its JSON is the body, and `reason` and `tenantId` are message attributes. What is too large
//! for the queue is compressed, or at last sent without its payload: see [`Payload`](crate::dead_letter::Payload).
//!
//! The IAM actions it needs on the queue: `sqs:GetQueueAttributes`, `sqs:SendMessage`, and to look at letters and
//! redrive them `sqs:ReceiveMessage`, `sqs:DeleteMessage` and `sqs:ChangeMessageVisibility` (without the last one, letters
//! that were looked at stay hidden for a minute).

mod body;
mod queue_url;
mod received;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{Message, MessageAttributeValue, QueueAttributeName, SendMessageBatchRequestEntry};
use tokio::time::{Instant, sleep, timeout};

use crate::backend::{BackendError, DeadLetters, Received, aws};
use crate::dead_letter::{DeadLetter, SCHEMA_VERSION};
use body::Body;
use queue_url::Surroundings;
use received::Fate;

/// Entries of one batch call, and messages of one receive. Source: the SQS quotas.
const BATCH: usize = 10;
/// The most bytes in one message, and in one batch call. Source: the SQS quotas, since August 2025.
const MAX_BATCH_BYTES: usize = 1 << 20;
/// How long a received letter is hidden from other receivers.
const HIDDEN: Duration = Duration::from_secs(60);
/// No further receive is begun after this long, so that the first letters are still hidden while the caller works.
const RECEIVE_TIME: Duration = Duration::from_secs(10);
/// A receive that waits asks all servers of the queue; one that does not asks a few, and may miss letters.
const WAIT: Duration = Duration::from_secs(1);
/// How long a failed send may take to find out whether the queue's limit has changed.
const LIMIT_TIME: Duration = Duration::from_secs(2);
/// Entries of a batch that fail alone are sent again after each of these, in milliseconds.
const BACKOFF: [u64; 4] = [100, 300, 900, 2700];
/// The longest time for which a queue can be told to keep messages. Source: the SQS quotas.
const LONGEST_RETENTION: Duration = Duration::from_secs(14 * 24 * 3600);

/// The SQS end of [`DeadLetters`]. Cheap to clone.
#[derive(Clone)]
pub struct SqsDeadLetters {
    client: Client,
    queue_url: String,
    /// As the queue's attributes said when they were last asked for.
    max_bytes: Arc<AtomicUsize>,
    /// How long the stream holds a record.
    retention: Duration,
}

impl SqsDeadLetters {
    /// Checks the URL, that the queue exists, and that its size limit leaves room for a letter. `retention` is how long
    /// the stream holds a record: it tells when an omitted payload is lost.
    ///
    /// # Errors
    /// [`BackendError::Misconfigured`] says in one line what is wrong with the queue or its URL;
    /// [`BackendError::Unavailable`] where SQS does not answer.
    pub async fn open(config: &SdkConfig, queue_url: &str, retention: Duration) -> Result<Self, BackendError> {
        let refused =
            |detail: String| BackendError::Misconfigured(format!("dead-letter queue {queue_url:?}: {detail}"));
        let region = config.region().map_or("", |region| region.as_ref());
        let surroundings = Surroundings { region, has_own_endpoint: has_own_endpoint(config) };
        queue_url::check(queue_url, &surroundings).map_err(refused)?;
        let queue = Self {
            client: Client::new(config),
            queue_url: queue_url.to_owned(),
            max_bytes: Arc::new(AtomicUsize::new(MAX_BATCH_BYTES)),
            retention,
        };
        let attributes = queue.attributes().await?;
        if let Some(max_bytes) = number(&attributes, &QueueAttributeName::MaximumMessageSize)
            && max_bytes < body::MIN_ROOM as u64
        {
            return Err(refused(format!(
                "its MaximumMessageSize is {max_bytes}; allowed is at least {}",
                body::MIN_ROOM
            )));
        }
        queue.warn_of_losses(&attributes);
        Ok(queue)
    }

    /// Settings under which SQS itself removes letters that nobody has seen.
    fn warn_of_losses(&self, attributes: &HashMap<QueueAttributeName, String>) {
        let queue = &self.queue_url;
        if let Some(seconds) = number(attributes, &QueueAttributeName::MessageRetentionPeriod)
            && seconds < LONGEST_RETENTION.as_secs()
        {
            tracing::warn!(queue, seconds, "the queue forgets letters sooner than it could: set 14 days");
        }
        if attributes.contains_key(&QueueAttributeName::RedrivePolicy) {
            tracing::warn!(queue, "the queue moves letters that were looked at often to another queue: RedrivePolicy");
        }
    }

    /// Asks for the queue's attributes, and keeps its size limit.
    async fn attributes(&self) -> Result<HashMap<QueueAttributeName, String>, BackendError> {
        let request = self.client.get_queue_attributes().queue_url(&self.queue_url);
        let answer = request.attribute_names(QueueAttributeName::All).send().await;
        let attributes = answer.map_err(|error| self.error("", &error))?.attributes.unwrap_or_default();
        if let Some(max_bytes) = number(&attributes, &QueueAttributeName::MaximumMessageSize) {
            let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX).clamp(body::MIN_ROOM, MAX_BATCH_BYTES);
            self.max_bytes.store(max_bytes, Ordering::Relaxed);
        }
        Ok(attributes)
    }

    async fn body(&self, letter: &DeadLetter) -> Result<Body, BackendError> {
        let (max_bytes, retention) = (self.max_bytes.load(Ordering::Relaxed), self.retention);
        let is_large = letter.payload.stored().is_some_and(|payload| payload.len() > max_bytes / 4);
        let body = if is_large {
            let letter = letter.clone();
            // Compressing megabytes would hold up the other tasks of this thread.
            tokio::task::spawn_blocking(move || body::fit(&letter, max_bytes, retention))
                .await
                .map_err(|error| BackendError::Unavailable(format!("a dead letter as JSON: {error}")))?
        } else {
            body::fit(letter, max_bytes, retention)
        };
        body.map_err(|error| BackendError::Misconfigured(format!("a dead letter as JSON: {error}")))
    }

    /// Sends a batch; entries that fail alone are sent again, and the others are not.
    async fn send_batch(&self, batch: &Batch) -> Result<(), BackendError> {
        let mut entries = batch.entries()?;
        let mut backoff = BACKOFF.into_iter();
        loop {
            let request = self.client.send_message_batch().queue_url(&self.queue_url);
            let answer = request.set_entries(Some(entries.clone())).send().await;
            let answer = answer.map_err(|error| self.error("sending", &error))?;
            // What the answer does not name is not known to be stored.
            entries.retain(|entry| !answer.successful().iter().any(|stored| stored.id() == entry.id()));
            if entries.is_empty() {
                batch.report_omitted();
                return Ok(());
            }
            let Some(delay) = backoff.next() else {
                let (code, message) = answer
                    .failed()
                    .first()
                    .map_or(("no reason", ""), |failed| (failed.code(), failed.message().unwrap_or_default()));
                let (queue, count) = (&self.queue_url, entries.len());
                return Err(BackendError::Unavailable(format!(
                    "dead-letter queue {queue:?}: {count} of {} letters were refused: {code}: {message}",
                    batch.bodies.len()
                )));
            };
            sleep(Duration::from_millis(delay)).await;
        }
    }

    async fn send_all(&self, letters: &[DeadLetter]) -> Result<(), BackendError> {
        let mut batch = Batch::default();
        for letter in letters {
            let body = self.body(letter).await?;
            if !batch.has_room(&body, self.max_bytes.load(Ordering::Relaxed)) {
                self.send_batch(&std::mem::take(&mut batch)).await?;
            }
            batch.push(body);
        }
        if batch.bodies.is_empty() { Ok(()) } else { self.send_batch(&batch).await }
    }

    async fn receive_some(&self, max: usize) -> Result<Vec<Message>, BackendError> {
        let answer = self
            .client
            .receive_message()
            .queue_url(&self.queue_url)
            .max_number_of_messages(int(max.min(BATCH)))
            .wait_time_seconds(int(WAIT.as_secs()))
            .visibility_timeout(int(HIDDEN.as_secs()))
            .send()
            .await;
        Ok(answer.map_err(|error| self.error("receiving", &error))?.messages.unwrap_or_default())
    }

    fn error<E, R>(&self, attempt: &str, error: &aws_sdk_sqs::error::SdkError<E, R>) -> BackendError
    where
        E: aws_sdk_sqs::error::ProvideErrorMetadata + std::error::Error + 'static,
        R: std::fmt::Debug + 'static,
    {
        let space = if attempt.is_empty() { "" } else { " " };
        aws::error(&format!("dead-letter queue {:?}{space}{attempt}", self.queue_url), error)
    }
}

impl fmt::Debug for SqsDeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsDeadLetters").field("queue_url", &self.queue_url).finish_non_exhaustive()
    }
}

#[async_trait]
impl DeadLetters for SqsDeadLetters {
    fn name(&self) -> &str {
        self.queue_url.rsplit('/').next().unwrap_or_default()
    }

    async fn send(&self, letters: &[DeadLetter]) -> Result<(), BackendError> {
        let result = self.send_all(letters).await;
        if result.is_err() {
            // The limit may have been lowered: the caller's next attempt goes by the new one. Its error says enough.
            let _ = timeout(LIMIT_TIME, self.attributes()).await;
        }
        result
    }

    /// Messages that are not ours, or of a newer version, stay in the queue, hidden like the others.
    async fn receive(&self, max: usize) -> Result<Vec<Received>, BackendError> {
        let deadline = Instant::now() + RECEIVE_TIME;
        let mut letters = Vec::new();
        while letters.len() < max && Instant::now() < deadline {
            match self.receive_some(max - letters.len()).await {
                Ok(messages) if messages.is_empty() => break,
                Ok(messages) => letters.extend(messages.into_iter().filter_map(read)),
                // Those that came are hidden by now: nobody else can take them.
                Err(_) if !letters.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(letters)
    }

    async fn delete(&self, receipts: &[String]) -> Result<(), BackendError> {
        self.settle(receipts, Fate::Delete).await
    }

    async fn release(&self, receipts: &[String]) -> Result<(), BackendError> {
        self.settle(receipts, Fate::Release).await
    }

    async fn depth(&self) -> Result<u64, BackendError> {
        let attributes = self.attributes().await?;
        let counts = [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
            QueueAttributeName::ApproximateNumberOfMessagesDelayed,
        ];
        Ok(counts.iter().filter_map(|name| number(&attributes, name)).sum())
    }
}

/// What one call sends.
#[derive(Default)]
struct Batch {
    bodies: Vec<Body>,
    bytes: usize,
}

impl Batch {
    /// The sum of a batch counts against the limit of a message too.
    fn has_room(&self, body: &Body, max_bytes: usize) -> bool {
        self.bodies.is_empty() || (self.bodies.len() < BATCH && self.bytes + body.size() <= max_bytes)
    }

    fn push(&mut self, body: Body) {
        self.bytes += body.size();
        self.bodies.push(body);
    }

    /// An operator has until the stream's retention ends.
    fn report_omitted(&self) {
        for omitted in self.bodies.iter().filter_map(|body| body.omitted.as_ref()) {
            metrics::counter!("ingest_dead_letters_omitted_total").increment(1);
            tracing::error!(
                shard = omitted.shard,
                sequence_number = omitted.sequence_number,
                bytes = omitted.bytes,
                forgotten_at = omitted.forgotten_at,
                "dead letter is stored without its payload, which only the stream holds: redrive it before it is forgotten"
            );
        }
    }

    fn entries(&self) -> Result<Vec<SendMessageBatchRequestEntry>, BackendError> {
        let attribute = |(name, value): &(&'static str, String)| {
            let value = MessageAttributeValue::builder().data_type(body::ATTRIBUTE_TYPE).string_value(value);
            Ok(((*name).to_owned(), value.build().map_err(build_error)?))
        };
        let entry = |(id, body): (usize, &Body)| {
            let attributes = body.attributes.iter().map(attribute).collect::<Result<HashMap<_, _>, _>>()?;
            let entry = SendMessageBatchRequestEntry::builder().id(id.to_string()).message_body(&body.text);
            entry.set_message_attributes(Some(attributes)).build().map_err(build_error)
        };
        self.bodies.iter().enumerate().map(entry).collect()
    }
}

/// The letter, unless something else wrote it, or a newer version of this program: then it must not hold up the others.
fn read(message: Message) -> Option<Received> {
    let id = message.message_id.as_deref().unwrap_or_default();
    let letter = match serde_json::from_str::<DeadLetter>(message.body.as_deref().unwrap_or_default()) {
        Ok(letter) if letter.schema_version <= SCHEMA_VERSION => letter,
        Ok(DeadLetter { schema_version, .. }) => {
            tracing::warn!(id, version = schema_version, "dead letter is of a newer version: left in the queue");
            return None;
        }
        Err(error) => {
            // The error could quote what was sent: its place says enough.
            let (line, column) = (error.line(), error.column());
            tracing::warn!(id, line, column, "message is not a dead letter: left in the queue");
            return None;
        }
    };
    Some(Received { receipt: message.receipt_handle?, letter })
}

fn has_own_endpoint(config: &SdkConfig) -> bool {
    aws::has_own_endpoint(config, "SQS")
}

fn number(attributes: &HashMap<QueueAttributeName, String>, name: &QueueAttributeName) -> Option<u64> {
    attributes.get(name)?.parse().ok()
}

fn int(number: impl TryInto<i32>) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}

fn build_error(error: aws_smithy_types::error::operation::BuildError) -> BackendError {
    BackendError::Misconfigured(format!("dead letters: {error}"))
}

#[cfg(test)]
mod tests {
    use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};

    use super::*;

    /// What `AWS_ENDPOINT_URL_<service>` or a profile says.
    #[derive(Debug)]
    struct EndpointOf(&'static str);

    impl LoadServiceConfig for EndpointOf {
        fn load_config(&self, key: ServiceConfigKey<'_>) -> Option<String> {
            let is_asked = (key.service_id(), key.env(), key.profile()) == (self.0, "AWS_ENDPOINT_URL", "endpoint_url");
            is_asked.then(|| "http://proxy".to_owned())
        }
    }

    #[test]
    fn an_endpoint_of_sqs_or_of_all_services_is_found() {
        let has = |builder: aws_types::sdk_config::Builder| has_own_endpoint(&builder.build());
        assert!(!has(SdkConfig::builder()));
        assert!(has(SdkConfig::builder().endpoint_url("http://proxy")));
        assert!(has(SdkConfig::builder().service_config(EndpointOf("SQS"))));
        assert!(!has(SdkConfig::builder().service_config(EndpointOf("Kinesis"))));
    }
}
