//! Values of parameters on the command line, in the grammar of Hydra: `lr=0.1`, `model.yaml:layers.0=32`, `+new=1`, `~old`, and several
//! values, of which each makes an experiment: `lr=0.1,0.2`, `lr=choice(0.1, 0.2)`, `n=range(1, 4)`.

use std::path::{Path, PathBuf};

use super::hydra::Hydra;
use crate::error::DataError;
use crate::pipeline::assign;
use crate::pipeline::params::parse;
use crate::pipeline::{DEFAULT_PARAMS_FILE, value::canonical};
use crate::reports::python;
use crate::yaml::{self, Value};

/// Maximum number of values of one parameter, and of experiments of one command.
const MAX_VALUES: usize = 10_000;
/// Maximum nesting of a value.
const MAX_DEPTH: usize = 32;

/// A change of one parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// The parameter file, relative to the current folder.
    pub file: String,
    /// The keys that lead to the parameter.
    pub keys: Vec<String>,
    /// The new value; `None` removes the parameter.
    pub value: Option<Value>,
    /// Whether it may be a new parameter.
    pub is_new: bool,
    /// The argument without the file, with the one value that it has here.
    pub text: String,
}

/// The overrides by file, in the form of Python's dictionaries.
pub fn shown(overrides: &[Override]) -> String {
    let mut files: Vec<(String, Value)> = Vec::new();
    for change in overrides {
        let text = Value::string(&change.text);
        match files.iter_mut().find(|(file, _)| *file == change.file) {
            Some((_, Value::List(texts))) => texts.push(text),
            _ => files.push((change.file.clone(), Value::List(vec![text]))),
        }
    }
    python::text(&Value::Map(files), python::Rounding::None)
}

/// Reads the arguments, and returns the overrides of each experiment: one for each combination of values.
///
/// # Errors
/// [`DataError::Invalid`] for an argument that is not understood, or if there are too many combinations.
pub fn combinations(arguments: &[String]) -> Result<Vec<Vec<Override>>, DataError> {
    let invalid =
        |argument: &str, reason: &str| DataError::Invalid(format!("'{argument}' does not set a parameter: {reason}"));
    let mut all = Vec::new();
    for argument in arguments {
        all.push((argument, parse_one(argument).map_err(|reason| invalid(argument, &reason))?));
    }
    // As in DVC, the arguments of a file belong together, which decides about the order of the experiments.
    let files: Vec<String> = all.iter().map(|(_, alternatives)| alternatives[0].file.clone()).collect();
    let first = |alternatives: &[Override]| files.iter().position(|file| *file == alternatives[0].file);
    all.sort_by_key(|(_, alternatives)| first(alternatives));
    let mut combinations: Vec<Vec<Override>> = vec![Vec::new()];
    for (argument, alternatives) in all {
        if combinations.len().saturating_mul(alternatives.len()) > MAX_VALUES {
            return Err(invalid(argument, "there are too many combinations"));
        }
        combinations = combinations
            .iter()
            .flat_map(|known| alternatives.iter().map(move |one| known.iter().cloned().chain([one.clone()]).collect()))
            .collect();
    }
    Ok(combinations)
}

/// The alternatives of one argument.
fn parse_one(argument: &str) -> Result<Vec<Override>, String> {
    let (name, value) = argument.split_once('=').map_or((argument, None), |(name, value)| (name, Some(value)));
    let (file, key) = name.split_once(':').unwrap_or((DEFAULT_PARAMS_FILE, name));
    let (prefix, key) = match key.strip_prefix("++").or_else(|| key.strip_prefix('+')) {
        Some(key) => ('+', key),
        None => key.strip_prefix('~').map_or((' ', key), |key| ('~', key)),
    };
    // `a[0].b` is another form of `a.0.b`.
    let path = key.replace('[', ".").replace(']', "");
    let keys: Vec<String> = path.split('.').map(str::to_owned).collect();
    if keys.iter().any(String::is_empty) || file.is_empty() {
        return Err("the name of the parameter is missing".into());
    }
    let written = name.split_once(':').map_or(name, |(_, name)| name);
    let one = |value, text| Override { file: file.to_owned(), keys: keys.clone(), value, is_new: prefix == '+', text };
    if prefix == '~' {
        return Ok(vec![one(None, written.to_owned())]);
    }
    let text = value.ok_or("the value is missing")?;
    let alternatives = alternatives(text)?;
    if alternatives.is_empty() {
        return Err("it has no values".into());
    }
    let one = |(value, text)| one(Some(value), format!("{written}={text}"));
    Ok(alternatives.into_iter().map(one).collect())
}

