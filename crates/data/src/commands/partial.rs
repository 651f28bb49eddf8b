//! Imports whose data was not downloaded (`import --no-download`): their files record the version of the source, but no digest of the data. `fetch`
//! stores the data in the cache and remembers its digest, so that `checkout` can restore it. The `.dvc` file stays as it is, as with DVC; `update`
//! completes it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::import::{open_location, open_source, take_files, take_location};
use super::source_versions;
use super::status::in_cache;
use crate::error::DataError;
use crate::external;
use crate::model::{Digest, HashName};
use crate::project::Project;
use crate::stage::{Import, Stage};

/// Keys of a dependency that say which version of its source is imported.
const VERSION_KEYS: [&str; 4] = ["md5", "etag", "checksum", "files"];
/// Maximum bytes read of the remembered digests.
const MAX_BYTES: u64 = 16 << 20;

/// The digests of the data of imports, by the digest of the import itself.
type Digests = BTreeMap<String, String>;

fn file(project: &Project) -> PathBuf {
    project.tmp().join("slipway-imports.json")
}

/// The remembered digests. If they are lost or damaged, the data is fetched again.
fn remembered(project: &Project) -> Digests {
    let file = file(project);
    let is_small = std::fs::metadata(&file).is_ok_and(|metadata| metadata.len() <= MAX_BYTES);
    let bytes = if is_small { std::fs::read(&file).unwrap_or_default() } else { Vec::new() };
    serde_json::from_slice(&bytes).unwrap_or_default()
}

fn is_partial(stage: &Stage) -> bool {
    stage.import().is_some() && stage.outs.first().is_some_and(|out| out.digest.is_none() && out.cached)
}

/// Sets the digests of partial imports whose data was fetched.
pub(super) fn complete(project: &Project, stages: &mut [Stage]) {
    if !stages.iter().any(is_partial) {
        return;
    }
    let known = remembered(project);
    for stage in stages.iter_mut().filter(|stage| is_partial(stage)) {
        let digest = known.get(&stage.own_digest()).and_then(|text| Digest::parse(text));
        stage.outs[0].digest = digest;
        stage.outs[0].hash = HashName::Md5;
    }
}

/// Stores the data of the partial imports among the targets in the cache, and returns the number of files; `None` if there are no such imports.
///
/// # Errors
/// [`DataError::Invalid`] if the source has another version by now, or an error of the source.
pub(super) async fn fetch(
    project: &mut Project,
    targets: &[String],
    recursive: bool,
    jobs: Option<usize>,
) -> Result<Option<u64>, DataError> {
    let stages = project.stages()?;
    let selected = project.select(&stages, targets, recursive)?;
    let partial: Vec<&Stage> =
        selected.iter().map(|selected| selected.stage).filter(|stage| is_partial(stage)).collect();
    if partial.is_empty() {
        return Ok(None);
    }
    let mut known = remembered(project);
    let mut received = 0;
    for stage in partial {
        let key = stage.own_digest();
        let digest = known.get(&key).and_then(|text| Digest::parse(text));
        if let Some(digest) = digest
            && in_cache(project, HashName::Md5, &digest)?
        {
            continue;
        }
        let Some((digest, files)) = take(project, stage, jobs).await? else { continue };
        received += files;
        known.insert(key, digest.to_string());
    }
    project.state.save()?;
    known.retain(|key, _| stages.iter().any(|stage| is_partial(stage) && stage.own_digest() == *key));
    let file = file(project);
    let bytes = serde_json::to_vec(&known).unwrap_or_default();
    slipway_core::files::replace(&file, &bytes).map_err(DataError::io(&file))?;
    Ok(Some(received))
}

/// Stores the recorded version of the data of an import in the cache, and returns its digest and the number of its files; `None` if no version is
/// recorded.
async fn take(project: &mut Project, stage: &Stage, jobs: Option<usize>) -> Result<Option<(Digest, u64)>, DataError> {
    let mut taken = stage.clone();
    match stage.import() {
        Some(Import::Repository { commit: Some(commit), .. }) => {
            let repository = open_source(project, stage, Some(&commit))?;
            take_files(project, &mut taken, &repository, jobs).await?;
        }
        Some(Import::Url(url)) if VERSION_KEYS.iter().any(|key| stage.dependency(key).is_some()) => {
            if let Some((snapshot, files)) = source_versions::receive_recorded(project, stage, jobs).await? {
                return Ok(Some((snapshot.digest, files)));
            }
            let location = open_location(project, stage)?;
            take_location(project, &mut taken, &location, None, false, jobs).await?;
            if VERSION_KEYS.iter().any(|key| taken.dependency(key) != stage.dependency(key)) {
                return Err(DataError::Invalid(format!(
                    "'{}' has changed since it was imported; `update {}` imports the new version",
                    external::redact(&url),
                    project.display(&stage.file)
                )));
            }
        }
        _ => return Ok(None),
    }
    let out = &taken.outs[0];
    Ok(out.digest.map(|digest| (digest, out.meta.nfiles.unwrap_or(1))))
}
