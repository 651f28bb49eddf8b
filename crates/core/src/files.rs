//! Atomic file replacement that is safe against symbolic links of other users. Used for every file that slipway replaces, also as root.
//!
//! A path is resolved folder by folder, and each folder is opened relative to the one before, so that no other user can replace a part of
//! the path in between. A symbolic link is followed only while no other user could have created it. After the first folder whose entries
//! another user can change, no link is followed: otherwise root, writing below a user's folder, would write wherever the user's link
//! points (CWE-59).

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Maximum number of symbolic links on one path, as in the Linux kernel.
const MAX_LINKS: usize = 40;
/// Flags to open a folder only to resolve names in it; the folder need not be readable.
const FOLDER_FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Replaces a file atomically and keeps its owner and permissions: a reader sees either the old bytes or the new ones. Missing folders are
/// created. If the path is a symbolic link that is followed (see the module), the link stays and the file it points to is replaced.
///
/// # Errors
/// An I/O error, or [`ErrorKind::PermissionDenied`] for a link that is not followed.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    write_and_rename(path, bytes, None)
}

/// Like [`replace`], but sets the permissions to `mode`. The temporary file never has wider permissions.
///
/// # Errors
/// See [`replace`].
pub fn replace_as(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    write_and_rename(path, bytes, Some(mode))
}

/// Reads a regular file, resolving its path as [`replace`] does.
///
/// # Errors
/// See [`replace`]; also [`ErrorKind::InvalidInput`] for a folder, a device or a pipe.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let Location { folder, name } = Location::resolve(path, false)?;
    // Without `NONBLOCK`, opening a pipe would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(&folder, &name, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Removes a file, resolving its path as [`replace`] does.
///
/// # Errors
/// See [`replace`].
pub fn remove(path: &Path) -> Result<()> {
    let Location { folder, name } = Location::resolve(path, false)?;
    Ok(rustix::fs::unlinkat(&folder, &name, AtFlags::empty())?)
}

/// Writes a temporary file beside the target and renames it. Without `mode`, the permissions of the old file are kept.
fn write_and_rename(path: &Path, bytes: &[u8], mode: Option<u32>) -> Result<()> {
    let Location { folder, name } = Location::resolve(path, true)?;
    let mut temporary = OsString::from(".");
    temporary.push(&name);
    temporary.push(".slipway");
    let old = rustix::fs::statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW).ok();
    let mode = mode.or_else(|| old.as_ref().map(|old| old.st_mode & 0o7777));
    let initial_mode = if mode.is_some() { 0o600 } else { 0o666 };
    // Remove the leftover of a killed process, or a link that another user put there; usually neither exists.
    let _ = rustix::fs::unlinkat(&folder, &temporary, AtFlags::empty());
    let written = (|| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&folder, &temporary, flags, Mode::from_raw_mode(initial_mode))?);
        file.write_all(bytes)?;
        let new = rustix::fs::fstat(&file)?;
        if let Some(old) = old.filter(|old| (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid)) {
            std::os::unix::fs::fchown(&file, Some(old.st_uid), Some(old.st_gid))?;
        }
        if let Some(mode) = mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        file.sync_all()?;
        rustix::fs::renameat(&folder, &temporary, &folder, &name)?;
        sync_folder(&folder)
    })();
    if written.is_err() {
        let _ = rustix::fs::unlinkat(&folder, &temporary, AtFlags::empty()); // Best effort: `written` holds the error to report.
    }
    written
}

