//! Connects a server that runs in a Kubernetes cluster to that cluster: its nodes, its users and the pods of its runs.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;
use slipway_access::{Permission, Person};
use slipway_core::env;
use slipway_exec::{ExecError, Executor, TokenRequest, Tracker};
use slipway_operator::authority::{Reviews, User};
use slipway_operator::runs::{Claims, DefaultQueues, Pods, RunController, Settings, TokenSource};
use slipway_operator::{Api, nodes};
use slipway_pipeline::launch::pods;
use slipway_server::auth::Authority;
use slipway_server::{ControllerMetric, Image, Kubernetes, Mint, NodesFuture};

use crate::Failure;

/// Delay before another attempt to create a pod that a resource quota rejected.
const QUOTA_RETRY_DELAY: Duration = Duration::from_secs(10);

/// The cluster of this pod, and the namespace of the installation.
#[derive(Debug)]
pub(super) struct InCluster {
    api: Api,
    namespace: String,
    /// The queues of runs that name none.
    default_queues: DefaultQueues,
    /// The run controller, unless it runs in a separate process.
    controller: OnceLock<RunController>,
}

impl InCluster {
    /// Connects to the cluster of this pod; `None` outside of a cluster.
    ///
    /// # Errors
    /// If the cluster is unreachable. The server must not start without it, because it would run submitted programs in its own pod.
    pub(super) async fn detect() -> Result<Option<Arc<dyn Kubernetes>>, Failure> {
        let Some(namespace) = env::value(env::NAMESPACE) else { return Ok(None) };
        let api = Api::connect(None, None).await?;
        let default_queues = default_queues()?;
        Ok(Some(Arc::new(Self { api, namespace, default_queues, controller: OnceLock::new() })))
    }
}

impl Kubernetes for InCluster {
    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn nodes(&self) -> NodesFuture<'_> {
        Box::pin(async { nodes::nodes(&self.api, &self.namespace).await.map_err(|e| e.to_string()) })
    }

    fn authority(&self) -> Option<Arc<dyn Authority>> {
        Some(Arc::new(ApiServerAuthority(Reviews::new(self.api.clone()))))
    }

    fn executor(&self, tracker: Arc<dyn Tracker>, mint: Mint) -> Arc<dyn Executor> {
        if env::value(env::CONTROLLER).as_deref() != Some("apart") {
            let token = Arc::new(move |request: TokenRequest| -> BoxFuture<'static, Result<String, String>> {
                let token = mint(&request);
                Box::pin(async { Ok(token) })
            });
            let settings = settings(self.namespace.clone(), token, self.default_queues.clone());
            let controller = RunController::start(self.api.clone(), settings, tracker);
            let _ = self.controller.set(controller); // It cannot be set already: the server calls this once, when it starts.
        }
        Arc::new(Pods::new(self.api.clone(), self.namespace.clone()))
    }

    fn image(&self) -> Option<Image> {
        let pull_policy = env::value(env::IMAGE_PULL_POLICY).unwrap_or_else(|| "IfNotPresent".into());
        let pull_secrets = env::value(env::IMAGE_PULL_SECRETS).unwrap_or_default();
        let pull_secrets = pull_secrets.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned);
        Some(Image { name: env::value(env::IMAGE)?, pull_policy, pull_secrets: pull_secrets.collect() })
    }

    fn claims(&self) -> Arc<dyn pods::Claims> {
        Arc::new(VolumeClaims(Claims::new(self.api.clone(), self.namespace.clone())))
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Some(controller) = self.controller.get() {
                controller.stop().await;
            }
        })
    }

    fn controller_metrics(&self) -> Vec<ControllerMetric> {
        self.controller.get().map(|controller| controller.metrics().to_vec()).unwrap_or_default()
    }
}

/// The URL at which runs reach the control plane.
pub(super) fn runs_url(namespace: &str) -> String {
    env::value(env::RUNS_URL).unwrap_or_else(|| {
        // Use the service address that the kubelet sets in the environment, which works without cluster DNS.
        let host = env::value("SLIPWAY_SERVICE_HOST").unwrap_or_else(|| format!("slipway.{namespace}.svc"));
        format!("http://{}:7070", url_host(&host))
    })
}

/// Formats a host for a URL: an IPv6 address is put in brackets.
fn url_host(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// The default queues in the environment.
///
/// # Errors
/// If a value is not valid.
pub(super) fn default_queues() -> Result<DefaultQueues, Failure> {
    let [queue, system, namespaces] =
        [env::RUNS_QUEUE, env::RUNS_QUEUE_SYSTEM, env::RUNS_NAMESPACE_QUEUES].map(env::value);
    DefaultQueues::parse(queue.as_deref(), system.as_deref(), namespaces.as_deref())
        .map_err(|error| Failure::with_code(format!("the default queues of runs: {error}"), "kube.invalid", 2))
}

/// The settings of the run controller in this pod.
pub(super) fn settings(namespace: String, token: TokenSource, default_queues: DefaultQueues) -> Settings {
    let identity = env::value(env::POD).unwrap_or_else(|| format!("slipway-{}", std::process::id()));
    Settings {
        identity: format!("{identity}_{}", slipway_core::ids::hex32()),
        variables: vec![("MLFLOW_TRACKING_URI".into(), runs_url(&namespace))],
        namespace,
        ca_file: env::value(env::RUNS_CA).map(PathBuf::from),
        token,
        retry_delay: QUOTA_RETRY_DELAY,
        default_queues,
    }
}

/// The volumes of pipelines.
#[derive(Debug)]
struct VolumeClaims(Claims);

impl pods::Claims for VolumeClaims {
    fn create(&self, claim: Value) -> BoxFuture<'_, Result<(), ExecError>> {
        Box::pin(async move { self.0.create(&claim).await })
    }

    fn delete<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), ExecError>> {
        Box::pin(self.0.delete(namespace, name, pods::CLAIM_LABEL))
    }
}

/// Authenticates and authorizes users with the reviews of the API server.
struct ApiServerAuthority(Reviews);

impl Authority for ApiServerAuthority {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Person>, String>> {
        Box::pin(async move {
            let user = self.0.authenticate(token).await.map_err(|e| e.to_string())?;
            let person =
                |u: User| Person { name: u.name, uid: u.uid, groups: u.groups, extra: serde_json::json!(u.extra) };
            Ok(user.map(person))
        })
    }

    fn is_allowed<'a>(&'a self, person: &'a Person, permission: &'a Permission) -> BoxFuture<'a, Result<bool, String>> {
        Box::pin(async move {
            let person = person.clone();
            // RBAC webhooks may depend on the extra attributes, so all of them are passed on.
            let extra = serde_json::from_value(person.extra).map_err(|e| e.to_string())?;
            let user = User { name: person.name, uid: person.uid, groups: person.groups, extra };
            let namespace = permission.namespace.as_deref();
            let allowed = self.0.is_allowed(&user, permission.verb.name(), permission.resource.name(), namespace);
            allowed.await.map_err(|e| e.to_string())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_addresses_are_bracketed_in_urls() {
        let urls = ["10.0.0.1", "fd00::1", "slipway.sys.svc"].map(url_host);
        assert_eq!(urls, ["10.0.0.1", "[fd00::1]", "slipway.sys.svc"]);
    }
}
