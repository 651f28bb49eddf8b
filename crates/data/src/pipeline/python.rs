//! Parameters in Python files: assignments of literals at the top, in classes, and to `self` in their `__init__`. Everything else is skipped
//! and never executed.

use super::value::{canonical, text as text_of};
use crate::yaml::Value;

/// Maximum nesting of brackets and blocks.
const MAX_DEPTH: usize = 64;

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    Number(String),
    /// A string literal; `None` for an f-string or bytes, which are not parameters.
    String(Option<String>),
    Symbol(char),
    /// An operator of several characters, such as `==`.
    Operator,
    NewLine,
    Indent,
    Dedent,
}

/// The parameters of a Python file.
///
/// # Errors
/// The line and reason if the text is not Python: a bracket or string that is not closed, or an inconsistent indentation.
pub(super) fn parse(text: &str) -> Result<Value, (usize, String)> {
    let tokens = Lexer::new(text).run()?;
    let mut reader = Reader { tokens: &tokens, at: 0 };
    Ok(canonical(Value::Map(reader.block(false, 0))))
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    depth: Vec<(char, usize)>,
    indents: Vec<usize>,
    tokens: Vec<Token>,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self { text, at: 0, depth: Vec::new(), indents: vec![0], tokens: Vec::new() }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn line_at(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    fn run(mut self) -> Result<Vec<Token>, (usize, String)> {
        let mut starts_line = true;
        while !self.rest().is_empty() {
            if starts_line && self.indentation()? {
                continue;
            }
            starts_line = self.token()?;
        }
        if let Some((_, start)) = self.depth.first() {
            return Err((self.line_at(*start), "the bracket is not closed".into()));
        }
        if self.tokens.last().is_some_and(|last| *last != Token::NewLine) {
            self.tokens.push(Token::NewLine);
        }
        self.tokens.extend(std::iter::repeat_n(Token::Dedent, self.indents.len() - 1));
        Ok(self.tokens)
    }

    /// Reads the indentation of a line; true if the line has nothing else.
    fn indentation(&mut self) -> Result<bool, (usize, String)> {
        let rest = self.rest();
        let line = &rest[..rest.find('\n').map_or(rest.len(), |i| i + 1)];
        let content = line.trim_start_matches([' ', '\t', '\x0c']);
        if content.trim_end().is_empty() || content.starts_with('#') {
            self.at += line.len();
            return Ok(true);
        }
        let blank = &line[..line.len() - content.len()];
        let width = blank.chars().fold(0, |width, c| if c == '\t' { (width / 8 + 1) * 8 } else { width + 1 });
        self.at += blank.len();
        if self.indents.last().is_some_and(|last| width > *last) {
            if self.indents.len() > MAX_DEPTH {
                return Err((self.line_at(self.at), "the blocks are nested too deeply".into()));
            }
            self.indents.push(width);
            self.tokens.push(Token::Indent);
        }
        while self.indents.last().is_some_and(|last| width < *last) {
            self.indents.pop();
            self.tokens.push(Token::Dedent);
        }
        if self.indents.last() != Some(&width) {
            return Err((self.line_at(self.at), "the indentation fits no block above".into()));
        }
        Ok(false)
    }

    /// Reads a token; true if it ended the line.
    fn token(&mut self) -> Result<bool, (usize, String)> {
        let rest = self.rest();
        let Some(c) = rest.chars().next() else { return Ok(false) };
        if c == '\n' {
            self.at += 1;
            if self.depth.is_empty() {
                self.tokens.push(Token::NewLine);
                return Ok(true);
            }
        } else if c.is_whitespace() {
            self.at += c.len_utf8();
        } else if c == '#' {
            self.at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("\\\n") || rest.starts_with("\\\r\n") {
            self.at += rest.find('\n').unwrap_or(0) + 1;
        } else if let Some(prefix) = string_prefix(rest) {
            self.string(prefix)?;
        } else if c.is_alphabetic() || c == '_' {
            let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            self.tokens.push(Token::Name(rest[..length].to_owned()));
            self.at += length;
        } else if c.is_ascii_digit() || (c == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit())) {
            let mut length = 0;
            let mut previous = ' ';
            let is_hex = rest.starts_with("0x") || rest.starts_with("0X");
            for c in rest.chars() {
                let signs_exponent = matches!(c, '+' | '-') && matches!(previous, 'e' | 'E') && !is_hex;
                if !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_') || signs_exponent) {
                    break;
                }
                length += c.len_utf8();
                previous = c;
            }
            self.tokens.push(Token::Number(rest[..length].to_owned()));
            self.at += length;
        } else {
            self.symbol(c)?;
        }
        Ok(false)
    }

    fn symbol(&mut self, c: char) -> Result<(), (usize, String)> {
        let unbalanced = (self.line_at(self.at), format!("'{c}' closes no bracket"));
        match c {
            '(' | '[' | '{' if self.depth.len() >= MAX_DEPTH => {
                return Err((self.line_at(self.at), "the brackets are nested too deeply".into()));
            }
            '(' => self.depth.push((')', self.at)),
            '[' => self.depth.push((']', self.at)),
            '{' => self.depth.push(('}', self.at)),
            ')' | ']' | '}' if self.depth.pop().is_none_or(|(close, _)| close != c) => return Err(unbalanced),
            _ => {}
        }
        let rest = self.rest();
        let operators = [
            "==", "!=", "<=", ">=", ":=", "->", "**", "//", "<<", ">>", "+=", "-=", "*=", "/=", "%=", "|=", "&=", "^=",
            "@=",
        ];
        if let Some(operator) = operators.iter().find(|operator| rest.starts_with(**operator)) {
            self.tokens.push(Token::Operator);
            self.at += operator.len();
        } else {
            self.tokens.push(Token::Symbol(c));
            self.at += c.len_utf8();
        }
        Ok(())
    }

    fn string(&mut self, prefix: &str) -> Result<(), (usize, String)> {
        let start = self.at;
        let is = |letter: char| prefix.to_ascii_lowercase().contains(letter);
        self.at += prefix.len();
        let quote = &self.rest()[..1];
        let triple = quote.repeat(3);
        let close = if self.rest().starts_with(&triple) { triple.as_str() } else { quote };
        self.at += close.len();
        let mut value = String::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(close) {
                self.at += close.len();
                break;
            }
            match rest.chars().next() {
                None => return Err((self.line_at(start), "the string is not closed".into())),
                Some('\n') if close.len() == 1 => return Err((self.line_at(start), "the string is not closed".into())),
                Some('\\') if is('r') => {
                    let next = rest[1..].chars().next().unwrap_or('\\');
                    value.extend(['\\', next]);
                    self.at += 1 + next.len_utf8();
                }
                Some('\\') => self.at += escape(rest, &mut value),
                Some(c) => {
                    value.push(c);
                    self.at += c.len_utf8();
                }
            }
            self.at = self.at.min(self.text.len());
        }
        self.tokens.push(Token::String((!is('f') && !is('b')).then_some(value)));
        Ok(())
    }
}

