//! What Lambda sends for a Kinesis stream, and what it is answered.
//!
//! The types of the crate `aws_lambda_events` are not used: up to 1.2.1 it reads an arrival time of .1 s as 1 ms, and it
//! refuses a record without one. An arrival time can become part of a billed record, which must be the same record
//! whoever read it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use shared::backend::{BackendError, Record, SequenceNumber, ShardId, kinesis};

/// Records of one shard, in its order.
#[derive(Debug, Deserialize)]
pub struct Event {
    #[serde(rename = "Records")]
    records: Vec<EventRecord>,
}

#[derive(Debug, Deserialize)]
struct EventRecord {
    /// `shardId-000000000000:SEQUENCE-NUMBER`
    #[serde(rename = "eventID")]
    id: String,
    #[serde(rename = "eventSourceARN")]
    source: String,
    kinesis: Data,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    #[serde(deserialize_with = "from_base64")]
    data: Vec<u8>,
    partition_key: String,
    sequence_number: String,
    /// Seconds.
    approximate_arrival_timestamp: Option<f64>,
}

impl Event {
    /// The stream that the event comes from; `None`: the event is empty.
    #[must_use]
    pub fn stream(&self) -> Option<Result<kinesis::StreamName, BackendError>> {
        // That of a registered consumer has its name after the stream's.
        let source = self.records.first()?.source.as_str();
        Some(source.split_once("/consumer/").map_or(source, |(stream, _)| stream).parse())
    }

    /// The records by shard, in order. Lambda sends those of one shard only.
    #[must_use]
    pub fn into_shards(self) -> Vec<(ShardId, Vec<Record>)> {
        let mut shards: Vec<(ShardId, Vec<Record>)> = Vec::new();
        for EventRecord { id, kinesis: record, .. } in self.records {
            let shard = id.split_once(':').map_or(id.as_str(), |(shard, _)| shard);
            let record = Record {
                data: record.data.into(),
                partition_key: record.partition_key,
                sequence_number: SequenceNumber(record.sequence_number),
                // As the reader of a shard does where there is none.
                arrived_at: record.approximate_arrival_timestamp.map_or(0, kinesis::arrival),
            };
            match shards.iter_mut().find(|(known, _)| known.0 == shard) {
                Some((_, records)) => records.push(record),
                None => shards.push((ShardId(shard.to_owned()), vec![record])),
            }
        }
        shards
    }
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
    BASE64.decode(text.as_ref()).map_err(|error| D::Error::custom(format!("the data of a record: {error}")))
}

/// Which records are to come again. Of a stream Lambda goes on with the one of lowest sequence number, and those that
/// follow it; of a queue with just these.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// One for each shard with unsettled records, the first of them; or one for each failed message. None: all is settled.
    pub batch_item_failures: Vec<Failure>,
}

/// A record that was not settled, or a message.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Its sequence number, or the message's id.
    pub item_identifier: String,
}

impl Answer {
    /// This record is to come again, and what follows it in its shard.
    pub fn fail_from(&mut self, first: SequenceNumber) {
        self.fail(first.0);
    }

    /// The message with this id is to come again.
    pub fn fail(&mut self, item_identifier: String) {
        self.batch_item_failures.push(Failure { item_identifier });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(arrival: &str) -> String {
        let record = json!({
            "kinesis": {
                "kinesisSchemaVersion": "1.0",
                "partitionKey": "tenant",
                "sequenceNumber": "49590338271490256608559692538361571095921575989136588898",
                "data": "SGVsbG8gd29ybGQu",
            },
            "eventSource": "aws:kinesis",
            "eventVersion": "1.0",
            "eventID": "shardId-000000000006:49590338271490256608559692538361571095921575989136588898",
            "eventName": "aws:kinesis:record",
            "invokeIdentityArn": "arn:aws:iam::123456789012:role/lambda-role",
            "awsRegion": "us-east-2",
            "eventSourceARN": "arn:aws:kinesis:us-east-2:123456789012:stream/lambda-stream",
        });
        let text = json!({ "Records": [record] }).to_string();
        text.replace(r#""partitionKey""#, &format!(r#"{arrival}"partitionKey""#))
    }

    fn arrival(number: &str) -> i64 {
        let event: Event = serde_json::from_str(&event(number)).unwrap();
        event.into_shards()[0].1[0].arrived_at
    }

    #[test]
    fn a_record_is_read_as_a_reader_of_the_shard_reads_it() {
        let event: Event = serde_json::from_str(&event(r#""approximateArrivalTimestamp": 1545084650.987,"#)).unwrap();
        assert_eq!(event.stream().unwrap().unwrap().name(), "lambda-stream");
        let sequence_number = "49590338271490256608559692538361571095921575989136588898".to_owned();
        let record = Record {
            data: "Hello world.".into(),
            partition_key: "tenant".to_owned(),
            sequence_number: SequenceNumber(sequence_number),
            arrived_at: 1_545_084_650_987,
        };
        assert_eq!(event.into_shards(), [(ShardId("shardId-000000000006".to_owned()), vec![record])]);
    }

    #[test]
    fn an_arrival_time_keeps_its_milliseconds() {
        for (text, expected) in [
            ("1700000000.123", 1_700_000_000_123),
            ("1700000000.1", 1_700_000_000_100),
            ("1700000000.12", 1_700_000_000_120),
            ("1700000000.01", 1_700_000_000_010),
            ("1700000000.001", 1_700_000_000_001),
            ("1700000000.999", 1_700_000_000_999),
            ("1.700000000123E9", 1_700_000_000_123),
            ("1700000000", 1_700_000_000_000),
            ("null", 0),
        ] {
            assert_eq!(arrival(&format!(r#""approximateArrivalTimestamp": {text},"#)), expected, "{text}");
        }
        assert_eq!(arrival(""), 0);
        for millis in 0..1000 {
            let text = format!(r#""approximateArrivalTimestamp": 1767225600.{millis:03},"#);
            assert_eq!(arrival(&text), 1_767_225_600_000 + millis);
        }
    }

    #[test]
    fn what_is_no_event_of_kinesis_is_refused() {
        for text in [
            "{}",
            r#"{"Records": [{"messageId": "1", "body": "{}", "eventSource": "aws:sqs"}]}"#,
            &event("").replace("SGVsbG8gd29ybGQu", "%"),
        ] {
            assert!(serde_json::from_str::<Event>(text).is_err(), "{text}");
        }
        let empty: Event = serde_json::from_str(r#"{"Records": []}"#).unwrap();
        assert!(empty.stream().is_none());
    }

    #[test]
    fn the_source_may_be_a_registered_consumer() {
        let text = event("").replace("stream/lambda-stream", "stream/lambda-stream/consumer/efo:1545084650");
        let event: Event = serde_json::from_str(&text).unwrap();
        let stream = event.stream().unwrap().unwrap();
        assert_eq!(stream.to_string(), "arn:aws:kinesis:us-east-2:123456789012:stream/lambda-stream");
    }
}
