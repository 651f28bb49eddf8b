//! The run cache: the recorded results of stages in `runs/` of the cache, which `--run-cache` shares.

use std::collections::BTreeSet;
use std::path::Path;

use futures_util::{StreamExt, TryStreamExt};

use super::backend::{Part, retried};
use super::{Kind, Remote};
use crate::error::DataError;
use crate::layout::Item;

/// Maximum bytes of the recorded results of a stage.
const MAX_RUN_BYTES: usize = 16 << 20;

impl Remote {
    /// Whether the remote can list its files, without which a run cache cannot be shared.
    pub fn shares_runs(&self) -> bool {
        match &self.kind {
            Kind::Folder { .. } => true,
            Kind::Other(backend) => backend.lists(),
        }
    }

    /// Sends the runs of a cache folder that the remote lacks, and returns their number.
    ///
    /// # Errors
    /// If a file cannot be read or sent.
    pub async fn push_runs(&self, cache: &Path, jobs: usize) -> Result<u64, DataError> {
        let local = runs_of(cache)?;
        if local.is_empty() {
            return Ok(0);
        }
        let existing = self.runs(jobs).await?;
        let send = async |path: &String| match &self.kind {
            Kind::Folder { root, .. } => store(root, path, &read(&cache.join(path))?),
            Kind::Other(backend) => {
                let source = cache.join(path);
                retried(|| backend.write(path, &source)).await.map_err(self.failed())
            }
        };
        let lacking: Vec<&String> = local.difference(&existing).collect();
        futures_util::stream::iter(lacking.iter().map(|path| send(path)))
            .buffer_unordered(jobs)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(lacking.len() as u64)
    }

    /// Receives the runs that a cache folder lacks, and returns their number.
    ///
    /// # Errors
    /// If a file cannot be received or written.
    pub async fn fetch_runs(&self, cache: &Path, jobs: usize) -> Result<u64, DataError> {
        let existing = runs_of(cache)?;
        let remote = self.runs(jobs).await?;
        let receive = async |path: &String| {
            let mut bytes = Vec::new();
            match &self.kind {
                Kind::Folder { root, .. } => bytes = read(&root.join(path))?,
                Kind::Other(backend) => {
                    let too_large =
                        || DataError::Remote { url: self.url.clone(), reason: format!("{path} is too large") };
                    let sink = |chunk: &[u8]| {
                        bytes.extend_from_slice(chunk);
                        if bytes.len() > MAX_RUN_BYTES { Err(too_large()) } else { Ok(()) }
                    };
                    self.receive(backend.as_ref(), path, 0, sink).await?;
                }
            }
            store(cache, path, &bytes)
        };
        let lacking: Vec<&String> = remote.difference(&existing).collect();
        futures_util::stream::iter(lacking.iter().map(|path| receive(path)))
            .buffer_unordered(jobs)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(lacking.len() as u64)
    }

    /// The paths of the runs of the remote.
    async fn runs(&self, jobs: usize) -> Result<BTreeSet<String>, DataError> {
        match &self.kind {
            Kind::Folder { root, .. } => runs_of(root),
            Kind::Other(backend) => {
                let paths = backend.list(Part::Runs, jobs).await.map_err(self.failed())?;
                Ok(paths.into_iter().filter(|path| is_run(path)).collect())
            }
        }
    }
}

fn is_run(path: &str) -> bool {
    matches!(Item::parse(path), Some(Item::Run { .. }))
}

/// The paths of the runs below a folder.
fn runs_of(root: &Path) -> Result<BTreeSet<String>, DataError> {
    let mut paths = vec!["runs".to_owned()];
    for _ in 0..3 {
        let mut below = Vec::new();
        for path in paths {
            let folder = root.join(&path);
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error)
                    if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
                {
                    continue;
                }
                Err(error) => return Err(DataError::io(&folder)(error)),
            };
            for entry in entries {
                let name = entry.map_err(DataError::io(&folder))?.file_name();
                below.push(format!("{path}/{}", name.to_string_lossy()));
            }
        }
        paths = below;
    }
    Ok(paths.into_iter().filter(|path| is_run(path)).collect())
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    std::fs::read(path).map_err(DataError::io(path))
}

/// Writes a file below a folder, which appears when it is complete.
fn store(root: &Path, path: &str, bytes: &[u8]) -> Result<(), DataError> {
    let target = root.join(path);
    let folder = target.parent().unwrap_or(root);
    std::fs::create_dir_all(folder).map_err(DataError::io(folder))?;
    slipway_core::files::replace(&target, bytes).map_err(DataError::io(&target))
}
