//! Objects of the data driver (`slipway node data`): the CSI driver and its DaemonSet. It needs no permissions in the cluster.

use serde_json::{Value, json};
use slipway_core::data_volume::DRIVER;

use super::Values;
use super::objects::{labels, object, selector};

const NAME: &str = "slipway-data";
const COMPONENT: &str = "data";
/// The folder of the cache in the container.
const FOLDER: &str = "/var/lib/slipway-data";

pub(super) fn objects(values: &Values) -> Vec<Value> {
    let mut driver = object(
        values,
        COMPONENT,
        ("storage.k8s.io/v1", "CSIDriver"),
        DRIVER,
        false,
        // The volumes are read-only, so the kubelet must not change the groups of their files.
        json!({"spec": {"attachRequired": false, "podInfoOnMount": false, "fsGroupPolicy": "None", "volumeLifecycleModes": ["Ephemeral"]}}),
    );
    // Pods of all pod security standards may use the volumes: they are read-only, and have no path of the node.
    driver["metadata"]["labels"]["security.kubernetes.io/csi-ephemeral-volume-profile"] = json!("restricted");
    let account = json!({"automountServiceAccountToken": false});
    vec![driver, object(values, COMPONENT, ("v1", "ServiceAccount"), NAME, true, account), daemon_set(values)]
}

fn daemon_set(values: &Values) -> Value {
    let data = &values.data;
    let kubelet = |folder: &str| format!("{}/{folder}", values.node.kubelet_dir);
    let plugin = kubelet(&format!("plugins/{DRIVER}"));
    let host = |name: &str, path: &str, kind: &str| json!({"name": name, "hostPath": {"path": path, "type": kind}});
    let body = json!({"spec": {
        "selector": {"matchLabels": selector(values, COMPONENT)},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}},
        "template": {
            "metadata": {"labels": labels(values, COMPONENT)},
            "spec": {
                "serviceAccountName": NAME,
                "priorityClassName": "system-node-critical",
                "terminationGracePeriodSeconds": 10,
                "nodeSelector": data.node_selector,
                "tolerations": data.tolerations,
                "imagePullSecrets": values.image_pull_secrets,
                "containers": [{
                    "name": "driver",
                    "image": values.image_name(),
                    "imagePullPolicy": values.image.pull_policy,
                    "args": [
                        "node", "data", format!("--kubelet-dir={}", values.node.kubelet_dir),
                        format!("--folder={FOLDER}"), format!("--limit={}", data.limit),
                    ],
                    "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                    "resources": data.resources,
                    // Mounts that reach the pods need a privileged container.
                    "securityContext": {"privileged": true, "readOnlyRootFilesystem": true, "runAsUser": 0},
                    "volumeMounts": [
                        {"name": "plugins-registry", "mountPath": kubelet("plugins_registry")},
                        {"name": "plugin", "mountPath": plugin},
                        {"name": "pods", "mountPath": kubelet("pods"), "mountPropagation": "Bidirectional"},
                        {"name": "cache", "mountPath": FOLDER},
                        {"name": "tmp", "mountPath": "/tmp"},
                    ],
                }],
                "volumes": [
                    host("plugins-registry", &kubelet("plugins_registry"), "Directory"),
                    host("plugin", &plugin, "DirectoryOrCreate"),
                    host("pods", &kubelet("pods"), "Directory"),
                    host("cache", &data.cache_dir, "DirectoryOrCreate"),
                    {"name": "tmp", "emptyDir": {}},
                ],
            },
        },
    }});
    object(values, COMPONENT, ("apps/v1", "DaemonSet"), NAME, true, body)
}
