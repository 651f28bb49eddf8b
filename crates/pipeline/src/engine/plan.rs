//! A pipeline, compiled once for all its runs: references by name become indexes, and conditions and policies are parsed.
//!
//! Invariant: tasks of a graph depend on each other without circles, components nest without circles and no deeper than
//! [`MAX_DEPTH`], and all indexes are valid.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::condition::Condition;
use crate::error::Error;
use crate::fingerprint;
use crate::ir::interface;
use crate::ir::kfp_kubernetes::KubernetesExecutorConfig;
use crate::ir::ml_pipelines::component_spec::Implementation;
use crate::ir::ml_pipelines::pipeline_deployment_config::executor_spec::Spec;
use crate::ir::ml_pipelines::pipeline_deployment_config::{ExecutorSpec, ImporterSpec};
use crate::ir::ml_pipelines::pipeline_task_spec::trigger_policy::TriggerStrategy;
use crate::ir::ml_pipelines::{ComponentSpec, DagSpec, PipelineTaskSpec};
use crate::ir::read::Document;
use crate::value::Kind;

use super::compile;
use super::references::References;

/// Maximum depth of graphs in graphs.
pub const MAX_DEPTH: usize = 100;
/// Maximum number of tasks of a pipeline, and of tasks that a run creates, iterations of loops included.
pub const MAX_TASKS: usize = 200_000;

/// A pipeline, ready to be run.
#[derive(Debug)]
pub struct Plan {
    /// All components; the root is the first.
    pub(super) components: Vec<Component>,
}

/// A component.
#[derive(Debug)]
pub(super) struct Component {
    /// Of a graph without its tasks, which are in `body`.
    pub(super) spec: Arc<ComponentSpec>,
    /// Its declared parameters.
    pub(super) parameters: BTreeMap<String, Declared>,
    /// Its declared artifacts, and whether they are optional.
    pub(super) artifacts: BTreeMap<String, bool>,
    pub(super) body: Body,
}

/// A declared parameter.
#[derive(Debug)]
pub(super) struct Declared {
    /// `None` if the type is unknown, and then values are taken as they are.
    pub(super) kind: Option<Kind>,
    pub(super) default: Option<Value>,
    pub(super) is_optional: bool,
    /// The only values allowed, if there are any.
    pub(super) literals: Vec<prost_types::Value>,
}

/// What a component does.
#[derive(Debug)]
pub(super) enum Body {
    Graph(Graph),
    Container(Container),
    Importer(Arc<ImporterSpec>),
    /// Executors that only exist on Google's cloud; the text names it.
    Unsupported(&'static str),
}

/// What executes a component.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) executor: Arc<ExecutorSpec>,
    pub(super) platform: Option<Arc<KubernetesExecutorConfig>>,
    pub(super) references: References,
    /// The part of its fingerprint that is the same for all executions.
    pub(super) identity: fingerprint::Identity,
    /// Age of the oldest cached execution that may be used.
    pub(super) max_cache_staleness: Option<Duration>,
}

/// A graph of tasks, in the order of their names.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) tasks: Vec<Task>,
    pub(super) parameters: BTreeMap<String, OutputSource>,
    pub(super) artifacts: BTreeMap<String, OutputSource>,
}

impl Graph {
    pub(super) const EMPTY: Self = Self { tasks: Vec::new(), parameters: BTreeMap::new(), artifacts: BTreeMap::new() };
}

/// Where an output of a graph is from: the first selector whose task has outputs.
#[derive(Debug)]
pub(super) struct OutputSource {
    /// Task and name of its output.
    pub(super) selectors: Vec<(usize, String)>,
    /// Whether one of several branches must have it (`OneOf`).
    pub(super) is_one_of: bool,
    /// Whether its value is a list that a loop collected, so that a loop around it joins the lists instead of nesting them.
    pub(super) is_collected: bool,
}

/// A task of a graph.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) name: String,
    pub(super) display_name: String,
    /// Index of its component.
    pub(super) component: usize,
    pub(super) component_name: String,
    /// Tasks that must have ended before.
    pub(super) dependencies: Vec<usize>,
    /// Tasks that wait for this one.
    pub(super) dependents: Vec<usize>,
    /// Whether it runs however its dependencies ended.
    pub(super) runs_after_failure: bool,
    /// Whether its failure leaves the state of its graph alone: an exit task that no other task waits for.
    pub(super) is_exit: bool,
    pub(super) condition: Option<Condition>,
    pub(super) parameters: Vec<ParameterInput>,
    pub(super) artifacts: Vec<(String, ArtifactSource)>,
    pub(super) iterator: Option<Iterator>,
    pub(super) retry: Option<Retry>,
    pub(super) use_cache: bool,
    /// A fingerprint that the author chose.
    pub(super) cache_key: Option<String>,
}

