//! The messages of IR 2.1 and their descriptions.
//!
//! They are generated from `proto/` by `tests/generated.rs`. Their JSON is read and written with protobuf's own mapping, by reflection on
//! [`descriptors`].

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

/// The messages of `google/rpc/status.proto`.
pub mod google {
    /// The package `google.rpc`.
    #[allow(missing_docs)] // generated
    pub mod rpc {
        include!("ir/generated/google.rpc.rs");
    }
}

/// The messages of `pipeline_spec.proto`.
#[allow(missing_docs, clippy::all)] // generated
pub mod ml_pipelines {
    include!("ir/generated/ml_pipelines.rs");
}

/// The messages of `kubernetes_executor_config.proto`.
#[allow(missing_docs, clippy::all)] // generated
pub mod kfp_kubernetes {
    include!("ir/generated/kfp_kubernetes.rs");
}

/// Descriptions of all messages, for their JSON mapping.
pub fn descriptors() -> &'static DescriptorPool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(include_bytes!("ir/generated/descriptors.bin").as_slice())
            .expect("the committed descriptors are compared with the protos by tests/generated.rs")
    });
    &POOL
}
