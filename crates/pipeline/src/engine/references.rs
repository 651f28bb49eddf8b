//! References from the Kubernetes settings of an executor to values of the graph that its task is in.
//!
//! The settings name outputs of other tasks and inputs of the graph, wherever their messages have the type of a task's input. Such an
//! output must exist before the task starts, so it is a dependency like any other.

use std::collections::BTreeSet;

use prost::Message;
use prost_reflect::{DynamicMessage, Value};

use crate::ir;
use crate::ir::kfp_kubernetes::{KubernetesExecutorConfig, pvc_mount::PvcReference};
use crate::ir::ml_pipelines::task_inputs_spec::InputParameterSpec;
use crate::ir::ml_pipelines::task_inputs_spec::input_parameter_spec::Kind;

/// What the settings refer to.
#[derive(Debug, Default)]
pub(super) struct References {
    /// Outputs of tasks: name of the task and of the output.
    pub(super) outputs: BTreeSet<(String, String)>,
    /// Inputs of the graph.
    pub(super) inputs: BTreeSet<String>,
}

impl References {
    /// The references of `settings`.
    pub(super) fn new(settings: &KubernetesExecutorConfig) -> Self {
        let mut references = Self::default();
        for mount in &settings.pvc_mount {
            // The older form of this reference is not wrapped in the message of an input.
            #[allow(deprecated)] // files have it beside or instead of the newer form
            match &mount.pvc_reference {
                Some(PvcReference::TaskOutputParameter(output)) => {
                    references.outputs.insert((output.producer_task.clone(), output.output_parameter_key.clone()));
                }
                Some(PvcReference::ComponentInputParameter(input)) => {
                    references.inputs.insert(input.clone());
                }
                _ => {}
            }
        }
        let descriptor = ir::descriptors()
            .get_message_by_name("kfp_kubernetes.KubernetesExecutorConfig")
            .expect("the committed descriptors contain the message: tests/generated.rs compares them with the protos");
        let message = DynamicMessage::decode(descriptor, settings.encode_to_vec().as_slice())
            .expect("the generated message and its descriptor come from the same proto");
        // The depth of the messages is bounded by the proto, which is not recursive here.
        let mut messages = vec![message];
        while let Some(message) = messages.pop() {
            for (_, value) in message.fields() {
                match value {
                    Value::Message(inner) => references.visit(inner, &mut messages),
                    Value::List(list) => list
                        .iter()
                        .filter_map(Value::as_message)
                        .for_each(|inner| references.visit(inner, &mut messages)),
                    _ => {}
                }
            }
        }
        references
    }

    fn visit(&mut self, message: &DynamicMessage, messages: &mut Vec<DynamicMessage>) {
        use prost_reflect::ReflectMessage as _;
        if message.descriptor().full_name() != "ml_pipelines.TaskInputsSpec.InputParameterSpec" {
            messages.push(message.clone());
            return;
        }
        match message.transcode_to::<InputParameterSpec>().ok().and_then(|input| input.kind) {
            Some(Kind::TaskOutputParameter(output)) => {
                self.outputs.insert((output.producer_task, output.output_parameter_key));
            }
            Some(Kind::ComponentInputParameter(input)) => {
                self.inputs.insert(input);
            }
            _ => {}
        }
    }
}