/// A parameter that a task passes to its component.
#[derive(Debug)]
pub(super) struct ParameterInput {
    pub(super) name: String,
    pub(super) source: ParameterSource,
    /// Expression that picks a part of the value; empty for the whole.
    pub(super) selector: String,
}

/// Where the value of a parameter is from.
#[derive(Debug)]
pub(super) enum ParameterSource {
    Constant(Value),
    GraphInput(String),
    Output(usize, String),
    FinalStatus(usize),
}

/// Where an artifact is from.
#[derive(Debug)]
pub(super) enum ArtifactSource {
    GraphInput(String),
    Output(usize, String),
}

/// The items of a loop.
#[derive(Debug)]
pub(super) struct Iterator {
    pub(super) items: Items,
    /// Input of the component that gets the item.
    pub(super) item_input: String,
    /// Iterations at the same time.
    pub(super) parallelism: usize,
}

/// Where the items of a loop are from.
#[derive(Debug)]
pub(super) enum Items {
    Raw(Vec<Value>),
    Parameter(String),
    Artifacts(String),
}

/// When failed attempts are repeated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Retry {
    pub(super) max_retries: u32,
    /// Milliseconds before the first retry.
    pub(super) backoff: f64,
    /// Factor for each further one.
    pub(super) factor: f64,
    /// Milliseconds after the start of the first attempt in which attempts may start.
    pub(super) max_duration: i64,
}

impl Plan {
    /// Compiles a pipeline.
    ///
    /// # Errors
    /// [`Error::Specification`] if it refers to something that does not exist, or has a circle, an invalid condition, or too many tasks.
    pub fn new(document: Arc<Document>) -> Result<Self, Error> {
        Self::compile(&document).map_err(Error::Specification)
    }

    fn compile(document: &Document) -> Result<Self, String> {
        let root = document.spec.root.as_ref().ok_or("The pipeline has no root.")?;
        let names: HashMap<&str, usize> =
            document.spec.components.keys().enumerate().map(|(index, name)| (name.as_str(), index + 1)).collect();
        let mut components = Vec::with_capacity(names.len() + 1);
        for (name, spec) in std::iter::once(("root", root))
            .chain(document.spec.components.iter().map(|(name, spec)| (name.as_str(), spec)))
        {
            components.push(component(document, spec, &names).map_err(|reason| format!("component {name}: {reason}"))?);
        }
        if !matches!(components[0].body, Body::Graph(_)) {
            return Err("The root of the pipeline is not a graph of tasks.".to_owned());
        }
        let order = compile::check_nesting(&components)?;
        compile::add_platform_dependencies(&mut components);
        for component in &mut components {
            if let Body::Graph(graph) = &mut component.body {
                compile::link(graph)?;
            }
        }
        compile::mark_collected(&mut components, &order);
        Ok(Self { components })
    }
}

fn component(document: &Document, spec: &ComponentSpec, names: &HashMap<&str, usize>) -> Result<Component, String> {
    let mut parameters = BTreeMap::new();
    let mut artifacts = BTreeMap::new();
    if let Some(inputs) = &spec.input_definitions {
        for (name, input) in &inputs.parameters {
            parameters.insert(
                name.clone(),
                Declared {
                    kind: crate::value::kind(input.parameter_type),
                    default: input.default_value.as_ref().map(crate::value::from_prost),
                    is_optional: input.is_optional,
                    literals: input.literals.clone(),
                },
            );
        }
        artifacts.extend(inputs.artifacts.iter().map(|(name, input)| (name.clone(), input.is_optional)));
    }
    let (spec, body) = match &spec.implementation {
        Some(Implementation::Dag(dag)) => (interface(spec), Body::Graph(graph(dag, names)?)),
        Some(Implementation::ExecutorLabel(label)) => (spec.clone(), executor(document, spec, label)?),
        None => return Err("it has neither tasks nor an executor.".to_owned()),
    };
    Ok(Component { spec: Arc::new(spec), parameters, artifacts, body })
}

