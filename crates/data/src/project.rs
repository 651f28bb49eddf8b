//! A project: the folder with `.dvc`, its configuration, its `.dvc` files, and the lock that a command holds.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use crate::cache::{Cache, Staging};
use crate::config::{Config, Files, LinkType, normalise};
use crate::error::DataError;
use crate::ignore::{Rules, is_path_ignored};
use crate::lock::Lock;
use crate::model::HashName;
use crate::scm::Git;
use crate::stage::{DVC_SUFFIX, LOCK_FILE, Output, PIPELINE_FILE, Stage};
use crate::state::State;

/// The folder of a project's configuration and cache.
pub const DVC_DIR: &str = ".dvc";

/// An open project, locked for the time of a command.
#[derive(Debug)]
pub struct Project {
    /// The root of the project.
    pub root: PathBuf,
    /// The current folder, relative to which paths are shown.
    pub current: PathBuf,
    /// The effective configuration.
    pub config: Config,
    /// The Git work tree, unless the project does not use Git.
    pub git: Option<Git>,
    /// The rules of `.dvcignore`.
    pub rules: Arc<Rules>,
    /// The cache.
    pub cache: Cache,
    /// The cache of objects from DVC 2.
    pub legacy_cache: Cache,
    /// The remembered digests.
    pub state: State,
    /// How files get from the cache into the workspace.
    pub links: Vec<LinkType>,
    /// The folder of unfinished files.
    pub staging: Staging,
    lock: Lock,
}

/// The root of the project that contains a folder.
///
/// # Errors
/// [`DataError::NoProject`]
pub fn find_root(folder: &Path) -> Result<PathBuf, DataError> {
    let mut current = Some(folder);
    while let Some(path) = current {
        if path.join(DVC_DIR).is_dir() {
            return Ok(path.to_owned());
        }
        current = path.parent();
    }
    Err(DataError::NoProject(folder.to_owned()))
}

impl Project {
    /// Opens the project that contains the folder `current`, and takes its lock. `on_wait` is called before this waits for another process.
    ///
    /// # Errors
    /// [`DataError::NoProject`], or an error of the configuration or the file system.
    pub fn open(current: &Path, on_wait: &dyn Fn(&str)) -> Result<Self, DataError> {
        let root = find_root(current)?;
        let dvc_dir = root.join(DVC_DIR);
        let tmp = dvc_dir.join("tmp");
        let config = Files::new(Some(dvc_dir.clone())).load()?;
        config.check_remotes()?;
        let git = if config.is_true("core", "no_scm") { None } else { Git::find(&root, true) };
        if git.is_none() && !config.is_true("core", "no_scm") {
            return Err(DataError::Git(format!("{} is not a git repository", root.display())));
        }
        std::fs::create_dir_all(&tmp).map_err(DataError::io(&tmp))?;
        let lock = Lock::acquire(&tmp, on_wait)?;
        let cache_dir = cache_dir(&config, &dvc_dir);
        let shared = config.get("cache", "shared").is_some_and(|value| value.eq_ignore_ascii_case("group"));
        Ok(Self {
            rules: Rules::dvcignore(&root)?,
            cache: Cache::new(&cache_dir, HashName::Md5, shared),
            legacy_cache: Cache::new(&cache_dir, HashName::Dos2Unix, shared),
            state: State::open(&tmp),
            links: config.link_types()?,
            staging: Staging::create_in(&tmp)?,
            current: current.to_owned(),
            root,
            config,
            git,
            lock,
        })
    }

    /// The folder of temporary files.
    pub fn tmp(&self) -> PathBuf {
        self.root.join(DVC_DIR).join("tmp")
    }

    /// The cache of the objects of an algorithm.
    pub fn cache_of(&self, hash: HashName) -> &Cache {
        match hash {
            HashName::Md5 => &self.cache,
            HashName::Dos2Unix => &self.legacy_cache,
        }
    }

