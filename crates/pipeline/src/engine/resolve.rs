//! Inputs of tasks and outputs of graphs, from what is known when they are needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::budget::Budget;
use crate::ir::ml_pipelines::pipeline_deployment_config::ImporterSpec;
use crate::ir::ml_pipelines::{value, value_or_runtime_parameter};
use crate::model::{Artifact, Failure, Inputs, Outputs, RunInfo, TaskPath, TaskState};
use crate::{condition, executor_input, placeholder, value as values};

use super::memory::{artifacts_weight, inputs_weight};
use super::plan::{
    ArtifactSource, Body, Component, Declared, Graph, Items, Iterator, OutputSource, ParameterInput, ParameterSource,
    Task,
};
use super::record::{ImportRequest, Parameters, TaskRecord};

/// `google.rpc.Code` in the error of a final status.
const CODE_CANCELLED: i32 = 1;
const CODE_UNKNOWN: i32 = 2;

/// What a task can refer to.
pub(super) struct Scope<'a> {
    pub(super) run: &'a RunInfo,
    /// The task whose inputs are resolved.
    pub(super) path: &'a TaskPath,
    /// Inputs of the graph that the task is in.
    pub(super) graph: &'a Inputs,
    /// The other tasks of the graph, by their index in the plan; `None` while a task has not been decided.
    pub(super) task: &'a dyn Fn(usize) -> Option<&'a TaskRecord>,
    /// What is left for values of the run.
    pub(super) memory: &'a Budget,
    /// The work that is left for its expressions.
    pub(super) work: &'a Budget,
}

impl Scope<'_> {
    /// A copy of a value, for which there must be memory left.
    fn copy(&self, value: &Value) -> Result<Value, String> {
        copy(value, self.memory)
    }
}

fn copy(value: &Value, memory: &Budget) -> Result<Value, String> {
    memory.take(values::weight(value)).map(|()| value.clone())
}

fn copy_artifacts(artifacts: &[Artifact], memory: &Budget) -> Result<Vec<Artifact>, String> {
    memory.take(artifacts_weight(artifacts)).map(|()| artifacts.to_vec())
}

/// The inputs of a run.
pub(super) fn root_inputs(component: &Component, parameters: Parameters) -> Result<Inputs, String> {
    let mut inputs = Inputs { parameters, ..Inputs::default() };
    complete(component, &mut inputs, None)?;
    Ok(inputs)
}

/// The inputs of a task. A loop gets those that are common to its iterations.
pub(super) fn inputs(task: &Task, component: &Component, scope: &Scope<'_>) -> Result<Inputs, String> {
    let mut inputs = Inputs::default();
    for (name, source) in &task.artifacts {
        if let Some(artifacts) = artifact(name, source, task, component, scope)? {
            inputs.artifacts.insert(name.clone(), artifacts);
        }
    }
    let mut constants = Vec::new();
    for input in &task.parameters {
        match &input.source {
            ParameterSource::Constant(constant) => constants.push((input, constant)),
            source => {
                let value = parameter(source, task, scope).map_err(|reason| named(&input.name, &reason))?;
                insert(&mut inputs, input, value, component, scope)?;
            }
        }
    }
    // Constants can contain placeholders of the other inputs of the task.
    let id = task_id(&scope.run.run_id, scope.path);
    let resolved: Vec<_> = constants
        .into_iter()
        .map(|(input, constant)| {
            placeholder::resolve_constant(constant, &inputs, scope.run, &task.display_name, &id)
                .and_then(|value| scope.memory.take(values::weight(&value)).map(|()| (input, value)))
                .map_err(|reason| named(&input.name, &reason))
        })
        .collect::<Result<_, _>>()?;
    for (input, value) in resolved {
        insert(&mut inputs, input, Some(value), component, scope)?;
    }
    complete(component, &mut inputs, task.iterator.as_ref().map(|iterator| iterator.item_input.as_str()))?;
    Ok(inputs)
}

fn named(input: &str, reason: &str) -> String {
    format!("input {input}: {reason}")
}

