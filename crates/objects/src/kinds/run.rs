//! Runs. Their definition is that of clusters, so a manifest is valid on one machine if it is valid in a cluster.

use std::sync::LazyLock;

use slipway_exec::manifest::DEFINITION;
use slipway_exec::pod::FINALIZER;

use crate::definition::Definition;
use crate::object::Object;
use crate::resource::{Resource, Rules};

static RUN: LazyLock<Definition> = LazyLock::new(|| Definition::embedded(DEFINITION));

pub(super) fn resource() -> Resource {
    RUN.resource(Rules { prepare, ..Rules::default() })
}

/// A run is retained until its program has ended, so it always has the finalizer before its deletion.
fn prepare(new: &mut Object, _: Option<&Object>) {
    let meta = &mut new.metadata;
    if !meta.is_deleting() && !meta.has_finalizer(FINALIZER) {
        meta.finalizers.push(FINALIZER.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::FieldValidation;
    use crate::table::{IncludeObject, table};
    use serde_json::{Value, json};

    #[test]
    fn every_keyword_of_the_definition_is_read() {
        let file: Value = serde_saphyr::from_str(DEFINITION).unwrap();
        let source = &file["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        assert_eq!(&serde_json::to_value(resource().schema).unwrap(), source, "a keyword is not supported");
    }

    #[test]
    fn columns_are_those_of_the_definition() {
        let run = Object {
            body: json!({"status": {"phase": "Running", "node": "n"}}).as_object().unwrap().clone(),
            ..Object::default()
        };
        let table = table(&resource(), &[&run], IncludeObject::None, json!({}), true, 0);
        let columns: Vec<&str> =
            table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(columns, ["Name", "Phase", "Reason", "Node", "Queue", "Experiment", "Tracked", "Age"]);
        assert_eq!(table["rows"][0]["cells"], json!(["", "Running", null, "n", null, null, null, null]));
    }

    #[test]
    fn rules_of_the_definition_hold() {
        let errors = |new: Value, old: Option<Value>| -> Vec<String> {
            resource().schema.validate_change(&new, old.as_ref(), "").iter().map(ToString::to_string).collect()
        };
        let run = |spec: Value| json!({"metadata": {"name": "a"}, "spec": spec});
        let valid = run(json!({"image": "a", "command": ["x"], "cancel": true}));
        assert_eq!(errors(valid.clone(), None), Vec::<String>::new());
        assert_eq!(errors(run(json!({"command": ["x"]})), None), ["spec.image: Required value"]);
        let changed = errors(run(json!({"image": "b", "command": ["y"], "cancel": true})), Some(valid.clone()));
        assert_eq!(changed.len(), 2, "{changed:?}");
        assert!(changed[0].starts_with("spec.command") && changed[1].contains("the image cannot be changed"));
        let resumed = errors(run(json!({"image": "a", "command": ["x"]})), Some(valid));
        assert!(resumed[0].contains("a cancelled run cannot be resumed"), "{resumed:?}");
        let long =
            json!({"metadata": {"name": "a".repeat(57)}, "spec": {"image": "a", "topology": {}, "backoffLimit": -1}});
        let long = errors(long, None).join("\n");
        for part in ["at most 56 characters", "backoffLimit in body should be", "should have at least 1 properties"] {
            assert!(long.contains(part), "{long}");
        }
        let value = json!({"metadata": {"name": "a"}, "spec": {"image": 1}});
        let undecodable = resource().decode(value, FieldValidation::Warn, &[]).unwrap_err();
        assert!(undecodable.to_string().contains("spec.image in body must be of type string"), "{undecodable}");
    }
}
