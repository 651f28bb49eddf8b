//! What a store of content-addressed objects needs beside single objects: queries for many objects, and uploads that a client resumes.

use super::{DATA_DIR, Kind, Objects, PIPELINES_DIR, Reader, valid_upload_id};
use crate::StoreError;

impl Objects {
    /// The store of versioned data: a folder that no path of this store reaches, so that clients of artifacts cannot change it.
    ///
    /// # Errors
    /// [`StoreError::Object`] when its folder cannot be created.
    pub fn versioned_data(&self) -> Result<Self, StoreError> {
        self.folder(DATA_DIR)
    }

    /// The store of what steps of pipelines make: a folder that no path of this store reaches, so that only the steps that a token belongs
    /// to can read and write it.
    ///
    /// # Errors
    /// [`StoreError::Object`] when its folder cannot be created.
    pub fn pipelines(&self) -> Result<Self, StoreError> {
        self.folder(PIPELINES_DIR)
    }

    fn folder(&self, name: &str) -> Result<Self, StoreError> {
        Ok(Self(match &self.0 {
            Kind::Files(files) => Kind::Files(files.folder(name)?),
            Kind::Remote(remote) => Kind::Remote(remote.folder(name)?),
        }))
    }

    /// Which of the objects exist, in the order of `paths`, all of which are below `folder`.
    ///
    /// # Errors
    /// [`StoreError::BadPath`], or an error of the store.
    pub async fn exist(&self, folder: &str, paths: &[String]) -> Result<Vec<bool>, StoreError> {
        match &self.0 {
            Kind::Files(files) => files.exist(paths).await,
            Kind::Remote(remote) => remote.exist(folder, paths).await,
        }
    }

    /// The paths of all objects below a folder, in any order.
    ///
    /// # Errors
    /// [`StoreError::BadPath`], or an error of the store.
    pub async fn walk(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        match &self.0 {
            Kind::Files(files) => files.walk(folder).await,
            Kind::Remote(remote) => remote.walk(folder).await,
        }
    }

    /// Creates a multipart upload whose id, 32 hexadecimal digits, the caller derives from the object, so that it can be resumed. It is not
    /// an error if it exists.
    ///
    /// # Errors
    /// As [`Objects::create_multipart`].
    pub async fn resume_multipart(&self, id: &str) -> Result<(), StoreError> {
        match &self.0 {
            Kind::Files(files) => files.create_multipart(valid_upload_id(id)?).await,
            Kind::Remote(remote) => remote.create_multipart(valid_upload_id(id)?).await,
        }
    }

    /// The numbers of the parts of upload `id`, with their sizes in bytes, sorted; empty if there is no such upload.
    ///
    /// # Errors
    /// [`StoreError::BadPath`], or an error of the store.
    pub async fn parts(&self, id: &str) -> Result<Vec<(u32, u64)>, StoreError> {
        let mut parts = match &self.0 {
            Kind::Files(files) => files.parts(valid_upload_id(id)?).await,
            Kind::Remote(remote) => remote.parts(valid_upload_id(id)?).await,
        }?;
        parts.sort_unstable();
        Ok(parts)
    }

    /// Opens part `number` of upload `id`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::BadPart`], or an error of the store.
    pub async fn part(&self, id: &str, number: u32) -> Result<Reader, StoreError> {
        match &self.0 {
            Kind::Files(files) => files.part(valid_upload_id(id)?, number).await,
            Kind::Remote(remote) => remote.part(valid_upload_id(id)?, number).await,
        }
    }
}
