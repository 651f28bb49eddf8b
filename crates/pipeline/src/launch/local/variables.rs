//! Environment variables of steps.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use serde_json::Value;
use slipway_core::clock::now_ms;
use slipway_exec::local::environment;
use slipway_exec::token::{self, Mint, TokenRequest};

use super::attempt::Attempt;
use crate::model::Launch;
use crate::platform::PodSettings;
use crate::tracker::tracked_id;

/// Inherited variables that select another Python than that of the step.
const OF_OTHER_PYTHONS: &[&str] = &["PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "CONDA_PREFIX"];
/// Prefixes of variables that are read when an interpreter or a library is loaded, so that a worker cannot apply them.
const READ_AT_START: &[&str] =
    &["PYTHON", "LD_", "OMP_", "GOMP_", "KMP_", "OPENBLAS_", "MKL_", "NUMEXPR_", "MALLOC_", "GLIBC_"];

/// The variables that steps inherit from this process; those with credentials only if the settings name them.
pub(super) fn inherited(additional: &[String]) -> Vec<(OsString, OsString)> {
    let all = environment::inherited(std::env::vars_os(), additional);
    all.into_iter().filter(|(name, _)| !OF_OTHER_PYTHONS.iter().any(|other| name == other)).collect()
}

/// The variables of `pip` and `uv`, which may contain the credentials of package indexes.
pub(super) fn of_installers(inherited: &[(OsString, OsString)]) -> Vec<(OsString, OsString)> {
    let is_setting = |name: &OsStr| {
        name.to_str().is_some_and(|name| name.starts_with("PIP_") || name.starts_with("UV_") || name == "NETRC")
    };
    inherited.iter().cloned().chain(std::env::vars_os().filter(|(name, _)| is_setting(name))).collect()
}

/// Whether a variable takes effect only in a new interpreter.
pub(super) fn is_read_at_start(name: &str) -> bool {
    name != "PYTHONPATH" && READ_AT_START.iter().any(|prefix| name.starts_with(prefix))
}

/// The variables with which MLflow's client in a program logs to the tracked run of its task. `limit` is the time in milliseconds for which
/// the program may run, if it is limited.
pub(super) fn of_tracking(launch: &Launch, mint: Option<&Mint>, limit: Option<i64>) -> Vec<(String, String)> {
    let run = &launch.run;
    let run_id = tracked_id(&run.run_id, Some(&launch.path));
    let token = mint.map(|mint| {
        mint(&TokenRequest {
            namespace: run.namespace.clone(),
            run_id: run_id.clone(),
            run: format!("{}/{}", run.resource_name, launch.path),
            experiment: None,
            attempt: launch.attempt,
            // The step may wait for its turn before it starts, and the token is invalid after its end in any case.
            expires_at: now_ms().saturating_add(token::DEFAULT_LIFETIME_MS).saturating_add(limit.unwrap_or(0)),
        })
    });
    let token = token.map(|token| ("MLFLOW_TRACKING_TOKEN".to_owned(), token));
    std::iter::once(("MLFLOW_RUN_ID".to_owned(), run_id)).chain(token).collect()
}

/// Where the values of variables are that are not in the pipeline.
#[derive(Debug, Clone, Copy)]
pub(super) struct Values<'a> {
    /// Folder of secrets.
    pub(super) secrets: &'a Path,
    /// Folder of config maps.
    pub(super) config_maps: &'a Path,
}

