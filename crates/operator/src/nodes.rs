//! What the node agents of an installation know: GPUs, slices, and which pod holds them. Asked through the API server, so it works
//! from inside a cluster and from a workstation alike. Agents tell it to those who may make a token of
//! [`slipway_core::node_access::ACCOUNT`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use slipway_core::node_access::{ACCOUNT, AUDIENCE, HEADER};

use crate::api::{NODE, POD};
use crate::{Api, KubeError};

/// Agents that are asked at once.
const AT_ONCE: usize = 16;
/// An agent that has not answered by then is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Lifetime of a token for agents, in seconds: the shortest that the API server gives.
const TOKEN_LIFETIME: u32 = 600;
/// A token is used for so long, so that agents need to have it reviewed only now and then.
const TOKEN_REUSED: Duration = Duration::from_secs(300);
/// What a page or a table needs of a GPU; all of it, for a thousand nodes, would be megabytes.
const SHOWN: [&str; 10] = [
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

/// All nodes, by name: whether they are ready, and what their agent says.
///
/// # Errors
/// The API server's. A node whose agent does not answer says so in `error`.
pub async fn nodes(api: &Api, namespace: &str) -> Result<Vec<Value>, KubeError> {
    let agents = agents(api, namespace).await?;
    let answers: Vec<(String, Result<Value, KubeError>)> = futures_util::stream::iter(agents)
        .map(|(node, pod)| async move {
            let answer = ask(api, namespace, &pod, "/api/v1/node").await;
            (node, answer)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut found = Vec::new();
    for node in api.list(&NODE, None, "", "").await? {
        let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let conditions = node["status"]["conditions"].as_array();
        let ready = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
        let mut entry = json!({"node": name, "ready": ready, "schedulable": node["spec"]["unschedulable"] != true});
        match answers.iter().find(|(n, _)| *n == name) {
            None => {}
            Some((_, Err(error))) => entry["error"] = json!(error.to_string()),
            Some((_, Ok(answer))) => {
                for key in ["driver", "missing", "simulated", "offers", "problem", "holders", "cdi"] {
                    entry[key] = answer[key].clone();
                }
                let gpus = answer["gpus"].as_array();
                let brief = |gpu: &Value| -> Map<String, Value> {
                    SHOWN.iter().map(|k| ((*k).to_owned(), gpu[*k].clone())).collect()
                };
                entry["gpus"] = gpus.into_iter().flatten().map(brief).collect();
            }
        }
        found.push(entry);
    }
    found.sort_by(|a, b| a["node"].as_str().cmp(&b["node"].as_str()));
    Ok(found)
}

/// The agents that run: node, and the agent's pod.
///
/// # Errors
/// The API server's.
pub async fn agents(api: &Api, namespace: &str) -> Result<HashMap<String, String>, KubeError> {
    let pods = api.list(&POD, Some(namespace), "status.phase=Running", "app.kubernetes.io/component=node").await?;
    let named =
        |p: &Value| Some((p["spec"]["nodeName"].as_str()?.to_owned(), p["metadata"]["name"].as_str()?.to_owned()));
    Ok(pods.iter().filter_map(named).collect())
}

/// The lease log of one node, newest first.
///
/// # Errors
/// The API server's; [`KubeError::Invalid`] when no agent runs on the node.
pub async fn leases(api: &Api, namespace: &str, node: &str, limit: u32) -> Result<Value, KubeError> {
    let agents = agents(api, namespace).await?;
    let agent = agents.get(node).ok_or_else(|| KubeError::Invalid(format!("no node agent runs on {node}")))?;
    leases_of(api, namespace, agent, limit).await
}

/// The lease log that an agent keeps, newest first.
///
/// # Errors
/// The API server's.
pub async fn leases_of(api: &Api, namespace: &str, pod: &str, limit: u32) -> Result<Value, KubeError> {
    let answer = ask(api, namespace, pod, &format!("/api/v1/node/leases?limit={limit}")).await?;
    Ok(answer["leases"].clone())
}

async fn ask(api: &Api, namespace: &str, pod: &str, path: &str) -> Result<Value, KubeError> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:9400/proxy{path}");
    let answered = async {
        let mut request = http::Request::get(path);
        if let Some(token) = api.reader_tokens.token(api, namespace).await? {
            request = request.header(HEADER, token);
        }
        api.request(request, Vec::new()).await
    };
    match tokio::time::timeout(PATIENCE, answered).await {
        Ok(answer) => answer,
        Err(_) => Err(KubeError::Unreachable(format!("{pod} did not answer within {} s", PATIENCE.as_secs()))),
    }
}

/// Tokens for the agents of each installation, with the time when they were made. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct ReaderTokens(Arc<tokio::sync::Mutex<HashMap<String, (Instant, String)>>>);

impl ReaderTokens {
    /// A token for the agents of the installation in `namespace`; `None` for an installation of before agents asked for one.
    async fn token(&self, api: &Api, namespace: &str) -> Result<Option<String>, KubeError> {
        // Held while a token is made, so that many who ask at once make one.
        let mut known = self.0.lock().await;
        if let Some((_, token)) = known.get(namespace).filter(|(made, _)| made.elapsed() < TOKEN_REUSED) {
            return Ok(Some(token.clone()));
        }
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{ACCOUNT}/token");
        let request = http::Request::post(path).header("content-type", "application/json");
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": [AUDIENCE], "expirationSeconds": TOKEN_LIFETIME},
        });
        let answer = match api.request(request, body.to_string().into_bytes()).await {
            Ok(answer) => answer,
            Err(KubeError::Refused { code: 404, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let token = answer["status"]["token"].as_str().filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| KubeError::Invalid("the API server made no token".into()))?.to_owned();
        known.insert(namespace.to_owned(), (Instant::now(), token.clone()));
        Ok(Some(token))
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::client::Body;
    use parking_lot::Mutex;

    use super::*;

    /// An API server that makes tokens unless it has no such account, and proxies to an agent that takes the token.
    fn api(has_account: bool) -> (Api, Arc<Mutex<Vec<String>>>) {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&seen);
        let service = tower::service_fn(move |request: Request<Body>| {
            let log = Arc::clone(&log);
            async move {
                let token = request.headers().get(HEADER).map(|v| v.to_str().unwrap_or_default().to_owned());
                let line = format!("{} {} {}", request.method(), request.uri().path(), token.as_deref().unwrap_or("-"));
                log.lock().push(line);
                let (code, answer) = if request.uri().path().ends_with("/token") {
                    let body = request.into_body().collect_bytes().await?;
                    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
                    assert_eq!(asked["spec"]["audiences"], json!(["slipway-node"]));
                    match has_account {
                        true => (201, json!({"status": {"token": "one"}})),
                        false => (404, json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "none"})),
                    }
                } else {
                    (200, json!({"leases": [{"pod": "a"}]}))
                };
                let body = Body::from(answer.to_string().into_bytes());
                let answer = Response::builder().status(code).body(body);
                answer.map_err(|e| Box::new(e) as Box<dyn std::error::Error + Send + Sync>)
            }
        });
        (Api::of_client(kube::Client::new(service, "default")), seen)
    }

    #[tokio::test]
    async fn agents_are_asked_with_a_token_that_is_made_once() {
        let (api, seen) = api(true);
        let (one, other) = tokio::join!(leases_of(&api, "sys", "p1", 5), leases_of(&api, "sys", "p2", 5));
        assert_eq!((one.unwrap(), other.unwrap()), (json!([{"pod": "a"}]), json!([{"pod": "a"}])));
        let mut seen = seen.lock().clone();
        seen.sort();
        let expected = [
            "GET /api/v1/namespaces/sys/pods/p1:9400/proxy/api/v1/node/leases one",
            "GET /api/v1/namespaces/sys/pods/p2:9400/proxy/api/v1/node/leases one",
            "POST /api/v1/namespaces/sys/serviceaccounts/slipway-node-reader/token -",
        ];
        assert_eq!(seen, expected);
    }

    #[tokio::test]
    async fn agents_of_an_older_installation_are_asked_without() {
        let (api, seen) = api(false);
        leases_of(&api, "sys", "p1", 5).await.unwrap();
        assert!(seen.lock()[1].ends_with("/leases -"), "{:?}", seen.lock());
    }
}
