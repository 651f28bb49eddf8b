//! Affinity of a task's pod to nodes and to other pods.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::ir::kfp_kubernetes::{KubernetesExecutorConfig, PodAffinityTerm, SelectorRequirement};
use crate::ir::ml_pipelines::task_inputs_spec::InputParameterSpec;

/// Field of terms that must hold.
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
/// Field of terms that should hold, with weights.
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// The affinity, as in a pod; `None` if nothing is set. `resolve` gives the value of a reference to a parameter.
pub(super) fn affinity(
    config: &KubernetesExecutorConfig,
    resolve: impl Fn(&InputParameterSpec) -> Result<Option<Value>, String>,
) -> Result<Option<Value>, String> {
    let mut affinity = Map::new();
    let mut required = Vec::new();
    let mut preferred = Vec::new();
    for term in &config.node_affinity {
        if let Some(reference) = &term.node_affinity_json {
            let Some(value) = resolve(reference)? else { continue };
            let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
            if !value.is_object() {
                return Err("the node affinity is not an object".into());
            }
            required.extend(value.get(REQUIRED).map(|terms| list(&terms["nodeSelectorTerms"])).unwrap_or_default());
            preferred.extend(value.get(PREFERRED).map(list).unwrap_or_default());
            continue;
        }
        let mut selector = Map::new();
        for (field, requirements) in
            [("matchExpressions", &term.match_expressions), ("matchFields", &term.match_fields)]
        {
            if !requirements.is_empty() {
                selector.insert(field.to_owned(), requirements_json(requirements));
            }
        }
        match term.weight {
            _ if selector.is_empty() => {}
            Some(weight) => preferred.push(json!({ "weight": weight, "preference": selector })),
            None => required.push(Value::Object(selector)),
        }
    }
    let mut node = Map::new();
    if !required.is_empty() {
        node.insert(REQUIRED.to_owned(), json!({ "nodeSelectorTerms": required }));
    }
    if !preferred.is_empty() {
        node.insert(PREFERRED.to_owned(), json!(preferred));
    }
    if !node.is_empty() {
        affinity.insert("nodeAffinity".to_owned(), Value::Object(node));
    }
    for (field, is_anti) in [("podAffinity", false), ("podAntiAffinity", true)] {
        let terms = config.pod_affinity.iter().filter(|term| term.anti.unwrap_or(false) == is_anti);
        let mut fields: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        for term in terms {
            match term.weight {
                Some(weight) => {
                    let term = json!({ "weight": weight, "podAffinityTerm": pod_term(term) });
                    fields.entry(PREFERRED).or_default().push(term);
                }
                None => fields.entry(REQUIRED).or_default().push(pod_term(term)),
            }
        }
        if !fields.is_empty() {
            affinity.insert(field.to_owned(), json!(fields));
        }
    }
    Ok((!affinity.is_empty()).then_some(Value::Object(affinity)))
}

fn pod_term(term: &PodAffinityTerm) -> Value {
    let mut out = json!({ "topologyKey": term.topology_key });
    if let Some(selector) = label_selector(&term.match_pod_labels, &term.match_pod_expressions) {
        out["labelSelector"] = selector;
    }
    if let Some(selector) = label_selector(&term.match_namespace_labels, &term.match_namespace_expressions) {
        out["namespaceSelector"] = selector;
    }
    if !term.namespaces.is_empty() {
        out["namespaces"] = json!(term.namespaces);
    }
    out
}

fn label_selector(labels: &BTreeMap<String, String>, expressions: &[SelectorRequirement]) -> Option<Value> {
    let mut selector = Map::new();
    if !labels.is_empty() {
        selector.insert("matchLabels".to_owned(), json!(labels));
    }
    if !expressions.is_empty() {
        selector.insert("matchExpressions".to_owned(), requirements_json(expressions));
    }
    (!selector.is_empty()).then_some(Value::Object(selector))
}

fn requirements_json(requirements: &[SelectorRequirement]) -> Value {
    let requirement = |r: &SelectorRequirement| {
        let mut out = json!({ "key": r.key, "operator": r.operator });
        if !r.values.is_empty() {
            out["values"] = json!(r.values);
        }
        out
    };
    Value::Array(requirements.iter().map(requirement).collect())
}
