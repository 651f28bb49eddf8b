//! The object store on a local file system. An object is written to a temporary file under `.part/`, synced to disk and then renamed,
//! so it appears under its name only when it is complete.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use parking_lot::Mutex;
use slipway_core::ids;
use tokio::sync::mpsc;

use super::limits::{Counter, Disk, SPACE_CHECK_INTERVAL_BYTES, check_part_number, check_part_numbers, is_older};
use super::{Entry, Limits, PARTIAL_DIR, Reader, Source, is_reserved, segments};
use crate::StoreError;

/// Maximum bytes of one chunk when an object is read.
const READ_CHUNK: usize = 512 * 1024;

/// A handle to a store of files; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Files {
    root: PathBuf,
    disk: Disk,
    limits: Limits,
    /// Serialises the creation of multipart uploads, so that their number cannot exceed the limit.
    create_lock: Arc<Mutex<()>>,
}

/// A message to the thread that writes a received object. A sender that is dropped without `End` means that the request was cancelled.
enum Piece {
    Chunk(Bytes),
    End,
    /// The stream failed with this error.
    Failed(String),
}

/// Runs file operations on a thread of the blocking pool.
async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(job).await.unwrap_or(Err(StoreError::Panicked("a file operation")))
}

/// Removes an unfinished file. A failure is only logged, because a later cleanup removes the file.
fn discard(unfinished: &Path) {
    match std::fs::remove_file(unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(%error, path = %unfinished.display(), "cannot remove an unfinished upload; the next cleanup removes it");
        }
        _ => {}
    }
}

impl Files {
    pub(super) fn open(root: PathBuf, limits: Limits) -> Result<Self, StoreError> {
        let partial = root.join(PARTIAL_DIR);
        std::fs::create_dir_all(&partial).map_err(StoreError::io("creating the object store"))?;
        let entries = std::fs::read_dir(&partial).map_err(StoreError::io("reading unfinished uploads"))?;
        for entry in entries.flatten() {
            // Folders are multipart uploads, which a client may still complete after a restart.
            if entry.path().is_file() {
                std::fs::remove_file(entry.path()).map_err(StoreError::io("removing an unfinished upload"))?;
            }
        }
        let disk = Disk { folder: root.clone(), min_free: limits.min_free_bytes };
        Ok(Self { root, disk, limits, create_lock: Arc::default() })
    }

    /// The store in the folder of versioned data.
    pub(super) fn folder(&self, name: &str) -> Result<Self, StoreError> {
        Self::open(self.root.join(name), self.limits)
    }

    /// The path of an object or folder on disk.
    fn locate(&self, path: &str) -> Result<PathBuf, StoreError> {
        Ok(segments(path)?.iter().fold(self.root.clone(), |place, segment| place.join(segment)))
    }

    pub(super) fn local_path(&self, path: &str) -> Result<PathBuf, StoreError> {
        let place = self.locate(path)?;
        if place.exists() { Ok(place) } else { Err(StoreError::NotFound(path.to_owned())) }
    }

