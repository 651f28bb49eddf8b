//! The cache of a project, and links from it into the workspace. A remote in a local folder has the same layout.
//!
//! Objects are read-only files named by their digest. An object appears under its name when it is complete; one that is not read-only was not
//! finished by DVC, and is verified before it is used.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufReader, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use md5::{Digest as _, Md5};
use rayon::prelude::*;
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::config::LinkType;
use crate::error::DataError;
use crate::hash::{Hasher, fill, hash_file, hash_rest, with_buffer};
use crate::incoming::{Incoming, OBJECT_MODE, TEMPORARY, Temporary, copy};
use crate::manifest::{MAX_MANIFEST_BYTES, Manifest, read_digests, write_files};
use crate::model::{Digest, HashName};
use crate::staging::{Staging, new_file, settle};
use crate::stat::Stat;
use crate::walk::{open, read_folder};

/// Files up to this size are read at once; larger ones are hashed by one thread and written by another.
const SMALL_BYTES: u64 = 1 << 20;
/// Bytes of a manifest that are read at once.
const READ_BYTES: usize = 64 << 10;

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
        if is_protected(&stat) {
            return Ok(true);
        }
        if hash_file(&path, self.hash)? == digest.md5 {
            protect(&path);
            return Ok(true);
        }
        std::fs::remove_file(&path).map_err(DataError::io(&path))?;
        Ok(false)
    }

    /// Which of many objects exist, like [`Self::contains`], in their order. Each folder of the cache is opened once, since the resolution of a
    /// path takes as long as the rest of a look-up.
    ///
    /// # Errors
    /// If the cache cannot be read.
    pub fn contains_all(&self, digests: &[Digest]) -> Result<Vec<bool>, DataError> {
        let mut shards = vec![Vec::new(); self.shards.len()];
        for (i, digest) in digests.iter().enumerate() {
            shards[usize::from(digest.md5[0])].push(i);
        }
        let found: Vec<Vec<usize>> =
            shards.into_par_iter().map(|numbers| self.existing_in_shard(digests, numbers)).collect::<Result<_, _>>()?;
        let mut existing = vec![false; digests.len()];
        found.into_iter().flatten().for_each(|i| existing[i] = true);
        Ok(existing)
    }

    /// The numbers of the digests whose objects exist. All are in the same folder.
    fn existing_in_shard(&self, digests: &[Digest], mut numbers: Vec<usize>) -> Result<Vec<usize>, DataError> {
        let Some(first) = numbers.first() else { return Ok(numbers) };
        let folder = self.root.join(digests[*first].object_name().0);
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let opened = match rustix::fs::open(&folder, flags, Mode::empty()) {
            Ok(opened) => opened,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(Vec::new()),
            Err(error) => return Err(DataError::io(&folder)(error.into())),
        };
        let mut outcome = Ok(());
        numbers.retain(|i| {
            let digest = &digests[*i];
            let stat = Stat::at(&opened, &digest.to_string()[2..], AtFlags::empty()).map_err(DataError::io(&folder));
            let exists = match stat {
                Ok(None) => Ok(false),
                Ok(Some(stat)) if is_protected(&stat) => Ok(true),
                Ok(Some(_)) => self.contains(digest),
                Err(error) => Err(error),
            };
            exists.unwrap_or_else(|error| {
                outcome = Err(error);
                false
            })
        });
        outcome.map(|()| numbers)
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
        temporary.file().write_all(bytes).map_err(DataError::io(temporary.path()))?;
        temporary.publish(&self.path(digest), Some(self.mode))
    }

    /// Stores a manifest.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put_manifest(&self, manifest: &Manifest) -> Result<Digest, DataError> {
        self.put_manifest_of(manifest.files())
    }

    /// Stores the manifest of these files, as [`write_files`] takes them, without all of it being in memory.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn put_manifest_of<'a>(
        &self,
        files: impl Iterator<Item = (&'a str, &'a str, [u8; 16])>,
    ) -> Result<Digest, DataError> {
        std::fs::create_dir_all(&self.root).map_err(DataError::io(&self.root))?;
        let temporary = Temporary::create(&self.root, self.mode)?;
        let (mut hasher, mut file, mut written) = (Md5::new(), temporary.file(), Ok(()));
        write_files(files, |piece| {
            hasher.update(piece);
            if written.is_ok() {
                written = file.write_all(piece);
            }
        });
        written.map_err(DataError::io(temporary.path()))?;
        let digest = Digest { md5: hasher.finalize().into(), is_dir: true };
        if !self.contains(&digest)? {
            self.make_shard(&digest)?;
            temporary.publish(&self.path(&digest), Some(self.mode))?;
        }
        Ok(digest)
    }

    /// Reads a manifest; `None` if it is not in the cache.
    ///
    /// # Errors
    /// If it cannot be read or understood.
    pub fn manifest(&self, digest: &Digest) -> Result<Option<Manifest>, DataError> {
        let path = self.path(digest);
        let Some(mut file) = open_manifest(&path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(DataError::io(&path))?;
        Manifest::parse(&bytes).map(Some).map_err(|reason| DataError::file(&path, 0, reason))
    }

    /// Reads the digests of the files in a manifest, which takes much less memory than [`Self::manifest`]; `None` if it is not in the cache.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub(crate) fn digests_in(&self, digest: &Digest) -> Result<Option<Vec<Digest>>, DataError> {
        let path = self.path(digest);
        let Some(file) = open_manifest(&path)? else { return Ok(None) };
        let file = BufReader::with_capacity(READ_BYTES, file);
        read_digests(file).map(Some).map_err(|reason| DataError::file(&path, 0, reason))
    }

    /// Reads the beginning of an object: at most `limit` bytes, and one more if the object has more; `None` if the cache lacks it. A link that
    /// stands in the place of an object is not followed.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn read_start(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, DataError> {
        let Some(file) = self.open_object(digest)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(DataError::io(self.path(digest)))?;
        Ok(Some(bytes))
    }

    /// Opens an object to read parts of it; `None` if the cache lacks it. As in [`Self::read_start`], a link is not followed.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(crate) fn open_object(&self, digest: &Digest) -> Result<Option<File>, DataError> {
        let path = self.path(digest);
        // Without NONBLOCK, a pipe would block.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DataError::io(&path)(error)),
        };
        let is_file = file.metadata().map_err(DataError::io(&path))?.is_file();
        Ok(is_file.then_some(file))
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
        let md5 = if self.reflink(&file, temporary.file()) {
            hash_file(temporary.path(), HashName::Md5)?
        } else {
            copy_and_hash(&mut file, temporary.file(), HashName::Md5).map_err(DataError::io(source))?
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
        self.link_with(digest, target, types, |make| staging.replace(target, make))
    }

    /// Puts an object at a path where nothing is, in a folder that nobody else knows.
    ///
    /// # Errors
    /// As [`Self::link`].
    pub fn link_new(&self, digest: &Digest, target: &Path, types: &[LinkType]) -> Result<(), DataError> {
        self.link_with(digest, target, types, |make| {
            make(target).inspect_err(|_| drop(std::fs::remove_file(target))) // The error of `make` is the one to report.
        })
    }

    /// Tries the link types in turn; `create` calls its argument with the path at which the file is created.
    fn link_with(
        &self,
        digest: &Digest,
        target: &Path,
        types: &[LinkType],
        create: impl Fn(&dyn Fn(&Path) -> std::io::Result<()>) -> std::io::Result<()>,
    ) -> Result<(), DataError> {
        let object = self.path(digest);
        for link in types {
            let linked = match link {
                LinkType::Reflink if self.lacks_reflinks.load(Ordering::Relaxed) => continue,
                LinkType::Reflink => create(&|path| {
                    let (source, file) = (File::open(&object)?, new_file(path)?);
                    if self.reflink(&source, &file) {
                        settle(&file)
                    } else {
                        Err(std::io::ErrorKind::Unsupported.into())
                    }
                }),
                LinkType::Copy => create(&|path| {
                    let file = new_file(path)?;
                    copy(&object, &file).and_then(|()| settle(&file))
                }),
                // Renaming one name of a file to another one of it would do nothing.
                LinkType::Hardlink if is_same_file(&object, target) => Ok(()),
                LinkType::Hardlink => create(&|path| {
                    // An empty file may be shared by thousands of names; as in DVC, it is created anew.
                    if std::fs::metadata(&object)?.len() == 0 {
                        File::create(path).map(drop)
                    } else {
                        std::fs::hard_link(&object, path)
                    }
                }),
                LinkType::Symlink => create(&|path| std::os::unix::fs::symlink(&object, path)),
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
                copy(source, temporary.file()).map_err(DataError::io(source))?;
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
        let temporary = Temporary::create(&self.make_shard(digest)?, self.mode)?;
        let is_valid = if self.reflink(&file, temporary.file()) {
            !verify || hash_file(temporary.path(), self.hash)? == digest.md5
        } else {
            let copied = self.copy_small(&mut file, &temporary, digest, verify).transpose();
            let copied = copied.unwrap_or_else(|| self.copy_large(&mut file, &temporary, digest, verify));
            copied.map_err(DataError::io(&source))?
        };
        if !is_valid {
            return Err(DataError::Corrupt { oid: digest.to_string(), place: source });
        }
        temporary.publish(&self.path(digest), Some(self.mode))
    }

    /// Copies an object that fits into a buffer, and returns whether its content is that of the digest, or not to be verified; `None` if it is
    /// too large.
    fn copy_small(
        &self,
        file: &mut File,
        to: &Temporary,
        digest: &Digest,
        verify: bool,
    ) -> std::io::Result<Option<bool>> {
        with_buffer(|buffer| {
            let length = fill(file, buffer)?;
            if length == buffer.len() {
                return Ok(None);
            }
            to.file().write_all(&buffer[..length])?;
            if !verify {
                return Ok(Some(true));
            }
            let mut hasher = Hasher::new(self.hash);
            hasher.update(&buffer[..length]);
            Ok(Some(hasher.finish() == digest.md5))
        })
    }

    /// Copies a large object, and returns the same.
    fn copy_large(&self, file: &mut File, to: &Temporary, digest: &Digest, verify: bool) -> std::io::Result<bool> {
        file.rewind()?;
        if verify {
            return Ok(copy_and_hash(file, to.file(), self.hash)? == digest.md5);
        }
        std::io::copy(file, &mut to.file())?;
        Ok(true)
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

/// Opens the object of a manifest; `None` if it does not exist.
fn open_manifest(path: &Path) -> Result<Option<File>, DataError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DataError::io(path)(error)),
    };
    if file.metadata().map_err(DataError::io(path))?.len() > MAX_MANIFEST_BYTES {
        return Err(DataError::file(path, 0, "it is too large for a manifest"));
    }
    Ok(Some(file))
}

/// Whether an object is complete: DVC and slipway make it read-only when it is.
fn is_protected(stat: &Stat) -> bool {
    stat.mode & 0o7777 == OBJECT_MODE
}

/// Copies a file, and returns its digest.
fn copy_and_hash(file: &mut File, target: &File, hash: HashName) -> std::io::Result<[u8; 16]> {
    let mut hasher = Hasher::new(hash);
    hash_rest(file, Some(target), &mut hasher)?;
    Ok(hasher.finish())
}

/// Whether two paths name the same file.
fn is_same_file(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| path.symlink_metadata().map(|metadata| (metadata.dev(), metadata.ino()));
    identity(a).is_ok_and(|a| identity(b).is_ok_and(|b| a == b))
}

/// Makes an object read-only. Best effort, as in DVC: it may belong to another user of a shared cache.
fn protect(path: &Path) {
    let _ = std::fs::set_permissions(path, Permissions::from_mode(OBJECT_MODE));
}
