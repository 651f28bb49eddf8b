//! Writes a pipeline as JSON, with protobuf's names and mapping.

use std::collections::BTreeMap;

use prost_reflect::{DynamicMessage, SerializeOptions};
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::ml_pipelines::component_spec::Implementation;
use super::ml_pipelines::{ComponentSpec, DagSpec, PipelineSpec, PipelineTaskSpec};
use super::read::Document;
use super::{descriptors, interface};

/// The pipeline as the API returns it: the specification, or an object with the fields `pipeline_spec` and `platform_spec` if there are
/// settings for a platform.
pub fn to_json(document: &Document) -> Value {
    serde_json::to_value(Part::Document(document)).expect("the keys are texts, so this is an object of JSON")
}

/// The text of [`to_json`], which needs less memory.
pub(crate) fn to_text(document: &Document) -> String {
    serde_json::to_string(&Part::Document(document)).expect("the keys are texts, so this is an object of JSON")
}

/// A part of a pipeline. Components and tasks, of which there may be thousands, are converted one after the other: the JSON of a message
/// needs many times the memory of its text.
enum Part<'a> {
    Document(&'a Document),
    Specification(&'a PipelineSpec),
    Components(&'a BTreeMap<String, ComponentSpec>),
    Component(&'a ComponentSpec),
    Graph(&'a DagSpec),
    Tasks(&'a BTreeMap<String, PipelineTaskSpec>),
    Task(&'a PipelineTaskSpec),
    Other(&'a Value),
}

impl Serialize for Part<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Part::Document(Document { spec, platform: None, .. }) => Part::Specification(spec).serialize(serializer),
            Part::Document(Document { spec, platform: Some(platform), .. }) => {
                let platform = message_to_json("ml_pipelines.PlatformSpec", platform);
                let parts = [("pipeline_spec", Part::Specification(spec)), ("platform_spec", Part::Other(&platform))];
                serializer.collect_map(parts)
            }
            Part::Specification(spec) => {
                let rest = PipelineSpec {
                    pipeline_info: spec.pipeline_info.clone(),
                    deployment_spec: spec.deployment_spec.clone(),
                    sdk_version: spec.sdk_version.clone(),
                    schema_version: spec.schema_version.clone(),
                    components: BTreeMap::new(),
                    root: None,
                    default_pipeline_root: spec.default_pipeline_root.clone(),
                };
                let components = Some(&spec.components).filter(|all| !all.is_empty()).map(Part::Components);
                let root = spec.root.as_ref().map(Part::Component);
                object(serializer, "ml_pipelines.PipelineSpec", &rest, [("components", components), ("root", root)])
            }
            Part::Components(all) => {
                serializer.collect_map(all.iter().map(|(name, component)| (name, Part::Component(component))))
            }
            Part::Component(component) => {
                let Some(Implementation::Dag(graph)) = &component.implementation else {
                    return message_to_json("ml_pipelines.ComponentSpec", *component).serialize(serializer);
                };
                object(
                    serializer,
                    "ml_pipelines.ComponentSpec",
                    &interface(component),
                    [("dag", Some(Part::Graph(graph)))],
                )
            }
            Part::Graph(graph) => {
                let rest = DagSpec { tasks: BTreeMap::new(), outputs: graph.outputs.clone() };
                let tasks = Some(&graph.tasks).filter(|all| !all.is_empty()).map(Part::Tasks);
                object(serializer, "ml_pipelines.DagSpec", &rest, [("tasks", tasks)])
            }
            Part::Tasks(all) => serializer.collect_map(all.iter().map(|(name, task)| (name, Part::Task(task)))),
            Part::Task(task) => message_to_json("ml_pipelines.PipelineTaskSpec", *task).serialize(serializer),
            Part::Other(value) => value.serialize(serializer),
        }
    }
}

/// Writes a message, and those of its fields that are converted by themselves, in the order of their names.
fn object<'a, S: Serializer, M: prost::Message, const N: usize>(
    serializer: S,
    name: &str,
    rest: &M,
    parts: [(&'a str, Option<Part<'a>>); N],
) -> Result<S::Ok, S::Error> {
    let rest = message_to_json(name, rest);
    let mut fields: BTreeMap<&str, Part<'_>> =
        rest.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), Part::Other(value))).collect();
    fields.extend(parts.into_iter().filter_map(|(name, part)| Some((name, part?))));
    serializer.collect_map(fields)
}

/// The JSON of a message, with names in camel case. Fields with their default value are left out.
///
/// # Panics
/// Never for the messages of this crate: `name` is the full name of the type `M`.
pub(crate) fn message_to_json<M: prost::Message>(name: &str, message: &M) -> Value {
    let descriptor = descriptors().get_message_by_name(name).expect("the message is in the committed descriptors");
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .expect("the generated messages and the descriptors come from the same files");
    let options = SerializeOptions::new().skip_default_fields(true);
    // Only numbers that are not finite cannot be expressed; a reader of JSON cannot have produced them.
    dynamic.serialize_with_options(serde_json::value::Serializer, &options).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::read;

    #[test]
    fn parts_make_up_the_json_of_the_whole() {
        let text = "pipelineInfo: {name: p}\nschemaVersion: 2.1.0\ndefaultPipelineRoot: minio://b\n\
                    deploymentSpec: {executors: {e: {container: {image: python}}}}\n\
                    components: {inner: {dag: {tasks: {t: {componentRef: {name: c}}}}}, c: {executorLabel: e}}\n\
                    root: {dag: {tasks: {a: {componentRef: {name: c}}, b: {componentRef: {name: inner}, dependentTasks: [a]}}}}\n";
        let document = read(text).unwrap();
        let whole = message_to_json("ml_pipelines.PipelineSpec", &document.spec);
        assert_eq!(to_json(&document), whole);
        assert_eq!(to_text(&document), whole.to_string());

        let platform = "---\nplatforms: {kubernetes: {deploymentSpec: {executors: {e: {}}}}}\n";
        let document = read(&format!("{text}{platform}")).unwrap();
        assert_eq!(to_json(&document)["pipeline_spec"], whole);
        assert_eq!(to_text(&document), to_json(&document).to_string());
    }
}
