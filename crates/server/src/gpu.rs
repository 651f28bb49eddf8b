//! API for the GPUs of the server's machine and for stored benchmark reports, under `/api/v1/gpu`.

use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_access::{Access, Resource, Routes};
use slipway_gpu::bench::Report;
use slipway_gpu::fit::{Estimate, Request, fit};
use slipway_gpu::inventory::Inventory;
use slipway_gpu::nvml::Nvml;
use slipway_gpu::roofline::Roofline;
use slipway_gpu::topology::Topology;
use slipway_gpu::transformer::description::Config;
use slipway_gpu::{GpuError, draw, mig, repo, sheet};

use crate::Platform;
use crate::error_body::ErrorBody;
use crate::limit_query::LimitQuery;

/// Maximum number of figures in a report; a machine with 16 GPUs has fewer than a thousand.
const MAX_FIGURES: usize = 20_000;

pub(crate) fn routes(platform: Platform) -> Routes {
    let read = Access::get(Resource::Nodes);
    Routes::new()
        .get("/gpu", read, inventory)
        .get("/gpu/benchmarks", read, benchmarks)
        .post("/gpu/benchmarks", Access::update(Resource::Nodes), add)
        .post("/gpu/fit", read, estimate)
        .get("/gpu/pictures/{name}", read, picture)
        .with_state(platform)
}

/// NVML, opened on first use and then kept open. As long as it cannot be opened, every use retries.
#[derive(Default)]
pub(crate) struct Gpus {
    open: parking_lot::Mutex<Option<Arc<Nvml>>>,
}

impl Gpus {
    pub(crate) fn nvml(&self) -> Result<Arc<Nvml>, GpuError> {
        let mut open = self.open.lock();
        if let Some(nvml) = open.as_ref() {
            return Ok(Arc::clone(nvml));
        }
        let fixture = slipway_core::env::value(slipway_core::env::GPU_FIXTURE);
        let nvml = Arc::new(Nvml::find(fixture.as_deref())?);
        *open = Some(Arc::clone(&nvml));
        Ok(nvml)
    }
}

struct Failure(GpuError);

impl From<GpuError> for Failure {
    fn from(e: GpuError) -> Self {
        Self(e)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match &self.0 {
            GpuError::NoNvml { .. } | GpuError::NoGpu => StatusCode::NOT_FOUND,
            GpuError::Invalid(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ErrorBody::response(status, &self.0)
    }
}

/// Runs NVML calls on a blocking thread, because each takes milliseconds with some drivers.
async fn with_nvml<T: Send + 'static>(
    platform: Platform,
    call: impl FnOnce(&Nvml) -> Result<T, GpuError> + Send + 'static,
) -> Result<T, Failure> {
    let result = tokio::task::spawn_blocking(move || platform.gpus.nvml().and_then(|nvml| call(&nvml))).await;
    Ok(result.map_err(|e| GpuError::Invalid(format!("the NVML call crashed: {e}")))??)
}

async fn inventory(State(p): State<Platform>) -> Result<Json<Inventory>, Failure> {
    Ok(Json(with_nvml(p, Inventory::collect).await?))
}

/// A stored benchmark report.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "StoredBenchmarkReport")]
pub(crate) struct StoredReport {
    /// Number of the report, which identifies it.
    number: i64,
    #[serde(flatten)]
    report: Report,
}

async fn benchmarks(
    State(p): State<Platform>,
    Query(q): Query<LimitQuery>,
) -> Result<Json<Vec<StoredReport>>, Failure> {
    let limit = q.limit.unwrap_or(50).min(1000);
    let reports = p.database.read(move |c| repo::list(c, limit)).await.map_err(GpuError::from)?;
    Ok(Json(reports.into_iter().map(|(number, report)| StoredReport { number, report }).collect()))
}

/// The number of a newly stored benchmark report.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "BenchmarkReportNumber")]
pub(crate) struct ReportNumber {
    /// Number of the report, which identifies it.
    number: i64,
}

async fn add(State(p): State<Platform>, body: Bytes) -> Result<Json<ReportNumber>, Failure> {
    let report: Report = serde_json::from_slice(&body)
        .map_err(|e| GpuError::Invalid(format!("the body is not a benchmark report: {e}")))?;
    if report.figures.is_empty() || report.figures.len() > MAX_FIGURES {
        return Err(GpuError::Invalid(format!("a report must have 1 to {MAX_FIGURES} figures")).into());
    }
    if let Some(invalid) = report.figures.iter().find(|f| !(f.median > 0.0 && f.range.0 > 0.0)) {
        return Err(GpuError::Invalid(format!("the figure '{}' must be greater than 0", invalid.what)).into());
    }
    let number = p.database.write(move |c| repo::add(c, &report)).await.map_err(GpuError::from)?;
    Ok(Json(ReportNumber { number }))
}

/// A model, the way it is run, and the GPUs that it may use.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct FitQuestion {
    #[serde(flatten)]
    request: Request,
    /// The contents of the model's `config.json`, instead of a name or a size.
    config: Option<serde_json::Map<String, serde_json::Value>>,
}

