//! The cache of a project, and links from it into the workspace. A remote in a local folder has the same layout.
//!
//! Objects are read-only files named by their digest. An object appears under its name when it is complete; one that is not read-only was not
//! finished by DVC, and is verified before it is used.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use md5::{Digest as _, Md5};
use rustix::fs::OFlags;

use crate::config::LinkType;
use crate::error::DataError;
use crate::hash::{fill, hash_file, with_buffer};
use crate::incoming::{Incoming, TEMPORARY, temporary_name};
use crate::manifest::{MAX_MANIFEST_BYTES, Manifest, digest_of};
use crate::model::{Digest, HashName};
use crate::stat::Stat;
use crate::walk::open;

/// The permissions of a finished object.
const OBJECT_MODE: u32 = 0o444;
/// Files up to this size are read at once; larger ones are hashed by one thread and written by another.
const SMALL_BYTES: u64 = 1 << 20;

/// The objects below a folder.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    hash: HashName,
    /// Folders of two digits that exist, by their number.
    shards: Box<[AtomicBool; 256]>,
    mode: u32,
    folder_mode: Option<u32>,
    lacks_reflinks: AtomicBool,
}

impl Cache {
    /// The objects of an algorithm in the cache folder `root`. `shared` makes new objects and folders writable by the group.
    pub fn new(root: &Path, hash: HashName, shared: bool) -> Self {
        let root = match hash {
            HashName::Md5 => root.join("files/md5"),
            HashName::Dos2Unix => root.to_owned(),
        };
        Self {
            root,
            hash,
            shards: Box::new([const { AtomicBool::new(false) }; 256]),
            mode: OBJECT_MODE,
            folder_mode: shared.then_some(0o2775),
            lacks_reflinks: AtomicBool::new(false),
        }
    }

    /// The folder that contains the folders of two digits.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The algorithm of the digests.
    pub fn hash(&self) -> HashName {
        self.hash
    }

