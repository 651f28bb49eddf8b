//! Runs as pods. A `Run` is an object of the cluster like any other: `kubectl apply`, `get`, `describe`, `wait` and `delete` work on it,
//! and so does `slipway run`. The controller makes a pod for each attempt, watches it, writes its end into the run's status, and then
//! lets the pod be deleted.
//!
//! | module | what it is for |
//! |---|---|
//! | `pod` | the pod and the secret of an attempt, and what is seen of the pod |
//! | `known` | runs and pods, as the watches tell them |
//! | `controller` | what is done about it |
//! | `usage` | what the GPUs did |

mod controller;
mod known;
mod pod;
#[cfg(test)]
mod tests;
mod usage;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{AsyncReadExt, StreamExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use slipway_core::task::restart_on_panic;
use slipway_exec::manifest::SUBMITTED_BY;
use slipway_exec::{Answer, ExecError, Executor, LogQuery, LogStream, Manifest, Submitted, TokenRequest, Tracker};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::leader::Election;
use crate::{Api, KubeError, Resource};

pub use crate::names::{FINALIZER, RUN_LABEL};

/// `slipway.dev/v1 Run`.
pub const RUN: Resource<'static> = Resource { group: "slipway.dev", version: "v1", kind: "Run", plural: "runs" };
/// Its definition.
pub const DEFINITION: &str = include_str!("../../../../deploy/helm/slipway/files/runs.yaml");
/// The lease of the one that leads.
const LEASE: &str = "slipway-runs";
/// Bytes read of a log at once.
const CHUNK: usize = 32 * 1024;

/// A run's namespace and name.
type Key = (String, String);

/// Makes the token of an attempt, here or at the control plane; fails with a message.
pub type TokenSource = Arc<dyn Fn(TokenRequest) -> BoxFuture<'static, Result<String, String>> + Send + Sync>;

/// What the controller needs to know.
#[derive(Clone)]
#[allow(missing_debug_implementations)] // a function has nothing to show
pub struct Settings {
    /// The namespace of the installation.
    pub namespace: String,
    /// Who this is among those that may lead.
    pub identity: String,
    /// Variables of every run: where it tracks to.
    pub variables: Vec<(String, String)>,
    /// The file of the certificates (PEM) by which runs know the control plane, where the image's own do not suffice. It is read for
    /// each attempt, so that a renewed authority reaches new attempts. A file that does not exist says that the image's own do.
    pub ca_file: Option<PathBuf>,
    /// Makes the token that an attempt tracks with.
    pub token: TokenSource,
    /// The pause before a pod that was refused, by a quota for instance, is tried again.
    pub patience: Duration,
}

/// The version of an object. Versions grow, and may be compared (KEP-5504, in Kubernetes from 1.35).
fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// The controller of runs: it takes part in the election and reconciles runs while it leads. Dropping it ends the work as
/// [`RunController::stop`] does, without waiting for it.
pub struct RunController {
    api: Api,
    controller: Arc<controller::Controller>,
    leading: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
    /// Taken by whoever stops it.
    election: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for RunController {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunController").finish_non_exhaustive()
    }
}

impl RunController {
    /// Starts it.
    pub fn start(api: Api, settings: Settings, tracker: Arc<dyn Tracker>) -> Self {
        let election = Election {
            api: api.clone(),
            namespace: settings.namespace.clone(),
            lease: LEASE.into(),
            identity: settings.identity.clone(),
        };
        let controller = controller::Controller::new(api.clone(), settings, tracker);
        let (sender, leading) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let working = Arc::clone(&controller);
        // Starting again after a panic is safe. The work begins with lists of everything, the next attempt to renew the lease is made by
        // the same participant, and while nobody makes one the lease expires and another may lead.
        let election = tokio::spawn(restart_on_panic("the controller of runs", move || {
            let (mut stopped, working) = (stopped.clone(), Arc::clone(&working));
            sender.send_replace(false);
            let stopped = async move {
                let _ = stopped.wait_for(|s| *s).await; // The sender may also be dropped; both mean to stop.
            };
            election.clone().run(sender.clone(), stopped, move || Arc::clone(&working).work())
        }));
        Self { api, controller, leading, stop, election: Mutex::new(Some(election)) }
    }

    /// Ends the work and gives the lease back, so that another can lead at once.
    pub async fn stop(&self) {
        let Some(election) = self.election.lock().take() else { return };
        self.stop.send_replace(true);
        if let Err(error) = election.await {
            tracing::warn!(%error, "the election did not end well");
        }
    }

    /// Figures for metrics: name (without the suffix `_total` of counters), help, whether it only grows, value.
    pub fn figures(&self) -> [(&'static str, &'static str, bool, u64); 8] {
        let [runs, pods, now, later] = self.controller.sizes().map(|n| n as u64);
        let leading = u64::from(*self.leading.borrow());
        let reconciled = self.controller.reconciled.load(Relaxed);
        let failed = self.controller.failed.load(Relaxed);
        [
            ("slipway_controller_leading", "Whether this process leads.", false, leading),
            ("slipway_controller_runs", "Runs in the cache.", false, runs),
            ("slipway_controller_pods", "Pods in the cache.", false, pods),
            ("slipway_controller_queue_depth", "Runs that wait to be reconciled now.", false, now),
            ("slipway_controller_queue_later", "Runs that wait to be reconciled at a later time.", false, later),
            ("slipway_controller_reconciled", "Reconciliations.", true, reconciled),
            ("slipway_controller_failed", "Reconciliations that failed.", true, failed),
            ("slipway_kube_requests", "Requests to the API server.", true, self.api.requests()),
        ]
    }
}

/// Runs as objects of a cluster: submitted, listed, ended. A [`RunController`] carries them out, in this process or in another.
#[derive(Debug)]
pub struct Pods {
    api: Api,
    /// The namespace of the installation.
    installation: String,
}

impl Pods {
    /// Of this cluster and installation.
    pub fn new(api: Api, installation: String) -> Self {
        Self { api, installation }
    }

