//! Data at a URL that is not part of a repository: a local path, a machine with SSH, a WebDAV or web server, or a bucket.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{GetOptions, ObjectMeta, ObjectStore};

use super::content::place_complete;
use crate::config::{Config, is_url, normalise};
use crate::error::DataError;
use crate::external::redact;
use crate::remote::{self, Client, Entry, Failure, Settings, Source, retried};
use crate::schema::Options;
use crate::stat::Stat;

/// Number of files that are queried or received at the same time by default.
const CONCURRENT_REQUESTS: usize = 16;
/// Maximum number of folders in each other.
const MAX_DEPTH: usize = 64;

/// The place of data.
#[derive(Debug)]
pub struct Location {
    /// The URL or path as it was given.
    pub written: String,
    place: Place,
    /// Whether it is in a bucket whose versions of files are recorded.
    keeps_versions: bool,
}

#[derive(Debug)]
enum Place {
    Path(PathBuf),
    Object { store: Arc<dyn ObjectStore>, key: Key },
    Source { source: Box<dyn Source>, has_tags: bool },
    Web { client: Client, url: String },
}

/// A file or folder at a location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The path below the location; empty for the location itself.
    pub path: String,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Bytes, if they are known.
    pub size: Option<u64>,
    /// What changes with the content: the entity tag, or on a web server without tags the time of the last change.
    pub tag: Option<String>,
    /// The id of the version, of a file in a bucket that keeps versions.
    pub version: Option<String>,
}

impl Location {
    /// Opens a URL (`http`, `https`, `s3`, `gs`, `azure`, `ssh`, `webdav`, `webdavs`, `remote://NAME/PATH`), or a path relative to the folder `current`. Options in `options` replace those
    /// of a configured remote.
    ///
    /// # Errors
    /// [`DataError::Config`] for a kind of URL that is not supported.
    pub fn open(url: &str, config: &Config, options: &[(String, String)], current: &Path) -> Result<Self, DataError> {
        let written = url.to_owned();
        let (name, mut settings) = match url.strip_prefix("remote://") {
            Some(rest) => {
                let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
                let mut settings = remote::resolve(config, name)?;
                let base = settings.get("url").map_or("", |base| base.trim_end_matches('/'));
                let joined = format!("{base}/{path}");
                settings.insert("url".into(), joined);
                (name, settings)
            }
            None => ("", Options::from([("url".into(), written.clone())])),
        };
        settings.extend(options.iter().cloned());
        let settings = Settings::new(name, settings);
        let resolved = settings.url.clone();
        let keeps_versions = settings.is_true("version_aware");
        if keeps_versions && !resolved.starts_with("s3://") {
            let place = redact(&resolved);
            return Err(DataError::Config(format!("{place}: slipway supports version_aware for s3:// only")));
        }
        let place = match resolved.split_once("://") {
            Some(("http" | "https", _)) => Place::Web { client: Client::open(&settings)?, url: resolved },
            Some(("s3" | "gs" | "azure", _)) => {
                let (store, path) = remote::bucket::open(&settings)?;
                Place::Object { store, key: Key::from(path) }
            }
            Some(("file", path)) => Place::Path(PathBuf::from(path)),
            Some((scheme, _)) if is_url(&resolved) => match remote::open_source(&settings)? {
                Some(source) => Place::Source { source, has_tags: !scheme.eq_ignore_ascii_case("ssh") },
                None => return Err(DataError::Config(format!("URLs with {scheme}:// are not supported here"))),
            },
            _ => Place::Path(normalise(&current.join(&resolved))),
        };
        Ok(Self { written, place, keeps_versions })
    }

    /// The path, if it is on this machine.
    pub fn local(&self) -> Option<&Path> {
        if let Place::Path(path) = &self.place { Some(path) } else { None }
    }

    /// Whether versions of its files are recorded, so that old ones can be received (`version_aware`).
    pub fn keeps_versions(&self) -> bool {
        self.keeps_versions
    }

    /// Whether the data is identified by the digest of its content, because its place has no tags of files.
    pub fn has_digests(&self) -> bool {
        matches!(self.place, Place::Path(_) | Place::Source { has_tags: false, .. })
    }

