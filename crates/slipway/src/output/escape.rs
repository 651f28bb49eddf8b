//! Escapes untrusted text for the terminal. Text from machines, runs and files may contain sequences that move the cursor, rename the
//! window, write to the clipboard or reverse the order of characters; such characters are printed as `\u{1b}` and have no effect (CWE-150).

/// Directional overrides, embeddings and isolates of Unicode, which change the display order of text.
const BIDIRECTIONAL: [std::ops::RangeInclusive<char>; 2] = ['\u{202a}'..='\u{202e}', '\u{2066}'..='\u{2069}'];
/// Unicode separators that some terminals treat as line ends.
const SEPARATORS: std::ops::RangeInclusive<char> = '\u{2028}'..='\u{2029}';
/// Maximum length of a colour sequence; longer sequences are escaped.
const MAX_SEQUENCE_BYTES: usize = 64;

/// Whether a character has an effect on a terminal other than being displayed: control characters (C0, DEL, C1), line separators and
/// bidirectional controls.
fn is_unsafe(c: char) -> bool {
    c.is_control() || SEPARATORS.contains(&c) || BIDIRECTIONAL.iter().any(|range| range.contains(&c))
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) && !keep(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// Escapes text that must stay on one line, such as a table cell or a name. Newlines and tabs are escaped too.
pub(crate) fn escape_line(text: &str) -> String {
    escape(text, |_| false)
}

/// Escapes text of several lines. Newlines and tabs are kept.
pub(crate) fn escape_lines(text: &str) -> String {
    escape(text, |c| c == '\n' || c == '\t')
}

/// Escapes unsafe characters in a JSON document as `\u009b`. This keeps the meaning, because such characters can occur only in strings.
pub(crate) fn escape_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) && c != '\n' { out += &format!("\\u{:04x}", u32::from(c)) } else { out.push(c) }
    }
    out
}

/// Escapes a stream of bytes. Newlines, tabs, carriage returns (progress bars) and colour sequences are kept.
#[derive(Debug, Default)]
pub(crate) struct StreamEscaper {
    /// An incomplete character or sequence at the end of the bytes so far.
    pending: Vec<u8>,
}

impl StreamEscaper {
    /// Adds bytes and returns the escaped text of all complete characters and sequences.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let all = std::mem::take(&mut self.pending);
        let mut out = String::with_capacity(all.len());
        let mut rest = all.as_slice();
        while !rest.is_empty() {
            let (text, next) = match std::str::from_utf8(rest) {
                Ok(text) => (text, rest.len()),
                Err(error) => {
                    let valid = error.valid_up_to();
                    let next = error.error_len().map_or(rest.len(), |bad| valid + bad);
                    (std::str::from_utf8(&rest[..valid]).unwrap_or_default(), next)
                }
            };
            let valid = text.len();
            let consumed = append_with_colours(text, next == valid && next == rest.len(), &mut out);
            if consumed < valid {
                self.pending = rest[consumed..].to_vec();
                return out;
            }
            if next == rest.len() && next > valid && is_incomplete(&rest[valid..]) {
                self.pending = rest[valid..].to_vec();
                return out;
            }
            if next > valid {
                out.push(char::REPLACEMENT_CHARACTER);
            }
            rest = &rest[next..];
        }
        out
    }

    /// Ends the stream and returns the escaped text of an incomplete character or sequence.
    pub(crate) fn finish(self) -> String {
        let keep = |c| matches!(c, '\n' | '\t' | '\r');
        escape(&String::from_utf8_lossy(&self.pending), keep)
    }
}

/// Whether these bytes are the beginning of a UTF-8 character.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
}

/// Appends escaped text but keeps colour sequences. Returns the number of bytes consumed: less than all if `end` is true (`text` is all
/// that was received so far) and `text` ends within a sequence.
fn append_with_colours(text: &str, end: bool, out: &mut String) -> usize {
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        if c == '\u{1b}' {
            match parse_sgr(&text.as_bytes()[at..]) {
                Sequence::Colour(length) => {
                    out.push_str(&text[at..at + length]);
                    at += length;
                    continue;
                }
                Sequence::Incomplete if end => return at,
                Sequence::Incomplete | Sequence::Other => {}
            }
        }
        if is_unsafe(c) && !matches!(c, '\n' | '\t' | '\r') {
            out.extend(c.escape_unicode())
        } else {
            out.push(c)
        }
        at += c.len_utf8();
    }
    at
}

enum Sequence {
    /// A complete colour sequence; holds its length in bytes.
    Colour(usize),
    /// The beginning of a possible colour sequence.
    Incomplete,
    /// Any other sequence.
    Other,
}

