//! The record that Amberflo receives: a pure, canonical function of the event.
//!
//! Amberflo discards a copy only when every attribute is identical, so a retry, a replay, a takeover and a redrive
//! must all produce these very bytes. `tests/it/golden` pins them: changing them is a breaking release.

use std::io::Write as _;

use crate::event::UsageEvent;

/// Appends the event's record as compact JSON.
///
/// The names are Amberflo's; it ignores unknown ones silently, so none is ever sent. Order: fixed, dimensions by name.
pub fn write(event: &UsageEvent<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"customerId\":");
    write_string(&event.tenant_id, out);
    out.extend_from_slice(b",\"meterApiName\":");
    write_string(&event.meter_api_name, out);
    // Writing to a Vec cannot fail.
    let _ =
        write!(out, ",\"meterTimeInMillis\":{},\"meterValue\":{},\"uniqueId\":", event.meter_time, event.meter_value);
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
    // Writing a str to a Vec cannot fail.
    let _ = serde_json::to_writer(out, text);
}
