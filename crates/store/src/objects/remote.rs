//! The object store in a bucket (S3, Google Cloud Storage, Azure). The key of an object is its path below the prefix, so other tools
//! can read the objects.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, ObjectStoreScheme};
use ring::digest::{Context, SHA256};
use tokio::io::AsyncWriteExt;

use super::limits::{Counter, Disk, check_part_number, check_part_numbers, is_older};
use super::upload::{MAX_UPLOAD_BYTES, Upload};
use super::{Entry, Limits, PARTIAL_DIR, Reader, Source, is_reserved, segments};
use crate::StoreError;
use crate::bucket::HttpFactory;

/// The operation in the error of a remote_error local copy.
const COPYING: &str = "copying an object to this machine";
/// From this number on, objects are listed instead of queried one by one.
const LIST_FROM: usize = 500;
/// Number of objects that are queried at the same time.
const CONCURRENT_QUERIES: usize = 64;
/// Name of the empty object that marks a multipart upload as created.
const UPLOAD_MARKER: &str = "begun";

/// A handle to a store in a bucket; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    /// The folder of local copies.
    copies: PathBuf,
    /// The disk of the local copies.
    disk: Disk,
    limits: Limits,
}

/// Converts an error of the service; `what` names the operation.
pub(super) fn remote_error(what: impl Into<String>) -> impl FnOnce(object_store::Error) -> StoreError {
    let what = what.into();
    move |source| StoreError::Remote { what, source }
}

