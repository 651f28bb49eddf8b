//! The parts of compiling a plan that look at one message, or at all components together.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use serde_json::Value;

use crate::ir::kfp_kubernetes::KubernetesExecutorConfig;
use crate::ir::ml_pipelines::dag_outputs_spec::dag_output_parameter_spec;
use crate::ir::ml_pipelines::parameter_iterator_spec::items_spec;
use crate::ir::ml_pipelines::pipeline_task_spec::{self, RetryPolicy};
use crate::ir::ml_pipelines::task_inputs_spec::{
    InputArtifactSpec, InputParameterSpec, input_artifact_spec, input_parameter_spec,
};
use crate::ir::ml_pipelines::{DagSpec, PipelineTaskSpec, value, value_or_runtime_parameter};

use super::plan::{
    ArtifactSource, Body, Component, Graph, Items, Iterator, MAX_DEPTH, MAX_TASKS, OutputSource, ParameterSource,
    Retry, Task,
};

/// Maximum time in which attempts of a task may start, and the default of it: `backoff_max_duration` of IR 2.1.
const MAX_RETRY_DURATION_MS: i64 = 3_600_000;
/// Annotation or label of a task's pod with the maximum age of cached outputs, as an ISO 8601 duration.
const MAX_CACHE_STALENESS: &str = "pipelines.kubeflow.org/max_cache_staleness";

pub(super) fn index(indexes: &HashMap<&str, usize>, name: &str) -> Result<usize, String> {
    indexes.get(name).copied().ok_or_else(|| format!("the task {name:?} does not exist in its graph."))
}

pub(super) fn parameter_source(
    spec: &InputParameterSpec,
    indexes: &HashMap<&str, usize>,
) -> Result<ParameterSource, String> {
    use input_parameter_spec::Kind;
    Ok(match &spec.kind {
        Some(Kind::ComponentInputParameter(name)) => ParameterSource::GraphInput(name.clone()),
        Some(Kind::TaskOutputParameter(output)) => {
            ParameterSource::Output(index(indexes, &output.producer_task)?, output.output_parameter_key.clone())
        }
        Some(Kind::TaskFinalStatus(status)) => ParameterSource::FinalStatus(index(indexes, &status.producer_task)?),
        Some(Kind::RuntimeValue(runtime)) => match &runtime.value {
            Some(value_or_runtime_parameter::Value::Constant(constant)) => {
                ParameterSource::Constant(crate::value::from_prost(constant))
            }
            Some(value_or_runtime_parameter::Value::RuntimeParameter(name)) => {
                ParameterSource::GraphInput(name.clone())
            }
            #[allow(deprecated)] // older files have it
            Some(value_or_runtime_parameter::Value::ConstantValue(constant)) => {
                ParameterSource::Constant(match &constant.value {
                    Some(value::Value::IntValue(number)) => Value::from(*number),
                    Some(value::Value::DoubleValue(number)) => Value::from(*number),
                    Some(value::Value::StringValue(text)) => Value::from(text.as_str()),
                    None => Value::Null,
                })
            }
            None => ParameterSource::Constant(Value::Null),
        },
        None => return Err("it does not state where its value is from.".to_owned()),
    })
}

pub(super) fn artifact_source(
    spec: &InputArtifactSpec,
    indexes: &HashMap<&str, usize>,
) -> Result<ArtifactSource, String> {
    use input_artifact_spec::Kind;
    Ok(match &spec.kind {
        Some(Kind::ComponentInputArtifact(name)) => ArtifactSource::GraphInput(name.clone()),
        Some(Kind::TaskOutputArtifact(output)) => {
            ArtifactSource::Output(index(indexes, &output.producer_task)?, output.output_artifact_key.clone())
        }
        None => return Err("it does not state where the artifact is from.".to_owned()),
    })
}