fn insert(
    inputs: &mut Inputs,
    input: &ParameterInput,
    value: Option<Value>,
    component: &Component,
    scope: &Scope<'_>,
) -> Result<(), String> {
    let Some(mut value) = value.filter(|value| !value.is_null()) else {
        let may_be_absent = component.parameters.get(&input.name).is_none_or(Declared::may_be_absent);
        return if may_be_absent {
            Ok(())
        } else {
            Err(named(&input.name, "it is required, and its value is null or absent."))
        };
    };
    if !input.selector.is_empty() {
        value = condition::select(&input.selector, &value, scope.work)
            .and_then(|value| scope.memory.take(values::weight(&value)).map(|()| value))
            .map_err(|reason| named(&input.name, &reason))?;
    }
    inputs.parameters.insert(input.name.clone(), value);
    Ok(())
}

impl Declared {
    fn may_be_absent(&self) -> bool {
        self.is_optional || self.default.is_some()
    }

    fn check(&self, name: &str, value: &Value) -> Result<Value, String> {
        let value = self
            .kind
            .map_or_else(|| Ok(value.clone()), |kind| values::coerce(kind, value))
            .map_err(|reason| named(name, &reason))?;
        values::check_literals(&self.literals, &value).map_err(|reason| named(name, &reason))?;
        Ok(value)
    }
}

/// Converts the parameters to their types, and completes those that are absent. An execution applies its own defaults; a graph gets
/// them here, and null for an optional parameter without one, which its tasks pass on as absent.
fn complete(component: &Component, inputs: &mut Inputs, item_input: Option<&str>) -> Result<(), String> {
    let is_graph = matches!(component.body, Body::Graph(_));
    for (name, declared) in &component.parameters {
        match inputs.parameters.get_mut(name) {
            Some(value) if value.is_null() => {
                if !declared.may_be_absent() {
                    return Err(named(name, "it is required, and its value is null."));
                }
                inputs.parameters.remove(name);
            }
            Some(value) => {
                *value = declared.check(name, value)?;
                continue;
            }
            None if item_input == Some(name) => continue,
            None if !declared.may_be_absent() => return Err(named(name, "it is required, and it has no value.")),
            None => {}
        }
        if is_graph {
            inputs.parameters.insert(name.clone(), declared.default.clone().unwrap_or_default());
        }
    }
    for (name, is_optional) in &component.artifacts {
        if !is_optional && item_input != Some(name) && !inputs.artifacts.contains_key(name) {
            return Err(named(name, "the artifact is required, and there is none."));
        }
    }
    Ok(())
}

fn parameter(source: &ParameterSource, task: &Task, scope: &Scope<'_>) -> Result<Option<Value>, String> {
    match source {
        ParameterSource::Constant(value) => scope.copy(value).map(Some),
        ParameterSource::GraphInput(name) => {
            scope.graph.parameters.get(name).map(|value| scope.copy(value)).transpose()
        }
        ParameterSource::Output(producer, key) => {
            let producer = producer_of(*producer, scope)?;
            match producer.outputs.parameters.get(key) {
                Some(value) => scope.copy(value).map(Some),
                None if task.runs_after_failure || producer.state.has_outputs() => Ok(None),
                None => Err(format!("the task {} has no output {key}.", producer.path)),
            }
        }
        ParameterSource::FinalStatus(producer) => {
            scope.copy(&final_status(producer_of(*producer, scope)?, scope.run)).map(Some)
        }
    }
}

fn artifact(
    name: &str,
    source: &ArtifactSource,
    task: &Task,
    component: &Component,
    scope: &Scope<'_>,
) -> Result<Option<Vec<Artifact>>, String> {
    let found = match source {
        ArtifactSource::GraphInput(input) => scope.graph.artifacts.get(input),
        ArtifactSource::Output(producer, key) => {
            let producer = producer_of(*producer, scope).map_err(|reason| named(name, &reason))?;
            let found = producer.outputs.artifacts.get(key);
            if found.is_none() && !task.runs_after_failure && component.artifacts.get(name) == Some(&false) {
                return Err(named(name, &format!("the task {} has no artifact {key}.", producer.path)));
            }
            found
        }
    };
    found.map(|artifacts| copy_artifacts(artifacts, scope.memory).map_err(|reason| named(name, &reason))).transpose()
}

