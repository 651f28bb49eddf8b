//! Decompression of pages.

use std::io::Read;

use super::Malformed;
use super::thrift::{byte, take, varint};

/// The content of a page of `size` bytes; `None` if the compression is not supported. `codec` is Parquet's number of the compression.
///
/// # Errors
/// [`Malformed`] if the bytes cannot be decompressed, or to another size.
pub(super) fn decompress(codec: i64, bytes: &[u8], size: usize) -> Result<Option<Vec<u8>>, Malformed> {
    let content = match codec {
        0 => bytes.to_vec(),
        1 => snappy(bytes, size)?,
        2 => {
            let mut content = Vec::new();
            let limit = size as u64 + 1;
            let read = flate2::read::MultiGzDecoder::new(bytes).take(limit).read_to_end(&mut content);
            read.map_err(|_| Malformed("a page is not compressed with gzip"))?;
            content
        }
        _ => return Ok(None),
    };
    if content.len() == size { Ok(Some(content)) } else { Err(Malformed("a page has another size than it says")) }
}

/// Decompresses Snappy's format without frames: <https://github.com/google/snappy/blob/main/format_description.txt>
fn snappy(mut bytes: &[u8], size: usize) -> Result<Vec<u8>, Malformed> {
    const INVALID: Malformed = Malformed("a page is not compressed with Snappy");
    if varint(&mut bytes)? != size as u64 {
        return Err(INVALID);
    }
    let mut content = Vec::with_capacity(size);
    while !bytes.is_empty() {
        let tag = usize::from(byte(&mut bytes)?);
        let mut number = |count: usize| -> Result<usize, Malformed> {
            Ok(take(&mut bytes, count)?.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
        };
        let (length, offset) = match tag & 3 {
            0 => {
                let length = match tag >> 2 {
                    short @ ..60 => short,
                    long => number(long - 59)?,
                };
                let literal = take(&mut bytes, length.saturating_add(1))?;
                if content.len() + literal.len() > size {
                    return Err(INVALID);
                }
                content.extend_from_slice(literal);
                continue;
            }
            1 => (4 + (tag >> 2 & 7), (tag >> 5) << 8 | number(1)?),
            2 => (1 + (tag >> 2), number(2)?),
            _ => (1 + (tag >> 2), number(4)?),
        };
        if offset == 0 || offset > content.len() || content.len() + length > size {
            return Err(INVALID);
        }
        let start = content.len() - offset;
        // What is copied may overlap with the copy, which then repeats it.
        for i in start..start + length {
            content.push(content[i]);
        }
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_repeat_what_was_written() {
        // "ab", then a copy of 6 bytes from 2 bytes before, then one of 5 with an offset of two bytes.
        let bytes = [13, 0b0000_0100, b'a', b'b', 0b0000_1001, 2, 0b0001_0010, 1, 0];
        assert_eq!(snappy(&bytes, 13).unwrap(), b"ababababbbbbb");
        assert!(snappy(&bytes, 12).is_err());
        assert!(snappy(&[4, 0b0000_0000, b'a', 0b0000_0001, 9], 4).is_err(), "an offset before the beginning");
        assert!(snappy(&[1, 0b1111_1100, 0xff, 0xff, 0xff, 0xff], 1).is_err(), "a literal that is not there");
    }
}