    pub(super) async fn put<S, E>(&self, path: &str, stream: S) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let place = self.locate(path)?;
        let counter = Counter::for_object(self.limits.max_object_bytes);
        self.receive(stream, counter, move |unfinished| publish(unfinished, &place)).await
    }

    /// Stores many objects. The file system is synced once instead of each file and folder.
    pub(super) async fn put_many(&self, objects: Vec<(String, Bytes)>) -> Result<(), StoreError> {
        const WHAT: &str = "writing objects";
        let files = self.clone();
        blocking(move || {
            let mut total = 0;
            for (_, content) in &objects {
                Counter::for_object(files.limits.max_object_bytes).add(content.len() as u64)?;
                total += content.len() as u64;
            }
            files.disk.require(WHAT, total)?;
            let root = File::open(&files.root).map_err(StoreError::io(WHAT))?;
            let sync = || rustix::fs::syncfs(&root).map_err(|error| StoreError::io(WHAT)(error.into()));
            let (mut unfinished, mut places) = (Vec::with_capacity(objects.len()), Vec::with_capacity(objects.len()));
            let stored = (|| {
                for (path, content) in &objects {
                    let (place, temporary) = (files.locate(path)?, files.temp_path());
                    unfinished.push(temporary.clone());
                    let mut file = File::create_new(&temporary).map_err(StoreError::io(WHAT))?;
                    file.write_all(content).map_err(StoreError::io(WHAT))?;
                    places.push(place);
                }
                sync()?;
                for (temporary, place) in unfinished.iter().zip(&places) {
                    rename(temporary, place)?;
                }
                sync()
            })();
            stored.inspect_err(|_| unfinished.iter().for_each(|path| discard(path)))
        })
        .await
    }

    /// The contents of objects of at most `max_bytes`.
    pub(super) async fn get_many(
        &self,
        paths: Vec<String>,
        max_bytes: u64,
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let places: Vec<PathBuf> = paths.iter().map(|path| self.locate(path)).collect::<Result<_, _>>()?;
        let read = move |place: &PathBuf| {
            let mut file = match File::open(place) {
                Ok(file) => file,
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
                Err(error) => return Err(error),
            };
            let meta = file.metadata()?;
            if meta.is_dir() || meta.len() > max_bytes {
                return Ok(None);
            }
            let mut content = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0));
            Read::take(&mut file, max_bytes).read_to_end(&mut content)?;
            Ok(Some(content))
        };
        blocking(move || places.iter().map(read).collect::<Result<_, _>>().map_err(StoreError::io("reading objects")))
            .await
    }

    pub(super) async fn get(&self, path: &str) -> Result<Reader, StoreError> {
        open(self.locate(path)?, path.to_owned()).await
    }

    pub(super) async fn list(&self, path: &str) -> Result<Vec<Entry>, StoreError> {
        let place = if path.is_empty() { self.root.clone() } else { self.locate(path)? };
        blocking(move || {
            let entries = match std::fs::read_dir(&place) {
                Ok(entries) => entries,
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    return Ok(Vec::new());
                }
                Err(e) => return Err(StoreError::io("listing a folder")(e)),
            };
            let mut found = Vec::new();
            for entry in entries {
                let entry = entry.map_err(StoreError::io("listing a folder"))?;
                let meta = entry.metadata().map_err(StoreError::io("listing a folder"))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if !is_reserved(&name) {
                    found.push(Entry { name, is_dir: meta.is_dir(), size: meta.len() });
                }
            }
            Ok(found)
        })
        .await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<(), StoreError> {
        let (place, path) = (self.locate(path)?, path.to_owned());
        blocking(move || {
            let removed = if place.is_dir() { std::fs::remove_dir_all(&place) } else { std::fs::remove_file(&place) };
            match removed {
                Err(e) if e.kind() != ErrorKind::NotFound => Err(StoreError::io(format!("removing '{path}'"))(e)),
                _ => Ok(()),
            }
        })
        .await
    }

    /// Which of the objects exist.
    pub(super) async fn exist(&self, paths: &[String]) -> Result<Vec<bool>, StoreError> {
        let places: Vec<PathBuf> = paths.iter().map(|path| self.locate(path)).collect::<Result<_, _>>()?;
        blocking(move || Ok(places.iter().map(|place| place.is_file()).collect())).await
    }

    /// The paths of all objects below a folder.
    pub(super) async fn walk(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let (root, folder) = (self.locate(folder)?, folder.to_owned());
        blocking(move || {
            let (mut found, mut folders) = (Vec::new(), vec![(root, folder)]);
            while let Some((place, path)) = folders.pop() {
                let entries = match std::fs::read_dir(&place) {
                    Ok(entries) => entries,
                    Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
                    Err(error) => return Err(StoreError::io("listing a folder")(error)),
                };
                for entry in entries {
                    let entry = entry.map_err(StoreError::io("listing a folder"))?;
                    let path = format!("{path}/{}", entry.file_name().to_string_lossy());
                    if entry.file_type().map_err(StoreError::io("listing a folder"))?.is_dir() {
                        folders.push((entry.path(), path));
                    } else {
                        found.push(path);
                    }
                }
            }
            Ok(found)
        })
        .await
    }

    /// The numbers of the parts of an upload, with their sizes in bytes; empty if there is no such upload.
    pub(super) async fn parts(&self, id: &str) -> Result<Vec<(u32, u64)>, StoreError> {
        const WHAT: &str = "listing parts";
        let folder = self.upload_folder(id);
        blocking(move || {
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(StoreError::io(WHAT)(error)),
            };
            let mut found = Vec::new();
            for entry in entries {
                let entry = entry.map_err(StoreError::io(WHAT))?;
                if let Ok(number) = entry.file_name().to_string_lossy().parse() {
                    found.push((number, entry.metadata().map_err(StoreError::io(WHAT))?.len()));
                }
            }
            Ok(found)
        })
        .await
    }

    /// Opens a part of an upload.
    pub(super) async fn part(&self, id: &str, number: u32) -> Result<Reader, StoreError> {
        let place = self.upload_folder(id).join(check_part_number(number)?.to_string());
        open(place, format!("part {number}")).await
    }

    pub(super) async fn create_multipart(&self, id: &str) -> Result<(), StoreError> {
        const WHAT: &str = "creating an upload";
        let (folder, files) = (self.upload_folder(id), self.clone());
        blocking(move || {
            files.disk.require(WHAT, 0)?;
            let _guard = files.create_lock.lock();
            if folder.is_dir() {
                return Ok(()); // A client resumes an upload whose id it chose.
            }
            let all = std::fs::read_dir(files.root.join(PARTIAL_DIR)).map_err(StoreError::io(WHAT))?;
            let limit = files.limits.max_open_uploads;
            if all.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())).count() >= limit {
                return Err(StoreError::TooManyUploads { limit });
            }
            std::fs::create_dir(&folder).map_err(StoreError::io(WHAT))
        })
        .await
    }

    pub(super) async fn put_part<S, E>(&self, id: &str, number: u32, stream: S) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let (folder, missing) = (self.upload_folder(id), StoreError::NotFound(id.to_owned()));
        let place = folder.join(check_part_number(number)?.to_string());
        if !folder.is_dir() {
            return Err(missing);
        }
        let counter = Counter::for_part(self.limits.max_part_bytes.min(self.limits.max_object_bytes));
        let rename = move |unfinished: &Path| {
            std::fs::rename(unfinished, place).map_err(|error| match error.kind() {
                // The upload was completed or aborted in the meantime.
                ErrorKind::NotFound => missing,
                _ => StoreError::io("storing a part")(error),
            })
        };
        self.receive(stream, counter, rename).await
    }

    pub(super) async fn complete_multipart(&self, id: &str, numbers: Vec<u32>, path: &str) -> Result<(), StoreError> {
        check_part_numbers(&numbers)?;
        let (folder, place, files) = (self.upload_folder(id), self.locate(path)?, self.clone());
        blocking(move || {
            if !folder.is_dir() {
                let id = folder.file_name().unwrap_or_default();
                return Err(StoreError::NotFound(id.to_string_lossy().into_owned()));
            }
            let mut total = Counter::for_object(files.limits.max_object_bytes);
            let mut places = Vec::with_capacity(numbers.len());
            for number in numbers {
                let part = folder.join(number.to_string());
                let size = std::fs::metadata(&part).map_err(|error| match error.kind() {
                    ErrorKind::NotFound => StoreError::NotFound(format!("part {number}")),
                    _ => StoreError::io("joining parts")(error),
                })?;
                total.add(size.len())?;
                places.push(part);
            }
            files.disk.require("joining parts", total.size())?;
            let unfinished = files.temp_path();
            let joined = concatenate(&places, &unfinished).and_then(|()| publish(&unfinished, &place));
            joined.inspect_err(|_| discard(&unfinished))?;
            std::fs::remove_dir_all(&folder).map_err(StoreError::io("removing parts"))
        })
        .await
    }

    pub(super) async fn abort_multipart(&self, id: &str) -> Result<(), StoreError> {
        let folder = self.upload_folder(id);
        blocking(move || match std::fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(StoreError::io("removing parts")(e)),
            _ => Ok(()),
        })
        .await
    }

    pub(super) async fn collect_abandoned(&self, older_than: Duration) -> Result<usize, StoreError> {
        const WHAT: &str = "removing abandoned uploads";
        let partial = self.root.join(PARTIAL_DIR);
        blocking(move || {
            let mut collected = 0;
            for entry in std::fs::read_dir(&partial).map_err(StoreError::io(WHAT))? {
                let place = entry.map_err(StoreError::io(WHAT))?.path();
                let removed = match last_write(&place) {
                    Ok(written) if !is_older(written, older_than) => continue,
                    Ok(_) if place.is_dir() => std::fs::remove_dir_all(&place),
                    Ok(_) => std::fs::remove_file(&place),
                    Err(error) => Err(error),
                };
                match removed {
                    Ok(()) => collected += 1,
                    // The upload was completed or aborted in the meantime.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(StoreError::io(WHAT)(error)),
                }
            }
            Ok(collected)
        })
        .await
    }

    /// Number of unfinished files and multipart uploads.
    #[cfg(test)]
    pub(super) fn count_unfinished(&self) -> usize {
        std::fs::read_dir(self.root.join(PARTIAL_DIR)).unwrap().count()
    }

    fn upload_folder(&self, id: &str) -> PathBuf {
        self.root.join(PARTIAL_DIR).join(id)
    }

    /// A unique path for an unfinished file.
    fn temp_path(&self) -> PathBuf {
        self.root.join(PARTIAL_DIR).join(ids::hex32())
    }

    /// Writes the stream to a new file, syncs it to disk and moves it to its final path with `publish`. On failure the file is
    /// removed. If the returned future is dropped, because the client disconnected, the file is either removed or published complete.
    async fn receive<S, E>(
        &self,
        mut stream: S,
        counter: Counter,
        publish: impl FnOnce(&Path) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let (sender, receiver) = mpsc::channel(32);
        let (unfinished, disk) = (self.temp_path(), self.disk.clone());
        let writer = tokio::task::spawn_blocking(move || {
            let written = write_pieces(&unfinished, receiver, counter, &disk);
            let published = written.and_then(|size| publish(&unfinished).map(|()| size));
            published.inspect_err(|_| discard(&unfinished))
        });
        // A closed channel means that the writer failed; its result contains the error.
        loop {
            let piece = match stream.next().await {
                Some(Ok(chunk)) => Piece::Chunk(chunk),
                Some(Err(error)) => Piece::Failed(error.to_string()),
                None => Piece::End,
            };
            let last = !matches!(piece, Piece::Chunk(_));
            if sender.send(piece).await.is_err() || last {
                break;
            }
        }
        writer.await.unwrap_or(Err(StoreError::Panicked("a file operation")))
    }
}

