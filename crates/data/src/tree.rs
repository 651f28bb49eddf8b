//! A version of the project's files: those of the workspace or of a commit, and those that it tracks, from the cache.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::project::committed::stages_at;
use crate::project::{Project, find_output};
use crate::scm::{Blobs, Object};
use crate::stage::{Output, PIPELINE_FILE, Stage};
use crate::walk::walk;

/// Maximum bytes read of a file with values, points or a picture.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// A version of the project's files.
#[derive(Debug)]
pub struct Tree<'a> {
    project: &'a Project,
    /// The commit; `None` for the workspace.
    commit: Option<String>,
    stages: Vec<Stage>,
    blobs: Option<&'a Blobs>,
}

impl<'a> Tree<'a> {
    /// The files of the workspace.
    ///
    /// # Errors
    /// If a `.dvc` file or pipeline cannot be read.
    pub fn workspace(project: &'a Project) -> Result<Self, DataError> {
        Ok(Self { project, commit: None, stages: project.stages()?, blobs: None })
    }

    /// The files of a commit, read with `blobs`.
    ///
    /// # Errors
    /// If a `.dvc` file or pipeline cannot be read.
    pub fn at(project: &'a Project, commit: String, blobs: &'a Blobs) -> Result<Self, DataError> {
        let stages = stages_at(project, &commit)?;
        Ok(Self { project, commit: Some(commit), stages, blobs: Some(blobs) })
    }

