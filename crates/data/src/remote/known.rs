//! The objects that a remote had when it was last asked, for `data status --no-remote-refresh`: a list of their paths in `.dvc/tmp`, one file for
//! each remote.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use md5::{Digest as _, Md5};

use super::{Remote, path_of};
use crate::error::DataError;
use crate::model::{Digest, HashName};

/// The folder in `.dvc/tmp`.
const FOLDER: &str = "slipway-remotes";
/// Maximum bytes read of the file; about five million objects.
const MAX_BYTES: u64 = 256 << 20;

impl Remote {
    /// Those of the objects that this remote is known to have; none if it was never asked.
    pub(crate) fn known(&self, tmp: &Path, objects: &[(HashName, Digest)]) -> HashSet<(HashName, Digest)> {
        let known = read(&file(tmp, &self.url));
        objects.iter().filter(|object| known.contains(&path_of(object))).copied().collect()
    }

    /// Records which of the objects `asked` this remote has.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn set_known(
        &self,
        tmp: &Path,
        asked: &[(HashName, Digest)],
        existing: &HashSet<(HashName, Digest)>,
    ) -> Result<(), DataError> {
        let file = file(tmp, &self.url);
        let mut known = read(&file);
        for object in asked {
            let path = path_of(object);
            if existing.contains(object) {
                known.insert(path)
            } else {
                known.remove(&path)
            };
        }
        let mut paths: Vec<String> = known.into_iter().collect();
        paths.sort_unstable();
        slipway_core::files::replace(&file, paths.join("\n").as_bytes()).map_err(DataError::io(&file))
    }
}

/// Forgets what remotes have, as DVC does once a push or a fetch has transferred something.
///
/// # Errors
/// If the folder cannot be removed.
pub(crate) fn forget(tmp: &Path) -> Result<(), DataError> {
    let folder = tmp.join(FOLDER);
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DataError::io(&folder)(error)),
        _ => Ok(()),
    }
}

fn file(tmp: &Path, url: &str) -> PathBuf {
    let name = Digest::of_file(Md5::digest(url).into());
    tmp.join(FOLDER).join(name.to_string())
}

fn read(file: &Path) -> HashSet<String> {
    let is_small = std::fs::metadata(file).is_ok_and(|metadata| metadata.len() <= MAX_BYTES);
    let text = if is_small { std::fs::read_to_string(file).unwrap_or_default() } else { String::new() };
    text.lines().map(str::to_owned).collect()
}
