//! Mirrors: bare repositories on this machine with the references of repositories at URLs. A mirror is updated when a revision may have moved or is
//! missing, so that commands on a commit that it has need no network.
//!
//! Invariant: a mirror appears under its name when it is complete. The URL, which may contain credentials, is not stored in it.

use std::fs::{File, OpenOptions};
use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::Git;
use super::url::{PROTOCOLS, check, redact_in};
use crate::incoming::TEMPORARY;

/// Maximum duration of a transfer for a person, who can interrupt it, and for a service.
const PERSON_TIMEOUT: Duration = Duration::from_secs(30 * 60);
const SERVICE_TIMEOUT: Duration = Duration::from_secs(600);
/// A transfer for a service that receives less than a kilobyte per second for this many seconds fails.
const STALL_SECONDS: u32 = 30;
/// Limit of a file that Git writes for a service, in blocks of 512 bytes: packs of more than 16 GiB are not received, so that a repository cannot fill the
/// disk.
const MAX_FILE_BLOCKS: &str = "33554432";
/// Maximum bytes kept of the output of Git, and of its messages.
const MAX_OUTPUT_BYTES: u64 = 1 << 16;
/// Maximum number of lines of Git's messages in a response of a service.
const MAX_LINES: usize = 3;

/// For whom a mirror is updated.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Receiver<'a> {
    /// A person at a terminal. Git uses the credentials of this person, and may prompt for them. The mirror has the branches and tags.
    Person,
    /// A service, with a file of Git's credential store. Git does not prompt, and its transfers are limited. The mirror has all references, also those of
    /// experiments.
    Service(Option<&'a Path>),
}

impl Receiver<'_> {
    fn references(self) -> &'static [&'static str] {
        match self {
            Self::Person => &["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"],
            Self::Service(_) => &["+refs/*:refs/*"],
        }
    }

    fn timeout(self) -> Duration {
        match self {
            Self::Person => PERSON_TIMEOUT,
            Self::Service(_) => SERVICE_TIMEOUT,
        }
    }

    /// Git with its options before the command. It never runs a helper that a URL names.
    fn command(self) -> Command {
        let mut command = match self {
            Self::Person => Command::new("git"),
            Self::Service(_) => {
                let mut command = Command::new("sh");
                command.args(["-c", "ulimit -f \"$0\" && exec git \"$@\"", MAX_FILE_BLOCKS]);
                command.args(["-c", "http.lowSpeedLimit=1000", "-c", &format!("http.lowSpeedTime={STALL_SECONDS}")]);
                command
            }
        };
        if let Self::Service(Some(store)) = self {
            let helper = format!("credential.helper=store --file='{}'", store.display());
            command.args(["-c", "credential.helper=", "-c", &helper]);
        }
        command
            .env("LC_ALL", "C")
            .env("GIT_ALLOW_PROTOCOL", PROTOCOLS)
            .env_remove("GIT_DIR")
            .env_remove("GIT_WORK_TREE");
        let is_service = matches!(self, Self::Service(_));
        if is_service || !std::io::stdin().is_terminal() {
            command.env("GIT_TERMINAL_PROMPT", "0");
        }
        if is_service && std::env::var_os("GIT_SSH_COMMAND").is_none() {
            command.env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=20");
        }
        command
    }

    /// Messages of Git: all of them for a person, the first lines for a response of a service.
    fn shown(self, messages: &str) -> String {
        match self {
            Self::Person => messages.trim().to_owned(),
            Self::Service(_) => {
                let lines = messages.lines().map(str::trim).filter(|line| !line.is_empty());
                lines.take(MAX_LINES).collect::<Vec<_>>().join(" ")
            }
        }
    }

    /// Runs Git in a repository within the time limit, and returns its output.
    async fn run(self, repository: &Path, arguments: &[&str], url: &str) -> Result<String, String> {
        let mut command = self.command();
        command.arg("-C").arg(repository).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let not_run = |error: std::io::Error| format!("the program git cannot be run: {error}");
        let mut child = command.spawn().map_err(not_run)?;
        let (output, messages) = (child.stdout.take(), child.stderr.take());
        let ended = async { tokio::join!(child.wait(), read(output), read(messages)) };
        match tokio::time::timeout(self.timeout(), ended).await {
            Ok((status, output, messages)) => match status.map_err(not_run)?.success() {
                true => Ok(output),
                false => Err(redact_in(&self.shown(&messages), url)),
            },
            Err(_) => Err(format!("git did not finish within {} s", self.timeout().as_secs())),
        }
    }
}

