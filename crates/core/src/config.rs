//! Layered configuration: flag > `SLIPWAY_*` > `./slipway.yaml` (searched upwards) > user file > default.
//!
//! All layers use the same keys; `KEYS` lists them, and `slipway config show` prints their values.
//!
//! `slipway.yaml` is the project file. It may come from a cloned repository, so its author is not trusted: it may set only keys that can
//! neither send data or tokens to another server nor load code ([`Key::allowed_in_project`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::{Explain, env, home::Home};

/// The name of the project file.
const PROJECT_FILE: &str = "slipway.yaml";
/// Maximum size of a configuration file; a valid one is far smaller.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The layer that a value came from. Later variants override earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default.
    Default,
    /// The user file; holds its path.
    User(PathBuf),
    /// The project file; holds its path.
    Project(PathBuf),
    /// An environment variable; holds its name.
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

/// A configuration key.
#[derive(Debug)]
pub struct Key {
    name: &'static str,
    variable: &'static str,
    /// Whether a command accepts the flag `--NAME`.
    flag: bool,
    /// Whether a project file may set it.
    allowed_in_project: bool,
    default: fn() -> Option<String>,
}

impl Key {
    /// A key that names a path, a server, a library or a credential. A project file may not set it.
    const fn user_only(
        name: &'static str,
        variable: &'static str,
        flag: bool,
        default: fn() -> Option<String>,
    ) -> Self {
        Self { name, variable, flag, allowed_in_project: false, default }
    }

    /// A key for which no value is harmful. A project file may set it.
    const fn project_allowed(
        name: &'static str,
        variable: &'static str,
        flag: bool,
        default: fn() -> Option<String>,
    ) -> Self {
        Self { name, variable, flag, allowed_in_project: true, default }
    }
}

const KEYS: &[Key] = &[
    Key::user_only("home", env::HOME, true, || Some(Home::default_path().display().to_string())),
    Key::user_only("database", env::DATABASE, false, || None),
    Key::user_only("objects", env::OBJECTS, false, || None),
    Key::user_only("listen", env::LISTEN, true, || Some("127.0.0.1:7070".into())),
    Key::user_only("inference-listen", env::INFERENCE_LISTEN, true, || Some("127.0.0.1:7071".into())),
    Key::user_only("grpc-listen", env::GRPC_LISTEN, true, || Some("127.0.0.1:7072".into())),
    Key::user_only("server", env::SERVER, true, || None),
    Key::user_only("token-file", env::TOKEN_FILE, true, || None),
    Key::user_only("hosts", env::HOSTS, true, || None),
    Key::user_only("cors-origin", env::CORS_ORIGIN, true, || None),
    Key::user_only("tls-cert", env::TLS_CERT, true, || None),
    Key::user_only("tls-key", env::TLS_KEY, true, || None),
    Key::user_only("tls-self-signed", env::TLS_SELF_SIGNED, true, || None),
    Key::user_only("tls-fingerprint", env::TLS_FINGERPRINT, true, || None),
    Key::user_only("ca-file", env::CA_FILE, false, || None),
    Key::user_only("max-connections", env::MAX_CONNECTIONS, true, || None),
    Key::user_only("max-artifact-bytes", env::MAX_ARTIFACT_BYTES, false, || None),
    Key::user_only("min-free-bytes", env::MIN_FREE_BYTES, false, || None),
    Key::user_only("data-cache-bytes", env::DATA_CACHE_BYTES, false, || None),
    // The server sends requests, perhaps with its credentials, to these hosts.
    Key::user_only("data-hosts", env::DATA_HOSTS, false, || None),
    Key::user_only("run-environment", env::RUN_ENVIRONMENT, false, || None),
    // The key chooses the folder of the programs that steps execute.
    Key::user_only("pipeline-images", env::PIPELINE_IMAGES, false, || None),
    // This key only chooses between installed runtimes; `onnxruntime` names the library to load.
    Key::project_allowed("runtime", env::RUNTIME, true, || Some("auto".into())),
    Key::user_only("onnxruntime", env::ONNXRUNTIME, true, || None),
    Key::project_allowed("log", env::LOG, false, || Some("info".into())),
];

