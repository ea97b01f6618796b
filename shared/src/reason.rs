//! Why a record was dead-lettered: a closed set, because each name is a metric label and an API value.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a record was dead-lettered.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        impl Reason {
            /// All reasons, in the order of their documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in metrics, dead letters and APIs.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

reasons! {
    /// The record holds no bytes.
    Empty = "empty",
    /// The record is not UTF-8 text.
    InvalidUtf8 = "invalid_utf8",
    /// The record is not JSON, or holds a string that is not Unicode.
    NotJson = "not_json",
    /// The record, its `detail` or its `dimensions` is JSON but not an object.
    NotAnObject = "not_an_object",
    /// The record was aggregated by the Kinesis Producer Library: its inner events share one sequence number.
    KplAggregate = "kpl_aggregate",
    /// The envelope's `detail-type` is not one that SBT uses for usage.
    UnknownDetailType = "unknown_detail_type",
    /// `detail`, `tenantId`, `meterApiName` or `meterValue` is missing or null.
    MissingField = "missing_field",
    /// A field has the wrong type, is empty or is too long.
    InvalidField = "invalid_field",
    /// `meterValue` is not a finite number or the text of one.
    InvalidMeterValue = "invalid_meter_value",
    /// One name was given twice with different values.
    DuplicateName = "duplicate_name",
    /// A dimension is nested deeper than allowed.
    NestedTooDeep = "nested_too_deep",
    /// A dimension's name begins with `metering:`, which is reserved for this pipeline.
    ReservedDimension = "reserved_dimension",
    /// A dimension's name begins with `aflo.`, with which an event could cancel usage in Amberflo.
    AfloDimension = "aflo_dimension",
    /// The event's time is further before its arrival than `MAX_EVENT_AGE`.
    TooOld = "too_old",
    /// The event's time is further after its arrival than `MAX_EVENT_AHEAD`.
    TooFarAhead = "too_far_ahead",
    /// The record is larger than a request may be, by our limit or by Amberflo's (413).
    Oversized = "oversized",
    /// Another event with the same idempotency key but other contents came first.
    Conflict = "conflict",
    /// Amberflo refused this record (400, 422, or 403 for this record alone).
    Rejected = "rejected",
    /// Amberflo failed on this record for a long time while it took others: it may or may not have been counted.
    Unconfirmed = "unconfirmed",
}

impl Reason {
    /// Whether the same payload would be refused again whatever the settings: a redrive is of no use.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Empty
            | Self::InvalidUtf8
            | Self::NotJson
            | Self::NotAnObject
            | Self::KplAggregate
            | Self::UnknownDetailType
            | Self::MissingField
            | Self::InvalidField
            | Self::InvalidMeterValue
            | Self::DuplicateName
            | Self::NestedTooDeep
            | Self::ReservedDimension => true,
            Self::AfloDimension
            | Self::TooOld
            | Self::TooFarAhead
            | Self::Oversized
            | Self::Conflict
            | Self::Rejected
            | Self::Unconfirmed => false,
        }
    }

    /// The reason with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == name)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
