//! `cache migrate`: gives objects of DVC 2 a place in the cache of DVC 3, and files the digests of DVC 3.

use rayon::prelude::*;

use super::{GitFiles, relink};
use crate::error::DataError;
use crate::hash::hash_file;
use crate::model::{Digest, HashName};
use crate::project::Project;
use crate::snapshot;

/// What was migrated, or would be.
#[derive(Debug, Default)]
pub struct Report {
    /// Number of objects.
    pub objects: usize,
    /// The `.dvc` files, if they were requested.
    pub files: Option<Vec<String>>,
}

/// Hashes the objects of DVC 2 anew, and links them into the cache of DVC 3. With `dvc_files`, the outputs are recorded with the new digests.
///
/// # Errors
/// If the cache or a file cannot be read or written.
pub fn migrate(project: &mut Project, dvc_files: bool, dry: bool) -> Result<Report, DataError> {
    let legacy: Vec<Digest> = project.legacy_cache.list()?.objects.into_iter().collect();
    let mut report = Report { objects: legacy.len(), files: None };
    if !dry {
        legacy.par_iter().try_for_each(|digest| {
            let source = project.legacy_cache.path(digest);
            let md5 = hash_file(&source, HashName::Md5)?;
            project.cache.adopt(&source, &Digest { md5, is_dir: digest.is_dir })
        })?;
    }
    if dvc_files {
        report.files = Some(commit_legacy(project, dry)?);
    }
    Ok(report)
}

fn commit_legacy(project: &mut Project, dry: bool) -> Result<Vec<String>, DataError> {
    let mut files = Vec::new();
    let mut git_files = GitFiles::default();
    for mut stage in project.stages()? {
        let is_legacy = |stage: &crate::stage::Stage| {
            stage.name.is_none() && stage.outs.iter().any(|out| out.hash == HashName::Dos2Unix && out.digest.is_some())
        };
        if !is_legacy(&stage) {
            continue;
        }
        files.push(stage.address(&project.current));
        if dry {
            continue;
        }
        for out in stage.outs.iter_mut().filter(|out| out.hash == HashName::Dos2Unix) {
            let Some(path) = out.path.clone() else { continue };
            let store = out.cached.then_some(&project.cache);
            let Some(taken) = snapshot::take(&path, &project.rules, &project.state, HashName::Md5, store)? else {
                return Err(DataError::Missing(project.display(&path)));
            };
            (out.hash, out.digest, out.meta) = (HashName::Md5, Some(taken.digest), taken.meta);
            if store.is_some() {
                relink(project, &path, &taken, false)?;
            }
        }
        stage.save()?;
        git_files.push(stage.file.clone());
    }
    project.state.save()?;
    git_files.finish(project)?;
    Ok(files)
}
