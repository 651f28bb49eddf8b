//! The limits for bodies in front of the gRPC service.
//!
//! tonic decodes a message before any handler sees it, and makes room for it as soon as it knows the length. So the message is
//! received here first. Its beginning names the model, and with it the limit.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tonic::Status;

use crate::body::{SMALL, discard};
use crate::{Error, Gateway};

/// Bytes before a message: whether it is compressed, and its length in big endian (gRPC over HTTP/2, `Length-Prefixed-Message`).
const PREFIX: usize = 5;

pub(super) async fn receive(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    let (parts, mut body) = request.into_parts();
    let infers = parts.uri.path() == "/inference.GRPCInferenceService/ModelInfer";
    let limit = |start: &[u8]| if infers { infer_limit(&gateway, start) } else { Ok(SMALL) };
    match gateway.bodies().read_by(&mut body, limit).await {
        Ok(received) => {
            let (body, _reservation) = received.into_body();
            next.run(Request::from_parts(parts, body)).await
        }
        Err(error) => {
            discard(&parts.headers, body);
            Status::from(error).into_http::<Body>()
        }
    }
}

/// Bytes that the body of a `ModelInfer` may have, prefix and all, as far as its first bytes tell.
fn infer_limit(gateway: &Gateway, start: &[u8]) -> Result<usize, Error> {
    if start.is_empty() {
        // Nothing is known before the first frame.
        return Ok(usize::MAX);
    }
    let limit = match model_name(start) {
        Some(name) => gateway.deployment(name)?.manifest.spec.limits.max_body(),
        // The first frame ends before the name, or the client wrote another field first.
        None => gateway.deployments().iter().map(|d| d.manifest.spec.limits.max_body()).max().unwrap_or(SMALL),
    };
    if let Some([_, length @ ..]) = start.first_chunk::<PREFIX>()
        && usize::try_from(u32::from_be_bytes(*length)).is_ok_and(|length| length > limit)
    {
        return Err(Error::TooLarge(limit));
    }
    Ok(limit.saturating_add(PREFIX))
}

/// The model's name, which is field 1 of the message and so comes first from any usual client. Only a name of less than 128
/// bytes is looked for, so that its length is one byte; a deployment's name is not longer but by one.
fn model_name(start: &[u8]) -> Option<&str> {
    let (prefix, message) = start.split_at_checked(PREFIX)?;
    let (tag, rest) = message.split_first()?;
    let (length, rest) = rest.split_first()?;
    // Not compressed; field 1 of type `LEN` (protobuf encoding).
    if prefix[0] != 0 || *tag != 0x0a || *length >= 0x80 {
        return None;
    }
    rest.get(..usize::from(*length)).and_then(|name| std::str::from_utf8(name).ok())
}
