//! Validation of names, lengths and batch sizes, with MLflow's limits and messages (`mlflow/utils/validation.py`, MLflow 3.17).

use crate::Error;
use crate::model::{Dataset, KeyValue};

/// Maximum number of metrics in a batch.
pub const MAX_METRICS_PER_BATCH: usize = 1000;
/// Maximum number of parameters in a batch, and of tags.
pub const MAX_PARAMS_TAGS_PER_BATCH: usize = 100;
/// Maximum number of metrics, parameters and tags together in a batch.
pub const MAX_ENTITIES_PER_BATCH: usize = 1000;
/// Maximum length in characters of the key of a metric, parameter or tag. All following limits are in characters, too.
const MAX_KEY: usize = 250;
const MAX_PARAM_VALUE: usize = 6000;
const MAX_TAG_VALUE: usize = 8000;
const MAX_EXPERIMENT_NAME: usize = 500;
const MAX_EXPERIMENT_TAG_VALUE: usize = 20_000;
const MAX_REGISTRY_TAG_VALUE: usize = 100_000;
const MAX_ALIAS: usize = 255;

/// Formats a string like Python's `json.dumps`, as MLflow does in messages.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{7f}' => out.push('\u{7f}'),
            c if c.is_ascii() && !c.is_ascii_control() => out.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.push('"');
    out
}

/// Formats a value like Python's `json.dumps`: a space after each separator, and only ASCII characters.
pub(crate) fn python_json(value: &serde_json::Value) -> String {
    use serde_json::Value;
    let joined = |items: Vec<String>| items.join(", ");
    match value {
        Value::String(text) => quoted(text),
        Value::Array(items) => format!("[{}]", joined(items.iter().map(python_json).collect())),
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| format!("{}: {}", quoted(key), python_json(value));
            format!("{{{}}}", joined(fields.iter().map(field).collect()))
        }
        other => other.to_string(),
    }
}

fn invalid_value(path: &str, value: &str, message: &str) -> Error {
    let tail = if message.is_empty() { "." } else { &format!(": {message}") };
    Error::invalid(format!("Invalid value {} for parameter '{path}' supplied{tail}", quoted(value)))
}

/// POSIX path normalisation, as Python's `posixpath.normpath`.
fn normpath(path: &str) -> String {
    if path.is_empty() {
        return ".".into();
    }
    let slashes =
        if path.starts_with("//") && !path.starts_with("///") { 2 } else { usize::from(path.starts_with('/')) };
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
        if part != ".." || (slashes == 0 && parts.is_empty()) || parts.last() == Some(&"..") {
            parts.push(part);
        } else {
            parts.pop();
        }
    }
    let joined = "/".repeat(slashes) + &parts.join("/");
    if joined.is_empty() { ".".into() } else { joined }
}

/// Whether the name would change or leave its folder when used as a file path.
fn path_not_unique(name: &str) -> bool {
    let norm = normpath(name);
    norm != name || norm == "." || norm.starts_with("..") || norm.starts_with('/')
}

fn bad_path(name: &str) -> String {
    format!(
        "Names may be treated as files in certain cases, and must not resolve to other names when treated as such. \
         This name would resolve to '{}'",
        normpath(name)
    )
}

/// Validates the name of a metric, parameter or tag; `path` is its position in the request, such as `params[3].key`.
pub(crate) fn name(name: &str, path: &str) -> Result<(), Error> {
    if !name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '/' | '.' | '-' | ' ' | ':')) {
        return Err(invalid_value(
            path,
            name,
            "Names may only contain alphanumerics, underscores (_), dashes (-), periods (.), spaces ( ), colon(:) \
             and slashes (/).",
        ));
    }
    if path_not_unique(name) {
        return Err(invalid_value(path, name, &bad_path(name)));
    }
    Ok(())
}

fn length(what: &str, limit: usize, value: &str) -> Result<(), Error> {
    // Python counts characters. A string has at most as many characters as bytes, so most values need not be counted.
    if value.len() > limit && value.chars().count() > limit {
        return Err(Error::invalid(format!("'{what}' exceeds the maximum length of {limit} characters")));
    }
    Ok(())
}

