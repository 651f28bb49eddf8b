//! Copies this program into the pod of a step, so that it runs in any image: with its shared libraries and their loader, because an image
//! can have others, or none.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Name of the copied loader.
const LOADER: &str = "ld.so";

/// The words that start the program in a pod, copied to `folder` by [`install`] of the same version.
///
/// # Errors
/// What this process has loaded cannot be found out.
pub fn command(folder: &str) -> std::io::Result<Vec<String>> {
    let program = format!("{folder}/bin/slipway");
    if loaded_libraries()?.iter().any(|library| is_loader(library)) {
        let lib = format!("{folder}/lib");
        return Ok(vec![format!("{lib}/{LOADER}"), "--library-path".into(), lib, program]);
    }
    Ok(vec![program])
}

/// Copies this program, and the shared libraries that it has loaded.
///
/// # Errors
/// A file cannot be copied.
pub fn install(folder: &Path) -> std::io::Result<()> {
    for name in ["bin", "lib"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    copy(&std::env::current_exe()?, &folder.join("bin/slipway"))?;
    for library in loaded_libraries()? {
        let name = if is_loader(&library) { LOADER.to_owned() } else { soname(&library) };
        copy(&library, &folder.join("lib").join(name))?;
    }
    Ok(())
}

/// Copies an executable file, so that every user can execute it and none can change it.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::copy(from, to)?;
    std::fs::set_permissions(to, PermissionsExt::from_mode(0o555))
}

/// The shared libraries in this process, among them the loader of a program that is not linked statically.
fn loaded_libraries() -> std::io::Result<BTreeSet<PathBuf>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    let is_library = |path: &&str| {
        let name = path.rsplit('/').next().unwrap_or_default();
        name.ends_with(".so") || name.contains(".so.")
    };
    Ok(paths.filter(is_library).map(PathBuf::from).collect())
}

/// Whether a file is the loader: that of the system, or in a pod the copied one.
fn is_loader(library: &Path) -> bool {
    library.file_name().is_some_and(|name| name == LOADER || name.to_string_lossy().starts_with("ld-"))
}

/// The name under which programs look for a library: that of its file without the minor version.
fn soname(library: &Path) -> String {
    let name = library.file_name().unwrap_or_default().to_string_lossy();
    match name.split_once(".so.") {
        Some((stem, version)) => format!("{stem}.so.{}", version.split('.').next().unwrap_or_default()),
        None => name.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_program_runs_with_its_own_libraries() {
        let folder = tempfile::tempdir().unwrap();
        install(folder.path()).unwrap();
        let words = command(folder.path().to_str().unwrap()).unwrap();
        // This test program lists its tests, without the libraries of this machine.
        let mut copied = std::process::Command::new(&words[0]);
        let output = copied.args(&words[1..]).args(["--list", "installed_program"]).env_clear().output().unwrap();
        assert!(output.status.success() && output.stdout.starts_with(b"step::install"), "{output:?}");
        assert_eq!(soname(Path::new("/usr/lib/libstdc++.so.6.0.30")), "libstdc++.so.6");
        // A worker starts the copied program again.
        assert!(is_loader(Path::new("/slipway-step/lib/ld.so")) && !is_loader(Path::new("/lib/libc.so.6")));
    }
}