    /// The key under which DVC records the tag: `checksum` of web servers, `etag` of buckets and WebDAV servers.
    pub fn tag_key(&self) -> &'static str {
        if matches!(self.place, Place::Web { .. }) { "checksum" } else { "etag" }
    }

    fn error(&self) -> impl Fn(object_store::Error) -> DataError + use<> {
        let url = redact(&self.written);
        move |error| DataError::Remote { url: url.clone(), reason: error.to_string() }
    }

    fn failure(&self) -> impl Fn(Failure) -> DataError + use<> {
        let url = redact(&self.written);
        move |failure| DataError::Remote { url: url.clone(), reason: failure.reason() }
    }

    /// The content of a file below the location.
    async fn read(&self, file: &Item) -> Result<BoxStream<'static, Result<Bytes, DataError>>, DataError> {
        match &self.place {
            Place::Path(folder) => Err(DataError::Invalid(format!("{} is not remote", folder.display()))),
            Place::Web { client, url } => {
                let chunks = retried(|| Box::pin(client.read(url, 0))).await.map_err(self.failure())?;
                Ok(chunks.map_err(self.failure()).boxed())
            }
            Place::Source { source, .. } => {
                let chunks = retried(|| source.read(&file.path, 0)).await.map_err(self.failure())?;
                Ok(chunks.map_err(self.failure()).boxed())
            }
            Place::Object { store, key } => {
                let options = GetOptions { version: file.version.clone(), ..GetOptions::default() };
                let found = store.get_opts(&child(key, &file.path), options).await.map_err(self.error())?;
                let failed = self.error();
                Ok(found.into_stream().map_err(failed).boxed())
            }
        }
    }

    /// What is at the location; `None` if there is nothing.
    ///
    /// # Errors
    /// If it cannot be reached or read.
    pub async fn item(&self) -> Result<Option<Item>, DataError> {
        self.item_at(None).await
    }

    /// What is at the location; `None` if there is nothing. `version` is the id of a version of a file in a bucket.
    ///
    /// # Errors
    /// If it cannot be reached or read.
    pub async fn item_at(&self, version: Option<&str>) -> Result<Option<Item>, DataError> {
        match &self.place {
            Place::Path(path) => {
                let stat = Stat::of_path(path).map_err(DataError::io(path))?;
                Ok(stat.map(|stat| Item {
                    path: String::new(),
                    is_folder: stat.kind() == crate::stat::Kind::Folder,
                    size: Some(stat.size),
                    tag: None,
                    version: None,
                }))
            }
            Place::Web { client, url } => {
                let found = client.describe(url).await.map_err(self.failure())?;
                Ok(found.map(|(size, tag)| Item { path: String::new(), is_folder: false, size, tag, version: None }))
            }
            Place::Source { source, .. } => {
                let found = retried(|| source.describe("")).await.map_err(self.failure())?;
                Ok(found.map(|entry| Item { path: String::new(), ..item_of_entry(entry) }))
            }
            Place::Object { store, key } => match self.describe(store.as_ref(), key, "", version).await {
                Ok(item) => Ok(Some(item)),
                Err(object_store::Error::NotFound { .. }) => {
                    let first = store.list(Some(key)).next().await.transpose().map_err(self.error())?;
                    Ok(first.map(|_| folder(String::new())))
                }
                Err(error) => Err(self.error()(error)),
            },
        }
    }

    /// The entries of a folder, or all files below it, up to `depth` folders deep.
    ///
    /// # Errors
    /// If it cannot be reached or read.
    pub async fn list(&self, recursive: bool, depth: usize) -> Result<Vec<Item>, DataError> {
        match &self.place {
            Place::Path(path) => {
                let mut items = Vec::new();
                list_path(path, "", recursive, depth, &mut items)?;
                Ok(items)
            }
            Place::Source { source, .. } => self.list_source(source.as_ref(), recursive, depth).await,
            Place::Web { .. } => {
                Err(DataError::Invalid(format!("{}: a web server cannot be listed", redact(&self.written))))
            }
            Place::Object { store, key } => {
                let relative = |path: &Key| path.as_ref()[key.as_ref().len()..].trim_start_matches('/').to_owned();
                if recursive {
                    let metas: Vec<ObjectMeta> = store.list(Some(key)).try_collect().await.map_err(self.error())?;
                    return Ok(metas.iter().map(|meta| item_of(meta, relative(&meta.location))).collect());
                }
                let listing = store.list_with_delimiter(Some(key)).await.map_err(self.error())?;
                let files = listing.objects.iter().map(|meta| item_of(meta, relative(&meta.location)));
                let folders = listing.common_prefixes.iter().map(|path| folder(relative(path)));
                Ok(files.chain(folders).collect())
            }
        }
    }

    /// The entries of a folder on another machine, or all files below it, up to `depth` folders deep.
    async fn list_source(&self, source: &dyn Source, recursive: bool, depth: usize) -> Result<Vec<Item>, DataError> {
        let mut items = Vec::new();
        let mut folders = vec![String::new()];
        for level in 1..=depth.min(MAX_DEPTH) {
            let listings = folders.iter().map(|folder| retried(move || source.entries(folder)));
            let listings = futures_util::stream::iter(listings).buffered(CONCURRENT_REQUESTS);
            let listings: Vec<Vec<Entry>> = listings.try_collect().await.map_err(self.failure())?;
            let mut next = Vec::new();
            for (folder, entries) in folders.iter().zip(listings) {
                for mut entry in entries {
                    if !folder.is_empty() {
                        entry.name = format!("{folder}/{}", entry.name);
                    }
                    // It may lead in a circle.
                    if entry.is_folder && entry.is_link && recursive {
                        let url = redact(&self.written);
                        return Err(DataError::Invalid(format!("{url}: '{}' is a link to a folder", entry.name)));
                    }
                    match entry.is_folder && recursive && level < depth {
                        true => next.push(entry.name),
                        false => items.push(item_of_entry(entry)),
                    }
                }
            }
            if next.is_empty() {
                return Ok(items);
            }
            folders = next;
        }
        let url = redact(&self.written);
        Err(DataError::Invalid(format!("{url}: folders are more than {MAX_DEPTH} deep")))
    }

    /// What a request for a file of a bucket reports about it.
    async fn describe(
        &self,
        store: &dyn ObjectStore,
        key: &Key,
        path: &str,
        version: Option<&str>,
    ) -> object_store::Result<Item> {
        let options = GetOptions { head: true, version: version.map(str::to_owned), ..GetOptions::default() };
        let meta = store.get_opts(&child(key, path), options).await?.meta;
        let version = meta.version.clone().filter(|_| self.keeps_versions);
        Ok(Item { version, ..item_of(&meta, path.to_owned()) })
    }

    /// The file itself, or all files of the folder, sorted by path. Where versions are recorded, each has its version.
    ///
    /// # Errors
    /// If it cannot be reached or read.
    pub async fn files(&self, item: &Item, jobs: Option<usize>) -> Result<Vec<Item>, DataError> {
        if !item.is_folder {
            return Ok(vec![item.clone()]);
        }
        let mut files = self.list(true, usize::MAX).await?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let Place::Object { store, key } = &self.place else { return Ok(files) };
        if !self.keeps_versions {
            return Ok(files);
        }
        // The listing has no versions.
        let described = files.iter().map(|file| self.describe(store.as_ref(), key, &file.path, None));
        let described = futures_util::stream::iter(described).buffered(jobs.unwrap_or(CONCURRENT_REQUESTS).max(1));
        described.try_collect().await.map_err(self.error())
    }

    /// Copies the file or folder to `target`, where it appears when it is complete.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub async fn download(&self, item: &Item, target: &Path, jobs: Option<usize>) -> Result<(), DataError> {
        if let Place::Path(path) = &self.place {
            return place_complete(target, item.is_folder, |made| copy_path(path, made));
        }
        self.download_files(item.is_folder, &self.files(item, jobs).await?, target, jobs).await
    }

    /// Copies files from another machine to `target`, where they appear when all are complete: below it, if they are those of a folder.
    ///
    /// # Errors
    /// If they cannot be read or written.
    pub async fn download_files(
        &self,
        is_folder: bool,
        files: &[Item],
        target: &Path,
        jobs: Option<usize>,
    ) -> Result<(), DataError> {
        let parent = target.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(parent).map_err(DataError::io(parent))?;
        let staging = tempfile::Builder::new().prefix(crate::incoming::TEMPORARY).tempdir_in(parent);
        let staging = staging.map_err(DataError::io(parent))?;
        let received = staging.path().join("received");
        let downloads = files.iter().map(|file| {
            let full = if file.path.is_empty() { received.clone() } else { received.join(&file.path) };
            async move {
                let valid = file.path.is_empty() || file.path.split('/').all(|name| !matches!(name, "" | "." | ".."));
                if !valid {
                    return Err(DataError::Invalid(format!("'{}' is not the path of a file in a folder", file.path)));
                }
                let folder = full.parent().unwrap_or(Path::new("/"));
                std::fs::create_dir_all(folder).map_err(DataError::io(folder))?;
                let mut out = std::fs::File::create(&full).map_err(DataError::io(&full))?;
                let mut stream = self.read(file).await?;
                while let Some(chunk) = stream.try_next().await? {
                    out.write_all(&chunk).map_err(DataError::io(&full))?;
                }
                Ok(())
            }
        });
        let done: Result<Vec<()>, DataError> = futures_util::stream::iter(downloads)
            .buffer_unordered(jobs.unwrap_or(CONCURRENT_REQUESTS).max(1))
            .try_collect()
            .await;
        done?;
        place_complete(target, is_folder, |made| {
            if is_folder {
                std::fs::remove_dir(made).map_err(DataError::io(made))?;
            }
            std::fs::rename(&received, made).map_err(DataError::io(made))
        })
    }
}