    /// The path of an object.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let (shard, name) = digest.object_name();
        let mut path = PathBuf::with_capacity(self.root.as_os_str().len() + 40);
        path.push(&self.root);
        path.push(shard);
        path.push(name);
        path
    }

    /// Whether a complete object exists. One that is not read-only is verified, then protected or removed.
    ///
    /// # Errors
    /// If the cache cannot be read.
    pub fn contains(&self, digest: &Digest) -> Result<bool, DataError> {
        let path = self.path(digest);
        let Some(stat) = Stat::of_path(&path).map_err(DataError::io(&path))? else { return Ok(false) };
        if stat.mode & 0o7777 == OBJECT_MODE {
            return Ok(true);
        }
        if hash_file(&path, self.hash)? == digest.md5 {
            protect(&path);
            return Ok(true);
        }
        std::fs::remove_file(&path).map_err(DataError::io(&path))?;
        Ok(false)
    }

    /// Verifies the content of an object.
    ///
    /// # Errors
    /// [`DataError::Corrupt`] if it has another content.
    pub fn verify(&self, digest: &Digest) -> Result<(), DataError> {
        let place = self.path(digest);
        if hash_file(&place, self.hash)? == digest.md5 {
            return Ok(());
        }
        Err(DataError::Corrupt { oid: digest.to_string(), place })
    }

    /// Creates the folder of an object.
    fn make_shard(&self, digest: &Digest) -> Result<PathBuf, DataError> {
        let folder = self.root.join(&digest.object_name().0);
        let exists = &self.shards[usize::from(digest.md5[0])];
        if !exists.load(Ordering::Relaxed) {
            std::fs::create_dir_all(&folder).map_err(DataError::io(&folder))?;
            if let Some(mode) = self.folder_mode {
                // Best effort, as in DVC: the folder may belong to another user of the shared cache.
                let _ = std::fs::set_permissions(&folder, Permissions::from_mode(mode));
            }
            exists.store(true, Ordering::Relaxed);
        }
        Ok(folder)
    }

    /// Stores bytes under their digest.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), DataError> {
        let folder = self.make_shard(digest)?;
        let temporary = Temporary::create(&folder, self.mode)?;
        (&temporary.file).write_all(bytes).map_err(DataError::io(&temporary.path))?;
        temporary.publish(&self.path(digest), Some(self.mode))
    }

    /// Stores a manifest.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put_manifest(&self, manifest: &Manifest) -> Result<Digest, DataError> {
        let bytes = manifest.to_bytes();
        let digest = digest_of(&bytes);
        if !self.contains(&digest)? {
            self.put(&digest, &bytes)?;
        }
        Ok(digest)
    }

    /// Reads a manifest; `None` if it is not in the cache.
    ///
    /// # Errors
    /// If it cannot be read or understood.
    pub fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, DataError> {
        let path = self.path(digest);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_MANIFEST_BYTES => {
                return Err(DataError::file(&path, 0, "it is too large for a manifest"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DataError::io(&path)(error)),
        }
        let bytes = std::fs::read(&path).map_err(DataError::io(&path))?;
        Manifest::parse(&bytes).map(Some).map_err(|reason| DataError::file(&path, 0, reason))
    }

    /// Reads the beginning of an object: at most `limit` bytes, and one more if the object has more; `None` if the cache lacks it. A link that
    /// stands in the place of an object is not followed.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn read_start(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, DataError> {
        let path = self.path(digest);
        // Without NONBLOCK, a pipe would block.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DataError::io(&path)(error)),
        };
        if !file.metadata().map_err(DataError::io(&path))?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(DataError::io(&path))?;
        Ok(Some(bytes))
    }

    /// Stores a file of the workspace, and returns its MD5. The bytes that are stored are those that were hashed, also if the file changes in
    /// the meantime. A file with a known digest whose object exists is not read.
    ///
    /// # Errors
    /// If the file cannot be read or the object cannot be written.
    pub fn store(&self, source: &Path, stat: &Stat, known: Option<[u8; 16]>) -> Result<[u8; 16], DataError> {
        if let Some(md5) = known
            && self.contains(&Digest::of_file(md5))?
        {
            return Ok(md5);
        }
        if stat.size < SMALL_BYTES { self.store_small(source) } else { self.store_large(source) }
    }

    fn store_small(&self, source: &Path) -> Result<[u8; 16], DataError> {
        let mut file = open(source)?;
        with_buffer(|buffer| {
            let length = fill(&mut file, buffer).map_err(DataError::io(source))?;
            if length == buffer.len() {
                return self.store_large(source); // It has grown.
            }
            let md5 = Md5::digest(&buffer[..length]).into();
            let digest = Digest::of_file(md5);
            if !self.contains(&digest)? {
                self.put(&digest, &buffer[..length])?;
            }
            Ok(md5)
        })
    }

    /// The object is written while its digest, and with it its name, is still unknown.
    fn store_large(&self, source: &Path) -> Result<[u8; 16], DataError> {
        std::fs::create_dir_all(&self.root).map_err(DataError::io(&self.root))?;
        let mut file = open(source)?;
        let temporary = Temporary::create(&self.root, 0o644)?;
        let md5 = if self.reflink(&file, &temporary.file) {
            hash_file(&temporary.path, HashName::Md5)?
        } else {
            copy_and_hash(&mut file, &temporary.file).map_err(DataError::io(source))?
        };
        let digest = Digest::of_file(md5);
        if !self.contains(&digest)? {
            self.make_shard(&digest)?;
            temporary.publish(&self.path(&digest), Some(self.mode))?;
        }
        Ok(md5)
    }

    /// Lets `to` share the blocks of `from`. After a failure it is not attempted again.
    fn reflink(&self, from: &File, to: &File) -> bool {
        if self.lacks_reflinks.load(Ordering::Relaxed) {
            return false;
        }
        let done = rustix::fs::ioctl_ficlone(to, from).is_ok();
        self.lacks_reflinks.store(!done, Ordering::Relaxed);
        done
    }

    /// Puts an object into the workspace with the first link type that works. A file at `target` is replaced atomically.
    ///
    /// # Errors
    /// [`DataError::Links`] if none works, or an error of the file system.
    pub fn link(&self, digest: &Digest, target: &Path, types: &[LinkType], staging: &Staging) -> Result<(), DataError> {
        let object = self.path(digest);
        for link in types {
            let linked = match link {
                LinkType::Reflink if self.lacks_reflinks.load(Ordering::Relaxed) => continue,
                LinkType::Reflink => staging.create(target, |file| {
                    let source = File::open(&object)?;
                    if self.reflink(&source, file) { Ok(()) } else { Err(std::io::ErrorKind::Unsupported.into()) }
                }),
                LinkType::Copy => staging.create(target, |file| copy(&object, file)),
                LinkType::Hardlink => staging.replace(target, |path| {
                    // An empty file may be shared by thousands of names; as in DVC, it is created anew.
                    if std::fs::metadata(&object)?.len() == 0 {
                        File::create(path).map(drop)
                    } else {
                        std::fs::hard_link(&object, path)
                    }
                }),
                LinkType::Symlink => staging.replace(target, |path| std::os::unix::fs::symlink(&object, path)),
            };
            match linked {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(DataError::io(&object)(error));
                }
                Err(error)
                    if matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) =>
                {
                    return Err(DataError::io(target)(error));
                }
                Err(_) => {}
            }
        }
        let links = types.iter().map(|link| format!("{link:?}").to_lowercase()).collect::<Vec<_>>().join(", ");
        Err(DataError::Links { links, path: target.to_owned() })
    }

    /// All objects, and the unfinished files of processes that were killed.
    ///
    /// # Errors
    /// If the cache cannot be read.
    pub fn list(&self) -> Result<Listing, DataError> {
        let mut listing = Listing::default();
        for shard in read_folder(&self.root)? {
            let name = shard.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(TEMPORARY) {
                listing.leftovers.push(shard.path());
            }
            if name.len() != 2 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
                continue;
            }
            for object in read_folder(&shard.path())? {
                let object_name = object.file_name();
                let Some(rest) = object_name.to_str() else { continue };
                match Digest::parse(&format!("{name}{rest}")) {
                    Some(digest) => drop(listing.objects.insert(digest)),
                    None => listing.leftovers.push(object.path()),
                }
            }
        }
        Ok(listing)
    }

    /// Removes an object.
    ///
    /// # Errors
    /// If it exists and cannot be removed.
    pub fn remove(&self, digest: &Digest) -> Result<(), DataError> {
        let path = self.path(digest);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DataError::io(&path)(error)),
            _ => Ok(()),
        }
    }

    /// Gives a file of the same file system a second name in the cache, or copies it. The caller knows its digest.
    ///
    /// # Errors
    /// If it cannot be linked or copied.
    pub fn adopt(&self, source: &Path, digest: &Digest) -> Result<(), DataError> {
        if self.contains(digest)? {
            return Ok(());
        }
        self.make_shard(digest)?;
        let target = self.path(digest);
        match std::fs::hard_link(source, &target) {
            Ok(()) => protect(&target),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(_) => {
                let temporary = self.incoming(digest)?;
                copy(source, &temporary.file).map_err(DataError::io(source))?;
                temporary.publish(&target, Some(self.mode))?;
            }
        }
        Ok(())
    }

    /// A new file in the cache for an object from elsewhere; [`Temporary::publish`] it at [`Cache::path`].
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn incoming(&self, digest: &Digest) -> Result<Temporary, DataError> {
        Temporary::create(&self.make_shard(digest)?, 0o644)
    }

    /// The file of an object that is being received, with what an earlier attempt left.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn resume(&self, digest: &Digest) -> Result<Incoming, DataError> {
        Incoming::open(&self.make_shard(digest)?, digest)
    }

    /// Copies an object from another folder with the same layout. The copy is verified while it is written.
    ///
    /// # Errors
    /// [`DataError::Corrupt`] if the source has another content, or an error of the file system.
    pub fn copy_from(&self, other: &Self, digest: &Digest, verify: bool) -> Result<(), DataError> {
        let source = other.path(digest);
        let mut file = open(&source)?;
        let temporary = self.incoming(digest)?;
        let size = file.metadata().map_err(DataError::io(&source))?.len();
        let verified = if self.reflink(&file, &temporary.file) {
            !verify || hash_file(&temporary.path, self.hash)? == digest.md5
        } else if !verify || self.hash == HashName::Dos2Unix {
            copy(&source, &temporary.file).map_err(DataError::io(&source))?;
            !verify || hash_file(&temporary.path, self.hash)? == digest.md5
        } else if size < SMALL_BYTES {
            with_buffer(|buffer| {
                let length = fill(&mut file, buffer).map_err(DataError::io(&source))?;
                (&temporary.file).write_all(&buffer[..length]).map_err(DataError::io(&temporary.path))?;
                Ok::<_, DataError>(<[u8; 16]>::from(Md5::digest(&buffer[..length])) == digest.md5)
            })?
        } else {
            copy_and_hash(&mut file, &temporary.file).map_err(DataError::io(&source))? == digest.md5
        };
        if !verified {
            return Err(DataError::Corrupt { oid: digest.to_string(), place: source });
        }
        temporary.publish(&self.path(digest), Some(self.mode))
    }
}