/// Flushes a folder to disk, so that a rename in it survives a power failure.
fn sync_folder(folder: &OwnedFd) -> Result<()> {
    // A folder that is writable but not readable cannot be opened for `fsync`; then durability depends on the file system.
    let Ok(readable) = rustix::fs::openat(folder, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
        return Ok(());
    };
    match rustix::fs::fsync(&readable) {
        // Some network file systems do not support `fsync` on folders.
        Err(Errno::INVAL) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The result of path resolution: an open folder and the name of an entry in it that is not a symbolic link.
struct Location {
    folder: OwnedFd,
    name: OsString,
}

impl Location {
    /// Resolves the path of a file that need not exist. `create_folders` creates missing folders.
    fn resolve(path: &Path, create_folders: bool) -> Result<Self> {
        let invalid = || Error::new(ErrorKind::InvalidInput, "the path does not name a file");
        // In reverse order, so that `pop` returns the next component.
        let parts = |path: &Path| -> Vec<OsString> {
            path.components().rev().map(|c| c.as_os_str().to_owned()).filter(|c| c != ".").collect()
        };
        let mut remaining = parts(&std::path::absolute(path)?);
        let mut folder = rustix::fs::openat(CWD, "/", FOLDER_FLAGS, Mode::empty())?;
        // Whether no other user could have influenced the resolution so far.
        let mut trusted = true;
        let mut links = 0;
        while let Some(name) = remaining.pop() {
            match Path::new(&name).components().next() {
                Some(Component::RootDir) => {
                    folder = rustix::fs::openat(CWD, "/", FOLDER_FLAGS, Mode::empty())?;
                    continue;
                }
                Some(Component::ParentDir) => {
                    if !trusted {
                        return Err(not_followed(&name));
                    }
                    folder = rustix::fs::openat(&folder, "..", FOLDER_FLAGS, Mode::empty())?;
                    continue;
                }
                _ => {}
            }
            let entry = match rustix::fs::statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => None,
                found => Some(found?),
            };
            if let Some(entry) = &entry {
                trusted = trusted && is_protected(&rustix::fs::fstat(&folder)?, entry);
                if FileType::from_raw_mode(entry.st_mode) == FileType::Symlink {
                    links += 1;
                    if !trusted {
                        return Err(not_followed(&name));
                    }
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let target = rustix::fs::readlinkat(&folder, &name, Vec::new())?;
                    remaining.extend(parts(Path::new(OsStr::from_bytes(target.as_bytes()))));
                    continue;
                }
            }
            if remaining.is_empty() {
                return Ok(Self { folder, name });
            }
            if entry.is_none() {
                if !create_folders {
                    return Err(Errno::NOENT.into());
                }
                match rustix::fs::mkdirat(&folder, &name, Mode::from_raw_mode(0o777)) {
                    // Another process created it in the meantime.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                trusted = trusted
                    && is_protected(
                        &rustix::fs::fstat(&folder)?,
                        &rustix::fs::statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW)?,
                    );
            }
            folder = rustix::fs::openat(&folder, &name, FOLDER_FLAGS, Mode::empty())?;
        }
        Err(invalid())
    }
}

/// Whether only root and the current user can replace an entry of a folder. For root, the folder must belong to root and be writable by
/// neither group nor others; for other users, a group-writable folder is accepted. In a sticky folder such as `/tmp`, every user may
/// create entries but replace only their own.
fn is_protected(folder: &Stat, entry: &Stat) -> bool {
    let user = rustix::process::geteuid().as_raw();
    let exclusive =
        if user == 0 { folder.st_uid == 0 && folder.st_mode & 0o022 == 0 } else { folder.st_mode & 0o002 == 0 };
    let owned = |stat: &Stat| stat.st_uid == 0 || stat.st_uid == user;
    exclusive || (folder.st_mode & 0o1000 != 0 && owned(folder) && owned(entry))
}

fn not_followed(name: &OsStr) -> Error {
    let reason = format!(
        "{name:?} in it is a symbolic link or '..' in a folder that other users can change; it is not followed"
    );
    Error::new(ErrorKind::PermissionDenied, reason)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, chown, symlink};
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::RenameFlags;

    use super::*;

    /// A user id that is not root.
    const OTHER: u32 = 54_321;

    fn temporary() -> PathBuf {
        let folder = std::env::temp_dir().join(crate::ids::hex32());
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        folder
    }

    #[test]
    fn replacing_keeps_owner_mode_and_links() {
        let folder = temporary();
        let (file, link) = (folder.join("sub/file.json"), folder.join("link"));
        replace(&file, b"1").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        symlink(&file, &link).unwrap();
        replace(&link, b"2").unwrap();
        let mode = || std::fs::metadata(&file).unwrap().mode() & 0o7777;
        assert!(std::fs::read(&file).unwrap() == b"2" && mode() == 0o640 && link.is_symlink());
        replace_as(&file, b"3", 0o600).unwrap();
        assert!(std::fs::read(&file).unwrap() == b"3" && mode() == 0o600);
        symlink(&file, file.with_file_name(".other.slipway")).unwrap();
        let other = file.with_file_name("other");
        replace(&other, b"5").unwrap();
        assert!(std::fs::read(&file).unwrap() == b"3" && std::fs::read(&other).unwrap() == b"5" && !other.is_symlink());
        assert!(read(&other).unwrap() == b"5" && read(&link).unwrap() == b"3");
        remove(&other).unwrap();
        assert_eq!(read(&other).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(replace(&folder, b"4").is_err() && read(&folder).is_err());
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "no temporary file remains");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn paths_are_resolved_as_the_kernel_does() {
        let folder = temporary();
        let at = |path: &str| folder.join(path);
        for path in ["a/b/../c", "./a//d", "a/b/./e"] {
            replace(&at(path), path.as_bytes()).unwrap();
            assert_eq!(std::fs::read(at(path)).unwrap(), path.as_bytes());
        }
        // Relative links, a link to a folder, a chain of links, and a link whose target does not exist yet.
        symlink("a/b", at("to-folder")).unwrap();
        symlink("../to-folder/e", at("a/chain")).unwrap();
        symlink("b/new", at("a/dangling")).unwrap();
        replace(&at("a/chain"), b"1").unwrap();
        replace(&at("a/dangling"), b"2").unwrap();
        assert!(std::fs::read(at("a/b/e")).unwrap() == b"1" && std::fs::read(at("a/b/new")).unwrap() == b"2");
        symlink("circle", at("circle")).unwrap();
        assert!(replace(&at("circle"), b"3").is_err());
        for invalid in ["a/b/..", "a/d/x", "", "/"] {
            assert!(replace(&at(invalid), b"4").is_err(), "{invalid}");
        }
        assert!(read(&at("none/x")).is_err() && !at("none").exists(), "reading creates no folders");
        std::fs::remove_dir_all(folder).unwrap();
    }

    fn is_root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            eprintln!("skipped: only root can give folders to another user");
        }
        root
    }

    #[test]
    fn root_does_not_follow_links_of_users() {
        if !is_root() {
            return;
        }
        let folder = temporary();
        let at = |path: &str| folder.join(path);
        for sub in ["etc", "home", "home/real", "home/of-root"] {
            std::fs::create_dir(at(sub)).unwrap();
        }
        std::fs::write(at("etc/shadow"), "secret").unwrap();
        for users in ["home", "home/real"] {
            chown(at(users), Some(OTHER), Some(OTHER)).unwrap();
        }
        symlink(at("etc/shadow"), at("home/file")).unwrap();
        symlink(at("etc"), at("home/folder")).unwrap();
        symlink("../../etc", at("home/of-root/folder")).unwrap();
        for path in [
            "home/file",
            "home/folder/shadow",
            "home/folder/new",
            "home/folder/a/b",
            "home/of-root/folder/shadow",
            "home/real/../../etc/shadow",
        ] {
            let path = at(path);
            for done in [replace(&path, b"x"), replace_as(&path, b"x", 0o644), remove(&path), read(&path).map(drop)] {
                assert_eq!(done.unwrap_err().kind(), ErrorKind::PermissionDenied, "{}", path.display());
            }
        }
        assert_eq!(std::fs::read(at("etc/shadow")).unwrap(), b"secret");
        assert_eq!(std::fs::read_dir(at("etc")).unwrap().count(), 1);

        // Root may write to the user's files, which keep their owner, and follows links that root created.
        std::fs::write(at("home/real/file"), "1").unwrap();
        chown(at("home/real/file"), Some(OTHER), Some(OTHER)).unwrap();
        symlink(at("home/real"), at("short")).unwrap();
        replace_as(&at("short/file"), b"2", 0o600).unwrap();
        replace(&at("home/real/new/file"), b"3").unwrap();
        let about = std::fs::metadata(at("home/real/file")).unwrap();
        assert_eq!((about.uid(), about.mode() & 0o7777), (OTHER, 0o600));
        assert!(read(&at("short/file")).unwrap() == b"2" && at("home/real/new/file").is_file());

        // A link is not followed if another user could have created it: in a group-writable folder, or as its owner in a sticky one.
        for (mode, owner, followed) in
            [(0o755, 0, true), (0o775, 0, false), (0o777, 0, false), (0o1777, 0, true), (0o1777, OTHER, false)]
        {
            let (shared, target) = (at("shared"), at("etc/target"));
            std::fs::create_dir(&shared).unwrap();
            std::fs::set_permissions(&shared, Permissions::from_mode(mode)).unwrap();
            symlink(&target, shared.join("link")).unwrap();
            std::os::unix::fs::lchown(shared.join("link"), Some(owner), Some(owner)).unwrap();
            assert_eq!(replace(&shared.join("link"), b"x").is_ok(), followed, "{mode:o} {owner}");
            assert_eq!(target.exists(), followed, "{mode:o} {owner}");
            let _ = std::fs::remove_file(target); // It exists only if the link was followed.
            std::fs::remove_dir_all(shared).unwrap();
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn folder_swapped_for_a_link_during_resolution_is_not_followed() {
        if !is_root() {
            return;
        }
        let folder = temporary();
        let (etc, home) = (folder.join("etc"), folder.join("home"));
        std::fs::create_dir(&etc).unwrap();
        std::fs::create_dir_all(home.join("folder")).unwrap();
        symlink(&etc, home.join("link")).unwrap();
        chown(&home, Some(OTHER), Some(OTHER)).unwrap();
        let (swapping, mut written, mut refused) = (AtomicBool::new(true), 0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, other) = (home.join("folder"), home.join("link"));
                while swapping.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                }
            });
            // Repeat until both outcomes occurred often enough, so that some swaps happened during resolution. The limit is never reached.
            for _ in 0..1_000_000 {
                match replace(&home.join("folder/file"), b"x") {
                    Ok(()) => written += 1,
                    Err(_) => refused += 1,
                }
                if written >= 200 && refused >= 200 {
                    break;
                }
            }
            swapping.store(false, Ordering::Relaxed);
        });
        assert!(written >= 200 && refused >= 200, "{written} {refused}");
        assert_eq!(std::fs::read_dir(&etc).unwrap().count(), 0);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
