//! Commits of the work tree that change neither it nor the index.

use std::path::{Path, PathBuf};

use super::{Git, split_nul};
use crate::error::DataError;

/// A copy of the index in a file of its own, which is deleted at the end.
#[derive(Debug)]
pub struct Index<'a> {
    git: &'a Git,
    file: PathBuf,
}

impl<'a> Index<'a> {
    /// Copies the index into the file `file`.
    ///
    /// # Errors
    /// If the index cannot be copied.
    pub fn copy(git: &'a Git, file: PathBuf) -> Result<Self, DataError> {
        let output = git.run(&["rev-parse", "--path-format=absolute", "--git-path", "index"])?;
        let source = PathBuf::from(String::from_utf8_lossy(&output).trim_end_matches('\n').to_owned());
        match copy_with_time(&source, &file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DataError::io(&source)(error)),
            _ => Ok(Self { git, file }),
        }
    }

    /// An index without files, in the file `file`, which does not exist yet.
    pub fn empty(git: &'a Git, file: PathBuf) -> Self {
        Self { git, file }
    }

    fn run(&self, arguments: &[&str]) -> Result<Vec<u8>, DataError> {
        let mut command = self.git.command();
        let output = command.env("GIT_INDEX_FILE", &self.file).args(arguments).stdin(std::process::Stdio::null());
        super::checked(output.output().map_err(super::start_error)?)
    }

    /// Records the present content of the files that Git tracks.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn update(&self) -> Result<(), DataError> {
        self.run(&["add", "--update", ":/"]).map(drop)
    }

    /// Adds files, also those that Git ignores.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn add(&self, paths: &[PathBuf]) -> Result<(), DataError> {
        for chunk in paths.chunks(1000) {
            let names: Vec<_> = chunk.iter().map(|path| path.to_string_lossy()).collect();
            let mut arguments = vec!["--literal-pathspecs", "add", "--force", "--"];
            arguments.extend(names.iter().map(AsRef::as_ref));
            self.run(&arguments)?;
        }
        Ok(())
    }

    /// Gives a file a content that the work tree does not have.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn set(&self, path: &Path, content: &[u8]) -> Result<(), DataError> {
        let relative = path.strip_prefix(self.git.root()).unwrap_or(path).to_string_lossy().into_owned();
        let hash = ["hash-object", "-w", "--stdin", "--path", &relative];
        let id = String::from_utf8_lossy(&self.git.run_with_input(&hash, content.to_vec())?).trim().to_owned();
        let mode = if std::fs::metadata(path).is_ok_and(|file| is_executable(&file)) { "100755" } else { "100644" };
        self.run(&["update-index", "--add", "--cacheinfo", &format!("{mode},{id},{relative}")]).map(drop)
    }

    /// Makes it that of a commit. Entries that do not change keep the known state of their file.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn read(&self, commit: &str) -> Result<(), DataError> {
        self.run(&["read-tree", "--reset", commit]).map(drop)
    }

    /// Writes its files into the work tree, where they differ. No file is deleted.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn check_out(&self) -> Result<(), DataError> {
        // Files that were only touched are not written again.
        let _ = self.run(&["update-index", "--refresh", "-q"]);
        self.run(&["checkout-index", "--all", "--force", "--quiet", "--index"]).map(drop)
    }

    /// Stores a commit of it.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn commit(&self, parents: &[&str], message: &str) -> Result<String, DataError> {
        let tree = String::from_utf8_lossy(&self.run(&["write-tree"])?).trim().to_owned();
        let mut arguments = vec!["commit-tree", &tree];
        parents.iter().for_each(|parent| arguments.extend(["-p", parent]));
        let id = self.git.run_with_input(&arguments, message.as_bytes().to_vec())?;
        Ok(String::from_utf8_lossy(&id).trim().to_owned())
    }
}

fn is_executable(file: &std::fs::Metadata) -> bool {
    std::os::unix::fs::PermissionsExt::mode(&file.permissions()) & 0o111 != 0
}

/// Copies an index with its modification time. By it, Git finds out which files may have been changed just after they were added, so that their
/// recorded times and sizes say nothing.
fn copy_with_time(source: &Path, target: &Path) -> std::io::Result<()> {
    let time = std::fs::metadata(source)?.modified()?;
    std::fs::copy(source, target)?;
    std::fs::File::options().write(true).open(target)?.set_modified(time)
}

impl Drop for Index<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file); // A copy in the folder of temporary files does no harm.
    }
}

impl Git {
    /// The files (absolute paths) that Git neither tracks nor ignores.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn untracked(&self) -> Result<Vec<PathBuf>, DataError> {
        let output = self.run(&["ls-files", "--others", "--exclude-standard", "-z"])?;
        Ok(split_nul(&output).map(|path| self.root().join(Path::new(path))).collect())
    }

    /// Whether tracked files differ from the last commit.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn has_changes(&self) -> Result<bool, DataError> {
        Ok(!self.run(&["status", "--porcelain", "--untracked-files=no"])?.is_empty())
    }

    /// Whether two commits have the same files.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn have_same_files(&self, a: &str, b: &str) -> Result<bool, DataError> {
        let tree = |commit: &str| self.run(&["rev-parse", "--verify", "--quiet", &format!("{commit}^{{tree}}")]);
        Ok(tree(a)? == tree(b)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_an_index_has_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("index"), folder.path().join("copy"));
        std::fs::write(&source, "index").unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        std::fs::File::options().write(true).open(&source).unwrap().set_modified(time).unwrap();
        copy_with_time(&source, &target).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"index");
        assert_eq!(std::fs::metadata(&target).unwrap().modified().unwrap(), time);
    }
}
