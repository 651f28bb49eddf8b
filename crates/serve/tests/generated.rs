//! The files in `src/generated` are generated from `proto`. If they differ, this test regenerates them and fails, so that they cannot
//! drift apart. protoc is not needed.

use std::path::{Path, PathBuf};

/// Each proto file, with the file that tonic generates from its package and the committed name of that file.
const FILES: [(&str, &str, &str); 3] = [
    ("inference.proto", "inference.rs", "inference.rs"),
    ("health.proto", "grpc.health.v1.rs", "health.rs"),
    ("reflection.proto", "grpc.reflection.v1.rs", "reflection.rs"),
];

#[test]
fn committed_code_matches_the_proto() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/generated");
    let sources = FILES.iter().map(|(source, ..)| root.join("proto").join(source));
    let mut compiler = protox::Compiler::new([root.join("proto")]).unwrap();
    compiler.open_files(sources).unwrap();
    let descriptors = compiler.file_descriptor_set();
    let out = std::env::temp_dir().join(format!("slipway-generated-{}", std::process::id()));
    std::fs::create_dir_all(&out).unwrap();
    tonic_prost_build::configure().build_client(false).bytes(".").out_dir(&out).compile_fds(descriptors).unwrap();
    let code = FILES.iter().map(|(_, from, to)| (committed.join(to), std::fs::read(out.join(from)).unwrap()));
    let described = (committed.join("descriptors.bin"), compiler.encode_file_descriptor_set());
    let differs = |(place, content): &(PathBuf, Vec<u8>)| std::fs::read(place).is_ok_and(|found| found != *content);
    let outdated: Vec<(PathBuf, Vec<u8>)> = code.chain([described]).filter(differs).collect();
    std::fs::remove_dir_all(out).unwrap();
    outdated.iter().for_each(|(place, content)| std::fs::write(place, content).unwrap());
    let outdated: Vec<_> = outdated.into_iter().map(|(place, _)| place).collect();
    assert!(outdated.is_empty(), "{outdated:?} were out of date and have been regenerated; commit them");
}