pub(super) fn iterator(spec: &PipelineTaskSpec) -> Result<Option<Iterator>, String> {
    let Some(iterator) = &spec.iterator else { return Ok(None) };
    let limit = spec.iterator_policy.as_ref().map_or(0, |policy| policy.parallelism_limit);
    let parallelism = usize::try_from(limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let (items, item_input) = match iterator {
        pipeline_task_spec::Iterator::ParameterIterator(iterator) => {
            let items = match iterator.items.as_ref().and_then(|items| items.kind.as_ref()) {
                Some(items_spec::Kind::Raw(text)) => Items::Raw(
                    serde_json::from_str(text)
                        .map_err(|reason| format!("the items of the loop are not a JSON list: {reason}."))?,
                ),
                Some(items_spec::Kind::InputParameter(name)) => Items::Parameter(name.clone()),
                None => return Err("the loop does not state its items.".to_owned()),
            };
            (items, iterator.item_input.clone())
        }
        pipeline_task_spec::Iterator::ArtifactIterator(iterator) => {
            let items = iterator.items.as_ref().map(|items| items.input_artifact.clone()).unwrap_or_default();
            (Items::Artifacts(items), iterator.item_input.clone())
        }
    };
    Ok(Some(Iterator { items, item_input, parallelism }))
}

pub(super) fn retry(spec: &PipelineTaskSpec) -> Option<Retry> {
    fn milliseconds(duration: prost_types::Duration) -> i64 {
        duration.seconds.saturating_mul(1000).saturating_add(i64::from(duration.nanos) / 1_000_000).max(0)
    }
    let RetryPolicy { max_retry_count, backoff_duration, backoff_factor, backoff_max_duration } = spec.retry_policy?;
    let max_retries = u32::try_from(max_retry_count).ok().filter(|count| *count > 0)?;
    #[allow(clippy::cast_precision_loss)] // durations of years are exact in a double
    let backoff = backoff_duration.map_or(0, milliseconds) as f64;
    let max_duration =
        backoff_max_duration.map(milliseconds).filter(|duration| *duration > 0).unwrap_or(MAX_RETRY_DURATION_MS);
    Some(Retry { max_retries, backoff, factor: if backoff_factor > 0.0 { backoff_factor } else { 2.0 }, max_duration })
}

/// The maximum age of cached outputs that the settings ask for.
pub(super) fn max_cache_staleness(settings: &KubernetesExecutorConfig) -> Option<Duration> {
    let metadata = settings.pod_metadata.as_ref()?;
    let text = metadata.annotations.get(MAX_CACHE_STALENESS).or_else(|| metadata.labels.get(MAX_CACHE_STALENESS))?;
    let span: jiff::Span = text.parse().ok()?;
    let seconds = span.total((jiff::Unit::Second, jiff::SpanRelativeTo::days_are_24_hours())).ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Reads the outputs of a graph. `is_collected` is set later, when all components are known.
pub(super) fn outputs(dag: &DagSpec, indexes: &HashMap<&str, usize>, graph: &mut Graph) -> Result<(), String> {
    use dag_output_parameter_spec::Kind;
    let Some(outputs) = &dag.outputs else { return Ok(()) };
    for (name, output) in &outputs.parameters {
        let (selectors, is_one_of) = match &output.kind {
            Some(Kind::ValueFromParameter(selector)) => (std::slice::from_ref(selector), false),
            Some(Kind::ValueFromOneof(selectors)) => (selectors.parameter_selectors.as_slice(), true),
            None => (&[][..], false),
        };
        let selectors = selectors
            .iter()
            .map(|selector| Ok((index(indexes, &selector.producer_subtask)?, selector.output_parameter_key.clone())))
            .collect::<Result<_, String>>()
            .map_err(|reason| format!("output {name}: {reason}"))?;
        graph.parameters.insert(name.clone(), OutputSource { selectors, is_one_of, is_collected: false });
    }
    for (name, output) in &outputs.artifacts {
        let selectors: Vec<_> = output
            .artifact_selectors
            .iter()
            .map(|selector| Ok((index(indexes, &selector.producer_subtask)?, selector.output_artifact_key.clone())))
            .collect::<Result<_, String>>()
            .map_err(|reason| format!("output {name}: {reason}"))?;
        let is_one_of = selectors.len() > 1;
        graph.artifacts.insert(name.clone(), OutputSource { selectors, is_one_of, is_collected: false });
    }
    Ok(())
}

/// Makes tasks depend on the outputs that their Kubernetes settings refer to.
pub(super) fn add_platform_dependencies(components: &mut [Component]) {
    let referenced: HashMap<usize, BTreeSet<String>> = components
        .iter()
        .enumerate()
        .filter_map(|(index, component)| match &component.body {
            Body::Container(container) if !container.references.outputs.is_empty() => {
                Some((index, container.references.outputs.iter().map(|(task, _)| task.clone()).collect()))
            }
            _ => None,
        })
        .collect();
    if referenced.is_empty() {
        return;
    }
    for component in components {
        let Body::Graph(graph) = &mut component.body else { continue };
        let indexes: HashMap<String, usize> =
            graph.tasks.iter().enumerate().map(|(index, task)| (task.name.clone(), index)).collect();
        for task in &mut graph.tasks {
            let producers = referenced.get(&task.component).into_iter().flatten().filter_map(|name| indexes.get(name));
            task.dependencies.extend(producers);
            task.dependencies.sort_unstable();
            task.dependencies.dedup();
        }
    }
}

/// Adds the way from tasks to their dependents, and refuses circles.
pub(super) fn link(graph: &mut Graph) -> Result<(), String> {
    for index in 0..graph.tasks.len() {
        for at in 0..graph.tasks[index].dependencies.len() {
            let dependency = graph.tasks[index].dependencies[at];
            graph.tasks[dependency].dependents.push(index);
        }
    }
    for task in &mut graph.tasks {
        task.is_exit = task.runs_after_failure && task.dependents.is_empty();
    }
    let order = topological_order(&graph.tasks);
    if order.len() < graph.tasks.len() {
        let ordered: BTreeSet<usize> = order.into_iter().collect();
        let circle: Vec<&str> = (0..graph.tasks.len())
            .filter(|index| !ordered.contains(index))
            .take(5)
            .map(|index| graph.tasks[index].name.as_str())
            .collect();
        return Err(format!("These tasks wait for each other in a circle: {}.", circle.join(", ")));
    }
    Ok(())
}

/// Indexes of tasks such that each comes after its dependencies; tasks of circles are missing.
pub(super) fn topological_order(tasks: &[Task]) -> Vec<usize> {
    let mut missing: Vec<usize> = tasks.iter().map(|task| task.dependencies.len()).collect();
    let mut order: Vec<usize> = (0..tasks.len()).filter(|index| missing[*index] == 0).collect();
    let mut next = 0;
    while next < order.len() {
        for dependent in &tasks[order[next]].dependents {
            missing[*dependent] -= 1;
            if missing[*dependent] == 0 {
                order.push(*dependent);
            }
        }
        next += 1;
    }
    order
}

/// Refuses components that contain themselves, too deep nesting and too many tasks. Returns the components such that each comes after
/// those that it contains.
pub(super) fn check_nesting(components: &[Component]) -> Result<Vec<usize>, String> {
    let mut users = vec![Vec::new(); components.len()];
    let mut missing = vec![0; components.len()];
    for (index, component) in components.iter().enumerate() {
        if let Body::Graph(graph) = &component.body {
            missing[index] = graph.tasks.len();
            for task in &graph.tasks {
                users[task.component].push(index);
            }
        }
    }
    let mut order: Vec<usize> = (0..components.len()).filter(|index| missing[*index] == 0).collect();
    let mut sizes = vec![(0_usize, 1_usize); components.len()];
    let mut next = 0;
    while next < order.len() {
        let index = order[next];
        if let Body::Graph(graph) = &components[index].body {
            sizes[index] = graph.tasks.iter().fold((1, 1), |(depth, tasks), task| {
                let (inner_depth, inner_tasks) = sizes[task.component];
                (depth.max(inner_depth + 1), tasks.saturating_add(inner_tasks))
            });
        }
        for user in &users[index] {
            missing[*user] -= 1;
            if missing[*user] == 0 {
                order.push(*user);
            }
        }
        next += 1;
    }
    if order.len() < components.len() {
        return Err("The pipeline has a component that contains itself.".to_owned());
    }
    match sizes[0] {
        (depth, _) if depth > MAX_DEPTH => {
            Err(format!("The graphs of the pipeline are nested {depth} deep; at most {MAX_DEPTH} are possible."))
        }
        (_, tasks) if tasks > MAX_TASKS => {
            Err(format!("The pipeline has {tasks} tasks; at most {MAX_TASKS} are possible."))
        }
        _ => Ok(order),
    }
}

/// Finds the outputs that are lists collected by loops. Components come after those that they contain.
pub(super) fn mark_collected(components: &mut [Component], order: &[usize]) {
    for &index in order {
        let Body::Graph(graph) = &components[index].body else { continue };
        let is_collected = |source: &OutputSource| {
            source.selectors.iter().any(|(producer, key)| {
                let task = &graph.tasks[*producer];
                task.iterator.is_some()
                    || matches!(&components[task.component].body, Body::Graph(inner)
                        if inner.parameters.get(key).is_some_and(|source| source.is_collected))
            })
        };
        let collected: Vec<bool> = graph.parameters.values().map(is_collected).collect();
        if let Body::Graph(graph) = &mut components[index].body {
            for (source, is_collected) in graph.parameters.values_mut().zip(collected) {
                source.is_collected = is_collected;
            }
        }
    }
}
