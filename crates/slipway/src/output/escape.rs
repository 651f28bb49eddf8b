//! Text of others on a terminal. What machines, runs and files say may hold sequences that move the cursor, rename the window, write the
//! clipboard or turn the order of letters round; such characters are shown as `\u{1b}` and do nothing (CWE-150).

/// Directional overrides, embeddings and isolates of Unicode: a text shows in another order than it has.
const BIDIRECTIONAL: [std::ops::RangeInclusive<char>; 2] = ['\u{202a}'..='\u{202e}', '\u{2066}'..='\u{2069}'];
/// Separators that some terminals take for the end of a line.
const SEPARATORS: std::ops::RangeInclusive<char> = '\u{2028}'..='\u{2029}';
/// A sequence that sets colours is shorter than this.
const MAX_SEQUENCE_BYTES: usize = 64;

/// Whether a character does something else on a terminal than to show itself: the control characters C0, DEL and C1, and what turns the
/// order of letters round.
fn acts(c: char) -> bool {
    c.is_control() || SEPARATORS.contains(&c) || BIDIRECTIONAL.iter().any(|range| range.contains(&c))
}

fn escaped(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) && !keep(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// A text that stays on one line: a cell of a table, a name, a reason.
pub(crate) fn one_line(text: &str) -> String {
    escaped(text, |_| false)
}

/// A text of several lines, which may be indented with tabs.
pub(crate) fn lines(text: &str) -> String {
    escaped(text, |c| c == '\n' || c == '\t')
}

/// A document of JSON that means the same and has no character that acts: these can stand in strings only, as `\u009b`.
pub(crate) fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) && c != '\n' { out += &format!("\\u{:04x}", u32::from(c)) } else { out.push(c) }
    }
    out
}

/// A stream of bytes as a terminal may get it: lines, carriage returns (progress bars) and colours stay, every other sequence is shown.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// The beginning of a character or of a sequence, whose rest is still to come.
    pending: Vec<u8>,
}

impl Stream {
    /// The next bytes, as far as they are whole.
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
            let whole = text.len();
            let shown = coloured(text, next == whole && next == rest.len(), &mut out);
            if shown < whole {
                self.pending = rest[shown..].to_vec();
                return out;
            }
            if next == rest.len() && next > whole && incomplete(&rest[whole..]) {
                self.pending = rest[whole..].to_vec();
                return out;
            }
            if next > whole {
                out.push(char::REPLACEMENT_CHARACTER);
            }
            rest = &rest[next..];
        }
        out
    }

    /// What never became whole.
    pub(crate) fn finish(self) -> String {
        let keep = |c| matches!(c, '\n' | '\t' | '\r');
        escaped(&String::from_utf8_lossy(&self.pending), keep)
    }
}

/// Whether these bytes are the beginning of a character of UTF-8.
fn incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
}

/// Adds a text with its colours. Returns how much of it was shown: less than all when it is the `end` of what is known and stops within
/// a sequence.
fn coloured(text: &str, end: bool, out: &mut String) -> usize {
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        if c == '\u{1b}' {
            match sgr(&text.as_bytes()[at..]) {
                Sequence::Colour(length) => {
                    out.push_str(&text[at..at + length]);
                    at += length;
                    continue;
                }
                Sequence::Begun if end => return at,
                Sequence::Begun | Sequence::Other => {}
            }
        }
        if acts(c) && !matches!(c, '\n' | '\t' | '\r') {
            out.extend(c.escape_unicode())
        } else {
            out.push(c)
        }
        at += c.len_utf8();
    }
    at
}

enum Sequence {
    /// A whole one that sets colours, of so many bytes.
    Colour(usize),
    /// It may become one.
    Begun,
    /// Any other.
    Other,
}

/// "Select graphic rendition" of ECMA-48: `ESC [`, digits with `;` or `:` between them, `m`.
fn sgr(bytes: &[u8]) -> Sequence {
    match bytes.get(1) {
        None => return Sequence::Begun,
        Some(b'[') => {}
        Some(_) => return Sequence::Other,
    }
    let parameters = bytes[2..].iter().take_while(|b| b.is_ascii_digit() || matches!(b, b';' | b':')).count();
    let length = 2 + parameters;
    match bytes.get(length) {
        Some(b'm') if length < MAX_SEQUENCE_BYTES => Sequence::Colour(length + 1),
        None if length < MAX_SEQUENCE_BYTES => Sequence::Begun,
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
    fn what_acts_on_a_terminal_is_shown() {
        for (evil, shown) in EVIL {
            assert_eq!((one_line(evil), lines(evil)), (shown.to_owned(), shown.to_owned()));
            let mut stream = Stream::default();
            assert_eq!(stream.push(evil.as_bytes()) + &stream.finish(), shown);
        }
        assert_eq!(one_line("a\tb\r\nc"), r"a\u{9}b\u{d}\u{a}c");
        assert_eq!(lines("a\tb\r\nc"), "a\tb\\u{d}\nc");
        assert_eq!(one_line("\x1b[31mred\x1b[0m"), r"\u{1b}[31mred\u{1b}[0m");
        let harmless = "naïve 日本語 🦀 e\u{301} \u{200f}שלום";
        assert_eq!((one_line(harmless), lines(harmless)), (harmless.to_owned(), harmless.to_owned()));
    }

    #[test]
    fn a_stream_keeps_its_colours_and_its_lines() {
        let text = "\x1b[1;31mred\x1b[m\t10 %\r20 %\r\n\x1b[38:2::1:2:3mx\x1b[0m 日\n";
        let mut stream = Stream::default();
        assert_eq!(stream.push(text.as_bytes()) + &stream.finish(), text);
        let long = format!("\x1b[{}m", "1;".repeat(100));
        assert!(Stream::default().push(long.as_bytes()).starts_with(r"\u{1b}[1;1;"));
    }

    #[test]
    fn it_does_not_matter_where_a_stream_is_cut() {
        let all: String = EVIL.iter().map(|(evil, _)| *evil).chain(["日\x1b[32mgreen\x1b[0m é\r\n"]).collect();
        let mut bytes = all.into_bytes();
        bytes.extend(b"bad \xff \x9b31m \xe6\x97 end \xe6\x97");
        let whole = |size: usize| {
            let mut stream = Stream::default();
            let mut out: String = bytes.chunks(size).map(|part| stream.push(part)).collect();
            out += &stream.finish();
            out
        };
        let once = whole(bytes.len());
        assert!(
            once.contains("\x1b[32mgreen\x1b[0m") && once.ends_with("bad \u{fffd} \u{fffd}31m \u{fffd} end \u{fffd}"),
            "{once:?}"
        );
        for size in 1..bytes.len() {
            assert_eq!(whole(size), once, "{size}");
        }
    }

    #[test]
    fn a_document_means_the_same_and_does_nothing() {
        let value = serde_json::json!({"name\u{202e}": "\u{9b}2J\u{7f}\x1b[2J\n", "list": ["日"]});
        let text = json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!text.contains(|c| acts(c) && c != '\n') && text.contains(r"\u009b2J\u007f\u001b[2J\n"), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
