//! Manifests of folders: the list of files with their digests, whose own MD5 identifies the folder.
//!
//! The bytes are those of Python's `json.dumps(list, sort_keys=True)`: a space after commas and colons, ASCII only, the entries sorted by path.

use std::io::Read;

use md5::{Digest as _, Md5};
use serde::de::{DeserializeSeed, SeqAccess, Visitor};

use crate::json;
use crate::model::Digest;

/// Maximum bytes of a manifest; about 20 million files.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 30;

/// Bytes of a piece of a manifest that is written.
const PIECE_BYTES: usize = 64 << 10;

/// A file in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path below the folder, with `/` as separator.
    pub path: String,
    /// The digest of the file.
    pub digest: Digest,
    /// Bytes of the file, if they are known. A manifest does not contain them.
    pub size: Option<u64>,
}

/// The files of a folder, sorted by path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// The files.
    pub entries: Vec<Entry>,
}

impl Manifest {
    /// A manifest of these files, in any order.
    pub fn new(mut entries: Vec<Entry>) -> Self {
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Self { entries }
    }

    /// The sum of the sizes, if all are known.
    pub fn size(&self) -> Option<u64> {
        self.entries.iter().map(|entry| entry.size).sum()
    }

    /// The entry of a file.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.path.as_str().cmp(path)).ok().map(|i| &self.entries[i])
    }

    /// The bytes of the manifest's object.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.entries.len() * 96 + 2);
        write_files(self.files(), |bytes| out.extend_from_slice(bytes));
        out
    }

    /// The digest of the folder: that of its manifest.
    pub fn digest(&self) -> Digest {
        digest_of_files(self.files())
    }

    /// The files as [`write_files`] takes them.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &str, [u8; 16])> {
        self.entries.iter().map(|entry| ("", entry.path.as_str(), entry.digest.md5))
    }

    /// Reads the bytes of a manifest's object. Other fields of an entry are ignored, as are duplicates of a path.
    ///
    /// # Errors
    /// What is wrong with it. A path that leaves the folder is rejected, so that a manifest from a remote cannot write elsewhere.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut entries = Vec::new();
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let read = Files(|entry: Entry| entries.push(entry)).deserialize(&mut reader).and_then(|()| reader.end());
        read.map_err(|error| error.to_string())?;
        let mut manifest = Self::new(entries);
        manifest.entries.dedup_by(|a, b| a.path == b.path);
        Ok(manifest)
    }
}

/// The digest by which DVC identifies a folder whose files have tags instead of digests: that of a manifest with the tags, under the key `key`. The
/// files are sorted by path.
pub(crate) fn digest_of_tags(key: &str, files: impl Iterator<Item = (String, String)>) -> Digest {
    let mut hasher = Md5::new();
    let mut piece = Vec::new();
    let mut separator: &[u8] = b"[";
    for (path, tag) in files {
        piece.extend_from_slice(separator);
        piece.push(b'{');
        json::write_string(&mut piece, key);
        piece.extend_from_slice(b": ");
        json::write_string(&mut piece, &tag);
        piece.extend_from_slice(b", \"relpath\": ");
        json::write_string(&mut piece, &path);
        piece.push(b'}');
        hasher.update(&piece);
        piece.clear();
        separator = b", ";
    }
    if separator == b"[" {
        hasher.update(b"[");
    }
    hasher.update(b"]");
    Digest { md5: hasher.finalize().into(), is_dir: true }
}

/// The bytes of a manifest's object, passed on in pieces while its files are added in the order of their paths.
struct Writer<S> {
    sink: S,
    piece: Vec<u8>,
    is_empty: bool,
}

impl<S: FnMut(&[u8])> Writer<S> {
    fn new(sink: S) -> Self {
        let mut piece = Vec::with_capacity(2 * PIECE_BYTES);
        piece.push(b'[');
        Self { sink, piece, is_empty: true }
    }

    fn add(&mut self, path: &str, md5: &[u8; 16]) {
        if !self.is_empty {
            self.piece.extend_from_slice(b", ");
        }
        self.is_empty = false;
        self.piece.extend_from_slice(b"{\"md5\": \"");
        self.piece.extend_from_slice(&Digest::of_file(*md5).hex());
        self.piece.extend_from_slice(b"\", \"relpath\": ");
        json::write_string(&mut self.piece, path);
        self.piece.push(b'}');
        if self.piece.len() >= PIECE_BYTES {
            (self.sink)(&self.piece);
            self.piece.clear();
        }
    }

    fn finish(mut self) {
        self.piece.push(b']');
        (self.sink)(&self.piece);
    }
}

/// The digest of a folder with these files, as [`write_files`] takes them.
pub(crate) fn digest_of_files<'a>(files: impl Iterator<Item = (&'a str, &'a str, [u8; 16])>) -> Digest {
    let mut hasher = Md5::new();
    write_files(files, |bytes| hasher.update(bytes));
    Digest { md5: hasher.finalize().into(), is_dir: true }
}

/// Passes the bytes of the object of a manifest on in pieces, since all of them may be many. The files come in the order of their paths; each is
/// the path of its folder, which is empty or ends with `/`, its name and its MD5.
pub(crate) fn write_files<'a>(files: impl Iterator<Item = (&'a str, &'a str, [u8; 16])>, sink: impl FnMut(&[u8])) {
    let mut writer = Writer::new(sink);
    let mut path = String::new();
    for (folder, name, md5) in files {
        path.clear();
        path.push_str(folder);
        path.push_str(name);
        writer.add(&path, &md5);
    }
    writer.finish();
}

