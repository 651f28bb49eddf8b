//! Reads compiled pipelines: YAML of one or two documents, or JSON.
//!
//! The documents are the specification of the pipeline and the settings for a platform, in either order. The names and values follow
//! protobuf's JSON mapping exactly. All faults are reported at once, each with its place.

use std::collections::BTreeMap;

use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde::Deserializer;
use serde_json::{Map, Value};
use serde_saphyr::options::AliasLimits;

use super::fault::Faults;
use super::kfp_kubernetes::KubernetesExecutorConfig;
use super::ml_pipelines::component_spec::Implementation;
use super::ml_pipelines::{ComponentSpec, PipelineConfig, PipelineDeploymentConfig, PipelineSpec, PlatformSpec};
use super::part::{Part, Without};
use super::tree::{Content, Entry, Node, Place};
use super::{descriptors, validate};
use crate::error::Error;
use crate::heap;
use crate::value::is_within;

/// Maximum bytes of a file.
pub const MAX_BYTES: usize = 10 << 20;
/// Maximum depth of objects and lists. Readers recurse, and a thread has 2 MiB of stack. Protobuf's own limit for values is about as low.
const MAX_DEPTH: usize = 48;
/// Maximum number of scalars, lists and objects.
const MAX_NODES: usize = 500_000;
/// Maximum number of nodes that aliases repeat.
const MAX_REPEATED: usize = 100_000;

/// A compiled pipeline.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Document {
    /// The specification.
    pub spec: PipelineSpec,
    /// The executors, by their labels: `deploymentSpec` of the specification.
    pub deployment: PipelineDeploymentConfig,
    /// Settings for Kubernetes, by the executors' labels.
    pub kubernetes: BTreeMap<String, KubernetesExecutorConfig>,
    /// Settings of the whole pipeline, such as its workspace.
    pub pipeline_config: PipelineConfig,
    /// The second document of the file.
    pub platform: Option<PlatformSpec>,
}

/// Reads and validates a file.
///
/// # Errors
/// [`Error::Specification`] with all faults, one per line, as `line N, column M: PATH: REASON`.
pub fn read(text: &str) -> Result<Document, Error> {
    if text.len() > MAX_BYTES {
        return Err(Error::Specification(format!("the file has {} bytes; the limit is {MAX_BYTES}", text.len())));
    }
    let document = document(parse(text)?)?;
    heap::release_after(document.spec.encoded_len());
    Ok(document)
}

/// Reads and validates a pipeline in the form in which clients send it: the specification, or an object with the fields `pipeline_spec`
/// and `platform_spec`.
///
/// # Errors
/// [`Error::Specification`] with all faults, one per line, as `PATH: REASON`.
pub fn read_json(value: Value) -> Result<Document, Error> {
    check_size(&value)?;
    let document = document(vec![Node::from(value)])?;
    heap::release_after(document.spec.encoded_len());
    Ok(document)
}

/// Fails for a value that is too large or too deep, which the reader of YAML finds by itself.
fn check_size(value: &Value) -> Result<(), Error> {
    if !is_within(value, MAX_DEPTH) {
        return Err(Error::Specification(format!(
            "the pipeline has more than {MAX_DEPTH} objects and lists inside each other"
        )));
    }
    if count(value) > MAX_NODES {
        return Err(Error::Specification(format!("the pipeline has more than {MAX_NODES} values")));
    }
    Ok(())
}

/// Number of scalars, keys, lists and objects.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(values) => values.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(|value| 1 + count(value)).sum(),
        _ => 0,
    }
}

fn parse(text: &str) -> Result<Vec<Node>, Error> {
    // Escapes of JSON such as `\ud83d\ude00` are not valid in YAML, so the values of a JSON file come from a reader of JSON.
    let json = text.trim_start().starts_with('{').then(|| serde_json::from_str::<Value>(text).ok()).flatten();
    json.as_ref().map_or(Ok(()), check_size)?;
    let yaml = serde_saphyr::from_multiple_with_options::<Node>(text.trim_start_matches('\u{feff}'), options());
    match (json, yaml) {
        (Some(value), Err(_)) => Ok(vec![Node::from(value)]),
        (_, Ok(nodes)) => Ok(nodes),
        (None, Err(error)) => {
            let mut faults = Faults::default();
            let place =
                error.location().filter(|at| at.line() > 0).map(|at| Place { line: at.line(), column: at.column() });
            let reason = error.without_snippet().to_string();
            // The message ends with the place, which the fault has already.
            let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
            faults.push(place, &[], reason);
            faults.into_result().map(|()| Vec::new())
        }
    }
}

