//! Random pipelines with random outcomes, killed at every step: the end is the one without a kill.

use std::hash::{DefaultHasher, Hash, Hasher};

use proptest::prelude::*;
use serde_json::Map;

use super::*;

/// A task of a random graph.
#[derive(Debug, Clone)]
enum Shape {
    Step { retries: u32, use_cache: bool },
    Nested(Vec<Shape>),
    Loop { items: usize, parallelism: usize, body: Vec<Shape> },
    If { is_true: bool, body: Vec<Shape> },
    Exit(Vec<Shape>),
}

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let step = (0..3_u32, any::<bool>()).prop_map(|(retries, use_cache)| Shape::Step { retries, use_cache });
    let shape = step.prop_recursive(3, 24, 3, |inner| {
        let body = prop::collection::vec(inner, 1..4);
        prop_oneof![
            body.clone().prop_map(Shape::Nested),
            (0..4_usize, 0..3_usize, body.clone()).prop_map(|(items, parallelism, body)| Shape::Loop {
                items,
                parallelism,
                body
            }),
            (any::<bool>(), body.clone()).prop_map(|(is_true, body)| Shape::If { is_true, body }),
            body.prop_map(Shape::Exit),
        ]
    });
    prop::collection::vec(shape, 1..5)
}

/// The tasks of a graph. Each second one depends on the one before it.
fn tasks(shapes: &[Shape], components: &mut Map<String, Value>) -> Value {
    let mut tasks = json!({});
    for (index, shape) in shapes.iter().enumerate() {
        let name = format!("t{index}");
        let mut component = |body: &[Shape]| {
            let tasks = self::tasks(body, components);
            let name = format!("c{}", components.len());
            let mut component = dag(tasks);
            component["inputDefinitions"] = json!({"parameters": {
                "item": {"parameterType": "STRING", "isOptional": true},
                "pick": {"parameterType": "BOOLEAN", "isOptional": true},
            }});
            components.insert(name.clone(), component);
            name
        };
        let mut fields = match shape {
            Shape::Step { retries, use_cache } => {
                let mut fields = task("step", json!({"cachingOptions": {"enableCache": use_cache}}));
                if *retries > 0 {
                    fields["retryPolicy"] = json!({"maxRetryCount": retries, "backoffDuration": format!("{index}s")});
                }
                fields
            }
            Shape::Nested(body) => task(&component(body), json!({})),
            Shape::Loop { items, parallelism, body } => {
                let items: Vec<usize> = (0..*items).collect();
                task(
                    &component(body),
                    json!({
                        "iteratorPolicy": {"parallelismLimit": parallelism},
                        "parameterIterator": {"itemInput": "item", "items": {"raw": json!(items).to_string()}},
                    }),
                )
            }
            Shape::If { is_true, body } => task(
                &component(body),
                json!({
                    "inputs": {"parameters": {"pick": {"runtimeValue": {"constant": is_true}}}},
                    "triggerPolicy": {"condition": "inputs.parameter_values['pick'] == true"},
                }),
            ),
            Shape::Exit(body) => {
                tasks[format!("{name}-exit")] = task(
                    "step",
                    json!({
                        "dependentTasks": [name],
                        "inputs": {"parameters": {"status": {"taskFinalStatus": {"producerTask": name}}}},
                        "triggerPolicy": {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"},
                    }),
                );
                task(&component(body), json!({}))
            }
        };
        if index % 2 == 1 {
            let before = format!("t{}", index - 1);
            fields["dependentTasks"] = json!([before]);
            if matches!((shape, &shapes[index - 1]), (Shape::Step { .. }, Shape::Step { .. })) {
                let source = json!({"taskOutputParameter": {"producerTask": before, "outputParameterKey": "Output"}});
                fields["inputs"] = json!({"parameters": {"x": source}});
            }
        }
        tasks[name] = fields;
    }
    tasks
}

fn plan(shapes: &[Shape]) -> Arc<Plan> {
    let mut components = Map::new();
    let root = dag(tasks(shapes, &mut components));
    pipeline(root, Value::Object(components))
}

/// An outcome that depends on the attempt only.
fn outcome(seed: u64) -> impl FnMut(&Launch) -> Outcome {
    move |launch| {
        let mut hasher = DefaultHasher::new();
        (seed, &launch.path, launch.attempt).hash(&mut hasher);
        match hasher.finish() % 8 {
            0 => failed("broken"),
            number => output(number.to_string()),
        }
    }
}

type Ends = Vec<(TaskPath, TaskState, u32, Arc<Outputs>)>;

fn ends(run: &Simulation) -> Ends {
    run.store
        .values()
        .map(|record| (record.path.clone(), record.state, record.attempt, Arc::clone(&record.outputs)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_run_ends_the_same_however_often_the_server_is_killed(
        shapes in shapes(), seed: u64, places in 1..4_usize, choices in prop::collection::vec(any::<usize>(), 1..20),
    ) {
        let plan = plan(&shapes);
        let limits = Limits { max_parallel_tasks: places, use_cache: false, ..Limits::default() };
        let calm = Simulation::new(Arc::clone(&plan), json!({}), limits.clone(), outcome(seed)).finish();
        let mut killed = Simulation::new(Arc::clone(&plan), json!({}), limits.clone(), outcome(seed));
        let mut at = 0;
        while killed.end.is_none() {
            let choice = choices[at % choices.len()];
            at += 1;
            prop_assert!(at < 100_000, "the run does not end");
            // Either the records of an event are written and nothing else happens, or not even they.
            killed.kill();
            if choice % 3 == 0 && let Some(event) = killed.event(choice) {
                drop(killed.apply(event));
                killed.kill();
            }
            if killed.end.is_none() {
                killed.step(choice);
            }
        }
        prop_assert_eq!(calm.run_state(), killed.run_state());
        prop_assert_eq!(ends(&calm), ends(&killed));
    }

    #[test]
    fn a_run_that_is_canceled_ends_canceled_however_often_the_server_is_killed(
        shapes in shapes(), seed: u64, when in 0..20_usize, is_killed: bool,
    ) {
        let mut run = Simulation::new(plan(&shapes), json!({}), Limits::default(), outcome(seed));
        for _ in 0..when {
            if run.end.is_none() {
                run.step(when);
            }
        }
        if run.end.is_none() {
            run.send(Event::Cancel);
            while run.end.is_none() {
                if is_killed {
                    run.kill();
                }
                run.step(when);
            }
            prop_assert_eq!(run.run_state(), RunState::Canceled);
        }
        prop_assert!(run.store.values().all(|record| record.state.is_final()));
    }

    #[test]
    fn a_retry_succeeds_when_nothing_fails_any_more(shapes in shapes(), seed: u64, is_killed: bool) {
        let mut run = Simulation::new(plan(&shapes), json!({}), Limits::default(), outcome(seed)).finish();
        let before: BTreeMap<_, _> = run.store.iter().map(|(path, record)| (path.clone(), record.clone())).collect();
        let failed = run.run_state() == RunState::Failed;
        run.retry(succeed);
        while run.end.is_none() {
            if is_killed {
                run.kill();
            }
            run.step(0);
        }
        prop_assert_eq!(run.run_state(), RunState::Succeeded);
        for launch in &run.launches {
            prop_assert!(failed || launch.path.0.contains("-exit"));
            let earlier = before.get(&launch.path).map_or(0, |record| record.attempt);
            prop_assert_eq!(launch.attempt, earlier + 1, "{}", launch.path);
        }
    }
}
