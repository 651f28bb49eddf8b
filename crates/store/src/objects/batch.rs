//! Many small objects at once, which would be slow one by one: each would have to reach the disk before the next one.

use bytes::Bytes;

use super::{Kind, Objects};
use crate::StoreError;

impl Objects {
    /// Stores the objects, each with its path, and returns when all of them are durable.
    ///
    /// # Errors
    /// As [`Objects::put`]. Some of the objects may be stored then, each of them complete.
    pub async fn put_many(&self, objects: Vec<(String, Bytes)>) -> Result<(), StoreError> {
        match &self.0 {
            Kind::Files(files) => files.put_many(objects).await,
            Kind::Remote(remote) => remote.put_many(objects).await,
        }
    }

    /// The contents of the objects in the order of `paths`; `None` for those that do not exist or are larger than `max_bytes`.
    ///
    /// # Errors
    /// [`StoreError::BadPath`], or an error of the store.
    pub async fn get_many(&self, paths: Vec<String>, max_bytes: u64) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        match &self.0 {
            Kind::Files(files) => files.get_many(paths, max_bytes).await,
            Kind::Remote(remote) => remote.get_many(paths, max_bytes).await,
        }
    }
}
