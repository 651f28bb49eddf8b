//! Columns: what the schema says of them, and the values in their pages.

use std::cell::Cell;

use super::compression::decompress;
use super::format::{Annotation, format};
use super::thrift::{self, Value, byte, take, varint};
use super::{Malformed, Source};

/// Maximum bytes of a page, compressed and not.
const MAX_PAGE_BYTES: usize = 16 << 20;
/// Maximum bytes of the header of a page, which contains the smallest and greatest value.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// Maximum number of columns of a file.
const MAX_COLUMNS: usize = 10_000;
/// Parquet's numbers of the names of compressions and encodings.
const COMPRESSIONS: [&str; 8] = ["none", "Snappy", "gzip", "LZO", "Brotli", "LZ4", "Zstandard", "LZ4"];
const PLAIN: i64 = 0;
const PLAIN_DICTIONARY: i64 = 2;
const RUN_LENGTHS: i64 = 3;
const DICTIONARY: i64 = 8;

/// The bytes that may still be read of a file, so that one with many pages does not take long.
#[derive(Debug)]
pub(super) struct Budget(Cell<usize>);

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Cell::new(bytes))
    }

    /// Whether the bytes may be read.
    fn spend(&self, bytes: usize) -> bool {
        let left = self.0.get().checked_sub(bytes);
        self.0.set(left.unwrap_or(0));
        left.is_some()
    }
}

/// The types of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Boolean,
    Int32,
    Int64,
    Int96,
    Float,
    Double,
    Bytes,
    Fixed(usize),
}

/// A column of a file, which is a leaf of its schema.
#[derive(Debug)]
pub(super) struct Column {
    /// Its names in the schema, separated by dots.
    pub(super) name: String,
    kind: Kind,
    annotation: Annotation,
    /// Whether it is neither in a group nor repeated.
    is_flat: bool,
    is_optional: bool,
}

/// The columns of a schema, which is a tree in the order of its nodes.
pub(super) fn all(schema: &[Value]) -> Result<Vec<Column>, Malformed> {
    // Of each open group, the name and the number of its nodes that follow.
    let mut groups: Vec<(String, i64)> = Vec::new();
    let mut columns = Vec::new();
    for (number, node) in schema.iter().enumerate() {
        let name = node.text(4).unwrap_or_default();
        if let Some((_, remaining)) = groups.last_mut() {
            *remaining -= 1;
        }
        let children = node.integer(5).unwrap_or(0);
        if children > 0 || number == 0 {
            groups.push((if number == 0 { String::new() } else { name }, children));
        } else {
            let path: Vec<&str> = groups.iter().skip(1).map(|(name, _)| name.as_str()).chain([name.as_str()]).collect();
            let repetition = node.integer(3).unwrap_or(0);
            columns.push(Column {
                name: path.join("."),
                kind: kind(node)?,
                annotation: Annotation::of(node),
                is_flat: groups.len() == 1 && repetition < 2,
                is_optional: repetition == 1,
            });
        }
        while groups.last().is_some_and(|(_, remaining)| *remaining <= 0) {
            groups.pop();
        }
    }
    if columns.len() > MAX_COLUMNS {
        return Err(Malformed("it has more than 10,000 columns"));
    }
    Ok(columns)
}

fn kind(node: &Value) -> Result<Kind, Malformed> {
    Ok(match node.integer(1) {
        Some(0) => Kind::Boolean,
        Some(1) => Kind::Int32,
        Some(2) => Kind::Int64,
        Some(3) => Kind::Int96,
        Some(4) => Kind::Float,
        Some(5) => Kind::Double,
        Some(6) => Kind::Bytes,
        Some(7) => match usize::try_from(node.integer(2).unwrap_or(0)) {
            // Values without bytes would let a number in a few bytes stand for billions of them.
            Ok(length) if length > 0 => Kind::Fixed(length),
            _ => return Err(Malformed("a type has no length")),
        },
        _ => return Err(Malformed("a column has an unknown type")),
    })
}

/// The encoded values of a page.
struct Page {
    encoding: i64,
    /// Of each row, whether it has a value.
    has_value: Vec<bool>,
    values: Vec<u8>,
}

