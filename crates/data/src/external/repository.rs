//! A repository at a revision, with the data of the DVC projects in it. A file that is there itself has precedence over tracked data.

mod projects;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use md5::{Digest as _, Md5};

use crate::cache::Cache;
use crate::config::{Config, normalise};
use crate::error::DataError;
use crate::external::redact;
use crate::ignore::Rules;
use crate::manifest::Manifest;
use crate::model::{Digest, HashName};
use crate::project::{DVC_DIR, find_root};
use crate::remote::Remote;
use crate::scm::mirror::{self, Receiver};
use crate::scm::{Blob, Git};
use crate::stage::Output;
use crate::stat::{self, Stat};

/// Which version of a repository is opened, and with which configuration.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// A revision of Git; the workspace of a local repository or the default branch by default.
    pub revision: Option<String>,
    /// A file with options that replace those of the repository.
    pub config: Option<PathBuf>,
    /// The remote to use instead of the default one.
    pub remote: Option<String>,
    /// Options of the remote.
    pub remote_config: Vec<(String, String)>,
    /// Other options, each with its section.
    pub settings: Vec<(String, String, String)>,
}

/// What an entry of a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A file of the workspace.
    Disk(PathBuf),
    /// A file of the commit.
    Blob(String),
    /// A file of the project with this number that DVC tracks.
    Object(usize, HashName, Digest),
}

/// An entry of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Whether DVC tracks it.
    pub is_out: bool,
    /// Whether a file that is not only in the cache is executable.
    pub is_exec: bool,
    /// Bytes, if they are known.
    pub size: Option<u64>,
    /// The digest, if DVC tracks it.
    pub digest: Option<Digest>,
}

impl Node {
    /// Whether it is a folder.
    pub fn is_folder(&self) -> bool {
        self.kind == Kind::Folder
    }

    fn folder(size: Option<u64>) -> Self {
        Self { kind: Kind::Folder, is_out: false, is_exec: false, size, digest: None }
    }
}

/// The files of a version.
#[derive(Debug)]
pub(super) enum Source {
    Workspace { root: PathBuf, rules: Arc<Rules> },
    Commit { git: Git, files: BTreeMap<String, Blob> },
}

/// A DVC project in the repository.
#[derive(Debug)]
pub(super) struct Data {
    /// Its folder below the repository's root; empty for the root.
    pub(super) root: String,
    pub(super) config: Config,
    /// Caches on this machine that may have its data.
    pub(super) caches: Vec<Cache>,
    /// The outputs by their path below the repository's root.
    outs: BTreeMap<String, Output>,
}

impl Data {
    /// The outputs by their path below the project's root.
    pub(super) fn outputs(&self) -> impl Iterator<Item = (String, &Output)> {
        self.outs.iter().filter_map(|(path, out)| Some((below(path, &self.root)?.to_owned(), out)))
    }
}

/// A repository at a revision.
#[derive(Debug)]
pub struct Repository {
    /// The URL or path as it was given.
    pub url: String,
    /// The commit that is checked out, or that was opened; `None` without Git or commits.
    pub commit: Option<String>,
    pub(super) source: Source,
    pub(super) projects: Vec<Data>,
    /// Where received objects are stored, by algorithm.
    received: [Cache; 2],
    manifests: Mutex<BTreeMap<Digest, Arc<Manifest>>>,
}

