//! Checks of a component: its definitions and its executor.

use super::super::ml_pipelines::ComponentSpec;
use super::super::ml_pipelines::component_spec::Implementation;
use super::super::ml_pipelines::pipeline_deployment_config::{
    ImporterSpec, PipelineContainerSpec, executor_spec::Spec,
};
use super::{Report, Scope};
use crate::value::{self, Kind, kind};

/// Checks that a run can give the inputs of the root.
pub(super) fn check_root_inputs(root: &ComponentSpec, report: &mut Report<'_>) {
    for (name, parameter) in root.input_definitions.iter().flat_map(|definitions| &definitions.parameters) {
        let is_required = !parameter.is_optional && parameter.default_value.is_none();
        if is_required && kind(parameter.parameter_type) == Some(Kind::TaskFinalStatus) {
            report.fault(
                &["inputDefinitions", "parameters", name],
                "a parameter of the pipeline cannot be of type TASK_FINAL_STATUS",
            );
        }
    }
}

pub(super) fn check(scope: &Scope<'_>, component: &ComponentSpec, report: &mut Report<'_>) {
    check_definitions(component, report);
    match &component.implementation {
        None => report.fault(&[], "the component has neither a dag nor an executorLabel"),
        Some(Implementation::Dag(_)) => {}
        Some(Implementation::ExecutorLabel(label)) => match scope.executors.get(label) {
            None => report.fault(&["executorLabel"], format!("there is no executor '{label}' in deploymentSpec")),
            Some(executor) => {
                // The executor is elsewhere in the file.
                let path = vec!["deploymentSpec".to_owned(), "executors".to_owned(), label.clone()];
                let mut here = Report { faults: report.faults, path };
                match &executor.spec {
                    Some(Spec::Container(container)) => check_container(container, &mut here),
                    Some(Spec::Importer(importer)) => check_importer(component, importer, &mut here),
                    Some(Spec::Resolver(_)) => {
                        here.fault(&["resolver"], "executors that resolve artifacts are not supported")
                    }
                    #[allow(deprecated)] // it is reported as such
                    Some(Spec::CustomJob(_)) => {
                        here.fault(&["customJob"], "custom jobs are of Google Cloud only and not supported");
                    }
                    None => here.fault(&[], "the executor has neither a container nor an importer"),
                }
            }
        },
    }
}

fn check_definitions(component: &ComponentSpec, report: &mut Report<'_>) {
    for (name, parameter) in component.input_definitions.iter().flat_map(|definitions| &definitions.parameters) {
        let mut here = report.at(&["inputDefinitions", "parameters", name]);
        if kind(parameter.parameter_type).is_none() {
            here.fault(&["parameterType"], format!("the input parameter '{name}' has no type"));
        }
        if let Some(default) = &parameter.default_value
            && let Err(reason) = value::check_literals(&parameter.literals, &value::from_prost(default))
        {
            here.fault(&["defaultValue"], format!("the default of '{name}': {reason}"));
        }
    }
    for (name, parameter) in component.output_definitions.iter().flat_map(|definitions| &definitions.parameters) {
        if kind(parameter.parameter_type).is_none() {
            report.fault(
                &["outputDefinitions", "parameters", name, "parameterType"],
                format!("the output parameter '{name}' has no type"),
            );
        }
    }
}

fn check_container(container: &PipelineContainerSpec, report: &mut Report<'_>) {
    if container.image.is_empty() {
        report.fault(&["container", "image"], "the container has no image");
    }
    for (at, variable) in container.env.iter().enumerate() {
        if variable.name.is_empty() || variable.name.contains(['=', '\0']) {
            let reason = format!("'{}' is not a valid name of an environment variable", variable.name);
            report.fault(&["container", "env", &at.to_string(), "name"], reason);
        }
    }
}

fn check_importer(component: &ComponentSpec, importer: &ImporterSpec, report: &mut Report<'_>) {
    use super::super::ml_pipelines::value_or_runtime_parameter::Value;
    match importer.artifact_uri.as_ref().and_then(|uri| uri.value.as_ref()) {
        None => report.fault(&["importer", "artifactUri"], "the importer has no URI"),
        Some(Value::RuntimeParameter(name)) => {
            let inputs = component.input_definitions.as_ref();
            if !inputs.is_some_and(|inputs| inputs.parameters.contains_key(name)) {
                report.fault(&["importer", "artifactUri"], format!("the component has no input parameter '{name}'"));
            }
        }
        Some(_) => {}
    }
    if component.output_definitions.as_ref().map_or(0, |outputs| outputs.artifacts.len()) != 1 {
        report.fault(&["importer"], "the component of an importer must have exactly one output artifact");
    }
}