fn executor(document: &Document, component: &ComponentSpec, label: &str) -> Result<Body, String> {
    let executor =
        document.deployment.executors.get(label).ok_or_else(|| format!("the executor {label} does not exist."))?;
    Ok(match &executor.spec {
        Some(Spec::Container(container)) => {
            let platform = document.kubernetes.get(label);
            Body::Container(Container {
                executor: Arc::new(executor.clone()),
                references: platform.map(References::new).unwrap_or_default(),
                identity: fingerprint::Identity::new(component, container, platform),
                max_cache_staleness: platform.and_then(compile::max_cache_staleness),
                platform: platform.map(|platform| Arc::new(platform.clone())),
            })
        }
        Some(Spec::Importer(importer)) => Body::Importer(Arc::new(importer.clone())),
        Some(Spec::Resolver(_)) => Body::Unsupported("resolver"),
        #[allow(deprecated)] // named for the error
        Some(Spec::CustomJob(_)) => Body::Unsupported("custom job of Vertex AI"),
        None => return Err(format!("the executor {label} does not state what it executes.")),
    })
}

fn graph(dag: &DagSpec, names: &HashMap<&str, usize>) -> Result<Graph, String> {
    let indexes: HashMap<&str, usize> =
        dag.tasks.keys().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
    let mut graph = Graph::default();
    for (name, spec) in &dag.tasks {
        graph.tasks.push(task(name, spec, &indexes, names).map_err(|reason| format!("task {name}: {reason}"))?);
    }
    compile::outputs(dag, &indexes, &mut graph)?;
    Ok(graph)
}

fn task(
    name: &str,
    spec: &PipelineTaskSpec,
    indexes: &HashMap<&str, usize>,
    names: &HashMap<&str, usize>,
) -> Result<Task, String> {
    let component_name = spec.component_ref.as_ref().map(|reference| reference.name.clone()).unwrap_or_default();
    let component = *names
        .get(component_name.as_str())
        .ok_or_else(|| format!("the component {component_name:?} does not exist."))?;
    let mut dependencies = BTreeSet::new();
    for dependency in &spec.dependent_tasks {
        dependencies.insert(compile::index(indexes, dependency)?);
    }
    let mut parameters = Vec::new();
    let mut artifacts = Vec::new();
    if let Some(inputs) = &spec.inputs {
        for (input, spec) in &inputs.parameters {
            let source =
                compile::parameter_source(spec, indexes).map_err(|reason| format!("input {input}: {reason}"))?;
            if let ParameterSource::Output(producer, _) | ParameterSource::FinalStatus(producer) = &source {
                dependencies.insert(*producer);
            }
            parameters.push(ParameterInput {
                name: input.clone(),
                source,
                selector: spec.parameter_expression_selector.clone(),
            });
        }
        for (input, spec) in &inputs.artifacts {
            let source =
                compile::artifact_source(spec, indexes).map_err(|reason| format!("input {input}: {reason}"))?;
            if let ArtifactSource::Output(producer, _) = &source {
                dependencies.insert(*producer);
            }
            artifacts.push((input.clone(), source));
        }
    }
    let trigger = spec.trigger_policy.clone().unwrap_or_default();
    let condition = match trigger.condition.as_str() {
        "" => None,
        text => Some(Condition::parse(text).map_err(|reason| format!("condition {text:?}: {reason}"))?),
    };
    let caching = spec.caching_options.clone().unwrap_or_default();
    let display_name = spec.task_info.as_ref().map(|info| info.name.clone()).filter(|text| !text.is_empty());
    Ok(Task {
        name: name.to_owned(),
        display_name: display_name.unwrap_or_else(|| name.to_owned()),
        component,
        component_name,
        dependencies: dependencies.into_iter().collect(),
        dependents: Vec::new(),
        runs_after_failure: trigger.strategy == i32::from(TriggerStrategy::AllUpstreamTasksCompleted),
        is_exit: false,
        condition,
        parameters,
        artifacts,
        iterator: compile::iterator(spec)?,
        retry: compile::retry(spec),
        use_cache: caching.enable_cache,
        cache_key: Some(caching.cache_key).filter(|key| !key.is_empty()),
    })
}

impl Retry {
    /// When the next attempt is due after `attempts` of them failed, the first of which started at `started_at`. `None` if there is none:
    /// the retries are used up, or it would start too late.
    #[allow(clippy::cast_possible_truncation)] // a conversion of a double saturates
    pub(super) fn next_attempt(&self, attempts: u32, started_at: i64, now: i64) -> Option<i64> {
        if attempts == 0 || attempts > self.max_retries {
            return None;
        }
        let delay = self.backoff * self.factor.powf(f64::from(attempts - 1));
        let due = now.saturating_add(delay.min(1e15) as i64);
        (due <= started_at.saturating_add(self.max_duration)).then_some(due)
    }
}
