//! Metrics of the requests to Amberflo: the same in every program.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

use super::TransportError;

const REQUESTS: &str = "amberflo_requests_total";
const DURATION: &str = "amberflo_request_duration_seconds";
const OUTCOMES: [&str; 6] = ["2xx", "4xx", "429", "5xx", "timeout", "connect"];

/// Describes the metrics, and begins those of the operations that a program makes at zero.
pub fn describe_metrics(operations: &[&'static str]) {
    describe_counter!(REQUESTS, "Requests to Amberflo, by operation and outcome; `4xx` is every other answer too");
    describe_histogram!(DURATION, Unit::Seconds, "Duration of requests to Amberflo, answered or not");
    for &operation in operations {
        for outcome in OUTCOMES {
            counter!(REQUESTS, "operation" => operation, "outcome" => outcome).increment(0);
        }
        let _ = histogram!(DURATION, "operation" => operation);
    }
}

pub(super) fn count(operation: &'static str, result: &Result<Response<Bytes>, TransportError>, took: Duration) {
    let outcome = match result {
        Ok(answer) if answer.status() == StatusCode::TOO_MANY_REQUESTS => "429",
        Ok(answer) if answer.status().is_success() => "2xx",
        Ok(answer) if answer.status().is_server_error() => "5xx",
        Ok(_) => "4xx",
        Err(TransportError::Timeout(_)) => "timeout",
        Err(TransportError::Connect(_) | TransportError::TooLong(_)) => "connect",
    };
    counter!(REQUESTS, "operation" => operation, "outcome" => outcome).increment(1);
    histogram!(DURATION, "operation" => operation).record(took.as_secs_f64());
}
