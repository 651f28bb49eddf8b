//! `repro --submit`: the commands of stages as submitted runs. On a single machine they work in the folder of the project; in a cluster the pod
//! of a stage gets a snapshot of the project, and shares dependencies and results through the remote.
//!
//! Before a run is submitted, a file records its name. So a run outlives the command that submitted it: the next `repro --submit` follows it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use slipway_core::data_volume::SECRET_KEYS;
use slipway_core::{Explain, ids};
use slipway_data::DataError;
use slipway_data::commands::elsewhere::Snapshot;
use slipway_data::commands::runner::{Request, Runner};
use slipway_exec::data::{Source, UsedData};
use slipway_exec::manifest::{EnvVar, RunSpec};
use slipway_exec::{Manifest, Phase, Submitted};
use tokio::sync::watch;

use super::Context;
use crate::Failure;
use crate::cli::data::pipeline::Submission;
use crate::client::{Client, encode};
use crate::client_error::ClientError;
use crate::commands::submit::{path, summarize};

/// Interval at which the status of a run is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// How long a server may be unreachable before the command gives up. The runs go on.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(120);
/// Maximum characters of a stage's name in the name of its run.
const MAX_STAGE_CHARS: usize = 40;
/// Maximum bytes of a line of output that is shown as one.
const MAX_LINE_BYTES: usize = 64 << 10;
/// The script that runs the commands of a stage in the user's shell: its arguments are the commands.
const PROCESS_SCRIPT: &str = r#"for command; do
  echo "> $command"
  case "${SHELL:=/bin/sh}" in
    */zsh) "$SHELL" --no-rcs -c "$command" ;;
    */bash) "$SHELL" --noprofile --norc -c "$command" ;;
    */fish) "$SHELL" --no-config -c "$command" ;;
    *) "$SHELL" -c "$command" ;;
  esac || exit
done"#;
/// The script that runs a stage in a pod, whose image has git and slipway.
const POD_SCRIPT: &str = r#"set -eu
umask 077
folder=$(mktemp -d)
cd "$folder"
if [ -n "${STAGE_GIT_CREDENTIALS:-}" ]; then
  printf '%s\n' "$STAGE_GIT_CREDENTIALS" > credentials
  set -- -c "credential.helper=store --file='$folder/credentials'"
fi
git init -q repository
cd repository
git "$@" fetch -q --depth 1 "$STAGE_REPOSITORY" "$STAGE_REFERENCE"
git checkout -q FETCH_HEAD
cd "./$STAGE_PROJECT"
if [ -n "${STAGE_CONFIG:-}" ]; then printf '%s\n' "$STAGE_CONFIG" > .dvc/config.local; fi
unset STAGE_GIT_CREDENTIALS STAGE_CONFIG
exec slipway data repro --force --single-item --share "$STAGE_NAME""#;
/// Variables of the caller that a process on this machine gets, so that it finds the same programs as a stage that is not submitted.
const FORWARDED: &[&str] = &["PATH", "SHELL", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH"];
/// Fields of a run that the stage determines.
const DETERMINED: &[&str] = &["command", "args", "workingDir", "data", "source", "cancel"];

/// The record of a run of a stage, as long as its result is not recorded.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Pending {
    name: String,
    namespace: String,
    key: String,
}

/// Submits stages to a server.
pub(super) struct Submitter {
    client: Client,
    /// Whether the server runs pods.
    has_pods: bool,
    options: Submission,
    /// The folder with the records of pending runs.
    records: PathBuf,
    /// Where the runs come from.
    source: Option<Source>,
    /// The runs of earlier processes that go on, by stage.
    adopted: Mutex<HashMap<String, Pending>>,
    cancelled: watch::Sender<bool>,
}

impl std::fmt::Debug for Submitter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Submitter")
            .field("has_pods", &self.has_pods)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

fn failed(error: ClientError) -> DataError {
    DataError::Access { message: error.to_string(), code: error.code(), hint: error.hint() }
}

/// How a run ended, or why that is not known.
enum End {
    Run(Box<Submitted>),
    Unknown(ClientError),
}

