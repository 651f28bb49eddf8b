//! The object store for artifacts, as files on this machine ([`files`]) or in a bucket that several servers share ([`remote`]: S3,
//! Google Cloud Storage, Azure). Objects are streamed in and out, within [`Limits`].
//!
//! An object appears under its name only when it is complete. Multipart uploads (of `mlflow-artifacts`) are stored in `.part/ID/`
//! until they are completed, aborted, or removed because they received no part for a long time.

mod batch;
mod files;
mod limits;
mod remote;
mod resume;
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

/// Name of the folder for unfinished objects and multipart uploads.
const PARTIAL_DIR: &str = ".part";
/// Name of the folder of versioned data ([`Objects::versioned_data`]).
const DATA_DIR: &str = ".data";
/// Name of the folder of what steps of pipelines make ([`Objects::pipelines`]).
const PIPELINES_DIR: &str = ".pipelines";

/// Whether the first segment of a path is reserved for the store itself, so that no client can read or write below it.
fn is_reserved(segment: &str) -> bool {
    [PARTIAL_DIR, DATA_DIR, PIPELINES_DIR].contains(&segment)
}

/// A handle to an object store; cheap to clone.
#[derive(Debug, Clone)]
pub struct Objects(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Files(Files),
    Remote(Remote),
}

/// An object or folder in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The last segment of the path, such as `model.onnx`.
    pub name: String,
    /// Whether it is a folder.
    pub is_dir: bool,
    /// Size in bytes; meaningless for folders.
    pub size: u64,
}

/// An open object.
#[derive(Debug)]
pub struct Reader {
    /// Size of the object in bytes.
    pub size: u64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(std::fs::File),
    Remote(Remote, object_store::path::Path),
}

/// Splits a path into its segments: the names of the folders and of the object.
///
/// # Errors
/// [`StoreError::BadPath`] for an empty path, a path that leaves the store, or one in a reserved folder.
fn segments(path: &str) -> Result<Vec<&str>, StoreError> {
    let invalid = || StoreError::BadPath(path.to_owned());
    let mut found = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => found.push(name.to_str().ok_or_else(invalid)?),
            Component::CurDir => {}
            _ => return Err(invalid()),
        }
    }
    if path.contains('\0') || found.first().is_none_or(|first| is_reserved(first)) { Err(invalid()) } else { Ok(found) }
}

/// Checks the form of a multipart upload's id, 32 hexadecimal digits, because the id becomes part of a path.
fn valid_upload_id(id: &str) -> Result<&str, StoreError> {
    let is_valid = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    if is_valid { Ok(id) } else { Err(StoreError::BadPath(id.to_owned())) }
}

