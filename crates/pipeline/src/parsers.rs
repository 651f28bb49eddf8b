//! Property tests of this crate's parsers; see `slipway_mutations`.

use serde_json::json;
use slipway_mutations::feed;

use crate::condition::{Condition, budget, select};
use crate::graph::Graphs;
use crate::ir;
use crate::model::{Inputs, RunInfo};
use crate::placeholder::resolve_constant;

const PIPELINE: &str = "pipelineInfo: {name: p}\nschemaVersion: 2.1.0\ndeploymentSpec:\n  executors:\n    e: {container: {image: python, command: [a, '{{$}}'], resources: {cpuLimit: 1.5}}}\ncomponents:\n  c:\n    executorLabel: e\n    inputDefinitions: {parameters: {x: {parameterType: NUMBER_INTEGER, defaultValue: 2.0}}}\n    outputDefinitions: {parameters: {o: {parameterType: LIST}}}\nroot:\n  dag:\n    tasks:\n      a: {componentRef: {name: c}, retryPolicy: {maxRetryCount: 2, backoffDuration: 1.5s, backoffFactor: 2}}\n      b:\n        componentRef: {name: c}\n        dependentTasks: [a]\n        triggerPolicy: {condition: \"inputs.parameter_values['x'] == 'a'\"}\n        parameterIterator: {itemInput: x, items: {raw: '[1, 2]'}}\n        inputs: {parameters: {pipelinechannel--y: {taskOutputParameter: {producerTask: a, outputParameterKey: o}}}}\n---\nplatforms:\n  kubernetes:\n    deploymentSpec:\n      executors:\n        e: {secretAsEnv: [{secretName: s, keyToEnv: [{secretKey: k, envVar: K}]}], activeDeadlineSeconds: '5'}\n";

#[test]
fn pipelines_never_panic() {
    let json = ir::to_json(&ir::read(PIPELINE).unwrap()).to_string();
    feed(&[PIPELINE, &json], |text| {
        if let Ok(document) = ir::read(text) {
            drop(Graphs::new(&document));
            // What was read is also read from its canonical form.
            let json = ir::to_json(&document);
            assert_eq!(ir::read_json(json).unwrap(), document);
        }
    });
}

#[test]
fn expressions_never_panic() {
    let mut inputs = Inputs::default();
    inputs.parameters.insert("x".into(), json!("a"));
    inputs.parameters.insert("n".into(), json!(1.5));
    let valid = [
        "inputs.parameter_values['x'] == 'a' && int(inputs.parameter_values['n']) > 1",
        "!(inputs.parameter_values['n'] in [1, 2.5]) || has(inputs.parameter_values.x)",
        "parseJson(string_value)[\"key\"]",
        "[1, 2].all(x, x * 2 > 1 ? true : false)",
    ];
    feed(&valid, |text| {
        if let Ok(condition) = Condition::parse(text) {
            drop(condition.parameters());
            drop(condition.evaluate(&inputs, &budget()));
        }
        drop(select(text, &json!({"key": [1, null]}), &budget()));
    });
}

#[test]
fn placeholders_never_panic() {
    let mut inputs = Inputs::default();
    inputs.parameters.insert("x".into(), json!("{{$.pipeline_job_uuid}}"));
    feed(&["a {{$.inputs.parameters['x']}} {{$.pipeline_job_name}} {{$}} b"], |text| {
        drop(resolve_constant(&json!([text]), &inputs, &RunInfo::default(), "t", "1"));
    });
}
