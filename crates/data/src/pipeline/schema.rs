//! The form of a `dvc.yaml`, as DVC validates it before anything is interpolated.

use crate::yaml::Value;

/// What is invalid, with the keys and indices that lead to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Invalid {
    /// Keys of mappings and indices of sequences.
    pub(super) path: Vec<String>,
    /// What is wrong there.
    pub(super) reason: String,
}

type Check = fn(&Value) -> Result<(), Invalid>;

fn invalid(reason: impl Into<String>) -> Invalid {
    Invalid { path: Vec::new(), reason: reason.into() }
}

fn at(step: impl Into<String>) -> impl FnOnce(Invalid) -> Invalid {
    let step = step.into();
    move |mut invalid| {
        invalid.path.insert(0, step);
        invalid
    }
}

/// Checks the value of a `dvc.yaml`.
///
/// # Errors
/// The first value that is not allowed.
pub(super) fn check(value: &Value) -> Result<(), Invalid> {
    keys(
        value,
        &[
            ("datasets", anything),
            ("plots", plots),
            ("stages", stages),
            ("vars", vars),
            ("params", strings),
            ("metrics", strings),
            ("artifacts", artifacts),
        ],
        &[],
    )
}

fn anything(_: &Value) -> Result<(), Invalid> {
    Ok(())
}

fn string(value: &Value) -> Result<(), Invalid> {
    if matches!(value, Value::String(_)) { Ok(()) } else { Err(invalid("expected str")) }
}

fn boolean(value: &Value) -> Result<(), Invalid> {
    if matches!(value, Value::Bool(_)) { Ok(()) } else { Err(invalid("expected bool")) }
}

fn dictionary(value: &Value) -> Result<&[(String, Value)], Invalid> {
    if let Value::Map(entries) = value { Ok(entries) } else { Err(invalid("expected a dictionary")) }
}

fn each(value: &Value, check: Check) -> Result<(), Invalid> {
    let Value::List(items) = value else { return Err(invalid("expected a list")) };
    items.iter().enumerate().try_for_each(|(i, item)| check(item).map_err(at(i.to_string())))
}

fn each_entry(value: &Value, check: Check) -> Result<(), Invalid> {
    dictionary(value)?.iter().try_for_each(|(key, value)| check(value).map_err(at(key.as_str())))
}

/// Checks a mapping with these keys, of which some are required.
fn keys(value: &Value, known: &[(&str, Check)], required: &[&str]) -> Result<(), Invalid> {
    for (key, value) in dictionary(value)? {
        match known.iter().find(|(name, _)| name == key) {
            Some((_, check)) => check(value).map_err(at(key.as_str()))?,
            None => return Err(at(key.as_str())(invalid("extra keys not allowed"))),
        }
    }
    match required.iter().find(|key| value.get(key).is_none()) {
        Some(key) => Err(at(*key)(invalid("required key not provided"))),
        None => Ok(()),
    }
}

fn strings(value: &Value) -> Result<(), Invalid> {
    each(value, string)
}

fn vars(value: &Value) -> Result<(), Invalid> {
    each(value, |item| match item {
        Value::String(_) | Value::Map(_) => Ok(()),
        _ => Err(invalid("expected str or a dictionary")),
    })
}

fn string_or_list(value: &Value) -> Result<(), Invalid> {
    if matches!(value, Value::String(_) | Value::List(_)) { Ok(()) } else { Err(invalid("expected str or a list")) }
}

fn stages(value: &Value) -> Result<(), Invalid> {
    each_entry(value, |stage| {
        if stage.get("foreach").is_none() && stage.get("do").is_none() {
            return definition(stage);
        }
        let items: Check = |value| match value {
            Value::String(_) | Value::List(_) | Value::Map(_) => Ok(()),
            _ => Err(invalid("expected a dictionary, a list or str")),
        };
        keys(stage, &[("foreach", items), ("do", definition)], &["foreach", "do"])
    })
}

fn definition(value: &Value) -> Result<(), Invalid> {
    keys(
        value,
        &[
            ("matrix", |value| each_entry(value, string_or_list)),
            ("cmd", string_or_list),
            ("wdir", string),
            ("deps", strings),
            ("params", vars),
            ("vars", vars),
            ("frozen", boolean),
            ("meta", anything),
            ("desc", string),
            ("always_changed", boolean),
            ("outs", |value| each(value, |out| output(out, options))),
            ("metrics", |value| each(value, |out| output(out, options))),
            ("plots", |value| each(value, |out| output(out, plot_options))),
        ],
        &["cmd"],
    )
}

