//! Repositories by URL or path. Of a URL there is a mirror on this machine, which is updated when a revision is not a commit that it has.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use md5::{Digest as _, Md5};
use tokio::process::Command;

use super::Version;
use crate::config::{Files, is_url};
use crate::error::DataError;
use crate::model::Digest;
use crate::project::DVC_DIR;
use crate::scm::{Git, without_credentials};

/// Time limit of a clone or an update.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(600);
/// A transfer that receives less than a kilobyte per second for this many seconds fails.
const STALL_SECONDS: &str = "30";
/// Limit of a file that Git writes, in blocks of 512 bytes: packs of more than 16 GiB are not received, so that a repository cannot fill the disk.
const MAX_FILE_BLOCKS: &str = "33554432";
/// Protocols that Git may use; `ext::` would run a command.
const PROTOCOLS: &str = "file:git:http:https:ssh";

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
                (mirror(version, rev, mirrors).await.map_err(failed)?, None)
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
async fn mirror(version: &Version, rev: &str, mirrors: &Path) -> Result<Git, String> {
    let url = version.repo.as_str();
    let credentials = version.credentials.git.as_deref().unwrap_or_default();
    let path = mirrors.join(md5_hex(format!("{url}\0{credentials}")));
    let store = path.with_extension("credentials");
    let helper = format!("credential.helper=store --file='{}'", store.display());
    let mut options = Vec::new();
    if !credentials.is_empty() {
        let written = slipway_core::files::replace_as(&store, credentials.as_bytes(), 0o600);
        written.map_err(|error| format!("{}: {error}", store.display()))?;
        options = vec!["-c", "credential.helper=", "-c", &helper];
    }
    let updated = update(url, rev, &path, &options).await;
    if !credentials.is_empty() {
        let _ = std::fs::remove_file(&store); // It is replaced by the next request.
    }
    updated.map(|()| Git::at(&path))
}

/// Creates the mirror at a path, or updates it if it does not have the revision.
pub(crate) async fn update(url: &str, rev: &str, path: &Path, options: &[&str]) -> Result<(), String> {
    if !path.is_dir() {
        let mirrors = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(mirrors).map_err(|error| format!("{}: {error}", mirrors.display()))?;
        let unfinished = mirrors.join(crate::incoming::temporary_name());
        let cloned = git(options, &["clone", "--mirror", "--quiet", "--", url, &unfinished.to_string_lossy()]).await;
        // The mirror gets its name when it is complete. If another task was faster, its mirror is the same.
        let renamed = cloned.and_then(|()| match std::fs::rename(&unfinished, path) {
            Err(error) if !path.is_dir() => Err(error.to_string()),
            _ => Ok(()),
        });
        let _ = std::fs::remove_dir_all(&unfinished); // It exists only after a failure.
        return renamed;
    }
    let is_commit = rev.len() == 40 && rev.bytes().all(|b| b.is_ascii_hexdigit());
    if is_commit && Git::at(path).resolve(rev).is_ok() {
        return Ok(());
    }
    git(options, &["-C", &path.to_string_lossy(), "fetch", "--prune", "--quiet", "origin"]).await
}

/// Runs a Git command that transfers. It cannot ask for a password, and ends with an error instead of waiting for ever.
async fn git(options: &[&str], arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -f \"$0\" && exec git \"$@\"", MAX_FILE_BLOCKS])
        .args(["-c", "http.lowSpeedLimit=1000", "-c", &format!("http.lowSpeedTime={STALL_SECONDS}")])
        .args(options)
        .args(arguments)
        .env("LC_ALL", "C")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_ALLOW_PROTOCOL", PROTOCOLS)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if std::env::var_os("GIT_SSH_COMMAND").is_none() {
        command.env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=20");
    }
    let child = command.spawn().map_err(|error| format!("the program git cannot be run: {error}"))?;
    let output = match tokio::time::timeout(TRANSFER_TIMEOUT, child.wait_with_output()).await {
        Ok(output) => output.map_err(|error| error.to_string())?,
        Err(_) => return Err(format!("git did not finish within {} s", TRANSFER_TIMEOUT.as_secs())),
    };
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(3).collect();
    Err(lines.join(" "))
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
