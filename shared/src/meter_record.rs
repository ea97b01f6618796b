//! The record that Amberflo receives: a pure, canonical function of the event.
//!
//! Amberflo discards a copy only when every attribute is identical, so a retry, a replay, a takeover and a redrive
//! must all produce these very bytes. `tests/it/golden` pins them: changing them is a breaking release.

use crate::event::UsageEvent;

/// Appends the event's record as compact JSON.
///
/// The names are Amberflo's; it ignores unknown ones silently, so none is ever sent. Order: fixed, dimensions by name.
pub fn write(event: &UsageEvent<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"customerId\":");
    write_string(&event.tenant_id, out);
    out.extend_from_slice(b",\"meterApiName\":");
    write_string(&event.meter_api_name, out);
    out.extend_from_slice(b",\"meterTimeInMillis\":");
    out.extend_from_slice(itoa::Buffer::new().format(event.meter_time).as_bytes());
    out.extend_from_slice(b",\"meterValue\":");
    out.extend_from_slice(event.meter_value.as_bytes());
    out.extend_from_slice(b",\"uniqueId\":");
    write_string(&event.unique_id, out);
    for (index, (name, value)) in event.dimensions.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b",\"dimensions\":{" } else { b"," });
        write_string(name, out);
        out.push(b':');
        write_string(value, out);
    }
    out.extend_from_slice(if event.dimensions.is_empty() { b"}" } else { b"}}" });
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    // Without an early exit the compiler makes this a vector loop, several times as fast as looking byte by byte.
    let needs_escape = |any: bool, byte: &u8| any | (*byte < b' ') | (*byte == b'"') | (*byte == b'\\');
    if text.as_bytes().iter().fold(false, needs_escape) {
        // Writing a str to a Vec cannot fail.
        let _ = serde_json::to_writer(out, text);
        return;
    }
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn strings_are_written_as_serde_json_writes_them(text in "(.|[\\x00-\\x1f\"\\\\\x7f]){0,40}") {
            let mut written = Vec::new();
            write_string(&text, &mut written);
            proptest::prop_assert_eq!(written, serde_json::to_vec(&text).unwrap());
        }
    }
}