    /// The refusal of a request that needs a namespace to be enabled for runs, where that is what the API server refuses: its words for a
    /// right that RBAC does not give.
    fn refused_in(&self, namespace: &str, error: KubeError) -> ExecError {
        match error {
            KubeError::Refused { code: 403, message }
                if message.contains("cannot create resource") || message.contains("cannot get resource") =>
            {
                let command = crate::names::enable_namespace(&self.installation, namespace);
                ExecError::Forbidden(format!(
                    "namespace {namespace} is not enabled for runs; an administrator enables it: {command}"
                ))
            }
            error => refused(error),
        }
    }

    async fn find(&self, namespace: &str, name: &str) -> Result<Submitted, ExecError> {
        let found = self.api.get(&RUN, Some(namespace), name).await.map_err(refused)?;
        found
            .map(submitted)
            .transpose()?
            .ok_or_else(|| ExecError::NotFound(format!("there is no run '{name}' in namespace '{namespace}'")))
    }
}

fn submitted(object: Value) -> Result<Submitted, ExecError> {
    let mut object = object;
    // Items of a list do not say what they are.
    object["kind"] = json!(RUN.kind);
    object["apiVersion"] = json!(RUN.api_version());
    serde_json::from_value(object).map_err(|e| ExecError::Manifest(format!("the run cannot be read: {e}")))
}

/// The API server's refusal as an executor's.
fn refused(error: KubeError) -> ExecError {
    match error {
        KubeError::Refused { code: 404, message } => ExecError::NotFound(message),
        KubeError::Refused { code: 409, message } => ExecError::Exists(message),
        KubeError::Refused { code: 400 | 422, message } => ExecError::Manifest(message),
        KubeError::Refused { code: 403, message } => ExecError::Forbidden(message),
        other => ExecError::Unreachable(other.to_string()),
    }
}

impl Executor for Pods {
    fn submit<'a>(&'a self, run: Manifest, by: Option<&'a str>) -> Answer<'a, Submitted> {
        Box::pin(async move {
            run.check()?;
            if run.spec.image.is_none() {
                return Err(ExecError::Manifest("spec.image is missing: in a cluster a run needs one".into()));
            }
            let mut run = run.named();
            run.metadata.annotations.remove(SUBMITTED_BY);
            if let Some(by) = by {
                run.metadata.annotations.insert(SUBMITTED_BY.into(), by.to_owned());
            }
            let namespace = run.metadata.namespace.as_str();
            match self.api.create(&RUN, Some(namespace), &json!(run)).await {
                Ok(made) => submitted(made),
                // The control plane may create runs only where it may carry them out. Who asks was checked before.
                Err(error) => Err(self.refused_in(namespace, error)),
            }
        })
    }

    fn list<'a>(&'a self, namespace: Option<&'a str>) -> Answer<'a, Vec<Submitted>> {
        Box::pin(async move {
            let found = self.api.list(&RUN, namespace, "", "").await.map_err(refused)?;
            let mut runs: Vec<Submitted> = found.into_iter().map(submitted).collect::<Result<_, _>>()?;
            runs.sort_by(|a, b| a.manifest.metadata.creation_timestamp.cmp(&b.manifest.metadata.creation_timestamp));
            Ok(runs)
        })
    }

    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> Answer<'a, Submitted> {
        Box::pin(self.find(namespace, name))
    }

    fn cancel<'a>(&'a self, namespace: &'a str, name: &'a str) -> Answer<'a, Submitted> {
        Box::pin(async move {
            let patch = json!({"spec": {"cancel": true}});
            submitted(self.api.merge(&RUN, Some(namespace), name, false, &patch).await.map_err(refused)?)
        })
    }

    fn remove<'a>(&'a self, namespace: &'a str, name: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            self.find(namespace, name).await?;
            self.api.delete(&RUN, Some(namespace), name).await.map_err(refused)
        })
    }

    fn logs<'a>(&'a self, namespace: &'a str, name: &'a str, query: LogQuery) -> Answer<'a, LogStream> {
        Box::pin(async move {
            let run = self.find(namespace, name).await?;
            let newest = run.status.current().map_or(1, |a| a.number);
            let pod = pod::name(name, query.attempt.unwrap_or(newest));
            let reader = loop {
                match self.api.log(namespace, &pod, query.follow, query.tail).await {
                    Ok(reader) => break reader,
                    // It is not there yet, or its container is not.
                    Err(KubeError::Refused { code: 400 | 404, .. }) if query.follow => {
                        if self.find(namespace, name).await?.status.phase.is_final() {
                            return Err(ExecError::NotFound(format!("pod {pod} and its log are gone")));
                        }
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                    Err(KubeError::Refused { code: 400, message }) => return Err(ExecError::NotNow(message)),
                    Err(error) => return Err(self.refused_in(namespace, error)),
                }
            };
            let stream = futures_util::stream::unfold(Some(Box::pin(reader)), |reader| async move {
                let mut reader = reader?;
                let mut buffer = vec![0; CHUNK];
                match reader.read(&mut buffer).await {
                    Ok(0) => None,
                    Ok(n) => {
                        buffer.truncate(n);
                        Some((Ok(Bytes::from(buffer)), Some(reader)))
                    }
                    Err(source) => Some((Err(ExecError::Io { what: "reading the log".into(), source }), None)),
                }
            });
            Ok(stream.boxed())
        })
    }
}
