//! The messages of a streaming request, received one by one within the same limits as the single message of other requests.
//!
//! Invariant: the stream holds at most one complete message, whose memory counts until the next one is requested.

use axum::body::{Body, HttpBody};
use axum::http::HeaderMap;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tonic::Status;

use super::receive::{PREFIX_BYTES, decompress, highest_limit};
use crate::body::MAX_SMALL_BODY;
use crate::{Error, Gateway};

/// Bytes of a gateway's memory budget for bodies.
struct Budget {
    gateway: Gateway,
    bytes: usize,
}

impl Budget {
    fn set(&mut self, bytes: usize) -> Result<(), Error> {
        self.gateway.bodies().release(self.bytes);
        self.bytes = 0;
        self.gateway.bodies().take(bytes)?;
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.gateway.bodies().release(self.bytes);
    }
}

/// Receives the messages of one streaming request.
struct Messages {
    headers: HeaderMap,
    body: Body,
    is_infer: bool,
    received: BytesMut,
    budget: Budget,
}

impl Messages {
    /// The next message with its prefix, not compressed; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            self.budget.set(self.received.len())?;
            if let Some(length) = self.complete()? {
                let message = self.received.split_to(length).freeze();
                let gateway = self.budget.gateway.clone();
                let (message, _reservation) = decompress(&gateway, &self.headers, message, self.is_infer).await?;
                self.budget.set(self.received.len() + message.len())?;
                return Ok(Some(message));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.received.extend(frame.into_data().ok()),
                Some(Err(error)) => return Err(Error::Invalid(format!("the request cannot be read: {error}"))),
                None if self.received.is_empty() => return Ok(None),
                None => return Err(Error::Invalid("the request ends within a message".into())),
            }
        }
    }

    /// The length of the first received message with its prefix, if it is complete.
    fn complete(&self) -> Result<Option<usize>, Error> {
        let Some([_, length @ ..]) = self.received.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        // The service checks the limit of the deployment, so that a message that exceeds it does not end the stream.
        let limit = if self.is_infer { highest_limit(&self.budget.gateway) } else { MAX_SMALL_BODY };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > limit {
            return Err(Error::TooLarge(limit));
        }
        let total = length + PREFIX_BYTES;
        Ok((self.received.len() >= total).then_some(total))
    }
}

/// The body of a streaming request, whose messages are received within their limits. `is_infer` means that the messages are inference
/// requests.
pub(super) fn limited(gateway: Gateway, headers: HeaderMap, body: Body, is_infer: bool) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let budget = Budget { gateway, bytes: 0 };
    let messages = Messages { headers, body, is_infer, received: BytesMut::new(), budget };
    let stream = futures_util::stream::unfold(Some(messages), async |messages| {
        let mut messages = messages?;
        match messages.next().await {
            Ok(Some(message)) => Some((Ok(message), Some(messages))),
            Ok(None) => None,
            Err(error) => Some((Err(Status::from(error)), None)),
        }
    });
    Body::from_stream(stream)
}
