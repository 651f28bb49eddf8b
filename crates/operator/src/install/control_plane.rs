//! The control plane and the gateways apart from it: Deployments, with state on a volume or where they share it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Values;
use super::objects::{labels, locked_down, object, reachable, selector};

const NAME: &str = "slipway";
const GATEWAY: &str = "slipway-gateway";
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
        // To show the nodes with their GPUs, to carry runs out in all namespaces, and to ask who somebody is and what that may do.
        cluster_wide(
            "ClusterRole",
            json!({"rules": [
                {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]},
                {"apiGroups": ["slipway.dev"], "resources": ["runs"], "verbs": ["get", "list", "watch", "create", "patch", "delete"]},
                {"apiGroups": ["slipway.dev"], "resources": ["runs/status"], "verbs": ["patch"]},
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "create", "patch", "delete"]},
                {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
                {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
                {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["slipway-run"], "verbs": ["patch"]},
                {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
                {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
            ]}),
        ),
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
                {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
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
    all.extend(roles_for_people(values));
    let shared = values.is_shared();
    let claim = if server.storage.existing_claim.is_empty() { NAME } else { &server.storage.existing_claim };
    if server.storage.existing_claim.is_empty() && !server.storage.ephemeral && !shared {
        let mut spec = json!({
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": server.storage.size}},
        });
        if !server.storage.class.is_empty() {
            spec["storageClassName"] = json!(server.storage.class);
        }
        all.push(of(("v1", "PersistentVolumeClaim"), NAME, json!({"spec": spec})));
    }
    all.extend(workload(
        values,
        &Workload {
            component: "server",
            name: NAME,
            replicas: server.replicas,
            argument: None,
            volume: (!server.storage.ephemeral && !shared).then_some(claim),
            resources: &server.resources,
            node_selector: &server.node_selector,
            tolerations: &server.tolerations,
        },
    ));
    all
}

/// Gateways apart from the control plane. They may ask the cluster who somebody is, and nothing else.
pub(super) fn gateway(values: &Values) -> Vec<Value> {
    let of = |kind, name: &str, body| object(values, "gateway", kind, name, true, body);
    let cluster_name = format!("{GATEWAY}-{}", values.namespace);
    let gateway = &values.gateway;
    let mut all = vec![
        of(("v1", "ServiceAccount"), GATEWAY, json!({})),
        object(
            values,
            "gateway",
            (RBAC, "ClusterRoleBinding"),
            &cluster_name,
            false,
            json!({
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator"},
                "subjects": [{"kind": "ServiceAccount", "name": GATEWAY, "namespace": values.namespace}],
            }),
        ),
    ];
    all.extend(workload(
        values,
        &Workload {
            component: "gateway",
            name: GATEWAY,
            replicas: gateway.replicas,
            argument: Some("--gateway-only"),
            volume: None,
            resources: &gateway.resources,
            node_selector: &gateway.node_selector,
            tolerations: &gateway.tolerations,
        },
    ));
    all
}

/// A gateway apart uses the first one for probes and metrics only.
const PORTS: [(&str, u16); 3] = [("http", 7070), ("inference", 7071), ("grpc", 7072)];

/// A Deployment of `slipway up`, with its Service and what guards both.
struct Workload<'a> {
    component: &'static str,
    name: &'static str,
    replicas: u32,
    argument: Option<&'static str>,
    /// The claim that holds its state; none where it is elsewhere, or goes with the pod.
    volume: Option<&'a str>,
    resources: &'a Value,
    node_selector: &'a BTreeMap<String, String>,
    tolerations: &'a [Value],
}