/// The content of a cache.
#[derive(Debug, Default)]
pub struct Listing {
    /// The objects.
    pub objects: HashSet<Digest>,
    /// Files that are not objects, such as those that a killed process left behind.
    pub leftovers: Vec<PathBuf>,
}

fn read_folder(folder: &Path) -> Result<Vec<std::fs::DirEntry>, DataError> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.collect::<Result<_, _>>().map_err(DataError::io(folder)),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(DataError::io(folder)(error)),
    }
}

/// Makes an object read-only. Best effort, as in DVC: it may belong to another user of a shared cache.
fn protect(path: &Path) {
    let _ = std::fs::set_permissions(path, Permissions::from_mode(OBJECT_MODE));
}

/// Copies the content of a file. Small files go through this thread's buffer, others through the kernel.
fn copy(source: &Path, mut target: &File) -> std::io::Result<()> {
    let mut file = File::open(source)?;
    let whole = with_buffer(|buffer| {
        let length = fill(&mut file, buffer)?;
        target.write_all(&buffer[..length])?;
        Ok::<_, std::io::Error>(length < buffer.len())
    })?;
    if !whole {
        std::io::copy(&mut file, &mut target)?; // On Linux, this is copy_file_range where the file systems support it.
    }
    Ok(())
}

/// Copies a file while another thread computes its MD5.
fn copy_and_hash(file: &mut File, mut target: &File) -> std::io::Result<[u8; 16]> {
    /// Number of buffers in flight.
    const BUFFERS: usize = 4;
    let (to_writer, from_reader) = std::sync::mpsc::sync_channel::<(Vec<u8>, usize)>(BUFFERS);
    let (to_reader, from_writer) = std::sync::mpsc::channel::<Vec<u8>>();
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            for (buffer, length) in from_reader {
                target.write_all(&buffer[..length])?;
                let _ = to_reader.send(buffer); // The reader may have finished.
            }
            Ok::<_, std::io::Error>(())
        });
        let mut hasher = Md5::new();
        let mut buffers = 0;
        let read = loop {
            let mut buffer = match from_writer.try_recv() {
                Ok(buffer) => buffer,
                Err(_) if buffers <= BUFFERS => {
                    buffers += 1;
                    vec![0; crate::hash::BUFFER_BYTES]
                }
                Err(_) => match from_writer.recv() {
                    Ok(buffer) => buffer,
                    Err(_) => break Ok(()), // The writer failed; its error is reported below.
                },
            };
            let length = match fill(file, &mut buffer) {
                Ok(length) => length,
                Err(error) => break Err(error),
            };
            hasher.update(&buffer[..length]);
            let last = length < buffer.len();
            if to_writer.send((buffer, length)).is_err() || last {
                break Ok(());
            }
        };
        drop(to_writer);
        let written = writer.join().unwrap_or_else(|_| Err(std::io::Error::other("the writing thread panicked")));
        read.and(written).map(|()| hasher.finalize().into())
    })
}

