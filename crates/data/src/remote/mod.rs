//! Remotes: where the objects of a cache are shared. Each kind of remote is a [`Backend`] in a file of its own; a local folder is a cache itself.
//! This module opens them and transfers objects: what is received is verified before it appears, and continues where it broke off.

mod backend;
mod batches;
pub(crate) mod bucket;
mod foreign;
mod google;
mod http;
pub(crate) mod known;
mod options;
mod password;
mod runs;
mod server;
mod sftp;
mod ssh;
#[cfg(test)]
mod tests;
pub(crate) mod versioned;
mod webdav;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;

use self::backend::{Backend, Part, delay, may_retry};
pub(crate) use self::backend::{Entry, Failure, Source, retried};
pub(crate) use self::http::Client;
pub(crate) use self::options::Settings;
use crate::access::server_of;
use crate::cache::Cache;
use crate::config::Config;
use crate::error::DataError;
use crate::hash::Hasher;
use crate::layout::Item;
use crate::model::{Digest, HashName};
use crate::schema;

/// Maximum number of `remote://` links between remotes.
const MAX_LINKS: usize = 8;

/// A remote.
#[derive(Debug)]
pub struct Remote {
    /// The name in the configuration.
    pub name: String,
    /// Number of concurrent transfers, if it is configured.
    pub jobs: Option<usize>,
    url: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Folder { root: PathBuf, current: Box<Cache>, legacy: Box<Cache> },
    Other(Box<dyn Backend>),
}

/// Opens a place on a machine with SSH or a WebDAV server from which any files can be imported; `None` for other kinds of URLs.
///
/// # Errors
/// [`DataError::Config`] for an invalid URL or option.
pub(crate) fn open_source(settings: &Settings) -> Result<Option<Box<dyn Source>>, DataError> {
    Ok(match schema::scheme(&settings.url).as_str() {
        "ssh" => Some(Box::new(ssh::Ssh::open(settings)?)),
        "webdav" | "webdavs" => Some(Box::new(webdav::WebDav::open(settings)?)),
        _ => None,
    })
}

