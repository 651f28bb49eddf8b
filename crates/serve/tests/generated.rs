//! `src/grpc/inference.rs` is generated from `proto/inference.proto`. If the two differ, this test regenerates the file and fails, so
//! that they cannot drift apart. protoc is not needed.

#[test]
fn committed_code_matches_the_proto() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile([root.join("proto/inference.proto")], [root.join("proto")]).unwrap();
    let out = std::env::temp_dir().join(format!("slipway-generated-{}", std::process::id()));
    std::fs::create_dir_all(&out).unwrap();
    tonic_prost_build::configure().build_client(false).bytes(".").out_dir(&out).compile_fds(descriptors).unwrap();
    let generated = std::fs::read_to_string(out.join("inference.rs")).unwrap();
    let place = root.join("src/grpc/inference.rs");
    let committed = std::fs::read_to_string(&place).unwrap_or_default();
    std::fs::remove_dir_all(out).unwrap();
    if generated != committed {
        std::fs::write(&place, generated).unwrap();
        panic!("{} was out of date and has been regenerated; commit it", place.display());
    }
}