    /// Waits until no running stage works on the outputs of these stages. True if this waited: the stages must be read again.
    ///
    /// # Errors
    /// If the lock cannot be taken again.
    pub fn wait_for(&self, selected: &[Selected<'_>], writes: bool, on_wait: &dyn Fn(&str)) -> Result<bool, DataError> {
        let paths: Vec<&Path> =
            selected.iter().flat_map(|s| &s.stage.outs).filter_map(|out| out.path.as_deref()).collect();
        if writes { self.lock.wait_for(&[], &paths, on_wait) } else { self.lock.wait_for(&paths, &[], on_wait) }
    }

    /// The absolute, normal form of a path that a user gave.
    pub fn absolute(&self, path: &str) -> PathBuf {
        normalise(&self.current.join(path))
    }

    /// The path as it is shown to the user.
    pub fn display(&self, path: &Path) -> String {
        let from = if self.current.starts_with(&self.root) { &self.current } else { &self.root };
        crate::config::relative_path(path, from).to_string_lossy().into_owned()
    }

    /// All `.dvc` files and stages of the workspace, sorted by path. As in DVC, folders that Git or `.dvcignore` ignores are left out, and
    /// outputs are not searched.
    ///
    /// # Errors
    /// If a file cannot be read or understood.
    pub fn stages(&self) -> Result<Vec<Stage>, DataError> {
        let git_rules = match &self.git {
            Some(git) => {
                let mut rules = Rules::gitignore(git.root())?;
                let mut folder = git.root().to_owned();
                for component in self.root.strip_prefix(git.root()).unwrap_or(Path::new("")).components() {
                    folder.push(component);
                    rules = rules.enter(&folder)?;
                }
                Some(rules)
            }
            None => None,
        };
        let mut search = Search { project: self, stages: Vec::new(), outs: HashSet::new() };
        search.visit(&self.root, self.rules.clone(), git_rules)?;
        search.stages.sort_by(|a, b| (&a.file, &a.name).cmp(&(&b.file, &b.name)));
        Ok(search.stages)
    }

    /// Whether a path is ignored by `.dvcignore`.
    ///
    /// # Errors
    /// If a file with rules cannot be read.
    pub fn is_ignored(&self, path: &Path) -> Result<bool, DataError> {
        is_path_ignored(&self.rules, &self.root, path, path.is_dir())
    }

    /// The stages that targets name, or all: `.dvc` files, stages, outputs, or files in outputs. With `recursive`, a folder stands for all
    /// stages in it.
    ///
    /// # Errors
    /// [`DataError::Target`] for a target that is none of these.
    pub fn select<'a>(
        &self,
        stages: &'a [Stage],
        targets: &[String],
        recursive: bool,
    ) -> Result<Vec<Selected<'a>>, DataError> {
        if targets.is_empty() {
            return Ok(stages.iter().map(|stage| Selected { stage, filter: None }).collect());
        }
        let mut selected: Vec<Selected<'a>> = Vec::new();
        for target in targets {
            let path = self.absolute(target);
            let by_file = |stage: &&Stage| stage.file == path;
            let by_address = |stage: &&Stage| stage.name.is_some() && stage.address(&self.current) == *target;
            let mut found: Vec<Selected<'a>> = stages
                .iter()
                .filter(|s| by_file(s) || by_address(s))
                .map(|stage| Selected { stage, filter: None })
                .collect();
            if found.is_empty() && recursive && path.is_dir() {
                found.extend(
                    stages.iter().filter(|s| s.file.starts_with(&path)).map(|stage| Selected { stage, filter: None }),
                );
                selected.extend(found);
                continue;
            }
            if found.is_empty()
                && let Some((stage, _)) = find_output(stages, &path)
            {
                found.push(Selected { stage, filter: Some(path) });
            }
            if found.is_empty() {
                return Err(DataError::Target(target.clone()));
            }
            selected.extend(found);
        }
        Ok(selected)
    }
}

/// The folder of the cache.
pub fn cache_dir(config: &Config, dvc_dir: &Path) -> PathBuf {
    config.get("cache", "dir").map_or_else(|| dvc_dir.join("cache"), PathBuf::from)
}

/// The stage and output that contain a path.
pub fn find_output<'a>(stages: &'a [Stage], path: &Path) -> Option<(&'a Stage, &'a Output)> {
    let outputs = || stages.iter().flat_map(|stage| stage.outs.iter().map(move |out| (stage, out)));
    let exact = outputs().find(|(_, out)| out.path.as_deref() == Some(path));
    exact.or_else(|| outputs().find(|(_, out)| out.path.as_ref().is_some_and(|root| path.starts_with(root))))
}

/// A stage that a target names.
#[derive(Debug, Clone)]
pub struct Selected<'a> {
    /// The stage.
    pub stage: &'a Stage,
    /// The path of an output or of a file in it, if only this was named.
    pub filter: Option<PathBuf>,
}

impl<'a> Selected<'a> {
    /// The outputs that are concerned, each with the path below it if only a part of it is.
    pub fn outputs(&self) -> impl Iterator<Item = (&'a Output, Option<&Path>)> {
        let stage = self.stage;
        let filter = self.filter.as_deref();
        stage.outs.iter().filter_map(move |out| match (filter, &out.path) {
            (None, _) => Some((out, None)),
            (Some(filter), Some(path)) if filter == path => Some((out, None)),
            (Some(filter), Some(path)) if filter.starts_with(path) => Some((out, Some(filter))),
            _ => None,
        })
    }
}

