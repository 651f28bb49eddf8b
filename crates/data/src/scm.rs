//! Git, through the `git` program: it knows the user's configuration, credentials, attributes and file formats, and a command here calls it
//! at most a few times. A Git library would add several megabytes to the binary.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use crate::bounded::{self, Limits, Stopped};
use crate::error::DataError;

mod blobs;
mod clone;
mod history;
pub(crate) mod mirror;
mod refs;
mod snapshots;
mod stash;
mod status;
mod tree;
pub(crate) mod url;

pub use blobs::{Blobs, Object};
pub use history::Described;
pub use refs::{Commit, RefChange, Transfer};
pub use snapshots::Index;
pub use stash::Stashed;
pub use status::WorkTree;
pub use tree::Blob;
pub use url::without_credentials;

/// Maximum bytes read of a file in a commit.
const MAX_BLOB_BYTES: usize = 64 << 20;
/// Maximum bytes read of all files in a commit of a foreign repository. A few bytes of compressed objects can stand for terabytes.
const MAX_FOREIGN_BYTES: usize = 256 << 20;
/// Limits of a command on a foreign repository: 64 MiB are the names of about 500,000 files of a commit.
const FOREIGN: Limits = Limits { time: Duration::from_secs(20), bytes: 64 << 20 };
/// Configuration for commands on foreign repositories, whose own configuration could name programs.
const FOREIGN_CONFIG: [&str; 6] =
    ["-c", "log.showSignature=false", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"];

/// A Git work tree.
#[derive(Debug, Clone)]
pub struct Git {
    root: PathBuf,
    /// The folder of the objects of a foreign repository.
    foreign: Option<PathBuf>,
}

impl Git {
    /// The work tree whose root is `folder` or, with `search`, a folder above.
    pub fn find(folder: &Path, search: bool) -> Option<Self> {
        let mut current = Some(folder);
        while let Some(path) = current {
            if path.join(".git").exists() {
                return Some(Self::at(path));
            }
            current = if search { path.parent() } else { None };
        }
        None
    }

    /// The work tree or bare repository at a path.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), foreign: None }
    }

    /// The repository with this Git folder, as if its work tree were at `root`, where nothing need be checked out. It may belong to somebody who
    /// is not trusted: its commits are read with limits on time and size, its references are not changed, and no hook, filter, helper or
    /// program of its configuration runs.
    pub fn foreign(git_dir: &Path, root: &Path) -> Self {
        Self { root: root.to_owned(), foreign: Some(git_dir.to_owned()) }
    }

    /// The root of the work tree.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn command(&self) -> Command {
        let mut command = Command::new("git");
        command.arg("-C").arg(&self.root).env("LC_ALL", "C");
        if let Some(git_dir) = &self.foreign {
            command.arg("--git-dir").arg(git_dir).args(FOREIGN_CONFIG);
            // No protocol has the name "none", so a missing object of a partial clone is an error instead of a connection.
            command.env("GIT_ALLOW_PROTOCOL", "none").env("GIT_NO_LAZY_FETCH", "1").env("GIT_OPTIONAL_LOCKS", "0");
            for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_EXTERNAL_DIFF"] {
                command.env_remove(variable);
            }
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<Vec<u8>, DataError> {
        checked(self.output(arguments)?)
    }

    fn output(&self, arguments: &[&str]) -> Result<Output, DataError> {
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::null());
        match self.foreign {
            Some(_) => bounded::output(command, FOREIGN).map_err(stopped),
            None => command.output().map_err(start_error),
        }
    }

    /// Runs a command with an input.
    fn run_with_input(&self, arguments: &[&str], input: Vec<u8>) -> Result<Vec<u8>, DataError> {
        checked(self.pipe(arguments, input)?)
    }

    /// Runs a command that reads NUL-terminated paths and writes those that it selects.
    fn select(&self, arguments: &[&str], paths: &[&Path]) -> Result<Vec<PathBuf>, DataError> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let mut input = Vec::new();
        for path in paths {
            input.extend_from_slice(path.as_os_str().as_encoded_bytes());
            input.push(0);
        }
        let output = self.pipe(arguments, input)?.stdout;
        Ok(split_nul(&output).map(PathBuf::from).collect())
    }

    fn pipe(&self, arguments: &[&str], input: Vec<u8>) -> Result<Output, DataError> {
        let mut child = self
            .command()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(start_error)?;
        let stdin = child.stdin.take();
        // The input is written by a thread of its own, because git writes while it still reads.
        let writer = std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&input)));
        let output = child.wait_with_output().map_err(start_error)?;
        let _ = writer.join(); // If git stopped reading, its output is what counts.
        Ok(output)
    }

    /// Starts `git cat-file`, which writes the objects whose names it reads, in their order.
    fn cat_file(&self) -> Result<(Child, ChildStdin, ChildStdout), DataError> {
        let mut command = self.command();
        command.args(["cat-file", "--batch"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(start_error)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(DataError::Git("git cat-file has no pipes".into()));
        };
        Ok((child, stdin, stdout))
    }

    /// Which of the paths (absolute) the rules of Git ignore, tracked or not.
    ///
    /// # Errors
    /// If git cannot be run.
    pub fn ignored(&self, paths: &[&Path]) -> Result<Vec<PathBuf>, DataError> {
        let inside: Vec<&Path> = paths.iter().copied().filter(|path| path.starts_with(&self.root)).collect();
        self.select(&["check-ignore", "--no-index", "-z", "--stdin"], &inside)
    }

    /// The first of the paths (absolute) that Git tracks, or below which it tracks a file.
    ///
    /// # Errors
    /// If git cannot be run.
    pub fn first_tracked<'a>(&self, paths: &[&'a Path]) -> Result<Option<&'a Path>, DataError> {
        for chunk in paths.chunks(1000) {
            let mut command = self.command();
            command
                .args(["--literal-pathspecs", "ls-files", "-z", "--"])
                .args(chunk.iter().filter(|path| path.starts_with(&self.root)));
            if command.get_args().count() == 6 {
                continue;
            }
            let output = command.stdin(Stdio::null()).output().map_err(start_error)?;
            if let Some(name) = split_nul(&output.stdout).next() {
                let tracked = self.root.join(Path::new(name));
                return Ok(chunk.iter().copied().find(|path| tracked.starts_with(path)).or(chunk.first().copied()));
            }
        }
        Ok(None)
    }

    /// Stages files.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn add(&self, paths: &[PathBuf]) -> Result<(), DataError> {
        let mut arguments = vec!["--literal-pathspecs", "add", "--"];
        let names: Vec<String> = paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        arguments.extend(names.iter().map(String::as_str));
        self.run(&arguments).map(drop)
    }

    /// The commit that a revision names; `None` if `HEAD` does not exist yet.
    ///
    /// # Errors
    /// If there is no such revision.
    pub fn resolve(&self, revision: &str) -> Result<Option<String>, DataError> {
        if revision.starts_with('-') {
            return Err(DataError::Git(format!("unknown Git revision '{revision}'")));
        }
        match self.run(&["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{revision}^{{commit}}")]) {
            Ok(output) => Ok(Some(String::from_utf8_lossy(&output).trim().to_owned())),
            Err(_) if revision == "HEAD" => Ok(None),
            Err(_) => Err(DataError::Git(format!("unknown Git revision '{revision}'"))),
        }
    }

    /// What is checked out.
    ///
    /// # Errors
    /// If git cannot be run, or there is no commit yet.
    pub fn head(&self) -> Result<Head, DataError> {
        let text = |arguments: &[&str]| self.run(arguments).map(|out| String::from_utf8_lossy(&out).trim().to_owned());
        Ok(Head {
            commit: text(&["rev-parse", "--verify", "HEAD^{commit}"])?,
            // These two fail for a commit that is checked out without a branch, and without a remote of this name.
            branch: text(&["symbolic-ref", "--quiet", "--short", "HEAD"]).ok(),
            origin: text(&["remote", "get-url", "origin"]).ok(),
            is_dirty: !text(&["status", "--porcelain", "--untracked-files=no"])?.is_empty(),
        })
    }

    /// The commits of all branches, of all tags, or of everything that is reachable from a reference.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn commits(&self, branches: bool, tags: bool, everything: bool) -> Result<Vec<String>, DataError> {
        let mut commits = Vec::new();
        if everything {
            commits.extend(lines(
                &self.run(&["rev-list", "--all", "HEAD"]).or_else(|_| self.run(&["rev-list", "--all"]))?,
            ));
        }
        if branches {
            commits.extend(lines(&self.run(&["for-each-ref", "--format=%(objectname)", "refs/heads"])?));
        }
        if tags {
            commits.extend(lines(&self.run(&["for-each-ref", "--format=%(objectname)", "refs/tags"])?));
        }
        commits.sort_unstable();
        commits.dedup();
        Ok(commits)
    }

    /// All commits since a day, as `YYYY-MM-DD`, in local time.
    ///
    /// # Errors
    /// [`DataError::Invalid`] for another form, or if git cannot be run.
    pub fn commits_since(&self, day: &str) -> Result<Vec<String>, DataError> {
        if slipway_core::clock::parse_rfc3339(&format!("{day}T00:00:00Z")).is_none() {
            return Err(DataError::Invalid(format!("'{day}' is not a day in the form YYYY-MM-DD")));
        }
        Ok(lines(&self.run(&["rev-list", "--all", "HEAD", &format!("--since={day}T00:00:00")])?))
    }

    /// The last `count` commits that are reachable from a revision.
    ///
    /// # Errors
    /// If there is no such revision.
    pub fn history(&self, revision: &str, count: usize) -> Result<Vec<String>, DataError> {
        let Some(commit) = self.resolve(revision)? else { return Ok(Vec::new()) };
        Ok(lines(&self.run(&["rev-list", "--first-parent", &format!("--max-count={count}"), &commit])?))
    }

    /// The paths of the files in a commit that `select` accepts, with their object ids.
    fn files(&self, commit: &str, select: impl Fn(&str) -> bool) -> Result<Vec<(PathBuf, String)>, DataError> {
        self.entries(commit, &["100644", "100755"], select)
    }

    /// The symbolic links in a commit, by their path below the root.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn links(&self, commit: &str) -> Result<Vec<PathBuf>, DataError> {
        Ok(self.entries(commit, &["120000"], |_| true)?.into_iter().map(|(path, _)| path).collect())
    }

    /// The blobs of a commit with one of the modes, and their ids.
    fn entries(
        &self,
        commit: &str,
        modes: &[&str],
        select: impl Fn(&str) -> bool,
    ) -> Result<Vec<(PathBuf, String)>, DataError> {
        let output = self.run(&["ls-tree", "-r", "-z", "--full-tree", commit])?;
        let mut files = Vec::new();
        for line in split_nul(&output) {
            let Some((head, path)) = line.to_str().and_then(|line| line.split_once('\t')) else { continue };
            let mut words = head.split(' ');
            if let (Some(mode), Some("blob"), Some(id)) = (words.next(), words.next(), words.next())
                && modes.contains(&mode)
                && select(path)
            {
                files.push((PathBuf::from(path), id.to_owned()));
            }
        }
        Ok(files)
    }

    /// The files in a commit below a folder (absolute paths).
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn paths_below(&self, commit: &str, folder: &Path) -> Result<Vec<PathBuf>, DataError> {
        let Ok(relative) = folder.strip_prefix(&self.root) else { return Ok(Vec::new()) };
        let files = self.files(commit, |path| Path::new(path).starts_with(relative))?;
        Ok(files.into_iter().map(|(path, _)| self.root.join(path)).collect())
    }

    /// The contents of the files in a commit that `select` accepts, by their path below the root.
    ///
    /// # Errors
    /// If git cannot be run, or its output is not understood.
    pub fn read(&self, commit: &str, select: impl Fn(&str) -> bool) -> Result<HashMap<PathBuf, Vec<u8>>, DataError> {
        let files = self.files(commit, select)?;
        let ids: Vec<&str> = files.iter().map(|(_, id)| id.as_str()).collect();
        let mut contents = HashMap::new();
        let mut total = 0;
        self.read_blobs(&ids, |i, content| {
            let unexpected = || DataError::Git(format!("git cat-file gave an unexpected output for {commit}"));
            let mut bytes = Vec::new();
            content.take(MAX_BLOB_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|_| unexpected())?;
            if bytes.len() > MAX_BLOB_BYTES {
                return Err(unexpected());
            }
            total += bytes.len();
            if self.foreign.is_some() && total > MAX_FOREIGN_BYTES {
                return Err(DataError::Limit(format!("the files of commit {commit} have more than 256 MiB")));
            }
            contents.insert(files[i].0.clone(), bytes);
            Ok(())
        })?;
        Ok(contents)
    }
}

/// What is checked out in a work tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The commit.
    pub commit: String,
    /// The branch, unless only a commit is checked out.
    pub branch: Option<String>,
    /// The URL of the remote `origin`.
    pub origin: Option<String>,
    /// Whether files that Git tracks differ from the commit.
    pub is_dirty: bool,
}

/// The standard output of a command that succeeded.
fn checked(output: Output) -> Result<Vec<u8>, DataError> {
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(DataError::Git(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// The failure of a command on a repository that is not trusted.
fn stopped(reason: Stopped) -> DataError {
    match reason {
        Stopped::NotStarted(error) => start_error(error),
        Stopped::Limit(reason) => DataError::Limit(format!("git on the repository: {reason}")),
    }
}

fn start_error(error: std::io::Error) -> DataError {
    DataError::Git(format!("the program cannot be run: {error}"))
}

fn split_nul(bytes: &[u8]) -> impl Iterator<Item = &std::ffi::OsStr> {
    use std::os::unix::ffi::OsStrExt;
    bytes.split(|b| *b == 0).filter(|part| !part.is_empty()).map(std::ffi::OsStr::from_bytes)
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect()
}
