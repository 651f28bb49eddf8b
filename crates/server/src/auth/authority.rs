//! What the cluster's own rules are asked: who holds a token, and whether that may do something to a resource of ours. The names of
//! the resources are those of roles: `runs`, `experiments`, `models`, `deployments`, `inferences`, `nodes` of the group `slipway.dev`.

use axum::http::Method;
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::Caller;

/// A user or a service account, as a TokenReview tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Person {
    /// `system:serviceaccount:NAMESPACE:NAME`, or a user's name.
    pub name: String,
    /// Its unique id.
    pub uid: String,
    /// Its groups.
    pub groups: Vec<String>,
    /// What else the authenticator said.
    pub extra: Value,
}

/// Something that somebody wants to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Access {
    /// `get`, `list`, `create`, `update`, `patch`, `delete`.
    pub verb: &'static str,
    /// A resource of `slipway.dev`, with its part: `runs/log`.
    pub resource: &'static str,
    /// Where; everywhere if unset.
    pub namespace: Option<String>,
}

impl Access {
    /// What to answer who may not, in the words of an API server.
    pub fn refusal(&self, caller: &Caller) -> String {
        let who = match caller {
            Caller::Run(namespace) => format!("a run of namespace \"{namespace}\""),
            other => format!("User \"{}\"", other.name().unwrap_or("unknown")),
        };
        let place = match &self.namespace {
            Some(namespace) => format!("in the namespace \"{namespace}\""),
            None => "at the cluster scope".into(),
        };
        format!("{who} cannot {} resource \"{}\" in API group \"slipway.dev\" {place}", self.verb, self.resource)
    }
}

/// Who knows a cluster's users and rules. The binary hands in one that asks the API server.
pub trait Authority: Send + Sync {
    /// Who holds a token; `None` for nobody.
    fn who<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Person>, String>>;
    /// Whether the cluster's rules allow this.
    fn may<'a>(&'a self, person: &'a Person, access: &'a Access) -> BoxFuture<'a, Result<bool, String>>;
}

/// What a request to a platform's path wants, in the installation's namespace; `None` for what every known caller may see, and for
/// runs, whose handlers know the namespace.
pub(super) fn wanted(method: &Method, path: &str, namespace: &str) -> Option<Access> {
    let reads = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
    let change = if *method == Method::DELETE { "delete" } else { "update" };
    let access = |verb, resource| Some(Access { verb, resource, namespace: Some(namespace.to_owned()) });
    let by_method = |resource| access(if reads { "get" } else { change }, resource);
    let own = path.strip_prefix("/api/v1/");
    if let Some(own) = own {
        let mut words = own.split('/');
        return match (words.next().unwrap_or_default(), words.nth(1)) {
            ("runs", _) => None,
            ("controller", _) => access("create", "runs/tracking"),
            ("deployments", Some("infer" | "metadata")) => access("create", "inferences"),
            ("deployments", _) => by_method("deployments"),
            ("requests", _) => access("get", "deployments"),
            ("models", _) => by_method("models"),
            // Asked for with a body, and nothing but read.
            ("run-versions", _) => access("get", "experiments"),
            ("cluster" | "clusters" | "gpu", _) => by_method("nodes"),
            _ => None,
        };
    }
    if path.starts_with("/v2/") || path == "/v2" || path.starts_with("/inference.GRPCInferenceService/") {
        return access("create", "inferences");
    }
    let artifacts = ["/get-artifact", "/model-versions/get-artifact", "/graphql"];
    let mlflow = ["/api/", "/ajax-api/"].iter().any(|p| path.starts_with(p)) || artifacts.contains(&path);
    if !mlflow {
        // Pages of the UI, metrics, the documents.
        return None;
    }
    let models = path.contains("/registered-models") || path.contains("/model-versions");
    let resource = if models { "models" } else { "experiments" };
    // MLflow's searches are sent with a body: what reads says so in its last word.
    let last = path.rsplit('/').next().unwrap_or_default();
    let asks = ["search", "get", "list"].iter().any(|w| last.starts_with(w));
    let deletes = last.starts_with("delete") && !last.contains("tag");
    access(
        if reads || asks {
            "get"
        } else if deletes {
            "delete"
        } else {
            change
        },
        resource,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_accesses() {
        let of = |method: Method, path: &str| {
            wanted(&method, path, "ns").map(|a| format!("{} {}", a.verb, a.resource)).unwrap_or_default()
        };
        for (method, path, expected) in [
            (Method::POST, "/api/2.0/mlflow/runs/search", "get experiments"),
            (Method::POST, "/api/2.0/mlflow/runs/create", "update experiments"),
            (Method::POST, "/api/2.0/mlflow/runs/log-batch", "update experiments"),
            (Method::POST, "/api/2.0/mlflow/runs/delete", "delete experiments"),
            (Method::POST, "/api/2.0/mlflow/runs/delete-tag", "update experiments"),
            (Method::GET, "/ajax-api/2.0/mlflow/registered-models/search", "get models"),
            (Method::POST, "/api/2.0/mlflow/model-versions/create", "update models"),
            (Method::DELETE, "/api/2.0/mlflow/registered-models/alias", "delete models"),
            (Method::PUT, "/api/2.0/mlflow-artifacts/artifacts/0/a/model.onnx", "update experiments"),
            (Method::GET, "/get-artifact", "get experiments"),
            (Method::POST, "/api/v1/deployments", "update deployments"),
            (Method::POST, "/api/v1/deployments/digits/infer", "create inferences"),
            (Method::GET, "/api/v1/deployments/digits", "get deployments"),
            (Method::POST, "/v2/models/digits/infer", "create inferences"),
            (Method::POST, "/inference.GRPCInferenceService/ModelInfer", "create inferences"),
            (Method::GET, "/api/v1/cluster", "get nodes"),
            (Method::GET, "/api/v1/clusters", "get nodes"),
            (Method::POST, "/api/v1/runs", ""),
            (Method::POST, "/api/v1/controller/token", "create runs/tracking"),
            (Method::GET, "/api/v1/status", ""),
            (Method::GET, "/assets/index.js", ""),
        ] {
            assert_eq!(of(method, path), expected, "{path}");
        }
    }
}