fn workload(values: &Values, what: &Workload<'_>) -> Vec<Value> {
    let of = |kind, body| object(values, what.component, kind, what.name, true, body);
    let server = &values.server;
    let state = match what.volume {
        None => json!({"name": "state", "emptyDir": {}}),
        Some(claim) => json!({"name": "state", "persistentVolumeClaim": {"claimName": claim}}),
    };
    let container_ports: Vec<Value> =
        PORTS.iter().map(|(name, port)| json!({"name": name, "containerPort": port, "protocol": "TCP"})).collect();
    let service_ports: Vec<Value> = PORTS
        .iter()
        .map(|(name, port)| json!({"name": name, "port": port, "targetPort": name, "protocol": "TCP"}))
        .collect();
    let mut security = locked_down();
    security["runAsNonRoot"] = json!(true);
    let mut arguments = vec![
        "up",
        "--home=/var/lib/slipway/home",
        "--listen=0.0.0.0:7070",
        "--inference-listen=0.0.0.0:7071",
        "--grpc-listen=0.0.0.0:7072",
        "--token-file=/etc/slipway/tokens/tokens",
    ];
    arguments.extend(what.argument);
    let mut environment = vec![
        json!({"name": "SLIPWAY_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}),
        json!({"name": "SLIPWAY_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
    ];
    let mut variables = Vec::new();
    if !server.database.secret.is_empty() {
        let url = json!({"secretKeyRef": {"name": server.database.secret, "key": "url"}});
        environment.push(json!({"name": "SLIPWAY_DATABASE", "valueFrom": url}));
    }
    if !server.objects.url.is_empty() {
        environment.push(json!({"name": "SLIPWAY_OBJECTS", "value": server.objects.url}));
    }
    if !server.objects.secret.is_empty() {
        variables.push(json!({"secretRef": {"name": server.objects.secret}}));
    }
    // Two writers of one SQLite file would corrupt each other's work.
    let strategy = if values.is_shared() { "RollingUpdate" } else { "Recreate" };
    let pod = selector(values, what.component);
    let mut all = vec![
        of(
            ("apps/v1", "Deployment"),
            json!({"spec": {
                "replicas": what.replicas,
                "strategy": {"type": strategy},
                "selector": {"matchLabels": pod},
                "template": {
                    "metadata": {"labels": labels(values, what.component)},
                    "spec": {
                        "serviceAccountName": what.name,
                        "securityContext": {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "runAsNonRoot": true},
                        "nodeSelector": what.node_selector,
                        "tolerations": what.tolerations,
                        "topologySpreadConstraints": [{
                            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                            "labelSelector": {"matchLabels": pod},
                        }],
                        "imagePullSecrets": values.image_pull_secrets,
                        "containers": [{
                            "name": "slipway",
                            "image": values.image_name(),
                            "imagePullPolicy": values.image.pull_policy,
                            "args": arguments,
                            "env": environment,
                            "envFrom": variables,
                            "ports": container_ports,
                            "startupProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 1, "failureThreshold": 120},
                            "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 5},
                            "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10},
                            "resources": what.resources,
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
            }}),
        ),
        of(("v1", "Service"), json!({"spec": {"selector": pod, "ports": service_ports}})),
    ];
    if what.replicas > 1 {
        let spec = json!({"maxUnavailable": 1, "selector": {"matchLabels": pod}});
        all.push(of(("policy/v1", "PodDisruptionBudget"), json!({"spec": spec})));
    }
    if values.network_policy {
        all.push(reachable(values, what.component, &[7070, 7071, 7072]));
    }
    all
}

/// What people may do, as part of the roles that the cluster has for them (RBAC, aggregated ClusterRoles).
fn roles_for_people(values: &Values) -> [Value; 2] {
    let role = |name: &str, rules: Value| {
        let full = format!("{NAME}-{name}-{}", values.namespace);
        let mut role = object(values, "server", (RBAC, "ClusterRole"), &full, false, json!({"rules": rules}));
        role["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{name}")] = json!("true");
        role
    };
    [
        role(
            "view",
            json!([{
                "apiGroups": ["slipway.dev"], "verbs": ["get", "list", "watch"],
                "resources": ["runs", "runs/log", "experiments", "models", "deployments", "nodes"],
            }]),
        ),
        role(
            "edit",
            json!([
                {
                    "apiGroups": ["slipway.dev"], "verbs": ["create", "update", "patch", "delete"],
                    "resources": ["runs", "experiments", "models", "deployments"],
                },
                {"apiGroups": ["slipway.dev"], "resources": ["inferences"], "verbs": ["create"]},
            ]),
        ),
    ]
}

/// The definition of runs.
pub(super) fn definition(values: &Values) -> Value {
    let mut definition: Value = serde_saphyr::from_str(crate::runs::DEFINITION).expect("a test reads the file");
    definition["metadata"]["labels"] = Value::Object(labels(values, "server"));
    definition
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_can_be_read() {
        let values = Values::read("a", &[]).unwrap();
        assert_eq!(definition(&values)["spec"]["names"]["kind"], crate::runs::RUN.kind);
    }
}
