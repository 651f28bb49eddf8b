//! Checks what the messages of a pipeline mean, as Kubeflow's server, compiler and drivers do when a pipeline is uploaded or executed.
//!
//! Only what can be reached from the root is checked, because nothing else is ever executed.

mod component;
mod dag;
mod platform;
mod task;

use std::collections::{BTreeMap, BTreeSet};

use super::fault::Faults;
use super::ml_pipelines::component_spec::Implementation;
use super::ml_pipelines::pipeline_deployment_config::ExecutorSpec;
use super::ml_pipelines::pipeline_task_spec::Iterator as LoopItems;
use super::ml_pipelines::{ComponentSpec, PipelineTaskSpec};
use super::read::Document;

/// The only version of the schema that Kubeflow's server accepts.
const SCHEMA_VERSION: &str = "2.1.0";
/// Maximum depth of graphs inside each other.
const MAX_DEPTH: usize = 64;

/// The faults of the specification and those of the settings for a platform.
pub(crate) fn validate(document: &Document) -> (Faults, Faults) {
    let mut faults = Faults::default();
    let spec = &document.spec;
    let mut report = Report { faults: &mut faults, path: Vec::new() };
    if spec.schema_version != SCHEMA_VERSION {
        let found = if spec.schema_version.is_empty() { "absent" } else { &spec.schema_version };
        report.fault(
            &["schemaVersion"],
            format!("the version of the schema is {found}; only {SCHEMA_VERSION} is supported"),
        );
    }
    let name = spec.pipeline_info.as_ref().map_or("", |info| info.name.as_str());
    if !name.contains(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) {
        let reason = format!("the name of the pipeline is '{name}'; it must have lowercase letters or digits");
        report.fault(&["pipelineInfo", "name"], reason);
    }
    let scope = Scope::new(document);
    match &spec.root {
        None => report.fault(&["root"], "the root component is missing"),
        Some(root) if !matches!(root.implementation, Some(Implementation::Dag(_))) => {
            report.fault(&["root"], "the root component has no dag");
        }
        Some(root) => {
            component::check_root_inputs(root, &mut report.at(&["root"]));
            let mut walk = Walk { scope: &scope, visited: BTreeSet::new(), stack: Vec::new() };
            walk.component(None, root, &mut report);
        }
    }
    let mut platform_faults = Faults::default();
    platform::check(document, &mut Report { faults: &mut platform_faults, path: Vec::new() });
    (faults, platform_faults)
}

/// Collects faults below a path.
struct Report<'a> {
    faults: &'a mut Faults,
    path: Vec<String>,
}

impl Report<'_> {
    fn fault(&mut self, steps: &[&str], reason: impl Into<String>) {
        let path: Vec<String> = self.path.iter().cloned().chain(steps.iter().map(|step| (*step).to_owned())).collect();
        self.faults.push(None, &path, reason);
    }

    fn at(&mut self, steps: &[&str]) -> Report<'_> {
        let path = self.path.iter().cloned().chain(steps.iter().map(|step| (*step).to_owned())).collect();
        Report { faults: self.faults, path }
    }
}

/// What tasks refer to.
struct Scope<'a> {
    components: &'a BTreeMap<String, ComponentSpec>,
    executors: &'a BTreeMap<String, ExecutorSpec>,
    /// Inputs that receive one element of a loop, by component.
    items: BTreeSet<(&'a str, &'a str)>,
}

impl<'a> Scope<'a> {
    fn new(document: &'a Document) -> Self {
        let components = &document.spec.components;
        let mut items = BTreeSet::new();
        for component in components.values().chain(&document.spec.root) {
            if let Some(Implementation::Dag(dag)) = &component.implementation {
                items.extend(dag.tasks.values().filter_map(|task| Some((component_name(task), item_input(task)?))));
            }
        }
        Self { components, executors: &document.deployment.executors, items }
    }

    fn component_of(&self, task: &PipelineTaskSpec) -> Option<&'a ComponentSpec> {
        self.components.get(component_name(task))
    }
}

fn component_name(task: &PipelineTaskSpec) -> &str {
    task.component_ref.as_ref().map_or("", |reference| reference.name.as_str())
}

/// The input that receives the elements of a loop.
fn item_input(task: &PipelineTaskSpec) -> Option<&str> {
    Some(match task.iterator.as_ref()? {
        LoopItems::ParameterIterator(iterator) => iterator.item_input.as_str(),
        LoopItems::ArtifactIterator(iterator) => iterator.item_input.as_str(),
    })
}

/// Visits the components that the root reaches, each once.
struct Walk<'a> {
    scope: &'a Scope<'a>,
    visited: BTreeSet<&'a str>,
    stack: Vec<&'a str>,
}

impl<'a> Walk<'a> {
    /// Checks a component and those below it; `name` is `None` for the root.
    fn component(&mut self, name: Option<&'a str>, component: &'a ComponentSpec, report: &mut Report<'_>) {
        let mut here = match name {
            None => report.at(&["root"]),
            Some(name) => report.at(&["components", name]),
        };
        component::check(self.scope, component, &mut here);
        let Some(Implementation::Dag(dag)) = &component.implementation else {
            return;
        };
        dag::check(self.scope, name, component, dag, &mut here);
        for (task_name, task) in &dag.tasks {
            let Some((name, component)) = self.scope.components.get_key_value(component_name(task)) else {
                continue; // reported by the check of the task
            };
            let mut place = here.at(&["dag", "tasks", task_name, "componentRef"]);
            if self.stack.contains(&name.as_str()) {
                place.fault(&[], format!("the component '{name}' contains itself"));
            } else if self.stack.len() == MAX_DEPTH {
                place.fault(&[], format!("more than {MAX_DEPTH} graphs are inside each other"));
            } else if self.visited.insert(name) {
                self.stack.push(name);
                self.component(Some(name), component, &mut Report { faults: here.faults, path: Vec::new() });
                self.stack.pop();
            }
        }
    }
}
