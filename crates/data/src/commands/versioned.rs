//! `push` and `fetch` with buckets that keep all versions of a file: their files have the paths of the workspace, and the outputs record which
//! versions they are.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use futures_util::StreamExt;

use super::exchange::{Outcomes, transfer};
use super::run::save;
use super::transfer::Options;
use super::used::{Object, commits};
use super::{GitFiles, Talk};
use crate::config::relative_path;
use crate::error::DataError;
use crate::model::{Digest, HashName};
use crate::project::Project;
use crate::project::committed::stages_at;
use crate::remote::versioned::Versioned;
use crate::stage::{CloudVersion, ListedFile, Output, Stage};

/// A file of an output.
#[derive(Debug, Clone)]
struct File {
    /// The path from the root of the project, with `/` as separator.
    path: String,
    hash: HashName,
    digest: Digest,
    cloud: Option<CloudVersion>,
}

/// The path of a file of an output in a bucket; `below` is empty for an output that is a file.
pub(super) fn path_in_bucket(project: &Project, root: &Path, below: &str) -> String {
    let root = relative_path(root, &project.root).to_string_lossy().into_owned();
    if below.is_empty() { root } else { format!("{root}/{below}") }
}

/// The files of an output that are at or below `part`. None of a folder whose manifest is not known.
fn files(project: &Project, out: &Output, part: Option<&Path>) -> Result<Vec<File>, DataError> {
    let (Some(root), Some(digest)) = (&out.path, out.digest) else { return Ok(Vec::new()) };
    let file = |below: &str, digest, cloud: Option<&CloudVersion>| File {
        path: path_in_bucket(project, root, below),
        hash: out.hash,
        digest,
        cloud: cloud.cloned(),
    };
    if !digest.is_dir {
        return Ok(vec![file("", digest, out.cloud.as_ref())]);
    }
    let prefix = part.map(|part| relative_path(part, root));
    let is_selected = |path: &str| prefix.as_ref().is_none_or(|prefix| Path::new(path).starts_with(prefix));
    if let Some(listed) = &out.files {
        let selected = listed.iter().filter(|listed| is_selected(&listed.path));
        return Ok(selected.map(|listed| file(&listed.path, listed.digest, listed.cloud.as_ref())).collect());
    }
    let manifest = project.cache_of(out.hash).manifest(&digest)?.unwrap_or_default();
    let selected = manifest.entries.iter().filter(|entry| is_selected(&entry.path));
    Ok(selected.map(|entry| file(&entry.path, entry.digest, None)).collect())
}

/// Whether an output is pushed to a remote, `None` for the default one.
fn is_pushed(stage: &Stage, out: &Output, remote: Option<&str>, options: &Options) -> bool {
    !stage.keeps_source() && out.cached && out.can_push && out.remote.as_deref().or(options.remote.as_deref()) == remote
}

/// Sends the files of the targets, or of all outputs, that the bucket lacks, and records their versions. Returns their number.
///
/// # Errors
/// [`DataError::Transfer`] if files could not be sent. The versions of the others are recorded.
pub(super) async fn push(
    project: &mut Project,
    remote: Option<&str>,
    targets: &[String],
    options: &Options,
    talk: &dyn Talk,
) -> Result<u64, DataError> {
    if options.scope.has_commits() {
        return Err(DataError::Invalid("Multiple rev push is unsupported for cloud versioned remotes".into()));
    }
    let bucket = Versioned::open(&project.config, remote)?;
    let mut stages = project.stages()?;
    let mut wanted: BTreeMap<String, File> = BTreeMap::new();
    for selected in project.select(&stages, targets, options.recursive)? {
        for (out, part) in selected.outputs().filter(|(out, _)| is_pushed(selected.stage, out, remote, options)) {
            wanted.extend(files(project, out, part)?.into_iter().map(|file| (file.path.clone(), file)));
        }
    }
    let latest = bucket.latest().await?;
    let jobs = bucket.concurrency(options.jobs);
    let send = async |file: &File| -> Result<Option<CloudVersion>, DataError> {
        if let Some(cloud) = &file.cloud {
            // The content of the last version is enough, so that unchanged files keep their record.
            let is_latest = cloud.etag.is_some() && cloud.etag.as_ref() == latest.get(&file.path);
            let version = cloud.version.as_deref();
            if is_latest || (version.is_some() && bucket.has(&file.path, version.unwrap_or_default()).await?) {
                return Ok(None);
            }
        }
        let cache = project.cache_of(file.hash);
        if !cache.contains(&file.digest)? {
            return Ok(None);
        }
        bucket.send(&file.path, &cache.path(&file.digest)).await.map(Some)
    };
    let send = &send;
    let transfers = wanted.values().map(|file| async move { (file, send(file).await) });
    let outcomes: Vec<_> = futures_util::stream::iter(transfers).buffer_unordered(jobs).collect().await;
    let mut sent = HashMap::new();
    let mut all = Outcomes::default();
    for (file, outcome) in outcomes {
        all.add(
            &file.path,
            outcome.map(|version| {
                version.map_or(0, |version| {
                    sent.insert(file.path.clone(), version);
                    1
                })
            }),
        );
    }
    for stage in &mut stages {
        record(project, stage, &wanted, &sent, talk)?;
    }
    all.finish("pushed")
}

