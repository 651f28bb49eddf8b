//! The compiled form of a pipeline, IR 2.1.
//!
//! The messages are generated from `proto/` by `tests/generated.rs`. Their JSON is read and written with protobuf's own mapping, by
//! reflection on [`descriptors`].

mod fault;
pub mod read;
mod tree;
mod validate;
pub mod write;

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

pub use read::{Document, read, read_json};
pub use write::to_json;

/// The messages of `google/rpc/status.proto`.
pub mod google {
    /// The package `google.rpc`.
    #[allow(missing_docs)] // generated
    pub mod rpc {
        include!("generated/google.rpc.rs");
    }
}

/// The messages of `pipeline_spec.proto`.
#[allow(missing_docs, clippy::all)] // generated
pub mod ml_pipelines {
    include!("generated/ml_pipelines.rs");
}

/// The messages of `kubernetes_executor_config.proto`.
#[allow(missing_docs, clippy::all)] // generated
pub mod kfp_kubernetes {
    include!("generated/kfp_kubernetes.rs");
}

/// Descriptions of all messages, for their JSON mapping.
pub fn descriptors() -> &'static DescriptorPool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(include_bytes!("generated/descriptors.bin").as_slice())
            .expect("the committed descriptors are compared with the protos by tests/generated.rs")
    });
    &POOL
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
