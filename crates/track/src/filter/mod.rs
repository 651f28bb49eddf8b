//! The grammar of `filter` and `order_by`: comparisons joined by `AND`.
//!
//! `metrics.acc > 0.9 AND params."lr" = '0.1' AND tags.`my tag` LIKE 'x%' AND attributes.run_id IN ('a','b')`
//! (MLflow documentation, *Search Runs*; `mlflow/utils/search_utils.py`). Parsing is independent of the entity: [`parse`] returns
//! [`Comparison`]s, and each kind of search ([`runs`], [`entities`]) validates them and compiles them to SQL.

pub(crate) mod entities;
mod lexer;
pub(crate) mod order;
pub(crate) mod page_token;
pub(crate) mod runs;

use crate::Error;
use lexer::{Kind, Token};

/// The value on the right side of an operator.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    /// `'text'` or `"text"`, without the quotes.
    Text(String),
    /// `1`, `-2.5e3`, as written.
    Number(String),
    /// `('a', 'b')`.
    List(Vec<Operand>),
    /// A word without quotes, as written.
    Bare(String),
}

impl Operand {
    /// The value as in the filter, for error messages.
    fn spelling(&self) -> String {
        match self {
            Self::Text(text) => format!("'{text}'"),
            Self::Number(text) | Self::Bare(text) => text.clone(),
            Self::List(items) => format!("({})", items.iter().map(Self::spelling).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// A comparison `identifier operator operand`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Comparison {
    /// The left side as written, such as `metrics."m 1"`.
    pub(crate) identifier: String,
    /// The operator in upper case: `=`, `LIKE`, `NOT IN`, `IS NULL` …
    pub(crate) operator: String,
    /// `None` for `IS NULL` and `IS NOT NULL`.
    pub(crate) operand: Option<Operand>,
}

impl Comparison {
    /// Splits the left side into entity and key, such as `("metrics", "m 1")`. Without an entity it is an attribute.
    pub(crate) fn split(&self) -> (Option<&str>, String) {
        split_identifier(&self.identifier)
    }
}

/// Splits `entity.key`, removing the quotes or back-ticks around the key.
pub(crate) fn split_identifier(identifier: &str) -> (Option<&str>, String) {
    match identifier.split_once('.') {
        Some((entity, key)) if !identifier.starts_with(['`', '"']) => {
            (Some(entity.trim_matches('`')), unquote(key).to_owned())
        }
        _ => (None, unquote(identifier).to_owned()),
    }
}

fn unquote(text: &str) -> &str {
    for quote in ['"', '\'', '`'] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote)) {
            return inner;
        }
    }
    text
}

/// Maximum comparisons in a filter: each may need a join, and SQLite joins at most 64 tables (<https://www.sqlite.org/limits.html>).
const MAX_COMPARISONS: usize = 60;
/// Maximum values in a filter: SQLite allows 32,766 parameters per statement.
const MAX_VALUES: usize = 10_000;

/// Parses a filter; an empty one has no comparisons.
///
/// With `quote_invalid`, the error message quotes invalid clauses, as MLflow does in the searches for runs and logged models, but not in
/// its other searches.
///
/// # Errors
/// `INVALID_PARAMETER_VALUE` that names the invalid clauses.
pub(crate) fn parse(filter: &str, quote_invalid: bool) -> Result<Vec<Comparison>, Error> {
    let tokens = lexer::scan(filter)?;
    let mut found = Vec::new();
    let mut invalid = Vec::new();
    let mut rest = tokens.as_slice();
    while let Some((first, tail)) = rest.split_first() {
        if let Some((comparison, left)) = comparison(rest)? {
            found.push(comparison);
            rest = left;
            continue;
        }
        if first.kind == Kind::Semicolon && !tail.is_empty() {
            return Err(Error::invalid(format!(
                "Search filter contained multiple expression '{filter}'. Provide AND-ed expression list."
            )));
        }
        if !first.is_word("AND") {
            invalid.push(if quote_invalid { format!("'{}'", first.text) } else { first.text.clone() });
        }
        rest = tail;
    }
    if !invalid.is_empty() {
        return Err(Error::invalid(format!("Invalid clause(s) in filter string: {}", invalid.join(", "))));
    }
    let values = found.iter().map(|c| if let Some(Operand::List(values)) = &c.operand { values.len() } else { 1 });
    if found.len() > MAX_COMPARISONS || values.sum::<usize>() > MAX_VALUES {
        return Err(Error::invalid(format!(
            "The filter is too large: the maximum is {MAX_COMPARISONS} comparisons and {MAX_VALUES} values. Send several requests instead."
        )));
    }
    Ok(found)
}

