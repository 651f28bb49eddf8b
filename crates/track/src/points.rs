//! The encoding of metric points in database rows.
//!
//! One row contains the points of one request, so logging 100 metrics writes to one page of the database instead of 100. Later,
//! compaction (`service::compaction`) rewrites the rows so that the points of each metric are grouped.
//!
//! Layout of a row (all integers are LEB128, signed ones zigzag):
//! `number of keys, (length, UTF-8 bytes)*, (key index, step, timestamp - previous timestamp, flags, value)*`
//! where bit 0 of the flags means NaN, and the value is a little-endian double (8 bytes).

use std::collections::HashMap;

/// A point of a metric, without its key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// The step that the client sent, 0 by default.
    pub step: i64,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// The value; it may be NaN.
    pub value: f64,
}

impl Point {
    /// MLflow's order of a history: timestamp, step, value. NaN sorts as 0, because MLflow stores it as 0.
    pub fn by_time(&self, other: &Self) -> std::cmp::Ordering {
        (self.timestamp, self.step)
            .cmp(&(other.timestamp, other.step))
            .then(self.sortable().total_cmp(&other.sortable()))
            .then(self.value.is_nan().cmp(&other.value.is_nan()))
    }

    /// MLflow's order for sampling and for the newest value: step, timestamp, value.
    pub fn by_step(&self, other: &Self) -> std::cmp::Ordering {
        (self.step, self.timestamp)
            .cmp(&(other.step, other.timestamp))
            .then(self.sortable().total_cmp(&other.sortable()))
            .then(self.value.is_nan().cmp(&other.value.is_nan()))
    }

    /// The value as MLflow stores it in SQL: 0 for NaN.
    pub fn sortable(&self) -> f64 {
        if self.value.is_nan() { 0.0 } else { self.value }
    }

    /// Whether MLflow would store both points as the same row.
    pub fn same(&self, other: &Self) -> bool {
        self.by_time(other).is_eq()
    }
}

fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push((n as u8) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

fn unzigzag(n: u64) -> i64 {
    ((n >> 1) as i64) ^ -((n & 1) as i64)
}

fn put_point(out: &mut Vec<u8>, index: u64, point: Point, previous: &mut i64) {
    put_varint(out, index);
    put_varint(out, zigzag(point.step));
    put_varint(out, zigzag(point.timestamp.wrapping_sub(*previous)));
    *previous = point.timestamp;
    out.push(u8::from(point.value.is_nan()));
    out.extend_from_slice(&point.sortable().to_le_bytes());
}

fn put_keys<'a>(out: &mut Vec<u8>, keys: impl ExactSizeIterator<Item = &'a str>) {
    put_varint(out, keys.len() as u64);
    for key in keys {
        put_varint(out, key.len() as u64);
        out.extend_from_slice(key.as_bytes());
    }
}

/// Encodes points as a row.
pub fn pack<'a>(points: impl Iterator<Item = (&'a str, Point)>) -> Vec<u8> {
    let mut indices: HashMap<&str, u64> = HashMap::new();
    let mut keys = Vec::new();
    let mut body = Vec::new();
    let mut previous = 0;
    for (key, point) in points {
        let next = indices.len() as u64;
        let index = *indices.entry(key).or_insert_with(|| {
            keys.push(key);
            next
        });
        put_point(&mut body, index, point, &mut previous);
    }
    let mut row = Vec::with_capacity(body.len() + keys.len() * 16);
    put_keys(&mut row, keys.into_iter());
    row.extend_from_slice(&body);
    row
}

/// Encodes points that are already grouped by key as a row.
pub(crate) fn pack_keys(keys: &[(&str, Vec<Point>)]) -> Vec<u8> {
    let mut row = Vec::new();
    put_keys(&mut row, keys.iter().map(|(key, _)| *key));
    let mut previous = 0;
    for (index, (_, points)) in (0..).zip(keys) {
        for point in points {
            put_point(&mut row, index, *point, &mut previous);
        }
    }
    row
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// Reads a LEB128 integer; `None` when the row ends early or the integer is too long.
    fn varint(&mut self) -> Option<u64> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            n |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(n);
            }
        }
        None
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }
}

/// Reads the next point of a row and the index of its key. `timestamp` is that of the previous point, 0 before the first, and is
/// updated.
fn next_point(cursor: &mut Cursor<'_>, timestamp: &mut i64) -> Option<(u64, Point)> {
    let index = cursor.varint()?;
    let step = unzigzag(cursor.varint()?);
    *timestamp = timestamp.wrapping_add(unzigzag(cursor.varint()?));
    let flags = *cursor.take(1)?.first()?;
    let value = f64::from_le_bytes(cursor.take(8)?.try_into().ok()?);
    Some((index, Point { step, timestamp: *timestamp, value: if flags & 1 == 1 { f64::NAN } else { value } }))
}

