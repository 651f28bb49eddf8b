//! The exchange of objects between the cache and a remote: which objects the other side has, and the transfer of those that one side lacks.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use rayon::prelude::*;

use super::used::Object;
use crate::error::DataError;
use crate::model::{Digest, HashName};
use crate::project::Project;
use crate::remote::Remote;

/// A remote, and the objects that may be transferred.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) remote: Remote,
    /// Those that the remote has.
    pub(super) existing: Vec<Object>,
    /// Those that it lacks.
    pub(super) lacking: Vec<Object>,
    jobs: usize,
}

impl Exchange {
    /// Opens a remote, or the default one, and finds out which of the objects it has. `command` is part of the message when there is no remote.
    ///
    /// # Errors
    /// As [`Remote::open`], or if the remote cannot be reached.
    pub(super) async fn open(
        project: &Project,
        name: Option<&str>,
        objects: Vec<Object>,
        jobs: Option<usize>,
        command: &str,
    ) -> Result<Self, DataError> {
        let remote = Remote::open(&project.config, name, command)?;
        let jobs = remote.concurrency(jobs);
        let ids: Vec<_> = objects.iter().map(Object::id).collect();
        let found = remote.existing(&ids, jobs).await?;
        let (existing, lacking) = objects.into_iter().partition(|object| found.contains(&object.id()));
        Ok(Self { remote, existing, lacking, jobs })
    }

    /// Receives the objects that the remote has, and returns their number.
    ///
    /// # Errors
    /// [`DataError::Transfer`] if some could not be received.
    pub(super) async fn receive(&self, project: &Project) -> Result<u64, DataError> {
        transfer(project, &self.remote, &self.existing.iter().collect::<Vec<_>>(), self.jobs, false).await
    }

    /// Sends the objects that the remote lacks. Returns their number, and those that the cache lacks, too. A folder's manifest is sent after its files,
    /// so that it is never there without them.
    ///
    /// # Errors
    /// [`DataError::Transfer`] if some could not be sent.
    pub(super) async fn send(&self, project: &Project) -> Result<(u64, Vec<&Object>), DataError> {
        let (cached, missing) = split_cached(project, self.lacking.iter().collect())?;
        let (manifests, files): (Vec<_>, Vec<_>) = cached.into_iter().partition(|object| object.digest.is_dir);
        let mut sent = 0;
        for group in [files, manifests] {
            sent += transfer(project, &self.remote, &group, self.jobs, true).await?;
        }
        Ok((sent, missing))
    }
}

/// The objects of each remote: outputs may name their own. With `wanted`, those of other remotes are left out.
pub(super) fn by_remote(objects: Vec<Object>, wanted: Option<&str>) -> BTreeMap<Option<String>, Vec<Object>> {
    let mut groups: BTreeMap<Option<String>, Vec<Object>> = BTreeMap::new();
    for object in objects {
        if let (Some(own), Some(wanted)) = (&object.remote, wanted)
            && own != wanted
        {
            continue;
        }
        let name = object.remote.clone().or_else(|| wanted.map(str::to_owned));
        groups.entry(name).or_default().push(object);
    }
    groups
}

/// The objects that the cache has, and those that it lacks.
pub(super) fn split_cached<'a>(
    project: &Project,
    objects: Vec<&'a Object>,
) -> Result<(Vec<&'a Object>, Vec<&'a Object>), DataError> {
    let (mut cached, mut missing) = (Vec::new(), Vec::new());
    for hash in [HashName::Md5, HashName::Dos2Unix] {
        let digests = |object: &&&Object| object.hash == hash;
        let of_hash: Vec<&Object> = objects.iter().filter(digests).copied().collect();
        let digests: Vec<Digest> = of_hash.iter().map(|object| object.digest).collect();
        for (object, exists) in of_hash.into_iter().zip(project.cache_of(hash).contains_all(&digests)?) {
            if exists { &mut cached } else { &mut missing }.push(object);
        }
    }
    Ok((cached, missing))
}

