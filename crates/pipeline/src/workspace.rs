//! The workspace of a run: a volume for all of its tasks, at [`WORKSPACE_PATH`](crate::placeholder::WORKSPACE_PATH).
//!
//! In a cluster it is a persistent volume claim, which a pipeline describes by its size and a patch of the claim's `spec`.

use serde_json::{Map, Value, json};
use slipway_exec::quantity::Quantity;

use crate::proto::ml_pipelines::WorkspaceConfig;
use crate::value;

/// The access mode of a claim that sets none, which every class of storage supports. With it, the pods of a run are on one node at a time.
const DEFAULT_ACCESS_MODE: &str = "ReadWriteOnce";

/// A fault of the description of a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkspaceFault {
    /// The fields that lead to it, from `workspace`.
    pub(crate) path: Vec<&'static str>,
    pub(crate) reason: String,
}

/// The `spec` of the claim of a workspace. As in Kubeflow, a pipeline chooses its size, access modes and class of storage, and nothing else.
///
/// # Errors
/// The description is not valid.
pub(crate) fn claim_spec(workspace: &WorkspaceConfig) -> Result<Value, WorkspaceFault> {
    let fault = |path: &[&'static str], reason: &str| {
        let path = std::iter::once("workspace").chain(path.iter().copied()).collect();
        Err(WorkspaceFault { path, reason: reason.into() })
    };
    let size = &workspace.size;
    if size.is_empty() {
        return fault(&["size"], "the workspace has no size");
    }
    if Quantity::Text(size.clone()).value().is_none_or(|bytes| bytes <= 0.0) {
        return fault(&["size"], &format!("'{size}' is not a size of a volume; a valid one is 10Gi"));
    }
    let patch = workspace.kubernetes.as_ref().and_then(|kubernetes| kubernetes.pvc_spec_patch.as_ref());
    let patch: Map<String, Value> = patch.map(value::from_struct).unwrap_or_default();
    let place = ["kubernetes", "pvcSpecPatch"];
    for (field, value) in &patch {
        match field.as_str() {
            "accessModes" if is_list_of_texts(value) => {}
            "accessModes" => return fault(&place, "accessModes is not a list of texts"),
            "storageClassName" if value.as_str().is_some_and(|class| !class.is_empty()) => {}
            "storageClassName" => {
                return fault(&place, "storageClassName is not the name of a class; omit it for the default class");
            }
            other => {
                let reason = format!("the field '{other}' cannot be set; accessModes and storageClassName can");
                return fault(&place, &reason);
            }
        }
    }
    let mut spec = patch;
    spec.entry("accessModes").or_insert_with(|| json!([DEFAULT_ACCESS_MODE]));
    spec.insert("resources".into(), json!({ "requests": { "storage": size } }));
    Ok(spec.into())
}

fn is_list_of_texts(value: &Value) -> bool {
    value.as_array().is_some_and(|values| !values.is_empty() && values.iter().all(Value::is_string))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ml_pipelines::KubernetesWorkspaceConfig;

    fn workspace(size: &str, patch: &Value) -> WorkspaceConfig {
        let fields = patch.as_object().into_iter().flatten();
        let fields = fields.map(|(key, field)| (key.clone(), value::to_prost(field))).collect();
        let pvc_spec_patch = Some(prost_types::Struct { fields });
        WorkspaceConfig { size: size.into(), kubernetes: Some(KubernetesWorkspaceConfig { pvc_spec_patch }) }
    }

    #[test]
    fn claim_has_the_size_and_the_patch() {
        let storage = json!({ "requests": { "storage": "5Gi" } });
        let plain = WorkspaceConfig { size: "5Gi".into(), kubernetes: None };
        assert_eq!(claim_spec(&plain), Ok(json!({ "accessModes": ["ReadWriteOnce"], "resources": storage })));
        let patch = json!({ "accessModes": ["ReadWriteMany"], "storageClassName": "fast" });
        let expected = json!({ "accessModes": ["ReadWriteMany"], "storageClassName": "fast", "resources": storage });
        assert_eq!(claim_spec(&workspace("5Gi", &patch)), Ok(expected));
    }

    #[test]
    fn invalid_workspaces_are_refused_with_the_field() {
        for (size, patch, field) in [
            ("", json!({}), "size"),
            ("large", json!({}), "size"),
            ("-1Gi", json!({}), "size"),
            ("1Gi", json!({ "volumeName": "other" }), "pvcSpecPatch"),
            ("1Gi", json!({ "storageClassName": "" }), "pvcSpecPatch"),
            ("1Gi", json!({ "accessModes": [] }), "pvcSpecPatch"),
            ("1Gi", json!({ "accessModes": "ReadWriteMany" }), "pvcSpecPatch"),
        ] {
            let fault = claim_spec(&workspace(size, &patch)).unwrap_err();
            assert_eq!(fault.path.last(), Some(&field), "{size} {patch}: {fault:?}");
        }
    }
}