/// The comma-separated names of the keys that match `filter`, for error messages.
fn names(filter: impl Fn(&Key) -> bool) -> String {
    KEYS.iter().filter(|k| filter(k)).map(|k| k.name).collect::<Vec<_>>().join(", ")
}

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file exists but cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The underlying I/O error.
        source: std::io::Error,
    },
    /// A folder, a pipe, a device or, for a project file, a symbolic link.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// The path of the file.
        path: PathBuf,
    },
    /// The file is larger than 64 KiB.
    #[error("{} is larger than {} KiB", path.display(), MAX_FILE_BYTES / 1024)]
    TooLarge {
        /// The path of the file.
        path: PathBuf,
    },
    /// The file is not a YAML mapping of strings.
    #[error("{} is not a mapping of keys to values: {reason}", path.display())]
    Parse {
        /// The path of the file.
        path: PathBuf,
        /// The parser's message, with the position in the file.
        reason: String,
    },
    /// The file sets an unknown key.
    #[error("{} sets the unknown key `{key}`; known keys are {}", path.display(), names(|_| true))]
    Unknown {
        /// The path of the file.
        path: PathBuf,
        /// The key, with control characters replaced.
        key: String,
    },
    /// A value contains control characters, which a terminal would interpret when the value is printed.
    #[error("{} sets `{key}` to a value that contains control characters", path.display())]
    Control {
        /// The path of the file.
        path: PathBuf,
        /// The name of the key.
        key: &'static str,
    },
    /// A project file sets a key that only the user may set.
    #[error("{} sets `{}`, which a project may not set; it may set {}", path.display(), key.name, names(|k| k.allowed_in_project))]
    Project {
        /// The path of the file.
        path: PathBuf,
        /// The rejected key.
        key: &'static Key,
    },
}

impl Explain for ConfigError {
    fn code(&self) -> &'static str {
        match self {
            Self::Project { .. } => "config.project",
            _ => "config.invalid",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Project { path, key } => {
                let user = user_file().map_or_else(|| "your own config.yaml".into(), |p| p.display().to_string());
                let flag = if key.flag { format!(", or pass `--{}`", key.name) } else { String::new() };
                Some(format!(
                    "If you trust that value, set `{}` in {user} or export {}{flag}; then remove the line from {}.",
                    key.name,
                    key.variable,
                    path.display(),
                ))
            }
            _ => crate::explain::find(self.code()).map(|topic| topic.remedy.to_owned()),
        }
    }
}

/// The effective values of all keys, each with its origin.
#[derive(Clone)]
pub struct Config {
    values: BTreeMap<&'static str, (String, Origin)>,
}

impl std::fmt::Debug for Config {
    /// Omits the values, because the database URL may contain a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.values.iter().map(|(key, (_, origin))| (key, origin))).finish()
    }
}

