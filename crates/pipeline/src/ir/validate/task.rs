//! Checks of a task in a graph.

use serde_json::Value;

use super::super::ml_pipelines::component_spec::Implementation;
use super::super::ml_pipelines::pipeline_deployment_config::executor_spec::Spec;
use super::super::ml_pipelines::pipeline_task_spec::{Iterator as LoopItems, RetryPolicy};
use super::super::ml_pipelines::task_inputs_spec::input_artifact_spec::Kind as ArtifactSource;
use super::super::ml_pipelines::task_inputs_spec::input_parameter_spec::Kind as Source;
use super::super::ml_pipelines::task_inputs_spec::{InputArtifactSpec, InputParameterSpec};
use super::super::ml_pipelines::value_or_runtime_parameter::Value as Runtime;
use super::super::ml_pipelines::{
    ComponentSpec, DagSpec, PipelineTaskSpec, parameter_iterator_spec::items_spec::Kind as Items,
};
use super::{Report, Scope, component_name, item_input};
use crate::condition::{self, Condition};
use crate::graph::dependencies;
use crate::value::{self, Kind, kind};

/// Prefix of the inputs that the SDK adds for placeholders inside of texts; components do not declare them.
const CHANNEL_PREFIX: &str = "pipelinechannel--";
/// Maximum characters of a task's name.
const MAX_NAME_CHARS: usize = 253;

pub(super) fn has_output_parameter(component: &ComponentSpec, name: &str) -> bool {
    component.output_definitions.as_ref().is_some_and(|outputs| outputs.parameters.contains_key(name))
}

pub(super) fn has_output_artifact(component: &ComponentSpec, name: &str) -> bool {
    component.output_definitions.as_ref().is_some_and(|outputs| outputs.artifacts.contains_key(name))
}

/// Where a task is.
pub(super) struct Place<'a> {
    pub(super) scope: &'a Scope<'a>,
    /// The component of the graph; `None` for the root.
    pub(super) component_name: Option<&'a str>,
    pub(super) component: &'a ComponentSpec,
    pub(super) dag: &'a DagSpec,
    pub(super) task_name: &'a str,
}

