//! JSON as Python's `json` writes and reads it: a space after commas and colons, ASCII only, the order of the program; `NaN` and `Infinity` are
//! numbers.

use crate::yaml::Value;

/// A JSON value with ordered members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, in the form of its text.
    Number(String),
    /// A string.
    String(String),
    /// An array.
    List(Vec<Json>),
    /// An object.
    Map(Vec<(String, Json)>),
}

impl Json {
    /// A string.
    pub fn string(text: impl Into<String>) -> Self {
        Self::String(text.into())
    }

    /// The text of the value.
    pub fn to_text(&self) -> String {
        let mut out = Vec::new();
        self.write(&mut out);
        String::from_utf8(out).unwrap_or_default() // It is ASCII.
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
            Self::Number(text) => out.extend_from_slice(text.as_bytes()),
            Self::String(text) => write_string(out, text),
            Self::List(items) => {
                out.push(b'[');
                for (i, item) in items.iter().enumerate() {
                    out.extend_from_slice(if i > 0 { b", " } else { b"" });
                    item.write(out);
                }
                out.push(b']');
            }
            Self::Map(members) => {
                out.push(b'{');
                for (i, (name, value)) in members.iter().enumerate() {
                    out.extend_from_slice(if i > 0 { b", " } else { b"" });
                    write_string(out, name);
                    out.extend_from_slice(b": ");
                    value.write(out);
                }
                out.push(b'}');
            }
        }
    }
}

/// Appends a JSON string with all other than printable ASCII characters escaped.
pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\x08' => out.extend_from_slice(b"\\b"),
            '\x0c' => out.extend_from_slice(b"\\f"),
            ' '..='~' => out.push(c as u8),
            c => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
                }
            }
        }
    }
    out.push(b'"');
}

/// Maximum depth of nested values, so that a hostile file cannot exhaust the stack.
const MAX_DEPTH: usize = 200;

/// Reads a value. If a key is repeated, its last value counts.
///
/// # Errors
/// The reason and the line, from 1.
pub fn parse(text: &str) -> Result<Value, (String, usize)> {
    let mut parser = Parser { text, at: 0 };
    let result = parser.value(0).and_then(|value| {
        parser.skip_blanks();
        if parser.at == text.len() { Ok(value) } else { Err("there is more after the value") }
    });
    let line = 1 + text.as_bytes()[..parser.at.min(text.len())].iter().filter(|b| **b == b'\n').count();
    result.map_err(|reason| (format!("it is not valid JSON: {reason}"), line))
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn skip_blanks(&mut self) {
        self.at += self.rest().bytes().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).count();
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word);
        self.at += if found { word.len() } else { 0 };
        found
    }

    fn value(&mut self, depth: usize) -> Result<Value, &'static str> {
        if depth > MAX_DEPTH {
            return Err("it is nested too deeply");
        }
        self.skip_blanks();
        match self.rest().bytes().next() {
            Some(b'{') => self.map(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => self.string().map(Value::String),
            _ => self.scalar(),
        }
    }

    fn scalar(&mut self) -> Result<Value, &'static str> {
        for (word, value) in [("null", Value::Null), ("true", Value::Bool(true)), ("false", Value::Bool(false))] {
            if self.take(word) {
                return Ok(value);
            }
        }
        for word in ["NaN", "Infinity", "-Infinity"] {
            if self.take(word) {
                return Ok(Value::Number(word.into()));
            }
        }
        let length = self.rest().bytes().take_while(|b| b.is_ascii_digit() || b"+-.eE".contains(b)).count();
        let text = &self.rest()[..length];
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_padded = digits.starts_with('0') && digits[1..].starts_with(|c: char| c.is_ascii_digit());
        let is_whole = digits.starts_with(|c: char| c.is_ascii_digit()) && !digits.ends_with('.');
        if is_padded || !is_whole || digits.contains(".e") || digits.contains(".E") || text.parse::<f64>().is_err() {
            return Err("a value is expected");
        }
        let value = Value::Number(text.to_owned());
        self.at += length;
        Ok(value)
    }

    fn list(&mut self, depth: usize) -> Result<Value, &'static str> {
        self.at += 1;
        let mut items = Vec::new();
        self.skip_blanks();
        if self.take("]") {
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.skip_blanks();
            if self.take("]") {
                return Ok(Value::List(items));
            }
            if !self.take(",") {
                return Err("',' or ']' is expected");
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, &'static str> {
        self.at += 1;
        let mut entries: Vec<(String, Value)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        self.skip_blanks();
        if self.take("}") {
            return Ok(Value::Map(entries));
        }
        loop {
            self.skip_blanks();
            if !self.rest().starts_with('"') {
                return Err("a key in double quotes is expected");
            }
            let key = self.string()?;
            self.skip_blanks();
            if !self.take(":") {
                return Err("':' is expected");
            }
            let value = self.value(depth + 1)?;
            let place = *places.entry(key.clone()).or_insert(entries.len());
            if place == entries.len() {
                entries.push((key, value));
            } else {
                entries[place].1 = value;
            }
            self.skip_blanks();
            if self.take("}") {
                return Ok(Value::Map(entries));
            }
            if !self.take(",") {
                return Err("',' or '}' is expected");
            }
        }
    }

    fn string(&mut self) -> Result<String, &'static str> {
        self.at += 1;
        let mut units = Vec::new(); // A character outside of the basic plane may be written as two escapes.
        loop {
            let Some(c) = self.rest().chars().next() else { return Err("a string has no end") };
            self.at += c.len_utf8();
            match c {
                '"' => return Ok(String::from_utf16_lossy(&units)),
                '\\' => units.push(self.escape()?),
                c if u32::from(c) < 0x20 => return Err("a string contains a control character"),
                c => units.extend_from_slice(c.encode_utf16(&mut [0; 2])),
            }
        }
    }

    fn escape(&mut self) -> Result<u16, &'static str> {
        let letter = self.rest().bytes().next().ok_or("a string has no end")?;
        let unit = match letter {
            b'"' | b'\\' | b'/' => letter.into(),
            b'b' => 8,
            b'f' => 12,
            b'n' => 10,
            b'r' => 13,
            b't' => 9,
            b'u' => {
                let digits = self.rest().get(1..5).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
                let unit = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok());
                self.at += 4;
                unit.ok_or("\\u needs four hexadecimal digits")?
            }
            _ => return Err("an escape is not known"),
        };
        self.at += 1;
        Ok(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_by_python() {
        let text = r#" {"a": [1, -2.5e3, NaN, -Infinity], "b": {"é\u00e9\ud83d\ude00\n": null}, "a": true} "#;
        let value = parse(text).unwrap();
        assert_eq!(value.get("a"), Some(&Value::Bool(true)));
        assert_eq!(value.get("b").unwrap().entries()[0].0, "éé😀\n");
        let list = parse("[1, -2.5e3, NaN, -Infinity]").unwrap();
        let texts: Vec<_> = list.items().iter().filter_map(Value::as_str).collect();
        assert_eq!(texts, ["1", "-2.5e3", "NaN", "-Infinity"]);
    }

    #[test]
    fn invalid_text_is_rejected_with_its_line() {
        for text in [
            "",
            "{",
            "[1,]",
            "{\"a\"}",
            "01",
            "1.",
            ".5",
            "-",
            "\"\\x\"",
            "\"\\u12\"",
            "nul",
            "1 2",
            "{a: 1}",
            "\"a\nb\"",
            "+1",
            "\"\\ué00\"",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse("{\n\"a\": 1,\n}").unwrap_err().1, 3);
        assert!(parse(&"[".repeat(100_000)).is_err());
    }
}
