//! Repositories by URL or path. Of a URL there is a mirror on this machine, which is updated when a revision is not a commit that it has.

use std::path::{Path, PathBuf};

use md5::{Digest as _, Md5};

use super::Version;
use crate::config::{Files, is_url};
use crate::error::DataError;
use crate::model::Digest;
use crate::project::DVC_DIR;
use crate::scm::mirror::{self, Receiver};
use crate::scm::{Git, without_credentials};

/// A repository on this machine, and the commit of a version in it.
#[derive(Debug)]
pub(super) struct Repository {
    /// For Git commands.
    pub(super) git: Git,
    /// The commit.
    pub(super) commit: String,
    /// The work tree, unless this is a mirror.
    pub(super) work_tree: Option<PathBuf>,
    /// The URL or path, for the user.
    pub(super) name: String,
}

impl Repository {
    /// Opens the repository of a version, whose mirror is in the folder `mirrors`. With `only_remote`, repositories of this machine are
    /// rejected.
    ///
    /// # Errors
    /// [`DataError::Repository`] if it cannot be reached, is not a repository, or does not have the revision.
    pub(super) async fn open(version: &Version, mirrors: &Path, only_remote: bool) -> Result<Self, DataError> {
        let name = without_credentials(&version.repo);
        let failed = |reason: String| DataError::Repository { repo: name.clone(), reason };
        let rev = version.rev.as_deref().unwrap_or("HEAD");
        if only_remote && (Path::new(&version.repo).is_absolute() || version.repo.starts_with("file:")) {
            return Err(failed("a repository of this machine cannot be used here; use its URL".into()));
        }
        let (git, work_tree) = match Path::new(&version.repo) {
            path if path.is_absolute() => {
                let bare = path.join("HEAD").is_file() && path.join("objects").is_dir();
                let found = if bare { Some(Git::at(path)) } else { Git::find(path, false) };
                let git = found.ok_or_else(|| failed("it is not the root of a Git repository".into()))?;
                (git, (!bare).then(|| path.to_owned()))
            }
            _ if is_url(&version.repo) || is_scp_form(&version.repo) => {
                (mirrored(version, mirrors).await.map_err(failed)?, None)
            }
            _ => return Err(failed("it is neither a URL nor an absolute path".into())),
        };
        let commit = match git.resolve(rev) {
            Ok(Some(commit)) => commit,
            Ok(None) => return Err(failed("it has no commits".into())),
            Err(DataError::Git(reason)) => return Err(failed(reason)),
            Err(error) => return Err(error),
        };
        Ok(Self { git, commit, work_tree, name })
    }

    /// The configuration files of the project in the folder `project` of the repository: those of the work tree, or of the commit, of which
    /// a copy is written into the folder `copies`, with `local` as its local level.
    pub(super) fn config(&self, project: &Path, copies: &Path, local: Option<&str>) -> Result<Files, DataError> {
        if let Some(work_tree) = &self.work_tree {
            return Ok(Files::new(Some(work_tree.join(project).join(DVC_DIR))));
        }
        let path = project.join(DVC_DIR).join("config");
        let content = self.git.read(&self.commit, |file| Path::new(file) == path)?.remove(&path).unwrap_or_default();
        let local = local.unwrap_or_default();
        let folder = copies.join(md5_hex([content.as_slice(), b"\0", local.as_bytes()].concat()));
        for (name, content) in [("config", content.as_slice()), ("config.local", local.as_bytes())] {
            let copy = folder.join(name);
            slipway_core::files::replace_as(&copy, content, 0o600).map_err(DataError::io(&copy))?;
        }
        Ok(Files::new(Some(folder)))
    }
}

/// The form `USER@HOST:PATH` of an SSH address.
fn is_scp_form(text: &str) -> bool {
    text.split_once(':').is_some_and(|(host, _)| host.contains('@') && !host.starts_with('-') && !host.contains('/'))
}

fn md5_hex(bytes: impl AsRef<[u8]>) -> String {
    Digest::of_file(Md5::digest(bytes).into()).to_string()
}

/// A mirror of a repository that has the revision. Each set of credentials has its own, so that nobody sees more than these allow.
async fn mirrored(version: &Version, mirrors: &Path) -> Result<Git, String> {
    let url = version.repo.as_str();
    let credentials = version.credentials.git.as_deref().unwrap_or_default();
    let path = mirrors.join(md5_hex(format!("{url}\0{credentials}")));
    let store = path.with_extension("credentials");
    if !credentials.is_empty() {
        let written = slipway_core::files::replace_as(&store, credentials.as_bytes(), 0o600);
        written.map_err(|error| format!("{}: {error}", store.display()))?;
    }
    let with_store = (!credentials.is_empty()).then_some(store.as_path());
    let updated = mirror::update(url, version.rev.as_deref(), &path, Receiver::Service(with_store)).await;
    if let Some(store) = with_store {
        let _ = std::fs::remove_file(store); // It is replaced by the next request.
    }
    updated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_a_repository_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let open = |repo: &str| {
            let version = Version { repo: repo.into(), path: "x".into(), ..Version::default() };
            let folder = folder.path().to_owned();
            async move { Repository::open(&version, &folder, false).await.unwrap_err().to_string() }
        };
        let here = folder.path().display().to_string();
        assert!(open(&here).await.contains("not the root of a Git repository"));
        assert!(open("data").await.contains("neither a URL nor an absolute path"));
        assert!(open("-u@host:x").await.contains("neither a URL"));
        assert!(open(&format!("file://{here}/none")).await.contains("none"));
        let refused = open("ext://sh").await;
        assert!(refused.contains("not allowed") || refused.contains("ext"), "{refused}");
    }
}