impl Repository {
    /// Opens a repository at a URL or path, relative to the folder `current`. Received objects are stored in the cache folder `cache`.
    ///
    /// # Errors
    /// If there is no such repository or revision, or its files cannot be read.
    pub async fn open(url: &str, options: &Options, current: &Path, cache: &Path) -> Result<Self, DataError> {
        let path = normalise(&current.join(url));
        let local = path.is_dir().then_some(path);
        let (source, commit, place) = match (&local, &options.revision) {
            (Some(path), None) => {
                let root = repository_root(path)?;
                let commit = Git::find(&root, true).map(|git| git.resolve("HEAD")).transpose()?.flatten();
                (Source::Workspace { rules: Rules::dvcignore(&root)?, root: root.clone() }, commit, Some(root))
            }
            (Some(path), Some(revision)) => {
                let root = repository_root(path)?;
                let git = Git::find(&root, true)
                    .ok_or_else(|| DataError::Git(format!("{} is not a git repository", root.display())))?;
                let commit = git.resolve(revision)?;
                let commit = commit.ok_or_else(|| DataError::Git(format!("unknown Git revision '{revision}'")))?;
                let prefix = root.strip_prefix(git.root()).unwrap_or(Path::new("")).to_string_lossy().into_owned();
                (commit_source(git, &commit, &prefix)?, Some(commit), Some(root))
            }
            (None, revision) => {
                let (git, commit) = mirrored(url, revision.as_deref()).await?;
                (commit_source(git, &commit, "")?, Some(commit), None)
            }
        };
        let mut repository = Self {
            url: url.to_owned(),
            commit,
            source,
            projects: Vec::new(),
            received: [HashName::Md5, HashName::Dos2Unix].map(|hash| Cache::new(cache, hash, false)),
            manifests: Mutex::default(),
        };
        repository.load_projects(place.as_deref(), options)?;
        Ok(repository)
    }

