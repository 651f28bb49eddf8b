//! `update` of data that is not imported: brings it to the last versions of its files in a bucket (`worktree` remotes), which others may have
//! changed there without DVC.

use std::collections::HashMap;

use futures_util::{StreamExt, TryStreamExt};

use super::checkout::restore;
use super::run::save;
use super::update::Options;
use super::versioned::path_in_bucket;
use super::{GitFiles, Talk};
use crate::error::DataError;
use crate::manifest::{Entry, Manifest};
use crate::model::Meta;
use crate::project::Project;
use crate::remote::versioned::{Versioned, is_worktree};
use crate::stage::{CloudVersion, ListedFile, Output, Stage};

/// Updates the outputs of a stage that is not an import.
///
/// # Errors
/// [`DataError::Invalid`] if their remote is not a `worktree`, or errors of the bucket and the workspace.
pub(super) async fn update(
    project: &Project,
    stage: &mut Stage,
    options: &Options,
    talk: &dyn Talk,
) -> Result<(), DataError> {
    for (option, is_set) in [
        ("--rev", options.revision.is_some()),
        ("--no-download", options.no_download),
        ("--to-remote", options.to_remote.is_some()),
    ] {
        if is_set {
            return Err(DataError::Invalid(format!("{option} can't be used with worktree update")));
        }
    }
    let address = stage.address(&project.current);
    for out in stage.outs.iter_mut().filter(|out| out.cached && out.can_push) {
        let shown = out.display(&project.current, &project.root);
        let Some(remote) = remote_of(out) else {
            talk.note(&format!("Could not update '{shown}', it was never pushed to a remote"));
            continue;
        };
        if !is_worktree(&project.config, &remote)? {
            return Err(DataError::Invalid(format!("update is not supported for '{address}' that is not an import.")));
        }
        let bucket = Versioned::open(&project.config, Some(&remote))?;
        if update_output(project, out, &bucket, options, talk).await? {
            restore(project, out, false, talk)?;
        } else {
            talk.note(&format!("Could not update '{shown}', it does not exist in the remote"));
        }
    }
    save(project, std::slice::from_ref(stage), &[], &mut GitFiles::default(), &|text| talk.tell(text))
}

/// The remote to which an output was pushed.
fn remote_of(out: &Output) -> Option<String> {
    let listed = out.files.iter().flatten().find_map(|file| file.cloud.as_ref());
    out.remote.clone().or_else(|| out.cloud.as_ref().or(listed).map(|cloud| cloud.remote.clone()))
}

/// Receives the last versions of the files of an output that differ from the recorded ones; false if there are none.
async fn update_output(
    project: &Project,
    out: &mut Output,
    bucket: &Versioned,
    options: &Options,
    talk: &dyn Talk,
) -> Result<bool, DataError> {
    let Some(root) = out.path.clone() else { return Ok(false) };
    let root = path_in_bucket(project, &root, "");
    let latest = bucket.latest().await?;
    let known = std::mem::take(&mut out.files).unwrap_or_default();
    let present: Vec<ListedFile> = match out.digest {
        Some(digest) if !digest.is_dir => vec![ListedFile {
            path: String::new(),
            digest,
            size: out.meta.size,
            is_exec: out.meta.is_exec,
            cloud: out.cloud.clone(),
        }],
        _ => known,
    };
    let below = |path: &str| -> Option<String> {
        if path == root {
            return Some(String::new());
        }
        path.strip_prefix(&root)?.strip_prefix('/').map(str::to_owned)
    };
    let by_path: HashMap<&str, &ListedFile> = present.iter().map(|file| (file.path.as_str(), file)).collect();
    let receive = async |path: String, file: String, etag: String| -> Result<ListedFile, DataError> {
        let is_same = |cloud: &CloudVersion| cloud.etag.as_deref() == Some(&etag);
        let same = by_path.get(file.as_str()).filter(|known| known.cloud.as_ref().is_some_and(is_same));
        if let Some(same) = same {
            return Ok((*same).clone());
        }
        let (digest, size, cloud) = bucket.receive_latest(&path, &project.cache, project.staging.path()).await?;
        Ok(ListedFile { path: file, digest, size: Some(size), is_exec: false, cloud: Some(cloud) })
    };
    let wanted = latest.into_iter().filter_map(|(path, etag)| Some((below(&path)?, path, etag)));
    let transfers: Vec<_> = wanted.map(|(file, path, etag)| receive(path, file, etag)).collect();
    let jobs = bucket.concurrency(options.jobs);
    let mut files: Vec<ListedFile> = futures_util::stream::iter(transfers).buffer_unordered(jobs).try_collect().await?;
    if files.is_empty() {
        out.files = (!present.is_empty() && out.digest.is_some_and(|digest| digest.is_dir)).then_some(present);
        return Ok(false);
    }
    if let [file] = files.as_slice()
        && file.path.is_empty()
    {
        out.digest = Some(file.digest);
        out.meta = Meta { size: file.size, nfiles: None, is_exec: file.is_exec };
        out.cloud.clone_from(&file.cloud);
        return Ok(true);
    }
    files.retain(|file| !file.path.is_empty());
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let entry = |file: &ListedFile| Entry { path: file.path.clone(), digest: file.digest, size: file.size };
    let manifest = Manifest::new(files.iter().map(entry).collect());
    talk.tell(&format!("Updating '{}'", out.display(&project.current, &project.root)));
    out.digest = Some(project.cache.put_manifest(&manifest)?);
    out.meta = Meta { size: manifest.size(), nfiles: Some(manifest.entries.len() as u64), is_exec: false };
    (out.cloud, out.files) = (None, Some(files));
    Ok(true)
}
