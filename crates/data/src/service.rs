//! Remotes that a server stores: the objects of projects, by their digest. The content of each object is verified before it appears, and no
//! path of a client reaches anything else.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use md5::{Digest as _, Md5};
use slipway_store::{Objects, Reader, StoreError};

use crate::batch::{self, MAX_OBJECT_BYTES, MAX_OBJECTS, MAX_UPLOAD_BYTES};
use crate::error::DataError;
use crate::hash::Hasher;
use crate::layout::Item;

/// Bytes of a part of a resumable upload; only the last one is smaller. Objects up to this size are sent in one request.
pub const PART_BYTES: u64 = 16 << 20;
/// Maximum number of parts of an upload.
const MAX_PARTS: u32 = 10_000;
/// Maximum bytes of the recorded results of a stage.
const MAX_RUN_BYTES: u64 = 16 << 20;
/// Maximum bytes of a manifest.
const MAX_MANIFEST_BYTES: u64 = crate::manifest::MAX_MANIFEST_BYTES;
/// Number of objects of a batch that are in memory at the same time.
const OBJECTS_READ_AT_ONCE: usize = 100;
/// The folder of the remotes that belong to the installation instead of a namespace. No namespace has this name.
pub(crate) const INSTALLATION: &str = "_";

/// A remote of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(String);

impl Place {
    /// A remote of a namespace, or of the installation.
    ///
    /// # Errors
    /// [`DataError::HostedName`] if a name is not made of letters, digits, `-`, `_` and `.`, or longer than 63 characters.
    pub fn new(namespace: Option<&str>, remote: &str) -> Result<Self, DataError> {
        let namespace = namespace.map(check_name).transpose()?.unwrap_or(INSTALLATION);
        Ok(Self(format!("{namespace}/{}", check_name(remote)?)))
    }

    fn path(&self, item: &Item) -> String {
        format!("{}/{item}", self.0)
    }

    /// The id of the upload of an object: the same for each attempt, and different for each remote.
    fn upload_id(&self, item: &Item) -> String {
        slipway_core::hex::encode(&Md5::digest(self.path(item)))
    }
}

