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
        match self.api.create(&CLAIM, Some(namespace), claim).await {
            Ok(_) | Err(KubeError::Refused { code: 409, .. }) => Ok(()),
            Err(error) => Err(self.error(namespace, error)),
        }
    }

    /// Deletes a claim. It is not an error if it does not exist.
    ///
    /// # Errors
    /// [`ExecError::Forbidden`] if the namespace is not enabled for runs, or [`ExecError::Unreachable`].
    pub async fn delete(&self, namespace: &str, name: &str) -> Result<(), ExecError> {
        self.api.delete(&CLAIM, Some(namespace), name).await.map_err(|error| self.error(namespace, error))
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
