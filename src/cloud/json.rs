//! Reads JSON values as CloudStack writes them: depending on the version a number is a number or text. Pure.

use serde_json::{Map, Value};

/// An object of an answer.
pub(super) type Object = Map<String, Value>;

/// The fields of an object, each by its name.
pub(super) trait Fields {
    /// Text that is not empty. A number is its digits.
    fn text(&self, name: &str) -> Option<String>;
    /// A whole number that is not negative.
    fn number(&self, name: &str) -> Option<u64>;
    /// Yes or no.
    fn flag(&self, name: &str) -> Option<bool>;
    /// An object.
    fn object(&self, name: &str) -> Option<&Object>;
    /// The objects of a list; `None`: it is there and is no list of objects. A list that is not there is empty.
    fn objects(&self, name: &str) -> Option<Vec<&Object>>;
}

impl Fields for Object {
    fn text(&self, name: &str) -> Option<String> {
        match self.get(name)? {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    fn number(&self, name: &str) -> Option<u64> {
        match self.get(name)? {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn flag(&self, name: &str) -> Option<bool> {
        match self.get(name)? {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn object(&self, name: &str) -> Option<&Object> {
        self.get(name)?.as_object()
    }

    fn objects(&self, name: &str) -> Option<Vec<&Object>> {
        match self.get(name) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(Value::as_object).collect(),
            Some(_) => None,
        }
    }
}
