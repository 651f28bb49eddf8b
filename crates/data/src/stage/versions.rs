//! Versions of files in buckets that keep all of them: the entries `cloud` and `files`.

use std::collections::HashMap;

use crate::manifest::{Entry, Manifest};
use crate::model::Digest;
use crate::yaml::Value;

/// Where a bucket with versions has a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CloudVersion {
    /// The name of the remote.
    pub remote: String,
    /// The entity tag.
    pub etag: Option<String>,
    /// The id of the version.
    pub version: Option<String>,
}

/// A file in a folder that is recorded as the list of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// The path below the folder, with `/` as separator.
    pub path: String,
    /// The digest.
    pub digest: Digest,
    /// Bytes, if recorded.
    pub size: Option<u64>,
    /// Whether the owner may execute it.
    pub is_exec: bool,
    /// Where a bucket has it.
    pub cloud: Option<CloudVersion>,
}

impl CloudVersion {
    /// The version in an entry of a file.
    pub(super) fn parse(item: &Value) -> Option<Self> {
        let (remote, version) = item.get("cloud")?.entries().first()?;
        let text = |key: &str| version.get(key).and_then(Value::as_str).map(str::to_owned);
        Some(Self { remote: remote.clone(), etag: text("etag"), version: text("version_id") })
    }

    pub(super) fn to_value(&self) -> Value {
        let texts = [("etag", &self.etag), ("version_id", &self.version)];
        let entries =
            texts.into_iter().filter_map(|(key, text)| Some((key.to_owned(), Value::string(text.as_deref()?))));
        Value::Map(vec![(self.remote.clone(), Value::Map(entries.collect()))])
    }
}

/// Reads a list of files.
///
/// # Errors
/// What is wrong with it. A path that leaves the folder is rejected.
pub(super) fn parse(list: &Value) -> Result<Vec<ListedFile>, String> {
    let file = |item: &Value| {
        let path = item.get("relpath").and_then(Value::as_str).unwrap_or_default();
        if path.contains('\0') || path.split('/').any(|name| matches!(name, "" | "." | "..")) {
            return Err(format!("'{path}' is not the path of a file in a folder"));
        }
        let md5 = item.get("md5").and_then(Value::as_str).unwrap_or_default();
        let digest = Digest::parse(md5).filter(|digest| !digest.is_dir);
        Ok(ListedFile {
            digest: digest.ok_or_else(|| format!("'{md5}' of '{path}' is not an MD5 digest of a file"))?,
            path: path.to_owned(),
            size: item.get("size").and_then(Value::as_u64),
            is_exec: item.get("isexec").and_then(Value::as_bool).unwrap_or(false),
            cloud: CloudVersion::parse(item),
        })
    };
    list.items().iter().map(file).collect()
}

/// The manifest of a folder with these files.
pub(super) fn manifest(files: &[ListedFile]) -> Manifest {
    let entry = |file: &ListedFile| Entry { path: file.path.clone(), digest: file.digest, size: file.size };
    Manifest::new(files.iter().map(entry).collect())
}

/// The entry, sorted by path.
pub(super) fn to_value(files: &[ListedFile]) -> Value {
    let mut sorted: Vec<&ListedFile> = files.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let file = |file: &ListedFile| {
        let mut entries = vec![
            ("relpath".to_owned(), Value::string(file.path.as_str())),
            ("md5".to_owned(), Value::string(file.digest.to_string())),
        ];
        let mut push = |key: &str, value: Option<Value>| entries.extend(value.map(|value| (key.to_owned(), value)));
        push("size", file.size.map(Value::number));
        push("isexec", file.is_exec.then_some(Value::Bool(true)));
        push("cloud", file.cloud.as_ref().map(CloudVersion::to_value));
        Value::Map(entries)
    };
    Value::List(sorted.into_iter().map(file).collect())
}

/// The list of the files of a manifest, with what `old` has of the files with the same content.
pub(super) fn merge(old: &[ListedFile], manifest: &Manifest) -> Vec<ListedFile> {
    let known: HashMap<&str, &ListedFile> = old.iter().map(|file| (file.path.as_str(), file)).collect();
    let file = |entry: &Entry| {
        let same = known.get(entry.path.as_str()).copied().filter(|file| file.digest == entry.digest);
        same.cloned().unwrap_or_else(|| ListedFile {
            path: entry.path.clone(),
            digest: entry.digest,
            size: entry.size,
            is_exec: false,
            cloud: None,
        })
    };
    manifest.entries.iter().map(file).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Meta;
    use crate::stage::Stage;

    const FOLDER: &str = "outs:\n- hash: md5\n  path: d\n  files:\n  - relpath: a\n    md5: 0cc175b9c0f1b6a831c399e269772661\n    size: 1\n    \
                          cloud:\n      r:\n        etag: 0cc175b9c0f1b6a831c399e269772661\n        version_id: v1\n  - relpath: s/b\n    \
                          md5: 92eb5ffee6ae2fec3ad71c777531578f\n    size: 1\n    isexec: true\n";

    fn stage(text: &str) -> Result<Stage, crate::DataError> {
        Stage::parse(Path::new("/p/d.dvc"), Path::new("/p"), text.into())
    }

    #[test]
    fn a_list_of_files_is_a_folder_and_is_written_as_it_was_read() {
        let folder = stage(FOLDER).unwrap();
        let out = &folder.outs[0];
        assert_eq!(out.digest, Some(out.manifest().unwrap().digest()));
        assert_eq!(out.meta, Meta { size: Some(2), nfiles: Some(2), is_exec: false });
        assert_eq!(folder.to_text().unwrap(), FOLDER);
        let file = "outs:\n- md5: 0cc175b9c0f1b6a831c399e269772661\n  size: 1\n  hash: md5\n  path: d\n  cloud:\n    r:\n      etag: e\n      version_id: v1\n";
        assert_eq!(stage(file).unwrap().to_text().unwrap(), file);
    }

    #[test]
    fn files_with_the_same_content_keep_their_versions() {
        let mut folder = stage(FOLDER).unwrap();
        let out = &mut folder.outs[0];
        let mut manifest = out.manifest().unwrap();
        manifest.entries[1].digest = Digest::of_file([1; 16]);
        out.record(manifest.digest(), Meta::default(), Some(&manifest));
        let versions: Vec<_> = out.files.iter().flatten().map(|file| file.cloud.is_some()).collect();
        assert_eq!(versions, [true, false]);
        assert_eq!(out.digest, Some(manifest.digest()));
    }

    #[test]
    fn paths_that_leave_the_folder_are_rejected() {
        for path in ["../x", "/x", "a//b", "''"] {
            let error = stage(&FOLDER.replace("relpath: a", &format!("relpath: {path}"))).unwrap_err().to_string();
            assert!(error.contains("not the path of a file"), "{path}: {error}");
        }
    }
}