/// Opens a file as an object; `path` is its name in errors.
async fn open(place: PathBuf, path: String) -> Result<Reader, StoreError> {
    blocking(move || {
        let file = File::open(&place).map_err(|e| match e.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => StoreError::NotFound(path.clone()),
            _ => StoreError::io(format!("opening '{path}'"))(e),
        })?;
        let meta = file.metadata().map_err(StoreError::io(format!("reading '{path}'")))?;
        if meta.is_dir() {
            return Err(StoreError::IsFolder(path));
        }
        Ok(Reader { size: meta.len(), source: Source::File(file) })
    })
    .await
}

/// Writes the received pieces to a new file and syncs it to disk; returns its size in bytes.
fn write_pieces(
    place: &Path,
    mut pieces: mpsc::Receiver<Piece>,
    mut counter: Counter,
    disk: &Disk,
) -> Result<u64, StoreError> {
    const WHAT: &str = "writing an object";
    let receive_error =
        |reason: String| StoreError::io("receiving an object")(std::io::Error::new(ErrorKind::UnexpectedEof, reason));
    disk.require(WHAT, 0)?;
    let mut file = File::create_new(place).map_err(StoreError::io(WHAT))?;
    let mut checked = 0;
    loop {
        let chunk = match pieces.blocking_recv() {
            Some(Piece::Chunk(chunk)) => chunk,
            Some(Piece::Failed(reason)) => return Err(receive_error(reason)),
            Some(Piece::End) => break,
            None => return Err(receive_error("the request was cancelled".into())),
        };
        counter.add(chunk.len() as u64)?;
        if counter.size() - checked >= SPACE_CHECK_INTERVAL_BYTES {
            checked = counter.size();
            disk.require(WHAT, chunk.len() as u64)?;
        }
        file.write_all(&chunk).map_err(StoreError::io(WHAT))?;
    }
    file.sync_data().map_err(StoreError::io(WHAT))?;
    Ok(counter.size())
}