/// The values of an argument, each with its text.
fn alternatives(text: &str) -> Result<Vec<(Value, String)>, String> {
    let text = text.trim();
    let inside = |name: &str| text.strip_prefix(name)?.trim_start().strip_prefix('(')?.strip_suffix(')');
    if let Some(list) = inside("range") {
        return range(list);
    }
    if ["glob(", "interval("].iter().any(|name| text.starts_with(name)) {
        return Err("patterns and intervals are not supported".into());
    }
    let items = split(inside("choice").unwrap_or(text), ',').into_iter();
    items.map(|item| Ok((parse_value(item, 0)?, item.trim().to_owned()))).collect()
}

/// `range(stop)`, `range(start, stop)` or `range(start, stop, step)`, without the end.
fn range(list: &str) -> Result<Vec<(Value, String)>, String> {
    let mut numbers = Vec::new();
    let mut is_whole = true;
    for (i, item) in split(list, ',').into_iter().enumerate() {
        let item = item.split_once('=').map_or(item, |(_, value)| value).trim();
        let number: f64 = item.parse().map_err(|_| format!("'{item}' in the range is not a number"))?;
        is_whole &= item.parse::<i64>().is_ok();
        if i > 2 || !number.is_finite() {
            return Err("a range has a start, an end and a step".into());
        }
        numbers.push(number);
    }
    let (start, stop, step) = match numbers.as_slice() {
        [stop] => (0.0, *stop, 1.0),
        [start, stop] => (*start, *stop, 1.0),
        [start, stop, step] => (*start, *stop, *step),
        _ => return Err("a range has an end".into()),
    };
    if step == 0.0 || ((stop - start) / step) > MAX_VALUES as f64 {
        return Err("the range has too many values".into());
    }
    let mut values = Vec::new();
    for i in 0..MAX_VALUES {
        #[allow(clippy::cast_precision_loss)] // The number of values is small.
        let value = start + step * i as f64;
        if (step > 0.0 && value >= stop) || (step < 0.0 && value <= stop) {
            break;
        }
        let text = if is_whole { format!("{value:.0}") } else { format!("{value:?}") };
        values.push((canonical(Value::Number(text.clone())), text));
    }
    Ok(values)
}

