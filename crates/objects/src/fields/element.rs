//! One step of a path to a field.

use std::cmp::Ordering;
use std::fmt;

use serde_json::{Map, Value};

/// A step of a path: from an object to a field, or from a list to an element. The order is that in which sets of fields are written.
#[derive(Debug, Clone)]
pub enum Element {
    /// A field of an object: `f:name`.
    Field(String),
    /// The element of a list with these values of its key fields, sorted by name: `k:{"name":"x"}`.
    Key(Vec<(String, Value)>),
    /// The element of a set with this value: `v:"x"`.
    Value(Value),
    /// The element of a list at this position: `i:0`.
    Index(i64),
}

/// Why a text is not an element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// It is of a kind that a later version may have, and is ignored.
    Unknown,
    /// It is malformed.
    Malformed,
}

impl Element {
    /// A field of an object.
    pub fn field(name: impl Into<String>) -> Self {
        Self::Field(name.into())
    }

    /// Reads the form in `FieldsV1`.
    ///
    /// # Errors
    /// [`Unreadable`] for a text that is no element.
    pub fn parse(text: &str) -> Result<Self, Unreadable> {
        let (kind, rest) = text.split_at_checked(2).ok_or(Unreadable::Malformed)?;
        if !kind.ends_with(':') {
            return Err(Unreadable::Malformed);
        }
        let malformed = |_| Unreadable::Malformed;
        match kind {
            "f:" => Ok(Self::Field(rest.to_owned())),
            "v:" => serde_json::from_str(rest).map(Self::Value).map_err(malformed),
            "k:" => {
                let fields: Map<String, Value> = serde_json::from_str(rest).map_err(malformed)?;
                Ok(Self::Key(fields.into_iter().collect()))
            }
            "i:" => rest.parse().map(Self::Index).map_err(|_| Unreadable::Malformed),
            _ => Err(Unreadable::Unknown),
        }
    }

    /// The form in `FieldsV1`.
    pub fn to_text(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(fields) => {
                let fields = fields.iter().map(|(name, value)| format!("{}:{}", Value::from(&**name), go_json(value)));
                format!("k:{{{}}}", fields.collect::<Vec<_>>().join(","))
            }
            Self::Value(value) => format!("v:{}", go_json(value)),
            Self::Index(index) => format!("i:{index}"),
        }
    }
}

/// JSON as Go writes it: without a fraction for whole numbers, and with escaped characters of HTML.
pub(super) fn go_json(value: &Value) -> String {
    let text = whole(value).map_or_else(|| value.to_string(), |number| number.to_string());
    if !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            other => escaped.push(other),
        }
    }
    escaped
}

/// The whole number that a value with a fraction of zero stands for.
fn whole(value: &Value) -> Option<i64> {
    /// Numbers up to this one are represented exactly.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let number = value.as_number().filter(|number| number.is_f64())?.as_f64()?;
    #[expect(clippy::cast_possible_truncation, reason = "the number is whole and in range")]
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

/// A text in double quotes, as Go's `%q` prints it.
pub(super) fn quoted(text: &str) -> String {
    format!("{text:?}")
}

/// A value in a message.
fn describe(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(elements) => format!("[{}]", elements.iter().map(describe).collect::<Vec<_>>().join(",")),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name}={}", describe(value))).collect::<String>()
        }
        other => go_json(other),
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(fields) => {
                let fields = fields.iter().map(|(name, value)| format!("{name}={}", describe(value)));
                write!(f, "[{}]", fields.collect::<Vec<_>>().join(","))
            }
            Self::Value(value) => write!(f, "[={}]", describe(value)),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// The rank of a type among others.
fn rank(value: &Value) -> u8 {
    match value {
        Value::Number(number) if number.is_f64() => 0,
        Value::Number(_) => 1,
        Value::String(_) => 2,
        Value::Bool(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
        Value::Null => 6,
    }
}

/// Compares two values. Numbers are compared as such, whatever their notation.
pub(super) fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => match (x.as_i64(), y.as_i64()) {
            (Some(x), Some(y)) => x.cmp(&y),
            _ => x.as_f64().unwrap_or_default().total_cmp(&y.as_f64().unwrap_or_default()),
        },
        (Value::String(x), Value::String(y)) => x.cmp(y),
        (Value::Bool(x), Value::Bool(y)) => x.cmp(y),
        (Value::Array(x), Value::Array(y)) => {
            let different = x.iter().zip(y).map(|(x, y)| compare(x, y)).find(|order| order.is_ne());
            different.unwrap_or_else(|| x.len().cmp(&y.len()))
        }
        (Value::Object(x), Value::Object(y)) => {
            let mut pairs = x.iter().zip(y).map(|((m, x), (n, y))| m.cmp(n).then_with(|| compare(x, y)));
            pairs.find(|order| order.is_ne()).unwrap_or_else(|| x.len().cmp(&y.len()))
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

/// Whether two values are equal, whatever the notation of their numbers.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|((m, x), (n, y))| m == n && equal(x, y))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| equal(x, y)),
        _ => compare(a, b).is_eq(),
    }
}

impl Ord for Element {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |element: &Self| match element {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        };
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => {
                let mut fields = a.iter().zip(b).map(|((m, x), (n, y))| m.cmp(n).then_with(|| compare(x, y)));
                fields.find(|order| order.is_ne()).unwrap_or_else(|| a.len().cmp(&b.len()))
            }
            (Self::Value(a), Self::Value(b)) => compare(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            _ => rank(self).cmp(&rank(other)),
        }
    }
}

impl PartialOrd for Element {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Element {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Element {}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn elements_are_read_written_and_shown() {
        for (text, shown) in [
            ("f:name", ".name"),
            (r#"k:{"name":"x","port":80}"#, r#"[name="x",port=80]"#),
            (r#"v:"\u003ca\u003e""#, r#"[="<a>"]"#),
            ("v:true", "[=true]"),
            ("v:2", "[=2]"),
            ("i:3", "[3]"),
        ] {
            let element = Element::parse(text).unwrap();
            assert_eq!((element.to_text(), element.to_string()), (text.to_owned(), shown.to_owned()));
        }
        assert_eq!(Element::parse("x:a"), Err(Unreadable::Unknown));
        for malformed in ["", "f", "name", "v:{", "k:1", "i:x"] {
            assert_eq!(Element::parse(malformed), Err(Unreadable::Malformed), "{malformed}");
        }
    }

    #[test]
    fn numbers_are_equal_in_any_notation() {
        assert_eq!(Element::Value(json!(1)), Element::Value(json!(1.0)));
        assert!(Element::Value(json!(1)) < Element::Value(json!(1.5)));
        assert!(Element::Value(json!(1.5)) < Element::Value(json!(2)));
        assert!(Element::field("z") < Element::Key(vec![]) && Element::Value(json!(null)) < Element::Index(0));
    }
}
