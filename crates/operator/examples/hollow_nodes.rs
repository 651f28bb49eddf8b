//! Hollow nodes for benchmarks: node objects without machines. They advertise GPUs; a pod that is scheduled to one of them is reported as
//! running for `SECONDS` and then as succeeded.
//!
//! ```text
//! hollow_nodes KUBECONFIG NODES SECONDS
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use slipway_objects::controller::{Change, changes};
use slipway_objects::store::Selection;
use slipway_operator::{Api, ApiServer, KubeError, Resource};

const NODE: Resource<'static> = Resource { group: "", version: "v1", kind: "Node", plural: "nodes" };
const POD: Resource<'static> = Resource { group: "", version: "v1", kind: "Pod", plural: "pods" };
/// Maximum concurrent requests to the API server.
const MAX_CONCURRENT_REQUESTS: usize = 64;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kubeconfig, nodes, seconds] = arguments.as_slice() else {
        return Err("hollow_nodes KUBECONFIG NODES SECONDS".into());
    };
    let (nodes, seconds): (u32, f64) = (nodes.parse()?, seconds.parse()?);
    let api = Api::connect(Some(Path::new(kubeconfig)), None).await?;
    futures_util::stream::iter(0..nodes)
        .map(|n| create_node(&api, n))
        .buffer_unordered(MAX_CONCURRENT_REQUESTS)
        .for_each(|created| async {
            if let Err(error) = created {
                eprintln!("{error}");
            }
        })
        .await;
    println!("{nodes} nodes");
    let requests = Arc::new(tokio::sync::Semaphore::new(MAX_CONCURRENT_REQUESTS));
    let mut changes = std::pin::pin!(changes(ApiServer::new(api.clone()), POD.stored(), Selection::default()));
    while let Some(change) = changes.next().await {
        let Change::Applied(pod) = change else { continue };
        let pod = pod.to_value();
        let hollow = pod["spec"]["nodeName"].as_str().is_some_and(|n| n.starts_with("hollow-"));
        if !hollow || pod["status"]["phase"] != "Pending" || pod["status"]["startTime"].is_string() {
            continue;
        }
        let (api, requests) = (api.clone(), Arc::clone(&requests));
        tokio::spawn(async move {
            for (phase, wait) in [("Running", 0.0), ("Succeeded", seconds)] {
                tokio::time::sleep(Duration::from_secs_f64(wait)).await;
                let _permit = requests.acquire().await;
                if let Err(error) = report(&api, &pod, phase).await {
                    eprintln!("{error}");
                }
            }
        });
    }
    Ok(())
}

async fn create_node(api: &Api, number: u32) -> Result<(), KubeError> {
    let name = format!("hollow-{number}");
    let object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "nvidia.com/gpu.product": "hollow"}},
    });
    match api.create(&NODE, None, &object).await {
        Ok(_) | Err(KubeError::Refused { code: 409, .. }) => {}
        Err(error) => return Err(error),
    }
    let amounts = json!({"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": "8"});
    let now = slipway_core::clock::rfc3339(slipway_core::clock::now_ms());
    let status = json!({"status": {"capacity": amounts, "allocatable": amounts, "conditions": [{
        "type": "Ready", "status": "True", "reason": "Hollow", "lastHeartbeatTime": now, "lastTransitionTime": now,
    }]}});
    api.merge(&NODE, None, &name, true, &status).await?;
    // Remove the taints that the control plane set before the node was ready.
    api.merge(&NODE, None, &name, false, &json!({"spec": {"taints": null}})).await.map(drop)
}

async fn report(api: &Api, pod: &Value, phase: &str) -> Result<(), KubeError> {
    let now = slipway_core::clock::rfc3339(slipway_core::clock::now_ms());
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let state = if phase == "Running" {
        json!({"running": {"startedAt": now}})
    } else {
        json!({"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}})
    };
    let statuses: Vec<Value> = containers
        .map(|c| {
            json!({"name": c["name"], "image": c["image"], "imageID": "", "ready": phase == "Running", "restartCount": 0,
                "started": phase == "Running", "state": state})
        })
        .collect();
    let patch = json!({"status": {"phase": phase, "startTime": now, "containerStatuses": statuses}});
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    api.merge(&POD, Some(text("namespace")), text("name"), true, &patch).await.map(drop)
}
