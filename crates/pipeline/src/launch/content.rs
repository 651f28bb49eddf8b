//! The content of output artifacts: its digest, its protection against later changes, and reading it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::Stream;
use ring::digest::{Context, SHA256};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use slipway_core::hex;
use tokio::io::AsyncReadExt;

use crate::error::Error;
use crate::model::Artifact;

/// Maximum files of a folder whose digest is computed.
const MAX_FILES: usize = 10_000;
/// Maximum bytes of a piece of an artifact that is read.
const PIECE_BYTES: usize = 1 << 16;

/// Computes the digest of a file or folder, and makes its files read-only, because they are the inputs of other tasks. `None` if it does
/// not exist, is larger than `limit` bytes, or cannot be read. The digest of a folder is over the paths, sizes and contents of its files.
pub(crate) fn seal(path: &Path, limit: u64) -> Option<String> {
    let files = files(path).ok()?;
    let is_folder = path.is_dir();
    let mut digest = Context::new(&SHA256);
    let mut total = 0;
    for file in &files {
        let mut opened = File::open(file).ok()?;
        let metadata = opened.metadata().ok()?;
        make_read_only(&opened, &metadata);
        total += metadata.len();
        if total > limit {
            return None;
        }
        if is_folder {
            digest.update(file.strip_prefix(path).ok()?.as_os_str().as_encoded_bytes());
            digest.update(&[0]);
            digest.update(&metadata.len().to_le_bytes());
        }
        let mut buffer = vec![0; 1 << 16];
        loop {
            match opened.read(&mut buffer).ok()? {
                0 => break,
                read => digest.update(&buffer[..read]),
            }
        }
    }
    Some(format!("sha256:{}", hex::encode(digest.finish().as_ref())))
}

/// Makes the files of a file or folder read-only.
pub(crate) fn protect(path: &Path) {
    for file in files(path).unwrap_or_default() {
        if let Ok((opened, metadata)) = File::open(file).and_then(|file| file.metadata().map(|found| (file, found))) {
            make_read_only(&opened, &metadata);
        }
    }
}

/// Copies a file or folder to a place that tasks share and may write to, unless there is something already.
///
/// # Errors
/// The reason.
pub(crate) async fn copy_for_tasks(source: PathBuf, target: PathBuf) -> Result<(), String> {
    let copied = tokio::task::spawn_blocking(move || {
        let folder = target.parent().ok_or_else(|| std::io::Error::other("the place has no folder"))?;
        std::fs::create_dir_all(folder)?;
        let temporary = folder.join(format!(".{}", slipway_core::ids::hex32()));
        let moved = copy(&source, &temporary)
            .and_then(|()| Ok(renameat_with(CWD, &temporary, CWD, &target, RenameFlags::NOREPLACE)?));
        let Err(error) = moved else { return Ok(()) };
        // Best effort: what remains needs space until the run is deleted.
        let _ = std::fs::remove_dir_all(&temporary).or_else(|_| std::fs::remove_file(&temporary));
        // Another task was faster.
        if error.kind() == ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
    });
    copied.await.map_err(|error| error.to_string())?.map_err(|error| format!("copying it: {error}"))
}

fn copy(source: &Path, target: &Path) -> std::io::Result<()> {
    for file in files(source)? {
        let relative = file.strip_prefix(source).map_err(std::io::Error::other)?;
        // Joined to an empty path, the target would end with a slash.
        let place = if relative.as_os_str().is_empty() { target.to_owned() } else { target.join(relative) };
        if let Some(folder) = place.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // Not with the permissions of the source, which is read-only.
        std::io::copy(&mut File::open(&file)?, &mut File::create_new(&place)?)?;
    }
    Ok(())
}

fn make_read_only(file: &File, metadata: &std::fs::Metadata) {
    // Best effort: a file of another user is protected from this one already.
    let _ = file.set_permissions(PermissionsExt::from_mode(metadata.permissions().mode() & !0o222));
}

/// The files of a file or folder, in order.
///
/// # Errors
/// It does not exist, cannot be read, or has too many files.
pub(crate) fn files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    collect(path, &mut files)?;
    files.sort();
    Ok(files)
}

/// Collects the files under a path. Symbolic links in a folder are left out.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let metadata = if files.is_empty() { path.metadata() } else { path.symlink_metadata() }?;
    if metadata.is_file() {
        files.push(path.to_owned());
    } else if metadata.is_dir() {
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if !entry.file_type()?.is_symlink() {
                collect(&entry.path(), files)?;
            }
        }
    }
    if files.len() > MAX_FILES {
        return Err(std::io::Error::other(format!("it has more than {MAX_FILES} files; pack them into one")));
    }
    Ok(())
}

/// The path of an artifact in the folder of artifacts; `None` for one that is elsewhere. Links are followed before the comparison, so that
/// none leads out of the folder.
fn place(artifacts: &Path, artifact: &Artifact) -> Option<PathBuf> {
    let path = Path::new(&artifact.uri).canonicalize().ok()?;
    path.starts_with(artifacts.canonicalize().ok()?).then_some(path)
}

/// Whether the content of an artifact still exists. One without a digest never had any, or is elsewhere.
pub(crate) fn is_there(artifacts: &Path, artifact: &Artifact) -> bool {
    artifact.digest.is_none() || place(artifacts, artifact).is_some()
}

/// Opens the file of an artifact.
pub(crate) fn open(artifacts: &Path, artifact: &Artifact) -> Result<File, Error> {
    let missing = || Error::NotFound(format!("artifact {} has no file on this machine", artifact.id));
    let path = place(artifacts, artifact).filter(|path| path.is_file()).ok_or_else(missing)?;
    File::open(path).map_err(|source| Error::Io { what: format!("reading artifact {}", artifact.id), source })
}

/// The content of a file, in pieces.
pub(crate) fn pieces(file: tokio::fs::File) -> impl Stream<Item = Result<Bytes, Error>> + Send {
    futures_util::stream::try_unfold(file, async |mut file| {
        let mut piece = vec![0; PIECE_BYTES];
        let read = file.read(&mut piece).await;
        let read = read.map_err(|source| Error::Io { what: "reading an artifact".into(), source })?;
        piece.truncate(read);
        Ok((read > 0).then(|| (Bytes::from(piece), file)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_depend_on_content_and_names_only() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for (folder, file, text) in [("a", "x", "1"), ("b", "x", "1"), ("c", "y", "1"), ("d", "x", "2")] {
            std::fs::create_dir_all(at(folder)).unwrap();
            std::fs::write(at(folder).join(file), text).unwrap();
        }
        let digest = |path: &str| seal(&at(path), 100).unwrap();
        assert!(digest("a") == digest("b") && digest("a") != digest("c") && digest("a") != digest("d"));
        assert_eq!(digest("a/x"), "sha256:6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b");
        assert!(std::fs::metadata(at("a/x")).unwrap().permissions().readonly());
        assert!(seal(&at("a"), 0).is_none() && seal(&at("none"), 100).is_none());
    }
}