impl Submitter {
    /// A submitter for the project in a folder.
    pub(super) async fn connect(
        context: &Context,
        options: Submission,
        tmp: &Path,
        source: Option<Source>,
    ) -> Result<Self, DataError> {
        let client = context.client().await.map_err(|failure| match failure {
            Failure::Error { message, code, hint, .. } => DataError::Access { message, code, hint },
            Failure::Findings => DataError::Invalid("the server cannot be used".into()),
        })?;
        if client.is_in_process() {
            return Err(DataError::Invalid(
                "stages are submitted to a running server; start it with `slipway up`".into(),
            ));
        }
        let status: Value = client.get("/api/v1/status").await.map_err(failed)?;
        Ok(Self {
            has_pods: status["runs"] == "pods",
            client,
            options,
            records: tmp.join("slipway-runs"),
            source,
            adopted: Mutex::default(),
            cancelled: watch::Sender::new(false),
        })
    }

    fn record_of(&self, address: &str) -> PathBuf {
        self.records.join(encode(address))
    }

    async fn get(&self, pending: &Pending) -> Result<Option<Submitted>, ClientError> {
        // A list has no error for a run that does not exist.
        let query = format!("/api/v1/runs?namespace={}", encode(&pending.namespace));
        let runs: Vec<Submitted> = self.client.get(&query).await?;
        Ok(runs.into_iter().find(|run| run.manifest.metadata.name == pending.name))
    }

    async fn stop(&self, pending: &Pending) -> Result<(), ClientError> {
        let path = format!("{}/cancel", path(&pending.namespace, &pending.name));
        self.client.post::<Value>(&path, &Value::Null).await.map(drop)
    }

    /// The manifest of a run of a stage.
    fn manifest(&self, request: &Request) -> Result<Manifest, DataError> {
        let invalid =
            |reason: String| DataError::Invalid(format!("meta.slipway of stage '{}': {reason}", request.address));
        let settings = request.settings.as_deref().unwrap_or(b"{}");
        let mut settings: Map<String, Value> =
            serde_json::from_slice(settings).map_err(|_| invalid("it is not a mapping of fields of a run".into()))?;
        if let Some(field) = DETERMINED.iter().find(|field| settings.contains_key(**field)) {
            return Err(invalid(format!("'{field}' is determined by the stage")));
        }
        let secret = match settings.remove("secretName") {
            Some(Value::String(name)) => Some(name),
            Some(_) => return Err(invalid("'secretName' is not a text".into())),
            None => self.options.secret.clone(),
        };
        let mut spec: RunSpec = serde_json::from_value(settings.into()).map_err(|error| invalid(error.to_string()))?;
        spec.image = spec.image.or_else(|| self.options.image.clone());
        spec.source = self.source.clone().map(|source| with_data(source, request));
        match &request.snapshot {
            Some(snapshot) => in_pod(&mut spec, snapshot, secret.as_deref()),
            None => as_process(&mut spec, request),
        }
        let mut run = Manifest::new(run_name(&request.address), [""; 0]);
        run.metadata.namespace = self.options.namespace.clone().unwrap_or_default();
        run.metadata.annotations.insert("slipway.dev/stage".into(), request.address.clone());
        run.spec = spec;
        run.check().map_err(|error| invalid(error.to_string()))?;
        if self.has_pods && run.spec.image.is_none() {
            let reason = "an image with git and slipway is missing; set 'image' there, or pass --image";
            return Err(invalid(reason.into()));
        }
        Ok(run)
    }