async fn estimate(body: Bytes) -> Result<Json<Estimate>, Failure> {
    let question: FitQuestion =
        serde_json::from_slice(&body).map_err(|e| GpuError::Invalid(format!("the body is not a request: {e}")))?;
    let mut request = question.request;
    if let Some(value) = question.config {
        request.model.config = Some(Config { source: "config.json".into(), value: value.into() });
    }
    // A search over many layouts takes longer than an asynchronous task may.
    let result = tokio::task::spawn_blocking(move || fit(&request)).await;
    Ok(Json(result.map_err(|e| GpuError::Invalid(format!("the estimate crashed: {e}")))??))
}

/// Query of the roofline picture.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct RooflineQuery {
    /// A card of the data sheets, such as `H100 SXM`. If unset: the newest measurement, or else this machine's first GPU.
    card: Option<String>,
}

async fn picture(
    State(p): State<Platform>,
    UrlPath(name): UrlPath<String>,
    Query(q): Query<RooflineQuery>,
) -> Result<Response, Failure> {
    let svg = match name.as_str() {
        "topology.svg" => {
            with_nvml(p, |nvml| {
                let inventory = Inventory::collect(nvml)?;
                Ok(draw::topology(&Topology::collect(nvml, &inventory, Path::new("/sys"))?))
            })
            .await?
        }
        "slices.svg" => with_nvml(p, slices).await?,
        "roofline.svg" => roofline(p, q.card).await?,
        _ => return Err(GpuError::Invalid(format!("unknown picture '{name}'")).into()),
    };
    Ok(([(header::CONTENT_TYPE, "image/svg+xml")], svg).into_response())
}

fn slices(nvml: &Nvml) -> Result<String, GpuError> {
    let layouts = mig::layout(nvml)?;
    let first = layouts.first().ok_or_else(|| GpuError::Invalid("no GPU of this machine supports MIG".into()))?;
    Ok(draw::slices(&first.geometry, &mig::maps(&layouts)))
}

/// Draws the theoretical roofline of `card`. Without one, draws the newest measurement, or else the theoretical roofline of this machine's
/// first GPU.
async fn roofline(p: Platform, card: Option<String>) -> Result<String, Failure> {
    let theoretical = |name: &str| {
        sheet::find(name)
            .map(|card| Roofline::from_card(&card))
            .ok_or_else(|| GpuError::Invalid(format!("there is no data sheet for card '{name}'")))
    };
    if let Some(name) = card {
        return Ok(draw::roofline(&theoretical(&name)?, &[]));
    }
    let reports = p.database.read(|c| repo::list(c, 50)).await.map_err(GpuError::from)?;
    let measured = reports.iter().find_map(|(_, r)| r.roofline("gpu 0").or_else(|| r.roofline("cpu")));
    let roof = match measured {
        Some(roof) => roof,
        None => theoretical(&with_nvml(p, |nvml| Ok(nvml.device(0)?.name()?)).await?)?,
    };
    Ok(draw::roofline(&roof, &[]))
}
