//! GPUs of the server's machine, and kept benchmarks, under `/api/v1/gpu`.

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
use slipway_gpu::inventory::Inventory;
use slipway_gpu::nvml::Nvml;
use slipway_gpu::roofline::Roofline;
use slipway_gpu::topology::Topology;
use slipway_gpu::{GpuError, draw, mig, repo, sheet};

use crate::Platform;
use crate::api::Limit;
use crate::openapi::ErrorBody;

/// Figures that a report may have; a machine of 16 GPUs has under a thousand.
const MOST_FIGURES: usize = 20_000;

pub(crate) fn routes(platform: Platform) -> Routes {
    let read = Access::get(Resource::Nodes);
    Routes::new()
        .get("/gpu", read, inventory)
        .get("/gpu/benchmarks", read, benchmarks)
        .post("/gpu/benchmarks", Access::update(Resource::Nodes), add)
        .get("/gpu/pictures/{name}", read, picture)
        .with_state(platform)
}

/// NVML, opened when it is first asked for and then kept; asked for again as long as it is not there.
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

/// NVML's calls take milliseconds each on some drivers, so they run beside the server's own threads.
async fn ask<T: Send + 'static>(
    platform: Platform,
    question: impl FnOnce(&Nvml) -> Result<T, GpuError> + Send + 'static,
) -> Result<T, Failure> {
    let answer = tokio::task::spawn_blocking(move || platform.gpus.nvml().and_then(|nvml| question(&nvml))).await;
    Ok(answer.map_err(|e| GpuError::Invalid(format!("asking NVML crashed: {e}")))??)
}

async fn inventory(State(p): State<Platform>) -> Result<Json<Inventory>, Failure> {
    Ok(Json(ask(p, Inventory::collect).await?))
}

/// A benchmark report that is stored.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "StoredBenchmarkReport")]
pub(crate) struct StoredReport {
    /// Its number, by which it is named.
    number: i64,
    #[serde(flatten)]
    report: Report,
}

async fn benchmarks(State(p): State<Platform>, Query(q): Query<Limit>) -> Result<Json<Vec<StoredReport>>, Failure> {
    let limit = q.limit.unwrap_or(50).min(1000);
    let kept = p.database.read(move |c| repo::list(c, limit)).await.map_err(GpuError::from)?;
    Ok(Json(kept.into_iter().map(|(number, report)| StoredReport { number, report }).collect()))
}

/// The number of a report that was stored.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "BenchmarkReportNumber")]
pub(crate) struct ReportNumber {
    /// The number.
    number: i64,
}

async fn add(State(p): State<Platform>, body: Bytes) -> Result<Json<ReportNumber>, Failure> {
    let report: Report = serde_json::from_slice(&body)
        .map_err(|e| GpuError::Invalid(format!("the body is not a benchmark's report: {e}")))?;
    if report.figures.is_empty() || report.figures.len() > MOST_FIGURES {
        return Err(GpuError::Invalid(format!("a report has from 1 to {MOST_FIGURES} figures")).into());
    }
    if let Some(bad) = report.figures.iter().find(|f| !(f.median > 0.0 && f.range.0 > 0.0)) {
        return Err(GpuError::Invalid(format!("the figure '{}' is not more than 0", bad.what)).into());
    }
    let number = p.database.write(move |c| repo::add(c, &report)).await.map_err(GpuError::from)?;
    Ok(Json(ReportNumber { number }))
}

/// Which card a roofline is of.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct Card {
    /// A card of the data sheets, such as `H100 SXM`; what was measured last, or this machine's first GPU, if unset.
    card: Option<String>,
}

async fn picture(
    State(p): State<Platform>,
    UrlPath(name): UrlPath<String>,
    Query(q): Query<Card>,
) -> Result<Response, Failure> {
    let svg = match name.as_str() {
        "topology.svg" => {
            ask(p, |nvml| {
                let inventory = Inventory::collect(nvml)?;
                Ok(draw::topology(&Topology::collect(nvml, &inventory, Path::new("/sys"))?))
            })
            .await?
        }
        "slices.svg" => ask(p, slices).await?,
        "roofline.svg" => roofline(p, q.card).await?,
        _ => return Err(GpuError::Invalid(format!("there is no picture '{name}'")).into()),
    };
    Ok(([(header::CONTENT_TYPE, "image/svg+xml")], svg).into_response())
}

fn slices(nvml: &Nvml) -> Result<String, GpuError> {
    let layouts = mig::layout(nvml)?;
    let first = layouts.first().ok_or_else(|| GpuError::Invalid("no GPU of this machine can do MIG".into()))?;
    Ok(draw::slices(&first.geometry, &mig::maps(&layouts)))
}

/// A card's in theory; without one, what was measured last, else this machine's first GPU in theory.
async fn roofline(p: Platform, card: Option<String>) -> Result<String, Failure> {
    let of = |name: &str| {
        sheet::find(name)
            .map(|card| Roofline::of_card(&card))
            .ok_or_else(|| GpuError::Invalid(format!("the sheet has no card '{name}'")))
    };
    if let Some(name) = card {
        return Ok(draw::roofline(&of(&name)?, &[]));
    }
    let kept = p.database.read(|c| repo::list(c, 50)).await.map_err(GpuError::from)?;
    let measured = kept.iter().find_map(|(_, r)| r.roofline("gpu 0").or_else(|| r.roofline("cpu")));
    let roof = match measured {
        Some(roof) => roof,
        None => of(&ask(p, |nvml| Ok(nvml.device(0)?.name()?)).await?)?,
    };
    Ok(draw::roofline(&roof, &[]))
}