    /// Submits a run, after recording that.
    async fn submit(&self, request: &Request) -> Result<Pending, DataError> {
        let run = self.manifest(request)?;
        let namespace = match run.metadata.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        };
        let pending =
            Pending { name: run.metadata.name.clone(), namespace: namespace.into(), key: request.key.clone() };
        let record = self.record_of(&request.address);
        let io = |source| DataError::Io { path: record.clone(), source };
        std::fs::create_dir_all(&self.records).map_err(io)?;
        slipway_core::files::replace(&record, json!(pending).to_string().as_bytes()).map_err(io)?;
        self.client.post_text::<Submitted>("/api/v1/runs", json!(run).to_string()).await.map_err(failed)?;
        Ok(pending)
    }

    /// Waits for the end of a run, and passes on its output.
    async fn follow(&self, pending: &Pending, line: &(dyn Fn(&str) + Send + Sync)) -> End {
        let (mut shown, mut summary, mut is_stopped) = (0, String::new(), false);
        let mut cancelled = self.cancelled.subscribe();
        let mut reached = Instant::now();
        loop {
            if *cancelled.borrow_and_update() && !is_stopped {
                is_stopped = self.stop(pending).await.is_ok();
            }
            let run = match self.get(pending).await {
                Ok(Some(run)) => run,
                Ok(None) => {
                    let message = format!("the run {} was deleted", pending.name);
                    return End::Unknown(ClientError::ErrorResponse { message, hint: None });
                }
                Err(error @ ClientError::Unreachable(..)) if reached.elapsed() < RECONNECT_TIMEOUT => {
                    tracing::debug!(%error, "the server is polled again");
                    tokio::time::sleep(POLL_INTERVAL).await;
                    continue;
                }
                Err(error) => return End::Unknown(error),
            };
            reached = Instant::now();
            let newest =
                run.status.attempts.iter().find(|attempt| attempt.number > shown && attempt.started_at.is_some());
            if let Some(attempt) = newest {
                shown = attempt.number;
                tokio::select! {
                    () = self.show_log(pending, shown, line) => {}
                    _ = cancelled.wait_for(|is_cancelled| *is_cancelled), if !is_stopped => shown -= 1,
                }
                continue;
            }
            if run.status.phase.is_final() {
                return End::Run(Box::new(run));
            }
            let now = summarize(&run);
            if now != summary && run.status.phase == Phase::Pending && !run.status.reason.is_empty() {
                line(&format!("{}: {now}", pending.name));
            }
            summary = now;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Passes on the output of an attempt, line by line. What is lost with a connection is in the log of the run.
    async fn show_log(&self, pending: &Pending, attempt: u32, line: &(dyn Fn(&str) + Send + Sync)) {
        let query = format!("{}/log?follow=true&attempt={attempt}", path(&pending.namespace, &pending.name));
        let mut rest = Vec::new();
        let show = |bytes: &[u8]| line(String::from_utf8_lossy(bytes).trim_end_matches(['\n', '\r']));
        let followed = self.client.follow(&query, |bytes| {
            rest.extend_from_slice(bytes);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                show(&rest.drain(..=end).collect::<Vec<_>>());
            }
            if rest.len() > MAX_LINE_BYTES {
                show(&std::mem::take(&mut rest));
            }
            true
        });
        if let Err(error) = followed.await {
            tracing::debug!(%error, run = pending.name, "the log of a run broke off");
        }
        if !rest.is_empty() {
            show(&rest);
        }
    }
}

impl Runner for Submitter {
    fn is_elsewhere(&self) -> bool {
        self.has_pods
    }

    fn adopt<'a>(&'a self, address: &'a str, key: &'a str) -> BoxFuture<'a, Result<bool, DataError>> {
        Box::pin(async move {
            let record = self.record_of(address);
            let Some(pending) =
                std::fs::read(&record).ok().and_then(|text| serde_json::from_slice::<Pending>(&text).ok())
            else {
                return Ok(false);
            };
            loop {
                let run = self.get(&pending).await.map_err(failed)?;
                if run.is_none_or(|run| run.status.phase.is_final()) {
                    return Ok(false);
                }
                if pending.key == key {
                    let mut adopted = self.adopted.lock().unwrap_or_else(PoisonError::into_inner);
                    adopted.insert(address.to_owned(), pending);
                    return Ok(true);
                }
                self.stop(&pending).await.map_err(failed)?;
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        })
    }

    fn run<'a>(
        &'a self,
        request: &'a Request,
        line: &'a (dyn Fn(&str) + Send + Sync),
    ) -> BoxFuture<'a, Result<(), DataError>> {
        Box::pin(async move {
            let adopted = self.adopted.lock().unwrap_or_else(PoisonError::into_inner).remove(&request.address);
            let pending = match adopted {
                Some(pending) => {
                    line(&format!("following the run {}, which was submitted earlier", pending.name));
                    pending
                }
                None => self.submit(request).await?,
            };
            let run = match self.follow(&pending, line).await {
                End::Run(run) => run,
                End::Unknown(error) => {
                    return Err(DataError::Reproduction(format!(
                        "the end of the run {} is not known: {error}; the next `repro --submit` follows it",
                        pending.name
                    )));
                }
            };
            // If it remains, the next command finds that the run has ended.
            let _ = std::fs::remove_file(self.record_of(&request.address));
            match run.status.phase {
                Phase::Succeeded => Ok(()),
                _ => Err(DataError::Reproduction(format!("the run {} {}", pending.name, summarize(&run)))),
            }
        })
    }

    fn cancel(&self) {
        self.cancelled.send_replace(true);
    }
}

