//! The configuration of a project in its four levels: system, global (of the user), project (`.dvc/config`) and local (`.dvc/config.local`).

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use slipway_store::reach::Reach;

use crate::access::{ServerAccess, Servers, server_of};
use crate::error::DataError;
use crate::ini::{Ini, Section, named};
use crate::schema;

/// A level of the configuration; a later one has precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// `/etc/xdg/dvc/config`
    System,
    /// `~/.config/dvc/config`
    Global,
    /// `.dvc/config`, tracked by Git.
    Project,
    /// `.dvc/config.local`, not tracked by Git.
    Local,
}

/// All levels, in the order of their precedence.
pub const LEVELS: [Level; 4] = [Level::System, Level::Global, Level::Project, Level::Local];

/// The sections in the order in which DVC writes new ones.
const SECTION_ORDER: &[&str] =
    &["core", "cache", "state", "index", "feature", "plots", "exp", "parsing", "hydra", "studio"];
/// The options of `core`.
const CORE: &[&str] = &[
    "remote",
    "checksum_jobs",
    "interactive",
    "analytics",
    "hardlink_lock",
    "no_scm",
    "autostage",
    "experiments",
    "check_update",
    "site_cache_dir",
    "machine",
];
/// The options of `cache`.
const CACHE: &[&str] = &[
    "local",
    "s3",
    "gs",
    "hdfs",
    "webhdfs",
    "ssh",
    "azure",
    "dir",
    "type",
    "protected",
    "shared",
    "slow_link_warning",
    "verify",
];
/// The options whose values are paths, relative to the folder of the file.
const REMOTE_PATHS: &[&str] = &[
    "url",
    "gdrive_user_credentials_file",
    "gdrive_service_account_json_file_path",
    "credentialpath",
    "configpath",
    "keyfile",
    "cert_path",
    "key_path",
];

/// The effective configuration: options by section.
#[derive(Debug, Clone, Default)]
pub struct Config {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    /// The names of the remotes in their order.
    remotes: Vec<String>,
    servers: Option<Servers>,
    reach: Reach,
}

/// The files of the configuration of a project, or of a folder outside of projects.
#[derive(Debug, Clone)]
pub struct Files {
    dvc_dir: Option<PathBuf>,
}

impl Files {
    /// The files of a project with this `.dvc` folder, if there is one.
    pub fn new(dvc_dir: Option<PathBuf>) -> Self {
        Self { dvc_dir }
    }

    /// The file of a level; `None` for the levels of a project outside of one.
    pub fn path(&self, level: Level) -> Option<PathBuf> {
        let from_env = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        match level {
            Level::System => {
                Some(from_env("DVC_SYSTEM_CONFIG_DIR").unwrap_or_else(|| "/etc/xdg/dvc".into()).join("config"))
            }
            Level::Global => {
                let home = || from_env("HOME").map(|home| home.join(".config"));
                let config = || from_env("XDG_CONFIG_HOME").or_else(home).map(|folder| folder.join("dvc"));
                Some(from_env("DVC_GLOBAL_CONFIG_DIR").or_else(config)?.join("config"))
            }
            Level::Project => Some(self.dvc_dir.as_ref()?.join("config")),
            Level::Local => Some(self.dvc_dir.as_ref()?.join("config.local")),
        }
    }

    /// Reads the file of a level; a missing one is empty.
    ///
    /// # Errors
    /// If it cannot be read or understood.
    pub fn read(&self, level: Level) -> Result<Ini, DataError> {
        let Some(path) = self.path(level) else { return Ok(Ini::default()) };
        match std::fs::read_to_string(&path) {
            Ok(text) => Ini::parse(&text).map_err(|(line, reason)| DataError::file(&path, line, reason)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Ini::default()),
            Err(error) => Err(DataError::io(&path)(error)),
        }
    }

