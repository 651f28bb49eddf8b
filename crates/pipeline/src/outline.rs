//! What a compiled pipeline says to a reader: its inputs and graphs, and what a task executes, before any run.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use slipway_exec::quantity::Quantity;

use crate::graph::Graphs;
use crate::ir::Document;
use crate::ir::ml_pipelines::component_spec::Implementation;
use crate::ir::ml_pipelines::pipeline_deployment_config::PipelineContainerSpec;
use crate::ir::ml_pipelines::pipeline_deployment_config::executor_spec::Spec;
use crate::launch::local::command::{Command, Program};
use crate::model::{Inputs, TaskPath};
use crate::{platform, value};

/// A compiled pipeline, as forms and drawings need it.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "PipelineOutline")]
pub struct Outline {
    /// Its name.
    pub name: String,
    /// Its description; may be empty.
    pub description: String,
    /// Its inputs: parameters, then artifacts, each in the order of their names.
    pub inputs: Vec<Input>,
    /// Its graphs.
    #[serde(flatten)]
    pub graphs: Graphs,
}

/// An input of a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "PipelineInput")]
pub struct Input {
    /// Its name.
    pub name: String,
    /// `STRING`, `NUMBER_INTEGER`, `NUMBER_DOUBLE`, `BOOLEAN`, `LIST`, `STRUCT` or `TASK_CONFIG`; `ARTIFACT` for an artifact.
    pub r#type: &'static str,
    /// Whether a run needs a value for it.
    pub is_required: bool,
    /// Its value where a run gives none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Value>,
    /// Its description; may be empty.
    pub description: String,
    /// The only values allowed; empty if all are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Value>,
}

/// Where a task is executed, and with what.
#[derive(Debug, Clone, PartialEq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "PipelineEnvironment")]
pub struct Environment {
    /// Its image.
    pub image: String,
    /// Python packages that are installed before it starts, as requirements of `pip`.
    pub packages: Vec<String>,
    /// Environment variables by name.
    pub variables: Vec<(String, String)>,
    /// Amounts of the resources that it asks for, by name: `{"cpu": "2", "nvidia.com/gpu": "1"}`.
    pub resources: BTreeMap<String, Quantity>,
    /// The source text of a Python component, or the command of a container.
    pub program: String,
}

impl Outline {
    /// The outline of a pipeline.
    pub fn new(document: &Document) -> Self {
        let info = document.spec.pipeline_info.as_ref();
        let definitions = document.spec.root.as_ref().and_then(|root| root.input_definitions.as_ref());
        let parameters = definitions.iter().flat_map(|inputs| &inputs.parameters).map(|(name, declared)| Input {
            name: name.clone(),
            r#type: value::kind(declared.parameter_type).map_or("STRING", value::Kind::name),
            is_required: !declared.is_optional && declared.default_value.is_none(),
            default: declared.default_value.as_ref().map(value::from_prost),
            description: declared.description.clone(),
            choices: declared.literals.iter().map(value::from_prost).collect(),
        });
        let artifacts = definitions.iter().flat_map(|inputs| &inputs.artifacts).map(|(name, declared)| Input {
            name: name.clone(),
            r#type: "ARTIFACT",
            is_required: !declared.is_optional,
            default: None,
            description: declared.description.clone(),
            choices: Vec::new(),
        });
        Self {
            name: info.map(|info| info.name.clone()).unwrap_or_default(),
            description: info.map(|info| info.description.clone()).unwrap_or_default(),
            inputs: parameters.chain(artifacts).collect(),
            graphs: Graphs::new(document),
        }
    }
}

/// The container that the task at a path executes; `None` for the path of a graph or importer, or of nothing.
pub fn container_at<'a>(document: &'a Document, path: &TaskPath) -> Option<&'a PipelineContainerSpec> {
    let mut component = document.spec.root.as_ref()?;
    for segment in path.0.split('/') {
        let name = segment.split_once('[').map_or(segment, |(name, _)| name);
        let Some(Implementation::Dag(dag)) = component.implementation.as_ref() else { return None };
        let reference = dag.tasks.get(name)?.component_ref.as_ref()?;
        component = document.spec.components.get(&reference.name)?;
    }
    let Some(Implementation::ExecutorLabel(label)) = component.implementation.as_ref() else { return None };
    match document.deployment.executors.get(label)?.spec.as_ref()? {
        Spec::Container(container) => Some(container),
        _ => None,
    }
}

