//! `verify`: reads the objects of a cache or remote again, and compares their content with their names.

use futures_util::StreamExt;
use rayon::prelude::*;

use super::used::{Scope, used_objects};
use crate::cache::Cache;
use crate::error::DataError;
use crate::model::{Digest, HashName};
use crate::project::Project;
use crate::remote::Remote;

/// What to verify.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Verify a remote: this one, or the default one (`Some(None)`); the cache if it is not given.
    pub remote: Option<Option<String>>,
    /// Which versions of the project are concerned beside the workspace, for missing objects.
    pub scope: Scope,
    /// Remove damaged objects.
    pub remove: bool,
    /// Number of concurrent downloads.
    pub jobs: Option<usize>,
}

/// The result.
#[derive(Debug, Default)]
pub struct Report {
    /// Number of verified objects.
    pub verified: u64,
    /// Objects whose content is not that of their name, each with its place.
    pub damaged: Vec<(Digest, String)>,
    /// Objects that the project uses and that are not there, each with a path that has them.
    pub missing: Vec<(Digest, String)>,
}

/// Verifies all objects of the cache, or those of a remote that the project uses or that can be listed.
///
/// # Errors
/// If the cache or remote cannot be read.
pub async fn verify(project: &mut Project, options: &Options) -> Result<Report, DataError> {
    let used = used_objects(project, &[], false, &options.scope, options.remote.is_some())?;
    let names = || used.objects.iter().map(|object| ((object.hash, object.digest), object.name.clone()));
    let mut report = Report::default();
    match &options.remote {
        None => {
            let mut found = std::collections::HashSet::new();
            for hash in [HashName::Md5, HashName::Dos2Unix] {
                let cache = project.cache_of(hash);
                let objects: Vec<Digest> = cache.list()?.objects.into_iter().collect();
                let checks: Vec<(Digest, Result<(), DataError>)> =
                    objects.par_iter().map(|digest| (*digest, cache.verify(digest))).collect();
                for (digest, outcome) in checks {
                    match outcome {
                        Ok(()) => drop(found.insert((hash, digest))),
                        Err(DataError::Corrupt { place, .. }) => {
                            found.insert((hash, digest));
                            report.damaged.push((digest, place.display().to_string()));
                            if options.remove {
                                cache.remove(&digest)?;
                            }
                        }
                        Err(error) => return Err(error),
                    }
                    report.verified += 1;
                }
            }
            report.missing = names().filter(|(object, _)| !found.contains(object)).map(|((_, d), n)| (d, n)).collect();
        }
        Some(name) => {
            let remote = Remote::open(&project.config, name.as_deref(), "verify")?;
            let jobs = remote.concurrency(options.jobs);
            let wanted: Vec<(HashName, Digest)> = names().map(|(object, _)| object).collect();
            let mut existing = remote.existing(&wanted, jobs).await?;
            report.missing =
                names().filter(|(object, _)| !existing.contains(object)).map(|((_, d), n)| (d, n)).collect();
            // A web server cannot be listed; then the used objects are verified.
            existing.extend(remote.list(jobs).await.unwrap_or_default());
            let checks = existing.iter().map(|object| async { (*object, is_damaged(project, &remote, object).await) });
            let mut checks = futures_util::stream::iter(checks).buffer_unordered(jobs);
            while let Some((object, outcome)) = checks.next().await {
                report.verified += 1;
                if outcome? {
                    report.damaged.push((object.1, remote.location_of(&object)));
                    if options.remove {
                        remote.remove(&[object], 1).await?;
                    }
                }
            }
        }
    }
    report.damaged.sort();
    report.missing.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(report)
}

/// Whether a remote's object has another content than its name promises. It is received into a temporary cache, which verifies it.
async fn is_damaged(project: &Project, remote: &Remote, object: &(HashName, Digest)) -> Result<bool, DataError> {
    let folder = tempfile::tempdir_in(project.tmp()).map_err(DataError::io(project.tmp()))?;
    match remote.download(&Cache::new(folder.path(), object.0, false), &object.1).await {
        Ok(()) => Ok(false),
        Err(DataError::Corrupt { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}
