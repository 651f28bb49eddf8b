//! The first rows of a Parquet file: its flat columns without compression or with Snappy or gzip, and with plain, dictionary or run-length encoding, which is
//! what most programs write. Cells of other columns say why they are not shown. Format: <https://parquet.apache.org/docs/file-format/>
//!
//! Invariant: files are not trusted. Memory is taken for bytes that are there, up to the limits of this module.

mod column;
mod compression;
mod format;
mod thrift;

use self::column::{Budget, Column};
use self::thrift::Value;

/// The first and last bytes of a file.
const MAGIC: &[u8] = b"PAR1";
/// Bytes of the length of the metadata and the magic number at the end.
const TAIL_BYTES: u64 = 8;
/// Maximum bytes of the metadata.
const MAX_METADATA_BYTES: u64 = 4 << 20;
/// Maximum bytes of all pages that are read, compressed and not.
const MAX_READ_BYTES: usize = 1 << 30;

/// The file is not as the format demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// A file of which parts are read.
pub(crate) trait Source {
    /// Number of its bytes.
    fn size(&self) -> u64;
    /// The bytes from `from` on, `count` or fewer at the end of the file; `None` if they cannot be read.
    fn read(&self, from: u64, count: usize) -> Option<Vec<u8>>;
}

impl Source for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, from: u64, count: usize) -> Option<Vec<u8>> {
        let rest = self.get(usize::try_from(from).ok()?..)?;
        Some(rest[..count.min(rest.len())].to_vec())
    }
}

impl Source for std::fs::File {
    fn size(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read(&self, from: u64, count: usize) -> Option<Vec<u8>> {
        use std::os::unix::fs::FileExt;
        let count = count.min(usize::try_from(self.size().checked_sub(from)?).ok()?);
        let mut bytes = vec![0; count];
        self.read_exact_at(&mut bytes, from).ok()?;
        Some(bytes)
    }
}

/// The beginning of a table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// The titles of the first columns.
    pub(crate) columns: Vec<String>,
    /// The first rows.
    pub(crate) rows: Vec<Vec<String>>,
    /// Whether the file has more rows or columns.
    pub(crate) has_more: bool,
}

/// Whether the first bytes of a file are those of Parquet.
pub(crate) fn is_parquet(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// Reads up to `max_rows` rows and `max_columns` columns.
///
/// # Errors
/// [`Malformed`] if it is not a Parquet file.
pub(crate) fn first_rows(source: &dyn Source, max_rows: usize, max_columns: usize) -> Result<Table, Malformed> {
    let metadata = metadata(source)?;
    let all = column::all(metadata.items(2))?;
    let columns: Vec<&Column> = all.iter().take(max_columns).collect();
    let mut cells: Vec<Vec<String>> = vec![Vec::new(); columns.len()];
    let budget = Budget::new(MAX_READ_BYTES);
    let mut count = 0;
    for group in metadata.items(4) {
        let in_group = usize::try_from(group.integer(3).unwrap_or(0)).unwrap_or(0);
        let wanted = in_group.min(max_rows - count);
        if wanted == 0 {
            continue;
        }
        for (number, (column, cells)) in columns.iter().zip(&mut cells).enumerate() {
            let chunk = group.items(1).get(number).ok_or(Malformed("a column is missing"))?;
            cells.extend(column.read(source, &budget, chunk, wanted)?);
        }
        count += wanted;
    }
    let row = |number: usize| cells.iter().map(|column| column[number].clone()).collect();
    let total = usize::try_from(metadata.integer(3).unwrap_or(0)).unwrap_or(0);
    Ok(Table {
        columns: columns.iter().map(|column| column.name.clone()).collect(),
        rows: (0..count).map(row).collect(),
        has_more: total > count || all.len() > max_columns,
    })
}

/// The metadata, which is at the end of the file.
fn metadata(source: &dyn Source) -> Result<Value, Malformed> {
    const NO_TAIL: Malformed = Malformed("it does not end like a Parquet file");
    let start = source.size().checked_sub(TAIL_BYTES).ok_or(NO_TAIL)?;
    let tail = source.read(start, TAIL_BYTES as usize).ok_or(NO_TAIL)?;
    let (length, magic) = tail.split_first_chunk::<4>().ok_or(NO_TAIL)?;
    let length = u64::from(u32::from_le_bytes(*length));
    if magic != MAGIC || length > start {
        return Err(NO_TAIL);
    }
    if length > MAX_METADATA_BYTES {
        return Err(Malformed("its metadata has more than 4 MiB"));
    }
    let bytes = source.read(start - length, length as usize).ok_or(Malformed("its metadata cannot be read"))?;
    Ok(thrift::read(&bytes)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by pyarrow: version 1 pages with dictionaries, Snappy, two groups of rows.
    const SNAPPY: &[u8] = include_bytes!("testdata/snappy.parquet");
    /// The same table with version 2 pages, without dictionaries, gzip, one group of rows.
    const GZIP: &[u8] = include_bytes!("testdata/gzip.parquet");

    fn expected() -> Vec<[&'static str; 10]> {
        vec![
            [
                "1",
                "plum",
                "0.5",
                "2024-02-29 12:00:00.000001",
                "2024-02-29",
                "true",
                "-123.45",
                "(nested)",
                "0xff00",
                "200",
            ],
            ["2", "", "", "", "", "", "", "(nested)", "", ""],
            ["3", "apple", "1e300", "1969-12-31 23:59:59", "1969-12-31", "false", "0.05", "(nested)", "text", "7"],
            ["4", "plum", "-2.0", "2024-02-29 12:00:00", "2024-02-29", "true", "1.00", "(nested)", "", "0"],
        ]
    }

    #[test]
    fn tables_of_other_writers_are_read() {
        for bytes in [SNAPPY, GZIP] {
            let table = first_rows(&bytes, 100, 50).unwrap();
            let names = ["id", "name", "price", "when", "day", "flag", "amount", "tags.list.element", "bytes", "small"];
            assert_eq!(table.columns, names);
            assert_eq!(table.rows, expected());
            assert!(!table.has_more);
            let part = first_rows(&bytes, 3, 2).unwrap();
            assert_eq!((part.columns.len(), part.rows.len(), part.has_more), (2, 3, true));
            assert_eq!(part.rows[2], ["3", "apple"]);
        }
    }

    #[test]
    fn damaged_files_are_rejected_or_read() {
        assert!(first_rows(&b"PAR1".as_slice(), 1, 1).is_err());
        assert!(first_rows(&b"PAR1\xff\xff\xff\x7fPAR1".as_slice(), 1, 1).is_err());
        for bytes in [SNAPPY, GZIP] {
            for at in 0..bytes.len() {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= [1, 0x80, 0xff][at % 3];
                // Neither panics nor takes much memory.
                let _ = first_rows(&damaged.as_slice(), 100, 50);
                let _ = first_rows(&&bytes[at..], 100, 50);
            }
        }
    }
}