impl Objects {
    /// Opens a store of files under the folder `root`, which is created if necessary. Objects that an earlier process left unfinished
    /// are removed.
    ///
    /// # Errors
    /// [`StoreError::Object`] when the folder cannot be created.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with(root, Limits::default())
    }

    /// [`Objects::open`] with explicit limits.
    ///
    /// # Errors
    /// As [`Objects::open`].
    pub fn open_with(root: impl Into<PathBuf>, limits: Limits) -> Result<Self, StoreError> {
        Ok(Self(Kind::Files(Files::open(root.into(), limits)?)))
    }

    /// Connects to the bucket at a URL: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`. Credentials and other
    /// settings come from the environment variables of the vendor's own tools (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL` …). Local
    /// copies for programs that need files ([`Objects::local_path`]) are stored in the folder `copies`, which is emptied first.
    ///
    /// # Errors
    /// [`StoreError::Url`] or [`StoreError::Remote`] for an invalid URL or setting.
    pub fn connect(url: &str, copies: PathBuf) -> Result<Self, StoreError> {
        Self::connect_with(url, copies, Limits::default())
    }

    /// [`Objects::connect`] with explicit limits.
    ///
    /// # Errors
    /// As [`Objects::connect`].
    pub fn connect_with(url: &str, copies: PathBuf, limits: Limits) -> Result<Self, StoreError> {
        Ok(Self(Kind::Remote(Remote::connect(url, copies, limits)?)))
    }

    /// Stores the stream under `path`, replacing an existing object, and returns its size in bytes once it is durable.
    ///
    /// If it fails, or if the returned future is dropped, no unfinished data is left behind.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], [`StoreError::OutOfSpace`], or another [`StoreError`] for an invalid path, a failing store or a
    /// stream that ends with an error.
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
    /// [`StoreError::NotFound`], [`StoreError::IsFolder`], or an error of the store.
    pub async fn get(&self, path: &str) -> Result<Reader, StoreError> {
        match &self.0 {
            Kind::Files(files) => files.get(path).await,
            Kind::Remote(remote) => remote.get(path).await,
        }
    }

    /// Lists the folder at `path` (`""` for the root), sorted by name. The list is empty when there is no such folder.
    ///
    /// # Errors
    /// [`StoreError::BadPath`], or an error of the store.
    pub async fn list(&self, path: &str) -> Result<Vec<Entry>, StoreError> {
        let mut found = match &self.0 {
            Kind::Files(files) => files.list(path).await,
            Kind::Remote(remote) => remote.list(path).await,
        }?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Deletes the object, or the folder with all its contents. It is not an error if there is nothing at `path`.
    ///
    /// # Errors
    /// [`StoreError::BadPath`], or an error of the store.
    pub async fn delete(&self, path: &str) -> Result<(), StoreError> {
        match &self.0 {
            Kind::Files(files) => files.delete(path).await,
            Kind::Remote(remote) => remote.delete(path).await,
        }
    }

    /// The path of a local file or folder with the contents of `path`, for programs that cannot read a stream. Callers must not modify
    /// it. A bucket's objects are copied to this machine first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::BadPath`], or an error of the store.
    pub async fn local_path(&self, path: &str) -> Result<PathBuf, StoreError> {
        match &self.0 {
            Kind::Files(files) => files.local_path(path),
            Kind::Remote(remote) => remote.local_path(path).await,
        }
    }

    /// Creates a multipart upload and returns its id.
    ///
    /// # Errors
    /// [`StoreError::TooManyUploads`], [`StoreError::OutOfSpace`], or an error of the store.
    pub async fn create_multipart(&self) -> Result<String, StoreError> {
        let id = slipway_core::ids::hex32();
        match &self.0 {
            Kind::Files(files) => files.create_multipart(&id).await,
            Kind::Remote(remote) => remote.create_multipart(&id).await,
        }?;
        Ok(id)
    }

    /// Stores part `number` (1 to 10,000) of upload `id`, replacing an existing part, and returns its size in bytes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an unknown upload, [`StoreError::BadPart`], [`StoreError::TooLarge`],
    /// [`StoreError::OutOfSpace`], or an error of the store.
    pub async fn put_part<S, E>(&self, id: &str, number: u32, stream: S) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        match &self.0 {
            Kind::Files(files) => files.put_part(valid_upload_id(id)?, number, stream).await,
            Kind::Remote(remote) => remote.put_part(valid_upload_id(id)?, number, stream).await,
        }
    }

    /// Joins the parts `numbers` of upload `id`, in this order, into the object at `path`, and removes the upload. If joining fails,
    /// the parts are kept.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an unknown upload or part, [`StoreError::BadPart`] for a part that is listed twice,
    /// [`StoreError::TooLarge`], [`StoreError::OutOfSpace`], or an error of the store.
    pub async fn complete_multipart(&self, id: &str, numbers: Vec<u32>, path: &str) -> Result<(), StoreError> {
        if numbers.is_empty() {
            return Err(StoreError::NotFound(format!("{id}: no parts")));
        }
        match &self.0 {
            Kind::Files(files) => files.complete_multipart(valid_upload_id(id)?, numbers, path).await,
            Kind::Remote(remote) => remote.complete_multipart(valid_upload_id(id)?, numbers, path).await,
        }
    }

    /// Removes upload `id` and its parts.
    ///
    /// # Errors
    /// [`StoreError::BadPath`], or an error of the store.
    pub async fn abort_multipart(&self, id: &str) -> Result<(), StoreError> {
        match &self.0 {
            Kind::Files(files) => files.abort_multipart(valid_upload_id(id)?).await,
            Kind::Remote(remote) => remote.abort_multipart(valid_upload_id(id)?).await,
        }
    }

    /// Removes unfinished uploads that received no data for `older_than`, and returns their number. Call it at the start and
    /// periodically.
    ///
    /// A bucket may also contain parts of single objects that a server was writing when it was killed. They appear in no listing, and
    /// only a lifecycle rule of the bucket (S3's `AbortIncompleteMultipartUpload`) removes them.
    ///
    /// # Errors
    /// An error of the store; the next call removes the remaining uploads.
    pub async fn collect_abandoned(&self, older_than: Duration) -> Result<usize, StoreError> {
        match &self.0 {
            Kind::Files(files) => files.collect_abandoned(older_than).await,
            Kind::Remote(remote) => remote.collect_abandoned(older_than).await,
        }
    }
}

impl Reader {
    /// Streams the bytes `from..to` of the object.
    pub fn stream(self, from: u64, to: u64) -> BoxStream<'static, Result<Bytes, std::io::Error>> {
        match self.source {
            Source::File(file) => files::stream(file, from, to).boxed(),
            Source::Remote(remote, key) => remote.stream(key, from, to).boxed(),
        }
    }

    /// Reads the whole object into memory.
    ///
    /// # Errors
    /// An error of the store.
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