fn options() -> serde_saphyr::Options {
    let mut options = serde_saphyr::Options::default();
    if let Some(budget) = &mut options.budget {
        budget.max_depth = MAX_DEPTH;
        budget.flow_nesting_limit = MAX_DEPTH;
        budget.max_nodes = MAX_NODES;
        budget.max_events = 2 * MAX_NODES;
        budget.max_documents = 16;
        budget.max_total_scalar_bytes = 2 * MAX_BYTES;
    }
    options.alias_limits = AliasLimits::default();
    options.alias_limits.max_total_replayed_events = MAX_REPEATED;
    // Kubeflow's server resolves plain scalars like this: `0644` is octal, and `yes` is a string.
    options.legacy_octal_numbers = true;
    options.strict_booleans = true;
    options
}

/// The parts of a file.
#[derive(Default)]
struct Parts {
    spec: Option<Node>,
    platform: Option<Node>,
}

fn document(nodes: Vec<Node>) -> Result<Document, Error> {
    let mut faults = Faults::default();
    let parts = split(nodes, &mut faults);
    let Some(spec_node) = parts.spec else {
        if faults.len() == 0 {
            faults.push(None, &[], "there is no pipeline in the file");
        }
        return faults.into_result().map(|()| Document::default());
    };
    let mut document = Document { spec: specification(&spec_node, &mut faults), ..Document::default() };
    if let Some(node) = spec_node.field("deploymentSpec") {
        let mut path = vec!["deploymentSpec".to_owned()];
        let name = "ml_pipelines.PipelineDeploymentConfig";
        document.deployment = message(name, node.into(), node.place, &mut path, &mut faults).unwrap_or_default();
    }
    if let Some(node) = &parts.platform {
        read_platform(node, &mut document, &mut faults);
    }
    // Faults of the meaning would only follow from those of the form.
    faults.into_result()?;
    let (mut faults, mut platform_faults) = validate::validate(&document);
    faults.locate(&spec_node);
    if let Some(node) = &parts.platform {
        platform_faults.locate(node);
    }
    faults.append(platform_faults);
    faults.into_result()?;
    Ok(document)
}

fn split(nodes: Vec<Node>, faults: &mut Faults) -> Parts {
    let mut parts = Parts::default();
    for mut node in nodes {
        if let Some(spec) = node.take_field("pipelineSpec") {
            set(&mut parts.spec, spec, "pipeline", faults);
            if let Some(platform) =
                node.take_field("platformSpec").filter(|node| !matches!(node.content, Content::Null))
            {
                set(&mut parts.platform, platform, "platform", faults);
            }
            continue;
        }
        let has = |name: &str| node.field(name).is_some();
        match &node.content {
            Content::Null => {}
            Content::Map(_) if has("platforms") && !has("root") => set(&mut parts.platform, node, "platform", faults),
            Content::Map(_) if has("root") || has("pipelineInfo") || has("schemaVersion") || has("deploymentSpec") => {
                set(&mut parts.spec, node, "pipeline", faults);
            }
            Content::Map(_)
                if node
                    .get("kind")
                    .is_some_and(|kind| matches!(&kind.content, Content::String(k) if k == "Workflow")) =>
            {
                let reason =
                    "this is a workflow for Argo, from version 1 of the kfp SDK; compile the pipeline with version 2";
                faults.push(node.place, &[], reason);
            }
            Content::Map(_) => {
                faults.push(
                    node.place,
                    &[],
                    "this is not a compiled pipeline: there is no field pipelineInfo, root or platforms",
                );
            }
            _ => {
                let reason = format!("a compiled pipeline is an object; this is {}", node.type_name());
                faults.push(node.place, &[], reason);
            }
        }
    }
    parts
}

fn set(part: &mut Option<Node>, node: Node, what: &str, faults: &mut Faults) {
    if part.is_some() {
        faults.push(node.place, &[], format!("there is more than one {what} specification in the file"));
    } else {
        *part = Some(node);
    }
}

