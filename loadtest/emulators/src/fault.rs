//! What can befall a call to an emulator.

use std::time::Duration;

use http::StatusCode;

/// What DynamoDB and Kinesis answer to a caller above its share.
pub const THROUGHPUT_EXCEEDED: &str = "ProvisionedThroughputExceededException";

/// A fault, and the calls that it befalls: all, unless [`on`](Self::on), [`share`](Self::share) or
/// [`times`](Self::times) says less.
#[derive(Debug, Clone)]
pub struct Fault {
    /// See [`named`](Self::named).
    pub(crate) name: Option<&'static str>,
    operation: Option<String>,
    share: f64,
    times: u64,
    /// The emulator gets the call, whatever becomes of the answer.
    pub(crate) takes_effect: bool,
    pub(crate) answer: Answer,
}

/// What the caller hears of it.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// An error with this code.
    Error(String),
    /// Nothing.
    None,
    /// What the emulator says, so much later.
    Late(Duration),
}

impl Fault {
    /// The call is not made; the answer is this error. The status is 500 for the services' own failures, else 400.
    pub fn refuse(code: &str) -> Self {
        Self {
            name: None,
            operation: None,
            share: 1.0,
            times: u64::MAX,
            takes_effect: false,
            answer: Answer::Error(code.to_owned()),
        }
    }

    /// The call takes effect, but this error is the answer.
    pub fn lose(code: &str) -> Self {
        Self { takes_effect: true, ..Self::refuse(code) }
    }

    /// The call is not made, and no answer comes.
    pub fn hang() -> Self {
        Self { answer: Answer::None, ..Self::refuse("") }
    }

    /// The call takes effect, but no answer comes.
    pub fn swallow() -> Self {
        Self { answer: Answer::None, ..Self::lose("") }
    }

    /// The call takes effect at once, and its answer comes so much later.
    pub fn slow(by: Duration) -> Self {
        Self { answer: Answer::Late(by), ..Self::lose("") }
    }

    /// Counts the calls that it befalls under this name: [`Throttle::befell`](crate::Throttle::befell).
    #[must_use]
    pub fn named(self, name: &'static str) -> Self {
        Self { name: Some(name), ..self }
    }

    /// Only calls of this operation.
    #[must_use]
    pub fn on(self, operation: &str) -> Self {
        Self { operation: Some(operation.to_owned()), ..self }
    }

    /// Only this share of the calls, 0 to 1, drawn from a seeded generator.
    #[must_use]
    pub fn share(self, share: f64) -> Self {
        Self { share, ..self }
    }

    /// Only so many calls, then none.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }

    /// Draws for one call, and uses it up.
    pub(crate) fn befalls(&mut self, operation: &str, random: &mut fastrand::Rng) -> bool {
        let chosen = self.operation.as_deref().is_none_or(|only| only == operation)
            && self.times > 0
            && random.f64() < self.share;
        self.times -= u64::from(chosen);
        chosen
    }
}

/// The status that goes with the code of an error.
pub fn status(code: &str) -> StatusCode {
    match code {
        "InternalFailure" | "InternalServerError" | "InternalServiceError" => StatusCode::INTERNAL_SERVER_ERROR,
        "ServiceUnavailable" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    }
}
