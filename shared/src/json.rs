//! JSON read without losing anything: objects as their members in order, values as their text.
//!
//! `serde_json::Value` would round long integers and hide a name that was given twice; both would change a bill.

mod merge_patch;

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::reason::Reason;

pub(crate) use merge_patch::{is_object, merge};

/// Nested values deeper than this are refused; it bounds the work that one hostile event can cause.
pub const MAX_DEPTH: usize = 32;

/// Doubles hold every integer below this magnitude exactly.
const EXACT_INTEGERS: f64 = 9_007_199_254_740_992.0;

/// What is wrong with a value, and the sentence that says so.
pub(crate) type Fault = (Reason, String);

/// A JSON object.
pub(crate) struct Object<'a> {
    /// Its members, in their order, duplicates included, but for `inner`.
    pub members: Vec<(Cow<'a, str>, &'a RawValue)>,
    /// The member that was read as an object in the same pass; see [`Object::parse_through`].
    pub inner: Option<Box<Object<'a>>>,
}

impl<'a> Object<'a> {
    /// Reads `text`; `what` names it in the error.
    pub fn parse(text: &'a str, what: &str) -> Result<Self, Fault> {
        let not_json = |error: serde_json::Error| (Reason::NotJson, format!("{what} is not JSON: {error}"));
        if text.trim_start().starts_with('{') {
            return read(text, &[]).map_err(not_json);
        }
        serde_json::from_str::<&RawValue>(text).map_err(not_json)?;
        Err((Reason::NotAnObject, format!("{what} is not a JSON object")))
    }

    /// As [`parse`](Self::parse), in one pass with the object under the name `path[0]`, and in that the one under
    /// `path[1]` and so on, as far as they are there: to read a value as text and then again costs twice.
    ///
    /// `None` for everything out of the ordinary: to be looked at step by step.
    pub fn parse_through(text: &'a str, path: &[&str]) -> Option<Self> {
        read(text, path).ok()
    }

    /// The value under `name`, `None` where it is absent or null. Given twice, both must have the same text.
    pub fn get(&self, name: &str) -> Result<Option<&'a RawValue>, Fault> {
        let mut found: Option<&RawValue> = None;
        for (_, value) in self.members.iter().filter(|(key, _)| key == name) {
            match found {
                Some(first) if first.get() != value.get() => return Err(duplicate(name)),
                _ => found = Some(value),
            }
        }
        Ok(found.filter(|value| value.get() != "null"))
    }
}

fn read<'a>(text: &'a str, path: &[&str]) -> serde_json::Result<Object<'a>> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let object = Members(path).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(object)
}

/// Reads an object's members, those on the path as objects.
struct Members<'p>(&'p [&'p str]);

impl<'de> DeserializeSeed<'de> for Members<'_> {
    type Value = Object<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        #[derive(serde::Deserialize)]
        struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

        let mut object = Object { members: Vec::with_capacity(12), inner: None };
        while let Some(Name(name)) = map.next_key()? {
            match self.0.split_first() {
                Some((on_path, further)) if name == *on_path => {
                    if object.inner.replace(Box::new(map.next_value_seed(Members(further))?)).is_some() {
                        return Err(A::Error::custom("given twice"));
                    }
                }
                _ => object.members.push((name, map.next_value()?)),
            }
        }
        Ok(object)
    }
}

/// The fault of a name given twice with different values.
pub(crate) fn duplicate(name: &str) -> Fault {
    (Reason::DuplicateName, format!("{name:?} is given twice with different values"))
}

/// The contents of a JSON string; `None` for any other value.
pub(crate) fn string(value: &RawValue) -> Result<Option<Cow<'_, str>>, Fault> {
    let text = value.get();
    if !text.starts_with('"') {
        return Ok(None);
    }
    if !text.contains('\\') {
        return Ok(Some(Cow::Borrowed(&text[1..text.len() - 1])));
    }
    match serde_json::from_str::<String>(text) {
        Ok(unescaped) => Ok(Some(Cow::Owned(unescaped))),
        Err(error) => Err((Reason::NotJson, format!("a string is not Unicode: {error}"))),
    }
}

