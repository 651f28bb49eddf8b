//! The repository that a run is submitted from, as `spec.source` records it.

use std::collections::BTreeMap;
use std::path::Path;

use slipway_core::home::Home;
use slipway_data::DataError;
use slipway_data::commands::status::{Change, status};
use slipway_data::config::{is_url, relative_path};
use slipway_data::project::{Project, find_root};
use slipway_data::scm::Git;
use slipway_data::versions::{Depot, Version, without_credentials};
use slipway_exec::UsedData;
use slipway_exec::data::{DataVolume, Source};

use crate::output::print_note;

/// Maximum number of tracked files and folders that are recorded with a run.
const MAX_DATA: usize = 100;

/// The repository and the data of the DVC project that contains a folder; `None` outside of a project with Git.
///
/// # Errors
/// If the project cannot be read.
pub(super) fn source(folder: &Path) -> Result<Option<Source>, DataError> {
    if find_root(folder).is_err() {
        return Ok(None);
    }
    let mut project = Project::open(folder, &|blocker| print_note(blocker))?;
    let Some(git) = project.git.clone() else { return Ok(None) };
    let head = git.head()?;
    let root = git.root();
    let repo = head.origin.map_or_else(|| root.display().to_string(), |url| without_credentials(&url));
    let below_root = |path: &Path| path.strip_prefix(root).unwrap_or(path).display().to_string();
    // Paths are shown relative to the root of the project here, wherever the run is.
    project.current.clone_from(&project.root);
    let (changed, _) = status(&mut project, &[], false)?;
    let changed: BTreeMap<String, Change> = changed.into_iter().flat_map(|stage| stage.outs).collect();
    let mut source = Source {
        commit: head.commit,
        branch: head.branch.unwrap_or_default(),
        path: below_root(folder),
        dirty: head.is_dirty,
        ..Source::default()
    };
    for stage in project.stages()? {
        for out in stage.outs.iter().filter(|out| out.cached) {
            let (Some(digest), Some(path)) = (out.digest, &out.path) else { continue };
            match changed.get(&relative_path(path, &project.root).display().to_string()) {
                None | Some(Change::NotInCache | Change::UpdateAvailable) => {}
                Some(Change::Deleted) => continue,
                Some(Change::Modified | Change::New) => {
                    source.modified.push(below_root(path));
                    continue;
                }
            }
            source.data.push(UsedData {
                repo: repo.clone(),
                commit: source.commit.clone(),
                path: below_root(path),
                file: below_root(&stage.file),
                digest: digest.to_string(),
                size: out.meta.size,
                files: out.meta.nfiles,
            });
        }
    }
    source.data.truncate(MAX_DATA);
    source.modified.truncate(MAX_DATA);
    source.repo = repo;
    Ok(Some(source))
}

/// Sets the commit and the digest of each version of data, so that every node and every attempt of a run gets the same bytes.
///
/// # Errors
/// If a repository cannot be reached, or does not track the path.
pub(super) async fn pin(data: &mut [DataVolume], home: &Home) -> Result<(), DataError> {
    if data.is_empty() {
        return Ok(());
    }
    let depot = Depot::open(&home.work().join("versions"), None)?;
    for data in data {
        let (repo, rev, path) = (data.repo.clone(), data.rev.clone(), data.path.clone());
        let version = Version { repo, rev, path, ..Version::default() };
        let (commit, digest) = depot.identify(&version).await?;
        data.rev = Some(commit);
        data.digest.get_or_insert(digest);
    }
    Ok(())
}

/// Replaces the path of a repository on this machine by its absolute path. Relative paths are relative to `base`.
pub(super) fn resolve_repository(data: &mut DataVolume, base: &Path) {
    if is_url(&data.repo) {
        return;
    }
    // Anything else, such as an address for SSH, is no path of a repository.
    let folder = base.join(&data.repo).canonicalize().ok();
    if let Some(git) = folder.and_then(|folder| Git::find(&folder, true)) {
        data.repo = git.root().display().to_string();
    }
}