    /// The text of a file; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn text(&self, path: &str) -> Result<Option<String>, DataError> {
        Ok(self.texts(&[path.to_owned()])?.remove(path))
    }

    /// The annotated tags, sorted by time, with their commits.
    ///
    /// # Errors
    /// If there is no Git repository.
    pub fn annotated_tags(&self) -> Result<Vec<(String, String)>, DataError> {
        let git = match &self.source {
            Source::Workspace { root, .. } => Git::find(root, true),
            Source::Commit { git, .. } => Some(git.clone()),
        };
        let git = git.ok_or_else(|| DataError::Git(format!("{} is not a git repository", redact(&self.url))))?;
        git.annotated_tags()
    }

    /// The innermost project that contains a path.
    fn project_of(&self, path: &str) -> Option<usize> {
        // Sorted by root, so the last one that contains the path is the innermost.
        self.projects.iter().rposition(|data| below(path, &data.root).is_some())
    }

    /// The entry at a path; the root for an empty one.
    ///
    /// # Errors
    /// If a file or manifest cannot be read.
    pub async fn node(&self, path: &str) -> Result<Option<Node>, DataError> {
        let own = self.own_node(path)?;
        if path.is_empty() {
            return Ok(own);
        }
        let tracked = self.tracked_node(path).await?;
        Ok(merge(own, tracked))
    }

    /// The entries of a folder by name. With `dvc_only`, those that only Git tracks are left out.
    ///
    /// # Errors
    /// If a file or manifest cannot be read.
    pub async fn children(&self, folder: &str, dvc_only: bool) -> Result<BTreeMap<String, Node>, DataError> {
        let mut tracked = self.tracked_children(folder).await?;
        if dvc_only {
            return Ok(tracked);
        }
        let mut found = BTreeMap::new();
        for (name, own) in self.own_children(folder)? {
            let tracked = tracked.remove(&name);
            found.extend(merge(Some(own), tracked).map(|node| (name, node)));
        }
        found.extend(tracked);
        Ok(found)
    }

    fn own_node(&self, path: &str) -> Result<Option<Node>, DataError> {
        match &self.source {
            Source::Workspace { root, rules } => {
                let full = if path.is_empty() { root.clone() } else { root.join(path) };
                let Some(stat) = Stat::of_path(&full).map_err(DataError::io(&full))? else { return Ok(None) };
                let is_dir = stat.kind() == stat::Kind::Folder;
                let ignored = !path.is_empty() && crate::ignore::is_path_ignored(rules, root, &full, is_dir)?;
                Ok(if ignored { None } else { disk_node(full, &stat) })
            }
            Source::Commit { files, .. } => Ok(match files.get(path) {
                Some(blob) => Some(blob_node(blob)),
                None if path.is_empty() || below_range(files, path).next().is_some() => {
                    Some(Node::folder(Some(tree_size(files, path))))
                }
                None => None,
            }),
        }
    }

    fn own_children(&self, folder: &str) -> Result<BTreeMap<String, Node>, DataError> {
        let mut found = BTreeMap::new();
        match &self.source {
            Source::Workspace { root, .. } => {
                let full = root.join(folder);
                let entries = match std::fs::read_dir(&full) {
                    Ok(entries) => entries,
                    Err(error)
                        if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
                    {
                        return Ok(found);
                    }
                    Err(error) => return Err(DataError::io(&full)(error)),
                };
                for entry in entries {
                    let entry = entry.map_err(DataError::io(&full))?;
                    let name = entry.file_name().into_string().map_err(|name| {
                        DataError::Invalid(format!(
                            "{}: the name '{}' is not valid UTF-8",
                            full.display(),
                            name.display()
                        ))
                    })?;
                    found.extend(self.own_node(&child(folder, &name))?.map(|node| (name, node)));
                }
            }
            Source::Commit { files, .. } => {
                for (path, blob) in below_range(files, folder) {
                    let rest = below(path, folder).unwrap_or_default();
                    match rest.split_once('/') {
                        None => drop(found.insert(rest.to_owned(), blob_node(blob))),
                        Some((name, _)) if !found.contains_key(name) && name != DVC_DIR => {
                            found.insert(name.to_owned(), Node::folder(Some(tree_size(files, &child(folder, name)))));
                        }
                        Some(_) => {}
                    }
                }
            }
        }
        Ok(found)
    }

    /// The output at or above a path, with the number of its project.
    fn output(&self, path: &str) -> Option<(usize, &str, &Output)> {
        let number = self.project_of(path)?;
        let outs = &self.projects[number].outs;
        std::iter::successors(Some(path), |path| (!path.is_empty()).then(|| parent(path)))
            .find_map(|path| outs.get_key_value(path))
            .map(|(path, out)| (number, path.as_str(), out))
    }

    async fn tracked_node(&self, path: &str) -> Result<Option<Node>, DataError> {
        let Some((number, root, out)) = self.output(path) else {
            let number = self.project_of(path);
            let contains = |data: &Data| data.outs.keys().any(|out| below(out, path).is_some());
            return Ok(number.is_some_and(|n| contains(&self.projects[n])).then(|| Node::folder(Some(0))));
        };
        if root == path {
            return Ok(Some(out_node(number, out)));
        }
        let Some(manifest) = self.manifest(number, out).await? else { return Ok(None) };
        let inner = below(path, root).unwrap_or_default();
        if let Some(entry) = manifest.get(inner) {
            return Ok(Some(object_node(number, out.hash, entry.digest, entry.size)));
        }
        Ok(manifest_below(&manifest, inner).next().map(|_| Node { is_out: true, ..Node::folder(None) }))
    }

    async fn tracked_children(&self, folder: &str) -> Result<BTreeMap<String, Node>, DataError> {
        let mut found = BTreeMap::new();
        if let Some((number, root, out)) = self.output(folder)
            && let Some(manifest) = self.manifest(number, out).await?
        {
            for entry in manifest_below(&manifest, below(folder, root).unwrap_or_default()) {
                let inner = below(folder, root).unwrap_or_default();
                let rest = below(&entry.path, inner).unwrap_or_default();
                match rest.split_once('/') {
                    None => {
                        drop(found.insert(rest.to_owned(), object_node(number, out.hash, entry.digest, entry.size)))
                    }
                    Some((name, _)) => {
                        let folder = || Node { is_out: true, ..Node::folder(None) };
                        found.entry(name.to_owned()).or_insert_with(folder);
                    }
                }
            }
            return Ok(found);
        }
        for (number, data) in self.projects.iter().enumerate() {
            for (path, out) in &data.outs {
                let Some(rest) = below(path, folder) else { continue };
                match rest.split_once('/') {
                    None => drop(found.insert(rest.to_owned(), out_node(number, out))),
                    Some((name, _)) => drop(found.entry(name.to_owned()).or_insert_with(|| Node::folder(Some(0)))),
                }
            }
        }
        Ok(found)
    }

    /// Where received objects of an algorithm are stored.
    pub(super) fn received(&self, hash: HashName) -> &Cache {
        &self.received[usize::from(hash == HashName::Dos2Unix)]
    }

    /// The manifest of an output; `None` for a file or an output without a digest.
    async fn manifest(&self, number: usize, out: &Output) -> Result<Option<Arc<Manifest>>, DataError> {
        let Some(digest) = out.digest.filter(|digest| digest.is_dir) else { return Ok(None) };
        let known = self.manifests.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned();
        if known.is_some() {
            return Ok(known);
        }
        if let Some(listed) = out.manifest() {
            return Ok(Some(Arc::new(listed)));
        }
        // Only a part of the folder may be imported, so its manifest is not kept with what is received.
        let folder = tempfile::tempdir().map_err(DataError::io(std::env::temp_dir()))?;
        let other = Cache::new(folder.path(), out.hash, false);
        let received = self.received(out.hash);
        let cache = if received.contains(&digest)? { received } else { &other };
        self.receive(number, cache, &[digest], None).await?;
        let manifest = cache.manifest(&digest)?;
        let manifest = manifest.ok_or_else(|| DataError::NotInCache(vec![format!("{} ({digest})", out.written)]))?;
        let manifest = Arc::new(manifest);
        self.manifests.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, manifest.clone());
        Ok(Some(manifest))
    }

    /// The place of an output in the remote of its project.
    ///
    /// # Errors
    /// [`DataError::Target`] if DVC does not track the path.
    pub async fn url_of(&self, path: &str) -> Result<String, DataError> {
        let node = self.tracked_node(path).await?;
        let (digest, number) = match (node.and_then(|node| node.digest), self.project_of(path)) {
            (Some(digest), Some(number)) => (digest, number),
            _ => return Err(DataError::Target(path.to_owned())),
        };
        let hash = self.output(path).map_or(HashName::Md5, |(_, _, out)| out.hash);
        let data = &self.projects[number];
        match Remote::open(&data.config, None, "get") {
            Ok(remote) => Ok(remote.location_of(&(hash, digest))),
            Err(DataError::NoRemote(_)) if !data.caches.is_empty() => {
                let cache = data.caches.iter().find(|cache| cache.hash() == hash);
                Ok(cache.map(|cache| cache.path(&digest).display().to_string()).unwrap_or_default())
            }
            Err(error) => Err(error),
        }
    }
}

