//! Label and field selectors, in the syntax of the `labelSelector` and `fieldSelector` parameters.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::name::{key_faults, label_value_faults};

/// Maximum number of requirements of a selector.
const MAX_REQUIREMENTS: usize = 256;

/// A condition on the labels of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    /// The label has one of these values.
    In(String, Vec<String>),
    /// The label is absent or has none of these values.
    NotIn(String, Vec<String>),
    /// The label is present.
    Exists(String),
    /// The label is absent.
    Absent(String),
    /// The label is an integer greater than this one.
    Greater(String, i64),
    /// The label is an integer less than this one.
    Less(String, i64),
}

/// Selects objects by their labels; the default selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

/// A token of a label selector.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    End,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(word) => f.write_str(word),
            Self::Symbol(symbol) => f.write_str(symbol),
            Self::End => Ok(()),
        }
    }
}

/// Symbols, the longer ones first.
const SYMBOLS: &[&str] = &["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            tokens.push(Token::Symbol(symbol));
            rest = &rest[symbol.len()..];
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || "=!(),><".contains(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    tokens.push(Token::End);
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.next).unwrap_or(&Token::End)
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn key(&mut self) -> Result<String, String> {
        match self.take() {
            Token::Word(key) => match key_faults(&key).into_iter().next() {
                None => Ok(key),
                Some(fault) => Err(format!("key: Invalid value: {key:?}: {fault}")),
            },
            other => Err(format!("found '{other}', expected: identifier")),
        }
    }

    /// The values in parentheses; each may be empty.
    fn values(&mut self) -> Result<Vec<String>, String> {
        match self.take() {
            Token::Symbol("(") => {}
            other => return Err(format!("found '{other}' expected: '('")),
        }
        let mut values = Vec::new();
        loop {
            let value = match self.peek() {
                Token::Word(word) => word.clone(),
                _ => String::new(),
            };
            if !value.is_empty() {
                self.next += 1;
            }
            check_value(&value)?;
            values.push(value);
            match self.take() {
                Token::Symbol(",") => {}
                Token::Symbol(")") => return Ok(values),
                other => return Err(format!("found '{other}', expected: ',' or ')'")),
            }
        }
    }

    /// One value, which may be empty.
    fn value(&mut self) -> Result<String, String> {
        let value = match self.peek() {
            Token::Word(word) => word.clone(),
            Token::Symbol(",") | Token::End => return Ok(String::new()),
            other => return Err(format!("found '{other}', expected: identifier")),
        };
        self.next += 1;
        check_value(&value)?;
        Ok(value)
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        if *self.peek() == Token::Symbol("!") {
            self.next += 1;
            return Ok(Requirement::Absent(self.key()?));
        }
        let key = self.key()?;
        let integer = |value: String| {
            value.parse().map_err(|_| {
                format!("values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer")
            })
        };
        match self.peek().clone() {
            Token::End | Token::Symbol(",") => Ok(Requirement::Exists(key)),
            Token::Symbol("=" | "==") => {
                self.next += 1;
                Ok(Requirement::In(key, vec![self.value()?]))
            }
            Token::Symbol("!=") => {
                self.next += 1;
                Ok(Requirement::NotIn(key, vec![self.value()?]))
            }
            Token::Symbol(">") => {
                self.next += 1;
                Ok(Requirement::Greater(key, integer(self.value()?)?))
            }
            Token::Symbol("<") => {
                self.next += 1;
                Ok(Requirement::Less(key, integer(self.value()?)?))
            }
            Token::Word(word) if word == "in" => {
                self.next += 1;
                Ok(Requirement::In(key, self.values()?))
            }
            Token::Word(word) if word == "notin" => {
                self.next += 1;
                Ok(Requirement::NotIn(key, self.values()?))
            }
            other => Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
        }
    }
}

fn check_value(value: &str) -> Result<(), String> {
    match label_value_faults(value).into_iter().next() {
        None => Ok(()),
        Some(fault) => Err(format!("values[0]: Invalid value: {value:?}: {fault}")),
    }
}

impl std::fmt::Display for Requirement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::In(key, values) => write!(f, "{key} in ({})", values.join(",")),
            Self::NotIn(key, values) => write!(f, "{key} notin ({})", values.join(",")),
            Self::Exists(key) => f.write_str(key),
            Self::Absent(key) => write!(f, "!{key}"),
            Self::Greater(key, than) => write!(f, "{key}>{than}"),
            Self::Less(key, than) => write!(f, "{key}<{than}"),
        }
    }
}

/// The selector as text; empty if it selects everything.
impl std::fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let requirements: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&requirements.join(","))
    }
}

impl LabelSelector {
    /// Parses a selector such as `app=web,tier in (front, back),!canary`. Empty text selects everything.
    ///
    /// # Errors
    /// [`Error::BadRequest`] with the position of the error.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let refuse = |detail: String| Error::BadRequest(format!("unable to parse requirement: {detail}"));
        let unexpected =
            |found: &Token, expected: &str| Error::BadRequest(format!("found '{found}', expected: {expected}"));
        let mut parser = Parser { tokens: tokens(text), next: 0 };
        let mut requirements = Vec::new();
        while *parser.peek() != Token::End {
            if !matches!(parser.peek(), Token::Word(_) | Token::Symbol("!")) {
                return Err(unexpected(parser.peek(), "!, identifier, or 'end of string'"));
            }
            requirements.push(parser.requirement().map_err(refuse)?);
            match parser.take() {
                Token::End => break,
                Token::Symbol(",") if !matches!(parser.peek(), Token::Word(_) | Token::Symbol("!")) => {
                    return Err(unexpected(parser.peek(), "identifier after ','"));
                }
                Token::Symbol(",") => {}
                other => return Err(refuse(format!("found '{other}', expected: ',' or 'end of string'"))),
            }
            if requirements.len() > MAX_REQUIREMENTS {
                return Err(refuse(format!("a selector has at most {MAX_REQUIREMENTS} requirements")));
            }
        }
        Ok(Self(requirements))
    }

    /// Selects the objects that have a label, whatever its value.
    pub fn having(label: &str) -> Self {
        Self(vec![Requirement::Exists(label.to_owned())])
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let number = |key: &String| labels.get(key).and_then(|value| value.parse::<i64>().ok());
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Absent(key) => !labels.contains_key(key),
            Requirement::Greater(key, than) => number(key).is_some_and(|value| value > *than),
            Requirement::Less(key, than) => number(key).is_some_and(|value| value < *than),
        })
    }

    /// Whether everything is selected.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Selects objects by the values of fields; the default selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<FieldRequirement>);

