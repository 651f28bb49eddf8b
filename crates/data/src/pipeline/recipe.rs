//! Stages of expanded definitions, with their records.

use std::path::Path;

use super::context::DEFAULT_PARAMS_FILE;
use super::file::Expanded;
use super::lock::LockFile;
use super::schema::PLOT_OPTIONS;
use super::value::{self, text as text_of, type_name};
use crate::config::normalise;
use crate::error::DataError;
use crate::stage::{Output, OutputKind, Parameters, Recipe, Stage};
use crate::yaml::Value;

/// The stage of an expanded definition in the `dvc.yaml` at `path`.
///
/// # Errors
/// [`DataError::File`] with the line, for values that templates made invalid.
pub(super) fn stage(path: &Path, root: &Path, expanded: Expanded, lock: &LockFile) -> Result<Stage, DataError> {
    let Expanded { name, value, used, is_parametrized, line } = expanded;
    let invalid = |key: &str, value: &Value| {
        let reason = format!("stages.{name}.{key}: a value of type '{}' is not expected here", type_name(value));
        DataError::file(path, line, reason)
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    let wdir = value.get("wdir").map_or_else(|| folder.to_owned(), |wdir| normalise(&folder.join(text_of(wdir))));
    let command = match value.get("cmd") {
        Some(Value::List(items)) => Value::List(items.iter().map(|item| Value::String(text_of(item))).collect()),
        Some(value @ Value::Map(_)) => return Err(invalid("cmd", value)),
        Some(scalar) => Value::String(text_of(scalar)),
        None => return Err(DataError::file(path, line, format!("stages.{name}: the stage has no command"))),
    };
    let place =
        Place { wdir: &wdir, root, lock, stage: &name, lock_path: &path.with_file_name(crate::stage::LOCK_FILE) };
    let deps = value.get("deps").map_or(&[][..], Value::items).iter();
    let deps = deps.map(|dep| place.output("deps", &text_of(dep), &Value::Null, OutputKind::Data));
    let deps: Vec<Output> = deps.collect::<Result<_, _>>()?;
    let mut outs = Vec::new();
    for key in ["outs", "metrics", "plots"] {
        let items = value.get(key).map_or(&[][..], Value::items);
        for (written, options) in merged(items) {
            let kind = match key {
                "outs" => OutputKind::Data,
                "metrics" => OutputKind::Metric,
                _ => OutputKind::Plot(plot_options(&options)),
            };
            outs.push(place.output("outs", &written, &options, kind)?);
        }
    }
    let params = value.get("params").map_or(&[][..], Value::items);
    let params =
        parameters(params).map_err(|reason| DataError::file(path, line, format!("stages.{name}: {reason}")))?;
    let recorded = |written: &str, keys: &[String]| {
        let values = lock.stage(&name)?.get("params")?.get(written)?.entries();
        let selected = |(key, _): &&(String, Value)| keys.is_empty() || keys.contains(key);
        Some(values.iter().filter(selected).cloned().collect())
    };
    let params = params.into_iter().map(|(written, keys)| Parameters {
        path: normalise(&wdir.join(&written)),
        recorded: recorded(&written, &keys),
        written,
        keys,
    });
    let is_true = |key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(false);
    let recipe = Recipe {
        params: params.collect(),
        always_changed: is_true("always_changed"),
        desc: value.get("desc").map(text_of).filter(|text| !text.is_empty()),
        meta: value.get("meta").cloned(),
        command_changed: lock
            .stage(&name)
            .is_some_and(|record| record.get("cmd").is_none_or(|recorded| !value::equal(recorded, &command))),
        used,
        is_parametrized,
        line,
        command,
        wdir: wdir.clone(),
    };
    Ok(Stage::of_pipeline(path.to_owned(), name.clone(), deps, outs, is_true("frozen"), recipe))
}

/// The outputs of a stage as a record of the run cache has them. All of them are in the cache.
///
/// # Errors
/// [`DataError::File`] for an invalid record.
pub(crate) fn restored_outputs(stage: &Stage, root: &Path, record: &Value) -> Result<Vec<Output>, DataError> {
    let Some(recipe) = &stage.recipe else { return Ok(Vec::new()) };
    let outs = record.get("outs").map_or(&[][..], Value::items).iter();
    outs.map(|out| Output::parse_out(out, &recipe.wdir, root, &stage.file)).collect()
}

/// Where the outputs of a stage are.
struct Place<'a> {
    wdir: &'a Path,
    root: &'a Path,
    lock: &'a LockFile,
    stage: &'a str,
    lock_path: &'a Path,
}