/// Time of the last write to a file, or to a folder and the files directly in it.
fn last_write(place: &Path) -> std::io::Result<SystemTime> {
    let mut latest = std::fs::metadata(place)?.modified()?;
    if place.is_dir() {
        for entry in std::fs::read_dir(place)? {
            latest = latest.max(entry?.metadata()?.modified()?);
        }
    }
    Ok(latest)
}

/// Moves a finished file to its final path, durably.
fn publish(unfinished: &Path, place: &Path) -> Result<(), StoreError> {
    rename(unfinished, place)?;
    if let Some(folder) = place.parent() {
        File::open(folder).and_then(|f| f.sync_all()).map_err(StoreError::io("renaming an object"))?;
    }
    Ok(())
}

/// Moves a finished file to its final path.
fn rename(unfinished: &Path, place: &Path) -> Result<(), StoreError> {
    if let Some(folder) = place.parent() {
        std::fs::create_dir_all(folder).map_err(StoreError::io("creating a folder"))?;
    }
    if place.is_dir() {
        return Err(StoreError::IsFolder(place.file_name().unwrap_or_default().to_string_lossy().into_owned()));
    }
    std::fs::rename(unfinished, place).map_err(StoreError::io("renaming an object"))
}

/// Writes the contents of several files, one after the other, into a new file.
fn concatenate(parts: &[PathBuf], place: &Path) -> Result<(), StoreError> {
    let mut whole = File::create_new(place).map_err(StoreError::io("joining parts"))?;
    for part in parts {
        let mut part = File::open(part).map_err(StoreError::io("joining parts"))?;
        std::io::copy(&mut part, &mut whole).map_err(StoreError::io("joining parts"))?;
    }
    whole.sync_data().map_err(StoreError::io("joining parts"))
}

/// Streams the bytes `from..to` of a file.
pub(super) fn stream(mut file: File, from: u64, to: u64) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send {
    let (sender, receiver) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        let mut remaining = to.saturating_sub(from);
        if let Err(e) = file.seek(SeekFrom::Start(from)) {
            let _ = sender.blocking_send(Err(e)); // This fails only if the reader was dropped.
            return;
        }
        while remaining > 0 {
            let chunk_bytes = usize::try_from(remaining).unwrap_or(READ_CHUNK).min(READ_CHUNK);
            let mut chunk = Vec::with_capacity(chunk_bytes);
            match Read::take(&mut file, chunk_bytes as u64).read_to_end(&mut chunk) {
                Ok(0) => return,
                Ok(n) => remaining -= n as u64,
                Err(e) => {
                    let _ = sender.blocking_send(Err(e)); // This fails only if the reader was dropped.
                    return;
                }
            }
            if sender.blocking_send(Ok(Bytes::from(chunk))).is_err() {
                return;
            }
        }
    });
    futures_util::stream::unfold(receiver, |mut r| async move { r.recv().await.map(|item| (item, r)) })
}
