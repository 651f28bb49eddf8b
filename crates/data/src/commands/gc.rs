//! `gc`: removes objects that are not used.

use std::collections::HashSet;
use std::path::PathBuf;

use super::Talk;
use super::used::{Scope, used_objects};
use crate::error::DataError;
use crate::model::{Digest, HashName};
use crate::project::{Project, find_root};
use crate::remote::Remote;

/// What to remove.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The versions whose objects are kept, beside the workspace.
    pub scope: Scope,
    /// Remove unused objects from the remote, too.
    pub cloud: bool,
    /// Remove objects that the remote has, too.
    pub not_in_remote: bool,
    /// The remote; the default one if it is not given.
    pub remote: Option<String>,
    /// Number of concurrent requests.
    pub jobs: Option<usize>,
    /// Remove nothing.
    pub dry: bool,
    /// Folders of other projects that share the cache, whose objects are kept, too.
    pub projects: Vec<PathBuf>,
}

/// What was removed, or would be.
#[derive(Debug, Default)]
pub struct Report {
    /// Objects in the cache.
    pub cache: Vec<Digest>,
    /// Objects of DVC 2 in the cache.
    pub legacy: Vec<Digest>,
    /// Objects in the remote; `None` if it was not concerned.
    pub remote: Option<Vec<Digest>>,
}

/// Removes the objects that no version of the scope uses.
///
/// # Errors
/// [`DataError::NotInCache`] if the cache lacks the manifest of a folder, because its files would be removed, too.
pub async fn gc(project: &mut Project, options: &Options, talk: &dyn Talk) -> Result<Report, DataError> {
    let mut used = used_objects(project, &[], false, &options.scope, false)?;
    // They stay locked, so that nothing is added to them that this does not know.
    let mut others = Vec::new();
    for path in &options.projects {
        let folder = project.absolute(&path.to_string_lossy());
        if !folder.is_dir() {
            return Err(DataError::NoProject(folder));
        }
        let root = find_root(&folder)?;
        // Opening one twice would wait for the lock that this process holds.
        if root == project.root || others.iter().any(|other: &Project| other.root == root) {
            return Err(DataError::Invalid(format!("'{}' is not the folder of another project", path.display())));
        }
        let other = Project::open(&folder, &|blocker| talk.note(blocker))?;
        let found = used_objects(&other, &[], false, &options.scope, false)?;
        used.objects.extend(found.objects);
        used.missing_manifests.extend(found.missing_manifests);
        others.push(other);
    }
    if !used.missing_manifests.is_empty() {
        let names =
            used.missing_manifests.iter().map(|object| format!("{} (its manifest {})", object.name, object.digest));
        return Err(DataError::NotInCache(names.collect()));
    }
    let mut kept: HashSet<(HashName, Digest)> =
        used.objects.iter().map(|object| (object.hash, object.digest)).collect();
    let mut report = Report::default();
    let remote = match options.cloud || options.not_in_remote {
        true => Some(Remote::open(&project.config, options.remote.as_deref(), "gc -c")?),
        false => None,
    };
    if let (Some(remote), true) = (&remote, options.cloud) {
        let jobs = remote.concurrency(options.jobs);
        let mut unused: Vec<_> = remote.list(jobs).await?.into_iter().filter(|object| !kept.contains(object)).collect();
        sort(&mut unused);
        if !options.dry {
            remote.remove(&unused, jobs).await?;
        }
        report.remote = Some(unused.into_iter().map(|(_, digest)| digest).collect());
    }
    if let (Some(remote), true) = (&remote, options.not_in_remote) {
        let objects: Vec<_> = kept.iter().copied().collect();
        for object in remote.existing(&objects, remote.concurrency(options.jobs)).await? {
            kept.remove(&object);
        }
    }
    for (hash, removed) in [(HashName::Md5, &mut report.cache), (HashName::Dos2Unix, &mut report.legacy)] {
        let cache = project.cache_of(hash);
        let listing = cache.list()?;
        let mut unused: Vec<_> =
            listing.objects.into_iter().map(|digest| (hash, digest)).filter(|object| !kept.contains(object)).collect();
        sort(&mut unused);
        if !options.dry {
            for (_, digest) in &unused {
                cache.remove(digest)?;
            }
            for leftover in listing.leftovers {
                let _ = std::fs::remove_file(leftover); // Best effort: it is of no use, and the next `gc` finds it again.
            }
        }
        removed.extend(unused.into_iter().map(|(_, digest)| digest));
    }
    Ok(report)
}

/// Manifests first: without its manifest, a folder counts as missing, never as complete.
fn sort(objects: &mut [(HashName, Digest)]) {
    objects.sort_by_key(|(_, digest)| (!digest.is_dir, *digest));
}