/// The beginning of a stream. All of it is read, so that the program does not block.
async fn read(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        let _ = (&mut stream).take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes).await; // What was read before a failure is shown.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Creates the mirror at a path, or updates it unless it has the commit `revision`, and opens it. By default, the default branch is meant.
///
/// # Errors
/// The reason, without credentials, if the URL is not accepted or the repository cannot be received.
pub(crate) async fn update(
    url: &str,
    revision: Option<&str>,
    path: &Path,
    receiver: Receiver<'_>,
) -> Result<Git, String> {
    check(url).map_err(|error| error.to_string())?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let failed = |error: std::io::Error| format!("{}: {error}", parent.display());
    std::fs::create_dir_all(parent).map_err(failed)?;
    let _lock = lock(path).await.map_err(failed)?;
    let git = Git::at(path);
    if path.join("HEAD").is_file() {
        let is_commit = |revision: &&str| revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit());
        if revision.filter(is_commit).is_none_or(|commit| git.resolve(commit).is_err()) {
            receive(url, path, receiver).await?;
        }
        return Ok(git);
    }
    let unfinished = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(parent).map_err(failed)?;
    receiver.run(unfinished.path(), &["init", "--quiet", "--bare"], url).await?;
    receive(url, unfinished.path(), receiver).await?;
    std::fs::rename(unfinished.path(), path).map_err(failed)?;
    Ok(git)
}

/// Receives the references, and which branch is the default one.
async fn receive(url: &str, path: &Path, receiver: Receiver<'_>) -> Result<(), String> {
    let fetch = ["fetch", "--quiet", "--prune", "--no-write-fetch-head", "--no-tags", "--force", "--", url];
    receiver.run(path, &[&fetch[..], receiver.references()].concat(), url).await?;
    let heads = receiver.run(path, &["ls-remote", "--symref", "--", url, "HEAD"], url).await?;
    let branch = heads.lines().find_map(|line| line.strip_prefix("ref: ")?.split('\t').next());
    if let Some(branch) = branch.filter(|branch| branch.starts_with("refs/heads/")) {
        receiver.run(path, &["symbolic-ref", "HEAD", branch], url).await?;
    }
    Ok(())
}

/// The lock of a mirror; commands that need the same one wait for each other.
async fn lock(path: &Path) -> std::io::Result<File> {
    let path = path.with_extension(LOCK);
    let locked = tokio::task::spawn_blocking(move || {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        file.lock()?;
        Ok(file)
    });
    locked.await.map_err(std::io::Error::other)?
}

/// The extension of the file with the lock of a mirror.
pub(crate) const LOCK: &str = "lock";

#[cfg(test)]
mod tests {
    use super::*;

    fn git(folder: &Path, arguments: &[&str]) {
        let mut command = std::process::Command::new("git");
        command.args(["-c", "user.name=n", "-c", "user.email=n@example.invalid"]).current_dir(folder).args(arguments);
        assert!(command.output().unwrap().status.success(), "{arguments:?}");
    }

    #[tokio::test]
    async fn a_mirror_follows_its_source_and_names_no_url() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        std::fs::create_dir(&source).unwrap();
        git(&source, &["init", "-q", "-b", "first"]);
        git(&source, &["commit", "-q", "--allow-empty", "-m", "one"]);
        git(&source, &["update-ref", "refs/exps/a", "HEAD"]);
        let url = format!("file://{}", source.display());
        let path = folder.path().join("mirrors/a.git");
        for (receiver, has_experiments) in [(Receiver::Person, false), (Receiver::Service(None), true)] {
            let mirror = update(&url, None, &path, receiver).await.unwrap();
            assert_eq!(mirror.references("refs/exps/a").unwrap().len() == 1, has_experiments);
        }
        assert!(!std::fs::read_to_string(path.join("config")).unwrap().contains("source"));
        let before = Git::at(&path).resolve("HEAD").unwrap().unwrap();
        git(&source, &["checkout", "-q", "-b", "second"]);
        git(&source, &["commit", "-q", "--allow-empty", "-m", "two"]);
        // The mirror has this commit, so nothing is received.
        update(&url, Some(&before), &path, Receiver::Person).await.unwrap();
        assert_eq!(Git::at(&path).resolve("HEAD").unwrap().unwrap(), before);
        let mirror = update(&url, None, &path, Receiver::Person).await.unwrap();
        assert_eq!(mirror.resolve("HEAD").unwrap(), Git::at(&source).resolve("second").unwrap());
    }

    #[tokio::test]
    async fn a_failure_leaves_no_mirror() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mirrors/a.git");
        let url = format!("file://{}/none", folder.path().display());
        let reason = update(&url, None, &path, Receiver::Service(None)).await.unwrap_err();
        assert!(reason.contains("none"), "{reason}");
        assert!(update("ext::sh -c true", None, &path, Receiver::Person).await.is_err());
        let left: Vec<_> = std::fs::read_dir(folder.path().join("mirrors")).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "only the lock: {left:?}");
    }
}