/// The canonical text of a JSON number, so that `1`, `1.0` and `1e0` are one value; `None` for anything else and for
/// numbers beyond the range of a double.
///
/// Integers keep every digit. Other numbers become the shortest text that reads back as the same double.
pub(crate) fn canonical_number(text: &str) -> Option<Cow<'_, str>> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.as_bytes()[0].is_ascii_digit() {
        return None;
    }
    let is_integer = digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_integer && digits.len() < 300 {
        let has_leading_zero = digits.len() > 1 && digits.starts_with('0');
        return match text {
            "-0" => Some(Cow::Borrowed("0")),
            _ if has_leading_zero => None,
            _ => Some(Cow::Borrowed(text)),
        };
    }
    // Rust's own parser takes more than JSON does (`1.`, `1_0`): JSON's grammar decides.
    let text = serde_json::from_str::<&RawValue>(text).ok()?.get();
    let value = text.parse::<f64>().ok().filter(|value| value.is_finite())?;
    Some(match value.abs() {
        0.0 => Cow::Borrowed("0"),
        _ if is_integer => Cow::Borrowed(text),
        1e-6..EXACT_INTEGERS => Cow::Owned(value.to_string()),
        _ => Cow::Owned(format!("{value:e}")),
    })
}

/// A value as the text of a dimension: strings as they are, numbers in canonical form, nested values as compact JSON
/// with sorted names; `None` for null.
pub(crate) fn dimension_text(value: &RawValue) -> Result<Option<Cow<'_, str>>, Fault> {
    let text = value.get();
    match text.as_bytes()[0] {
        b'"' => string(value),
        b'n' => Ok(None),
        b't' | b'f' => Ok(Some(Cow::Borrowed(text))),
        b'{' | b'[' => {
            let mut out = String::with_capacity(text.len());
            write_canonical(value, MAX_DEPTH, &mut out)?;
            Ok(Some(Cow::Owned(out)))
        }
        _ => finite(text).map(Some),
    }
}

fn finite(text: &str) -> Result<Cow<'_, str>, Fault> {
    canonical_number(text)
        .ok_or_else(|| (Reason::InvalidField, format!("the number {} is out of range", excerpt(text))))
}

fn write_canonical(value: &RawValue, depth_left: usize, out: &mut String) -> Result<(), Fault> {
    let text = value.get();
    if depth_left == 0 {
        return Err((Reason::NestedTooDeep, format!("a dimension is nested more than {MAX_DEPTH} levels deep")));
    }
    match text.as_bytes()[0] {
        b'{' => {
            let mut members = Object::parse(text, "a dimension")?.members;
            members.sort_by(|a, b| a.0.cmp(&b.0));
            if let Some(pair) = members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                return Err(duplicate(&pair[0].0));
            }
            out.push('{');
            for (index, (name, member)) in members.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_string(name, out);
                out.push(':');
                write_canonical(member, depth_left - 1, out)?;
            }
            out.push('}');
        }
        b'[' => {
            let items: Vec<&RawValue> =
                serde_json::from_str(text).map_err(|error| (Reason::NotJson, error.to_string()))?;
            out.push('[');
            for (index, item) in items.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_canonical(item, depth_left - 1, out)?;
            }
            out.push(']');
        }
        b'"' => write_string(&string(value)?.unwrap_or_default(), out),
        b't' | b'f' | b'n' => out.push_str(text),
        _ => out.push_str(&finite(text)?),
    }
    Ok(())
}

fn write_string(text: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

/// An object of these members, their values as they are.
pub(crate) fn write_object<'a>(members: impl IntoIterator<Item = (&'a str, &'a RawValue)>) -> String {
    let mut out = String::from("{");
    for (index, (name, value)) in members.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_string(name, &mut out);
        out.push(':');
        out.push_str(value.get());
    }
    out.push('}');
    out
}

