//! The folder of a demo. It contains programs that the demo executes: the Python environment and the training code.
//!
//! By default the folder is below the current folder, and a cloned project may contain a folder of that name with malicious programs.
//! Therefore a folder is used only if it is new or empty, or if an earlier demo of this user created it. The proof is a random id that is
//! written both to the folder and, together with the path, to the user's state folder.

use std::fs::{DirBuilder, Metadata, Permissions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use slipway_core::home::Home;
use slipway_core::{files, ids};

/// The file in a demo folder that contains its id.
const MARKER: &str = ".slipway-demo";
/// The subfolder of the state folder with one file per demo: the file name is the id, the content is the path of the demo folder.
const RECORDS: &str = "demos";

/// Creates the folder of a demo, or reopens the folder of an earlier demo. Returns its absolute path.
///
/// # Errors
/// An I/O error, or [`ErrorKind::PermissionDenied`] for a folder that other users can write to or that no demo of this user created.
pub(super) fn open(dir: &Path, state: &Home) -> Result<PathBuf> {
    private_folder().create(dir)?;
    let dir = dir.canonicalize()?;
    if std::fs::read_dir(&dir)?.next().is_none() {
        require_own(&dir, &std::fs::metadata(&dir)?)?;
        std::fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
        mark(&dir, state)?;
        return Ok(dir);
    }
    let metadata = std::fs::metadata(&dir)?;
    require_own(&dir, &metadata)?;
    if metadata.mode() & 0o022 != 0 {
        return Err(refused(&dir, "other users can write to it"));
    }
    if !is_marked(&dir, state) {
        return Err(refused(&dir, "it was not created by a demo of yours, and the programs in it would be executed"));
    }
    Ok(dir)
}

/// A builder that creates folders, including missing parents, with mode 0700.
fn private_folder() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
}

fn refused(dir: &Path, why: &str) -> Error {
    let text = format!("{} is not used: {why}; remove it, or name a new folder with --dir", dir.display());
    Error::new(ErrorKind::PermissionDenied, text)
}

fn require_own(dir: &Path, metadata: &Metadata) -> Result<()> {
    if metadata.uid() == rustix::process::geteuid().as_raw() {
        Ok(())
    } else {
        Err(refused(dir, "it belongs to another user"))
    }
}

/// Writes a new id to the demo folder and to the state folder.
fn mark(dir: &Path, state: &Home) -> Result<()> {
    let id = ids::hex32();
    let records = state.root().join(RECORDS);
    private_folder().create(&records)?;
    files::replace_as(&records.join(&id), dir.as_os_str().as_encoded_bytes(), 0o600)?;
    files::replace_as(&dir.join(MARKER), id.as_bytes(), 0o600)
}

/// Whether the folder contains the id of a demo that was created at this path.
fn is_marked(dir: &Path, state: &Home) -> bool {
    let id = files::read(&dir.join(MARKER)).ok().and_then(|id| String::from_utf8(id).ok());
    // The id becomes a file name in the state folder, so it must not contain path separators.
    let id = id.filter(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()));
    let recorded = id.and_then(|id| files::read(&state.root().join(RECORDS).join(id)).ok());
    recorded.is_some_and(|path| path == dir.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let folder = std::env::temp_dir().join(format!("slipway-demo-{}", ids::hex32()));
            private_folder().create(&folder).unwrap();
            Self(folder)
        }
        fn state(&self) -> Home {
            Home::at(self.0.join("state"))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0); // A leftover folder in /tmp must not fail the test.
        }
    }

    #[test]
    fn folder_from_a_cloned_repository_is_refused() {
        let here = Folder::new();
        let dir = here.0.join("clone/.slipway-demo");
        std::fs::create_dir_all(dir.join("venv/bin")).unwrap();
        std::fs::write(dir.join("venv/bin/python"), "#!/bin/sh\ntouch /tmp/pwned\n").unwrap();
        for marker in [None, Some("0123456789abcdef0123456789abcdef"), Some("../../../../etc/passwd"), Some("")] {
            if let Some(marker) = marker {
                std::fs::write(dir.join(MARKER), marker).unwrap();
            }
            let error = open(&dir, &here.state()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{marker:?}");
            assert!(error.to_string().contains("--dir"), "{error}");
        }
    }

    #[test]
    fn folder_of_an_earlier_demo_is_reused_only_at_its_path() {
        let here = Folder::new();
        let dir = here.0.join("a/demo");
        let opened = open(&dir, &here.state()).unwrap();
        assert_eq!(std::fs::metadata(&opened).unwrap().mode() & 0o777, 0o700);
        assert_eq!(open(&dir, &here.state()).unwrap(), opened);
        std::os::unix::fs::symlink(&dir, here.0.join("link")).unwrap();
        assert_eq!(open(&here.0.join("link"), &here.state()).unwrap(), opened);

        let copy = here.0.join("copy");
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(dir.join(MARKER), copy.join(MARKER)).unwrap();
        assert!(open(&copy, &here.state()).is_err(), "a copied id is not valid at another path");
        assert!(open(&dir, &Home::at(here.0.join("other"))).is_err(), "the id is not recorded in another state folder");

        std::fs::set_permissions(&dir, Permissions::from_mode(0o770)).unwrap();
        assert!(open(&dir, &here.state()).is_err(), "other users may have changed its contents");
    }
}
