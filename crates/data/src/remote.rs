//! Remotes: where the objects of a cache are shared. A local folder, a bucket of S3, or, for reading, a web server.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use md5::{Digest as _, Md5};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart};
use slipway_store::bucket::{self, S3Settings};
use tokio::io::AsyncReadExt;

use crate::cache::Cache;
use crate::config::Config;
use crate::error::DataError;
use crate::ini::Ini;
use crate::model::{Digest, HashName};

/// Bytes of a part of a large upload.
const PART_BYTES: usize = 8 << 20;
/// Number of parts of one file that are sent at the same time.
const CONCURRENT_PARTS: usize = 4;
/// From this number on, the objects of a bucket are listed instead of queried one by one.
const LIST_FROM: usize = 500;
/// Maximum number of `remote://` links between remotes.
const MAX_LINKS: usize = 8;

/// A remote.
#[derive(Debug)]
pub struct Remote {
    /// The name in the configuration.
    pub name: String,
    /// Number of concurrent transfers, if it is configured.
    pub jobs: Option<usize>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Folder { current: Box<Cache>, legacy: Box<Cache> },
    Store { store: Arc<dyn ObjectStore>, prefix: String, url: String, read_only: bool },
}

impl Remote {
    /// Opens the remote with this name, or the default one. `command` is part of the message when there is none.
    ///
    /// # Errors
    /// [`DataError::NoRemote`], or [`DataError::Config`] for an unknown name or a kind of URL that is not supported.
    pub fn open(config: &Config, name: Option<&str>, command: &str) -> Result<Self, DataError> {
        let Some(name) = name.or_else(|| config.get("core", "remote")) else {
            let how = if config.remotes().is_empty() {
                "Create a default remote: dvc remote add -d <remote name> <remote url>".to_owned()
            } else {
                format!(
                    "Set the default remote with: dvc remote default <remote name>; or use: dvc {command} -r <remote name>"
                )
            };
            return Err(DataError::NoRemote(format!("no remote specified. {how}")));
        };
        let name = name.to_lowercase();
        let (url, options) = resolve(config, &name)?;
        let option = |key: &str| options.get(key).cloned();
        let is_true = |key: &str| option(key).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        if is_true("version_aware") || is_true("worktree") {
            return Err(DataError::Config(format!(
                "remote '{name}': version_aware and worktree are not supported yet"
            )));
        }
        let jobs = option("jobs").and_then(|jobs| jobs.parse().ok()).filter(|jobs| *jobs > 0);
        let kind = match url.split_once("://") {
            None => Kind::folder(Path::new(&url)),
            Some(("file", path)) => Kind::folder(Path::new(path)),
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let settings = s3_settings(&options)?;
                let prefix = prefix.trim_matches('/').to_owned();
                Kind::Store { store: bucket::s3(bucket, &settings)?, prefix, url, read_only: false }
            }
            Some(("http" | "https", _)) => {
                Kind::Store { store: bucket::http(&url)?, prefix: String::new(), url, read_only: true }
            }
            Some((scheme, _)) => {
                return Err(DataError::Config(format!("remote '{name}': {scheme}:// is not supported yet")));
            }
        };
        Ok(Self { name, jobs, kind })
    }

    /// The number of concurrent transfers: that of the user, of the configuration, or DVC's default of four per core.
    pub fn concurrency(&self, jobs: Option<usize>) -> usize {
        let default = || std::thread::available_parallelism().map_or(4, |cores| cores.get() * 4);
        jobs.or(self.jobs).unwrap_or_else(default).clamp(1, 1024)
    }

    /// Which of the objects the remote has.
    ///
    /// # Errors
    /// If the remote cannot be reached.
    pub async fn existing(
        &self,
        objects: &[(HashName, Digest)],
        jobs: usize,
    ) -> Result<HashSet<(HashName, Digest)>, DataError> {
        match &self.kind {
            Kind::Folder { current, legacy } => {
                use rayon::prelude::*;
                let has = |object: &(HashName, Digest)| match object.0 {
                    HashName::Md5 => current.contains(&object.1),
                    HashName::Dos2Unix => legacy.contains(&object.1),
                };
                objects
                    .par_iter()
                    .filter_map(|object| has(object).map(|has| has.then_some(*object)).transpose())
                    .collect()
            }
            Kind::Store { store, url, read_only, .. } if *read_only || objects.len() < LIST_FROM => {
                let checks = objects.iter().map(|object| async move {
                    match store.head(&self.key(object)).await {
                        Ok(_) => Ok(Some(*object)),
                        Err(object_store::Error::NotFound { .. }) => Ok(None),
                        Err(error) => Err(remote_error(url)(error)),
                    }
                });
                let found: Vec<_> = futures_util::stream::iter(checks).buffer_unordered(jobs).try_collect().await?;
                Ok(found.into_iter().flatten().collect())
            }
            Kind::Store { .. } => {
                let listed = self.list().await?;
                Ok(objects.iter().copied().filter(|object| listed.contains(object)).collect())
            }
        }
    }

    /// All objects of the remote.
    ///
    /// # Errors
    /// If the remote cannot be reached, or cannot be listed.
    pub async fn list(&self) -> Result<HashSet<(HashName, Digest)>, DataError> {
        match &self.kind {
            Kind::Folder { current, legacy } => {
                let current = current.list()?.objects.into_iter().map(|digest| (HashName::Md5, digest));
                let legacy = legacy.list()?.objects.into_iter().map(|digest| (HashName::Dos2Unix, digest));
                Ok(current.chain(legacy).collect())
            }
            Kind::Store { read_only: true, url, .. } => {
                Err(DataError::Remote { url: url.clone(), reason: "a web server cannot be listed".into() })
            }
            Kind::Store { store, prefix, url, .. } => {
                // The two digits are listed concurrently, since one listing gives a thousand names for each round trip.
                let base = if prefix.is_empty() { "files/md5".to_owned() } else { format!("{prefix}/files/md5") };
                let shards = (0..=255_u8).map(|shard| {
                    let folder = Key::from(format!("{base}/{shard:02x}"));
                    async move {
                        let list = store.list(Some(&folder));
                        list.map_ok(|meta| digest_of_key(&meta.location)).try_collect::<Vec<_>>().await
                    }
                });
                let listed: Vec<Vec<Option<Digest>>> = futures_util::stream::iter(shards)
                    .buffer_unordered(32)
                    .try_collect()
                    .await
                    .map_err(remote_error(url))?;
                Ok(listed.into_iter().flatten().flatten().map(|digest| (HashName::Md5, digest)).collect())
            }
        }
    }

    /// The path or URL of an object.
    pub fn location_of(&self, object: &(HashName, Digest)) -> String {
        match &self.kind {
            Kind::Folder { current, legacy } => {
                let folder = if object.0 == HashName::Md5 { current } else { legacy };
                folder.path(&object.1).display().to_string()
            }
            Kind::Store { prefix, url, .. } => {
                let key = self.key(object);
                let below = key.as_ref().strip_prefix(prefix.as_str()).unwrap_or_default().trim_start_matches('/');
                format!("{}/{below}", url.trim_end_matches('/'))
            }
        }
    }

    /// Whether the remote is a local folder, so that [`Self::copy`] transfers its objects without waiting for a network.
    pub fn is_folder(&self) -> bool {
        matches!(self.kind, Kind::Folder { .. })
    }

    /// Copies an object between the cache and a remote in a local folder. What is received is verified.
    ///
    /// # Errors
    /// [`DataError::Corrupt`], or an error of the file system.
    pub fn copy(&self, cache: &Cache, digest: &Digest, send: bool) -> Result<(), DataError> {
        let Kind::Folder { current, legacy } = &self.kind else { return Ok(()) };
        let folder = if cache.hash() == HashName::Md5 { current } else { legacy };
        if send { folder.copy_from(cache, digest, false) } else { cache.copy_from(folder, digest, true) }
    }

    /// Sends an object of the cache.
    ///
    /// # Errors
    /// If it cannot be read or sent.
    pub async fn upload(&self, cache: &Cache, digest: &Digest) -> Result<(), DataError> {
        match &self.kind {
            Kind::Folder { .. } => self.copy(cache, digest, true),
            Kind::Store { read_only: true, url, .. } => {
                Err(DataError::Remote { url: url.clone(), reason: "a web server is a remote for reading only".into() })
            }
            Kind::Store { store, url, .. } => {
                let path = cache.path(digest);
                let mut file = tokio::fs::File::open(&path).await.map_err(DataError::io(&path))?;
                let key = self.key(&(cache.hash(), *digest));
                let mut buffer = Vec::with_capacity(1 << 16);
                let first =
                    (&mut file).take(PART_BYTES as u64).read_to_end(&mut buffer).await.map_err(DataError::io(&path))?;
                if first < PART_BYTES {
                    return store.put(&key, PutPayload::from(buffer)).await.map(drop).map_err(remote_error(url));
                }
                let created = store.put_multipart(&key).await.map_err(remote_error(url))?;
                let mut upload = WriteMultipart::new_with_chunk_size(created, PART_BYTES);
                loop {
                    upload.wait_for_capacity(CONCURRENT_PARTS).await.map_err(remote_error(url))?;
                    upload.put(std::mem::take(&mut buffer).into());
                    let read = (&mut file).take(PART_BYTES as u64).read_to_end(&mut buffer).await;
                    match read {
                        Ok(0) => break,
                        Ok(_) => {}
                        Err(error) => {
                            let _ = upload.abort().await; // The error of the file is the one to report.
                            return Err(DataError::io(&path)(error));
                        }
                    }
                }
                upload.finish().await.map(drop).map_err(remote_error(url))
            }
        }
    }

    /// Receives an object into the cache. Its content is verified before it gets its name.
    ///
    /// # Errors
    /// [`DataError::Corrupt`], or an error of the remote or the cache.
    pub async fn download(&self, cache: &Cache, digest: &Digest) -> Result<(), DataError> {
        match &self.kind {
            Kind::Folder { .. } => self.copy(cache, digest, false),
            Kind::Store { store, url, .. } => {
                let key = self.key(&(cache.hash(), *digest));
                let found = store.get(&key).await.map_err(remote_error(url))?;
                let mut stream = found.into_stream();
                let temporary = cache.incoming(digest)?;
                let mut hasher = Md5::new();
                while let Some(chunk) = stream.next().await {
                    let chunk = chunk.map_err(remote_error(url))?;
                    hasher.update(&chunk);
                    temporary.file().write_all(&chunk).map_err(DataError::io(temporary.path()))?;
                }
                let md5: [u8; 16] = hasher.finalize().into();
                let is_valid = match cache.hash() {
                    HashName::Md5 => md5 == digest.md5,
                    HashName::Dos2Unix => crate::hash::hash_file(temporary.path(), HashName::Dos2Unix)? == digest.md5,
                };
                if !is_valid {
                    return Err(DataError::Corrupt { oid: digest.to_string(), place: PathBuf::from(url) });
                }
                temporary.publish(&cache.path(digest), Some(0o444))
            }
        }
    }

    /// Removes an object.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub async fn remove(&self, object: &(HashName, Digest)) -> Result<(), DataError> {
        match &self.kind {
            Kind::Folder { current, legacy } => match object.0 {
                HashName::Md5 => current.remove(&object.1),
                HashName::Dos2Unix => legacy.remove(&object.1),
            },
            Kind::Store { store, url, .. } => match store.delete(&self.key(object)).await {
                Err(object_store::Error::NotFound { .. }) | Ok(()) => Ok(()),
                Err(error) => Err(remote_error(url)(error)),
            },
        }
    }

    fn key(&self, (hash, digest): &(HashName, Digest)) -> Key {
        let Kind::Store { prefix, .. } = &self.kind else { return Key::default() };
        let (shard, name) = digest.object_name();
        let layout = if *hash == HashName::Md5 { "files/md5/" } else { "" };
        let separator = if prefix.is_empty() { "" } else { "/" };
        Key::from(format!("{prefix}{separator}{layout}{shard}/{name}"))
    }
}