fn read_platform(node: &Node, document: &mut Document, faults: &mut Faults) {
    document.platform = message("ml_pipelines.PlatformSpec", node.into(), node.place, &mut Vec::new(), faults);
    let Some(kubernetes) = document.platform.as_ref().and_then(|platform| platform.platforms.get("kubernetes")) else {
        return;
    };
    document.pipeline_config = kubernetes.pipeline_config.clone().unwrap_or_default();
    let names = ["platforms", "kubernetes", "deploymentSpec", "executors"];
    let executors = names.iter().try_fold(node, |node, name| node.field(name));
    if let Some(Content::Map(entries)) = executors.map(|node| &node.content) {
        for entry in entries {
            let mut path: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            path.push(entry.key.clone());
            let name = "kfp_kubernetes.KubernetesExecutorConfig";
            if let Some(config) = message(name, (&entry.value).into(), entry.place, &mut path, faults) {
                document.kubernetes.insert(entry.key.clone(), config);
            }
        }
    }
}

/// The specification, or its faults. Components and tasks, of which there may be thousands, are read one after the other.
fn specification(node: &Node, faults: &mut Faults) -> PipelineSpec {
    let (components, root) = (entries_of(node, &["components"]), node.field("root"));
    let is_object = |node: &&Node| matches!(node.content, Content::Map(_));
    // Faults of fields that are no objects are found where the specification is read.
    let without: &'static [&'static str] = match (components.is_some(), root.filter(is_object).is_some()) {
        (true, true) => &["components", "root"],
        (true, false) => &["components"],
        (false, true) => &["root"],
        (false, false) => &[],
    };
    let rest = Part { node, without: Without::Fields(without) };
    let mut spec: PipelineSpec =
        message("ml_pipelines.PipelineSpec", rest, node.place, &mut Vec::new(), faults).unwrap_or_default();
    for entry in components.unwrap_or_default() {
        let mut path = vec!["components".to_owned(), entry.key.clone()];
        if let Some(component) = component(&entry.value, entry.place, &mut path, faults) {
            spec.components.insert(entry.key.clone(), component);
        }
    }
    if let Some(root) = root.filter(is_object) {
        let mut path = vec!["root".to_owned()];
        spec.root = component(root, node.find(&path), &mut path, faults);
    }
    spec
}

/// A component with the tasks of its graph, or its faults.
fn component(node: &Node, place: Option<Place>, path: &mut Vec<String>, faults: &mut Faults) -> Option<ComponentSpec> {
    let name = "ml_pipelines.ComponentSpec";
    let Some(tasks) = entries_of(node, &["dag", "tasks"]) else {
        return message(name, node.into(), place, path, faults);
    };
    let rest = Part { node, without: Without::FieldOf("dag", &["tasks"]) };
    let mut component: ComponentSpec = message(name, rest, place, path, faults)?;
    let Some(Implementation::Dag(dag)) = &mut component.implementation else { return Some(component) };
    let depth = path.len();
    for entry in tasks {
        path.extend(["dag".to_owned(), "tasks".to_owned(), entry.key.clone()]);
        if let Some(task) = message("ml_pipelines.PipelineTaskSpec", (&entry.value).into(), entry.place, path, faults) {
            dag.tasks.insert(entry.key.clone(), task);
        }
        path.truncate(depth);
    }
    Some(component)
}

/// The fields of the object that a path leads to, if they all are objects. The names in the path are the same in camel and in snake case.
fn entries_of<'a>(node: &'a Node, path: &[&str]) -> Option<&'a [Entry]> {
    let node = path.iter().try_fold(node, |node, name| node.get(name))?;
    match &node.content {
        Content::Map(entries) if entries.iter().all(|entry| matches!(entry.value.content, Content::Map(_))) => {
            Some(entries)
        }
        _ => None,
    }
}

