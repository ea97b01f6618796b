//! What the metering services speak: usage events, Amberflo's records and client, dead letters, and the seams to
//! streams, leases and queues.

pub mod amberflo;
pub mod api_key;
pub mod backend;
pub mod backends;
pub mod clock;
pub mod dead_letter;
pub mod dead_letters;
pub mod event;
mod json;
pub mod meter_record;
pub mod reason;
pub mod redrive;
pub mod service;
pub mod settings;
