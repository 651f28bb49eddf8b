//! How an attempt is started: by a warm worker, as a program of this machine, or by a container engine.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use slipway_exec::local::{Demand, descriptors, supervisor};

use super::attempt::{Attempt, CONTAINER, local_path};
use super::command::{Command, Program};
use super::environments::{Environment, Request};
use super::images::{self, Container, Place};
use super::interpreter::version_of_image;
use super::resources;
use super::{Inner, permanent, programs, variables, volumes, workers};
use crate::artifact::is_in_workspace;
use crate::executor_input::executor_input;
use crate::launch::{content, file_at};
use crate::model::{Failure, Launch, Outputs};
use crate::placeholder::{Paths, container_command};
use crate::platform::{PodSettings, pod_settings};

/// The module that executes lightweight Python components.
const EXECUTOR_MODULE: &str = "kfp.dsl.executor_main";
/// The file with the code of a lightweight component. Its name is the name of the component's module.
const COMPONENT_FILE: &str = "packages/ephemeral_component.py";
/// The prefix of a requirement on the SDK.
const SDK: &str = "kfp";

/// What is known of an attempt before it starts.
pub(super) enum Prepared {
    /// It needs no program.
    Done(Outputs),
    /// It can be started.
    Step(Step),
}

/// An attempt that can be started.
pub(super) struct Step {
    start: Start,
    /// What it occupies while it executes.
    pub(super) demand: Demand,
    pub(super) variables: BTreeMap<String, String>,
    limit: Option<i64>,
    /// Notes for the log.
    note: Option<String>,
}

enum Start {
    /// By the worker of an environment, as `python -m kfp.dsl.executor_main`.
    Worker { environment: Arc<Environment>, arguments: Vec<String> },
    /// As a program with arguments, in the environment, if there is one.
    Program { words: Vec<String>, _environment: Option<Arc<Environment>> },
}

impl Inner {
    /// Finds out how an attempt is started, and creates what it needs: files, folders, and its environment.
    pub(super) async fn prepare(&self, launch: &Launch, attempt: &Attempt, paths: &Paths) -> Result<Prepared, Failure> {
        let pod = pod_settings(launch).map_err(permanent)?;
        let image = pod.spec.image.clone().unwrap_or_default();
        let claims = self.settings.volumes.join(crate::launch::file_name(&launch.run.namespace));
        if let Some(done) = volumes::execute(&image, launch, &claims) {
            return done.map(Prepared::Done);
        }
        if let Some(container) = pod.init_containers.first() {
            let name = &container["name"];
            return Err(permanent(format!(
                "task '{}' has the init container {name}, which needs a cluster",
                launch.path
            )));
        }
        self.fetch_inputs(launch, attempt, paths).await?;
        // The SDK takes the path of an artifact from its URI.
        let input = executor_input(launch, &paths.with_paths_as_uris());
        let input = serde_json::to_string(&input).map_err(|e| permanent(e.to_string()))?;
        let (command, args) = container_command(launch, paths, &input).map_err(permanent)?;
        let tracking = variables::of_tracking(launch, self.settings.mint.as_ref(), time_limit(&pod));
        let of_server = self.settings.variables.iter().cloned().chain(tracking).collect();
        let values = variables::Values { secrets: &self.settings.secrets, config_maps: &self.settings.config_maps };
        let requested = variables::requested(of_server, launch, &pod, values).map_err(permanent)?;
        let folders = volumes::Folders {
            claims,
            secrets: &self.settings.secrets,
            config_maps: &self.settings.config_maps,
            attempt: attempt.path("volumes"),
        };
        let mounts = volumes::mounts(&pod.spec, &folders).map_err(permanent)?;
        let words: Vec<String> = command.iter().chain(&args).cloned().collect();
        let base = match images::place(&image, &self.settings.images, &self.engine).await {
            None => return Err(permanent(no_place(launch, &image))),
            Some(Place::Engine(engine)) => {
                let own = [attempt.folder.clone(), self.settings.artifacts.clone()];
                let mut own: Vec<PathBuf> =
                    own.into_iter().chain(paths.workspace.as_ref().map(PathBuf::from)).collect();
                // Artifacts that were imported from elsewhere on this machine.
                let inputs = paths.input_artifacts.values().flatten().map(|place| PathBuf::from(&place.path));
                let elsewhere: Vec<PathBuf> =
                    inputs.filter(|path| !own.iter().any(|folder| path.starts_with(folder))).collect();
                own.extend(elsewhere);
                let own = own.into_iter().map(|folder| (folder.clone(), folder.display().to_string()));
                let container = Container {
                    image: &image,
                    command: &command,
                    args: &args,
                    variables: requested.keys().map(String::as_str).collect(),
                    mounts: own.chain(mounts).collect(),
                    folder: &attempt.path("work"),
                    id_file: &attempt.path(CONTAINER),
                };
                let words = std::iter::once(engine.display().to_string()).chain(container.arguments()).collect();
                return Ok(Prepared::Step(self.step(
                    Start::Program { words, _environment: None },
                    &requested,
                    &pod,
                    attempt,
                )));
            }
            Some(Place::Environment(folder)) => Some(folder),
            Some(Place::Machine) => None,
        };
        if words.is_empty() {
            return Err(permanent(format!(
                "task '{}' has no command, so it needs the one of its image {image}, which is not run on this machine",
                launch.path
            )));
        }
        self.prepare_local(launch, attempt, &image, base, words, &requested, &pod, &mounts).await
    }

