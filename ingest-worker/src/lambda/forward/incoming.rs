//! What the forwarder is invoked with: an event of EventBridge, or messages of an SQS queue that hold such events.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::key::is_key;

const SQS: &str = "aws:sqs";

/// The payload of one invocation.
#[derive(Debug)]
pub enum Incoming<'a> {
    /// An event.
    Event(UsageEvent<'a>),
    /// Messages of a queue.
    Messages(Vec<Message>),
}

/// An event of EventBridge, so far as a forwarder looks into it.
#[derive(Debug)]
pub struct UsageEvent<'a> {
    /// The event as it came.
    pub text: &'a str,
    /// Its id, which can be a partition key.
    pub id: Cow<'a, str>,
}

/// A message of a queue.
#[derive(Debug)]
pub struct Message {
    /// By which the queue is told that it failed.
    pub id: String,
    /// What it says.
    pub body: String,
}

impl<'a> Incoming<'a> {
    /// Reads a payload.
    ///
    /// # Errors
    /// What it is instead; nothing of its contents.
    pub fn read(payload: &'a str) -> Result<Self, String> {
        if let Some(Records { records }) = object(payload) {
            let messages: Result<Vec<_>, _> = records.into_iter().map(Message::read).collect();
            return messages.map(Self::Messages);
        }
        let event = UsageEvent::read(payload);
        event.map(Self::Event).ok_or_else(|| "the payload is neither an event of EventBridge nor one of SQS".to_owned())
    }
}

impl<'a> UsageEvent<'a> {
    /// Reads an event. Of what it says nothing is looked at: the worker is the judge of that.
    pub fn read(text: &'a str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Envelope<'a> {
            #[serde(borrow)]
            id: Name<'a>,
            #[serde(borrow, rename = "detail-type")]
            _detail_type: Name<'a>,
            #[serde(borrow, rename = "detail")]
            _detail: &'a RawValue,
        }

        let envelope: Envelope = object(text)?;
        is_key(&envelope.id.0).then_some(Self { text, id: envelope.id.0 })
    }

    /// Reads the body of a message: an event, as EventBridge and Lambda's dead-letter queue leave it, or Lambda's record of
    /// an invocation that failed, as its on-failure destination gets it.
    /// Source: <https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html>.
    pub fn read_message(body: &'a str) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Failed<'a> {
            #[serde(borrow, rename = "requestContext")]
            _request_context: &'a RawValue,
            #[serde(borrow)]
            request_payload: &'a RawValue,
        }

        Self::read(body).or_else(|| {
            let failed: Failed = object(body)?;
            Self::read(failed.request_payload.get())
        })
    }
}

impl Message {
    fn read(record: &RawValue) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Record {
            #[serde(alias = "EventSource")]
            event_source: String,
            message_id: Option<String>,
            body: Option<String>,
        }

        let record: Record =
            serde_json::from_str(record.get()).map_err(|_| "the payload has records without a source".to_owned())?;
        match record {
            Record { event_source, message_id: Some(id), body: Some(body) } if event_source == SQS => {
                Ok(Self { id, body })
            }
            Record { event_source, .. } => {
                let source: String = event_source.chars().take(50).collect();
                Err(format!("the payload is of {source:?}; allowed is an SQS queue, or an event of EventBridge"))
            }
        }
    }
}

#[derive(Deserialize)]
struct Records<'a> {
    #[serde(borrow, rename = "Records")]
    records: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads an object. An array would pass for one, its elements for members.
fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    text.trim_start().starts_with('{').then(|| serde_json::from_str(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const EVENT: &str = r#" { "id" : "e-1", "detail-type": "ingestUsage", "detail": {"meterValue": 1.50e2}, "n": 12345678901234567890123 } "#;

    #[test]
    fn an_event_is_kept_as_it_came() {
        let Ok(Incoming::Event(event)) = Incoming::read(EVENT) else { panic!() };
        assert_eq!((event.text, &*event.id), (EVENT, "e-1"));
    }

    #[test]
    fn messages_hold_events_or_failed_invocations() {
        let failed = format!(
            r#"{{"version":"1.0","requestContext":{{"condition":"RetriesExhausted"}},"requestPayload":{EVENT},"responsePayload":null}}"#
        );
        let messages = json!({"Records": [
            {"messageId": "1", "body": EVENT, "eventSource": "aws:sqs", "attributes": {}},
            {"messageId": "2", "body": failed, "eventSource": "aws:sqs"},
        ]});
        let Ok(Incoming::Messages(messages)) = Incoming::read(&messages.to_string()).map_err(|error| panic!("{error}"))
        else {
            panic!()
        };
        assert_eq!(messages.iter().map(|message| &*message.id).collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(UsageEvent::read_message(&messages[0].body).unwrap().text, EVENT);
        assert_eq!(UsageEvent::read_message(&messages[1].body).unwrap().text, EVENT.trim());
    }

    #[test]
    fn what_is_no_event_is_not_taken_for_one() {
        let long = json!({"id": "x".repeat(257), "detail-type": "t", "detail": {}}).to_string();
        for text in [
            "",
            "not json",
            "null",
            "{}",
            r#"["e", "t", {}]"#,
            r#"[[]]"#,
            r#"[{}, {"id": "e", "detail-type": "t", "detail": {}}]"#,
            r#"{"id": "e", "detail-type": "t"}"#,
            r#"{"id": "e", "detail": {}}"#,
            r#"{"detail-type": "t", "detail": {}}"#,
            r#"{"id": "", "detail-type": "t", "detail": {}}"#,
            r#"{"id": 7, "detail-type": "t", "detail": {}}"#,
            r#"{"id": "e", "detail-type": "t", "detail": {}} {}"#,
            r#"{"tenantId": "a", "meterApiName": "m", "meterValue": 1}"#,
            r#"{"requestPayload": {"id": "e", "detail-type": "t", "detail": {}}}"#,
            r#"{"requestContext": {}, "requestPayload": {"key1": "value1"}}"#,
            r#"{"requestContext": {}}"#,
            &long,
        ] {
            assert!(UsageEvent::read_message(text).is_none(), "{text}");
            assert!(Incoming::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn another_source_is_named_and_nothing_of_its_contents() {
        for (payload, expected) in [
            (json!({"Records": [{"eventSource": "aws:kinesis", "kinesis": {"data": "secret"}}]}), "aws:kinesis"),
            (json!({"Records": [{"EventSource": "aws:sns", "Sns": {"Message": "secret"}}]}), "aws:sns"),
            (json!({"Records": [{"eventSource": "aws:sqs", "body": "secret"}]}), "aws:sqs"),
            (json!({"Records": ["secret"]}), "without a source"),
        ] {
            let error = Incoming::read(&payload.to_string()).unwrap_err();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
        assert!(matches!(Incoming::read(r#"{"Records": []}"#), Ok(Incoming::Messages(none)) if none.is_empty()));
    }
}
