//! `plots modify`: how an output of a stage is drawn, in `dvc.yaml`.

use super::GitFiles;
use crate::config::normalise;
use crate::error::DataError;
use crate::pipeline::read_workspace;
use crate::pipeline::value::text;
use crate::project::{Project, find_output};
use crate::stage::PIPELINE_FILE;
use crate::yaml::{self, Value};

/// The sections of a stage that list outputs.
const SECTIONS: [&str; 3] = ["plots", "metrics", "outs"];

/// Sets and removes properties of the plot in the file `target`. An output that was no plot becomes one.
///
/// # Errors
/// [`DataError::Target`] if no stage of a pipeline writes it, [`DataError::Invalid`] for a property to remove that it does not have.
pub fn modify(
    project: &Project,
    target: &str,
    properties: &[(String, Value)],
    unset: &[String],
) -> Result<GitFiles, DataError> {
    let path = project.absolute(target);
    let stages = project.stages()?;
    let found = find_output(&stages, &path).filter(|(_, out)| out.path.as_ref() == Some(&path));
    let (stage, _) = found.ok_or_else(|| DataError::Target(target.to_owned()))?;
    let address = stage.address(&project.current);
    let (Some(name), Some(recipe)) = (&stage.name, &stage.recipe) else {
        return Err(DataError::Invalid(format!(
            "'{target}' is an output of '{address}', not of a stage in {PIPELINE_FILE}"
        )));
    };
    if recipe.is_parametrized {
        return Err(DataError::Invalid(format!("cannot dump a parametrized stage: '{address}'")));
    }
    let old = read_workspace(&stage.file)?.unwrap_or_default();
    let invalid = |error: yaml::ParseError| DataError::file(&stage.file, error.line, error.reason);
    let mut value = yaml::parse(&old).map_err(invalid)?;
    let Some(Value::Map(entry)) = value.get_mut("stages").and_then(|stages| stages.get_mut(name)) else {
        return Err(DataError::Target(target.to_owned()));
    };
    let is_target = |item: &Value| normalise(&recipe.wdir.join(name_and_flags(item).0)) == path;
    let (section, place) = SECTIONS
        .iter()
        .find_map(|section| {
            let items = entry.iter().find(|(key, _)| key == section)?.1.items();
            Some((*section, items.iter().position(is_target)?))
        })
        .ok_or_else(|| DataError::Target(target.to_owned()))?;
    let item = take(entry, section, place);
    let (written, mut flags) = name_and_flags(&item);
    for property in unset {
        let known = flags.iter().position(|(key, _)| key == property);
        let known = known.ok_or_else(|| DataError::Invalid(format!("plot '{target}' has no property '{property}'")))?;
        flags.remove(known);
    }
    for (key, value) in properties {
        match flags.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value.clone(),
            None => flags.push((key.clone(), value.clone())),
        }
    }
    let item = match flags.is_empty() {
        true => Value::String(written),
        false => Value::Map(vec![(written, Value::Map(flags))]),
    };
    let place = if section == "plots" { place } else { usize::MAX };
    put(entry, item, place);
    let edited = yaml::edit(&old, &value).map_err(invalid)?;
    let mut git_files = GitFiles::default();
    if edited != old {
        slipway_core::files::replace(&stage.file, edited.as_bytes()).map_err(DataError::io(&stage.file))?;
        git_files.push(stage.file.clone());
    }
    git_files.finish(project)
}

/// The path of an output as it is written, and its flags and properties.
fn name_and_flags(item: &Value) -> (String, Vec<(String, Value)>) {
    match item.entries().first() {
        Some((name, flags)) => (name.clone(), flags.entries().to_vec()),
        None => (text(item), Vec::new()),
    }
}

/// Takes an item out of a section, which goes with its last item unless it is that of plots.
fn take(entry: &mut Vec<(String, Value)>, section: &str, place: usize) -> Value {
    let mut item = Value::Null;
    if let Some((_, Value::List(items))) = entry.iter_mut().find(|(key, _)| key == section) {
        item = items.remove(place);
    }
    entry.retain(|(key, value)| key != section || section == "plots" || !value.items().is_empty());
    item
}

fn put(entry: &mut Vec<(String, Value)>, item: Value, place: usize) {
    match entry.iter_mut().find(|(key, _)| key == "plots") {
        Some((_, Value::List(items))) => items.insert(place.min(items.len()), item),
        _ => entry.push(("plots".into(), Value::List(vec![item]))),
    }
}