/// The variables that the server sets for a step, and those that the component and its settings for Kubernetes ask for, which override
/// them.
///
/// # Errors
/// A secret is missing, or a source needs a cluster.
pub(super) fn requested(
    of_server: Vec<(String, String)>,
    launch: &Launch,
    pod: &PodSettings,
    values: Values<'_>,
) -> Result<BTreeMap<String, String>, String> {
    let mut variables: BTreeMap<String, String> = of_server.into_iter().collect();
    for variable in &pod.spec.env {
        let value = match &variable.value_from {
            None => Some(variable.value.clone().unwrap_or_default()),
            Some(source) => value_from(source, launch, pod, values)
                .map_err(|reason| format!("the environment variable {}: {reason}", variable.name))?,
        };
        if let Some(value) = value {
            variables.insert(variable.name.clone(), value);
        }
    }
    variables.insert("KFP_RETRY_INDEX".into(), launch.attempt.saturating_sub(1).to_string());
    Ok(variables)
}

/// The value of a source as in a pod; `None` if it is optional and missing.
fn value_from(
    source: &Value,
    launch: &Launch,
    pod: &PodSettings,
    values: Values<'_>,
) -> Result<Option<String>, String> {
    let keyed = [("secretKeyRef", values.secrets), ("configMapKeyRef", values.config_maps)];
    if let Some((key, folder)) = keyed.into_iter().find_map(|(kind, folder)| Some((source.get(kind)?, folder))) {
        let text = |field: &str| key[field].as_str().unwrap_or_default();
        let value = environment::secret(folder, text("name"), text("key"));
        return if key["optional"] == true { Ok(value.ok()) } else { value.map(Some) };
    }
    if let Some(path) = source["fieldRef"]["fieldPath"].as_str() {
        return field(path, launch, pod).map(Some);
    }
    Err(format!("its source {source} needs a cluster; one machine supports secrets, config maps and fields of the pod"))
}

/// A field of the pod that the step would have in a cluster.
fn field(path: &str, launch: &Launch, pod: &PodSettings) -> Result<String, String> {
    let run = &launch.run;
    let keyed = |prefix: &str| {
        let quoted = path.strip_prefix(prefix)?.strip_prefix('[')?.strip_suffix(']')?;
        Some(quoted.trim_matches(['\'', '"']))
    };
    if let Some(key) = keyed("metadata.labels") {
        return Ok(pod.labels.get(key).cloned().unwrap_or_default());
    }
    if let Some(key) = keyed("metadata.annotations") {
        return Ok(pod.annotations.get(key).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => crate::launch::file_name(&format!("{}-{}", run.resource_name, launch.path)),
        "metadata.namespace" => run.namespace.clone(),
        "metadata.uid" => run.run_id.clone(),
        "spec.nodeName" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        "spec.serviceAccountName" => "default".into(),
        "status.podIP" | "status.hostIP" => "127.0.0.1".into(),
        _ => return Err(format!("there is no field {path}")),
    })
}

/// All variables of a program: inherited ones and the requested ones. `programs` is the folder of the environment's
/// programs, if the step has an environment.
pub(super) fn all(
    inherited: &[(OsString, OsString)],
    requested: &BTreeMap<String, String>,
    programs: Option<&Path>,
    attempt: &Attempt,
) -> BTreeMap<String, String> {
    let text = |value: &OsStr| value.to_str().map(str::to_owned);
    let mut variables: BTreeMap<String, String> =
        inherited.iter().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect();
    let path = |name: &str| attempt.path(name).display().to_string();
    variables.insert("TMPDIR".into(), path("tmp"));
    variables.extend(requested.iter().map(|(name, value)| (name.clone(), value.clone())));
    if let Some(programs) = programs {
        let rest = variables.get("PATH").map_or(String::new(), |path| format!(":{path}"));
        variables.insert("PATH".into(), format!("{}{rest}", programs.display()));
        if let Some(venv) = programs.parent() {
            variables.insert("VIRTUAL_ENV".into(), venv.display().to_string());
        }
        // What a step installs itself goes to its own folder, because other steps share the environment.
        variables.insert("PIP_TARGET".into(), path("packages"));
        let rest = variables.get("PYTHONPATH").map_or(String::new(), |paths| format!(":{paths}"));
        variables.insert("PYTHONPATH".into(), format!("{}{rest}", path("packages")));
    }
    variables
}
