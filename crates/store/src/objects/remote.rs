//! Objects in a bucket. Keys are the paths as they are, so that other tools find them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{HttpClient, HttpConnector};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path as Key;
use object_store::{ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, ObjectStoreScheme};
use ring::digest::{Context, SHA256};
use slipway_core::tls::{self, Trust};
use tokio::io::AsyncWriteExt;

use super::limits::{Counter, Disk, is_older, part_number, part_numbers};
use super::upload::{MAX_UPLOAD_BYTES, Upload};
use super::{Entry, Limits, PARTIAL, Reader, Source, parts};
use crate::StoreError;

/// The most time that reaching the service may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The most time that the service may send nothing while it is asked for something.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// What is being done, in an error's message.
const COPYING: &str = "copying an object to this machine";
/// The name of the empty object that marks an upload in parts as begun.
const BEGUN: &str = "begun";

/// A place in a bucket; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    copies: PathBuf,
    /// Of the copies.
    disk: Disk,
    limits: Limits,
}

pub(super) fn failed(what: impl Into<String>) -> impl FnOnce(object_store::Error) -> StoreError {
    let what = what.into();
    move |source| StoreError::Remote { what, source }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// How buckets are reached: with our own TLS, since a client of its own would not start on a system without authorities.
#[derive(Debug)]
struct Http {
    tls: rustls::ClientConfig,
    /// Without TLS too.
    plain: bool,
}

impl HttpConnector for Http {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .https_only(!self.plain)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build()
            .map_err(|source| object_store::Error::Generic { store: "HTTP", source: Box::new(source) })?;
        Ok(HttpClient::new(client))
    }
}

impl Remote {
    pub(super) fn connect(url: &str, copies: PathBuf, limits: Limits) -> Result<Self, StoreError> {
        let unusable = |reason: String| StoreError::Url(format!("{url}: {reason}"));
        let parsed = url::Url::parse(url).map_err(|e| unusable(e.to_string()))?;
        if !matches!(parsed.scheme(), "s3" | "gs" | "az") {
            return Err(unusable("it does not begin with s3://, gs:// or az://".into()));
        }
        let (scheme, prefix) = ObjectStoreScheme::parse(&parsed).map_err(|e| unusable(e.to_string()))?;
        let tls = tls::client(Trust::System).map_err(|e| unusable(e.to_string()))?;
        let http = Http { tls, plain: variable("AWS_ALLOW_HTTP").is_some_and(|v| v == "true") };
        let store: Arc<dyn ObjectStore> = match scheme {
            ObjectStoreScheme::AmazonS3 => {
                let bucket = AmazonS3Builder::from_env().with_url(url).with_http_connector(http);
                Arc::new(bucket.build().map_err(failed(url))?)
            }
            ObjectStoreScheme::GoogleCloudStorage => {
                let bucket = GoogleCloudStorageBuilder::from_env().with_url(url).with_http_connector(http);
                Arc::new(bucket.build().map_err(failed(url))?)
            }
            ObjectStoreScheme::MicrosoftAzure => {
                let container = MicrosoftAzureBuilder::from_env().with_url(url).with_http_connector(http);
                Arc::new(container.build().map_err(failed(url))?)
            }
            other => return Err(unusable(format!("{other:?} is no kind of bucket"))),
        };
        // Copies of an earlier process may be of objects that are gone.
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

    fn key(&self, below: &[&str]) -> Result<Key, StoreError> {
        let mut full = self.prefix.as_ref().to_owned();
        for part in below {
            if !full.is_empty() {
                full.push('/');
            }
            full.push_str(part);
        }
        Key::parse(&full).map_err(|_| StoreError::BadPath(below.join("/")))
    }

    fn part(&self, id: &str, name: &str) -> Result<Key, StoreError> {
        self.key(&[PARTIAL, id, name])
    }

    pub(super) async fn put<S, E>(&self, path: &str, stream: S) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let counter = Counter::of_object(self.limits.max_object_bytes);
        self.write(self.key(&parts(path)?)?, counter, stream).await
    }