/// A condition on a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldRequirement {
    /// The path of the field, such as `metadata.name`.
    pub field: String,
    /// The value that the field has, or does not have.
    pub value: String,
    /// Whether the field has the value.
    pub equal: bool,
}

impl std::fmt::Display for FieldRequirement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let operator = if self.equal { "=" } else { "!=" };
        let value = self.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
        write!(f, "{}{operator}{value}", self.field)
    }
}

/// The selector as text; empty if it selects everything.
impl std::fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let requirements: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&requirements.join(","))
    }
}

impl FieldSelector {
    /// Selects the object with this name.
    pub fn of_name(name: &str) -> Self {
        Self(vec![FieldRequirement { field: "metadata.name".into(), value: name.to_owned(), equal: true }])
    }

    /// Parses a selector such as `metadata.name=a,type!=Normal`. In values, `\` precedes a comma, an equals sign or itself.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a term without an operator or an invalid escape.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut requirements = Vec::new();
        for term in split_unescaped(text).into_iter().filter(|term| !term.is_empty()) {
            let invalid = || Error::BadRequest(format!("invalid selector: '{text}'; can't understand '{term}'"));
            let operator = term.char_indices().find(|(i, c)| *c == '=' || term[*i..].starts_with("!="));
            let (at, _) = operator.ok_or_else(invalid)?;
            let (width, equal) = match &term[at..] {
                rest if rest.starts_with("==") => (2, true),
                rest if rest.starts_with("!=") => (2, false),
                _ => (1, true),
            };
            let value = unescape(&term[at + width..]).ok_or_else(invalid)?;
            requirements.push(FieldRequirement { field: term[..at].to_owned(), value, equal });
            if requirements.len() > MAX_REQUIREMENTS {
                return Err(invalid());
            }
        }
        Ok(Self(requirements))
    }

    /// The requirements, all of which must hold.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.0
    }

    /// Whether everything is selected.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The only name that the selector can match, if there is one.
    pub fn name(&self) -> Option<&str> {
        self.0.iter().find(|r| r.equal && r.field == "metadata.name").map(|r| r.value.as_str())
    }
}

/// The parts between commas that no backslash precedes.
fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        if c == ',' && !escaped {
            parts.push(&text[start..i]);
            start = i + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                escaped @ ('\\' | ',' | '=') => out.push(escaped),
                _ => return None,
            },
            '=' | ',' => return None,
            other => out.push(other),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn label_selectors_match_as_the_api_server_does() {
        let of = labels(&[("app", "web"), ("n", "5"), ("empty", "")]);
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,n", true),
            ("app = web , n", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("missing notin (a)", true),
            ("!missing", true),
            ("!app", false),
            ("n>4", true),
            ("n<5", false),
            ("app>4", false),
            ("empty=", true),
            ("empty in ()", true),
            ("in=x", false),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap().matches(&of), expected, "{selector}");
        }
        for invalid in ["=a", "a=b c", "a in b", "a in (b", "a,", "a b", "!", "a>x", "a=-b", ",", "a in (b,,"] {
            assert!(LabelSelector::parse(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn field_selectors_keep_escaped_separators() {
        let parsed = FieldSelector::parse(r"metadata.name=a\,b,type!=x\=y").unwrap();
        assert_eq!(parsed.name(), Some("a,b"));
        assert_eq!(
            parsed.requirements()[1],
            FieldRequirement { field: "type".into(), value: "x=y".into(), equal: false }
        );
        for invalid in ["a", r"a=\b", "a=b=c"] {
            assert!(FieldSelector::parse(invalid).is_err(), "{invalid}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "[a-c=!(), ><\\\\]{0,24}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }

        #[test]
        fn equality_and_inequality_are_opposites(key in "[a-c]", value in "[a-c]{0,2}", of in proptest::collection::btree_map("[a-c]", "[a-c]{0,2}", 0..4)) {
            let equal = LabelSelector::parse(&format!("{key}={value}")).unwrap();
            let unequal = LabelSelector::parse(&format!("{key}!={value}")).unwrap();
            prop_assert_ne!(equal.matches(&of), unequal.matches(&of));
            let set = LabelSelector::parse(&format!("{key} in ({value})")).unwrap();
            prop_assert_eq!(equal.matches(&of), set.matches(&of));
        }

        #[test]
        fn written_field_selectors_are_recovered(value in "[a,=\\\\]{0,8}", equal: bool) {
            let selector = FieldSelector(vec![FieldRequirement { field: "f".into(), value, equal }]);
            prop_assert_eq!(FieldSelector::parse(&selector.to_string()).unwrap(), selector);
        }

        #[test]
        fn written_label_selectors_are_recovered(text in "(a|!b|c=x|d!=y|e in \\(x,z\\)|f notin \\(\\)|g>1|h<2)(,(a|i=))?") {
            let selector = LabelSelector::parse(&text).unwrap();
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
        }
    }
}
