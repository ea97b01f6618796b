//! JSON merge patches (RFC 7396) of JSON text.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

use super::{Fault, Object, duplicate, write_object};

/// `target` as `patch` changes it; `None` is a member that is not there. What the patch does not name stays byte for
/// byte, and where it stands. The recursion is as deep as the patch.
///
/// # Errors
/// When the patch goes into a member that `target` gives twice with different values. To replace or to remove such a
/// member is well defined, and both are gone then.
pub(crate) fn merge(target: Option<&RawValue>, patch: &RawValue) -> Result<Box<RawValue>, Fault> {
    if !is_object(patch) {
        return Ok(patch.to_owned());
    }
    let patch = Object::parse(patch.get(), "the patch")?.members;
    let target = match target.filter(|target| is_object(target)) {
        Some(target) => Object::parse(target.get(), "what the patch changes")?.members,
        None => Vec::new(),
    };
    let changes: HashMap<&str, &RawValue> = patch.iter().map(|(name, change)| (&**name, *change)).collect();
    let mut changed: HashMap<&str, &RawValue> = HashMap::new();
    let mut merged: Vec<(&str, Cow<'_, RawValue>)> = Vec::new();
    for (name, value) in &target {
        let Some(&change) = changes.get(&**name) else {
            merged.push((name, Cow::Borrowed(value)));
            continue;
        };
        match changed.insert(name, value) {
            None if is_null(change) => {}
            None => merged.push((name, Cow::Owned(merge(Some(value), change)?))),
            Some(other) if is_object(change) && other.get() != value.get() => return Err(duplicate(name)),
            Some(_) => {}
        }
    }
    for (name, change) in &patch {
        if !changed.contains_key(&**name) && !is_null(change) {
            merged.push((name, Cow::Owned(merge(None, change)?)));
        }
    }
    let text = write_object(merged.iter().map(|(name, value)| (*name, &**value)));
    RawValue::from_string(text).map_err(|error| (crate::reason::Reason::NotJson, error.to_string()))
}

pub(crate) fn is_object(value: &RawValue) -> bool {
    value.get().starts_with('{')
}

fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn merged(target: &str, patch: &str) -> Result<String, Fault> {
        let raw = |text: &str| serde_json::from_str::<Box<RawValue>>(text).unwrap();
        merge(Some(&raw(target)), &raw(patch)).map(|merged| merged.get().to_owned())
    }

    /// Source: RFC 7396, appendix A.
    #[test]
    fn the_examples_of_the_standard() {
        for (target, patch, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
            (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
            (r#"{"a":"foo"}"#, "null", "null"),
            (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            ("[1,2]", r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            assert_eq!(merged(target, patch).unwrap(), result, "{target} {patch}");
        }
    }

    #[test]
    fn what_is_not_named_keeps_every_byte() {
        let target = r#"{ "long": 12345678901234567890.1234567890123456789, "text" : "\u00e9\/", "deep": {"n": 1e400, "x": [1.0,  2 ], "old": 1}, "z":null }"#;
        let patch = r#"{"deep": {"old": 100000000000000000000000001, "new": {"a": null, "b": 1.50}}}"#;
        assert_eq!(
            merged(target, patch).unwrap(),
            r#"{"long":12345678901234567890.1234567890123456789,"text":"\u00e9\/","deep":{"n":1e400,"x":[1.0,  2 ],"old":100000000000000000000000001,"new":{"b":1.50}},"z":null}"#
        );
    }

    #[test]
    fn a_name_that_is_given_twice_can_be_replaced_and_removed_but_not_entered() {
        let target = r#"{"a":{"x":1},"b":2,"a":{"x":3}}"#;
        assert_eq!(merged(target, r#"{"c":1}"#).unwrap(), r#"{"a":{"x":1},"b":2,"a":{"x":3},"c":1}"#);
        assert_eq!(merged(target, r#"{"a":7}"#).unwrap(), r#"{"a":7,"b":2}"#);
        assert_eq!(merged(target, r#"{"a":null}"#).unwrap(), r#"{"b":2}"#);
        assert!(merged(target, r#"{"a":{"y":1}}"#).unwrap_err().1.contains("\"a\" is given twice"));
        assert_eq!(merged(r#"{"a":{"x":1},"a":{"x":1}}"#, r#"{"\u0061":{"y":1}}"#).unwrap(), r#"{"a":{"x":1,"y":1}}"#);
    }

    /// The algorithm as the standard writes it, on parsed values.
    fn reference(target: Value, patch: Value) -> Value {
        let Value::Object(patch) = patch else { return patch };
        let mut target = match target {
            Value::Object(members) => members,
            _ => serde_json::Map::new(),
        };
        for (name, change) in patch {
            let old = target.remove(&name).unwrap_or_default();
            if !change.is_null() {
                target.insert(name, reference(old, change));
            }
        }
        Value::Object(target)
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(json!(null)), any::<i64>().prop_map(Value::from), "[a\"é\\\\]{0,2}".prop_map(Value::from)];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[ab\"]{1,2}", inner, 0..4)
                    .prop_map(|members| members.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn does_what_the_standard_says(target in values(), patch in values()) {
            let merged = merged(&target.to_string(), &patch.to_string()).unwrap();
            prop_assert_eq!(serde_json::from_str::<Value>(&merged).unwrap(), reference(target, patch));
        }
    }
}
