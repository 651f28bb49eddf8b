//! Objects as files under one root folder: written beside the tree and renamed.

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

use super::limits::{Counter, Disk, SPACE_CHECK_BYTES, is_older, part_number, part_numbers};
use super::{Entry, Limits, PARTIAL, Reader, Source, parts};
use crate::StoreError;

/// Bytes read at once when an object is sent.
const READ_CHUNK: usize = 512 * 1024;

/// A tree of files; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Files {
    root: PathBuf,
    disk: Disk,
    limits: Limits,
    /// Held while an upload in parts is begun, so that no more of them are than may be.
    beginning: Arc<Mutex<()>>,
}

/// A piece of what is being received. A sender that goes away without `End` gave up.
enum Piece {
    Chunk(Bytes),
    End,
    Broken(String),
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(job).await.unwrap_or(Err(StoreError::Panicked("a file operation")))
}

/// Removes a file that was not finished.
fn discard(unfinished: &Path) {
    match std::fs::remove_file(unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(%error, path = %unfinished.display(), "an unfinished upload stays until it is collected");
        }
        _ => {}
    }
}

impl Files {
    pub(super) fn open(root: PathBuf, limits: Limits) -> Result<Self, StoreError> {
        let partial = root.join(PARTIAL);
        std::fs::create_dir_all(&partial).map_err(StoreError::io("creating the object store"))?;
        let entries = std::fs::read_dir(&partial).map_err(StoreError::io("reading unfinished uploads"))?;
        for entry in entries.flatten() {
            // Folders are uploads in parts, which a client may still complete after a restart.
            if entry.path().is_file() {
                std::fs::remove_file(entry.path()).map_err(StoreError::io("removing an unfinished upload"))?;
            }
        }
        let disk = Disk { folder: root.clone(), min_free: limits.min_free_bytes };
        Ok(Self { root, disk, limits, beginning: Arc::default() })
    }

    /// The place of `path` on disk.
    fn locate(&self, path: &str) -> Result<PathBuf, StoreError> {
        Ok(parts(path)?.iter().fold(self.root.clone(), |place, part| place.join(part)))
    }

    pub(super) fn local(&self, path: &str) -> Result<PathBuf, StoreError> {
        let place = self.locate(path)?;
        if place.exists() { Ok(place) } else { Err(StoreError::NotFound(path.to_owned())) }
    }

