//! Runs as pods. A `Run` is a custom resource: `kubectl apply`, `get`, `describe`, `wait` and `delete` work on it, as does `slipway run`.
//! The controller creates a pod for each attempt, watches it, and records its end in the status of the run. A finalizer keeps the pod
//! until its end is recorded.
//!
//! | module | contents |
//! |---|---|
//! | `pod` | renders the pod and the secret of an attempt, and derives the observation from a pod |
//! | `known` | the cache of runs and pods, filled by watches |
//! | `claims` | persistent volume claims of pipelines |
//! | `queues` | queues of Kueue, Volcano and the KAI scheduler; placement by topology |
//! | `reconcile` | what is to be done about a run: a pure function |
//! | `controller` | does it |
//! | `usage` | GPU usage of attempts |

mod claims;
mod controller;
mod data;
mod known;
mod pod;
mod queues;
mod reconcile;
#[cfg(test)]
mod tests;
mod usage;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{AsyncReadExt, StreamExt};
use serde_json::{Value, json};
use slipway_exec::manifest::SUBMITTED_BY;
use slipway_exec::{
    ControllerMetric, ExecError, ExecFuture, Executor, LogQuery, LogStream, Manifest, Submitted, TokenRequest, Tracker,
};

use crate::leader::Election;
use crate::participant::Participant;
use crate::{Api, KubeError, Resource};

pub use crate::names::{FINALIZER, RUN_LABEL};
pub use claims::Claims;
pub use queues::DefaultQueues;
pub use slipway_exec::manifest::DEFINITION;

/// `slipway.dev/v1 Run`.
pub const RUN: Resource<'static> = Resource { group: "slipway.dev", version: "v1", kind: "Run", plural: "runs" };
/// Name of the lease for leader election.
const LEASE_NAME: &str = "slipway-runs";
/// Maximum bytes of one read from a log.
const CHUNK_BYTES: usize = 32 * 1024;

/// Namespace and name of a run.
type Key = (String, String);

/// Creates the token of an attempt, in this process or by a request to the control plane. The error is a message.
pub type TokenSource = Arc<dyn Fn(TokenRequest) -> BoxFuture<'static, Result<String, String>> + Send + Sync>;

/// Configuration of the controller.
#[derive(Clone)]
#[allow(missing_debug_implementations)] // closures do not implement `Debug`
pub struct Settings {
    /// Namespace of the installation.
    pub namespace: String,
    /// Unique name of this process in the leader election.
    pub identity: String,
    /// Environment variables of every run, among them the URL of the tracking server.
    pub variables: Vec<(String, String)>,
    /// PEM file with the certificates of the authority that signed the certificate of the control plane, for runs whose images do not
    /// trust it. The file is read for each attempt, so that new attempts get a renewed authority. If it does not exist, runs use the
    /// certificates of their images.
    pub ca_file: Option<PathBuf>,
    /// Creates the token with which an attempt accesses the tracking server.
    pub token: TokenSource,
    /// Delay before creating a rejected pod is retried, for instance after a quota was exceeded; also the shortest interval at which a
    /// queued run's position is read again.
    pub retry_delay: Duration,
    /// The queues of runs that name none.
    pub default_queues: DefaultQueues,
}

/// The run controller: participates in the leader election and reconciles runs while it leads. Dropping it stops the work like
/// [`RunController::stop`], but without waiting.
pub struct RunController {
    api: Api,
    controller: Arc<controller::Controller>,
    participant: Participant,
}

impl std::fmt::Debug for RunController {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunController").finish_non_exhaustive()
    }
}

impl RunController {
    /// Starts the election and, while this process leads, the controller.
    pub fn start(api: Api, settings: Settings, tracker: Arc<dyn Tracker>) -> Self {
        let election = Election {
            api: api.clone(),
            namespace: settings.namespace.clone(),
            lease: LEASE_NAME.into(),
            identity: settings.identity.clone(),
        };
        let controller = controller::Controller::new(api.clone(), settings, tracker);
        let worker = Arc::clone(&controller);
        let participant = Participant::start("the run controller", election, move || Arc::clone(&worker).work());
        Self { api, controller, participant }
    }

    /// Stops the work and releases the lease, so that another participant can lead at once.
    pub async fn stop(&self) {
        self.participant.stop().await;
    }

    /// The metrics of this process's part in the control of runs.
    pub fn metrics(&self) -> [ControllerMetric; 8] {
        let [runs, pods, now, later] = self.controller.sizes().map(|n| n as u64);
        let leading = u64::from(self.participant.leads());
        let (reconciled, failed) = self.controller.attempts();
        let gauge = |name, help, value| ControllerMetric { name, help, is_counter: false, value };
        let counter = |name, help, value| ControllerMetric { name, help, is_counter: true, value };
        [
            gauge("slipway_controller_leading", "Whether this process is the leader.", leading),
            gauge("slipway_controller_runs", "Runs in the cache.", runs),
            gauge("slipway_controller_pods", "Pods in the cache.", pods),
            gauge("slipway_controller_queue_depth", "Runs that are queued for reconciliation now.", now),
            gauge("slipway_controller_queue_later", "Runs that are queued for reconciliation at a later time.", later),
            counter("slipway_controller_reconciled", "Successful reconciliations.", reconciled),
            counter("slipway_controller_failed", "Failed reconciliations.", failed),
            counter("slipway_kube_requests", "Requests to the API server.", self.api.requests()),
        ]
    }
}

