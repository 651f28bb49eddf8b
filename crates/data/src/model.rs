//! Identities of data: digests, and what is recorded beside them.

use std::fmt;

/// The suffix of the digest of a folder.
pub const DIR_SUFFIX: &str = ".dir";

/// The identity of a file's or folder's content: an MD5 digest, and whether it is that of a folder's manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    /// The MD5 of the file, or of the folder's manifest.
    pub md5: [u8; 16],
    /// Whether it is the digest of a folder, written with the suffix `.dir`.
    pub is_dir: bool,
}

impl Digest {
    /// Parses the form in which files contain it: 32 hexadecimal digits, for a folder followed by `.dir`.
    pub fn parse(text: &str) -> Option<Self> {
        let (hex, is_dir) = text.strip_suffix(DIR_SUFFIX).map_or((text, false), |hex| (hex, true));
        let digits = hex.as_bytes();
        if digits.len() != 32 {
            return None;
        }
        let mut md5 = [0; 16];
        for (byte, pair) in md5.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self { md5, is_dir })
    }

    /// The digest of a file with this MD5.
    pub fn of_file(md5: [u8; 16]) -> Self {
        Self { md5, is_dir: false }
    }

    /// The hexadecimal digits of the MD5.
    pub(crate) fn hex(&self) -> [u8; 32] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = [0; 32];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.md5) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        hex
    }

    /// The name of the object in a cache or remote: the folder of two digits, and the file in it.
    pub fn object_name(&self) -> (String, String) {
        let text = self.to_string();
        (text[..2].to_owned(), text[2..].to_owned())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.hex()).unwrap_or_default())?;
        f.write_str(if self.is_dir { DIR_SUFFIX } else { "" })
    }
}

/// The algorithm of a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum HashName {
    /// MD5 of the bytes, which DVC 3 writes as `hash: md5`.
    #[default]
    Md5,
    /// MD5 after the conversion of CRLF to LF in text files, which DVC 2 wrote without the key `hash`. Its objects are stored directly in the
    /// cache folder instead of in `files/md5`.
    Dos2Unix,
}

/// What an entry of a `.dvc` file records beside the digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// Bytes of the file, or of all files in the folder; `None` if it is not known.
    pub size: Option<u64>,
    /// Number of files in a folder.
    pub nfiles: Option<u64>,
    /// Whether the owner may execute the file.
    pub is_exec: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_round_trip() {
        for text in ["d41d8cd98f00b204e9800998ecf8427e", "8b3662b0d460701f7734cdf533c5aa85.dir"] {
            assert_eq!(Digest::parse(text).map(|d| d.to_string()).as_deref(), Some(text));
        }
        for text in [
            "",
            "d41d",
            "d41d8cd98f00b204e9800998ecf8427",
            "g41d8cd98f00b204e9800998ecf8427e",
            "+41d8cd98f00b204e9800998ecf8427e",
        ] {
            assert_eq!(Digest::parse(text), None, "{text}");
        }
        let dir = Digest::parse("8b3662b0d460701f7734cdf533c5aa85.dir").unwrap();
        assert_eq!(dir.object_name(), ("8b".into(), "3662b0d460701f7734cdf533c5aa85.dir".into()));
    }
}