/// The root of the project that contains a folder, or else of its Git work tree.
fn repository_root(folder: &Path) -> Result<PathBuf, DataError> {
    match find_root(folder) {
        Err(DataError::NoProject(_)) => match Git::find(folder, true) {
            Some(git) => Ok(git.root().to_owned()),
            None => Err(DataError::NoProject(folder.to_owned())),
        },
        found => found,
    }
}

/// The mirror of the repository at a URL in the user's cache folder, and the commit that a revision, or the default branch, names.
async fn mirrored(url: &str, revision: Option<&str>) -> Result<(Git, String), DataError> {
    let from_env = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = from_env("XDG_CACHE_HOME").or_else(|| Some(from_env("HOME")?.join(".cache")));
    let cache = cache.ok_or_else(|| DataError::Invalid("neither XDG_CACHE_HOME nor HOME is set".into()))?;
    let name = Digest::of_file(Md5::digest(url).into());
    let path = cache.join("slipway/repositories").join(format!("{name}.git"));
    let failed = |reason: String| DataError::Git(format!("{}: {reason}", redact(url)));
    let git = mirror::update(url, revision, &path, Receiver::Person).await.map_err(failed)?;
    let commit = git.resolve(revision.unwrap_or("HEAD"))?;
    let commit = commit.ok_or_else(|| failed("the repository has no commits".into()))?;
    Ok((git, commit))
}