/// Transfers objects concurrently, all of them also after a failure.
///
/// # Errors
/// [`DataError::Transfer`] if some could not be transferred.
pub(super) async fn transfer(
    project: &Project,
    remote: &Remote,
    objects: &[&Object],
    jobs: usize,
    send: bool,
) -> Result<u64, DataError> {
    let outcomes: Vec<(&Object, Result<(), DataError>)> = if remote.is_folder() {
        let copy = |object: &&'_ Object| remote.copy(project.cache_of(object.hash), &object.digest, send);
        let outcomes: Vec<_> = objects.par_iter().map(copy).collect();
        objects.iter().copied().zip(outcomes).collect()
    } else {
        let ids: Vec<_> = objects.iter().map(|object| object.id()).collect();
        let mut batched = remote.transfer_batches(|hash| project.cache_of(hash), &ids, jobs, send).await;
        let mut outcomes = Vec::with_capacity(objects.len());
        let mut single = Vec::new();
        for (object, id) in objects.iter().zip(&ids) {
            match batched.remove(id) {
                Some(outcome) => outcomes.push((*object, outcome)),
                None => single.push(*object),
            }
        }
        let transfers = single.into_iter().map(|object| async move {
            let cache = project.cache_of(object.hash);
            let outcome = match send {
                true => remote.upload(cache, &object.digest).await,
                false => remote.download(cache, &object.digest).await,
            };
            (object, outcome)
        });
        let transfers: Vec<_> = futures_util::stream::iter(transfers).buffer_unordered(jobs).collect().await;
        outcomes.extend(transfers);
        outcomes
    };
    let mut all = Outcomes::default();
    for (object, outcome) in outcomes {
        all.add(&object.name, outcome.map(|()| 1));
    }
    all.finish(if send { "pushed" } else { "fetched" })
}

/// What became of the parts of a transfer, which are all attempted, also after a failure.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    done: u64,
    total: usize,
    failed: usize,
    first: Option<String>,
}

impl Outcomes {
    /// Adds a part, with its name for the user: the number of its files, or why it failed.
    pub(super) fn add(&mut self, name: &str, outcome: Result<u64, DataError>) {
        self.total += 1;
        match outcome {
            Ok(files) => self.done += files,
            Err(error) => {
                self.failed += 1;
                self.first.get_or_insert_with(|| format!("{name}: {error}"));
            }
        }
    }

    /// Adds the parts of another transfer.
    ///
    /// # Errors
    /// The other one's, unless it says only that some of its parts failed.
    pub(super) fn join(&mut self, other: Result<u64, DataError>) -> Result<(), DataError> {
        match other {
            Ok(files) => {
                self.done += files;
                self.total += usize::try_from(files).unwrap_or(usize::MAX);
            }
            Err(DataError::Transfer { failed, total, first, .. }) => {
                self.failed += failed;
                self.total += total;
                self.first.get_or_insert(first);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The number of transferred files.
    ///
    /// # Errors
    /// [`DataError::Transfer`] if a part failed. `verb` is what could not be done, such as "fetched".
    pub(super) fn finish(self, verb: &'static str) -> Result<u64, DataError> {
        match self.first {
            Some(first) => Err(DataError::Transfer { failed: self.failed, total: self.total, verb, first }),
            None => Ok(self.done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_parts_do_not_hide_each_other() {
        let missing = || DataError::Missing("x".into());
        let mut part = Outcomes::default();
        part.add("a", Ok(3));
        part.add("b", Err(missing()));
        let mut all = Outcomes::default();
        all.join(Ok(2)).unwrap();
        all.join(part.finish("fetched")).unwrap();
        all.add("c", Err(missing()));
        assert!(matches!(all.join(Err(missing())), Err(DataError::Missing(_))));
        let error = all.finish("fetched").unwrap_err().to_string();
        assert_eq!(error, "2 of 5 files could not be fetched; the first: b: output 'x' does not exist");
    }
}
