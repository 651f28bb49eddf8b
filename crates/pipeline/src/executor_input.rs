//! What a task's program is given, and what it leaves behind: the messages `ExecutorInput` and `ExecutorOutput`, and the output files.

use std::io::ErrorKind;
use std::path::Path;

use prost_reflect::{DeserializeOptions, DynamicMessage};
use serde_json::{Map, Value, json};

pub use crate::artifact::schema;
use crate::artifact::{artifact_json, output_artifact};
use crate::budget::Budget;
use crate::model::{Artifact, Failure, Launch, Outputs};
use crate::placeholder::{Paths, Place};
use crate::platform::pod_settings;
use crate::proto::descriptors;
use crate::proto::ml_pipelines::{ExecutorOutput, RuntimeArtifact};
use crate::value::{self, Kind, kind, parse_output};

/// Maximum bytes of all output parameters of a program, and of the file in which it describes its outputs.
pub const MAX_OUTPUT_BYTES: u64 = 64 << 20;

/// The message that the program gets as `{{$}}`.
pub fn executor_input(launch: &Launch, paths: &Paths) -> Value {
    let mut parameters: Map<String, Value> =
        launch.inputs.parameters.iter().map(|(name, value)| (name.clone(), paths.localized(value))).collect();
    let mut inputs = Map::new();
    if let Some(definitions) = &launch.component.input_definitions {
        for (name, definition) in &definitions.parameters {
            if kind(definition.parameter_type) == Some(Kind::TaskConfig) && !parameters.contains_key(name) {
                // A launch with invalid settings fails before its program is given anything.
                let settings = pod_settings(launch).unwrap_or_default();
                parameters.insert(name.clone(), Value::Object(settings.task_config));
                continue;
            }
            // An optional parameter without a value is left out, unless it has a default.
            if parameters.get(name).is_none_or(Value::is_null) {
                parameters.remove(name);
                if let Some(default) = &definition.default_value {
                    parameters.insert(name.clone(), value::from_prost(default));
                }
            }
        }
    }
    if !parameters.is_empty() {
        inputs.insert("parameterValues".into(), Value::Object(parameters));
    }
    let mut artifacts = Map::new();
    for (name, list) in &launch.inputs.artifacts {
        let places = paths.input_artifacts.get(name).map_or(&[] as &[Place], Vec::as_slice);
        let list: Vec<Value> = list
            .iter()
            .enumerate()
            .map(|(at, artifact)| artifact_json(artifact, places.get(at).map_or(&artifact.uri, |place| &place.uri)))
            .collect();
        artifacts.insert(name.clone(), json!({ "artifacts": list }));
    }
    if !artifacts.is_empty() {
        inputs.insert("artifacts".into(), Value::Object(artifacts));
    }

    let mut outputs = Map::new();
    let files: Map<String, Value> =
        paths.output_parameters.iter().map(|(name, file)| (name.clone(), json!({ "outputFile": file }))).collect();
    if !files.is_empty() {
        outputs.insert("parameters".into(), Value::Object(files));
    }
    let artifacts: Map<String, Value> = paths
        .output_artifacts
        .iter()
        .map(|(name, place)| {
            let artifact = artifact_json(&output_artifact(launch, name), &place.uri);
            (name.clone(), json!({ "artifacts": [artifact] }))
        })
        .collect();
    if !artifacts.is_empty() {
        outputs.insert("artifacts".into(), Value::Object(artifacts));
    }
    outputs.insert("outputFile".into(), Value::String(paths.executor_output.clone()));
    json!({ "inputs": inputs, "outputs": outputs })
}

/// The outputs of an attempt whose program succeeded: what the program describes in its output file, and else the files of the
/// parameters. An artifact that the program did not write is still an output. `Artifact::uri` is the path of a custom place, the URI that
/// the program chose, or that of [`Paths`].
///
/// # Errors
/// The output file is malformed, or the file of a parameter is absent or is not a value of its type.
pub fn read_outputs(launch: &Launch, paths: &Paths) -> Result<Outputs, Failure> {
    read(launch, paths).map_err(|message| Failure { message, ..Failure::default() })
}

fn read(launch: &Launch, paths: &Paths) -> Result<Outputs, String> {
    let memory = Budget::bytes(MAX_OUTPUT_BYTES as usize, "the output parameters");
    let described = read_description(Path::new(&paths.executor_output))?;
    let mut outputs = Outputs::default();
    let definitions = launch.component.output_definitions.as_ref();
    for (name, declared) in definitions.iter().flat_map(|d| &d.parameters) {
        let kind = kind(declared.parameter_type).ok_or_else(|| format!("the output parameter '{name}' has no type"))?;
        let value = match described.parameter_values.get(name) {
            Some(value) => value::coerce(kind, &value::from_prost(value)),
            None => {
                let file = paths.output_parameters.get(name).map_or("", String::as_str);
                read_text(Path::new(file))?
                    .ok_or_else(|| format!("the program did not write it to {file}"))
                    .and_then(|text| memory.take(text.len()).map(|()| text))
                    .and_then(|text| parse_output(kind, &text))
            }
        };
        let value = value.map_err(|reason| format!("the output parameter '{name}': {reason}"))?;
        outputs.parameters.insert(name.clone(), value);
    }
    for (name, place) in &paths.output_artifacts {
        let before = Artifact { id: String::new(), uri: place.uri.clone(), ..output_artifact(launch, name) };
        let list = described.artifacts.get(name).map(|list| list.artifacts.as_slice()).unwrap_or_default();
        let artifacts = if list.is_empty() {
            vec![before]
        } else {
            list.iter().map(|described| merged(before.clone(), described)).collect()
        };
        outputs.artifacts.insert(name.clone(), artifacts);
    }
    Ok(outputs)
}

fn merged(mut artifact: Artifact, described: &RuntimeArtifact) -> Artifact {
    if !described.uri.is_empty() {
        artifact.uri.clone_from(&described.uri);
    }
    if let Some(metadata) = &described.metadata {
        artifact.metadata.extend(value::from_struct(metadata));
    }
    if let Some(path) = described.custom_path.as_ref().filter(|path| !path.is_empty()) {
        artifact.uri.clone_from(path);
    }
    artifact
}

fn read_description(file: &Path) -> Result<ExecutorOutput, String> {
    let Some(text) = read_text(file)? else {
        return Ok(ExecutorOutput::default());
    };
    let descriptor = descriptors()
        .get_message_by_name("ml_pipelines.ExecutorOutput")
        .expect("the message is in the committed descriptors");
    let mut json = serde_json::Deserializer::from_str(&text);
    // Fields of later SDKs must not fail a task that has succeeded.
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    DynamicMessage::deserialize_with_options(descriptor, &mut json, &options)
        .map_err(|error| error.to_string())
        .and_then(|message| message.transcode_to().map_err(|error| error.to_string()))
        .map_err(|reason| format!("the program's description of its outputs, {}, is invalid: {reason}", file.display()))
}

/// The text of a file; `None` if there is none.
fn read_text(file: &Path) -> Result<Option<String>, String> {
    let failed = |reason: String| format!("reading {} failed: {reason}", file.display());
    let bytes = match std::fs::metadata(file) {
        Ok(metadata) if metadata.len() > MAX_OUTPUT_BYTES => {
            return Err(failed(format!("it has {} bytes; the limit is {MAX_OUTPUT_BYTES}", metadata.len())));
        }
        Ok(_) => std::fs::read(file),
        Err(error) => Err(error),
    };
    match bytes {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| failed("it is not UTF-8".into())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error.to_string())),
    }
}

#[cfg(test)]
mod tests;
