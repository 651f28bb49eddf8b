//! Interpolation: `${…}` in the texts of a `dvc.yaml`.

use super::keyed::Keyed;
use super::value::{text, type_name};
use crate::yaml::Value;

/// About as many bytes as a value takes besides its text.
pub(super) const NODE_BYTES: usize = 24;
/// Maximum bytes of the options that a dictionary becomes, whose names repeat the keys above them.
const MAX_OPTION_BYTES: usize = 16 << 20;

/// Why a text cannot be interpolated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateError {
    /// The expression has an invalid form.
    Syntax(String),
    /// No variable has this name.
    NotFound(String),
    /// The value cannot be part of a text.
    Type(String),
    /// The templates expand to too much.
    Limit(String),
}

impl std::fmt::Display for TemplateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Syntax(expression) => write!(
                f,
                "'${{{expression}}}' is not an expression; write ${{key}}, ${{key.nested}} or ${{list[0]}}, and \\${{ for the characters \
                 themselves"
            ),
            Self::NotFound(name) => write!(f, "Could not find '{name}'"),
            Self::Type(reason) | Self::Limit(reason) => f.write_str(reason),
        }
    }
}

/// How dictionaries become arguments of a command (section `parsing` of the configuration).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacking {
    /// `parsing.bool = boolean_optional`: false becomes `--no-KEY` instead of nothing.
    pub negated_flags: bool,
    /// `parsing.list = append`: a list repeats its option before each item.
    pub repeated_options: bool,
}

/// A part of a text.
enum Part<'a> {
    Text(&'a str),
    /// What is between `${` and `}`.
    Expression(&'a str),
}

/// The parts of a text. An expression ends at the first `}` on its line; `\${` begins none.
fn parts(template: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let (mut start, mut at) = (0, 0);
    while let Some(found) = template[at..].find("${").map(|i| at + i) {
        let inner = &template[found + 2..];
        let end = inner.find(['}', '\n']).filter(|end| inner[*end..].starts_with('}'));
        match end {
            Some(end) if !template[..found].ends_with('\\') => {
                if start < found {
                    parts.push(Part::Text(&template[start..found]));
                }
                parts.push(Part::Expression(&inner[..end]));
                start = found + 2 + end + 1;
                at = start;
            }
            _ => at = found + 2,
        }
    }
    if start < template.len() {
        parts.push(Part::Text(&template[start..]));
    }
    parts
}

/// Whether a text has an expression.
pub fn is_interpolated(template: &str) -> bool {
    parts(template).iter().any(|part| matches!(part, Part::Expression(_)))
}

/// The keys of the expression that is the whole text; `None` for another text.
pub fn reference(template: &str) -> Option<Vec<&str>> {
    if let [Part::Expression(expression)] = parts(template).as_slice() { keys(expression).ok() } else { None }
}

/// The keys of an expression: `a.b[0]` has `a`, `b` and `0`.
fn keys(expression: &str) -> Result<Vec<&str>, TemplateError> {
    let invalid = || TemplateError::Syntax(expression.to_owned());
    let word = |text: &str| text.find(['.', '[', ']']).unwrap_or(text.len());
    let first = word(expression);
    let mut keys = vec![&expression[..first]];
    let mut rest = &expression[first..];
    while !rest.is_empty() {
        let inner = rest.get(1..).unwrap_or_default();
        let length = word(inner);
        keys.push(&inner[..length]);
        rest = match (rest.as_bytes()[0], inner.as_bytes().get(length)) {
            (b'.', _) => &inner[length..],
            (b'[', Some(b']')) => &inner[length + 1..],
            _ => return Err(invalid()),
        };
    }
    if keys.iter().any(|key| key.is_empty()) { Err(invalid()) } else { Ok(keys.iter().map(|key| key.trim()).collect()) }
}

/// Checks the form of all expressions in a value.
///
/// # Errors
/// The expression that is invalid.
pub fn check(value: &Value) -> Result<(), TemplateError> {
    match value {
        Value::String(template) => parts(template).iter().try_for_each(|part| match part {
            Part::Expression(expression) => keys(expression).map(drop),
            Part::Text(_) => Ok(()),
        }),
        Value::List(items) => items.iter().try_for_each(check),
        Value::Map(entries) => {
            entries.iter().try_for_each(|(key, value)| check(&Value::String(key.clone())).and_then(|()| check(value)))
        }
        _ => Ok(()),
    }
}

/// Where the values of expressions come from.
pub trait Lookup {
    /// The value that the keys lead to; `name` is the expression, for an error.
    ///
    /// # Errors
    /// [`TemplateError::NotFound`]
    fn find(&mut self, keys: &[&str], name: &str) -> Result<Value, TemplateError>;

    /// Takes bytes of what templates may expand to.
    ///
    /// # Errors
    /// [`TemplateError::Limit`]
    fn take(&mut self, bytes: usize) -> Result<(), TemplateError> {
        let _ = bytes;
        Ok(())
    }
}

/// What may be interpolated in a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A command: dictionaries become options.
    Command,
    /// The items of `foreach` or `matrix`: any value.
    Items,
    /// Elsewhere: scalars only.
    Other,
}

