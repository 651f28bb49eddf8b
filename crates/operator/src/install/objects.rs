//! The objects of an installation. The Helm chart makes the same; a test compares them.

use serde_json::{Map, Value, json};

use super::{INSTALLATION, Values, control_plane, node};

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

/// Everything, in the order in which it is made.
pub fn objects(values: &Values) -> Vec<Value> {
    let mut all = vec![object(values, "", ("v1", "Namespace"), &values.namespace, false, json!({}))];
    // The agent needs the host's folders; everything else keeps to the strictest standard.
    let enforced = if values.node.enabled { "privileged" } else { "restricted" };
    all[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = json!(enforced);
    if values.node.enabled {
        all.extend(node::objects(values));
    }
    if values.server.enabled {
        all.push(control_plane::definition(values));
        all.extend(control_plane::objects(values));
    }
    if values.gateway.enabled {
        all.extend(control_plane::gateway(values));
    }
    if values.network_policy {
        // Nothing is reached but what says so itself.
        let body = json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
        all.push(object(values, "", ("networking.k8s.io/v1", "NetworkPolicy"), "slipway-default", true, body));
    }
    all
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