/// Splits at separators outside of quotes and brackets.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut depth, mut quote) = (Vec::new(), 0, 0_usize, None);
    for (i, c) in text.char_indices() {
        match (c, quote) {
            (c, Some(mark)) if c == mark && !text[..i].ends_with('\\') => quote = None,
            (_, Some(_)) => {}
            ('\'' | '"', None) => quote = Some(c),
            ('[' | '{' | '(', None) => depth += 1,
            (']' | '}' | ')', None) => depth = depth.saturating_sub(1),
            (c, None) if c == separator && depth == 0 => {
                parts.push(&text[start..i]);
                start = i + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_value(text: &str, depth: usize) -> Result<Value, String> {
    let text = text.trim();
    if depth > MAX_DEPTH {
        return Err("the value is nested too deeply".into());
    }
    for mark in ['\'', '"'] {
        if let Some(inner) = text.strip_prefix(mark) {
            let inner = inner.strip_suffix(mark).ok_or("a quote has no end")?;
            return Ok(Value::String(inner.replace(&format!("\\{mark}"), &mark.to_string())));
        }
    }
    if let Some(inner) = text.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or("'[' has no end")?;
        let items = if inner.trim().is_empty() { Vec::new() } else { split(inner, ',') };
        return items.into_iter().map(|item| parse_value(item, depth + 1)).collect::<Result<_, _>>().map(Value::List);
    }
    if let Some(inner) = text.strip_prefix('{') {
        let inner = inner.strip_suffix('}').ok_or("'{' has no end")?;
        let items = if inner.trim().is_empty() { Vec::new() } else { split(inner, ',') };
        let entry = |item: &str| {
            let (key, value) = item.split_once(':').ok_or("an entry in braces has the form 'key: value'")?;
            let key = parse_value(key, depth + 1)?;
            Ok((python::text(&key, python::Rounding::None), parse_value(value, depth + 1)?))
        };
        return items.into_iter().map(entry).collect::<Result<_, String>>().map(Value::Map);
    }
    let is_number = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
    Ok(match text.to_ascii_lowercase().as_str() {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" | "" => Value::Null,
        "inf" | "+inf" => Value::Number(".inf".into()),
        "-inf" => Value::Number("-.inf".into()),
        "nan" => Value::Number(".nan".into()),
        _ if is_number && text.parse::<f64>().is_ok() => canonical(Value::Number(text.to_owned())),
        _ => Value::string(text),
    })
}

/// Writes the overrides into their parameter files. Comments and order of YAML and TOML files are kept.
///
/// # Errors
/// If a file does not exist or a parameter is neither known nor new; then no file is changed.
pub(crate) fn apply(folder: &Path, overrides: &[Override], hydra: Option<&Hydra>) -> Result<Vec<PathBuf>, DataError> {
    let texts = changed_texts(folder, overrides, hydra)?;
    for (path, text) in &texts {
        slipway_core::files::replace(path, text.as_bytes()).map_err(DataError::io(path))?;
    }
    Ok(texts.into_iter().map(|(path, _)| path).collect())
}

/// The parameter files that the overrides change, with their new texts. With Hydra, the parameters of the default file are composed, also without
/// overrides.
///
/// # Errors
/// As [`apply`].
pub(crate) fn changed_texts(
    folder: &Path,
    overrides: &[Override],
    hydra: Option<&Hydra>,
) -> Result<Vec<(PathBuf, String)>, DataError> {
    let mut texts: Vec<(PathBuf, String)> = Vec::new();
    let is_composed = |change: &&Override| hydra.is_some() && change.file == DEFAULT_PARAMS_FILE;
    if let Some(hydra) = hydra {
        let composed: Vec<&str> = overrides.iter().filter(is_composed).map(|change| change.text.as_str()).collect();
        texts.push((folder.join(DEFAULT_PARAMS_FILE), hydra.compose(&composed)?));
    }
    for change in overrides.iter().filter(|change| !is_composed(change)) {
        let path = crate::config::normalise(&folder.join(&change.file));
        let place = match texts.iter().position(|(known, _)| *known == path) {
            Some(place) => place,
            None => {
                let text = std::fs::read_to_string(&path).map_err(DataError::io(&path))?;
                texts.push((path.clone(), text));
                texts.len() - 1
            }
        };
        let mut value = parse(&path, &texts[place].1)?;
        let name = change.keys.join(".");
        set(&mut value, &change.keys, change)
            .map_err(|reason| DataError::Invalid(format!("'{name}' in '{}' {reason}", change.file)))?;
        texts[place].1 = write(&path, &texts[place].1, &value)?;
    }
    Ok(texts)
}

fn set(target: &mut Value, keys: &[String], change: &Override) -> Result<(), &'static str> {
    let [first, rest @ ..] = keys else { return Ok(()) };
    let unknown = "is not a parameter; '+' before its name adds it";
    match target {
        Value::List(items) => {
            let item = first.parse::<usize>().ok().and_then(|i| items.get_mut(i)).ok_or("is not in the list")?;
            match (rest, &change.value) {
                ([], Some(value)) => *item = value.clone(),
                ([], None) => return Err("is an item of a list, which cannot be removed"),
                _ => set(item, rest, change)?,
            }
        }
        Value::Map(entries) => {
            let place = entries.iter().position(|(name, _)| name == first);
            match (place, rest, &change.value) {
                (Some(place), [], None) => drop(entries.remove(place)),
                (Some(place), [], Some(value)) => merge(&mut entries[place].1, value),
                (Some(place), ..) => set(&mut entries[place].1, rest, change)?,
                (None, _, None) => return Err("is not a parameter"),
                (None, ..) if !change.is_new => return Err(unknown),
                (None, [], Some(value)) => entries.push((first.clone(), value.clone())),
                (None, ..) => {
                    let mut inner = Value::Map(Vec::new());
                    set(&mut inner, rest, change)?;
                    entries.push((first.clone(), inner));
                }
            }
        }
        _ => return Err("is below a value that is no mapping"),
    }
    Ok(())
}

/// Mappings are merged; other values are replaced.
fn merge(target: &mut Value, value: &Value) {
    match (target, value) {
        (Value::Map(known), Value::Map(new)) => {
            for (key, value) in new {
                match known.iter_mut().find(|(name, _)| name == key) {
                    Some((_, old)) => merge(old, value),
                    None => known.push((key.clone(), value.clone())),
                }
            }
        }
        (target, value) => *target = value.clone(),
    }
}

fn write(path: &Path, old: &str, value: &Value) -> Result<String, DataError> {
    let suffix = path.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default().to_ascii_lowercase();
    match suffix.as_str() {
        "json" => Ok(python::value_to_json(value).to_text()),
        "toml" => assign::write_toml(old, value).map_err(|reason| DataError::file(path, 0, reason)),
        "py" => assign::write_python(old, value).map_err(|reason| DataError::file(path, 0, reason)),
        _ => yaml::edit(old, value).map_err(|error| DataError::file(path, error.line, error.reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(argument: &str) -> Vec<String> {
        let values = parse_one(argument).unwrap();
        values.iter().map(|v| python::value_to_json(v.value.as_ref().unwrap()).to_text()).collect()
    }

    #[test]
    fn values_are_read_as_by_hydra() {
        assert_eq!(shown("a=1"), ["1"]);
        assert_eq!(shown("a=1e-3"), ["0.001"]);
        assert_eq!(shown("a=True,text,'a,b',null"), ["true", "\"text\"", "\"a,b\"", "null"]);
        assert_eq!(shown("a=[1, two, {x: 2.5}]"), [r#"[1, "two", {"x": 2.5}]"#]);
        assert_eq!(shown("a=choice(1, b)"), ["1", "\"b\""]);
        assert_eq!(shown("a=range(1, 4)"), ["1", "2", "3"]);
        assert_eq!(shown("a=range(0, 1, 0.5)"), ["0.0", "0.5"]);
        assert_eq!(shown("a=range(3, 0, -2)"), ["3", "1"]);
        assert_eq!(shown("a=x=y"), ["\"x=y\""]);
        for invalid in ["a", "=1", "a..b=1", ":a=1", "a=[1", "a='x", "a=range(x)", "a=range(0, 1e9)", "a=range(1,2,0)"]
        {
            assert!(parse_one(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn combinations_are_multiplied() {
        let found = combinations(&["a=1,2".into(), "m.yaml:b.c=3,4".into()]).unwrap();
        assert_eq!(found.len(), 4);
        assert_eq!(found[3][1].file, "m.yaml");
        assert_eq!(found[3][1].keys, ["b", "c"]);
        assert!(combinations(&["a=range(0,9000)".into(), "b=1,2".into()]).is_err());
    }

    #[test]
    fn comments_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("params.yaml");
        std::fs::write(&path, "lr: 0.1 # rate\nlist: [1, 2]\nm:\n  a: 1\n").unwrap();
        let change = |arguments: &[&str]| {
            let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
            apply(folder.path(), &combinations(&arguments).unwrap()[0], None)
        };
        change(&["lr=0.2", "m.a=2", "+m.b=x"]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "lr: 0.2 # rate\nlist: [1, 2]\nm:\n  a: 2\n  b: x\n");
        assert!(change(&["lr=0.3", "unknown=1"]).is_err());
        assert!(std::fs::read_to_string(&path).unwrap().contains("0.2"), "nothing is written on failure");
    }
}
