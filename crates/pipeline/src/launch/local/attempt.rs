//! The files of an attempt.
//!
//! ```text
//! RUN/workspace                        the workspace of the run
//! RUN/TASK/1/launch.json               where the inputs and outputs of the attempt are
//! RUN/TASK/1/{lock,started,stop,process.json,end.json,log}   the supervisor's (slipway_exec::local::supervisor)
//! RUN/TASK/1/{work,tmp,volumes}        folders of the program
//! RUN/TASK/1/packages                  the component's module, and what the step installs itself
//! RUN/TASK/1/output-NAME               the files of output parameters
//! RUN/TASK/1/executor_output.json      how the program describes its outputs; beside its output artifacts, if it has any on this machine
//! RUN/TASK/1/{inputs,delivered}        copies of inputs in buckets, and outputs that are delivered to one
//! RUN/TASK/1/container                 id of the container, if the step is run by a container engine
//! ```
//!
//! There are no more files and folders than necessary: creating one takes up to a millisecond of a processor, and a pipeline may have
//! thousands of steps.

use std::path::{Path, PathBuf};

use slipway_core::hex;

use crate::artifact::{is_in_workspace, path_in_workspace};
use crate::launch::{AttemptId, buckets, file_at, file_name};
use crate::model::{Artifact, Launch};
use crate::placeholder::{Paths, Place};

/// Name of the file with the id of a container.
pub(super) const CONTAINER: &str = "container";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Attempt {
    pub(super) folder: PathBuf,
}

/// A text as the name of a folder that no other text has.
fn unique_file_name(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    format!("{}-{}", file_name(text), hex::encode(&digest.as_ref()[..8]))
}

/// The folder of a run.
pub(super) fn run_folder(root: &Path, run_id: &str) -> PathBuf {
    root.join(unique_file_name(run_id))
}

impl Attempt {
    pub(super) fn new(root: &Path, id: &AttemptId) -> Self {
        let task = run_folder(root, &id.run_id).join(unique_file_name(&id.path.0));
        Self { folder: task.join(id.attempt.to_string()) }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The folder for the copy of an element of an input.
    pub(super) fn copy_of(&self, input: &str, at: usize) -> PathBuf {
        self.path("inputs").join(file_name(input)).join(at.to_string())
    }

    /// Writes a file atomically, without flushing it to disk: the processes of an attempt do not survive a power failure either, and
    /// flushing takes longer than a step.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        let temporary = self.path(&format!("{name}.new"));
        std::fs::write(&temporary, bytes)?;
        std::fs::rename(temporary, self.path(name))
    }

    /// Creates the folders of the program.
    pub(super) fn create_folders(&self) -> std::io::Result<()> {
        ["work", "tmp", "packages"].iter().try_for_each(|folder| std::fs::create_dir_all(self.path(folder)))
    }

