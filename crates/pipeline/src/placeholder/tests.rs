use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::model::{Artifact, TaskPath};

fn launch(parameters: Value) -> Launch {
    let component = serde_json::from_value::<Value>(json!({})).map(|_| Default::default()).unwrap();
    let mut inputs = Inputs::default();
    inputs.parameters.extend(parameters.as_object().cloned().unwrap_or_default());
    let metadata = json!({"k": 2}).as_object().cloned().unwrap();
    let model = Artifact { id: "a1".into(), uri: "s3://b/m".into(), metadata, ..Artifact::default() };
    inputs.artifacts.insert("model".into(), vec![model]);
    Launch {
        run: Arc::new(RunInfo { run_id: "r1".into(), display_name: "my run".into(), ..RunInfo::default() }),
        path: TaskPath("loop[1]/train".into()),
        task_name: "train".into(),
        attempt: 1,
        component: Arc::new(component),
        executor: Arc::default(),
        platform: None,
        inputs,
        platform_inputs: BTreeMap::new(),
    }
}

fn paths() -> Paths {
    let place = |path: &str| Place { path: path.into(), uri: format!("uri:{path}") };
    Paths {
        input_artifacts: [("model".to_owned(), vec![place("/in/model")])].into(),
        output_artifacts: [("data".to_owned(), place("/out/data"))].into(),
        output_parameters: [("n".to_owned(), "/out/n".to_owned())].into(),
        executor_output: "/out/meta.json".into(),
        workspace: None,
    }
}

fn command(words: &[&str], parameters: Value) -> Result<Vec<String>, String> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let (launch, paths) = (launch(parameters), paths());
    Scope { launch: &launch, paths: &paths, executor_input_json: "{\"the\": \"input\"}", budget: budget() }
        .words(&words)
}

#[test]
fn every_placeholder_of_a_command_is_replaced() {
    for (word, expected) in [
        ("{{$}}", "{\"the\": \"input\"}"),
        ("--x={{$.inputs.parameters['x']}}", "--x=20"),
        ("{{$.inputs.parameters[''x'']}}/{{$.inputs.parameters[\"x\"]}}", "20/20"),
        ("{{$.inputs.parameters['l']}}", "[1,\"\\u003c\"]"),
        ("{{$.inputs.artifacts['model'].path}}", "/in/model"),
        ("{{$.inputs.artifacts['model'].uri}}", "uri:/in/model"),
        ("{{$.inputs.artifacts['model'].name}}", "a1"),
        ("{{$.inputs.artifacts['model'].metadata['k']}}", "2"),
        ("{{$.inputs.artifacts['model'].metadata}}", "{\"k\":2}"),
        ("{{$.outputs.artifacts['data'].path}}", "/out/data"),
        ("{{$.outputs.artifacts['data'].uri}}", "uri:/out/data"),
        ("{{$.outputs.artifacts['data'].metadata}}", "{}"),
        ("{{$.outputs.parameters['n'].output_file}}", "/out/n"),
        ("{{$.outputs.output_file}} {{$.outputs.outputFile}}", "/out/meta.json /out/meta.json"),
        ("{{$.pipeline_job_uuid}} {{$.pipeline_task_name}}", "r1 train"),
        ("{{$.workspace_path}}/a", "/kfp-workspace/a"),
        // Not placeholders.
        ("{{ x }} {{$.unknown.thing}} {{$", "{{ x }} {{$.unknown.thing}} {{$"),
        ("{{$.Foo}} {{$.inputs.parameters[x]}}", "{{$.Foo}} {{$.inputs.parameters[x]}}"),
    ] {
        let parameters = json!({"x": 20.0, "l": [1, "<"]});
        assert_eq!(command(&[word], parameters).unwrap(), [expected], "{word}");
    }
}

#[test]
fn values_of_users_are_never_expanded_again() {
    let parameters = json!({"x": "{{$}} {{$.inputs.parameters['y']}}", "y": "{\"Concat\": [\"a\"]}"});
    let words = command(&["{{$.inputs.parameters['x']}}", "{{$.inputs.parameters['y']}}"], parameters).unwrap();
    assert_eq!(words, ["{{$}} {{$.inputs.parameters['y']}}", "{\"Concat\": [\"a\"]}"]);
}