    /// Copies the inputs that are not on this machine, and those that belong into the workspace.
    async fn fetch_inputs(&self, launch: &Launch, attempt: &Attempt, paths: &Paths) -> Result<(), Failure> {
        for (name, places) in &paths.input_artifacts {
            let artifacts = launch.inputs.artifacts.get(name).into_iter().flatten();
            for (at, (artifact, place)) in artifacts.zip(places).enumerate() {
                let path = Path::new(&place.path);
                let fetched = if is_in_workspace(artifact) {
                    let folder = attempt.copy_of(name, at);
                    self.copy_into_workspace(&place.uri, &folder, path).await
                } else if place.path == place.uri {
                    Ok(())
                } else {
                    self.buckets.fetch(&place.uri, path).await
                };
                fetched.map_err(|reason| Failure {
                    message: format!("fetching the input artifact '{name}' from {}: {reason}", place.uri),
                    ..Failure::default()
                })?;
            }
        }
        Ok(())
    }

    /// Copies an artifact to a path in the workspace, unless an earlier step has done so. `folder` is for the copy of one in a bucket.
    async fn copy_into_workspace(&self, uri: &str, folder: &Path, path: &Path) -> Result<(), String> {
        if path.exists() {
            return Ok(());
        }
        let source = match local_path(uri) {
            Some(local) => PathBuf::from(local),
            None => {
                let copy = folder.join(file_at(uri));
                self.buckets.fetch(uri, &copy).await?;
                copy
            }
        };
        content::copy_for_tasks(source, path.to_owned()).await
    }

    /// Prepares a step whose programs are those of this machine.
    #[allow(clippy::too_many_arguments)] // everything that is known of the step
    async fn prepare_local(
        &self,
        launch: &Launch,
        attempt: &Attempt,
        image: &str,
        base: Option<PathBuf>,
        words: Vec<String>,
        requested: &BTreeMap<String, String>,
        pod: &PodSettings,
        mounts: &[volumes::Mount],
    ) -> Result<Prepared, Failure> {
        let Command { mut installs, program } = Command::new(words);
        let is_lightweight = matches!(program, Program::Lightweight { .. });
        if is_lightweight && base.is_none() && !installs.iter().flatten().any(|argument| argument.starts_with(SDK)) {
            // Components without it expect it in their image.
            installs.push(vec![SDK.into(), "--no-deps".into()]);
        }
        // Steps without packages use the programs of this machine, unless they need the Python of their image.
        let needs_environment = is_lightweight || !installs.is_empty() || (base.is_none() && image.contains("python"));
        let environment = if needs_environment {
            let request = Request { version: version_of_image(image), base: base.clone(), installs };
            let created = self.environments.get(&request).await;
            let failed =
                |reason| Failure { message: format!("task '{}': {reason}", launch.path), ..Failure::default() };
            Some(created.map_err(failed)?)
        } else {
            None
        };
        let programs = environment.as_ref().map(|e| e.programs()).or_else(|| base.map(|base| base.join("bin")));
        let mut words = match program {
            Program::Words(words) => words,
            Program::Lightweight { code, arguments } => {
                let file = attempt.path(COMPONENT_FILE);
                let written = attempt.write(COMPONENT_FILE, code.as_bytes());
                written.map_err(|error| permanent(format!("writing the component: {error}")))?;
                let module = ["--component_module_path".to_owned(), file.display().to_string()];
                let arguments: Vec<String> = module.into_iter().chain(arguments).collect();
                let is_warm = mounts.is_empty() && !requested.keys().any(|name| variables::is_read_at_start(name));
                if let Some(environment) = environment.clone().filter(|_| is_warm) {
                    let mut step = self.step(Start::Worker { environment, arguments }, requested, pod, attempt);
                    step.variables.insert("_KFP_RUNTIME".into(), "true".into());
                    return Ok(Prepared::Step(step));
                }
                let python = ["env", "_KFP_RUNTIME=true", "python3", "-m", EXECUTOR_MODULE].map(str::to_owned);
                python.into_iter().chain(arguments).collect()
            }
        };
        let mut step =
            self.step(Start::Program { words: Vec::new(), _environment: environment }, requested, pod, attempt);
        if let Some(programs) = programs {
            step.variables = variables::all(&self.inherited, requested, Some(&programs), attempt);
        }
        let path = step.variables.get("PATH").map_or(OsStr::new(""), OsStr::new);
        if !programs::exists(&words[0], path, &attempt.path("work")) {
            return Err(permanent(format!(
                "task '{}' executes {}, which is not on this machine; install it, or a container engine for its image {image}",
                launch.path, words[0]
            )));
        }
        words = volumes::wrapped(mounts, words).ok_or_else(|| {
            permanent(format!(
                "task '{}' mounts volumes, which needs bubblewrap (bwrap) or a container engine",
                launch.path
            ))
        })?;
        if let Start::Program { words: program, .. } = &mut step.start {
            *program = words;
        }
        Ok(Prepared::Step(step))
    }

