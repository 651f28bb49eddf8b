use serde_json::json;

use super::*;
use crate::model::Artifact;

fn inputs(parameters: &[(&str, Value)]) -> Inputs {
    Inputs {
        parameters: parameters.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        ..Inputs::default()
    }
}

fn select(expression: &str, value: &Value) -> Result<Value, String> {
    super::select(expression, value, &budget())
}

fn evaluate(text: &str, parameters: &[(&str, Value)]) -> Result<bool, String> {
    Condition::parse(text)?.evaluate(&inputs(parameters), &budget())
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
        assert_eq!(Condition::parse(&text).unwrap().evaluate(&inputs, &budget()), Ok(expected));
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

/// A list of numbers and a long text.
fn large(items: usize, bytes: usize) -> [(&'static str, Value); 2] {
    [("l", json!(vec![1; items])), ("s", json!("a".repeat(bytes)))]
}

#[test]
fn expressions_that_would_take_too_long_or_too_much_memory_are_not_begun() {
    for (text, items, bytes) in [
        ("L.all(x, L.all(y, x + y < 3))", 20_000, 0),
        ("size(L.map(x, S + S)) == 1", 20_000, 900_000),
        ("size(L.map(x, L.map(y, x))) == 1", 20_000, 0),
        ("size(L.map(x, {'k': S + S})) == 1", 20_000, 900_000),
        ("L.all(x, S.contains(S))", 20_000, 900_000),
        ("L.all(x, size(parseJson(S)) == 1)", 20_000, 900_000),
        ("L.exists(x, S.matches('(a{50}){50}'))", 2_000, 10),
        ("L.map(x, L).all(y, y.all(z, z == 1))", 20_000, 0),
        ("inputs.parameter_values.all(k, inputs.parameter_values[k] in L.map(x, L))", 20_000, 0),
        ("[L, L, L].all(a, [L, L].all(b, a + b == b + a))", 2_000_000, 0),
    ] {
        let text = text.replace('L', "inputs.parameter_values['l']").replace('S', "inputs.parameter_values['s']");
        let error = evaluate(&text, &large(items, bytes)).unwrap_err();
        assert!(error.contains("the expression"), "{text}: {error}");
    }
}

#[test]
fn macros_over_what_pipelines_have_are_evaluated() {
    for (text, items, bytes) in [
        ("L.all(x, x > 0 && x < 3)", 20_000, 900_000),
        ("L.exists(x, x == 2) || size(S) > 3", 20_000, 900_000),
        ("size(L.filter(x, x > 0)) == 20000", 20_000, 900_000),
        ("L.all(x, L.all(y, x == y))", 300, 0),
        ("L.all(x, S.matches('^a+$'))", 1_000, 20),
        ("S + S != S && S.startsWith('aa')", 1, 900_000),
        ("size(L + L) == 40000", 20_000, 0),
    ] {
        let text = text.replace('L', "inputs.parameter_values['l']").replace('S', "inputs.parameter_values['s']");
        assert_eq!(evaluate(&text, &large(items, bytes)), Ok(true), "{text}");
    }
}

#[test]
fn the_expressions_of_a_run_share_a_budget() {
    let condition = Condition::parse("inputs.parameter_values['l'].all(x, x > 0)").unwrap();
    let (inputs, budget) = (inputs(&large(20_000, 0)), Budget::work(30_000_000, "the expressions"));
    assert_eq!(condition.evaluate(&inputs, &budget), Ok(true));
    let error = (0..10).find_map(|_| condition.evaluate(&inputs, &budget).err()).unwrap();
    assert_eq!(error, "the expressions have more than 30000000 units of work");
}

#[test]
fn what_a_selector_makes_is_not_nested_more_deeply_than_what_can_be_stored() {
    let nested = "[".repeat(value::MAX_DEPTH + 1) + &"]".repeat(value::MAX_DEPTH + 1);
    assert!(select("parseJson(string_value)", &json!(nested)).unwrap_err().contains("inside each other"));
}
