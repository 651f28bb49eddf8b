//! What a commit tracks at a path: an output of the project, a part of one, or files of Git.

use std::path::{Path, PathBuf};

use md5::{Digest as _, Md5};

use super::repository::Repository;
use crate::allowance::Allowance;
use crate::cache::Cache;
use crate::config::{normalise, relative_path};
use crate::error::DataError;
use crate::manifest::{Entry, Manifest};
use crate::model::{Digest, HashName};
use crate::pipeline::template::Unpacking;
use crate::project::committed::{stages_at, stages_in};
use crate::project::{DVC_DIR, Project, find_output};
use crate::stage::{Output, Stage};

/// Maximum number of tracked paths in the message about one that is not tracked.
const SHOWN: usize = 5;

/// What is tracked at a path.
#[derive(Debug)]
pub(super) enum Tracked {
    /// An output of a project, or a part of it.
    Output {
        /// The output.
        output: Box<Output>,
        /// The path below the output; empty for all of it.
        part: String,
        /// The file that tracks it, from the root of the repository.
        file: String,
        /// The folder of the project, from the root of the repository.
        project: PathBuf,
    },
    /// Files of Git: paths below the path, or an empty one for the path itself, with their contents.
    Git(Vec<(String, Vec<u8>)>),
}

/// Finds what the commit of a repository tracks at a path.
///
/// # Errors
/// [`DataError::Untracked`], or an error of a file in the commit.
pub(super) fn locate(repository: &Repository, path: &str) -> Result<Tracked, DataError> {
    let git = &repository.git;
    let full = normalise(&git.root().join(path));
    let relative = relative_path(&full, git.root()).to_string_lossy().into_owned();
    let untracked = |hint: String| DataError::Untracked {
        path: path.to_owned(),
        repo: repository.name.clone(),
        commit: repository.commit.clone(),
        hint,
    };
    if !full.starts_with(git.root()) {
        return Err(untracked(String::new()));
    }
    let mut tracked = Vec::new();
    for project in projects(repository, &relative)? {
        let stages = stages_in(
            git,
            &git.root().join(&project),
            &repository.commit,
            (Unpacking::default(), &Allowance::default()),
            &|_| Ok(false),
        )?;
        if let Some((stage, output)) = find_output(&stages, &full) {
            let root = output.path.as_deref().unwrap_or(&full);
            let part = if root == full { String::new() } else { relative_path(&full, root).to_string_lossy().into() };
            let file = relative_path(&stage.file, git.root()).to_string_lossy().into_owned();
            return Ok(Tracked::Output { output: Box::new(output.clone()), part, file, project });
        }
        tracked.extend(stages.iter().flat_map(|stage| &stage.outs).filter_map(|out| {
            let path = out.path.as_ref()?;
            Some(relative_path(path, git.root()).to_string_lossy().into_owned())
        }));
    }
    let inside: Vec<&String> = tracked.iter().filter(|out| Path::new(out).starts_with(&relative)).collect();
    if let Some(output) = inside.first() {
        return Err(untracked(format!("; it contains tracked data: name that, such as '{output}'")));
    }
    let is_inside = |file: &str| relative == "." || Path::new(file).starts_with(&relative);
    let files = git.read(&repository.commit, is_inside)?;
    if files.is_empty() {
        let shown = tracked.iter().take(SHOWN).map(|out| format!("'{out}'")).collect::<Vec<_>>().join(", ");
        let more = if tracked.len() > SHOWN { ", …" } else { "" };
        return Err(untracked(if shown.is_empty() { String::new() } else { format!("; tracked are {shown}{more}") }));
    }
    let below = |file: &Path| match file.strip_prefix(&relative) {
        Ok(rest) => rest.to_string_lossy().into_owned(),
        Err(_) => file.to_string_lossy().into_owned(), // The path is the root.
    };
    Ok(Tracked::Git(files.into_iter().map(|(file, content)| (below(&file), content)).collect()))
}

/// The folders of the projects that may track a path: the deepest first.
fn projects(repository: &Repository, path: &str) -> Result<Vec<PathBuf>, DataError> {
    let is_config = |file: &str| Path::new(file).ends_with(Path::new(DVC_DIR).join("config"));
    let configs = repository.git.read(&repository.commit, is_config)?;
    let folder = |config: PathBuf| config.parent().and_then(Path::parent).map(Path::to_owned);
    let mut found: Vec<PathBuf> =
        configs.into_keys().filter_map(folder).filter(|project| Path::new(path).starts_with(project)).collect();
    found.sort_by_key(|project| std::cmp::Reverse(project.components().count()));
    Ok(found)
}

/// The content of a version: its digest, and its files with theirs. A single file has an empty path.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) digest: Digest,
    pub(super) hash: HashName,
    pub(super) is_exec: bool,
    pub(super) files: Vec<(String, Digest)>,
    /// The manifest that lists the files.
    pub(super) manifest: Option<Digest>,
    /// The sum of the sizes, if it is recorded.
    pub(super) bytes: Option<u64>,
}

