//! The documents about the API: discovery, OpenAPI, and the version.

use std::sync::{Arc, LazyLock};

use axum::body::Bytes;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use slipway_access::{Access, Routes, RunTokenUse};
use slipway_objects::{Registry, discovery, openapi};
use slipway_track::http::MLFLOW_VERSION;

use super::negotiation::{Representation, negotiate};

/// The media type of aggregated discovery.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// The version of Kubernetes whose API is served.
const KUBERNETES_VERSION: (&str, &str) = ("1", "36");
const JSON: &str = "application/json";
/// The media type of OpenAPI 2 in protobuf. Clients ask for it with `@` in place of the dot before `v1.0`, which is not valid in a response.
const OPENAPI_V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// A document that is generated on the first request.
type Document = Arc<LazyLock<Bytes, Box<dyn FnOnce() -> Bytes + Send>>>;

fn document(generate: impl FnOnce() -> Value + Send + 'static) -> Document {
    Arc::new(LazyLock::new(Box::new(move || Bytes::from(generate().to_string()))))
}

fn respond(media_type: &'static str, document: &Document) -> Response {
    ([(header::CONTENT_TYPE, media_type)], Bytes::clone(document)).into_response()
}

/// The routes of all documents.
pub(super) fn routes(registry: &Registry) -> Routes {
    // They are the same for all callers, but a server tells nothing about itself to unauthenticated clients.
    let access = Access::Authenticated(RunTokenUse::Denied);
    let mut routes = Routes::new();
    for (path, core) in [("/api", true), ("/apis", false)] {
        let (all, of) = (registry.clone(), registry.clone());
        let plain = document(move || if core { discovery::core_versions() } else { discovery::group_list(&all) });
        let aggregated = document(move || discovery::aggregated(&of, core));
        routes = routes.get(path, access, async move |headers: HeaderMap| {
            match negotiate(&headers, &[Representation::Object, Representation::Discovery]) {
                Some(Representation::Discovery) => respond(AGGREGATED, &aggregated),
                _ => respond(JSON, &plain),
            }
        });
    }
    let groups = discovery::group_documents(registry).into_iter().map(|(name, body)| (format!("/apis/{name}"), body));
    for (path, body) in groups.chain(discovery::resource_lists(registry)) {
        let document = document(move || body);
        routes = routes.get(&path, access, async move || respond(JSON, &document));
    }
    let documents = openapi::v3_documents(registry);
    let index = openapi::v3_index(&documents);
    let v3 = document(move || index);
    routes = routes.get("/openapi/v3", access, async move || respond(JSON, &v3));
    for (path, body) in documents {
        let document = document(move || body);
        routes = routes.get(&format!("/openapi/v3/{path}"), access, async move || respond(JSON, &document));
    }
    let all = registry.clone();
    let v2 = document(move || openapi::v2_document(&all));
    routes.get("/openapi/v2", access, async move |headers: HeaderMap| {
        match negotiate(&headers, &[Representation::Object]) {
            Some(_) => respond(JSON, &v2),
            None => ([(header::CONTENT_TYPE, OPENAPI_V2_PROTOBUF)], openapi::v2_protobuf()).into_response(),
        }
    })
}

/// `/version`: for clients of Kubernetes, which ask for JSON, the version of its API; for clients of MLflow the version of MLflow.
pub(crate) async fn version(headers: HeaderMap) -> Response {
    let asks_for_json = headers
        .get_all(header::ACCEPT)
        .iter()
        .any(|value| value.to_str().is_ok_and(|value| value.contains("application/json")));
    if !asks_for_json {
        return MLFLOW_VERSION.into_response();
    }
    let (major, minor) = KUBERNETES_VERSION;
    let body = json!({
        "major": major,
        "minor": minor,
        "gitVersion": format!("v{major}.{minor}.0+slipway-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    });
    ([(header::CONTENT_TYPE, JSON)], body.to_string()).into_response()
}
