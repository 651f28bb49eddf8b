//! Names of artifacts: which are accepted, and how older ones that would not be accepted any more are shown.

use std::borrow::Cow;

use crate::Error;

/// Bytes that a path may have (`PATH_MAX` of Linux).
const MAX_PATH_BYTES: usize = 4096;
/// Bytes that one name in a path may have (`NAME_MAX` of Linux).
const MAX_NAME_BYTES: usize = 255;
/// Times that a text is percent-decoded before it is refused, as in MLflow's `_decode`.
const MAX_DECODINGS: usize = 10;

/// Whether a character may not stand in a name: it ends a line, which breaks headers and logs, or it makes a terminal or a
/// browser show another name than the one that is stored.
fn is_unprintable(c: char) -> bool {
    c.is_control() // C0, DEL and C1
        || matches!(c, '\u{2028}' | '\u{2029}') // line and paragraph separator
        || matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}') // bidirectional embeddings, overrides, isolates
}

/// Whether all characters of a name may be shown and sent in a header.
pub(crate) fn is_printable(name: &str) -> bool {
    !name.chars().any(is_unprintable)
}

/// Refuses text that will be part of an artifact's path and that holds control characters.
pub(crate) fn require_printable(text: &str) -> Result<(), Error> {
    match text.chars().find(|c| is_unprintable(*c)) {
        None => Ok(()),
        Some(c) => Err(Error::invalid(format!(
            "Invalid path: names of artifacts may hold no control characters, and this one holds U+{:04X}.",
            u32::from(c)
        ))),
    }
}

/// Decodes `%xx` until nothing changes, so that no encoding hides a path; `None` for text that was encoded too often.
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

/// The path of an artifact that is to be read, as MLflow understands it: relative, without `..`, percent-encodings undone
/// (`validate_path_is_safe`). Names that can no longer be given are accepted, so that older artifacts stay readable.
///
/// # Errors
/// `INVALID_PARAMETER_VALUE` for a path that leaves its root.
pub(crate) fn existing(path: &str) -> Result<String, Error> {
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

/// The path of an artifact that is to be stored: as [`existing`], and every name in it can be shown, sent in a header, and
/// stored in a file system.
///
/// # Errors
/// `INVALID_PARAMETER_VALUE` for any other path.
pub(crate) fn new(path: &str) -> Result<String, Error> {
    let path = existing(path)?;
    require_printable(&path)?;
    if path.split('/').any(|name| name.len() > MAX_NAME_BYTES) {
        return Err(Error::invalid(format!("Invalid path: a name in it has more than {MAX_NAME_BYTES} bytes.")));
    }
    Ok(path)
}

/// Absolute on Unix or on Windows, where clients may store what they download.
fn is_absolute(path: &str) -> bool {
    let is_separator = |c: Option<&u8>| matches!(c, Some(b'/' | b'\\'));
    let bytes = path.as_bytes();
    let drive = bytes.first().is_some_and(u8::is_ascii_alphabetic) && bytes.get(1) == Some(&b':');
    path.starts_with('/')
        || (drive && is_separator(bytes.get(2)))
        || (is_separator(bytes.first()) && is_separator(bytes.get(1)))
}

/// A name as it is shown in listings: characters that may not stand in names are replaced, since MLflow's client would drop
/// them and ask for a file that is not there.
pub(crate) fn shown(name: &str) -> Cow<'_, str> {
    if is_printable(name) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(name.chars().map(|c| if is_unprintable(c) { char::REPLACEMENT_CHARACTER } else { c }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_control_characters_are_refused_however_they_are_encoded() {
        for bad in ["a\nb", "a%0Ab", "a%250ab", "x\u{7f}", "x\u{85}", "x\u{2028}y", "\u{202e}gpj.exe", "d\u{2066}/f"] {
            let error = new(bad).unwrap_err();
            assert!(error.message.starts_with("Invalid path"), "{bad:?}: {error}");
            assert!(existing(bad).is_ok(), "{bad:?} can no longer be read");
        }
    }

    #[test]
    fn paths_that_leave_their_root_are_refused() {
        for bad in
            ["../x", "a/../../x", "%2e%2e/x", "a/%252e%252e/x", "/x", "C:/x", "C:\\x", "\\\\host\\x", "a#b", "a%00"]
        {
            assert!(existing(bad).is_err(), "{bad:?} was let through");
        }
        let nested = (0..20).fold("%".to_owned(), |inner, _| inner.replace('%', "%25"));
        assert!(existing(&nested).is_err());
        assert!(new(&"n".repeat(256)).is_err());
    }

    #[test]
    fn usual_names_are_kept() {
        for good in ["", "a/b.txt", "größe 1.csv", "a\\b.txt", "c:x", "100%", "עברית.txt", "..a"] {
            assert_eq!(new(good).unwrap(), good);
        }
        assert_eq!(new("p%20c.txt").unwrap(), "p c.txt");
        assert_eq!(shown("a\nb"), "a\u{fffd}b");
    }
}
