//! The operations of slipway's own API: a name and a summary for each route, and the types that it reads and writes.

use std::collections::HashMap;

use axum::http::{Method, StatusCode};
use serde_json::{Map, Value};
use slipway_exec::Submitted;
use slipway_gpu::bench::Report;
use slipway_gpu::inventory::Inventory;
use slipway_serve::http::{InferenceRequest, InferenceResponse, ModelMetadata};
use slipway_serve::service::{Remembered, Revision, Status};
use slipway_track::service::Lineage;

use super::{Content, Operation, schema_of};
use crate::run::Addresses;
use crate::{api, cluster, gpu, metrics, runs};

const JSON: &[&str] = &["application/json"];
/// JSON is YAML, so a manifest may be either.
const MANIFEST: &[&str] = &["application/yaml", "application/json"];
/// The protocol's binary tensors come behind the JSON, whose length is in a header.
const JSON_OR_BINARY: &[&str] = &["application/json", super::BINARY];
const TEXT: &str = "text/plain; charset=utf-8";

fn get(path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    Operation::new(Method::GET, path, id, summary)
}

fn post(path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    Operation::new(Method::POST, path, id, summary)
}

fn delete(path: &'static str, id: &'static str, summary: &'static str) -> Operation {
    Operation::new(Method::DELETE, path, id, summary).no_content()
}

/// All operations; a test compares them with the table of routes.
pub(crate) fn operations() -> Vec<Operation> {
    [server(), deployments(), lineage(), machines(), submitted_runs()].into_iter().flatten().collect()
}

fn server() -> Vec<Operation> {
    vec![
        get("/healthz", "getHealth", "Whether the process is alive").text(TEXT),
        get("/readyz", "getReadiness", "Whether the database answers")
            .text(TEXT)
            .response(StatusCode::SERVICE_UNAVAILABLE, Content::Text(TEXT)),
        get("/metrics", "getMetrics", "Metrics in the OpenMetrics format").text(metrics::CONTENT_TYPE),
        get(super::PATH, "getOpenApiDocument", "This document").json::<Map<String, Value>>(),
        get("/api/v1/addresses", "getAddresses", "Where the server's three ports are").json::<Addresses>(),
        get("/api/v1/status", "getServerStatus", "Version, uptime, memory and inference runtime of the server")
            .json::<api::ServerStatus>(),
        get("/api/v1/integrity", "checkIntegrity", "The database's own check of its file")
            .json::<api::Integrity>()
            .response(StatusCode::INTERNAL_SERVER_ERROR, Content::Json(schema_of::<api::Integrity>)),
    ]
}

fn deployments() -> Vec<Operation> {
    vec![
        get("/api/v1/deployments", "listDeployments", "All deployments with their traffic").json::<Vec<Status>>(),
        post("/api/v1/deployments", "applyDeployment", "Create or change a deployment")
            .request::<slipway_serve::manifest::Manifest>(MANIFEST)
            .json::<Status>(),
        get("/api/v1/deployments/{name}", "getDeployment", "One deployment").json::<Status>(),
        delete("/api/v1/deployments/{name}", "removeDeployment", "Remove a deployment"),
        post("/api/v1/deployments/{name}/split", "splitTraffic", "Change how traffic is shared among the models")
            .request::<api::Weights>(JSON)
            .json::<Status>(),
        post("/api/v1/deployments/{name}/rollback", "rollBackDeployment", "Put an earlier revision in force")
            .optional_request::<api::Rollback>(JSON)
            .json::<Status>(),
        get("/api/v1/deployments/{name}/history", "listDeploymentRevisions", "The last 100 revisions, newest first")
            .json::<Vec<Revision>>(),
        post("/api/v1/deployments/{name}/infer", "infer", "Ask the model: an Open Inference Protocol V2 request")
            .request::<InferenceRequest<'_>>(JSON_OR_BINARY)
            .json::<InferenceResponse>()
            .response(StatusCode::OK, Content::Binary),
        get(
            "/api/v1/deployments/{name}/metadata",
            "getModelMetadata",
            "The model's inputs and outputs (Open Inference Protocol V2)",
        )
        .json::<ModelMetadata>(),
    ]
}

fn lineage() -> Vec<Operation> {
    vec![
        get("/api/v1/requests", "listRequests", "The last inference requests that were answered, newest first")
            .query::<api::Limit>()
            .json::<Vec<Remembered>>(),
        get(
            "/api/v1/requests/{id}/lineage",
            "getRequestLineage",
            "The model version, run and datasets behind a request",
        )
        .json::<api::RequestLineage>(),
        get(
            "/api/v1/models/{name}/versions/{version}/lineage",
            "getModelVersionLineage",
            "The run and datasets behind a model version",
        )
        .json::<Lineage>(),
        post("/api/v1/run-versions", "findRunVersions", "The model versions that were made of runs, by run")
            .request::<api::RunIds>(JSON)
            .json::<HashMap<String, Vec<(String, i64)>>>(),
    ]
}

fn machines() -> Vec<Operation> {
    vec![
        get("/api/v1/gpu", "getGpuInventory", "GPUs of the server's machine, their state and findings")
            .json::<Inventory>(),
        get("/api/v1/gpu/benchmarks", "listBenchmarks", "Stored benchmark reports, newest first")
            .query::<api::Limit>()
            .json::<Vec<gpu::StoredReport>>(),
        post("/api/v1/gpu/benchmarks", "addBenchmark", "Store a benchmark report")
            .request::<Report>(JSON)
            .json::<gpu::ReportNumber>(),
        get("/api/v1/gpu/pictures/{name}", "getGpuPicture", "A picture: topology.svg, slices.svg or roofline.svg")
            .query::<gpu::Card>()
            .text("image/svg+xml"),
        get("/api/v1/cluster", "listClusterNodes", "Nodes of the cluster, their GPUs, and the pods that hold them")
            .json::<cluster::ClusterNodes>(),
        get(
            "/api/v1/clusters",
            "listClusterReports",
            "What `slipway cluster` did last, by cluster, newest first; while it works, with steps that run and wait",
        )
        .json::<cluster::ClusterReports>(),
    ]
}

fn submitted_runs() -> Vec<Operation> {
    vec![
        get("/api/v1/runs", "listRuns", "Submitted runs of a namespace, or of all")
            .query::<runs::Where>()
            .json::<Vec<Submitted>>(),
        post("/api/v1/runs", "submitRun", "Submit a run")
            .query::<runs::Where>()
            .request::<slipway_exec::Manifest>(MANIFEST)
            .response(StatusCode::CREATED, Content::Json(schema_of::<Submitted>)),
        get("/api/v1/runs/{namespace}/{name}", "getRun", "A submitted run and its status").json::<Submitted>(),
        delete(
            "/api/v1/runs/{namespace}/{name}",
            "removeRun",
            "Remove a submitted run; one that goes on is ended first",
        ),
        post("/api/v1/runs/{namespace}/{name}/cancel", "cancelRun", "End a submitted run").json::<Submitted>(),
        get("/api/v1/runs/{namespace}/{name}/log", "getRunLog", "What a submitted run printed")
            .query::<runs::Part>()
            .text(TEXT),
    ]
}
