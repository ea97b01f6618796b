//! What can go wrong in a chaos run: a table, from which the schedule draws.

use std::fmt;

use amberflo_sandbox::Stats;
use serde::Serialize;

use super::amberflo::Quirk;

/// A deployment under test; both are broken at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ArenaName {
    /// Workers that share a stream of emulated Kinesis, with leases in DynamoDB, dead letters in SQS and keys in Secrets
    /// Manager.
    Kinesis,
    /// One worker on its local store, whose bus takes PutEvents.
    Local,
}

impl ArenaName {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Kinesis, Self::Local];

    /// How many workers it has.
    #[must_use]
    pub fn workers(self) -> usize {
        match self {
            Self::Kinesis => 3,
            Self::Local => 1,
        }
    }
}

impl fmt::Display for ArenaName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Kinesis => "kinesis",
            Self::Local => "local",
        })
    }
}

/// One kind of trouble.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// What it is called in the timeline.
    pub name: &'static str,
    /// What is done, for people.
    pub what: &'static str,
    /// What is done.
    pub act: Act,
    /// Where it can be done.
    pub arenas: &'static [ArenaName],
    /// How often it is drawn, compared with others.
    pub weight: u32,
    /// How long it lasts, in seconds: at least and at most.
    pub seconds: (u32, u32),
    /// At most one between two calms.
    pub once_a_round: bool,
    /// The pipeline sends nothing for half a minute after it, so that it comes late: before a calm.
    pub stalls: bool,
}

impl Kind {
    /// Whether the calls that meet it can be counted: connections that are refused cannot.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        match self.act {
            Act::Amberflo(quirk) => quirk.count(&Stats::default()).is_some(),
            Act::Calls(_, trouble) => trouble != Trouble::Down,
            _ => false,
        }
    }
}

/// What is done to a deployment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    /// SIGKILL to a worker, which starts again at the end.
    Kill,
    /// SIGSTOP to a worker, SIGCONT at the end.
    Pause,
    /// SIGTERM to a worker, which starts again a second after it has drained.
    Terminate,
    /// A second process with the name of a worker, killed at the end.
    Namesake,
    /// A shard is split in two.
    Split,
    /// Two neighbouring shards are merged.
    Merge,
    /// Amberflo misbehaves.
    Amberflo(Quirk),
    /// Amberflo takes another key at once; the workers find it at the end only.
    KeyLate,
    /// The workers find another key at once; Amberflo takes it at the end only.
    KeyEarly,
    /// Calls on their way from workers (or producers) to a service meet this.
    Calls(Route, Trouble),
    /// Dead letters are sent again through the control API.
    Redrive,
    /// The same, and the control API is killed meanwhile.
    RedriveKilled,
    /// The disk of the local store has no byte left.
    DiskFull,
    /// A worker's clocks jump this many seconds ahead or back, and at the end to the true time again.
    ClockJump(i32),
}

/// From whom calls come, and to whom they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// From all workers to Amberflo.
    Amberflo,
    /// From one worker to Amberflo.
    AmberfloOfOne,
    /// From all workers to Kinesis.
    Kinesis,
    /// From one worker to Kinesis.
    KinesisOfOne,
    /// From all workers to DynamoDB.
    DynamoDb,
    /// From one worker to DynamoDB.
    DynamoDbOfOne,
    /// From all workers to SQS.
    Sqs,
    /// From one worker to SQS.
    SqsOfOne,
    /// From all workers to Secrets Manager.
    SecretsManager,
    /// From producers to the stream, or to the bus.
    Producers,
}

