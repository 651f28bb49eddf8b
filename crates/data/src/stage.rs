//! `.dvc` files and the stages of pipelines: which outputs they track, and with which digest.

use std::path::{Path, PathBuf};

use crate::config::{normalise, relative_path};
use crate::error::DataError;
use crate::model::{Digest, HashName, Meta};
use crate::yaml::{self, Value};

mod import;
mod recipe;
mod sources;
mod versions;

pub use import::Import;
pub use recipe::{Parameters, Recipe, UsedVariables};
pub use sources::SourceFile;
pub use versions::{CloudVersion, ListedFile};

/// The suffix of files that track data.
pub const DVC_SUFFIX: &str = ".dvc";
/// The name of the file with pipelines.
pub const PIPELINE_FILE: &str = "dvc.yaml";
/// The name of the file with the digests of pipelines.
pub const LOCK_FILE: &str = "dvc.lock";
/// Maximum bytes of such a file.
const MAX_BYTES: u64 = 64 << 20;

/// An output or dependency.
#[derive(Debug, Clone)]
pub struct Output {
    /// The absolute path; `None` for a URL or a path outside of the project.
    pub path: Option<PathBuf>,
    /// The path as it is written.
    pub written: String,
    /// The recorded digest, if there is one.
    pub digest: Option<Digest>,
    /// The algorithm of the digest.
    pub hash: HashName,
    /// What else is recorded.
    pub meta: Meta,
    /// Whether the data is stored in the cache.
    pub cached: bool,
    /// Whether `push` sends it.
    pub can_push: bool,
    /// The only remote that has it.
    pub remote: Option<String>,
    /// Whether it is kept when its stage runs again.
    pub persist: bool,
    /// What it is used for.
    pub kind: OutputKind,
    /// The absolute path of a local file or folder, also of one outside of the project.
    pub location: Option<PathBuf>,
    /// Where a bucket with versions has the file.
    pub cloud: Option<CloudVersion>,
    /// The files of a folder that is recorded as their list, as for buckets with versions. `digest` is that of their manifest.
    pub files: Option<Vec<ListedFile>>,
}

/// What an output is used for.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum OutputKind {
    /// Data.
    #[default]
    Data,
    /// A file with metrics.
    Metric,
    /// A file or folder with plots, with the options of their drawing.
    Plot(Vec<(String, Value)>),
}

/// A `.dvc` file, or a stage of a pipeline.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The absolute path of the `.dvc` file or `dvc.yaml`.
    pub file: PathBuf,
    /// The name of a pipeline's stage; `None` for a `.dvc` file.
    pub name: Option<String>,
    /// The outputs.
    pub outs: Vec<Output>,
    /// The dependencies.
    pub deps: Vec<Output>,
    /// Whether changes of its dependencies are ignored.
    pub frozen: bool,
    /// Whether it has a command or dependencies, so that it was not created by `add`.
    pub is_import: bool,
    /// How a stage of a pipeline makes its outputs; `None` for a `.dvc` file.
    pub recipe: Option<Box<Recipe>>,
    text: Option<String>,
    value: Value,
}

impl Stage {
    /// A new `.dvc` file beside the output.
    pub fn for_output(file: PathBuf, path: PathBuf, written: String) -> Self {
        let out = Output {
            path: Some(path.clone()),
            written,
            digest: None,
            hash: HashName::Md5,
            meta: Meta::default(),
            cached: true,
            can_push: true,
            remote: None,
            persist: false,
            kind: OutputKind::Data,
            location: Some(path),
            cloud: None,
            files: None,
        };
        Self {
            file,
            name: None,
            outs: vec![out],
            deps: Vec::new(),
            frozen: false,
            is_import: false,
            recipe: None,
            text: None,
            value: Value::Map(Vec::new()),
        }
    }

    /// A stage of the pipeline in the `dvc.yaml` at `file`.
    pub fn of_pipeline(
        file: PathBuf,
        name: String,
        deps: Vec<Output>,
        outs: Vec<Output>,
        frozen: bool,
        recipe: Recipe,
    ) -> Self {
        let (text, value) = (None, Value::Null);
        Self {
            file,
            name: Some(name),
            outs,
            deps,
            frozen,
            is_import: false,
            recipe: Some(Box::new(recipe)),
            text,
            value,
        }
    }

    /// Reads a `.dvc` file.
    ///
    /// # Errors
    /// [`DataError::File`] with the line.
    pub fn load(file: &Path, root: &Path) -> Result<Self, DataError> {
        let metadata = std::fs::metadata(file).map_err(DataError::io(file))?;
        if metadata.len() > MAX_BYTES {
            return Err(DataError::file(file, 0, "it is too large for a .dvc file"));
        }
        let text = std::fs::read_to_string(file).map_err(DataError::io(file))?;
        Self::parse(file, root, text)
    }

