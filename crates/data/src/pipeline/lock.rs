//! `dvc.lock`: what the stages of the `dvc.yaml` beside it read and wrote when they last ran.

use std::path::Path;

use super::files::read_workspace;
use super::value::canonical;
use crate::error::DataError;
use crate::stage::{LOCK_FILE, Stage};
use crate::yaml::{self, Value};

/// A `dvc.lock`, or none.
#[derive(Debug, Clone)]
pub struct LockFile {
    value: Value,
}

impl Default for LockFile {
    fn default() -> Self {
        Self { value: Value::Map(Vec::new()) }
    }
}

impl LockFile {
    /// Reads the text of the file.
    ///
    /// # Errors
    /// [`DataError::File`] with the line.
    pub fn parse(path: &Path, text: &str) -> Result<Self, DataError> {
        let value = yaml::parse(text).map_err(|error| DataError::file(path, error.line, error.reason))?;
        let invalid = |place: &[&str], reason: &str| {
            let place: Vec<String> = place.iter().map(|step| (*step).to_owned()).collect();
            DataError::file(path, yaml::line_of(text, &place), reason)
        };
        let value = match canonical(value) {
            Value::Null => Value::Map(Vec::new()),
            value @ Value::Map(_) => value,
            _ => return Err(invalid(&[], "expected a dictionary")),
        };
        for (name, stage) in value.get("stages").map_or(&[][..], Value::entries) {
            if !matches!(stage, Value::Map(_)) {
                return Err(invalid(&["stages", name], "expected a dictionary"));
            }
            for key in ["deps", "outs"] {
                let items = stage.get(key).map_or(&[][..], Value::items).iter().enumerate();
                for (i, item) in items {
                    if item.get("path").and_then(Value::as_str).is_none() {
                        return Err(invalid(
                            &["stages", name, key, &i.to_string()],
                            "required key 'path' not provided",
                        ));
                    }
                }
            }
        }
        Ok(Self { value })
    }

    /// The record of a stage.
    pub fn stage(&self, name: &str) -> Option<&Value> {
        // Before schema 2.0, the stages were at the top.
        self.value.get("stages").unwrap_or(&self.value).get(name)
    }

    /// The record of an output (`outs`) or dependency (`deps`) of a stage.
    pub fn entry(&self, stage: &str, key: &str, path: &str) -> Option<&Value> {
        let items = self.stage(stage)?.get(key)?.items();
        items.iter().find(|item| item.get("path").and_then(Value::as_str) == Some(path))
    }

    /// The text of the file with the records of these stages, which are replaced or added: before the first of the stages `later`, or at the
    /// end.
    pub fn with_stages(&self, stages: Vec<(String, Value)>, later: &[String]) -> String {
        let mut entries = self.value.entries().to_vec();
        if entries.is_empty() {
            entries.push(("schema".into(), Value::string("2.0")));
        }
        if !entries.iter().any(|(key, _)| key == "stages") {
            entries.push(("stages".into(), Value::Map(Vec::new())));
        }
        if let Some((_, Value::Map(records))) = entries.iter_mut().find(|(key, _)| key == "stages") {
            for (name, record) in stages {
                match records.iter_mut().find(|(known, _)| *known == name) {
                    Some(known) => known.1 = record,
                    None => {
                        let at = records.iter().position(|(known, _)| later.contains(known)).unwrap_or(records.len());
                        records.insert(at, (name, record));
                    }
                }
            }
        }
        yaml::emit(&Value::Map(entries))
    }
}

/// Whether the `dvc.lock` of a stage has a record of it.
///
/// # Errors
/// If the file cannot be read or understood.
pub(crate) fn has_record(stage: &Stage) -> Result<bool, DataError> {
    let Some(name) = &stage.name else { return Ok(true) };
    let path = stage.file.with_file_name(LOCK_FILE);
    let Some(text) = read_workspace(&path)? else { return Ok(false) };
    Ok(LockFile::parse(&path, &text)?.stage(name).is_some())
}
