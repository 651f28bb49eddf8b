//! The cluster that a server runs in: its nodes, its users, its pods, on the operator's client.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use slipway_access::{Permission, Person};
use slipway_core::env;
use slipway_exec::{Executor, TokenRequest, Tracker};
use slipway_operator::authority::{Reviews, User};
use slipway_operator::runs::{Pods, RunController, Settings, TokenSource};
use slipway_operator::{Api, nodes};
use slipway_server::auth::Authority;
use slipway_server::{ClusterAnswer, Figure, Kubernetes, Mint};

use crate::Failure;

/// The pause between two attempts to create a pod that a quota did not allow.
const PATIENCE: Duration = Duration::from_secs(10);

/// By the namespace of the installation.
#[derive(Debug)]
pub(super) struct InCluster {
    api: Api,
    namespace: String,
    /// Unless it is installed apart.
    controller: OnceLock<RunController>,
}

impl InCluster {
    /// `None` outside of a cluster.
    ///
    /// # Errors
    /// A cluster that cannot be reached. A server that went on without it would take runs as processes of its own pod.
    pub(super) async fn of_this_pod() -> Result<Option<Arc<dyn Kubernetes>>, Failure> {
        let Some(namespace) = env::value(env::NAMESPACE) else { return Ok(None) };
        let api = Api::connect(None, None).await?;
        Ok(Some(Arc::new(Self { api, namespace, controller: OnceLock::new() })))
    }
}

impl Kubernetes for InCluster {
    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn nodes(&self) -> ClusterAnswer<'_> {
        Box::pin(async { nodes::nodes(&self.api, &self.namespace).await.map_err(|e| e.to_string()) })
    }

    fn authority(&self) -> Option<Arc<dyn Authority>> {
        Some(Arc::new(Asked(Reviews::new(self.api.clone()))))
    }

    fn executor(&self, tracker: Arc<dyn Tracker>, mint: Mint) -> Arc<dyn Executor> {
        if env::value(env::CONTROLLER).as_deref() != Some("apart") {
            let token = Arc::new(move |request: TokenRequest| -> BoxFuture<'static, Result<String, String>> {
                let token = mint(&request);
                Box::pin(async { Ok(token) })
            });
            let controller = RunController::start(self.api.clone(), settings(self.namespace.clone(), token), tracker);
            let _ = self.controller.set(controller); // The server asks for its executor once, when it starts.
        }
        Arc::new(Pods::new(self.api.clone(), self.namespace.clone()))
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Some(controller) = self.controller.get() {
                controller.stop().await;
            }
        })
    }

    fn figures(&self) -> Vec<Figure> {
        self.controller.get().map(figures).unwrap_or_default()
    }
}

/// What a controller of runs counts, for metrics.
pub(super) fn figures(controller: &RunController) -> Vec<Figure> {
    let figures = controller.figures().into_iter();
    figures.map(|(name, help, is_counter, value)| Figure { name, help, is_counter, value }).collect()
}

/// Where runs reach the control plane.
pub(super) fn runs_url(namespace: &str) -> String {
    env::value(env::RUNS_URL).unwrap_or_else(|| {
        // The kubelet tells a pod the addresses of its namespace's services; a name would need a DNS server that knows it.
        let host = env::value("SLIPWAY_SERVICE_HOST").unwrap_or_else(|| format!("slipway.{namespace}.svc"));
        format!("http://{}:7070", in_url(&host))
    })
}

/// A host as it stands in a URL, where an IPv6 address has brackets.
fn in_url(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// How runs are carried out by the pod that this process runs in.
pub(super) fn settings(namespace: String, token: TokenSource) -> Settings {
    let identity = env::value(env::POD).unwrap_or_else(|| format!("slipway-{}", std::process::id()));
    Settings {
        identity: format!("{identity}_{}", slipway_core::ids::hex32()),
        variables: vec![("MLFLOW_TRACKING_URI".into(), runs_url(&namespace))],
        namespace,
        ca_file: env::value(env::RUNS_CA).map(PathBuf::from),
        token,
        patience: PATIENCE,
    }
}

/// The server's questions, asked of the API server.
struct Asked(Reviews);

impl Authority for Asked {
    fn who<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Person>, String>> {
        Box::pin(async move {
            let user = self.0.who(token).await.map_err(|e| e.to_string())?;
            let person =
                |u: User| Person { name: u.name, uid: u.uid, groups: u.groups, extra: serde_json::json!(u.extra) };
            Ok(user.map(person))
        })
    }

    fn may<'a>(&'a self, person: &'a Person, wanted: &'a Permission) -> BoxFuture<'a, Result<bool, String>> {
        Box::pin(async move {
            let person = person.clone();
            // The cluster's own rules may depend on the extra attributes, so none may be lost.
            let extra = serde_json::from_value(person.extra).map_err(|e| e.to_string())?;
            let user = User { name: person.name, uid: person.uid, groups: person.groups, extra };
            let may = self.0.may(&user, wanted.verb.name(), wanted.resource.name(), wanted.namespace.as_deref());
            may.await.map_err(|e| e.to_string())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_has_brackets_in_a_url() {
        let urls = ["10.0.0.1", "fd00::1", "slipway.sys.svc"].map(in_url);
        assert_eq!(urls, ["10.0.0.1", "[fd00::1]", "slipway.sys.svc"]);
    }
}
