//! The compiled form of a pipeline, IR 2.1: how it is read, checked and written.

mod fault;
mod part;
pub mod read;
mod tree;
mod validate;
pub mod write;

pub use read::{Document, read, read_json};
pub use write::to_json;

pub use crate::proto::{descriptors, google, kfp_kubernetes, ml_pipelines};

/// A component without what it executes, which may be a graph of thousands of tasks.
pub(crate) fn interface(component: &ml_pipelines::ComponentSpec) -> ml_pipelines::ComponentSpec {
    ml_pipelines::ComponentSpec {
        input_definitions: component.input_definitions.clone(),
        output_definitions: component.output_definitions.clone(),
        single_platform_specs: component.single_platform_specs.clone(),
        task_config_passthroughs: component.task_config_passthroughs.clone(),
        implementation: None,
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::DynamicMessage;

    use super::*;

    #[test]
    fn yaml_is_read_with_the_json_mapping_of_protobuf() {
        let text = "schemaVersion: 2.1.0\nroot: {dag: {tasks: {a: {componentRef: {name: comp-a}, cachingOptions: {enableCache: true}}}}}\n\
                    components: {comp-a: {executorLabel: e, inputDefinitions: {parameters: {x: {parameterType: NUMBER_INTEGER, defaultValue: 2}}}}}";
        let message = descriptors().get_message_by_name("ml_pipelines.PipelineSpec").unwrap();
        let seed = prost_reflect::DeserializeOptions::new();
        let read: DynamicMessage = serde_saphyr::with_deserializer_from_str(text, |d| {
            DynamicMessage::deserialize_with_options(message, d, &seed)
        })
        .unwrap();
        let spec: ml_pipelines::PipelineSpec = read.transcode_to().unwrap();
        assert_eq!(spec.schema_version, "2.1.0");
        assert!(spec.components.contains_key("comp-a"));
    }
}
