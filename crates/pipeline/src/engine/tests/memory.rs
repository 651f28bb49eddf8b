//! Pipelines of a few lines that ask for any amount of memory fail; the server goes on.

use super::*;

const LIMIT: &str = "the inputs and outputs of the tasks of the run have more than";

fn text_input() -> Value {
    json!({"parameters": {"x": {"parameterType": "STRING"}, "y": {"parameterType": "STRING", "isOptional": true}}})
}

fn simulate(plan: Arc<Plan>, execute: impl FnMut(&Launch) -> Outcome + 'static) -> Simulation {
    Simulation::new(plan, json!({}), Limits::default(), execute).finish()
}

#[test]
fn constants_that_double_in_each_nested_graph_fail_the_run() {
    let twice = "{{$.inputs.parameters['y']}}{{$.inputs.parameters['y']}}";
    let mut components = json!({});
    for depth in 0..35 {
        let inputs =
            json!({"parameters": {"y": {"componentInputParameter": "x"}, "x": {"runtimeValue": {"constant": twice}}}});
        let mut graph = dag(json!({"t": task(&format!("c{}", depth + 1), json!({"inputs": inputs}))}));
        graph["inputDefinitions"] = text_input();
        components[format!("c{depth}")] = graph;
    }
    components["c35"] = json!({"executorLabel": "step", "inputDefinitions": text_input()});
    let first = json!({"inputs": {"parameters": {"x": {"runtimeValue": {"constant": "a".repeat(100)}}}}});
    let run = simulate(pipeline(dag(json!({"t": task("c0", first)})), components), succeed);
    assert_eq!(run.run_state(), RunState::Failed);
    assert!(run.message().contains("the texts that replace placeholders have more than"), "{}", run.message());
}

/// A task that outputs a text of a mebibyte, and one with the text as input.
fn after_long_text(mut fields: Value, components: Value) -> Arc<Plan> {
    fields["inputs"] =
        json!({"parameters": {"x": {"taskOutputParameter": {"producerTask": "long", "outputParameterKey": "Output"}}}});
    pipeline(dag(json!({"long": task("step", json!({})), "next": task("many", fields)})), components)
}

fn long_text(launch: &Launch) -> Outcome {
    if launch.component.output_definitions.is_some() { output("a".repeat(1 << 20)) } else { succeed(launch) }
}

#[test]
fn a_loop_that_gives_a_long_text_to_each_of_many_iterations_fails_the_run() {
    let many = || {
        let mut component = json!({"executorLabel": "step", "inputDefinitions": text_input()});
        component["inputDefinitions"]["parameters"]["i"] = json!({"parameterType": "NUMBER_INTEGER"});
        json!({"many": component})
    };
    let looped = |items: usize| json!({"parameterIterator": {"itemInput": "i", "items": {"raw": json!(vec![1; items]).to_string()}}});
    let run = simulate(after_long_text(looped(100), many()), long_text);
    assert_eq!(run.run_state(), RunState::Succeeded, "{}", run.message());
    let run = simulate(after_long_text(looped(1_000), many()), long_text);
    assert_eq!(run.run_state(), RunState::Failed);
    assert!(run.message().contains(LIMIT), "{}", run.message());

    // Iterations one after the other need the memory of one.
    let mut serial = looped(1_000);
    serial["iteratorPolicy"] = json!({"parallelismLimit": 1});
    let run = simulate(after_long_text(serial, many()), long_text);
    assert_eq!(run.run_state(), RunState::Succeeded, "{}", run.message());
}

#[test]
fn inputs_and_outputs_that_repeat_a_long_text_fail_the_run() {
    let names: Vec<String> = (0..200).map(|number| format!("p{number}")).collect();
    let declared: Value = names
        .iter()
        .map(|name| (name.clone(), json!({"parameterType": "STRING"})))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let inputs: Value = names
        .iter()
        .map(|name| (name.clone(), json!({"componentInputParameter": "x"})))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let mut many = dag(json!({"t": task("wide", json!({"inputs": {"parameters": inputs}}))}));
    many["inputDefinitions"] = text_input();
    let wide = json!({"executorLabel": "step", "inputDefinitions": {"parameters": declared}});
    let run = simulate(after_long_text(json!({}), json!({"many": many, "wide": wide})), long_text);
    assert!(run.message().contains(LIMIT), "{}", run.message());

    let outputs: Value = names
        .iter()
        .map(|name| {
            (name.clone(), json!({"valueFromParameter": {"producerSubtask": "t", "outputParameterKey": "Output"}}))
        })
        .collect::<serde_json::Map<_, _>>()
        .into();
    let mut many = dag(json!({"t": task("step", json!({}))}));
    many["dag"]["outputs"] = json!({"parameters": outputs});
    many["inputDefinitions"] = text_input();
    many["outputDefinitions"] = json!({"parameters": declared});
    let run = simulate(after_long_text(json!({}), json!({"many": many})), long_text);
    assert!(run.message().contains(LIMIT), "{}", run.message());
}

#[test]
fn memory_of_tasks_that_have_ended_is_free_again() {
    let tasks: Value = (0..200)
        .map(|number| {
            let mut inner =
                json!({"inputs": {"parameters": {"x": {"runtimeValue": {"constant": "a".repeat(10_000)}}}}});
            if number > 0 {
                inner["dependentTasks"] = json!([format!("t{}", number - 1)]);
            }
            (format!("t{number}"), task("step", inner))
        })
        .collect::<serde_json::Map<_, _>>()
        .into();
    let run = simulate(pipeline(dag(tasks), json!({})), |_| output("short"));
    assert_eq!(run.run_state(), RunState::Succeeded);
    assert!(run.machine.live_bytes < 200 * 1_000, "{}", run.machine.live_bytes);
}

#[test]
fn outputs_that_could_not_be_read_again_fail_their_task() {
    let deep = (0..=crate::value::MAX_DEPTH).fold(json!(1), |inner, _| json!([inner]));
    let run = simulate(pipeline(dag(json!({"t": task("step", json!({}))})), json!({})), move |_| output(deep.clone()));
    assert_eq!(run.run_state(), RunState::Failed);
    assert!(run.message().contains("lists and objects inside each other"), "{}", run.message());
}

#[test]
fn conditions_over_long_lists_fail_their_task() {
    let list = "inputs.parameter_values['x']";
    let condition = format!("{list}.all(a, {list}.all(b, a + b < 3))");
    let component =
        json!({"executorLabel": "step", "inputDefinitions": {"parameters": {"x": {"parameterType": "LIST"}}}});
    let fields = json!({
        "inputs": {"parameters": {"x": {"runtimeValue": {"constant": vec![1; 20_000]}}}},
        "triggerPolicy": {"condition": condition},
    });
    let run = simulate(pipeline(dag(json!({"t": task("listed", fields)})), json!({"listed": component})), succeed);
    assert!(run.message().contains("the expression would take too long"), "{}", run.message());
}
