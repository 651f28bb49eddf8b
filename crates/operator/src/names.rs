//! Names that an installation and the controller of runs both use: labels, the finalizer, roles.

/// On every object of an installation: the namespace of the installation, by which they are found again.
pub(crate) const INSTALLATION: &str = "slipway.dev/installation";
/// On every pod and secret of a run: the run's name.
pub const RUN_LABEL: &str = "slipway.dev/run";
/// Keeps a pod until its end is written down, as `batch.kubernetes.io/job-tracking` does for a job.
pub const FINALIZER: &str = "slipway.dev/run";
/// What the names of runs' secrets begin with.
pub(crate) const SECRET_PREFIX: &str = "slipway-run-";
/// The service account of the control plane, which has no rights over pods and secrets.
pub(crate) const SERVER: &str = "slipway";
/// The service account of the controller of runs, which creates pods and secrets in enabled namespaces.
pub(crate) const CONTROLLER: &str = "slipway-controller";
/// The RoleBinding that lets the controller carry out runs in a namespace.
pub(crate) const RUNS_BINDING: &str = "slipway-runs";
/// The RoleBinding that lets the control plane create runs in a namespace and read their logs.
pub(crate) const SUBMIT_BINDING: &str = "slipway-submit";

/// The two RoleBindings that enable a namespace for runs: name, ClusterRole, service account.
pub(crate) fn runs_bindings(installation: &str) -> [(&'static str, String, &'static str); 2] {
    [
        (RUNS_BINDING, format!("{RUNS_BINDING}-{installation}"), CONTROLLER),
        (SUBMIT_BINDING, format!("{SUBMIT_BINDING}-{installation}"), SERVER),
    ]
}

/// The commands that enable a namespace for runs.
pub fn enable_namespace(installation: &str, namespace: &str) -> String {
    runs_bindings(installation)
        .map(|(name, role, account)| {
            format!(
                "kubectl -n {namespace} create rolebinding {name} --clusterrole={role} \
                 --serviceaccount={installation}:{account}"
            )
        })
        .join(" && ")
}
