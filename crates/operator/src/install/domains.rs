//! Objects for ComputeDomains: their definition and device class, and the controller with its RBAC rules. The controller may only remove the
//! label of a domain from nodes, and only create and delete templates of domains; admission policies restrict it to that.

use serde_json::{Value, json};
use slipway_core::compute_domain::LABEL;

use super::Values;
use super::objects::{
    PolicyScope, admission_policy, allow_ingress, labels, object, pod_security_context, restricted_security_context,
    selector,
};
use crate::domains::{CHANNEL_CLASS, CHANNEL_DRIVER, DEFINITION};

const NAME: &str = "slipway-domains";
const COMPONENT: &str = "domains";
const RBAC: &str = "rbac.authorization.k8s.io/v1";
const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
/// Port for probes and metrics.
const PORT: u16 = 7070;
/// Name of the definition of ComputeDomains.
pub(super) const DEFINITION_NAME: &str = "computedomains.resource.nvidia.com";

/// Adds the labels of the installation to the definition of ComputeDomains.
#[allow(clippy::expect_used)] // the file is part of the binary, and a test parses it
pub(super) fn definition(values: &Values) -> Value {
    let mut definition: Value = serde_saphyr::from_str(DEFINITION).expect("a test parses the file");
    definition["metadata"]["labels"] = Value::Object(labels(values, COMPONENT));
    definition
}

pub(super) fn objects(values: &Values) -> Vec<Value> {
    let own = |kind, body| object(values, COMPONENT, kind, NAME, true, body);
    let cluster_name = format!("{NAME}-{}", values.namespace);
    let cluster_wide = |kind, name: &str, body| object(values, COMPONENT, kind, name, false, body);
    let subjects = json!([{"kind": "ServiceAccount", "name": NAME, "namespace": values.namespace}]);
    let mut all = vec![
        own(("v1", "ServiceAccount"), json!({})),
        cluster_wide(
            (RBAC, "ClusterRole"),
            &cluster_name,
            json!({"rules": [
                {"apiGroups": ["resource.nvidia.com"], "resources": ["computedomains"], "verbs": ["get", "list", "watch", "patch"]},
                {"apiGroups": ["resource.nvidia.com"], "resources": ["computedomains/status"], "verbs": ["patch"]},
                {"apiGroups": ["resource.k8s.io"], "resources": ["resourceclaimtemplates"], "verbs": ["get", "list", "watch", "create", "delete"]},
                {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch", "patch"]},
                {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
            ]}),
        ),
        cluster_wide(
            (RBAC, "ClusterRoleBinding"),
            &cluster_name,
            json!({
                "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": cluster_name}, "subjects": subjects,
            }),
        ),
        own(
            (RBAC, "Role"),
            json!({"rules": [
                {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
            ]}),
        ),
        own(
            (RBAC, "RoleBinding"),
            json!({"roleRef": {"apiGroup": RBAC_GROUP, "kind": "Role", "name": NAME}, "subjects": subjects}),
        ),
    ];
    all.extend(policies(values));
    let expression = format!(
        "device.driver == '{CHANNEL_DRIVER}' && device.attributes['{CHANNEL_DRIVER}'].type == 'channel' && \
         device.attributes['{CHANNEL_DRIVER}'].id == 0"
    );
    let class = json!({"spec": {"selectors": [{"cel": {"expression": expression}}]}});
    all.push(cluster_wide(("resource.k8s.io/v1", "DeviceClass"), CHANNEL_CLASS, class));
    all.push(deployment(values));
    if values.network_policy {
        all.push(allow_ingress(values, COMPONENT, &[PORT]));
    }
    all
}

fn deployment(values: &Values) -> Value {
    let settings = &values.compute_domains;
    let mut security = restricted_security_context();
    security["runAsNonRoot"] = json!(true);
    let body = json!({"spec": {
        // During a rollout two pods run for a moment; a lease decides which of them leads.
        "replicas": 1,
        "selector": {"matchLabels": selector(values, COMPONENT)},
        "template": {
            "metadata": {"labels": labels(values, COMPONENT)},
            "spec": {
                "serviceAccountName": NAME,
                "securityContext": pod_security_context(),
                "nodeSelector": settings.node_selector,
                "tolerations": settings.tolerations,
                "imagePullSecrets": values.image_pull_secrets,
                "containers": [{
                    "name": "slipway",
                    "image": values.image_name(),
                    "imagePullPolicy": values.image.pull_policy,
                    "args": ["node", "domains", "--listen=0.0.0.0:7070"],
                    "env": [
                        {"name": "SLIPWAY_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
                        {"name": "SLIPWAY_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    ],
                    "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
                    "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10},
                    "resources": settings.resources,
                    "securityContext": security,
                }],
            },
        },
    }});
    object(values, COMPONENT, ("apps/v1", "Deployment"), NAME, true, body)
}

/// Admission policies that restrict the controller to the label and the templates of domains.
fn policies(values: &Values) -> Vec<Value> {
    let scope = |suffix, group, resources, operations| PolicyScope {
        component: COMPONENT,
        name: format!("{NAME}-{}-{suffix}", values.namespace),
        account: NAME,
        group,
        resources,
        operations,
    };
    let mut all = Vec::new();
    let set = "object.metadata.?labels.orValue({}).all(k, oldObject.metadata.?labels[?k].orValue('') == object.metadata.labels[k])";
    let removed = format!(
        "oldObject.metadata.?labels.orValue({{}}).all(k, k == '{LABEL}' || object.metadata.?labels[?k].hasValue())"
    );
    all.extend(admission_policy(
        values,
        &scope("nodes", "", json!(["nodes"]), json!(["UPDATE"])),
        json!([
            {"expression": "object.spec == oldObject.spec", "message": "the controller does not change a node's spec"},
            {"expression": set, "message": "the controller sets no labels"},
            {"expression": removed, "message": "the controller removes the labels of domains only"},
        ]),
    ));
    all.extend(admission_policy(
        values,
        &scope("templates", "resource.k8s.io", json!(["resourceclaimtemplates"]), json!(["CREATE", "DELETE"])),
        json!([{
            "expression": format!(
                "(request.operation == 'DELETE' ? oldObject : object).metadata.?labels[?'{LABEL}'].hasValue()"
            ),
            "message": "the controller creates and deletes templates of domains only",
        }]),
    ));
    all
}
