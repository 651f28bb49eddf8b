//! The cost of an event does not depend on the size of the run.

use std::time::Instant;

use super::*;

/// Runs to the end, and returns the microseconds per event without those of the launcher and the store.
fn cost(plan: &Arc<Plan>) -> (f64, Simulation) {
    let mut run = Simulation::new(
        Arc::clone(plan),
        json!({}),
        Limits { max_parallel_tasks: 100_000, ..Limits::default() },
        succeed,
    );
    let mut events = 0_u32;
    let mut spent = 0.0;
    while run.end.is_none() {
        let event = run.event(0).unwrap();
        let start = Instant::now();
        let effects = run.apply(event);
        spent += start.elapsed().as_secs_f64();
        events += 1;
        run.perform(effects);
    }
    (spent * 1e6 / f64::from(events), run)
}

#[test]
fn events_of_10_000_tasks_cost_as_much_as_those_of_few() {
    let wide = |count: usize| {
        let mut tasks = json!({"start": task("step", json!({}))});
        for index in 0..count {
            tasks[format!("t{index}")] = task("step", json!({"dependentTasks": ["start"]}));
        }
        pipeline(dag(tasks), json!({}))
    };
    let (few, _) = cost(&wide(100));
    let (many, run) = cost(&wide(10_000));
    eprintln!("{few:.1} us per event of 100 tasks, {many:.1} us of 10,000");
    assert_eq!(run.store.len(), 10_002);
    // The first event starts all tasks, which each task's share of is in both averages. A cost that grows with the run would be 100 times.
    assert!(many < few * 20.0 + 50.0, "{few:.1} us became {many:.1} us");
}

#[test]
fn events_of_a_loop_of_1_000_iterations_are_cheap() {
    let mut each = task("each", json!({"iteratorPolicy": {"parallelismLimit": 50}}));
    let items: Vec<usize> = (0..1000).collect();
    each["parameterIterator"] = json!({"itemInput": "item", "items": {"raw": json!(items).to_string()}});
    let mut body = dag(json!({
        "a": task("step", json!({"inputs": {"parameters": {"x": {"componentInputParameter": "item"}}}})),
        "b": task("step", json!({"dependentTasks": ["a"]})),
    }));
    body["inputDefinitions"] = json!({"parameters": {"item": {"parameterType": "NUMBER_INTEGER"}}});
    let (cost, run) = cost(&pipeline(dag(json!({"loop": each})), json!({"each": body})));
    eprintln!("{cost:.1} us per event of a loop");
    assert_eq!((run.run_state(), run.store.len()), (RunState::Succeeded, 3002));
    assert!(cost < 1000.0);
}
