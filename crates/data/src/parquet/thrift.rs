//! Thrift's compact protocol, in which the metadata of Parquet files is written.
//! Format: <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>

use super::Malformed;

/// Maximum depth of nested values. The metadata of Parquet has six levels.
const MAX_DEPTH: usize = 16;

/// A value; the fields of a structure by their number.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Integer(i64),
    Bytes(Vec<u8>),
    List(Vec<Self>),
    Struct(Vec<(i16, Self)>),
    /// A number with a fraction, which the metadata that is read here does not have.
    Other,
}

impl Value {
    pub(super) fn field(&self, id: i16) -> Option<&Self> {
        let Self::Struct(fields) = self else { return None };
        fields.iter().find(|(field, _)| *field == id).map(|(_, value)| value)
    }

    pub(super) fn integer(&self, id: i16) -> Option<i64> {
        if let Some(Self::Integer(number)) = self.field(id) { Some(*number) } else { None }
    }

    pub(super) fn text(&self, id: i16) -> Option<String> {
        let Some(Self::Bytes(bytes)) = self.field(id) else { return None };
        Some(String::from_utf8_lossy(bytes).into_owned())
    }

    pub(super) fn items(&self, id: i16) -> &[Self] {
        if let Some(Self::List(items)) = self.field(id) { items } else { &[] }
    }
}

/// Reads a structure, and returns it with the number of its bytes.
///
/// # Errors
/// [`Malformed`] if the bytes are no structure, or end too early.
pub(super) fn read(bytes: &[u8]) -> Result<(Value, usize), Malformed> {
    let mut reader = Reader { bytes };
    let value = reader.structure(0)?;
    Ok((value, bytes.len() - reader.bytes.len()))
}

/// The next number in the form of variable length: seven bits per byte, the lowest first.
pub(super) fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = byte(bytes)?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed("a number is too long"))
}

pub(super) fn byte(bytes: &mut &[u8]) -> Result<u8, Malformed> {
    Ok(take(bytes, 1)?[0])
}

/// The next `count` bytes.
pub(super) fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = bytes.split_at_checked(count).ok_or(Malformed("it ends too early"))?;
    *bytes = rest;
    Ok(taken)
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn zigzag(&mut self) -> Result<i64, Malformed> {
        let number = varint(&mut self.bytes)?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    fn structure(&mut self, depth: usize) -> Result<Value, Malformed> {
        if depth > MAX_DEPTH {
            return Err(Malformed("it is nested too deeply"));
        }
        let (mut fields, mut id) = (Vec::new(), 0_i16);
        loop {
            let head = byte(&mut self.bytes)?;
            let kind = head & 0x0f;
            if kind == 0 {
                return Ok(Value::Struct(fields));
            }
            id = match i16::from(head >> 4) {
                0 => i16::try_from(self.zigzag()?).map_err(|_| Malformed("a field has no valid number"))?,
                difference => id.wrapping_add(difference),
            };
            let value = match kind {
                1 => Value::Bool(true),
                2 => Value::Bool(false),
                kind => self.value(kind, depth)?,
            };
            fields.push((id, value));
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Result<Value, Malformed> {
        Ok(match kind {
            1 | 2 => Value::Bool(byte(&mut self.bytes)? == 1),
            3 => Value::Integer(i64::from(byte(&mut self.bytes)?.cast_signed())),
            4..=6 => Value::Integer(self.zigzag()?),
            7 => {
                take(&mut self.bytes, 8)?;
                Value::Other
            }
            8 => {
                let length = usize::try_from(varint(&mut self.bytes)?).unwrap_or(usize::MAX);
                Value::Bytes(take(&mut self.bytes, length)?.to_vec())
            }
            9 | 10 => {
                let head = byte(&mut self.bytes)?;
                let count = match head >> 4 {
                    15 => varint(&mut self.bytes)?,
                    count => u64::from(count),
                };
                // Every element has at least one byte, so the bytes limit the memory.
                if count > self.bytes.len() as u64 {
                    return Err(Malformed("a list ends too early"));
                }
                if depth >= MAX_DEPTH {
                    return Err(Malformed("it is nested too deeply"));
                }
                Value::List((0..count).map(|_| self.value(head & 0x0f, depth + 1)).collect::<Result<_, _>>()?)
            }
            12 => self.structure(depth + 1)?,
            _ => return Err(Malformed("a value has an unknown type")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_read() {
        // Field 1: -1; field 3 (a difference of 2): true; field 20 (its number follows): a list of the texts "a" and "bc".
        let bytes = [0x15, 0x01, 0x21, 0x09, 0x28, 0x28, 0x01, b'a', 0x02, b'b', b'c', 0x00, 0xff];
        let (value, length) = read(&bytes).unwrap();
        assert_eq!(length, bytes.len() - 1);
        assert_eq!(value.integer(1), Some(-1));
        assert_eq!(value.field(3), Some(&Value::Bool(true)));
        assert_eq!(value.items(20), [Value::Bytes(b"a".to_vec()), Value::Bytes(b"bc".to_vec())]);
    }

    #[test]
    fn what_is_no_structure_is_rejected() {
        assert!(read(&[]).is_err());
        assert!(read(&[0x15, 0x80]).is_err());
        assert!(read(&[0x19, 0xf8, 0xff, 0xff, 0xff, 0x7f]).is_err(), "a list that is longer than the file");
        assert!(read(&[0x18, 0xff, 0xff, 0xff, 0xff, 0x7f]).is_err(), "a text that is longer than the file");
        assert!(read(&[0x1c; 1000]).is_err(), "nested structures");
        assert!(read(&[[0x19].as_slice(), &[0x19; 1000]].concat()).is_err(), "nested lists");
    }
}
