//! Copies of other Git repositories in the user's cache folder, one bare repository for each URL. They are fetched again when a revision may have
//! moved or is missing, so that commands on an immutable commit need no network.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use md5::{Digest as _, Md5};

use super::git_url::{self, PROTOCOLS};
use crate::error::DataError;
use crate::model::Digest;
use crate::scm::Git;

/// Maximum duration of a command of Git that uses the network.
const NETWORK_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// How often a running command is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum bytes kept of the messages of Git.
const MAX_MESSAGE_BYTES: u64 = 1 << 16;

/// The user's folder for copies of other repositories.
fn folder() -> Result<PathBuf, DataError> {
    let from_env = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = from_env("XDG_CACHE_HOME").or_else(|| Some(from_env("HOME")?.join(".cache")));
    let cache = cache.ok_or_else(|| DataError::Invalid("neither XDG_CACHE_HOME nor HOME is set".into()))?;
    Ok(cache.join("slipway/repositories"))
}

/// A copy of the repository at `url` that has the revision, or the default branch, and the commit that it names.
///
/// # Errors
/// [`DataError::Invalid`] for a URL that is not accepted, [`DataError::Git`] if the repository cannot be fetched or has no such revision.
pub(crate) fn open(url: &str, revision: Option<&str>) -> Result<(Git, String), DataError> {
    git_url::check(url)?;
    let folder = folder()?;
    std::fs::create_dir_all(&folder).map_err(DataError::io(&folder))?;
    let name = Digest::of_file(Md5::digest(url).into()).to_string();
    let _lock = lock(&folder.join(format!("{name}.lock")))?;
    let path = folder.join(format!("{name}.git"));
    let git = Git::at(&path);
    let is_commit = |revision: &str| revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit());
    if let Some(commit) = revision.filter(|revision| is_commit(revision))
        && path.is_dir()
        && let Ok(Some(commit)) = git.resolve(commit)
    {
        return Ok((git, commit));
    }
    if !path.join("HEAD").is_file() {
        run(command(None).args(["init", "--quiet", "--bare", "--"]).arg(&path), url)?;
    }
    fetch(&path, url)?;
    let commit = git.resolve(revision.unwrap_or("HEAD"))?;
    let commit =
        commit.ok_or_else(|| DataError::Git(format!("the repository {} has no commits", git_url::redact(url))))?;
    Ok((git, commit))
}

/// The lock of a copy; commands that need the same one wait for each other.
fn lock(path: &Path) -> Result<File, DataError> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(DataError::io(path))?;
    file.lock().map_err(DataError::io(path))?;
    Ok(file)
}

/// Fetches all branches and tags, and the name of the default branch. The URL, which may contain credentials, is not stored.
fn fetch(path: &Path, url: &str) -> Result<(), DataError> {
    let refs = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
    let mut fetch = command(Some(path));
    fetch.args(["fetch", "--quiet", "--prune", "--no-write-fetch-head", "--no-tags", "--force", "--", url]).args(refs);
    run(&mut fetch, url)?;
    let heads = run(command(Some(path)).args(["ls-remote", "--symref", "--", url, "HEAD"]), url)?;
    let branch = heads.lines().find_map(|line| line.strip_prefix("ref: ")?.split('\t').next());
    if let Some(branch) = branch.filter(|branch| branch.starts_with("refs/heads/")) {
        run(command(Some(path)).args(["symbolic-ref", "HEAD", branch]), url)?;
    }
    Ok(())
}

/// A command of Git that never runs a helper from a URL, and prompts for credentials only at a terminal.
fn command(folder: Option<&Path>) -> Command {
    let mut command = Command::new("git");
    command.env("LC_ALL", "C").env("GIT_ALLOW_PROTOCOL", PROTOCOLS).env_remove("GIT_DIR").env_remove("GIT_WORK_TREE");
    if !std::io::stdin().is_terminal() {
        command.env("GIT_TERMINAL_PROMPT", "0");
    }
    if let Some(folder) = folder {
        command.arg("-C").arg(folder);
    }
    command
}

/// Runs a command of Git within [`NETWORK_TIMEOUT`], and returns its output.
fn run(command: &mut Command, url: &str) -> Result<String, DataError> {
    let failed = |reason: String| DataError::Git(git_url::redact_in(&format!("{url}: {reason}"), url));
    let not_started = |error: std::io::Error| failed(format!("the program cannot be run: {error}"));
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(not_started)?;
    let (output, messages) = (read_all(child.stdout.take()), read_all(child.stderr.take()));
    let started = Instant::now();
    let status = loop {
        match child.try_wait().map_err(not_started)? {
            Some(status) => break Some(status),
            None if started.elapsed() > NETWORK_TIMEOUT => {
                let _ = child.kill(); // Its transports end when their pipes close.
                let _ = child.wait();
                break None;
            }
            None => std::thread::sleep(POLL_INTERVAL),
        }
    };
    let (output, messages) = (output.join().unwrap_or_default(), messages.join().unwrap_or_default());
    match status {
        Some(status) if status.success() => Ok(output),
        Some(_) => Err(failed(messages.trim().to_owned())),
        None => Err(failed(format!("git did not finish within {} minutes", NETWORK_TIMEOUT.as_secs() / 60))),
    }
}

/// Reads a stream in a thread of its own.
fn read_all(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = (&mut stream).take(MAX_MESSAGE_BYTES).read_to_end(&mut bytes); // What was read before a failure is shown.
            let _ = std::io::copy(&mut stream, &mut std::io::sink()); // The program must not block on a full pipe.
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