/// An unfinished file, removed unless it is published.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    file: File,
    mode: u32,
    published: bool,
}

impl Temporary {
    /// Creates the file in a folder.
    fn create(folder: &Path, mode: u32) -> Result<Self, DataError> {
        let path = folder.join(temporary_name());
        let create = || OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(&path);
        let file = match create() {
            // A process with the same number was killed.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                std::fs::remove_file(&path).and_then(|()| create())
            }
            created => created,
        };
        Ok(Self { file: file.map_err(DataError::io(&path))?, path, mode, published: false })
    }

    /// The path of the unfinished file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, and the permissions `mode` if it was created with others.
    ///
    /// # Errors
    /// An I/O error.
    pub fn publish(mut self, target: &Path, mode: Option<u32>) -> Result<(), DataError> {
        if let Some(mode) = mode
            && (mode != self.mode || mode != OBJECT_MODE || umask_hides(OBJECT_MODE))
        {
            self.file.set_permissions(Permissions::from_mode(mode)).map_err(DataError::io(&self.path))?;
        }
        std::fs::rename(&self.path, target).map_err(DataError::io(target))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_file(&self.path); // Best effort; `gc` removes it otherwise.
        }
    }
}

/// Whether the process's umask removes one of these permissions of new files.
fn umask_hides(mode: u32) -> bool {
    umask() & mode != 0
}

