//! A request body as records, checked as Amberflo checks them.

use std::borrow::Cow;
use std::fmt;

use crate::facts::Facts;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use siphasher::sip128::{Hasher128 as _, SipHasher13};
use std::hash::Hasher as _;
use std::marker::PhantomData;

/// The records of one request, in order.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    pub(crate) records: Vec<Record<'a>>,
    /// Top-level keys that Amberflo would ignore without a word, once for each record that has them.
    pub(crate) unknown_keys: Vec<Cow<'a, str>>,
    pub(crate) form: Form,
}

/// The form of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Array,
    SingleObject,
    /// Objects one after another, each on a line by custom.
    Ndjson,
}

/// One valid record, borrowing from the body. Numbers keep their text, so that every digit survives and `1` and `1.0`
/// are different attributes: stricter than Amberflo may be, and what a client that promises identical bytes must meet.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) customer_id: Cow<'a, str>,
    /// Empty when the record has `values` only.
    pub(crate) meter_api_name: Cow<'a, str>,
    pub(crate) time_millis: i64,
    pub(crate) value: Option<&'a str>,
    /// Sorted by meter, as are the dimensions by name: the order of JSON keys is no attribute.
    pub(crate) values: Vec<(Cow<'a, str>, &'a str)>,
    pub(crate) unique_id: Option<Cow<'a, str>>,
    pub(crate) dimensions: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// Of unknown form, kept as sent.
    pub(crate) variants: Option<&'a str>,
    pub(crate) raw: &'a str,
}

/// Why a body is refused whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Invalid {
    #[error("invalid JSON: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error("the body is empty")]
    Empty,
    #[error("invalid record at index {index}: {reason}")]
    Record { index: usize, reason: String },
}

impl<'a> Batch<'a> {
    /// Reads a JSON array, a single object, or objects one after another (NDJSON).
    ///
    /// Unless the whole is refused for one invalid record, only the valid ones are answered, if there are any.
    pub(crate) fn parse(body: &'a str, refuses_whole: bool) -> Result<Self, Invalid> {
        let is_array = body.trim_ascii_start().starts_with('[');
        let raw: Vec<&'a RawValue> = match body.trim_ascii_start().as_bytes().first() {
            None => return Err(Invalid::Empty),
            Some(b'[') => serde_json::from_str(body)?,
            Some(_) => serde_json::Deserializer::from_str(body).into_iter().collect::<Result<_, _>>()?,
        };
        let form = match raw.len() {
            _ if is_array => Form::Array,
            0 | 1 => Form::SingleObject,
            _ => Form::Ndjson,
        };
        let mut batch = Self { records: Vec::with_capacity(raw.len()), unknown_keys: Vec::new(), form };
        let mut invalid = None;
        for (index, raw) in raw.into_iter().enumerate() {
            let checked = Fields::parse(raw.get())
                .and_then(|fields| Ok((Record::check(&fields, raw.get())?, fields.unknown)))
                .map_err(|reason| Invalid::Record { index, reason });
            match checked {
                Ok((record, unknown)) => {
                    batch.records.push(record);
                    batch.unknown_keys.extend(unknown);
                }
                Err(error) if refuses_whole => return Err(error),
                Err(error) => invalid = invalid.or(Some(error)),
            }
        }
        match invalid {
            Some(error) if batch.records.is_empty() => Err(error),
            _ => Ok(batch),
        }
    }
}