type Rest<'a> = &'a [Token];

/// Parses one comparison at the start of `tokens`; `None` if there is none.
fn comparison(tokens: Rest<'_>) -> Result<Option<(Comparison, Rest<'_>)>, Error> {
    let Some((left, tail)) = tokens.split_first() else { return Ok(None) };
    let Some((operator, tail)) = operator(tail) else { return Ok(None) };
    let is_identifier = matches!(left.kind, Kind::Word | Kind::DoubleQuoted) && !left.is_word("AND");
    let is_operation = left.is_operation();
    let invalid_left =
        || Error::invalid(format!("Invalid comparison clause. Expected 'Identifier' found '{}'", left.text));
    if operator.starts_with("IS ") {
        return if is_identifier && !is_operation {
            Ok(Some((Comparison { identifier: left.text.clone(), operator, operand: None }, tail)))
        } else {
            Err(invalid_left())
        };
    }
    let Some((operand, tail)) = operand(tail)? else { return Ok(None) };
    if !is_identifier {
        return if matches!(left.kind, Kind::Number | Kind::SingleQuoted) { Err(invalid_left()) } else { Ok(None) };
    }
    if is_operation {
        return Err(invalid_left());
    }
    Ok(Some((Comparison { identifier: left.text.clone(), operator, operand: Some(operand) }, tail)))
}

fn operator(tokens: Rest<'_>) -> Option<(String, Rest<'_>)> {
    let word = |i: usize, w: &str| tokens.get(i).is_some_and(|t| t.is_word(w));
    let first = tokens.first()?;
    if first.kind == Kind::Operator {
        return Some((first.text.clone(), &tokens[1..]));
    }
    let (operator, used) = if word(0, "LIKE") {
        ("LIKE", 1)
    } else if word(0, "ILIKE") {
        ("ILIKE", 1)
    } else if word(0, "RLIKE") {
        ("RLIKE", 1)
    } else if word(0, "IN") {
        ("IN", 1)
    } else if word(0, "NOT") && word(1, "IN") {
        ("NOT IN", 2)
    } else if word(0, "NOT") && word(1, "LIKE") {
        ("NOT LIKE", 2)
    } else if word(0, "IS") && word(1, "NULL") {
        ("IS NULL", 2)
    } else if word(0, "IS") && word(1, "NOT") && word(2, "NULL") {
        ("IS NOT NULL", 3)
    } else {
        return None;
    };
    Some((operator.to_owned(), &tokens[used..]))
}

fn operand(tokens: Rest<'_>) -> Result<Option<(Operand, Rest<'_>)>, Error> {
    let Some((first, tail)) = tokens.split_first() else { return Ok(None) };
    let single = |value| Ok(Some((value, tail)));
    match first.kind {
        Kind::SingleQuoted | Kind::DoubleQuoted => single(Operand::Text(unquote(&first.text).to_owned())),
        Kind::Number => single(Operand::Number(first.text.clone())),
        Kind::Word if first.is_word("AND") => Ok(None),
        Kind::Word => single(Operand::Bare(first.text.clone())),
        Kind::Open => list(tail).map(Some),
        _ => Ok(None),
    }
}

fn list(tokens: Rest<'_>) -> Result<(Operand, Rest<'_>), Error> {
    const EXPECTED: &str = "While parsing a list in the query, expected a non-empty list of string values, but got";
    let ill_formed = || Error::invalid(format!("{EXPECTED} ill-formed list."));
    let mut items = Vec::new();
    let mut rest = tokens;
    loop {
        let (token, tail) = rest.split_first().ok_or_else(ill_formed)?;
        rest = tail;
        match token.kind {
            Kind::Close if items.is_empty() => return Err(Error::invalid(format!("{EXPECTED} empty list"))),
            Kind::Close => return Ok((Operand::List(items), rest)),
            Kind::Comma if !items.is_empty() => {}
            Kind::SingleQuoted | Kind::DoubleQuoted => items.push(Operand::Text(unquote(&token.text).to_owned())),
            Kind::Number => items.push(Operand::Number(token.text.clone())),
            _ => return Err(ill_formed()),
        }
    }
}