/// Parses "select graphic rendition" of ECMA-48: `ESC [`, numbers separated by `;` or `:`, `m`.
fn parse_sgr(bytes: &[u8]) -> Sequence {
    match bytes.get(1) {
        None => return Sequence::Incomplete,
        Some(b'[') => {}
        Some(_) => return Sequence::Other,
    }
    let parameters = bytes[2..].iter().take_while(|b| b.is_ascii_digit() || matches!(b, b';' | b':')).count();
    let length = 2 + parameters;
    match bytes.get(length) {
        Some(b'm') if length < MAX_SEQUENCE_BYTES => Sequence::Colour(length + 1),
        None if length < MAX_SEQUENCE_BYTES => Sequence::Incomplete,
        _ => Sequence::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: [(&str, &str); 9] = [
        ("\x1b]0;title\x07", r"\u{1b}]0;title\u{7}"),
        ("\x1b]52;c;cm0gLXJm\x1b\\", r"\u{1b}]52;c;cm0gLXJm\u{1b}\"),
        ("\x1b[2J\x1b[H", r"\u{1b}[2J\u{1b}[H"),
        ("a\x08b\x7f", r"a\u{8}b\u{7f}"),
        ("\u{9b}2J\u{9d}0;x\u{9c}", r"\u{9b}2J\u{9d}0;x\u{9c}"),
        ("user\u{202e}txt.exe", r"user\u{202e}txt.exe"),
        ("\u{2066}a\u{2069}\u{2028}", r"\u{2066}a\u{2069}\u{2028}"),
        ("\x1bc\0", r"\u{1b}c\u{0}"),
        ("\x1b[31;", r"\u{1b}[31;"),
    ];

    #[test]
    fn unsafe_characters_are_escaped() {
        for (evil, shown) in EVIL {
            assert_eq!((escape_line(evil), escape_lines(evil)), (shown.to_owned(), shown.to_owned()));
            let mut stream = StreamEscaper::default();
            assert_eq!(stream.push(evil.as_bytes()) + &stream.finish(), shown);
        }
        assert_eq!(escape_line("a\tb\r\nc"), r"a\u{9}b\u{d}\u{a}c");
        assert_eq!(escape_lines("a\tb\r\nc"), "a\tb\\u{d}\nc");
        assert_eq!(escape_line("\x1b[31mred\x1b[0m"), r"\u{1b}[31mred\u{1b}[0m");
        let harmless = "naïve 日本語 🦀 e\u{301} \u{200f}שלום";
        assert_eq!((escape_line(harmless), escape_lines(harmless)), (harmless.to_owned(), harmless.to_owned()));
    }

    #[test]
    fn stream_keeps_colours_and_line_ends() {
        let text = "\x1b[1;31mred\x1b[m\t10 %\r20 %\r\n\x1b[38:2::1:2:3mx\x1b[0m 日\n";
        let mut stream = StreamEscaper::default();
        assert_eq!(stream.push(text.as_bytes()) + &stream.finish(), text);
        let long = format!("\x1b[{}m", "1;".repeat(100));
        assert!(StreamEscaper::default().push(long.as_bytes()).starts_with(r"\u{1b}[1;1;"));
    }

    #[test]
    fn stream_output_does_not_depend_on_chunk_boundaries() {
        let all: String = EVIL.iter().map(|(evil, _)| *evil).chain(["日\x1b[32mgreen\x1b[0m é\r\n"]).collect();
        let mut bytes = all.into_bytes();
        bytes.extend(b"bad \xff \x9b31m \xe6\x97 end \xe6\x97");
        let output = |size: usize| {
            let mut stream = StreamEscaper::default();
            let mut out: String = bytes.chunks(size).map(|part| stream.push(part)).collect();
            out += &stream.finish();
            out
        };
        let expected = output(bytes.len());
        assert!(
            expected.contains("\x1b[32mgreen\x1b[0m")
                && expected.ends_with("bad \u{fffd} \u{fffd}31m \u{fffd} end \u{fffd}"),
            "{expected:?}"
        );
        for size in 1..bytes.len() {
            assert_eq!(output(size), expected, "{size}");
        }
    }

    #[test]
    fn escaped_json_is_equivalent_and_safe() {
        let value = serde_json::json!({"name\u{202e}": "\u{9b}2J\u{7f}\x1b[2J\n", "list": ["日"]});
        let text = escape_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!text.contains(|c| is_unsafe(c) && c != '\n') && text.contains(r"\u009b2J\u007f\u001b[2J\n"), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