/// The letters before the quote of a string literal, if the text begins with one.
fn string_prefix(text: &str) -> Option<&str> {
    let length = text.bytes().take(3).position(|b| matches!(b, b'"' | b'\''))?;
    let prefix = &text[..length];
    prefix.chars().all(|c| "rRbBuUfF".contains(c)).then_some(prefix)
}

/// Appends the character of an escape sequence at the beginning of `rest`, and returns the length of the sequence.
fn escape(rest: &str, value: &mut String) -> usize {
    let mut characters = rest.chars();
    characters.next();
    let Some(c) = characters.next() else { return 1 };
    let digits = match c {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => 0,
    };
    if digits > 0 {
        let code = rest.get(2..2 + digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        if let Some(character) = code.and_then(char::from_u32) {
            value.push(character);
            return 2 + digits;
        }
    }
    if c.is_digit(8) {
        let length = rest[1..].chars().take(3).take_while(|c| c.is_digit(8)).count();
        let code = u32::from_str_radix(&rest[1..=length], 8).unwrap_or(0);
        value.extend(char::from_u32(code));
        return 1 + length;
    }
    let named = match c {
        'n' => "\n",
        't' => "\t",
        'r' => "\r",
        'a' => "\x07",
        'b' => "\x08",
        'f' => "\x0c",
        'v' => "\x0b",
        '\\' => "\\",
        '\'' => "'",
        '"' => "\"",
        '\n' => "",
        _ => {
            value.extend(['\\', c]);
            return 1 + c.len_utf8();
        }
    };
    value.push_str(named);
    2
}

struct Reader<'a> {
    tokens: &'a [Token],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn accept(&mut self, token: &Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    fn name(&mut self) -> Option<String> {
        let Some(Token::Name(name)) = self.peek() else { return None };
        let name = name.clone();
        self.at += 1;
        Some(name)
    }

    /// The parameters of statements up to the end of the block. `of_self` takes only assignments to attributes of `self`.
    fn block(&mut self, of_self: bool, depth: usize) -> Vec<(String, Value)> {
        let mut found: Vec<(String, Value)> = Vec::new();
        while let Some(token) = self.peek() {
            match token {
                Token::Dedent => break,
                Token::Indent => self.skip_block(),
                Token::NewLine | Token::Symbol(';') => self.at += 1,
                Token::Name(name) if name == "class" && depth < MAX_DEPTH => {
                    self.at += 1;
                    if let Some(name) = self.name() {
                        let inner = self.body(false, depth + 1);
                        set(&mut found, name, Value::Map(inner));
                    }
                }
                Token::Name(name) if name == "def" && depth < MAX_DEPTH => {
                    self.at += 1;
                    if self.name().as_deref() == Some("__init__") {
                        for (name, value) in self.body(true, depth + 1) {
                            set(&mut found, name, value);
                        }
                    } else {
                        self.skip_statement();
                    }
                }
                _ => {
                    let start = self.at;
                    match self.assignment(of_self) {
                        Some((name, value)) => set(&mut found, name, value),
                        None => {
                            self.at = start;
                            self.skip_statement();
                        }
                    }
                }
            }
        }
        found
    }

    /// The body of a class or function, after its name.
    fn body(&mut self, of_self: bool, depth: usize) -> Vec<(String, Value)> {
        // The colon before the body is the first outside of brackets.
        let mut brackets = 0_usize;
        while let Some(token) = self.peek() {
            match token {
                Token::Symbol('(' | '[' | '{') => brackets += 1,
                Token::Symbol(')' | ']' | '}') => brackets = brackets.saturating_sub(1),
                Token::Symbol(':') if brackets == 0 => break,
                Token::NewLine | Token::Indent | Token::Dedent => return Vec::new(),
                _ => {}
            }
            self.at += 1;
        }
        self.at += 1;
        if !self.accept(&Token::NewLine) {
            // The body is on the same line.
            let start = self.at;
            let end = self.tokens[start.min(self.tokens.len())..].iter().position(|token| *token == Token::NewLine);
            let end = end.map_or(self.tokens.len(), |i| start + i);
            let mut line = Reader { tokens: &self.tokens[..end], at: start };
            let found = line.block(of_self, depth);
            self.at = end;
            return found;
        }
        if !self.accept(&Token::Indent) {
            return Vec::new();
        }
        let found = self.block(of_self, depth);
        self.accept(&Token::Dedent);
        found
    }

    fn skip_statement(&mut self) {
        while let Some(token) = self.peek() {
            match token {
                Token::NewLine | Token::Symbol(';') => {
                    self.at += 1;
                    return;
                }
                Token::Indent | Token::Dedent => return,
                _ => self.at += 1,
            }
        }
    }

    fn skip_block(&mut self) {
        let mut depth = 0_usize;
        while let Some(token) = self.peek() {
            match token {
                Token::Indent => depth += 1,
                Token::Dedent => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
    }

    fn assignment(&mut self, of_self: bool) -> Option<(String, Value)> {
        let mut name = self.name()?;
        let is_attribute = self.accept(&Token::Symbol('.'));
        if is_attribute {
            if name != "self" {
                return None;
            }
            name = self.name()?;
        } else if of_self {
            return None;
        }
        if self.accept(&Token::Symbol(':')) {
            let mut brackets = 0_usize;
            loop {
                match self.peek()? {
                    Token::Symbol('(' | '[' | '{') => brackets += 1,
                    Token::Symbol(')' | ']' | '}') => brackets = brackets.checked_sub(1)?,
                    Token::Symbol('=') if brackets == 0 => break,
                    Token::NewLine => return None,
                    _ => {}
                }
                self.at += 1;
            }
        }
        if !self.accept(&Token::Symbol('=')) {
            return None;
        }
        let value = self.values(0)?;
        matches!(self.peek(), None | Some(Token::NewLine | Token::Symbol(';'))).then_some((name, value))
    }

    /// One value, or a tuple without brackets.
    fn values(&mut self, depth: usize) -> Option<Value> {
        let first = self.value(depth)?;
        if self.peek() != Some(&Token::Symbol(',')) {
            return Some(first);
        }
        let mut items = vec![first];
        while self.accept(&Token::Symbol(',')) {
            match self.peek() {
                None | Some(Token::NewLine | Token::Symbol(')' | ';')) => break,
                _ => items.push(self.value(depth)?),
            }
        }
        Some(Value::List(items))
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        let token = self.peek()?.clone();
        self.at += 1;
        match token {
            Token::Name(name) => match name.as_str() {
                "None" => Some(Value::Null),
                "True" => Some(Value::Bool(true)),
                "False" => Some(Value::Bool(false)),
                _ => None,
            },
            Token::Number(text) => number(&text),
            Token::String(text) => {
                let mut text = text?;
                // Adjacent literals are one string.
                while let Some(Token::String(next)) = self.peek() {
                    text.push_str(next.as_deref()?);
                    self.at += 1;
                }
                Some(Value::String(text))
            }
            Token::Symbol('-') => match self.value(depth + 1)? {
                Value::Number(text) => {
                    Some(Value::Number(text.strip_prefix('-').map_or_else(|| format!("-{text}"), str::to_owned)))
                }
                _ => None,
            },
            Token::Symbol('+') => self.value(depth + 1).filter(|value| matches!(value, Value::Number(_))),
            Token::Symbol('(') => {
                if self.accept(&Token::Symbol(')')) {
                    return Some(Value::List(Vec::new()));
                }
                let value = self.values(depth + 1)?;
                self.accept(&Token::Symbol(')')).then_some(value)
            }
            Token::Symbol('[') => self.items(']', depth).map(Value::List),
            Token::Symbol('{') => self.dictionary_or_set(depth),
            _ => None,
        }
    }

    fn items(&mut self, close: char, depth: usize) -> Option<Vec<Value>> {
        let mut items = Vec::new();
        while !self.accept(&Token::Symbol(close)) {
            items.push(self.value(depth + 1)?);
            if !self.accept(&Token::Symbol(',')) && self.peek() != Some(&Token::Symbol(close)) {
                return None;
            }
        }
        Some(items)
    }

    fn dictionary_or_set(&mut self, depth: usize) -> Option<Value> {
        let mut entries: Vec<(String, Value)> = Vec::new();
        let start = self.at;
        while !self.accept(&Token::Symbol('}')) {
            let key = self.value(depth + 1)?;
            if !self.accept(&Token::Symbol(':')) {
                self.at = start;
                return self.items('}', depth).map(Value::List);
            }
            let value = self.value(depth + 1)?;
            set(&mut entries, text_of(&canonical(key)), value);
            if !self.accept(&Token::Symbol(',')) && self.peek() != Some(&Token::Symbol('}')) {
                return None;
            }
        }
        Some(Value::Map(entries))
    }
}

fn set(entries: &mut Vec<(String, Value)>, name: String, value: Value) {
    match entries.iter_mut().find(|(known, _)| *known == name) {
        Some(entry) => entry.1 = value,
        None => entries.push((name, value)),
    }
}

/// A number of Python; complex ones are not parameters.
fn number(text: &str) -> Option<Value> {
    let lower = text.to_ascii_lowercase().replace('_', "");
    let radix = ["0x", "0o", "0b"].iter().any(|prefix| lower.starts_with(prefix));
    let valid = if radix { lower.len() > 2 } else { lower.parse::<f64>().is_ok() };
    valid.then_some(Value::Number(lower))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    #[test]
    fn assignments_of_literals_are_parameters() {
        let text = r#"
import os  # first
LR = 0.001; EPOCHS: int = 1_0
names = ["a", 'b' "c", r"\d", """x
y""", "\x41\n"]
neg = -1.5e-3
pair = 1, (2, None)
computed = 1 + 2
both = other = 3
opts = {
    "a": [1, 2,],  # comment
    'b': {"c": True}, 3: "x",
}
if True:
    hidden = 1
def f(x: int = 3):
    inner = 2
    return {"a": 1}
class Train(Base):
    """doc"""
    depth = 3
    def __init__(self, x=1):
        self.rate = 0x10
        local = 4
        if x:
            self.no = 1
    def other(self):
        self.nope = 1
class One: x = 1
f"{x}"
last = b"bytes"
"#;
        let expected = "LR: 0.001\nEPOCHS: 10\nnames: [a, bc, '\\d', \"x\\ny\", \"A\\n\"]\nneg: -0.0015\npair: [1, [2, null]]\nopts: {a: [1, 2], b: {c: true}, '3': x}\nTrain: {depth: 3, rate: 16}\nOne: {x: 1}\n";
        assert_eq!(parse(text), Ok(canonical(yaml::parse(expected).unwrap())));
    }

    #[test]
    fn text_that_is_not_python_is_rejected_with_the_line() {
        for (text, line) in
            [("a = 1\nb = [1,\n", 2), ("a = 'x\n", 1), ("if x:\n    a = 1\n  b = 2\n", 3), ("a = 1)\n", 1)]
        {
            assert_eq!(parse(text).map_err(|(line, _)| line), Err(line), "{text:?}");
        }
    }
}
