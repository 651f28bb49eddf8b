//! `add -o` and `add --to-remote`: tracks data that is elsewhere, with a copy in the workspace or only in a remote.

use futures_util::{StreamExt, TryStreamExt};

use super::add::{check_links, check_overlaps};
use super::checkout::restore;
use super::import::{existing_item, finish, set_output, take_item, target_of};
use super::{GitFiles, Talk};
use crate::cache::Cache;
use crate::error::DataError;
use crate::external::Location;
use crate::external::location::Item;
use crate::model::{Digest, HashName};
use crate::project::Project;
use crate::remote::Remote;
use crate::snapshot::Snapshot;
use crate::stage::{DVC_SUFFIX, Stage};

/// How to add.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The place in the workspace; the name of the data in the current folder by default.
    pub out: Option<String>,
    /// Send the data to this remote, or the default one (`Some(None)`), instead of the workspace.
    pub to_remote: Option<Option<String>>,
    /// Number of concurrent transfers.
    pub jobs: Option<usize>,
    /// Replace what is there.
    pub force: bool,
}

/// Tracks the data at a URL or path.
///
/// # Errors
/// [`DataError::Exists`] if something is at the place of the output, [`DataError::Missing`] if nothing is at the source.
pub async fn add(
    project: &mut Project,
    source: &str,
    options: &Options,
    talk: &dyn Talk,
) -> Result<GitFiles, DataError> {
    let target = target_of(project, source, options.out.as_deref())?;
    if options.out.is_some() && !options.force && target.symlink_metadata().is_ok() {
        return Err(DataError::Exists(project.display(&target)));
    }
    check_links(project, &target)?;
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let file = target.with_file_name(format!("{name}{DVC_SUFFIX}"));
    let mut stage = match Stage::load(&file, &project.root) {
        Ok(old) => old.moved_to(file, target.clone(), name),
        Err(_) => Stage::for_output(file, target.clone(), name),
    };
    check_overlaps(project, &project.stages()?, &[&stage])?;
    if let Some(git) = &project.git
        && let Some(path) = git.first_tracked(&[&target])?
    {
        return Err(DataError::TrackedByGit(project.display(path)));
    }
    let location = Location::open(source, &project.config, &[], &project.current)?;
    let item = existing_item(&location).await?;
    let git_files = if let Some(remote) = &options.to_remote {
        let sent = transfer(project, &location, &item, remote.as_deref(), options.jobs, "add").await?;
        set_output(&mut stage.outs[0], &sent);
        stage.save()?;
        let mut git_files = GitFiles::default();
        git_files.push(stage.file.clone());
        git_files.finish(project)?
    } else {
        let taken = take_item(project, &location, &item, Some(&project.cache), options.jobs).await?;
        set_output(&mut stage.outs[0], &taken.into_copy());
        restore(project, &stage.outs[0], options.force, talk)?;
        finish(project, &stage)?
    };
    project.state.save()?;
    Ok(git_files)
}

/// Sends the data of a location to a remote without a copy in the cache or workspace, and returns its identity. `command` is part of the
/// message when there is no remote.
pub(super) async fn transfer(
    project: &Project,
    location: &Location,
    item: &Item,
    remote: Option<&str>,
    jobs: Option<usize>,
    command: &str,
) -> Result<Snapshot, DataError> {
    let remote = Remote::open(&project.config, remote, command)?;
    let jobs = remote.concurrency(jobs);
    let folder = tempfile::tempdir_in(project.tmp()).map_err(DataError::io(project.tmp()))?;
    let cache = Cache::new(folder.path(), HashName::Md5, false);
    let taken = take_item(project, location, item, Some(&cache), Some(jobs)).await?.into_copy();
    let mut objects: Vec<(HashName, Digest)> =
        taken.entries().iter().map(|(_, digest)| (HashName::Md5, *digest)).collect();
    objects.sort_unstable_by_key(|(_, digest)| *digest);
    objects.dedup();
    let existing = remote.existing(&objects, jobs).await?;
    let missing = objects.iter().filter(|object| !existing.contains(object));
    let uploads = missing.map(|(_, digest)| remote.upload(&cache, digest));
    let sent: Result<Vec<()>, DataError> =
        futures_util::stream::iter(uploads).buffer_unordered(jobs).try_collect().await;
    sent?;
    if taken.manifest.is_some() {
        // After its files, so that it is never there without them.
        remote.upload(&cache, &taken.digest).await?;
    }
    Ok(taken)
}
