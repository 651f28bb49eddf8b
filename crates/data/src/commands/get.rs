//! `get`, `get-url`, `ls` and `ls-url`: data of other repositories and at URLs without a project.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::import::{existing_item, path_in_repository};
use crate::config::{Config, Files, normalise};
use crate::error::DataError;
use crate::external::location::Item;
use crate::external::{self, Location, Node, Repository};
use crate::project::{DVC_DIR, find_root, is_stage_file};

pub(super) fn scratch() -> Result<tempfile::TempDir, DataError> {
    let folder = std::env::temp_dir();
    tempfile::Builder::new().prefix("slipway-data-").tempdir_in(&folder).map_err(DataError::io(&folder))
}

/// The place for a copy: `out`, or in the folder `out`, or the name of the source in the current folder.
fn place(source: &str, out: Option<&str>, force: bool, current: &Path) -> Result<PathBuf, DataError> {
    let path = source.split_once("://").map_or(source, |(_, rest)| rest);
    let name = normalise(Path::new(path)).file_name().map(std::ffi::OsStr::to_owned);
    let name =
        || name.ok_or_else(|| DataError::Invalid(format!("'{source}' does not end with a name; choose one with -o")));
    let target = match out.map(|out| normalise(&current.join(out))) {
        None => current.join(name()?),
        Some(folder) if folder.is_dir() => folder.join(name()?),
        Some(path) => path,
    };
    if !force && target.symlink_metadata().is_ok() {
        return Err(DataError::Exists(crate::config::relative_path(&target, current).display().to_string()));
    }
    Ok(target)
}

/// A copy that was made.
#[derive(Debug)]
pub struct Copy {
    /// Where it is.
    pub target: PathBuf,
    /// Number of its files.
    pub files: usize,
}

/// Copies a path of another repository to `out`.
///
/// # Errors
/// [`DataError::Exists`], [`DataError::NotInRepository`], or an error of the transfer.
pub async fn get(
    url: &str,
    path: &str,
    from: &external::Options,
    out: Option<&str>,
    force: bool,
    jobs: Option<usize>,
    current: &Path,
) -> Result<Copy, DataError> {
    let target = place(path, out, force, current)?;
    if is_stage_file(&target) {
        let reason = "the given path is a DVC file, you must specify a data file or a directory";
        return Err(DataError::Invalid(reason.into()));
    }
    let scratch = scratch()?;
    let repository = Repository::open(url, from, current, scratch.path()).await?;
    let missing = || DataError::NotInRepository { path: path.to_owned(), url: external::redact(url) };
    let (is_folder, files) = repository.files(&path_in_repository(path)?).await?.ok_or_else(missing)?;
    repository.write(&files, is_folder, &target, jobs).await?;
    Ok(Copy { target, files: files.len() })
}

/// The place in the remote of the repository of what DVC tracks at a path.
///
/// # Errors
/// [`DataError::Target`] if it does not track the path.
pub async fn url_of(url: &str, path: &str, from: &external::Options, current: &Path) -> Result<String, DataError> {
    let scratch = scratch()?;
    let repository = Repository::open(url, from, current, scratch.path()).await?;
    repository.url_of(&path_in_repository(path)?).await
}

/// The configuration of the project that contains a folder, or the user's.
fn config_at(current: &Path) -> Result<Config, DataError> {
    Files::new(find_root(current).ok().map(|root| root.join(DVC_DIR))).load()
}

/// Copies what is at a URL to `out`.
///
/// # Errors
/// [`DataError::Exists`], [`DataError::Missing`], or an error of the transfer.
pub async fn get_url(
    url: &str,
    settings: &[(String, String)],
    out: Option<&str>,
    force: bool,
    jobs: Option<usize>,
    current: &Path,
) -> Result<(), DataError> {
    let target = place(url, out, force, current)?;
    let location = Location::open(url, &config_at(current)?, settings, current)?;
    let item = existing_item(&location).await?;
    location.download(&item, &target, jobs).await
}

