//! Open Inference Protocol V2 over REST (`/v2/...`), with Triton's extensions, and its predecessor V1 (`/v1/...`).
//!
//! Invariant: handlers read request bodies only through [`crate::body`], so that its limits apply to all of them.

pub(crate) mod encoding;
mod extensions;
mod v1;
pub(crate) mod wire;

pub use wire::{InferenceRequest, InferenceResponse};

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Request as HttpRequest, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};
use slipway_access::{Access, Resource, Routes, RunTokenUse};

use self::encoding::Encoding;
use crate::body::{self, Reservation};
use crate::deployment::{Deployment, InferOutput, Request};
use crate::manifest::Manifest;
use crate::tensor::TensorSpec;
use crate::{Error, Gateway, LocalPaths, ModelUri};

/// Limit for axum's own extractors. The handlers of this module do not use them for bodies.
const EXTRACTOR_BODY_LIMIT: usize = body::MAX_SMALL_BODY;

/// The binary tensor extension's header: length of the JSON part, which precedes the binary tensors.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Protocol extensions that the server metadata lists.
pub(crate) const EXTENSIONS: [&str; 4] =
    ["binary_tensor_data", "model_repository", "model_configuration", "statistics"];

/// Required for inference, and for a model's metadata and readiness.
const INFER: Access = Access::create(Resource::Inferences);
const READ_DEPLOYMENTS: Access = Access::get(Resource::Deployments);
const UPDATE_DEPLOYMENTS: Access = Access::update(Resource::Deployments);
const DELETE_DEPLOYMENTS: Access = Access::delete(Resource::Deployments);

/// All routes of the REST gateway. Loading and unloading models changes deployments, so it needs permissions on deployments.
pub fn routes(gateway: Gateway) -> Routes {
    let unknown =
        async || Error::NotFound("no such path; the paths of the Open Inference Protocol are under /v2".into());
    Routes::new()
        .get("/", Access::Public, alive)
        .get("/healthz", Access::Public, async || "ok\n")
        .get("/readyz", Access::Public, server_ready)
        .get("/v2", INFER, server_metadata)
        .get("/v2/", INFER, server_metadata)
        .get("/v2/health/live", Access::Public, async || json_response(&json!({ "live": true })))
        .get("/v2/health/ready", Access::Public, server_ready)
        .get("/v2/models", READ_DEPLOYMENTS, list)
        .get("/v2/models/stats", INFER, extensions::all_statistics)
        .get("/v2/models/{name}", INFER, model_metadata)
        .get("/v2/models/{name}/config", INFER, extensions::config)
        .get("/v2/models/{name}/stats", INFER, extensions::statistics)
        .get("/v2/models/{name}/trace/setting", INFER, extensions::trace)
        .post("/v2/models/{name}/trace/setting", UPDATE_DEPLOYMENTS, extensions::set_trace)
        .get("/v2/models/{name}/ready", INFER, model_ready)
        .post("/v2/models/{name}/infer", INFER, infer)
        .get("/v2/models/{name}/versions/{version}", INFER, version_metadata)
        .get("/v2/models/{name}/versions/{version}/config", INFER, extensions::version_config)
        .get("/v2/models/{name}/versions/{version}/stats", INFER, extensions::version_statistics)
        .get("/v2/models/{name}/versions/{version}/ready", INFER, version_ready)
        .post("/v2/models/{name}/versions/{version}/infer", INFER, infer_version)
        .get("/v2/systemsharedmemory/status", INFER, extensions::no_regions)
        .get("/v2/cudasharedmemory/status", INFER, extensions::no_regions)
        .get("/v2/trace/setting", INFER, extensions::trace)
        .post("/v2/trace/setting", UPDATE_DEPLOYMENTS, extensions::set_trace)
        .get("/v2/logging", INFER, extensions::logging)
        .post("/v2/logging", UPDATE_DEPLOYMENTS, extensions::set_logging)
        .post("/v2/repository/index", READ_DEPLOYMENTS, index)
        .get("/v2/repository/models/index", READ_DEPLOYMENTS, index)
        .post("/v2/repository/models/index", READ_DEPLOYMENTS, index)
        .post("/v2/repository/models/{name}/load", UPDATE_DEPLOYMENTS, load)
        .post("/v2/repository/models/{name}/unload", DELETE_DEPLOYMENTS, unload)
        .get("/v1/models", READ_DEPLOYMENTS, list)
        .get("/v1/models/{name}", INFER, v1_ready)
        .post("/v1/models/{name}", INFER, v1_call)
        .post("/v1/models/{name}/versions/{version}", INFER, v1_version_call)
        .fallback(Access::Authenticated(RunTokenUse::Denied), unknown)
        .layer(DefaultBodyLimit::max(EXTRACTOR_BODY_LIMIT))
        .with_state(gateway)
}

