//! The partition key of an event.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde_json::value::RawValue;

/// Kinesis's limit, in UTF-16 units: the smallest of what "characters" may mean there.
/// Source: <https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecordsRequestEntry.html>.
const MAX_KEY: usize = 256;

/// Where in an event its partition key stands: `$` and names, each after a dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPath(Vec<String>);

impl KeyPath {
    /// The path of the settings where nobody has set one.
    pub const DEFAULT: &str = "$.detail.tenantId";

    /// The value that stands there, if it can be a partition key: a string, or a number as it is written.
    pub(super) fn key(&self, event: &str) -> Option<String> {
        let mut value = event;
        for name in &self.0 {
            // Of a name that is given twice the last counts. The worker is the judge of such an event.
            value = serde_json::from_str::<BTreeMap<String, &RawValue>>(value).ok()?.get(name)?.get();
        }
        let key = match value.as_bytes().first()? {
            b'"' => serde_json::from_str(value).ok()?,
            b'-' | b'0'..=b'9' => value.to_owned(),
            _ => return None,
        };
        is_key(&key).then_some(key)
    }
}

/// Whether Kinesis takes this for a partition key.
pub(super) fn is_key(text: &str) -> bool {
    (1..=MAX_KEY).contains(&text.encode_utf16().count())
}

impl FromStr for KeyPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = |name: &&str| {
            let mut characters = name.chars();
            characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
                && characters.all(|next| next.is_ascii_alphanumeric() || matches!(next, '_' | '-'))
        };
        let names: Option<Vec<&str>> = text.strip_prefix("$.").map(|names| names.split('.').collect());
        match names.filter(|names| names.iter().all(is_name)) {
            Some(names) => Ok(Self(names.into_iter().map(str::to_owned).collect())),
            None => Err(format!("allowed are names after dots, such as {} or $.detail.uniqueId", Self::DEFAULT)),
        }
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "$.{}", self.0.join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str, event: &str) -> Option<String> {
        path.parse::<KeyPath>().unwrap().key(event)
    }

    #[test]
    fn a_string_or_a_number_as_it_is_written() {
        for (tenant, expected) in [
            (r#""acme""#, Some("acme")),
            (r#""\u0061\n\"\ud83d\ude00""#, Some("a\n\"😀")),
            ("42", Some("42")),
            ("9223372036854775807", Some("9223372036854775807")),
            ("-1.50e3", Some("-1.50e3")),
            (r#""""#, None),
            ("null", None),
            ("true", None),
            ("{}", None),
            (r#"["acme"]"#, None),
        ] {
            let event = format!(r#"{{ "detail" : {{"other":1, "tenantId" :  {tenant} }}}}"#);
            assert_eq!(key(KeyPath::DEFAULT, &event).as_deref(), expected, "{tenant}");
        }
    }

    #[test]
    fn what_is_not_there_is_no_key() {
        for event in [r#"{"detail":{}}"#, r#"{"detail":"acme"}"#, r#"{"detail":[1]}"#, "{}", r#"{"tenantId":"acme"}"#] {
            assert_eq!(key(KeyPath::DEFAULT, event), None, "{event}");
        }
        let nested = format!(r#"{{"detail":{{"deep":{}1{}}}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(key(KeyPath::DEFAULT, &nested), None, "and no stack is overrun");
    }

    #[test]
    fn a_name_given_twice_still_gives_a_key() {
        assert_eq!(key(KeyPath::DEFAULT, r#"{"detail":{"tenantId":"a","tenantId":"b"}}"#).as_deref(), Some("b"));
    }

    #[test]
    fn the_path_may_be_another() {
        let event = r#"{"detail":{"uniqueId":"u","a-b":{"_c":{"d2":7}}},"account":"123456789012"}"#;
        assert_eq!(key("$.detail.uniqueId", event).as_deref(), Some("u"));
        assert_eq!(key("$.account", event).as_deref(), Some("123456789012"));
        assert_eq!(key("$.detail.a-b._c.d2", event).as_deref(), Some("7"));
    }

    #[test]
    fn longer_than_kinesis_takes_is_no_key() {
        let event = |tenant: String| format!(r#"{{"detail":{{"tenantId":"{tenant}"}}}}"#);
        for (text, units) in [("x", 1), ("é", 1), ("€", 1), ("😀", 2)] {
            let longest = text.repeat(256 / units);
            assert_eq!(key(KeyPath::DEFAULT, &event(longest.clone())), Some(longest.clone()));
            assert_eq!(key(KeyPath::DEFAULT, &event(longest + "x")), None, "{text}");
        }
    }

    #[test]
    fn a_path_is_dotted_names() {
        for text in ["$.detail.tenantId", "$.id", "$.detail.a-b._c.d2"] {
            assert_eq!(text.parse::<KeyPath>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "$",
            "$.",
            "detail.tenantId",
            "$detail",
            "$..tenantId",
            "$.detail.",
            "$.detail['tenantId']",
            "$.detail.tenants[0]",
            "$.detail.*",
            "$.detail.tenant id",
            "$.detail.2nd",
            "$.detail.straße",
        ] {
            let error = text.parse::<KeyPath>().unwrap_err();
            assert!(error.contains("$.detail.tenantId"), "{text}: {error}");
        }
    }
}