impl Kind {
    fn folder(path: &Path) -> Self {
        let cache = |hash| Box::new(Cache::new(path, hash, false));
        Self::Folder { current: cache(HashName::Md5), legacy: cache(HashName::Dos2Unix) }
    }
}

fn remote_error(url: &str) -> impl FnOnce(object_store::Error) -> DataError {
    let url = url.to_owned();
    move |error| DataError::Remote { url, reason: error.to_string() }
}

fn digest_of_key(key: &Key) -> Option<Digest> {
    let mut parts = key.as_ref().rsplit('/');
    let (name, shard) = (parts.next()?, parts.next()?);
    Digest::parse(&format!("{shard}{name}"))
}

pub(crate) type Options = std::collections::BTreeMap<String, String>;

/// The URL and options of a remote. `remote://NAME/PATH` continues another one.
pub(crate) fn resolve(config: &Config, name: &str) -> Result<(String, Options), DataError> {
    let missing = |name: &str| DataError::Config(format!("remote '{name}' doesn't exist"));
    let mut options = config.remote(name).ok_or_else(|| missing(name))?.clone();
    let mut url = options.remove("url").ok_or_else(|| DataError::Config(format!("remote '{name}' has no url")))?;
    for _ in 0..MAX_LINKS {
        let Some(rest) = url.strip_prefix("remote://") else { return Ok((url, options)) };
        let (other, path) = rest.split_once('/').unwrap_or((rest, ""));
        let mut base = config.remote(other).ok_or_else(|| missing(other))?.clone();
        let base_url = base.remove("url").ok_or_else(|| missing(other))?;
        url = format!("{}/{path}", base_url.trim_end_matches('/'));
        base.extend(options);
        options = base;
    }
    Err(DataError::Config(format!("remote '{name}' refers to itself")))
}