async fn server_metadata() -> Response {
    json_response(&json!({ "name": "slipway", "version": env!("CARGO_PKG_VERSION"), "extensions": EXTENSIONS }))
}

fn json_response(body: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// KServe's liveness response.
async fn alive() -> Response {
    json_response(&json!({ "status": "alive" }))
}

/// The server is ready when all deployments are; a server without deployments is ready too.
/// The body is KServe's.
async fn server_ready(State(g): State<Gateway>) -> Response {
    let ready = g.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, json_response(&json!({ "ready": ready }))).into_response()
}

/// The names of all deployments, in KServe's format.
async fn list(State(g): State<Gateway>) -> Response {
    let names: Vec<_> = g.deployments().iter().map(|d| d.name().to_owned()).collect();
    json_response(&json!({ "models": names }))
}

/// A model's inputs and outputs, in the Open Inference Protocol's model metadata format.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ModelMetadata {
    /// Name of the deployment.
    pub name: String,
    /// Loaded model versions.
    pub versions: Vec<String>,
    /// The runtime: `onnx_onnxruntime` or `onnx_builtin`.
    pub platform: String,
    /// The model's inputs.
    pub inputs: Vec<TensorMetadata>,
    /// The model's outputs.
    pub outputs: Vec<TensorMetadata>,
}

/// An input or output of a model.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct TensorMetadata {
    /// Name of the tensor in the model.
    pub name: String,
    /// A data type of the protocol, such as `FP32`, `INT64` or `BYTES`.
    pub datatype: &'static str,
    /// Size of each dimension; -1 for a dynamic dimension.
    pub shape: Vec<i64>,
}

fn tensor_metadata(specs: &[TensorSpec]) -> Vec<TensorMetadata> {
    let convert = |s: &TensorSpec| TensorMetadata {
        name: s.name.clone(),
        datatype: s.datatype.name(),
        shape: s.declared_shape(),
    };
    specs.iter().map(convert).collect()
}

/// The loaded model versions of a deployment, sorted.
pub(crate) fn versions(deployment: &Deployment) -> Vec<String> {
    let loaded = deployment.variants.iter().filter_map(|v| v.loaded());
    let mut versions: Vec<String> = loaded.map(|l| l.resolved.version.clone()).filter(|v| !v.is_empty()).collect();
    versions.sort();
    versions.dedup();
    versions
}

fn metadata(g: &Gateway, name: &str, version: Option<&str>) -> Result<Response, Error> {
    let deployment = g.deployment(name)?;
    let loaded = deployment.representative(version)?;
    let metadata = ModelMetadata {
        name: name.to_owned(),
        versions: versions(&deployment),
        platform: g.runtime().platform().to_owned(),
        inputs: tensor_metadata(loaded.model.inputs()),
        outputs: tensor_metadata(loaded.model.outputs()),
    };
    Ok(Json(metadata).into_response())
}

async fn model_metadata(State(g): State<Gateway>, Path(name): Path<String>) -> Result<Response, Error> {
    metadata(&g, &name, None)
}

