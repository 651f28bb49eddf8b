//! Middleware that enforces body limits in front of the gRPC service.
//!
//! tonic decodes a message before any handler runs, and allocates memory for it as soon as it knows the length. This middleware
//! therefore receives the message first; its first bytes name the model, whose deployment has the limit. It also decompresses messages,
//! within the same limits.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, Uri};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use tonic::Status;

use super::messages;
use crate::body::{MAX_SMALL_BODY, Reservation, discard};
use crate::http::encoding::{self, Encoding};
use crate::{Error, Gateway};

/// Bytes before a message: a compression flag and the big-endian length (gRPC over HTTP/2, `Length-Prefixed-Message`).
pub(super) const PREFIX_BYTES: usize = 5;

/// The header with the algorithm of compressed messages.
const COMPRESSION: &str = "grpc-encoding";

pub(super) async fn receive(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    let (mut parts, mut body) = request.into_parts();
    use_canonical_name(&mut parts.uri);
    let is_stream_infer = parts.uri.path() == "/inference.GRPCInferenceService/ModelStreamInfer";
    if is_stream_infer || parts.uri.path() == "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo" {
        let body = messages::limited(gateway, parts.headers.clone(), body, is_stream_infer);
        parts.headers.remove(COMPRESSION);
        return next.run(Request::from_parts(parts, body)).await;
    }
    let is_infer = parts.uri.path() == "/inference.GRPCInferenceService/ModelInfer";
    let limit = |start: &[u8]| if is_infer { infer_limit(&gateway, start) } else { Ok(MAX_SMALL_BODY) };
    let received = match gateway.bodies().read_with_limit(&mut body, limit).await {
        Ok(received) => received,
        Err(error) => {
            discard(&parts.headers, body);
            return Status::from(error).into_http::<Body>();
        }
    };
    if parts.headers.get(COMPRESSION).is_none_or(|name| name == "identity") {
        let (body, _reservation) = received.into_body();
        return next.run(Request::from_parts(parts, body)).await;
    }
    let (message, _compressed) = received.into_bytes();
    match decompress(&gateway, &parts.headers, message, is_infer).await {
        Ok((message, _reservation)) => {
            parts.headers.remove(COMPRESSION);
            next.run(Request::from_parts(parts, Body::from(message))).await
        }
        Err(error) => Status::from(error).into_http::<Body>(),
    }
}

/// Services that clients know under another name, whose messages are the same.
pub(super) const ALIASES: [(&str, &str); 2] = [
    // The earlier version of the protocol, which most tools still use.
    ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"),
    // The name in MLServer's own proto files.
    ("inference.model_repository.ModelRepositoryService", "inference.ModelRepositoryService"),
];

/// Replaces the alias of a service in a path by its own name.
fn use_canonical_name(uri: &mut Uri) {
    let own = |alias: &str, name: &str| {
        let method = uri.path().strip_prefix('/')?.strip_prefix(alias)?.strip_prefix('/')?;
        format!("/{name}/{method}").parse::<PathAndQuery>().ok()
    };
    let Some(path) = ALIASES.iter().find_map(|(alias, name)| own(alias, name)) else { return };
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(path);
    // Only the path changed, so the parts remain valid together.
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

/// Decompresses a message with its prefix, if its prefix says that it is compressed (gRPC over HTTP/2, `Compressed-Flag`).
///
/// # Errors
/// [`Error::ContentEncoding`] for unsupported algorithms, [`Error::TooLarge`], [`Error::BodyMemory`], and [`Error::Invalid`].
pub(super) async fn decompress<'a>(
    gateway: &'a Gateway,
    headers: &HeaderMap,
    message: Bytes,
    is_infer: bool,
) -> Result<(Bytes, Reservation<'a>), Error> {
    let Some([1, _, _, _, _]) = message.first_chunk::<PREFIX_BYTES>() else {
        return Ok((message, gateway.bodies().reservation()));
    };
    let name = String::from_utf8_lossy(headers.get(COMPRESSION).map_or(&[][..], |value| value.as_bytes()));
    let encoding = Encoding::parse(&name).ok_or_else(|| Error::ContentEncoding(name.into_owned()))?;
    // The model's name is compressed too, so the service checks the deployment's own limit again.
    let limit = if is_infer { highest_limit(gateway) } else { MAX_SMALL_BODY }.min(gateway.bodies().memory_limit());
    let compressed = message.slice(PREFIX_BYTES..);
    let (content, reservation) = encoding::decode(gateway.bodies(), encoding, &compressed, limit).await?;
    let length = u32::try_from(content.len()).map_err(|_| Error::TooLarge(limit))?;
    let mut message = Vec::with_capacity(PREFIX_BYTES + content.len());
    message.push(0);
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(&content);
    Ok((message.into(), reservation))
}

/// The highest size limit of any deployment.
pub(super) fn highest_limit(gateway: &Gateway) -> usize {
    gateway.deployments().iter().map(|d| d.manifest.spec.limits.max_body()).max().unwrap_or(MAX_SMALL_BODY)
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
        None => highest_limit(gateway),
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
