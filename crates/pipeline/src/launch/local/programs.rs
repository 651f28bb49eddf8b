//! Programs of this machine, found in `PATH`.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// All programs with a name in this process's `PATH`, in order.
pub(super) fn all(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).filter(|file| is_executable(file)).collect()
}

/// The first program with a name in this process's `PATH`.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    all(name).into_iter().next()
}

/// Whether a program exists: a path relative to `folder`, or a name in `path`.
pub(super) fn exists(program: &str, path: &OsStr, folder: &Path) -> bool {
    if program.contains('/') {
        return is_executable(&folder.join(program));
    }
    std::env::split_paths(path).any(|folder| is_executable(&folder.join(program)))
}

fn is_executable(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