impl Place<'_> {
    pub(super) fn check(&self, task: &PipelineTaskSpec, report: &mut Report<'_>) {
        let name = self.task_name;
        if name.is_empty()
            || name.len() > MAX_NAME_CHARS
            || name.contains(|c: char| c.is_control() || "/[]".contains(c))
        {
            report.fault(&[], format!("'{}' is not a valid name of a task", value::shortened(name)));
        }
        for (at, dependency) in task.dependent_tasks.iter().enumerate() {
            let mut here = report.at(&["dependentTasks", &at.to_string()]);
            if !self.dag.tasks.contains_key(dependency) {
                here.fault(&[], format!("there is no task '{dependency}' in the graph"));
            }
        }
        if dependencies(task).contains(name) {
            report.fault(&[], "the task depends on itself");
        }
        let reference = component_name(task);
        let component = self.scope.components.get(reference);
        if component.is_none() {
            let reason = if reference.is_empty() {
                "the task refers to no component".to_owned()
            } else {
                format!("there is no component '{reference}'")
            };
            report.fault(&["componentRef"], reason);
        }
        if let Some(policy) = &task.retry_policy {
            check_retry(policy, &mut report.at(&["retryPolicy"]));
        }
        if task.iterator_policy.as_ref().is_some_and(|policy| policy.parallelism_limit < 0) {
            report.fault(
                &["iteratorPolicy", "parallelismLimit"],
                "the limit of parallel iterations must not be negative",
            );
        }
        self.check_inputs(task, component, report);
        check_iterator(task, component, report);
        self.check_condition(task, component, report);
    }

    fn check_inputs(&self, task: &PipelineTaskSpec, component: Option<&ComponentSpec>, report: &mut Report<'_>) {
        let given = task.inputs.clone().unwrap_or_default();
        for (name, input) in &given.parameters {
            let mut here = report.at(&["inputs", "parameters", name]);
            let declared = component.and_then(|c| c.input_definitions.as_ref()).and_then(|d| d.parameters.get(name));
            if component.is_some() && declared.is_none() && !is_undeclared_legal(name, input) {
                let reason = format!("the component '{}' has no input parameter '{name}'", component_name(task));
                here.fault(&[], reason);
            }
            let expected = declared.and_then(|declared| kind(declared.parameter_type));
            let literals = declared.map(|declared| declared.literals.as_slice()).unwrap_or_default();
            self.check_parameter(task, input, expected, literals, &mut here);
        }
        for (name, input) in &given.artifacts {
            let mut here = report.at(&["inputs", "artifacts", name]);
            let declared = component.and_then(|c| c.input_definitions.as_ref()).and_then(|d| d.artifacts.get(name));
            if component.is_some() && declared.is_none() {
                here.fault(&[], format!("the component '{}' has no input artifact '{name}'", component_name(task)));
            }
            self.check_artifact(
                input,
                declared.map(|declared| declared.is_artifact_list),
                item_input(task) == Some(name),
                &mut here,
            );
        }
        let Some(definitions) = component.and_then(|component| component.input_definitions.as_ref()) else {
            return;
        };
        let item = item_input(task);
        for (name, declared) in &definitions.parameters {
            let is_filled_by_driver = kind(declared.parameter_type) == Some(Kind::TaskConfig);
            let is_required = !declared.is_optional && declared.default_value.is_none() && !is_filled_by_driver;
            if is_required && !given.parameters.contains_key(name) && item != Some(name) {
                report.fault(&["inputs", "parameters"], format!("the required input parameter '{name}' is not given"));
            }
        }
        for (name, declared) in &definitions.artifacts {
            if !declared.is_optional && !given.artifacts.contains_key(name) && item != Some(name) {
                report.fault(&["inputs", "artifacts"], format!("the required input artifact '{name}' is not given"));
            }
        }
    }

    fn check_parameter(
        &self,
        task: &PipelineTaskSpec,
        input: &InputParameterSpec,
        expected: Option<Kind>,
        literals: &[prost_types::Value],
        report: &mut Report<'_>,
    ) {
        let selector = &input.parameter_expression_selector;
        if !selector.is_empty()
            && let Err(reason) = condition::check_selector(selector)
        {
            report.fault(&["parameterExpressionSelector"], format!("the selector is invalid: {reason}"));
        }
        let mut source = None;
        match &input.kind {
            None => report.fault(&[], "the input has no source"),
            Some(Source::TaskOutputParameter(output)) => {
                let (producer, key) = (&output.producer_task, &output.output_parameter_key);
                match self.dag.tasks.get(producer) {
                    None => report.fault(
                        &["taskOutputParameter", "producerTask"],
                        format!("there is no task '{producer}' in the graph"),
                    ),
                    Some(producer_task) => {
                        if let Some(component) = self.scope.component_of(producer_task) {
                            let output =
                                component.output_definitions.as_ref().and_then(|outputs| outputs.parameters.get(key));
                            match output {
                                None => {
                                    let reason = format!("the task '{producer}' has no output parameter '{key}'");
                                    report.fault(&["taskOutputParameter", "outputParameterKey"], reason);
                                }
                                Some(output) => source = kind(output.parameter_type),
                            }
                        }
                    }
                }
            }
            Some(Source::ComponentInputParameter(name)) => {
                let declared = self.component.input_definitions.as_ref().and_then(|inputs| inputs.parameters.get(name));
                match declared {
                    None => {
                        report.fault(&["componentInputParameter"], format!("the graph has no input parameter '{name}'"))
                    }
                    // The elements of a loop have types of their own.
                    Some(_) if self.is_item(name) => {}
                    Some(declared) => source = kind(declared.parameter_type),
                }
            }
            Some(Source::RuntimeValue(runtime)) => {
                check_constant(runtime.value.as_ref(), selector, expected, literals, &mut report.at(&["runtimeValue"]));
            }
            Some(Source::TaskFinalStatus(status)) => {
                let producer = &status.producer_task;
                if !self.dag.tasks.contains_key(producer) {
                    report.fault(
                        &["taskFinalStatus", "producerTask"],
                        format!("there is no task '{producer}' in the graph"),
                    );
                } else if !task.dependent_tasks.contains(producer) {
                    report.fault(
                        &["taskFinalStatus", "producerTask"],
                        format!("the task does not depend on '{producer}'"),
                    );
                }
                source = Some(Kind::TaskFinalStatus);
            }
        }
        if let (Some(source), Some(expected), true) = (source, expected, selector.is_empty())
            && !converts(source, expected)
        {
            report.fault(&[], format!("type mismatch: expected {}, the source is {}", expected.name(), source.name()));
        }
    }

    fn is_item(&self, input: &str) -> bool {
        self.component_name.is_some_and(|component| self.scope.items.contains(&(component, input)))
    }

    fn check_artifact(&self, input: &InputArtifactSpec, is_list: Option<bool>, is_item: bool, report: &mut Report<'_>) {
        let source = match &input.kind {
            None => {
                report.fault(&[], "the input has no source");
                None
            }
            Some(ArtifactSource::TaskOutputArtifact(output)) => {
                let (producer, key) = (&output.producer_task, &output.output_artifact_key);
                match self.dag.tasks.get(producer) {
                    None => {
                        report.fault(
                            &["taskOutputArtifact", "producerTask"],
                            format!("there is no task '{producer}' in the graph"),
                        );
                        None
                    }
                    Some(task) => self.scope.component_of(task).and_then(|component| {
                        let found =
                            component.output_definitions.as_ref().and_then(|outputs| outputs.artifacts.get(key));
                        if found.is_none() {
                            let reason = format!("the task '{producer}' has no output artifact '{key}'");
                            report.fault(&["taskOutputArtifact", "outputArtifactKey"], reason);
                        }
                        found.map(|output| output.is_artifact_list)
                    }),
                }
            }
            Some(ArtifactSource::ComponentInputArtifact(name)) => {
                let found = self.component.input_definitions.as_ref().and_then(|inputs| inputs.artifacts.get(name));
                if found.is_none() {
                    report.fault(&["componentInputArtifact"], format!("the graph has no input artifact '{name}'"));
                }
                found.filter(|_| !self.is_item(name)).map(|input| input.is_artifact_list)
            }
        };
        // One artifact is accepted as a list of one.
        if source == Some(true) && is_list == Some(false) && !is_item {
            report.fault(&[], "type mismatch: expected one artifact, the source is a list of artifacts");
        }
    }

    fn check_condition(&self, task: &PipelineTaskSpec, component: Option<&ComponentSpec>, report: &mut Report<'_>) {
        let Some(text) = task.trigger_policy.as_ref().map(|policy| &policy.condition).filter(|text| !text.is_empty())
        else {
            return;
        };
        let mut here = report.at(&["triggerPolicy", "condition"]);
        match Condition::parse(text) {
            Err(reason) => here.fault(&[], format!("the condition is invalid: {reason}")),
            Ok(condition) => {
                let given = task.inputs.as_ref().map(|inputs| &inputs.parameters);
                let declared = component.and_then(|c| c.input_definitions.as_ref()).map(|inputs| &inputs.parameters);
                for name in condition.parameters() {
                    let is_known = given.is_some_and(|given| given.contains_key(&name))
                        || declared.is_some_and(|declared| declared.contains_key(&name));
                    if !is_known {
                        here.fault(&[], format!("the condition refers to '{name}', which is not an input of the task"));
                    }
                }
            }
        }
        let executor = component.and_then(|component| match &component.implementation {
            Some(Implementation::ExecutorLabel(label)) => self.scope.executors.get(label),
            _ => None,
        });
        if matches!(executor.and_then(|executor| executor.spec.as_ref()), Some(Spec::Importer(_))) {
            here.fault(
                &[],
                "an importer cannot have a condition of its own; put it into a graph that has the condition",
            );
        }
    }
}