/// Checks a name that becomes a folder.
pub(crate) fn check_name(name: &str) -> Result<&str, DataError> {
    let is_valid = (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if is_valid { Ok(name) } else { Err(DataError::HostedName(name.to_owned())) }
}

/// Checks a number of parts, before anything is created.
fn check_part_count(count: u32) -> Result<(), DataError> {
    match count {
        1..=MAX_PARTS => Ok(()),
        number => Err(StoreError::BadPart { number, reason: "an upload has 1 to 10000 parts" }.into()),
    }
}

/// The remotes of a server; cheap to clone.
#[derive(Debug, Clone)]
pub struct Service {
    objects: Objects,
}

impl Service {
    /// The remotes in the part of a store that only this service changes.
    ///
    /// # Errors
    /// If the store cannot be opened.
    pub fn open(objects: &Objects) -> Result<Self, StoreError> {
        Ok(Self { objects: objects.versioned_data()? })
    }

    /// The names of the remotes of a namespace, or of the installation.
    ///
    /// # Errors
    /// [`DataError::HostedName`], or an error of the store.
    pub async fn remotes(&self, namespace: Option<&str>) -> Result<Vec<String>, DataError> {
        let folder = namespace.map(check_name).transpose()?.unwrap_or(INSTALLATION);
        let entries = self.objects.list(folder).await?;
        Ok(entries.into_iter().filter(|entry| entry.is_dir).map(|entry| entry.name).collect())
    }

    /// Opens an item.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or an error of the store.
    pub async fn get(&self, place: &Place, item: &Item) -> Result<Reader, DataError> {
        Ok(self.objects.get(&place.path(item)).await?)
    }

    /// Stores an item. It appears when all of it has arrived and its content is that of its name.
    ///
    /// # Errors
    /// [`DataError::Mismatch`] for another content; [`StoreError::TooLarge`]; or an error of the store. Nothing is stored then.
    pub async fn put<E: std::fmt::Display + Send + 'static>(
        &self,
        place: &Place,
        item: &Item,
        content: impl Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    ) -> Result<(), DataError> {
        let rejection = Rejection::default();
        let checked = check(item, content, &rejection);
        let stored = self.objects.put(&place.path(item), checked).await;
        stored.map(drop).map_err(|error| reason(rejection, error))
    }

    /// Stores the objects of a [batch](crate::batch), after all of them are verified.
    ///
    /// # Errors
    /// [`DataError::Batch`]; [`DataError::Mismatch`] for another content; or an error of the store, after which some may be stored.
    pub async fn put_batch(&self, place: &Place, batch: Bytes) -> Result<(), DataError> {
        if batch.len() > MAX_UPLOAD_BYTES {
            return Err(StoreError::TooLarge { what: "the batch", limit: MAX_UPLOAD_BYTES as u64 }.into());
        }
        let mut objects = Vec::new();
        for (hash, digest, content) in batch::parse(batch).map_err(DataError::Batch)? {
            let item = Item::Object(hash, digest);
            if !batch::is_valid(hash, &digest, &content) {
                return Err(DataError::Mismatch(item.to_string()));
            }
            objects.push((place.path(&item), content));
        }
        Ok(self.objects.put_many(objects).await?)
    }

    /// Those of the objects that exist and are small, as a [batch](crate::batch).
    ///
    /// # Errors
    /// [`DataError::Batch`] for too many objects. An error of the store ends the stream.
    pub async fn get_batch(
        &self,
        place: &Place,
        items: Vec<Item>,
    ) -> Result<impl Stream<Item = Result<Bytes, StoreError>> + Send + use<>, DataError> {
        if items.len() > MAX_OBJECTS {
            return Err(DataError::Batch("it has too many objects"));
        }
        let (objects, place) = (self.objects.clone(), place.clone());
        let groups: Vec<Vec<Item>> = items.chunks(OBJECTS_READ_AT_ONCE).map(<[Item]>::to_vec).collect();
        let pieces = futures_util::stream::iter(groups).then(move |group| {
            let paths = group.iter().map(|item| place.path(item)).collect();
            let objects = objects.clone();
            async move {
                let mut piece = Vec::new();
                for (item, content) in group.iter().zip(objects.get_many(paths, MAX_OBJECT_BYTES).await?) {
                    if let Some(content) = content {
                        batch::append(&mut piece, &item.to_string(), &content);
                    }
                }
                Ok(Bytes::from(piece))
            }
        });
        Ok(pieces)
    }

    /// Which of the items the remote lacks.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn missing(&self, place: &Place, items: Vec<Item>) -> Result<Vec<Item>, DataError> {
        let paths: Vec<String> = items.iter().map(|item| place.path(item)).collect();
        let exist = self.objects.exist(&place.0, &paths).await?;
        Ok(items.into_iter().zip(exist).filter_map(|(item, exists)| (!exists).then_some(item)).collect())
    }

    /// All items of a remote, sorted.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn list(&self, place: &Place) -> Result<Vec<Item>, DataError> {
        let paths = self.objects.walk(&place.0).await?;
        let item = |path: String| Item::parse(path.strip_prefix(&place.0)?.strip_prefix('/')?);
        let mut items: Vec<Item> = paths.into_iter().filter_map(item).collect();
        items.sort_unstable();
        Ok(items)
    }

    /// Removes items. It is not an error if one does not exist.
    ///
    /// # Errors
    /// If the store cannot be changed.
    pub async fn remove(&self, place: &Place, items: &[Item]) -> Result<(), DataError> {
        for item in items {
            self.objects.delete(&place.path(item)).await?;
        }
        Ok(())
    }

    /// The numbers of the parts of an upload that have arrived, with their sizes in bytes.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn parts(&self, place: &Place, item: &Item) -> Result<Vec<(u32, u64)>, DataError> {
        Ok(self.objects.parts(&place.upload_id(item)).await?)
    }

    /// Stores a part of an upload, numbered from 1.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], or an error of the store.
    pub async fn put_part<E: std::fmt::Display + Send + 'static>(
        &self,
        place: &Place,
        item: &Item,
        number: u32,
        content: impl Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    ) -> Result<(), DataError> {
        check_part_count(number)?;
        let id = place.upload_id(item);
        self.objects.resume_multipart(&id).await?;
        let rejection = Rejection::default();
        let content = limit(content, "the part", PART_BYTES, &rejection);
        let stored = self.objects.put_part(&id, number, content).await;
        stored.map(drop).map_err(|error| reason(rejection, error))
    }

    /// Joins the first `count` parts of an upload into the object. Parts of an object with another content are removed.
    ///
    /// # Errors
    /// [`DataError::Mismatch`]; [`StoreError::NotFound`] for a part that has not arrived; or an error of the store.
    pub async fn complete(&self, place: &Place, item: &Item, count: u32) -> Result<(), DataError> {
        check_part_count(count)?;
        let id = place.upload_id(item);
        let (objects, of_parts) = (self.objects.clone(), id.clone());
        let parts = futures_util::stream::iter(1..=count).then(move |number| {
            let (objects, id) = (objects.clone(), of_parts.clone());
            async move {
                let reader = objects.part(&id, number).await.map_err(std::io::Error::other)?;
                let size = reader.size;
                Ok::<_, std::io::Error>(reader.stream(0, size))
            }
        });
        // A missing part is reported as such, before the existing ones are read.
        let arrived = self.objects.parts(&id).await?;
        if let Some(number) = (1..=count).find(|number| !arrived.iter().any(|(found, _)| found == number)) {
            return Err(StoreError::NotFound(format!("part {number}")).into());
        }
        let stored = self.put(place, item, parts.try_flatten().boxed()).await;
        if matches!(stored, Ok(()) | Err(DataError::Mismatch(_))) {
            self.objects.abort_multipart(&id).await?;
        }
        stored
    }

    /// Removes the parts of uploads that received no data for `older_than`, and returns the number of uploads.
    ///
    /// # Errors
    /// An error of the store.
    pub async fn collect_abandoned_uploads(&self, older_than: Duration) -> Result<usize, DataError> {
        Ok(self.objects.collect_abandoned(older_than).await?)
    }
}