fn output(value: &Value, options: Check) -> Result<(), Invalid> {
    if matches!(value, Value::String(_)) { Ok(()) } else { each_entry(value, options) }
}

const OPTIONS: &[(&str, Check)] = &[
    ("desc", string),
    ("type", string),
    ("labels", strings),
    ("meta", anything),
    ("cache", boolean),
    ("persist", boolean),
    ("checkpoint", boolean),
    ("remote", string),
    ("push", boolean),
];

/// The options of a plot that are recorded beside those of other outputs.
pub(super) const PLOT_OPTIONS: &[&str] = &["template", "x", "y", "x_label", "y_label", "title", "header"];

fn options(value: &Value) -> Result<(), Invalid> {
    keys(value, OPTIONS, &[])
}

fn plot_options(value: &Value) -> Result<(), Invalid> {
    let mut known: Vec<(&str, Check)> = OPTIONS.to_vec();
    known.extend(PLOT_OPTIONS.iter().map(|name| (*name, if *name == "header" { boolean as Check } else { string })));
    match value {
        Value::List(items) => items.iter().try_for_each(|item| keys(item, &known, &[])),
        value => keys(value, &known, &[]),
    }
}

fn plots(value: &Value) -> Result<(), Invalid> {
    each(value, |plot| {
        if matches!(plot, Value::String(_)) {
            return Ok(());
        }
        each_entry(plot, |definition| {
            if matches!(definition, Value::Null) { Ok(()) } else { keys(definition, PLOT_DEFINITION, &[]) }
        })
    })
}

const PLOT_DEFINITION: &[(&str, Check)] = &[
    ("x", |value| match value {
        Value::Map(_) => each_entry(value, string),
        value => string(value),
    }),
    ("y", |value| match value {
        Value::Map(_) => each_entry(value, string_or_strings),
        value => string_or_strings(value),
    }),
    ("x_label", string),
    ("y_label", string),
    ("title", string),
    ("template", string),
];

fn string_or_strings(value: &Value) -> Result<(), Invalid> {
    if matches!(value, Value::List(_)) { strings(value) } else { string(value) }
}

fn artifacts(value: &Value) -> Result<(), Invalid> {
    each_entry(value, |artifact| {
        let known: &[(&str, Check)] =
            &[("path", string), ("desc", string), ("type", string), ("labels", strings), ("meta", anything)];
        keys(artifact, known, &["path"])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    #[test]
    fn valid_files_are_accepted() {
        let text = "vars:\n- params.yaml:a,b\n- x: 1\nstages:\n  a:\n    cmd: [x, y]\n    deps: [d]\n    params: [p, f.json: [k], w.yaml:]\n    outs: [o, p: {cache: false, persist: true, desc: t, labels: [l]}]\n    metrics: [m.json: {cache: false}]\n    plots: [c.csv: {x: a, header: true, template: t}]\n  b:\n    foreach: ${l}\n    do: {cmd: x}\n  c:\n    matrix: {m: [1], n: $x}\n    cmd: x\nplots: [dir, id: , t: {x: a, y: {f: [a, b]}}]\nmetrics: [m]\nparams: [p]\nartifacts: {m: {path: x, labels: [a]}}\ndatasets: []\n";
        assert_eq!(check(&yaml::parse(text).unwrap()), Ok(()));
    }

    #[test]
    fn invalid_values_are_named() {
        for (text, path, reason) in [
            ("stages: {a: {cmd: x, dep: [d]}}", "stages.a.dep", "extra keys not allowed"),
            ("stages: {a: {deps: [d]}}", "stages.a.cmd", "required key not provided"),
            ("stages: {a: {cmd: x, deps: d}}", "stages.a.deps", "expected a list"),
            ("stages: {a: {cmd: x, deps: [d: 1]}}", "stages.a.deps.0", "expected str"),
            ("stages: {a: {cmd: x, frozen: 1}}", "stages.a.frozen", "expected bool"),
            ("stages: {a: {foreach: [1], cmd: x}}", "stages.a.cmd", "extra keys not allowed"),
            ("stages: {a: {cmd: x, outs: [o: {cache: 1}]}}", "stages.a.outs.0.o.cache", "expected bool"),
            ("stages: [a]", "stages", "expected a dictionary"),
            ("artifacts: {m: {}}", "artifacts.m.path", "required key not provided"),
            ("plots: [p: {x: 1}]", "plots.0.p.x", "expected str"),
        ] {
            let error = check(&yaml::parse(text).unwrap()).unwrap_err();
            assert_eq!((error.path.join(".").as_str(), error.reason.as_str()), (path, reason), "{text}");
        }
    }
}
