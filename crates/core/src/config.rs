//! Layered configuration: flag > `SLIPWAY_*` > `./slipway.yaml` (searched upwards) > user file > default.
//!
//! The keys are the same everywhere: `home`, `listen`, `inference-listen`, `grpc-listen`, `server`,
//! `token-file`, `tls-cert`, `tls-key`, `tls-self-signed`, `tls-fingerprint`, `ca-file`, `max-connections`, `runtime`, `onnxruntime`, `log`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{Explain, env, home::Home};

/// Where a value came from; the later in this list, the stronger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The user's file, with its path.
    User(PathBuf),
    /// The project's file, with its path.
    Project(PathBuf),
    /// An environment variable, with its name.
    Environment(&'static str),
    /// A command-line flag.
    Flag,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::User(p) | Self::Project(p) => write!(f, "{}", p.display()),
            Self::Environment(name) => write!(f, "${name}"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// A key that may be configured.
struct Key {
    name: &'static str,
    variable: &'static str,
    default: fn() -> Option<String>,
}

const KEYS: &[Key] = &[
    Key { name: "home", variable: env::HOME, default: || Some(Home::default_path().display().to_string()) },
    Key { name: "database", variable: env::DATABASE, default: || None },
    Key { name: "objects", variable: env::OBJECTS, default: || None },
    Key { name: "listen", variable: env::LISTEN, default: || Some("127.0.0.1:7070".into()) },
    Key { name: "inference-listen", variable: env::INFERENCE_LISTEN, default: || Some("127.0.0.1:7071".into()) },
    Key { name: "grpc-listen", variable: env::GRPC_LISTEN, default: || Some("127.0.0.1:7072".into()) },
    Key { name: "server", variable: env::SERVER, default: || None },
    Key { name: "token-file", variable: env::TOKEN_FILE, default: || None },
    Key { name: "tls-cert", variable: env::TLS_CERT, default: || None },
    Key { name: "tls-key", variable: env::TLS_KEY, default: || None },
    Key { name: "tls-self-signed", variable: env::TLS_SELF_SIGNED, default: || None },
    Key { name: "max-connections", variable: env::MAX_CONNECTIONS, default: || None },
    Key { name: "ca-file", variable: env::CA_FILE, default: || None },
    Key { name: "tls-fingerprint", variable: env::TLS_FINGERPRINT, default: || None },
    Key { name: "runtime", variable: env::RUNTIME, default: || Some("auto".into()) },
    Key { name: "onnxruntime", variable: env::ONNXRUNTIME, default: || None },
    Key { name: "log", variable: env::LOG, default: || Some("info".into()) },
];

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is there but cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no YAML mapping of strings.
    #[error("{} is not a mapping of keys to values: {reason}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// The file has a key that nobody reads.
    #[error("{} sets `{key}`, which is no setting; settings are {}", path.display(), KEYS.iter().map(|k| k.name).collect::<Vec<_>>().join(", "))]
    Unknown {
        /// Which file.
        path: PathBuf,
        /// The key.
        key: String,
    },
}

impl Explain for ConfigError {
    fn code(&self) -> &'static str {
        "config.invalid"
    }
}

/// The effective settings, each with its origin.
#[derive(Debug, Clone)]
pub struct Config {
    values: BTreeMap<&'static str, (String, Origin)>,
}

impl Config {
    /// Reads all layers; `flags` are the values given on the command line.
    ///
    /// # Errors
    /// [`ConfigError`] when a file is there but unusable.
    pub fn load(flags: &[(&'static str, Option<String>)]) -> Result<Self, ConfigError> {
        let project = std::env::current_dir().ok().and_then(|dir| find_upwards(&dir, "slipway.yaml"));
        Self::layered(flags, project.as_deref(), user_file().as_deref(), |name| std::env::var(name).ok())
    }

    fn layered(
        flags: &[(&'static str, Option<String>)],
        project: Option<&Path>,
        user: Option<&Path>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut values = BTreeMap::new();
        for key in KEYS {
            if let Some(value) = (key.default)() {
                values.insert(key.name, (value, Origin::Default));
            }
        }
        for (path, origin) in
            [(user, Origin::User as fn(PathBuf) -> Origin), (project, Origin::Project as fn(PathBuf) -> Origin)]
        {
            let Some(path) = path.filter(|p| p.is_file()) else { continue };
            for (key, value) in read_file(path)? {
                values.insert(key, (value, origin(path.to_owned())));
            }
        }
        for key in KEYS {
            if let Some(value) = variable(key.variable).filter(|v| !v.is_empty()) {
                values.insert(key.name, (value, Origin::Environment(key.variable)));
            }
        }
        for (name, value) in flags {
            if let Some(value) = value {
                values.insert(name, (value.clone(), Origin::Flag));
            }
        }
        Ok(Self { values })
    }

    /// The value of `key`, if any layer sets it.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(|(v, _)| v.as_str())
    }

    /// Where the value of `key` came from.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.values.get(key).map(|(_, o)| o)
    }

    /// All settings in alphabetical order.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, &str, &Origin)> {
        self.values.iter().map(|(k, (v, o))| (*k, v.as_str(), o))
    }
}

fn user_file() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".config")))?;
    Some(base.join("slipway/config.yaml"))
}

fn find_upwards(from: &Path, name: &str) -> Option<PathBuf> {
    from.ancestors().map(|dir| dir.join(name)).find(|p| p.is_file())
}

fn read_file(path: &Path) -> Result<Vec<(&'static str, String)>, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let map: BTreeMap<String, String> = serde_saphyr::from_str(&text)
        .map_err(|e| ConfigError::Parse { path: path.to_owned(), reason: e.to_string() })?;
    map.into_iter()
        .map(|(key, value)| match KEYS.iter().find(|k| k.name == key) {
            Some(known) => Ok((known.name, value)),
            None => Err(ConfigError::Unknown { path: path.to_owned(), key }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stronger_layers_win_and_the_origin_is_kept() {
        let dir = std::env::temp_dir().join(format!("slipway-config-{}", crate::ids::hex32()));
        std::fs::create_dir_all(&dir).unwrap();
        let (user, project) = (dir.join("config.yaml"), dir.join("slipway.yaml"));
        std::fs::write(&user, "listen: 127.0.0.1:1\nlog: debug\n").unwrap();
        std::fs::write(&project, "listen: 127.0.0.1:2\n").unwrap();
        let environment = |name: &str| (name == env::GRPC_LISTEN).then(|| "127.0.0.1:3".to_owned());

        let config = Config::layered(&[("home", Some("/h".into()))], Some(&project), Some(&user), environment).unwrap();
        assert_eq!(config.get("listen"), Some("127.0.0.1:2"));
        assert_eq!(config.origin("listen"), Some(&Origin::Project(project.clone())));
        assert_eq!(config.origin("log"), Some(&Origin::User(user.clone())));
        assert_eq!(config.origin("grpc-listen"), Some(&Origin::Environment(env::GRPC_LISTEN)));
        assert_eq!(config.origin("home"), Some(&Origin::Flag));
        assert_eq!(config.origin("runtime"), Some(&Origin::Default));

        std::fs::write(&project, "lisen: x\n").unwrap();
        let wrong = Config::layered(&[], Some(&project), None, |_| None).unwrap_err();
        assert!(wrong.to_string().contains("`lisen`"), "{wrong}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
