//! Kubeflow Pipelines' REST API: `/apis/v2beta1`, what clients still ask of `/apis/v1beta1`, and the logs of `/apis/v1alpha1`.
//!
//! Names in responses are in snake case, fields without a value are left out, 64-bit integers are texts, times are RFC 3339. An action
//! follows the id after a colon, as in `runs/ID:terminate`.
//!
//! Invariant: a handler calls the service only after `authorize` has allowed the caller the operation in the namespace of the object.
//! All objects of this API count as submitted runs ([`slipway_access::Resource::Runs`]), because whoever changes a pipeline, experiment or
//! schedule decides what is executed.

mod experiments;
mod failure;
mod multipart;
mod pipelines;
mod recurring;
mod request;
mod runs;
mod tasks;
#[cfg(test)]
mod tests;
mod upload;
mod wire;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde::Serialize;
use slipway_access::{Access, Routes, RunTokenUse};

use crate::service::{MAX_PACKAGE, Service};
use failure::{Code, Failure};
use request::respond;

/// Maximum bytes of a request: a package and the form around it.
const BODY_LIMIT: usize = MAX_PACKAGE + (64 << 10);

/// All routes, below `/apis` and below `/pipeline/apis`, because clients may be given the address of Kubeflow's UI, which ends with
/// `/pipeline`.
pub fn routes(service: Service) -> Routes {
    let v2 = pipelines::routes()
        .merge(upload::routes())
        .merge(experiments::routes())
        .merge(runs::routes())
        .merge(recurring::routes())
        .get("/healthz", Access::Public, healthz);
    let v1 = Routes::new().get("/healthz", Access::Public, healthz).get(
        "/runs/{run_id}/nodes/{node_id}/artifacts/{name}",
        Access::DecidedByHandler,
        runs::read_artifact,
    );
    let logs = Routes::new().get("/runs/{run_id}/nodes/{node_id}/log", Access::DecidedByHandler, runs::log);
    let apis = Routes::new()
        .nest("/v2beta1", v2)
        .nest("/v1beta1", v1)
        .nest("/v1alpha1", logs)
        .layer(DefaultBodyLimit::max(BODY_LIMIT));
    Routes::new()
        .nest("/apis", apis.clone().fallback(Access::Authenticated(RunTokenUse::Denied), unknown))
        .nest("/pipeline/apis", apis.fallback(Access::Authenticated(RunTokenUse::Denied), unknown))
        .with_state(service)
}

#[derive(Serialize)]
struct Healthz {
    multi_user: bool,
    pipeline_store: &'static str,
}

async fn healthz(State(service): State<Service>) -> Response {
    respond(&Healthz { multi_user: service.is_multi_user(), pipeline_store: "database" })
}

async fn unknown(_: Uri) -> Failure {
    Failure::new(Code::NotFound, "Not Found").with_status(StatusCode::NOT_FOUND)
}

/// Whether a number has its default value, which is left out.
#[allow(clippy::trivially_copy_pass_by_ref)] // the signature that serde requires
fn is_zero(number: &i64) -> bool {
    *number == 0
}
