//! The static graph of a pipeline, for the user interface, the command line and tests.
//!
//! Graphs inside a graph are referred to by the name of their component instead of being repeated, because a component may be used often
//! on every level.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Serialize;

pub use crate::dependency::dependencies;
use crate::dependency::producers;
use crate::ir::Document;
use crate::ir::ml_pipelines::component_spec::Implementation;
use crate::ir::ml_pipelines::dag_outputs_spec::dag_output_parameter_spec::Kind as OutputSource;
use crate::ir::ml_pipelines::pipeline_deployment_config::executor_spec::Spec;
use crate::ir::ml_pipelines::pipeline_task_spec::Iterator as LoopItems;
use crate::ir::ml_pipelines::pipeline_task_spec::trigger_policy::TriggerStrategy;
use crate::ir::ml_pipelines::{DagSpec, PipelineTaskSpec, parameter_iterator_spec::items_spec::Kind as Items};

/// All graphs of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "PipelineGraphs")]
pub struct Graphs {
    /// The graph of the root.
    pub root: Graph,
    /// The graphs of the components that are reached from the root.
    pub components: BTreeMap<String, Graph>,
}

/// A graph of tasks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "PipelineGraph")]
pub struct Graph {
    /// Its tasks, in the order of their names.
    pub nodes: Vec<Node>,
    /// Its edges, in the order of their ends.
    pub edges: Vec<Edge>,
    /// Sources of the graph's outputs as `TASK/OUTPUT`, by name; several for alternatives.
    pub outputs: BTreeMap<String, Vec<String>>,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "PipelineNode")]
pub struct Node {
    /// Name in its graph.
    pub name: String,
    /// Name for users, `taskInfo.name`.
    pub display_name: String,
    /// Name of its component.
    pub component: String,
    /// What it executes.
    pub kind: NodeKind,
    /// Condition in the Common Expression Language, without which it is not triggered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// What it iterates over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iterates: Option<Loop>,
    /// Whether it is executed even if the tasks that it depends on failed.
    pub runs_after_failures: bool,
    /// Whether its result may be one of an earlier run.
    pub is_cacheable: bool,
    /// Maximum number of retries.
    pub retries: u32,
}

/// What a task executes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "type")]
#[schemars(rename = "PipelineNodeKind")]
pub enum NodeKind {
    /// A container.
    Container {
        /// Its image.
        image: String,
    },
    /// Nothing: it imports an artifact.
    Importer,
    /// The graph of its component.
    Graph,
}

/// A loop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "PipelineLoop")]
pub struct Loop {
    /// Number of iterations, if it is known before the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// The input of the task that has the items, if they are not constant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<String>,
    /// Maximum number of iterations at a time; 0 for no limit.
    pub parallelism: u32,
}

/// A dependency between two tasks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "PipelineEdge")]
pub struct Edge {
    /// The task that comes first.
    pub from: String,
    /// The task that waits for it.
    pub to: String,
    /// The outputs that are passed, if any.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub data: BTreeSet<String>,
}

impl Graphs {
    /// The graphs of a pipeline.
    pub fn new(document: &Document) -> Self {
        let mut graphs = Self { root: Graph::default(), components: BTreeMap::new() };
        let Some(Implementation::Dag(dag)) = document.spec.root.as_ref().and_then(|root| root.implementation.as_ref())
        else {
            return graphs;
        };
        graphs.root = graph(document, dag);
        let mut pending = graphs.root.nested();
        while let Some(name) = pending.pop() {
            if graphs.components.contains_key(&name) {
                continue;
            }
            if let Some(Implementation::Dag(dag)) =
                document.spec.components.get(&name).and_then(|component| component.implementation.as_ref())
            {
                let graph = graph(document, dag);
                pending.extend(graph.nested());
                graphs.components.insert(name, graph);
            }
        }
        graphs
    }

    /// The graph inside a node.
    pub fn inside(&self, node: &Node) -> Option<&Graph> {
        self.components.get(&node.component)
    }
}

impl Graph {
    /// The components of the nodes that are graphs.
    fn nested(&self) -> Vec<String> {
        self.nodes.iter().filter(|node| node.kind == NodeKind::Graph).map(|node| node.component.clone()).collect()
    }
}

fn graph(document: &Document, dag: &DagSpec) -> Graph {
    let mut edges = Vec::new();
    for (name, task) in &dag.tasks {
        let mut data: BTreeMap<&str, BTreeSet<String>> =
            dependencies(task).into_iter().map(|producer| (producer, BTreeSet::new())).collect();
        for (producer, output) in producers(task) {
            data.entry(producer).or_default().extend(output.map(str::to_owned));
        }
        edges.extend(data.into_iter().map(|(from, data)| Edge { from: from.to_owned(), to: name.clone(), data }));
    }
    edges.sort();
    let mut outputs = BTreeMap::new();
    for (name, output) in dag.outputs.iter().flat_map(|outputs| &outputs.parameters) {
        let sources = match &output.kind {
            Some(OutputSource::ValueFromParameter(selector)) => std::slice::from_ref(selector),
            Some(OutputSource::ValueFromOneof(selectors)) => &selectors.parameter_selectors,
            None => &[],
        };
        let sources = sources.iter().map(|from| format!("{}/{}", from.producer_subtask, from.output_parameter_key));
        outputs.insert(name.clone(), sources.collect());
    }
    for (name, output) in dag.outputs.iter().flat_map(|outputs| &outputs.artifacts) {
        let selectors = &output.artifact_selectors;
        let sources = selectors.iter().map(|from| format!("{}/{}", from.producer_subtask, from.output_artifact_key));
        outputs.insert(name.clone(), sources.collect());
    }
    Graph { nodes: dag.tasks.iter().map(|(name, task)| node(document, name, task)).collect(), edges, outputs }
}