/// Whether an input that the component does not declare is one that the SDK writes for placeholders.
fn is_undeclared_legal(name: &str, input: &InputParameterSpec) -> bool {
    if name.starts_with(CHANNEL_PREFIX) {
        return true;
    }
    let Some(Source::RuntimeValue(runtime)) = &input.kind else {
        return false;
    };
    let Some(Runtime::Constant(constant)) = &runtime.value else {
        return false;
    };
    matches!(value::from_prost(constant), Value::String(text) if text.starts_with("{{$.inputs.parameters["))
}

/// Whether a value of one type can be given to an input of another.
fn converts(source: Kind, expected: Kind) -> bool {
    let is_number = |kind| matches!(kind, Kind::Integer | Kind::Double);
    let is_object = |kind| matches!(kind, Kind::Struct | Kind::TaskFinalStatus | Kind::TaskConfig);
    source == expected
        || expected == Kind::String
        || is_number(source) && is_number(expected)
        || is_object(source) && is_object(expected)
}

fn check_constant(
    constant: Option<&Runtime>,
    selector: &str,
    expected: Option<Kind>,
    literals: &[prost_types::Value],
    report: &mut Report<'_>,
) {
    let constant = match constant {
        Some(Runtime::Constant(constant)) => value::from_prost(constant),
        Some(Runtime::RuntimeParameter(_)) => {
            return report.fault(
                &["runtimeParameter"],
                "parameters of the run cannot be given by name; use componentInputParameter",
            );
        }
        #[allow(deprecated)] // it is reported as such
        Some(Runtime::ConstantValue(_)) => {
            return report.fault(&["constantValue"], "the field constantValue is not supported; use constant");
        }
        None => return report.fault(&[], "the value is missing"),
    };
    if constant.is_null() || !selector.is_empty() {
        return;
    }
    let Some(expected) = expected else { return };
    match value::coerce(expected, &constant) {
        Err(reason) => report.fault(&["constant"], reason),
        Ok(value) => {
            let has_placeholder = matches!(&value, Value::String(text) if text.contains("{{$"));
            if !has_placeholder && let Err(reason) = value::check_literals(literals, &value) {
                report.fault(&["constant"], reason);
            }
        }
    }
}

