//! Batches of small objects between a client and a server: one request instead of one for each object. A batch is a sequence of objects, each
//! with a line `PATH BYTES` before its content.

use bytes::Bytes;

use crate::hash::Hasher;
use crate::layout::Item;
use crate::model::{Digest, HashName};

/// Maximum bytes of an object in a batch.
pub(crate) const MAX_OBJECT_BYTES: u64 = 64 << 10;
/// Maximum number of objects in a batch.
pub(crate) const MAX_OBJECTS: usize = 2000;
/// Bytes after which a client begins another batch to upload.
pub(crate) const UPLOAD_BYTES: usize = 4 << 20;
/// Maximum bytes of a batch: what [`UPLOAD_BYTES`] and a last object can make, or a download of the maximum number of objects.
pub(crate) const MAX_UPLOAD_BYTES: usize = 8 << 20;
/// Maximum bytes of the line before an object.
const MAX_LINE_BYTES: usize = 80;
/// Maximum bytes of a download.
pub(crate) const MAX_DOWNLOAD_BYTES: usize = MAX_OBJECTS * (MAX_OBJECT_BYTES as usize + MAX_LINE_BYTES);

/// Appends an object.
pub(crate) fn append(batch: &mut Vec<u8>, path: &str, content: &[u8]) {
    batch.extend_from_slice(format!("{path} {}\n", content.len()).as_bytes());
    batch.extend_from_slice(content);
}

/// The objects of a batch, whose contents are not verified yet. The error is the reason why it is not a batch.
pub(crate) fn parse(mut batch: Bytes) -> Result<Vec<(HashName, Digest, Bytes)>, &'static str> {
    let mut objects = Vec::new();
    while !batch.is_empty() {
        let end = batch.iter().take(MAX_LINE_BYTES).position(|byte| *byte == b'\n').ok_or("a line has no end")?;
        let line = batch.split_to(end + 1);
        let line = std::str::from_utf8(&line[..end]).ok().and_then(|line| line.split_once(' '));
        let (path, size) = line.ok_or("a line is not a path and a size")?;
        let Some(Item::Object(hash, digest)) = Item::parse(path) else { return Err("a path is not that of an object") };
        let size: usize = size.parse().map_err(|_| "a size is not a number")?;
        if size as u64 > MAX_OBJECT_BYTES || objects.len() == MAX_OBJECTS {
            return Err("it is too large");
        }
        if size > batch.len() {
            return Err("it ends before its last object");
        }
        objects.push((hash, digest, batch.split_to(size)));
    }
    Ok(objects)
}

/// Whether a content is that of a digest.
pub(crate) fn is_valid(hash: HashName, digest: &Digest, content: &[u8]) -> bool {
    let mut hasher = Hasher::new(hash);
    hasher.update(content);
    hasher.finish() == digest.md5
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "files/md5/5d/41402abc4b2a76b9719d911017c592";

    #[test]
    fn batches_are_read_as_written() {
        let mut batch = Vec::new();
        append(&mut batch, HELLO, b"hello");
        append(&mut batch, "d4/1d8cd98f00b204e9800998ecf8427e.dir", b"");
        let objects = parse(batch.clone().into()).unwrap();
        assert_eq!(objects.len(), 2);
        assert_eq!((objects[0].0, &objects[0].2[..]), (HashName::Md5, &b"hello"[..]));
        assert!(is_valid(objects[0].0, &objects[0].1, b"hello") && !is_valid(objects[0].0, &objects[0].1, b"hallo"));
        assert!(objects[1].0 == HashName::Dos2Unix && objects[1].1.is_dir);
        assert_eq!(parse(Bytes::new()), Ok(Vec::new()));
        for length in 1..batch.len() {
            // Every prefix that does not end after an object is rejected.
            let is_whole = length == HELLO.len() + " 5\nhello".len();
            assert_eq!(parse(Bytes::copy_from_slice(&batch[..length])).is_ok(), is_whole, "{length}");
        }
    }

    #[test]
    fn other_bytes_are_no_batch() {
        for text in [
            "\n",
            "x 5\nhello",
            "../etc/passwd 1\nx",
            &format!("{HELLO} -1\n"),
            &format!("{HELLO} 99999999999999999999\n"),
            &format!("{HELLO} {}\n", MAX_OBJECT_BYTES + 1),
            &format!("{HELLO}\n"),
            &format!("runs/ab/{0}/{0} 0\n", "ab".repeat(32)),
            &"a".repeat(10_000),
        ] {
            assert!(parse(text.to_owned().into()).is_err(), "{text:?}");
        }
        let many = format!("{HELLO} 0\n").repeat(MAX_OBJECTS + 1);
        assert_eq!(parse(many.into()), Err("it is too large"));
    }
}
