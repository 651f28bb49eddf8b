//! The control plane: one Deployment with its state on a volume.

use serde_json::{Value, json};

use super::Values;
use super::objects::{labels, locked_down, object, reachable, selector};

const NAME: &str = "slipway";
const RBAC: &str = "rbac.authorization.k8s.io/v1";
/// An unprivileged user that exists in no image.
const USER: u32 = 65532;

pub(super) fn objects(values: &Values) -> Vec<Value> {
    let of = |kind, name: &str, body| object(values, "server", kind, name, true, body);
    let server = &values.server;
    let rbac = "rbac.authorization.k8s.io";
    let subjects = json!([{"kind": "ServiceAccount", "name": NAME, "namespace": values.namespace}]);
    let cluster_name = format!("{NAME}-{}", values.namespace);
    let cluster_wide = |kind, body| object(values, "server", (RBAC, kind), &cluster_name, false, body);
    let mut all = vec![
        of(("v1", "ServiceAccount"), NAME, json!({})),
        // To show the nodes with their GPUs, and to ask the agents.
        cluster_wide("ClusterRole", json!({"rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]})),
        cluster_wide(
            "ClusterRoleBinding",
            json!({
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": cluster_name}, "subjects": subjects,
            }),
        ),
        of(
            (RBAC, "Role"),
            NAME,
            json!({"rules": [
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
                {"apiGroups": [""], "resources": ["pods/proxy"], "verbs": ["get"]},
            ]}),
        ),
        of(
            (RBAC, "RoleBinding"),
            NAME,
            json!({
                "roleRef": {"apiGroup": rbac, "kind": "Role", "name": NAME}, "subjects": subjects,
            }),
        ),
    ];
    let claim = if server.storage.existing_claim.is_empty() { NAME } else { &server.storage.existing_claim };
    if server.storage.existing_claim.is_empty() && !server.storage.ephemeral {
        let mut spec = json!({
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": server.storage.size}},
        });
        if !server.storage.class.is_empty() {
            spec["storageClassName"] = json!(server.storage.class);
        }
        all.push(of(("v1", "PersistentVolumeClaim"), NAME, json!({"spec": spec})));
    }
    let state = if server.storage.ephemeral {
        json!({"name": "state", "emptyDir": {}})
    } else {
        json!({"name": "state", "persistentVolumeClaim": {"claimName": claim}})
    };
    let ports = [("http", 7070), ("inference", 7071), ("grpc", 7072)];
    let container_ports: Vec<Value> =
        ports.iter().map(|(name, port)| json!({"name": name, "containerPort": port, "protocol": "TCP"})).collect();
    let service_ports: Vec<Value> = ports
        .iter()
        .map(|(name, port)| json!({"name": name, "port": port, "targetPort": name, "protocol": "TCP"}))
        .collect();
    let mut security = locked_down();
    security["runAsNonRoot"] = json!(true);
    all.push(of(("apps/v1", "Deployment"), NAME, json!({"spec": {
        "replicas": 1,
        // Two writers of one SQLite file would corrupt each other's work.
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": selector(values, "server")},
        "template": {
            "metadata": {"labels": labels(values, "server")},
            "spec": {
                "serviceAccountName": NAME,
                "securityContext": {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "runAsNonRoot": true},
                "nodeSelector": server.node_selector,
                "tolerations": server.tolerations,
                "imagePullSecrets": values.image_pull_secrets,
                "containers": [{
                    "name": "slipway",
                    "image": values.image_name(),
                    "imagePullPolicy": values.image.pull_policy,
                    "args": ["up", "--home=/var/lib/slipway/home", "--listen=0.0.0.0:7070", "--inference-listen=0.0.0.0:7071",
                        "--grpc-listen=0.0.0.0:7072", "--token-file=/etc/slipway/tokens/tokens"],
                    "env": [{"name": "SLIPWAY_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}],
                    "ports": container_ports,
                    "startupProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 1, "failureThreshold": 120},
                    "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 5},
                    "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10},
                    "resources": server.resources,
                    "securityContext": security,
                    "volumeMounts": [
                        {"name": "state", "mountPath": "/var/lib/slipway"},
                        {"name": "tokens", "mountPath": "/etc/slipway/tokens", "readOnly": true},
                        {"name": "tmp", "mountPath": "/tmp"},
                    ],
                }],
                "volumes": [
                    state,
                    {"name": "tokens", "secret": {"secretName": server.token_secret, "defaultMode": 0o440}},
                    {"name": "tmp", "emptyDir": {}},
                ],
            },
        },
    }})));
    all.push(of(
        ("v1", "Service"),
        NAME,
        json!({"spec": {"selector": selector(values, "server"), "ports": service_ports}}),
    ));
    if values.network_policy {
        all.push(reachable(values, "server", &[7070, 7071, 7072]));
    }
    all
}
