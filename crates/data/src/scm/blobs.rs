//! Single objects of commits.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::{Mutex, PoisonError};

use super::{Git, MAX_BLOB_BYTES};
use crate::error::DataError;

/// An object of a commit.
#[derive(Debug)]
pub enum Object {
    /// The content of a file.
    Blob(Vec<u8>),
    /// A folder.
    Tree,
}

/// Reads single objects of commits through one `git cat-file` process.
#[derive(Debug)]
pub struct Blobs {
    root: PathBuf,
    child: Mutex<(Child, ChildStdin, BufReader<ChildStdout>)>,
}

impl Blobs {
    /// Starts the process.
    ///
    /// # Errors
    /// If git cannot be run.
    pub fn open(git: &Git) -> Result<Self, DataError> {
        let (child, stdin, stdout) = git.cat_file()?;
        Ok(Self { root: git.root.clone(), child: Mutex::new((child, stdin, BufReader::new(stdout))) })
    }

    /// What a commit has at a path (absolute); `None` if there is nothing.
    ///
    /// # Errors
    /// If the object is too large, or git stops.
    pub fn get(&self, commit: &str, path: &Path) -> Result<Option<Object>, DataError> {
        let Some(relative) = path.strip_prefix(&self.root).ok().and_then(Path::to_str) else { return Ok(None) };
        if relative.contains('\n') {
            return Ok(None); // The protocol has one name per line.
        }
        let failed = |error: std::io::Error| DataError::Git(format!("git cat-file stopped: {error}"));
        let mut guard = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, stdin, stdout) = &mut *guard;
        stdin.write_all(format!("{commit}:{relative}\n").as_bytes()).and_then(|()| stdin.flush()).map_err(failed)?;
        let mut head = String::new();
        stdout.read_line(&mut head).map_err(failed)?;
        let mut words = head.trim_end().rsplit(' ');
        let (size, kind) = (words.next().and_then(|size| size.parse::<u64>().ok()), words.next());
        let (Some(size), Some(kind)) = (size, kind) else { return Ok(None) };
        let mut content = Vec::new();
        let limit = MAX_BLOB_BYTES as u64;
        stdout.take(size.min(limit)).read_to_end(&mut content).map_err(failed)?;
        // The rest is skipped, so that the next object can be read.
        std::io::copy(&mut stdout.take(size.saturating_sub(limit) + 1), &mut std::io::sink()).map_err(failed)?;
        match kind {
            "blob" if size > limit => Err(DataError::Git(format!("{relative} in {commit} is larger than 64 MiB"))),
            "blob" => Ok(Some(Object::Blob(content))),
            "tree" => Ok(Some(Object::Tree)),
            _ => Ok(None),
        }
    }
}

impl Drop for Blobs {
    fn drop(&mut self) {
        let (child, ..) = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        // It holds nothing that needs to be finished.
        let _ = child.kill();
        let _ = child.wait();
    }
}