/// The executor for a cluster: it creates, lists and cancels `Run` objects. A [`RunController`] in this or another process executes them.
#[derive(Debug)]
pub struct Pods {
    api: Api,
    /// Namespace of the installation.
    installation: String,
}

impl Pods {
    /// The executor for the installation in the namespace `installation`.
    pub fn new(api: Api, installation: String) -> Self {
        Self { api, installation }
    }

    /// Converts an error of a request in a namespace. If the message shows that RBAC denies the request, the namespace is not enabled for
    /// runs.
    fn namespace_error(&self, namespace: &str, error: KubeError) -> ExecError {
        match error {
            KubeError::Refused { code: 403, message }
                if message.contains("cannot create resource") || message.contains("cannot get resource") =>
            {
                let command = crate::names::enable_namespace(&self.installation, namespace);
                ExecError::Forbidden(format!(
                    "namespace {namespace} is not enabled for runs; an administrator enables it: {command}"
                ))
            }
            error => exec_error(error),
        }
    }

    async fn find(&self, namespace: &str, name: &str) -> Result<Submitted, ExecError> {
        let found = self.api.get(&RUN, Some(namespace), name).await.map_err(exec_error)?;
        found
            .map(submitted)
            .transpose()?
            .ok_or_else(|| ExecError::NotFound(format!("there is no run '{name}' in namespace '{namespace}'")))
    }
}

fn submitted(object: Value) -> Result<Submitted, ExecError> {
    let mut object = object;
    // Items of a list have no kind and no API version.
    object["kind"] = json!(RUN.kind);
    object["apiVersion"] = json!(RUN.api_version());
    serde_json::from_value(object).map_err(|e| ExecError::Manifest(format!("the run cannot be read: {e}")))
}

/// Converts an error of the API server.
fn exec_error(error: KubeError) -> ExecError {
    match error {
        KubeError::Refused { code: 404, message } => ExecError::NotFound(message),
        KubeError::Refused { code: 409, message } => ExecError::Exists(message),
        KubeError::Refused { code: 400 | 422, message } => ExecError::Manifest(message),
        KubeError::Refused { code: 403, message } => ExecError::Forbidden(message),
        other => ExecError::Unreachable(other.to_string()),
    }
}

impl Executor for Pods {
    fn submit<'a>(&'a self, run: Manifest, by: Option<&'a str>) -> ExecFuture<'a, Submitted> {
        Box::pin(async move {
            run.check()?;
            if run.spec.image.is_none() {
                return Err(ExecError::Manifest("spec.image is missing: a run in a cluster needs an image".into()));
            }
            let mut run = run.named();
            run.metadata.annotations.remove(SUBMITTED_BY);
            if let Some(by) = by {
                run.metadata.annotations.insert(SUBMITTED_BY.into(), by.to_owned());
            }
            let namespace = run.metadata.namespace.as_str();
            let object = json!(run);
            match self.api.when_ready(|| self.api.create(&RUN, Some(namespace), &object)).await {
                Ok(created) => submitted(created),
                // The user's permissions were checked before. The control plane itself may create runs in enabled namespaces only.
                Err(error) => Err(self.namespace_error(namespace, error)),
            }
        })
    }

    fn list<'a>(&'a self, namespace: Option<&'a str>) -> ExecFuture<'a, Vec<Submitted>> {
        Box::pin(async move {
            let found = self.api.list(&RUN, namespace, "", "").await.map_err(exec_error)?;
            let mut runs: Vec<Submitted> = found.into_iter().map(submitted).collect::<Result<_, _>>()?;
            runs.sort_by(|a, b| a.manifest.metadata.creation_timestamp.cmp(&b.manifest.metadata.creation_timestamp));
            Ok(runs)
        })
    }

    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> ExecFuture<'a, Submitted> {
        Box::pin(self.find(namespace, name))
    }

    fn cancel<'a>(&'a self, namespace: &'a str, name: &'a str) -> ExecFuture<'a, Submitted> {
        Box::pin(async move {
            let patch = json!({"spec": {"cancel": true}});
            submitted(self.api.merge(&RUN, Some(namespace), name, false, &patch).await.map_err(exec_error)?)
        })
    }

    fn remove<'a>(&'a self, namespace: &'a str, name: &'a str) -> ExecFuture<'a, ()> {
        Box::pin(async move {
            self.find(namespace, name).await?;
            self.api.delete(&RUN, Some(namespace), name).await.map_err(exec_error)
        })
    }

    fn logs<'a>(&'a self, namespace: &'a str, name: &'a str, query: LogQuery) -> ExecFuture<'a, LogStream> {
        Box::pin(async move {
            let run = self.find(namespace, name).await?;
            let newest = run.status.current().map_or(1, |a| a.number);
            let pod = pod::name(name, query.attempt.unwrap_or(newest));
            let reader = loop {
                match self.api.log(namespace, &pod, query).await {
                    Ok(reader) => break reader,
                    // The pod or its container does not exist yet.
                    Err(KubeError::Refused { code: 400 | 404, .. }) if query.follow => {
                        if self.find(namespace, name).await?.status.phase.is_final() {
                            return Err(ExecError::NotFound(format!("pod {pod} and its log have been deleted")));
                        }
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                    Err(KubeError::Refused { code: 400, message }) => return Err(ExecError::NotNow(message)),
                    Err(error) => return Err(self.namespace_error(namespace, error)),
                }
            };
            let stream = futures_util::stream::unfold(Some(Box::pin(reader)), |reader| async move {
                let mut reader = reader?;
                let mut buffer = vec![0; CHUNK_BYTES];
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
