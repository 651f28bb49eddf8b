//! A reader of the YAML that DVC writes and that people write in such files: block mappings and sequences, scalars in any style, flow
//! sequences and mappings, comments, anchors and aliases. Tags and several documents are rejected. Every value has the range of its text.

mod scalars;

use std::collections::HashMap;
use std::ops::Range;

use super::Value;
use super::anchors::{self, Anchors};
use super::scalar::resolve;

/// Maximum nesting of values.
const MAX_DEPTH: usize = 64;

/// Why a text is not readable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

/// A value with the place of its text.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Kind,
    /// The bytes of the text, without the comment and line break after it.
    pub(super) span: Range<usize>,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Scalar(Value),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// An entry of a mapping.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    /// The byte at which the key begins.
    pub(super) start: usize,
    /// The byte after the colon.
    pub(super) colon: usize,
    pub(super) value: Node,
}

impl Node {
    pub(super) fn to_value(&self) -> Value {
        match &self.value {
            Kind::Scalar(value) => value.clone(),
            Kind::List(items) => Value::List(items.iter().map(Self::to_value).collect()),
            Kind::Map(entries) => {
                let entries = anchors::merged(entries).into_iter();
                Value::Map(entries.map(|(key, node)| (key.to_owned(), node.to_value())).collect())
            }
        }
    }
}

const BYTE_ORDER_MARK: char = '\u{feff}';

/// Reads a document. An empty one is an empty mapping.
///
/// # Errors
/// The line, and what is wrong there.
pub fn parse(text: &str) -> Result<Value, ParseError> {
    Ok(parse_nodes(text)?.map_or(Value::Map(Vec::new()), |node| node.to_value()))
}

/// The line, from 1, of the value that is reached by keys of mappings and indices of sequences; that of the last that exists on the way; 0
/// for a text that is not readable.
pub fn line_of(text: &str, path: &[String]) -> usize {
    let Ok(Some(root)) = parse_nodes(text) else { return 0 };
    let mut at = root.span.start;
    let mut node = &root;
    for step in path {
        let next = match &node.value {
            Kind::Map(entries) => entries.iter().find(|e| e.key == *step).map(|entry| (entry.start, &entry.value)),
            Kind::List(items) => {
                step.parse().ok().and_then(|i: usize| items.get(i)).map(|item| (item.span.start, item))
            }
            Kind::Scalar(_) => None,
        };
        let Some((start, found)) = next else { break };
        (at, node) = (start, found);
    }
    text[..at].matches('\n').count() + 1
}

/// The lines, from 1, of the entries of the mapping that a key at the top has, by their keys.
pub fn lines_in(text: &str, key: &str) -> HashMap<String, usize> {
    let Ok(Some(Node { value: Kind::Map(entries), .. })) = parse_nodes(text) else { return HashMap::new() };
    let Some(entry) = entries.into_iter().find(|entry| entry.key == key) else { return HashMap::new() };
    let Kind::Map(entries) = entry.value.value else { return HashMap::new() };
    let breaks: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    let line = |at: usize| breaks.partition_point(|end| *end < at) + 1;
    entries.into_iter().map(|entry| (entry.key, line(entry.start))).collect()
}

pub(super) fn parse_nodes(text: &str) -> Result<Option<Node>, ParseError> {
    let mut reader = Reader { text, at: 0, depth: 0, anchors: Anchors::default() };
    if text.starts_with(BYTE_ORDER_MARK) {
        reader.at = BYTE_ORDER_MARK.len_utf8();
    }
    if let Some((at, _)) = text[reader.at..].char_indices().find(|(_, c)| !is_printable(*c)) {
        reader.at += at;
        return Err(reader.error("special characters are not allowed; write them as escapes in double quotes"));
    }
    reader.skip_blank_lines();
    if reader.rest().starts_with("---") && reader.rest()[3..].starts_with(['\n', '\r', ' ']) {
        reader.at += 3;
        reader.skip_blank_lines();
    }
    if reader.rest().is_empty() {
        return Ok(None);
    }
    let indent = reader.column();
    let node = reader.block(indent)?;
    reader.skip_blank_lines();
    match reader.rest() {
        "" => Ok(Some(node)),
        rest if rest.trim_end() == "..." => Ok(Some(node)),
        _ => Err(reader.error("this line does not belong to the mapping or sequence above it")),
    }
}