/// The settings of S3 among the options of a remote. `profile` and `credentialpath` name an entry of Amazon's credentials file.
pub(crate) fn s3_settings(options: &Options) -> Result<S3Settings, DataError> {
    let option = |key: &str| options.get(key).cloned();
    let mut settings = S3Settings {
        endpoint: option("endpointurl"),
        region: option("region"),
        access_key_id: option("access_key_id"),
        secret_access_key: option("secret_access_key"),
        session_token: option("session_token"),
        anonymous: option("allow_anonymous_login").is_some_and(|value| value.eq_ignore_ascii_case("true")),
    };
    let from_env = std::env::var_os("AWS_ACCESS_KEY_ID").is_some() && option("profile").is_none();
    if settings.access_key_id.is_some() || settings.anonymous || from_env {
        return Ok(settings);
    }
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".aws/credentials"));
    let file = option("credentialpath")
        .or_else(|| std::env::var("AWS_SHARED_CREDENTIALS_FILE").ok())
        .map(PathBuf::from)
        .or(home);
    let profile = option("profile").or_else(|| std::env::var("AWS_PROFILE").ok()).unwrap_or_else(|| "default".into());
    if let Some(text) = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()) {
        let place = file.unwrap_or_default();
        let ini = Ini::parse(&text).map_err(|(line, reason)| DataError::file(&place, line, reason))?;
        if let Some(section) = ini.section(&profile.to_lowercase()) {
            settings.access_key_id = section.get("aws_access_key_id");
            settings.secret_access_key = section.get("aws_secret_access_key");
            settings.session_token = section.get("aws_session_token");
            settings.region = settings.region.or_else(|| section.get("region"));
        }
    }
    Ok(settings)
}
