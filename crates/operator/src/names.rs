//! Names that the installation and the run controller share: labels, the finalizer, roles and accounts.

pub use slipway_exec::pod::{FINALIZER, RUN_LABEL};

/// Label on every object of an installation. Its value is the namespace of the installation.
pub(crate) const INSTALLATION_LABEL: &str = "slipway.dev/installation";
/// Prefix of the names of runs' secrets.
pub(crate) const SECRET_PREFIX: &str = "slipway-run-";
/// Name of the objects of the control plane. Its service account cannot create pods or read secrets.
pub(crate) const SERVER_NAME: &str = "slipway";
/// Name of the objects of the run controller. Its service account can create pods and secrets in enabled namespaces.
pub(crate) const CONTROLLER_NAME: &str = "slipway-controller";
/// RoleBinding that allows the controller to execute runs in a namespace.
pub(crate) const RUNS_BINDING: &str = "slipway-runs";
/// RoleBinding that allows the control plane to create runs in a namespace and to read their logs.
pub(crate) const SUBMIT_BINDING: &str = "slipway-submit";

/// The two RoleBindings that enable a namespace for runs: name, ClusterRole, service account.
pub(crate) fn runs_bindings(installation: &str) -> [(&'static str, String, &'static str); 2] {
    [
        (RUNS_BINDING, format!("{RUNS_BINDING}-{installation}"), CONTROLLER_NAME),
        (SUBMIT_BINDING, format!("{SUBMIT_BINDING}-{installation}"), SERVER_NAME),
    ]
}

/// The shell commands with which an administrator enables a namespace for runs.
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
