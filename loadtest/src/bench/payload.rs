//! Usage events as EventBridge hands them to a stream, made up and kept in memory.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use shared::backend::{Record, SequenceNumber};
use shared::clock::{Clock, UnixMillis};

/// Shards of the stream that is made up.
pub const SHARDS: usize = 4;
/// Bytes in a page, about what the worker's reader asks for.
const PAGE_BYTES: usize = 1 << 20;
const TENANTS: usize = 50;
const METERS: [&str; 5] = ["api-calls", "storage-gb-hours", "compute-seconds", "egress-bytes", "tokens-generated"];
const ENDPOINTS: [&str; 4] = ["/v1/orders", "/v1/customers/search", "/v2/reports", "/v1/documents"];
const PLANS: [&str; 3] = ["basic", "standard", "enterprise"];

/// Events of a seeded generator: 50 tenants unless told otherwise, 5 meters, 3 dimensions, a `uniqueId` each, `meterTimeInMillis` in half.
pub struct Generator {
    random: fastrand::Rng,
    now: UnixMillis,
    made: u64,
    tenants: usize,
}

/// One event.
pub struct Event {
    /// Whose it is: the partition key.
    pub tenant: String,
    /// `detail` as the producer puts it.
    pub detail: String,
}

impl Generator {
    /// The same events every time, but for their times.
    pub fn new() -> Self {
        Self::with_tenants(TENANTS)
    }

    /// The same of so many tenants.
    pub fn with_tenants(tenants: usize) -> Self {
        Self { random: fastrand::Rng::with_seed(1), now: Clock::system().now(), made: 0, tenants }
    }

    /// The next event.
    pub fn event(&mut self) -> Event {
        let value = match self.random.u32(..4) {
            0 => format!("{}.{}", self.random.u32(..1000), self.random.u32(1..100)),
            _ => self.random.u32(1..10_000).to_string(),
        };
        self.event_worth(&value)
    }

    /// The next event, with this `meterValue`.
    pub fn event_worth(&mut self, value: &str) -> Event {
        self.made += 1;
        let tenant = format!("tenant-{:04}", self.random.usize(..self.tenants));
        let meter = self.random.choice(METERS).unwrap_or_default();
        let id = self.uuid();
        let time = if self.made.is_multiple_of(2) {
            format!(r#""meterTimeInMillis":{},"#, self.now - self.random.i64(0..5000))
        } else {
            String::new()
        };
        let endpoint = self.random.choice(ENDPOINTS).unwrap_or_default();
        let plan = self.random.choice(PLANS).unwrap_or_default();
        let detail =
            format!(
                r#"{{"tenantId":"{tenant}","meterApiName":"{meter}","meterValue":{value},"uniqueId":"{id}",{time}"#,
            ) + &format!(r#""dimensions":{{"region":"eu-central-1","plan":"{plan}","endpoint":"{endpoint}"}}}}"#);
        Event { tenant, detail }
    }

    /// The event as EventBridge hands it on.
    pub fn envelope(&mut self, event: &Event) -> Bytes {
        let id = self.uuid();
        let time = UNIX_EPOCH + Duration::from_millis(self.now.unsigned_abs());
        let time = humantime::format_rfc3339_seconds(time);
        let mut envelope = format!(
            r#"{{"version":"0","id":"{id}","detail-type":"ingestUsage","source":"saas.application.plane","account":"#
        );
        // Writing to a String cannot fail.
        let _ = write!(
            envelope,
            r#""123456789012","time":"{time}","region":"eu-central-1","resources":[],"detail":{}}}"#,
            event.detail
        );
        envelope.into()
    }

    fn uuid(&mut self) -> uuid::Uuid {
        uuid::Builder::from_random_bytes(self.random.u128(..).to_le_bytes()).into_uuid()
    }
}

/// A stream's worth of records.
pub struct Payload {
    /// Pages of each shard, in order.
    pub shards: Vec<Vec<Vec<Record>>>,
    /// Records in all of them.
    pub events: usize,
    /// Bytes in all of them.
    pub bytes: usize,
}

impl Payload {
    /// Makes `events` events that arrive now.
    pub fn generate(events: usize) -> Self {
        let mut generator = Generator::new();
        let mut payload = Self { shards: vec![vec![Vec::new()]; SHARDS], events, bytes: 0 };
        let mut page_bytes = [0; SHARDS];
        for number in 0..events {
            let event = generator.event();
            let shard = event.tenant.bytes().map(usize::from).sum::<usize>() % SHARDS;
            let record = Record {
                data: generator.envelope(&event),
                partition_key: event.tenant,
                // As long as those of Kinesis.
                sequence_number: SequenceNumber(format!("49{number:054}")),
                arrived_at: generator.now,
            };
            payload.bytes += record.data.len();
            page_bytes[shard] += record.data.len();
            let pages = &mut payload.shards[shard];
            if page_bytes[shard] > PAGE_BYTES {
                page_bytes[shard] = record.data.len();
                pages.push(Vec::new());
            }
            if let Some(page) = pages.last_mut() {
                page.push(record);
            }
        }
        payload
    }

    /// All records, shard by shard.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.shards.iter().flatten().flatten()
    }

    /// One line about it.
    pub fn describe(&self) -> String {
        let bytes = self.bytes / self.events.max(1);
        format!("{} events of {bytes} bytes on average, {SHARDS} shards", self.events)
    }
}