/// Truncates a long value, as MLflow does by default for parameters and tags of runs (`MLFLOW_TRUNCATE_LONG_VALUES`).
fn truncated(value: String, limit: usize) -> String {
    if value.len() > limit && value.chars().count() > limit { value.chars().take(limit).collect() } else { value }
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// Validates a metric's name and timestamp; `path` is its position in the request, such as `metrics[3]`.
pub(crate) fn metric(key: &str, value: f64, timestamp: i64, path: &str) -> Result<(), Error> {
    name(key, &join(path, "name"))?;
    if timestamp < 0 {
        return Err(Error::invalid(format!(
            "Invalid value {timestamp} for parameter '{}' supplied: metric '{key}' (value={}). Timestamp must be a \
             nonnegative long (64-bit integer) ",
            join(path, "timestamp"),
            python_float(value)
        )));
    }
    length("Metric name", MAX_KEY, key)
}

/// Formats a float like Python's `repr`.
pub(crate) fn python_float(value: f64) -> String {
    if value.is_nan() {
        "nan".into()
    } else if value.is_infinite() {
        if value > 0.0 { "inf".into() } else { "-inf".into() }
    } else {
        format!("{value:?}")
    }
}

/// Validates a parameter and truncates a long value.
pub(crate) fn param(param: KeyValue, path: &str) -> Result<KeyValue, Error> {
    name(&param.key, &join(path, "key"))?;
    length("Param key", MAX_KEY, &param.key)?;
    Ok(KeyValue { key: param.key, value: truncated(param.value, MAX_PARAM_VALUE) })
}

/// Validates a run's tag and truncates a long value.
pub(crate) fn tag(tag: KeyValue, path: &str) -> Result<KeyValue, Error> {
    name(&tag.key, &join(path, "key"))?;
    length(&join(path, "key"), MAX_KEY, &tag.key)?;
    Ok(KeyValue { key: tag.key, value: truncated(tag.value, MAX_TAG_VALUE) })
}

/// Validates an experiment's tag.
pub(crate) fn experiment_tag(key: &str, value: &str) -> Result<(), Error> {
    name(key, "key")?;
    length("key", MAX_KEY, key)?;
    length("value", MAX_EXPERIMENT_TAG_VALUE, value)
}

/// Validates a tag of a registered model or of a model version.
pub(crate) fn registry_tag(key: &str, value: &str) -> Result<(), Error> {
    name(key, "key")?;
    length("key", MAX_KEY, key)?;
    length("value", MAX_REGISTRY_TAG_VALUE, value)
}

/// Validates an experiment's name.
pub(crate) fn experiment_name(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::invalid("Invalid experiment name: ''"));
    }
    length("name", MAX_EXPERIMENT_NAME, name)
}

/// Validates a run id in `log-batch` and `log-inputs`.
pub(crate) fn run_id(id: &str) -> Result<(), Error> {
    let mut chars = id.chars();
    let is_valid = chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && chars.clone().count() <= 255
        && chars.all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
    if is_valid { Ok(()) } else { Err(invalid_value("run_id", id, "")) }
}

/// Parses an experiment id, which is an integer in MLflow's SQL stores; an empty one means `0`, the default experiment.
pub(crate) fn experiment_id(id: &str) -> Result<i64, Error> {
    let id = if id.is_empty() { "0" } else { id };
    id.trim()
        .parse()
        .map_err(|_| Error::invalid(format!("Invalid experiment ID '{id}'. Experiment ID must be a valid integer.")))
}

/// Validates a registered model's name.
pub(crate) fn model_name(name: &str) -> Result<(), Error> {
    if name.trim().is_empty() {
        return Err(Error::invalid("Missing value for required parameter 'name'."));
    }
    if name.contains(['/', ':']) {
        return Err(Error::invalid(format!("Invalid model name '{name}'. Names cannot contain '/' or ':'.")));
    }
    if path_not_unique(name) {
        return Err(invalid_value("name", name, &bad_path(name)));
    }
    Ok(())
}

/// Parses the number of a model version.
pub(crate) fn model_version(version: &str) -> Result<i64, Error> {
    version
        .trim()
        .parse()
        .map_err(|_| Error::invalid(format!("Parameter 'version' must be an integer, got '{version}'.")))
}

/// Validates the form of an alias.
pub(crate) fn alias(alias: &str) -> Result<(), Error> {
    if alias.is_empty() {
        return Err(Error::invalid("Registered model alias name cannot be empty."));
    }
    if !alias.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) {
        return Err(Error::invalid(format!(
            "Invalid alias name: '{alias}'. Names may only contain alphanumerics, underscores (_), and dashes (-)."
        )));
    }
    length("Registered model alias name", MAX_ALIAS, alias)
}