impl Config {
    /// Reads all layers; `flags` are the values of command-line flags.
    ///
    /// A file with an error is ignored entirely, and the error is returned as the second value. Commands that depend on the configuration
    /// must then fail.
    pub fn read(flags: &[(&'static str, Option<String>)]) -> (Self, Option<ConfigError>) {
        let project = std::env::current_dir().ok().and_then(|dir| find_upwards(&dir, PROJECT_FILE));
        Self::layered(flags, project.as_deref(), user_file().as_deref(), |name| std::env::var(name).ok())
    }

    fn layered(
        flags: &[(&'static str, Option<String>)],
        project: Option<&Path>,
        user: Option<&Path>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> (Self, Option<ConfigError>) {
        let mut values = BTreeMap::new();
        for key in KEYS {
            if let Some(value) = (key.default)() {
                values.insert(key.name, (value, Origin::Default));
            }
        }
        let mut problem = None;
        for origin in user.map(|p| Origin::User(p.into())).into_iter().chain(project.map(|p| Origin::Project(p.into())))
        {
            match read_file(&origin) {
                Ok(found) => values.extend(found.into_iter().map(|(key, value)| (key, (value, origin.clone())))),
                // The user file is optional. The project file existed when it was searched for, so its absence is an error.
                Err(ConfigError::Read { source, .. })
                    if matches!(origin, Origin::User(_)) && source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => problem = problem.or(Some(error)),
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
        (Self { values }, problem)
    }

    /// The effective value of `key`, if any layer sets it.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(|(v, _)| v.as_str())
    }

    /// The layer that set the effective value of `key`.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.values.get(key).map(|(_, o)| o)
    }

    /// All keys that are set, with value and origin, in alphabetical order.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, &str, &Origin)> {
        self.values.iter().map(|(k, (v, o))| (*k, v.as_str(), o))
    }
}

/// The path of the user file: `$XDG_CONFIG_HOME/slipway/config.yaml`, else `~/.config/slipway/config.yaml`.
///
/// Relative folders are ignored, as the XDG specification demands. They would name a file below the current folder, which may be an
/// untrusted project.
fn user_file() -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .and_then(|dir| absolute(dir.into()))
        .or_else(|| std::env::home_dir().and_then(absolute).map(|home| home.join(".config")))?;
    Some(base.join("slipway/config.yaml"))
}

/// The nearest entry called `name`, of any file type, in `from` or one of its parent folders.
fn find_upwards(from: &Path, name: &str) -> Option<PathBuf> {
    from.ancestors().map(|dir| dir.join(name)).find(|path| path.symlink_metadata().is_ok())
}

/// Reads the keys and values of a user file or a project file.
fn read_file(origin: &Origin) -> Result<Vec<(&'static str, String)>, ConfigError> {
    let (path, is_project) = match origin {
        Origin::User(path) => (path, false),
        Origin::Project(path) => (path, true),
        Origin::Default | Origin::Environment(_) | Origin::Flag => return Ok(Vec::new()),
    };
    let text = read_text(path, is_project)?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let map: BTreeMap<String, String> = serde_saphyr::from_str(&text)
        .map_err(|e| ConfigError::Parse { path: path.clone(), reason: replace_control_characters(&e.to_string()) })?;
    let validate = |(key, value): (String, String)| {
        let Some(found) = KEYS.iter().find(|k| k.name == key) else {
            return Err(ConfigError::Unknown { path: path.clone(), key: replace_control_characters(&key) });
        };
        if is_project && !found.allowed_in_project {
            return Err(ConfigError::Project { path: path.clone(), key: found });
        }
        if value.chars().any(char::is_control) {
            return Err(ConfigError::Control { path: path.clone(), key: found.name });
        }
        Ok((found.name, value))
    };
    map.into_iter().map(validate).collect()
}

/// Reads a regular file of at most [`MAX_FILE_BYTES`]. A project file must not be a symbolic link: it could point to a private file of the
/// user, and an error message would then show a part of that file.
fn read_text(path: &Path, is_project: bool) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Read { path: path.to_owned(), source };
    // `NONBLOCK` opens a pipe without waiting for its writer.
    let mut flags = OFlags::NONBLOCK;
    if is_project {
        if path.symlink_metadata().map_err(unreadable)?.is_symlink() {
            return Err(ConfigError::NotRegular { path: path.to_owned() });
        }
        flags |= OFlags::NOFOLLOW;
    }
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(ConfigError::NotRegular { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|_| ConfigError::Parse { path: path.to_owned(), reason: "it is not UTF-8".into() })
}

/// Replaces control characters other than newlines, so that the text cannot control a terminal.
fn replace_control_characters(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A temporary folder with a user file and a project file.
    struct Files {
        folder: PathBuf,
        user: PathBuf,
        project: PathBuf,
    }

    impl Files {
        fn new() -> Self {
            let folder = std::env::temp_dir().join(format!("slipway-config-{}", crate::ids::hex32()));
            std::fs::create_dir_all(&folder).unwrap();
            Self { user: folder.join("config.yaml"), project: folder.join(PROJECT_FILE), folder }
        }

        /// The error for a project file with this content, if any.
        fn project_problem(&self, content: &[u8]) -> Option<ConfigError> {
            std::fs::write(&self.project, content).unwrap();
            Config::layered(&[], Some(&self.project), None, |_| None).1
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.folder).unwrap();
        }
    }

    #[test]
    fn later_layers_override_earlier_ones_and_keep_the_origin() {
        let files = Files::new();
        std::fs::write(&files.user, "listen: 127.0.0.1:1\nlog: debug\n").unwrap();
        std::fs::write(&files.project, "log: info,slipway_track=debug\nruntime: builtin\n").unwrap();
        let environment = |name: &str| (name == env::GRPC_LISTEN).then(|| "127.0.0.1:3".to_owned());

        let flags = [("home", Some("/h".into()))];
        let (config, problem) = Config::layered(&flags, Some(&files.project), Some(&files.user), environment);
        assert!(problem.is_none(), "{problem:?}");
        assert_eq!(config.get("log"), Some("info,slipway_track=debug"));
        assert_eq!(config.origin("log"), Some(&Origin::Project(files.project.clone())));
        assert_eq!(config.origin("runtime"), Some(&Origin::Project(files.project.clone())));
        assert_eq!(config.origin("listen"), Some(&Origin::User(files.user.clone())));
        assert_eq!(config.origin("grpc-listen"), Some(&Origin::Environment(env::GRPC_LISTEN)));
        assert_eq!(config.origin("home"), Some(&Origin::Flag));
        assert_eq!(config.origin("inference-listen"), Some(&Origin::Default));
    }

    #[test]
    fn project_file_may_set_only_allowed_keys() {
        let files = Files::new();
        let project_allowed = ["log", "runtime"];
        for key in KEYS {
            let problem = files.project_problem(format!("{}: x\n", key.name).as_bytes());
            if project_allowed.contains(&key.name) {
                assert!(problem.is_none(), "{problem:?}");
                continue;
            }
            let problem = problem.unwrap();
            let hint = problem.hint().unwrap();
            assert_eq!(problem.code(), "config.project");
            assert!(problem.to_string().contains(&format!("`{}`", key.name)), "{problem}");
            assert!(hint.contains(key.variable) && hint.contains("config.yaml"), "{hint}");
            assert_eq!(hint.contains(&format!("`--{}`", key.name)), key.flag, "{hint}");
        }
    }

    #[test]
    fn file_with_an_error_is_ignored_entirely() {
        let files = Files::new();
        std::fs::write(&files.user, "runtime: ort\n").unwrap();
        std::fs::write(&files.project, "runtime: builtin\nserver: http://evil.example\n").unwrap();
        let (config, problem) = Config::layered(&[], Some(&files.project), Some(&files.user), |_| None);
        assert!(matches!(problem, Some(ConfigError::Project { .. })), "{problem:?}");
        assert_eq!(config.get("runtime"), Some("ort"));
        assert_eq!(config.get("server"), None);
    }

    #[test]
    fn errors_about_invalid_files_contain_no_control_characters() {
        let files = Files::new();
        let problem = files.project_problem(b"lisen: x\n").unwrap();
        assert!(problem.to_string().contains("`lisen`"), "{problem}");
        let problem = files.project_problem(b"\"\\e]0;owned\\a\": x\n").unwrap();
        assert!(matches!(problem, ConfigError::Unknown { .. }) && !problem.to_string().contains('\x1b'), "{problem}");
        let problem = files.project_problem(b"log: \"\\e[2J\"\n").unwrap();
        assert!(matches!(problem, ConfigError::Control { key: "log", .. }), "{problem}");
        let problem = files.project_problem(b"log: [\x1b").unwrap();
        assert!(matches!(problem, ConfigError::Parse { .. }) && !problem.to_string().contains('\x1b'), "{problem}");
        let problem = files.project_problem(b"log: \xff").unwrap();
        assert!(matches!(problem, ConfigError::Parse { .. }), "{problem}");
        let problem = files.project_problem(&vec![b'#'; 100_000]).unwrap();
        assert!(matches!(problem, ConfigError::TooLarge { .. }), "{problem}");
    }

    #[test]
    fn project_file_must_be_regular_and_pipes_do_not_block() {
        let files = Files::new();
        let problem = |user: bool| {
            let (project, user) = if user { (None, Some(&*files.project)) } else { (Some(&*files.project), None) };
            Config::layered(&[], project, user, |_| None).1
        };
        let status = std::process::Command::new("mkfifo").arg(&files.project).status().unwrap();
        assert!(status.success());
        assert!(matches!(problem(false), Some(ConfigError::NotRegular { .. })));
        assert!(matches!(problem(true), Some(ConfigError::NotRegular { .. })));
        std::fs::remove_file(&files.project).unwrap();

        std::fs::write(&files.user, "log: debug\n").unwrap();
        std::os::unix::fs::symlink(&files.user, &files.project).unwrap();
        assert!(matches!(problem(false), Some(ConfigError::NotRegular { .. })));
        assert!(problem(true).is_none(), "the user file may be a symbolic link");
        std::fs::remove_file(&files.project).unwrap();

        std::fs::create_dir(&files.project).unwrap();
        assert!(matches!(problem(false), Some(ConfigError::NotRegular { .. })));
    }

    #[test]
    fn nearest_project_file_is_found_in_parent_folders() {
        let files = Files::new();
        let deep = files.folder.join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(&files.project, "").unwrap();
        assert_eq!(find_upwards(&deep, PROJECT_FILE).as_ref(), Some(&files.project));
        std::fs::write(files.folder.join("a").join(PROJECT_FILE), "").unwrap();
        assert_eq!(find_upwards(&deep, PROJECT_FILE), Some(files.folder.join("a").join(PROJECT_FILE)));
    }

    #[test]
    fn debug_output_contains_no_secrets() {
        let database = |name: &str| (name == env::DATABASE).then(|| "postgres://me:hunter2@db/x".to_owned());
        let (config, _) = Config::layered(&[], None, None, database);
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
