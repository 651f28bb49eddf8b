//! Remotes in buckets that keep all versions of a file (`version_aware`, `worktree`): files have the paths of the workspace, and a version of
//! a file is found by its id, which is recorded with the output.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use object_store::{GetOptions, ObjectStoreExt};

use super::backend::{Backend, Chunks, Entry, Reply};
use super::bucket::{Bucket, failed};
use super::{Failure, Kind, Remote, Settings, path_of, resolve};
use crate::cache::Cache;
use crate::config::Config;
use crate::error::DataError;
use crate::hash::Hasher;
use crate::model::{Digest, HashName};
use crate::schema;
use crate::stage::{CloudVersion, Output};

/// Objects that are versions of files in a bucket: the path and the id of each.
pub(crate) type Recorded = HashMap<(HashName, Digest), (String, String)>;

/// A bucket that keeps all versions of its files.
#[derive(Debug)]
pub(crate) struct Versioned {
    /// The name of the remote in the configuration.
    pub(crate) name: String,
    url: String,
    jobs: Option<usize>,
    bucket: Bucket,
}

/// Whether a remote, or the default one, keeps versions. False for one that does not exist.
///
/// # Errors
/// [`DataError::Config`] for options that exclude each other.
pub(crate) fn is_versioned(config: &Config, name: Option<&str>) -> Result<bool, DataError> {
    let Some(name) = name.or_else(|| config.get("core", "remote")) else { return Ok(false) };
    let name = name.to_lowercase();
    if config.remote(&name).is_none() {
        return Ok(false);
    }
    let settings = Settings::new(&name, resolve(config, &name)?);
    if settings.is_true("worktree") && settings.text("version_aware").is_some_and(|v| v.eq_ignore_ascii_case("false")) {
        return Err(DataError::Config("worktree remotes require version_aware cloud".into()));
    }
    Ok(settings.is_true("version_aware") || settings.is_true("worktree"))
}

/// Whether the files of a remote may be changed there, and outputs brought to their last versions.
///
/// # Errors
/// As [`is_versioned`].
pub(crate) fn is_worktree(config: &Config, name: &str) -> Result<bool, DataError> {
    Ok(is_versioned(config, Some(name))? && Settings::new(name, resolve(config, name)?).is_true("worktree"))
}

/// Opens a remote, or the default one, to receive the data of outputs from it, also one that keeps versions. Each output comes with its path from
/// the root of its project. `command` is part of the message when there is no remote.
///
/// # Errors
/// As [`Remote::open`].
pub(crate) fn open_source<'a>(
    config: &Config,
    name: Option<&str>,
    command: &str,
    outs: impl Iterator<Item = (String, &'a Output)>,
) -> Result<Remote, DataError> {
    if !is_versioned(config, name)? {
        return Remote::open(config, name, command);
    }
    let bucket = Versioned::open(config, name)?;
    let versions = bucket.recorded(outs);
    Ok(bucket.into_remote(versions))
}

impl Versioned {
    /// Opens the remote with this name, or the default one.
    ///
    /// # Errors
    /// [`DataError::Config`] for options or kinds of URLs that are not supported.
    pub(crate) fn open(config: &Config, name: Option<&str>) -> Result<Self, DataError> {
        let name = name.or_else(|| config.get("core", "remote")).unwrap_or_default().to_lowercase();
        let options = resolve(config, &name)?;
        schema::check(&name, &options)?;
        let settings = Settings::new(&name, options).within(config.reach());
        super::foreign::check(&settings)?;
        let scheme = schema::scheme(&settings.url);
        if scheme != "s3" {
            return Err(DataError::Config(format!(
                "remote '{name}': slipway supports version_aware for s3:// only, not for {scheme}://; use dvc for this one"
            )));
        }
        let (url, jobs) = (settings.url.clone(), settings.number("jobs")?);
        Ok(Self { bucket: Bucket::open(&settings)?, name, url, jobs })
    }

    /// The number of concurrent transfers.
    pub(crate) fn concurrency(&self, jobs: Option<usize>) -> usize {
        super::concurrency(jobs.or(self.jobs))
    }

    /// The entity tags of the last versions of all files, by path.
    ///
    /// # Errors
    /// If the bucket cannot be listed.
    pub(crate) async fn latest(&self) -> Result<HashMap<String, String>, DataError> {
        let all = self.bucket.all().await.map_err(|failure| self.failed(failure))?;
        Ok(all.into_iter().filter_map(|(path, meta)| Some((path, unquoted(meta.e_tag?)))).collect())
    }

    /// Whether a version of a file exists.
    ///
    /// # Errors
    /// If the bucket cannot be reached.
    pub(crate) async fn has(&self, path: &str, version: &str) -> Result<bool, DataError> {
        match head(&self.bucket, path, version).await {
            Ok(()) => Ok(true),
            Err(Failure::NotFound) => Ok(false),
            Err(failure) => Err(self.failed(failure)),
        }
    }

    /// Sends a file, and returns its new version.
    ///
    /// # Errors
    /// If it cannot be read or sent, or if the bucket does not keep versions.
    pub(crate) async fn send(&self, path: &str, source: &Path) -> Result<CloudVersion, DataError> {
        let send = async {
            let (store, key) = self.bucket.object(path)?;
            let sent = self.bucket.put(&key, source).await?;
            let (mut etag, mut version) = (sent.e_tag, sent.version);
            if etag.is_none() || version.is_none() {
                let meta = store.head(&key).await.map_err(failed)?;
                (etag, version) = (etag.or(meta.e_tag), version.or(meta.version));
            }
            Ok((etag, version))
        };
        let (etag, version) = send.await.map_err(|failure| self.failed(failure))?;
        if version.is_none() {
            let reason = "the bucket does not keep versions; enable them, or unset version_aware";
            return Err(DataError::Remote { url: self.url.clone(), reason: reason.into() });
        }
        Ok(CloudVersion { remote: self.name.clone(), etag: etag.map(unquoted), version })
    }

