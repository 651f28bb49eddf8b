//! Artifacts: streamed in and out, listed, deleted. As files of this machine ([`files`]), or in a store that several servers share
//! ([`remote`]: S3, Google Cloud Storage, Azure).
//!
//! An object appears under its name only when it is complete. Uploads in parts (`mlflow-artifacts` multipart) are kept apart, in
//! `.part/ID/`, until they are completed, aborted, or collected because nobody wrote to them for long. [`Limits`] bound all of it.

mod files;
mod limits;
mod remote;
#[cfg(test)]
mod tests;
mod upload;

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};

use crate::StoreError;
use files::Files;
pub use limits::Limits;
use remote::Remote;

/// Prefixes of the environment variables that say how a bucket is reached.
pub const VENDORS: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];
/// The folder of what is not complete yet.
const PARTIAL: &str = ".part";

/// A tree of artifacts; cheap to clone.
#[derive(Debug, Clone)]
pub struct Objects(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Files(Files),
    Remote(Remote),
}

/// One name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name without its folder.
    pub name: String,
    /// Whether it is a folder.
    pub is_dir: bool,
    /// Bytes, for files.
    pub size: u64,
}

/// An object ready to be read.
#[derive(Debug)]
pub struct Reader {
    /// Bytes in the whole object.
    pub size: u64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(std::fs::File),
    Remote(Remote, object_store::path::Path),
}

/// The names of the folders that a path goes through, and of the object.
///
/// # Errors
/// [`StoreError::BadPath`] for a path that leaves the tree, names nothing, or leads to what is not complete.
fn parts(path: &str) -> Result<Vec<&str>, StoreError> {
    let bad = || StoreError::BadPath(path.to_owned());
    let mut found = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => found.push(name.to_str().ok_or_else(bad)?),
            Component::CurDir => {}
            _ => return Err(bad()),
        }
    }
    if path.contains('\0') || found.first().is_none_or(|first| *first == PARTIAL) { Err(bad()) } else { Ok(found) }
}

/// The id of an upload in parts, checked.
fn upload(id: &str) -> Result<&str, StoreError> {
    let known = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    if known { Ok(id) } else { Err(StoreError::BadPath(id.to_owned())) }
}