/// A node as a message, or its faults.
fn message<M: Message + Default>(
    name: &str,
    part: Part<'_>,
    place: Option<Place>,
    path: &mut Vec<String>,
    faults: &mut Faults,
) -> Option<M> {
    let descriptor = descriptors().get_message_by_name(name).expect("the message is in the committed descriptors");
    match deserialize(&descriptor, part) {
        Ok(message) => {
            let bytes = message.encode_to_vec();
            drop(message);
            match M::decode(bytes.as_slice()) {
                Ok(message) => return Some(message),
                Err(error) => faults.push(place, path, error.to_string()),
            }
        }
        Err(_) => locate(&descriptor, part, place, path, faults),
    }
    None
}

fn deserialize<'a>(
    descriptor: &MessageDescriptor,
    value: impl Deserializer<'a, Error = serde_json::Error>,
) -> Result<DynamicMessage, String> {
    DynamicMessage::deserialize_with_options(descriptor.clone(), value, &DeserializeOptions::new())
        .map_err(|error| error.to_string())
}

/// Finds the faults of a node that is not the JSON of a message, in its smallest parts that are not valid.
fn locate(
    descriptor: &MessageDescriptor,
    part: Part<'_>,
    place: Option<Place>,
    path: &mut Vec<String>,
    faults: &mut Faults,
) {
    let Err(reason) = deserialize(descriptor, part) else {
        return;
    };
    if !matches!(part.node.content, Content::Map(_)) {
        let type_name = part.node.type_name();
        let expected = if is_well_known(descriptor) { reason } else { format!("expected an object, got {type_name}") };
        faults.push(place, path, expected);
        return;
    }
    if is_well_known(descriptor) {
        faults.push(place, path, reason);
        return;
    }
    let before = faults.len();
    for (entry, part) in part.entries() {
        path.push(entry.key.clone());
        match descriptor.fields().find(|field| field.json_name() == entry.key || field.name() == entry.key) {
            None => faults.push(entry.place, path, format!("unknown field '{}'", entry.key)),
            Some(field) => locate_field(descriptor, &field, part, entry.place, path, faults),
        }
        path.pop();
    }
    if faults.len() == before {
        // Each field is valid alone, so two of them contradict each other.
        faults.push(place, path, reason);
    }
}

fn locate_field(
    parent: &MessageDescriptor,
    field: &FieldDescriptor,
    part: Part<'_>,
    place: Option<Place>,
    path: &mut Vec<String>,
    faults: &mut Faults,
) {
    // A scalar is checked as the only field of its message, so that protobuf's mapping is in one place.
    let check = |value: Value, place: Option<Place>, path: &[String], faults: &mut Faults| {
        let mut object = Map::new();
        object.insert(field.json_name().to_owned(), value);
        if let Err(reason) = deserialize(parent, Value::Object(object)) {
            faults.push(place, path, reason);
        }
    };
    let node = part.node;
    match (&node.content, field) {
        (Content::Null, _) => {}
        (Content::Map(_), field) if field.is_map() => {
            let Kind::Message(entry_type) = field.kind() else { return };
            let value_kind = entry_type.map_entry_value_field().kind();
            for (entry, part) in part.entries() {
                path.push(entry.key.clone());
                if let Kind::Message(descriptor) = &value_kind {
                    locate(descriptor, part, entry.place, path, faults);
                } else {
                    let object = [(entry.key.clone(), entry.value.to_json())].into_iter().collect();
                    check(Value::Object(object), entry.place, path, faults);
                }
                path.pop();
            }
        }
        (_, field) if field.is_map() => {
            faults.push(place, path, format!("expected an object, got {}", node.type_name()));
        }
        (Content::List(items), field) if field.is_list() => {
            for (at, item) in items.iter().enumerate() {
                path.push(at.to_string());
                if let Kind::Message(descriptor) = field.kind() {
                    locate(&descriptor, item.into(), item.place, path, faults);
                } else {
                    check(Value::Array(vec![item.to_json()]), item.place, path, faults);
                }
                path.pop();
            }
        }
        (_, field) if field.is_list() => faults.push(place, path, format!("expected a list, got {}", node.type_name())),
        (_, field) => match field.kind() {
            Kind::Message(descriptor) => locate(&descriptor, part, place, path, faults),
            _ => check(node.to_json(), place, path, faults),
        },
    }
}

/// Whether the JSON of a message is something else than an object with its fields.
fn is_well_known(descriptor: &MessageDescriptor) -> bool {
    descriptor.full_name().starts_with("google.protobuf.")
}

#[cfg(test)]
mod tests;
