//! The texts of scalars: plain, quoted and in blocks, with their line folding and escapes.

use super::{ParseError, Reader, is_dash};
use crate::yaml::Value;
use crate::yaml::anchors::Anchors;
use crate::yaml::scalar::resolve;

impl Reader<'_> {
    /// A plain scalar, which ends before a comment or a line that is indented less than `indent`.
    pub(super) fn plain(&mut self, indent: usize) -> Result<Value, ParseError> {
        let mut text = String::new();
        let mut breaks = 0;
        loop {
            let rest = self.rest();
            let line = &rest[..rest.find('\n').unwrap_or(rest.len())];
            let comment =
                line.match_indices('#').find(|(i, _)| *i == 0 || line[..*i].ends_with([' ', '\t'])).map(|(i, _)| i);
            let content = line[..comment.unwrap_or(line.len())].trim_end();
            if content.ends_with(':') || content.contains(": ") {
                return Err(self.error("a plain value contains a colon; quote it, or indent the line as its mapping"));
            }
            if !text.is_empty() {
                if breaks == 1 {
                    text.push(' ');
                } else {
                    text.extend(std::iter::repeat_n('\n', breaks - 1));
                }
            }
            text.push_str(content);
            self.at += content.len();
            if comment.is_some() {
                break;
            }
            // The next line that is not empty continues the scalar if it is indented.
            let mut ahead = Reader { text: self.text, at: self.at, depth: self.depth, anchors: Anchors::default() };
            breaks = 0;
            loop {
                ahead.skip_spaces();
                if ahead.rest().starts_with("\r\n") {
                    ahead.at += 1;
                }
                if !ahead.rest().starts_with('\n') {
                    break;
                }
                ahead.at += 1;
                breaks += 1;
            }
            let ends = breaks == 0
                || ahead.rest().is_empty()
                || ahead.column() < indent.max(1)
                || ahead.rest().starts_with('#');
            if ends || (ahead.column() == indent.saturating_sub(1) && is_dash(ahead.rest())) {
                break;
            }
            self.at = ahead.at;
        }
        Ok(resolve(&text))
    }

    /// A quoted scalar, at its opening quote.
    pub(super) fn quoted(&mut self) -> Result<String, ParseError> {
        let quote = self.rest().chars().next().unwrap_or('"');
        let start = self.at;
        self.at += 1;
        let mut text = String::new();
        loop {
            let Some(c) = self.rest().chars().next() else {
                self.at = start;
                return Err(self.error("the quote is not closed"));
            };
            self.at += c.len_utf8();
            match c {
                '\'' if quote == '\'' && self.rest().starts_with('\'') => {
                    self.at += 1;
                    text.push('\'');
                }
                _ if c == quote => return Ok(text),
                '\\' if quote == '"' => self.escape(&mut text)?,
                '\n' => {
                    let trimmed = text.trim_end_matches([' ', '\t', '\r']).len();
                    text.truncate(trimmed);
                    let mut breaks = 1;
                    loop {
                        self.skip_spaces();
                        if self.rest().starts_with("\r\n") {
                            self.at += 1;
                        }
                        if !self.rest().starts_with('\n') {
                            break;
                        }
                        self.at += 1;
                        breaks += 1;
                    }
                    if breaks == 1 {
                        text.push(' ');
                    } else {
                        text.extend(std::iter::repeat_n('\n', breaks - 1));
                    }
                }
                c => text.push(c),
            }
        }
    }

    fn escape(&mut self, text: &mut String) -> Result<(), ParseError> {
        let Some(c) = self.rest().chars().next() else { return Err(self.error("the quote is not closed")) };
        self.at += c.len_utf8();
        let hex = match c {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        if hex > 0 {
            let digits = self.rest().get(..hex).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
            let character = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32);
            let Some(character) = character else { return Err(self.error("the escape sequence is invalid")) };
            self.at += hex;
            text.push(character);
            return Ok(());
        }
        let character = match c {
            '0' => '\0',
            'a' => '\x07',
            'b' => '\x08',
            't' | '\t' => '\t',
            'n' => '\n',
            'v' => '\x0b',
            'f' => '\x0c',
            'r' => '\r',
            'e' => '\x1b',
            ' ' | '"' | '/' | '\\' => c,
            'N' => '\u{85}',
            '_' => '\u{a0}',
            'L' => '\u{2028}',
            'P' => '\u{2029}',
            '\n' => {
                self.skip_spaces();
                return Ok(());
            }
            _ => return Err(self.error("the escape sequence is invalid")),
        };
        text.push(character);
        Ok(())
    }

    /// A literal (`|`) or folded (`>`) scalar.
    pub(super) fn literal(&mut self, indent: usize) -> Result<String, ParseError> {
        let rest = self.rest();
        let line = &rest[..rest.find('\n').unwrap_or(rest.len())];
        let folded = line.starts_with('>');
        let header = line[1..].split('#').next().unwrap_or_default().trim();
        let (keep, strip) = (header.contains('+'), header.contains('-'));
        let explicit = header.bytes().find(u8::is_ascii_digit).map(|digit| usize::from(digit - b'0'));
        if header.len() > 2 || !header.bytes().all(|b| matches!(b, b'+' | b'-' | b'1'..=b'9')) {
            return Err(self.error("the header of the block scalar is invalid"));
        }
        self.at += line.len();
        let mut lines: Vec<&str> = Vec::new();
        let mut base = explicit.map(|n| indent.saturating_sub(1) + n);
        let mut end = self.at;
        while self.rest().starts_with('\n') {
            let rest = &self.rest()[1..];
            let line = &rest[..rest.find('\n').unwrap_or(rest.len())];
            let content = line.trim_end_matches('\r');
            let spaces = content.len() - content.trim_start_matches(' ').len();
            if content.trim().is_empty() {
                lines.push(base.and_then(|base| content.get(base..)).unwrap_or_default());
                self.at += 1 + line.len();
                if rest.is_empty() {
                    break;
                }
                continue;
            }
            if spaces < base.unwrap_or(indent.max(1)) {
                break;
            }
            let base = *base.get_or_insert(spaces);
            lines.push(&content[base..]);
            self.at += 1 + line.len();
            end = self.at;
        }
        self.at = end;
        let count = lines.iter().rposition(|line| !line.is_empty()).map_or(0, |i| i + 1);
        let trailing = lines.len() - count;
        let mut text = String::new();
        for (i, line) in lines[..count].iter().enumerate() {
            text.push_str(line);
            let next = lines.get(i + 1).copied().unwrap_or_default();
            let joins = folded
                && i + 1 < count
                && !line.is_empty()
                && !next.is_empty()
                && !line.starts_with(' ')
                && !next.starts_with(' ');
            let before_blank = folded && i + 1 < count && !line.is_empty() && next.is_empty() && !line.starts_with(' ');
            if joins {
                text.push(' ');
            } else if i + 1 < count && !before_blank {
                text.push('\n');
            }
        }
        if count > 0 && !strip {
            text.push('\n');
        }
        if keep {
            text.extend(std::iter::repeat_n('\n', trailing));
        }
        Ok(text)
    }
}
