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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::dead_letter::SCHEMA_VERSION;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// A letter whose every text is `text`, as long as a text of a real one can be and longer.
    fn letter(text: &str, payload: impl Into<Bytes>) -> DeadLetter {
        DeadLetter {
            schema_version: SCHEMA_VERSION,
            reason: text.to_owned(),
            detail: text.to_owned(),
            payload: Payload::Stored(payload.into()),
            partition_key: text.to_owned(),
            stream: text.to_owned(),
            shard: text.to_owned(),
            sequence_number: text.to_owned(),
            arrived_at: i64::MIN,
            tenant_id: Some(text.to_owned()),
            meter_api_name: Some(text.to_owned()),
            unique_id: Some(text.to_owned()),
            meter_time_in_millis: Some(i64::MIN),
            redrive_count: u32::MAX,
            amberflo_status: Some(u16::MAX),
            amberflo_answer: Some(text.to_owned()),
            worker: text.to_owned(),
            dead_lettered_at: i64::MIN,
        }
    }

    /// Bytes that gzip cannot make smaller.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    fn is_kept_by_sqs(c: char) -> bool {
        matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
    }

    fn checked(letter: &DeadLetter, max_bytes: usize) -> (Body, DeadLetter) {
        let body = fit(letter, max_bytes, DAY).unwrap();
        assert!(body.size() <= max_bytes, "{} > {max_bytes}", body.size());
        assert!(body.text.chars().all(is_kept_by_sqs));
        assert!(body.attributes.iter().all(|(_, value)| !value.is_empty() && value.chars().all(is_kept_by_sqs)));
        let read = serde_json::from_str(&body.text).unwrap();
        (body, read)
    }

    #[test]
    fn every_letter_fits_in_the_end() {
        for text in ["", "a", "\u{0}", "\u{ffff}", "\"", "ü", "\u{1f600}"] {
            for count in [1, 64, 256, 1024, 10_000] {
                for payload in [vec![], vec![b'a'; 1 << 16], noise(1 << 16), vec![0; 1 << 16]] {
                    checked(&letter(&text.repeat(count), payload), MIN_ROOM);
                }
            }
        }
    }

    #[test]
    fn a_payload_is_whole_then_compressed_then_omitted() {
        let whole = letter("a", vec![b'x'; 32_000]);
        let limit = fit(&whole, 1 << 20, DAY).unwrap().size();
        let (body, read) = checked(&whole, limit);
        assert!(body.text.contains("\"payload\":") && read == whole, "what fits to the byte stays as it is");
        let whole = letter("a", vec![b'x'; 40_000]);
        let limit = fit(&whole, 1 << 20, DAY).unwrap().size();
        let (body, read) = checked(&whole, limit - 1);
        assert!(body.text.contains("payloadGzipBase64") && body.omitted.is_none(), "one byte less does not");
        assert_eq!(read, whole);

        let noisy = DeadLetter { arrived_at: 1000, ..letter("a", noise(100_000)) };
        let (body, read) = checked(&noisy, MIN_ROOM);
        assert!(body.omitted.is_some());
        let omitted = Omitted { bytes: 100_000, sha256: sha256(&noise(100_000)), forgotten_at: 1000 + 86_400_000 };
        assert_eq!(read, DeadLetter { payload: Payload::Omitted(omitted), ..noisy });
    }

    #[test]
    fn a_long_detail_goes_before_the_payload_does() {
        let payload = noise(20_000);
        let long = DeadLetter { detail: "é".repeat(20_000), ..letter("a", payload.clone()) };
        let (_, read) = checked(&long, MIN_ROOM);
        assert_eq!(read.payload, Payload::Stored(payload.into()));
        assert!(read.detail.ends_with(ELLIPSIS) && read.detail.len() <= MAX_NAME_BYTES, "{}", read.detail);
        assert_eq!(DeadLetter { detail: String::new(), ..read }, DeadLetter { detail: String::new(), ..long });
    }

    #[test]
    fn an_identity_of_the_longest_kind_is_kept() {
        let longest = DeadLetter {
            tenant_id: Some("\u{1}".repeat(MAX_NAME_BYTES)),
            meter_api_name: Some("\u{1}".repeat(MAX_NAME_BYTES)),
            unique_id: Some("\u{1}".repeat(MAX_UNIQUE_ID_BYTES)),
            partition_key: "\u{1}".repeat(MAX_NAME_BYTES),
            ..letter("9", noise(100_000))
        };
        let (body, read) = checked(&longest, MIN_ROOM);
        let payload = read.payload.clone();
        assert_eq!(read, DeadLetter { payload, ..longest });
        assert_eq!(body.attributes, [("reason", "9".to_owned())], "a tenant that SQS refuses is no attribute");
        assert_eq!(body.size(), body.text.len() + "reason".len() + "String".len() + "9".len());
    }

    proptest! {
        #[test]
        fn what_fits_comes_back_as_it_was(text in any::<String>(), payload in any::<Vec<u8>>()) {
            let before = letter(&text, payload);
            let (_, after) = checked(&before, MIN_ROOM);
            prop_assert_eq!(after, before);
        }
    }
}
