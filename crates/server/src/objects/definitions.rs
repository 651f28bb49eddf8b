//! Definitions of custom resources: refused with a hint. They are listed by discovery, so that `kubectl apply` sends them and shows the hint.

use axum::body::Bytes;
use axum::extract::Path;
use serde_json::Value;
use slipway_access::{Access, Routes, RunTokenUse};
use slipway_objects::Error;
use slipway_objects::discovery::DEFINITIONS;
use slipway_objects::embedded::Embedded;
use slipway_objects::error::GroupResource;

use super::response::Failure;

fn resource() -> GroupResource {
    GroupResource { group: DEFINITIONS.group.into(), resource: DEFINITIONS.plural.into() }
}

pub(super) fn routes() -> Routes<Embedded> {
    let access = Access::Authenticated(RunTokenUse::Denied);
    let collection = format!("/apis/{}/v1/{}", DEFINITIONS.group, DEFINITIONS.plural);
    Routes::new()
        .get(&format!("{collection}/{{name}}"), access, async |Path(name): Path<String>| {
            Failure::from(Error::NotFound { resource: resource(), name })
        })
        .post(&collection, access, create)
}

/// Refuses a definition, whatever it is. Only its names are read, for the message.
async fn create(body: Bytes) -> Failure {
    let definition: Value = serde_json::from_slice(&body).unwrap_or_default();
    let name = definition["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let kind = definition.pointer("/spec/names/kind").and_then(Value::as_str).unwrap_or("this kind");
    let detail = format!(
        "slipway on one machine has the kinds that it carries out itself, and {kind} is not one of them; `slipway up --kube` \
         installs slipway in a cluster, whose API server takes definitions of any kind"
    );
    Error::Forbidden { resource: resource(), name, detail, cause: None }.into()
}
