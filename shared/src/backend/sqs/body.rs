//! A dead letter as an SQS message: within the queue's size limit, and in characters that SQS keeps.

use std::time::Duration;

use crate::clock::{UnixMillis, millis};
use crate::dead_letter::{DeadLetter, Omitted, Payload, gzip_base64, sha256};
use crate::event::{MAX_NAME_BYTES, MAX_UNIQUE_ID_BYTES};

/// A letter without its payload needs at most this much, with every field at its longest and every character escaped.
pub(super) const MIN_ROOM: usize = 32 << 10;

/// A partition key has at most 256 characters (Kinesis' PutRecord).
const MAX_PARTITION_KEY_BYTES: usize = 256 * 4;
/// The data type of all message attributes.
pub(super) const ATTRIBUTE_TYPE: &str = "String";
const ELLIPSIS: char = '…';

/// A message to send.
#[derive(Clone, Debug)]
pub(super) struct Body {
    /// The letter as JSON.
    pub text: String,
    /// The message attributes, all of the type `String`.
    pub attributes: Vec<(&'static str, String)>,
    /// The payload is not in it: where it can be found.
    pub omitted: Option<OmittedFrom>,
}

/// Where a payload is that its letter had no room for.
#[derive(Clone, Debug)]
pub(super) struct OmittedFrom {
    pub shard: String,
    pub sequence_number: String,
    pub bytes: u64,
    pub forgotten_at: UnixMillis,
}

impl Body {
    /// The size as SQS counts it: the body and, of each attribute, name, type and value.
    pub fn size(&self) -> usize {
        self.text.len() + size(&self.attributes)
    }
}

/// The letter as a message of at most `max_bytes`, which are no less than [`MIN_ROOM`]: whole where that fits; else
/// with the payload compressed; then with texts cut that no redrive needs; at last without its payload, which the
/// stream holds for `retention`.
pub(super) fn fit(letter: &DeadLetter, max_bytes: usize, retention: Duration) -> Result<Body, serde_json::Error> {
    let attributes = attributes(letter);
    let room = max_bytes.saturating_sub(size(&attributes));
    let body = |text| Body { text, attributes: attributes.clone(), omitted: None };
    let whole = plain(letter)?;
    if whole.len() <= room {
        return Ok(body(whole));
    }
    let mut short = shortened(letter);
    let Payload::Stored(payload) = &letter.payload else {
        return Ok(body(plain(&short)?));
    };
    let gzip = gzip_base64(payload);
    // A text that cannot fit is not built.
    let packed = |letter| if gzip.len() <= room { packed(letter, &gzip).map(Some) } else { Ok(None) };
    for text in [packed(letter)?, Some(plain(&short)?), packed(&short)?].into_iter().flatten() {
        if text.len() <= room {
            return Ok(body(text));
        }
    }
    let omitted = Omitted {
        bytes: payload.len() as u64,
        sha256: sha256(payload),
        forgotten_at: letter.arrived_at.saturating_add(millis(retention)),
    };
    let from = OmittedFrom {
        shard: letter.shard.clone(),
        sequence_number: letter.sequence_number.clone(),
        bytes: omitted.bytes,
        forgotten_at: omitted.forgotten_at,
    };
    short.payload = Payload::Omitted(omitted);
    Ok(Body { omitted: Some(from), ..body(plain(&short)?) })
}

fn plain(letter: &DeadLetter) -> Result<String, serde_json::Error> {
    serde_json::to_string(letter).map(escape)
}

fn packed(letter: &DeadLetter, gzip: &str) -> Result<String, serde_json::Error> {
    let without = DeadLetter { payload: Payload::Stored(bytes::Bytes::new()), ..letter.clone() };
    let mut value = serde_json::to_value(without)?;
    if let Some(members) = value.as_object_mut() {
        members.remove("payload");
        members.insert("payloadGzipBase64".to_owned(), gzip.into());
    }
    serde_json::to_string(&value).map(escape)
}

/// SQS refuses U+FFFE and U+FFFF, or puts U+FFFD in their place; its other forbidden characters, the controls, are
/// escaped in JSON anyhow. Source: the API reference of `SendMessageBatch`.
fn escape(json: String) -> String {
    // Outside of strings JSON is ASCII.
    if json.contains(is_noncharacter) {
        json.replace('\u{fffe}', "\\ufffe").replace('\u{ffff}', "\\uffff")
    } else {
        json
    }
}

const fn is_noncharacter(c: char) -> bool {
    matches!(c, '\u{fffe}' | '\u{ffff}')
}

/// The letter with its texts cut to lengths that real ones seldom have. An idempotency key too long to be one of ours
/// is left out: half of it would be another key.
fn shortened(letter: &DeadLetter) -> DeadLetter {
    let cut = |text: &str| cut(text, MAX_NAME_BYTES);
    DeadLetter {
        schema_version: letter.schema_version,
        reason: cut(&letter.reason),
        detail: cut(&letter.detail),
        payload: letter.payload.clone(),
        partition_key: self::cut(&letter.partition_key, MAX_PARTITION_KEY_BYTES),
        stream: cut(&letter.stream),
        shard: cut(&letter.shard),
        sequence_number: cut(&letter.sequence_number),
        arrived_at: letter.arrived_at,
        tenant_id: letter.tenant_id.as_deref().map(cut),
        meter_api_name: letter.meter_api_name.as_deref().map(cut),
        unique_id: letter.unique_id.clone().filter(|unique_id| unique_id.len() <= MAX_UNIQUE_ID_BYTES),
        meter_time_in_millis: letter.meter_time_in_millis,
        redrive_count: letter.redrive_count,
        amberflo_status: letter.amberflo_status,
        amberflo_answer: letter.amberflo_answer.as_deref().map(cut),
        worker: cut(&letter.worker),
        dead_lettered_at: letter.dead_lettered_at,
    }
}

/// At most `max_bytes` of the text, with a sign where something is missing.
fn cut(text: &str, max_bytes: usize) -> String {
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(max_bytes - ELLIPSIS.len_utf8());
    format!("{}{ELLIPSIS}", &text[..end])
}

/// For filters and consoles. A tenant that SQS would refuse or change has none: the body has it as it is.
fn attributes(letter: &DeadLetter) -> Vec<(&'static str, String)> {
    let is_allowed = |value: &String| {
        (1..=MAX_NAME_BYTES).contains(&value.len())
            && !value.contains(|c: char| is_noncharacter(c) || (c < ' ' && !matches!(c, '\t' | '\n' | '\r')))
    };
    let named = [("reason", Some(&letter.reason)), ("tenantId", letter.tenant_id.as_ref())];
    let of = |(name, value): (_, Option<&String>)| Some((name, value.filter(|value| is_allowed(value))?.clone()));
    named.into_iter().filter_map(of).collect()
}

fn size(attributes: &[(&str, String)]) -> usize {
    attributes.iter().map(|(name, value)| name.len() + ATTRIBUTE_TYPE.len() + value.len()).sum()
}
