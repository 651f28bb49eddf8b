//! The program in the pod of a step (`slipway pipeline step`): fetches the inputs, executes the user's program, and delivers the outputs.
//! It talks to the control plane with the token of its attempt, so that only pods whose inputs are in other buckets need credentials.
//!
//! | module | contents |
//! |---|---|
//! | `client` | requests to the control plane, which are repeated while it is away |
//! | [`install`] | copies this program into the pod |
//! | [`worker`] | executes the steps of several tasks one after the other |

mod client;
pub mod install;
pub mod worker;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use slipway_store::Limits;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use self::client::Client;
use crate::artifact::is_in_workspace;
use crate::executor_input::read_outputs;
use crate::launch::buckets::{self, Buckets};
use crate::launch::content::{copy_for_tasks, seal};
use crate::launch::pods::artifacts::uri;
use crate::launch::pods::http::Order;
use crate::launch::pods::step::{FOLDER, Step, copy_of};
use crate::model::{Artifact, Failure, Outcome, Outputs};

/// Maximum bytes of an artifact whose digest is computed.
const DIGEST_LIMIT: u64 = 4 << 30;
/// How a pod gets credentials for buckets.
const REMEDY: &str =
    "put them into the secret slipway-buckets of the namespace, or give the run a service account that has access";
/// Exit code of a step that failed for a reason that is not the program's.
const FAILED: i32 = 1;
/// Exit codes of a shell for a program that cannot be started.
const NOT_STARTED: i32 = 127;
/// Added to the number of the signal that ended a program, as in a shell.
const SIGNALLED: i32 = 128;

/// Where the control plane is, and with which token this pod uses it.
#[derive(Clone)]
#[allow(missing_debug_implementations)] // has a secret
pub struct Server {
    /// URL of the control plane.
    pub url: String,
    /// Token of the attempt.
    pub token: String,
    /// File of certificate authorities, if those of the system do not suffice.
    pub authorities: Option<PathBuf>,
}

/// Executes the step of this pod. Returns the exit code of the program.
///
/// # Errors
/// Why the step could not be executed, or its outputs not be delivered.
pub async fn execute(server: &Server) -> Result<i32, String> {
    let client = Client::new(server)?;
    let (step, outputs) = match client.order().await? {
        Order::Execute { step, outputs } => (step, outputs),
        Order::Done => return Ok(0),
    };
    let buckets = Buckets::new(Path::new(FOLDER).join("copies"), Limits::default(), REMEDY);
    let execution = Execution { client, buckets, step: *step, outputs };
    execution.fetch_inputs().await?;
    execution.create_folders().map_err(|error| format!("creating the folders of the step: {error}"))?;
    let stopped = AtomicBool::new(false);
    let ended = match execution.run(&stopped).await {
        Ok(status) => status,
        Err(failure) => {
            execution.client.deliver(&Outcome::Failed(failure)).await?;
            return Ok(NOT_STARTED);
        }
    };
    let code = code_of(ended);
    if code != 0 && stopped.load(Ordering::Acquire) {
        // The pod is being deleted: whether that is a cancellation or a disruption is known outside only.
        return Ok(code);
    }
    let outcome = if code == 0 { execution.outputs().await? } else { exited(code) };
    execution.client.deliver(&outcome).await?;
    // A program that succeeded without its outputs has failed, and so has its pod.
    Ok(if code == 0 && !matches!(outcome, Outcome::Succeeded(_)) { FAILED } else { code })
}

/// The exit code of a program, as a shell has it.
fn code_of(ended: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    ended.code().unwrap_or_else(|| SIGNALLED + ended.signal().unwrap_or(0))
}

fn exited(code: i32) -> Outcome {
    let message = format!("the program exited with code {code}");
    Outcome::Failed(Failure { message, exit_code: Some(code), is_permanent: false })
}

struct Execution {
    client: Client,
    buckets: Buckets,
    step: Step,
    /// What the URIs of output artifacts begin with.
    outputs: String,
}

