//! Layered configuration: flag > `SLIPWAY_*` > `./slipway.yaml` (searched upwards) > user file > default.
//!
//! The keys are the same everywhere; `KEYS` lists them, and `slipway config show` prints them with their values.
//!
//! `slipway.yaml` is the project file. It comes with a cloned repository, so whoever wrote it is not trusted: it may
//! set only the keys that can neither send data or a token elsewhere nor load code ([`Key::from_project`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::{Explain, env, home::Home};

/// Name of the project file.
const PROJECT_FILE: &str = "slipway.yaml";
/// Most bytes of a configuration file; a handful of short settings needs far less.
const MAX_FILE_BYTES: u64 = 64 * 1024;

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
#[derive(Debug)]
pub struct Key {
    name: &'static str,
    variable: &'static str,
    /// Whether a command has the flag `--NAME`.
    flag: bool,
    /// Whether a project file may set it.
    from_project: bool,
    default: fn() -> Option<String>,
}

impl Key {
    /// A key that names a place, a server, a library or a credential: never taken from a project file.
    const fn trusted(name: &'static str, variable: &'static str, flag: bool, default: fn() -> Option<String>) -> Self {
        Self { name, variable, flag, from_project: false, default }
    }

    /// A key whose worst value does no harm: a project file may set it.
    const fn harmless(name: &'static str, variable: &'static str, flag: bool, default: fn() -> Option<String>) -> Self {
        Self { name, variable, flag, from_project: true, default }
    }
}

const KEYS: &[Key] = &[
    Key::trusted("home", env::HOME, true, || Some(Home::default_path().display().to_string())),
    Key::trusted("database", env::DATABASE, false, || None),
    Key::trusted("objects", env::OBJECTS, false, || None),
    Key::trusted("listen", env::LISTEN, true, || Some("127.0.0.1:7070".into())),
    Key::trusted("inference-listen", env::INFERENCE_LISTEN, true, || Some("127.0.0.1:7071".into())),
    Key::trusted("grpc-listen", env::GRPC_LISTEN, true, || Some("127.0.0.1:7072".into())),
    Key::trusted("server", env::SERVER, true, || None),
    Key::trusted("token-file", env::TOKEN_FILE, true, || None),
    Key::trusted("hosts", env::HOSTS, true, || None),
    Key::trusted("tls-cert", env::TLS_CERT, true, || None),
    Key::trusted("tls-key", env::TLS_KEY, true, || None),
    Key::trusted("tls-self-signed", env::TLS_SELF_SIGNED, true, || None),
    Key::trusted("tls-fingerprint", env::TLS_FINGERPRINT, true, || None),
    Key::trusted("ca-file", env::CA_FILE, false, || None),
    Key::trusted("max-connections", env::MAX_CONNECTIONS, true, || None),
    Key::trusted("max-artifact-bytes", env::MAX_ARTIFACT_BYTES, false, || None),
    Key::trusted("min-free-bytes", env::MIN_FREE_BYTES, false, || None),
    Key::trusted("run-environment", env::RUN_ENVIRONMENT, false, || None),
    // Chooses between two runtimes that the user has installed; where ONNX Runtime's library is, is `onnxruntime`.
    Key::harmless("runtime", env::RUNTIME, true, || Some("auto".into())),
    Key::trusted("onnxruntime", env::ONNXRUNTIME, true, || None),
    Key::harmless("log", env::LOG, false, || Some("info".into())),
];

