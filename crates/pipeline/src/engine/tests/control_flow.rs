//! Order, conditions, loops, exit tasks, outputs of graphs, cancellation, and retries of runs.

use super::*;

fn simulate(plan: Arc<Plan>, execute: impl FnMut(&Launch) -> Outcome + 'static) -> Simulation {
    Simulation::new(plan, json!({}), Limits::default(), execute).finish()
}

fn fails_at(path: &'static str) -> impl FnMut(&Launch) -> Outcome {
    move |launch| if launch.path.0 == path { failed("broken") } else { output("1") }
}

#[test]
fn a_failure_skips_what_follows_and_lets_the_rest_go_on() {
    let root = dag(json!({
        "a": task("step", json!({})),
        "b": task("step", json!({"dependentTasks": ["a"]})),
        "c": task("step", json!({"dependentTasks": ["b"]})),
        "other": task("step", json!({})),
        "other-2": task("step", json!({"inputs": {"parameters": {"x": {"taskOutputParameter": {"producerTask": "other", "outputParameterKey": "Output"}}}}})),
    }));
    let run = simulate(pipeline(root, json!({})), fails_at("a"));
    assert_eq!(run.run_state(), RunState::Failed);
    assert_eq!(run.message(), "a: broken");
    assert_eq!((run.state("b"), run.state("c")), (Some(TaskState::Skipped), Some(TaskState::Skipped)));
    assert_eq!(run.state("other-2"), Some(TaskState::Succeeded));
    assert_eq!(run.record("other-2").inputs.parameters["x"], "1");
}

#[test]
fn a_false_condition_skips_the_task_and_what_follows_and_the_run_succeeds() {
    let pick = json!({"parameters": {"x": {"runtimeValue": {"constant": "no"}}}});
    let root = dag(json!({
        "if": task("branch", json!({"inputs": pick, "triggerPolicy": {"condition": "inputs.parameter_values['x'] == 'yes'"}})),
        "after": task("step", json!({"dependentTasks": ["if"]})),
        "step": task("step", json!({})),
    }));
    let mut branch = dag(json!({"inner": task("step", json!({}))}));
    branch["inputDefinitions"] = json!({"parameters": {"x": {"parameterType": "STRING"}}});
    let run = simulate(pipeline(root, json!({"branch": branch})), succeed);
    assert_eq!(run.run_state(), RunState::Succeeded);
    assert_eq!((run.state("if"), run.state("after")), (Some(TaskState::Skipped), Some(TaskState::Skipped)));
    assert_eq!(run.state("if/inner"), None);
    assert_eq!(run.launched(), ["step"]);
}