    /// Reads the text of a `.dvc` file.
    ///
    /// # Errors
    /// [`DataError::File`] with the line.
    pub fn parse(file: &Path, root: &Path, text: String) -> Result<Self, DataError> {
        let value = yaml::parse(&text).map_err(|error| DataError::file(file, error.line, error.reason))?;
        if !matches!(value, Value::Map(_)) {
            return Err(DataError::file(file, 1, "it is not a mapping"));
        }
        let folder = file.parent().unwrap_or(Path::new("/"));
        let wdir = match value.get("wdir") {
            Some(wdir) => {
                let wdir = wdir.as_str().ok_or_else(|| DataError::file(file, 0, "'wdir' is not a path"))?;
                normalise(&folder.join(wdir))
            }
            None => folder.to_owned(),
        };
        let items = |key: &str| value.get(key).map_or(&[][..], Value::items).iter();
        let outs = items("outs").map(|item| Output::parse_out(item, &wdir, root, file)).collect::<Result<_, _>>()?;
        let deps: Vec<Output> =
            items("deps").map(|item| Output::parse(item, &wdir, root, file)).collect::<Result<_, _>>()?;
        let is_true = |key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(false);
        let is_import = value.get("cmd").is_some() || !deps.is_empty();
        let frozen = is_true("frozen") || is_true("locked");
        Ok(Self {
            file: file.to_owned(),
            name: None,
            outs,
            deps,
            frozen,
            is_import,
            recipe: None,
            text: Some(text),
            value,
        })
    }

    /// The description for people.
    pub fn desc(&self) -> Option<&str> {
        match &self.recipe {
            Some(recipe) => recipe.desc.as_deref(),
            None => self.value.get("desc").and_then(Value::as_str),
        }
    }

    /// Whether it counts as changed in any case: it says so, or it has a command but neither dependencies nor outputs.
    pub fn is_always_changed(&self) -> bool {
        self.recipe.as_ref().is_some_and(|recipe| {
            recipe.always_changed || (self.deps.is_empty() && recipe.params.is_empty() && self.outs.is_empty())
        })
    }

    /// Whether `add` created it, so that its output may be changed.
    pub fn is_data_source(&self) -> bool {
        self.recipe.is_none()
    }

    /// The name under which it is shown to a user in the folder `current`.
    pub fn address(&self, current: &Path) -> String {
        let file = relative_path(&self.file, current).to_string_lossy().into_owned();
        match &self.name {
            Some(name) if file == PIPELINE_FILE => name.clone(),
            Some(name) => format!("{file}:{name}"),
            None => file,
        }
    }

    /// The text of the file with the current digests. The order and comments of an existing file are kept.
    ///
    /// # Errors
    /// [`DataError::File`] if the old text cannot be edited.
    pub fn to_text(&self) -> Result<String, DataError> {
        let old = self.value.entries();
        let mut entries: Vec<(String, Value)> = Vec::new();
        let old_outs = self.value.get("outs").map_or(&[][..], Value::items);
        let outs = self.outs.iter().enumerate().map(|(i, out)| out.to_value(old_outs.get(i)));
        let outs = Value::List(outs.collect());
        for (key, value) in old {
            let is_default = key == "wdir" && value.as_str() == Some(".");
            if key == "outs" {
                entries.push((key.clone(), outs.clone()));
            } else if !is_falsy(value) && !is_default {
                entries.push((key.clone(), value.clone()));
            }
        }
        if self.value.get("outs").is_none() {
            entries.push(("outs".into(), outs));
        }
        let value = Value::Map(entries);
        match &self.text {
            None => Ok(yaml::emit(&value)),
            Some(text) => {
                yaml::edit(text, &value).map_err(|error| DataError::file(&self.file, error.line, error.reason))
            }
        }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self) -> Result<(), DataError> {
        let text = self.to_text()?;
        if self.text.as_ref() == Some(&text) {
            return Ok(());
        }
        slipway_core::files::replace(&self.file, text.as_bytes()).map_err(DataError::io(&self.file))
    }

    /// The same stage in another file, whose first output is at another path.
    pub fn moved_to(&self, file: PathBuf, path: PathBuf, written: String) -> Self {
        let mut moved = self.clone();
        if file != self.file {
            moved.text = None;
            if let Value::Map(entries) = &mut moved.value {
                entries.retain(|(key, _)| key != "wdir");
            }
        }
        moved.file = file;
        if let Some(out) = moved.outs.first_mut() {
            (out.path, out.location, out.written) = (Some(path.clone()), Some(path), written);
        }
        moved
    }
}