/// How to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Listing {
    /// With the files in folders.
    pub recursive: bool,
    /// Only what DVC tracks.
    pub dvc_only: bool,
    /// Maximum depth of a recursive listing.
    pub depth: Option<usize>,
}

/// Lists a path of a repository, sorted by path.
///
/// # Errors
/// [`DataError::NotInRepository`] if there is no such path.
pub async fn list(
    url: &str,
    path: &str,
    from: &external::Options,
    how: Listing,
    current: &Path,
) -> Result<Vec<(String, Node)>, DataError> {
    let scratch = scratch()?;
    let repository = Repository::open(url, from, current, scratch.path()).await?;
    let inner = path_in_repository(path)?;
    let missing = || DataError::NotInRepository { path: path.to_owned(), url: external::redact(url) };
    let node = repository.node(&inner).await?.ok_or_else(missing)?;
    let depth = if how.recursive { how.depth.unwrap_or(usize::MAX) } else { 1 };
    if !node.is_folder() || depth == 0 {
        let name = inner.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(".");
        return Ok(vec![(name.to_owned(), node)]);
    }
    let mut found = BTreeMap::new();
    let mut folders = vec![(String::new(), 1)];
    while let Some((folder, level)) = folders.pop() {
        let full =
            [inner.as_str(), folder.as_str()].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        for (name, node) in repository.children(&full, how.dvc_only).await? {
            let below = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if node.is_folder() && how.recursive && level < depth {
                folders.push((below, level + 1));
            } else {
                found.insert(below, node);
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// A listing as a tree: each entry with its depth, folders before their content.
///
/// # Errors
/// As [`list`].
pub async fn tree(
    url: &str,
    path: &str,
    from: &external::Options,
    how: Listing,
    current: &Path,
) -> Result<Vec<Branch>, DataError> {
    let scratch = scratch()?;
    let repository = Repository::open(url, from, current, scratch.path()).await?;
    let inner = path_in_repository(path)?;
    let missing = || DataError::NotInRepository { path: path.to_owned(), url: external::redact(url) };
    let node = repository.node(&inner).await?.ok_or_else(missing)?;
    let name = if path.is_empty() { "." } else { path };
    let mut rows = Vec::new();
    let mut waiting = vec![Branch { name: name.to_owned(), lines: Vec::new(), node }];
    let mut paths = vec![inner];
    while let (Some(branch), Some(path)) = (waiting.pop(), paths.pop()) {
        if branch.node.is_folder() && how.depth.is_none_or(|depth| branch.lines.len() < depth) {
            let children: Vec<(String, Node)> = repository.children(&path, how.dvc_only).await?.into_iter().collect();
            for (i, (name, node)) in children.iter().enumerate().rev() {
                let mut lines = branch.lines.clone();
                lines.push(i + 1 < children.len());
                waiting.push(Branch { name: name.clone(), lines, node: node.clone() });
                paths.push(if path.is_empty() { name.clone() } else { format!("{path}/{name}") });
            }
        }
        rows.push(branch);
    }
    Ok(rows)
}

/// An entry of a tree.
#[derive(Debug, Clone)]
pub struct Branch {
    /// The name in its folder.
    pub name: String,
    /// For each folder below the root, and the entry itself, whether more entries follow in its folder.
    pub lines: Vec<bool>,
    /// The entry.
    pub node: Node,
}

/// Lists what is at a URL.
///
/// # Errors
/// [`DataError::Missing`] if there is nothing.
pub async fn list_url(
    url: &str,
    settings: &[(String, String)],
    how: Listing,
    current: &Path,
) -> Result<Vec<Item>, DataError> {
    let location = Location::open(url, &config_at(current)?, settings, current)?;
    let item = existing_item(&location).await?;
    let depth = how.depth.unwrap_or(usize::MAX);
    if !item.is_folder || depth == 0 {
        return Ok(vec![Item { path: url.to_owned(), ..item }]);
    }
    location.list(how.recursive, depth).await
}
