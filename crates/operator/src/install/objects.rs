//! What the objects of an installation have in common.

use serde_json::{Map, Value, json};

use super::Values;
use crate::names::INSTALLATION;

/// Labels of every object; `component` is `server`, `gateway`, `node`, or nothing for what is common.
pub(super) fn labels(values: &Values, component: &str) -> Map<String, Value> {
    let mut labels = Map::new();
    labels.insert("app.kubernetes.io/name".into(), json!("slipway"));
    labels.insert(INSTALLATION.into(), json!(values.namespace));
    if !component.is_empty() {
        labels.insert("app.kubernetes.io/component".into(), json!(component));
    }
    labels
}

/// An object with the installation's labels; `namespaced` ones lie in its namespace.
pub(super) fn object(
    values: &Values,
    component: &str,
    (api_version, kind): (&str, &str),
    name: &str,
    namespaced: bool,
    body: Value,
) -> Value {
    let mut metadata = json!({"name": name, "labels": labels(values, component)});
    if namespaced {
        metadata["namespace"] = json!(values.namespace);
    }
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata});
    if let (Some(object), Value::Object(body)) = (object.as_object_mut(), body) {
        object.extend(body);
    }
    object
}

/// The selector of a component's pods, which never changes.
pub(super) fn selector(values: &Values, component: &str) -> Value {
    Value::Object(labels(values, component))
}

/// An unprivileged user that exists in no image.
const USER: u32 = 65532;

/// As whom a pod's containers run. The group and the modes of files in volumes are changed once, when the root folder has another
/// owner: done at every start, it takes long on a large volume and opens files that only their owner may read to the group.
pub(super) fn pod_security() -> Value {
    json!({
        "runAsUser": USER, "runAsGroup": USER, "runAsNonRoot": true,
        "fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch",
    })
}

/// What a container may not do.
pub(super) fn locked_down() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// A network policy that lets everybody reach some ports of a component.
pub(super) fn reachable(values: &Values, component: &str, ports: &[u16]) -> Value {
    let ports: Vec<Value> = ports.iter().map(|p| json!({"port": p, "protocol": "TCP"})).collect();
    let body = json!({"spec": {
        "podSelector": {"matchLabels": selector(values, component)},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": ports}],
    }});
    object(values, component, ("networking.k8s.io/v1", "NetworkPolicy"), &format!("slipway-{component}"), true, body)
}

/// Which requests of which account an admission policy is about.
pub(super) struct Restricted {
    pub(super) component: &'static str,
    /// The name of the policy and of its binding.
    pub(super) name: String,
    /// A service account of the installation.
    pub(super) account: &'static str,
    /// The API group of the resources; empty for the core group.
    pub(super) group: &'static str,
    pub(super) resources: Value,
    pub(super) operations: Value,
}

/// A ValidatingAdmissionPolicy and its binding: rights of RBAC know neither labels nor fields, these rules narrow them.
pub(super) fn admission_policy(values: &Values, what: &Restricted, validations: Value) -> [Value; 2] {
    const API: &str = "admissionregistration.k8s.io/v1";
    let user = format!("system:serviceaccount:{}:{}", values.namespace, what.account);
    let policy = json!({"spec": {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [{
            "apiGroups": [what.group], "apiVersions": ["*"], "operations": what.operations, "resources": what.resources,
        }]},
        "matchConditions": [{"name": "account", "expression": format!("request.userInfo.username == '{user}'")}],
        "validations": validations,
    }});
    let binding = json!({"spec": {"policyName": what.name, "validationActions": ["Deny"]}});
    let of = |kind, body| object(values, what.component, (API, kind), &what.name, false, body);
    [of("ValidatingAdmissionPolicy", policy), of("ValidatingAdmissionPolicyBinding", binding)]
}
