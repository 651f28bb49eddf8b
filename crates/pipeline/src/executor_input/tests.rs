use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::ir;
use crate::model::{RunInfo, TaskPath};
use crate::placeholder::Place;

const PIPELINE: &str = r#"
pipelineInfo: {name: p}
schemaVersion: 2.1.0
deploymentSpec: {executors: {e: {container: {image: python}}}}
components:
  c:
    executorLabel: e
    inputDefinitions:
      parameters:
        x: {parameterType: NUMBER_INTEGER}
        optional: {parameterType: STRING, isOptional: true}
        default: {parameterType: LIST, isOptional: true, defaultValue: [1]}
    outputDefinitions:
      parameters:
        n: {parameterType: NUMBER_INTEGER}
        s: {parameterType: STRING}
      artifacts:
        m: {artifactType: {schemaTitle: system.Model, schemaVersion: 0.0.1}, metadata: {a: 1, b: old}}
root:
  dag:
    tasks:
      t: {componentRef: {name: c}, inputs: {parameters: {x: {runtimeValue: {constant: 1}}}}}
"#;

fn launch() -> Launch {
    let document = ir::read(PIPELINE).unwrap();
    let mut launch = Launch {
        run: Arc::new(RunInfo::default()),
        path: TaskPath("t".into()),
        task_name: "t".into(),
        attempt: 1,
        component: Arc::new(document.spec.components["c"].clone()),
        executor: Arc::new(document.deployment.executors["e"].clone()),
        platform: None,
        inputs: Default::default(),
        platform_inputs: BTreeMap::new(),
    };
    launch.inputs.parameters.insert("x".into(), json!(3));
    launch.inputs.parameters.insert("optional".into(), json!(null));
    launch
}

fn paths(folder: &Path) -> Paths {
    let file = |name: &str| folder.join(name).display().to_string();
    Paths {
        output_artifacts: [("m".to_owned(), Place { path: file("m"), uri: file("m") })].into(),
        output_parameters: [("n".to_owned(), file("n")), ("s".to_owned(), file("s"))].into(),
        executor_output: file("meta.json"),
        ..Paths::default()
    }
}

#[test]
fn the_input_has_defaults_and_no_nulls() {
    let mut launch = launch();
    let artifact =
        Artifact { id: "7".into(), uri: "s3://x".into(), schema_title: "system.Dataset".into(), ..Artifact::default() };
    launch.inputs.artifacts.insert("d".into(), vec![artifact]);
    let mut paths = paths(Path::new("/o"));
    paths.input_artifacts.insert("d".into(), vec![Place { path: "/in/d".into(), uri: "/in/d".into() }]);
    assert_eq!(
        executor_input(&launch, &paths),
        json!({
            "inputs": {
                "parameterValues": {"x": 3, "default": [1]},
                "artifacts": {"d": {"artifacts": [
                    {"name": "7", "type": {"schemaTitle": "system.Dataset"}, "uri": "/in/d", "metadata": {}}
                ]}},
            },
            "outputs": {
                "parameters": {"n": {"outputFile": "/o/n"}, "s": {"outputFile": "/o/s"}},
                "artifacts": {"m": {"artifacts": [{
                    "name": "m",
                    "type": {"schemaTitle": "system.Model", "schemaVersion": "0.0.1"},
                    "uri": "/o/m",
                    "metadata": {"a": 1, "b": "old"},
                }]}},
                "outputFile": "/o/meta.json",
            },
        })
    );
}

#[test]
fn paths_in_the_workspace_are_where_it_is() {
    let mut launch = launch();
    launch.inputs.parameters.insert("optional".into(), json!("/kfp-workspace/data"));
    let paths = Paths { workspace: Some("/tmp/w".into()), ..Paths::default() };
    assert_eq!(executor_input(&launch, &paths)["inputs"]["parameterValues"]["optional"], "/tmp/w/data");
}

#[test]
fn outputs_come_from_the_description_and_else_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    std::fs::write(folder.path().join("n"), " 5\n").unwrap();
    std::fs::write(
        &paths.executor_output,
        r#"{"parameterValues": {"s": "from description"}, "artifacts": {"m": {"artifacts": [
            {"name": "m", "uri": "gs://elsewhere", "metadata": {"b": "new", "c": {"d": [true]}}}
        ]}}, "laterField": 1}"#,
    )
    .unwrap();
    let outputs = read_outputs(&launch(), &paths).unwrap();
    assert_eq!(outputs.parameters, [("n".to_owned(), json!(5)), ("s".to_owned(), json!("from description"))].into());
    let model = &outputs.artifacts["m"][0];
    assert_eq!((model.uri.as_str(), model.schema_title.as_str()), ("gs://elsewhere", "system.Model"));
    assert_eq!(Value::Object(model.metadata.clone()), json!({"a": 1, "b": "new", "c": {"d": [true]}}));
}

#[test]
fn an_artifact_that_was_not_written_is_an_output_and_a_parameter_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    std::fs::write(folder.path().join("n"), "5").unwrap();
    let failure = read_outputs(&launch(), &paths).unwrap_err();
    assert!(failure.message.starts_with("the output parameter 's': the program did not write it to"), "{failure:?}");
    std::fs::write(folder.path().join("s"), "").unwrap();
    let outputs = read_outputs(&launch(), &paths).unwrap();
    assert_eq!(outputs.parameters["s"], "");
    assert_eq!(outputs.artifacts["m"][0].uri, paths.output_artifacts["m"].uri);
}

#[test]
fn malformed_outputs_are_failures_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    std::fs::write(folder.path().join("s"), "a").unwrap();
    for (file, text, reason) in [
        ("n", "five", "'five' is not a number"),
        ("meta.json", "{", "is invalid"),
        ("meta.json", r#"{"parameterValues": {"n": "5"}}"#, "type mismatch: expected NUMBER_INTEGER, got a string"),
    ] {
        std::fs::write(folder.path().join(file), text).unwrap();
        let failure = read_outputs(&launch(), &paths).unwrap_err();
        assert!(failure.message.contains(reason), "{failure:?}");
    }
}

#[test]
fn all_output_parameters_together_are_limited() {
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    std::fs::write(folder.path().join("n"), "5").unwrap();
    std::fs::write(folder.path().join("s"), vec![b'a'; MAX_OUTPUT_BYTES as usize - 1]).unwrap();
    read_outputs(&launch(), &paths).unwrap();
    std::fs::write(folder.path().join("s"), vec![b'a'; MAX_OUTPUT_BYTES as usize]).unwrap();
    let failure = read_outputs(&launch(), &paths).unwrap_err();
    assert!(failure.message.contains("the output parameters have more than 67108864 bytes"), "{failure:?}");
}