/// Whether DVC leaves out an entry with this value.
fn is_falsy(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Number(text) => text == "0",
        Value::List(items) => items.is_empty(),
        Value::Map(entries) => entries.is_empty(),
        Value::Bool(true) => false,
    }
}

/// The keys that are written in this order before all others.
const LEADING: &[&str] = &["md5", "size", "nfiles", "isexec", "cloud", "hash", "path", "files"];

impl Output {
    /// Reads an output. As in DVC, it may not be in a folder that is always ignored; and it may not be the project itself.
    pub(crate) fn parse_out(item: &Value, wdir: &Path, root: &Path, file: &Path) -> Result<Self, DataError> {
        let out = Self::parse(item, wdir, root, file)?;
        let below = out.path.as_ref().and_then(|path| path.strip_prefix(root).ok());
        match below {
            Some(below) if crate::ignore::is_reserved(below) => Err(DataError::file(
                file,
                0,
                format!("the output '{}' is in a folder of Git or DVC, which is never tracked", out.written),
            )),
            Some(below) if below.as_os_str().is_empty() => {
                Err(DataError::file(file, 0, format!("the output '{}' is the project itself", out.written)))
            }
            _ => Ok(out),
        }
    }

    /// Reads an output or dependency.
    pub(crate) fn parse(item: &Value, wdir: &Path, root: &Path, file: &Path) -> Result<Self, DataError> {
        let invalid = |reason: String| DataError::file(file, 0, reason);
        let written =
            item.get("path").and_then(Value::as_str).ok_or_else(|| invalid("an output has no path".into()))?;
        let absolute = normalise(&wdir.join(written));
        let inside = !crate::config::is_url(written) && !Path::new(written).is_absolute() && absolute.starts_with(root);
        let md5 = item.get("md5").and_then(Value::as_str);
        let files = item.get("files").filter(|_| inside).map(versions::parse).transpose().map_err(&invalid)?;
        let manifest = files.as_deref().map(versions::manifest);
        let digest = match md5 {
            Some(text) if !text.is_empty() && inside => Some(
                Digest::parse(text).ok_or_else(|| invalid(format!("'{text}' of '{written}' is not an MD5 digest")))?,
            ),
            _ => manifest.as_ref().map(crate::manifest::Manifest::digest),
        };
        let is = |key: &str, default| item.get(key).and_then(Value::as_bool).unwrap_or(default);
        Ok(Self {
            location: (!crate::config::is_url(written)).then(|| absolute.clone()),
            path: inside.then_some(absolute),
            written: written.to_owned(),
            digest,
            hash: if item.get("hash").is_some() { HashName::Md5 } else { HashName::Dos2Unix },
            meta: Meta {
                size: item.get("size").and_then(Value::as_u64).or(manifest.as_ref().and_then(|files| files.size())),
                nfiles: item
                    .get("nfiles")
                    .and_then(Value::as_u64)
                    .or(manifest.as_ref().map(|files| files.entries.len() as u64)),
                is_exec: is("isexec", false),
            },
            cached: is("cache", true),
            can_push: is("push", true),
            remote: item.get("remote").and_then(Value::as_str).map(str::to_owned),
            persist: is("persist", false),
            kind: OutputKind::Data,
            cloud: CloudVersion::parse(item),
            files,
        })
    }

    /// The entry in DVC's order, with the other keys of the old entry.
    fn to_value(&self, old: Option<&Value>) -> Value {
        let mut entries: Vec<(String, Value)> = Vec::new();
        let mut push = |key: &str, value: Option<Value>| entries.extend(value.map(|value| (key.to_owned(), value)));
        if self.files.is_none() {
            self.identity().into_iter().for_each(|(key, value)| push(key, Some(value)));
        }
        push("hash", (self.hash == HashName::Md5).then(|| Value::string("md5")));
        push("path", Some(Value::string(self.written.as_str())));
        for (key, value) in old.map_or(&[][..], Value::entries) {
            let is_default = matches!(
                (key.as_str(), value),
                ("cache" | "push", Value::Bool(true)) | ("persist" | "metric" | "plot", Value::Bool(false))
            );
            if !LEADING.contains(&key.as_str()) && !is_default && !matches!(value, Value::Null) {
                entries.push((key.clone(), value.clone()));
            }
        }
        if !self.can_push && !entries.iter().any(|(key, _)| key == "push") {
            entries.push(("push".into(), Value::Bool(false)));
        }
        entries.extend(self.files.as_deref().map(|files| ("files".to_owned(), versions::to_value(files))));
        Value::Map(entries)
    }

