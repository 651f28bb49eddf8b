//! A repository that is open at a revision.

use std::path::{Path, PathBuf};
use std::time::Duration;

use slipway_store::reach::Reach;
use tokio::runtime::Handle;

use super::names::{check_path, check_revision};
use super::registry::Registered;
use crate::allowance::Allowance;
use crate::config::{Config, Files, Level, normalise};
use crate::error::DataError;
use crate::external::redact;
use crate::hash::Hasher;
use crate::ini::Ini;
use crate::manifest::Manifest;
use crate::model::Digest;
use crate::project::committed::stages_at;
use crate::project::{DVC_DIR, Project, cache_dir, find_output};
use crate::remote::Remote;
use crate::revision::resolve;
use crate::scm::Git;
use crate::stage::{Output, Stage};

/// Maximum bytes of a manifest; about 600,000 files.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;
/// Maximum duration of a request to a remote.
pub(super) const REMOTE_TIMEOUT: Duration = Duration::from_secs(20);
/// Objects up to this size are verified when they are read.
const VERIFIED_BYTES: u64 = 64 << 20;

/// What a request may use to read a repository.
#[derive(Debug)]
pub(super) struct Access {
    pub(super) runtime: Handle,
    /// Which servers the remotes may lead to.
    pub(super) reach: Reach,
    pub(super) allowance: Allowance,
}

/// A repository at a commit. What it reads of the repository's data comes from its cache, or from its remotes.
#[derive(Debug)]
pub struct Opened {
    /// The project, whose root is an empty folder.
    pub(super) project: Project,
    /// The repository.
    pub(super) git: Git,
    /// The commit.
    pub(super) commit: String,
    /// Whether its cache and remotes may be folders of this machine: those of a repository that was registered by its path.
    pub(super) is_local: bool,
    /// The work tree of a repository that was registered by its path, and that has one.
    work_tree: Option<PathBuf>,
    runtime: Handle,
    name: String,
    folders: tempfile::TempDir,
}

impl Opened {
    /// Opens a repository, or its mirror, at a revision; by default at the last commit of the current branch.
    ///
    /// # Errors
    /// If it is not a repository with a DVC project, or has no such revision.
    pub(super) fn new(
        registered: &Registered,
        mirror: Option<&Path>,
        revision: Option<&str>,
        access: Access,
    ) -> Result<Self, DataError> {
        let Access { runtime, reach, allowance } = access;
        let failed = |reason: &str| DataError::Repository { repo: redact(&registered.location), reason: reason.into() };
        let place = mirror.unwrap_or_else(|| Path::new(&registered.location));
        let is_bare = place.join("HEAD").is_file() && place.join("objects").is_dir();
        let git_dir = if is_bare { place.to_owned() } else { place.join(".git") };
        if !git_dir.exists() {
            return Err(failed("it is not the root of a Git repository"));
        }
        let folders = tempfile::tempdir().map_err(DataError::io(std::env::temp_dir()))?;
        let (tree, tmp) = (folders.path().join("tree"), folders.path().join("tmp"));
        let root = tree.join(&registered.folder);
        for folder in [&root, &tmp] {
            std::fs::create_dir_all(folder).map_err(DataError::io(folder))?;
        }
        let git = Git::foreign(&git_dir, &tree);
        if let Some(revision) = revision {
            check_revision(revision)?;
        }
        let commit = match revision {
            Some(revision) => resolve(&git, revision)?,
            None => git.resolve("HEAD")?.ok_or_else(|| failed("it has no commits"))?,
        };
        let is_local = mirror.is_none();
        let work_tree = (is_local && !is_bare).then(|| place.join(&registered.folder).join(DVC_DIR));
        let config_path = Path::new(&registered.folder).join(DVC_DIR).join("config");
        let mut committed = git.read(&commit, |path| Path::new(path) == config_path)?;
        let committed = committed.remove(&config_path);
        if committed.is_none() && revision.is_none() {
            return Err(failed(&format!(
                "its commit has no file {}, so that it contains no project",
                config_path.display()
            )));
        }
        let mut config = match &work_tree {
            // Without the configuration of the server's user: its credentials are for other repositories.
            Some(dvc_dir) if dvc_dir.join("config").is_file() => {
                Files::new(Some(dvc_dir.clone())).load_levels(&[Level::Project, Level::Local])?
            }
            _ => config_of_commit(&committed.unwrap_or_default(), &root.join(DVC_DIR))?,
        };
        config.set_reach(reach);
        // Without a work tree there is no cache: a folder that does not exist.
        let cache = match &work_tree {
            Some(dvc_dir) => cache_dir(&config, dvc_dir),
            None => folders.path().join("cache"),
        };
        let work_tree = work_tree.map(|_| place.to_owned());
        let project = Project::of_commits(git.clone(), &root, config, (&cache, &tmp), allowance)?;
        let name = redact(&registered.location);
        let opened = Self { project, git, commit, is_local, work_tree, runtime, name, folders };
        opened.check_links(&cache)?;
        Ok(opened)
    }

