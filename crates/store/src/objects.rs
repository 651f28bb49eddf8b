//! Artifacts as files under one root folder.
//!
//! A file appears under its name only when it is complete: it is written beside the tree (`.part/`) and
//! renamed. Uploads in parts (`mlflow-artifacts` multipart) are kept in `.part/ID/` until completed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use slipway_core::ids;
use tokio::sync::mpsc;

use crate::StoreError;

/// Bytes read at once when an object is sent.
const READ_CHUNK: usize = 512 * 1024;
/// Folder of files that are not complete yet.
const PARTIAL: &str = ".part";

/// A tree of artifacts; cheap to clone.
#[derive(Debug, Clone)]
pub struct Objects {
    root: PathBuf,
}

/// One name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name without its folder.
    pub name: String,
    /// Whether it is a folder.
    pub is_dir: bool,
    /// Bytes, for files.
    pub size: u64,
}

/// An object ready to be read.
#[derive(Debug)]
pub struct Reader {
    file: File,
    /// Bytes in the whole object.
    pub size: u64,
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

impl Objects {
    /// The tree under `root`, which is created, and cleared of files an earlier process left unfinished.
    ///
    /// # Errors
    /// [`StoreError::Object`] when the folder cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root = root.into();
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
    ///
    /// # Errors
    /// [`StoreError::BadPath`] for a path that leaves the tree or names nothing.
    pub fn locate(&self, path: &str) -> Result<PathBuf, StoreError> {
        let bad = || StoreError::BadPath(path.to_owned());
        let mut full = self.root.clone();
        for part in Path::new(path).components() {
            match part {
                Component::Normal(name) => full.push(name),
                Component::CurDir => {}
                _ => return Err(bad()),
            }
        }
        if path.contains('\0') || full == self.root || full.starts_with(self.root.join(PARTIAL)) {
            return Err(bad());
        }
        Ok(full)
    }