    fn step(&self, start: Start, requested: &BTreeMap<String, String>, pod: &PodSettings, attempt: &Attempt) -> Step {
        let environment = match &start {
            Start::Worker { environment, .. } => Some(environment),
            Start::Program { _environment, .. } => _environment.as_ref(),
        };
        let programs = environment.map(|environment| environment.programs());
        let variables = variables::all(&self.inherited, requested, programs.as_deref(), attempt);
        let note = environment.and_then(|environment| environment.note.clone());
        Step { start, demand: resources::demand(&pod.spec.resources), variables, limit: time_limit(pod), note }
    }

    /// Starts a step. Afterwards [`supervisor::has_started`] shows whether it was: a worker may have ended before.
    pub(super) async fn start(&self, step: &Step, attempt: &Attempt) -> Result<(), Failure> {
        let failed = |message: String| Failure { message, ..Failure::default() };
        if let Some(note) = &step.note {
            let written = std::fs::write(attempt.path("log"), format!("slipway: {note}\n"));
            written.map_err(|error| failed(format!("creating the log: {error}")))?;
        }
        let grace = u64::try_from(self.settings.grace.as_millis()).unwrap_or(u64::MAX);
        match &step.start {
            Start::Worker { environment, arguments } => {
                let request = workers::Request {
                    attempt: attempt.folder.clone(),
                    folder: attempt.path("work"),
                    module: EXECUTOR_MODULE,
                    arguments: arguments.clone(),
                    environment: step.variables.clone(),
                    limit: step.limit,
                    grace,
                    log_limit: self.settings.log_limit,
                };
                let idle = self.settings.worker_idle;
                workers::execute(environment, &request, idle, &self.inherited).await.map_err(failed)
            }
            Start::Program { words, .. } => {
                let task = supervisor::Task {
                    program: words[0].clone(),
                    args: words[1..].to_vec(),
                    folder: Some(attempt.path("work")),
                    limit: step.limit,
                    grace,
                    descriptors: descriptors::limit_for_runs(),
                    log_limit: Some(self.settings.log_limit),
                    ..supervisor::Task::default()
                };
                let text = serde_json::to_vec(&task).map_err(|error| failed(error.to_string()))?;
                let written = attempt.write("task.json", &text);
                written.map_err(|error| failed(format!("writing the attempt: {error}")))?;
                let variables =
                    step.variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
                let started = supervisor::spawn(&self.settings.program, &attempt.folder, variables.collect());
                started.map_err(|error| failed(error.to_string()))
            }
        }
    }
}

/// Milliseconds for which a step may run.
fn time_limit(pod: &PodSettings) -> Option<i64> {
    pod.spec.active_deadline_seconds.map(|seconds| i64::from(seconds) * 1000)
}

fn no_place(launch: &Launch, image: &str) -> String {
    format!(
        "task '{}' needs the image {image}, and this machine has no container engine; install podman or docker, or map the image to an \
         environment of this machine with the setting `pipeline-images`",
        launch.path
    )
}
