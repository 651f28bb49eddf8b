//! Configurations that Hydra composes (`hydra.enabled` in the project's configuration): `params.yaml` is composed from a folder or module of
//! configurations and the overrides of the command line, as DVC does it. Hydra runs in the Python of the user's environment, in which the project's
//! stages run, too, since it imports the project's own modules and plugins.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::bounded;
use crate::config::Config;
use crate::error::DataError;

/// The programs that may be the user's Python.
const PYTHON: [&str; 2] = ["python3", "python"];
/// The exit code of the script if Hydra is not installed.
const NOT_INSTALLED: i32 = 3;
/// Limits of a composition, whose modules may be large.
const LIMITS: bounded::Limits = bounded::Limits { time: Duration::from_secs(120), bytes: 16 << 20 };
/// Reads a request in JSON and prints the composed configuration as YAML.
const SCRIPT: &str = include_str!("hydra.py");

/// Where the configurations of a project are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hydra {
    /// The folder of the configurations, or the module if there is one.
    folder: PathBuf,
    module: Option<String>,
    name: String,
    plugins: PathBuf,
    root: PathBuf,
}

impl Hydra {
    /// The settings of the project at `root`; `None` if it does not use Hydra.
    pub(crate) fn of(config: &Config, root: &Path) -> Option<Self> {
        let text = |option| config.get("hydra", option);
        config.is_true("hydra", "enabled").then(|| Self {
            folder: root.join(text("config_dir").unwrap_or("conf")),
            module: text("config_module").map(str::to_owned),
            name: text("config_name").unwrap_or("config").to_owned(),
            plugins: root.join(text("plugins_path").unwrap_or_default()),
            root: root.to_owned(),
        })
    }

    /// The parameters with these overrides, as YAML.
    ///
    /// # Errors
    /// [`DataError::Invalid`] if Hydra is not installed or does not accept the configurations or overrides.
    pub(crate) fn compose(&self, overrides: &[&str]) -> Result<String, DataError> {
        let request = json!({
            "folder": if self.module.is_none() { Some(&self.folder) } else { None },
            "module": self.module, "name": self.name, "plugins": self.plugins, "overrides": overrides,
        });
        let missing = |reason: &str| {
            DataError::Invalid(format!(
                "params.yaml is composed by Hydra (hydra.enabled), but {reason}; install hydra-core into the environment of the project, or \
                 set the parameters of params.yaml itself with --no-hydra"
            ))
        };
        for program in PYTHON {
            let mut input = tempfile::tempfile().map_err(DataError::io(std::env::temp_dir().as_path()))?;
            let written = input.write_all(request.to_string().as_bytes());
            written.and_then(|()| std::io::Seek::rewind(&mut input)).map_err(DataError::io(&self.root))?;
            let mut command = Command::new(program);
            command.args(["-c", SCRIPT]).current_dir(&self.root).stdin(Stdio::from(input));
            let output = match bounded::output(command, LIMITS) {
                Ok(output) => output,
                Err(bounded::Stopped::NotStarted(error)) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(stopped) => return Err(DataError::Invalid(format!("Hydra in {program}: {stopped}"))),
            };
            let errors = String::from_utf8_lossy(&output.stderr);
            return match output.status.code() {
                Some(0) => String::from_utf8(output.stdout)
                    .map_err(|_| DataError::Invalid("Hydra composed a text that is not UTF-8".into())),
                Some(NOT_INSTALLED) => Err(missing(&format!("{program} cannot import it ({})", errors.trim()))),
                _ => Err(DataError::Invalid(format!("Hydra cannot compose params.yaml: {}", errors.trim()))),
            };
        }
        Err(missing("there is no python3 in PATH"))
    }
}
