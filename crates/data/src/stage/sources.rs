//! The versions of an import from a bucket that keeps all versions of its files.

use super::{Import, Stage};
use crate::yaml::Value;

/// A version of a file at the URL of an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// The path below the URL; empty for the file at the URL itself.
    pub path: String,
    /// The entity tag.
    pub etag: Option<String>,
    /// Bytes, if recorded.
    pub size: Option<u64>,
    /// The id of the version.
    pub version: String,
}

impl SourceFile {
    fn parse(entry: &Value, path: &str) -> Option<Self> {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        let size = entry.get("size").and_then(Value::as_u64);
        Some(Self { path: path.to_owned(), etag: text("etag"), size, version: text("version_id")? })
    }

    fn values(&self) -> Vec<(&'static str, Option<Value>)> {
        vec![
            ("etag", self.etag.as_deref().map(Value::string)),
            ("size", self.size.map(Value::number)),
            ("version_id", Some(Value::string(self.version.as_str()))),
        ]
    }
}

impl Stage {
    /// The recorded versions of an import: whether it is a folder, and its files. `None` if it is no import from a bucket with versions, or none
    /// is recorded yet.
    pub fn source_files(&self) -> Option<(bool, Vec<SourceFile>)> {
        let Some(Import::Url(_)) = self.import() else { return None };
        let dependency = self.value.get("deps")?.items().first()?;
        let Some(files) = dependency.get("files") else {
            return Some((false, vec![SourceFile::parse(dependency, "")?]));
        };
        let path = |entry: &Value| entry.get("relpath").and_then(Value::as_str).map(str::to_owned);
        let files = files.items().iter().map(|entry| SourceFile::parse(entry, &path(entry)?));
        Some((true, files.collect::<Option<_>>()?))
    }

    /// Whether the source of this import has the imported version for ever: a commit of a repository, or versions of a bucket's files.
    pub fn keeps_source(&self) -> bool {
        matches!(self.import(), Some(Import::Repository { .. })) || self.source_files().is_some()
    }

    /// Records the versions of an import in DVC's form: those of a folder as the list of its files.
    pub fn set_source_files(&mut self, is_folder: bool, files: &[SourceFile]) {
        if let (false, [file]) = (is_folder, files) {
            self.set_dependency(false, vec![("files", None)]);
            self.identify_dependency(file.values());
            return;
        }
        let entry = |file: &SourceFile| {
            let named = [("relpath", Some(Value::string(file.path.as_str())))].into_iter().chain(file.values());
            Value::Map(named.filter_map(|(key, value)| Some((key.to_owned(), value?))).collect())
        };
        let files = Value::List(files.iter().map(entry).collect());
        self.set_dependency(false, vec![("etag", None), ("size", None), ("version_id", None), ("files", Some(files))]);
    }

    /// Sets the values that identify the data at a URL. In a new file they are the first keys of the dependency.
    pub fn identify_dependency(&mut self, values: Vec<(&str, Option<Value>)>) {
        let is_new = !self.has_text() && values.iter().all(|(key, _)| self.dependency(key).is_none());
        let others: Vec<(String, Value)> = match is_new {
            true => {
                self.value.get("deps").and_then(|deps| deps.items().first()).map_or(&[][..], Value::entries).to_vec()
            }
            false => Vec::new(),
        };
        self.set_dependency(false, others.iter().map(|(key, _)| (key.as_str(), None)).collect());
        self.set_dependency(false, values);
        self.set_dependency(false, others.iter().map(|(key, value)| (key.as_str(), Some(value.clone()))).collect());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const FILE: &str = "md5: ea276ebf174ffc49431f6e96ca923fff\nfrozen: true\ndeps:\n- etag: 5bbf5a52328e7439ae6e719dfe712200\n  size: 4\n  \
                        version_id: 01M8MP5V1RHT1CKJPV62091BP4\n  hash: md5\n  path: remote://s/a\n  fs_config:\n    version_aware: true\nouts:\n- \
                        md5: 5bbf5a52328e7439ae6e719dfe712200\n  size: 4\n  hash: md5\n  path: a\n  push: false\n";
    const FOLDER: &str = "md5: 6d72a06cd90d802c91e743ee6938dcd0\nfrozen: true\ndeps:\n- hash: md5\n  path: remote://s/d\n  fs_config:\n    \
                          version_aware: true\n  files:\n  - relpath: s/y\n    etag: e66a3849e30c67423bbb54041c2fdc69\n    size: 3\n    version_id: \
                          01M8MP5V32033E6B77MSPB6GC8\n  - relpath: x\n    etag: e8a5da2185eb0563c20079ce3ca263ba\n    size: 3\n    version_id: \
                          01M8MP5V26HK1A4CZNQM7ZP9YT\nouts:\n- md5: 899965dbb9ce73db2aa875af17c2088a.dir\n  size: 6\n  nfiles: 2\n  hash: md5\n  \
                          path: d\n  push: false\n";

    fn stage(text: &str) -> Stage {
        Stage::parse(Path::new("/p/a.dvc"), Path::new("/p"), text.into()).unwrap()
    }

    #[test]
    fn records_and_their_digest_are_those_of_dvc() {
        for (text, is_folder, count) in [(FILE, false, 1), (FOLDER, true, 2)] {
            let mut read = stage(text);
            assert!(!read.is_unsealed(), "{text}");
            let (folder, files) = read.source_files().unwrap();
            assert_eq!((folder, files.len()), (is_folder, count));
            read.set_source_files(folder, &files);
            assert_eq!(read.to_text().unwrap(), text);
            // The same from a new dependency.
            let keys = [("hash", Value::string("md5")), ("path", read.dependency("path").unwrap().clone())];
            let mut keys: Vec<_> = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            keys.push(("fs_config".into(), Value::Map(vec![("version_aware".into(), Value::Bool(true))])));
            let out = &read.outs[0];
            let mut new =
                Stage::for_import("/p/a.dvc".into(), "/p/x".into(), out.written.clone(), Value::Map(keys), true);
            (new.outs[0].digest, new.outs[0].meta, new.outs[0].can_push) = (out.digest, out.meta, false);
            new.set_source_files(folder, &files);
            new.seal();
            assert_eq!(new.to_text().unwrap(), text);
        }
    }

    #[test]
    fn without_a_version_nothing_is_pinned() {
        assert_eq!(stage(&FILE.replace("  version_id: 01M8MP5V1RHT1CKJPV62091BP4\n", "")).source_files(), None);
        assert_eq!(stage(&FOLDER.replace("    version_id: 01M8MP5V26HK1A4CZNQM7ZP9YT\n", "")).source_files(), None);
    }
}
