//! A conditional update of some attributes of one row.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use super::row;

/// What to change, and what must still be so. Each attribute is changed at most once and asked about at most once.
#[derive(Default)]
pub struct Update {
    set: Vec<String>,
    add: Vec<String>,
    remove: Vec<String>,
    conditions: Vec<String>,
    /// The placeholders for names: some names are reserved words.
    pub names: HashMap<String, String>,
    /// The placeholders for values.
    pub values: HashMap<String, AttributeValue>,
}

impl Update {
    /// A write that the row must be at `counter` for, and that moves it on.
    pub fn moving(counter: u64) -> Self {
        Self::default().only_if(row::LEASE_COUNTER, [number(counter)]).add(row::LEASE_COUNTER, 1)
    }

    /// The write happens only if the attribute has one of these values; a missing attribute has none of them.
    pub fn only_if<const N: usize>(mut self, attribute: &str, values: [AttributeValue; N]) -> Self {
        let name = self.name(attribute);
        let mut placeholders = Vec::new();
        for (n, value) in values.into_iter().enumerate() {
            placeholders.push(format!(":seen{n}_{attribute}"));
            self.values.insert(format!(":seen{n}_{attribute}"), value);
        }
        self.conditions.push(format!("{name} IN ({})", placeholders.join(", ")));
        self
    }

    pub fn set(mut self, attribute: &str, value: AttributeValue) -> Self {
        let name = self.name(attribute);
        self.set.push(format!("{name} = :{attribute}"));
        self.values.insert(format!(":{attribute}"), value);
        self
    }

    /// Adds to a number, which is 0 where it is missing.
    pub fn add(mut self, attribute: &str, count: u64) -> Self {
        let name = self.name(attribute);
        self.add.push(format!("{name} :{attribute}"));
        self.values.insert(format!(":{attribute}"), number(count));
        self
    }

    pub fn remove(mut self, attribute: &str) -> Self {
        let name = self.name(attribute);
        self.remove.push(name);
        self
    }

    pub fn expression(&self) -> String {
        let clauses = [("SET", &self.set), ("ADD", &self.add), ("REMOVE", &self.remove)];
        let clauses = clauses.iter().filter(|(_, actions)| !actions.is_empty());
        clauses.map(|(word, actions)| format!("{word} {}", actions.join(", "))).collect::<Vec<_>>().join(" ")
    }

    pub fn condition(&self) -> String {
        self.conditions.join(" AND ")
    }

    fn name(&mut self, attribute: &str) -> String {
        let name = format!("#{attribute}");
        self.names.insert(name.clone(), attribute.to_owned());
        name
    }
}

pub fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

pub fn number(number: impl ToString) -> AttributeValue {
    AttributeValue::N(number.to_string())
}
