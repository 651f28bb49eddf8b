//! Real pipelines, compiled by the SDK, run to their ends with a launcher that returns what the components declare.

use std::path::PathBuf;

use super::*;

/// The folder with compiled pipelines, if this machine has it: `SLIPWAY_SHARED` names the folder above.
fn shared(folder: &str) -> Option<PathBuf> {
    let path = match std::env::var_os("SLIPWAY_SHARED") {
        Some(root) => PathBuf::from(root).join(folder),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .map(|above| above.join("shared").join(folder))
            .find(|path| path.is_dir())?,
    };
    if !path.is_dir() {
        eprintln!("skipped: {} does not exist", path.display());
        return None;
    }
    Some(path)
}

fn case(name: &str) -> Option<Arc<Plan>> {
    let path = shared("cases/kubeflow")?.join(format!("{name}.yaml"));
    Some(plan_of(&std::fs::read_to_string(path).unwrap()))
}

/// A value for every parameter of the root that has none.
fn parameters(document: &crate::ir::read::Document) -> Value {
    let mut parameters = json!({});
    let inputs = document.spec.root.as_ref().and_then(|root| root.input_definitions.as_ref());
    for (name, input) in inputs.into_iter().flat_map(|inputs| &inputs.parameters) {
        if input.default_value.is_none() && !input.is_optional {
            parameters[name] = match kind(input.parameter_type) {
                Some(Kind::Integer | Kind::Double) => json!(1),
                Some(Kind::Boolean) => json!(true),
                Some(Kind::List) => json!(["1"]),
                Some(Kind::Struct) => json!({"a": 1}),
                _ => json!("text"),
            };
        }
    }
    parameters
}

#[test]
fn every_pipeline_of_the_corpus_reaches_its_end_with_and_without_crashes() {
    let Some(folder) = shared("corpus/kubeflow/pipelines") else { return };
    let mut ends = BTreeMap::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let Ok(document) = read::read(&std::fs::read_to_string(&path).unwrap()) else { continue };
        let parameters = parameters(&document);
        // Some files only hold a component, which has no tasks to run.
        let Ok(plan) = Plan::new(Arc::new(document)) else { continue };
        let plan = Arc::new(plan);
        let run = Simulation::new(Arc::clone(&plan), parameters.clone(), Limits::default(), succeed).finish();
        let mut killed = Simulation::new(plan, parameters, Limits::default(), succeed);
        while killed.end.is_none() {
            killed.kill();
            killed.step(0);
        }
        let states = |run: &Simulation| {
            run.store
                .values()
                .map(|record| (record.path.clone(), record.state, record.outputs.clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(states(&run), states(&killed), "{}", path.display());
        ends.insert(path.file_name().unwrap().to_string_lossy().into_owned(), (run.run_state(), run.message()));
    }
    let failures: Vec<_> = ends.iter().filter(|(_, (state, _))| *state != RunState::Succeeded).collect();
    eprintln!("{} of {} pipelines fail with made-up outputs: {failures:#?}", failures.len(), ends.len());
    assert!(ends.len() >= 60, "only {} pipelines were run", ends.len());
    assert!(failures.len() * 10 <= ends.len(), "too many fail: {failures:#?}");
}

#[test]
fn a_failed_loop_in_an_exit_handler_is_reported_as_failed() {
    let Some(plan) = case("exit-loop-fails") else { return };
    let run = Simulation::new(plan, json!({}), Limits::default(), |launch| {
        if launch.inputs.parameters.get("n") == Some(&json!(2)) { failed("exit code 3") } else { succeed(launch) }
    })
    .finish();
    assert_eq!(run.run_state(), RunState::Failed);
    let status = &run.record("final").inputs.parameters["status"];
    assert_eq!((&status["state"], &status["pipelineTaskName"]), (&json!("FAILED"), &json!("exit-handler-1")));
    assert_eq!(status["error"]["message"], "exit-handler-1/for-loop-2[1]/boom: exit code 3");
    assert_eq!(run.state("final"), Some(TaskState::Succeeded));
    assert_eq!(run.state("exit-handler-1/for-loop-2[2]/boom"), Some(TaskState::Succeeded));
}

#[test]
fn artifacts_are_collected_in_the_order_of_the_items() {
    let Some(plan) = case("collected-order") else { return };
    let mut run = Simulation::new(plan, json!({}), Limits::default(), |launch| {
        let mut outputs = declared_outputs(launch);
        if let Some(made) = outputs.artifacts.get_mut("out") {
            made[0].uri = format!("file:///{}", launch.inputs.parameters["i"]);
        }
        Outcome::Succeeded(outputs)
    });
    // Only two iterations run at the same time; the second ends first.
    run.step(0);
    run.step(0);
    run.step(1);
    let run = run.finish();
    let parts: Vec<_> = run.record("join").inputs.artifacts["parts"].iter().map(|part| part.uri.as_str()).collect();
    assert_eq!(parts, ["file:///3", "file:///1", "file:///2"]);
    assert!(run.record("").outputs.parameters.contains_key("Output"));
}

#[test]
fn numbers_arrive_as_they_were_given() {
    let Some(plan) = case("numbers") else { return };
    let run = Simulation::new(plan, json!({}), Limits::default(), succeed).finish();
    let inputs = &run.record("keep").inputs.parameters;
    assert_eq!(inputs["i"], json!(9_007_199_254_740_991_i64));
    assert_eq!(inputs["d"]["n"]["x"], json!(9_007_199_254_740_992_i64));
    assert_eq!(inputs["l"], json!([1, "1", 1]));
    assert_eq!((&inputs["f"], &inputs["b"]), (&json!(2), &json!(false)));
}

#[test]
fn a_changed_environment_is_not_cached() {
    let Some(folder) = shared("cases/kubeflow") else { return };
    let text = std::fs::read_to_string(folder.join("cache-env.yaml")).unwrap();
    let fingerprint = |text: &str| {
        let run = Simulation::new(plan_of(text), json!({}), Limits::default(), succeed).finish();
        run.record("env-mode").fingerprint.clone().unwrap()
    };
    assert_eq!(fingerprint(&text), fingerprint(&text));
    assert_ne!(fingerprint(&text), fingerprint(&text.replace("value: train", "value: test")));
}
