use serde_json::json;

use super::*;
use crate::model::Artifact;

fn inputs(parameters: &[(&str, Value)]) -> Inputs {
    Inputs {
        parameters: parameters.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        ..Inputs::default()
    }
}

fn evaluate(text: &str, parameters: &[(&str, Value)]) -> Result<bool, String> {
    Condition::parse(text)?.evaluate(&inputs(parameters))
}

#[test]
fn the_forms_of_the_compiler_are_evaluated() {
    let parameters = [
        ("type", json!("foo")),
        ("num", json!(1)),
        ("text", json!("7")),
        ("flag", json!(true)),
        ("a--b-Output", json!("heads")),
    ];
    for (text, expected) in [
        ("inputs.parameter_values['type'] == 'foo'", true),
        ("inputs.parameter_values['type']=='foo2'", false),
        ("inputs.parameter_values['num'] == 1", true),
        ("inputs.parameter_values['num'] == 1.0", true),
        ("inputs.parameter_values['type'] == 'foo' && inputs.parameter_values['num'] == 1.0", true),
        ("int(inputs.parameter_values['num']) < 5", true),
        ("int(inputs.parameter_values['text']) >= 8", false),
        ("!(inputs.parameter_values['a--b-Output'] == 'heads') && int(inputs.parameter_values['num']) > 0", false),
        ("inputs.parameter_values['flag'] == true", true),
        ("inputs.parameter_values['type'] == 'x' || double(inputs.parameter_values['text']) == 7.0", true),
        ("inputs.parameter_values['num'] in [1, 2]", true),
        ("has(inputs.parameter_values.type) && inputs.parameter_values.type.startsWith('f')", true),
        ("[1, 2].all(x, x > 0)", true),
        // A string parameter is not equal to a number: both types are known only now.
        ("inputs.parameter_values['text'] == 7", false),
        ("inputs.parameter_values['text'] != 7", true),
        ("parseJson('{\"a\": 1}')['a'] == 1", true),
    ] {
        assert_eq!(evaluate(text, &parameters), Ok(expected), "{text}");
    }
}

#[test]
fn artifacts_can_be_tested() {
    let mut inputs = inputs(&[]);
    let metadata = json!({"accuracy": 0.95}).as_object().unwrap().clone();
    inputs.artifacts.insert("model".into(), vec![Artifact { metadata, ..Artifact::default() }]);
    for (text, expected) in [("> 90.0", true), ("<= 90.0", false)] {
        let text = format!("inputs.artifacts['model'].artifacts[0].metadata['accuracy'] * 100.0 {text}");
        assert_eq!(Condition::parse(&text).unwrap().evaluate(&inputs), Ok(expected));
    }
}

#[test]
fn evaluation_fails_where_types_or_keys_are_missing() {
    let parameters = [("type", json!("foo")), ("num", json!(1)), ("none", json!(null))];
    for text in [
        "inputs.parameter_values['missing'] == 'a'",
        "inputs.parameter_values['type'] < 1",
        "int(inputs.parameter_values['type']) == 1",
        "int(inputs.parameter_values['none']) == 1",
        "inputs.parameter_values['num']",
        "parseJson('{') == 1",
        "inputs.parameter_values['num'] / 0 == 1",
    ] {
        assert!(evaluate(text, &parameters).is_err(), "{text}: {:?}", evaluate(text, &parameters));
    }
}

#[test]
fn faults_are_found_before_the_evaluation() {
    for (text, reason) in [
        ("inputs.parameter_values['a'] ==", "syntax error"),
        ("", "syntax error"),
        ("foo == 1", "undeclared reference to 'foo'"),
        ("inputs.parameterValues['a'] == 1", "undefined field 'inputs.parameterValues'"),
        ("int(inputs.parameter_values['a']) == 'b'", "'==' cannot be applied to (int, string)"),
        ("'a' < 1", "'<' cannot be applied to (string, int)"),
        ("int(inputs.parameter_values['a'])", "the condition is of type int"),
        ("frobnicate(1) == 2", "undeclared reference to the function 'frobnicate'"),
        ("[1].all(a, [1].all(b, [1].all(c, a == b)))", "macros are inside each other"),
    ] {
        let error = Condition::parse(text).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
    Condition::parse(&format!("{}true{}", "(".repeat(200), ")".repeat(200))).unwrap_err();
    Condition::parse(&"!".repeat(MAX_BYTES + 1)).unwrap_err();
    for chain in ["1 + ", "!", "-", "(", "[", "a.", "true ? true : ", "true || "] {
        drop(Condition::parse(&(chain.repeat(MAX_BYTES / chain.len() - 1) + "1")));
    }
}

#[test]
fn a_long_chain_of_alternatives_is_evaluated() {
    let others: Vec<String> = (0..60).map(|i| format!("!(inputs.parameter_values['type'] == 'option-{i}')")).collect();
    let text = format!("{} && inputs.parameter_values['type'] == 'foo'", others.join(" && "));
    assert_eq!(evaluate(&text, &[("type", json!("foo"))]), Ok(true));
}

#[test]
fn selectors_read_the_text_or_the_fields_of_a_value() {
    let value = json!({"a": {"b": [1, 2.5]}, "s": "x"});
    for (expression, expected) in [
        ("parseJson(string_value)[\"a\"]", json!({"b": [1, 2.5]})),
        ("parseJson(string_value)[\"a\"][\"b\"][0]", json!(1)),
        ("struct_value.s", json!("x")),
        ("string_value", json!(to_text(&value))),
    ] {
        assert_eq!(select(expression, &value), Ok(expected), "{expression}");
    }
    assert_eq!(select("parseJson(string_value)[\"k\"]", &json!("{\"k\": 2}")), Ok(json!(2)));
    assert_eq!(select("parseJson(string_value)[1]", &json!("[1, 2]")), Ok(json!(2)));
    select("parseJson(string_value)[\"k\"]", &json!("{}")).unwrap_err();
    select("parseJson(string_value)[\"k\"]", &json!("no JSON")).unwrap_err();
    check_selector("inputs.x").unwrap_err();
}
