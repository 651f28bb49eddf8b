//! Objects as files under one root folder: written beside the tree and renamed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use slipway_core::ids;
use tokio::sync::mpsc;

use super::{Entry, PARTIAL, Reader, Source, parts};
use crate::StoreError;

/// Bytes read at once when an object is sent.
const READ_CHUNK: usize = 512 * 1024;

/// A tree of files; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Files {
    root: PathBuf,
}

fn failed(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StoreError {
    let what = what.into();
    move |source| StoreError::Object { what, source }
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(job).await.unwrap_or(Err(StoreError::Closed))
}

impl Files {
    pub(super) fn open(root: PathBuf) -> Result<Self, StoreError> {
        let partial = root.join(PARTIAL);
        std::fs::create_dir_all(&partial).map_err(failed("creating the object store"))?;
        let entries = std::fs::read_dir(&partial).map_err(failed("reading unfinished uploads"))?;
        for entry in entries.flatten() {
            // Folders are uploads in parts, which a client may still complete after a restart.
            if entry.path().is_file() {
                std::fs::remove_file(entry.path()).map_err(failed("removing an unfinished upload"))?;
            }
        }
        Ok(Self { root })
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
        let unfinished = self.root.join(PARTIAL).join(ids::hex32());
        let size = receive(stream, unfinished.clone()).await?;
        blocking(move || {
            publish(&unfinished, &place).inspect_err(|_| drop(std::fs::remove_file(&unfinished)))?;
            Ok(size)
        })
        .await
    }

    pub(super) async fn get(&self, path: &str) -> Result<Reader, StoreError> {
        let (place, path) = (self.locate(path)?, path.to_owned());
        blocking(move || {
            let file = File::open(&place).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => StoreError::NotFound(path.clone()),
                _ => failed(format!("opening '{path}'"))(e),
            })?;
            let meta = file.metadata().map_err(failed(format!("reading '{path}'")))?;
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
                Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                    return Ok(Vec::new());
                }
                Err(e) => return Err(failed("listing a folder")(e)),
            };
            let mut found = Vec::new();
            for entry in entries {
                let entry = entry.map_err(failed("listing a folder"))?;
                let meta = entry.metadata().map_err(failed("listing a folder"))?;
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
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(format!("removing '{path}'"))(e)),
                _ => Ok(()),
            }
        })
        .await
    }

    pub(super) async fn begin_parts(&self, id: &str) -> Result<(), StoreError> {
        let folder = self.parts_folder(id);
        blocking(move || std::fs::create_dir(&folder).map_err(failed("beginning an upload"))).await
    }

    pub(super) async fn put_part<S, E>(&self, id: &str, number: u32, stream: S) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let folder = self.parts_folder(id);
        if !folder.is_dir() {
            return Err(StoreError::NotFound(id.to_owned()));
        }
        let unfinished = self.root.join(PARTIAL).join(ids::hex32());
        let size = receive(stream, unfinished.clone()).await?;
        let place = folder.join(number.to_string());
        blocking(move || std::fs::rename(&unfinished, place).map_err(failed("storing a part"))).await?;
        Ok(size)
    }

    pub(super) async fn complete_parts(&self, id: &str, numbers: Vec<u32>, path: &str) -> Result<(), StoreError> {
        let (folder, place) = (self.parts_folder(id), self.locate(path)?);
        let places: Vec<_> = numbers.iter().map(|n| folder.join(n.to_string())).collect();
        let unfinished = self.root.join(PARTIAL).join(ids::hex32());
        blocking(move || {
            if let Some((_, number)) = places.iter().zip(&numbers).find(|(part, _)| !part.is_file()) {
                return Err(StoreError::NotFound(format!("part {number}")));
            }
            let joined = join(&places, &unfinished).and_then(|()| publish(&unfinished, &place));
            joined.inspect_err(|_| drop(std::fs::remove_file(&unfinished)))?;
            std::fs::remove_dir_all(&folder).map_err(failed("removing parts"))
        })
        .await
    }

    pub(super) async fn abort_parts(&self, id: &str) -> Result<(), StoreError> {
        let folder = self.parts_folder(id);
        blocking(move || match std::fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("removing parts")(e)),
            _ => Ok(()),
        })
        .await
    }

    fn parts_folder(&self, id: &str) -> PathBuf {
        self.root.join(PARTIAL).join(id)
    }
}

/// Writes the stream to a new file and waits until it is on disk; removes the file on failure.
async fn receive<S, E>(mut stream: S, place: PathBuf) -> Result<u64, StoreError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    let (sender, mut receiver) = mpsc::channel::<Result<Bytes, String>>(32);
    let writer = tokio::task::spawn_blocking(move || {
        let written = (|| {
            let mut file = File::create_new(&place).map_err(failed("creating an object"))?;
            let mut size = 0u64;
            while let Some(chunk) = receiver.blocking_recv() {
                let chunk = chunk.map_err(|reason| {
                    failed("receiving an object")(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, reason))
                })?;
                file.write_all(&chunk).map_err(failed("writing an object"))?;
                size += chunk.len() as u64;
            }
            file.sync_data().map_err(failed("writing an object"))?;
            Ok(size)
        })();
        written.inspect_err(|_| drop(std::fs::remove_file(&place)))
    });
    while let Some(chunk) = stream.next().await {
        // A closed channel means the writer failed; its result tells why.
        if sender.send(chunk.map_err(|e| e.to_string())).await.is_err() {
            break;
        }
    }
    drop(sender);
    writer.await.unwrap_or(Err(StoreError::Closed))
}

/// Gives a finished file its name.
fn publish(unfinished: &Path, place: &Path) -> Result<(), StoreError> {
    if let Some(folder) = place.parent() {
        std::fs::create_dir_all(folder).map_err(failed("creating a folder"))?;
    }
    if place.is_dir() {
        return Err(StoreError::IsFolder(place.file_name().unwrap_or_default().to_string_lossy().into_owned()));
    }
    std::fs::rename(unfinished, place).map_err(failed("naming an object"))?;
    if let Some(folder) = place.parent() {
        File::open(folder).and_then(|f| f.sync_all()).map_err(failed("naming an object"))?;
    }
    Ok(())
}

/// Joins files into a new one.
fn join(parts: &[PathBuf], place: &Path) -> Result<(), StoreError> {
    let mut whole = File::create_new(place).map_err(failed("joining parts"))?;
    for part in parts {
        let mut part = File::open(part).map_err(failed("joining parts"))?;
        std::io::copy(&mut part, &mut whole).map_err(failed("joining parts"))?;
    }
    whole.sync_data().map_err(failed("joining parts"))
}

/// The bytes `from..to` of a file as a stream of chunks.
pub(super) fn stream(mut file: File, from: u64, to: u64) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send {
    let (sender, receiver) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        let mut left = to.saturating_sub(from);
        if let Err(e) = file.seek(SeekFrom::Start(from)) {
            drop(sender.blocking_send(Err(e)));
            return;
        }
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(READ_CHUNK).min(READ_CHUNK);
            let mut chunk = Vec::with_capacity(want);
            match Read::take(&mut file, want as u64).read_to_end(&mut chunk) {
                Ok(0) => return,
                Ok(n) => left -= n as u64,
                Err(e) => {
                    drop(sender.blocking_send(Err(e)));
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
