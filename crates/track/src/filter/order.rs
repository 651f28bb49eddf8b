//! Parser for `order_by` clauses: a key, optionally followed by `ASC` or `DESC`.

use crate::Error;

/// A parsed clause: the key with its entity, without quotes, and the direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) identifier: String,
    pub(crate) ascending: bool,
}

/// Parses one clause.
///
/// # Errors
/// `INVALID_PARAMETER_VALUE` unless it is a key with an optional direction.
pub(crate) fn parse(clause: &str) -> Result<Order, Error> {
    let unparsable = || Error::invalid(format!("Invalid order_by clause '{clause}'. Could not be parsed."));
    let parts = split(clause).ok_or_else(unparsable)?;
    match parts.as_slice() {
        [identifier] => Ok(Order { identifier: identifier.clone(), ascending: true }),
        [identifier, direction] => {
            let ascending = match direction.to_ascii_lowercase().as_str() {
                "asc" => true,
                "desc" => false,
                _ => return Err(Error::invalid(format!("Invalid ordering key in order_by clause '{clause}'."))),
            };
            Ok(Order { identifier: identifier.clone(), ascending })
        }
        _ => Err(unparsable()),
    }
}

/// Splits at white space outside of quotes and removes the quotes; `None` for unbalanced quotes or punctuation.
fn split(clause: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut quote = None;
    for c in clause.trim().chars() {
        match quote {
            Some(q) if c == q => quote = None,
            Some(_) => part.push(c),
            None if matches!(c, '"' | '\'' | '`') => quote = Some(c),
            None if c.is_whitespace() => {
                if !part.is_empty() {
                    parts.push(std::mem::take(&mut part));
                }
            }
            None if matches!(c, ',' | ';' | '(' | ')') => return None,
            None => part.push(c),
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    (quote.is_none()).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clauses_are_parsed() {
        assert_eq!(parse("metrics.`a b` DESC").unwrap(), Order { identifier: "metrics.a b".into(), ascending: false });
        assert_eq!(parse("start_time").unwrap(), Order { identifier: "start_time".into(), ascending: true });
        assert!(parse("metrics.a sideways").unwrap_err().message.starts_with("Invalid ordering key"));
        assert!(parse("a b c").is_err() && parse("").is_err() && parse("metrics.`a").is_err());
    }
}