/// What calls meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trouble {
    /// Open connections are cut, and new ones refused.
    Down,
    /// Of the calls of an operation (all if empty) this share is not made, and answered with this error.
    Refuse(&'static str, &'static str, f64),
    /// The same, but the calls take effect.
    Lose(&'static str, &'static str, f64),
    /// Of the calls of an operation this share is not made, and never answered.
    Hang(&'static str, f64),
    /// The same, but the calls take effect.
    Swallow(&'static str, f64),
    /// Every answer comes so many milliseconds late.
    Slow(u64),
}

const KINESIS: &[ArenaName] = &[ArenaName::Kinesis];
const LOCAL: &[ArenaName] = &[ArenaName::Local];
const BOTH: &[ArenaName] = &ArenaName::ALL;

const fn kind(
    name: &'static str,
    what: &'static str,
    act: Act,
    arenas: &'static [ArenaName],
    weight: u32,
    seconds: (u32, u32),
) -> Kind {
    Kind { name, what, act, arenas, weight, seconds, once_a_round: false, stalls: false }
}

const fn amberflo(name: &'static str, what: &'static str, quirk: Quirk, seconds: (u32, u32)) -> Kind {
    kind(name, what, Act::Amberflo(quirk), BOTH, 2, seconds)
}

const fn calls(
    name: &'static str,
    what: &'static str,
    route: Route,
    trouble: Trouble,
    arenas: &'static [ArenaName],
    seconds: (u32, u32),
) -> Kind {
    kind(name, what, Act::Calls(route, trouble), arenas, 1, seconds)
}

/// All kinds, in the order of the report.
pub const KINDS: &[Kind] = &{
    use Route as To;
    use Trouble::{Down, Hang, Lose, Refuse, Slow, Swallow};
    [
        kind("kill", "SIGKILL to a worker, restart", Act::Kill, BOTH, 20, (1, 10)),
        kind("pause", "SIGSTOP to a worker, SIGCONT", Act::Pause, BOTH, 8, (1, 12)),
        kind("terminate", "SIGTERM to a worker, restart once it has drained", Act::Terminate, BOTH, 8, (2, 8)),
        kind("namesake", "a second process with a worker's WORKER_ID", Act::Namesake, KINESIS, 1, (8, 12)),
        kind("split", "a shard is split", Act::Split, KINESIS, 8, (1, 3)),
        kind("merge", "two shards are merged", Act::Merge, KINESIS, 8, (1, 3)),
        amberflo("throttle", "429 without Retry-After", Quirk::Throttle, (4, 10)),
        amberflo("throttle-seconds", "429 with Retry-After in seconds", Quirk::ThrottleSeconds, (4, 10)),
        amberflo("throttle-date", "429 with Retry-After as a date", Quirk::ThrottleDate, (4, 10)),
        Kind { stalls: true, weight: 1, ..amberflo("redirect", "302 to a login page", Quirk::Redirect, (2, 5)) },
        Kind { stalls: true, weight: 1, ..amberflo("html", "200 with a page of HTML", Quirk::Html, (2, 5)) },
        amberflo("fail-before", "5xx, nothing accepted", Quirk::FailBefore, (4, 10)),
        amberflo("fail-after", "5xx, all accepted", Quirk::FailAfter, (4, 10)),
        amberflo("hang-before", "no answer, nothing accepted", Quirk::HangBefore, (4, 10)),
        amberflo("hang-after", "no answer, all accepted", Quirk::HangAfter, (4, 10)),
        // Twice in a row it loses events by contract: a count that falls short again is taken as it is.
        Kind {
            once_a_round: true,
            ..amberflo("partial-ingest", "a batch accepted in part", Quirk::PartialIngest, (3, 6))
        },
        amberflo("partial-answer", "all accepted, a smaller count answered", Quirk::PartialAnswer, (4, 8)),
        amberflo("slow", "answers take 0.2 to 1.5 s", Quirk::Slow, (4, 10)),
        amberflo("rate-ceiling", "5 requests/s, else 429", Quirk::RateCeiling, (4, 10)),
        amberflo("concurrency-ceiling", "1 request at a time, else 429", Quirk::ConcurrencyCeiling, (4, 8)),
        amberflo("body-ceiling", "413 above 16 KiB", Quirk::BodyCeiling, (4, 8)),
        amberflo("record-ceiling", "413 above 20 records", Quirk::RecordCeiling, (4, 8)),
        amberflo("tenant-refused", "400 for a tenant", Quirk::TenantRefused, (3, 6)),
        amberflo("tenants-refused", "422 for a tenth of the tenants", Quirk::TenantsRefused, (2, 3)),
        amberflo("tenant-forbidden", "403 for a tenant", Quirk::TenantForbidden, (2, 4)),
        Kind {
            stalls: true,
            weight: 1,
            ..amberflo("key-revoked", "the key is refused, and then taken again", Quirk::KeyRevoked, (2, 4))
        },
        kind("key-late", "another key is valid; the workers' source has it later", Act::KeyLate, BOTH, 1, (4, 10)),
        kind("key-early", "the workers' source has another key; it is valid later", Act::KeyEarly, BOTH, 1, (3, 7)),
        calls("amberflo-down", "connections to Amberflo are cut and refused", To::Amberflo, Down, BOTH, (2, 8)),
        calls("amberflo-cut", "one worker cannot connect to Amberflo", To::AmberfloOfOne, Down, KINESIS, (3, 10)),
        calls(
            "amberflo-silent",
            "half the requests are taken, their answers lost",
            To::Amberflo,
            Swallow("", 0.5),
            BOTH,
            (3, 8),
        ),
        calls(
            "kinesis-throughput",
            "GetRecords above the throughput",
            To::Kinesis,
            Refuse("GetRecords", emulators::THROUGHPUT_EXCEEDED, 0.7),
            KINESIS,
            (4, 10),
        ),
        calls(
            "kinesis-expired",
            "iterators expire",
            To::Kinesis,
            Refuse("GetRecords", "ExpiredIteratorException", 0.4),
            KINESIS,
            (4, 10),
        ),
        calls("kinesis-errors", "Kinesis fails", To::Kinesis, Refuse("", "InternalFailure", 0.5), KINESIS, (4, 10)),
        calls(
            "kinesis-lost",
            "pages are lost on their way",
            To::Kinesis,
            Lose("GetRecords", "InternalFailure", 0.4),
            KINESIS,
            (4, 10),
        ),
        calls("kinesis-hang", "Kinesis does not answer", To::Kinesis, Hang("GetRecords", 0.2), KINESIS, (4, 10)),
        calls("kinesis-down", "Kinesis refuses connections", To::Kinesis, Down, KINESIS, (2, 8)),
        calls("kinesis-cut", "one worker cannot connect to Kinesis", To::KinesisOfOne, Down, KINESIS, (3, 10)),
        calls("kinesis-slow", "Kinesis is slow", To::Kinesis, Slow(700), KINESIS, (4, 10)),
        calls(
            "dynamodb-throughput",
            "DynamoDB above the throughput",
            To::DynamoDb,
            Refuse("", emulators::THROUGHPUT_EXCEEDED, 0.6),
            KINESIS,
            (4, 10),
        ),
        calls(
            "dynamodb-lost",
            "writes land, their answers fail",
            To::DynamoDb,
            Lose("UpdateItem", "InternalServerError", 0.5),
            KINESIS,
            (4, 10),
        ),
        calls("dynamodb-silent", "writes land, no answer", To::DynamoDb, Swallow("UpdateItem", 0.3), KINESIS, (4, 10)),
        calls("dynamodb-hang", "DynamoDB does not answer", To::DynamoDb, Hang("", 0.5), KINESIS, (3, 8)),
        calls("dynamodb-down", "DynamoDB refuses connections", To::DynamoDb, Down, KINESIS, (2, 8)),
        calls("dynamodb-cut", "one worker cannot connect to DynamoDB", To::DynamoDbOfOne, Down, KINESIS, (3, 12)),
        calls("dynamodb-slow", "DynamoDB is slow", To::DynamoDb, Slow(500), KINESIS, (4, 10)),
        calls("sqs-errors", "SQS fails", To::Sqs, Refuse("", "ServiceUnavailable", 0.6), KINESIS, (4, 10)),
        calls(
            "sqs-lost",
            "letters are stored, the answers fail",
            To::Sqs,
            Lose("", "InternalFailure", 0.5),
            KINESIS,
            (4, 10),
        ),
        calls("sqs-silent", "letters are stored, no answer", To::Sqs, Swallow("", 0.3), KINESIS, (4, 10)),
        calls("sqs-down", "SQS refuses connections", To::Sqs, Down, KINESIS, (3, 10)),
        calls("sqs-cut", "one worker cannot connect to SQS", To::SqsOfOne, Down, KINESIS, (3, 10)),
        calls("secrets-down", "Secrets Manager refuses connections", To::SecretsManager, Down, KINESIS, (4, 10)),
        calls(
            "put-lost",
            "events are stored, producers hear of a failure",
            To::Producers,
            Lose("", "InternalFailure", 0.4),
            BOTH,
            (3, 8),
        ),
        calls("put-silent", "events are stored, producers hear nothing", To::Producers, Swallow("", 0.2), BOTH, (3, 6)),
        calls("put-down", "producers cannot connect", To::Producers, Down, BOTH, (2, 5)),
        kind("redrive", "dead letters are redriven", Act::Redrive, BOTH, 8, (1, 2)),
        kind("redrive-killed", "the control API is killed amid a redrive", Act::RedriveKilled, BOTH, 3, (1, 3)),
        kind("disk-full", "the disk of the local store is full", Act::DiskFull, LOCAL, 2, (3, 8)),
        kind("clock-ahead", "a worker's clock jumps 45 s ahead, and back", Act::ClockJump(45), BOTH, 1, (3, 8)),
        kind("clock-back", "a worker's clock jumps 45 s back, and ahead", Act::ClockJump(-45), BOTH, 1, (3, 8)),
    ]
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_differ_and_every_kind_can_be_drawn() {
        let names: BTreeSet<_> = KINDS.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), KINDS.len());
        for kind in KINDS {
            assert!(kind.weight > 0 && !kind.arenas.is_empty(), "{kind:?}");
            assert!(0 < kind.seconds.0 && kind.seconds.0 <= kind.seconds.1, "{kind:?}");
        }
    }
}