    /// Where the inputs and outputs are: as recorded by the first call for this attempt.
    ///
    /// # Errors
    /// Why the attempt cannot be executed here.
    pub(super) fn paths(&self, launch: &Launch, artifacts: &Path) -> Result<Paths, String> {
        let file = self.path("launch.json");
        if let Some(paths) = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
            return Ok(paths);
        }
        let paths = self.new_paths(launch, artifacts)?;
        let io = |error: std::io::Error| format!("creating the folders of the attempt: {error}");
        self.create_folders().map_err(io)?;
        for folder in [Path::new(&paths.executor_output).parent(), paths.workspace.as_deref().map(Path::new)] {
            folder.map_or(Ok(()), std::fs::create_dir_all).map_err(io)?;
        }
        let text = serde_json::to_vec(&paths).map_err(|error| error.to_string())?;
        self.write("launch.json", &text).map_err(io)?;
        Ok(paths)
    }

    fn new_paths(&self, launch: &Launch, artifacts: &Path) -> Result<Paths, String> {
        let text = |path: PathBuf| path.to_str().map(str::to_owned).ok_or("the folder of pipelines is not UTF-8");
        let run = &launch.run;
        let below_root = [
            file_name(&run.pipeline_name),
            file_name(&run.run_id),
            file_name(&launch.path.0),
            uuid::Uuid::new_v4().to_string(),
        ]
        .join("/");
        let remote = buckets::below(&run.pipeline_root, &below_root);
        let outputs = if remote.is_some() { self.path("delivered") } else { artifacts.join(&below_root) };
        let declared = launch.component.output_definitions.as_ref();
        let has_artifacts = declared.is_some_and(|declared| !declared.artifacts.is_empty());
        // The SDK derives the places of artifacts that a program chooses itself from that of the description.
        let description = if has_artifacts && remote.is_none() { &outputs } else { &self.folder };
        let mut paths = Paths { executor_output: text(description.join("executor_output.json"))?, ..Paths::default() };
        if let Some(run) = self.folder.ancestors().nth(2) {
            paths.workspace = Some(text(run.join("workspace"))?);
        }
        for (name, list) in &launch.inputs.artifacts {
            let place = |(at, artifact): (usize, &Artifact)| {
                let mut place = input_place(name, artifact, &self.copy_of(name, at))?;
                if let Some(workspace) = paths.workspace.as_deref().filter(|_| is_in_workspace(artifact)) {
                    place.path = path_in_workspace(workspace, &artifact.uri)?;
                }
                Ok(place)
            };
            let places = list.iter().enumerate().map(place).collect::<Result<_, String>>()?;
            paths.input_artifacts.insert(name.clone(), places);
        }
        for name in declared.iter().flat_map(|outputs| outputs.artifacts.keys()) {
            let path = text(outputs.join(file_name(name)))?;
            let uri = remote.as_ref().map_or_else(|| path.clone(), |root| format!("{root}/{}", file_name(name)));
            paths.output_artifacts.insert(name.clone(), Place { path, uri });
        }
        for name in declared.iter().flat_map(|outputs| outputs.parameters.keys()) {
            paths.output_parameters.insert(name.clone(), text(self.path(&format!("output-{}", file_name(name))))?);
        }
        Ok(paths)
    }
}

/// The place of an input artifact outside of the workspace: where it is, or a copy in the folder `copy` with the same name, if it is not on this machine.
fn input_place(name: &str, artifact: &Artifact, copy: &Path) -> Result<Place, String> {
    if let Some(path) = local_path(&artifact.uri) {
        return Ok(Place { path: path.to_owned(), uri: path.to_owned() });
    }
    if !buckets::is_remote(&artifact.uri) {
        return Err(format!(
            "the input artifact '{name}' is at {}, which a step on one machine cannot read; it reads files, s3://, minio://, gs://, az:// \
             and https://",
            artifact.uri
        ));
    }
    let path = copy.join(file_at(&artifact.uri));
    let path = path.to_str().ok_or("the folder of pipelines is not UTF-8")?.to_owned();
    Ok(Place { path, uri: artifact.uri.clone() })
}

/// The path that a URI of an artifact on this machine is.
pub(super) fn local_path(uri: &str) -> Option<&str> {
    let path = uri.strip_prefix("file://").unwrap_or(uri);
    path.starts_with('/').then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TaskPath;

    #[test]
    fn every_attempt_has_its_own_folder_inside_of_the_root() {
        let root = Path::new("/root");
        let id = |run: &str, path: &str, attempt| AttemptId {
            namespace: "n".into(),
            run_id: run.into(),
            path: TaskPath(path.into()),
            attempt,
        };
        let long = "x".repeat(1000);
        let ids = [
            id("r", "a/b", 1),
            id("r", "a-b", 1),
            id("r", "a/b", 2),
            id("../r", "..", 1),
            id("r", "", 1),
            id("r", &long, 1),
            id("r", &format!("{long}y"), 1),
        ];
        let folders: std::collections::BTreeSet<PathBuf> = ids.iter().map(|id| Attempt::new(root, id).folder).collect();
        assert_eq!(folders.len(), ids.len());
        for folder in folders {
            assert!(folder.components().count() == 5 && !folder.to_string_lossy().contains(".."), "{folder:?}");
        }
    }
}
