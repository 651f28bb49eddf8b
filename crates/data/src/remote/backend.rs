//! The seam between the kinds of remotes and the transfers: files by their path. Transfers retry, continue and verify; a kind of remote only
//! sends and receives.

use std::collections::HashSet;
use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};

use crate::model::HashName;

/// Number of attempts of a request.
const ATTEMPTS: u32 = 6;
/// Delay before the second attempt; it doubles with each further one, so that all of them take about six seconds.
const FIRST_DELAY: Duration = Duration::from_millis(200);

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The remote has no such file.
    NotFound,
    /// The remote is overloaded, or the connection broke off: worth another attempt.
    Temporary(String),
    /// Another attempt would fail, too.
    Permanent(String),
}

impl Failure {
    /// The message for the user.
    pub(crate) fn reason(self) -> String {
        match self {
            Self::NotFound => "not found".into(),
            Self::Temporary(reason) | Self::Permanent(reason) => reason,
        }
    }
}

/// The content of a file, in chunks.
pub(crate) type Chunks = BoxStream<'static, Result<Bytes, Failure>>;
/// The result of a request.
pub(crate) type Reply<'a, T> = BoxFuture<'a, Result<T, Failure>>;

/// A part of a remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The objects of an algorithm.
    Objects(HashName),
    /// The recorded results of stages.
    Runs,
}

impl Part {
    /// The folder of the part, and the number of levels of folders in it.
    fn folder(self) -> (&'static str, u32) {
        match self {
            Self::Objects(HashName::Md5) => ("files/md5", 1),
            Self::Objects(HashName::Dos2Unix) => ("", 1),
            Self::Runs => ("runs", 2),
        }
    }
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    /// The name in the folder.
    pub(crate) name: String,
    pub(crate) is_folder: bool,
    /// Whether it is a symbolic link to the file or folder.
    pub(crate) is_link: bool,
    /// Bytes of a file, if they are known.
    pub(crate) size: Option<u64>,
    /// What changes with the content of a file, if the service reports such a tag.
    pub(crate) tag: Option<String>,
}

/// A kind of remote from which any files and folders can be imported, not only the objects of a cache.
pub(crate) trait Source: Backend {
    /// What is at a path, without its name; `None` if there is nothing. The path of the remote itself is empty.
    fn describe<'a>(&'a self, path: &'a str) -> Reply<'a, Option<Entry>>;
}

/// A kind of remote. Paths are relative to the remote's URL, with `/` as separator.
pub(crate) trait Backend: Debug + Send + Sync {
    /// Whether a file exists.
    fn exists<'a>(&'a self, path: &'a str) -> Reply<'a, bool>;

    /// The entries of a folder; none if it does not exist.
    fn entries<'a>(&'a self, folder: &'a str) -> Reply<'a, Vec<Entry>>;

    /// The content of a file from a byte on.
    fn read<'a>(&'a self, path: &'a str, from: u64) -> Reply<'a, Chunks>;

    /// Sends a file. It appears at `path` when it is complete.
    fn write<'a>(&'a self, path: &'a str, source: &'a Path) -> Reply<'a, ()>;

    /// Whether the remote takes several small objects in one request.
    fn takes_batches(&self) -> bool {
        false
    }

    /// Sends a [batch](crate::batch); `false` if the remote does not take it after all.
    fn write_batch(&self, batch: Bytes) -> Reply<'_, bool> {
        drop(batch);
        Box::pin(std::future::ready(Ok(false)))
    }

    /// The small ones of these objects as a [batch](crate::batch); `None` if the remote does not send any after all.
    fn read_batch<'a>(&'a self, paths: &'a [String]) -> Reply<'a, Option<Bytes>> {
        let _ = paths;
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Removes a file, if it exists.
    fn remove<'a>(&'a self, path: &'a str) -> Reply<'a, ()>;

    /// Whether [`Self::list`] works.
    fn lists(&self) -> bool {
        true
    }

    /// From this number of files on, listing them is faster than querying each.
    fn list_from(&self) -> usize {
        500
    }

    /// Which of the files exist.
    fn existing<'a>(&'a self, paths: &'a [String], jobs: usize) -> Reply<'a, HashSet<String>> {
        Box::pin(async move {
            let check = |path: &'a String| -> Reply<'a, Option<String>> {
                Box::pin(async move { Ok(retried(|| self.exists(path)).await?.then(|| path.clone())) })
            };
            let checks: Vec<_> = paths.iter().map(check).collect();
            let found = futures_util::stream::iter(checks).buffer_unordered(jobs);
            Ok(found.try_collect::<Vec<_>>().await?.into_iter().flatten().collect())
        })
    }

    /// The paths of all files of a part of the remote.
    fn list(&self, part: Part, jobs: usize) -> Reply<'_, Vec<String>> {
        Box::pin(async move {
            let (top, levels) = part.folder();
            let mut folders = vec![top.to_owned()];
            for level in 0..=levels {
                let list = async |folder: String| {
                    let entries = retried(|| self.entries(&folder)).await?;
                    let path =
                        |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
                    let is_shard = |name: &str| name.len() == 2 && name.bytes().all(|b| b.is_ascii_hexdigit());
                    let wanted =
                        |entry: &Entry| entry.is_folder == (level < levels) && (level > 0 || is_shard(&entry.name));
                    Ok::<_, Failure>(entries.iter().filter(|e| wanted(e)).map(|e| path(&e.name)).collect::<Vec<_>>())
                };
                let lists = futures_util::stream::iter(folders.into_iter().map(list)).buffer_unordered(jobs);
                folders = lists.try_collect::<Vec<_>>().await?.concat();
            }
            Ok(folders)
        })
    }

    /// Removes files, if they exist, in this order where `jobs` is 1.
    fn remove_all<'a>(&'a self, paths: &'a [String], jobs: usize) -> Reply<'a, ()> {
        Box::pin(async move {
            let remove =
                |path: &'a String| -> Reply<'a, ()> { Box::pin(async move { retried(|| self.remove(path)).await }) };
            let removals: Vec<_> = paths.iter().map(remove).collect();
            futures_util::stream::iter(removals).buffer_unordered(jobs).try_collect::<Vec<()>>().await.map(drop)
        })
    }
}

/// Sends a request, again with a growing delay while its failures are temporary.
pub(crate) async fn retried<'a, T>(request: impl Fn() -> Reply<'a, T>) -> Result<T, Failure> {
    let mut attempt = 1;
    loop {
        match request().await {
            Err(Failure::Temporary(reason)) if attempt < ATTEMPTS => {
                tracing::debug!(reason, attempt, "a request failed and is repeated");
                delay(attempt).await;
                attempt += 1;
            }
            Err(Failure::Temporary(reason)) => {
                return Err(Failure::Permanent(format!("{reason} ({ATTEMPTS} attempts)")));
            }
            other => return other,
        }
    }
}

/// Waits before another attempt.
pub(crate) async fn delay(attempt: u32) {
    tokio::time::sleep(FIRST_DELAY * 2_u32.saturating_pow(attempt - 1)).await;
}

/// Whether another attempt makes sense after this many.
pub(crate) fn may_retry(attempt: u32) -> bool {
    attempt < ATTEMPTS
}
