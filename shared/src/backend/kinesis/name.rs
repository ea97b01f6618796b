//! How the settings name a stream.

use std::fmt;
use std::str::FromStr;

use crate::backend::BackendError;

/// A Kinesis stream as an operator names it: `NAME`, or `arn:PARTITION:kinesis:REGION:ACCOUNT:stream/NAME` of any
/// partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamName {
    name: String,
    arn: Option<Arn>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Arn {
    text: String,
    region: String,
}

impl StreamName {
    /// The name alone.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ARN, where one was given.
    #[must_use]
    pub fn arn(&self) -> Option<&str> {
        self.arn.as_ref().map(|arn| arn.text.as_str())
    }

    /// The ARN's region, where one was given.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        self.arn.as_ref().map(|arn| arn.region.as_str())
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.arn().unwrap_or(&self.name))
    }
}

impl FromStr for StreamName {
    type Err = BackendError;

    /// # Errors
    /// [`BackendError::Misconfigured`], which says what is allowed.
    fn from_str(text: &str) -> Result<Self, BackendError> {
        if !text.starts_with("arn:") {
            return match is_name(text) {
                true => Ok(Self { name: text.to_owned(), arn: None }),
                false => Err(refused(text, "it is not a name")),
            };
        }
        let parts: Vec<_> = text.splitn(6, ':').collect();
        let &[_, partition, service, region, account, resource] = parts.as_slice() else {
            return Err(refused(text, "it has too few parts"));
        };
        if !partition.starts_with("aws") || !is_label(partition) {
            return Err(refused(text, "its partition is not one of AWS"));
        }
        if service != "kinesis" {
            return Err(refused(text, "it is of another service"));
        }
        if !is_label(region) {
            return Err(refused(text, "it has no region"));
        }
        if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refused(text, "its account is not 12 digits"));
        }
        match resource.strip_prefix("stream/") {
            Some(name) if is_name(name) => {
                let arn = Arn { text: text.to_owned(), region: region.to_owned() };
                Ok(Self { name: name.to_owned(), arn: Some(arn) })
            }
            Some(rest) if rest.contains("/consumer/") => {
                Err(refused(text, "it is that of a registered consumer, not of the stream"))
            }
            _ => Err(refused(text, "it does not end in stream/NAME")),
        }
    }
}

fn refused(text: &str, why: &str) -> BackendError {
    BackendError::Misconfigured(format!(
        "{text:?} does not name a Kinesis stream: {why}; allowed are a NAME of 1 to 128 letters, digits, '_', '.' and \
         '-', and an ARN arn:PARTITION:kinesis:REGION:ACCOUNT:stream/NAME"
    ))
}

fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn is_label(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_names_and_arns_of_every_partition() {
        let longest = "x".repeat(128);
        for text in ["events", "Usage_events.v2-prod", "arn", &longest] {
            let name: StreamName = text.parse().unwrap();
            assert_eq!((name.name(), name.arn(), name.region()), (text, None, None));
            assert_eq!(name.to_string(), text);
        }
        for (partition, region) in [("aws", "eu-west-1"), ("aws-cn", "cn-north-1"), ("aws-us-gov", "us-gov-west-1")] {
            let arn = format!("arn:{partition}:kinesis:{region}:123456789012:stream/usage-events");
            let name: StreamName = arn.parse().unwrap();
            assert_eq!((name.name(), name.arn(), name.region()), ("usage-events", Some(&*arn), Some(region)));
            assert_eq!(name.to_string(), arn);
        }
    }

    #[test]
    fn refuses_everything_else_and_says_what_is_allowed() {
        let too_long = "x".repeat(129);
        for (text, why) in [
            ("", "not a name"),
            ("with space", "not a name"),
            ("ströme", "not a name"),
            ("a/b", "not a name"),
            (&*too_long, "not a name"),
            ("arn:aws:kinesis:us-east-1:123456789012", "too few parts"),
            ("arn:amazon:kinesis:us-east-1:123456789012:stream/s", "partition"),
            ("arn:aws:sqs:us-east-1:123456789012:stream/s", "another service"),
            ("arn:aws:kinesis::123456789012:stream/s", "no region"),
            ("arn:aws:kinesis:us-east-1:12345:stream/s", "12 digits"),
            ("arn:aws:kinesis:us-east-1:123456789012:stream/", "stream/NAME"),
            ("arn:aws:kinesis:us-east-1:123456789012:table/s", "stream/NAME"),
            ("arn:aws:kinesis:us-east-1:123456789012:stream/s/consumer/c:1", "registered consumer"),
        ] {
            let error = text.parse::<StreamName>().unwrap_err();
            assert!(matches!(error, BackendError::Misconfigured(_)));
            let line = error.to_string();
            assert!(line.contains(why) && line.contains(text) && line.contains("allowed are"), "{line}");
            assert!(!line.contains('\n'));
        }
    }
}
