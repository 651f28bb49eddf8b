//! Versions of data: those that a run needs (`spec.data`), and those of the project that it was submitted from (`spec.source`).

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ExecError;

/// Variable with the paths of the data of a run, in the order of `spec.data`, separated by colons.
pub const DATA_VARIABLE: &str = "SLIPWAY_DATA";
/// Maximum number of versions of data in a manifest.
const MAX_VERSIONS: usize = 64;
/// Maximum characters of a field. Linux limits a path to 4096 bytes.
const MAX_CHARS: usize = 4000;

/// A version of data that a run needs: a file or folder that a repository tracks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DataVolume {
    /// URL of the Git repository; on a single machine also the absolute path of one.
    pub repo: String,
    /// Commit, tag or branch; the last commit of the default branch if unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rev: Option<String>,
    /// Path of the file or folder from the root of the repository. A `.dvc` file, a pipeline or Git tracks it.
    pub path: String,
    /// The digest that the data must have: MD5 of the file, or of the folder's manifest with the suffix `.dir`. Not checked if unset; required
    /// in a cluster, where `slipway run submit` sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Name of a secret in the namespace of the run with credentials for the repository and the remote. Clusters only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// Where the run finds it. On a single machine relative to the working directory; an absolute path is not created there, and only the
    /// variable `SLIPWAY_DATA` has the location. Absolute in a cluster.
    pub mount_path: String,
}

/// A version of data as a run used it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsedData {
    /// URL or path of the repository.
    pub repo: String,
    /// The commit.
    pub commit: String,
    /// Path of the file or folder from the root of the repository.
    pub path: String,
    /// The `.dvc` file or pipeline that tracks the path, from the root of the repository; empty if Git tracks it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// MD5 of the file, or of the folder's manifest with the suffix `.dir`.
    pub digest: String,
    /// Bytes, if recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Number of files, if recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
}

/// The repository that a run was submitted from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(rename = "RunSource")]
pub struct Source {
    /// URL of the remote `origin`, or the path of the work tree without one.
    pub repo: String,
    /// The commit that was checked out.
    pub commit: String,
    /// The branch that was checked out.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub branch: String,
    /// The folder of the run from the root of the repository; empty for the root.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Whether files that Git tracks differed from the commit.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dirty: bool,
    /// The data of the project in the workspace, as its `.dvc` files and pipelines record it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<UsedData>,
    /// Paths of tracked data whose content differed from what is recorded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modified: Vec<String>,
}

impl Source {
    /// The tags of the tracked run: MLflow's own for the source code, and slipway's for what these cannot say.
    pub(crate) fn tags(&self) -> Vec<(String, String)> {
        let dirty = if self.dirty { "true" } else { "" };
        let tags = [
            ("mlflow.source.git.repoURL", self.repo.as_str()),
            ("mlflow.source.git.commit", &self.commit),
            ("mlflow.source.git.branch", &self.branch),
            ("slipway.source.path", &self.path),
            ("slipway.source.dirty", dirty),
            ("slipway.source.modified", &self.modified.join("\n")),
        ];
        tags.iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect()
    }
}

/// Data that is on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedData {
    /// What it is.
    pub used: UsedData,
    /// The read-only file or folder.
    pub location: PathBuf,
}

/// Brings versions of data to this machine, as the executor sees it. The server implements this trait.
pub trait DataSource: Send + Sync {
    /// Fetches a version of data, and keeps it until the run with the unique id `holder` releases it. `progress` gets sentences such as
    /// "fetching images: 10 of 200 files". The error is a sentence, too. Dropping the future stops the transfer.
    fn fetch<'a>(
        &'a self,
        holder: &'a str,
        data: &'a DataVolume,
        progress: Box<dyn Fn(String) + Send + Sync>,
    ) -> BoxFuture<'a, Result<FetchedData, String>>;
    /// Ends the use of data by a run. Idempotent. Blocks.
    fn release(&self, holder: &str) -> Result<(), String>;
    /// Ends the use of data by all runs but these, which is what a killed server did not do. Blocks.
    fn release_others(&self, holders: &HashSet<String>) -> Result<(), String>;
    /// The folder that contains all locations.
    fn locations(&self) -> PathBuf;
}

/// The data of a run (`spec.data`) whose manifest names commit and digest of all of it; otherwise none.
pub fn pinned(data: &[DataVolume]) -> Vec<UsedData> {
    let used = |data: &DataVolume| {
        Some(UsedData {
            repo: data.repo.clone(),
            commit: data.rev.clone()?,
            path: data.path.clone(),
            digest: data.digest.clone()?,
            ..UsedData::default()
        })
    };
    data.iter().map(used).collect::<Option<_>>().unwrap_or_default()
}

