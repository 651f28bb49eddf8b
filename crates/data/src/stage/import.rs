//! Import stages: `.dvc` files whose output is a copy of data in another repository or at a URL.

use std::path::PathBuf;

use md5::{Digest as _, Md5};

use super::Stage;
use crate::json::Json;
use crate::model::Digest;
use crate::yaml::Value;

/// Where the output of an import comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Import {
    /// Another repository.
    Repository {
        /// Its URL or path.
        url: String,
        /// The path in it.
        path: String,
        /// The branch, tag or commit that `update` follows; the default branch if omitted.
        revision: Option<String>,
        /// The imported commit (`rev_lock`).
        commit: Option<String>,
        /// A file with options that replace those of the repository, or the options by section.
        config: Option<Value>,
        /// The name of the remote to use, or options of its default remote.
        remote: Option<Value>,
    },
    /// A URL, or a path outside of the project.
    Url(String),
}

/// Keys that do not change what a stage does, so that its digest does not cover them.
const NOT_COVERED: &[&str] =
    &["desc", "type", "labels", "meta", "locked", "frozen", "metric", "persist", "isexec", "size", "nfiles"];

impl Stage {
    /// A new import whose output is beside its file.
    pub fn for_import(file: PathBuf, path: PathBuf, written: String, dependency: Value, frozen: bool) -> Self {
        let mut stage = Self::for_output(file, path, written);
        let mut entries = vec![("md5".to_owned(), Value::Null)];
        if frozen {
            entries.push(("frozen".into(), Value::Bool(true)));
        }
        entries.push(("deps".into(), Value::List(vec![dependency])));
        stage.value = Value::Map(entries);
        (stage.frozen, stage.is_import) = (frozen, true);
        stage
    }

    /// Takes over the comments and descriptions of an older version of the file.
    pub fn keep_text_of(&mut self, old: &Self) {
        self.text.clone_from(&old.text);
        if let (Value::Map(entries), Value::Map(old)) = (&mut self.value, &old.value) {
            entries.extend(old.iter().filter(|(key, _)| matches!(key.as_str(), "desc" | "meta")).cloned());
        }
    }

    /// Where the output comes from, if this is an import.
    pub fn import(&self) -> Option<Import> {
        if self.name.is_some() || self.value.get("cmd").is_some() || self.outs.len() != 1 {
            return None;
        }
        let [dependency] = self.value.get("deps")?.items() else { return None };
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let path = text(dependency.get("path"))?;
        let Some(repository) = dependency.get("repo") else { return Some(Import::Url(path)) };
        Some(Import::Repository {
            url: text(repository.get("url"))?,
            path,
            revision: text(repository.get("rev")),
            commit: text(repository.get("rev_lock")),
            config: repository.get("config").cloned(),
            remote: repository.get("remote").cloned(),
        })
    }

    /// Sets values of the dependency (with `repo` those of its repository), in their place, or after all others; `None` removes one.
    pub fn set_dependency(&mut self, in_repository: bool, values: Vec<(&str, Option<Value>)>) {
        let Value::Map(entries) = &mut self.value else { return };
        let deps = entries.iter_mut().find(|(key, _)| key == "deps").map(|(_, value)| value);
        let Some(Value::List(items)) = deps else { return };
        let Some(mut target) = items.first_mut() else { return };
        if in_repository {
            let Value::Map(keys) = target else { return };
            let Some((_, repository)) = keys.iter_mut().find(|(key, _)| key == "repo") else { return };
            target = repository;
        }
        let Value::Map(keys) = target else { return };
        for (key, value) in values {
            let position = keys.iter().position(|(name, _)| name == key);
            match (position, value) {
                (Some(i), Some(value)) => keys[i].1 = value,
                (None, Some(value)) => keys.push((key.to_owned(), value)),
                (Some(i), None) => drop(keys.remove(i)),
                (None, None) => {}
            }
        }
    }