/// The umask of the process, read without changing it.
pub(crate) fn umask() -> u32 {
    static UMASK: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *UMASK.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        line.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o022)
    })
}

/// A folder in `.dvc/tmp` for unfinished files of the workspace, so that a killed process leaves nothing among the data.
#[derive(Debug)]
pub struct Staging {
    folder: PathBuf,
    other_file_system: AtomicBool,
    folders: Mutex<HashSet<PathBuf>>,
}

impl Staging {
    /// Creates the folder in the project's `.dvc/tmp`, and removes what killed processes left. The caller holds the project's lock.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create_in(tmp: &Path) -> Result<Self, DataError> {
        let folder = tmp.join("slipway-staging");
        for leftover in read_folder(&folder)? {
            let _ = std::fs::remove_file(leftover.path()); // Best effort; it is only in the way.
        }
        std::fs::create_dir_all(&folder).map_err(DataError::io(&folder))?;
        Ok(Self { folder, other_file_system: AtomicBool::new(false), folders: Mutex::default() })
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// Creates a file with the content that `write` gives it.
    fn create(&self, target: &Path, write: impl Fn(&File) -> std::io::Result<()>) -> std::io::Result<()> {
        self.replace(target, |path| write(&OpenOptions::new().write(true).create_new(true).mode(0o666).open(path)?))
    }

    /// Replaces `target` by what `make` creates at a path.
    fn replace(&self, target: &Path, make: impl Fn(&Path) -> std::io::Result<()>) -> std::io::Result<()> {
        let parent = target.parent().unwrap_or(Path::new("/"));
        self.make_folder(parent)?;
        let elsewhere = self.other_file_system.load(Ordering::Relaxed);
        let temporary = if elsewhere { parent } else { &self.folder }.join(temporary_name());
        let done = make(&temporary).and_then(|()| {
            let renamed = std::fs::rename(&temporary, target);
            // Two names of the same file: rename does nothing and reports success.
            if renamed.is_ok() && temporary.symlink_metadata().is_ok() {
                std::fs::remove_file(&temporary)?;
            }
            renamed
        });
        if let Err(error) = done {
            let _ = std::fs::remove_file(&temporary); // The error below is the one to report.
            if error.kind() == std::io::ErrorKind::CrossesDevices && !elsewhere {
                // The target is on another file system than `.dvc`.
                self.other_file_system.store(true, Ordering::Relaxed);
                return self.replace(target, make);
            }
            return Err(error);
        }
        Ok(())
    }

    fn make_folder(&self, folder: &Path) -> std::io::Result<()> {
        let mut known = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(folder) {
            std::fs::create_dir_all(folder)?;
            known.insert(folder.to_owned());
        }
        Ok(())
    }
}

/// Makes a file of the workspace independent of the cache and writable. As in DVC, it gets the permissions of a new file.
///
/// # Errors
/// An I/O error.
pub(crate) fn unprotect(path: &Path, staging: &Staging) -> Result<(), DataError> {
    let Some(stat) = Stat::of_entry(path).map_err(DataError::io(path))? else { return Ok(()) };
    let is_link = stat.kind() == crate::stat::Kind::Link;
    if is_link || stat.links > 1 {
        return staging.create(path, |file| copy(path, file)).map_err(DataError::io(path));
    }
    let mode = 0o666 & !umask();
    if stat.mode & 0o777 != mode {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(DataError::io(path))?;
    }
    Ok(())
}

/// Lets the owner execute a file.
///
/// # Errors
/// An I/O error.
pub(crate) fn set_executable(path: &Path) -> Result<(), DataError> {
    let mode = std::fs::metadata(path).map_err(DataError::io(path))?.permissions().mode();
    if mode & 0o100 == 0 {
        std::fs::set_permissions(path, Permissions::from_mode(mode | 0o100)).map_err(DataError::io(path))?;
    }
    Ok(())
}