impl Column {
    /// The first `count` cells of a chunk of this column.
    pub(super) fn read(
        &self,
        source: &dyn Source,
        budget: &Budget,
        chunk: &Value,
        count: usize,
    ) -> Result<Vec<String>, Malformed> {
        let whole = |text: &str| Ok(vec![format!("({text})"); count]);
        if !self.is_flat {
            return whole("nested");
        }
        let data = chunk.field(3).ok_or(Malformed("a column has no metadata"))?;
        let codec = data.integer(4).unwrap_or(-1);
        let offset =
            |id: i16| data.integer(id).and_then(|offset| u64::try_from(offset).ok()).filter(|offset| *offset > 0);
        let first = offset(9).ok_or(Malformed("a column has no pages"))?;
        let mut at = offset(11).map_or(first, |dictionary| dictionary.min(first));
        let mut dictionary: Option<Vec<u8>> = None;
        let mut cells = Vec::new();
        while cells.len() < count {
            let start = source.read(at, MAX_HEADER_BYTES).ok_or(Malformed("a page is outside of the file"))?;
            let (header, length) = thrift::read(&start)?;
            let size = |id: i16| header.integer(id).and_then(|size| usize::try_from(size).ok());
            let (Some(size), Some(compressed)) = (size(2), size(3)) else {
                return Err(Malformed("a page has no valid size"));
            };
            if size.max(compressed) > MAX_PAGE_BYTES || !budget.spend(MAX_HEADER_BYTES + size + compressed) {
                return whole("too large");
            }
            at += length as u64;
            let body = source.read(at, compressed).filter(|body| body.len() == compressed);
            let body = body.ok_or(Malformed("a page is outside of the file"))?;
            at += body.len() as u64;
            let wanted = count - cells.len();
            let page = match header.integer(1) {
                Some(0) => self.page(codec, &header, &body, size, wanted)?,
                Some(2) => {
                    dictionary = decompress(codec, &body, size)?;
                    continue;
                }
                Some(3) => self.page_with_levels(codec, &header, &body, size, wanted)?,
                _ => continue,
            };
            let Some(page) = page else {
                let name = usize::try_from(codec).ok().and_then(|codec| COMPRESSIONS.get(codec));
                return whole(&format!("compressed with {}", name.unwrap_or(&"an unknown method")));
            };
            match self.cells(&page, dictionary.as_deref())? {
                Some(found) => cells.extend(found),
                None => return whole("encoded in a way that is not supported"),
            }
        }
        Ok(cells)
    }

    /// A page whose rows without a value are listed in its compressed part.
    fn page(
        &self,
        codec: i64,
        header: &Value,
        body: &[u8],
        size: usize,
        wanted: usize,
    ) -> Result<Option<Page>, Malformed> {
        let info = header.field(5).ok_or(Malformed("a page has no header"))?;
        let rows = wanted.min(usize::try_from(info.integer(1).unwrap_or(0)).unwrap_or(0));
        let Some(content) = decompress(codec, body, size)? else { return Ok(None) };
        let mut values = content.as_slice();
        let has_value = match self.is_optional {
            true => {
                let length = u32::from_le_bytes(chunk(&mut values)?);
                levels(take(&mut values, length as usize)?, rows)?
            }
            false => vec![true; rows],
        };
        Ok(Some(Page { encoding: info.integer(2).unwrap_or(-1), has_value, values: values.to_vec() }))
    }

    /// A page whose rows without a value are listed before its compressed part (version 2).
    fn page_with_levels(
        &self,
        codec: i64,
        header: &Value,
        body: &[u8],
        size: usize,
        wanted: usize,
    ) -> Result<Option<Page>, Malformed> {
        let info = header.field(8).ok_or(Malformed("a page has no header"))?;
        let length = |id: i16| usize::try_from(info.integer(id).unwrap_or(0)).unwrap_or(usize::MAX);
        let rows = wanted.min(length(1));
        let mut values = body;
        take(&mut values, length(6))?;
        let listed = take(&mut values, length(5))?;
        let has_value = if self.is_optional { levels(listed, rows)? } else { vec![true; rows] };
        let is_compressed = info.field(7) != Some(&Value::Bool(false));
        let size = size.checked_sub(body.len() - values.len()).ok_or(Malformed("a page has no valid size"))?;
        let content = decompress(if is_compressed { codec } else { 0 }, values, size)?;
        let encoding = info.integer(4).unwrap_or(-1);
        Ok(content.map(|values| Page { encoding, has_value, values }))
    }

    /// The cells of a page, empty ones for rows without a value; `None` if its encoding is not supported.
    fn cells(&self, page: &Page, dictionary: Option<&[u8]>) -> Result<Option<Vec<String>>, Malformed> {
        let count = page.has_value.iter().filter(|has_value| **has_value).count();
        let shown = |value: &[u8]| format(self.kind, self.annotation, value);
        let mut bytes = page.values.as_slice();
        let found: Vec<String> = match page.encoding {
            PLAIN => plain(self.kind, bytes, count)?.into_iter().map(shown).collect(),
            PLAIN_DICTIONARY | DICTIONARY => {
                let width = if count == 0 { 0 } else { byte(&mut bytes)? };
                let numbers = hybrid(bytes, width, count)?;
                let needed = numbers.iter().max().map_or(0, |greatest| *greatest as usize + 1);
                let entries = plain(self.kind, dictionary.unwrap_or_default(), needed)?;
                numbers.into_iter().map(|number| shown(entries[number as usize])).collect()
            }
            RUN_LENGTHS if self.kind == Kind::Boolean => {
                let length = if count == 0 { 0 } else { u32::from_le_bytes(chunk(&mut bytes)?) };
                let bits = hybrid(take(&mut bytes, length as usize)?, 1, count)?;
                bits.into_iter().map(|bit| shown(&[bit as u8])).collect()
            }
            _ => return Ok(None),
        };
        let mut found = found.into_iter();
        Ok(Some(
            page.has_value
                .iter()
                .map(|has_value| has_value.then(|| found.next()).flatten().unwrap_or_default())
                .collect(),
        ))
    }
}

