//! Transfers of many small objects with a remote that takes several in one request.

use std::collections::HashMap;
use std::path::PathBuf;

use futures_util::StreamExt;
use rayon::prelude::*;

use super::backend::{Backend, retried};
use super::{Kind, Remote, path_of};
use crate::batch::{self, MAX_OBJECT_BYTES, MAX_OBJECTS, UPLOAD_BYTES};
use crate::cache::Cache;
use crate::error::DataError;
use crate::model::{Digest, HashName};

type Id = (HashName, Digest);
/// What became of objects; those without an outcome are left to single transfers.
pub(crate) type Outcomes = HashMap<Id, Result<(), DataError>>;

/// Number of batches that are transferred at the same time: the server writes one while the next one arrives.
const CONCURRENT_BATCHES: usize = 4;
/// From this number of objects on, batches are worth their additional request.
const MIN_OBJECTS: usize = 8;

impl Remote {
    /// Transfers the objects that are small, if the remote takes batches. `cache` returns the cache of an algorithm. What is received is
    /// verified.
    pub(crate) async fn transfer_batches<'a>(
        &self,
        cache: impl Fn(HashName) -> &'a Cache + Sync,
        objects: &[Id],
        jobs: usize,
        send: bool,
    ) -> Outcomes {
        let Kind::Other(backend) = &self.kind else { return Outcomes::new() };
        if objects.len() < MIN_OBJECTS || !backend.takes_batches() {
            return Outcomes::new();
        }
        let batches = if send { batches_to_send(&cache, objects) } else { batches_to_receive(objects) };
        let transfer = async |ids: Vec<Id>| {
            let result = match send {
                true => self.send_batch(backend.as_ref(), &cache, &ids).await,
                false => self.receive_batch(backend.as_ref(), &cache, &ids).await,
            };
            let lost = |reason: &str| DataError::Remote { url: self.url.clone(), reason: reason.to_owned() };
            match result {
                Ok(outcomes) => outcomes,
                Err(reason) => ids.into_iter().map(|id| (id, Err(lost(&reason)))).collect(),
            }
        };
        let transfers = futures_util::stream::iter(batches.into_iter().map(transfer));
        transfers.buffer_unordered(jobs.min(CONCURRENT_BATCHES)).concat().await.into_iter().collect()
    }

    async fn send_batch<'a>(
        &self,
        backend: &dyn Backend,
        cache: &(impl Fn(HashName) -> &'a Cache + Sync),
        ids: &[Id],
    ) -> Result<Vec<(Id, Result<(), DataError>)>, String> {
        let files: Vec<(String, PathBuf)> = ids.iter().map(|id| (path_of(id), cache(id.0).path(&id.1))).collect();
        let contents: Result<Vec<Vec<u8>>, String> = files
            .par_iter()
            .map(|(_, file)| std::fs::read(file).map_err(|error| format!("{}: {error}", file.display())))
            .collect();
        let mut body = Vec::with_capacity(2 * UPLOAD_BYTES);
        for ((path, _), content) in files.iter().zip(contents?) {
            batch::append(&mut body, path, &content);
        }
        let body = bytes::Bytes::from(body);
        match retried(|| backend.write_batch(body.clone())).await {
            Ok(true) => Ok(ids.iter().map(|id| (*id, Ok(()))).collect()),
            Ok(false) => Ok(Vec::new()),
            Err(failure) => Err(failure.reason()),
        }
    }

    async fn receive_batch<'a>(
        &self,
        backend: &dyn Backend,
        cache: &(impl Fn(HashName) -> &'a Cache + Sync),
        ids: &[Id],
    ) -> Result<Vec<(Id, Result<(), DataError>)>, String> {
        let paths: Vec<String> = ids.iter().map(path_of).collect();
        let Some(bytes) = retried(|| backend.read_batch(&paths)).await.map_err(super::Failure::reason)? else {
            return Ok(Vec::new());
        };
        let mut objects = batch::parse(bytes).map_err(|reason| format!("the response is invalid: {reason}"))?;
        let requested: std::collections::HashSet<&Id> = ids.iter().collect();
        objects.retain(|(hash, digest, _)| requested.contains(&(*hash, *digest)));
        let store = |(hash, digest, content): (HashName, Digest, bytes::Bytes)| {
            let stored = match batch::is_valid(hash, &digest, &content) {
                true => cache(hash).put(&digest, &content),
                false => Err(DataError::Corrupt { oid: digest.to_string(), place: PathBuf::from(&self.url) }),
            };
            ((hash, digest), stored)
        };
        Ok(objects.into_par_iter().map(store).collect())
    }
}

/// The small objects, in groups of about [`UPLOAD_BYTES`].
fn batches_to_send<'a>(cache: &(impl Fn(HashName) -> &'a Cache + Sync), objects: &[Id]) -> Vec<Vec<Id>> {
    let size = |id: &Id| std::fs::metadata(cache(id.0).path(&id.1)).map_or(u64::MAX, |metadata| metadata.len());
    let sizes: Vec<u64> = objects.par_iter().map(size).collect();
    let (mut batches, mut current, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (id, size) in objects.iter().zip(sizes).filter(|(_, size)| *size <= MAX_OBJECT_BYTES) {
        current.push(*id);
        bytes += size;
        if current.len() == MAX_OBJECTS || bytes >= UPLOAD_BYTES as u64 {
            batches.push(std::mem::take(&mut current));
            bytes = 0;
        }
    }
    batches.push(current);
    batches.retain(|batch| !batch.is_empty());
    batches
}

/// The objects in groups. Their sizes are not known; the server leaves out those that are not small.
fn batches_to_receive(objects: &[Id]) -> Vec<Vec<Id>> {
    objects.chunks(MAX_OBJECTS).map(<[Id]>::to_vec).collect()
}
