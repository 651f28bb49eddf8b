//! One object on its way into a bucket.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart};

use super::limits::MAX_PARTS;

/// Bytes of an object that are held in memory until they are sent; larger objects are sent in pieces of this size.
const PIECE_BYTES: usize = 8 << 20;
/// Pieces that are being sent at the same time.
const CONCURRENT_PIECES: usize = 4;
/// Bytes of the largest object: S3 takes as many pieces as an upload in parts has parts.
pub(super) const MAX_UPLOAD_BYTES: u64 = PIECE_BYTES as u64 * MAX_PARTS as u64;

/// An object on its way into a bucket. A small one is put as a whole; a large one as a multipart upload, which is aborted when this
/// is dropped before it is finished: its pieces would stay, unseen and paid for.
pub(super) struct Upload {
    store: Arc<dyn ObjectStore>,
    key: Key,
    /// What is not sent yet, while it is small enough to be put as a whole.
    held: Vec<Bytes>,
    held_bytes: usize,
    multipart: Option<WriteMultipart>,
}

impl Upload {
    pub(super) fn to(store: Arc<dyn ObjectStore>, key: Key) -> Self {
        Self { store, key, held: Vec::new(), held_bytes: 0, multipart: None }
    }

    /// Takes more bytes; waits while too many pieces are being sent.
    pub(super) async fn put(&mut self, chunk: Bytes) -> object_store::Result<()> {
        if self.multipart.is_none() {
            self.held_bytes += chunk.len();
            self.held.push(chunk);
            if self.held_bytes < PIECE_BYTES {
                return Ok(());
            }
            let begun = self.store.put_multipart(&self.key).await?;
            let multipart = self.multipart.insert(WriteMultipart::new_with_chunk_size(begun, PIECE_BYTES));
            self.held.drain(..).for_each(|chunk| multipart.put(chunk));
        } else if let Some(multipart) = &mut self.multipart {
            multipart.wait_for_capacity(CONCURRENT_PIECES).await?;
            multipart.put(chunk);
        }
        Ok(())
    }

    /// Sends the rest; answers when the object is there.
    pub(super) async fn finish(mut self) -> object_store::Result<()> {
        let Some(multipart) = self.multipart.take() else {
            let whole: PutPayload = std::mem::take(&mut self.held).into_iter().collect();
            return self.store.put(&self.key, whole).await.map(|_| ());
        };
        // A task of its own goes on when nobody waits any more: the object becomes whole, or is aborted.
        let finished = tokio::spawn(async move { multipart.finish().await.map(|_| ()) }).await;
        finished.unwrap_or_else(|source| Err(object_store::Error::JoinError { source }))
    }

    /// Removes what was sent already.
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
        tracing::warn!(%error, %key, "pieces of an unfinished object may stay in the bucket");
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

    /// A multipart upload that counts how often it is aborted, and cannot be completed.
    #[derive(Debug, Default, Clone)]
    struct Refused {
        aborted: Arc<AtomicUsize>,
    }

    type Answer<'a, T> = Pin<Box<dyn Future<Output = object_store::Result<T>> + Send + 'a>>;

    impl MultipartUpload for Refused {
        fn put_part(&mut self, _: PutPayload) -> UploadPart {
            Box::pin(async { Ok(()) })
        }

        fn complete<'a, 'b>(&'a mut self) -> Answer<'b, PutResult>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async {
                Err(object_store::Error::NotImplemented { operation: "complete".into(), implementer: "test".into() })
            })
        }

        fn abort<'a, 'b>(&'a mut self) -> Answer<'b, ()>
        where
            'a: 'b,
            Self: 'b,
        {
            self.aborted.fetch_add(1, Ordering::SeqCst);
            Box::pin(async { Ok(()) })
        }
    }

    fn begun(refused: &Refused) -> Upload {
        let mut upload = Upload::to(Arc::new(InMemory::new()), Key::from("x"));
        upload.multipart = Some(WriteMultipart::new(Box::new(refused.clone())));
        upload
    }

    #[tokio::test]
    async fn an_upload_that_is_dropped_is_aborted() {
        let refused = Refused::default();
        let mut upload = begun(&refused);
        upload.put(Bytes::from(vec![7; 20 << 20])).await.unwrap();
        drop(upload);
        let aborted = async {
            while refused.aborted.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), aborted).await.unwrap();
    }

    #[tokio::test]
    async fn an_upload_that_cannot_be_completed_is_an_error_and_aborted_once() {
        let refused = Refused::default();
        assert!(begun(&refused).finish().await.is_err());
        begun(&refused).abort().await;
        assert_eq!(refused.aborted.load(Ordering::SeqCst), 2);
    }
}
