//! Checks of a graph: its outputs and its dependencies.

use std::collections::{BTreeMap, BTreeSet};

use super::super::ml_pipelines::dag_outputs_spec::dag_output_parameter_spec::Kind as Source;
use super::super::ml_pipelines::pipeline_task_spec::trigger_policy::TriggerStrategy;
use super::super::ml_pipelines::{ComponentSpec, DagSpec, PipelineTaskSpec};
use super::{Report, Scope, task};
use crate::graph::dependencies;

pub(super) fn check(
    scope: &Scope<'_>,
    name: Option<&str>,
    component: &ComponentSpec,
    dag: &DagSpec,
    report: &mut Report<'_>,
) {
    let mut here = report.at(&["dag"]);
    if dag.tasks.is_empty() {
        here.fault(&["tasks"], "the graph has no tasks");
    } else if dag.tasks.values().all(runs_after_failures) {
        here.fault(&["tasks"], "all tasks of the graph wait for others to complete; at least one must start it");
    }
    for (task_name, task) in &dag.tasks {
        let place = task::Place { scope, component_name: name, component, dag, task_name };
        place.check(task, &mut here.at(&["tasks", task_name]));
    }
    check_cycles(dag, &mut here);
    check_outputs(scope, component, dag, &mut here.at(&["outputs"]));
}

fn runs_after_failures(task: &PipelineTaskSpec) -> bool {
    task.trigger_policy.as_ref().is_some_and(|policy| policy.strategy() == TriggerStrategy::AllUpstreamTasksCompleted)
}

/// Reports one cycle among the tasks that a cycle keeps from ever starting.
fn check_cycles(dag: &DagSpec, report: &mut Report<'_>) {
    let mut waiting: BTreeMap<&str, BTreeSet<&str>> = dag
        .tasks
        .iter()
        .map(|(name, task)| {
            let known = dependencies(task).into_iter().filter(|other| *other != name && dag.tasks.contains_key(*other));
            (name.as_str(), known.collect())
        })
        .collect();
    let mut dependents: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, others) in &waiting {
        for other in others {
            dependents.entry(other).or_default().push(name);
        }
    }
    let mut ready: Vec<&str> = waiting.iter().filter(|(_, others)| others.is_empty()).map(|(name, _)| *name).collect();
    while let Some(name) = ready.pop() {
        waiting.remove(name);
        for dependent in dependents.get(name).into_iter().flatten() {
            if let Some(others) = waiting.get_mut(dependent)
                && others.remove(name)
                && others.is_empty()
            {
                ready.push(dependent);
            }
        }
    }
    // Every remaining task waits for another remaining one, so this walk comes back to a task that it has met.
    let Some(mut name) = waiting.keys().next().copied() else {
        return;
    };
    let mut met: Vec<&str> = Vec::new();
    while !met.contains(&name) {
        met.push(name);
        match waiting.get(name).and_then(|others| others.first()) {
            Some(next) => name = next,
            None => return,
        }
    }
    let start = met.iter().position(|task| *task == name).unwrap_or(0);
    let mut cycle = met[start..].to_vec();
    cycle.push(name);
    report.fault(&["tasks", name], format!("tasks wait for each other: {}", cycle.join(" -> ")));
}

fn check_outputs(scope: &Scope<'_>, component: &ComponentSpec, dag: &DagSpec, report: &mut Report<'_>) {
    let producer = |task: &str| dag.tasks.get(task).map(|task| scope.component_of(task));
    let check_parameter = |task: &str, key: &str| match producer(task) {
        None => Some(format!("there is no task '{task}' in the graph")),
        Some(Some(component)) if !task::has_output_parameter(component, key) => {
            Some(format!("the task '{task}' has no output parameter '{key}'"))
        }
        Some(_) => None,
    };
    let outputs = dag.outputs.clone().unwrap_or_default();
    for (name, output) in &outputs.parameters {
        let mut here = report.at(&["parameters", name]);
        match &output.kind {
            None => here.fault(&[], format!("the output parameter '{name}' has no source")),
            Some(Source::ValueFromParameter(selector)) => {
                if let Some(reason) = check_parameter(&selector.producer_subtask, &selector.output_parameter_key) {
                    here.fault(&["valueFromParameter"], reason);
                }
            }
            Some(Source::ValueFromOneof(selectors)) => {
                if selectors.parameter_selectors.is_empty() {
                    here.fault(&["valueFromOneof"], format!("the output parameter '{name}' has no alternatives"));
                }
                for (at, selector) in selectors.parameter_selectors.iter().enumerate() {
                    if let Some(reason) = check_parameter(&selector.producer_subtask, &selector.output_parameter_key) {
                        here.fault(&["valueFromOneof", "parameterSelectors", &at.to_string()], reason);
                    }
                }
            }
        }
    }
    for (name, output) in &outputs.artifacts {
        let mut here = report.at(&["artifacts", name]);
        if output.artifact_selectors.is_empty() {
            here.fault(&[], format!("the output artifact '{name}' has no source"));
        }
        for (at, selector) in output.artifact_selectors.iter().enumerate() {
            let (task, key) = (&selector.producer_subtask, &selector.output_artifact_key);
            let reason = match producer(task) {
                None => format!("there is no task '{task}' in the graph"),
                Some(Some(component)) if !task::has_output_artifact(component, key) => {
                    format!("the task '{task}' has no output artifact '{key}'")
                }
                Some(_) => continue,
            };
            here.fault(&["artifactSelectors", &at.to_string()], reason);
        }
    }
    let declared = component.output_definitions.clone().unwrap_or_default();
    for name in outputs.parameters.keys().filter(|name| !declared.parameters.contains_key(*name)) {
        report.fault(&["parameters", name], format!("the component does not declare the output parameter '{name}'"));
    }
    for name in outputs.artifacts.keys().filter(|name| !declared.artifacts.contains_key(*name)) {
        report.fault(&["artifacts", name], format!("the component does not declare the output artifact '{name}'"));
    }
}
