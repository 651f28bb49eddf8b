//! Requests to the node agents of an installation: GPUs, MIG slices, and the pods that hold them. Requests go through the proxy of the API
//! server, so they work from inside a cluster and from a workstation. Agents respond only to clients that can create a token of
//! [`slipway_core::node_access::ACCOUNT`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use slipway_core::node_access::{ACCOUNT, AUDIENCE, HEADER};

use crate::api::{NODE, POD};
use crate::{Api, KubeError};

/// Maximum concurrent requests to agents.
const MAX_CONCURRENT_REQUESTS: usize = 16;
/// Timeout of a request to one agent.
const AGENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Lifetime of a token for agents: the minimum that the API server accepts.
const TOKEN_LIFETIME_SECONDS: u32 = 600;
/// How long a token is reused, so that agents seldom need to have a new one reviewed.
const TOKEN_CACHE_TTL: Duration = Duration::from_secs(300);
/// Fields of a GPU that are returned: those that pages and tables show. All fields would be megabytes for a thousand nodes.
const GPU_FIELDS: [&str; 10] = [
    "index",
    "uuid",
    "name",
    "memory_total",
    "memory_used",
    "utilization_percent",
    "power_watts",
    "temperature_celsius",
    "mig",
    "findings",
];

/// All nodes, sorted by name: readiness, and the report of the node's agent.
///
/// # Errors
/// An error of the API server. If an agent does not respond, its node has the reason in `error`.
pub async fn nodes(api: &Api, namespace: &str) -> Result<Vec<Value>, KubeError> {
    let agents = agents(api, namespace).await?;
    let reports: Vec<(String, Result<Value, KubeError>)> = futures_util::stream::iter(agents)
        .map(|(node, pod)| async move {
            let report = get_from_agent(api, namespace, &pod, "/api/v1/node").await;
            (node, report)
        })
        .buffer_unordered(MAX_CONCURRENT_REQUESTS)
        .collect()
        .await;
    let mut found = Vec::new();
    for node in api.list(&NODE, None, "", "").await? {
        let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let conditions = node["status"]["conditions"].as_array();
        let ready = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
        let mut entry = json!({"node": name, "ready": ready, "schedulable": node["spec"]["unschedulable"] != true});
        match reports.iter().find(|(n, _)| *n == name) {
            None => {}
            Some((_, Err(error))) => entry["error"] = json!(error.to_string()),
            Some((_, Ok(report))) => {
                for key in ["driver", "missing", "simulated", "offers", "problem", "holders", "cdi"] {
                    entry[key] = report[key].clone();
                }
                let gpus = report["gpus"].as_array();
                let summary = |gpu: &Value| -> Map<String, Value> {
                    GPU_FIELDS.iter().map(|k| ((*k).to_owned(), gpu[*k].clone())).collect()
                };
                entry["gpus"] = gpus.into_iter().flatten().map(summary).collect();
            }
        }
        found.push(entry);
    }
    found.sort_by(|a, b| a["node"].as_str().cmp(&b["node"].as_str()));
    Ok(found)
}

/// The pod of the running agent on each node, keyed by node name.
///
/// # Errors
/// An error of the API server.
pub async fn agents(api: &Api, namespace: &str) -> Result<HashMap<String, String>, KubeError> {
    let pods = api.list(&POD, Some(namespace), "status.phase=Running", "app.kubernetes.io/component=node").await?;
    let named =
        |p: &Value| Some((p["spec"]["nodeName"].as_str()?.to_owned(), p["metadata"]["name"].as_str()?.to_owned()));
    Ok(pods.iter().filter_map(named).collect())
}

/// The newest `limit` entries of the lease log of a node, newest first.
///
/// # Errors
/// An error of the API server; [`KubeError::Invalid`] when no agent runs on the node.
pub async fn leases(api: &Api, namespace: &str, node: &str, limit: u32) -> Result<Value, KubeError> {
    let agents = agents(api, namespace).await?;
    let agent = agents.get(node).ok_or_else(|| KubeError::Invalid(format!("no node agent runs on {node}")))?;
    leases_of(api, namespace, agent, limit).await
}

/// The newest `limit` entries of the lease log of the agent in `pod`, newest first.
///
/// # Errors
/// An error of the API server.
pub async fn leases_of(api: &Api, namespace: &str, pod: &str, limit: u32) -> Result<Value, KubeError> {
    let response = get_from_agent(api, namespace, pod, &format!("/api/v1/node/leases?limit={limit}")).await?;
    Ok(response["leases"].clone())
}