    /// The project.
    pub fn project(&self) -> &'a Project {
        self.project
    }

    /// The commit; `None` for the workspace.
    pub fn commit(&self) -> Option<&str> {
        self.commit.as_deref()
    }

    /// The `.dvc` files, and the stages of pipelines that have been run.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The paths of all `dvc.yaml`, sorted.
    ///
    /// # Errors
    /// If a folder or the commit cannot be read.
    pub fn pipelines(&self) -> Result<Vec<PathBuf>, DataError> {
        match (&self.commit, &self.project.git) {
            (Some(commit), Some(git)) => {
                let mut found = git.paths_below(commit, &self.project.root)?;
                found.retain(|path| path.file_name().is_some_and(|name| name == PIPELINE_FILE));
                found.sort();
                let mut kept = Vec::new();
                for path in found {
                    if !self.project.is_ignored(&path)? {
                        kept.push(path);
                    }
                }
                Ok(kept)
            }
            _ => self.project.pipelines(),
        }
    }

    /// The content of a file (absolute path); `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read, or is too large.
    pub fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, DataError> {
        let present = match self.object(path)? {
            Some(object) => match object {
                Object::Blob(bytes) => Some(bytes),
                Object::Tree => None,
            },
            None if self.commit.is_none() => read_file(path)?,
            None => None,
        };
        let allowed = |bytes: Vec<u8>| self.project.allowance.file(path, bytes.len()).map(|()| bytes);
        if let Some(bytes) = present {
            return allowed(bytes).map(Some);
        }
        let Some((_, out)) = find_output(&self.stages, path) else { return Ok(None) };
        let Some(entry) = self.tracked(out)?.into_iter().find(|(file, _)| file == path) else { return Ok(None) };
        // Not through a link: the cache of a repository that others control could name any file of this machine.
        let object = self.project.cache_of(out.hash).read_start(&entry.1, MAX_FILE_BYTES)?;
        object.map(|bytes| within_limit(path, bytes).and_then(allowed)).transpose()
    }

    /// The text of a file (absolute path); `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read, is too large, or is not UTF-8.
    pub fn read_text(&self, path: &Path) -> Result<Option<String>, DataError> {
        let Some(bytes) = self.read(path)? else { return Ok(None) };
        String::from_utf8(bytes).map(Some).map_err(|_| DataError::file(path, 0, "it is not UTF-8"))
    }

    /// The files below a folder (absolute path), sorted; `None` if it is not a folder.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn files_below(&self, path: &Path) -> Result<Option<BTreeSet<PathBuf>>, DataError> {
        let mut files = BTreeSet::new();
        let mut is_folder = false;
        match (&self.commit, &self.project.git) {
            (Some(commit), Some(git)) => {
                if let Some(Object::Tree) = self.object(path)? {
                    is_folder = true;
                    files.extend(git.paths_below(commit, path)?);
                }
            }
            _ if path.is_dir() => {
                is_folder = true;
                files.extend(walk(path, &self.project.rules)?.into_iter().map(|file| path.join(&file.path)));
            }
            _ => {}
        }
        for out in self.stages.iter().flat_map(|stage| &stage.outs) {
            let related = out.path.as_ref().is_some_and(|root| root.starts_with(path) || path.starts_with(root));
            let is_file = out.path.as_deref() == Some(path) && !out.digest.is_some_and(|digest| digest.is_dir);
            // What is in the workspace counts, not what was recorded for it.
            if !related || is_file || (self.commit.is_none() && out.path.as_ref().is_some_and(|root| root.exists())) {
                continue;
            }
            let tracked = self.tracked(out)?.into_iter().map(|(file, _)| file).filter(|file| file.starts_with(path));
            let before = files.len();
            files.extend(tracked);
            is_folder |= files.len() > before;
        }
        Ok(is_folder.then_some(files))
    }

    fn tracked(&self, out: &Output) -> Result<Vec<(PathBuf, crate::model::Digest)>, DataError> {
        let Some(root) = &out.path else { return Ok(Vec::new()) };
        let entries = self.project.recorded_files(out)?.map(|manifest| manifest.entries).unwrap_or_default();
        let full = |path: &str| if path.is_empty() { root.clone() } else { root.join(path) };
        Ok(entries.into_iter().map(|entry| (full(&entry.path), entry.digest)).collect())
    }

    /// What Git has at a path in the commit.
    fn object(&self, path: &Path) -> Result<Option<Object>, DataError> {
        let (Some(commit), Some(blobs)) = (&self.commit, self.blobs) else { return Ok(None) };
        blobs.get(commit, path)
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, DataError> {
    use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    let opened = std::fs::metadata(path).and_then(|metadata| {
        // A pipe would block, and a device has no end.
        if metadata.is_file() { std::fs::File::open(path).map(Some) } else { Ok(None) }
    });
    let file = match opened {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(None),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory | IsADirectory) => return Ok(None),
        Err(error) => return Err(DataError::io(path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(DataError::io(path))?;
    within_limit(path, bytes).map(Some)
}

fn within_limit(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>, DataError> {
    match bytes.len() as u64 > MAX_FILE_BYTES {
        true => Err(DataError::file(path, 0, "it is larger than 256 MiB")),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    /// A project in a Git repository, with a commit that has links to `secret`, a file outside of the repository.
    fn project(root: &Path) -> Project {
        let work = root.join("work");
        std::fs::create_dir_all(work.join(".dvc")).unwrap();
        std::fs::write(root.join("secret"), "secret").unwrap();
        std::fs::write(work.join(".dvc/config"), "").unwrap();
        std::fs::write(work.join("file"), "content").unwrap();
        symlink("../secret", work.join("outside")).unwrap();
        symlink(root.join("secret"), work.join("absolute")).unwrap();
        let git = |arguments: &[&str]| {
            let mut command = Command::new("git");
            command.arg("-C").arg(&work).args(["-c", "user.name=n", "-c", "user.email=n@example.invalid"]);
            assert!(command.args(arguments).status().unwrap().success(), "{arguments:?}");
        };
        git(&["init", "--quiet"]);
        git(&["add", "--all"]);
        git(&["commit", "--quiet", "--message", "first"]);
        Project::open(&work, &|_| {}).unwrap()
    }

    #[test]
    fn links_in_a_commit_do_not_lead_out_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let project = project(&folder.path().canonicalize().unwrap());
        let git = project.git.as_ref().unwrap();
        let blobs = Blobs::open(git).unwrap();
        let commit = git.resolve("HEAD").unwrap().unwrap();
        let tree = Tree::at(&project, commit, &blobs).unwrap();
        let read = |name: &str| tree.read(&project.root.join(name));
        assert_eq!(read("file").unwrap().as_deref(), Some(&b"content"[..]));
        // As in Git, the content of a link is the path that it names.
        assert_eq!(read("outside").unwrap().as_deref(), Some(&b"../secret"[..]));
        let absolute = read("absolute").unwrap().unwrap();
        assert!(absolute.starts_with(b"/") && absolute.ends_with(b"/secret"));
    }

    #[test]
    fn an_object_of_the_cache_that_is_a_link_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let project = project(&root);
        let digest = crate::model::Digest::of_file([7; 16]);
        let text = format!("outs:\n- md5: {digest}\n  size: 6\n  hash: md5\n  path: data\n");
        std::fs::write(project.root.join("data.dvc"), text).unwrap();
        let object = project.cache.path(&digest);
        std::fs::create_dir_all(object.parent().unwrap()).unwrap();
        symlink(root.join("secret"), &object).unwrap();
        let read = || Tree::workspace(&project).unwrap().read(&project.root.join("data"));
        assert!(read().is_err() || read().unwrap().is_none());
        std::fs::remove_file(&object).unwrap();
        std::fs::write(&object, "cached").unwrap();
        assert_eq!(read().unwrap().as_deref(), Some(&b"cached"[..]));
    }

    #[test]
    fn a_request_reads_no_large_files() {
        let folder = tempfile::tempdir().unwrap();
        let mut project = project(&folder.path().canonicalize().unwrap());
        std::fs::write(project.root.join("large.csv"), vec![b'1'; (4 << 20) + 1]).unwrap();
        let read = |project: &Project| Tree::workspace(project).unwrap().read(&project.root.join("large.csv")).is_ok();
        assert!(read(&project));
        let (allowance, _stop) = crate::allowance::Allowance::of_request();
        project.allowance = allowance;
        assert!(!read(&project) && Tree::workspace(&project).unwrap().read(&project.root.join("file")).is_ok());
    }
}
