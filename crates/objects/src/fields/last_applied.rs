//! The transition from client-side apply. Its state is an annotation with the configuration that was applied last. Fields that still are as
//! the configuration set them can be taken over by `kubectl apply --server-side` without a conflict.

use serde_json::{Value, json};

use super::element::go_json;
use crate::name::MAX_ANNOTATION_BYTES;
use crate::object::Object;
use crate::resource::Resource;

/// The manager whose configurations continue those of client-side apply.
pub(super) const MANAGER: &str = "kubectl";
/// The annotation with the last configuration.
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The configuration that client-side apply applied last; `None` if there is none of this version.
pub(super) fn configuration(live: &Object, resource: &Resource) -> Option<Value> {
    let text = live.metadata.annotations.get(ANNOTATION).filter(|text| !text.is_empty())?;
    let value: Value = serde_json::from_str(text).ok()?;
    (value["apiVersion"] == json!(resource.api_version()) && value["kind"].is_string()).then_some(value)
}

/// Sets the annotation to a configuration if the object has one. `object` is `None` as long as it equals `live`.
pub(super) fn refresh(object: &mut Option<Value>, live: &Value, applied: &Value) {
    let current = object.as_ref().unwrap_or(live);
    let is_present = current["metadata"]["annotations"][ANNOTATION].as_str().is_some_and(|text| !text.is_empty());
    if !is_present {
        return;
    }
    let mut applied = applied.clone();
    if let Some(Value::Object(annotations)) = applied.pointer_mut("/metadata/annotations") {
        annotations.remove(ANNOTATION);
    }
    let text = go_json(&applied) + "\n";
    let object = object.get_or_insert_with(|| live.clone());
    let Some(Value::Object(annotations)) = object.pointer_mut("/metadata/annotations") else { return };
    annotations.insert(ANNOTATION.into(), json!(text));
    let bytes = |(name, value): (&String, &Value)| name.len() + value.as_str().map_or(0, str::len);
    if annotations.iter().map(bytes).sum::<usize>() > MAX_ANNOTATION_BYTES {
        annotations.remove(ANNOTATION);
    }
}
