//! The operations of slipway's own API: for each route a name, a summary, and the types of its request and responses.

mod data;
mod repositories;

use std::collections::HashMap;

use axum::http::{Method, StatusCode};
use serde_json::{Map, Value};
use slipway_exec::Submitted;
use slipway_gpu::bench::Report;
use slipway_gpu::inventory::Inventory;
use slipway_pipeline::outline::{Environment, Outline};
use slipway_serve::http::{InferenceRequest, InferenceResponse, ModelMetadata};
use slipway_serve::service::{RequestRecord, Revision, Status};
use slipway_track::service::Lineage;

use super::{Content, Operation, schema_of};
use crate::addresses::Addresses;
use crate::limit_query::LimitQuery;
use crate::{api, cluster, gpu, metrics, pipeline, runs};

const JSON: &[&str] = &["application/json"];
/// A manifest is YAML or JSON.
const MANIFEST: &[&str] = &["application/yaml", "application/json"];
/// Binary tensors follow the JSON; a header has the JSON's length.
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
    let all = [
        server(),
        deployments(),
        lineage(),
        machines(),
        submitted_runs(),
        data::operations(),
        repositories::operations(),
    ];
    all.into_iter().flatten().collect()
}

fn server() -> Vec<Operation> {
    vec![
        get("/healthz", "getHealth", "Whether the process is alive").text(TEXT),
        get("/readyz", "getReadiness", "Whether the database is available")
            .text(TEXT)
            .response(StatusCode::SERVICE_UNAVAILABLE, Content::Text(TEXT)),
        get("/metrics", "getMetrics", "Metrics in the OpenMetrics format").text(metrics::CONTENT_TYPE),
        get(super::PATH, "getOpenApiDocument", "This document").json::<Map<String, Value>>(),
        get("/api/v1/addresses", "getAddresses", "Addresses of the server's three ports").json::<Addresses>(),
        get("/api/v1/status", "getServerStatus", "Version, uptime, memory and inference runtime of the server")
            .json::<api::ServerStatus>(),
        get("/api/v1/integrity", "checkIntegrity", "Integrity check of the database file")
            .json::<api::Integrity>()
            .response(StatusCode::INTERNAL_SERVER_ERROR, Content::Json(schema_of::<api::Integrity>)),
    ]
}

fn deployments() -> Vec<Operation> {
    vec![
        get("/api/v1/deployments", "listDeployments", "All deployments with their models and statistics")
            .json::<Vec<Status>>(),
        post("/api/v1/deployments", "applyDeployment", "Create or change a deployment")
            .request::<slipway_serve::manifest::Manifest>(MANIFEST)
            .json::<Status>(),
        get("/api/v1/deployments/{name}", "getDeployment", "One deployment").json::<Status>(),
        delete("/api/v1/deployments/{name}", "removeDeployment", "Remove a deployment"),
        post("/api/v1/deployments/{name}/split", "splitTraffic", "Change the traffic weights of the models")
            .request::<api::Weights>(JSON)
            .json::<Status>(),
        post("/api/v1/deployments/{name}/rollback", "rollBackDeployment", "Activate an earlier revision")
            .optional_request::<api::Rollback>(JSON)
            .json::<Status>(),
        get("/api/v1/deployments/{name}/history", "listDeploymentRevisions", "The last 100 revisions, newest first")
            .json::<Vec<Revision>>(),
        post("/api/v1/deployments/{name}/infer", "infer", "Run inference with an Open Inference Protocol V2 request")
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
        get("/api/v1/requests", "listRequests", "The latest served inference requests, newest first")
            .query::<LimitQuery>()
            .json::<Vec<RequestRecord>>(),
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
        post("/api/v1/run-versions", "findRunVersions", "The model versions that were registered from runs, by run id")
            .request::<api::RunIds>(JSON)
            .json::<HashMap<String, Vec<(String, i64)>>>(),
    ]
}