fn chunk<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (chunk, rest) = bytes.split_first_chunk::<N>().ok_or(Malformed("it ends too early"))?;
    *bytes = rest;
    Ok(*chunk)
}

/// Of each row of an optional column, whether it has a value.
fn levels(bytes: &[u8], rows: usize) -> Result<Vec<bool>, Malformed> {
    Ok(hybrid(bytes, 1, rows)?.into_iter().map(|level| level == 1).collect())
}

/// The first `count` numbers of `width` bits in Parquet's mixture of runs and packed bits.
fn hybrid(mut bytes: &[u8], width: u8, count: usize) -> Result<Vec<u32>, Malformed> {
    if width > 32 {
        return Err(Malformed("a number has more than 32 bits"));
    }
    if width == 0 {
        return Ok(vec![0; count]);
    }
    let mut numbers = Vec::with_capacity(count);
    while numbers.len() < count {
        let head = varint(&mut bytes)?;
        let length = usize::try_from(head >> 1).unwrap_or(usize::MAX);
        let left = count - numbers.len();
        if head & 1 == 0 {
            let mut number = [0; 4];
            let value = take(&mut bytes, usize::from(width.div_ceil(8)))?;
            number[..value.len()].copy_from_slice(value);
            if length == 0 {
                return Err(Malformed("a run has no length"));
            }
            numbers.extend(std::iter::repeat_n(u32::from_le_bytes(number), length.min(left)));
        } else {
            // Groups of eight numbers; a writer may cut the last one off.
            let size = length.saturating_mul(usize::from(width)).min(bytes.len());
            let packed = take(&mut bytes, size)?;
            let available = (packed.len() * 8 / usize::from(width)).min(length.saturating_mul(8));
            if available == 0 {
                return Err(Malformed("packed numbers are missing"));
            }
            numbers.extend((0..available.min(left)).map(|i| unpack(packed, i * usize::from(width), width)));
        }
    }
    Ok(numbers)
}

/// The number of `width` bits at a bit, the lowest bit first.
fn unpack(bytes: &[u8], at: usize, width: u8) -> u32 {
    let mut window = [0; 8];
    let from = &bytes[at / 8..];
    let length = from.len().min(8);
    window[..length].copy_from_slice(&from[..length]);
    let number = u64::from_le_bytes(window) >> (at % 8) & ((1 << width) - 1);
    // At most 32 bits are left.
    number as u32
}

/// The first `count` values in plain encoding.
fn plain(kind: Kind, mut bytes: &[u8], count: usize) -> Result<Vec<&[u8]>, Malformed> {
    let mut values = Vec::new();
    for number in 0..count {
        values.push(match kind {
            Kind::Boolean => {
                let packed = bytes.get(number / 8).ok_or(Malformed("it ends too early"))?;
                if packed >> (number % 8) & 1 == 1 { &[1] } else { &[0] }
            }
            Kind::Int32 | Kind::Float => take(&mut bytes, 4)?,
            Kind::Int64 | Kind::Double => take(&mut bytes, 8)?,
            Kind::Int96 => take(&mut bytes, 12)?,
            Kind::Fixed(length) => take(&mut bytes, length)?,
            Kind::Bytes => {
                let length = u32::from_le_bytes(chunk(&mut bytes)?);
                take(&mut bytes, length as usize)?
            }
        });
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_packed_bits_are_read() {
        // The numbers 0 to 7 in three bits each, an example of the format's description, and then five times the number 4.
        let bytes = [0b11, 0b1000_1000, 0b1100_0110, 0b1111_1010, 10, 4];
        assert_eq!(hybrid(&bytes, 3, 13).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7, 4, 4, 4, 4, 4]);
        assert_eq!(hybrid(&bytes, 3, 2).unwrap(), [0, 1]);
        assert!(hybrid(&bytes, 3, 14).is_err());
        assert!(hybrid(&[0, 4], 3, 1).is_err(), "a run of nothing");
        assert!(hybrid(&[1], 3, 1).is_err(), "no groups");
        assert!(hybrid(&bytes, 33, 1).is_err());
    }

    #[test]
    fn values_without_bytes_are_rejected() {
        let node = |length: i64| Value::Struct(vec![(1, Value::Integer(7)), (2, Value::Integer(length))]);
        assert_eq!(kind(&node(4)).unwrap(), Kind::Fixed(4));
        assert!(kind(&node(0)).is_err() && kind(&node(-1)).is_err());
    }
}