/// Sends a GET request to the agent in `pod`, with a token if the installation supports it.
async fn get_from_agent(api: &Api, namespace: &str, pod: &str, path: &str) -> Result<Value, KubeError> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:9400/proxy{path}");
    let response = async {
        let mut request = http::Request::get(path);
        if let Some(token) = reader_token(api, namespace).await? {
            request = request.header(HEADER, token);
        }
        api.request(request, Vec::new()).await
    };
    match tokio::time::timeout(AGENT_TIMEOUT, response).await {
        Ok(response) => response,
        Err(_) => Err(KubeError::Unreachable(format!("{pod} did not respond within {} s", AGENT_TIMEOUT.as_secs()))),
    }
}

/// A token for the agents of the installation in `namespace`; `None` if the installation is older than this requirement.
async fn reader_token(api: &Api, namespace: &str) -> Result<Option<String>, KubeError> {
    // Hold the lock while a token is created, so that concurrent requests create only one.
    let mut cached = api.reader_tokens.0.lock().await;
    if let Some((_, token)) = cached.get(namespace).filter(|(created, _)| created.elapsed() < TOKEN_CACHE_TTL) {
        return Ok(Some(token.clone()));
    }
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{ACCOUNT}/token");
    let request = http::Request::post(path).header("content-type", "application/json");
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [AUDIENCE], "expirationSeconds": TOKEN_LIFETIME_SECONDS},
    });
    let response = match api.request(request, body.to_string().into_bytes()).await {
        Ok(response) => response,
        Err(KubeError::Refused { code: 404, .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let token = response["status"]["token"].as_str().filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| KubeError::Invalid("the API server returned no token".into()))?.to_owned();
    cached.insert(namespace.to_owned(), (Instant::now(), token.clone()));
    Ok(Some(token))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{Request, Response};
    use kube::client::Body;
    use parking_lot::Mutex;

    use super::*;

    /// An API server that creates tokens if it has the account, and proxies requests to an agent. Also returns the log of requests.
    fn api(has_account: bool) -> (Api, Arc<Mutex<Vec<String>>>) {
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&requests);
        let service = tower::service_fn(move |request: Request<Body>| {
            let log = Arc::clone(&log);
            async move {
                let token = request.headers().get(HEADER).map(|v| v.to_str().unwrap_or_default().to_owned());
                let line = format!("{} {} {}", request.method(), request.uri().path(), token.as_deref().unwrap_or("-"));
                log.lock().push(line);
                let (code, content) = if request.uri().path().ends_with("/token") {
                    let body = request.into_body().collect_bytes().await?;
                    let token_request: Value = serde_json::from_slice(&body).unwrap_or_default();
                    assert_eq!(token_request["spec"]["audiences"], json!(["slipway-node"]));
                    match has_account {
                        true => (201, json!({"status": {"token": "one"}})),
                        false => (404, json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "none"})),
                    }
                } else {
                    (200, json!({"leases": [{"pod": "a"}]}))
                };
                let body = Body::from(content.to_string().into_bytes());
                let response = Response::builder().status(code).body(body);
                response.map_err(|e| Box::new(e) as Box<dyn std::error::Error + Send + Sync>)
            }
        });
        (Api::from_client(kube::Client::new(service, "default")), requests)
    }

    #[tokio::test]
    async fn concurrent_requests_share_one_token() {
        let (api, requests) = api(true);
        let (first, second) = tokio::join!(leases_of(&api, "sys", "p1", 5), leases_of(&api, "sys", "p2", 5));
        assert_eq!((first.unwrap(), second.unwrap()), (json!([{"pod": "a"}]), json!([{"pod": "a"}])));
        let mut requests = requests.lock().clone();
        requests.sort();
        let expected = [
            "GET /api/v1/namespaces/sys/pods/p1:9400/proxy/api/v1/node/leases one",
            "GET /api/v1/namespaces/sys/pods/p2:9400/proxy/api/v1/node/leases one",
            "POST /api/v1/namespaces/sys/serviceaccounts/slipway-node-reader/token -",
        ];
        assert_eq!(requests, expected);
    }

    #[tokio::test]
    async fn requests_to_older_installations_have_no_token() {
        let (api, requests) = api(false);
        leases_of(&api, "sys", "p1", 5).await.unwrap();
        assert!(requests.lock()[1].ends_with("/leases -"), "{:?}", requests.lock());
    }
}