impl Content {
    /// The content of an output or a part of it, whose manifest is in the cache.
    pub(super) fn of_output(output: &Output, part: &str, cache: &Cache) -> Result<Option<Self>, DataError> {
        let Some(digest) = output.digest else { return Ok(None) };
        let (hash, is_exec) = (output.hash, output.meta.is_exec);
        if !digest.is_dir {
            let files = vec![(String::new(), digest)];
            let bytes = output.meta.size;
            return Ok(part.is_empty().then_some(Self { digest, hash, is_exec, files, manifest: None, bytes }));
        }
        let Some(manifest) = cache.manifest(&digest)? else { return Ok(None) };
        let listed_in = Some(digest);
        if part.is_empty() {
            let files = manifest.entries.into_iter().map(|entry| (entry.path, entry.digest)).collect();
            return Ok(Some(Self {
                digest,
                hash,
                is_exec: false,
                files,
                manifest: listed_in,
                bytes: output.meta.size,
            }));
        }
        Ok(part_of(&manifest, part).map(|(digest, files)| Self {
            digest,
            hash,
            is_exec: false,
            files,
            manifest: listed_in,
            bytes: None,
        }))
    }

    /// The content of files of Git, which are stored in the cache.
    pub(super) fn of_git(files: Vec<(String, Vec<u8>)>, cache: &Cache) -> Result<Self, DataError> {
        let mut entries = Vec::new();
        for (path, content) in files {
            let digest = Digest::of_file(Md5::digest(&content).into());
            if !cache.contains(&digest)? {
                cache.put(&digest, &content)?;
            }
            entries.push(Entry { path, digest, size: Some(content.len() as u64) });
        }
        let manifest = Manifest::new(entries);
        let bytes = manifest.size();
        let digest = match manifest.entries.as_slice() {
            [only] if only.path.is_empty() => only.digest,
            _ => manifest.digest(),
        };
        let files = manifest.entries.into_iter().map(|entry| (entry.path, entry.digest)).collect();
        Ok(Self { digest, hash: HashName::Md5, is_exec: false, files, manifest: None, bytes })
    }
}

/// A file or folder in a folder: its digest, and its files. As in DVC, the digest of a folder is that of its own manifest.
fn part_of(manifest: &Manifest, part: &str) -> Option<(Digest, Vec<(String, Digest)>)> {
    if let Some(entry) = manifest.get(part) {
        return Some((entry.digest, vec![(String::new(), entry.digest)]));
    }
    let prefix = format!("{part}/");
    let inside = manifest.entries.iter().filter_map(|entry| {
        let path = entry.path.strip_prefix(&prefix)?.to_owned();
        Some(Entry { path, ..entry.clone() })
    });
    let inside = Manifest::new(inside.collect());
    let files = inside.entries.iter().map(|entry| (entry.path.clone(), entry.digest)).collect();
    (!inside.entries.is_empty()).then(|| (inside.digest(), files))
}

/// The digests of the data at a path of the workspace, or in a revision: that of the path first, then those of the folders that contain
/// it, so that whoever used one of them used these bytes.
///
/// # Errors
/// [`DataError::Target`] if no `.dvc` file or pipeline tracks the path.
pub fn digests_at(project: &Project, path: &str, rev: Option<&str>) -> Result<Vec<Digest>, DataError> {
    let stages: Vec<Stage> = match (rev, &project.git) {
        (Some(rev), Some(git)) => {
            let commit = git.resolve(rev)?.ok_or_else(|| DataError::Git(format!("unknown Git revision '{rev}'")))?;
            stages_at(project, &commit)?
        }
        (Some(_), None) => return Err(DataError::Git("the project does not use Git".into())),
        (None, _) => project.stages()?,
    };
    let full = project.absolute(path);
    let by_file = stages.iter().find(|stage| stage.file == full && stage.name.is_none());
    let found =
        by_file.and_then(|stage| stage.outs.first()).or_else(|| find_output(&stages, &full).map(|(_, out)| out));
    let unknown = || DataError::Target(path.to_owned());
    let output = found.ok_or_else(unknown)?;
    let digest = output.digest.ok_or_else(unknown)?;
    let root = output.path.as_deref().unwrap_or(&full);
    if by_file.is_some() || root == full {
        return Ok(vec![digest]);
    }
    let manifest = project.cache_of(output.hash).manifest(&digest)?;
    let manifest = manifest.ok_or_else(|| DataError::NotInCache(vec![format!("{digest} ({})", output.written)]))?;
    let part = relative_path(&full, root);
    let mut digests = Vec::new();
    for part in part.ancestors().filter(|part| !part.as_os_str().is_empty()) {
        let Some((digest, _)) = part_of(&manifest, &part.to_string_lossy()) else { return Err(unknown()) };
        digests.push(digest);
    }
    digests.push(digest);
    Ok(digests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_folders_have_their_own_digest() {
        let entry = |path: &str, byte: u8| Entry { path: path.into(), digest: Digest::of_file([byte; 16]), size: None };
        let manifest = Manifest::new(vec![entry("a/b/x", 1), entry("a/b/y", 2), entry("a/bc", 3), entry("d", 4)]);
        let (digest, files) = part_of(&manifest, "a/b").unwrap();
        assert_eq!(digest, Manifest::new(vec![entry("x", 1), entry("y", 2)]).digest());
        assert_eq!(files.len(), 2);
        assert_eq!(part_of(&manifest, "d").unwrap().0, Digest::of_file([4; 16]));
        assert!(part_of(&manifest, "a/").is_none() && part_of(&manifest, "e").is_none());
    }
}