    /// Reads the file of a level like [`Self::read`], with absolute paths.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_resolved(&self, level: Level) -> Result<Ini, DataError> {
        let mut ini = self.read(level)?;
        let folder = self.path(level).and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default();
        for section in &mut ini.sections {
            each_path(section, |value| resolve(&folder, value));
        }
        Ok(ini)
    }

    /// The effective configuration.
    ///
    /// # Errors
    /// If a file cannot be read or understood.
    pub fn load(&self) -> Result<Config, DataError> {
        self.load_below(None)
    }

    /// The configuration of the levels before `limit`, or of all.
    ///
    /// # Errors
    /// If a file cannot be read or understood.
    pub fn load_below(&self, limit: Option<Level>) -> Result<Config, DataError> {
        let below = LEVELS.iter().position(|level| Some(*level) == limit).unwrap_or(LEVELS.len());
        self.load_levels(&LEVELS[..below])
    }

    /// The configuration of some levels, in this order.
    ///
    /// # Errors
    /// If a file cannot be read or understood.
    pub(crate) fn load_levels(&self, levels: &[Level]) -> Result<Config, DataError> {
        let mut config = Config::default();
        for &level in levels {
            let ini = self.read(level)?;
            let folder = self.path(level).and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default();
            for section in &ini.sections {
                config.merge(section, &folder);
            }
        }
        Ok(config)
    }

    /// Changes the file of a level.
    ///
    /// # Errors
    /// [`DataError::Config`] if `change` fails or leaves an unknown option, or an error of the file.
    pub fn edit(&self, level: Level, change: impl FnOnce(&mut Ini) -> Result<(), DataError>) -> Result<(), DataError> {
        let path = self.path(level).ok_or_else(|| DataError::Config("not inside a DVC repository".into()))?;
        let mut ini = self.read(level)?;
        let original: Vec<String> = ini.sections.iter().map(|section| section.name.clone()).collect();
        let folder = path.parent().unwrap_or(Path::new("/"));
        let folder = std::path::absolute(folder).map_err(DataError::io(folder))?;
        // As in DVC, paths in the file are normalised. Those that `change` adds are relative to the current folder, not to the file.
        for section in &mut ini.sections {
            each_path(section, |value| relative_to(&folder, &resolve(&folder, value), value));
        }
        let before = ini.clone();
        change(&mut ini)?;
        for section in &mut ini.sections {
            // A renamed section has no new paths.
            let same = || before.sections.iter().find(|other| other.options == section.options);
            let old = before.section(&section.name).or_else(same).cloned().unwrap_or_default();
            let current = std::env::current_dir().map_err(DataError::io("."))?;
            each_changed_path(section, &old, |value| relative_to(&folder, &resolve(&current, value), value));
        }
        validate(&ini)?;
        let mut merged = self.load_below(Some(level))?;
        ini.sections.iter().for_each(|section| merged.merge(section, &folder));
        merged.check_options()?;
        let text = ini.to_text(&original, SECTION_ORDER);
        slipway_core::files::replace(&path, text.as_bytes()).map_err(DataError::io(&path))?;
        // As in DVC, the change stays, and the error says that the levels together are invalid.
        self.load()?.check_remotes()
    }
}

/// Checks the names of sections and options.
fn validate(ini: &Ini) -> Result<(), DataError> {
    for section in &ini.sections {
        let known = match named(&section.name) {
            Some(_) => continue,
            None if section.name == "core" => CORE,
            None if section.name == "cache" => CACHE,
            None if SECTION_ORDER.contains(&section.name.as_str())
                || section.name == "machine"
                || section.name == "db" =>
            {
                continue;
            }
            None => return Err(DataError::Config(format!("extra keys not allowed @ data['{}']", section.name))),
        };
        if let Some(option) = section.options.iter().find(|option| !known.contains(&option.name.as_str())) {
            let place = format!("data['{}']['{}']", section.name, option.name);
            return Err(DataError::Config(format!("extra keys not allowed @ {place}")));
        }
        for option in &section.options {
            let boolean = matches!(
                option.name.as_str(),
                "interactive"
                    | "analytics"
                    | "hardlink_lock"
                    | "no_scm"
                    | "autostage"
                    | "check_update"
                    | "slow_link_warning"
                    | "verify"
            );
            let value = option.value().to_lowercase();
            if boolean && value != "true" && value != "false" {
                let place = format!("data['{}']['{}']", section.name, option.name);
                return Err(DataError::Config(format!("expected true or false for dictionary value @ {place}")));
            }
            if option.name == "type" {
                link_types(&value)?;
            }
        }
    }
    Ok(())
}

/// How a file gets from the cache into the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkType {
    /// A copy that shares its blocks until one side changes (Btrfs, XFS, ZFS).
    Reflink,
    /// The same file under another name; read-only.
    Hardlink,
    /// A link to the file in the cache; read-only.
    Symlink,
    /// A copy.
    Copy,
}

/// The link types in a value of `cache.type`.
///
/// # Errors
/// [`DataError::Config`] for another word.
pub fn link_types(value: &str) -> Result<Vec<LinkType>, DataError> {
    let parse = |word: &str| match word.trim() {
        "reflink" => Ok(LinkType::Reflink),
        "hardlink" => Ok(LinkType::Hardlink),
        "symlink" => Ok(LinkType::Symlink),
        "copy" => Ok(LinkType::Copy),
        other => Err(DataError::Config(format!("Unsupported cache type(s): {other}"))),
    };
    value.split(',').map(parse).collect()
}

