//! `doctor` and `version`: facts about the machine and the project for reports of problems, in DVC's form.

use std::path::{Path, PathBuf};

use crate::config::{Files, Level};
use crate::error::DataError;
use crate::project::{DVC_DIR, cache_dir, find_root};
use crate::scm::Git;

/// The version of DVC whose behaviour and files are those of this crate.
pub const DVC_VERSION: &str = "3.67.1";
/// The kinds of URLs that are supported.
const SCHEMES: &[&str] = &["local", "http", "https", "s3"];

/// The report as text. `version` is that of the program.
///
/// # Errors
/// If the configuration of the project cannot be read.
pub fn about(version: &str, current: &Path) -> Result<String, DataError> {
    let title = format!("slipway version: {version} (as DVC {DVC_VERSION})");
    let files = Files::new(None);
    let folder = |level| files.path(level).and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default();
    let mut lines = vec![
        title.clone(),
        "-".repeat(title.len()),
        format!("Platform: {}-{}-{}", std::env::consts::OS, kernel(), std::env::consts::ARCH),
        format!("Supports:\n\t{}", SCHEMES.join(",\n\t")),
        format!(
            "Config:\n\tGlobal: {}\n\tSystem: {}",
            folder(Level::Global).display(),
            folder(Level::System).display()
        ),
    ];
    if let Ok(root) = find_root(current) {
        lines.extend(about_project(&root)?);
    }
    Ok(lines.join("\n"))
}

fn about_project(root: &Path) -> Result<Vec<String>, DataError> {
    let dvc_dir = root.join(DVC_DIR);
    let config = Files::new(Some(dvc_dir.clone())).load()?;
    let cache = cache_dir(&config, &dvc_dir).join("files/md5");
    let mut lines = Vec::new();
    if cache.is_dir() {
        lines.push(format!("Cache types: {}", link_types(&cache, root)?.join(", ")));
        lines.push(format!("Cache directory: {}", file_system(&cache)));
    } else {
        lines.push("Cache types: not known, because there is no cache yet".into());
    }
    lines.push("Caches: local".into());
    let scheme = |name: &String| {
        let url = config.remote(name).and_then(|options| options.get("url").cloned()).unwrap_or_default();
        url.split_once("://").map_or_else(|| "local".to_owned(), |(scheme, _)| scheme.to_owned())
    };
    let remotes: Vec<String> = config.remotes().iter().map(scheme).collect();
    lines.push(format!("Remotes: {}", if remotes.is_empty() { "None".to_owned() } else { remotes.join(", ") }));
    lines.push(format!("Workspace directory: {}", file_system(root)));
    let repository = match Git::find(root, true) {
        _ if config.is_true("core", "no_scm") => "dvc (no_scm)",
        Some(git) if git.root() != root => "dvc (subdir), git",
        Some(_) => "dvc, git",
        None => "dvc, git (broken)",
    };
    lines.push(format!("Repo: {repository}"));
    Ok(lines)
}

/// The links that work from the cache to the workspace.
fn link_types(cache: &Path, root: &Path) -> Result<Vec<&'static str>, DataError> {
    let source = tempfile::NamedTempFile::new_in(cache).map_err(DataError::io(cache))?;
    let tmp = root.join(DVC_DIR).join("tmp");
    std::fs::create_dir_all(&tmp).map_err(DataError::io(&tmp))?;
    let target = tempfile::tempdir_in(&tmp).map_err(DataError::io(&tmp))?;
    let reflink = || {
        let copy = std::fs::File::create(target.path().join("reflink"))?;
        rustix::fs::ioctl_ficlone(&copy, source.as_file()).map_err(std::io::Error::from)
    };
    let mut found = Vec::new();
    found.extend(reflink().is_ok().then_some("reflink"));
    found.extend(std::fs::hard_link(source.path(), target.path().join("hardlink")).is_ok().then_some("hardlink"));
    let symlink = std::os::unix::fs::symlink(source.path(), target.path().join("symlink"));
    found.extend(symlink.is_ok().then_some("symlink"));
    Ok(found)
}

/// The release of the kernel.
fn kernel() -> String {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if release.is_empty() { "unknown".into() } else { release }
}

/// The type of the file system at a path, and its device.
fn file_system(path: &Path) -> String {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let (head, tail) = line.split_once(" - ")?;
        let point = PathBuf::from(head.split(' ').nth(4)?.replace("\\040", " "));
        let mut words = tail.split(' ');
        let (kind, device) = (words.next()?, words.next()?);
        path.starts_with(&point).then(|| (point.components().count(), format!("{kind} on {device}")))
    };
    // Of mounts at the same place, the last one is visible.
    mounts.lines().filter_map(mount).max_by_key(|(depth, _)| *depth).map_or_else(|| "unknown".into(), |(_, text)| text)
}
