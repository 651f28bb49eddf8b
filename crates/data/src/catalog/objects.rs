//! The files of a version of data, and where their bytes are.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::opened::Opened;
use crate::error::DataError;
use crate::external::redact;
use crate::manifest::Manifest;
use crate::model::{Digest, HashName};
use crate::stage::Output;

/// Maximum number of entries in a page.
pub(super) const MAX_PAGE: usize = 500;
/// Maximum number of objects that are looked for in the cache.
const MAX_CACHE_CHECKS: usize = 20_000;
/// Maximum number of objects that are looked for in a remote.
const MAX_REMOTE_CHECKS: usize = 100;
/// Maximum number of remotes that are queried.
const MAX_REMOTES: usize = 5;
/// Number of concurrent requests to a remote.
const CONCURRENT_CHECKS: usize = 16;

/// A folder below a path.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataFolder")]
pub struct FolderEntry {
    /// The name.
    pub name: String,
    /// Number of files below it.
    pub files: u64,
}

/// A file below a path.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataFile")]
pub struct FileEntry {
    /// The name; empty if the path itself is a file.
    pub name: String,
    /// The digest.
    pub digest: String,
    /// Bytes, if the cache has the file.
    pub size: Option<u64>,
}

/// A part of what is below a path of a version: folders first, then files, each by name.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataFiles")]
pub struct Children {
    /// The folders in this part.
    pub folders: Vec<FolderEntry>,
    /// The files in this part.
    pub files: Vec<FileEntry>,
    /// Number of folders and files of the path.
    pub total: u64,
}

/// What the cache has of a version.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataInCache")]
pub struct CachePlace {
    /// Number of objects that were looked for.
    pub checked: u64,
    /// Number of them that the cache has.
    pub present: u64,
}

/// What a remote has of a version.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataInRemote")]
pub struct RemotePlace {
    /// The name of the remote.
    pub name: String,
    /// Its URL, without credentials.
    pub url: String,
    /// Number of objects that were looked for.
    pub checked: u64,
    /// Number of them that the remote has; `null` if it could not be queried.
    pub present: Option<u64>,
    /// Why it could not be queried.
    pub failure: Option<String>,
}

/// Where the bytes of a version are.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataPlaces")]
pub struct Places {
    /// Number of objects of the version.
    pub objects: u64,
    /// The cache of the repository; `null` if the server reads none.
    pub cache: Option<CachePlace>,
    /// The remotes.
    pub remotes: Vec<RemotePlace>,
}

/// The files below a part of a folder, each with its path below the part; an empty one for the part itself.
pub(super) fn below<'a>(manifest: &'a Manifest, part: &'a str) -> impl Iterator<Item = (&'a str, &'a Digest)> {
    manifest.entries.iter().filter_map(move |entry| {
        let rest = match part {
            "" => Some(entry.path.as_str()),
            _ if entry.path == part => Some(""),
            _ => entry.path.strip_prefix(part).and_then(|rest| rest.strip_prefix('/')),
        };
        Some((rest?, &entry.digest))
    })
}

impl Opened {
    /// The output at or above a path, with its digest and the part that the path names.
    pub(super) fn located(&self, path: &str) -> Result<(Output, Digest, String), DataError> {
        let path = self.absolute(path)?;
        let stages = self.stages()?;
        let (_, output, part) = self.output(&stages, &path)?;
        let digest = output.digest.ok_or_else(|| DataError::Target(self.shown(&path)))?;
        Ok((output.clone(), digest, part))
    }

    /// Bytes of an object in the cache.
    pub(super) fn cached_size(&self, hash: HashName, digest: &Digest) -> Option<u64> {
        let metadata = std::fs::symlink_metadata(self.project.cache_of(hash).path(digest)).ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// What is directly below a path of a version.
    ///
    /// # Errors
    /// [`DataError::Target`] if nothing is tracked there, or the folder's list of files cannot be received.
    pub fn children(&self, path: &str, offset: usize, limit: usize) -> Result<Children, DataError> {
        let (output, digest, part) = self.located(path)?;
        let manifest = self.manifest(&output, &digest)?;
        let mut folders: BTreeMap<&str, u64> = BTreeMap::new();
        let mut files: Vec<(&str, &Digest)> = Vec::new();
        for (rest, digest) in below(&manifest, &part) {
            match rest.split_once('/') {
                Some((folder, _)) => *folders.entry(folder).or_default() += 1,
                None => files.push((rest, digest)),
            }
        }
        if folders.is_empty() && files.is_empty() {
            return Err(DataError::Target(path.to_owned()));
        }
        let (limit, total) = (limit.min(MAX_PAGE), (folders.len() + files.len()) as u64);
        let of_files = offset.saturating_sub(folders.len());
        let folder = |(name, files): (&str, u64)| FolderEntry { name: name.to_owned(), files };
        let shown: Vec<FolderEntry> = folders.into_iter().skip(offset).take(limit).map(folder).collect();
        let file = |(name, digest): (&str, &Digest)| FileEntry {
            name: name.to_owned(),
            digest: digest.to_string(),
            size: self.cached_size(output.hash, digest),
        };
        let files = files.into_iter().skip(of_files).take(limit - shown.len()).map(file).collect();
        Ok(Children { folders: shown, files, total })
    }

    /// Where the bytes at a path are. Of a folder with many files, only a part is looked for.
    ///
    /// # Errors
    /// [`DataError::Target`] if nothing is tracked there. A remote that cannot be reached is part of the result.
    pub fn places(&self, path: &str) -> Result<Places, DataError> {
        let (output, digest, part) = self.located(path)?;
        let mut objects = if digest.is_dir { vec![digest] } else { Vec::new() };
        // Without the list, only the list itself can be looked for.
        if let Ok(manifest) = self.manifest(&output, &digest) {
            let mut files: Vec<Digest> = below(&manifest, &part).map(|(_, digest)| *digest).collect();
            files.sort_unstable();
            files.dedup();
            objects.extend(files);
        }
        let cache = self.project.cache_of(output.hash);
        let cache = cache.root().is_dir().then(|| {
            let checked = &objects[..objects.len().min(MAX_CACHE_CHECKS)];
            let present = checked.iter().filter(|digest| cache.path(digest).is_file()).count();
            CachePlace { checked: checked.len() as u64, present: present as u64 }
        });
        let config = &self.project.config;
        let names: Vec<&String> = match &output.remote {
            Some(only) => vec![only],
            None => config.remotes().iter().take(MAX_REMOTES).collect(),
        };
        let checked: Vec<(HashName, Digest)> =
            objects.iter().take(MAX_REMOTE_CHECKS).map(|digest| (output.hash, *digest)).collect();
        let place = |name: &&String| {
            let url = config.remote(name).and_then(|options| options.get("url")).map_or("", String::as_str);
            let found = self.remote(Some(name)).and_then(|remote| {
                self.wait(async { remote.existing(&checked, CONCURRENT_CHECKS).await.map(|found| found.len() as u64) })
            });
            let failure = found.as_ref().err().map(|error| match error {
                DataError::Remote { reason, .. } => reason.clone(),
                other => other.to_string(),
            });
            RemotePlace {
                name: (*name).clone(),
                url: redact(url),
                checked: checked.len() as u64,
                present: found.ok(),
                failure,
            }
        };
        Ok(Places { objects: objects.len() as u64, cache, remotes: names.iter().map(place).collect() })
    }
}