impl Environment {
    /// The environment of a container. `inputs` are those of the task, as far as they are known: they can decide about resources.
    pub fn new(container: &PipelineContainerSpec, inputs: &Inputs) -> Self {
        let resources = platform::resources(container, inputs).unwrap_or_default();
        let amounts = resources.limits.iter().chain(&resources.requests);
        let command = Command::new(container.command.iter().chain(&container.args).cloned().collect());
        Self {
            image: container.image.clone(),
            packages: command.requirements(),
            variables: container.env.iter().map(|entry| (entry.name.clone(), entry.value.clone())).collect(),
            resources: amounts.map(|(name, amount)| (name.clone(), amount.clone())).collect(),
            program: match command.program {
                Program::Lightweight { code, .. } => code.trim().to_owned(),
                Program::Words(words) => words.join(" ").trim().to_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PIPELINE: &str = r#"
pipelineInfo: {name: p, description: Trains.}
schemaVersion: 2.1.0
deploymentSpec:
  executors:
    e:
      container:
        image: python
        command: [sh, -c, "python3 -m pip install --quiet --index-url https://a/simple 'numpy==2' '--no-deps' 'pandas>=2' && \"$0\" \"$@\"", train]
        args: ["--fast"]
        env: [{name: A, value: b}]
        resources: {resourceCpuLimit: "{{$.inputs.parameters['cpu']}}", resourceCpuRequest: "1"}
components:
  leaf: {executorLabel: e, inputDefinitions: {parameters: {cpu: {parameterType: STRING}}}}
  inner: {dag: {tasks: {train: {componentRef: {name: leaf}, inputs: {parameters: {cpu: {runtimeValue: {constant: "2"}}}}}}}, inputDefinitions: {parameters: {item: {parameterType: STRING}}}}
root:
  dag: {tasks: {loop: {componentRef: {name: inner}, parameterIterator: {itemInput: item, items: {raw: '["a"]'}}}}}
  inputDefinitions:
    parameters:
      rate: {parameterType: NUMBER_DOUBLE, defaultValue: 0.5, description: Step size.}
      words: {parameterType: STRING}
    artifacts: {data: {artifactType: {schemaTitle: system.Dataset, schemaVersion: 0.0.1}, isOptional: true}}
"#;

    #[test]
    fn inputs_are_those_of_the_root() {
        let outline = json!(Outline::new(&crate::ir::read(PIPELINE).unwrap()));
        assert_eq!((&outline["name"], &outline["description"]), (&json!("p"), &json!("Trains.")));
        assert_eq!(
            outline["inputs"],
            json!([
                {"name": "rate", "type": "NUMBER_DOUBLE", "isRequired": false, "default": 0.5, "description": "Step size."},
                {"name": "words", "type": "STRING", "isRequired": true, "description": ""},
                {"name": "data", "type": "ARTIFACT", "isRequired": false, "description": ""},
            ])
        );
        assert_eq!(outline["root"]["nodes"][0]["name"], "loop");
        assert_eq!(outline["components"]["inner"]["nodes"][0]["name"], "train");
    }

    #[test]
    fn environment_of_a_task_has_packages_and_resolved_resources() {
        let document = crate::ir::read(PIPELINE).unwrap();
        assert!(container_at(&document, &TaskPath("loop[0]".into())).is_none());
        assert!(container_at(&document, &TaskPath("loop/missing".into())).is_none());
        let container = container_at(&document, &TaskPath("loop[0]/train".into())).unwrap();
        let inputs = Inputs { parameters: [("cpu".to_owned(), json!("4"))].into(), ..Inputs::default() };
        let environment = Environment::new(container, &inputs);
        assert_eq!(environment.packages, ["numpy==2", "pandas>=2"]);
        assert_eq!(json!(environment.resources), json!({"cpu": "1"}));
        assert_eq!(environment.program, "train --fast");
        assert_eq!(environment.variables, [("A".to_owned(), "b".to_owned())]);
        assert!(Environment::new(container, &Inputs::default()).resources.is_empty());
    }
}
