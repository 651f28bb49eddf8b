//! Attempts, cache, and imports.

use std::time::Duration;

use super::*;

fn retried(policy: Value) -> Arc<Plan> {
    pipeline(dag(json!({"a": task("step", json!({"retryPolicy": policy}))})), json!({}))
}

#[test]
fn failed_attempts_are_repeated_with_a_growing_delay() {
    let policy = json!({"maxRetryCount": 3, "backoffDuration": "10s", "backoffFactor": 2.0});
    let mut run = Simulation::new(retried(policy), json!({}), Limits::default(), |launch| {
        if launch.attempt < 4 { failed("broken") } else { output("1") }
    });
    let mut waits = Vec::new();
    while run.end.is_none() {
        if let Some(Effect::WakeAt(at)) = run.pending.front() {
            waits.push(at - run.now);
            assert_eq!(run.record("a").next_attempt_at, Some(*at));
        }
        run.step(0);
    }
    assert_eq!(waits, [10_000, 20_000, 40_000]);
    assert_eq!((run.run_state(), run.record("a").attempt), (RunState::Succeeded, 4));
}

#[test]
fn attempts_end_with_the_policy_its_time_and_permanent_failures() {
    let attempts = |policy: Value, is_permanent: bool| {
        let run = Simulation::new(retried(policy), json!({}), Limits::default(), move |_| {
            Outcome::Failed(Failure { message: "broken".to_owned(), exit_code: None, is_permanent })
        })
        .finish();
        assert_eq!(run.run_state(), RunState::Failed);
        run.record("a").attempt
    };
    assert_eq!(attempts(json!({"maxRetryCount": 2}), false), 3);
    assert_eq!(attempts(json!({"maxRetryCount": 2}), true), 1);
    assert_eq!(
        attempts(
            json!({"maxRetryCount": 9, "backoffDuration": "10s", "backoffFactor": 1.0, "backoffMaxDuration": "25s"}),
            false
        ),
        3
    );
}

#[test]
fn the_policy_of_a_graph_holds_for_its_tasks() {
    let root = dag(json!({"inner": task("inner", json!({"retryPolicy": {"maxRetryCount": 1}}))}));
    let plan = pipeline(root, json!({"inner": dag(json!({"a": task("step", json!({}))}))}));
    let run = Simulation::new(plan, json!({}), Limits::default(), |_| failed("broken")).finish();
    assert_eq!(run.record("inner/a").attempt, 2);
}

fn cached(fields: Value) -> Arc<Plan> {
    pipeline(dag(json!({"a": task("step", fields)})), json!({}))
}

#[test]
fn equal_executions_use_the_cache_unless_it_is_off() {
    let on = || json!({"cachingOptions": {"enableCache": true}, "inputs": {"parameters": {"x": {"runtimeValue": {"constant": "1"}}}}});
    let first = Simulation::new(cached(on()), json!({}), Limits::default(), succeed).finish();
    assert_eq!(first.launched(), ["a"]);
    let again = |fields: Value, limits: Limits| {
        let mut run = Simulation::new(cached(fields), json!({}), limits, succeed);
        run.cache.clone_from(&first.cache);
        run.finish()
    };
    let run = again(on(), Limits::default());
    assert_eq!((run.run_state(), run.state("a")), (RunState::Succeeded, Some(TaskState::Cached)));
    assert_eq!(run.record("a").outputs, first.record("a").outputs);
    assert!(run.launches.is_empty());
    assert_eq!(again(on(), Limits { use_cache: false, ..Limits::default() }).launched(), ["a"]);
    assert_eq!(
        again(on(), Limits { max_cache_staleness: Some(Duration::ZERO), ..Limits::default() }).launched(),
        ["a"]
    );
    assert_eq!(again(json!({}), Limits::default()).launched(), ["a"]);
    let mut other = on();
    other["inputs"]["parameters"]["x"]["runtimeValue"]["constant"] = json!("2");
    assert_eq!(again(other, Limits::default()).launched(), ["a"]);
}

#[test]
fn a_chosen_key_makes_different_inputs_equal() {
    let with = |x: &str| {
        cached(json!({
            "cachingOptions": {"enableCache": true, "cacheKey": "mine"},
            "inputs": {"parameters": {"x": {"runtimeValue": {"constant": x}}}},
        }))
    };
    let first = Simulation::new(with("1"), json!({}), Limits::default(), succeed).finish();
    let mut second = Simulation::new(with("2"), json!({}), Limits::default(), succeed);
    second.cache.clone_from(&first.cache);
    assert_eq!(second.finish().state("a"), Some(TaskState::Cached));
}

#[test]
fn importers_work_in_loops_with_uris_from_tasks_and_placeholders_in_metadata() {
    let mut each = task(
        "each",
        json!({
            "inputs": {"parameters": {"uri": {"taskOutputParameter": {"producerTask": "make", "outputParameterKey": "Output"}}}},
        }),
    );
    each["parameterIterator"] = json!({"itemInput": "item", "items": {"raw": "[\"a\", \"b\"]"}});
    let mut body = dag(json!({
        "import": task("importer", json!({"inputs": {"parameters": {
            "uri": {"componentInputParameter": "uri"},
            "item": {"componentInputParameter": "item"},
        }}})),
    }));
    let text = json!({"parameterType": "STRING"});
    body["inputDefinitions"] = json!({"parameters": {"uri": text, "item": text}});
    let importer = json!({
        "executorLabel": "importer",
        "inputDefinitions": {"parameters": {"uri": text, "item": text}},
        "outputDefinitions": {"artifacts": {"artifact": {"artifactType": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"}}}},
    });
    let root = dag(json!({"make": task("step", json!({})), "loop": each}));
    let mut specification = specification(root, json!({"each": body, "importer": importer}));
    specification["deploymentSpec"]["executors"]["importer"] = json!({"importer": {
        "artifactUri": {"runtimeParameter": "uri"},
        "typeSchema": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"},
        "metadata": {"of": {"names": ["{{$.inputs.parameters['item']}}"]}},
        "reimport": true,
    }});
    let plan = Arc::new(Plan::new(Arc::new(read::read_json(specification).unwrap())).unwrap());
    let run = Simulation::new(plan, json!({}), Limits::default(), |_| output("s3://data")).finish();
    assert_eq!(run.run_state(), RunState::Succeeded, "{}", run.message());
    assert_eq!(run.imports.len(), 2);
    assert_eq!(run.imports[1].uri, "s3://data");
    assert!(run.imports[1].reimport);
    assert_eq!(run.imports[1].metadata["of"]["names"][0], "b");
    assert_eq!(run.record("loop[1]/import").outputs.artifacts["artifact"][0].schema_title, "system.Dataset");
}
