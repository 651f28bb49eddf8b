//! Persistent volume claims, which pipelines create and delete in namespaces that are enabled for runs.

use serde_json::Value;
use slipway_exec::ExecError;

use super::exec_error;
use crate::{Api, KubeError, Resource, names};

const CLAIM: Resource<'static> =
    Resource { group: "", version: "v1", kind: "PersistentVolumeClaim", plural: "persistentvolumeclaims" };

/// Creates and deletes persistent volume claims.
#[derive(Debug)]
pub struct Claims {
    api: Api,
    /// Namespace of the installation.
    installation: String,
}

impl Claims {
    /// The claims of the cluster of the installation in the namespace `installation`.
    pub fn new(api: Api, installation: String) -> Self {
        Self { api, installation }
    }

    /// Creates a claim. It is not an error if it exists.
    ///
    /// # Errors
    /// [`ExecError::Manifest`] if it is not valid, [`ExecError::Forbidden`] if the namespace is not enabled for runs, or
    /// [`ExecError::Unreachable`].
    pub async fn create(&self, claim: &Value) -> Result<(), ExecError> {
        let namespace = claim["metadata"]["namespace"].as_str().unwrap_or_default();
        match self.api.when_ready(|| self.api.create(&CLAIM, Some(namespace), claim)).await {
            Ok(_) | Err(KubeError::Refused { code: 409, .. }) => Ok(()),
            Err(error) => Err(self.error(namespace, error)),
        }
    }

    /// Deletes a claim that has this label: the control plane may delete any claim of the namespace, but whoever creates a run may not.
    /// It is not an error if the claim does not exist.
    ///
    /// # Errors
    /// [`ExecError::Forbidden`] if the claim does not have the label or the namespace is not enabled for runs, [`ExecError::Manifest`] if
    /// the name is none, or [`ExecError::Unreachable`].
    pub async fn delete(&self, namespace: &str, name: &str, label: &str) -> Result<(), ExecError> {
        let found = self.api.when_ready(|| self.api.get(&CLAIM, Some(namespace), name)).await;
        let claim = found.map_err(|error| self.error(namespace, error))?;
        let Some(claim) = claim else { return Ok(()) };
        if claim["metadata"]["labels"].get(label).is_none() {
            return Err(ExecError::Forbidden(format!(
                "the volume '{name}' was not created by a pipeline: it does not have the label {label}. Delete it with kubectl -n \
                 {namespace} delete pvc {name}"
            )));
        }
        let uid = claim["metadata"]["uid"].as_str().unwrap_or_default();
        let deleted = self.api.delete_exactly(&CLAIM, Some(namespace), name, uid).await;
        deleted.map_err(|error| self.error(namespace, error))
    }

    fn error(&self, namespace: &str, error: KubeError) -> ExecError {
        match error {
            KubeError::Refused { code: 403, message } if message.contains("cannot") => {
                let command = names::enable_namespace(&self.installation, namespace);
                ExecError::Forbidden(format!(
                    "namespace {namespace} is not enabled for runs, which may also create and delete volumes ({message}); an \
                     administrator enables it: {command}"
                ))
            }
            error => exec_error(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mock::MockCluster;

    const LABEL: &str = "slipway.dev/pipeline-claim";

    #[tokio::test]
    async fn only_claims_with_the_label_are_deleted() {
        let cluster = MockCluster::new();
        let claims = Claims::new(cluster.api("test"), "slipway".into());
        let claim = |name: &str, labels: Value| {
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "namespace": "team", "labels": labels}, "spec": {}})
        };
        claims.create(&claim("own", json!({LABEL: "true"}))).await.unwrap();
        claims.create(&claim("database", json!({}))).await.unwrap();

        claims.delete("team", "own", LABEL).await.unwrap();
        claims.delete("team", "own", LABEL).await.unwrap();
        let refused = claims.delete("team", "database", LABEL).await.unwrap_err();
        assert!(
            matches!(&refused, ExecError::Forbidden(reason) if reason.contains("not created by a pipeline")),
            "{refused}"
        );
        for name in ["../../other/persistentvolumeclaims/own", "..", "", "?labelSelector=", "a%2fb"] {
            claims.delete("team", name, LABEL).await.unwrap_err();
        }
        assert!(claims.api.get(&CLAIM, Some("team"), "own").await.unwrap().is_none());
        assert!(claims.api.get(&CLAIM, Some("team"), "database").await.unwrap().is_some());
    }
}
