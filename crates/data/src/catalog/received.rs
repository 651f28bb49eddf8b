//! Metrics, parameters and plots that only DVC tracks: a repository without a work tree has no cache on this machine, so they are received from
//! its remote into the temporary cache of the request before a report reads them.

use std::collections::BTreeMap;

use super::opened::Opened;
use crate::error::DataError;
use crate::model::{Digest, HashName};
use crate::reports::definitions::Definitions;
use crate::revision::resolve;
use crate::scm::Blobs;
use crate::stage::{Output, OutputKind};
use crate::tree::Tree;

/// Maximum bytes of such a file; larger ones are reported as missing.
const MAX_BYTES: u64 = 4 << 20;
/// Maximum number of files that are received for one report.
const MAX_FILES: usize = 100;

impl Opened {
    /// Receives the metrics, parameters and plots of these revisions that the temporary cache lacks. Returns why some could not be received.
    ///
    /// # Errors
    /// If a revision does not exist.
    pub(super) fn receive_reports(&self, revisions: &[String]) -> Result<Vec<String>, DataError> {
        if !self.has_temporary_cache() {
            return Ok(Vec::new());
        }
        let blobs = Blobs::open(&self.git)?;
        let mut outputs: BTreeMap<(u8, Digest), Output> = BTreeMap::new();
        for revision in revisions {
            // What cannot be read is reported by the report itself.
            let Ok(tree) = Tree::at(&self.project, resolve(&self.git, revision)?, &blobs) else { continue };
            let Ok(definitions) = Definitions::read(&tree) else { continue };
            let top = definitions.top_level_files();
            for out in tree.stages().iter().flat_map(|stage| &stage.outs) {
                let is_named = out.path.as_ref().is_some_and(|path| top.iter().any(|file| file.starts_with(path)));
                if let (Some(digest), true) = (out.digest, is_named || out.kind != OutputKind::Data) {
                    outputs.insert((out.hash as u8, digest), out.clone());
                }
            }
        }
        let (mut failures, mut received) = (Vec::new(), 0);
        for out in outputs.values() {
            if let Err(error) = self.receive_output(out, &mut received) {
                failures.push(format!("{}: {error}", out.written));
            }
        }
        Ok(failures)
    }

    /// Receives the files of an output that are small enough, and counts them.
    fn receive_output(&self, out: &Output, received: &mut usize) -> Result<(), DataError> {
        let Some(digest) = out.digest else { return Ok(()) };
        let manifest = self.manifest(out, &digest)?;
        let cache = self.project.cache_of(out.hash);
        if digest.is_dir && out.hash == HashName::Md5 {
            cache.put_manifest(&manifest)?;
        }
        for entry in &manifest.entries {
            if cache.contains(&entry.digest)? {
                continue;
            }
            if *received == MAX_FILES {
                return Err(DataError::Limit(format!("a report reads at most {MAX_FILES} files that only DVC tracks")));
            }
            *received += 1;
            let (bytes, is_complete) = self.object(out, &entry.digest, MAX_BYTES)?;
            if !is_complete {
                return Err(DataError::Limit("a file of a report has more than 4 MiB".into()));
            }
            cache.put(&entry.digest, &bytes)?;
        }
        Ok(())
    }
}