    /// Stores the stream; nothing of it is kept if it fails, or if the returned future is dropped.
    async fn write<S, E>(&self, key: Key, mut counter: Counter, mut stream: S) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let mut upload = Upload::to(Arc::clone(&self.store), key);
        let received = async {
            while let Some(chunk) = stream.next().await {
                let chunk = chunk
                    .map_err(|e| std::io::Error::new(std::io::ErrorKind::UnexpectedEof, e.to_string()))
                    .map_err(StoreError::io("receiving an object"))?;
                counter.add(chunk.len() as u64)?;
                upload.put(chunk).await.map_err(failed("writing an object"))?;
            }
            Ok(counter.size())
        };
        match received.await {
            Ok(size) => upload.finish().await.map(|()| size).map_err(failed("writing an object")),
            Err(error) => {
                upload.abort().await;
                Err(error)
            }
        }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Reader, StoreError> {
        let key = self.key(&parts(path)?)?;
        match self.store.head(&key).await {
            Ok(meta) => Ok(Reader { size: meta.size, source: Source::Remote(self.clone(), key) }),
            Err(object_store::Error::NotFound { .. }) => match self.store.list(Some(&key)).next().await {
                Some(Ok(_)) => Err(StoreError::IsFolder(path.to_owned())),
                _ => Err(StoreError::NotFound(path.to_owned())),
            },
            Err(error) => Err(failed(format!("opening '{path}'"))(error)),
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
        let folder = if path.is_empty() { self.key(&[])? } else { self.key(&parts(path)?)? };
        let found = self.store.list_with_delimiter(Some(&folder)).await.map_err(failed("listing a folder"))?;
        let name = |key: &Key| key.filename().unwrap_or_default().to_owned();
        let folders = found.common_prefixes.iter().map(|key| Entry { name: name(key), is_dir: true, size: 0 });
        let files = found.objects.iter().map(|o| Entry { name: name(&o.location), is_dir: false, size: o.size });
        Ok(folders.chain(files).filter(|entry| entry.name != PARTIAL).collect())
    }

    pub(super) async fn delete(&self, path: &str) -> Result<(), StoreError> {
        let key = self.key(&parts(path)?)?;
        self.delete_below(&key).await?;
        match self.store.delete(&key).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(format!("removing '{path}'"))(error)),
        }
    }

    async fn delete_below(&self, folder: &Key) -> Result<(), StoreError> {
        let all = self.store.list(Some(folder)).map_ok(|object| object.location).boxed();
        let mut gone = self.store.delete_stream(all);
        while let Some(one) = gone.next().await {
            match one {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(format!("removing '{folder}'"))(error)),
            }
        }
        Ok(())
    }

    /// A copy of what is at `path`, made once for each state of it: the folder is named after all keys with their versions.
    pub(super) async fn local(&self, path: &str) -> Result<PathBuf, StoreError> {
        let key = self.key(&parts(path)?)?;
        let mut objects: Vec<_> =
            self.store.list(Some(&key)).try_collect().await.map_err(failed("listing a folder"))?;
        if objects.is_empty() {
            objects.push(self.store.head(&key).await.map_err(|error| match error {
                object_store::Error::NotFound { .. } => StoreError::NotFound(path.to_owned()),
                other => failed(format!("opening '{path}'"))(other),
            })?);
        }
        objects.sort_by(|a, b| a.location.cmp(&b.location));
        let mut state = Context::new(&SHA256);
        for object in &objects {
            let version = object.e_tag.clone().unwrap_or_else(|| object.last_modified.to_rfc3339());
            state.update(format!("{}\n{}\n{version}\n", object.location, object.size).as_bytes());
        }
        let name: String = state.finish().as_ref()[..16].iter().map(|b| format!("{b:02x}")).collect();
        let (place, beside) =
            (self.copies.join(&name), self.copies.join(format!("{name}.{}", slipway_core::ids::hex32())));
        let single = objects.len() == 1 && objects[0].location == key;
        if !place.exists() {
            self.disk.require(COPYING, objects.iter().map(|object| object.size).sum())?;
            let copied = async {
                for object in &objects {
                    let below = match object.location.prefix_match(&key) {
                        Some(rest) if !single => {
                            rest.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/")
                        }
                        _ => object.location.filename().unwrap_or_default().to_owned(),
                    };
                    self.copy(object.location.clone(), object.size, beside.join(below)).await?;
                }
                Ok(())
            };
            // Another task may have been as fast; its copy is as good.
            let copied: Result<(), StoreError> = copied.await;
            if copied.is_err() || tokio::fs::rename(&beside, &place).await.is_err() {
                let _ = tokio::fs::remove_dir_all(&beside).await; // The next start removes what is left.
            }
            copied?;
        }
        Ok(if single { place.join(key.filename().unwrap_or_default()) } else { place })
    }

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

    pub(super) async fn begin_parts(&self, id: &str) -> Result<(), StoreError> {
        const WHAT: &str = "beginning an upload";
        let folder = self.key(&[PARTIAL])?;
        let open = self.store.list_with_delimiter(Some(&folder)).await.map_err(failed(WHAT))?;
        let limit = self.limits.max_open_uploads;
        if open.common_prefixes.len() >= limit {
            return Err(StoreError::TooManyUploads { limit });
        }
        self.store.put(&self.part(id, BEGUN)?, Bytes::new().into()).await.map_err(failed(WHAT))?;
        Ok(())
    }

    async fn is_begun(&self, id: &str) -> Result<(), StoreError> {
        self.store.head(&self.part(id, BEGUN)?).await.map(drop).map_err(|error| match error {
            object_store::Error::NotFound { .. } => StoreError::NotFound(id.to_owned()),
            other => failed("finding an upload")(other),
        })
    }

    pub(super) async fn put_part<S, E>(&self, id: &str, number: u32, stream: S) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let key = self.part(id, &part_number(number)?.to_string())?;
        self.is_begun(id).await?;
        let counter = Counter::of_part(self.limits.max_part_bytes.min(self.limits.max_object_bytes));
        self.write(key, counter, stream).await
    }

    pub(super) async fn complete_parts(&self, id: &str, numbers: Vec<u32>, path: &str) -> Result<(), StoreError> {
        part_numbers(&numbers)?;
        let place = self.key(&parts(path)?)?;
        self.is_begun(id).await?;
        let mut whole = Counter::of_object(self.limits.max_object_bytes);
        let mut pieces = Vec::new();
        for number in numbers {
            let key = self.part(id, &number.to_string())?;
            let meta = self.store.head(&key).await.map_err(|error| match error {
                object_store::Error::NotFound { .. } => StoreError::NotFound(format!("part {number}")),
                other => failed("joining parts")(other),
            })?;
            whole.add(meta.size)?;
            pieces.push((key, meta.size));
        }
        let joined =
            futures_util::stream::iter(pieces).flat_map(|(key, size)| self.clone().stream(key, 0, size).boxed());
        self.write(place, Counter::of_object(self.limits.max_object_bytes), joined).await?;
        self.abort_parts(id).await
    }

    pub(super) async fn abort_parts(&self, id: &str) -> Result<(), StoreError> {
        self.delete_below(&self.key(&[PARTIAL, id])?).await
    }

    pub(super) async fn collect_abandoned(&self, older_than: Duration) -> Result<usize, StoreError> {
        const WHAT: &str = "collecting abandoned uploads";
        let folder = self.key(&[PARTIAL])?;
        // The last write to each upload, by its id.
        let mut uploads: HashMap<String, SystemTime> = HashMap::new();
        let mut all = self.store.list(Some(&folder));
        while let Some(object) = all.next().await {
            let object = object.map_err(failed(WHAT))?;
            let id = object.location.prefix_match(&folder).and_then(|mut rest| rest.next());
            let Some(id) = id.map(|id| id.as_ref().to_owned()) else { continue };
            let seconds = u64::try_from(object.last_modified.timestamp()).unwrap_or(0);
            let written = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let latest = uploads.entry(id).or_insert(written);
            *latest = written.max(*latest);
        }
        let mut collected = 0;
        for (id, _) in uploads.iter().filter(|(_, written)| is_older(**written, older_than)) {
            self.abort_parts(id).await?;
            collected += 1;
        }
        Ok(collected)
    }
}