fn machines() -> Vec<Operation> {
    vec![
        get("/api/v1/gpu", "getGpuInventory", "GPUs of the server's machine, with their state and findings")
            .json::<Inventory>(),
        get("/api/v1/gpu/benchmarks", "listBenchmarks", "Stored benchmark reports, newest first")
            .query::<LimitQuery>()
            .json::<Vec<gpu::StoredReport>>(),
        post("/api/v1/gpu/benchmarks", "addBenchmark", "Store a benchmark report")
            .request::<Report>(JSON)
            .json::<gpu::ReportNumber>(),
        post(
            "/api/v1/gpu/fit",
            "estimateFit",
            "The memory of a model on each GPU, and the GPUs and layouts that it fits",
        )
        .request::<gpu::FitQuestion>(JSON)
        .json::<slipway_gpu::fit::Estimate>(),
        get("/api/v1/gpu/pictures/{name}", "getGpuPicture", "An SVG image: topology.svg, slices.svg or roofline.svg")
            .query::<gpu::RooflineQuery>()
            .text("image/svg+xml"),
        get("/api/v1/cluster", "listClusterNodes", "Nodes of the cluster, with their GPUs and the pods that hold them")
            .json::<cluster::ClusterNodes>(),
        get(
            "/api/v1/clusters",
            "listClusterReports",
            "The latest `slipway cluster` report of each cluster, newest first; includes running and waiting steps",
        )
        .json::<cluster::ClusterReports>(),
    ]
}

fn submitted_runs() -> Vec<Operation> {
    vec![
        get("/api/v1/runs", "listRuns", "Submitted runs of one namespace, or of all namespaces")
            .query::<runs::NamespaceQuery>()
            .json::<Vec<Submitted>>(),
        post("/api/v1/runs", "submitRun", "Submit a run")
            .query::<runs::NamespaceQuery>()
            .request::<slipway_exec::Manifest>(MANIFEST)
            .response(StatusCode::CREATED, Content::Json(schema_of::<Submitted>)),
        get("/api/v1/runs/{namespace}/{name}", "getRun", "A submitted run and its status").json::<Submitted>(),
        delete(
            "/api/v1/runs/{namespace}/{name}",
            "removeRun",
            "Remove a submitted run; a running one is stopped first",
        ),
        post("/api/v1/runs/{namespace}/{name}/cancel", "cancelRun", "Cancel a submitted run").json::<Submitted>(),
        get("/api/v1/runs/{namespace}/{name}/log", "getRunLog", "The log of a submitted run")
            .query::<runs::LogParameters>()
            .text(TEXT),
        get("/api/v1/pipelines/runs", "listPipelineRuns", "Runs of pipelines, the newest first")
            .query::<pipeline::routes::RunsParameters>()
            .json::<pipeline::views::PipelineRuns>(),
        get("/api/v1/pipelines/runs/{run}", "getPipelineRun", "A run of a pipeline with its tasks")
            .json::<pipeline::views::PipelineRun>(),
        get(
            "/api/v1/pipelines/runs/{run}/specification",
            "getPipelineRunSpecification",
            "The compiled pipeline of a run",
        )
        .json::<pipeline::routes::PipelineSpecification>(),
        get(
            "/api/v1/pipelines/runs/{run}/tasks",
            "listPipelineTasks",
            "The states of all tasks of a run, if they changed",
        )
        .query::<pipeline::routes::TasksParameters>()
        .json::<pipeline::views::PipelineTasks>(),
        get("/api/v1/pipelines/runs/{run}/task", "getPipelineTask", "A task of a run with its inputs and outputs")
            .query::<pipeline::routes::TaskParameters>()
            .json::<pipeline::views::PipelineTask>(),
        get(
            "/api/v1/pipelines/runs/{run}/outline",
            "getPipelineRunOutline",
            "The inputs and graphs of the pipeline of a run",
        )
        .json::<Outline>(),
        get("/api/v1/pipelines/runs/{run}/usage", "getPipelineRunUsage", "Processors and GPUs that a run used")
            .json::<pipeline::usage::PipelineUsage>(),
        get("/api/v1/pipelines/runs/{run}/environment", "getPipelineTaskEnvironment", "Where a task is executed")
            .query::<pipeline::routes::TaskParameters>()
            .json::<Environment>(),
        get("/api/v1/pipelines/runs/{run}/artifact", "getPipelineArtifact", "The content of an artifact of a task")
            .query::<pipeline::routes::ArtifactParameters>()
            .response(StatusCode::OK, Content::Binary),
        get(
            "/api/v1/pipelines/definitions/{pipeline}/versions/{version}/outline",
            "getPipelineVersionOutline",
            "The inputs and graphs of a version of a pipeline",
        )
        .json::<Outline>(),
        get("/api/v1/pipelines/runs/{run}/log", "getPipelineTaskLog", "The log of a task of a pipeline")
            .query::<pipeline::routes::TaskLogParameters>()
            .text(TEXT),
    ]
}
