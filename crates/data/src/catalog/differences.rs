//! The differences of two versions of a data set.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::objects::{MAX_PAGE, below};
use super::opened::Opened;
use crate::error::DataError;
use crate::manifest::Manifest;
use crate::model::Digest;
use crate::project::committed::stages_at;
use crate::revision::resolve;
use crate::stage::Output;

/// The changes below a folder.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DataFolderChanges")]
pub struct FolderChanges {
    /// The path from the path of the request; empty for files that are directly in it.
    pub folder: String,
    /// Number of files that only the new version has.
    pub added: u64,
    /// Number of files whose content differs.
    pub changed: u64,
    /// Number of files that only the old version has.
    pub removed: u64,
    /// Number of files that are the same.
    pub unchanged: u64,
}

/// A file that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DataFileChange")]
pub struct ChangedFile {
    /// The path from the path of the request; empty if that is a file.
    pub path: String,
    /// The digest in the old version, unless the file was added.
    pub old: Option<String>,
    /// The digest in the new version, unless it was removed.
    pub new: Option<String>,
    /// Bytes in the old version, if the cache has it.
    pub old_size: Option<u64>,
    /// Bytes in the new version, if the cache has it.
    pub new_size: Option<u64>,
}

/// The differences of two versions, with a part of the files.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataDifferences")]
pub struct DifferencesPage {
    /// The old commit.
    pub from: String,
    /// The new commit.
    pub to: String,
    /// The sum.
    pub total: FolderChanges,
    /// The sums of the folders directly below the path, by name.
    pub folders: Vec<FolderChanges>,
    /// A part of the files that differ, by path.
    pub files: Vec<ChangedFile>,
}

/// How a file differs: its digest in the old and in the new version.
type Pair<'a> = (&'a str, Option<&'a Digest>, Option<&'a Digest>);

/// The files of two versions, by path.
fn pairs<'a>(old: &'a Manifest, new: &'a Manifest, part: &'a str) -> Vec<Pair<'a>> {
    let mut files: BTreeMap<&str, (Option<&Digest>, Option<&Digest>)> = BTreeMap::new();
    below(old, part).for_each(|(path, digest)| files.entry(path).or_default().0 = Some(digest));
    below(new, part).for_each(|(path, digest)| files.entry(path).or_default().1 = Some(digest));
    files.into_iter().map(|(path, (old, new))| (path, old, new)).collect()
}

/// The sums of all files, and of those in each folder.
fn sums(pairs: &[Pair<'_>]) -> (FolderChanges, Vec<FolderChanges>) {
    let mut total = FolderChanges::default();
    let mut folders: BTreeMap<&str, FolderChanges> = BTreeMap::new();
    for (path, old, new) in pairs {
        let folder = path.split_once('/').map_or("", |(folder, _)| folder);
        let of_folder = folders.entry(folder).or_default();
        for sum in [&mut total, of_folder] {
            let count = match (old, new) {
                (None, _) => &mut sum.added,
                (_, None) => &mut sum.removed,
                (old, new) if old == new => &mut sum.unchanged,
                _ => &mut sum.changed,
            };
            *count += 1;
        }
    }
    let named = |(name, changes): (&str, FolderChanges)| FolderChanges { folder: name.to_owned(), ..changes };
    (total, folders.into_iter().map(named).collect())
}

impl Opened {
    /// The output at a path in a commit, and the part of it that the path names; `None` if nothing is tracked there.
    fn output_at(&self, commit: &str, path: &str) -> Result<Option<(Output, Digest, String)>, DataError> {
        let path = self.absolute(path)?;
        let stages = stages_at(&self.project, commit)?;
        match self.output(&stages, &path) {
            Ok((_, output, part)) => Ok(output.digest.map(|digest| (output.clone(), digest, part))),
            Err(DataError::Target(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The differences at a path between a revision and this one.
    ///
    /// # Errors
    /// [`DataError::Target`] if neither tracks anything there, or the list of a folder's files cannot be received.
    pub fn differences(
        &self,
        path: &str,
        from: &str,
        offset: usize,
        limit: usize,
    ) -> Result<DifferencesPage, DataError> {
        super::names::check_revision(from)?;
        let from = resolve(&self.git, from)?;
        let (old, new) = (self.output_at(&from, path)?, self.output_at(&self.commit, path)?);
        let Some((_, _, part)) = new.as_ref().or(old.as_ref()) else { return Err(DataError::Target(path.to_owned())) };
        let part = part.clone();
        let manifest = |version: &Option<(Output, Digest, String)>| match version {
            Some((output, digest, _)) => self.manifest(output, digest),
            None => Ok(Manifest::default()),
        };
        let (old_files, new_files) = (manifest(&old)?, manifest(&new)?);
        let pairs = pairs(&old_files, &new_files, &part);
        let (total, folders) = sums(&pairs);
        let size = |version: &Option<(Output, Digest, String)>, digest: Option<&Digest>| {
            self.cached_size(version.as_ref()?.0.hash, digest?)
        };
        let file = |(path, before, after): &Pair<'_>| ChangedFile {
            path: (*path).to_owned(),
            old: before.map(Digest::to_string),
            new: after.map(Digest::to_string),
            old_size: size(&old, *before),
            new_size: size(&new, *after),
        };
        let differing = pairs.iter().filter(|(_, old, new)| old != new);
        let files = differing.skip(offset).take(limit.min(MAX_PAGE)).map(file).collect();
        Ok(DifferencesPage { from, to: self.commit.clone(), total, folders, files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Entry;

    #[test]
    fn differences_are_summed_by_folder() {
        let manifest = |entries: &[(&str, u8)]| {
            let entry = |(path, byte): &(&str, u8)| Entry {
                path: (*path).into(),
                digest: Digest::of_file([*byte; 16]),
                size: None,
            };
            Manifest::new(entries.iter().map(entry).collect())
        };
        let old = manifest(&[("a/1", 1), ("a/2", 2), ("a/b/3", 3), ("top", 4)]);
        let new = manifest(&[("a/1", 1), ("a/2", 9), ("c/5", 5), ("top", 4)]);
        let (total, folders) = sums(&pairs(&old, &new, ""));
        let changes = |folder: &str, added, changed, removed, unchanged| FolderChanges {
            folder: folder.into(),
            added,
            changed,
            removed,
            unchanged,
        };
        assert_eq!(total, changes("", 1, 1, 1, 2));
        assert_eq!(folders, [changes("", 0, 0, 0, 1), changes("a", 0, 1, 1, 1), changes("c", 1, 0, 0, 0)]);
        let inside = pairs(&old, &new, "a");
        assert_eq!(inside.iter().map(|(path, ..)| *path).collect::<Vec<_>>(), ["1", "2", "b/3"]);
        assert_eq!(pairs(&old, &new, "top").len(), 1);
    }
}