/// At most the first 64 characters, for messages.
pub(crate) fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(64).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_text() {
        for (given, canonical) in [
            ("0", "0"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("1", "1"),
            ("1.0", "1"),
            ("1e0", "1"),
            ("100e-2", "1"),
            ("1e3", "1000"),
            ("-1.50", "-1.5"),
            ("0.1", "0.1"),
            ("0.30000000000000004", "0.30000000000000004"),
            ("9007199254740993", "9007199254740993"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("1e21", "1e21"),
            ("1.5E+300", "1.5e300"),
            ("1e-7", "1e-7"),
        ] {
            assert_eq!(canonical_number(given).as_deref(), Some(canonical), "{given}");
        }
    }

    #[test]
    fn what_json_does_not_call_a_number_is_none() {
        for given in ["", "-", "+1", "1.", ".5", "01", "-01", "1_0", "0x1", "NaN", "inf", "1e", "1e999", "1 2", "١"] {
            assert_eq!(canonical_number(given), None, "{given}");
        }
        assert_eq!(canonical_number(&"9".repeat(400)), None);
    }

    #[test]
    fn nested_values_are_compact_and_sorted() {
        let text = |json: &str| {
            let raw: &RawValue = serde_json::from_str(json).unwrap();
            dimension_text(raw).map(|text| text.map(Cow::into_owned))
        };
        assert_eq!(
            text(r#"{"b": [1.0, null, "x\u00e9\n"], "a": {"z": true, "y": 1}}"#).unwrap().unwrap(),
            "{\"a\":{\"y\":1,\"z\":true},\"b\":[1,null,\"xé\\n\"]}"
        );
        assert_eq!(text(r#"{"a":1,"a":2}"#).unwrap_err().0, Reason::DuplicateName);
        assert_eq!(text(&("[".repeat(40) + &"]".repeat(40))).unwrap_err().0, Reason::NestedTooDeep);
        assert_eq!(text(r#"["\ud800"]"#).unwrap_err().0, Reason::NotJson);
    }

    proptest::proptest! {
        #[test]
        fn canonical_numbers_read_back_as_the_same_double(value: f64) {
            proptest::prop_assume!(value.is_finite());
            let text = canonical_number(&serde_json::Value::from(value).to_string()).unwrap().into_owned();
            proptest::prop_assert_eq!(text.parse::<f64>().unwrap() , value);
            proptest::prop_assert_eq!(canonical_number(&text).unwrap(), text.as_str());
        }
    }

    /// Texts that are JSON objects with a path, or nearly so.
    fn nearly_events() -> impl proptest::strategy::Strategy<Value = String> {
        let piece = proptest::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            " ",
            "\"detail\":{",
            "\"dimensions\":{",
            "\"detail\":null",
            "\"dimensions\":7",
            "\"det\\u0061il\":{",
            "\"a\":1",
            "\"a\":1,",
            "\"b\":{\"detail\":[]}",
            "\"c\":\"\\ud800\"",
            "},",
            "}}",
            "}}}",
            "\"d\":",
        ]);
        proptest::strategy::Strategy::prop_map(proptest::collection::vec(piece, 1..9), |pieces| {
            let text = format!("{{{}", pieces.concat());
            let open = text.matches('{').count().saturating_sub(text.matches('}').count());
            text + &"}".repeat(open)
        })
    }

    fn members<'a>(object: &Object<'a>, but: &str) -> Vec<(String, &'a str)> {
        let others = object.members.iter().filter(|(name, _)| name != but);
        others.map(|(name, value)| (name.to_string(), value.get())).collect()
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { cases: 4096, ..Default::default() })]

        #[test]
        fn one_pass_reads_what_three_passes_read(text in nearly_events()) {
            let path = ["detail", "dimensions"];
            let Some(through) = Object::parse_through(&text, &path) else { return Ok(()) };
            let (mut through, mut top) = (&through, Object::parse(&text, "the record").unwrap());
            for name in path {
                let Some(inner) = &through.inner else {
                    proptest::prop_assert!(!top.members.iter().any(|(member, _)| member == name));
                    return Ok(());
                };
                proptest::prop_assert_eq!(members(through, ""), members(&top, name));
                top = Object::parse(top.get(name).unwrap().unwrap().get(), name).unwrap();
                through = inner;
            }
            proptest::prop_assert_eq!(members(through, ""), members(&top, ""));
        }
    }
}