fn env_var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Remote {
    pub(super) fn connect(url: &str, copies: PathBuf, limits: Limits) -> Result<Self, StoreError> {
        let invalid = |reason: String| StoreError::Url(format!("{url}: {reason}"));
        let parsed = url::Url::parse(url).map_err(|e| invalid(e.to_string()))?;
        if !matches!(parsed.scheme(), "s3" | "gs" | "az") {
            return Err(invalid("it does not start with s3://, gs:// or az://".into()));
        }
        let (scheme, prefix) = ObjectStoreScheme::parse(&parsed).map_err(|e| invalid(e.to_string()))?;
        let variable = match parsed.scheme() {
            "gs" => "GOOGLE_ALLOW_HTTP",
            "az" => "AZURE_ALLOW_HTTP",
            _ => "AWS_ALLOW_HTTP",
        };
        let allow_http = env_var(variable).is_some_and(|value| value == "true");
        let http = HttpFactory::new(allow_http).map_err(|e| invalid(e.to_string()))?;
        let store: Arc<dyn ObjectStore> = match scheme {
            ObjectStoreScheme::AmazonS3 => {
                let bucket = AmazonS3Builder::from_env().with_url(url).with_http_connector(http);
                Arc::new(bucket.build().map_err(remote_error(url))?)
            }
            ObjectStoreScheme::GoogleCloudStorage => {
                let bucket = GoogleCloudStorageBuilder::from_env().with_url(url).with_http_connector(http);
                Arc::new(bucket.build().map_err(remote_error(url))?)
            }
            ObjectStoreScheme::MicrosoftAzure => {
                let container = MicrosoftAzureBuilder::from_env().with_url(url).with_http_connector(http);
                Arc::new(container.build().map_err(remote_error(url))?)
            }
            other => return Err(invalid(format!("{other:?} is not a supported kind of bucket"))),
        };
        // Remove the copies of an earlier process, whose objects may no longer exist.
        match std::fs::remove_dir_all(&copies) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io("removing an earlier process's copies of objects")(error));
            }
            _ => {}
        }
        std::fs::create_dir_all(&copies).map_err(StoreError::io("creating the folder for copies of objects"))?;
        let disk = Disk { folder: copies.clone(), min_free: limits.min_free_bytes };
        let max_object_bytes = limits.max_object_bytes.min(MAX_UPLOAD_BYTES);
        Ok(Self { store, prefix, copies, disk, limits: Limits { max_object_bytes, ..limits } })
    }

    /// The store in the folder of versioned data.
    pub(super) fn folder(&self, name: &str) -> Result<Self, StoreError> {
        Ok(Self { prefix: self.key(&[name])?, ..self.clone() })
    }

    /// The key of a path below the prefix, given as segments.
    fn key(&self, segments: &[&str]) -> Result<Key, StoreError> {
        let mut full = self.prefix.as_ref().to_owned();
        for segment in segments {
            if !full.is_empty() {
                full.push('/');
            }
            full.push_str(segment);
        }
        Key::parse(&full).map_err(|_| StoreError::BadPath(segments.join("/")))
    }

    /// The key of an object of multipart upload `id`: a part's number, or the marker.
    fn part_key(&self, id: &str, name: &str) -> Result<Key, StoreError> {
        self.key(&[PARTIAL_DIR, id, name])
    }

    pub(super) async fn put<S, E>(&self, path: &str, stream: S) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let counter = Counter::for_object(self.limits.max_object_bytes);
        self.write(self.key(&segments(path)?)?, counter, stream).await
    }

    /// Stores the stream. On failure, or if the returned future is dropped, no data is left behind.
    async fn write<S, E>(&self, key: Key, mut counter: Counter, mut stream: S) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let mut upload = Upload::new(Arc::clone(&self.store), key);
        let received = async {
            while let Some(chunk) = stream.next().await {
                let chunk = chunk
                    .map_err(|e| std::io::Error::new(std::io::ErrorKind::UnexpectedEof, e.to_string()))
                    .map_err(StoreError::io("receiving an object"))?;
                counter.add(chunk.len() as u64)?;
                upload.put(chunk).await.map_err(remote_error("writing an object"))?;
            }
            Ok(counter.size())
        };
        match received.await {
            Ok(size) => upload.finish().await.map(|()| size).map_err(remote_error("writing an object")),
            Err(error) => {
                upload.abort().await;
                Err(error)
            }
        }
    }

    /// Stores many small objects.
    pub(super) async fn put_many(&self, objects: Vec<(String, Bytes)>) -> Result<(), StoreError> {
        let put = async |(path, content): (String, Bytes)| {
            let key = self.key(&segments(&path)?)?;
            Counter::for_object(self.limits.max_object_bytes).add(content.len() as u64)?;
            self.store.put(&key, content.into()).await.map_err(remote_error("writing an object"))
        };
        let puts = futures_util::stream::iter(objects.into_iter().map(put));
        puts.buffer_unordered(CONCURRENT_QUERIES).try_for_each(|_| std::future::ready(Ok(()))).await
    }

    /// The contents of objects of at most `max_bytes`.
    pub(super) async fn get_many(
        &self,
        paths: Vec<String>,
        max_bytes: u64,
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let get = async |path: String| {
            let key = self.key(&segments(&path)?)?;
            let failed = |error| remote_error(format!("reading '{path}'"))(error);
            match self.store.get(&key).await {
                // The request of a large object ends here, before its content is received.
                Ok(found) if found.meta.size > max_bytes => Ok(None),
                Ok(found) => Ok(Some(found.bytes().await.map_err(failed)?.into())),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(failed(error)),
            }
        };
        futures_util::stream::iter(paths.into_iter().map(get)).buffered(CONCURRENT_QUERIES).try_collect().await
    }

    pub(super) async fn get(&self, path: &str) -> Result<Reader, StoreError> {
        let key = self.key(&segments(path)?)?;
        match self.open(key.clone(), path).await {
            Err(StoreError::NotFound(path)) => match self.store.list(Some(&key)).next().await {
                Some(Ok(_)) => Err(StoreError::IsFolder(path)),
                _ => Err(StoreError::NotFound(path)),
            },
            opened => opened,
        }
    }

    pub(super) fn stream(
        self,
        key: Key,
        from: u64,
        to: u64,
    ) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send {
        let opened = async move {
            if from >= to {
                return Ok(futures_util::stream::empty().boxed());
            }
            let options = GetOptions { range: Some(GetRange::Bounded(from..to)), ..GetOptions::default() };
            let found = self.store.get_opts(&key, options).await.map_err(std::io::Error::from)?;
            Ok::<_, std::io::Error>(found.into_stream().map_err(std::io::Error::from).boxed())
        };
        futures_util::stream::once(opened).try_flatten()
    }

    pub(super) async fn list(&self, path: &str) -> Result<Vec<Entry>, StoreError> {
        let folder = if path.is_empty() { self.key(&[])? } else { self.key(&segments(path)?)? };
        let found = self.store.list_with_delimiter(Some(&folder)).await.map_err(remote_error("listing a folder"))?;
        let name = |key: &Key| key.filename().unwrap_or_default().to_owned();
        let folders = found.common_prefixes.iter().map(|key| Entry { name: name(key), is_dir: true, size: 0 });
        let files = found.objects.iter().map(|o| Entry { name: name(&o.location), is_dir: false, size: o.size });
        Ok(folders.chain(files).filter(|entry| !is_reserved(&entry.name)).collect())
    }

    pub(super) async fn delete(&self, path: &str) -> Result<(), StoreError> {
        let key = self.key(&segments(path)?)?;
        self.delete_below(&key).await?;
        match self.store.delete(&key).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(remote_error(format!("removing '{path}'"))(error)),
        }
    }

    /// Deletes all objects below a folder.
    async fn delete_below(&self, folder: &Key) -> Result<(), StoreError> {
        let all = self.store.list(Some(folder)).map_ok(|object| object.location).boxed();
        let mut deleted = self.store.delete_stream(all);
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(remote_error(format!("removing '{folder}'"))(error)),
            }
        }
        Ok(())
    }

    /// A local copy of the object or folder at `path`. Its folder is named after a hash of all keys and their versions, so each state is
    /// copied only once.
    pub(super) async fn local_path(&self, path: &str) -> Result<PathBuf, StoreError> {
        let key = self.key(&segments(path)?)?;
        let mut objects: Vec<_> =
            self.store.list(Some(&key)).try_collect().await.map_err(remote_error("listing a folder"))?;
        if objects.is_empty() {
            objects.push(self.store.head(&key).await.map_err(|error| match error {
                object_store::Error::NotFound { .. } => StoreError::NotFound(path.to_owned()),
                other => remote_error(format!("opening '{path}'"))(other),
            })?);
        }
        objects.sort_by(|a, b| a.location.cmp(&b.location));
        let mut state = Context::new(&SHA256);
        for object in &objects {
            let version = object.e_tag.clone().unwrap_or_else(|| object.last_modified.to_rfc3339());
            state.update(format!("{}\n{}\n{version}\n", object.location, object.size).as_bytes());
        }
        let name = slipway_core::hex::encode(&state.finish().as_ref()[..16]);
        let (place, temporary) =
            (self.copies.join(&name), self.copies.join(format!("{name}.{}", slipway_core::ids::hex32())));
        let single = objects.len() == 1 && objects[0].location == key;
        if !place.exists() {
            self.disk.require(COPYING, objects.iter().map(|object| object.size).sum())?;
            let copied = async {
                for object in &objects {
                    let relative = match object.location.prefix_match(&key) {
                        Some(rest) if !single => {
                            rest.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/")
                        }
                        _ => object.location.filename().unwrap_or_default().to_owned(),
                    };
                    self.copy(object.location.clone(), object.size, temporary.join(relative)).await?;
                }
                Ok(())
            };
            // The rename fails if another task has finished the same copy first; its copy is then used.
            let copied: Result<(), StoreError> = copied.await;
            if copied.is_err() || tokio::fs::rename(&temporary, &place).await.is_err() {
                let _ = tokio::fs::remove_dir_all(&temporary).await; // The next start removes the remains.
            }
            copied?;
        }
        Ok(if single { place.join(key.filename().unwrap_or_default()) } else { place })
    }

    /// Downloads one object to a new local file.
    async fn copy(&self, key: Key, size: u64, place: PathBuf) -> Result<(), StoreError> {
        if let Some(folder) = place.parent() {
            tokio::fs::create_dir_all(folder).await.map_err(StoreError::io(COPYING))?;
        }
        let mut file = tokio::fs::File::create_new(&place).await.map_err(StoreError::io(COPYING))?;
        let mut chunks = self.clone().stream(key, 0, size).boxed();
        while let Some(chunk) = chunks.next().await {
            file.write_all(&chunk.map_err(StoreError::io(COPYING))?).await.map_err(StoreError::io(COPYING))?;
        }
        file.flush().await.map_err(StoreError::io(COPYING))
    }

    /// Which of the objects exist. Many objects are listed instead of queried one by one.
    pub(super) async fn exist(&self, folder: &str, paths: &[String]) -> Result<Vec<bool>, StoreError> {
        if paths.len() >= LIST_FROM {
            let all: HashSet<String> = self.walk(folder).await?.into_iter().collect();
            return Ok(paths.iter().map(|path| all.contains(path)).collect());
        }
        let check = async |path: &String| {
            let key = self.key(&segments(path)?)?;
            match self.store.head(&key).await {
                Ok(_) => Ok(true),
                Err(object_store::Error::NotFound { .. }) => Ok(false),
                Err(error) => Err(remote_error(format!("finding '{path}'"))(error)),
            }
        };
        futures_util::stream::iter(paths.iter().map(check)).buffered(CONCURRENT_QUERIES).try_collect().await
    }

    /// The paths of all objects below a folder.
    pub(super) async fn walk(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let key = self.key(&segments(folder)?)?;
        let path = |found: object_store::ObjectMeta| {
            let rest: Vec<_> = found.location.prefix_match(&key)?.map(|part| part.as_ref().to_owned()).collect();
            Some(format!("{folder}/{}", rest.join("/")))
        };
        let found = self.store.list(Some(&key)).map_ok(path).try_collect::<Vec<_>>().await;
        Ok(found.map_err(remote_error("listing a folder"))?.into_iter().flatten().collect())
    }

    /// The numbers of the parts of an upload, with their sizes in bytes; empty if there is no such upload.
    pub(super) async fn parts(&self, id: &str) -> Result<Vec<(u32, u64)>, StoreError> {
        let folder = self.key(&[PARTIAL_DIR, id])?;
        let number = |meta: object_store::ObjectMeta| Some((meta.location.filename()?.parse().ok()?, meta.size));
        let found = self.store.list(Some(&folder)).map_ok(number).try_collect::<Vec<_>>().await;
        Ok(found.map_err(remote_error("listing parts"))?.into_iter().flatten().collect())
    }

    /// Opens a part of an upload.
    pub(super) async fn part(&self, id: &str, number: u32) -> Result<Reader, StoreError> {
        self.open(self.part_key(id, &check_part_number(number)?.to_string())?, &format!("part {number}")).await
    }

    /// Opens the object with a key; `path` is its name in errors.
    async fn open(&self, key: Key, path: &str) -> Result<Reader, StoreError> {
        match self.store.head(&key).await {
            Ok(meta) => Ok(Reader { size: meta.size, source: Source::Remote(self.clone(), key) }),
            Err(object_store::Error::NotFound { .. }) => Err(StoreError::NotFound(path.to_owned())),
            Err(error) => Err(remote_error(format!("opening '{path}'"))(error)),
        }
    }

    pub(super) async fn create_multipart(&self, id: &str) -> Result<(), StoreError> {
        const WHAT: &str = "creating an upload";
        if self.require_upload(id).await.is_ok() {
            return Ok(()); // A client resumes an upload whose id it chose.
        }
        let folder = self.key(&[PARTIAL_DIR])?;
        let open = self.store.list_with_delimiter(Some(&folder)).await.map_err(remote_error(WHAT))?;
        let limit = self.limits.max_open_uploads;
        if open.common_prefixes.len() >= limit {
            return Err(StoreError::TooManyUploads { limit });
        }
        self.store.put(&self.part_key(id, UPLOAD_MARKER)?, Bytes::new().into()).await.map_err(remote_error(WHAT))?;
        Ok(())
    }

    /// Fails with [`StoreError::NotFound`] unless the upload exists.
    async fn require_upload(&self, id: &str) -> Result<(), StoreError> {
        self.store.head(&self.part_key(id, UPLOAD_MARKER)?).await.map(drop).map_err(|error| match error {
            object_store::Error::NotFound { .. } => StoreError::NotFound(id.to_owned()),
            other => remote_error("finding an upload")(other),
        })
    }

    pub(super) async fn put_part<S, E>(&self, id: &str, number: u32, stream: S) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let key = self.part_key(id, &check_part_number(number)?.to_string())?;
        self.require_upload(id).await?;
        let counter = Counter::for_part(self.limits.max_part_bytes.min(self.limits.max_object_bytes));
        self.write(key, counter, stream).await
    }

    pub(super) async fn complete_multipart(&self, id: &str, numbers: Vec<u32>, path: &str) -> Result<(), StoreError> {
        check_part_numbers(&numbers)?;
        let place = self.key(&segments(path)?)?;
        self.require_upload(id).await?;
        let mut total = Counter::for_object(self.limits.max_object_bytes);
        let mut uploaded = Vec::new();
        for number in numbers {
            let key = self.part_key(id, &number.to_string())?;
            let meta = self.store.head(&key).await.map_err(|error| match error {
                object_store::Error::NotFound { .. } => StoreError::NotFound(format!("part {number}")),
                other => remote_error("joining parts")(other),
            })?;
            total.add(meta.size)?;
            uploaded.push((key, meta.size));
        }
        let joined =
            futures_util::stream::iter(uploaded).flat_map(|(key, size)| self.clone().stream(key, 0, size).boxed());
        self.write(place, Counter::for_object(self.limits.max_object_bytes), joined).await?;
        self.abort_multipart(id).await
    }

    pub(super) async fn abort_multipart(&self, id: &str) -> Result<(), StoreError> {
        self.delete_below(&self.key(&[PARTIAL_DIR, id])?).await
    }

    pub(super) async fn collect_abandoned(&self, older_than: Duration) -> Result<usize, StoreError> {
        const WHAT: &str = "removing abandoned uploads";
        let folder = self.key(&[PARTIAL_DIR])?;
        // Time of the last write to each upload, keyed by its id.
        let mut uploads: HashMap<String, SystemTime> = HashMap::new();
        let mut all = self.store.list(Some(&folder));
        while let Some(object) = all.next().await {
            let object = object.map_err(remote_error(WHAT))?;
            let id = object.location.prefix_match(&folder).and_then(|mut rest| rest.next());
            let Some(id) = id.map(|id| id.as_ref().to_owned()) else { continue };
            let seconds = u64::try_from(object.last_modified.timestamp()).unwrap_or(0);
            let written = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let latest = uploads.entry(id).or_insert(written);
            *latest = written.max(*latest);
        }
        let mut collected = 0;
        for (id, _) in uploads.iter().filter(|(_, written)| is_older(**written, older_than)) {
            self.abort_multipart(id).await?;
            collected += 1;
        }
        Ok(collected)
    }
}
