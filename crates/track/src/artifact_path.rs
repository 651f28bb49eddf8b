//! Validation of artifact paths. New artifacts must have printable names. Names that earlier versions accepted can still be read, and
//! listings show them with replacement characters.

use std::borrow::Cow;

use crate::Error;

/// Maximum bytes of a path (`PATH_MAX` of Linux).
const MAX_PATH_BYTES: usize = 4096;
/// Maximum bytes of one segment of a path (`NAME_MAX` of Linux).
const MAX_NAME_BYTES: usize = 255;
/// Maximum number of nested percent-encodings, as in MLflow's `_decode`.
const MAX_DECODINGS: usize = 10;

/// Whether a character is not allowed in a name: line breaks and other control characters, which break headers and logs, and
/// bidirectional controls, which make a terminal or browser display another name than the stored one.
fn is_unprintable(c: char) -> bool {
    c.is_control() // C0, DEL and C1
        || matches!(c, '\u{2028}' | '\u{2029}') // line and paragraph separator
        || matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}') // bidirectional embeddings, overrides, isolates
}

/// Whether a name contains only characters that can be displayed and sent in a header.
pub(crate) fn is_printable(name: &str) -> bool {
    !name.chars().any(is_unprintable)
}

/// Rejects control characters in text that becomes part of an artifact's path.
pub(crate) fn require_printable(text: &str) -> Result<(), Error> {
    match text.chars().find(|c| is_unprintable(*c)) {
        None => Ok(()),
        Some(c) => Err(Error::invalid(format!(
            "Invalid path: artifact names must not contain control characters, but this one contains U+{:04X}.",
            u32::from(c)
        ))),
    }
}

/// Percent-decodes the text until it no longer changes, so that no nested encoding hides a path; `None` for more than
/// [`MAX_DECODINGS`] nested encodings.
pub(crate) fn percent_decoded(text: &str) -> Option<String> {
    let mut current = text.to_owned();
    for _ in 0..MAX_DECODINGS {
        let next = percent_encoding::percent_decode_str(&current).decode_utf8_lossy();
        if next == current {
            return Some(current);
        }
        current = next.into_owned();
    }
    None
}

/// Validates and decodes the path of an artifact to read, as MLflow does (`validate_path_is_safe`): relative, without `..`, fully
/// percent-decoded. Names that are not allowed for new artifacts are accepted, so that older artifacts stay readable.
///
/// # Errors
/// `INVALID_PARAMETER_VALUE` for a path that leaves its root.
pub(crate) fn for_reading(path: &str) -> Result<String, Error> {
    let invalid = || Error::invalid("Invalid path");
    if path.len() > MAX_PATH_BYTES {
        return Err(invalid());
    }
    let path = percent_decoded(path).ok_or_else(invalid)?;
    if path.contains(['#', '\0']) || path.split('/').any(|part| part == "..") || is_absolute(&path) {
        return Err(invalid());
    }
    Ok(path)
}

/// Validates and decodes the path of an artifact to store: as [`for_reading`], and every segment must be printable and short enough
/// for a file system.
///
/// # Errors
/// `INVALID_PARAMETER_VALUE` for any other path.
pub(crate) fn for_writing(path: &str) -> Result<String, Error> {
    let path = for_reading(path)?;
    require_printable(&path)?;
    if path.split('/').any(|name| name.len() > MAX_NAME_BYTES) {
        return Err(Error::invalid(format!("Invalid path: a name in it is longer than {MAX_NAME_BYTES} bytes.")));
    }
    Ok(path)
}

/// Whether a path is absolute on Unix or on Windows, where clients may store downloads.
fn is_absolute(path: &str) -> bool {
    let is_separator = |c: Option<&u8>| matches!(c, Some(b'/' | b'\\'));
    let bytes = path.as_bytes();
    let drive = bytes.first().is_some_and(u8::is_ascii_alphabetic) && bytes.get(1) == Some(&b':');
    path.starts_with('/')
        || (drive && is_separator(bytes.get(2)))
        || (is_separator(bytes.first()) && is_separator(bytes.get(1)))
}

/// The name in listings. Characters that are not allowed are replaced, because MLflow's client would drop them and then request a
/// file that does not exist.
pub(crate) fn display_name(name: &str) -> Cow<'_, str> {
    if is_printable(name) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(name.chars().map(|c| if is_unprintable(c) { char::REPLACEMENT_CHARACTER } else { c }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_control_characters_are_rejected_for_new_artifacts() {
        for invalid in
            ["a\nb", "a%0Ab", "a%250ab", "x\u{7f}", "x\u{85}", "x\u{2028}y", "\u{202e}gpj.exe", "d\u{2066}/f"]
        {
            let error = for_writing(invalid).unwrap_err();
            assert!(error.message.starts_with("Invalid path"), "{invalid:?}: {error}");
            assert!(for_reading(invalid).is_ok(), "{invalid:?} can no longer be read");
        }
    }

    #[test]
    fn paths_outside_the_root_are_rejected() {
        for invalid in
            ["../x", "a/../../x", "%2e%2e/x", "a/%252e%252e/x", "/x", "C:/x", "C:\\x", "\\\\host\\x", "a#b", "a%00"]
        {
            assert!(for_reading(invalid).is_err(), "{invalid:?} was accepted");
        }
        let nested = (0..20).fold("%".to_owned(), |inner, _| inner.replace('%', "%25"));
        assert!(for_reading(&nested).is_err());
        assert!(for_writing(&"n".repeat(256)).is_err());
    }

    #[test]
    fn ordinary_names_are_unchanged() {
        for good in ["", "a/b.txt", "größe 1.csv", "a\\b.txt", "c:x", "100%", "עברית.txt", "..a"] {
            assert_eq!(for_writing(good).unwrap(), good);
        }
        assert_eq!(for_writing("p%20c.txt").unwrap(), "p c.txt");
        assert_eq!(display_name("a\nb"), "a\u{fffd}b");
    }
}