fn producer_of<'a>(producer: usize, scope: &Scope<'a>) -> Result<&'a TaskRecord, String> {
    (scope.task)(producer).ok_or_else(|| "the task that it is from has not run.".to_owned())
}

/// The value of a parameter of the type `PipelineTaskFinalStatus`.
fn final_status(record: &TaskRecord, run: &RunInfo) -> Value {
    let (state, code) = match record.state {
        TaskState::Failed => ("FAILED", CODE_UNKNOWN),
        TaskState::Canceled => ("CANCELLED", CODE_CANCELLED),
        TaskState::Skipped => ("SKIPPED", 0),
        _ => ("SUCCEEDED", 0),
    };
    // The SDK reads the keys of `error` without looking whether it is there.
    let error = if code == 0 {
        json!({})
    } else {
        json!({ "code": code, "message": record.failure.as_ref().map_or("canceled", |failure| failure.message.as_str()) })
    };
    json!({
        "state": state,
        "error": error,
        "pipelineJobResourceName": run.resource_name,
        "pipelineTaskName": record.task_name,
    })
}

/// The items of a loop, and the inputs that its iterations have in common: those of the loop without the list of the items.
pub(super) enum LoopItems {
    Parameters(Vec<Value>),
    Artifacts(Vec<Artifact>),
}

impl LoopItems {
    /// The items of a loop with these inputs.
    pub(super) fn new(iterator: &Iterator, inputs: &Inputs) -> Result<Self, String> {
        let list = |name: &str, value: Option<&Value>| match value {
            Some(Value::Array(items)) => Ok(items.clone()),
            Some(Value::String(text)) => serde_json::from_str(text).map_err(|reason| {
                format!("the items of the loop, {name}, are a text which is not a JSON list: {reason}.")
            }),
            None | Some(Value::Null) => Err(format!("the items of the loop, {name}, have no value.")),
            Some(_) => Err(format!("the items of the loop, {name}, are not a list.")),
        };
        Ok(match &iterator.items {
            Items::Raw(items) => Self::Parameters(items.clone()),
            Items::Parameter(name) => Self::Parameters(list(name, inputs.parameters.get(name))?),
            Items::Artifacts(name) => Self::Artifacts(inputs.artifacts.get(name).cloned().unwrap_or_default()),
        })
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Parameters(items) => items.len(),
            Self::Artifacts(items) => items.len(),
        }
    }
}

/// What every iteration of a loop gets, without its item.
pub(super) fn common_inputs(iterator: &Iterator, inputs: &Inputs) -> Inputs {
    let mut common = inputs.clone();
    match &iterator.items {
        Items::Raw(_) => {}
        Items::Parameter(name) => {
            common.parameters.remove(name);
        }
        Items::Artifacts(name) => {
            common.artifacts.remove(name);
        }
    }
    common
}

/// The inputs of an iteration.
pub(super) fn iteration_inputs(
    iterator: &Iterator,
    component: &Component,
    common: &Inputs,
    items: &LoopItems,
    index: usize,
    memory: &Budget,
) -> Result<Inputs, String> {
    memory.take(inputs_weight(common))?;
    let mut inputs = common.clone();
    let name = &iterator.item_input;
    match items {
        LoopItems::Parameters(items) => {
            let item = &items[index];
            memory.take(values::weight(item))?;
            values::check_depth(item).map_err(|reason| named(name, &reason))?;
            let item = component
                .parameters
                .get(name)
                .map_or_else(|| Ok(item.clone()), |declared| declared.check(name, item))?;
            inputs.parameters.insert(name.clone(), item);
        }
        LoopItems::Artifacts(items) => {
            inputs.artifacts.insert(name.clone(), copy_artifacts(&items[index..=index], memory)?);
        }
    }
    Ok(inputs)
}

