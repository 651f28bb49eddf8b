//! Multipart uploads (`/mlflow-artifacts/mpu/*`).
//!
//! MLflow's client sends each part to the URL that `create` returned for it, without credentials
//! (`HttpArtifactRepository._upload_part`). So each URL is signed (`PartSigner`) and gives access to only that part of that upload,
//! until it expires. `complete`, which gives the object its name, requires credentials again.

use axum::Extension;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use slipway_access::Origin;
use slipway_core::clock::now_ms;

use super::artifacts::query_value;
use super::scoped::Scoped;
use super::wire::{Call, Empty, Int, List, Reply, messages};
use crate::service::Tracking;
use crate::{Error, ErrorCode, artifact_path};

messages! {
    CreateUpload { #[required] path: String, num_parts: Int }
    CompleteUpload { #[required] path: String, upload_id: String, #[required] parts: List<Part> }
    AbortUpload { #[required] path: String, upload_id: String }
}

/// Maximum number of parts of an upload, as in S3.
const MAX_PARTS: i64 = 10_000;
/// Milliseconds for which the URL of a part is valid. It is shorter than a day, after which abandoned uploads are removed.
const PART_URL_LIFETIME_MS: i64 = 12 * 60 * 60 * 1000;

/// An uploaded part in a `complete` request.
#[derive(Debug, Deserialize)]
pub(crate) struct Part {
    part_number: Int,
}

#[derive(Serialize)]
pub(super) struct Upload {
    upload_id: String,
    credentials: Vec<Credential>,
}

#[derive(Serialize)]
struct Credential {
    url: String,
    part_number: i64,
    headers: serde_json::Map<String, serde_json::Value>,
}

pub(super) async fn create_upload(
    Scoped(t): Scoped,
    Path(folder): Path<String>,
    origin: Option<Extension<Origin>>,
    Call(m): Call<CreateUpload>,
) -> Result<Reply<Upload>, Error> {
    t.may_change_artifact(&object_path(&folder, m.path.as_deref().unwrap_or_default())?)?;
    let parts = m.num_parts.map_or(1, |n| n.0);
    if !(1..=MAX_PARTS).contains(&parts) {
        return Err(Error::invalid(format!("num_parts must be between 1 and {MAX_PARTS}, got {parts}.")));
    }
    let Some(Extension(origin)) = origin else {
        // The client recognises the beginning of this message and sends the file in one request instead.
        return Err(Error::new(
            ErrorCode::NotImplemented,
            "Multipart upload is not supported for the current artifact repository: the server does not know its \
             external address.",
        ));
    };
    let upload_id = t.objects.create_multipart().await?;
    let expires = now_ms() + PART_URL_LIFETIME_MS;
    let credentials = (1..=parts)
        .map(|number| {
            let signature = t.part_signer.sign(&upload_id, &number.to_string(), expires);
            let url = format!(
                "{origin}/api/2.0/mlflow-artifacts/mpu/part/{upload_id}/{number}?expires={expires}&signature={signature}"
            );
            Credential { url, part_number: number, headers: serde_json::Map::new() }
        })
        .collect();
    Ok(Reply(Upload { upload_id, credentials }))
}

/// Stores a part. The signature of the URL is the only authorisation.
pub(super) async fn upload_part(
    State(t): State<Tracking>,
    Path((upload_id, number)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Error> {
    let denied = || Error::new(ErrorCode::PermissionDenied, "The URL of this part is not valid, or has expired.");
    let value = |name| query_value(query.as_deref(), name).unwrap_or_default();
    let expires: i64 = value("expires").parse().map_err(|_| denied())?;
    if !t.part_signer.verifies(&upload_id, &number, expires, &value("signature")) || expires <= now_ms() {
        return Err(denied());
    }
    // This cannot fail: only numbers from 1 to MAX_PARTS are signed.
    let number: u32 = number.parse().map_err(|_| denied())?;
    t.objects.put_part(&upload_id, number, request.into_body().into_data_stream()).await?;
    Ok([(header::ETAG, format!("\"{upload_id}-{number}\""))].into_response())
}

/// The path of the object to store. `path` is the file's path on the client's machine, of which only the last segment is used.
fn object_path(folder: &str, path: &str) -> Result<String, Error> {
    let windows = path.get(1..3) == Some(":\\") || path.starts_with("\\\\");
    let file = if windows { path.rsplit(['/', '\\']).next() } else { path.rsplit('/').next() };
    artifact_path::for_writing(&format!("{folder}/{}", file.unwrap_or_default()))
}

pub(super) async fn complete_upload(
    Scoped(t): Scoped,
    Path(folder): Path<String>,
    Call(m): Call<CompleteUpload>,
) -> Result<Reply<Empty>, Error> {
    let target = object_path(&folder, m.path.as_deref().unwrap_or_default())?;
    t.may_change_artifact(&target)?;
    let mut numbers: Vec<u32> = Vec::new();
    for part in m.parts.map(|l| l.0).unwrap_or_default() {
        let number = part.part_number.0;
        if !(1..=MAX_PARTS).contains(&number) {
            return Err(Error::invalid(format!("Invalid part number {number}.")));
        }
        numbers.extend(u32::try_from(number));
    }
    numbers.sort_unstable();
    // Without this check, a client could list one part a million times and fill the disk.
    if let Some(pair) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::invalid(format!("Part number {} is listed twice.", pair[0])));
    }
    t.objects.complete_multipart(m.upload_id.as_deref().unwrap_or_default(), numbers, &target).await?;
    Ok(Reply(Empty {}))
}

pub(super) async fn abort_upload(
    Scoped(t): Scoped,
    Path(folder): Path<String>,
    Call(m): Call<AbortUpload>,
) -> Result<Reply<Empty>, Error> {
    artifact_path::for_reading(&folder)?;
    t.may_change_artifact(&folder)?;
    t.objects.abort_multipart(m.upload_id.as_deref().unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_segment_of_the_clients_path_is_used() {
        assert_eq!(object_path("1/r/artifacts", "/home/me/big.bin").unwrap(), "1/r/artifacts/big.bin");
        assert_eq!(object_path("1", "C:\\data\\big.bin").unwrap(), "1/big.bin");
        assert_eq!(object_path("1", "/tmp/a\\b").unwrap(), "1/a\\b");
        assert!(object_path("1", "/tmp/a\nb").is_err());
    }
}