/// Appends the points of `key` in `row` to `found`; `None` when the row is corrupt.
pub fn unpack(row: &[u8], key: &str, found: &mut Vec<Point>) -> Option<()> {
    let mut cursor = Cursor(row);
    let mut key_index = None;
    for index in 0..cursor.varint()? {
        let length = usize::try_from(cursor.varint()?).ok()?;
        if cursor.take(length)? == key.as_bytes() {
            key_index = Some(index);
        }
    }
    let Some(key_index) = key_index else { return Some(()) };
    let mut timestamp = 0;
    while !cursor.0.is_empty() {
        let (index, point) = next_point(&mut cursor, &mut timestamp)?;
        if index == key_index {
            found.push(point);
        }
    }
    Some(())
}

/// Groups the points of several rows by key.
#[derive(Default)]
pub(crate) struct ByKey<'a> {
    points: Vec<(&'a str, Vec<Point>)>,
    /// The index of each key in `points`.
    indices: HashMap<&'a str, usize>,
    /// The encoded keys of the previous row. Requests of a run usually have the same keys, so they are decoded only once.
    header: &'a [u8],
    /// The index in `points` of each key of `header`.
    header_indices: Vec<usize>,
}

impl<'a> ByKey<'a> {
    /// Adds all points of a row; `None` when the row is corrupt.
    pub(crate) fn add(&mut self, row: &'a [u8]) -> Option<()> {
        if self.header.is_empty() || !row.starts_with(self.header) {
            self.read_header(row)?;
        }
        let mut cursor = Cursor(&row[self.header.len()..]);
        let mut timestamp = 0;
        while !cursor.0.is_empty() {
            let (index, point) = next_point(&mut cursor, &mut timestamp)?;
            let position = *self.header_indices.get(usize::try_from(index).ok()?)?;
            self.points[position].1.push(point);
        }
        Some(())
    }

    fn read_header(&mut self, row: &'a [u8]) -> Option<()> {
        let mut cursor = Cursor(row);
        self.header = &[];
        self.header_indices.clear();
        for _ in 0..cursor.varint()? {
            let length = usize::try_from(cursor.varint()?).ok()?;
            let key = std::str::from_utf8(cursor.take(length)?).ok()?;
            let position = *self.indices.entry(key).or_insert(self.points.len());
            if position == self.points.len() {
                self.points.push((key, Vec::new()));
            }
            self.header_indices.push(position);
        }
        self.header = &row[..row.len() - cursor.0.len()];
        Some(())
    }

    /// The keys in ascending order, each with its points in insertion order.
    pub(crate) fn sorted(mut self) -> Vec<(&'a str, Vec<Point>)> {
        self.points.sort_unstable_by_key(|(key, _)| *key);
        self.points
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packed_points_round_trip(points in proptest::collection::vec(
            ("[a-c]{1,2}", any::<i64>(), any::<i64>(), proptest::num::f64::ANY), 0..60)) {
            let points: Vec<(String, Point)> = points.into_iter()
                .map(|(k, step, timestamp, value)| (k, Point { step, timestamp, value })).collect();
            let row = pack(points.iter().map(|(k, p)| (k.as_str(), *p)));
            for key in ["a", "b", "cc"] {
                let mut found = Vec::new();
                prop_assert!(unpack(&row, key, &mut found).is_some());
                let expected: Vec<_> = points.iter().filter(|(k, _)| k == key).map(|(_, p)| *p).collect();
                prop_assert_eq!(found.len(), expected.len());
                for (a, b) in found.iter().zip(&expected) {
                    prop_assert!(a.same(b));
                }
            }
        }

        #[test]
        fn rows_are_grouped_by_key(rows in proptest::collection::vec(proptest::collection::vec(
            ("[a-c]{1,2}", -9..9_i64, 0..9_i64, proptest::num::f64::NORMAL), 0..9), 0..9)) {
            let points = |key: &str| -> Vec<Point> {
                let all = rows.iter().flatten().filter(|(k, ..)| k == key);
                all.map(|(_, step, timestamp, value)| Point { step: *step, timestamp: *timestamp, value: *value }).collect()
            };
            let packed: Vec<_> = rows.iter().map(|row| pack(row.iter().map(|(key, step, timestamp, value)| {
                (key.as_str(), Point { step: *step, timestamp: *timestamp, value: *value })
            }))).collect();
            let mut grouped = ByKey::default();
            for row in &packed {
                prop_assert!(grouped.add(row).is_some());
            }
            let sorted = grouped.sorted();
            prop_assert!(sorted.is_sorted_by(|a, b| a.0 < b.0));
            prop_assert_eq!(sorted.iter().map(|(_, points)| points.len()).sum::<usize>(), rows.iter().flatten().count());
            let repacked = pack_keys(&sorted);
            for (key, found) in &sorted {
                prop_assert_eq!(found, &points(key));
                let mut unpacked = Vec::new();
                prop_assert!(unpack(&repacked, key, &mut unpacked).is_some());
                prop_assert_eq!(&unpacked, found);
            }
        }

        #[test]
        fn corrupt_rows_never_panic(row in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Random bytes may or may not be a valid row; either result is fine as long as nothing panics.
            let _ = unpack(&row, "a", &mut Vec::new());
            let _ = ByKey::default().add(&row);
        }
    }
}
