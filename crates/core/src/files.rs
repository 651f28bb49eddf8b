//! Files that are never half written, and never written through somebody else's links.
//!
//! A path is walked folder by folder, each opened relative to the one before, so that nobody can exchange a part of it in between. A link
//! is followed as long as nobody else could have put it there. From the first folder on whose entries others control, none is: root, asked
//! to write below a user's folder, would otherwise write wherever the user's link points (CWE-59).

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// The kernel's own limit of links on one path.
const MAX_LINKS: usize = 40;
/// A folder that is only walked through; it need not be readable.
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Writes a file whole or not at all, with the owner and the permissions it had: a reader sees the old bytes or the new. Folders that are
/// missing are made. A link that is followed (see the module) stays one, and the file it points to is replaced.
///
/// # Errors
/// The operating system's, or [`ErrorKind::PermissionDenied`] for a link that is not followed.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    put(path, bytes, None)
}

/// The same with these permissions; nobody who lacks them can read it meanwhile.
///
/// # Errors
/// Those of [`replace`].
pub fn replace_as(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    put(path, bytes, Some(mode))
}

/// Reads a file that is found as [`replace`] finds it, and is no device and no pipe.
///
/// # Errors
/// Those of [`replace`].
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let Place { folder, name } = Place::find(path, false)?;
    // A pipe would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(&folder, &name, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is no file"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Removes a file that is found as [`replace`] finds it.
///
/// # Errors
/// Those of [`replace`].
pub fn remove(path: &Path) -> Result<()> {
    let Place { folder, name } = Place::find(path, false)?;
    Ok(rustix::fs::unlinkat(&folder, &name, AtFlags::empty())?)
}

fn put(path: &Path, bytes: &[u8], mode: Option<u32>) -> Result<()> {
    let Place { folder, name } = Place::find(path, true)?;
    let mut new = OsString::from(".");
    new.push(&name);
    new.push(".slipway");
    let old = rustix::fs::statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW).ok();
    let mode = mode.or_else(|| old.as_ref().map(|old| old.st_mode & 0o7777));
    let first = if mode.is_some() { 0o600 } else { 0o666 };
    // What a killed process left, or a link that somebody put there, is not written to. Usually there is nothing.
    let _ = rustix::fs::unlinkat(&folder, &new, AtFlags::empty());
    let written = (|| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&folder, &new, flags, Mode::from_raw_mode(first))?);
        file.write_all(bytes)?;
        let ours = rustix::fs::fstat(&file)?;
        if let Some(old) = old.filter(|old| (old.st_uid, old.st_gid) != (ours.st_uid, ours.st_gid)) {
            std::os::unix::fs::fchown(&file, Some(old.st_uid), Some(old.st_gid))?;
        }
        if let Some(mode) = mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        file.sync_all()?;
        rustix::fs::renameat(&folder, &new, &folder, &name)?;
        sync(&folder)
    })();
    if written.is_err() {
        let _ = rustix::fs::unlinkat(&folder, &new, AtFlags::empty()); // the error that counts is the one above
    }
    written
}

