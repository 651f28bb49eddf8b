//! How metric points are packed into rows.
//!
//! One row holds the points of one request, so that logging 100 metrics touches one page of the
//! database instead of 100. Later the points of each metric are brought together (`service::compaction`). Layout of a row (all integers LEB128, signed ones zigzag):
//! `count of keys, (length, UTF-8 bytes)*, (key index, step, timestamp - previous timestamp, flags, value)*`
//! where flags bit 0 says NaN and the value is 8 bytes, little endian.

use std::collections::HashMap;

/// A point without its key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Step given by the client, 0 by default.
    pub step: i64,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// The value; NaN allowed.
    pub value: f64,
}

impl Point {
    /// MLflow's order of a history: time, step, value (NaN is stored as 0 there and sorts so).
    pub fn by_time(&self, other: &Self) -> std::cmp::Ordering {
        (self.timestamp, self.step)
            .cmp(&(other.timestamp, other.step))
            .then(self.sortable().total_cmp(&other.sortable()))
            .then(self.value.is_nan().cmp(&other.value.is_nan()))
    }

    /// MLflow's order for sampling and for the newest value: step, time, value.
    pub fn by_step(&self, other: &Self) -> std::cmp::Ordering {
        (self.step, self.timestamp)
            .cmp(&(other.step, other.timestamp))
            .then(self.sortable().total_cmp(&other.sortable()))
            .then(self.value.is_nan().cmp(&other.value.is_nan()))
    }

    /// The value as SQL stores it: 0 for NaN.
    pub fn sortable(&self) -> f64 {
        if self.value.is_nan() { 0.0 } else { self.value }
    }

    /// Whether the two are one and the same row to MLflow.
    pub fn same(&self, other: &Self) -> bool {
        self.by_time(other).is_eq()
    }
}

fn put(out: &mut Vec<u8>, mut n: u64) {
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
    put(out, index);
    put(out, zigzag(point.step));
    put(out, zigzag(point.timestamp.wrapping_sub(*previous)));
    *previous = point.timestamp;
    out.push(u8::from(point.value.is_nan()));
    out.extend_from_slice(&point.sortable().to_le_bytes());
}

fn put_keys<'a>(out: &mut Vec<u8>, keys: impl ExactSizeIterator<Item = &'a str>) {
    put(out, keys.len() as u64);
    for key in keys {
        put(out, key.len() as u64);
        out.extend_from_slice(key.as_bytes());
    }
}

/// Packs points into a row.
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

/// Packs the points of different keys into a row.
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
    fn number(&mut self) -> Option<u64> {
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

/// The next point of a row with the index of its key; `timestamp` is the previous point's, 0 before the first.
fn next_point(cursor: &mut Cursor<'_>, timestamp: &mut i64) -> Option<(u64, Point)> {
    let index = cursor.number()?;
    let step = unzigzag(cursor.number()?);
    *timestamp = timestamp.wrapping_add(unzigzag(cursor.number()?));
    let flags = *cursor.take(1)?.first()?;
    let value = f64::from_le_bytes(cursor.take(8)?.try_into().ok()?);
    Some((index, Point { step, timestamp: *timestamp, value: if flags & 1 == 1 { f64::NAN } else { value } }))
}

/// Appends the points of `key` in `row` to `found`; `None` when the row is damaged.
pub fn unpack(row: &[u8], key: &str, found: &mut Vec<Point>) -> Option<()> {
    let mut cursor = Cursor(row);
    let mut wanted = None;
    for index in 0..cursor.number()? {
        let length = usize::try_from(cursor.number()?).ok()?;
        if cursor.take(length)? == key.as_bytes() {
            wanted = Some(index);
        }
    }
    let Some(wanted) = wanted else { return Some(()) };
    let mut timestamp = 0;
    while !cursor.0.is_empty() {
        let (index, point) = next_point(&mut cursor, &mut timestamp)?;
        if index == wanted {
            found.push(point);
        }
    }
    Some(())
}

/// The points of several rows, brought together by key.
#[derive(Default)]
pub(crate) struct ByKey<'a> {
    points: Vec<(&'a str, Vec<Point>)>,
    /// Where the points of a key are in `points`.
    places: HashMap<&'a str, usize>,
    /// The keys of the row before as they are packed, and the place of each: requests of a run usually have the same keys.
    header: &'a [u8],
    header_places: Vec<usize>,
}

impl<'a> ByKey<'a> {
    /// Adds all points of a row; `None` when it is damaged.
    pub(crate) fn add(&mut self, row: &'a [u8]) -> Option<()> {
        if self.header.is_empty() || !row.starts_with(self.header) {
            self.read_header(row)?;
        }
        let mut cursor = Cursor(&row[self.header.len()..]);
        let mut timestamp = 0;
        while !cursor.0.is_empty() {
            let (index, point) = next_point(&mut cursor, &mut timestamp)?;
            let place = *self.header_places.get(usize::try_from(index).ok()?)?;
            self.points[place].1.push(point);
        }
        Some(())
    }

    fn read_header(&mut self, row: &'a [u8]) -> Option<()> {
        let mut cursor = Cursor(row);
        self.header = &[];
        self.header_places.clear();
        for _ in 0..cursor.number()? {
            let length = usize::try_from(cursor.number()?).ok()?;
            let key = std::str::from_utf8(cursor.take(length)?).ok()?;
            let place = *self.places.entry(key).or_insert(self.points.len());
            if place == self.points.len() {
                self.points.push((key, Vec::new()));
            }
            self.header_places.push(place);
        }
        self.header = &row[..row.len() - cursor.0.len()];
        Some(())
    }

    /// The keys in order, each with its points in the order in which they were added.
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
        fn what_is_packed_comes_out(points in proptest::collection::vec(
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
        fn rows_are_brought_together_by_key(rows in proptest::collection::vec(proptest::collection::vec(
            ("[a-c]{1,2}", -9..9_i64, 0..9_i64, proptest::num::f64::NORMAL), 0..9), 0..9)) {
            let points = |key: &str| -> Vec<Point> {
                let all = rows.iter().flatten().filter(|(k, ..)| k == key);
                all.map(|(_, step, timestamp, value)| Point { step: *step, timestamp: *timestamp, value: *value }).collect()
            };
            let packed: Vec<_> = rows.iter().map(|row| pack(row.iter().map(|(key, step, timestamp, value)| {
                (key.as_str(), Point { step: *step, timestamp: *timestamp, value: *value })
            }))).collect();
            let mut together = ByKey::default();
            for row in &packed {
                prop_assert!(together.add(row).is_some());
            }
            let sorted = together.sorted();
            prop_assert!(sorted.is_sorted_by(|a, b| a.0 < b.0));
            prop_assert_eq!(sorted.iter().map(|(_, points)| points.len()).sum::<usize>(), rows.iter().flatten().count());
            let again = pack_keys(&sorted);
            for (key, found) in &sorted {
                prop_assert_eq!(found, &points(key));
                let mut unpacked = Vec::new();
                prop_assert!(unpack(&again, key, &mut unpacked).is_some());
                prop_assert_eq!(&unpacked, found);
            }
        }

        #[test]
        fn damaged_rows_never_panic(row in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Either answer is right for bytes like these; what counts is that there is one.
            let _ = unpack(&row, "a", &mut Vec::new());
            let _ = ByKey::default().add(&row);
        }
    }
}
