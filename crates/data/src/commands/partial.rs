//! Imports whose data was not downloaded (`import --no-download`, `--no-exec`): their files record the version of the source, but no digest of the data. `fetch`
//! stores the data in the cache and remembers its digest, so that `checkout` can restore it. The `.dvc` file stays as it is, as with DVC; `update`
//! completes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::exchange::Outcomes;
use super::import::{open_location, open_source, take_files, take_location};
use super::status::in_cache;
use super::transfer::Options;
use super::update::is_current;
use super::{Talk, source_versions};
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

/// Whether it is recorded which version of the source is imported. Without (`--no-exec`), the data is that of the present version.
fn has_version(stage: &Stage) -> bool {
    match stage.import() {
        Some(Import::Repository { commit, .. }) => commit.is_some(),
        _ => VERSION_KEYS.iter().any(|key| stage.dependency(key).is_some()),
    }
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

/// The place of the output of a partial import, if nothing is there and the digest of its data is not known.
pub(super) fn missing(stage: &Stage) -> Option<&Path> {
    let place = stage.outs.first().filter(|_| is_partial(stage))?.path.as_deref()?;
    place.symlink_metadata().is_err().then_some(place)
}

/// Stores the data of the partial imports among the targets in the cache, of each also when others failed. As with DVC, data whose source no longer
/// has the recorded version is left out, with a note. False if there are no such imports.
///
/// # Errors
/// If a file of the project cannot be read or written. Failures of imports are among the outcomes.
pub(super) async fn fetch(
    project: &mut Project,
    targets: &[String],
    options: &Options,
    outcomes: &mut Outcomes,
    talk: &dyn Talk,
) -> Result<bool, DataError> {
    let stages = project.stages()?;
    let selected = project.select(&stages, targets, options.recursive)?;
    let partial: Vec<&Stage> =
        selected.iter().map(|selected| selected.stage).filter(|stage| is_partial(stage)).collect();
    if partial.is_empty() {
        return Ok(false);
    }
    let mut known = remembered(project);
    for stage in partial {
        let key = stage.own_digest();
        let digest = known.get(&key).and_then(|text| Digest::parse(text));
        if let Some(digest) = digest
            && has_version(stage)
            && in_cache(project, HashName::Md5, &digest)?
        {
            continue;
        }
        let outcome = take(project, stage, options.jobs, talk).await;
        let name = stage.outs[0].display(&project.current, &project.root);
        outcomes.add(
            &name,
            outcome.map(|taken| {
                taken.map_or(0, |(digest, files)| {
                    known.insert(key, digest.to_string());
                    files
                })
            }),
        );
    }
    project.state.save()?;
    known.retain(|key, _| stages.iter().any(|stage| is_partial(stage) && stage.own_digest() == *key));
    let file = file(project);
    let bytes = serde_json::to_vec(&known).unwrap_or_default();
    slipway_core::files::replace(&file, &bytes).map_err(DataError::io(&file))?;
    Ok(true)
}

/// Stores the recorded version of the data of a partial import in the cache if there is data in the workspace that this program has not fetched: DVC
/// keeps what it fetches in another place. Best effort: without it, the data is removed only after a question.
pub(super) async fn save_recorded(project: &mut Project, stage: &Stage, jobs: Option<usize>, talk: &dyn Talk) {
    let is_there = stage.outs.first().and_then(|out| out.path.as_deref()).is_some_and(|path| path.exists());
    if is_partial(stage) && is_there && !remembered(project).contains_key(&stage.own_digest()) {
        let _ = take(project, stage, jobs, talk).await;
    }
}

/// Stores the recorded version of the data of an import in the cache, and returns its digest and the number of its files; `None` if it is at a URL and
/// no version is recorded, or its source no longer has it.
async fn take(
    project: &mut Project,
    stage: &Stage,
    jobs: Option<usize>,
    talk: &dyn Talk,
) -> Result<Option<(Digest, u64)>, DataError> {
    let mut taken = stage.clone();
    match stage.import() {
        Some(Import::Repository { commit, revision, .. }) => {
            let repository = open_source(project, stage, commit.or(revision).as_deref()).await?;
            take_files(project, &mut taken, &repository, jobs).await?;
        }
        Some(Import::Url(url)) if has_version(stage) => {
            if let Some((snapshot, files)) = source_versions::receive_recorded(project, stage, jobs).await? {
                return Ok(Some((snapshot.digest, files)));
            }
            let location = open_location(project, stage)?;
            let mut is_recorded = match is_current(project, stage, &location, None).await {
                Err(DataError::Missing(_)) => false,
                outcome => outcome?,
            };
            if is_recorded {
                take_location(project, &mut taken, &location, None, false, jobs).await?;
                // It may have changed in between.
                is_recorded = VERSION_KEYS.iter().all(|key| taken.dependency(key) == stage.dependency(key));
            }
            if !is_recorded {
                talk.note(&format!(
                    "'{}' has changed since it was imported, so the recorded version cannot be fetched; `update {}` imports the present one",
                    external::redact(&url),
                    project.display(&stage.file)
                ));
                return Ok(None);
            }
        }
        _ => return Ok(None),
    }
    let out = &taken.outs[0];
    Ok(out.digest.map(|digest| (digest, out.meta.nfiles.unwrap_or(1))))
}
