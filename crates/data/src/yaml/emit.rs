//! Writing values with ruamel.yaml's layout.

use super::Value;
use super::scalar::{Style, style};

/// The column after which ruamel.yaml folds a scalar at the next space.
const WIDTH: usize = 80;

/// The text of a mapping as DVC writes it into a file: block style, an indentation of 2, sequences not indented below their key.
pub fn emit(value: &Value) -> String {
    let mut out = Writer { text: String::new(), column: 0 };
    out.node(value, 0, Position::Start);
    out.text
}

/// The text of a value after `KEY:` or `-`, on lines whose continuation is indented by `indent`; it begins with a space or a line break.
pub(super) fn emit_after(value: &Value, column: usize, indent: usize) -> String {
    let mut out = Writer { text: String::new(), column };
    let parent = indent.saturating_sub(2);
    out.node(value, parent, Position::Key);
    out.text
}

/// The text of a key, for `KEY: VALUE`.
pub(super) fn emit_key(key: &str) -> String {
    let mut out = Writer { text: String::new(), column: 0 };
    out.scalar(key, usize::MAX);
    out.text
}

/// Where a value begins.
#[derive(Clone, Copy, PartialEq)]
enum Position {
    /// At the start of a line, which is already indented.
    Start,
    /// After `KEY:`.
    Key,
    /// After `-`.
    Dash,
}

struct Writer {
    text: String,
    column: usize,
}

impl Writer {
    fn put(&mut self, text: &str) {
        self.text.push_str(text);
        self.column += text.chars().count();
    }

    fn line_break(&mut self, indent: usize) {
        self.text.push('\n');
        self.text.extend(std::iter::repeat_n(' ', indent));
        self.column = indent;
    }

    /// Writes a value whose parent's entries are at `indent`, and ends the line.
    fn node(&mut self, value: &Value, indent: usize, position: Position) {
        match value {
            Value::Map(entries) if !entries.is_empty() => {
                let indent = if position == Position::Start { indent } else { indent + 2 };
                for (i, (key, value)) in entries.iter().enumerate() {
                    match position {
                        Position::Start if i == 0 => {}
                        Position::Dash if i == 0 => self.put(" "),
                        Position::Key if i == 0 => self.line_break(indent),
                        _ => self.text.extend(std::iter::repeat_n(' ', indent)),
                    }
                    self.column = indent;
                    self.scalar(key, usize::MAX);
                    self.put(":");
                    self.node(value, indent, Position::Key);
                }
            }
            Value::List(items) if !items.is_empty() => {
                let indent = if position == Position::Dash { indent + 2 } else { indent };
                for (i, item) in items.iter().enumerate() {
                    match position {
                        Position::Dash if i == 0 => self.put(" "),
                        Position::Key if i == 0 => self.line_break(indent),
                        Position::Start if i == 0 => {}
                        _ => self.text.extend(std::iter::repeat_n(' ', indent)),
                    }
                    self.column = indent;
                    self.put("-");
                    self.node(item, indent, Position::Dash);
                }
            }
            _ => {
                match value {
                    // A file with nothing in it would be read as an empty mapping.
                    Value::Null if position == Position::Start => self.put("null"),
                    Value::Null if position == Position::Dash => self.put(" "),
                    Value::Null => {}
                    Value::Bool(value) => self.put(if *value { " true" } else { " false" }),
                    Value::Number(text) => {
                        self.put(" ");
                        self.put(text);
                    }
                    Value::String(text) => {
                        self.put(" ");
                        self.scalar(text, indent + 2);
                    }
                    Value::List(_) => self.put(" []"),
                    Value::Map(_) => self.put(" {}"),
                }
                self.text.push('\n');
                self.column = 0;
            }
        }
    }

    /// Writes a string. It is folded, with `indent` on the next lines, unless `indent` is the maximum.
    fn scalar(&mut self, text: &str, indent: usize) {
        match style(text) {
            Style::Plain => self.plain(text, indent),
            Style::Single => self.single(text, indent),
            Style::Double => self.double(text, indent),
        }
    }

