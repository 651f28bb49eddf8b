//! Artifacts: streamed in and out, listed, deleted. As files of this machine ([`files`]), or in a store that several servers share
//! ([`remote`]: S3, Google Cloud Storage, Azure).
//!
//! An object appears under its name only when it is complete. Uploads in parts (`mlflow-artifacts` multipart) are kept apart, in
//! `.part/ID/`, until they are completed.

mod files;
mod remote;

use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};

use crate::StoreError;
use files::Files;
use remote::Remote;

/// How names of variables begin that say how a bucket is reached.
pub const VENDORS: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];
/// What is not complete yet.
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

/// The parts of a path's way down from the root.
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
        Ok(Self(Kind::Files(Files::open(root.into())?)))
    }

    /// The tree at a URL: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`. Credentials and the rest come from
    /// the environment, as the vendors' own tools read it (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL` …). Copies for programs that
    /// need files are kept under `copies`.
    ///
    /// # Errors
    /// [`StoreError::Remote`] for a URL or a setting that cannot be used.
    pub fn connect(url: &str, copies: PathBuf) -> Result<Self, StoreError> {
        Ok(Self(Kind::Remote(Remote::connect(url, copies)?)))
    }

    /// Stores the stream under `path`, replacing what was there, and answers once it is kept.
    ///
    /// # Errors
    /// [`StoreError`] for a bad path, a failing store or a stream that breaks off; nothing is left behind then.
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
    /// The store's error.
    pub async fn begin_parts(&self) -> Result<String, StoreError> {
        let id = slipway_core::ids::hex32();
        match &self.0 {
            Kind::Files(files) => files.begin_parts(&id).await,
            Kind::Remote(remote) => remote.begin_parts(&id).await,
        }?;
        Ok(id)
    }

    /// Stores part `number` of upload `id`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an unknown upload, or the store's error.
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

    /// Joins the parts of upload `id`, in the order given, into the object at `path`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an unknown upload or part, or the store's error.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(parts: &[&'static str]) -> impl Stream<Item = Result<Bytes, String>> + Unpin + use<> {
        let parts: Vec<_> = parts.iter().map(|p| Ok(Bytes::from_static(p.as_bytes()))).collect();
        futures_util::stream::iter(parts)
    }

    /// What every store has to do. Files always; S3 where `SLIPWAY_TEST_OBJECTS` names one (`testkit/services.py`).
    async fn everywhere<F: Future<Output = ()>>(test: impl Fn(Objects) -> F) {
        let dir = std::env::temp_dir().join(format!("slipway-objects-{}", slipway_core::ids::hex32()));
        test(Objects::open(dir.join("files")).unwrap()).await;
        if let Ok(url) = std::env::var("SLIPWAY_TEST_OBJECTS") {
            let place = format!("{url}/{}", slipway_core::ids::hex32());
            test(Objects::connect(&place, dir.join("copies")).unwrap()).await;
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn objects_go_in_and_come_out() {
        everywhere(|objects| async move {
            assert_eq!(objects.put("a/b/c d#é.txt", chunks(&["hello ", "world"])).await.unwrap(), 11);
            assert_eq!(objects.put("a/empty", chunks(&[])).await.unwrap(), 0);
            assert_eq!(objects.get("a/b/c d#é.txt").await.unwrap().bytes().await.unwrap(), b"hello world");
            assert_eq!(objects.get("a/empty").await.unwrap().bytes().await.unwrap(), b"");
            let reader = objects.get("a/b/c d#é.txt").await.unwrap();
            let part: Vec<_> = reader.stream(6, 11).collect().await;
            assert_eq!(part[0].as_ref().unwrap().as_ref(), b"world");
            let names: Vec<_> = objects.list("a").await.unwrap().into_iter().map(|e| (e.name, e.is_dir)).collect();
            assert_eq!(names, [("b".to_owned(), true), ("empty".to_owned(), false)]);
            let below = objects.list("a/b").await.unwrap();
            assert_eq!((below[0].name.as_str(), below[0].size), ("c d#é.txt", 11));
            assert!(matches!(objects.get("a/b").await, Err(StoreError::IsFolder(_))));
            let local = objects.local("a").await.unwrap();
            assert_eq!(std::fs::read(local.join("b/c d#é.txt")).unwrap(), b"hello world");
            assert!(matches!(objects.local("nothing").await, Err(StoreError::NotFound(_))));
            objects.delete("a").await.unwrap();
            assert!(matches!(objects.get("a/empty").await, Err(StoreError::NotFound(_))));
            assert!(objects.list("a").await.unwrap().is_empty());
        })
        .await;
    }

    #[tokio::test]
    async fn paths_stay_inside() {
        everywhere(|objects| async move {
            for path in ["../x", "/etc/passwd", "a/../../x", "", ".", ".part/x", "a\0b"] {
                assert!(matches!(objects.get(path).await, Err(StoreError::BadPath(_))), "{path:?} was let through");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_broken_stream_leaves_nothing() {
        everywhere(|objects| async move {
            // More than a store takes at once, so that some of it is there already when the stream breaks.
            let much = Bytes::from(vec![7; 24 << 20]);
            let broken = futures_util::stream::iter([Ok(much), Err("cut".to_owned())]);
            assert!(objects.put("x", broken).await.is_err());
            assert!(matches!(objects.get("x").await, Err(StoreError::NotFound(_))));
            assert!(objects.list("").await.unwrap().is_empty());
        })
        .await;
    }

    #[tokio::test]
    async fn large_objects_come_back_whole() {
        everywhere(|objects| async move {
            let piece = |n: u8| Ok::<_, String>(Bytes::from(vec![n; 9 << 20]));
            let size = objects.put("large", futures_util::stream::iter((0..3).map(piece))).await.unwrap();
            assert_eq!(size, 27 << 20);
            let whole = objects.get("large").await.unwrap().bytes().await.unwrap();
            assert!((0..3u8).all(|n| whole[usize::from(n) * (9 << 20)..][..9 << 20].iter().all(|b| *b == n)));
        })
        .await;
    }

    #[tokio::test]
    async fn parts_are_joined_in_order() {
        everywhere(|objects| async move {
            let id = objects.begin_parts().await.unwrap();
            objects.put_part(&id, 2, chunks(&["world"])).await.unwrap();
            objects.put_part(&id, 1, chunks(&["hello "])).await.unwrap();
            let missing = objects.complete_parts(&id, vec![1, 2, 3], "m/whole").await;
            assert!(matches!(missing, Err(StoreError::NotFound(_))));
            assert!(matches!(objects.get("m/whole").await, Err(StoreError::NotFound(_))));
            objects.complete_parts(&id, vec![1, 2], "m/whole").await.unwrap();
            assert_eq!(objects.get("m/whole").await.unwrap().bytes().await.unwrap(), b"hello world");
            assert!(matches!(objects.put_part(&id, 3, chunks(&["x"])).await, Err(StoreError::NotFound(_))));
            let gone = objects.begin_parts().await.unwrap();
            objects.abort_parts(&gone).await.unwrap();
            assert!(matches!(objects.put_part(&gone, 1, chunks(&["x"])).await, Err(StoreError::NotFound(_))));
        })
        .await;
    }
}
