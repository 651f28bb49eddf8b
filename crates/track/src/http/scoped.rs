//! The extractor that limits a handler to what its caller may change.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::response::Response;
use slipway_access::Caller;
use slipway_access::refusal::Refusal;

use crate::Tracking;

/// The tracking service, limited to what the caller may change. A request without a caller, which passed no guard, is rejected.
pub(super) struct Scoped(pub(super) Tracking);

impl FromRequestParts<Tracking> for Scoped {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, tracking: &Tracking) -> Result<Self, Response> {
        match parts.extensions.get::<Caller>() {
            Some(Caller::Run(run)) => Ok(Self(tracking.clone().for_run(run))),
            Some(_) => Ok(Self(tracking.clone())),
            None => Err(Refusal::Unguarded.response(&parts.headers)),
        }
    }
}
