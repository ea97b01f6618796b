//! What a test's administrator does with the services that `moto` emulates.

use aws_sdk_sqs::types::QueueAttributeName::MessageRetentionPeriod;
use aws_sdk_sqs::types::{Message, MessageSystemAttributeName};

use crate::configuration;

/// Creates a queue in the emulator at `url`; answers the queue's own URL.
///
/// # Panics
/// Where the emulator refuses.
pub async fn create_queue(url: &str, name: &str) -> String {
    let client = aws_sdk_sqs::Client::new(&configuration(url));
    // The longest that a queue keeps messages: 14 days.
    let create = client.create_queue().queue_name(name).attributes(MessageRetentionPeriod, "1209600");
    let answer = create.send().await.expect("CreateQueue");
    answer.queue_url.expect("a queue has a URL")
}

/// Takes all visible messages out of a queue, with all their attributes.
///
/// # Panics
/// Where the emulator refuses.
pub async fn take_messages(url: &str, queue_url: &str) -> Vec<Message> {
    let client = aws_sdk_sqs::Client::new(&configuration(url));
    let mut messages = Vec::new();
    loop {
        let call = client.receive_message().queue_url(queue_url).max_number_of_messages(10).wait_time_seconds(0);
        let call = call.message_attribute_names("All").message_system_attribute_names(MessageSystemAttributeName::All);
        let some = call.send().await.expect("ReceiveMessage").messages.unwrap_or_default();
        if some.is_empty() {
            return messages;
        }
        for message in &some {
            let call = client.delete_message().queue_url(queue_url);
            call.set_receipt_handle(message.receipt_handle.clone()).send().await.expect("DeleteMessage");
        }
        messages.extend(some);
    }
}

/// Sets a secret in the emulator at `url`, a new one or a new version.
///
/// # Panics
/// Where the emulator refuses.
pub async fn put_secret(url: &str, name: &str, value: &str) {
    let client = aws_sdk_secretsmanager::Client::new(&configuration(url));
    let created = client.create_secret().name(name).secret_string(value).send().await;
    if let Err(error) = created {
        let error = error.into_service_error();
        assert!(error.is_resource_exists_exception(), "CreateSecret: {error:?}");
        client.put_secret_value().secret_id(name).secret_string(value).send().await.expect("PutSecretValue");
    }
}
