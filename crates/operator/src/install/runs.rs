//! The controller of runs: its Deployment and its rights. It is the only process that creates pods and secrets, and only in
//! namespaces that are enabled for runs by a RoleBinding in each. What has to work in any namespace, so that runs can end after a
//! namespace was disabled or while it is deleted, is narrowed to pods of runs by admission policies.

use serde_json::{Value, json};
use slipway_core::node_access::ACCOUNT;

use super::Values;
use super::objects::{Restricted, admission_policy, labels, locked_down, object, pod_security, reachable, selector};
use crate::names::{CONTROLLER as NAME, RUN_LABEL, RUNS_BINDING, SECRET_PREFIX, SERVER, runs_bindings};

const COMPONENT: &str = "controller";
const RBAC: &str = "rbac.authorization.k8s.io/v1";
const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
/// Probes and metrics; it answers nothing else.
const PORT: u16 = 7070;

pub(super) fn objects(values: &Values) -> Vec<Value> {
    let of = |kind, body| object(values, COMPONENT, kind, NAME, true, body);
    let cluster_name = format!("{NAME}-{}", values.namespace);
    let cluster_wide = |kind, name: &str, body| object(values, COMPONENT, (RBAC, kind), name, false, body);
    let subjects = json!([{"kind": "ServiceAccount", "name": NAME, "namespace": values.namespace}]);
    let mut all = vec![
        of(("v1", "ServiceAccount"), json!({})),
        cluster_wide(
            "ClusterRole",
            &cluster_name,
            json!({"rules": [
                {"apiGroups": ["slipway.dev"], "resources": ["runs"], "verbs": ["get", "list", "watch", "delete"]},
                {"apiGroups": ["slipway.dev"], "resources": ["runs/status"], "verbs": ["patch"]},
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch", "delete"]},
            ]}),
        ),
        cluster_wide(
            "ClusterRoleBinding",
            &cluster_name,
            json!({
                "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": cluster_name}, "subjects": subjects,
            }),
        ),
        of(
            (RBAC, "Role"),
            json!({"rules": [
                // The node agents, which know what the GPUs of a run did, and the token that they ask for.
                {"apiGroups": [""], "resources": ["pods/proxy"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["serviceaccounts/token"], "resourceNames": [ACCOUNT], "verbs": ["create"]},
                {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
                // To begin and end tracked runs at the control plane, and to have tokens made for them.
                {"apiGroups": ["slipway.dev"], "resources": ["runs/tracking"], "verbs": ["create"]},
            ]}),
        ),
        of(
            (RBAC, "RoleBinding"),
            json!({
                "roleRef": {"apiGroup": RBAC_GROUP, "kind": "Role", "name": NAME}, "subjects": subjects,
            }),
        ),
    ];
    for (name, role, _) in runs_bindings(&values.namespace) {
        let rules = match name {
            RUNS_BINDING => json!([
                {"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["create"]},
                {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
            ]),
            _ => json!([
                {"apiGroups": ["slipway.dev"], "resources": ["runs"], "verbs": ["create"]},
                {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
            ]),
        };
        all.push(cluster_wide("ClusterRole", &role, json!({"rules": rules})));
    }
    for namespace in &values.runs.namespaces {
        for (name, role, account) in runs_bindings(&values.namespace) {
            let body = json!({
                "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": values.namespace}],
            });
            let mut binding = object(values, COMPONENT, (RBAC, "RoleBinding"), name, true, body);
            binding["metadata"]["namespace"] = json!(namespace);
            all.push(binding);
        }
    }
    all.extend(policies(values));
    all.push(deployment(values));
    if values.network_policy {
        all.push(reachable(values, COMPONENT, &[PORT]));
    }
    all
}

fn deployment(values: &Values) -> Value {
    let tls = &values.server.tls;
    let mut environment = vec![
        json!({"name": "SLIPWAY_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}),
        json!({"name": "SLIPWAY_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
    ];
    let mut mounts = vec![json!({"name": "token", "mountPath": "/var/run/slipway", "readOnly": true})];
    // A token for the control plane, which the kubelet renews.
    let token = json!({"serviceAccountToken": {"audience": crate::authority::AUDIENCE, "path": "token", "expirationSeconds": 3600}});
    let mut volumes = vec![json!({"name": "token", "projected": {"sources": [token]}})];
    if !tls.secret.is_empty() {
        // A certificate is made for a name, so runs cannot use the service's address.
        let url = format!("https://{SERVER}.{}.svc:7070", values.namespace);
        environment.push(json!({"name": "SLIPWAY_RUNS_URL", "value": url}));
        if !tls.ca.is_empty() {
            let path = format!("/etc/slipway/tls/{}", tls.ca);
            environment.push(json!({"name": "SLIPWAY_RUNS_CA", "value": path}));
            environment.push(json!({"name": "SLIPWAY_CA_FILE", "value": path}));
            mounts.push(json!({"name": "tls", "mountPath": "/etc/slipway/tls", "readOnly": true}));
            // A secret of a public authority, such as one of ACME, has no such key: then the image knows the authority.
            let items = json!([{"key": tls.ca, "path": tls.ca}]);
            volumes
                .push(json!({"name": "tls", "secret": {"secretName": tls.secret, "items": items, "optional": true}}));
        }
    }
    let mut security = locked_down();
    security["runAsNonRoot"] = json!(true);
    let pod = selector(values, COMPONENT);
    let body = json!({"spec": {
        // A lease says which one leads while another takes its place.
        "replicas": 1,
        "selector": {"matchLabels": pod},
        "template": {
            "metadata": {"labels": labels(values, COMPONENT)},
            "spec": {
                "serviceAccountName": NAME,
                "securityContext": pod_security(),
                "nodeSelector": values.runs.node_selector,
                "tolerations": values.runs.tolerations,
                "imagePullSecrets": values.image_pull_secrets,
                "containers": [{
                    "name": "slipway",
                    "image": values.image_name(),
                    "imagePullPolicy": values.image.pull_policy,
                    "args": ["controller", "--listen=0.0.0.0:7070", "--token-file=/var/run/slipway/token"],
                    "env": environment,
                    "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
                    "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 5, "timeoutSeconds": 11},
                    "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10},
                    "resources": values.runs.resources,
                    "securityContext": security,
                    "volumeMounts": mounts,
                }],
                "volumes": volumes,
            },
        },
    }});
    object(values, COMPONENT, ("apps/v1", "Deployment"), NAME, true, body)
}

/// Pods and secrets of runs only, whatever RBAC allows.
fn policies(values: &Values) -> Vec<Value> {
    let restricted = |suffix, resources, operations| Restricted {
        component: COMPONENT,
        name: format!("{NAME}-{}-{suffix}", values.namespace),
        account: NAME,
        group: "",
        resources,
        operations,
    };
    let of_a_run = |object: &str| format!("{object}.metadata.?labels[?'{RUN_LABEL}'].hasValue()");
    let owned =
        "object.metadata.?ownerReferences.orValue([]).exists(o, o.apiVersion == 'slipway.dev/v1' && o.kind == 'Run')";
    let mut all = Vec::new();
    all.extend(admission_policy(
        values,
        &restricted("pods", json!(["pods"]), json!(["CREATE", "UPDATE", "DELETE"])),
        json!([
            {
                "expression": format!("request.operation != 'CREATE' || ({} && {owned})", of_a_run("object")),
                "message": "the controller creates pods of runs only",
            },
            {
                "expression": format!("request.operation == 'CREATE' || {}", of_a_run("oldObject")),
                "message": "the controller changes and deletes pods of runs only",
            },
            {
                "expression": "request.operation != 'UPDATE' || object.spec == oldObject.spec",
                "message": "the controller does not change what a pod runs",
            },
        ]),
    ));
    all.extend(admission_policy(
        values,
        &restricted("secrets", json!(["secrets"]), json!(["CREATE"])),
        json!([{
            // A secret of another type may be more than data: Kubernetes fills in a service account's token, for instance.
            "expression": format!(
                "object.metadata.name.startsWith('{SECRET_PREFIX}') && object.type == 'Opaque' && {} && {owned}",
                of_a_run("object")
            ),
            "message": "the controller creates secrets of runs only",
        }]),
    ));
    all
}