/// Records the versions of the files of a stage that were sent or found.
fn record(
    project: &Project,
    stage: &mut Stage,
    wanted: &BTreeMap<String, File>,
    sent: &HashMap<String, CloudVersion>,
    talk: &dyn Talk,
) -> Result<(), DataError> {
    let mut is_changed = false;
    for out in &mut stage.outs {
        let Some(root) = out.path.clone() else { continue };
        let all = files(project, out, None)?;
        if !all.iter().any(|file| wanted.contains_key(&file.path)) {
            continue;
        }
        if out.digest.is_some_and(|digest| !digest.is_dir) {
            if let Some(version) = sent.get(&path_in_bucket(project, &root, "")) {
                (out.cloud, out.meta.is_exec, is_changed) = (Some(version.clone()), false, true);
            }
            continue;
        }
        if out.files.is_some() && !all.iter().any(|file| sent.contains_key(&file.path)) {
            continue;
        }
        let cache = project.cache_of(out.hash);
        let old: HashMap<String, ListedFile> =
            out.files.take().unwrap_or_default().into_iter().map(|file| (file.path.clone(), file)).collect();
        let prefix = path_in_bucket(project, &root, "").len() + 1;
        let listed = all.into_iter().map(|file| {
            let path = file.path[prefix..].to_owned();
            let old = old.get(&path);
            let size = std::fs::metadata(cache.path(&file.digest)).ok().map(|metadata| metadata.len());
            let new = sent.get(&file.path).cloned();
            ListedFile {
                path,
                digest: file.digest,
                size: size.or(old.and_then(|old| old.size)),
                is_exec: new.is_none() && old.is_some_and(|old| old.is_exec),
                cloud: new.or(file.cloud),
            }
        });
        out.files = Some(listed.collect());
        is_changed = true;
    }
    if !is_changed {
        return Ok(());
    }
    save(project, std::slice::from_ref(stage), &[], &mut GitFiles::default(), &|text| talk.tell(text))
}

/// Receives objects that are versions of files, and returns their number.
///
/// # Errors
/// [`DataError::Transfer`] if some could not be received, or if their version is not recorded.
pub(super) async fn fetch(
    project: &Project,
    remote: Option<&str>,
    objects: &[Object],
    options: &Options,
) -> Result<u64, DataError> {
    let mut stages = project.stages()?;
    for commit in commits(project, &options.scope)? {
        stages.extend(stages_at(project, &commit)?);
    }
    let outs = stages.iter().flat_map(|stage| &stage.outs);
    let outs = outs.filter_map(|out| Some((path_in_bucket(project, out.path.as_ref()?, ""), out)));
    let bucket = Versioned::open(&project.config, remote)?;
    let (versions, jobs) = (bucket.recorded(outs), bucket.concurrency(options.jobs));
    // What is imported is received from its source.
    let files = objects.iter().filter(|object| !object.digest.is_dir && !object.is_imported);
    let (found, unversioned): (Vec<&Object>, Vec<&Object>) =
        files.partition(|object| versions.contains_key(&(object.hash, object.digest)));
    let received = transfer(project, &bucket.into_remote(versions), &found, jobs, false).await?;
    match unversioned.first() {
        Some(first) => Err(DataError::Transfer {
            failed: unversioned.len(),
            total: objects.len(),
            verb: "fetched",
            first: format!("{}: its version in the bucket is not recorded; push it where the cache has it", first.name),
        }),
        None => Ok(received),
    }
}