fn item_of(meta: &ObjectMeta, path: String) -> Item {
    let tag = match &meta.e_tag {
        // Amazon's clients show the tag without its quotes.
        Some(tag) => tag.trim_matches('"').to_owned(),
        None => meta.last_modified.timestamp().to_string(),
    };
    Item { path, is_folder: false, size: Some(meta.size), tag: Some(tag), version: None }
}

/// What a machine reports about a file, whose name is its path here.
fn item_of_entry(entry: Entry) -> Item {
    Item {
        path: entry.name,
        is_folder: entry.is_folder,
        size: entry.size.filter(|_| !entry.is_folder),
        tag: entry.tag,
        version: None,
    }
}

fn folder(path: String) -> Item {
    Item { path, is_folder: true, size: None, tag: None, version: None }
}

/// The key of a file below another; of that itself, if `path` is empty.
fn child(key: &Key, path: &str) -> Key {
    if path.is_empty() { key.clone() } else { Key::from(format!("{key}/{path}")) }
}

fn list_path(root: &Path, folder: &str, recursive: bool, depth: usize, items: &mut Vec<Item>) -> Result<(), DataError> {
    let full = if folder.is_empty() { root.to_owned() } else { root.join(folder) };
    let mut entries: Vec<_> = std::fs::read_dir(&full)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .map_err(DataError::io(&full))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().into_string().map_err(|name| {
            DataError::Invalid(format!("{}: the name '{}' is not valid UTF-8", full.display(), name.display()))
        })?;
        let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
        let Some(stat) = Stat::of_path(&entry.path()).map_err(DataError::io(entry.path()))? else { continue };
        let is_folder = stat.kind() == crate::stat::Kind::Folder;
        if is_folder && recursive && depth > 1 {
            list_path(root, &path, recursive, depth - 1, items)?;
        } else {
            items.push(Item { path, is_folder, size: Some(stat.size), tag: None, version: None });
        }
    }
    Ok(())
}

fn copy_path(from: &Path, to: &Path) -> Result<(), DataError> {
    if !from.is_dir() {
        let mut source = std::fs::File::open(from).map_err(DataError::io(from))?;
        let mut target = std::fs::File::create(to).map_err(DataError::io(to))?;
        return std::io::copy(&mut source, &mut target).map(drop).map_err(DataError::io(to));
    }
    std::fs::create_dir_all(to).map_err(DataError::io(to))?;
    for entry in std::fs::read_dir(from).map_err(DataError::io(from))? {
        let entry = entry.map_err(DataError::io(from))?;
        copy_path(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}