/// The digests of the files in a manifest's object, which is read in pieces: it may be larger than the memory that is worth it.
///
/// # Errors
/// As [`Manifest::parse`].
pub(crate) fn read_digests(object: impl Read) -> Result<Vec<Digest>, String> {
    let mut digests = Vec::new();
    let mut reader = serde_json::Deserializer::from_reader(object);
    let read = Files(|entry: Entry| digests.push(entry.digest)).deserialize(&mut reader).and_then(|()| reader.end());
    read.map_err(|error| error.to_string())?;
    Ok(digests)
}

#[derive(serde::Deserialize)]
struct RawEntry<'a> {
    #[serde(borrow)]
    md5: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    relpath: std::borrow::Cow<'a, str>,
    size: Option<u64>,
}

impl RawEntry<'_> {
    fn check(self) -> Result<Entry, String> {
        let digest = Digest::parse(&self.md5).ok_or_else(|| format!("'{}' is not an MD5 digest", self.md5))?;
        let valid =
            !self.relpath.contains('\0') && self.relpath.split('/').all(|name| !matches!(name, "" | "." | ".."));
        if !valid || digest.is_dir {
            return Err(format!("'{}' is not the path of a file in a folder", self.relpath));
        }
        Ok(Entry { path: self.relpath.into_owned(), digest, size: self.size })
    }
}

/// Passes the files of a manifest's object on in their written order. They are checked one by one, so that a large manifest is not in memory
/// twice.
struct Files<F>(F);

impl<'de, F: FnMut(Entry)> DeserializeSeed<'de> for Files<F> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(Entry)> Visitor<'de> for Files<F> {
    type Value = ();

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(entry) = list.next_element::<RawEntry<'_>>()? {
            (self.0)(entry.check().map_err(serde::de::Error::custom)?);
        }
        Ok(())
    }
}

/// The digest of a folder whose manifest has these bytes.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest { md5: Md5::digest(bytes).into(), is_dir: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, md5: &str) -> Entry {
        Entry { path: path.into(), digest: Digest::parse(md5).unwrap(), size: None }
    }

    #[test]
    fn digests_of_tags_are_those_of_dvc() {
        let files = [("a", "9-6"), ("sub/b c", "\u{e9}")].map(|(path, tag)| (path.to_owned(), tag.to_owned()));
        let digest = |files: &[(String, String)]| digest_of_tags("etag", files.iter().cloned()).to_string();
        assert_eq!(digest(&files), "14f12a68020a18cde469a009c70c7baf.dir");
        assert_eq!(digest(&[]), "d751713988987e9331980363e24189ce.dir");
    }

    #[test]
    fn bytes_and_digest_are_those_of_dvc() {
        let manifest = Manifest::new(vec![
            entry("sub/b", "3b5d5c3712955042212316173ccf37be"),
            entry("a", "60b725f10c9c85c70d97880dfe8191b3"),
        ]);
        let text = r#"[{"md5": "60b725f10c9c85c70d97880dfe8191b3", "relpath": "a"}, {"md5": "3b5d5c3712955042212316173ccf37be", "relpath": "sub/b"}]"#;
        assert_eq!(String::from_utf8(manifest.to_bytes()).unwrap(), text);
        assert_eq!(manifest.digest().to_string(), "8b3662b0d460701f7734cdf533c5aa85.dir");
        let files = [("", "a", manifest.entries[0].digest.md5), ("sub/", "b", manifest.entries[1].digest.md5)];
        assert_eq!(digest_of_files(files.into_iter()), manifest.digest());
        let digests = manifest.entries.iter().map(|entry| entry.digest).collect();
        assert_eq!(read_digests(text.as_bytes()), Ok(digests));
        assert_eq!(Manifest::parse(text.as_bytes()), Ok(manifest));
    }

    #[test]
    fn the_digest_of_a_long_manifest_is_that_of_its_bytes() {
        let md5 = "60b725f10c9c85c70d97880dfe8191b3";
        for files in [0, 1, PIECE_BYTES / 70, 3000] {
            let manifest = Manifest::new((0..files).map(|i| entry(&format!("folder/{i}"), md5)).collect());
            let bytes = manifest.to_bytes();
            assert_eq!(manifest.digest(), digest_of(&bytes), "{files}");
            assert_eq!(Manifest::parse(&bytes), Ok(manifest));
        }
        for text in ["", "{}", "[1]", "[{}]", "[", "[] []", r#"[{"md5": "x", "relpath": "a"}]"#] {
            assert!(Manifest::parse(text.as_bytes()).is_err() && read_digests(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_escaped_as_python_does() {
        let manifest = Manifest::new(vec![entry("é\"\\\u{1f600}\u{7f}\n", "60b725f10c9c85c70d97880dfe8191b3")]);
        let text = String::from_utf8(manifest.to_bytes()).unwrap();
        assert!(text.ends_with(r#""relpath": "\u00e9\"\\\ud83d\ude00\u007f\n"}]"#), "{text}");
        assert_eq!(Manifest::parse(text.as_bytes()), Ok(manifest));
    }

    #[test]
    fn paths_cannot_leave_the_folder() {
        for path in ["../x", "/etc/passwd", "a//b", "", "a/./b", "a\\u0000"] {
            let text = format!(r#"[{{"md5": "60b725f10c9c85c70d97880dfe8191b3", "relpath": "{path}"}}]"#);
            assert!(Manifest::parse(text.as_bytes()).is_err(), "{path}");
        }
    }
}
