//! Checks that `src/ir/generated/` matches `proto/`. The test rewrites outdated files and then fails, so that the two cannot drift apart.
//! It does not need `protoc`.

use prost::Message;

#[test]
fn generated_code_matches_protos() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let proto = root.join("proto");
    let sources = ["google/rpc/status.proto", "pipeline_spec.proto", "kubernetes_executor_config.proto"];
    let descriptors = protox::compile(sources.map(|name| proto.join(name)), [&proto]).unwrap();
    let out = std::env::temp_dir().join(format!("slipway-pipeline-generated-{}", std::process::id()));
    std::fs::create_dir_all(&out).unwrap();
    let mut files = vec![("descriptors.bin", descriptors.encode_to_vec())];
    prost_build::Config::new().out_dir(&out).btree_map(["."]).compile_fds(descriptors).unwrap();
    for name in ["google.rpc.rs", "ml_pipelines.rs", "kfp_kubernetes.rs"] {
        files.push((name, std::fs::read(out.join(name)).unwrap()));
    }
    std::fs::remove_dir_all(out).unwrap();
    let mut stale = Vec::new();
    for (name, generated) in files {
        let target = root.join("src/ir/generated").join(name);
        if std::fs::read(&target).unwrap_or_default() != generated {
            std::fs::write(&target, generated).unwrap();
            stale.push(target);
        }
    }
    assert!(stale.is_empty(), "outdated files were regenerated; commit them: {stale:?}");
}
