//! Checks that `src/kubelet/generated/` matches `proto/`. The test rewrites outdated files and then fails, so that the two cannot drift
//! apart. It does not need `protoc`.

#[test]
fn generated_code_matches_protos() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("src/kubelet/generated");
    let mut stale = Vec::new();
    for proto in ["csi", "deviceplugin", "dra", "dra_health", "registration", "podresources"] {
        let descriptors = protox::compile([root.join(format!("proto/{proto}.proto"))], [root.join("proto")]).unwrap();
        let package = descriptors.file[0].package().to_owned();
        let out = std::env::temp_dir().join(format!("slipway-node-generated-{proto}-{}", std::process::id()));
        std::fs::create_dir_all(&out).unwrap();
        tonic_prost_build::configure().out_dir(&out).compile_fds(descriptors).unwrap();
        let generated = std::fs::read_to_string(out.join(format!("{package}.rs"))).unwrap();
        std::fs::remove_dir_all(out).unwrap();
        let target = folder.join(format!("{proto}.rs"));
        if std::fs::read_to_string(&target).unwrap_or_default() != generated {
            std::fs::write(&target, generated).unwrap();
            stale.push(target);
        }
    }
    assert!(stale.is_empty(), "outdated files were regenerated; commit them: {stale:?}");
}
