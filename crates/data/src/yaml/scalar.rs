//! Scalars: which plain text is a string, and how a string is written.

use super::Value;

/// The value of a plain scalar in YAML 1.2's core schema.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if is_number(text) || is_timestamp(text) => Value::Number(text.to_owned()),
        _ => Value::String(text.to_owned()),
    }
}

/// Whether ruamel.yaml's resolver for YAML 1.2 reads the text as an integer or a float.
fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let all =
        |digits: &str, valid: fn(char) -> bool| !digits.is_empty() && digits.chars().all(|c| c == '_' || valid(c));
    let decimal = |c: char| c.is_ascii_digit();
    if let Some((prefix, digits)) = unsigned.split_at_checked(2) {
        match prefix {
            "0b" => return all(digits, |c| matches!(c, '0' | '1')),
            "0o" => return all(digits, |c| matches!(c, '0'..='7')),
            "0x" => return all(digits, |c| c.is_ascii_hexdigit()),
            _ => {}
        }
    }
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    if unsigned.starts_with(|c: char| c.is_ascii_digit()) && all(unsigned, decimal) {
        return true;
    }
    // A float has a point or an exponent; digits may be missing on one side of the point.
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).map_or((unsigned, None), |(m, e)| (m, Some(e)));
    if let Some(exponent) = exponent {
        let digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return false;
        }
    }
    match mantissa.split_once('.') {
        Some(("", fraction)) => all(fraction, decimal) && !fraction.starts_with('_'),
        Some((whole, fraction)) => {
            whole.starts_with(|c: char| c.is_ascii_digit())
                && all(whole, decimal)
                && (fraction.is_empty() || all(fraction, decimal))
        }
        None => exponent.is_some() && mantissa.starts_with(|c: char| c.is_ascii_digit()) && all(mantissa, decimal),
    }
}

/// Whether the text has the form of a date or timestamp.
fn is_timestamp(text: &str) -> bool {
    let bytes = text.as_bytes();
    let digits =
        |range: std::ops::Range<usize>| bytes.get(range).is_some_and(|part| part.iter().all(u8::is_ascii_digit));
    let date =
        bytes.len() >= 10 && digits(0..4) && bytes[4] == b'-' && digits(5..7) && bytes[7] == b'-' && digits(8..10);
    date && (bytes.len() == 10 || matches!(bytes[10], b'T' | b't' | b' ' | b'\t'))
}

/// How a string is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Single,
    Double,
}

/// Whether double quotes and an escape are needed for the character.
fn is_special(c: char) -> bool {
    !matches!(c, '\n' | '\u{20}'..='\u{7e}' | '\u{85}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..='\u{10ffff}')
        || c == '\u{feff}'
}

/// A line break in ruamel.yaml's sense.
pub(super) fn is_break(c: char) -> bool {
    matches!(c, '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// The style that ruamel.yaml chooses for a string. Strings with line breaks other than LF get double quotes here, because ruamel.yaml's
/// single-quoted form of them is not read back unchanged.
pub(super) fn style(text: &str) -> Style {
    let is_blank = |c: char| matches!(c, '\0' | ' ' | '\t' | '\r') || is_break(c);
    if text.chars().any(|c| is_special(c) || is_break(c)) {
        return Style::Double;
    }
    let mut plain = !text.is_empty()
        && !text.starts_with("---")
        && !text.starts_with("...")
        && !text.starts_with(' ')
        && !text.ends_with(' ')
        && !text.starts_with(['#', ',', '[', ']', '{', '}', '&', '*', '!', '|', '>', '\'', '"', '%', '@', '`'])
        && !matches!(text, "=" | "<<")
        && matches!(resolve(text), Value::String(_));
    let mut previous = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        let followed = rest.clone().next().is_none_or(is_blank);
        let indicates = match c {
            ':' => followed,
            '-' | '?' => previous.is_none() && followed,
            '#' => previous.is_some_and(is_blank),
            _ => false,
        };
        plain &= !indicates;
        previous = Some(c);
    }
    match plain {
        true => Style::Plain,
        false if text.contains('\'') => Style::Double,
        false => Style::Single,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn styles_are_those_of_ruamel() {
        let plain = [
            "a", "a b", "a:b", "x#y", "yes", "Yes", "on", "off", "no", "-a", "?a", ":a", "a[b", "a{b", "a,b", "é",
            "日本", "\u{a0}x", "😀", "a\\b", "a'b", "a\"b", "1:30", "12:30:45", "1.2.3", "inf", "nan", "1,000", "0x",
            "1e", "--", "a  b", "tRUE", "a!b", "a`b", "y", "N",
        ];
        for text in plain {
            assert_eq!(style(text), Style::Plain, "{text}");
        }
        let single = [
            "a: b",
            " a",
            "a ",
            "#x",
            "x #y",
            "\"q\"",
            "true",
            "True",
            "null",
            "~",
            "12",
            "1.5",
            "1e3",
            "0x1f",
            "0o17",
            "017",
            "1_000",
            "2020-01-01",
            "-",
            "- a",
            "?",
            "? a",
            ":",
            "a:",
            "[a]",
            "{a}",
            "*a",
            "&a",
            "!a",
            "|",
            "|x",
            ">",
            "%a",
            "@a",
            "`a",
            "=",
            "<<",
            "",
            "...",
            "---",
            "--- a",
            "...a",
            ".inf",
            ".nan",
            "+1",
            "1.",
            "1.e5",
            ".5",
            "1e+3",
            "-1",
            "-.5",
            "0b1",
            "08",
            "-0x1",
            "+0o7",
            "!",
        ];
        for text in single {
            assert_eq!(style(text), Style::Single, "{text}");
        }
        for text in ["'q'", "a\nb", "a\tb", "\u{7f}", "\u{feff}x", "a\r b"] {
            assert_eq!(style(text), Style::Double, "{text}");
        }
        // Digests that are numbers in YAML.
        for text in ["00000000000000000000000000000001", "1234567890123456789012345678e012"] {
            assert_eq!(style(text), Style::Single, "{text}");
        }
    }
}
