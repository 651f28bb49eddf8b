//! The record of a stage in `dvc.lock` and in the run cache.

use crate::pipeline::DEFAULT_PARAMS_FILE;
use crate::stage::{Output, Stage};
use crate::yaml::Value;

/// The record of a stage of a pipeline, with keys, dependencies and outputs in DVC's order.
pub(crate) fn entry(stage: &Stage) -> Value {
    let mut entries: Vec<(String, Value)> = Vec::new();
    let Some(recipe) = &stage.recipe else { return Value::Map(entries) };
    entries.push(("cmd".into(), recipe.command.clone()));
    let list = |items: &[Output]| {
        let mut sorted: Vec<&Output> = items.iter().collect();
        sorted.sort_by(|a, b| a.written.cmp(&b.written));
        Value::List(sorted.into_iter().map(Output::to_lock).collect())
    };
    if !stage.deps.is_empty() {
        entries.push(("deps".into(), list(&stage.deps)));
    }
    let mut params: Vec<_> =
        recipe.params.iter().filter_map(|params| Some((&params.written, params.recorded.as_ref()?))).collect();
    params.sort_by_key(|(file, _)| (*file != DEFAULT_PARAMS_FILE, *file));
    let params: Vec<(String, Value)> = params
        .into_iter()
        .map(|(file, values)| {
            let mut values = values.clone();
            values.sort_by(|a, b| a.0.cmp(&b.0));
            (file.clone(), Value::Map(values))
        })
        .collect();
    if !params.is_empty() {
        entries.push(("params".into(), Value::Map(params)));
    }
    if !stage.outs.is_empty() {
        entries.push(("outs".into(), list(&stage.outs)));
    }
    Value::Map(entries)
}
