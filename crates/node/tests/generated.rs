//! `src/kubelet/generated/` is made from `proto/`; this test writes it anew where it differs and fails then, so that the two
//! cannot drift. No protoc is needed.

#[test]
fn the_committed_code_is_what_the_protos_say() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = root.join("src/kubelet/generated");
    let mut stale = Vec::new();
    for proto in ["deviceplugin", "dra", "dra_health", "registration", "podresources"] {
        let descriptors = protox::compile([root.join(format!("proto/{proto}.proto"))], [root.join("proto")]).unwrap();
        let package = descriptors.file[0].package().to_owned();
        let out = std::env::temp_dir().join(format!("slipway-node-generated-{proto}-{}", std::process::id()));
        std::fs::create_dir_all(&out).unwrap();
        tonic_prost_build::configure().out_dir(&out).compile_fds(descriptors).unwrap();
        let generated = std::fs::read_to_string(out.join(format!("{package}.rs"))).unwrap();
        std::fs::remove_dir_all(out).unwrap();
        let target = place.join(format!("{proto}.rs"));
        if std::fs::read_to_string(&target).unwrap_or_default() != generated {
            std::fs::write(&target, generated).unwrap();
            stale.push(target);
        }
    }
    assert!(stale.is_empty(), "out of date, written anew; commit them: {stale:?}");
}
