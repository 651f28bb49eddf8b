//! What the node agents of an installation know: GPUs, slices, and which pod holds them. Asked through the API server, so it works
//! from inside a cluster and from a workstation alike.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Map, Value, json};

use crate::api::{NODE, POD};
use crate::{Api, KubeError};

/// Agents that are asked at once.
const AT_ONCE: usize = 16;
/// An agent that has not answered by then is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);
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
    match tokio::time::timeout(PATIENCE, api.read(&path)).await {
        Ok(answer) => answer,
        Err(_) => Err(KubeError::Unreachable(format!("{pod} did not answer within {} s", PATIENCE.as_secs()))),
    }
}