/// Rejects aliases with a built-in meaning: `latest`, and version numbers such as `v3`.
pub(crate) fn alias_not_reserved(alias: &str) -> Result<(), Error> {
    if alias.eq_ignore_ascii_case("latest") {
        return Err(Error::invalid("'latest' alias name (case insensitive) is reserved."));
    }
    let digits = alias.strip_prefix(['v', 'V']).unwrap_or_default();
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Error::invalid(format!("Version alias name '{alias}' is reserved.")));
    }
    Ok(())
}

/// Validates a logged model's name.
pub(crate) fn logged_model_name(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.contains(['/', ':', '.', '%', '"', '\'']) {
        return Err(Error::invalid(format!(
            "Invalid model name ('{name}') provided. Model name must be a non-empty string and cannot contain the \
             following characters: ('/', ':', '.', '%', '\"', \"'\")"
        )));
    }
    Ok(())
}

/// Validates a dataset and the tags of its use in a run.
pub(crate) fn dataset(dataset: &Dataset, tags: &[KeyValue]) -> Result<(), Error> {
    let limited = |what: &str, value: &str, limit: usize| -> Result<(), Error> {
        if value.chars().count() > limit {
            return Err(Error::invalid(format!("{what} exceeds the maximum length of {limit} characters")));
        }
        Ok(())
    };
    for (what, value) in [
        ("Dataset name", &dataset.name),
        ("Dataset digest", &dataset.digest),
        ("Dataset source_type", &dataset.source_type),
        ("Dataset source", &dataset.source),
    ] {
        if value.is_empty() {
            return Err(Error::invalid(format!("{what} cannot be None")));
        }
    }
    limited("'name'", &dataset.name, 500)?;
    limited("'digest'", &dataset.digest, 36)?;
    limited("'source'", &dataset.source, 65_535)?;
    limited("'schema'", dataset.schema.as_deref().unwrap_or_default(), 1_048_575)?;
    limited("'profile'", dataset.profile.as_deref().unwrap_or_default(), 16_777_215)?;
    for tag in tags {
        limited("'key'", &tag.key, 255)?;
        limited("'value'", &tag.value, 500)?;
    }
    Ok(())
}

fn batch_limit(what: &str, limit: usize, length: usize) -> Result<(), Error> {
    if length > limit {
        return Err(Error::invalid(format!(
            "A batch logging request can contain at most {limit} {what}. Got {length} {what}. Please split up {what} \
             across multiple requests and try again."
        )));
    }
    Ok(())
}

/// Validates the number of entities in a `log-batch` request.
pub(crate) fn batch(metrics: usize, params: usize, tags: usize) -> Result<(), Error> {
    batch_limit("metrics", MAX_METRICS_PER_BATCH, metrics)?;
    batch_limit("params", MAX_PARAMS_TAGS_PER_BATCH, params)?;
    batch_limit("tags", MAX_PARAMS_TAGS_PER_BATCH, tags)?;
    batch_limit("metrics, params, and tags", MAX_ENTITIES_PER_BATCH, metrics + params + tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_normalise_as_in_python() {
        for (path, expected) in
            [("a//b", "a/b"), ("a/./b/..", "a"), ("/..", "/"), ("", "."), ("../a", "../a"), ("//a", "//a"), ("a/", "a")]
        {
            assert_eq!(normpath(path), expected, "{path}");
        }
    }

    #[test]
    fn invalid_names_are_rejected() {
        for invalid in ["", ".", "../x", "/x", "a//b", "a$b", "a/"] {
            assert!(name(invalid, "key").is_err(), "{invalid:?} was accepted");
        }
        for valid in ["lr", "système/loss 1:2", "a.b-c_d"] {
            assert!(name(valid, "key").is_ok(), "{valid:?} was rejected");
        }
    }

    #[test]
    fn values_are_formatted_like_python_json() {
        assert_eq!(quoted("a\"é\n"), "\"a\\\"\\u00e9\\n\"");
        let value = serde_json::json!([{ "name": "é", "version": 1 }, [], {}, null, 0.5]);
        assert_eq!(python_json(&value), r#"[{"name": "\u00e9", "version": 1}, [], {}, null, 0.5]"#);
    }
}