impl<'a> Record<'a> {
    fn check(fields: &Fields<'a>, raw: &'a str) -> Result<Self, String> {
        let customer_id = name(fields.customer_id, "customerId")?.ok_or("customerId is missing")?;
        let time = fields.time.ok_or("meterTimeInMillis is missing")?;
        let time_millis = time.parse().map_err(|_| format!("meterTimeInMillis {} is not an integer", brief(time)))?;
        let value = fields.value.map(|value| number(value, "meterValue")).transpose()?;
        let values = fields.values.map(|text| sorted::<&'a RawValue>(text, "values")).transpose()?.unwrap_or_default();
        let meter_api_name = name(fields.meter, "meterApiName")?;
        if values.is_empty() {
            value.ok_or("meterValue is missing")?;
        }
        if value.is_some() && meter_api_name.is_none() || values.iter().any(|(meter, _)| meter.is_empty()) {
            return Err("meterApiName is missing".to_owned());
        }
        let values = values.into_iter().map(|(meter, value)| Ok((meter, number(value.get(), "values")?)));
        let dimensions = fields.dimensions.map(|text| sorted::<Text<'a>>(text, "dimensions")).transpose()?;
        Ok(Self {
            customer_id,
            meter_api_name: meter_api_name.unwrap_or_default(),
            time_millis,
            value,
            values: values.collect::<Result<_, String>>()?,
            unique_id: name(fields.unique_id, "uniqueId")?,
            dimensions: dimensions.unwrap_or_default().into_iter().map(|(key, Text(value))| (key, value)).collect(),
            variants: fields.variants,
            raw,
        })
    }

    /// What is billed: meter and value, both from `meterValue` and from `values`.
    pub(crate) fn billed(&self) -> impl Iterator<Item = (&str, &'a str)> {
        let single = self.value.map(|value| (self.meter_api_name.as_ref(), value));
        single.into_iter().chain(self.values.iter().map(|(meter, value)| (meter.as_ref(), *value)))
    }

    /// A hash of every attribute that Amberflo compares: equal for two records if and only if they are copies.
    pub(crate) fn attributes(&self, facts: &Facts) -> u128 {
        let mut digest = Digest::new(b'a');
        if !facts.compares_values_not_bytes {
            return digest.text(self.raw).finish();
        }
        let value = self.value.filter(|_| facts.compares_values);
        digest.text(&self.customer_id).text(&self.meter_api_name).text(value.unwrap_or_default());
        digest.number(if facts.compares_times { self.time_millis.cast_unsigned() } else { 0 });
        digest.number(u64::from(self.unique_id.is_some())).text(self.unique_id.as_deref().unwrap_or_default());
        let dimensions = if facts.compares_dimensions { &self.dimensions[..] } else { &[] };
        digest.number(dimensions.len() as u64);
        for (name, value) in dimensions {
            digest.text(name).text(value);
        }
        digest.number(self.values.len() as u64);
        for (meter, value) in &self.values {
            digest.text(meter).text(value);
        }
        digest.text(self.variants.unwrap_or_default());
        digest.finish()
    }

    /// A hash of meter and `uniqueId`, if there is one.
    pub(crate) fn event(&self) -> Option<u128> {
        let unique_id = self.unique_id.as_deref()?;
        let mut digest = Digest::new(b'e');
        digest.text(&self.meter_api_name).text(unique_id);
        Some(digest.finish())
    }
}

/// 128-bit SipHash over length-prefixed fields; the tag keeps different kinds of key apart.
struct Digest(SipHasher13);

impl Digest {
    fn new(tag: u8) -> Self {
        let mut hasher = SipHasher13::new();
        hasher.write(&[tag]);
        Self(hasher)
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.number(text.len() as u64);
        self.0.write(text.as_bytes());
        self
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.0.write(&number.to_le_bytes());
        self
    }

    fn finish(&self) -> u128 {
        self.0.finish128().as_u128()
    }
}

/// A record's top-level keys with the JSON text of their values.
#[derive(Default)]
struct Fields<'a> {
    customer_id: Option<&'a str>,
    meter: Option<&'a str>,
    time: Option<&'a str>,
    value: Option<&'a str>,
    unique_id: Option<&'a str>,
    dimensions: Option<&'a str>,
    values: Option<&'a str>,
    variants: Option<&'a str>,
    unknown: Vec<Cow<'a, str>>,
}

impl<'a> Fields<'a> {
    fn parse(json: &'a str) -> Result<Self, String> {
        if !json.starts_with('{') {
            return Err(format!("{} is not an object", brief(json)));
        }
        let Entries(entries) = serde_json::from_str::<Entries<'a, &'a RawValue>>(json).map_err(|e| e.to_string())?;
        let mut fields = Self::default();
        for (Text(key), value) in entries {
            let field = match key.as_ref() {
                "customerId" => &mut fields.customer_id,
                "meterApiName" => &mut fields.meter,
                "meterTimeInMillis" => &mut fields.time,
                "meterValue" => &mut fields.value,
                "uniqueId" => &mut fields.unique_id,
                "dimensions" => &mut fields.dimensions,
                "values" => &mut fields.values,
                "variants" => &mut fields.variants,
                _ => {
                    fields.unknown.push(key);
                    continue;
                }
            };
            if field.replace(value.get()).is_some() {
                return Err(format!("{key} is given twice"));
            }
        }
        Ok(fields)
    }
}

/// A non-empty string.
fn name<'a>(json: Option<&'a str>, field: &str) -> Result<Option<Cow<'a, str>>, String> {
    let Some(json) = json else { return Ok(None) };
    match serde_json::from_str(json) {
        Ok(Text(text)) if !text.is_empty() => Ok(Some(text)),
        _ => Err(format!("{field} {} is not a non-empty string", brief(json))),
    }
}

/// A finite number, as text.
fn number<'a>(json: &'a str, field: &str) -> Result<&'a str, String> {
    let starts = json.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    let finite = json.parse::<f64>().is_ok_and(f64::is_finite);
    if starts && finite { Ok(json) } else { Err(format!("{field} {} is not a finite number", brief(json))) }
}