impl Objects {
    /// The tree of files under `root`, which is created, and cleared of what an earlier process left unfinished.
    ///
    /// # Errors
    /// [`StoreError::Object`] when the folder cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with(root, Limits::default())
    }

    /// As [`Objects::open`], with limits.
    ///
    /// # Errors
    /// As [`Objects::open`].
    pub fn open_with(root: impl Into<PathBuf>, limits: Limits) -> Result<Self, StoreError> {
        Ok(Self(Kind::Files(Files::open(root.into(), limits)?)))
    }

    /// The tree at a URL: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`. Credentials and the rest come from
    /// the environment, as the vendors' own tools read it (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL` …). Copies for programs that
    /// need files are kept under `copies`.
    ///
    /// # Errors
    /// [`StoreError::Remote`] for a URL or a setting that cannot be used.
    pub fn connect(url: &str, copies: PathBuf) -> Result<Self, StoreError> {
        Self::connect_with(url, copies, Limits::default())
    }

    /// As [`Objects::connect`], with limits.
    ///
    /// # Errors
    /// As [`Objects::connect`].
    pub fn connect_with(url: &str, copies: PathBuf, limits: Limits) -> Result<Self, StoreError> {
        Ok(Self(Kind::Remote(Remote::connect(url, copies, limits)?)))
    }

    /// Stores the stream under `path`, replacing what was there, and answers once it is kept.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], [`StoreError::OutOfSpace`], or another [`StoreError`] for a bad path, a failing store or a stream
    /// that breaks off; nothing is left behind then, nor if the returned future is dropped.
    pub async fn put<S, E>(&self, path: &str, stream: S) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        match &self.0 {
            Kind::Files(files) => files.put(path, stream).await,
            Kind::Remote(remote) => remote.put(path, stream).await,
        }
    }

    /// Opens the object at `path`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::IsFolder`], or the store's error.
    pub async fn get(&self, path: &str) -> Result<Reader, StoreError> {
        match &self.0 {
            Kind::Files(files) => files.get(path).await,
            Kind::Remote(remote) => remote.get(path).await,
        }
    }

    /// What is in the folder at `path` (`""` for the root), by name; nothing when it is no folder.
    ///
    /// # Errors
    /// [`StoreError::BadPath`] or the store's error.
    pub async fn list(&self, path: &str) -> Result<Vec<Entry>, StoreError> {
        let mut found = match &self.0 {
            Kind::Files(files) => files.list(path).await,
            Kind::Remote(remote) => remote.list(path).await,
        }?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Removes the object or the folder with all it holds. Nothing there is no error.
    ///
    /// # Errors
    /// [`StoreError::BadPath`] or the store's error.
    pub async fn delete(&self, path: &str) -> Result<(), StoreError> {
        match &self.0 {
            Kind::Files(files) => files.delete(path).await,
            Kind::Remote(remote) => remote.delete(path).await,
        }
    }

    /// A file or folder of this machine that holds what is at `path`, for programs that need one. It is not to be changed.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::BadPath`] or the store's error.
    pub async fn local(&self, path: &str) -> Result<PathBuf, StoreError> {
        match &self.0 {
            Kind::Files(files) => files.local(path),
            Kind::Remote(remote) => remote.local(path).await,
        }
    }

    /// Begins an upload in parts; returns its id.
    ///
    /// # Errors
    /// [`StoreError::TooManyUploads`], [`StoreError::OutOfSpace`], or the store's error.
    pub async fn begin_parts(&self) -> Result<String, StoreError> {
        let id = slipway_core::ids::hex32();
        match &self.0 {
            Kind::Files(files) => files.begin_parts(&id).await,
            Kind::Remote(remote) => remote.begin_parts(&id).await,
        }?;
        Ok(id)
    }

    /// Stores part `number` (1 to 10,000) of upload `id`, replacing what was there.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an unknown upload, [`StoreError::BadPart`], [`StoreError::TooLarge`],
    /// [`StoreError::OutOfSpace`], or the store's error.
    pub async fn put_part<S, E>(&self, id: &str, number: u32, stream: S) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        match &self.0 {
            Kind::Files(files) => files.put_part(upload(id)?, number, stream).await,
            Kind::Remote(remote) => remote.put_part(upload(id)?, number, stream).await,
        }
    }

    /// Joins the parts of upload `id`, in the order given, into the object at `path`. If it fails, the parts are still there.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an unknown upload or part, [`StoreError::BadPart`] for a part that is named twice,
    /// [`StoreError::TooLarge`], [`StoreError::OutOfSpace`], or the store's error.
    pub async fn complete_parts(&self, id: &str, numbers: Vec<u32>, path: &str) -> Result<(), StoreError> {
        if numbers.is_empty() {
            return Err(StoreError::NotFound(format!("{id}: no parts")));
        }
        match &self.0 {
            Kind::Files(files) => files.complete_parts(upload(id)?, numbers, path).await,
            Kind::Remote(remote) => remote.complete_parts(upload(id)?, numbers, path).await,
        }
    }

    /// Forgets upload `id` and its parts.
    ///
    /// # Errors
    /// [`StoreError::BadPath`] or the store's error.
    pub async fn abort_parts(&self, id: &str) -> Result<(), StoreError> {
        match &self.0 {
            Kind::Files(files) => files.abort_parts(upload(id)?).await,
            Kind::Remote(remote) => remote.abort_parts(upload(id)?).await,
        }
    }

    /// Removes unfinished uploads to which nobody wrote for `older_than`; how many. To be called at the start and from time to time.
    ///
    /// A bucket may also hold pieces of single objects that a killed server was writing. They are invisible to everybody, and only
    /// the vendor's own rule (S3's `AbortIncompleteMultipartUpload`) removes them.
    ///
    /// # Errors
    /// The store's error; what was not removed will be by the next call.
    pub async fn collect_abandoned(&self, older_than: Duration) -> Result<usize, StoreError> {
        match &self.0 {
            Kind::Files(files) => files.collect_abandoned(older_than).await,
            Kind::Remote(remote) => remote.collect_abandoned(older_than).await,
        }
    }
}

impl Reader {
    /// The bytes `from..to` as a stream of chunks.
    pub fn stream(self, from: u64, to: u64) -> BoxStream<'static, Result<Bytes, std::io::Error>> {
        match self.source {
            Source::File(file) => files::stream(file, from, to).boxed(),
            Source::Remote(remote, key) => remote.stream(key, from, to).boxed(),
        }
    }

    /// The whole object.
    ///
    /// # Errors
    /// The store's error.
    pub async fn bytes(self) -> Result<Vec<u8>, StoreError> {
        let size = self.size;
        let mut chunks = self.stream(0, size);
        let mut all = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        while let Some(chunk) = chunks.next().await {
            all.extend_from_slice(
                &chunk.map_err(|source| StoreError::Object { what: "reading an object".into(), source })?,
            );
        }
        Ok(all)
    }
}
