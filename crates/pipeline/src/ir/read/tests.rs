use super::*;
use crate::ir::to_json;

const PIPELINE: &str = "\
pipelineInfo:
  name: p
schemaVersion: 2.1.0
deploymentSpec:
  executors:
    e:
      container:
        image: python
components:
  c:
    executorLabel: e
    inputDefinitions:
      parameters:
        x: {parameterType: NUMBER_INTEGER, isOptional: true}
        y: {parameterType: STRING, isOptional: true, literals: [a, b]}
    outputDefinitions:
      parameters:
        Output: {parameterType: LIST}
root:
  dag:
    tasks:
      one:
        componentRef:
          name: c
        taskInfo:
          name: one
      two:
        componentRef: {name: c}
        dependentTasks:
        - one
        inputs:
          parameters:
            y: {taskOutputParameter: {producerTask: one, outputParameterKey: Output}}
";

/// The faults of the file with a change.
fn faults(from: &str, to: &str) -> String {
    assert!(PIPELINE.contains(from), "{from}");
    match read(&PIPELINE.replacen(from, to, 1)) {
        Ok(_) => "no faults".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn names_may_be_in_either_case_and_enums_may_be_numbers() {
    let expected = read(PIPELINE).unwrap();
    let other = PIPELINE
        .replace("pipelineInfo", "pipeline_info")
        .replace("componentRef", "component_ref")
        .replace("NUMBER_INTEGER", "2")
        .replace("dependentTasks", "dependent_tasks");
    assert_eq!(read(&other).unwrap(), expected);
    let json = to_json(&expected);
    assert_eq!(json["root"]["dag"]["tasks"]["one"]["taskInfo"]["name"], "one");
    assert_eq!(read_json(json.clone()).unwrap(), expected);
    assert_eq!(read(&json.to_string()).unwrap(), expected);
}

#[test]
fn documents_may_be_in_either_order_but_not_twice() {
    let platform = "platforms:\n  kubernetes:\n    deploymentSpec:\n      executors:\n        e: {imagePullPolicy: Never, activeDeadlineSeconds: '5'}\n";
    let first = read(&format!("{platform}---\n{PIPELINE}")).unwrap();
    let second = read(&format!("{PIPELINE}---\n{platform}---\n")).unwrap();
    assert_eq!(first, second);
    assert_eq!(first.kubernetes["e"].active_deadline_seconds, 5);
    assert_eq!(read_json(to_json(&first)).unwrap(), first);
    for (text, reason) in [
        (
            format!("{PIPELINE}---\n{PIPELINE}"),
            "line 35, column 1: there is more than one pipeline specification in the file",
        ),
        (
            format!("{PIPELINE}---\n{platform}---\n{platform}"),
            "there is more than one platform specification in the file",
        ),
        (platform.to_owned(), "there is no pipeline in the file"),
        (String::new(), "there is no pipeline in the file"),
        ("a: b".to_owned(), "line 1, column 1: this is not a compiled pipeline"),
        ("- a".to_owned(), "line 1, column 1: a compiled pipeline is an object; this is a list"),
        ("apiVersion: argoproj.io/v1alpha1\nkind: Workflow".to_owned(), "from version 1 of the kfp SDK"),
        (
            format!("{PIPELINE}---\n{}", platform.replace("Never", "Sometimes")),
            "line 39, column 13: platforms.kubernetes.deploymentSpec.executors.e.imagePullPolicy: 'Sometimes' is not one of",
        ),
        (
            format!("{PIPELINE}---\n{}", platform.replace("imagePull", "imagePush")),
            "line 39, column 13: platforms.kubernetes.deploymentSpec.executors.e.imagePushPolicy: unknown field",
        ),
    ] {
        let error = read(&text).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn scalars_are_those_of_yaml_1_2() {
    let text = PIPELINE.replace(
        "image: python",
        "image: python\n        env: [{name: A, value: yes}, {name: B, value: \"0644\"}, {name: C, value: 'true'}]",
    );
    let document = read(&text).unwrap();
    let crate::ir::ml_pipelines::pipeline_deployment_config::executor_spec::Spec::Container(container) =
        document.deployment.executors["e"].spec.clone().unwrap()
    else {
        panic!()
    };
    let values: Vec<&str> = container.env.iter().map(|variable| variable.value.as_str()).collect();
    assert_eq!(values, ["yes", "0644", "true"]);
    let error = read(&PIPELINE.replace("name: p", "name: 0644")).unwrap_err().to_string();
    assert!(error.contains("line 2, column 3: pipelineInfo.name: invalid type: integer `420`"), "{error}");
}

#[test]
fn faults_of_the_form_have_their_lines() {
    let mut wrong = Vec::new();
    for (from, to, expected) in [
        (
            "taskInfo:\n          name: one",
            "taskInfo:\n          nmae: one\n        foo: 1",
            "line 26, column 11: root.dag.tasks.one.taskInfo.nmae: unknown field 'nmae'\nline 27, column 9: root.dag.tasks.one.foo: unknown field 'foo'",
        ),
        (
            "dependentTasks:\n        - one",
            "dependentTasks: one",
            "line 29, column 9: root.dag.tasks.two.dependentTasks: expected a list, got a string",
        ),
        ("- one", "- [one]", "line 30, column 11: root.dag.tasks.two.dependentTasks.0: invalid type: sequence"),
        ("NUMBER_INTEGER", "NUMBER", "line 14, column 13: components.c.inputDefinitions.parameters.x.parameterType:"),
        (
            "isOptional: true}",
            "isOptional: 'true'}",
            "line 14, column 44: components.c.inputDefinitions.parameters.x.isOptional: invalid type: string",
        ),
        (
            "image: python",
            "image: python\n        ports: []",
            "line 9, column 9: deploymentSpec.executors.e.container.ports: unknown field 'ports'",
        ),
        ("executorLabel: e", "executorLabel: e\n    dag: {}", "line 10, column 3: components.c:"),
        ("  dag:\n    tasks:", "  dag: 5\n  dug:\n    tasks:", "root.dag: expected an object, got a number"),
        ("name: p", "name: [p", "line 3"),
        ("root:", "\troot:", "line 19"),
        ("name: p", "name: p\n  name: q", "line 3, column 3: duplicate mapping key"),
        ("name: p", "name: *x", "line 2"),
        ("name: p", "name: .inf", "line 2"),
    ] {
        let found = faults(from, to);
        if !found.contains(expected) {
            wrong.push(format!("{to:?}: {found}\n    expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn faults_of_the_meaning_have_their_lines() {
    let mut wrong = Vec::new();
    let raw = |items: &str| format!("- one\n        parameterIterator: {{itemInput: x, items: {{raw: '{items}'}}}}");
    let loop_of = |text: &str| faults("- one", &raw(text));
    assert_eq!(loop_of("[1]"), "no faults");
    assert_eq!(
        loop_of("{}"),
        "line 31, column 51: root.dag.tasks.two.parameterIterator.items.raw: the items of the loop are an object; expected a list"
    );
    assert!(loop_of("[1").contains("the items of the loop are not JSON"));
    let input = "y: {taskOutputParameter: {producerTask: one, outputParameterKey: Output}}";
    for (from, to, expected) in [
        (
            "2.1.0",
            "2.0.0",
            "line 3, column 1: schemaVersion: the version of the schema is 2.0.0; only 2.1.0 is supported",
        ),
        ("name: p", "name: ''", "line 2, column 3: pipelineInfo.name: the name of the pipeline is ''"),
        (
            "executorLabel: e",
            "executorLabel: f",
            "line 11, column 5: components.c.executorLabel: there is no executor 'f' in deploymentSpec",
        ),
        (
            "container:\n        image: python",
            "resolver: {}",
            "deploymentSpec.executors.e.resolver: executors that resolve artifacts",
        ),
        (
            "image: python",
            "image: ''",
            "line 8, column 9: deploymentSpec.executors.e.container.image: the container has no image",
        ),
        ("name: c\n", "name: d\n", "line 23, column 9: root.dag.tasks.one.componentRef: there is no component 'd'"),
        (
            "- one",
            "- three",
            "line 30, column 11: root.dag.tasks.two.dependentTasks.0: there is no task 'three' in the graph",
        ),
        ("- one", "- two", "line 27, column 7: root.dag.tasks.two: the task depends on itself"),
        ("taskInfo:\n          name: one", "dependentTasks: [two]", "tasks wait for each other: one -> two -> one"),
        (
            input,
            "z: {runtimeValue: {constant: 1}}",
            "line 33, column 13: root.dag.tasks.two.inputs.parameters.z: the component 'c' has no input parameter 'z'",
        ),
        (input, "pipelinechannel--z: {runtimeValue: {constant: 1}}", "no faults"),
        (input, "x: {runtimeValue: {constant: a}}", "type mismatch: expected NUMBER_INTEGER, got a string"),
        (input, "x: {runtimeValue: {constant: 2.5}}", "no faults"),
        (input, "y: {runtimeValue: {constant: c}}", "the value \"c\" is not allowed; allowed are \"a\", \"b\""),
        (input, "y: {runtimeValue: {constant: '{{$.pipeline_job_name}}'}}", "no faults"),
        (
            input,
            "x: {taskOutputParameter: {producerTask: one, outputParameterKey: Output}}",
            "type mismatch: expected NUMBER_INTEGER, the source is LIST",
        ),
        (
            input,
            "y: {taskOutputParameter: {producerTask: none, outputParameterKey: Output}}",
            "there is no task 'none' in the graph",
        ),
        (
            input,
            "y: {taskOutputParameter: {producerTask: one, outputParameterKey: out}}",
            "the task 'one' has no output parameter 'out'",
        ),
        (input, "y: {componentInputParameter: z}", "the graph has no input parameter 'z'"),
        (
            input,
            "y: {componentInputParameter: z, parameterExpressionSelector: 'parseJson('}",
            "the selector is invalid: syntax error",
        ),
        (input, "y: {taskFinalStatus: {producerTask: none}}", "there is no task 'none' in the graph"),
        (input, "y: {}", "root.dag.tasks.two.inputs.parameters.y: the input has no source"),
        (
            "x: {parameterType: NUMBER_INTEGER, isOptional: true}",
            "x: {parameterType: NUMBER_INTEGER}",
            "the required input parameter 'x' is not given",
        ),
        ("x: {parameterType: NUMBER_INTEGER", "x: {type: INT", "the input parameter 'x' has no type"),
        ("literals: [a, b]", "literals: [a], defaultValue: b", "the default of 'y': the value \"b\" is not allowed"),
        (
            "- one",
            "- one\n        retryPolicy: {maxRetryCount: -1, backoffDuration: -1s}",
            "line 31, column 23: root.dag.tasks.two.retryPolicy.maxRetryCount: the number of retries must not be negative\nline 31, column 42",
        ),
        (
            "- one",
            "- one\n        triggerPolicy: {condition: 'inputs.parameter_values[''y''] == '}",
            "line 31, column 25: root.dag.tasks.two.triggerPolicy.condition: the condition is invalid: syntax error",
        ),
        (
            "- one",
            "- one\n        triggerPolicy: {condition: 'inputs.parameter_values[''q''] == 1'}",
            "the condition refers to 'q', which is not an input of the task",
        ),
        ("      two:", "      t/w:", "'t/w' is not a valid name of a task"),
        ("taskInfo:\n          name: one", "triggerPolicy: {strategy: ALL_UPSTREAM_TASKS_COMPLETED}", "no faults"),
        (
            "- one",
            "- one\n      outputs: {}\n    outputs: {parameters: {o: {valueFromParameter: {producerSubtask: one, outputParameterKey: x}}}}",
            "line",
        ),
        (
            "root:",
            "root:\n  inputDefinitions: {parameters: {s: {parameterType: TASK_FINAL_STATUS}}}",
            "a parameter of the pipeline cannot be of type TASK_FINAL_STATUS",
        ),
        (
            "root:",
            "root:\n  inputDefinitions: {parameters: {s: {parameterType: TASK_FINAL_STATUS, isOptional: true}}}",
            "no faults",
        ),
    ] {
        let found = faults(from, to);
        if !found.contains(expected) {
            wrong.push(format!("{to:?}: {found}\n    expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let tail = "\n    outputs:\n      parameters:\n        o: {valueFromOneof: {parameterSelectors: [{producerSubtask: three, outputParameterKey: Output}]}}\n";
    let error = read(&format!("{}{tail}", PIPELINE.trim_end())).unwrap_err().to_string();
    assert!(error.contains("line 36, column 51: root.dag.outputs.parameters.o.valueFromOneof.parameterSelectors.0: there is no task 'three'"), "{error}");
    assert!(error.contains("the component does not declare the output parameter 'o'"), "{error}");
}

#[test]
fn an_importer_has_no_condition_of_its_own_and_components_do_not_contain_themselves() {
    let text = PIPELINE
        .replace("container:\n        image: python", "importer: {artifactUri: {constant: 's3://a'}, typeSchema: {schemaTitle: system.Model}}")
        .replace("      parameters:\n        Output: {parameterType: LIST}", "      artifacts: {Output: {artifactType: {schemaTitle: system.Model}}}")
        .replace("        inputs:\n          parameters:\n            y: {taskOutputParameter: {producerTask: one, outputParameterKey: Output}}\n",
                 "        triggerPolicy: {condition: 'true'}\n");
    let error = read(&text).unwrap_err().to_string();
    assert!(error.contains("an importer cannot have a condition of its own"), "{error}");
    read(&text.replace("        triggerPolicy: {condition: 'true'}\n", "")).unwrap();

    let text = "pipelineInfo: {name: p}\nschemaVersion: 2.1.0\nroot: {dag: {tasks: {a: {componentRef: {name: c}}}}}\n\
                components:\n  c: {dag: {tasks: {b: {componentRef: {name: d}}}}}\n  d: {dag: {tasks: {c: {componentRef: {name: c}}}}}\n";
    let error = read(text).unwrap_err().to_string();
    assert_eq!(error, "line 6, column 25: components.d.dag.tasks.c.componentRef: the component 'c' contains itself");
}

#[test]
fn large_and_deep_files_are_refused() {
    let error = read(&" ".repeat(MAX_BYTES + 1)).unwrap_err().to_string();
    assert_eq!(error, "the file has 10485761 bytes; the limit is 10485760");
    for text in [
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        "{\"a\":".repeat(100_000),
        (0..2_000).fold(String::new(), |text, depth| text + &" ".repeat(depth) + "a:\n"),
        format!(
            "{PIPELINE}---\na: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e, *e, *e]\n"
        ),
    ] {
        let error = read(&text).unwrap_err().to_string();
        assert!(error.starts_with("line "), "{error}");
    }
    let mut value = serde_json::json!({});
    for _ in 0..5_000 {
        value = Value::Array(vec![value]);
    }
    read_json(value).unwrap_err();
}

#[test]
fn a_cut_file_is_refused_with_a_line_or_has_no_root() {
    for at in (0..PIPELINE.len()).step_by(7) {
        if let Err(error) = read(&PIPELINE[..at]) {
            let error = error.to_string();
            assert!(error.starts_with("line ") || error == "there is no pipeline in the file", "{at}: {error}");
        }
    }
}

#[test]
fn hostile_files_cost_little_more_than_their_reading() {
    let wide = |fields: &str| format!("{{\"a\": [{}1], {fields}}}", "1,".repeat(MAX_NODES));
    // The reader of YAML refuses the file, and that of JSON must not accept it after all.
    let error = read(&wide("\"pipelineInfo\": {\"name\": \"p\"}")).unwrap_err().to_string();
    assert_eq!(error, "the pipeline has more than 500000 values");
    let error = read_json(Value::Array(vec![Value::Null; MAX_NODES])).unwrap_err().to_string();
    assert_eq!(error, "the pipeline has more than 500000 values");
    let deep = format!("{{\"a\": {}{}}}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
    assert!(read(&deep).unwrap_err().to_string().contains("objects and lists inside each other"));

    let tasks: String = (0..2_000).map(|at| format!("      t{at}: {{componentRef: {{name: none}}}}\n")).collect();
    let error = read(&PIPELINE.replace("      one:\n", &format!("{tasks}      one:\n"))).unwrap_err().to_string();
    assert!(error.contains("there is no component 'none'"), "{error}");
    assert!(error.ends_with("… and 1950 more"), "{}", error.lines().last().unwrap());
}