/// The strings of a list operand.
pub(crate) fn texts(operand: &Operand) -> Result<Vec<String>, Error> {
    let Operand::List(items) = operand else { return Ok(Vec::new()) };
    items
        .iter()
        .map(|item| match item {
            Operand::Text(text) => Ok(text.clone()),
            _ => Err(Error::invalid(format!(
                "While parsing a list in the query, expected string value, punctuation, or whitespace, but got \
                 different type in list: {}",
                operand.spelling()
            ))),
        })
        .collect()
}

/// The string of an operand. For any other operand the error's message is its spelling, or says that quotes are missing.
pub(crate) fn text(operand: &Operand) -> Result<String, Error> {
    match operand {
        Operand::Text(text) => Ok(text.clone()),
        Operand::Bare(word) => Err(Error::invalid(format!(
            "Parameter value is either not quoted or unidentified quote types used for string value {word}. Use \
             either single or double quotes."
        ))),
        other => Err(Error::invalid(other.spelling())),
    }
}

/// SQL that compares `column` with one parameter, or with `count` parameters of a list.
pub(crate) fn sql_operator(column: &str, operator: &str, count: usize) -> String {
    match operator {
        // MLflow's patterns have no escape character. PostgreSQL's default is a backslash, so name one that never occurs.
        "LIKE" => format!("CAST({column} AS TEXT) LIKE ? ESCAPE '\u{1}'"),
        "ILIKE" => format!("lower(CAST({column} AS TEXT)) LIKE lower(?) ESCAPE '\u{1}'"),
        "IN" | "NOT IN" => format!("{column} {operator} ({})", vec!["?"; count].join(",")),
        _ => format!("{column} {operator} ?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(filter: &str) -> Comparison {
        parse(filter, true).unwrap().remove(0)
    }

    #[test]
    fn comparisons_are_parsed() {
        let all =
            parse("metrics.acc > -0.5 AND params.\"a b\" = 'x' and tags.`mlflow.user` ilike \"y%\"", true).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].operand, Some(Operand::Number("-0.5".into())));
        assert_eq!(all[1].split(), (Some("params"), "a b".into()));
        assert_eq!(all[2].split(), (Some("tags"), "mlflow.user".into()));
        assert_eq!(all[2].operator, "ILIKE");
        assert_eq!(one("tags.x IS NOT NULL").operator, "IS NOT NULL");
        assert_eq!(texts(one("run_id NOT IN ('a', \"b\")").operand.as_ref().unwrap()).unwrap(), ["a", "b"]);
        assert!(parse("  ", true).unwrap().is_empty());
    }

    #[test]
    fn filters_above_the_limits_are_rejected() {
        let comparisons = |n: usize| vec!["params.a = 'b'"; n].join(" AND ");
        assert_eq!(parse(&comparisons(MAX_COMPARISONS), true).unwrap().len(), MAX_COMPARISONS);
        assert!(parse(&comparisons(MAX_COMPARISONS + 1), true).is_err());
        let list = |n: usize| format!("run_id IN ({})", vec!["'a'"; n].join(","));
        assert!(parse(&list(MAX_VALUES), true).is_ok() && parse(&list(MAX_VALUES + 1), true).is_err());
    }

    #[test]
    fn invalid_clauses_are_named() {
        let message = |f: &str| parse(f, true).unwrap_err().message;
        assert_eq!(message("metrics.a > 1 OR metrics.b > 1"), "Invalid clause(s) in filter string: 'OR'");
        assert_eq!(message("metrics.a >"), "Invalid clause(s) in filter string: 'metrics.a', '>'");
        assert_eq!(message("5 > metrics.a"), "Invalid comparison clause. Expected 'Identifier' found '5'");
        assert!(message("run_id IN ()").ends_with("but got empty list"));
        let identifier = |found| format!("Invalid comparison clause. Expected 'Identifier' found '{found}'");
        assert_eq!(message("metrics.a.b-c > 0.5"), identifier("metrics.a.b-c"));
        assert_eq!(message("metrics.x/y > 0"), identifier("metrics.x/y"));
        assert_eq!(message("metrics.x:y > 0"), "Invalid clause(s) in filter string: 'metrics.x', ':'");
        assert_eq!(message("metrics.a > 1;"), "Invalid clause(s) in filter string: ';'");
        for quoted in ["metrics.`a.b-c` > 0.5", "metrics.\"x/y\" > 0", "tags.`a:b` = 'c'"] {
            assert_eq!(parse(quoted, true).unwrap().len(), 1, "{quoted}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(filter in "[ a-z0-9_.'\"`<>=!(),;%-]{0,60}|\\PC{0,40}") {
            let _ = parse(&filter, true);
        }
    }
}