    /// Words that do not fit move to the next line; the space before such a word stays at the end of the line, unless the line was full.
    fn plain(&mut self, text: &str, indent: usize) {
        let folds = indent != usize::MAX;
        let mut rest = text;
        while !rest.is_empty() {
            let spaces = rest.len() - rest.trim_start_matches(' ').len();
            if spaces == 1 && folds && self.column >= WIDTH {
                self.line_break(indent);
            } else {
                self.put(&rest[..spaces]);
            }
            rest = &rest[spaces..];
            let word = &rest[..rest.find(' ').unwrap_or(rest.len())];
            // A line break is read as one space. ruamel.yaml breaks after several spaces too, and loses them.
            if folds && spaces <= 1 && self.column + word.chars().count() > WIDTH && self.column > indent {
                self.line_break(indent);
            }
            self.put(word);
            rest = &rest[word.len()..];
        }
    }

    /// A single space after the full width becomes a line break.
    fn single(&mut self, text: &str, indent: usize) {
        self.put("'");
        let mut rest = text;
        let mut first = true;
        while !rest.is_empty() {
            let spaces = rest.len() - rest.trim_start_matches(' ').len();
            let word_end = spaces + rest[spaces..].find(' ').unwrap_or(rest.len() - spaces);
            let inside = !first && spaces < rest.len();
            if spaces == 1 && inside && self.column > WIDTH && indent != usize::MAX {
                self.line_break(indent);
            } else {
                self.put(&rest[..spaces]);
            }
            self.put(&rest[spaces..word_end].replace('\'', "''"));
            rest = &rest[word_end..];
            first = false;
        }
        self.put("'");
    }

    /// Control characters and breaks are escaped. Lines are folded at spaces, and after escapes with a backslash, which keeps the line break
    /// from becoming a space.
    fn double(&mut self, text: &str, indent: usize) {
        self.put("\"");
        let characters: Vec<char> = text.chars().collect();
        let mut pending = String::new();
        let mut skip_space_at = usize::MAX;
        for (i, c) in characters.iter().copied().enumerate() {
            let escape = escape(c);
            if escape.is_some() {
                self.put(&std::mem::take(&mut pending));
            }
            if let Some(escape) = &escape {
                self.put(escape);
            }
            let waiting = pending.chars().count();
            let may_fold = indent != usize::MAX && i > 0 && i + 1 < characters.len();
            if may_fold && (c == ' ' || escape.is_some() || waiting == 0) && self.column + waiting > WIDTH {
                let backslash = needs_backslash(&characters, i, waiting == 0);
                self.put(&std::mem::take(&mut pending));
                if backslash {
                    self.put("\\");
                }
                self.line_break(indent);
                let next = if escape.is_some() { i + 1 } else { i };
                if characters.get(next) == Some(&' ') {
                    if backslash {
                        self.put("\\");
                    } else {
                        skip_space_at = next;
                    }
                }
            }
            if escape.is_none() && skip_space_at != i {
                pending.push(c);
            }
        }
        self.put(&pending);
        self.put("\"");
    }
}

/// Whether a line break at `at` needs a backslash, because a plain break would be read as another text. `empty` says that nothing is pending
/// since the last escape.
fn needs_backslash(characters: &[char], at: usize, empty: bool) -> bool {
    let Some(space) = characters[at..].iter().position(|c| *c == ' ').map(|offset| at + offset) else { return true };
    if characters[at..space].contains(&'\n') {
        let line_end = characters[at..space].iter().position(|c| *c == '\n').map_or(space, |offset| at + offset);
        if characters.get(line_end + 1) != Some(&' ') {
            return true;
        }
    }
    let quotes = characters[at..space].iter().any(|c| matches!(c, '"' | '\''));
    let followed_by_blank = characters.get(space + 1).is_none_or(|c| matches!(c, ' ' | '\n'));
    let two_spaces = at > 0 && characters[at - 1] == ' ' && characters[at] == ' ';
    quotes || followed_by_blank || two_spaces || empty
}

