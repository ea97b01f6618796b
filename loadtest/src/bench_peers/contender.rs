//! Who is compared.

/// One of the table's rows, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Contender {
    /// Our worker on its local stream, without a rate limit.
    OursLocal,
    /// Our worker on Kinesis, without a rate limit.
    OursKinesis,
    /// Our worker on its local stream, with default settings.
    OursDefault,
    /// Our worker on Kinesis, with default settings.
    OursKinesisDefault,
    /// A loop that parses, serialises, compresses and sends.
    BareLoop,
    /// The official SDK, 100 records in a request.
    Sdk100,
    /// The official SDK, 1000 records in a request.
    Sdk1000,
    /// A consumer made of `kcl-rs` and the official SDK's client.
    KclRs,
    /// The same with the SDK's threaded producer.
    KclRsQueue,
    /// One POST for each event, in Rust.
    OnePerEventRust,
    /// One POST for each event, with `requests`, over a kept connection.
    OnePerEventPython,
    /// One POST for each event, with `requests`, over a new connection each.
    OnePerEventConnect,
    /// The official SDK as its README shows it.
    SdkReadme,
}

use Contender as C;

/// No limit of requests, as the others have none.
const UNLIMITED: &[(&str, &str)] = &[("RATE_REQUESTS_PER_SECOND", "0")];

impl Contender {
    /// Those whose speed is measured.
    pub const SPEED: [Self; 10] = [
        C::BareLoop,
        C::OursLocal,
        C::OursKinesis,
        C::OursDefault,
        C::Sdk100,
        C::Sdk1000,
        C::KclRs,
        C::OnePerEventRust,
        C::OnePerEventPython,
        C::OnePerEventConnect,
    ];
    /// Those whose latency is measured. A bare loop has none: it sends when a batch is full.
    pub const LATENCY: [Self; 7] = [
        C::OursDefault,
        C::OursKinesisDefault,
        C::Sdk100,
        C::Sdk1000,
        C::KclRs,
        C::OnePerEventRust,
        C::OnePerEventPython,
    ];
    /// Those that are killed: all that can be started again where they were.
    /// Ours with its default limits: without, it is done before its first checkpoint, and the kill would come too early
    /// to show whether one passes what is not delivered.
    pub const FAULTS: [Self; 9] = [
        C::OursDefault,
        C::OursKinesisDefault,
        C::Sdk100,
        C::Sdk1000,
        C::SdkReadme,
        C::KclRs,
        C::KclRsQueue,
        C::OnePerEventPython,
        C::OnePerEventConnect,
    ];

    /// The name in tables.
    pub const fn title(self) -> &'static str {
        match self {
            C::OursLocal => "**ours**, local stream",
            C::OursKinesis => "**ours**, Kinesis",
            C::OursDefault => "**ours**, local stream, default limits",
            C::OursKinesisDefault => "**ours**, Kinesis, default limits",
            C::BareLoop => "bare Rust loop",
            C::Sdk100 => "Python SDK, batch 100",
            C::Sdk1000 => "Python SDK, batch 1,000",
            C::KclRs => "kcl-rs + Python SDK, request in place",
            C::KclRsQueue => "kcl-rs + Python SDK, threaded producer",
            C::OnePerEventRust => "one POST per event, Rust",
            C::OnePerEventPython => "one POST per event, Python, connection kept",
            C::OnePerEventConnect => "one POST per event, Python, new connection each",
            C::SdkReadme => "Python SDK, batch 100, without `unique_id`",
        }
    }

    /// How many of the events it gets in a speed run: the slow ones get fewer, because rates are compared.
    pub const fn share(self, events: usize) -> usize {
        match self {
            // Ten seconds of the ten requests a second that it may make.
            C::OursDefault if events <= 100_000 => events,
            C::OursDefault if events <= 1_000_000 => 100_000,
            C::OursDefault => events / 10,
            C::OnePerEventRust => events / 5,
            C::OnePerEventPython => events / 50,
            C::OnePerEventConnect => events / 100,
            _ => events,
        }
    }

    /// How many of the events it gets in a run with faults, for the same reason.
    pub const fn share_of_faults(self, events: usize) -> usize {
        match self {
            C::Sdk100 | C::Sdk1000 | C::SdkReadme => events / 5,
            C::OnePerEventPython | C::OnePerEventConnect => events / 20,
            _ => events,
        }
    }

    /// Whether it is our worker.
    pub const fn is_ours(self) -> bool {
        matches!(self, C::OursLocal | C::OursKinesis | C::OursDefault | C::OursKinesisDefault)
    }

    /// Whether it reads from a stand-in for Kinesis.
    pub const fn reads_kinesis(self) -> bool {
        matches!(self, C::OursKinesis | C::OursKinesisDefault) || self.is_kcl()
    }

    /// Whether it is made of `kcl-rs`.
    pub const fn is_kcl(self) -> bool {
        matches!(self, C::KclRs | C::KclRsQueue)
    }

    /// Whether it gets its events parsed.
    pub const fn is_sdk(self) -> bool {
        matches!(self, C::Sdk100 | C::Sdk1000 | C::SdkReadme)
    }

    /// Whether it is a Python program.
    pub const fn is_python(self) -> bool {
        self.script().is_some()
    }

    /// Whether it goes on after its last event, so that it has to be ended.
    pub const fn is_daemon(self) -> bool {
        self.is_ours() || self.reads_kinesis()
    }

    /// The settings of our worker that are not the defaults.
    pub const fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            C::OursLocal | C::OursKinesis => UNLIMITED,
            _ => &[],
        }
    }

    /// The hidden subcommand of this program that it is.
    pub const fn own_program(self) -> Option<&'static str> {
        match self {
            C::BareLoop => Some("bare-loop"),
            C::OnePerEventRust => Some("one-per-event"),
            _ => None,
        }
    }

    /// The program in `loadtest/peers` that it is, with its own arguments.
    pub const fn script(self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            C::Sdk100 => Some(("sdk.py", &["--batch", "100"])),
            C::Sdk1000 => Some(("sdk.py", &["--batch", "1000"])),
            C::SdkReadme => Some(("sdk.py", &["--batch", "100", "--readme"])),
            C::KclRs => Some(("kcl.py", &[])),
            C::KclRsQueue => Some(("kcl.py", &["--queue"])),
            C::OnePerEventPython => Some(("one_per_event.py", &[])),
            C::OnePerEventConnect => Some(("one_per_event.py", &["--connect"])),
            _ => None,
        }
    }
}