    /// Stores the stream under `path`, replacing what was there, and answers once it is on disk.
    ///
    /// # Errors
    /// [`StoreError`] for a bad path, a failing disk or a stream that breaks off; nothing is left behind then.
    pub async fn put<S, E>(&self, path: &str, stream: S) -> Result<u64, StoreError>
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

    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::IsFolder`], or the disk's error.
    pub async fn get(&self, path: &str) -> Result<Reader, StoreError> {
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
            Ok(Reader { size: meta.len(), file })
        })
        .await
    }

    /// What is in the folder at `path` (`""` for the root), by name; nothing when it is no folder.
    ///
    /// # Errors
    /// [`StoreError::BadPath`] or the disk's error.
    pub async fn list(&self, path: &str) -> Result<Vec<Entry>, StoreError> {
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
            found.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(found)
        })
        .await
    }

    /// Removes the file or the folder with all it holds. Nothing there is no error.
    ///
    /// # Errors
    /// [`StoreError::BadPath`] or the disk's error.
    pub async fn delete(&self, path: &str) -> Result<(), StoreError> {
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

    /// Begins an upload in parts; returns its id.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn begin_parts(&self) -> Result<String, StoreError> {
        let id = ids::hex32();
        let folder = self.parts_folder(&id)?;
        blocking(move || std::fs::create_dir(&folder).map_err(failed("beginning an upload"))).await?;
        Ok(id)
    }

    /// Stores part `number` of upload `id`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an unknown upload, or the disk's error.
    pub async fn put_part<S, E>(&self, id: &str, number: u32, stream: S) -> Result<u64, StoreError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
        E: std::fmt::Display,
    {
        let folder = self.parts_folder(id)?;
        if !folder.is_dir() {
            return Err(StoreError::NotFound(id.to_owned()));
        }
        let unfinished = self.root.join(PARTIAL).join(ids::hex32());
        let size = receive(stream, unfinished.clone()).await?;
        let place = folder.join(number.to_string());
        blocking(move || std::fs::rename(&unfinished, place).map_err(failed("storing a part"))).await?;
        Ok(size)
    }

    /// Joins the parts of upload `id`, in the order given, into the object at `path`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an unknown upload or part, or the disk's error.
    pub async fn complete_parts(&self, id: &str, numbers: Vec<u32>, path: &str) -> Result<(), StoreError> {
        let (folder, place) = (self.parts_folder(id)?, self.locate(path)?);
        let Some(first) = numbers.first().map(|n| folder.join(n.to_string())) else {
            return Err(StoreError::NotFound(format!("{id}: no parts")));
        };
        blocking(move || {
            let missing = |n: &Path| StoreError::NotFound(n.display().to_string());
            let mut whole =
                File::options().append(true).open(&first).map_err(|_| missing(Path::new("the first part")))?;
            for number in &numbers[1..] {
                let part = folder.join(number.to_string());
                let mut part = File::open(&part).map_err(|_| missing(Path::new(&format!("part {number}"))))?;
                std::io::copy(&mut part, &mut whole).map_err(failed("joining parts"))?;
            }
            whole.sync_data().map_err(failed("joining parts"))?;
            publish(&first, &place)?;
            std::fs::remove_dir_all(&folder).map_err(failed("removing parts"))
        })
        .await
    }

    /// Forgets upload `id` and its parts.
    ///
    /// # Errors
    /// [`StoreError::BadPath`] or the disk's error.
    pub async fn abort_parts(&self, id: &str) -> Result<(), StoreError> {
        let folder = self.parts_folder(id)?;
        blocking(move || match std::fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("removing parts")(e)),
            _ => Ok(()),
        })
        .await
    }

    fn parts_folder(&self, id: &str) -> Result<PathBuf, StoreError> {
        if id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(self.root.join(PARTIAL).join(id))
        } else {
            Err(StoreError::BadPath(id.to_owned()))
        }
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

impl Reader {
    /// The bytes `from..to` as a stream of chunks.
    pub fn stream(mut self, from: u64, to: u64) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send {
        let (sender, receiver) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let mut left = to.saturating_sub(from);
            if let Err(e) = self.file.seek(SeekFrom::Start(from)) {
                drop(sender.blocking_send(Err(e)));
                return;
            }
            while left > 0 {
                let want = usize::try_from(left).unwrap_or(READ_CHUNK).min(READ_CHUNK);
                let mut chunk = Vec::with_capacity(want);
                match Read::take(&mut self.file, want as u64).read_to_end(&mut chunk) {
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

    /// The whole object.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn bytes(mut self) -> Result<Vec<u8>, StoreError> {
        blocking(move || {
            let mut all = Vec::with_capacity(usize::try_from(self.size).unwrap_or(0));
            self.file.read_to_end(&mut all).map_err(failed("reading an object"))?;
            Ok(all)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(parts: &[&'static str]) -> impl Stream<Item = Result<Bytes, String>> + Unpin + use<> {
        let parts: Vec<_> = parts.iter().map(|p| Ok(Bytes::from_static(p.as_bytes()))).collect();
        futures_util::stream::iter(parts)
    }

    fn open() -> (Objects, PathBuf) {
        let dir = std::env::temp_dir().join(format!("slipway-objects-{}", ids::hex32()));
        (Objects::open(&dir).unwrap(), dir)
    }

    #[tokio::test]
    async fn objects_go_in_and_come_out() {
        let (objects, dir) = open();
        assert_eq!(objects.put("a/b/c.txt", chunks(&["hello ", "world"])).await.unwrap(), 11);
        assert_eq!(objects.put("a/empty", chunks(&[])).await.unwrap(), 0);
        assert_eq!(objects.get("a/b/c.txt").await.unwrap().bytes().await.unwrap(), b"hello world");
        let reader = objects.get("a/b/c.txt").await.unwrap();
        let part: Vec<_> = Box::pin(reader.stream(6, 11)).collect::<Vec<_>>().await;
        assert_eq!(part[0].as_ref().unwrap().as_ref(), b"world");
        let names: Vec<_> = objects.list("a").await.unwrap().into_iter().map(|e| (e.name, e.is_dir)).collect();
        assert_eq!(names, [("b".to_owned(), true), ("empty".to_owned(), false)]);
        assert!(matches!(objects.get("a/b").await, Err(StoreError::IsFolder(_))));
        objects.delete("a").await.unwrap();
        assert!(matches!(objects.get("a/empty").await, Err(StoreError::NotFound(_))));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn paths_stay_inside() {
        let (objects, dir) = open();
        for path in ["../x", "/etc/passwd", "a/../../x", "", ".", ".part/x", "a\0b"] {
            assert!(matches!(objects.get(path).await, Err(StoreError::BadPath(_))), "{path:?} was let through");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn a_broken_stream_leaves_nothing() {
        let (objects, dir) = open();
        let broken = futures_util::stream::iter([Ok(Bytes::from_static(b"half")), Err("cut".to_owned())]);
        assert!(objects.put("x", broken).await.is_err());
        assert!(matches!(objects.get("x").await, Err(StoreError::NotFound(_))));
        assert_eq!(std::fs::read_dir(dir.join(PARTIAL)).unwrap().count(), 0);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn parts_are_joined_in_order() {
        let (objects, dir) = open();
        let id = objects.begin_parts().await.unwrap();
        objects.put_part(&id, 2, chunks(&["world"])).await.unwrap();
        objects.put_part(&id, 1, chunks(&["hello "])).await.unwrap();
        objects.complete_parts(&id, vec![1, 2], "m/whole").await.unwrap();
        assert_eq!(objects.get("m/whole").await.unwrap().bytes().await.unwrap(), b"hello world");
        assert!(matches!(objects.put_part(&id, 3, chunks(&["x"])).await, Err(StoreError::NotFound(_))));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
