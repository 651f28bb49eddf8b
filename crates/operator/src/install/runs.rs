//! Rights to carry out runs. A namespace is enabled for runs by a RoleBinding in it, without which the control plane can create
//! neither pods nor secrets there. What has to work in any namespace, so that runs can end after a namespace was disabled or while it
//! is deleted, is narrowed to pods of runs by admission policies.

use serde_json::{Value, json};

use super::Values;
use super::objects::{Restricted, admission_policy, object};
use crate::names::{ACCOUNT, RUN_LABEL, RUNS_BINDING, SECRET_PREFIX, runs_role};

const RBAC: &str = "rbac.authorization.k8s.io/v1";

pub(super) fn objects(values: &Values) -> Vec<Value> {
    let role = runs_role(&values.namespace);
    let mut all = vec![object(
        values,
        "server",
        (RBAC, "ClusterRole"),
        &role,
        false,
        json!({"rules": [
            {"apiGroups": ["slipway.dev"], "resources": ["runs"], "verbs": ["create"]},
            {"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["create"]},
            {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
        ]}),
    )];
    for namespace in &values.runs.namespaces {
        let mut binding = object(
            values,
            "server",
            (RBAC, "RoleBinding"),
            RUNS_BINDING,
            true,
            json!({
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": values.namespace}],
            }),
        );
        binding["metadata"]["namespace"] = json!(namespace);
        all.push(binding);
    }
    all.extend(policies(values));
    all
}

/// Pods and secrets of runs only, whatever RBAC allows.
fn policies(values: &Values) -> Vec<Value> {
    let restricted = |suffix, resources, operations| Restricted {
        component: "server",
        name: format!("{}-{suffix}", runs_role(&values.namespace)),
        account: ACCOUNT,
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
                "message": "the control plane creates pods of runs only",
            },
            {
                "expression": format!("request.operation == 'CREATE' || {}", of_a_run("oldObject")),
                "message": "the control plane changes and deletes pods of runs only",
            },
            {
                "expression": "request.operation != 'UPDATE' || object.spec == oldObject.spec",
                "message": "the control plane does not change what a pod runs",
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
            "message": "the control plane creates secrets of runs only",
        }]),
    ));
    all
}
