//! The executor behind slipway's own API on one machine: runs that are submitted there are objects of the Kubernetes API too, and objects are
//! runs there.

use std::time::Duration;

use serde_json::json;
use slipway_exec::{ExecError, ExecFuture, Executor, LocalProcesses, LogQuery, LogStream, Manifest, Submitted};
use slipway_objects::embedded::Embedded;
use slipway_objects::patch::Patch;
use slipway_objects::store::{DeleteOptions, ObjectStore, WriteOptions};
use slipway_objects::{Error, Object};

use super::controller::{Kinds, UnacceptedRuns};
use super::reconcile::object_of;

/// Interval at which a deleted object is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum time between the end of a run and the deletion of its object.
const DELETION_TIMEOUT: Duration = Duration::from_secs(10);

/// The runs of this machine with their objects.
#[derive(Debug)]
pub(crate) struct ObjectRuns {
    pub(super) store: Embedded,
    pub(super) local: LocalProcesses,
    pub(super) kinds: Kinds,
    pub(super) unaccepted: UnacceptedRuns,
}

/// The run that an object describes.
fn submitted(object: &Object) -> Result<Submitted, ExecError> {
    serde_json::from_value(object.to_value())
        .map_err(|error| ExecError::Manifest(format!("the run cannot be read: {error}")))
}

fn exec_error(error: Error) -> ExecError {
    let message = error.to_string();
    match error {
        Error::NotFound { .. } => ExecError::NotFound(message),
        Error::AlreadyExists { .. } => ExecError::Exists(message),
        Error::Forbidden { .. } => ExecError::Forbidden(message),
        Error::Conflict { .. } => ExecError::NotNow(message),
        Error::Store(_) | Error::Sealed(_) => ExecError::Unreachable(message),
        _ => ExecError::Manifest(message),
    }
}

impl ObjectRuns {
    async fn object(&self, namespace: &str, name: &str) -> Result<Option<Object>, ExecError> {
        match self.store.get(&self.kinds.runs, namespace, name).await {
            Ok(object) => Ok(Some(object)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(exec_error(error)),
        }
    }

    /// A run of the executor, or one that is only an object: not submitted yet, or refused.
    async fn find(&self, namespace: &str, name: &str) -> Result<Submitted, ExecError> {
        match self.local.get(namespace, name).await {
            Err(ExecError::NotFound(message)) => {
                let object = self.object(namespace, name).await?;
                object.as_ref().map(submitted).unwrap_or(Err(ExecError::NotFound(message)))
            }
            other => other,
        }
    }
}

impl Executor for ObjectRuns {
    fn submit<'a>(&'a self, run: Manifest, by: Option<&'a str>) -> ExecFuture<'a, Submitted> {
        Box::pin(async move {
            let metadata = &run.metadata;
            let namespace =
                if metadata.namespace.is_empty() { slipway_exec::local::NAMESPACE } else { &metadata.namespace };
            self.store.get(&self.kinds.namespaces, "", namespace).await.map_err(exec_error)?;
            if !metadata.name.is_empty() && self.object(namespace, &metadata.name).await?.is_some() {
                // The executor has the message for this, unless the object was not submitted yet.
                if self.local.get(namespace, &metadata.name).await.is_err() {
                    return Err(ExecError::Exists(format!("there is already a run '{}'", metadata.name)));
                }
            }
            let run = self.local.submit(run, by).await?;
            // If this fails, the controller does it.
            if let Err(error) = self.store.import(&self.kinds.runs, object_of(&run)).await {
                tracing::debug!(%error, "the object of a run is created later");
            }
            Ok(run)
        })
    }

    fn list<'a>(&'a self, namespace: Option<&'a str>) -> ExecFuture<'a, Vec<Submitted>> {
        Box::pin(async move {
            let mut runs = self.local.list(namespace).await?;
            let unaccepted = self.unaccepted.lock();
            let selected = unaccepted.iter().filter(|(key, _)| namespace.is_none_or(|namespace| key.0 == namespace));
            runs.extend(selected.map(|(_, run)| run.clone()));
            drop(unaccepted);
            runs.sort_by(|a, b| a.manifest.metadata.creation_timestamp.cmp(&b.manifest.metadata.creation_timestamp));
            Ok(runs)
        })
    }

    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> ExecFuture<'a, Submitted> {
        Box::pin(self.find(namespace, name))
    }

    fn cancel<'a>(&'a self, namespace: &'a str, name: &'a str) -> ExecFuture<'a, Submitted> {
        Box::pin(async move {
            let patch = Patch::Merge(json!({"spec": {"cancel": true}}));
            let options = WriteOptions::default();
            let written = self.store.patch(&self.kinds.runs, namespace, name, &patch, &options).await;
            match (self.local.cancel(namespace, name).await, written) {
                (Err(ExecError::NotFound(_)), Ok(written)) => submitted(&written.object),
                (Ok(_), Err(error)) if !matches!(error, Error::NotFound { .. }) => Err(exec_error(error)),
                (cancelled, _) => cancelled,
            }
        })
    }

    fn remove<'a>(&'a self, namespace: &'a str, name: &'a str) -> ExecFuture<'a, ()> {
        Box::pin(async move {
            let deleted = self.store.delete(&self.kinds.runs, namespace, name, &DeleteOptions::default()).await;
            let has_object = match deleted {
                Ok(_) => true,
                Err(Error::NotFound { .. }) => false,
                Err(error) => return Err(exec_error(error)),
            };
            match self.local.remove(namespace, name).await {
                // The run was deleted meanwhile, or it never was more than an object.
                Err(ExecError::NotFound(_)) if has_object => {}
                other => other?,
            }
            let is_deleted = async {
                while self.object(namespace, name).await?.is_some_and(|object| object.metadata.is_deleting()) {
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
                Ok(())
            };
            // An object with a finalizer of another controller is deleted later.
            tokio::time::timeout(DELETION_TIMEOUT, is_deleted).await.unwrap_or(Ok(()))
        })
    }

    fn logs<'a>(&'a self, namespace: &'a str, name: &'a str, query: LogQuery) -> ExecFuture<'a, LogStream> {
        self.local.logs(namespace, name, query)
    }
}