    pub(super) async fn put<S, E>(&self, path: &str, stream: S) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let place = self.locate(path)?;
        let counter = Counter::of_object(self.limits.max_object_bytes);
        self.receive(stream, counter, move |unfinished| publish(unfinished, &place)).await
    }

    pub(super) async fn get(&self, path: &str) -> Result<Reader, StoreError> {
        let (place, path) = (self.locate(path)?, path.to_owned());
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
                if name != PARTIAL {
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

    pub(super) async fn begin_parts(&self, id: &str) -> Result<(), StoreError> {
        const WHAT: &str = "beginning an upload";
        let (folder, files) = (self.parts_folder(id), self.clone());
        blocking(move || {
            files.disk.require(WHAT, 0)?;
            let _one_at_a_time = files.beginning.lock();
            let all = std::fs::read_dir(files.root.join(PARTIAL)).map_err(StoreError::io(WHAT))?;
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
        let (folder, missing) = (self.parts_folder(id), StoreError::NotFound(id.to_owned()));
        let place = folder.join(part_number(number)?.to_string());
        if !folder.is_dir() {
            return Err(missing);
        }
        let counter = Counter::of_part(self.limits.max_part_bytes.min(self.limits.max_object_bytes));
        let name = move |unfinished: &Path| {
            std::fs::rename(unfinished, place).map_err(|error| match error.kind() {
                // The upload was completed or aborted in the meantime.
                ErrorKind::NotFound => missing,
                _ => StoreError::io("storing a part")(error),
            })
        };
        self.receive(stream, counter, name).await
    }

    pub(super) async fn complete_parts(&self, id: &str, numbers: Vec<u32>, path: &str) -> Result<(), StoreError> {
        part_numbers(&numbers)?;
        let (folder, place, files) = (self.parts_folder(id), self.locate(path)?, self.clone());
        blocking(move || {
            if !folder.is_dir() {
                let id = folder.file_name().unwrap_or_default();
                return Err(StoreError::NotFound(id.to_string_lossy().into_owned()));
            }
            let mut whole = Counter::of_object(files.limits.max_object_bytes);
            let mut places = Vec::with_capacity(numbers.len());
            for number in numbers {
                let part = folder.join(number.to_string());
                let size = std::fs::metadata(&part).map_err(|error| match error.kind() {
                    ErrorKind::NotFound => StoreError::NotFound(format!("part {number}")),
                    _ => StoreError::io("joining parts")(error),
                })?;
                whole.add(size.len())?;
                places.push(part);
            }
            files.disk.require("joining parts", whole.size())?;
            let unfinished = files.unfinished();
            let joined = join(&places, &unfinished).and_then(|()| publish(&unfinished, &place));
            joined.inspect_err(|_| discard(&unfinished))?;
            std::fs::remove_dir_all(&folder).map_err(StoreError::io("removing parts"))
        })
        .await
    }

    pub(super) async fn abort_parts(&self, id: &str) -> Result<(), StoreError> {
        let folder = self.parts_folder(id);
        blocking(move || match std::fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(StoreError::io("removing parts")(e)),
            _ => Ok(()),
        })
        .await
    }

    pub(super) async fn collect_abandoned(&self, older_than: Duration) -> Result<usize, StoreError> {
        const WHAT: &str = "collecting abandoned uploads";
        let partial = self.root.join(PARTIAL);
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
                    // It was completed or aborted in the meantime.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(StoreError::io(WHAT)(error)),
                }
            }
            Ok(collected)
        })
        .await
    }

    /// How many files and uploads in parts are not finished.
    #[cfg(test)]
    pub(super) fn count_unfinished(&self) -> usize {
        std::fs::read_dir(self.root.join(PARTIAL)).unwrap().count()
    }

    fn parts_folder(&self, id: &str) -> PathBuf {
        self.root.join(PARTIAL).join(id)
    }

    /// A place for a file that is not finished.
    fn unfinished(&self) -> PathBuf {
        self.root.join(PARTIAL).join(ids::hex32())
    }

    /// Writes the stream to a new file, waits until it is on disk and gives it its place with `publish`; removes it on failure. If
    /// the returned future is dropped, because the client has gone, the file is removed too, or published as a whole.
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
        let (unfinished, disk) = (self.unfinished(), self.disk.clone());
        let writer = tokio::task::spawn_blocking(move || {
            let written = write_pieces(&unfinished, receiver, counter, &disk);
            let published = written.and_then(|size| publish(&unfinished).map(|()| size));
            published.inspect_err(|_| discard(&unfinished))
        });
        // A closed channel means that the writer failed; its result tells why.
        loop {
            let piece = match stream.next().await {
                Some(Ok(chunk)) => Piece::Chunk(chunk),
                Some(Err(error)) => Piece::Broken(error.to_string()),
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

/// Writes what comes in to a new file and waits until it is on disk; its size.
fn write_pieces(
    place: &Path,
    mut pieces: mpsc::Receiver<Piece>,
    mut counter: Counter,
    disk: &Disk,
) -> Result<u64, StoreError> {
    const WHAT: &str = "writing an object";
    let broken =
        |reason: String| StoreError::io("receiving an object")(std::io::Error::new(ErrorKind::UnexpectedEof, reason));
    disk.require(WHAT, 0)?;
    let mut file = File::create_new(place).map_err(StoreError::io(WHAT))?;
    let mut checked = 0;
    loop {
        let chunk = match pieces.blocking_recv() {
            Some(Piece::Chunk(chunk)) => chunk,
            Some(Piece::Broken(reason)) => return Err(broken(reason)),
            Some(Piece::End) => break,
            None => return Err(broken("the request was given up".into())),
        };
        counter.add(chunk.len() as u64)?;
        if counter.size() - checked >= SPACE_CHECK_BYTES {
            checked = counter.size();
            disk.require(WHAT, chunk.len() as u64)?;
        }
        file.write_all(&chunk).map_err(StoreError::io(WHAT))?;
    }
    file.sync_data().map_err(StoreError::io(WHAT))?;
    Ok(counter.size())
}

/// When a file, or anything directly in a folder, was last written.
fn last_write(place: &Path) -> std::io::Result<SystemTime> {
    let mut latest = std::fs::metadata(place)?.modified()?;
    if place.is_dir() {
        for entry in std::fs::read_dir(place)? {
            latest = latest.max(entry?.metadata()?.modified()?);
        }
    }
    Ok(latest)
}

/// Gives a finished file its name.
fn publish(unfinished: &Path, place: &Path) -> Result<(), StoreError> {
    if let Some(folder) = place.parent() {
        std::fs::create_dir_all(folder).map_err(StoreError::io("creating a folder"))?;
    }
    if place.is_dir() {
        return Err(StoreError::IsFolder(place.file_name().unwrap_or_default().to_string_lossy().into_owned()));
    }
    std::fs::rename(unfinished, place).map_err(StoreError::io("naming an object"))?;
    if let Some(folder) = place.parent() {
        File::open(folder).and_then(|f| f.sync_all()).map_err(StoreError::io("naming an object"))?;
    }
    Ok(())
}

/// Joins files into a new one.
fn join(parts: &[PathBuf], place: &Path) -> Result<(), StoreError> {
    let mut whole = File::create_new(place).map_err(StoreError::io("joining parts"))?;
    for part in parts {
        let mut part = File::open(part).map_err(StoreError::io("joining parts"))?;
        std::io::copy(&mut part, &mut whole).map_err(StoreError::io("joining parts"))?;
    }
    whole.sync_data().map_err(StoreError::io("joining parts"))
}

/// The bytes `from..to` of a file as a stream of chunks.
pub(super) fn stream(mut file: File, from: u64, to: u64) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send {
    let (sender, receiver) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        let mut left = to.saturating_sub(from);
        if let Err(e) = file.seek(SeekFrom::Start(from)) {
            let _ = sender.blocking_send(Err(e)); // Nobody reads any more; there is nobody to tell.
            return;
        }
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(READ_CHUNK).min(READ_CHUNK);
            let mut chunk = Vec::with_capacity(want);
            match Read::take(&mut file, want as u64).read_to_end(&mut chunk) {
                Ok(0) => return,
                Ok(n) => left -= n as u64,
                Err(e) => {
                    let _ = sender.blocking_send(Err(e)); // Nobody reads any more; there is nobody to tell.
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