impl Config {
    /// Adds the options of a file in `folder`, which replace those of the files before.
    pub(crate) fn merge_file(&mut self, ini: &Ini, folder: &Path) {
        ini.sections.iter().for_each(|section| self.merge(section, folder));
    }

    fn merge(&mut self, section: &Section, folder: &Path) {
        if let Some(("remote", name)) = named(&section.name)
            && !self.remotes.iter().any(|known| known == name)
        {
            self.remotes.push(name.to_owned());
        }
        let mut section = section.clone();
        each_path(&mut section, |value| resolve(folder, value));
        let merged = self.sections.entry(section.name.clone()).or_default();
        for option in &section.options {
            merged.insert(option.name.clone(), option.value());
        }
    }

    /// Sets how the credentials for slipway servers are found.
    pub fn set_servers(&mut self, servers: Servers) {
        self.servers = Some(servers);
    }

    /// Sets which servers the remotes may lead to.
    pub(crate) fn set_reach(&mut self, reach: Reach) {
        self.reach = reach;
    }

    /// Which servers the remotes may lead to; all of them for the configuration of a user.
    pub(crate) fn reach(&self) -> &Reach {
        &self.reach
    }

    /// The access to the slipway server of a remote; `None` for other servers.
    ///
    /// # Errors
    /// If the credentials cannot be used.
    pub fn access_to(&self, url: &str) -> Result<Option<ServerAccess>, DataError> {
        match (&self.servers, server_of(url)) {
            (Some(servers), Some(server)) => servers.find(server).map(Some),
            _ => Ok(None),
        }
    }

    /// The value of an option.
    pub fn get(&self, section: &str, option: &str) -> Option<&str> {
        self.sections.get(section)?.get(option).map(String::as_str)
    }

    /// The value of a boolean option.
    pub fn is_true(&self, section: &str, option: &str) -> bool {
        self.get(section, option).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// The options of a remote.
    pub fn remote(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.sections.get(&format!("remote \"{name}\""))
    }

    /// Removes the options of remotes that name files of this machine, such as keys and credentials.
    pub fn remove_local_files(&mut self) {
        // Certificates are verified, or not, or with a file.
        let is_file = |value: &str| !value.eq_ignore_ascii_case("true") && !value.eq_ignore_ascii_case("false");
        for (_, options) in self.sections.iter_mut().filter(|(name, _)| named(name).is_some()) {
            options.retain(|option, value| match option.as_str() {
                "url" => true,
                "ssl_verify" => !is_file(value),
                other => !REMOTE_PATHS.contains(&other),
            });
        }
    }

    /// The names of the remotes in their order.
    pub fn remotes(&self) -> &[String] {
        &self.remotes
    }

    /// Checks the options of the remotes that have a URL.
    fn check_options(&self) -> Result<(), DataError> {
        let options = self.remotes.iter().filter_map(|name| Some((name, self.remote(name)?)));
        options.filter(|(_, options)| options.contains_key("url")).try_for_each(|(name, o)| schema::check(name, o))
    }

    /// Checks that every remote has a URL, and that its options are valid.
    ///
    /// # Errors
    /// [`DataError::Config`] with the name of a remote that has none.
    pub fn check_remotes(&self) -> Result<(), DataError> {
        self.check_options()?;
        match self.remotes.iter().find(|name| self.remote(name).is_none_or(|options| !options.contains_key("url"))) {
            Some(name) => {
                Err(DataError::Config(format!("expected 'url' for dictionary value @ data['remote']['{name}']")))
            }
            None => Ok(()),
        }
    }

    /// Whether a section exists.
    pub fn has(&self, section: &str) -> bool {
        self.sections.contains_key(section)
    }

    /// The link types, in the order of preference.
    ///
    /// # Errors
    /// [`DataError::Config`] for an unknown one.
    pub fn link_types(&self) -> Result<Vec<LinkType>, DataError> {
        link_types(self.get("cache", "type").unwrap_or("reflink,copy"))
    }
}

/// Applies a function to the values of a section that are paths.
fn each_path(section: &mut Section, change: impl Fn(&str) -> String) {
    each_changed_path(section, &Section::default(), change);
}

/// Applies a function to the values of a section that are paths and differ from those of `old`.
fn each_changed_path(section: &mut Section, old: &Section, change: impl Fn(&str) -> String) {
    let is_remote = matches!(named(&section.name), Some(("remote", _)));
    let is_path =
        |name: &str| (is_remote && REMOTE_PATHS.contains(&name)) || (section.name == "cache" && name == "dir");
    let changed: Vec<(String, String)> = section
        .options
        .iter()
        .filter(|option| is_path(&option.name) && old.get(&option.name).as_ref() != Some(&option.value()))
        .map(|option| (option.name.clone(), change(&option.value())))
        .collect();
    for (name, value) in changed {
        section.set(&name, &value);
    }
}

/// Whether the value is a URL, as opposed to a path.
pub fn is_url(value: &str) -> bool {
    value
        .split_once("://")
        .is_some_and(|(scheme, _)| !scheme.is_empty() && scheme.chars().all(|c| c.is_alphanumeric() || c == '_'))
}

/// The absolute form of a path in a file in `folder`. URLs are not changed.
fn resolve(folder: &Path, value: &str) -> String {
    if is_url(value) {
        return value.to_owned();
    }
    if let Some(rest) = value.strip_prefix('~')
        && (rest.is_empty() || rest.starts_with('/'))
        && let Some(home) = std::env::var_os("HOME")
    {
        return format!("{}{rest}", home.to_string_lossy());
    }
    normalise(&folder.join(value)).to_string_lossy().into_owned()
}

/// The form of a path in a file in `folder`: absolute paths, `~` and URLs stay as they are.
fn relative_to(folder: &Path, resolved: &str, value: &str) -> String {
    if is_url(value) || Path::new(value).is_absolute() || value.starts_with('~') {
        return value.to_owned();
    }
    relative_path(Path::new(resolved), folder).to_string_lossy().into_owned()
}

/// Removes `.` and `..` from a path, without regard to symbolic links, as Python's `normpath` does.
pub fn normalise(path: &Path) -> PathBuf {
    let mut parts: Vec<Component<'_>> = Vec::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => match parts.last() {
                Some(Component::Normal(_)) => drop(parts.pop()),
                Some(Component::RootDir) => {}
                _ => parts.push(component),
            },
            other => parts.push(other),
        }
    }
    if parts.is_empty() { PathBuf::from(".") } else { parts.iter().collect() }
}

