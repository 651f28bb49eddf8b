//! Imports from buckets that keep all versions of their files (`import-url --version-aware`): the import records the versions, so that they can
//! be received again when the bucket has newer ones.

use super::import::{open_location, set_output};
use super::status::Change;
use crate::error::DataError;
use crate::external::location::Item;
use crate::external::{Location, redact};
use crate::model::HashName;
use crate::project::Project;
use crate::snapshot::{self, Snapshot};
use crate::stage::{Import, SourceFile, Stage};

/// The newest versions at a location, or `revision` of a single file: whether it is a folder, and its files.
///
/// # Errors
/// [`DataError::Missing`] if there is nothing, [`DataError::Remote`] if the bucket does not keep versions.
pub(super) async fn find(
    location: &Location,
    revision: Option<&str>,
    jobs: Option<usize>,
) -> Result<(bool, Vec<SourceFile>), DataError> {
    let url = redact(&location.written);
    let item = location.item_at(revision).await?.ok_or_else(|| DataError::Missing(url.clone()))?;
    if item.is_folder && revision.is_some() {
        return Err(DataError::Invalid(format!(
            "'{url}' is a folder: only its files have versions, so --rev cannot be used"
        )));
    }
    let source = |item: Item| {
        let reason = "the bucket does not keep versions; enable them, or import without --version-aware";
        let version = item.version.ok_or_else(|| DataError::Remote { url: url.clone(), reason: reason.into() })?;
        Ok(SourceFile { path: item.path, etag: item.tag, size: item.size, version })
    };
    let files = location.files(&item, jobs).await?.into_iter().map(source).collect::<Result<_, DataError>>()?;
    Ok((item.is_folder, files))
}

/// Stores versions in the cache, and returns what they are.
///
/// # Errors
/// If they cannot be received or stored.
async fn receive(
    project: &Project,
    location: &Location,
    is_folder: bool,
    files: &[SourceFile],
    jobs: Option<usize>,
) -> Result<Snapshot, DataError> {
    let item = |file: &SourceFile| Item {
        path: file.path.clone(),
        is_folder: false,
        size: file.size,
        tag: file.etag.clone(),
        version: Some(file.version.clone()),
    };
    let folder = tempfile::tempdir_in(project.tmp()).map_err(DataError::io(project.tmp()))?;
    let received = folder.path().join("data");
    let items: Vec<Item> = files.iter().map(item).collect();
    location.download_files(is_folder, &items, &received, jobs).await?;
    let taken = snapshot::take(&received, &project.rules, &project.state, HashName::Md5, Some(&project.cache))?;
    taken.ok_or_else(|| DataError::Missing(redact(&location.written)))
}

/// Stores the newest versions at a location, or `revision` of a single file, in the cache, and records them and their digest; with
/// `only_record`, the versions only.
///
/// # Errors
/// As [`find`], or if they cannot be received.
pub(super) async fn take(
    project: &Project,
    stage: &mut Stage,
    location: &Location,
    revision: Option<&str>,
    only_record: bool,
    jobs: Option<usize>,
) -> Result<(), DataError> {
    let (is_folder, files) = find(location, revision, jobs).await?;
    if !only_record {
        set_output(&mut stage.outs[0], &receive(project, location, is_folder, &files, jobs).await?);
    }
    stage.set_source_files(is_folder, &files);
    Ok(())
}

/// Receives the recorded versions of an import into the cache, and returns the number of files.
///
/// # Errors
/// [`DataError::Corrupt`] if they do not have the recorded digest.
pub(super) async fn fetch(project: &Project, stage: &Stage, jobs: Option<usize>) -> Result<u64, DataError> {
    let Some(digest) = stage.outs[0].digest else { return Ok(0) };
    let Some((taken, files)) = receive_recorded(project, stage, jobs).await? else { return Ok(0) };
    if taken.digest != digest {
        let place = redact(&open_location(project, stage)?.written).into();
        return Err(DataError::Corrupt { oid: digest.to_string(), place });
    }
    Ok(files)
}

/// Receives the recorded versions of an import into the cache, and returns what they are and the number of files; `None` if it records none.
///
/// # Errors
/// If they cannot be received or stored.
pub(super) async fn receive_recorded(
    project: &Project,
    stage: &Stage,
    jobs: Option<usize>,
) -> Result<Option<(Snapshot, u64)>, DataError> {
    let Some((is_folder, files)) = stage.source_files() else { return Ok(None) };
    let location = open_location(project, stage)?;
    let taken = receive(project, &location, is_folder, &files, jobs).await?;
    Ok(Some((taken, files.len() as u64)))
}

/// How the bucket differs from the recorded versions of an import.
///
/// # Errors
/// If it cannot be reached.
pub(super) async fn change(project: &Project, stage: &Stage) -> Result<Option<(String, Change)>, DataError> {
    let Some(Import::Url(written)) = stage.import() else { return Ok(None) };
    let location = open_location(project, stage)?;
    if !location.keeps_versions() {
        return Ok(None);
    }
    let recorded = stage.source_files();
    let change = match (find(&location, None, None).await, &recorded) {
        (Err(DataError::Missing(_)), _) => Change::Deleted,
        (Err(error), _) => return Err(error),
        (Ok(newest), Some(recorded)) if newest == *recorded => return Ok(None),
        (Ok(_), Some((false, _))) => Change::UpdateAvailable,
        (Ok(_), _) => Change::Modified,
    };
    Ok(Some((redact(&written), change)))
}