/// Whether a character may be in a file (YAML 1.2.2, section 5.1, `c-printable`), except for the byte order mark, which may only be at the
/// beginning (section 5.2).
fn is_printable(c: char) -> bool {
    let is_allowed =
        matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..='\u{10ffff}');
    is_allowed && c != BYTE_ORDER_MARK
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    anchors: Anchors,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn error(&self, reason: &'static str) -> ParseError {
        ParseError { line: self.text[..self.at].matches('\n').count() + 1, reason }
    }

    /// The column of the current position, in bytes from the start of the line.
    fn column(&self) -> usize {
        self.at - self.text[..self.at].rfind('\n').map_or(0, |i| i + 1)
    }

    fn skip_spaces(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches([' ', '\t']).len();
    }

    /// Whether only a comment or nothing is left on the line.
    fn at_line_end(&self) -> bool {
        let rest = self.rest();
        let blank_before = self.at == 0 || self.text[..self.at].ends_with([' ', '\t', '\n']);
        rest.is_empty() || rest.starts_with(['\n', '\r']) || (rest.starts_with('#') && blank_before)
    }

    /// Skips spaces, comments and line breaks.
    fn skip_blank_lines(&mut self) {
        loop {
            self.skip_spaces();
            if !self.at_line_end() || self.rest().is_empty() {
                return;
            }
            self.at += self.rest().find('\n').map_or(self.rest().len(), |i| i + 1);
        }
    }

    /// Skips the rest of a line, on which only a comment may follow.
    fn end_line(&mut self) -> Result<(), ParseError> {
        self.skip_spaces();
        if self.at_line_end() { Ok(()) } else { Err(self.error("text follows the value on the same line")) }
    }

    /// A block value that begins at the current position, in column `indent`.
    fn block(&mut self, indent: usize) -> Result<Node, ParseError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("the values are nested too deeply"));
        }
        let node = if is_dash(self.rest()) {
            self.sequence(indent)
        } else if self.key()?.is_some() {
            self.mapping(indent)
        } else {
            self.scalar(indent)
        };
        self.depth -= 1;
        node
    }

    fn sequence(&mut self, indent: usize) -> Result<Node, ParseError> {
        let start = self.at;
        let mut end = self.at;
        let mut items = Vec::new();
        loop {
            let before = self.at;
            self.skip_blank_lines();
            if self.rest().is_empty() || self.column() != indent || !is_dash(self.rest()) {
                if !self.rest().is_empty() && self.column() > indent {
                    return Err(self.error("the line is indented too far"));
                }
                self.at = before;
                break;
            }
            self.at += 1;
            let item = self.value_after(indent, false)?;
            end = item.span.end.max(self.at.min(item.span.end));
            items.push(item);
        }
        Ok(Node { value: Kind::List(items), span: start..end })
    }

    fn mapping(&mut self, indent: usize) -> Result<Node, ParseError> {
        let start = self.at;
        let mut end = self.at;
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let before = self.at;
            self.skip_blank_lines();
            if self.rest().is_empty() || self.column() != indent || is_dash(self.rest()) {
                if !self.rest().is_empty() && self.column() > indent {
                    return Err(self.error("the line is indented too far"));
                }
                self.at = before;
                break;
            }
            let entry_start = self.at;
            if matches!(self.rest(), rest if rest.starts_with("...") || rest.starts_with("---")) && indent == 0 {
                self.at = before;
                break;
            }
            let Some((key, length)) = self.key()? else { return Err(self.error("a key with a colon is expected")) };
            self.reject_repeated(&entries, &key)?;
            self.at += length;
            let colon = self.at;
            let value = self.value_after(indent, true)?;
            end = value.span.end;
            entries.push(Entry { key, start: entry_start, colon, value });
        }
        Ok(Node { value: Kind::Map(entries), span: start..end })
    }

    /// The value after `KEY:` or `-` of an entry in column `indent`.
    fn value_after(&mut self, indent: usize, after_key: bool) -> Result<Node, ParseError> {
        let marker = self.at;
        self.skip_spaces();
        if self.rest().starts_with('&') {
            let name = self.anchor_name()?;
            self.skip_spaces();
            self.reject_second_anchor()?;
            let node = self.value_after(indent, after_key)?;
            self.anchors.define(name, &node);
            return Ok(node);
        }
        if !self.at_line_end() {
            return if after_key { self.scalar(indent + 1) } else { self.block(self.column()) };
        }
        let line_end = self.at;
        self.skip_blank_lines();
        let column = self.column();
        // A sequence below a key may have the key's indentation.
        let nested =
            !self.rest().is_empty() && (column > indent || (after_key && column == indent && is_dash(self.rest())));
        if nested {
            return self.block(column);
        }
        self.at = line_end;
        Ok(Node { value: Kind::Scalar(Value::Null), span: marker..marker })
    }

    /// Skips the name after `&` or `*`, and returns it.
    fn anchor_name(&mut self) -> Result<&'a str, ParseError> {
        let name = anchors::name(self.rest());
        if name.is_empty() {
            return Err(self.error("a name is expected here"));
        }
        self.at += 1 + name.len();
        Ok(name)
    }

    /// YAML allows one anchor for a value, and none for an alias. Without this check, a chain of anchors would recurse without a limit.
    fn reject_second_anchor(&self) -> Result<(), ParseError> {
        match self.rest().starts_with(['&', '*']) {
            true => Err(self.error("a value has one anchor at most, and an alias has none")),
            false => Ok(()),
        }
    }

    /// The value of an alias, at its `*`.
    fn alias(&mut self) -> Result<Kind, ParseError> {
        let name = self.anchor_name()?;
        self.anchors.resolve(name, MAX_DEPTH.saturating_sub(self.depth)).map_err(|reason| self.error(reason))
    }

    /// The key at the current position and the length of its text with the colon, if there is one on this line.
    fn key(&self) -> Result<Option<(String, usize)>, ParseError> {
        let rest = self.rest();
        if rest.starts_with(['\'', '"']) {
            let mut ahead = Reader { text: self.text, at: self.at, depth: self.depth, anchors: Anchors::default() };
            let Ok(text) = ahead.quoted() else { return Ok(None) };
            ahead.skip_spaces();
            let colon = ahead.rest().starts_with(':') && is_end_of_indicator(&ahead.rest()[1..]);
            let one_line = !self.text[self.at..ahead.at].contains('\n');
            return Ok((colon && one_line).then(|| (text, ahead.at + 1 - self.at)));
        }
        if rest.starts_with(['?', '&', '*', '!']) && is_end_of_indicator(&rest[1..]) || rest.starts_with(['&', '!']) {
            return Err(self.error("tags, complex keys and anchors of keys are not supported"));
        }
        if rest.starts_with(['{', '[', '|', '>', '%', '@', '`', '#']) {
            return Ok(None);
        }
        let line = &rest[..rest.find('\n').unwrap_or(rest.len())];
        let mut previous = ' ';
        for (i, c) in line.char_indices() {
            if c == '#' && previous == ' ' {
                return Ok(None);
            }
            if c == ':' && is_end_of_indicator(&line[i + 1..]) {
                return Ok(Some((line[..i].trim_end().to_owned(), i + 1)));
            }
            previous = c;
        }
        Ok(None)
    }

    /// A scalar or a flow collection. Its other lines are indented by at least `indent`.
    fn scalar(&mut self, indent: usize) -> Result<Node, ParseError> {
        let start = self.at;
        let value = match self.rest().chars().next() {
            Some('\'' | '"') => {
                let text = self.quoted()?;
                let end = self.at;
                self.end_line()?;
                self.at = end;
                Kind::Scalar(Value::String(text))
            }
            Some('|' | '>') => Kind::Scalar(Value::String(self.literal(indent)?)),
            Some('{' | '[') => {
                let value = self.flow()?;
                let end = self.at;
                self.end_line()?;
                self.at = end;
                value
            }
            Some('*') => {
                let value = self.alias()?;
                let end = self.at;
                self.end_line()?;
                self.at = end;
                value
            }
            Some('&' | '!' | '%' | '@' | '`') => {
                return Err(self.error("tags, directives and anchors in this place are not supported"));
            }
            _ => Kind::Scalar(self.plain(indent)?),
        };
        Ok(Node { value, span: start..self.at })
    }

    fn reject_repeated(&self, entries: &[Entry], key: &str) -> Result<(), ParseError> {
        let is_repeated = entries.iter().any(|entry| entry.key == key);
        if is_repeated { Err(self.error("the key occurs twice in the mapping")) } else { Ok(()) }
    }

    /// A flow sequence or mapping.
    fn flow(&mut self) -> Result<Kind, ParseError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("the values are nested too deeply"));
        }
        let is_map = self.rest().starts_with('{');
        let close = if is_map { '}' } else { ']' };
        self.at += 1;
        let (mut items, mut entries) = (Vec::new(), Vec::new());
        loop {
            self.skip_blank_lines();
            if self.rest().starts_with(close) {
                self.at += 1;
                break;
            }
            let start = self.at;
            let item = self.flow_item()?;
            self.skip_blank_lines();
            if is_map {
                let entry = self.flow_entry(start, &item)?;
                self.reject_repeated(&entries, &entry.key)?;
                entries.push(entry);
            } else if self.rest().starts_with(':') {
                // A mapping of one entry needs no braces in a sequence.
                let entry = self.flow_entry(start, &item)?;
                let span = start..entry.value.span.end;
                items.push(Node { value: Kind::Map(vec![entry]), span });
            } else {
                items.push(item);
            }
            match self.rest().chars().next() {
                Some(',') => self.at += 1,
                Some(c) if c == close => {}
                _ => return Err(self.error("a comma or the closing bracket is expected")),
            }
        }
        self.depth -= 1;
        Ok(if is_map { Kind::Map(entries) } else { Kind::List(items) })
    }

    /// An entry of a flow mapping, after its key.
    fn flow_entry(&mut self, start: usize, key: &Node) -> Result<Entry, ParseError> {
        let key = match &key.value {
            Kind::Scalar(Value::String(text) | Value::Number(text)) => text.clone(),
            Kind::Scalar(Value::Bool(value)) => value.to_string(),
            _ => return Err(self.error("a key is expected")),
        };
        let mut colon = self.at;
        let mut value = Node { value: Kind::Scalar(Value::Null), span: self.at..self.at };
        if self.rest().starts_with(':') {
            self.at += 1;
            colon = self.at;
            self.skip_blank_lines();
            value = if self.rest().starts_with([',', '}', ']']) {
                Node { value: Kind::Scalar(Value::Null), span: colon..colon }
            } else {
                self.flow_item()?
            };
            self.skip_blank_lines();
        }
        Ok(Entry { key, start, colon, value })
    }

    fn flow_item(&mut self) -> Result<Node, ParseError> {
        let start = self.at;
        let value = match self.rest().chars().next() {
            Some('{' | '[') => self.flow()?,
            Some('\'' | '"') => Kind::Scalar(Value::String(self.quoted()?)),
            Some('*') => self.alias()?,
            Some('&') => {
                let name = self.anchor_name()?;
                self.skip_blank_lines();
                self.reject_second_anchor()?;
                let node = self.flow_item()?;
                self.anchors.define(name, &node);
                node.value
            }
            Some('!') => return Err(self.error("tags are not supported")),
            _ => {
                let rest = self.rest();
                let end = rest
                    .char_indices()
                    .find(|(i, c)| {
                        matches!(c, ',' | '[' | ']' | '{' | '}' | '\n')
                            || (*c == ':'
                                && rest[i + 1..]
                                    .chars()
                                    .next()
                                    .is_none_or(|n| matches!(n, ' ' | '\n' | ',' | ']' | '}')))
                            || (*c == '#' && (*i == 0 || rest[..*i].ends_with(' ')))
                    })
                    .map_or(rest.len(), |(i, _)| i);
                let text = rest[..end].trim_end();
                if text.is_empty() {
                    return Err(self.error("a value is expected"));
                }
                self.at += text.len();
                Kind::Scalar(resolve(text))
            }
        };
        Ok(Node { value, span: start..self.at })
    }
}

