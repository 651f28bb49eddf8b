//! The run cache: records of runs by what went into them, so that a run whose result is known is not repeated.
//!
//! A record is the file `runs/KK/KEY/VALUE` in the cache: KEY is the digest of the record without the digests of its outputs, VALUE that of
//! the whole record; sizes and numbers of files do not count.

use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};

use super::entry::entry;
use super::value::{canonical, to_sorted_json};
use crate::error::DataError;
use crate::stage::Stage;
use crate::yaml::{self, Value};

/// Maximum bytes of a record.
const MAX_BYTES: u64 = 64 << 20;

/// The run cache in a cache folder.
#[derive(Debug)]
pub struct RunCache {
    root: PathBuf,
}

/// The digest of a record.
fn hash(record: &Value) -> String {
    let hash = digest(&SHA256, &to_sorted_json(&without_sizes(record)));
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The record of a stage without the places of its files in a bucket, which say nothing about a run.
fn record(stage: &Stage) -> Value {
    let mut stage = stage.clone();
    for out in stage.outs.iter_mut().chain(&mut stage.deps) {
        (out.cloud, out.files) = (None, None);
    }
    entry(&stage)
}

fn without_sizes(value: &Value) -> Value {
    match value {
        Value::Map(entries) => {
            let kept = entries.iter().filter(|(key, _)| key != "size" && key != "nfiles");
            Value::Map(kept.map(|(key, value)| (key.clone(), without_sizes(value))).collect())
        }
        Value::List(items) => Value::List(items.iter().map(without_sizes).collect()),
        other => other.clone(),
    }
}

/// The digest of what goes into a run of a stage, with its recorded dependencies and parameters.
pub(crate) fn key_of(stage: &Stage) -> String {
    key(&record(stage))
}

/// The digest of what goes into a run.
fn key(record: &Value) -> String {
    let paths = |outs: &Value| Value::List(outs.items().iter().filter_map(|out| out.get("path").cloned()).collect());
    let entries = record.entries().iter().map(|(key, value)| {
        let value = if key == "outs" { paths(value) } else { value.clone() };
        (key.clone(), value)
    });
    let mut entries: Vec<_> = entries.collect();
    if record.get("outs").is_none() {
        entries.push(("outs".into(), Value::List(Vec::new())));
    }
    hash(&Value::Map(entries))
}

/// Whether runs of a stage can be recorded: it has a command, dependencies and outputs, all of them in files that a run replaces.
pub fn is_recordable(stage: &Stage) -> bool {
    let Some(recipe) = &stage.recipe else { return false };
    let has_dependencies = !stage.deps.is_empty() || !recipe.params.is_empty();
    !recipe.always_changed
        && has_dependencies
        && !stage.outs.is_empty()
        && stage.deps.iter().all(|dep| dep.location.is_some())
        && stage.outs.iter().all(|out| out.path.is_some() && !out.persist)
}

impl RunCache {
    /// The run cache in the folder of the cache.
    pub fn new(cache_dir: &Path) -> Self {
        Self { root: cache_dir.join("runs") }
    }

    /// The newest record of a run of the stage with its recorded dependencies and parameters. A damaged record is removed.
    ///
    /// # Errors
    /// If the cache cannot be read.
    pub fn find(&self, stage: &Stage) -> Result<Option<Value>, DataError> {
        let key = key_of(stage);
        let folder = self.root.join(&key[..2]).join(&key);
        let names = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DataError::io(&folder)(error)),
        };
        let mut newest: Option<(std::time::SystemTime, PathBuf)> = None;
        for name in names {
            let path = name.map_err(DataError::io(&folder))?.path();
            let is_record = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.len() == key.len());
            let modified = std::fs::metadata(&path).and_then(|metadata| metadata.modified());
            if let (true, Ok(modified)) = (is_record, modified)
                && newest.as_ref().is_none_or(|(time, _)| modified > *time)
            {
                newest = Some((modified, path));
            }
        }
        newest.map_or(Ok(None), |(_, path)| read(&path))
    }

    /// Keeps a record, unless the same is kept already.
    ///
    /// # Errors
    /// If the cache cannot be read or written.
    pub fn save(&self, stage: &Stage) -> Result<(), DataError> {
        let record = record(stage);
        let (key, value) = (key(&record), hash(&record));
        let path = self.root.join(&key[..2]).join(&key).join(value);
        if read(&path)?.is_some() {
            return Ok(());
        }
        let written = yaml::emit(&record);
        slipway_core::files::replace(&path, written.as_bytes()).map_err(DataError::io(&path))
    }
}

/// Reads a record; `None` if it does not exist or is damaged.
fn read(path: &Path) -> Result<Option<Value>, DataError> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_BYTES => return Ok(None),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DataError::io(path)(error)),
    }
    let text = std::fs::read(path).map_err(DataError::io(path))?;
    let value = std::str::from_utf8(&text).ok().and_then(|text| yaml::parse(text).ok()).map(canonical);
    match value {
        Some(value @ Value::Map(_)) if value.get("cmd").is_some() => Ok(Some(value)),
        _ => {
            std::fs::remove_file(path).map_err(DataError::io(path))?;
            Ok(None)
        }
    }
}
