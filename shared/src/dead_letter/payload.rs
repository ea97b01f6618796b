//! The payload of a dead letter, in memory and as JSON.

use std::io::{Read as _, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

use crate::clock::UnixMillis;

/// No stream takes a record this large: a letter that unpacks to more was not written by us.
const MAX_UNPACKED_BYTES: u64 = 64 << 20;

/// The record of a dead letter.
///
/// As JSON, members beside the others of the letter: text in `payload`; what is not UTF-8 in `payloadBase64`; for a
/// queue with too little room in `payloadGzipBase64`; and where even that is too large `payloadBytes`, `payloadSha256`
/// and `payloadForgottenAt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Byte for byte as it arrived.
    Stored(Bytes),
    /// Too large for the queue: it has to be read from the stream again.
    Omitted(Omitted),
}

/// What is known of a payload that is not in its letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Omitted {
    /// Its length.
    pub bytes: u64,
    /// Its [`sha256`].
    pub sha256: String,
    /// When the stream's retention of the record ends.
    pub forgotten_at: UnixMillis,
}

impl Payload {
    /// The record, where the letter has it.
    #[must_use]
    pub const fn stored(&self) -> Option<&Bytes> {
        match self {
            Self::Stored(bytes) => Some(bytes),
            Self::Omitted(_) => None,
        }
    }
}

/// The SHA-256 of a payload in lower-case hexadecimal digits.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A payload as it stands in `payloadGzipBase64`.
#[must_use]
pub fn gzip_base64(bytes: &[u8]) -> String {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Writing to a Vec cannot fail.
    let _ = encoder.write_all(bytes);
    STANDARD.encode(encoder.finish().unwrap_or_default())
}

fn unpack(text: &str) -> Result<Vec<u8>, String> {
    let packed = STANDARD.decode(text).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let decoder = GzDecoder::new(packed.as_slice());
    decoder.take(MAX_UNPACKED_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_UNPACKED_BYTES {
        return Err(format!("it has more than {MAX_UNPACKED_BYTES} bytes"));
    }
    Ok(bytes)
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Form {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_gzip_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_forgotten_at: Option<UnixMillis>,
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let form = match self {
            Self::Stored(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Form { payload: Some(text.to_owned()), ..Form::default() },
                Err(_) => Form { payload_base64: Some(STANDARD.encode(bytes)), ..Form::default() },
            },
            Self::Omitted(Omitted { bytes, sha256, forgotten_at }) => Form {
                payload_bytes: Some(*bytes),
                payload_sha256: Some(sha256.clone()),
                payload_forgotten_at: Some(*forgotten_at),
                ..Form::default()
            },
        };
        form.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use de::Error as _;
        match Form::deserialize(deserializer)? {
            Form { payload: Some(text), .. } => Ok(Self::Stored(text.into())),
            Form { payload_base64: Some(text), .. } => {
                STANDARD.decode(text).map(|bytes| Self::Stored(bytes.into())).map_err(D::Error::custom)
            }
            Form { payload_gzip_base64: Some(text), .. } => unpack(&text)
                .map(|bytes| Self::Stored(bytes.into()))
                .map_err(|error| D::Error::custom(format!("payloadGzipBase64: {error}"))),
            Form {
                payload_bytes: Some(bytes),
                payload_sha256: Some(sha256),
                payload_forgotten_at: Some(forgotten_at),
                ..
            } => Ok(Self::Omitted(Omitted { bytes, sha256, forgotten_at })),
            Form { .. } => Err(D::Error::missing_field("payload")),
        }
    }
}