fn exit_handler(body: Value) -> Arc<Plan> {
    let root = dag(json!({
        "handler": task("body", json!({})),
        "exit": task("step", json!({
            "dependentTasks": ["handler"],
            "inputs": {"parameters": {"status": {"taskFinalStatus": {"producerTask": "handler"}}}},
            "triggerPolicy": {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"},
        })),
    }));
    pipeline(root, json!({"body": dag(body)}))
}

#[test]
fn an_exit_task_gets_the_final_status_and_does_not_change_the_state_of_the_run() {
    let body = json!({"a": task("step", json!({})), "b": task("step", json!({"dependentTasks": ["a"]}))});
    let run = simulate(exit_handler(body.clone()), fails_at("handler/a"));
    assert_eq!(run.run_state(), RunState::Failed);
    let status = &run.record("exit").inputs;
    // The inputs of the record in the store stay; only the machine forgets them.
    assert_eq!(
        status.parameters["status"],
        json!({
            "state": "FAILED",
            "error": {"code": 2, "message": "handler/a: broken"},
            "pipelineJobResourceName": "run-1-name",
            "pipelineTaskName": "handler",
        })
    );
    assert_eq!(run.state("exit"), Some(TaskState::Succeeded));

    let run = simulate(exit_handler(body), fails_at("exit"));
    assert_eq!(run.run_state(), RunState::Succeeded);
    assert_eq!(run.record("exit").inputs.parameters["status"]["state"], "SUCCEEDED");
    assert_eq!(run.record("exit").inputs.parameters["status"]["error"], json!({}));
    assert_eq!(run.state("exit"), Some(TaskState::Failed));
}

#[test]
fn canceling_stops_everything_and_then_runs_exit_tasks() {
    let body = json!({"a": task("step", json!({})), "b": task("step", json!({"dependentTasks": ["a"]}))});
    let mut run = Simulation::new(exit_handler(body), json!({}), Limits::default(), succeed);
    run.send(Event::Cancel);
    assert!(run.stopped.contains(&(TaskPath("handler/a".to_owned()), 1)));
    assert!(run.end.is_none());
    // The kill comes while the attempt is being stopped.
    run.kill();
    run.send(Event::Cancel);
    let run = run.finish();
    assert_eq!(run.run_state(), RunState::Canceled);
    assert_eq!(
        (run.state("handler/a"), run.state("handler/b")),
        (Some(TaskState::Canceled), Some(TaskState::Canceled))
    );
    assert_eq!(run.state("exit"), Some(TaskState::Succeeded));
    assert_eq!(run.record("exit").inputs.parameters["status"]["state"], "CANCELLED");
}

#[test]
fn canceling_everything_stops_exit_tasks_too() {
    let body = json!({"a": task("step", json!({}))});
    let mut run = Simulation::new(exit_handler(body), json!({}), Limits::default(), succeed);
    run.step(0);
    assert_eq!(run.state("exit"), Some(TaskState::Running));
    run.send(Event::Cancel);
    assert!(run.stopped.is_empty());
    run.send(Event::CancelEverything);
    assert!(run.stopped.contains(&(TaskPath("exit".to_owned()), 1)));
    assert_eq!(run.finish().run_state(), RunState::Canceled);
}

/// A loop over `items` whose body is one step, and a step after it.
fn looped(items: Value, fields: Value) -> Arc<Plan> {
    let mut each = task("each", fields);
    each["parameterIterator"] = json!({"itemInput": "item", "items": {"raw": items.to_string()}});
    let root = dag(json!({
        "loop": each,
        "after": task("step", json!({
            "dependentTasks": ["loop"],
            "inputs": {"parameters": {"x": {"taskOutputParameter": {"producerTask": "loop", "outputParameterKey": "out"}}}},
        })),
    }));
    let mut each = dag(json!({
        "step": task("step", json!({"inputs": {"parameters": {"x": {"componentInputParameter": "item"}}}})),
    }));
    each["dag"]["outputs"] = json!({"parameters": {"out": {"valueFromParameter": {"producerSubtask": "step", "outputParameterKey": "Output"}}}});
    each["inputDefinitions"] = json!({"parameters": {"item": {"parameterType": "NUMBER_INTEGER"}}});
    each["outputDefinitions"] = json!({"parameters": {"out": {"parameterType": "LIST"}}});
    pipeline(root, json!({"each": each}))
}

fn echo(launch: &Launch) -> Outcome {
    output(launch.inputs.parameters.get("x").cloned().unwrap_or_default())
}

#[test]
fn outputs_of_a_loop_are_collected_in_the_order_of_its_items() {
    let mut run = Simulation::new(looped(json!([3, 1, 2]), json!({})), json!({}), Limits::default(), echo);
    assert_eq!(run.pending.len(), 3);
    // The last iteration ends first.
    run.step(2);
    run.step(1);
    let run = run.finish();
    assert_eq!(run.record("loop").outputs.parameters["out"], json!(["3", "1", "2"]));
    assert_eq!(run.record("after").inputs.parameters["x"], json!(r#"["3","1","2"]"#));
    assert_eq!(run.record("loop").iterations, Some(3));
    assert_eq!(run.record("loop[1]").iteration, Some(1));
}

#[test]
fn an_empty_loop_succeeds_and_what_is_after_it_runs() {
    let run = simulate(looped(json!([]), json!({})), echo);
    assert_eq!(run.run_state(), RunState::Succeeded);
    assert_eq!(run.record("after").inputs.parameters["x"], json!("[]"));
}

#[test]
fn the_parallelism_of_a_loop_and_of_a_run_is_limited() {
    let fields = json!({"iteratorPolicy": {"parallelismLimit": 2}});
    let mut run = Simulation::new(looped(json!([1, 2, 3, 4]), fields), json!({}), Limits::default(), echo);
    while run.pending.len() == 2 {
        assert!(run.state("loop[3]").is_none() || run.launches.len() >= 2);
        run.step(0);
    }
    assert_eq!(run.finish().run_state(), RunState::Succeeded);

    let limits = Limits { max_parallel_tasks: 3, ..Limits::default() };
    let mut run = Simulation::new(looped(json!([1, 2, 3, 4, 5]), json!({})), json!({}), limits, echo);
    assert_eq!(run.pending.len(), 3);
    assert_eq!(run.state("loop[4]/step"), Some(TaskState::Pending));
    run.step(0);
    assert_eq!(run.pending.len(), 3);
    assert_eq!(run.finish().run_state(), RunState::Succeeded);
}

#[test]
fn a_failing_iteration_lets_the_others_end_and_names_itself() {
    let run = simulate(looped(json!([1, 2, 3]), json!({})), fails_at("loop[1]/step"));
    assert_eq!(run.run_state(), RunState::Failed);
    assert_eq!(run.message(), "loop[1]/step: broken");
    assert_eq!(run.state("loop[2]"), Some(TaskState::Succeeded));
    assert_eq!(run.state("after"), Some(TaskState::Skipped));
}

#[test]
fn collecting_from_a_skipped_branch_is_an_error_with_a_hint() {
    let mut each = task("each", json!({}));
    each["parameterIterator"] = json!({"itemInput": "item", "items": {"raw": "[1, 2]"}});
    let mut body = dag(json!({
        "maybe": task("step", json!({
            "inputs": {"parameters": {"x": {"componentInputParameter": "item"}}},
            "triggerPolicy": {"condition": "inputs.parameter_values['x'] == '1'"},
        })),
    }));
    body["dag"]["outputs"] = json!({"parameters": {"out": {"valueFromParameter": {"producerSubtask": "maybe", "outputParameterKey": "Output"}}}});
    body["inputDefinitions"] = json!({"parameters": {"item": {"parameterType": "NUMBER_INTEGER"}}});
    body["outputDefinitions"] = json!({"parameters": {"out": {"parameterType": "LIST"}}});
    let run = simulate(pipeline(dag(json!({"loop": each})), json!({"each": body})), echo);
    assert_eq!(run.run_state(), RunState::Failed);
    assert!(run.message().contains("loop[1]") && run.message().contains("dsl.OneOf"), "{}", run.message());
}

#[test]
fn a_retry_of_a_run_keeps_what_succeeded_and_heals_the_graphs_around_it() {
    let mut run = simulate(looped(json!([1, 2, 3]), json!({})), fails_at("loop[1]/step"));
    run.retry(echo);
    assert_eq!(run.state("loop"), Some(TaskState::Running));
    assert_eq!(run.state("after"), Some(TaskState::Pending));
    assert_eq!(run.record("loop[1]/step").attempt, 2);
    // The new life of the run survives a crash as well.
    run.kill();
    let run = run.finish();
    assert_eq!(run.run_state(), RunState::Succeeded);
    assert_eq!(run.launched(), ["loop[1]/step", "after"]);
    assert_eq!(run.state("loop[1]"), Some(TaskState::Succeeded));
    assert_eq!(run.record("loop").outputs.parameters["out"], json!(["1", "2", "1"]));
    assert_eq!(run.record("after").failure, None);
}

#[test]
fn a_retry_of_a_run_repeats_exit_tasks_only_behind_what_is_repeated() {
    let body = json!({"a": task("step", json!({}))});
    let mut run = simulate(exit_handler(body), fails_at("handler/a"));
    run.retry(succeed);
    let run = run.finish();
    assert_eq!(run.launched(), ["handler/a", "exit"]);
    assert_eq!(run.record("exit").attempt, 2);
    assert_eq!(run.record("exit").inputs.parameters["status"]["state"], "SUCCEEDED");
}

#[test]
fn optional_inputs_take_their_default_or_pass_null_through_nested_graphs() {
    let inner = json!({"parameters": {
        "none": {"parameterType": "STRING", "isOptional": true},
        "some": {"parameterType": "STRING", "isOptional": true, "defaultValue": "default"},
    }});
    let mut middle = dag(json!({
        "none": task("step", json!({"inputs": {"parameters": {"x": {"componentInputParameter": "none"}}}})),
        "some": task("step", json!({"inputs": {"parameters": {"x": {"componentInputParameter": "some"}}}})),
    }));
    middle["inputDefinitions"] = inner.clone();
    let mut outer = dag(json!({
        "middle": task("middle", json!({"inputs": {"parameters": {"none": {"componentInputParameter": "none"}}}})),
    }));
    outer["inputDefinitions"] = inner;
    let root = dag(json!({"outer": task("outer", json!({}))}));
    let run = simulate(pipeline(root, json!({"middle": middle, "outer": outer})), succeed);
    assert_eq!(run.run_state(), RunState::Succeeded, "{}", run.message());
    assert_eq!(run.record("outer").inputs.parameters["none"], Value::Null);
    assert!(!run.record("outer/middle/none").inputs.parameters.contains_key("x"));
    assert_eq!(run.record("outer/middle/some").inputs.parameters["x"], "default");
}

#[test]
fn circles_and_components_in_themselves_are_refused() {
    let plan = |root: Value, components: Value| {
        let document = read::read_json(specification(root, components));
        document.and_then(|document| Plan::new(Arc::new(document))).map(|_| ()).unwrap_err().to_string()
    };
    let circle = dag(json!({
        "a": task("step", json!({"dependentTasks": ["b"]})),
        "b": task("step", json!({"dependentTasks": ["a"]})),
    }));
    assert!(!plan(circle, json!({})).is_empty());
    let inside = dag(json!({"again": task("nested", json!({}))}));
    assert!(!plan(inside.clone(), json!({"nested": inside})).is_empty());
}