impl Execution {
    async fn fetch_inputs(&self) -> Result<(), String> {
        for (name, artifacts) in &self.step.inputs.artifacts {
            let places = self.step.paths.input_artifacts.get(name).map(Vec::as_slice).unwrap_or_default();
            for (index, (artifact, place)) in artifacts.iter().zip(places).enumerate() {
                let failed =
                    |reason| format!("the input artifact '{name}', {}, cannot be fetched: {reason}", artifact.uri);
                let is_shared = is_in_workspace(artifact);
                if is_shared && Path::new(&place.path).exists() {
                    continue; // an earlier step has copied it, and may have changed it since
                }
                let copy = if is_shared { copy_of(name, index, &artifact.uri) } else { place.path.clone() };
                let fetched = if buckets::is_remote(&artifact.uri) {
                    self.buckets.fetch(&artifact.uri, Path::new(&copy)).await
                } else {
                    self.client.fetch(name, index, Path::new(&copy)).await
                };
                fetched.and_then(|()| verify(artifact, &copy)).map_err(failed)?;
                if is_shared {
                    copy_for_tasks(copy.into(), place.path.clone().into()).await.map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    /// Creates the folders that the program writes to.
    fn create_folders(&self) -> std::io::Result<()> {
        let paths = &self.step.paths;
        let outputs = paths.output_artifacts.values().map(|place| &place.path);
        for file in outputs.chain(paths.output_parameters.values()).chain([&paths.executor_output]) {
            if let Some(folder) = Path::new(file).parent() {
                std::fs::create_dir_all(folder)?;
            }
        }
        Ok(())
    }

    /// Executes the program to its end. Signals that end this process are passed on to it.
    async fn run(&self, stopped: &AtomicBool) -> Result<ExitStatus, Failure> {
        let words = &self.step.command;
        let failed = |error: std::io::Error| Failure {
            message: format!("the program {} cannot be started: {error}", words[0]),
            exit_code: Some(NOT_STARTED),
            is_permanent: false,
        };
        let (mut term, mut interrupt) =
            (signal(SignalKind::terminate()).map_err(failed)?, signal(SignalKind::interrupt()).map_err(failed)?);
        let mut child = Command::new(&words[0]).args(&words[1..]).spawn().map_err(failed)?;
        loop {
            let sent = tokio::select! {
                ended = child.wait() => return ended.map_err(failed),
                _ = term.recv() => Signal::TERM,
                _ = interrupt.recv() => Signal::INT,
            };
            stopped.store(true, Ordering::Release);
            send(&child, sent);
        }
    }

    /// Reads and uploads the outputs of a program that succeeded.
    async fn outputs(&self) -> Result<Outcome, String> {
        let launch = self.step.launch()?;
        let mut outputs: Outputs = match read_outputs(&launch, &self.step.paths) {
            Ok(outputs) => outputs,
            Err(failure) => return Ok(Outcome::Failed(Failure { exit_code: Some(0), ..failure })),
        };
        for (name, artifacts) in &mut outputs.artifacts {
            for (index, artifact) in artifacts.iter_mut().enumerate() {
                self.upload(name, index, artifact).await?;
            }
        }
        Ok(Outcome::Succeeded(outputs))
    }

    /// Delivers an artifact that the program wrote in this pod: to the bucket of the run, or to the control plane. One that the program put
    /// elsewhere keeps its URI.
    async fn upload(&self, name: &str, index: usize, artifact: &mut Artifact) -> Result<(), String> {
        if !artifact.uri.starts_with('/') {
            return Ok(());
        }
        let path = PathBuf::from(std::mem::replace(&mut artifact.uri, uri(&self.outputs, name, index)));
        if path.exists() {
            artifact.digest = seal(&path, DIGEST_LIMIT);
            let uploaded = if buckets::is_bucket(&artifact.uri) {
                self.buckets.deliver(&path, &artifact.uri).await
            } else {
                self.client.upload(name, index, &path).await
            };
            uploaded.map_err(|reason| format!("the output artifact '{name}' cannot be delivered: {reason}"))?;
        }
        Ok(())
    }
}

/// Fails if a fetched artifact differs from what was recorded.
fn verify(artifact: &Artifact, path: &str) -> Result<(), String> {
    let Some(expected) = &artifact.digest else { return Ok(()) };
    match seal(Path::new(path), DIGEST_LIMIT) {
        Some(actual) if actual == *expected => Ok(()),
        actual => Err(format!("its digest is {}, not {expected}", actual.as_deref().unwrap_or("unknown"))),
    }
}

/// Sends a signal to a child that has not been waited for, so that its process id is still its own.
fn send(child: &Child, signal: Signal) {
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(Err(error)) = id.map(|id| kill_process(id, signal)) {
        eprintln!("slipway: the program cannot be stopped: {error}");
    }
}
