//! The arguments of a queued run, which DVC stores with the state of the work tree as a Python pickle. Only values are read: a pickle that
//! names classes or functions, which Python would load and call, is rejected.

use crate::error::DataError;
use crate::yaml::Value;

/// Where the arguments are, below the folder `.dvc`.
pub(super) const FILE: &str = "tmp/repro.dat";
/// Maximum number of values, so that a crafted file cannot exhaust memory.
const MAX_VALUES: usize = 100_000;
/// A list or mapping with more items would be written in several parts.
const MAX_ITEMS: usize = 1000;

/// Writes keyword arguments as `pickle.dump` of protocol 4 writes them.
///
/// # Errors
/// [`DataError::Invalid`] for more targets than a part of a list has.
pub(super) fn write(arguments: &Value) -> Result<Vec<u8>, DataError> {
    let mut body = Vec::new();
    let all = Value::Map(vec![("args".into(), Value::List(Vec::new())), ("kwargs".into(), arguments.clone())]);
    write_value(&mut body, &all)
        .map_err(|reason| DataError::Invalid(format!("the arguments of the experiment cannot be queued: {reason}")))?;
    body.push(b'.');
    let mut bytes = vec![0x80, 4, 0x95];
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Marks that Python remembers a value, which it does with all but the simplest.
const MEMOIZE: u8 = 0x94;

fn write_value(out: &mut Vec<u8>, value: &Value) -> Result<(), &'static str> {
    match value {
        Value::Null => out.push(b'N'),
        Value::Bool(true) => out.push(0x88),
        Value::Bool(false) => out.push(0x89),
        Value::Number(_) => return Err("there is a number among them"),
        Value::String(text) => write_string(out, text),
        Value::List(items) => {
            out.extend([b']', MEMOIZE]);
            write_items(out, items, [b'a', b'e'], write_value)?;
        }
        Value::Map(entries) => {
            out.extend([b'}', MEMOIZE]);
            write_items(out, entries, [b's', b'u'], |out, (key, value)| {
                write_string(out, key);
                match (key.as_str(), value) {
                    // The positional arguments are a tuple.
                    ("args", Value::List(items)) if items.is_empty() => out.push(b')'),
                    _ => write_value(out, value)?,
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// One item is added by the first operation, several by the second, after a mark.
fn write_items<T>(
    out: &mut Vec<u8>,
    items: &[T],
    [one, several]: [u8; 2],
    write: impl Fn(&mut Vec<u8>, &T) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    if items.len() > MAX_ITEMS {
        return Err("there are too many");
    }
    if items.len() > 1 {
        out.push(b'(');
    }
    items.iter().try_for_each(|item| write(out, item))?;
    match items.len() {
        0 => {}
        1 => out.push(one),
        _ => out.push(several),
    }
    Ok(())
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    match u8::try_from(text.len()) {
        Ok(length) => out.extend([0x8c, length]),
        Err(_) => {
            out.push(b'X');
            // An argument of a command is shorter than 4 GiB.
            out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        }
    }
    out.extend_from_slice(text.as_bytes());
    out.push(MEMOIZE);
}

/// Reads the keyword arguments.
///
/// # Errors
/// The reason why they cannot be read.
pub(crate) fn read(bytes: &[u8]) -> Result<Value, &'static str> {
    let value = Reader { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: Vec::new() }.run()?;
    value.get("kwargs").cloned().ok_or("it has no arguments")
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: Vec<Value>,
}

const ENDS: &str = "it ends early";
const EMPTY: &str = "it takes a value that is not there";

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], &'static str> {
        let end = self.at.checked_add(count).ok_or(ENDS)?;
        let part = self.bytes.get(self.at..end).ok_or(ENDS)?;
        self.at = end;
        Ok(part)
    }

    fn length(&mut self, bytes: usize) -> Result<usize, &'static str> {
        let part = self.take(bytes)?;
        let value = part.iter().rev().fold(0_u64, |value, byte| (value << 8) | u64::from(*byte));
        usize::try_from(value).map_err(|_| ENDS)
    }

    fn text(&mut self, bytes: usize) -> Result<Value, &'static str> {
        let length = self.length(bytes)?;
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "a string is not valid UTF-8")?;
        Ok(Value::string(text))
    }

    fn since_mark(&mut self) -> Result<Vec<Value>, &'static str> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len()).ok_or(EMPTY)?;
        Ok(self.stack.split_off(mark))
    }

    fn pop(&mut self, count: usize) -> Result<Vec<Value>, &'static str> {
        let start = self.stack.len().checked_sub(count).ok_or(EMPTY)?;
        Ok(self.stack.split_off(start))
    }

    fn append(&mut self, items: Vec<Value>) -> Result<(), &'static str> {
        match self.stack.last_mut() {
            Some(Value::List(list)) => list.extend(items),
            _ => return Err(EMPTY),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<Value>) -> Result<(), &'static str> {
        let Some(Value::Map(entries)) = self.stack.last_mut() else { return Err(EMPTY) };
        let mut items = items.into_iter();
        while let (Some(Value::String(key)), Some(value)) = (items.next(), items.next()) {
            entries.push((key, value));
        }
        Ok(())
    }

    fn run(mut self) -> Result<Value, &'static str> {
        loop {
            if self.stack.len() + self.memo.len() > MAX_VALUES {
                return Err("it has too many values");
            }
            let operation = self.take(1)?[0];
            let value = match operation {
                0x80 => {
                    self.take(1)?;
                    continue;
                }
                0x95 => {
                    self.take(8)?;
                    continue;
                }
                b'.' => return self.pop(1)?.pop().ok_or(EMPTY),
                b'(' => {
                    self.marks.push(self.stack.len());
                    continue;
                }
                // A value that is filled after it is remembered is remembered empty; Python refers only to strings again here.
                MEMOIZE => {
                    self.memo.push(self.stack.last().cloned().ok_or(EMPTY)?);
                    continue;
                }
                b'a' | b'e' => {
                    let items = if operation == b'a' { self.pop(1)? } else { self.since_mark()? };
                    self.append(items)?;
                    continue;
                }
                b's' | b'u' => {
                    let items = if operation == b's' { self.pop(2)? } else { self.since_mark()? };
                    self.set(items)?;
                    continue;
                }
                b'h' | b'j' => {
                    let place = self.length(if operation == b'h' { 1 } else { 4 })?;
                    self.memo.get(place).cloned().ok_or(EMPTY)?
                }
                b'N' => Value::Null,
                0x88 => Value::Bool(true),
                0x89 => Value::Bool(false),
                b'K' => Value::Number(self.length(1)?.to_string()),
                b'M' => Value::Number(self.length(2)?.to_string()),
                0x8c => self.text(1)?,
                b'X' => self.text(4)?,
                b'}' => Value::Map(Vec::new()),
                b']' | b')' => Value::List(Vec::new()),
                0x85 => Value::List(self.pop(1)?),
                0x86 => Value::List(self.pop(2)?),
                0x87 => Value::List(self.pop(3)?),
                b't' => Value::List(self.since_mark()?),
                _ => return Err("it contains more than plain values"),
            };
            self.stack.push(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python writes for `{"args": (), "kwargs": {"a": {"b": "c"}, "t": ["x", "y"], "e": [], "n": None, "f": False}}`.
    const OF_PYTHON: &[u8] = b"\x80\x04\x95I\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x04args\x94)\x8c\x06kwargs\x94}\x94(\x8c\x01a\x94}\x94\x8c\x01b\x94\x8c\x01c\x94s\x8c\x01t\x94]\x94(\x8c\x01x\x94\x8c\x01y\x94e\x8c\x01e\x94]\x94\x8c\x01n\x94N\x8c\x01f\x94\x89uu.";

    #[test]
    fn arguments_are_those_of_python() {
        let value = read(OF_PYTHON).unwrap();
        assert_eq!(value.find("a.b"), Some(&Value::string("c")));
        assert_eq!(value.find("t.1"), Some(&Value::string("y")));
        assert_eq!(write(&value).unwrap(), OF_PYTHON);
        let long = Value::Map(vec![("k".into(), Value::string("x".repeat(300)))]);
        assert_eq!(read(&write(&long).unwrap()).unwrap(), long);
    }

    #[test]
    fn code_and_broken_pickles_are_rejected() {
        assert!(read(b"\x80\x04cos\nsystem\n(\x8c\x04true\x94tR.").is_err());
        for end in 0..OF_PYTHON.len() {
            assert!(read(&OF_PYTHON[..end]).is_err(), "{end}");
        }
        for bytes in [&b"u."[..], b"(u.", b"}(a.", b"h\x07.", b"\x94.", b"]t.", b"X\xff\xff\xff\xff."] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }
}
