//! What a pod needs to execute a step: its command with all placeholders resolved, and where its inputs and outputs are in the pod.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::artifact::{is_in_workspace, path_in_workspace};
use crate::error::Error;
use crate::executor_input::executor_input;
use crate::launch::{buckets, file_at, file_name};
use crate::model::{Inputs, Launch, RunInfo, TaskPath};
use crate::placeholder::{Paths, Place, WORKSPACE_PATH, container_command};

use super::artifacts;

/// The volume in the pod with slipway's program and the files of the step.
pub const FOLDER: &str = "/slipway-step";

/// A step, as its pod receives it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    run: RunInfo,
    path: TaskPath,
    task_name: String,
    attempt: u32,
    /// The component: a protobuf message in base64.
    component: String,
    /// The executor: a protobuf message in base64.
    executor: String,
    /// The inputs, which are fetched to `paths`.
    pub(crate) inputs: Inputs,
    /// Where the inputs and outputs are in the pod.
    pub(crate) paths: Paths,
    /// The program and its arguments.
    pub(crate) command: Vec<String>,
}

impl Step {
    /// The step of an attempt.
    ///
    /// # Errors
    /// Why it cannot be executed in a pod.
    pub(super) fn new(launch: &Launch) -> Result<Self, String> {
        let paths = paths(launch)?;
        let input = executor_input(launch, &paths).to_string();
        let (mut command, args) = container_command(launch, &paths, &input)?;
        command.extend(args);
        if command.is_empty() {
            return Err(format!(
                "task '{}' has no command; set the command of its component, because as in Kubeflow the entrypoint of an image is not used",
                launch.path
            ));
        }
        Ok(Self {
            run: RunInfo::clone(&launch.run),
            path: launch.path.clone(),
            task_name: launch.task_name.clone(),
            attempt: launch.attempt,
            component: STANDARD.encode(launch.component.encode_to_vec()),
            executor: STANDARD.encode(launch.executor.encode_to_vec()),
            inputs: launch.inputs.clone(),
            paths,
            command,
        })
    }

    /// A step as it is stored.
    ///
    /// # Errors
    /// It was written by an incompatible version.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        serde_json::from_str(text)
            .map_err(|error| Error::Conflict(format!("the step was recorded by another version: {error}")))
    }

    /// Id of the run of the pipeline.
    pub(super) fn run_id(&self) -> &str {
        &self.run.run_id
    }

    /// What the URIs of the outputs of an attempt begin with: below the root of the run if that is in a bucket, else in the object store of
    /// the control plane. `name` is that of the step, and `place` distinguishes the pods that execute it one after the other: the number of
    /// the pod, or its worker.
    pub(super) fn outputs(&self, name: &str, place: &str) -> String {
        let RunInfo { run_id, namespace, pipeline_root, pipeline_name, .. } = &self.run;
        let path = [file_name(pipeline_name), file_name(run_id), name.to_owned(), place.to_owned()].join("/");
        buckets::below(pipeline_root, &path).unwrap_or_else(|| artifacts::prefix(namespace, name, place, run_id))
    }

    /// The task.
    pub(super) fn path(&self) -> &TaskPath {
        &self.path
    }

    /// Number of the attempt of the task, from 1.
    pub(super) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The attempt, without the settings of its pod.
    ///
    /// # Errors
    /// The step was written by an incompatible version.
    pub(crate) fn launch(&self) -> Result<Launch, String> {
        let bytes = |text: &str| STANDARD.decode(text).map_err(|error| error.to_string());
        Ok(Launch {
            run: self.run.clone().into(),
            path: self.path.clone(),
            task_name: self.task_name.clone(),
            attempt: self.attempt,
            component: decoded(&bytes(&self.component)?)?,
            executor: decoded(&bytes(&self.executor)?)?,
            platform: None,
            inputs: self.inputs.clone(),
            platform_inputs: std::collections::BTreeMap::new(),
        })
    }
}

fn decoded<M: Message + Default>(bytes: &[u8]) -> Result<std::sync::Arc<M>, String> {
    M::decode(bytes).map(std::sync::Arc::new).map_err(|error| error.to_string())
}

/// The path of the copy of an element of an input.
pub(crate) fn copy_of(input: &str, index: usize, uri: &str) -> String {
    format!("{FOLDER}/inputs/{}/{index}/{}", file_name(input), file_at(uri))
}

fn paths(launch: &Launch) -> Result<Paths, String> {
    let mut paths = Paths { executor_output: format!("{FOLDER}/outputs/executor_output.json"), ..Paths::default() };
    let place = |path: String| Place { uri: path.clone(), path };
    for (name, list) in &launch.inputs.artifacts {
        let mut places = Vec::new();
        for (index, artifact) in list.iter().enumerate() {
            let is_stored = artifacts::object_of(&artifact.uri, &launch.run.namespace).is_some();
            if !is_stored && !buckets::is_remote(&artifact.uri) {
                return Err(format!(
                    "the input artifact '{name}' is at {}, which is not among the artifacts of this namespace and which a pod cannot \
                     fetch; it fetches s3://, minio://, gs://, az:// and https://",
                    artifact.uri
                ));
            }
            places.push(place(if is_in_workspace(artifact) {
                path_in_workspace(WORKSPACE_PATH, &artifact.uri)?
            } else {
                copy_of(name, index, &artifact.uri)
            }));
        }
        paths.input_artifacts.insert(name.clone(), places);
    }
    let declared = launch.component.output_definitions.as_ref();
    for name in declared.iter().flat_map(|outputs| outputs.artifacts.keys()) {
        let path = format!("{FOLDER}/outputs/artifacts/{}", file_name(name));
        paths.output_artifacts.insert(name.clone(), place(path));
    }
    for name in declared.iter().flat_map(|outputs| outputs.parameters.keys()) {
        paths.output_parameters.insert(name.clone(), format!("{FOLDER}/outputs/parameters/{}", file_name(name)));
    }
    Ok(paths)
}