/// Whether the text begins with the `-` of a sequence.
fn is_dash(text: &str) -> bool {
    text.starts_with('-') && is_end_of_indicator(&text[1..])
}

fn is_end_of_indicator(after: &str) -> bool {
    after.is_empty() || after.starts_with([' ', '\n', '\r', '\t'])
}

#[cfg(test)]
mod tests {
    use super::super::emit;
    use super::*;

    #[test]
    fn files_of_people_are_read() {
        let text = "# data\nouts:\n  - md5: 8b36 # digest\n    path: 'a: b'\n    meta: {x: [1, two], y: \"q\\n\"}\n\ndesc: |\n  one\n   two\n\nfrozen: true\nlong: a b\n  c d\n\n  e\nfold: >-\n  x\n  y\n\n  z\nempty:\nlist: []\n";
        let value = parse(text).unwrap();
        let out = &value.get("outs").unwrap().items()[0];
        assert_eq!(out.get("md5").unwrap().as_str(), Some("8b36"));
        assert_eq!(out.get("path").unwrap().as_str(), Some("a: b"));
        assert_eq!(out.get("meta").unwrap().get("y").unwrap().as_str(), Some("q\n"));
        assert_eq!(value.get("desc").unwrap().as_str(), Some("one\n two\n"));
        assert_eq!(value.get("frozen").unwrap().as_bool(), Some(true));
        assert_eq!(value.get("long").unwrap().as_str(), Some("a b c d\ne"));
        assert_eq!(value.get("fold").unwrap().as_str(), Some("x y\nz"));
        assert_eq!(value.get("empty"), Some(&Value::Null));
        assert_eq!(value.get("list"), Some(&Value::List(Vec::new())));
    }

    #[test]
    fn invalid_files_are_rejected_with_the_line() {
        for (text, line) in [
            ("a: 1\n b: 2\n", 2),
            ("a: 'x\n", 1),
            ("a: 1\na: 2\n", 2),
            ("a: !x 1\n", 1),
            ("a: *x\n", 1),
            ("a: [1, 2\n", 2),
            ("x\ny: 1\n", 2),
        ] {
            assert_eq!(parse(text).map_err(|e| e.line), Err(line), "{text:?}");
        }
    }

    #[test]
    fn emitted_values_are_read_back() {
        for text in [
            "word ".repeat(40),
            format!("'{}", "a b ".repeat(40)),
            "x".repeat(200),
            "a\nb  c".repeat(30),
            format!("{} x", "é ".repeat(90)),
            "tab\t ".repeat(40),
        ] {
            let value = Value::Map(vec![(
                "outs".into(),
                Value::List(vec![Value::Map(vec![("path".into(), Value::string(text.as_str()))])]),
            )]);
            let emitted = emit(&value);
            assert_eq!(parse(&emitted).as_ref(), Ok(&value), "{emitted}");
        }
    }
}
