//! The upload of one object to a bucket. An upload that is dropped before it is finished is aborted, so the bucket keeps no parts of it.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart};

use super::limits::MAX_PARTS;

/// Bytes of a part. Smaller objects are buffered in memory and sent in one request.
const PART_BYTES: usize = 8 << 20;
/// Maximum number of parts that are being sent at the same time.
const MAX_CONCURRENT_PARTS: usize = 4;
/// Maximum size of an object in bytes, because S3 limits the number of parts.
pub(super) const MAX_UPLOAD_BYTES: u64 = PART_BYTES as u64 * MAX_PARTS as u64;

/// An object that is being uploaded: a small one in a single request, a large one as a multipart upload. A multipart upload is aborted
/// when this is dropped before [`Upload::finish`]; otherwise its parts would stay in the bucket, hidden but billed.
pub(super) struct Upload {
    store: Arc<dyn ObjectStore>,
    key: Key,
    /// Received chunks, until there are enough bytes to start a multipart upload.
    buffered: Vec<Bytes>,
    buffered_bytes: usize,
    multipart: Option<WriteMultipart>,
}

impl Upload {
    pub(super) fn new(store: Arc<dyn ObjectStore>, key: Key) -> Self {
        Self { store, key, buffered: Vec::new(), buffered_bytes: 0, multipart: None }
    }

    /// Adds a chunk. Waits while the maximum number of parts is being sent.
    pub(super) async fn put(&mut self, chunk: Bytes) -> object_store::Result<()> {
        if self.multipart.is_none() {
            self.buffered_bytes += chunk.len();
            self.buffered.push(chunk);
            if self.buffered_bytes < PART_BYTES {
                return Ok(());
            }
            let created = self.store.put_multipart(&self.key).await?;
            let multipart = self.multipart.insert(WriteMultipart::new_with_chunk_size(created, PART_BYTES));
            self.buffered.drain(..).for_each(|chunk| multipart.put(chunk));
        } else if let Some(multipart) = &mut self.multipart {
            multipart.wait_for_capacity(MAX_CONCURRENT_PARTS).await?;
            multipart.put(chunk);
        }
        Ok(())
    }

    /// Sends the remaining bytes and completes the object.
    pub(super) async fn finish(mut self) -> object_store::Result<()> {
        let Some(multipart) = self.multipart.take() else {
            let whole: PutPayload = std::mem::take(&mut self.buffered).into_iter().collect();
            return self.store.put(&self.key, whole).await.map(|_| ());
        };
        // A separate task, so that the upload is completed or aborted even if the caller drops this future.
        let finished = tokio::spawn(async move { multipart.finish().await.map(|_| ()) }).await;
        finished.unwrap_or_else(|source| Err(object_store::Error::JoinError { source }))
    }

    /// Aborts the upload: removes the parts that were sent.
    pub(super) async fn abort(mut self) {
        if let Some(multipart) = self.multipart.take() {
            abort(multipart, &self.key).await;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(multipart) = self.multipart.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let key = self.key.clone();
            runtime.spawn(async move { abort(multipart, &key).await });
        }
    }
}

async fn abort(multipart: WriteMultipart, key: &Key) {
    if let Err(error) = multipart.abort().await {
        tracing::warn!(%error, %key, "cannot abort an unfinished upload; its parts may stay in the bucket");
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use object_store::memory::InMemory;
    use object_store::{MultipartUpload, PutResult, UploadPart};

    use super::*;

    /// A multipart upload that fails to complete and counts its aborts.
    #[derive(Debug, Default, Clone)]
    struct FailingUpload {
        aborted: Arc<AtomicUsize>,
    }

    type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = object_store::Result<T>> + Send + 'a>>;

    impl MultipartUpload for FailingUpload {
        fn put_part(&mut self, _: PutPayload) -> UploadPart {
            Box::pin(async { Ok(()) })
        }

        fn complete<'a, 'b>(&'a mut self) -> BoxFuture<'b, PutResult>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async {
                Err(object_store::Error::NotImplemented { operation: "complete".into(), implementer: "test".into() })
            })
        }

        fn abort<'a, 'b>(&'a mut self) -> BoxFuture<'b, ()>
        where
            'a: 'b,
            Self: 'b,
        {
            self.aborted.fetch_add(1, Ordering::SeqCst);
            Box::pin(async { Ok(()) })
        }
    }

    fn started_upload(failing: &FailingUpload) -> Upload {
        let mut upload = Upload::new(Arc::new(InMemory::new()), Key::from("x"));
        upload.multipart = Some(WriteMultipart::new(Box::new(failing.clone())));
        upload
    }

    #[tokio::test]
    async fn dropped_upload_is_aborted() {
        let failing = FailingUpload::default();
        let mut upload = started_upload(&failing);
        upload.put(Bytes::from(vec![7; 20 << 20])).await.unwrap();
        drop(upload);
        let aborted = async {
            while failing.aborted.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), aborted).await.unwrap();
    }

    #[tokio::test]
    async fn upload_that_fails_to_complete_returns_an_error_and_is_aborted_once() {
        let failing = FailingUpload::default();
        assert!(started_upload(&failing).finish().await.is_err());
        started_upload(&failing).abort().await;
        assert_eq!(failing.aborted.load(Ordering::SeqCst), 2);
    }
}
