//! Persistent volume claims: those of `CreatePVC` and `DeletePVC`, and the workspace of a run, which its first task that uses it creates.
//!
//! The workspace of a run that succeeded is deleted. That of any other run stays until the run is deleted, because a retry goes on with its
//! content. The name of the claim follows from the run, so that it is found again after a restart.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use slipway_exec::manifest::VolumeMount;
use slipway_exec::{ExecError, RunSpec};

use super::manifest::RUN_LABEL;
use super::{Active, CLAIM_LABEL, Inner, MAX_INTERVAL, MIN_INTERVAL, permanent};
use crate::launch::claims;
use crate::model::{Failure, Launch, Outcome, RunInfo};
use crate::placeholder::WORKSPACE_PATH;

/// Name of the volume in a pod, and the end of the name of the claim, as in Kubeflow.
const WORKSPACE: &str = "kfp-workspace";

/// The name of the claim of a run's workspace.
fn workspace_name(run_id: &str) -> String {
    format!("{run_id}-{WORKSPACE}")
}

/// The claim of the workspace of a run.
///
/// # Errors
/// The pipeline has no workspace.
fn workspace_claim(launch: &Launch) -> Result<Value, String> {
    let run = &launch.run;
    let spec = run.workspace.as_ref().ok_or_else(|| {
        format!(
            "task '{}' uses the workspace of the run, and the pipeline has none; set it with \
             dsl.PipelineConfig(workspace=dsl.WorkspaceConfig(size='10Gi'))",
            launch.path
        )
    })?;
    Ok(json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": workspace_name(&run.run_id),
            "namespace": run.namespace,
            "labels": { RUN_LABEL: run.run_id, CLAIM_LABEL: "true" },
        },
        "spec": spec,
    }))
}

/// Mounts the workspace of a run.
///
/// # Errors
/// Another volume is mounted there.
pub(super) fn mount_workspace(spec: &mut RunSpec, run: &RunInfo) -> Result<(), String> {
    let is_inside =
        |path: &str| path.strip_prefix(WORKSPACE_PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if let Some(other) = spec.volume_mounts.iter().find(|mount| is_inside(&mount.mount_path)) {
        return Err(format!(
            "the volume '{}' is mounted at {}, which is in the workspace of the run",
            other.name, other.mount_path
        ));
    }
    spec.volumes.push(json!({
        "name": WORKSPACE, "persistentVolumeClaim": { "claimName": workspace_name(&run.run_id) },
    }));
    let mount_path = WORKSPACE_PATH.to_owned();
    spec.volume_mounts.push(VolumeMount { name: WORKSPACE.into(), mount_path, other: BTreeMap::new() });
    Ok(())
}

impl Inner {
    /// Creates or deletes a claim at the request of a step, which needs no pod.
    pub(super) async fn change_claim(
        &self,
        request: &claims::Request,
        launch: &Launch,
        active: &Active,
    ) -> Result<Outcome, Failure> {
        let namespace = &launch.run.namespace;
        let change = || match request {
            claims::Request::Create(_) => self.claims.create(request.manifest(namespace)),
            claims::Request::Delete(name) => self.claims.delete(namespace, name),
        };
        let is_done = until_reachable(namespace, active, change).await?;
        Ok(if is_done { Outcome::Succeeded(request.outputs()) } else { Outcome::Canceled })
    }

    /// Creates the workspace of a run, unless it exists. Returns whether it exists now: the attempt may have been stopped meanwhile.
    pub(super) async fn create_workspace(&self, launch: &Launch, active: &Active) -> Result<bool, Failure> {
        let claim = workspace_claim(launch).map_err(permanent)?;
        until_reachable(&launch.run.namespace, active, || self.claims.create(claim.clone())).await
    }

    /// Deletes the workspace of a run that succeeded, once the cluster can be reached. After a restart of the server in between, it stays
    /// until the run is deleted.
    pub(super) async fn release_workspace(&self, run: &RunInfo) {
        if run.workspace.is_none() {
            return;
        }
        let mut interval = MIN_INTERVAL;
        while let Err(error) = self.delete_workspace(&run.namespace, &run.run_id).await {
            if !matches!(error, ExecError::Unreachable(_)) {
                tracing::error!(run = run.run_id, %error, "the workspace of the run cannot be deleted");
                return;
            }
            tokio::time::sleep(interval).await;
            interval = next_interval(interval);
        }
    }

    /// Deletes the workspace of a run. It is not an error if it has none, as in a namespace that is not enabled for runs.
    pub(super) async fn delete_workspace(&self, namespace: &str, run_id: &str) -> Result<(), ExecError> {
        match self.claims.delete(namespace, &workspace_name(run_id)).await {
            Err(ExecError::Forbidden(_)) => Ok(()),
            deleted => deleted,
        }
    }
}

fn next_interval(interval: Duration) -> Duration {
    (interval * 2).min(MAX_INTERVAL)
}

/// Repeats a change of a claim while the cluster cannot be reached. Returns `false` if the attempt was stopped before it succeeded.
async fn until_reachable<'a>(
    namespace: &str,
    active: &Active,
    change: impl Fn() -> BoxFuture<'a, Result<(), ExecError>>,
) -> Result<bool, Failure> {
    let mut interval = MIN_INTERVAL;
    loop {
        if active.is_stopped() {
            return Ok(false);
        }
        match change().await {
            Ok(()) => return Ok(true),
            Err(ExecError::Unreachable(reason)) => {
                tracing::warn!(namespace, reason, "the volume cannot be changed; retrying");
            }
            Err(error) => return Err(permanent(error.to_string())),
        }
        active.wait(&mut interval).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workspace_is_mounted_unless_another_volume_is_there() {
        let run = RunInfo { run_id: "r".into(), ..RunInfo::default() };
        let with = |path: &str| {
            let mount = VolumeMount { name: "v".into(), mount_path: path.into(), other: BTreeMap::new() };
            let mut spec = RunSpec { volume_mounts: vec![mount], ..RunSpec::default() };
            mount_workspace(&mut spec, &run).map(|()| spec)
        };
        let spec = with("/kfp-workspace-2").unwrap();
        assert_eq!(spec.volumes[0]["persistentVolumeClaim"]["claimName"], "r-kfp-workspace");
        assert_eq!(spec.volume_mounts[1].mount_path, "/kfp-workspace");
        assert!(with("/kfp-workspace").is_err() && with("/kfp-workspace/a").is_err());
    }
}
