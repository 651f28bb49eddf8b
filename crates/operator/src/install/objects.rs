//! Building blocks of an installation's objects: labels, selectors, security contexts and policies.

use serde_json::{Map, Value, json};

use super::Values;
use crate::names::INSTALLATION_LABEL;

/// Labels of an object. `component` is `server`, `controller`, `gateway` or `node`; empty for common objects.
pub(super) fn labels(values: &Values, component: &str) -> Map<String, Value> {
    let mut labels = Map::new();
    labels.insert("app.kubernetes.io/name".into(), json!("slipway"));
    labels.insert(INSTALLATION_LABEL.into(), json!(values.namespace));
    if !component.is_empty() {
        labels.insert("app.kubernetes.io/component".into(), json!(component));
    }
    labels
}

/// An object with the labels of the installation; if `namespaced`, in the namespace of the installation.
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

/// The selector of a component's pods. It must not change between versions, because selectors of workloads are immutable.
pub(super) fn selector(values: &Values, component: &str) -> Value {
    Value::Object(labels(values, component))
}

/// User and group id of an unprivileged user that exists in no image.
const UNPRIVILEGED_ID: u32 = 65532;

/// The security context of a pod. `OnRootMismatch` changes group and modes of files in a volume only if its root folder has another
/// group. Changing them at every start would take long on a large volume, and make files that only their owner may read readable for the
/// group.
pub(super) fn pod_security_context() -> Value {
    json!({
        "runAsUser": UNPRIVILEGED_ID, "runAsGroup": UNPRIVILEGED_ID, "runAsNonRoot": true,
        "fsGroup": UNPRIVILEGED_ID, "fsGroupChangePolicy": "OnRootMismatch",
    })
}

/// The security context of a container without privileges.
pub(super) fn restricted_security_context() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// A network policy that allows ingress from everywhere to these ports of a component.
pub(super) fn allow_ingress(values: &Values, component: &str, ports: &[u16]) -> Value {
    let ports: Vec<Value> = ports.iter().map(|p| json!({"port": p, "protocol": "TCP"})).collect();
    let body = json!({"spec": {
        "podSelector": {"matchLabels": selector(values, component)},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": ports}],
    }});
    object(values, component, ("networking.k8s.io/v1", "NetworkPolicy"), &format!("slipway-{component}"), true, body)
}

/// The account and the requests that an admission policy restricts.
pub(super) struct PolicyScope {
    /// Component label of the policy: `server`, `controller` or `node`.
    pub(super) component: &'static str,
    /// Name of the policy and of its binding.
    pub(super) name: String,
    /// A service account of the installation.
    pub(super) account: &'static str,
    /// API group of the resources; empty for the core group.
    pub(super) group: &'static str,
    /// Array of resources: `["pods"]`.
    pub(super) resources: Value,
    /// Array of operations: `["CREATE", "UPDATE"]`.
    pub(super) operations: Value,
}

/// A ValidatingAdmissionPolicy and its binding. They narrow RBAC rules, which cannot depend on labels or fields.
pub(super) fn admission_policy(values: &Values, scope: &PolicyScope, validations: Value) -> [Value; 2] {
    const API: &str = "admissionregistration.k8s.io/v1";
    let user = format!("system:serviceaccount:{}:{}", values.namespace, scope.account);
    let policy = json!({"spec": {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [{
            "apiGroups": [scope.group], "apiVersions": ["*"], "operations": scope.operations, "resources": scope.resources,
        }]},
        "matchConditions": [{"name": "account", "expression": format!("request.userInfo.username == '{user}'")}],
        "validations": validations,
    }});
    let binding = json!({"spec": {"policyName": scope.name, "validationActions": ["Deny"]}});
    let cluster_object = |kind, body| object(values, scope.component, (API, kind), &scope.name, false, body);
    [cluster_object("ValidatingAdmissionPolicy", policy), cluster_object("ValidatingAdmissionPolicyBinding", binding)]
}