/// Why a received content is rejected. Set by the stream that checks it, which ends with an error then.
type Rejection = Arc<OnceLock<DataError>>;

/// The error of a content that could not be stored: why it was rejected, or the error of the store.
fn reason(rejection: Rejection, error: StoreError) -> DataError {
    Arc::into_inner(rejection).and_then(OnceLock::into_inner).unwrap_or_else(|| error.into())
}

/// The content of an item, which ends with an error if it is too large or not that of the item's name.
fn check<E: std::fmt::Display + Send + 'static>(
    item: &Item,
    content: impl Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    rejection: &Rejection,
) -> BoxStream<'static, Result<Bytes, String>> {
    let bytes = match item {
        Item::Object(_, digest) if digest.is_dir => MAX_MANIFEST_BYTES,
        Item::Object(..) => u64::MAX,
        Item::Run { .. } => MAX_RUN_BYTES,
    };
    let expected = match item {
        Item::Object(hash, digest) => Some((Hasher::new(*hash), digest.md5)),
        Item::Run { .. } => None, // Its name is a digest of the values, not of the bytes.
    };
    let (rejection, name) = (Arc::clone(rejection), item.to_string());
    let state = Some((limit(content, "the item", bytes, &rejection), expected));
    let checked = futures_util::stream::unfold(state, move |state| {
        let (rejection, name) = (Arc::clone(&rejection), name.clone());
        async move {
            let (mut content, mut expected) = state?;
            match content.next().await {
                Some(Ok(chunk)) => {
                    if let Some((hasher, _)) = &mut expected {
                        hasher.update(&chunk);
                    }
                    Some((Ok(chunk), Some((content, expected))))
                }
                Some(Err(error)) => Some((Err(error), None)),
                None => {
                    let (hasher, md5) = expected?;
                    if hasher.finish() == md5 {
                        return None;
                    }
                    let _ = rejection.set(DataError::Mismatch(name)); // The first reason is the one to report.
                    Some((Err("rejected".to_owned()), None))
                }
            }
        }
    });
    checked.boxed()
}

/// The content, which ends with an error after `bytes`.
fn limit<E: std::fmt::Display + Send + 'static>(
    content: impl Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    what: &'static str,
    bytes: u64,
    rejection: &Rejection,
) -> BoxStream<'static, Result<Bytes, String>> {
    let mut received = 0_u64;
    let rejection = Arc::clone(rejection);
    let limited = content.map(move |chunk| {
        let chunk = chunk.map_err(|error| error.to_string())?;
        received = received.saturating_add(chunk.len() as u64);
        if received <= bytes {
            return Ok(chunk);
        }
        let _ = rejection.set(StoreError::TooLarge { what, limit: bytes }.into()); // The first reason is the one to report.
        Err("rejected".to_owned())
    });
    limited.boxed()
}
