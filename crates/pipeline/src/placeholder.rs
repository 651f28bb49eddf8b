//! Placeholders such as `{{$.inputs.parameters['x']}}` in constants and in commands.
//!
//! Every text is scanned once, and what replaces a placeholder is never scanned again: a user's value that looks like a placeholder stays
//! as it is. Text in double braces that is not a placeholder stays too, because programs contain such text.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::budget::Budget;
use crate::model::{Inputs, Launch, RunInfo};
use crate::proto::ml_pipelines::pipeline_deployment_config::executor_spec::Spec;
use crate::value::{self, to_text};

/// Maximum bytes that placeholders add to one constant, or to the words of one command. The system accepts no longer command anyway.
const MAX_REPLACED: usize = 4 << 20;

/// Path of the workspace in a container, and in the values that refer to it.
pub const WORKSPACE_PATH: &str = "/kfp-workspace";

/// A place of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Place {
    /// Path at which the program finds it or writes it.
    pub path: String,
    /// URI that the program is given.
    pub uri: String,
}

/// Where the inputs and outputs of one attempt are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Paths {
    /// Places of input artifacts by name, one for each element of the input.
    pub input_artifacts: BTreeMap<String, Vec<Place>>,
    /// Places of output artifacts by name.
    pub output_artifacts: BTreeMap<String, Place>,
    /// Files of output parameters by name.
    pub output_parameters: BTreeMap<String, String>,
    /// File in which the program describes its outputs.
    pub executor_output: String,
    /// Path of the workspace, if it is not [`WORKSPACE_PATH`].
    pub workspace: Option<String>,
}

impl Paths {
    /// The same places, with paths instead of URIs: for programs that derive the path of an artifact from its URI.
    pub(crate) fn with_paths_as_uris(&self) -> Self {
        let mut paths = self.clone();
        for place in paths.input_artifacts.values_mut().flatten().chain(paths.output_artifacts.values_mut()) {
            place.uri.clone_from(&place.path);
        }
        paths
    }

    /// A parameter as the program receives it: paths in the workspace are where the workspace is.
    pub(crate) fn localized(&self, value: &Value) -> Value {
        match (&self.workspace, value) {
            (Some(workspace), Value::String(text)) => Value::String(text.replace(WORKSPACE_PATH, workspace)),
            (Some(_), Value::Array(values)) => Value::Array(values.iter().map(|v| self.localized(v)).collect()),
            (Some(_), Value::Object(fields)) => {
                Value::Object(fields.iter().map(|(key, v)| (key.clone(), self.localized(v))).collect())
            }
            _ => value.clone(),
        }
    }
}

/// What stands between `{{$` and `}}`.
#[derive(Debug, PartialEq, Eq)]
enum Placeholder<'a> {
    ExecutorInput,
    /// A name such as `pipeline_job_name`.
    Name(&'a str),
    InputParameter(&'a str),
    /// An input artifact, and what of it: `path`, or nothing for all of it.
    InputArtifact(&'a str, Field<'a>),
    OutputArtifact(&'a str, Field<'a>),
    OutputParameterFile(&'a str),
    OutputFile,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Field<'a> {
    All,
    Path,
    Uri,
    Name,
    Metadata,
    MetadataKey(&'a str),
}

impl<'a> Placeholder<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::ExecutorInput);
        }
        let text = text.strip_prefix('.')?;
        if let Some(rest) = text.strip_prefix("inputs.parameters") {
            let (name, rest) = key(rest)?;
            return rest.is_empty().then_some(Self::InputParameter(name));
        }
        if let Some(rest) = text.strip_prefix("inputs.artifacts") {
            let (name, rest) = key(rest)?;
            return Some(Self::InputArtifact(name, field(rest)?));
        }
        if let Some(rest) = text.strip_prefix("outputs.artifacts") {
            let (name, rest) = key(rest)?;
            return Some(Self::OutputArtifact(name, field(rest)?));
        }
        if let Some(rest) = text.strip_prefix("outputs.parameters") {
            let (name, rest) = key(rest)?;
            return matches!(rest, ".output_file" | ".outputFile").then_some(Self::OutputParameterFile(name));
        }
        match text {
            "outputs.output_file" | "outputs.outputFile" | "outputMetadataUri" => Some(Self::OutputFile),
            _ => text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_').then_some(Self::Name(text)),
        }
    }
}

