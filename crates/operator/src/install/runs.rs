//! Objects of the run controller: the Deployment and its RBAC rules. The controller is the only component that creates pods and secrets,
//! and only in namespaces that a RoleBinding enables for runs. It can change and delete pods in every namespace, so that runs can end
//! after their namespace was disabled or while it is being deleted; admission policies restrict this to pods of runs.

use serde_json::{Value, json};
use slipway_core::env;
use slipway_core::node_access::ACCOUNT;

use super::Values;
use super::objects::{
    PolicyScope, admission_policy, allow_ingress, labels, object, pod_security_context, restricted_security_context,
    selector,
};
use super::values::Queue;
use crate::names::{CONTROLLER_NAME as NAME, RUN_LABEL, RUNS_BINDING, SECRET_PREFIX, SERVER_NAME, runs_bindings};

const COMPONENT: &str = "controller";
const RBAC: &str = "rbac.authorization.k8s.io/v1";
const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
/// Port for probes and metrics.
const PORT: u16 = 7070;

pub(super) fn objects(values: &Values) -> Vec<Value> {
    let controller_object = |kind, body| object(values, COMPONENT, kind, NAME, true, body);
    let cluster_name = format!("{NAME}-{}", values.namespace);
    let cluster_wide = |kind, name: &str, body| object(values, COMPONENT, (RBAC, kind), name, false, body);
    let subjects = json!([{"kind": "ServiceAccount", "name": NAME, "namespace": values.namespace}]);
    let mut all = vec![
        controller_object(("v1", "ServiceAccount"), json!({})),
        cluster_wide(
            "ClusterRole",
            &cluster_name,
            json!({"rules": [
                {"apiGroups": ["slipway.dev"], "resources": ["runs"], "verbs": ["get", "list", "watch", "delete"]},
                {"apiGroups": ["slipway.dev"], "resources": ["runs/status"], "verbs": ["patch"]},
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch", "delete"]},
                // Why a run waits in a queue, and which topology levels Kueue, Volcano and the KAI scheduler know.
                {"apiGroups": ["kueue.x-k8s.io"], "resources": ["workloads"], "verbs": ["get", "list"]},
                {"apiGroups": ["visibility.kueue.x-k8s.io"], "resources": ["localqueues/pendingworkloads"], "verbs": ["get"]},
                {"apiGroups": ["scheduling.volcano.sh", "scheduling.run.ai"], "resources": ["podgroups"], "verbs": ["get"]},
                {"apiGroups": ["kueue.x-k8s.io", "kai.scheduler"], "resources": ["topologies"], "verbs": ["list"]},
                {"apiGroups": ["topology.volcano.sh"], "resources": ["hypernodes"], "verbs": ["list"]},
            ]}),
        ),
        cluster_wide(
            "ClusterRoleBinding",
            &cluster_name,
            json!({
                "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": cluster_name}, "subjects": subjects,
            }),
        ),
        controller_object(
            (RBAC, "Role"),
            json!({"rules": [
                // Requests to the node agents for the GPU usage of runs, and the token that they require.
                {"apiGroups": [""], "resources": ["pods/proxy"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["serviceaccounts/token"], "resourceNames": [ACCOUNT], "verbs": ["create"]},
                {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
                // Requests to the control plane to create and end tracked runs, and to create tokens for them.
                {"apiGroups": ["slipway.dev"], "resources": ["runs/tracking"], "verbs": ["create"]},
            ]}),
        ),
        controller_object(
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
                // Volcano starts the pods of a run only with a pod group.
                {"apiGroups": ["scheduling.volcano.sh"], "resources": ["podgroups"], "verbs": ["create"]},
                {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
            ]),
            _ => json!([
                {"apiGroups": ["slipway.dev"], "resources": ["runs"], "verbs": ["create"]},
                {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
                // Steps of pipelines that create and delete volumes.
                {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["create", "delete", "get"]},
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
        all.push(allow_ingress(values, COMPONENT, &[PORT]));
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
    // A token for requests to the control plane; the kubelet renews it.
    let token = json!({"serviceAccountToken": {"audience": crate::authority::AUDIENCE, "path": "token", "expirationSeconds": 3600}});
    let mut volumes = vec![json!({"name": "token", "projected": {"sources": [token]}})];
    if !tls.secret.is_empty() {
        // The certificate is valid for the name of the service, so runs cannot use its IP address.
        let url = format!("https://{SERVER_NAME}.{}.svc:7070", values.namespace);
        environment.push(json!({"name": "SLIPWAY_RUNS_URL", "value": url}));
        if !tls.ca.is_empty() {
            let path = format!("/etc/slipway/tls/{}", tls.ca);
            environment.push(json!({"name": "SLIPWAY_RUNS_CA", "value": path}));
            environment.push(json!({"name": "SLIPWAY_CA_FILE", "value": path}));
            mounts.push(json!({"name": "tls", "mountPath": "/etc/slipway/tls", "readOnly": true}));
            // A certificate of a public authority, such as one from ACME, comes without this key; its authority is known to the image.
            let items = json!([{"key": tls.ca, "path": tls.ca}]);
            volumes
                .push(json!({"name": "tls", "secret": {"secretName": tls.secret, "items": items, "optional": true}}));
        }
    }
    environment.extend(queue_variables(&values.runs.queue));
    let mut security = restricted_security_context();
    security["runAsNonRoot"] = json!(true);
    let pod = selector(values, COMPONENT);
    let body = json!({"spec": {
        // During a rollout two pods run for a moment; a lease decides which of them leads.
        "replicas": 1,
        "selector": {"matchLabels": pod},
        "template": {
            "metadata": {"labels": labels(values, COMPONENT)},
            "spec": {
                "serviceAccountName": NAME,
                "securityContext": pod_security_context(),
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

/// The variables with the queues of runs that name none.
fn queue_variables(queue: &Queue) -> impl Iterator<Item = Value> {
    let pairs: Vec<String> = queue.namespaces.iter().map(|(namespace, queue)| format!("{namespace}={queue}")).collect();
    let variables = [
        (env::RUNS_QUEUE, queue.name.clone()),
        (env::RUNS_QUEUE_SYSTEM, queue.system.clone()),
        (env::RUNS_NAMESPACE_QUEUES, pairs.join(",")),
    ];
    variables
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| json!({"name": name, "value": value}))
}

/// Admission policies that restrict the controller to pods and secrets of runs.
fn policies(values: &Values) -> Vec<Value> {
    let scope = |suffix, resources, operations| PolicyScope {
        component: COMPONENT,
        name: format!("{NAME}-{}-{suffix}", values.namespace),
        account: NAME,
        group: "",
        resources,
        operations,
    };
    let has_run_label = |object: &str| format!("{object}.metadata.?labels[?'{RUN_LABEL}'].hasValue()");
    let is_owned =
        "object.metadata.?ownerReferences.orValue([]).exists(o, o.apiVersion == 'slipway.dev/v1' && o.kind == 'Run')";
    let mut all = Vec::new();
    all.extend(admission_policy(
        values,
        &scope("pods", json!(["pods"]), json!(["CREATE", "UPDATE", "DELETE"])),
        json!([
            {
                "expression": format!("request.operation != 'CREATE' || ({} && {is_owned})", has_run_label("object")),
                "message": "the controller creates pods of runs only",
            },
            {
                "expression": format!("request.operation == 'CREATE' || {}", has_run_label("oldObject")),
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
        &scope("secrets", json!(["secrets"]), json!(["CREATE"])),
        json!([{
            // Secrets of other types have side effects; for instance, Kubernetes fills in the token of a service account.
            "expression": format!(
                "object.metadata.name.startsWith('{SECRET_PREFIX}') && object.type == 'Opaque' && {} && {is_owned}",
                has_run_label("object")
            ),
            "message": "the controller creates secrets of runs only",
        }]),
    ));
    all
}
