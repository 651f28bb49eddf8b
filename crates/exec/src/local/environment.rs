//! The environment of a run's program: variables inherited from the server, set by the executor, and set in the manifest.
//!
//! The environment of the server may hold credentials of its database, its object store and its owner's accounts. Therefore a program
//! inherits only the variables listed here, and those that the server's settings name.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::Path;

use super::{Device, Inner};
use crate::{Manifest, TokenRequest, tracked_id};

/// Maximum bytes of a secret's value. Linux limits one variable to 128 KiB.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Variables that programs need to find their tools, their libraries, the network and the GPUs.
const INHERITED: &[&str] = &[
    // The login session and the locale.
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "HOSTNAME",
    "LANG",
    "LANGUAGE",
    "LOCALE_ARCHIVE",
    "TZ",
    "TZDIR",
    "TMPDIR",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "FORCE_COLOR",
    // Libraries and compilers.
    "LD_LIBRARY_PATH",
    "LIBRARY_PATH",
    "CPATH",
    "PKG_CONFIG_PATH",
    "CC",
    "CXX",
    // Language environments and model caches.
    "VIRTUAL_ENV",
    "JAVA_HOME",
    "JULIA_DEPOT_PATH",
    "R_HOME",
    "R_LIBS_USER",
    "MPLBACKEND",
    "TORCH_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_CACHE",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    // Threads of numeric libraries.
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    // The network.
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
];

/// Prefixes of further inherited variables, unless their names look like those of credentials.
const INHERITED_PREFIXES: &[&str] = &[
    "LC_", "CONDA_", "PYTHON", "PYENV_", "CUDA_", "NVIDIA_", "CUBLAS_", "CUDNN_", "NCCL_", "OMP_", "GOMP_", "KMP_",
    "MKL_",
];

/// Words, and endings of words, that mark a variable as a credential: `NVIDIA_API_KEY`, `CONDA_TOKEN`.
const CREDENTIAL_WORDS: &[&str] = &[
    "TOKEN",
    "TOKENS",
    "KEY",
    "KEYS",
    "SECRET",
    "SECRETS",
    "PASSWORD",
    "PASSWD",
    "PASS",
    "PASSPHRASE",
    "CREDENTIAL",
    "CREDENTIALS",
    "AUTH",
    "COOKIE",
];

fn is_credential_name(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    name.split('_').any(|word| CREDENTIAL_WORDS.iter().any(|ending| word.ends_with(ending)))
}

fn is_inherited(name: &OsStr, additional: &[String]) -> bool {
    let Some(name) = name.to_str() else { return false };
    let has_inherited_prefix =
        || INHERITED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) && !is_credential_name(name);
    INHERITED.contains(&name) || additional.iter().any(|added| added == name) || has_inherited_prefix()
}

/// Selects the variables that a run inherits. `additional` are names from the server's settings; these variables are inherited even if
/// they look like credentials.
pub fn inherited(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    additional: &[String],
) -> Vec<(OsString, OsString)> {
    variables.into_iter().filter(|(name, _)| is_inherited(name, additional)).collect()
}

/// The variables with which a program sees only these GPUs of a machine that has some, as in a pod.
pub fn of_devices(devices: &[Device]) -> Vec<(String, String)> {
    let uuids = devices.iter().map(|device| device.uuid.as_str()).collect::<Vec<_>>().join(",");
    let visible = if uuids.is_empty() { "void".to_owned() } else { uuids.clone() };
    vec![("NVIDIA_VISIBLE_DEVICES".into(), visible), ("CUDA_VISIBLE_DEVICES".into(), uuids)]
}

impl Inner {
    /// The variables that the executor sets for a run.
    pub(super) fn own_variables(&self, run: &Manifest) -> Vec<(String, String)> {
        let mut variables = self.settings.variables.clone();
        variables.push(("MLFLOW_RUN_ID".into(), tracked_id(&run.metadata.uid)));
        variables.push(("SLIPWAY_RUN".into(), run.metadata.name.clone()));
        variables
    }

    /// The variable with the token of an attempt; `None` if the server requires no tokens.
    pub(super) fn token(&self, request: &TokenRequest) -> Option<(String, String)> {
        self.settings.mint.as_ref().map(|mint| ("MLFLOW_TRACKING_TOKEN".into(), mint(request)))
    }
}

/// The value of a secret: the content of the file `NAME/KEY` in the folder of secrets, without line feeds at its end.
///
/// # Errors
/// The reason, with the path of the file but nothing of its content.
pub fn secret(secrets: &Path, name: &str, key: &str) -> Result<String, String> {
    if ![name, key].iter().all(|part| is_file_name(part)) {
        return Err(format!("'{name}' and '{key}' cannot be names of a folder and a file"));
    }
    let path = secrets.join(name).join(key);
    let unusable = |why: String| format!("{}: {why}", path.display());
    let file = std::fs::File::open(&path).map_err(|e| unusable(e.to_string()))?;
    let mut text = String::new();
    file.take(MAX_SECRET_BYTES + 1).read_to_string(&mut text).map_err(|e| unusable(e.to_string()))?;
    if text.len() as u64 > MAX_SECRET_BYTES || text.contains('\0') {
        return Err(unusable(format!("the file has more than {MAX_SECRET_BYTES} bytes, or is not text")));
    }
    Ok(text.trim_end_matches('\n').to_owned())
}

/// Whether a text can be the name of a file that is not hidden.
pub(super) fn is_file_name(text: &str) -> bool {
    !text.is_empty() && !text.starts_with('.') && !text.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_inherit_listed_variables_but_no_credentials() {
        let variables = [
            "PATH",
            "HOME",
            "LC_ALL",
            "CONDA_PREFIX",
            "CUDA_HOME",
            "NVIDIA_TF32_OVERRIDE",
            "https_proxy",
            "HF_HOME",
            "DATASETS",
            // These must not be inherited.
            "SLIPWAY_TOKEN",
            "SLIPWAY_DATABASE",
            "SLIPWAY_HOME",
            "AWS_SECRET_ACCESS_KEY",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "HF_TOKEN",
            "NVIDIA_API_KEY",
            "CONDA_TOKEN",
            "CUDA_DOWNLOAD_PASSWORD",
            "SSH_AUTH_SOCK",
            "GITHUB_TOKEN",
            "MLFLOW_TRACKING_PASSWORD",
            "LD_PRELOAD",
        ];
        let variables = || variables.iter().map(|name| (OsString::from(name), OsString::from("value")));
        let names = |additional: &[&str]| {
            let additional: Vec<String> = additional.iter().map(|name| (*name).to_owned()).collect();
            let found = inherited(variables(), &additional);
            found.into_iter().map(|(name, _)| name.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        let needed = "PATH HOME LC_ALL CONDA_PREFIX CUDA_HOME NVIDIA_TF32_OVERRIDE https_proxy HF_HOME";
        assert_eq!(names(&[]), needed);
        assert_eq!(names(&["DATASETS", "NOT_SET"]), format!("{needed} DATASETS"));
        assert_eq!(
            names(&["HF_TOKEN"]),
            format!("{needed} HF_TOKEN"),
            "variables named in the settings are inherited even if they look like credentials"
        );
    }
}