    /// Receives the last version of a file into the cache, and returns what it is.
    ///
    /// # Errors
    /// If it cannot be received or stored.
    pub(crate) async fn receive_latest(
        &self,
        path: &str,
        cache: &Cache,
        staging: &Path,
    ) -> Result<(Digest, u64, CloudVersion), DataError> {
        let remote = |failure| self.failed(failure);
        let (store, key) = self.bucket.object(path).map_err(remote)?;
        let meta = store.head(&key).await.map_err(failed).map_err(remote)?;
        let mut chunks = self.bucket.get(&key, meta.version.clone(), 0).await.map_err(remote)?;
        let temporary = tempfile_in(staging);
        let mut hasher = Hasher::new(HashName::Md5);
        let mut file = std::fs::File::create_new(&temporary).map_err(DataError::io(&temporary))?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(remote)?;
            hasher.update(&chunk);
            file.write_all(&chunk).map_err(DataError::io(&temporary))?;
        }
        let digest = Digest::of_file(hasher.finish());
        cache.adopt(&temporary, &digest)?;
        std::fs::remove_file(&temporary).map_err(DataError::io(&temporary))?;
        let cloud = CloudVersion { remote: self.name.clone(), etag: meta.e_tag.map(unquoted), version: meta.version };
        Ok((digest, meta.size, cloud))
    }

    /// The versions in this bucket that outputs record: the path and the id of each. An output comes with its path from the root of its project.
    pub(crate) fn recorded<'a>(&self, outs: impl Iterator<Item = (String, &'a Output)>) -> Recorded {
        let mut versions = HashMap::new();
        let mut insert = |path: String, object: (HashName, Digest), cloud: Option<&CloudVersion>| {
            let version = cloud.filter(|cloud| cloud.remote == self.name).and_then(|cloud| cloud.version.clone());
            versions.extend(version.map(|version| (object, (path, version))));
        };
        for (path, out) in outs {
            for file in out.files.iter().flatten() {
                insert(format!("{path}/{}", file.path), (out.hash, file.digest), file.cloud.as_ref());
            }
            if let Some(digest) = out.digest.filter(|digest| !digest.is_dir) {
                insert(path, (out.hash, digest), out.cloud.as_ref());
            }
        }
        versions
    }

    /// Recorded versions as a remote with objects.
    pub(crate) fn into_remote(self, versions: Recorded) -> Remote {
        let Self { name, url, jobs, bucket } = self;
        let versions = versions.into_iter().map(|(object, version)| (path_of(&object), version)).collect();
        Remote { name, jobs, url, kind: Kind::Other(Box::new(Versions { bucket, versions })) }
    }

    fn failed(&self, failure: Failure) -> DataError {
        DataError::Remote { url: self.url.clone(), reason: failure.reason() }
    }
}

/// A new name in the folder of temporary files, which is removed at the end of the command.
fn tempfile_in(staging: &Path) -> PathBuf {
    staging.join(crate::incoming::temporary_name())
}

async fn head(bucket: &Bucket, path: &str, version: &str) -> Result<(), Failure> {
    let (store, key) = bucket.object(path)?;
    let options = GetOptions { head: true, version: Some(version.to_owned()), ..GetOptions::default() };
    store.get_opts(&key, options).await.map(drop).map_err(failed)
}

fn unquoted(etag: String) -> String {
    etag.trim_matches('"').to_owned()
}

/// Objects that are versions of files.
#[derive(Debug)]
struct Versions {
    bucket: Bucket,
    /// The path and the version of the file, by the path of the object.
    versions: HashMap<String, (String, String)>,
}

impl Versions {
    fn find(&self, path: &str) -> Result<&(String, String), Failure> {
        self.versions.get(path).ok_or(Failure::NotFound)
    }
}

/// They are only received.
fn read_only<T>() -> Result<T, Failure> {
    Err(Failure::Permanent("versions of files cannot be changed".into()))
}

impl Backend for Versions {
    fn exists<'a>(&'a self, path: &'a str) -> Reply<'a, bool> {
        Box::pin(async move {
            let Ok((file, version)) = self.find(path) else { return Ok(false) };
            match head(&self.bucket, file, version).await {
                Ok(()) => Ok(true),
                Err(Failure::NotFound) => Ok(false),
                Err(failure) => Err(failure),
            }
        })
    }

    fn entries<'a>(&'a self, _: &'a str) -> Reply<'a, Vec<Entry>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn read<'a>(&'a self, path: &'a str, from: u64) -> Reply<'a, Chunks> {
        Box::pin(async move {
            let (file, version) = self.find(path)?;
            let (_, key) = self.bucket.object(file)?;
            self.bucket.get(&key, Some(version.clone()), from).await
        })
    }

    fn write<'a>(&'a self, _: &'a str, _: &'a Path) -> Reply<'a, ()> {
        Box::pin(async { read_only() })
    }

    fn remove<'a>(&'a self, _: &'a str) -> Reply<'a, ()> {
        Box::pin(async { read_only() })
    }

    fn lists(&self) -> bool {
        false
    }

    fn list_from(&self) -> usize {
        usize::MAX
    }
}