fn check_iterator(task: &PipelineTaskSpec, component: Option<&ComponentSpec>, report: &mut Report<'_>) {
    let definitions = component.and_then(|component| component.input_definitions.as_ref());
    let given = task.inputs.clone().unwrap_or_default();
    match &task.iterator {
        None => {}
        Some(LoopItems::ParameterIterator(iterator)) => {
            let mut here = report.at(&["parameterIterator"]);
            let item = &iterator.item_input;
            if component.is_some() && !definitions.is_some_and(|inputs| inputs.parameters.contains_key(item)) {
                here.fault(&["itemInput"], format!("the component has no input parameter '{item}'"));
            }
            match iterator.items.as_ref().and_then(|items| items.kind.as_ref()) {
                None => here.fault(&["items"], "the loop has no items"),
                Some(Items::Raw(text)) => match serde_json::from_str::<Value>(text) {
                    Ok(Value::Array(_)) => {}
                    Ok(other) => here.fault(
                        &["items", "raw"],
                        format!("the items of the loop are {}; expected a list", value::type_name(&other)),
                    ),
                    Err(error) => here.fault(&["items", "raw"], format!("the items of the loop are not JSON: {error}")),
                },
                Some(Items::InputParameter(name)) => {
                    let declared = definitions.and_then(|inputs| inputs.parameters.get(name));
                    if !given.parameters.contains_key(name) && declared.is_none() {
                        here.fault(&["items", "inputParameter"], format!("the task has no input parameter '{name}'"));
                    }
                    let kind = declared.and_then(|declared| kind(declared.parameter_type));
                    if let Some(kind) = kind.filter(|kind| !matches!(kind, Kind::List | Kind::String)) {
                        here.fault(
                            &["items", "inputParameter"],
                            format!("the items of the loop are of type {}; expected LIST", kind.name()),
                        );
                    }
                }
            }
        }
        Some(LoopItems::ArtifactIterator(iterator)) => {
            let mut here = report.at(&["artifactIterator"]);
            let item = &iterator.item_input;
            if component.is_some() && !definitions.is_some_and(|inputs| inputs.artifacts.contains_key(item)) {
                here.fault(&["itemInput"], format!("the component has no input artifact '{item}'"));
            }
            let items = iterator.items.as_ref().map_or("", |items| items.input_artifact.as_str());
            if !given.artifacts.contains_key(items) {
                here.fault(&["items", "inputArtifact"], format!("the task has no input artifact '{items}'"));
            }
        }
    }
}

fn check_retry(policy: &RetryPolicy, report: &mut Report<'_>) {
    if policy.max_retry_count < 0 {
        report.fault(&["maxRetryCount"], "the number of retries must not be negative");
    }
    if !policy.backoff_factor.is_finite() || policy.backoff_factor < 0.0 {
        report.fault(&["backoffFactor"], "the factor must not be negative");
    }
    for (name, duration) in
        [("backoffDuration", &policy.backoff_duration), ("backoffMaxDuration", &policy.backoff_max_duration)]
    {
        if duration.as_ref().is_some_and(|duration| duration.seconds < 0 || duration.nanos < 0) {
            report.fault(&[name], "the duration must not be negative");
        }
    }
}