/// A valid name for a run, in which the name of the stage can be read.
fn run_name(address: &str) -> String {
    let letters = address.to_ascii_lowercase();
    let words: Vec<&str> =
        letters.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let name: String = words.join("-").chars().take(MAX_STAGE_CHARS).collect();
    let name = if name.is_empty() { "stage" } else { name.trim_end_matches('-') };
    format!("{name}-{}", &ids::hex32()[..8])
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.into(), value: Some(value.into()), value_from: None }
}

/// A process on this machine works in the folder of the project.
fn as_process(spec: &mut RunSpec, request: &Request) {
    spec.command = ["/bin/sh", "-c", PROCESS_SCRIPT, "stage"].map(str::to_owned).to_vec();
    spec.args.clone_from(&request.commands);
    spec.working_dir = Some(request.folder.display().to_string());
    let mut env =
        vec![variable("DVC_STAGE", &request.address), variable("DVC_ROOT", &request.root.display().to_string())];
    env.extend(request.variables.iter().map(|(name, value)| variable(name, value)));
    env.extend(FORWARDED.iter().filter_map(|name| Some(variable(name, &std::env::var(name).ok()?))));
    // What the stage sets comes later, and counts.
    env.append(&mut spec.env);
    spec.env = env;
}

/// A pod works on a copy of the project.
fn in_pod(spec: &mut RunSpec, snapshot: &Snapshot, secret: Option<&str>) {
    spec.command = ["/bin/sh", "-c", POD_SCRIPT].map(str::to_owned).to_vec();
    spec.env.extend([
        variable("STAGE_REPOSITORY", &snapshot.repository),
        variable("STAGE_REFERENCE", &snapshot.reference),
        variable("STAGE_PROJECT", &snapshot.project),
        variable("STAGE_NAME", &snapshot.stage),
    ]);
    if let Some(secret) = secret {
        let keys = ["STAGE_GIT_CREDENTIALS", "STAGE_CONFIG"].into_iter().zip(SECRET_KEYS);
        spec.env.extend(keys.map(|(name, key)| EnvVar {
            name: name.into(),
            value: None,
            value_from: Some(json!({"secretKeyRef": {"name": secret, "key": key, "optional": true}})),
        }));
    }
}

/// The source of a run with the dependencies of its stage as data.
fn with_data(mut source: Source, request: &Request) -> Source {
    let below = |path: &Path| path.strip_prefix(&request.root).ok().map(|path| Path::new(&source.path).join(path));
    let data = request.inputs.iter().filter_map(|(path, digest)| {
        let path = below(path)?.display().to_string();
        let (repo, commit) = (source.repo.clone(), source.commit.clone());
        Some(UsedData { repo, commit, path, digest: digest.clone(), ..UsedData::default() })
    });
    source.data = data.collect();
    source
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_named_after_their_stage() {
        for (address, prefix) in
            [("train", "train-"), ("models/dvc.yaml:Fit@a_b", "models-dvc-yaml-fit-a-b-"), ("@", "stage-")]
        {
            let name = run_name(address);
            assert!(name.starts_with(prefix) && name.len() == prefix.len() + 8, "{name}");
        }
        assert!(run_name(&"x".repeat(100)).len() <= MAX_STAGE_CHARS + 9);
    }
}