impl Remote {
    /// Opens the remote with this name, or the default one. `command` is part of the message when there is none.
    ///
    /// # Errors
    /// [`DataError::NoRemote`], or [`DataError::Config`] for an unknown name, a kind of URL or an option that is not supported.
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
        let options = resolve(config, &name)?;
        schema::check(&name, &options)?;
        let settings = Settings::new(&name, options).within(config.reach());
        foreign::check(&settings)?;
        if versioned::is_versioned(config, Some(&name))? {
            return Err(DataError::Config(format!("'{command}' is unsupported for cloud versioned remotes")));
        }
        let (url, jobs) = (settings.url.clone(), settings.number::<usize>("jobs")?);
        let kind = match schema::scheme(&url).as_str() {
            "" => Kind::folder(Path::new(&url)),
            "local" | "file" => Kind::folder(Path::new(url.split_once("://").map_or("", |(_, path)| path))),
            "s3" | "gs" | "azure" => Kind::Other(Box::new(bucket::Bucket::open(&settings)?)),
            "http" | "https" if server_of(&url).is_some() => {
                let access = if settings.text("auth").is_none() { config.access_to(&url)? } else { None };
                Kind::Other(Box::new(server::Server::open(&settings, access)?))
            }
            "http" | "https" => Kind::Other(Box::new(http::Http::open(&settings)?)),
            "webdav" | "webdavs" => Kind::Other(Box::new(webdav::WebDav::open(&settings)?)),
            "ssh" => Kind::Other(Box::new(ssh::Ssh::open(&settings)?)),
            scheme => {
                return Err(DataError::Config(format!(
                    "remote '{name}': slipway does not support {scheme}:// remotes; use dvc for this one"
                )));
            }
        };
        Ok(Self { name, jobs, url, kind })
    }

    /// The number of concurrent transfers: that of the user, of the configuration, or DVC's default of four per core.
    pub fn concurrency(&self, jobs: Option<usize>) -> usize {
        concurrency(jobs.or(self.jobs))
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
            Kind::Folder { current, legacy, .. } => {
                let mut found = HashSet::new();
                for (hash, folder) in [(HashName::Md5, current), (HashName::Dos2Unix, legacy)] {
                    let digests: Vec<Digest> =
                        objects.iter().filter(|object| object.0 == hash).map(|object| object.1).collect();
                    let existing = digests.iter().zip(folder.contains_all(&digests)?).filter(|(_, exists)| *exists);
                    found.extend(existing.map(|(digest, _)| (hash, *digest)));
                }
                Ok(found)
            }
            Kind::Other(backend) if objects.len() >= backend.list_from() => {
                let mut all = HashSet::new();
                for hash in [HashName::Md5, HashName::Dos2Unix] {
                    if objects.iter().any(|object| object.0 == hash) {
                        all.extend(self.list_objects(backend.as_ref(), hash, jobs).await?);
                    }
                }
                Ok(objects.iter().copied().filter(|object| all.contains(object)).collect())
            }
            Kind::Other(backend) => {
                let paths: Vec<String> = objects.iter().map(path_of).collect();
                let found = backend.existing(&paths, jobs).await.map_err(self.failed())?;
                Ok(objects.iter().zip(&paths).filter(|(_, path)| found.contains(*path)).map(|(o, _)| *o).collect())
            }
        }
    }

    /// All objects of the remote.
    ///
    /// # Errors
    /// If the remote cannot be reached, or cannot be listed.
    pub async fn list(&self, jobs: usize) -> Result<HashSet<(HashName, Digest)>, DataError> {
        match &self.kind {
            Kind::Folder { current, legacy, .. } => {
                let current = current.list()?.objects.into_iter().map(|digest| (HashName::Md5, digest));
                let legacy = legacy.list()?.objects.into_iter().map(|digest| (HashName::Dos2Unix, digest));
                Ok(current.chain(legacy).collect())
            }
            Kind::Other(backend) => {
                let mut all = self.list_objects(backend.as_ref(), HashName::Md5, jobs).await?;
                all.extend(self.list_objects(backend.as_ref(), HashName::Dos2Unix, jobs).await?);
                Ok(all)
            }
        }
    }

    async fn list_objects(
        &self,
        backend: &dyn Backend,
        hash: HashName,
        jobs: usize,
    ) -> Result<HashSet<(HashName, Digest)>, DataError> {
        let paths = backend.list(Part::Objects(hash), jobs.max(32)).await.map_err(self.failed())?;
        let object = |path: String| match Item::parse(&path) {
            Some(Item::Object(hash, digest)) => Some((hash, digest)),
            _ => None,
        };
        Ok(paths.into_iter().filter_map(object).collect())
    }

    /// The path or URL of an object.
    pub fn location_of(&self, object: &(HashName, Digest)) -> String {
        format!("{}/{}", self.url.trim_end_matches('/'), path_of(object))
    }

    /// The folder of a remote on this machine.
    pub(crate) fn folder(&self) -> Option<&Path> {
        if let Kind::Folder { root, .. } = &self.kind { Some(root) } else { None }
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
        let Kind::Folder { current, legacy, .. } = &self.kind else { return Ok(()) };
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
            Kind::Other(backend) => {
                let (path, source) = (path_of(&(cache.hash(), *digest)), cache.path(digest));
                retried(|| backend.write(&path, &source)).await.map_err(self.failed())
            }
        }
    }

    /// Receives an object into the cache. Its content is verified before it gets its name. If the connection breaks off, it continues, also
    /// in the next call.
    ///
    /// # Errors
    /// [`DataError::Corrupt`], or an error of the remote or the cache.
    pub async fn download(&self, cache: &Cache, digest: &Digest) -> Result<(), DataError> {
        let Kind::Other(backend) = &self.kind else { return self.copy(cache, digest, false) };
        let path = path_of(&(cache.hash(), *digest));
        let mut incoming = cache.resume(digest)?;
        loop {
            let mut hasher = Hasher::new(cache.hash());
            let received = incoming.rehash(&mut hasher)?;
            let sink = |chunk: &[u8]| {
                hasher.update(chunk);
                incoming.write(chunk)
            };
            let result = self.receive(backend.as_ref(), &path, received, sink).await;
            if result.is_err() && received == 0 {
                return result; // The file keeps what was received for the next call.
            }
            if result.is_ok() && hasher.finish() == digest.md5 {
                return incoming.publish(&cache.path(digest));
            }
            incoming.clear()?;
            if received == 0 {
                return Err(DataError::Corrupt { oid: digest.to_string(), place: PathBuf::from(&self.url) });
            }
            // What an earlier call left was of no use.
        }
    }

    /// Reads the beginning of an object: at most `limit` bytes, and one more if the object has more. It is not verified.
    ///
    /// # Errors
    /// If the remote does not have it, or cannot be read.
    pub(crate) async fn read_start(&self, object: &(HashName, Digest), limit: u64) -> Result<Vec<u8>, DataError> {
        let path = path_of(object);
        let backend = match &self.kind {
            Kind::Folder { current, legacy, .. } => {
                let folder = if object.0 == HashName::Md5 { current } else { legacy };
                return folder.read_start(&object.1, limit)?.ok_or_else(|| DataError::Missing(path));
            }
            Kind::Other(backend) => backend,
        };
        let mut chunks = backend.read(&path, 0).await.map_err(self.failed())?;
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.next().await {
            bytes.extend_from_slice(&chunk.map_err(self.failed())?);
            if bytes.len() as u64 > limit {
                break;
            }
        }
        Ok(bytes)
    }

    /// Receives a file from a byte on. After a broken connection it continues with the next byte.
    async fn receive(
        &self,
        backend: &dyn Backend,
        path: &str,
        mut received: u64,
        mut sink: impl FnMut(&[u8]) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let mut attempt = 1;
        loop {
            let outcome = match backend.read(path, received).await {
                Err(failure) => Err(failure),
                Ok(mut chunks) => loop {
                    match chunks.next().await {
                        None => break Ok(()),
                        Some(Err(failure)) => break Err(failure),
                        Some(Ok(chunk)) => {
                            sink(&chunk)?;
                            received += chunk.len() as u64;
                            attempt = 1;
                        }
                    }
                },
            };
            match outcome {
                Ok(()) => return Ok(()),
                Err(Failure::Temporary(reason)) if may_retry(attempt) => {
                    tracing::debug!(path, reason, received, "a download broke off and continues");
                    delay(attempt).await;
                    attempt += 1;
                }
                Err(failure) => return Err(self.failed()(failure)),
            }
        }
    }

    /// Removes objects, if they exist, manifests first: without its manifest, a folder counts as missing, never as complete.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub async fn remove(&self, objects: &[(HashName, Digest)], jobs: usize) -> Result<(), DataError> {
        let (manifests, files): (Vec<_>, Vec<_>) = objects.iter().partition(|(_, digest)| digest.is_dir);
        for group in [manifests, files] {
            match &self.kind {
                Kind::Folder { current, legacy, .. } => {
                    for (hash, digest) in group {
                        if hash == HashName::Md5 { current } else { legacy }.remove(&digest)?;
                    }
                }
                Kind::Other(backend) => {
                    let paths: Vec<String> = group.iter().map(path_of).collect();
                    backend.remove_all(&paths, jobs).await.map_err(self.failed())?;
                }
            }
        }
        Ok(())
    }

    /// Converts a failed request.
    fn failed(&self) -> impl FnOnce(Failure) -> DataError + use<> {
        let url = self.url.clone();
        move |failure| DataError::Remote { url, reason: failure.reason() }
    }
}