/// Validates `spec.data`. `mount_paths` are those of other volumes.
///
/// # Errors
/// [`ExecError::Manifest`] that names the invalid entry.
pub(crate) fn check(versions: &[DataVolume], mount_paths: &[&str]) -> Result<(), ExecError> {
    let invalid = |text: String| Err(ExecError::Manifest(text));
    if versions.len() > MAX_VERSIONS {
        return invalid(format!("spec.data has {} entries; the limit is {MAX_VERSIONS}", versions.len()));
    }
    for (i, data) in versions.iter().enumerate() {
        let fields = [
            ("repo", data.repo.as_str()),
            ("rev", data.rev.as_deref().unwrap_or("HEAD")),
            ("path", &data.path),
            ("mountPath", &data.mount_path),
        ];
        for (field, value) in fields {
            if value.is_empty()
                || value.len() > MAX_CHARS
                || value.chars().any(char::is_control)
                || value.starts_with('-')
            {
                return invalid(format!(
                    "spec.data[{i}].{field} is '{}'; it must have 1 to {MAX_CHARS} printable characters and not begin with a dash",
                    value.chars().take(100).collect::<String>().escape_debug()
                ));
            }
        }
        if data.digest.as_deref().is_some_and(|digest| !is_digest(digest)) {
            return invalid(format!(
                "spec.data[{i}].digest is not 32 hexadecimal digits, with the suffix .dir for a folder"
            ));
        }
        if has_password(&data.repo) {
            return invalid(format!(
                "spec.data[{i}].repo has a password in it, which everybody who may see the run could read; use a credential helper of Git, \
                 or a secret in a cluster"
            ));
        }
        if !is_inside(&data.path) {
            return invalid(format!(
                "spec.data[{i}].path '{}' is not a path from the root of the repository",
                data.path
            ));
        }
        let mount = Path::new(&data.mount_path);
        let is_empty = mount.components().all(|part| matches!(part, Component::CurDir | Component::RootDir));
        if is_empty || data.mount_path.contains(':') || mount.components().any(|part| part == Component::ParentDir) {
            return invalid(format!(
                "spec.data[{i}].mountPath '{}' must name a file or folder, without '..' and colons",
                data.mount_path
            ));
        }
        let others = versions[..i].iter().map(|other| other.mount_path.as_str()).chain(mount_paths.iter().copied());
        for other in others.map(Path::new) {
            if mount.starts_with(other) || other.starts_with(mount) {
                return invalid(format!(
                    "spec.data[{i}].mountPath '{}' overlaps with the mount path '{}'",
                    data.mount_path,
                    other.display()
                ));
            }
        }
    }
    Ok(())
}

fn is_digest(text: &str) -> bool {
    let digits = text.strip_suffix(".dir").unwrap_or(text);
    digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn has_password(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
}

/// Whether a path is relative and does not leave its folder.
fn is_inside(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

#[cfg(test)]
mod tests {
    use crate::Manifest;

    fn check(data: &str) -> Result<Manifest, String> {
        let spec = format!("{{command: [a], volumeMounts: [{{name: v, mountPath: /mnt/v}}], data: [{data}]}}");
        let text = format!("apiVersion: slipway.dev/v1\nkind: Run\nmetadata: {{name: a}}\nspec: {spec}");
        Manifest::parse(&text).map_err(|error| error.to_string())
    }

    #[test]
    fn invalid_data_is_rejected_with_the_name_of_the_field() {
        let run = check("{repo: 'https://me@host/x.git', rev: v1, path: images/train, mountPath: data/train}").unwrap();
        assert_eq!(run.spec.data[0].rev.as_deref(), Some("v1"));
        for (data, message) in [
            ("{path: x, mountPath: x}", "repo"),
            ("{repo: /r, path: x, mountPath: x, revision: v1}", "revision"),
            ("{repo: '', path: x, mountPath: x}", "spec.data[0].repo"),
            ("{repo: '-oProxyCommand=x', path: x, mountPath: x}", "spec.data[0].repo"),
            ("{repo: 'https://a:b@host/x', path: x, mountPath: x}", "password"),
            ("{repo: /r, rev: --all, path: x, mountPath: x}", "spec.data[0].rev"),
            ("{repo: /r, path: ../x, mountPath: x}", "spec.data[0].path"),
            ("{repo: /r, path: /x, mountPath: x}", "spec.data[0].path"),
            ("{repo: /r, path: x, mountPath: ../x}", "spec.data[0].mountPath"),
            ("{repo: /r, path: x, mountPath: .}", "spec.data[0].mountPath"),
            ("{repo: /r, path: x, mountPath: 'a:b'}", "spec.data[0].mountPath"),
            ("{repo: /r, path: x, mountPath: x, digest: d41d}", "spec.data[0].digest"),
            ("{repo: /r, path: x, mountPath: /mnt}", "overlaps"),
            ("{repo: /r, path: x, mountPath: a}, {repo: /r, path: x, mountPath: a/b}", "spec.data[1].mountPath"),
        ] {
            let error = check(data).unwrap_err();
            assert!(error.contains(message), "{data}: {error}");
        }
    }
}