/// The value with all expressions in its texts and keys replaced by their values. A text that is one expression becomes its value.
///
/// # Errors
/// [`TemplateError`] of the first expression that cannot be replaced.
pub fn resolve(
    value: &Value,
    lookup: &mut dyn Lookup,
    place: Place,
    unpacking: Unpacking,
) -> Result<Value, TemplateError> {
    lookup.take(NODE_BYTES)?;
    Ok(match value {
        Value::String(template) => resolve_text(template, lookup, place, unpacking)?,
        Value::List(items) => Value::List(
            items.iter().map(|item| resolve(item, lookup, place, unpacking)).collect::<Result<Vec<_>, _>>()?,
        ),
        Value::Map(entries) => {
            let mut resolved = Keyed::default();
            for (key, value) in entries {
                let key = match resolve_text(key, lookup, place, unpacking)? {
                    Value::String(key) => key,
                    other => text(&other),
                };
                resolved.set(key, resolve(value, lookup, place, unpacking)?);
            }
            Value::Map(resolved.into_entries())
        }
        other => other.clone(),
    })
}

/// The value of a text.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_text(
    template: &str,
    lookup: &mut dyn Lookup,
    place: Place,
    unpacking: Unpacking,
) -> Result<Value, TemplateError> {
    lookup.take(template.len())?;
    let parts = parts(template);
    if let [Part::Expression(expression)] = parts.as_slice() {
        let value = lookup.find(&keys(expression)?, expression)?;
        check_type(&value, place)?;
        return Ok(match value {
            Value::Map(_) if place == Place::Command => Value::String(to_text(&value, unpacking)?),
            value => value,
        });
    }
    let mut resolved = String::with_capacity(template.len());
    for part in parts {
        match part {
            Part::Text(text) => resolved.push_str(text),
            Part::Expression(expression) => {
                let value = lookup.find(&keys(expression)?, expression)?;
                check_type(&value, place)?;
                resolved.push_str(&to_text(&value, unpacking)?);
            }
        }
    }
    Ok(Value::String(resolved.replace("\\${", "${")))
}

fn check_type(value: &Value, place: Place) -> Result<(), TemplateError> {
    let allowed = match value {
        Value::Map(_) => place != Place::Other,
        Value::List(_) => place == Place::Items,
        _ => true,
    };
    if allowed {
        return Ok(());
    }
    Err(TemplateError::Type(format!("Cannot interpolate data of type '{}'", type_name(value))))
}

/// The text of a value inside of another text.
///
/// # Errors
/// [`TemplateError::Type`] for a list of lists in a dictionary.
pub fn to_text(value: &Value, unpacking: Unpacking) -> Result<String, TemplateError> {
    Ok(match value {
        Value::Bool(value) => value.to_string(),
        Value::Map(_) => {
            let mut options = Options::default();
            unpack(value, "", unpacking, &mut options)?;
            options.words.join(" ")
        }
        other => text(other),
    })
}

/// The options that a dictionary becomes.
#[derive(Default)]
struct Options {
    words: Vec<String>,
    bytes: usize,
}

impl Options {
    fn add(&mut self, option: String) -> Result<(), TemplateError> {
        self.bytes += option.len();
        if self.bytes > MAX_OPTION_BYTES {
            let maximum = slipway_core::units::bytes(MAX_OPTION_BYTES as u64);
            return Err(TemplateError::Limit(format!("a dictionary becomes options of more than {maximum}")));
        }
        self.words.push(option);
        Ok(())
    }
}

