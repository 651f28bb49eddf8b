//! Names that an installation and the controller of runs both use: labels, the finalizer, roles.

/// On every object of an installation: the namespace of the installation, by which they are found again.
pub(crate) const INSTALLATION: &str = "slipway.dev/installation";
/// On every pod and secret of a run: the run's name.
pub const RUN_LABEL: &str = "slipway.dev/run";
/// Keeps a pod until its end is written down, as `batch.kubernetes.io/job-tracking` does for a job.
pub const FINALIZER: &str = "slipway.dev/run";
/// What the names of runs' secrets begin with.
pub(crate) const SECRET_PREFIX: &str = "slipway-run-";
/// The service account of the control plane.
pub(crate) const ACCOUNT: &str = "slipway";
/// The RoleBinding that enables a namespace for runs.
pub(crate) const RUNS_BINDING: &str = "slipway-runs";

/// The ClusterRole that the RoleBinding of a namespace gives to the control plane: pods and secrets may be created there.
pub(crate) fn runs_role(installation: &str) -> String {
    format!("slipway-runs-{installation}")
}

/// The command that enables a namespace for runs.
pub(crate) fn enable_namespace(installation: &str, namespace: &str) -> String {
    format!(
        "kubectl -n {namespace} create rolebinding {RUNS_BINDING} --clusterrole={} --serviceaccount={installation}:{ACCOUNT}",
        runs_role(installation)
    )
}