/// The outputs of a graph whose tasks have all ended well.
pub(super) fn graph_outputs<'a>(
    graph: &Graph,
    task: &dyn Fn(usize) -> Option<&'a TaskRecord>,
    memory: &Budget,
) -> Result<Outputs, String> {
    let mut outputs = Outputs::default();
    let producers = |source: &OutputSource| -> Vec<(Option<&'a TaskRecord>, String)> {
        source
            .selectors
            .iter()
            .map(|(producer, key)| (task(*producer).filter(|record| record.state.has_outputs()), key.clone()))
            .collect()
    };
    for (name, source) in &graph.parameters {
        let chosen = producers(source)
            .into_iter()
            .find_map(|(record, key)| record.map(|record| record.outputs.parameters.get(&key)));
        match chosen {
            Some(Some(value)) => {
                outputs.parameters.insert(name.clone(), copy(value, memory)?);
            }
            None if source.is_one_of => return Err(no_branch(name)),
            // A task that was skipped leaves its output absent; a task that needs it fails and names it.
            _ => {}
        }
    }
    for (name, source) in &graph.artifacts {
        let chosen = producers(source)
            .into_iter()
            .find_map(|(record, key)| record.map(|record| record.outputs.artifacts.get(&key)));
        match chosen {
            Some(Some(artifacts)) => {
                outputs.artifacts.insert(name.clone(), copy_artifacts(artifacts, memory)?);
            }
            None if source.is_one_of => return Err(no_branch(name)),
            _ => {}
        }
    }
    Ok(outputs)
}

fn no_branch(name: &str) -> String {
    format!(
        "output {name}: none of the branches that it can be from was executed (`dsl.OneOf` needs one that is; is an Else missing?)."
    )
}

/// The outputs of a loop: lists in the order of the iterations. Lists that an inner loop collected are joined.
pub(super) fn loop_outputs(
    component: &Component,
    iterations: &[&TaskRecord],
    memory: &Budget,
) -> Result<Outputs, String> {
    let mut outputs = Outputs::default();
    let names: Vec<(&String, bool)> = match &component.body {
        Body::Graph(graph) => graph.parameters.iter().map(|(name, source)| (name, source.is_collected)).collect(),
        _ => component
            .spec
            .output_definitions
            .iter()
            .flat_map(|outputs| outputs.parameters.keys())
            .map(|name| (name, false))
            .collect(),
    };
    for (name, is_collected) in names {
        let mut list = Vec::with_capacity(iterations.len());
        for record in iterations {
            let value = record.outputs.parameters.get(name);
            memory.take(value.map_or(0, values::weight))?;
            match value {
                Some(Value::Array(inner)) if is_collected => list.extend(inner.iter().cloned()),
                Some(value) => list.push(value.clone()),
                None => return Err(not_collected(name, record)),
            }
        }
        outputs.parameters.insert(name.clone(), Value::Array(list));
    }
    let names: Vec<&String> = match &component.body {
        Body::Graph(graph) => graph.artifacts.keys().collect(),
        _ => component.spec.output_definitions.iter().flat_map(|outputs| outputs.artifacts.keys()).collect(),
    };
    for name in names {
        let mut list = Vec::with_capacity(iterations.len());
        for record in iterations {
            let artifacts = record.outputs.artifacts.get(name).ok_or_else(|| not_collected(name, record))?;
            list.extend(copy_artifacts(artifacts, memory)?);
        }
        outputs.artifacts.insert(name.clone(), list);
    }
    Ok(outputs)
}

fn not_collected(name: &str, iteration: &TaskRecord) -> String {
    format!(
        "output {name}: the task that it is from was skipped in the iteration {}, so that `dsl.Collected` has no value for it. Give the \
         iteration a value in every branch, with `dsl.OneOf`, or filter the items before the loop.",
        iteration.path
    )
}