impl Place<'_> {
    /// An output or dependency with its options of the `dvc.yaml` and its record of the `dvc.lock`.
    fn output(&self, key: &str, written: &str, options: &Value, kind: OutputKind) -> Result<Output, DataError> {
        // As in DVC, an absolute path in the project is a relative one.
        let absolute = normalise(Path::new(written));
        let relative = absolute.is_absolute() && absolute.starts_with(self.root);
        let written = match relative {
            true => crate::config::relative_path(&absolute, self.wdir).to_string_lossy().into_owned(),
            false => written.to_owned(),
        };
        let written = written.as_str();
        let mut entries = vec![("path".to_owned(), Value::string(written))];
        entries.extend(options.entries().iter().filter(|(key, _)| key != "path").cloned());
        match self.lock.entry(self.stage, key, written) {
            Some(record) => {
                entries.extend(record.entries().iter().filter(|(key, _)| key != "path").cloned());
            }
            None => entries.push(("hash".into(), Value::string("md5"))),
        }
        let parse = if key == "outs" { Output::parse_out } else { Output::parse };
        let mut output = parse(&Value::Map(entries), self.wdir, self.root, self.lock_path)?;
        output.kind = kind;
        Ok(output)
    }
}

/// Outputs with their options; several entries of one path are one.
fn merged(items: &[Value]) -> Vec<(String, Value)> {
    let mut all: Vec<(String, Vec<(String, Value)>)> = Vec::new();
    for item in items {
        let entries: Vec<(String, Vec<(String, Value)>)> = match item {
            Value::Map(entries) => entries
                .iter()
                .map(|(path, options)| {
                    // Several plots of one file are a list; what is not about the drawing is in its first.
                    let options = options.items().first().unwrap_or(options);
                    (path.clone(), options.entries().to_vec())
                })
                .collect(),
            scalar => vec![(text_of(scalar), Vec::new())],
        };
        for (path, options) in entries {
            match all.iter_mut().find(|(known, _)| *known == path) {
                Some((_, known)) => {
                    known.retain(|(key, _)| !options.iter().any(|(other, _)| other == key));
                    known.extend(options);
                }
                None => all.push((path, options)),
            }
        }
    }
    all.into_iter().map(|(path, options)| (path, Value::Map(options))).collect()
}

fn plot_options(options: &Value) -> Vec<(String, Value)> {
    options.entries().iter().filter(|(key, _)| PLOT_OPTIONS.contains(&key.as_str())).cloned().collect()
}

/// The files and keys of `params`: keys without a file are those of `params.yaml`; a file without keys is tracked as a whole, whatever else
/// is written about it.
pub(crate) fn parameters(items: &[Value]) -> Result<Vec<(String, Vec<String>)>, String> {
    let is_empty = |keys: &Value| matches!(keys, Value::Null) || matches!(keys, Value::List(keys) if keys.is_empty());
    let entries = || items.iter().flat_map(Value::entries);
    let is_whole = |file: &str| entries().any(|(known, keys)| known == file && is_empty(keys));
    let mut files: Vec<(String, Vec<String>)> = Vec::new();
    let mut add = |file: &str, keys: Vec<String>| match files.iter_mut().find(|(known, _)| known == file) {
        Some((_, known)) => known.extend(keys),
        None => files.push((file.to_owned(), keys)),
    };
    for item in items {
        match item {
            Value::Map(entries) => {
                for (file, keys) in entries {
                    match keys {
                        _ if is_whole(file) => add(file, Vec::new()),
                        Value::List(keys) => add(file, keys.iter().map(text_of).collect()),
                        other => {
                            let found = type_name(other);
                            return Err(format!(
                                "expected a list of params for the custom params file '{file}', got '{found}'"
                            ));
                        }
                    }
                }
            }
            _ if is_whole(DEFAULT_PARAMS_FILE) => {}
            key => add(DEFAULT_PARAMS_FILE, vec![text_of(key)]),
        }
    }
    Ok(files)
}
