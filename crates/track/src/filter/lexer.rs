//! The lexer for filters: words, quoted strings, numbers and operators.

use crate::Error;

/// The kind of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `metrics.acc`, `AND`, ``tags.`x y` ``, `params."lr"`.
    Word,
    SingleQuoted,
    DoubleQuoted,
    Number,
    Operator,
    Open,
    Close,
    Comma,
    Semicolon,
    Other,
}

/// A token of a filter.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// The text as written, with quotes.
    pub(super) text: String,
}

impl Token {
    /// Whether this is the keyword `word`, ignoring case.
    pub(super) fn is_word(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(word)
    }

    /// Whether a word contains a dash or slash outside of quotes, which SQL parses as an arithmetic operation on two names.
    pub(super) fn is_operation(&self) -> bool {
        let mut quote = None;
        self.kind == Kind::Word
            && self.text.chars().any(|c| match quote {
                Some(q) => {
                    if c == q {
                        quote = None;
                    }
                    false
                }
                None if matches!(c, '`' | '"' | '\'') => {
                    quote = Some(c);
                    false
                }
                None => matches!(c, '-' | '/'),
            })
    }
}

/// Splits a filter into tokens.
///
/// # Errors
/// `INVALID_PARAMETER_VALUE` for a quote that is not closed.
pub(super) fn scan(text: &str) -> Result<Vec<Token>, Error> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (kind, length) = match first {
            '\'' => (Kind::SingleQuoted, quoted(rest, text)?),
            '"' => (Kind::DoubleQuoted, quoted(rest, text)?),
            '(' => (Kind::Open, 1),
            ')' => (Kind::Close, 1),
            ',' => (Kind::Comma, 1),
            ';' => (Kind::Semicolon, 1),
            '<' | '>' | '=' | '!' | '~' => (Kind::Operator, span(rest, |c| matches!(c, '<' | '>' | '=' | '!' | '~'))),
            '-' | '+' | '.' | '0'..='9' if number(rest) > 0 => (Kind::Number, number(rest)),
            c if c == '`' || c == '_' || c.is_alphanumeric() => (Kind::Word, word(rest, text)?),
            c => (Kind::Other, c.len_utf8()),
        };
        let (token, tail) = rest.split_at(length);
        tokens.push(Token { kind, text: token.to_owned() });
        rest = tail.trim_start();
    }
    Ok(tokens)
}

/// Number of bytes at the start of `text` whose characters satisfy `matches`.
fn span(text: &str, matches: impl Fn(char) -> bool) -> usize {
    text.find(|c| !matches(c)).unwrap_or(text.len())
}

/// Length in bytes of the quoted string at the start of `rest`, with its quotes.
fn quoted(rest: &str, whole: &str) -> Result<usize, Error> {
    let quote = rest.chars().next().unwrap_or('\'');
    match rest[1..].find(quote) {
        Some(end) => Ok(end + 2),
        None => Err(Error::invalid(format!("Invalid filter '{whole}'. Could not be parsed."))),
    }
}

/// Length in bytes of the number at the start of `text`, 0 if there is none.
fn number(text: &str) -> usize {
    let digits = |t: &str| span(t, |c| c.is_ascii_digit());
    let sign = usize::from(text.starts_with(['-', '+']));
    let whole = digits(&text[sign..]);
    let mut at = sign + whole;
    let mut fraction = 0;
    if text[at..].starts_with('.') {
        fraction = digits(&text[at + 1..]);
        if whole + fraction > 0 {
            at += 1 + fraction;
        }
    }
    if whole + fraction == 0 {
        return 0;
    }
    if text[at..].starts_with(['e', 'E']) {
        let signed = usize::from(text[at + 1..].starts_with(['-', '+']));
        let exponent = digits(&text[at + 1 + signed..]);
        if exponent > 0 {
            at += 1 + signed + exponent;
        }
    }
    // `1abc` is a word, not a number.
    if text[at..].starts_with(|c: char| c == '_' || c.is_alphanumeric()) { 0 } else { at }
}

/// Length in bytes of the word at the start of `text`, which may contain quoted parts after a dot.
fn word(text: &str, whole: &str) -> Result<usize, Error> {
    let mut at = 0;
    loop {
        let rest = &text[at..];
        match rest.chars().next() {
            Some('`') => at += quoted(rest, whole)?,
            Some('"' | '\'') if text[..at].ends_with('.') => at += quoted(rest, whole)?,
            Some(c) if c == '_' || c == '.' || c == '/' || c.is_alphanumeric() => at += c.len_utf8(),
            // A dash is part of the word if another word character follows.
            Some('-') if rest[1..].starts_with(|c: char| c == '_' || c.is_alphanumeric()) => at += 1,
            _ => return Ok(at),
        }
    }
}