/// Splits `['NAME']` from the front; the SDK also writes doubled and double quotation marks.
fn key(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix('[')?;
    let quote = ["''", "'", "\""].into_iter().find(|quote| text.starts_with(quote))?;
    let (name, rest) = text[quote.len()..].split_once(quote)?;
    Some((name, rest.strip_prefix(']')?))
}

fn field(text: &str) -> Option<Field<'_>> {
    Some(match text {
        "" => Field::All,
        ".path" => Field::Path,
        ".uri" => Field::Uri,
        ".name" => Field::Name,
        ".metadata" => Field::Metadata,
        _ => {
            let (name, rest) = key(text.strip_prefix(".metadata")?)?;
            return rest.is_empty().then_some(Field::MetadataKey(name));
        }
    })
}

/// A budget for the texts that replace placeholders.
pub(crate) fn budget() -> Budget {
    Budget::bytes(MAX_REPLACED, "the texts that replace placeholders")
}

/// Replaces the placeholders of a text. `resolve` returns `None` for those that stay as they are.
fn replace(
    text: &str,
    budget: &Budget,
    mut resolve: impl FnMut(&Placeholder<'_>) -> Result<Option<String>, String>,
) -> Result<String, String> {
    const OPEN: &str = "{{$";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(OPEN) {
        out.push_str(&rest[..at]);
        let after = &rest[at + OPEN.len()..];
        let replacement = match after.split_once("}}") {
            Some((inner, tail)) => match Placeholder::parse(inner) {
                Some(placeholder) => resolve(&placeholder)?.map(|text| (text, tail)),
                None => None,
            },
            None => None,
        };
        if let Some((text, tail)) = replacement {
            budget.take(text.len())?;
            out.push_str(&text);
            rest = tail;
        } else {
            out.push_str(OPEN);
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// The placeholders of the run and the task.
fn resolve_name(name: &str, run: &RunInfo, task_name: &str, task_id: &str) -> Option<String> {
    Some(match name {
        "pipeline_job_name" => run.display_name.clone(),
        "pipeline_job_resource_name" => run.resource_name.clone(),
        "pipeline_job_uuid" => run.run_id.clone(),
        "pipeline_task_name" => task_name.to_owned(),
        "pipeline_task_uuid" => task_id.to_owned(),
        "pipeline_job_create_time_utc" => utc(run.created_at),
        "pipeline_job_schedule_time_utc" => utc(run.scheduled_at),
        "pipeline_root" => run.pipeline_root.clone(),
        "workspace_path" => WORKSPACE_PATH.to_owned(),
        _ => return None,
    })
}

/// RFC 3339 with seconds; empty for a time outside of the calendar.
fn utc(milliseconds: i64) -> String {
    Timestamp::from_second(milliseconds.div_euclid(1000)).map_or_else(|_| String::new(), |time| time.to_string())
}

fn resolve_input_parameter(name: &str, inputs: &Inputs) -> Result<Option<String>, String> {
    match inputs.parameters.get(name) {
        Some(value) => Ok(Some(to_text(value))),
        None => Err(format!("the input parameter '{name}', which a placeholder refers to, has no value")),
    }
}

/// The value of a constant. Placeholders in its strings, at any depth, are replaced by names of the run and the task and by values of the
/// same task's inputs.
///
/// # Errors
/// A placeholder refers to an input that has no value, or the value becomes too large.
pub fn resolve_constant(
    value: &Value,
    inputs: &Inputs,
    run: &RunInfo,
    task_name: &str,
    task_id: &str,
) -> Result<Value, String> {
    let resolve = |placeholder: &Placeholder<'_>| match placeholder {
        Placeholder::Name(name) => Ok(resolve_name(name, run, task_name, task_id)),
        Placeholder::InputParameter(name) => resolve_input_parameter(name, inputs),
        _ => Ok(None),
    };
    replace_inside(value, &budget(), &resolve)
}

/// [`replace`] in all texts of a value.
fn replace_inside(
    value: &Value,
    budget: &Budget,
    resolve: &impl Fn(&Placeholder<'_>) -> Result<Option<String>, String>,
) -> Result<Value, String> {
    let nested = |value: &Value| replace_inside(value, budget, resolve);
    Ok(match value {
        Value::String(text) => Value::String(replace(text, budget, resolve)?),
        Value::Array(values) => Value::Array(values.iter().map(nested).collect::<Result<_, _>>()?),
        Value::Object(fields) => Value::Object(
            fields.iter().map(|(key, value)| Ok((key.clone(), nested(value)?))).collect::<Result<_, String>>()?,
        ),
        other => other.clone(),
    })
}

/// A text with the placeholders of input parameters replaced, as in resource limits and images.
///
/// # Errors
/// A placeholder refers to an input that has no value, or the text becomes too long.
pub(crate) fn resolve_parameters(text: &str, inputs: &Inputs) -> Result<String, String> {
    resolve_parameters_within(text, inputs, &budget())
}

/// [`resolve_parameters`], with a budget for several texts.
pub(crate) fn resolve_parameters_within(text: &str, inputs: &Inputs, budget: &Budget) -> Result<String, String> {
    replace(text, budget, |placeholder| match placeholder {
        Placeholder::InputParameter(name) => resolve_input_parameter(name, inputs),
        _ => Ok(None),
    })
}

/// The command and arguments of the launch's container.
///
/// # Errors
/// A placeholder refers to something that the task does not have, a `Concat` or `IfPresent` is malformed, the command becomes too long, or
/// the executor is not a container.
pub fn container_command(
    launch: &Launch,
    paths: &Paths,
    executor_input_json: &str,
) -> Result<(Vec<String>, Vec<String>), String> {
    let Some(Spec::Container(container)) = &launch.executor.spec else {
        return Err("the executor of the task is not a container".into());
    };
    let scope = Scope { launch, paths, executor_input_json, budget: budget() };
    Ok((scope.words(&container.command)?, scope.words(&container.args)?))
}

/// The `Concat` or `IfPresent` that a word of a command is, or `None` for text.
fn structure(word: &str) -> Option<Value> {
    let trimmed = word.trim_start();
    let inner = trimmed.strip_prefix('{')?.trim_start();
    if !inner.starts_with("\"Concat\"") && !inner.starts_with("\"IfPresent\"") {
        return None;
    }
    let value: Value = serde_json::from_str(trimmed).ok()?;
    (value.as_object()?.len() == 1).then_some(value)
}

/// What the words of a command refer to.
struct Scope<'a> {
    launch: &'a Launch,
    paths: &'a Paths,
    executor_input_json: &'a str,
    budget: Budget,
}

impl Scope<'_> {
    /// Words with their placeholders replaced. A word that is a `Concat` or `IfPresent` in JSON becomes one word, several, or none.
    fn words(&self, words: &[String]) -> Result<Vec<String>, String> {
        let mut out = Vec::with_capacity(words.len());
        for word in words {
            match structure(word) {
                Some(structure) => self.evaluate(&structure, 0, &mut out)?,
                None => out.push(self.text(word)?),
            }
        }
        Ok(out)
    }

    fn evaluate(&self, structure: &Value, depth: usize, out: &mut Vec<String>) -> Result<(), String> {
        if depth > value::MAX_DEPTH {
            return Err("a Concat or IfPresent is nested too deeply".into());
        }
        match structure {
            Value::String(text) => out.push(self.text(text)?),
            Value::Array(items) => {
                for item in items {
                    self.evaluate(item, depth + 1, out)?;
                }
            }
            Value::Object(fields) => match fields.iter().next().map(|(name, inner)| (name.as_str(), inner)) {
                Some(("Concat", Value::Array(items))) => {
                    let mut parts = Vec::new();
                    for item in items {
                        self.evaluate(item, depth + 1, &mut parts)?;
                    }
                    out.push(parts.concat());
                }
                Some(("IfPresent", inner)) => {
                    let name = inner.get("InputName").and_then(Value::as_str).ok_or("an IfPresent has no InputName")?;
                    let branch = if self.is_present(name) { "Then" } else { "Else" };
                    match inner.get(branch) {
                        None | Some(Value::Null) => {}
                        Some(value) => self.evaluate(value, depth + 1, out)?,
                    }
                }
                _ => return Err("a Concat or IfPresent contains another object".into()),
            },
            other => return Err(format!("a Concat or IfPresent contains {}", value::type_name(other))),
        }
        Ok(())
    }

    fn is_present(&self, name: &str) -> bool {
        let inputs = &self.launch.inputs;
        inputs.parameters.get(name).is_some_and(|value| !value.is_null())
            || inputs.artifacts.get(name).is_some_and(|artifacts| !artifacts.is_empty())
    }

    fn text(&self, text: &str) -> Result<String, String> {
        replace(text, &self.budget, |placeholder| match placeholder {
            Placeholder::ExecutorInput => Ok(Some(self.executor_input_json.to_owned())),
            Placeholder::Name("workspace_path") => {
                Ok(Some(self.paths.workspace.clone().unwrap_or_else(|| WORKSPACE_PATH.to_owned())))
            }
            Placeholder::Name(name) => {
                Ok(resolve_name(name, &self.launch.run, &self.launch.task_name, &self.launch.path.0))
            }
            Placeholder::InputParameter(name) => self.input_parameter(name).map(Some),
            Placeholder::InputArtifact(name, field) => self.input_artifact(name, *field).map(Some),
            Placeholder::OutputArtifact(name, field) => self.output_artifact(name, *field).map(Some),
            Placeholder::OutputParameterFile(name) => match self.paths.output_parameters.get(*name) {
                Some(file) => Ok(Some(file.clone())),
                None => Err(format!("the component has no output parameter '{name}', which its command refers to")),
            },
            Placeholder::OutputFile => Ok(Some(self.paths.executor_output.clone())),
        })
    }

    /// The value of an input, or its default.
    fn input_parameter(&self, name: &str) -> Result<String, String> {
        if let Some(value) = self.launch.inputs.parameters.get(name) {
            return Ok(to_text(&self.paths.localized(value)));
        }
        let definitions = self.launch.component.input_definitions.as_ref();
        let default = definitions.and_then(|d| d.parameters.get(name)).and_then(|p| p.default_value.as_ref());
        match default {
            Some(value) => Ok(to_text(&value::from_prost(value))),
            None => Err(format!("the input parameter '{name}', which the command refers to, has no value")),
        }
    }

    fn input_artifact(&self, name: &str, field: Field<'_>) -> Result<String, String> {
        if field == Field::All && self.is_list(name) {
            let artifacts = self.launch.inputs.artifacts.get(name).into_iter().flatten();
            let places = self.paths.input_artifacts.get(name).into_iter().flatten();
            let all =
                artifacts.zip(places).map(|(artifact, place)| crate::artifact::artifact_json(artifact, &place.uri));
            return Ok(value::to_json_text(&Value::Array(all.collect())));
        }
        let artifact = self.launch.inputs.artifacts.get(name).and_then(|artifacts| artifacts.first());
        let place = self.paths.input_artifacts.get(name).and_then(|places| places.first());
        let (Some(artifact), Some(place)) = (artifact, place) else {
            return Err(format!("the input artifact '{name}', which the command refers to, is absent"));
        };
        Ok(match field {
            Field::Path => place.path.clone(),
            Field::Uri => place.uri.clone(),
            Field::Name => artifact.id.clone(),
            Field::Metadata => value::to_json_text(&Value::Object(artifact.metadata.clone())),
            Field::MetadataKey(key) => artifact.metadata.get(key).map_or_else(String::new, to_text),
            Field::All => value::to_json_text(&crate::artifact::artifact_json(artifact, &place.uri)),
        })
    }

    /// Whether an input is a list of artifacts: its text is a JSON list, as the SDK defines it.
    fn is_list(&self, name: &str) -> bool {
        let definitions = self.launch.component.input_definitions.as_ref();
        definitions.and_then(|inputs| inputs.artifacts.get(name)).is_some_and(|input| input.is_artifact_list)
    }

    fn output_artifact(&self, name: &str, field: Field<'_>) -> Result<String, String> {
        let Some(place) = self.paths.output_artifacts.get(name) else {
            return Err(format!("the component has no output artifact '{name}', which its command refers to"));
        };
        let artifact = crate::artifact::output_artifact(self.launch, name);
        Ok(match field {
            Field::Path => place.path.clone(),
            Field::Uri => place.uri.clone(),
            Field::Name => name.to_owned(),
            Field::Metadata => value::to_json_text(&Value::Object(artifact.metadata)),
            Field::MetadataKey(key) => artifact.metadata.get(key).map_or_else(String::new, to_text),
            Field::All => value::to_json_text(&crate::artifact::artifact_json(&artifact, &place.uri)),
        })
    }
}

#[cfg(test)]
mod tests;