/// An object of one kind of value, sorted by key.
fn sorted<'a, V: Deserialize<'a>>(json: &'a str, field: &str) -> Result<Vec<(Cow<'a, str>, V)>, String> {
    let Entries(entries) = serde_json::from_str::<Entries<'a, V>>(json).map_err(|error| format!("{field}: {error}"))?;
    let mut entries: Vec<_> = entries.into_iter().map(|(Text(key), value)| (key, value)).collect();
    entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    match entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(format!("{field}: {} is given twice", pair[0].0)),
        None => Ok(entries),
    }
}

fn brief(json: &str) -> Cow<'_, str> {
    let end = json.floor_char_boundary(60);
    if end == json.len() { Cow::Borrowed(json) } else { Cow::Owned(format!("{}...", &json[..end])) }
}

/// A string that borrows from the input unless it holds escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Strings)
    }
}

/// An object's entries in order, keys given twice included.
struct Entries<'a, V>(Vec<(Text<'a>, V)>);

impl<'de: 'a, 'a, V: Deserialize<'de>> Deserialize<'de> for Entries<'a, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Objects<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Objects<V> {
            type Value = Entries<'de, V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<'de, V>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Objects(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"customerId":"c","meterApiName":"m","meterTimeInMillis":5,"meterValue":1,"uniqueId":"u","dimensions":{"b":"2","a":"1"}}"#;

    fn attributes(json: &str) -> u128 {
        Batch::parse(json, true).unwrap().records[0].attributes(&Facts::default())
    }

    fn refused(json: &str) -> String {
        Batch::parse(json, true).unwrap_err().to_string()
    }

    #[test]
    fn array_object_and_ndjson_are_read() {
        for (body, records) in [
            (format!("[{GOOD},{GOOD}]"), 2),
            (GOOD.to_owned(), 1),
            (format!("{GOOD}\n{GOOD}\r\n\n{GOOD}\n"), 3),
            (" []".to_owned(), 0),
        ] {
            assert_eq!(Batch::parse(&body, true).unwrap().records.len(), records, "{body}");
        }
        assert!(refused("").contains("empty"));
        assert!(refused("[{").contains("invalid JSON"));
        assert!(refused(&format!("{GOOD}\nnope")).contains("invalid JSON"));
    }

    #[test]
    fn order_of_keys_is_no_attribute_and_all_else_is() {
        let shuffled = r#"{ "dimensions": {"a":"1","b":"2"}, "uniqueId":"\u0075", "meterValue":1,"meterTimeInMillis":5,"meterApiName":"m","customerId":"c","whatever":[1]}"#;
        assert_eq!(attributes(GOOD), attributes(shuffled));
        for (from, to) in [
            (r#""c""#, r#""d""#),
            (r#""m""#, r#""n""#),
            (":5", ":6"),
            (":1,", ":1.0,"),
            (r#""u""#, r#""v""#),
            (r#""2""#, r#""3""#),
            (r#","a":"1""#, ""),
            (r#""uniqueId":"u","#, ""),
            (r#""meterValue""#, r#""variants":[],"meterValue""#),
        ] {
            assert_ne!(attributes(GOOD), attributes(&GOOD.replacen(from, to, 1)), "{from} -> {to}");
        }
    }

    #[test]
    fn the_first_offending_record_is_named() {
        for (from, to, says) in [
            (r#""c""#, r#""""#, r#"index 1: customerId "" is not a non-empty string"#),
            (r#""c""#, "7", "index 1: customerId 7"),
            (r#""customerId""#, r#""customerID""#, "index 1: customerId is missing"),
            (r#""meterApiName":"m","#, "", "index 1: meterApiName is missing"),
            (":5", ":5.0", "index 1: meterTimeInMillis 5.0 is not an integer"),
            (":5", r#":"5""#, "meterTimeInMillis"),
            (":1,", ":1e999,", "meterValue 1e999 is not a finite number"),
            (":1,", ":null,", "meterValue null"),
            (r#""meterValue":1,"#, "", "meterValue is missing"),
            (r#""u""#, "1", "uniqueId 1"),
            (r#""2""#, "2", "dimensions: invalid type: integer `2`, expected a string"),
            (r#""b""#, r#""a""#, "dimensions: a is given twice"),
            (r#""uniqueId":"u""#, r#""customerId":"x""#, "customerId is given twice"),
        ] {
            let message = refused(&format!("[{GOOD},{}]", GOOD.replacen(from, to, 1)));
            assert!(message.contains(says), "{message}");
        }
        assert!(refused("[1]").contains("index 0: 1 is not an object"));
    }

    #[test]
    fn values_bill_each_meter_and_unknown_keys_are_named() {
        let body = r#"{"customerId":"c","meterTimeInMillis":1,"values":{"b":2.5,"a":12345678901234567890123},"extra":1,"costumerId":2}"#;
        let batch = Batch::parse(body, true).unwrap();
        assert_eq!(batch.unknown_keys, ["extra", "costumerId"]);
        let billed: Vec<_> = batch.records[0].billed().collect();
        assert_eq!(billed, [("a", "12345678901234567890123"), ("b", "2.5")]);
    }
}