/// The files of a commit in a folder below its root.
fn commit_source(git: Git, commit: &str, prefix: &str) -> Result<Source, DataError> {
    let all = git.blobs(commit)?;
    let inside = |(path, blob): (String, Blob)| Some((below(&path, prefix)?.to_owned(), blob));
    Ok(Source::Commit { git, files: all.into_iter().filter_map(inside).collect() })
}

/// The entry of a path that Git or the file system has, and DVC tracks. What exists wins, unless the types differ.
fn merge(own: Option<Node>, tracked: Option<Node>) -> Option<Node> {
    match (own, tracked) {
        (Some(own), Some(tracked)) if own.is_folder() == tracked.is_folder() => {
            Some(Node { is_out: tracked.is_out, digest: tracked.digest, ..own })
        }
        (Some(own), _) => Some(own),
        (None, tracked) => tracked,
    }
}

fn disk_node(full: PathBuf, stat: &Stat) -> Option<Node> {
    match stat.kind() {
        stat::Kind::Folder => Some(Node::folder(Some(stat.size))),
        stat::Kind::File => Some(Node {
            kind: Kind::Disk(full),
            is_out: false,
            is_exec: stat.is_executable(),
            size: Some(stat.size),
            digest: None,
        }),
        _ => None,
    }
}

fn blob_node(blob: &Blob) -> Node {
    let kind = Kind::Blob(blob.id.clone());
    Node { kind, is_out: false, is_exec: blob.is_exec, size: Some(blob.size), digest: None }
}

fn object_node(number: usize, hash: HashName, digest: Digest, size: Option<u64>) -> Node {
    Node { kind: Kind::Object(number, hash, digest), is_out: true, is_exec: false, size, digest: Some(digest) }
}

fn out_node(number: usize, out: &Output) -> Node {
    let kind = match out.digest {
        Some(digest) if !digest.is_dir => Kind::Object(number, out.hash, digest),
        _ => Kind::Folder,
    };
    Node { kind, is_out: true, is_exec: false, size: out.meta.size, digest: out.digest }
}

/// The size of a folder in Git: that of the object with the names and ids of its entries.
fn tree_size(files: &BTreeMap<String, Blob>, folder: &str) -> u64 {
    const ID_BYTES: usize = 20;
    let mut size = 0;
    let mut last = "";
    for (path, _) in below_range(files, folder) {
        let rest = below(path, folder).unwrap_or_default();
        let (name, mode) = rest.split_once('/').map_or((rest, "100644"), |(name, _)| (name, "40000"));
        if name != last {
            size += mode.len() + 1 + name.len() + 1 + ID_BYTES;
            last = name;
        }
    }
    size as u64
}

/// The files below a folder.
fn below_range<'a>(files: &'a BTreeMap<String, Blob>, folder: &'a str) -> impl Iterator<Item = (&'a String, &'a Blob)> {
    let start = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    files.range(start..).take_while(move |(path, _)| below(path, folder).is_some())
}

/// The entries of a manifest below a folder in it.
fn manifest_below<'a>(manifest: &'a Manifest, folder: &'a str) -> impl Iterator<Item = &'a crate::manifest::Entry> {
    let start = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let first = manifest.entries.partition_point(|entry| entry.path < start);
    manifest.entries[first..].iter().take_while(move |entry| below(&entry.path, folder).is_some())
}

/// The path relative to a folder that contains it.
pub(super) fn below<'a>(path: &'a str, folder: &str) -> Option<&'a str> {
    if folder.is_empty() { Some(path) } else { path.strip_prefix(folder)?.strip_prefix('/') }
}

pub(super) fn child(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}