/// The path of `path` relative to `folder`, both absolute and normal.
pub fn relative_path(path: &Path, folder: &Path) -> PathBuf {
    let (path_parts, folder_parts): (Vec<_>, Vec<_>) = (path.components().collect(), folder.components().collect());
    let common = path_parts.iter().zip(&folder_parts).take_while(|(a, b)| a == b).count();
    let mut relative: PathBuf = std::iter::repeat_n(Component::ParentDir, folder_parts.len() - common).collect();
    relative.extend(&path_parts[common..]);
    if relative.as_os_str().is_empty() { PathBuf::from(".") } else { relative }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(Some(folder.path().join(".dvc")));
        std::fs::create_dir(folder.path().join(".dvc")).unwrap();
        std::fs::write(
            folder.path().join(".dvc/config"),
            "['remote \"a\"']\n    url = ../x/./y\n['remote \"b\"']\n    url = s3://b/p\n",
        )
        .unwrap();
        files
            .edit(Level::Project, |ini| {
                ini.section_mut("core").set("remote", "a");
                Ok(())
            })
            .unwrap();
        let text = std::fs::read_to_string(folder.path().join(".dvc/config")).unwrap();
        assert_eq!(
            text,
            "[core]\n    remote = a\n['remote \"a\"']\n    url = ../x/y\n['remote \"b\"']\n    url = s3://b/p\n"
        );
        let config = files.load().unwrap();
        assert_eq!(config.remote("a").unwrap()["url"], folder.path().join("x/y").to_string_lossy());
        assert_eq!(config.remotes(), ["a", "b"]);
        let error = files.edit(Level::Project, |ini| {
            ini.section_mut("core").set("nonsense", "a");
            Ok(())
        });
        assert!(matches!(error, Err(DataError::Config(_))));
    }

    #[test]
    fn relative_paths() {
        for (path, folder, expected) in
            [("/a/b", "/a", "b"), ("/a", "/a/b", ".."), ("/a/b", "/a/c/d", "../../b"), ("/a", "/a", ".")]
        {
            assert_eq!(relative_path(Path::new(path), Path::new(folder)), Path::new(expected));
        }
        assert_eq!(normalise(Path::new("/a/./b/../c/../../..")), Path::new("/"));
    }
}
