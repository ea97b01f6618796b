//! What an operator changes in a payload.

use std::collections::HashSet;

use serde_json::value::RawValue;

use crate::event::REDRIVE_MEMBER;
use crate::json::{MAX_DEPTH, Object, excerpt, is_object, merge};

/// A JSON merge patch (RFC 7396) of a payload as it arrived: an envelope or a bare `detail`.
///
/// It keeps every member that it does not name byte for byte, a number with all its digits. A member that the payload
/// gives twice it can replace and remove (then both are gone), but not enter, unless both have the same text.
#[derive(Clone, Debug)]
pub struct Patch(Box<RawValue>);

/// The patch is not one that can be applied.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPatch(String);

impl Patch {
    /// Takes the text of a JSON object.
    ///
    /// # Errors
    /// When it is none, gives a name twice, is nested more than 32 levels deep, or names `metering:redrive`.
    pub fn parse(text: &str) -> Result<Self, InvalidPatch> {
        let invalid = |(_, detail)| InvalidPatch(detail);
        let members = Object::parse(text, "the patch").map_err(invalid)?.members;
        if members.iter().any(|(name, _)| name == REDRIVE_MEMBER) {
            return Err(InvalidPatch(format!("the patch names {REDRIVE_MEMBER:?}, which a redrive sets itself")));
        }
        let patch: Box<RawValue> = serde_json::from_str(text).map_err(|error| InvalidPatch(error.to_string()))?;
        check(&patch, MAX_DEPTH)?;
        Ok(Self(patch))
    }

    /// Whether the event's id is the patch's: then it can be meant for one letter only.
    #[must_use]
    pub fn names_id(&self) -> bool {
        [&["detail", "uniqueId"][..], &["uniqueId"], &["id"]].into_iter().any(|path| self.names(path))
    }

    /// The patched payload, or why it cannot be patched.
    pub(super) fn apply(&self, payload: &str) -> Result<Box<RawValue>, String> {
        let unfit = |detail: &str| format!("only a JSON object can be patched: {detail}");
        let payload: &RawValue = serde_json::from_str(payload).map_err(|error| unfit(&error.to_string()))?;
        if !is_object(payload) {
            return Err(unfit(&excerpt(payload.get())));
        }
        merge(Some(payload), &self.0).map_err(|(_, detail)| format!("the patch does not fit: {detail}"))
    }

    /// Whether the member at this path is the patch's, be it removed or replaced with what it is in.
    pub(super) fn names(&self, path: &[&str]) -> bool {
        let mut change: &RawValue = &self.0;
        for name in path {
            if !is_object(change) {
                return true;
            }
            let Ok(Object { members, .. }) = Object::parse(change.get(), "the patch") else { return false };
            match members.iter().find(|(member, _)| member == name) {
                Some((_, value)) => change = value,
                None => return false,
            }
        }
        true
    }
}

fn check(value: &RawValue, depth_left: usize) -> Result<(), InvalidPatch> {
    if !is_object(value) {
        return Ok(());
    }
    if depth_left == 0 {
        return Err(InvalidPatch(format!("the patch is nested more than {MAX_DEPTH} levels deep")));
    }
    let members = Object::parse(value.get(), "the patch").map_err(|(_, detail)| InvalidPatch(detail))?.members;
    let mut names = HashSet::new();
    for (name, value) in &members {
        if !names.insert(name) {
            return Err(InvalidPatch(format!("the patch gives {:?} twice", excerpt(name))));
        }
        check(value, depth_left - 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_has_no_clear_meaning() {
        for (text, reason) in [
            ("", "not JSON"),
            ("[]", "not a JSON object"),
            ("null", "not a JSON object"),
            (r#"{"a":1"#, "not JSON"),
            (r#"{"a":1,"a":1}"#, "twice"),
            (r#"{"a":{"b":{"c":1,"\u0063":2}}}"#, "twice"),
            (r#"{"metering:redrive":null}"#, "metering:redrive"),
            (r#"{"metering\u003aredrive":{"count":1}}"#, "metering:redrive"),
        ] {
            let error = Patch::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let deep = |levels: usize| "{\"a\":".repeat(levels) + "1" + &"}".repeat(levels);
        assert!(Patch::parse(&deep(MAX_DEPTH)).is_ok());
        assert!(Patch::parse(&deep(MAX_DEPTH + 1)).unwrap_err().to_string().contains("levels deep"));
        assert!(Patch::parse(&deep(100_000)).is_err(), "no stack overflow");
    }

    #[test]
    fn knows_which_members_are_its_own() {
        let patch = Patch::parse(r#"{"id":null,"detail":{"uniqueId":"a"},"gone":null}"#).unwrap();
        for path in [&["id"][..], &["detail"], &["detail", "uniqueId"], &["gone", "uniqueId"]] {
            assert!(patch.names(path), "{path:?}");
        }
        for path in [&["time"][..], &["uniqueId"], &["detail", "meterTimeInMillis"]] {
            assert!(!patch.names(path), "{path:?}");
        }
    }

    #[test]
    fn only_objects_are_patched() {
        let patch = Patch::parse(r#"{"a":1}"#).unwrap();
        for payload in ["", "7", "[{}]", "\"text\"", "{", "{} {}"] {
            assert!(patch.apply(payload).unwrap_err().contains("only a JSON object"), "{payload}");
        }
        assert_eq!(patch.apply(" { } ").unwrap().get(), r#"{"a":1}"#);
    }
}
