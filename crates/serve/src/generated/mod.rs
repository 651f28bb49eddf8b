//! Generated from `proto` by `cargo test -p slipway-serve --test generated`.

pub mod health;
pub mod inference;
pub mod reflection;

/// The compiled proto files (`google.protobuf.FileDescriptorSet`).
pub const DESCRIPTORS: &[u8] = include_bytes!("descriptors.bin");