/// The output that an imported artifact becomes.
pub(super) fn import_output(component: &Component) -> &str {
    component
        .spec
        .output_definitions
        .as_ref()
        .and_then(|outputs| outputs.artifacts.keys().next())
        .map_or("artifact", String::as_str)
}

/// What an importer imports.
pub(super) fn import_request(
    importer: &ImporterSpec,
    task: &Task,
    component: &Component,
    record: &TaskRecord,
    run: &RunInfo,
) -> Result<ImportRequest, String> {
    let inputs = &*record.inputs;
    let id = task_id(&run.run_id, &record.path);
    let resolve = |value: &Value| placeholder::resolve_constant(value, inputs, run, &task.display_name, &id);
    let uri = match importer.artifact_uri.as_ref().and_then(|uri| uri.value.as_ref()) {
        Some(value_or_runtime_parameter::Value::Constant(constant)) => resolve(&values::from_prost(constant))?,
        Some(value_or_runtime_parameter::Value::RuntimeParameter(name)) => {
            let default = component.parameters.get(name).and_then(|declared| declared.default.as_ref());
            inputs
                .parameters
                .get(name)
                .or(default)
                .cloned()
                .ok_or_else(|| named(name, "the URI to import has no value."))?
        }
        #[allow(deprecated)] // older files have it
        Some(value_or_runtime_parameter::Value::ConstantValue(constant)) => match &constant.value {
            Some(value::Value::StringValue(text)) => Value::from(text.as_str()),
            _ => return Err("the URI to import is not a text.".to_owned()),
        },
        None => return Err("the importer has no URI.".to_owned()),
    };
    let uri = match uri {
        Value::String(uri) if !uri.is_empty() => uri,
        other => return Err(format!("the URI to import is {}, not a URI.", values::to_text(&other))),
    };
    let mut metadata = Map::new();
    for (key, value) in importer.metadata.iter().flat_map(|metadata| &metadata.fields) {
        let value = resolve(&values::from_prost(value)).map_err(|reason| format!("metadata {key}: {reason}"))?;
        metadata.insert(key.clone(), value);
    }
    let output = import_output(component);
    let declared = component
        .spec
        .output_definitions
        .as_ref()
        .and_then(|outputs| outputs.artifacts.get(output)?.artifact_type.as_ref());
    let schema = importer.type_schema.as_ref().or(declared);
    let (mut schema_title, schema_version) = executor_input::schema(schema);
    if schema_title.is_empty() {
        "system.Artifact".clone_into(&mut schema_title);
    }
    Ok(ImportRequest {
        output: output.to_owned(),
        uri,
        schema_title,
        schema_version,
        metadata,
        reimport: importer.reimport,
    })
}

/// The failure of a task before it could start.
pub(super) fn failure(message: String) -> Failure {
    Failure { message, exit_code: None, is_permanent: true }
}

/// The values that the settings of a container refer to, as far as they exist.
pub(super) fn platform_inputs(
    references: &super::references::References,
    graph: &Graph,
    scope: &Scope<'_>,
) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    for input in &references.inputs {
        if let Some(value) = scope.graph.parameters.get(input) {
            values.insert(input.clone(), value.clone());
        }
    }
    for (task, key) in &references.outputs {
        // Tasks are in the order of their names.
        let Ok(index) = graph.tasks.binary_search_by(|other| other.name.as_str().cmp(task)) else { continue };
        if let Some(value) = (scope.task)(index).and_then(|record| record.outputs.parameters.get(key)) {
            values.insert(format!("{task}/{key}"), value.clone());
        }
    }
    values
}

/// The id of a task: `{{$.pipeline_task_uuid}}`. It is a UUID made of the run and the path, so it needs no store.
pub fn task_id(run_id: &str, path: &TaskPath) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{run_id}/{path}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_ref()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

/// Shares the empty inputs of ended tasks.
pub(super) fn no_inputs() -> Arc<Inputs> {
    static EMPTY: std::sync::LazyLock<Arc<Inputs>> = std::sync::LazyLock::new(Arc::default);
    Arc::clone(&EMPTY)
}