/// The number of concurrent transfers: the configured one, or DVC's default.
fn concurrency(jobs: Option<usize>) -> usize {
    let default = || std::thread::available_parallelism().map_or(4, |cores| cores.get() * 4);
    jobs.unwrap_or_else(default).clamp(1, 1024)
}

impl Kind {
    fn folder(path: &Path) -> Self {
        let cache = |hash| Box::new(Cache::new(path, hash, false));
        Self::Folder { root: path.to_owned(), current: cache(HashName::Md5), legacy: cache(HashName::Dos2Unix) }
    }
}

fn path_of((hash, digest): &(HashName, Digest)) -> String {
    Item::Object(*hash, *digest).to_string()
}

/// The options of a remote. `remote://NAME/PATH` continues another one.
pub(crate) fn resolve(config: &Config, name: &str) -> Result<schema::Options, DataError> {
    let missing = |name: &str| DataError::Config(format!("remote '{name}' doesn't exist"));
    let mut options = config.remote(name).ok_or_else(|| missing(name))?.clone();
    let mut url = options.remove("url").ok_or_else(|| DataError::Config(format!("remote '{name}' has no url")))?;
    for _ in 0..MAX_LINKS {
        let Some(rest) = url.strip_prefix("remote://") else {
            options.insert("url".into(), url);
            return Ok(options);
        };
        let (other, path) = rest.split_once('/').unwrap_or((rest, ""));
        let mut base = config.remote(other).ok_or_else(|| missing(other))?.clone();
        let base_url = base.remove("url").ok_or_else(|| missing(other))?;
        url = format!("{}/{path}", base_url.trim_end_matches('/'));
        base.extend(options);
        options = base;
    }
    Err(DataError::Config(format!("remote '{name}' refers to itself")))
}