    /// The error without the paths of the temporary folders of this request.
    pub(super) fn without_paths(&self, error: DataError) -> DataError {
        let text = error.to_string();
        let place = self.folders.path().to_string_lossy();
        if !text.contains(&*place) {
            return error;
        }
        let (tree, tmp) = (format!("{place}/tree/"), format!("{place}/"));
        DataError::Repository { repo: self.name.clone(), reason: text.replace(&tree, "").replace(&tmp, "") }
    }

    /// Whether the cache is a folder of this request, because the repository has none on this machine.
    pub(super) fn has_temporary_cache(&self) -> bool {
        self.project.cache.root().starts_with(self.folders.path())
    }

    /// The stages of the project.
    pub(super) fn stages(&self) -> Result<Vec<Stage>, DataError> {
        stages_at(&self.project, &self.commit)
    }

    /// The path below the root of the project, for users.
    pub(super) fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.project.root).unwrap_or(path).to_string_lossy().into_owned()
    }

    /// The absolute path of one below the root of the project.
    pub(super) fn absolute(&self, path: &str) -> Result<PathBuf, DataError> {
        check_path(path)?;
        Ok(self.project.root.join(path))
    }

    /// The data set at or above a path (absolute): its stage, itself, and the part of it that the path names.
    pub(super) fn output<'a>(
        &self,
        stages: &'a [Stage],
        path: &Path,
    ) -> Result<(&'a Stage, &'a Output, String), DataError> {
        let unknown = || DataError::Target(self.shown(path));
        let (stage, output) = find_output(stages, path).ok_or_else(unknown)?;
        let root = output.path.as_deref().ok_or_else(unknown)?;
        let part = path.strip_prefix(root).map_err(|_| unknown())?;
        Ok((stage, output, part.to_string_lossy().into_owned()))
    }

    /// The remote that has an output, unless it is a folder that this repository may not name.
    pub(super) fn remote(&self, name: Option<&str>) -> Result<Remote, DataError> {
        let remote = Remote::open(&self.project.config, name, "fetch")?;
        match remote.is_folder() && !self.is_local {
            true => Err(DataError::NoRemote(format!("remote '{}' is a folder of another machine", remote.name))),
            false => {
                remote.folder().map_or(Ok(()), |folder| self.check_links(folder))?;
                Ok(remote)
            }
        }
    }

    /// Fails for a cache or remote to which a link in Git leads: who commits to a repository must not choose what the server reads of its machine.
    fn check_links(&self, folder: &Path) -> Result<(), DataError> {
        let Some(work_tree) = &self.work_tree else { return Ok(()) };
        let folder = normalise(folder);
        let above = folder.ancestors().take_while(|path| path.starts_with(work_tree) && path != work_tree);
        let links: Vec<&Path> =
            above.filter(|path| path.is_symlink()).filter_map(|path| path.strip_prefix(work_tree).ok()).collect();
        let Some(head) = self.git.resolve("HEAD")?.filter(|_| !links.is_empty()) else { return Ok(()) };
        let committed = self.git.links(&head)?;
        match committed.into_iter().find(|link| links.contains(&link.as_path())) {
            Some(link) => Err(DataError::NoRemote(format!(
                "'{}' is a link in Git; the server reads no cache and no remote through it",
                link.display()
            ))),
            None => Ok(()),
        }
    }

    /// Waits for a remote, up to [`REMOTE_TIMEOUT`].
    pub(super) fn wait<T>(&self, request: impl Future<Output = Result<T, DataError>>) -> Result<T, DataError> {
        let waited = self.runtime.block_on(async { tokio::time::timeout(REMOTE_TIMEOUT, request).await });
        let late = || DataError::Limit(format!("the remote did not respond within {} s", REMOTE_TIMEOUT.as_secs()));
        waited.map_err(|_| late())?
    }

    /// The beginning of an object, from the cache or the remote of its output: at most `limit` bytes, and whether that is all of it.
    ///
    /// # Errors
    /// [`DataError::Unavailable`] if it is in neither, [`DataError::Corrupt`] if it has another content.
    pub(super) fn object(&self, output: &Output, digest: &Digest, limit: u64) -> Result<(Vec<u8>, bool), DataError> {
        let read = match self.project.cache_of(output.hash).read_start(digest, limit)? {
            Some(bytes) => Ok(bytes),
            None => self
                .remote(output.remote.as_deref())
                .and_then(|remote| self.wait(remote.read_start(&(output.hash, *digest), limit))),
        };
        let mut bytes = read.map_err(|error| DataError::Unavailable {
            path: output.path.as_deref().map_or_else(|| output.written.clone(), |path| self.shown(path)),
            commit: self.commit.clone(),
            missing: 1,
            total: 1,
            oid: digest.to_string(),
            why: match error {
                // The message of a remote contains its address, which may have credentials.
                DataError::Remote { reason, .. } => reason,
                other => other.to_string(),
            },
        })?;
        let is_complete = bytes.len() as u64 <= limit;
        bytes.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let is_verifiable = is_complete && limit <= VERIFIED_BYTES;
        let digest_of = |bytes: &[u8]| {
            let mut hasher = Hasher::new(output.hash);
            hasher.update(bytes);
            hasher.finish()
        };
        if is_verifiable && digest_of(&bytes) != digest.md5 {
            return Err(DataError::Corrupt { oid: digest.to_string(), place: "the cache or remote".into() });
        }
        Ok((bytes, is_complete))
    }

    /// The files of an output: those of a folder, or one with an empty path.
    ///
    /// # Errors
    /// As [`Self::object`]; [`DataError::Limit`] for a folder with too many files.
    pub(super) fn manifest(&self, output: &Output, digest: &Digest) -> Result<Manifest, DataError> {
        if !digest.is_dir {
            let entry = crate::manifest::Entry { path: String::new(), digest: *digest, size: output.meta.size };
            return Ok(Manifest::new(vec![entry]));
        }
        let (bytes, is_complete) = self.object(output, digest, MAX_MANIFEST_BYTES)?;
        if !is_complete {
            return Err(DataError::Limit(format!(
                "the list of the files of '{}' has more than 64 MiB",
                output.written
            )));
        }
        Manifest::parse(&bytes).map_err(|reason| DataError::file(Path::new(&digest.to_string()), 0, reason))
    }
}

/// The configuration of a project without a work tree. It may not name files of this machine.
fn config_of_commit(text: &[u8], dvc_dir: &Path) -> Result<Config, DataError> {
    let mut config = Config::default();
    let text = String::from_utf8_lossy(text);
    let ini = Ini::parse(&text).map_err(|(line, reason)| DataError::file(&dvc_dir.join("config"), line, reason))?;
    config.merge_file(&ini, dvc_dir);
    config.remove_local_files();
    Ok(config)
}