/// The escape sequence of a character in double quotes, if it needs one.
fn escape(c: char) -> Option<String> {
    let named = match c {
        '\0' => '0',
        '\x07' => 'a',
        '\x08' => 'b',
        '\t' => 't',
        '\n' => 'n',
        '\x0b' => 'v',
        '\x0c' => 'f',
        '\r' => 'r',
        '\x1b' => 'e',
        '"' => '"',
        '\\' => '\\',
        '\u{85}' => 'N',
        '\u{2028}' => 'L',
        '\u{2029}' => 'P',
        ' '..='~'
        | '\u{a0}'..='\u{d7ff}'
        | '\u{e000}'..='\u{fefe}'
        | '\u{ff00}'..='\u{fffd}'
        | '\u{10000}'..='\u{10ffff}' => return None,
        _ => {
            let code = u32::from(c);
            return Some(match code {
                0..=0xff => format!("\\x{code:02X}"),
                0x100..=0xffff => format!("\\u{code:04X}"),
                _ => format!("\\U{code:08X}"),
            });
        }
    };
    Some(format!("\\{named}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desc(text: &str) -> String {
        emit(&Value::Map(vec![("desc".into(), Value::string(text)), ("k".into(), Value::number(1))]))
    }

    #[test]
    fn values_are_laid_out_as_ruamel_does() {
        let list = |items: Vec<Value>| Value::List(items);
        let n = |text: &str| Value::Number(text.into());
        let map =
            |entries: Vec<(&str, Value)>| Value::Map(entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect());
        let value = map(vec![
            (
                "meta",
                map(vec![
                    (
                        "a",
                        list(vec![
                            n("1"),
                            n("2"),
                            map(vec![("b", Value::Null), ("c", list(vec![])), ("d", map(vec![]))]),
                        ]),
                    ),
                    ("f", n("1.5")),
                    ("t", Value::Bool(true)),
                    ("g", list(vec![list(vec![n("1"), n("2")]), list(vec![n("3")])])),
                ]),
            ),
            ("outs", list(vec![])),
        ]);
        let expected = "meta:\n  a:\n  - 1\n  - 2\n  - b:\n    c: []\n    d: {}\n  f: 1.5\n  t: true\n  g:\n  - - 1\n    - 2\n  - - 3\nouts: []\n";
        assert_eq!(emit(&value), expected);
        assert_eq!(emit(&map(vec![("l", list(vec![Value::Null]))])), "l:\n- \n");
    }

    #[test]
    fn long_strings_are_folded_as_ruamel_does() {
        let x = "x".repeat(100);
        assert_eq!(desc(&x), format!("desc: \n  {x}\nk: 1\n"));
        let plain = format!("{}end", "abc def ".repeat(12));
        let folded = "desc: abc def abc def abc def abc def abc def abc def abc def abc def abc def \n  abc def abc def abc def end\nk: 1\n";
        assert_eq!(desc(&plain), folded);
        let words = "word ".repeat(30);
        let single = "desc: 'word word word word word word word word word word word word word word word\n  word word word word word word word word word word word word word word word '\nk: 1\n";
        assert_eq!(desc(&words), single);
        let double = "desc: \"it's: word word word word word word word word word word word word word word\n  word word end\"\nk: 1\n";
        assert_eq!(desc(&format!("it's: {}end", "word ".repeat(16))), double);
        let quoted = format!("'{}", "a b ".repeat(25));
        let expected = "desc: \"'a b a b a b a b a b a b a b a b a b a b a b a b a b a b a b a b a b a b a\n  b a b a b a b a b a b a b \"\nk: 1\n";
        assert_eq!(desc(&quoted), expected);
    }

    #[test]
    fn escapes_are_folded_with_a_backslash() {
        let text = format!("tab\t{}{}{}", "x ".repeat(50), "  two  ".repeat(10), "x".repeat(90));
        let list = Value::Map(vec![("l".into(), Value::List(vec![Value::string(text)]))]);
        let expected = format!(
            "l:\n- \"tab\\tx{}\n  x{}   two    two    two    two    two    two    two    two\\\n  \\    two    two  {}\"\n",
            " x".repeat(36),
            " x".repeat(12),
            "x".repeat(90)
        );
        assert_eq!(emit(&list), expected);
    }
}
