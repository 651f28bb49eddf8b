//! The files of a commit, for repositories that are read without a checkout.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};

use super::{Git, split_nul};
use crate::error::DataError;

/// Maximum bytes of a line before the content of an object.
const MAX_HEAD_BYTES: u64 = 1024;

/// A file in a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// The id of its content.
    pub id: String,
    /// Bytes of the content.
    pub size: u64,
    /// Whether it is executable.
    pub is_exec: bool,
}

impl Git {
    /// All files of a commit by their path, except symbolic links and submodules.
    ///
    /// # Errors
    /// If there is no such commit, or its output is not understood.
    pub fn blobs(&self, commit: &str) -> Result<BTreeMap<String, Blob>, DataError> {
        let output = self.run(&["ls-tree", "-r", "-l", "-z", "--full-tree", commit])?;
        let mut files = BTreeMap::new();
        for line in split_nul(&output) {
            let Some((head, path)) = line.to_str().and_then(|line| line.split_once('\t')) else {
                return Err(DataError::Git(format!(
                    "a path in commit {commit} is not valid UTF-8: {}",
                    line.display()
                )));
            };
            let words: Vec<&str> = head.split_whitespace().collect();
            if let [mode @ ("100644" | "100755"), "blob", id, size] = words.as_slice() {
                let size = size.parse().map_err(|_| DataError::Git(format!("'{head}' is not an entry of a tree")))?;
                // Git does not check the names in what it fetches.
                if path.split('/').any(|name| matches!(name, "" | "." | ".." | ".git")) {
                    return Err(DataError::Git(format!("commit {commit} has a file with the invalid path '{path}'")));
                }
                files.insert(path.to_owned(), Blob { id: (*id).to_owned(), size, is_exec: *mode == "100755" });
            }
        }
        Ok(files)
    }

    /// Reads the contents of blobs in their order; `each` gets the number of the blob and its content.
    ///
    /// # Errors
    /// If git cannot be run, lacks an object, or `each` fails.
    pub fn read_blobs(
        &self,
        ids: &[&str],
        mut each: impl FnMut(usize, &mut dyn Read) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        if ids.is_empty() {
            return Ok(());
        }
        let (mut child, mut stdin, stdout) = self.cat_file()?;
        let input: String = ids.iter().map(|id| format!("{id}\n")).collect();
        // The input is written by a thread of its own, because git writes while it still reads.
        let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
        let mut output = BufReader::with_capacity(1 << 16, stdout);
        let outcome = ids.iter().enumerate().try_for_each(|(i, id)| {
            let broken = || DataError::Git(format!("git cat-file gave an unexpected output for {id}"));
            let mut head = String::new();
            (&mut output).take(MAX_HEAD_BYTES).read_line(&mut head).map_err(|_| broken())?;
            let size = head.trim_end().rsplit(' ').next().and_then(|size| size.parse().ok()).ok_or_else(broken)?;
            let mut content = (&mut output).take(size);
            each(i, &mut content)?;
            // What was not read is skipped, with the line break after the content.
            let rest = content.limit() + 1;
            let skipped = std::io::copy(&mut (&mut output).take(rest), &mut std::io::sink()).map_err(|_| broken())?;
            if skipped == rest { Ok(()) } else { Err(broken()) }
        });
        // After a failure git still waits for a reader.
        let _ = child.kill();
        let _ = child.wait();
        let _ = writer.join();
        outcome
    }
}