/// The names of the keys that pass `filter`, for messages.
fn names(filter: impl Fn(&Key) -> bool) -> String {
    KEYS.iter().filter(|k| filter(k)).map(|k| k.name).collect::<Vec<_>>().join(", ")
}

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
    /// A folder, a pipe, a device or, for a project file, a symbolic link.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// Which file.
        path: PathBuf,
    },
    /// The file is larger than any configuration.
    #[error("{} is larger than {} KiB", path.display(), MAX_FILE_BYTES / 1024)]
    TooLarge {
        /// Which file.
        path: PathBuf,
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
    #[error("{} sets `{key}`, which is no setting; settings are {}", path.display(), names(|_| true))]
    Unknown {
        /// Which file.
        path: PathBuf,
        /// The key, without control characters.
        key: String,
    },
    /// A value holds control characters, which a terminal would obey when it is shown.
    #[error("{} sets `{key}` to a value with control characters", path.display())]
    Control {
        /// Which file.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// A project file sets a key that only the user may set.
    #[error("{} sets `{}`, which a project may not set; it may set {}", path.display(), key.name, names(|k| k.from_project))]
    Project {
        /// Which file.
        path: PathBuf,
        /// The key.
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

/// The effective settings, each with its origin.
#[derive(Clone)]
pub struct Config {
    values: BTreeMap<&'static str, (String, Origin)>,
}

impl std::fmt::Debug for Config {
    /// Values are left out: the database's URL may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.values.iter().map(|(key, (_, origin))| (key, origin))).finish()
    }
}

impl Config {
    /// Reads all layers; `flags` are the values given on the command line.
    ///
    /// A file that cannot be used is left out as a whole, and the second value says why. Only a command that acts on
    /// no setting may go on then.
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
                // Most users have no file of their own; a project file was seen before it is read.
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

/// `$XDG_CONFIG_HOME/slipway/config.yaml`, else `~/.config/slipway/config.yaml`.
///
/// Relative folders are not used, as the XDG specification says: they would name a file of the current folder, and
/// with it of a stranger's project.
fn user_file() -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .and_then(|dir| absolute(dir.into()))
        .or_else(|| std::env::home_dir().and_then(absolute).map(|home| home.join(".config")))?;
    Some(base.join("slipway/config.yaml"))
}

/// The nearest entry of this name in `from` or a folder above it, whatever it is.
fn find_upwards(from: &Path, name: &str) -> Option<PathBuf> {
    from.ancestors().map(|dir| dir.join(name)).find(|path| path.symlink_metadata().is_ok())
}

/// The settings of a file, which is that of the user or of a project.
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
        .map_err(|e| ConfigError::Parse { path: path.clone(), reason: without_control(&e.to_string()) })?;
    let known = |(key, value): (String, String)| {
        let Some(found) = KEYS.iter().find(|k| k.name == key) else {
            return Err(ConfigError::Unknown { path: path.clone(), key: without_control(&key) });
        };
        if is_project && !found.from_project {
            return Err(ConfigError::Project { path: path.clone(), key: found });
        }
        if value.chars().any(char::is_control) {
            return Err(ConfigError::Control { path: path.clone(), key: found.name });
        }
        Ok((found.name, value))
    };
    map.into_iter().map(known).collect()
}

/// The text of a regular file of limited size. A project file may be no link either: it could point to a file of the
/// user's, of which an error message would then show a part.
fn read_text(path: &Path, is_project: bool) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Read { path: path.to_owned(), source };
    // A pipe must not hold up the command, so it is opened without waiting for its other end.
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

/// The text with control characters other than line ends replaced, so that a terminal only shows it.
fn without_control(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own with a user file and a project file.
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

        /// What is wrong with a project file of this content.
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
    fn stronger_layers_win_and_the_origin_is_kept() {
        let files = Files::new();
        std::fs::write(&files.user, "listen: 127.0.0.1:1\nlog: debug\n").unwrap();
        std::fs::write(&files.project, "log: info,slipway_track=debug\nruntime: tract\n").unwrap();
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
    fn a_project_sets_harmless_keys_only() {
        let files = Files::new();
        let harmless = ["log", "runtime"];
        for key in KEYS {
            let problem = files.project_problem(format!("{}: x\n", key.name).as_bytes());
            if harmless.contains(&key.name) {
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
    fn a_file_with_an_error_is_left_out_as_a_whole() {
        let files = Files::new();
        std::fs::write(&files.user, "runtime: ort\n").unwrap();
        std::fs::write(&files.project, "runtime: tract\nserver: http://evil.example\n").unwrap();
        let (config, problem) = Config::layered(&[], Some(&files.project), Some(&files.user), |_| None);
        assert!(matches!(problem, Some(ConfigError::Project { .. })), "{problem:?}");
        assert_eq!(config.get("runtime"), Some("ort"));
        assert_eq!(config.get("server"), None);
    }

    #[test]
    fn unusable_files_are_errors_that_a_terminal_can_show() {
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
    fn a_project_file_is_regular_and_none_is_waited_for() {
        let files = Files::new();
        let problem = |user: bool| {
            let (project, user) = if user { (None, Some(&*files.project)) } else { (Some(&*files.project), None) };
            Config::layered(&[], project, user, |_| None).1
        };
        let made = std::process::Command::new("mkfifo").arg(&files.project).status().unwrap();
        assert!(made.success());
        assert!(matches!(problem(false), Some(ConfigError::NotRegular { .. })));
        assert!(matches!(problem(true), Some(ConfigError::NotRegular { .. })));
        std::fs::remove_file(&files.project).unwrap();

        std::fs::write(&files.user, "log: debug\n").unwrap();
        std::os::unix::fs::symlink(&files.user, &files.project).unwrap();
        assert!(matches!(problem(false), Some(ConfigError::NotRegular { .. })));
        assert!(problem(true).is_none(), "the user's own file may be a link");
        std::fs::remove_file(&files.project).unwrap();

        std::fs::create_dir(&files.project).unwrap();
        assert!(matches!(problem(false), Some(ConfigError::NotRegular { .. })));
    }

    #[test]
    fn the_nearest_project_file_is_found_from_below() {
        let files = Files::new();
        let deep = files.folder.join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(&files.project, "").unwrap();
        assert_eq!(find_upwards(&deep, PROJECT_FILE).as_ref(), Some(&files.project));
        std::fs::write(files.folder.join("a").join(PROJECT_FILE), "").unwrap();
        assert_eq!(find_upwards(&deep, PROJECT_FILE), Some(files.folder.join("a").join(PROJECT_FILE)));
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let database = |name: &str| (name == env::DATABASE).then(|| "postgres://me:hunter2@db/x".to_owned());
        let (config, _) = Config::layered(&[], None, None, database);
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