/// Makes a rename survive a power failure.
fn sync(folder: &OwnedFd) -> Result<()> {
    // A folder that may be written and not read cannot be opened for this; its files are as safe as the file system makes them.
    let Ok(readable) = rustix::fs::openat(folder, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
        return Ok(());
    };
    match rustix::fs::fsync(&readable) {
        // Some network file systems cannot.
        Err(Errno::INVAL) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// An open folder, and a name in it that is no link.
struct Place {
    folder: OwnedFd,
    name: OsString,
}

impl Place {
    /// Finds where a file is or would be; `make`s missing folders.
    fn find(path: &Path, make: bool) -> Result<Self> {
        let invalid = || Error::new(ErrorKind::InvalidInput, "it does not name a file");
        // The first part is the last of the list.
        let parts = |path: &Path| -> Vec<OsString> {
            path.components().rev().map(|c| c.as_os_str().to_owned()).filter(|c| c != ".").collect()
        };
        let mut left = parts(&std::path::absolute(path)?);
        let mut folder = rustix::fs::openat(CWD, "/", FOLDER, Mode::empty())?;
        // Whether nobody else could have decided where the walk is now.
        let mut ours = true;
        let mut links = 0;
        while let Some(name) = left.pop() {
            match Path::new(&name).components().next() {
                Some(Component::RootDir) => {
                    folder = rustix::fs::openat(CWD, "/", FOLDER, Mode::empty())?;
                    continue;
                }
                Some(Component::ParentDir) => {
                    if !ours {
                        return Err(not_followed(&name));
                    }
                    folder = rustix::fs::openat(&folder, "..", FOLDER, Mode::empty())?;
                    continue;
                }
                _ => {}
            }
            let entry = match rustix::fs::statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => None,
                found => Some(found?),
            };
            if let Some(entry) = &entry {
                ours = ours && fixed(&rustix::fs::fstat(&folder)?, entry);
                if FileType::from_raw_mode(entry.st_mode) == FileType::Symlink {
                    links += 1;
                    if !ours {
                        return Err(not_followed(&name));
                    }
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let target = rustix::fs::readlinkat(&folder, &name, Vec::new())?;
                    left.extend(parts(Path::new(OsStr::from_bytes(target.as_bytes()))));
                    continue;
                }
            }
            if left.is_empty() {
                return Ok(Self { folder, name });
            }
            if entry.is_none() {
                if !make {
                    return Err(Errno::NOENT.into());
                }
                match rustix::fs::mkdirat(&folder, &name, Mode::from_raw_mode(0o777)) {
                    // Somebody else made it just now.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                ours = ours
                    && fixed(
                        &rustix::fs::fstat(&folder)?,
                        &rustix::fs::statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW)?,
                    );
            }
            folder = rustix::fs::openat(&folder, &name, FOLDER, Mode::empty())?;
        }
        Err(invalid())
    }
}

/// Whether nobody but root and this user can exchange an entry of a folder. For root, that is a folder of its own that neither a group nor
/// others may write; another user may share a folder with its group. In a sticky folder such as `/tmp` everybody may add entries, and
/// exchange only their own.
fn fixed(folder: &Stat, entry: &Stat) -> bool {
    let user = rustix::process::geteuid().as_raw();
    let exclusive =
        if user == 0 { folder.st_uid == 0 && folder.st_mode & 0o022 == 0 } else { folder.st_mode & 0o002 == 0 };
    let owned = |stat: &Stat| stat.st_uid == 0 || stat.st_uid == user;
    exclusive || (folder.st_mode & 0o1000 != 0 && owned(folder) && owned(entry))
}

fn not_followed(name: &OsStr) -> Error {
    let reason =
        format!("{name:?} in it is a link, or leads out, in a folder that others can change; it is not followed");
    Error::new(ErrorKind::PermissionDenied, reason)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, chown, symlink};
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::RenameFlags;

    use super::*;

    /// A user who is not root.
    const OTHER: u32 = 54_321;

    fn temporary() -> PathBuf {
        let folder = std::env::temp_dir().join(crate::ids::hex32());
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        folder
    }

    #[test]
    fn a_file_is_replaced_with_what_it_was_but_its_bytes() {
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
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn paths_are_walked_as_the_kernel_does() {
        let folder = temporary();
        let at = |path: &str| folder.join(path);
        for path in ["a/b/../c", "./a//d", "a/b/./e"] {
            replace(&at(path), path.as_bytes()).unwrap();
            assert_eq!(std::fs::read(at(path)).unwrap(), path.as_bytes());
        }
        // Relative links, a link to a folder, a chain, and one whose file is still to come.
        symlink("a/b", at("to-folder")).unwrap();
        symlink("../to-folder/e", at("a/chain")).unwrap();
        symlink("b/new", at("a/dangling")).unwrap();
        replace(&at("a/chain"), b"1").unwrap();
        replace(&at("a/dangling"), b"2").unwrap();
        assert!(std::fs::read(at("a/b/e")).unwrap() == b"1" && std::fs::read(at("a/b/new")).unwrap() == b"2");
        symlink("circle", at("circle")).unwrap();
        assert!(replace(&at("circle"), b"3").is_err());
        for wrong in ["a/b/..", "a/d/x", "", "/"] {
            assert!(replace(&at(wrong), b"4").is_err(), "{wrong}");
        }
        assert!(read(&at("none/x")).is_err() && !at("none").exists(), "only who writes makes folders");
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
    fn root_is_not_led_elsewhere_by_a_users_links() {
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

        // Folders and files of the user are written, and stay the user's; a link that root made leads there.
        std::fs::write(at("home/real/file"), "1").unwrap();
        chown(at("home/real/file"), Some(OTHER), Some(OTHER)).unwrap();
        symlink(at("home/real"), at("short")).unwrap();
        replace_as(&at("short/file"), b"2", 0o600).unwrap();
        replace(&at("home/real/new/file"), b"3").unwrap();
        let about = std::fs::metadata(at("home/real/file")).unwrap();
        assert_eq!((about.uid(), about.mode() & 0o7777), (OTHER, 0o600));
        assert!(read(&at("short/file")).unwrap() == b"2" && at("home/real/new/file").is_file());

        // Whoever may write a folder decides where its links lead: a group, and in a sticky folder the owner of the link.
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
            let _ = std::fs::remove_file(target); // there only where the link was followed
            std::fs::remove_dir_all(shared).unwrap();
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_folder_that_becomes_a_link_meanwhile_leads_nowhere() {
        if !is_root() {
            return;
        }
        let folder = temporary();
        let (etc, home) = (folder.join("etc"), folder.join("home"));
        std::fs::create_dir(&etc).unwrap();
        std::fs::create_dir_all(home.join("folder")).unwrap();
        symlink(&etc, home.join("link")).unwrap();
        chown(&home, Some(OTHER), Some(OTHER)).unwrap();
        let (go_on, mut written, mut refused) = (AtomicBool::new(true), 0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, other) = (home.join("folder"), home.join("link"));
                while go_on.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                }
            });
            // Until it met both often enough, so that some exchanges came in between; so many tries are always enough for that.
            for _ in 0..1_000_000 {
                match replace(&home.join("folder/file"), b"x") {
                    Ok(()) => written += 1,
                    Err(_) => refused += 1,
                }
                if written >= 200 && refused >= 200 {
                    break;
                }
            }
            go_on.store(false, Ordering::Relaxed);
        });
        assert!(written >= 200 && refused >= 200, "{written} {refused}");
        assert_eq!(std::fs::read_dir(&etc).unwrap().count(), 0);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
