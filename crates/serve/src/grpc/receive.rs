//! Middleware that enforces body limits in front of the gRPC service.
//!
//! tonic decodes a message before any handler runs, and allocates memory for it as soon as it knows the length. This middleware
//! therefore receives the message first; its first bytes name the model, whose deployment has the limit.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tonic::Status;

use crate::body::{MAX_SMALL_BODY, discard};
use crate::{Error, Gateway};

/// Bytes before a message: a compression flag and the big-endian length (gRPC over HTTP/2, `Length-Prefixed-Message`).
const PREFIX_BYTES: usize = 5;

pub(super) async fn receive(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    let (parts, mut body) = request.into_parts();
    let is_infer = parts.uri.path() == "/inference.GRPCInferenceService/ModelInfer";
    let limit = |start: &[u8]| if is_infer { infer_limit(&gateway, start) } else { Ok(MAX_SMALL_BODY) };
    match gateway.bodies().read_with_limit(&mut body, limit).await {
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

/// The size limit for the body of a `ModelInfer` request, prefix included, derived from its first bytes.
fn infer_limit(gateway: &Gateway, start: &[u8]) -> Result<usize, Error> {
    if start.is_empty() {
        // Before the first frame the model is unknown.
        return Ok(usize::MAX);
    }
    let limit = match model_name(start) {
        Some(name) => gateway.deployment(name)?.manifest.spec.limits.max_body(),
        // The first frame ends before the name, or the client wrote another field first: allow the highest limit of any deployment.
        None => gateway.deployments().iter().map(|d| d.manifest.spec.limits.max_body()).max().unwrap_or(MAX_SMALL_BODY),
    };
    if let Some([_, length @ ..]) = start.first_chunk::<PREFIX_BYTES>()
        && usize::try_from(u32::from_be_bytes(*length)).is_ok_and(|length| length > limit)
    {
        return Err(Error::TooLarge(limit));
    }
    Ok(limit.saturating_add(PREFIX_BYTES))
}

/// The model's name: field 1 of the message, which common clients write first. Only names shorter than 128 bytes are recognized, whose
/// length fits into one byte; deployment names have at most 128 characters.
fn model_name(start: &[u8]) -> Option<&str> {
    let (prefix, message) = start.split_at_checked(PREFIX_BYTES)?;
    let (tag, rest) = message.split_first()?;
    let (length, rest) = rest.split_first()?;
    // Not compressed; field 1 of type `LEN` (protobuf encoding).
    if prefix[0] != 0 || *tag != 0x0a || *length >= 0x80 {
        return None;
    }
    rest.get(..usize::from(*length)).and_then(|name| std::str::from_utf8(name).ok())
}