    /// What identifies the content, in DVC's order.
    fn identity(&self) -> Vec<(&'static str, Value)> {
        let mut entries = Vec::new();
        let mut push = |key: &'static str, value: Option<Value>| entries.extend(value.map(|value| (key, value)));
        push("md5", self.digest.map(|digest| Value::string(digest.to_string())));
        push("size", self.meta.size.map(Value::number));
        push("nfiles", self.meta.nfiles.map(Value::number));
        push("isexec", self.meta.is_exec.then_some(Value::Bool(true)));
        push("cloud", self.cloud.as_ref().map(CloudVersion::to_value));
        entries
    }

    /// The files of a folder, if they are recorded as a list.
    pub fn manifest(&self) -> Option<crate::manifest::Manifest> {
        self.files.as_deref().map(versions::manifest)
    }

    /// The record in a `dvc.lock`.
    pub(crate) fn to_lock(&self) -> Value {
        let mut entries = vec![("path".to_owned(), Value::string(self.written.as_str()))];
        let hash = (self.hash == HashName::Md5).then(|| ("hash".to_owned(), Value::string("md5")));
        entries.extend(hash);
        match &self.files {
            Some(files) => entries.push(("files".into(), versions::to_value(files))),
            None => entries.extend(self.identity().into_iter().map(|(key, value)| (key.to_owned(), value))),
        }
        Value::Map(entries)
    }

    /// Sets what identifies the content. Of a folder, `manifest` has the files. Versions of files with the same content are kept.
    pub(crate) fn record(&mut self, digest: Digest, meta: Meta, manifest: Option<&crate::manifest::Manifest>) {
        self.files = self.files.take().and_then(|old| manifest.map(|manifest| versions::merge(&old, manifest)));
        if self.digest != Some(digest) {
            self.cloud = None;
        }
        (self.digest, self.meta) = (Some(digest), meta);
    }

    /// The path as it is shown to a user in the folder `current`.
    pub fn display(&self, current: &Path, root: &Path) -> String {
        match &self.path {
            Some(path) if current.starts_with(root) => relative_path(path, current).to_string_lossy().into_owned(),
            Some(path) => relative_path(path, root).to_string_lossy().into_owned(),
            None => self.written.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_files_have_the_order_of_dvc() {
        let mut stage = Stage::for_output("/p/a.dvc".into(), "/p/a".into(), "a: b".into());
        let out = &mut stage.outs[0];
        out.digest = Digest::parse("8b3662b0d460701f7734cdf533c5aa85.dir");
        out.meta = Meta { size: Some(4), nfiles: Some(2), is_exec: false };
        let text =
            "outs:\n- md5: 8b3662b0d460701f7734cdf533c5aa85.dir\n  size: 4\n  nfiles: 2\n  hash: md5\n  path: 'a: b'\n";
        assert_eq!(stage.to_text().unwrap(), text);
    }

    #[test]
    fn outputs_are_not_in_folders_of_git_and_dvc() {
        let parse = |key: &str, path: &str| {
            Stage::parse(Path::new("/p/sub/x.dvc"), Path::new("/p"), format!("{key}:\n- path: {path}\n"))
        };
        for path in [".git/hooks/x", "../.git/config", "a/.git", "../.dvc/config.local", ".hg/hgrc", ".."] {
            assert!(parse("outs", path).is_err(), "{path}");
            parse("deps", path).unwrap();
        }
        for path in ["a", ".github/x", ".gitignore", "x.dvc.d/y", "a.git/b"] {
            parse("outs", path).unwrap();
        }
    }

    #[test]
    fn files_of_people_keep_unknown_keys_and_order() {
        let text = "meta:\n  who: me # us\nouts:\n- path: x\n  md5: d41d8cd98f00b204e9800998ecf8427e\n  desc: text\n  cache: true\nfrozen: false\n";
        let mut stage = Stage::parse(Path::new("/p/x.dvc"), Path::new("/p"), text.into()).unwrap();
        assert_eq!(stage.outs[0].hash, HashName::Dos2Unix);
        stage.outs[0].hash = HashName::Md5;
        stage.outs[0].digest = Digest::parse("60b725f10c9c85c70d97880dfe8191b3");
        stage.outs[0].meta.size = Some(2);
        let expected = "meta:\n  who: me # us\nouts:\n- path: x\n  md5: 60b725f10c9c85c70d97880dfe8191b3\n  desc: text\n  size: 2\n  hash: md5\n";
        assert_eq!(stage.to_text().unwrap(), expected);
    }
}
