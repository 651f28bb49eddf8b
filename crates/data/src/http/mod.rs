//! A slipway server as a remote, under `/api/v1/data`. The paths of objects are those that DVC's own HTTP remote uses, so the official client
//! works with them; the other routes save round trips and let large uploads continue.
//!
//! The routes of the repositories that the server knows are in [`catalog`](crate::catalog::http).
//!
//! Invariant: each handler gets its remote from [`Target`], which has authorized the caller in the remote's namespace.

mod error;
mod target;

pub(crate) use target::{Operation, authorize};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use slipway_access::{Access, Routes, confine};
use slipway_core::byte_range;

use self::target::{Creating, Deleting, Folder, Listing, Reading, Target};
use crate::error::DataError;
use crate::service::Service;
use crate::wire::{Complete, Items, Part, Parts, Remotes};

/// Maximum bytes of a request with a list of items.
const MAX_LIST_BYTES: usize = 64 << 20;

/// The routes of remotes. The namespace is in the path, or that of the installation, so the handlers decide about access.
pub fn routes(service: Service) -> Routes {
    let remotes =
        || Routes::new().get("/remotes", Access::DecidedByHandler, remotes).nest("/remotes/{remote}", of_remote());
    remotes().nest("/namespaces/{namespace}", remotes()).with_state(service)
}

fn of_remote() -> Routes<Service> {
    let access = Access::DecidedByHandler;
    Routes::new()
        .get("/items", access, list)
        .post("/missing", access, missing)
        .post("/remove", access, remove)
        .get("/uploads/{*path}", access, parts)
        .post("/uploads/{*path}", access, complete)
        .post("/upload", access, upload_batch)
        .post("/download", access, download_batch)
        .layer(DefaultBodyLimit::max(MAX_LIST_BYTES))
        // The store limits the bodies of these.
        .put("/parts/{number}/{*path}", access, put_part)
        .get("/{*path}", access, download)
        .put("/{*path}", access, upload)
        .post("/{*path}", access, upload)
        .delete("/{*path}", access, remove_one)
}

async fn remotes(State(service): State<Service>, folder: Folder) -> Result<Json<Remotes>, DataError> {
    Ok(Json(Remotes { remotes: service.remotes(folder.namespace.as_deref()).await? }))
}

async fn list(State(service): State<Service>, target: Target<Listing>) -> Result<Json<Items>, DataError> {
    Ok(Json(Items::of(&service.list(&target.place).await?)))
}

async fn missing(
    State(service): State<Service>,
    target: Target<Reading>,
    Json(items): Json<Items>,
) -> Result<Json<Items>, DataError> {
    Ok(Json(Items::of(&service.missing(&target.place, items.parse()?).await?)))
}

async fn remove(
    State(service): State<Service>,
    target: Target<Deleting>,
    Json(items): Json<Items>,
) -> Result<StatusCode, DataError> {
    service.remove(&target.place, &items.parse()?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove_one(State(service): State<Service>, target: Target<Deleting>) -> Result<StatusCode, DataError> {
    service.remove(&target.place, &[target.item()?]).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sends an item, or the part of it that the `Range` header requests. Browsers neither show nor execute it.
async fn download(
    State(service): State<Service>,
    target: Target<Reading>,
    request: HeaderMap,
) -> Result<Response, DataError> {
    let item = target.item()?;
    let reader = service.get(&target.place, &item).await?;
    let size = reader.size;
    let range = request.get(header::RANGE).and_then(|value| byte_range::parse(value.to_str().ok()?, size));
    let (status, from, to) = match range {
        Some(Err(byte_range::Unsatisfiable)) => (StatusCode::RANGE_NOT_SATISFIABLE, 0, 0),
        Some(Ok((from, to))) => (StatusCode::PARTIAL_CONTENT, from, to),
        None => (StatusCode::OK, 0, size),
    };
    let content_range = match status {
        StatusCode::OK => None,
        StatusCode::PARTIAL_CONTENT => Some(format!("bytes {from}-{}/{size}", to - 1)),
        _ => Some(format!("bytes */{size}")),
    };
    let mut response = (
        status,
        [(header::CONTENT_LENGTH, (to - from).to_string()), (header::ETAG, format!("\"{item}\""))],
        Body::from_stream(reader.stream(from, to)),
    )
        .into_response();
    let headers = response.headers_mut();
    if let Some(value) = content_range.and_then(|text| HeaderValue::try_from(text).ok()) {
        headers.insert(header::CONTENT_RANGE, value);
    }
    for (name, value) in [
        (header::ACCEPT_RANGES, "bytes"),
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, "attachment"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    confine(headers);
    Ok(response)
}

async fn upload(
    State(service): State<Service>,
    target: Target<Creating>,
    request: Request,
) -> Result<StatusCode, DataError> {
    service.put(&target.place, &target.item()?, request.into_body().into_data_stream()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Stores small objects, all of them or none.
async fn upload_batch(
    State(service): State<Service>,
    target: Target<Creating>,
    body: Bytes,
) -> Result<StatusCode, DataError> {
    service.put_batch(&target.place, body).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sends those of the objects that exist and are small.
async fn download_batch(
    State(service): State<Service>,
    target: Target<Reading>,
    Json(items): Json<Items>,
) -> Result<Response, DataError> {
    let batch = service.get_batch(&target.place, items.parse()?).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(batch)).into_response())
}

async fn parts(State(service): State<Service>, target: Target<Creating>) -> Result<Json<Parts>, DataError> {
    let arrived = service.parts(&target.place, &target.item()?).await?;
    Ok(Json(Parts { parts: arrived.into_iter().map(|(number, size)| Part { number, size }).collect() }))
}

async fn put_part(
    State(service): State<Service>,
    target: Target<Creating>,
    request: Request,
) -> Result<StatusCode, DataError> {
    let (item, number) = (target.item()?, target.number()?);
    service.put_part(&target.place, &item, number, request.into_body().into_data_stream()).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn complete(
    State(service): State<Service>,
    target: Target<Creating>,
    Json(upload): Json<Complete>,
) -> Result<StatusCode, DataError> {
    service.complete(&target.place, &target.item()?, upload.parts).await?;
    Ok(StatusCode::NO_CONTENT)
}
