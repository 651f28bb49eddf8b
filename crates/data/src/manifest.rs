//! Manifests of folders: the list of files with their digests, whose own MD5 identifies the folder.
//!
//! The bytes are those of Python's `json.dumps(list, sort_keys=True)`: a space after commas and colons, ASCII only, the entries sorted by path.

use md5::{Digest as _, Md5};

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
        self.write(|bytes| out.extend_from_slice(bytes));
        out
    }

    /// The digest of the folder: that of its manifest.
    pub fn digest(&self) -> Digest {
        let mut hasher = Md5::new();
        self.write(|bytes| hasher.update(bytes));
        Digest { md5: hasher.finalize().into(), is_dir: true }
    }

    /// Passes the bytes of the manifest's object on in pieces, since all of them may be many.
    fn write(&self, mut sink: impl FnMut(&[u8])) {
        let mut piece = Vec::with_capacity(2 * PIECE_BYTES);
        piece.push(b'[');
        for (i, entry) in self.entries.iter().enumerate() {
            if i > 0 {
                piece.extend_from_slice(b", ");
            }
            piece.extend_from_slice(b"{\"md5\": \"");
            piece.extend_from_slice(&entry.digest.hex());
            piece.extend_from_slice(b"\", \"relpath\": ");
            json::write_string(&mut piece, &entry.path);
            piece.push(b'}');
            if piece.len() >= PIECE_BYTES {
                sink(&piece);
                piece.clear();
            }
        }
        piece.push(b']');
        sink(&piece);
    }

    /// Reads the bytes of a manifest's object. Other fields of an entry are ignored, as are duplicates of a path.
    ///
    /// # Errors
    /// What is wrong with it. A path that leaves the folder is rejected, so that a manifest from a remote cannot write elsewhere.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let entries = serde_json::from_slice::<RawEntries>(bytes).map_err(|error| error.to_string())?.0;
        let mut manifest = Self::new(entries);
        manifest.entries.dedup_by(|a, b| a.path == b.path);
        Ok(manifest)
    }
}

/// The entries in their written order. They are checked one by one, so that a large manifest is not in memory twice.
struct RawEntries(Vec<Entry>);

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

impl<'de> serde::Deserialize<'de> for RawEntries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> serde::de::Visitor<'de> for List {
            type Value = RawEntries;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("a list of files")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<RawEntries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element::<RawEntry<'_>>()? {
                    entries.push(entry.check().map_err(serde::de::Error::custom)?);
                }
                Ok(RawEntries(entries))
            }
        }
        deserializer.deserialize_seq(List)
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
    fn bytes_and_digest_are_those_of_dvc() {
        let manifest = Manifest::new(vec![
            entry("sub/b", "3b5d5c3712955042212316173ccf37be"),
            entry("a", "60b725f10c9c85c70d97880dfe8191b3"),
        ]);
        let text = r#"[{"md5": "60b725f10c9c85c70d97880dfe8191b3", "relpath": "a"}, {"md5": "3b5d5c3712955042212316173ccf37be", "relpath": "sub/b"}]"#;
        assert_eq!(String::from_utf8(manifest.to_bytes()).unwrap(), text);
        assert_eq!(manifest.digest().to_string(), "8b3662b0d460701f7734cdf533c5aa85.dir");
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
            assert!(Manifest::parse(text.as_bytes()).is_err(), "{text}");
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