    /// Whether the file exists already, so that its order is kept.
    pub fn has_text(&self) -> bool {
        self.text.is_some()
    }

    /// A value of the dependency.
    pub fn dependency(&self, key: &str) -> Option<&Value> {
        self.value.get("deps")?.items().first()?.get(key)
    }

    /// Records the digest of the stage itself.
    pub fn seal(&mut self) {
        let digest = Value::string(self.own_digest());
        let Value::Map(entries) = &mut self.value else { return };
        match entries.iter_mut().find(|(key, _)| key == "md5") {
            Some((_, value)) => *value = digest,
            None => {
                // The file exists and lacks the key, which DVC then writes after the outputs.
                if !entries.iter().any(|(key, _)| key == "outs") {
                    entries.push(("outs".into(), Value::Null));
                }
                entries.push(("md5".into(), digest));
            }
        }
    }

    /// Whether the digest of the stage itself is not as recorded, as after an edit of the file.
    pub fn is_unsealed(&self) -> bool {
        self.value.get("md5").and_then(Value::as_str) != Some(self.own_digest().as_str())
    }

    /// The MD5 of what the stage does, in DVC's form.
    pub(crate) fn own_digest(&self) -> String {
        let old_outs = self.value.get("outs").map_or(&[][..], Value::items);
        let outs = self.outs.iter().enumerate().map(|(i, out)| out.to_value(old_outs.get(i)));
        let mut entries: Vec<(String, Value)> = vec![("outs".into(), Value::List(outs.collect()))];
        for (key, value) in self.value.entries() {
            let is_default = key == "wdir" && value.as_str() == Some(".");
            if !matches!(key.as_str(), "md5" | "outs") && !is_default && !super::is_falsy(value) {
                entries.push((key.clone(), value.clone()));
            }
        }
        let md5: [u8; 16] = Md5::digest(covered(&Value::Map(entries)).to_text()).into();
        Digest::of_file(md5).to_string()
    }
}

/// The covered parts of a value, with keys in their order.
fn covered(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Number(text) => Json::Number(text.clone()),
        Value::String(text) => Json::String(text.clone()),
        Value::List(items) => Json::List(items.iter().map(covered).collect()),
        Value::Map(entries) => {
            let keys = entries.iter().filter(|(key, _)| !NOT_COVERED.contains(&key.as_str()));
            let mut members: Vec<(String, Json)> = keys.map(|(key, value)| (key.clone(), covered(value))).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Map(members)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const TEXT: &str = "md5: 28de29e3f00f447059baab1046a34847
frozen: true
deps:
- path: data
  repo:
    url: ../src
    rev_lock: e6c1475e41c33df03b695a69308120d097402cee
outs:
- md5: 326d7f26ce5379f53984b0ae8cf1f51f.dir
  size: 4
  nfiles: 2
  hash: md5
  path: data
";

    #[test]
    fn the_digest_of_a_stage_is_that_of_dvc() {
        let stage = Stage::parse(Path::new("/p/data.dvc"), Path::new("/p"), TEXT.into()).unwrap();
        assert!(!stage.is_unsealed());
        let edited = TEXT.replace("data\n  repo", "other\n  repo");
        assert!(Stage::parse(Path::new("/p/data.dvc"), Path::new("/p"), edited).unwrap().is_unsealed());
    }

    #[test]
    fn keys_keep_their_places() {
        let mut stage = Stage::parse(Path::new("/p/data.dvc"), Path::new("/p"), TEXT.into()).unwrap();
        stage.set_dependency(true, vec![("rev", Some(Value::string("main"))), ("rev_lock", Some(Value::string("e6")))]);
        stage.seal();
        let text = stage.to_text().unwrap();
        assert!(text.contains("    rev_lock: e6\n    rev: main\n"), "{text}");
        let import = stage.import();
        assert!(matches!(import, Some(Import::Repository { revision: Some(r), .. }) if r == "main"));
        assert!(!stage.is_unsealed());
    }
}
