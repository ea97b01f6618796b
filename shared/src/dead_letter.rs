//! A record that could not be delivered, with everything needed to understand it and to send it again.

mod payload;

use serde::{Deserialize, Serialize};

use crate::backend::{Record, ShardId};
use crate::clock::UnixMillis;
use crate::event::Identity;
use crate::reason::Reason;

pub use payload::{Omitted, Payload, gzip_base64, sha256};

/// The version of the JSON form; a reader refuses a higher one.
pub const SCHEMA_VERSION: u32 = 1;

/// A dead letter. As JSON: camelCase names, and the payload as [`Payload`] says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// [`SCHEMA_VERSION`] when it was written.
    pub schema_version: u32,
    /// Why: one of [`Reason`]'s names.
    pub reason: String,
    /// The reason in words, for people.
    pub detail: String,
    /// The record as it arrived.
    #[serde(flatten)]
    pub payload: Payload,
    /// The record's partition key.
    pub partition_key: String,
    /// Name of the stream it came from.
    pub stream: String,
    /// Its shard.
    pub shard: String,
    /// Its place in the shard.
    pub sequence_number: String,
    /// When it entered the stream.
    pub arrived_at: UnixMillis,
    /// The tenant, where the event could be read that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    /// The meter, where the event could be read that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meter_api_name: Option<String>,
    /// The idempotency key that the event resolved to; with `meter_time_in_millis` what a redrive needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_id: Option<String>,
    /// The event time that the event resolved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meter_time_in_millis: Option<UnixMillis>,
    /// How often this event had been redriven before.
    pub redrive_count: u32,
    /// Amberflo's status, where Amberflo refused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amberflo_status: Option<u16>,
    /// The beginning of Amberflo's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amberflo_answer: Option<String>,
    /// The worker that gave it up.
    pub worker: String,
    /// When it was given up.
    pub dead_lettered_at: UnixMillis,
}

/// Where a dead letter comes from, and who wrote it when.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Name of the stream.
    pub stream: &'a str,
    /// The record's shard.
    pub shard: &'a ShardId,
    /// The worker that gives the record up.
    pub worker: &'a str,
    /// The present time.
    pub now: UnixMillis,
}

impl DeadLetter {
    /// The dead letter of `record`, with what could be read of its event. Amberflo has not answered.
    #[must_use]
    pub fn new(record: &Record, origin: Origin<'_>, reason: Reason, detail: String, identity: Identity) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            reason: reason.to_string(),
            detail,
            payload: Payload::Stored(record.data.clone()),
            partition_key: record.partition_key.clone(),
            stream: origin.stream.to_owned(),
            shard: origin.shard.to_string(),
            sequence_number: record.sequence_number.to_string(),
            arrived_at: record.arrived_at,
            tenant_id: identity.tenant_id,
            meter_api_name: identity.meter_api_name,
            unique_id: identity.unique_id,
            meter_time_in_millis: identity.meter_time,
            redrive_count: identity.redrive_count,
            amberflo_status: None,
            amberflo_answer: None,
            worker: origin.worker.to_owned(),
            dead_lettered_at: origin.now,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::backend::SequenceNumber;

    fn letter(payload: &'static [u8]) -> DeadLetter {
        let record = Record {
            data: Bytes::from_static(payload),
            partition_key: "t".to_owned(),
            sequence_number: SequenceNumber("1".to_owned()),
            arrived_at: 1,
        };
        let shard = ShardId("shard-0".to_owned());
        let origin = Origin { stream: "local", shard: &shard, worker: "w", now: 2 };
        DeadLetter::new(&record, origin, Reason::NotJson, "why".to_owned(), Identity::default())
    }

    /// Queues may hold letters of before an update.
    #[test]
    fn the_json_forms_of_payloads_stay() {
        let members = |letter: &DeadLetter| match serde_json::to_value(letter).unwrap() {
            serde_json::Value::Object(mut members) => {
                members.retain(|name, _| name.starts_with("payload"));
                serde_json::Value::Object(members)
            }
            other => other,
        };
        assert_eq!(members(&letter(b"{\"a\": 1}")), json!({"payload": "{\"a\": 1}"}));
        assert_eq!(members(&letter(b"\xff\x00")), json!({"payloadBase64": "/wA="}));
        let omitted = Omitted { bytes: 3, sha256: sha256(b"abc"), forgotten_at: 86_400_000 };
        let omitted = DeadLetter { payload: Payload::Omitted(omitted), ..letter(b"") };
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let form = json!({"payloadBytes": 3, "payloadSha256": digest, "payloadForgottenAt": 86_400_000});
        assert_eq!(members(&omitted), form);
        assert_eq!(serde_json::from_value::<DeadLetter>(serde_json::to_value(&omitted).unwrap()).unwrap(), omitted);
    }

    #[test]
    fn a_compressed_payload_is_read_and_a_bomb_is_not() {
        let read = |packed: String| {
            let mut json = serde_json::to_value(letter(b"")).unwrap();
            json.as_object_mut().unwrap().remove("payload");
            json["payloadGzipBase64"] = packed.into();
            serde_json::from_value::<DeadLetter>(json)
        };
        assert_eq!(read(gzip_base64(b"\xff\x00")).unwrap(), letter(b"\xff\x00"));
        assert!(read("not base64".to_owned()).is_err());
        assert!(read("AAAA".to_owned()).is_err());
        assert!(read(gzip_base64(&vec![0; 65 << 20])).is_err());
    }

    #[test]
    fn keeps_the_payload_byte_for_byte() {
        for payload in [&b""[..], b"{\"a\": 1}", b"\xff\x00\xfe", "\u{0}\u{fffd}".as_bytes()] {
            let before = letter(payload);
            let json = serde_json::to_string(&before).unwrap();
            assert_eq!(serde_json::from_str::<DeadLetter>(&json).unwrap(), before, "{json}");
        }
    }
}