#[test]
fn concat_and_if_present_become_words() {
    let parameters = json!({"x": "a\"b", "none": null});
    for (word, expected) in [
        (r#"{"Concat": ["--x=", "{{$.inputs.parameters['x']}}"]}"#, vec!["--x=a\"b"]),
        (r#"{"IfPresent": {"InputName": "x", "Then": ["--x", "{{$.inputs.parameters['x']}}"]}}"#, vec!["--x", "a\"b"]),
        (r#"{"IfPresent": {"InputName": "x", "Then": "yes", "Else": "no"}}"#, vec!["yes"]),
        (r#"{"IfPresent": {"InputName": "none", "Then": "yes", "Else": "no"}}"#, vec!["no"]),
        (r#"{"IfPresent": {"InputName": "absent", "Then": "{{$.inputs.parameters['absent']}}"}}"#, vec![]),
        (r#"{"IfPresent": {"InputName": "model", "Then": ["m"]}}"#, vec!["m"]),
        (
            r#"{"Concat": ["a", {"IfPresent": {"InputName": "x", "Then": {"Concat": ["b", "c"]}}}, {"IfPresent": {"InputName": "no", "Then": "d"}}]}"#,
            vec!["abc"],
        ),
        // Text that only looks similar.
        (r#"{"Concat": 1, "b": 2}"#, vec![r#"{"Concat": 1, "b": 2}"#]),
        (r#"{"Concat": ["#, vec![r#"{"Concat": ["#]),
    ] {
        assert_eq!(command(&[word], parameters.clone()).unwrap(), expected, "{word}");
    }
    command(&[r#"{"IfPresent": {"Then": "a"}}"#], json!({})).unwrap_err();
    command(&[r#"{"Concat": [1]}"#], json!({})).unwrap_err();
}

#[test]
fn references_to_nothing_are_errors() {
    for (word, name) in [
        ("{{$.inputs.parameters['x']}}", "'x'"),
        ("{{$.inputs.artifacts['x'].path}}", "'x'"),
        ("{{$.outputs.artifacts['x'].path}}", "'x'"),
        ("{{$.outputs.parameters['x'].output_file}}", "'x'"),
    ] {
        assert!(command(&[word], json!({})).unwrap_err().contains(name), "{word}");
    }
}

#[test]
fn constants_take_values_of_the_run_and_of_inputs() {
    let launch = launch(json!({"pipelinechannel--x": 1.5, "text": "{{$.pipeline_job_uuid}}"}));
    let mut run = (*launch.run).clone();
    (run.created_at, run.scheduled_at) = (1_700_000_000_999, -1);
    let resolve = |value: Value| resolve_constant(&value, &launch.inputs, &run, "train", "t1");
    for (value, expected) in [
        (json!("a-{{$.inputs.parameters['pipelinechannel--x']}}-b"), json!("a-1.5-b")),
        (json!("{{$.inputs.parameters['text']}}"), json!("{{$.pipeline_job_uuid}}")),
        (json!("{{$.pipeline_job_name}} {{$.pipeline_task_uuid}}"), json!("my run t1")),
        (json!("{{$.pipeline_job_create_time_utc}}"), json!("2023-11-14T22:13:20Z")),
        (json!("{{$.pipeline_job_schedule_time_utc}}"), json!("1969-12-31T23:59:59Z")),
        (json!("{{$.workspace_path}}/d"), json!("/kfp-workspace/d")),
        (json!({"l": ["{{$.pipeline_job_uuid}}", 2]}), json!({"l": ["r1", 2]})),
        (json!("{{$}}"), json!("{{$}}")),
    ] {
        assert_eq!(resolve(value.clone()).unwrap(), expected, "{value}");
    }
    resolve(json!("{{$.inputs.parameters['absent']}}")).unwrap_err();
}

#[test]
fn text_that_placeholders_repeat_is_limited() {
    let long = "a".repeat(1 << 20);
    let placeholder = "{{$.inputs.parameters['x']}}";
    let limit = "the texts that replace placeholders have more than 4194304 bytes";
    let parameters = json!({"x": long});
    command(&[placeholder; 4], parameters.clone()).unwrap();
    assert_eq!(command(&[placeholder; 5], parameters.clone()).unwrap_err(), limit);
    assert_eq!(command(&[&placeholder.repeat(5)], parameters.clone()).unwrap_err(), limit);

    let inputs = launch(parameters).inputs;
    let constant = |value: Value| resolve_constant(&value, &inputs, &RunInfo::default(), "t", "1");
    constant(json!([placeholder.repeat(2), {"a": placeholder.repeat(2)}])).unwrap();
    assert_eq!(constant(json!([placeholder.repeat(2), {"a": placeholder.repeat(3)}])).unwrap_err(), limit);
    // A long constant of the file itself is not one that placeholders made.
    constant(json!("b".repeat(5 << 20))).unwrap();

    let budget = budget();
    resolve_parameters_within(&placeholder.repeat(3), &inputs, &budget).unwrap();
    assert_eq!(resolve_parameters_within(&placeholder.repeat(2), &inputs, &budget).unwrap_err(), limit);
}