/// The search for `.dvc` files.
struct Search<'a> {
    project: &'a Project,
    stages: Vec<Stage>,
    outs: HashSet<PathBuf>,
}

impl Search<'_> {
    fn visit(&mut self, folder: &Path, rules: Arc<Rules>, git: Option<Arc<Rules>>) -> Result<(), DataError> {
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(folder).map_err(DataError::io(folder))? {
            let entry = entry.map_err(DataError::io(folder))?;
            let kind = entry.file_type().map_err(DataError::io(folder))?;
            let path = entry.path();
            if kind.is_dir() {
                folders.push(path);
            } else if is_stage_file(&path) && path.is_file() {
                let ignored = |rules: &Rules| rules.is_ignored(&path, false);
                if !ignored(&rules) && !git.as_deref().is_some_and(ignored) {
                    files.push(path);
                }
            }
        }
        let root = &self.project.root;
        let loaded: Vec<Vec<Stage>> = files.par_iter().map(|file| load(file, root)).collect::<Result<_, _>>()?;
        for stage in loaded.into_iter().flatten() {
            self.outs.extend(stage.outs.iter().filter_map(|out| out.path.clone()));
            self.stages.push(stage);
        }
        for path in folders {
            let ignored = |rules: &Rules| rules.is_ignored(&path, true);
            let is_other_project = path.join(DVC_DIR).is_dir();
            if self.outs.contains(&path) || is_other_project || ignored(&rules) || git.as_deref().is_some_and(ignored) {
                continue;
            }
            let git = git.as_ref().map(|git| git.enter(&path)).transpose()?;
            self.visit(&path, rules.enter(&path)?, git)?;
        }
        Ok(())
    }
}

/// Whether a path is that of a `.dvc` file or of a pipeline.
pub fn is_stage_file(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.ends_with(DVC_SUFFIX) && name != DVC_SUFFIX || name == PIPELINE_FILE
}

fn load(file: &Path, root: &Path) -> Result<Vec<Stage>, DataError> {
    if file.file_name().is_some_and(|name| name == PIPELINE_FILE) {
        let lock = file.with_file_name(LOCK_FILE);
        let pipeline = std::fs::read_to_string(file).map_err(DataError::io(file))?;
        return match std::fs::read_to_string(&lock) {
            Ok(text) => load_pipeline(file, &pipeline, &lock, &text, root),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(DataError::io(&lock)(error)),
        };
    }
    Ok(vec![Stage::load(file, root)?])
}

/// The stages of a pipeline that have been run, from its `dvc.yaml` and `dvc.lock`.
pub(crate) fn load_pipeline(
    file: &Path,
    pipeline: &str,
    lock: &Path,
    text: &str,
    root: &Path,
) -> Result<Vec<Stage>, DataError> {
    let uncached = uncached_outputs(pipeline).map_err(|reason| DataError::file(file, 0, reason))?;
    Stage::parse_lock(lock, root, text, &|stage, out| {
        // Stages of a matrix or `foreach` are named NAME@KEY; templates in their paths are not expanded here.
        let stage = stage.split('@').next().unwrap_or(stage);
        uncached.get(stage).is_some_and(|outs| outs.contains(out))
    })
}

/// The outputs of each stage in a `dvc.yaml` that have `cache: false`.
pub(crate) fn uncached_outputs(pipeline: &str) -> Result<BTreeMap<String, HashSet<String>>, String> {
    if pipeline.trim().is_empty() {
        return Ok(BTreeMap::new());
    }
    let value: serde_json::Value = serde_saphyr::from_str(pipeline).map_err(|error| error.to_string())?;
    let mut found: BTreeMap<String, HashSet<String>> = BTreeMap::new();
    let Some(stages) = value.get("stages").and_then(serde_json::Value::as_object) else { return Ok(found) };
    for (name, stage) in stages {
        let stage = stage.get("do").unwrap_or(stage);
        for key in ["outs", "metrics", "plots"] {
            let outs = stage.get(key).and_then(serde_json::Value::as_array).map_or(&[][..], Vec::as_slice);
            for (path, options) in outs.iter().filter_map(serde_json::Value::as_object).flatten() {
                if options.get("cache") == Some(&serde_json::Value::Bool(false)) {
                    found.entry(name.clone()).or_default().insert(path.clone());
                }
            }
        }
    }
    Ok(found)
}