async fn version_metadata(
    State(g): State<Gateway>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Response, Error> {
    metadata(&g, &name, Some(&version))
}

async fn model_ready(State(g): State<Gateway>, Path(name): Path<String>) -> Result<Response, Error> {
    if g.deployment(&name)?.is_ready() {
        Ok(json_response(&json!({ "name": name, "ready": true })))
    } else {
        Err(Error::NotReady(format!("model '{name}' is not ready")))
    }
}

async fn version_ready(
    State(g): State<Gateway>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Response, Error> {
    g.deployment(&name)?.representative(Some(&version))?;
    Ok(json_response(&json!({ "name": name, "ready": true })))
}

async fn v1_ready(State(g): State<Gateway>, Path(name): Path<String>) -> Result<Response, Error> {
    let ready = g.deployment(&name)?.is_ready();
    Ok(json_response(&json!({ "name": name, "ready": ready })))
}

async fn v1_call(
    State(g): State<Gateway>,
    Path(call): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let Some((name, verb)) = call.rsplit_once(':') else { return Err(unknown_v1_call(&call)) };
    predict(&g, name, None, verb, &headers, body).await
}

async fn v1_version_call(
    State(g): State<Gateway>,
    Path((name, call)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let Some((version, verb)) = call.rsplit_once(':') else { return Err(unknown_v1_call(&call)) };
    predict(&g, &name, Some(version.to_owned()), verb, &headers, body).await
}

fn unknown_v1_call(call: &str) -> Error {
    Error::NotFound(format!(
        "'{call}' is not a call of version 1 of the protocol; slipway serves /v1/models/NAME:predict"
    ))
}

async fn predict(
    g: &Gateway,
    name: &str,
    version: Option<String>,
    verb: &str,
    headers: &HeaderMap,
    mut body: Body,
) -> Result<Response, Error> {
    let received = match verb {
        "predict" => receive_inference(g, name, headers, &mut body).await,
        _ => Err(unknown_v1_call(verb)),
    };
    let (deployment, body, _reservation) = match received {
        Ok(received) => received,
        Err(error) => {
            body::discard(headers, body);
            return Err(error);
        }
    };
    let (format, inputs) = v1::parse(&body, deployment.representative(version.as_deref())?.model.inputs())?;
    drop(body);
    let rows = crate::batch::rows_of(&inputs);
    let request = Request { id: None, version, split_key: split_key(&deployment, headers), inputs };
    let output = g.infer(&deployment, request).await?;
    respond(name, &output, v1::write(&output, format, rows)?, None, headers).await
}

/// The value of the header that the deployment splits traffic by.
fn split_key(deployment: &Deployment, headers: &HeaderMap) -> Option<String> {
    let header = deployment.manifest.spec.split.header.as_deref()?;
    headers.get(header)?.to_str().ok().map(str::to_owned)
}

async fn infer(State(g): State<Gateway>, Path(name): Path<String>, request: HttpRequest) -> Result<Response, Error> {
    let (parts, body) = request.into_parts(); // an extractor would copy all headers
    run_inference(&g, &name, None, &parts.headers, body).await
}

async fn infer_version(
    State(g): State<Gateway>,
    Path((name, version)): Path<(String, String)>,
    request: HttpRequest,
) -> Result<Response, Error> {
    let (parts, body) = request.into_parts(); // an extractor would copy all headers
    run_inference(&g, &name, Some(version), &parts.headers, body).await
}

/// Receives a body and decodes it. `limit` is its maximum size, both as sent and decoded.
async fn receive<'a>(
    g: &'a Gateway,
    headers: &HeaderMap,
    body: &mut Body,
    limit: usize,
) -> Result<(Bytes, Reservation<'a>), Error> {
    let encoding = Encoding::of_request(headers)?;
    let (bytes, reservation) = g.bodies().read(body, limit).await?.into_bytes();
    match encoding {
        None => Ok((bytes, reservation)),
        // `reservation` covers the encoded body until the decoded one is complete.
        Some(encoding) => encoding::decode(g.bodies(), encoding, &bytes, limit.min(g.bodies().memory_limit())).await,
    }
}

/// Looks up the deployment and receives the body within its limit.
async fn receive_inference<'a>(
    g: &'a Gateway,
    name: &str,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<(Arc<Deployment>, Bytes, Reservation<'a>), Error> {
    let deployment = g.deployment(name)?;
    let (bytes, reservation) = receive(g, headers, body, deployment.manifest.spec.limits.max_body()).await?;
    Ok((deployment, bytes, reservation))
}

async fn run_inference(
    g: &Gateway,
    name: &str,
    version: Option<String>,
    headers: &HeaderMap,
    mut body: Body,
) -> Result<Response, Error> {
    // The reservation is kept until the response is ready, because the parsed tensors replace the body in memory.
    let (deployment, body, _reservation) = match receive_inference(g, name, headers, &mut body).await {
        Ok(received) => received,
        Err(error) => {
            body::discard(headers, body);
            return Err(error);
        }
    };
    let json_length = match headers.get(&JSON_LENGTH) {
        None => None,
        Some(value) => {
            Some(value.to_str().ok().and_then(|v| v.parse::<usize>().ok()).filter(|n| *n <= body.len()).ok_or_else(
                || {
                    Error::Invalid(format!(
                        "Inference-Header-Content-Length is {value:?}, expected a number up to {}",
                        body.len()
                    ))
                },
            )?)
        }
    };
    let parsed = wire::parse(&body, json_length)?;
    drop(body);
    let split_key = split_key(&deployment, headers);
    let request = Request { id: parsed.id, version, split_key, inputs: parsed.inputs };
    let output = g.infer(&deployment, request).await?;
    let (body, json_length) = wire::write(name, &output, &parsed.outputs)?;
    respond(name, &output, body, json_length, headers).await
}

/// The response with this body, in the content encoding that the client prefers. `json_length` is the length of the JSON part if binary
/// data follows it.
async fn respond(
    name: &str,
    output: &InferOutput,
    body: Vec<u8>,
    json_length: Option<usize>,
    headers: &HeaderMap,
) -> Result<Response, Error> {
    let preferred = if body.len() < encoding::MIN_ENCODED_BYTES { None } else { Encoding::accepted(headers) };
    let encoded = match preferred {
        Some(encoding) => encoding::encode(encoding, &body).await.map(|encoded| (encoding, encoded)),
        None => None,
    };
    let (encoding, body) = encoded.map_or((None, body), |(encoding, encoded)| (Some(encoding), encoded));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    if let Some(encoding) = encoding {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
    let media_type = if json_length.is_some() { "application/octet-stream" } else { "application/json" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    if let Some(length) = json_length {
        headers.insert(JSON_LENGTH, length.into());
    }
    for (key, value) in output.headers(name) {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(key, value);
        }
    }
    Ok(response)
}

/// Name, version, state and reason of every model, in the format of the model repository extension.
pub(crate) fn index_entries(g: &Gateway, ready_only: bool) -> Vec<(String, String, &'static str, String)> {
    let mut entries = Vec::new();
    for status in g.statuses() {
        for variant in &status.variants {
            let state = match variant.state {
                "ready" => "READY",
                "loading" => "LOADING",
                _ => "UNAVAILABLE",
            };
            if state == "READY" || !ready_only {
                let version = variant.model.as_ref().map(|m| m.version.clone()).unwrap_or_default();
                entries.push((status.name.clone(), version, state, variant.reason.clone().unwrap_or_default()));
            }
        }
    }
    entries
}

async fn index(State(g): State<Gateway>, headers: HeaderMap, mut body: Body) -> Result<Response, Error> {
    let (body, _reservation) = match receive(&g, &headers, &mut body, body::MAX_SMALL_BODY).await {
        Ok(received) => received,
        Err(error) => {
            body::discard(&headers, body);
            return Err(error);
        }
    };
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let ready_only = request.get("ready").and_then(Value::as_bool).unwrap_or(false);
    let entries = index_entries(&g, ready_only);
    let index = entries.into_iter().map(
        |(name, version, state, reason)| json!({ "name": name, "version": version, "state": state, "reason": reason }),
    );
    Ok(json_response(&Value::Array(index.collect())))
}

/// Reloads the deployment with this name, or deploys `models:/NAME/latest` if there is none.
pub(crate) async fn load_model(g: &Gateway, name: &str) -> Result<(), Error> {
    let manifest = match g.deployment(name) {
        Ok(deployment) => deployment.manifest.clone(),
        Err(_) => Manifest::single(name, ModelUri::Registered(format!("models:/{name}/latest"))),
    };
    g.apply(manifest, "load", LocalPaths::Refused).await.map(drop)
}

async fn load(State(g): State<Gateway>, Path(name): Path<String>) -> Result<StatusCode, Error> {
    load_model(&g, &name).await.map(|()| StatusCode::OK)
}

async fn unload(State(g): State<Gateway>, Path(name): Path<String>) -> Result<StatusCode, Error> {
    g.remove(&name).await.map(|()| StatusCode::OK)
}

#[cfg(test)]
mod tests;