fn node(document: &Document, name: &str, task: &PipelineTaskSpec) -> Node {
    let component = task.component_ref.as_ref().map_or("", |reference| reference.name.as_str());
    let implementation =
        document.spec.components.get(component).and_then(|component| component.implementation.as_ref());
    let kind = match implementation {
        Some(Implementation::ExecutorLabel(label)) => {
            match document.deployment.executors.get(label).and_then(|executor| executor.spec.as_ref()) {
                Some(Spec::Container(container)) => NodeKind::Container { image: container.image.clone() },
                _ => NodeKind::Importer,
            }
        }
        _ => NodeKind::Graph,
    };
    let parallelism = task.iterator_policy.map_or(0, |policy| policy.parallelism_limit.max(0).unsigned_abs());
    let iterates = task.iterator.as_ref().map(|iterator| match iterator {
        LoopItems::ParameterIterator(iterator) => match iterator.items.as_ref().and_then(|items| items.kind.as_ref()) {
            Some(Items::Raw(text)) => {
                let items: Option<Vec<serde_json::Value>> = serde_json::from_str(text).ok();
                Loop { count: items.map(|items| items.len()), items: None, parallelism }
            }
            Some(Items::InputParameter(input)) => Loop { count: None, items: Some(input.clone()), parallelism },
            None => Loop { count: None, items: None, parallelism },
        },
        LoopItems::ArtifactIterator(iterator) => {
            let items = iterator.items.as_ref().map(|items| items.input_artifact.clone());
            Loop { count: None, items, parallelism }
        }
    });
    let trigger = task.trigger_policy.as_ref();
    Node {
        name: name.to_owned(),
        display_name: task.task_info.as_ref().map_or_else(|| name.to_owned(), |info| info.name.clone()),
        component: component.to_owned(),
        kind,
        condition: trigger.map(|policy| policy.condition.clone()).filter(|condition| !condition.is_empty()),
        iterates,
        runs_after_failures: trigger
            .is_some_and(|policy| policy.strategy() == TriggerStrategy::AllUpstreamTasksCompleted),
        is_cacheable: task.caching_options.as_ref().is_some_and(|options| options.enable_cache),
        retries: task.retry_policy.map_or(0, |policy| policy.max_retry_count.max(0).unsigned_abs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPELINE: &str = r#"
pipelineInfo: {name: p}
schemaVersion: 2.1.0
deploymentSpec: {executors: {e: {container: {image: python}}}}
components:
  leaf:
    executorLabel: e
    inputDefinitions: {parameters: {x: {parameterType: STRING, isOptional: true}}}
    outputDefinitions: {parameters: {Output: {parameterType: STRING}}}
  inner:
    dag:
      tasks: {a: {componentRef: {name: leaf}}, b: {componentRef: {name: leaf}, dependentTasks: [a]}}
      outputs: {parameters: {out: {valueFromParameter: {producerSubtask: b, outputParameterKey: Output}}}}
    inputDefinitions: {parameters: {item: {parameterType: STRING}}}
    outputDefinitions: {parameters: {out: {parameterType: LIST}}}
root:
  dag:
    tasks:
      loop:
        componentRef: {name: inner}
        iteratorPolicy: {parallelismLimit: 2}
        parameterIterator: {itemInput: item, items: {raw: '[1, 2, 3]'}}
      first: {componentRef: {name: leaf}, taskInfo: {name: First}, cachingOptions: {enableCache: true}}
      last:
        componentRef: {name: leaf}
        dependentTasks: [loop]
        triggerPolicy: {strategy: ALL_UPSTREAM_TASKS_COMPLETED}
        inputs: {parameters: {x: {taskOutputParameter: {producerTask: first, outputParameterKey: Output}}}}
"#;

    #[test]
    fn nodes_edges_and_loops_are_those_of_the_specification() {
        let graphs = Graphs::new(&crate::ir::read(PIPELINE).unwrap());
        let root = &graphs.root;
        let names: Vec<&str> = root.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["first", "last", "loop"]);
        let edges: Vec<String> = root.edges.iter().map(|e| format!("{} {} {:?}", e.from, e.to, e.data)).collect();
        assert_eq!(edges, [r#"first last {"Output"}"#, "loop last {}"]);
        assert_eq!(root.nodes[0].kind, NodeKind::Container { image: "python".into() });
        assert!(root.nodes[0].is_cacheable && root.nodes[0].display_name == "First");
        assert!(root.nodes[1].runs_after_failures && !root.nodes[0].runs_after_failures);
        assert_eq!(root.nodes[2].iterates, Some(Loop { count: Some(3), items: None, parallelism: 2 }));
        let inner = graphs.inside(&root.nodes[2]).unwrap();
        assert_eq!(inner.edges.len(), 1);
        assert_eq!(inner.outputs["out"], ["b/Output"]);
        assert!(graphs.inside(&root.nodes[0]).is_none());
    }
}