fn unpack(value: &Value, prefix: &str, unpacking: Unpacking, options: &mut Options) -> Result<(), TemplateError> {
    for (key, value) in value.entries() {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Map(_) => unpack(value, &name, unpacking, options)?,
            Value::Bool(true) => options.add(format!("--{name}"))?,
            Value::Bool(false) if unpacking.negated_flags => options.add(format!("--no-{name}"))?,
            Value::Bool(false) => {}
            Value::String(text) => options.add(format!("--{name} {}", quote(text)))?,
            Value::List(items) => {
                let words = items.iter().map(|item| match item {
                    Value::String(text) => Ok(quote(text)),
                    Value::List(_) | Value::Map(_) => {
                        Err(TemplateError::Type(format!("Cannot interpolate nested iterable in '{name}'")))
                    }
                    scalar => Ok(text(scalar)),
                });
                let words: Vec<String> = words.collect::<Result<_, _>>()?;
                if unpacking.repeated_options {
                    words.iter().try_for_each(|word| options.add(format!("--{name} {word}")))?;
                } else if !words.is_empty() {
                    options.add(format!("--{name} {}", words.join(" ")))?;
                }
            }
            scalar => options.add(format!("--{name} {}", text(scalar)))?,
        }
    }
    Ok(())
}

/// A word for a POSIX shell, in the form of Python's `shlex.quote`.
pub fn quote(word: &str) -> String {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(is_safe) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\"'\"'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    struct Root(Value);

    impl Lookup for Root {
        fn find(&mut self, keys: &[&str], name: &str) -> Result<Value, TemplateError> {
            let step = |value: Value, key: &&str| match &value {
                Value::List(items) => key.parse().ok().and_then(|i: usize| items.get(i)).cloned(),
                map => map.get(key).cloned(),
            };
            keys.iter().try_fold(self.0.clone(), step).ok_or_else(|| TemplateError::NotFound(name.to_owned()))
        }
    }

    fn resolved(template: &str, place: Place) -> Result<Value, TemplateError> {
        let values = "a: 1\nb: {c: [x, {d: true}]}\nf: 1e-5\nn:\ns: it's\nopt: {flag: true, off: false, list: [1, a b], sub: {k: v w}, none: }\n";
        let mut root = Root(super::super::value::canonical(yaml::parse(values).unwrap()));
        resolve_text(template, &mut root, place, Unpacking::default())
    }

    #[test]
    fn expressions_are_replaced_by_their_values() {
        for (template, expected) in [
            ("${a}", Value::Number("1".into())),
            ("x ${a}${a}", Value::string("x 11")),
            ("${b.c[0]} ${b.c.1.d}", Value::string("x true")),
            ("${ a }", Value::Number("1".into())),
            ("\\${a} ${f}", Value::string("${a} 1e-05")),
            ("$a ${open", Value::string("$a ${open")),
            ("${a\n}", Value::string("${a\n}")),
            ("${n}", Value::Null),
            ("n=${n}", Value::string("n=None")),
            ("run ${opt}", Value::string("run --flag --list 1 'a b' --sub.k 'v w' --none None")),
        ] {
            assert_eq!(resolved(template, Place::Command), Ok(expected), "{template}");
        }
    }

    #[test]
    fn invalid_expressions_are_rejected() {
        for (template, place) in [
            ("${}", Place::Other),
            ("${a..b}", Place::Other),
            ("${a[0}", Place::Other),
            ("${a]}", Place::Other),
            ("${a[0]b}", Place::Other),
            ("${missing}", Place::Other),
            ("${a.b}", Place::Other),
            ("${b.c[7]}", Place::Other),
            ("${opt}", Place::Other),
            ("${b.c}", Place::Command),
        ] {
            assert!(resolved(template, place).is_err(), "{template}");
        }
    }

    #[test]
    fn dictionaries_are_unpacked_as_configured() {
        let value = yaml::parse("off: false\nlist: [1, 2]\n").unwrap();
        let unpacking = Unpacking { negated_flags: true, repeated_options: true };
        assert_eq!(to_text(&value, unpacking).as_deref(), Ok("--no-off --list 1 --list 2"));
        assert_eq!(quote("it's"), "'it'\"'\"'s'");
    }
}
