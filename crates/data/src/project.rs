//! A project: the folder with `.dvc`, its configuration, its `.dvc` files, and the lock that a command holds.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use crate::allowance::Allowance;
use crate::cache::Cache;
use crate::config::{Config, Files as ConfigFiles, LinkType, normalise};
use crate::error::DataError;
use crate::ignore::{Rules, is_path_ignored};
use crate::lock::{Claim, Lock};
use crate::manifest::{Entry, Manifest};
use crate::model::HashName;
use crate::pipeline::template::Unpacking;
use crate::pipeline::{self, Files};
use crate::scm::Git;
use crate::stage::{DVC_SUFFIX, Output, PIPELINE_FILE, Stage};
use crate::staging::Staging;
use crate::state::State;

pub mod committed;
pub mod target;

use self::target::How;

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
    /// What may be read of it.
    pub(crate) allowance: Allowance,
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
        let config = ConfigFiles::new(Some(dvc_dir.clone())).load()?;
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
            allowance: Allowance::default(),
            current: current.to_owned(),
            root,
            config,
            git,
            lock,
        })
    }

    /// A project that is read from commits only: its root is an empty folder, and its own files are in the folder `tmp`.
    ///
    /// # Errors
    /// If a folder cannot be used.
    pub(crate) fn of_commits(
        git: Git,
        root: &Path,
        config: Config,
        (cache_dir, tmp): (&Path, &Path),
        allowance: Allowance,
    ) -> Result<Self, DataError> {
        Ok(Self {
            rules: Rules::dvcignore(root)?,
            cache: Cache::new(cache_dir, HashName::Md5, false),
            legacy_cache: Cache::new(cache_dir, HashName::Dos2Unix, false),
            state: State::open(tmp),
            links: Vec::new(),
            staging: Staging::create_in(tmp)?,
            allowance,
            current: root.to_owned(),
            root: root.to_owned(),
            config,
            git: Some(git),
            lock: Lock::acquire(tmp, &|_| ())?,
        })
    }

    /// The folder of temporary files.
    pub fn tmp(&self) -> PathBuf {
        self.root.join(DVC_DIR).join("tmp")
    }

    /// The files that an output has according to its record; `None` if the cache lacks the manifest.
    ///
    /// # Errors
    /// If the manifest cannot be read.
    pub(crate) fn recorded_files(&self, out: &Output) -> Result<Option<Manifest>, DataError> {
        match out.digest {
            Some(digest) if digest.is_dir => self.cache_of(out.hash).manifest(&digest),
            Some(digest) => {
                Ok(Some(Manifest { entries: vec![Entry { path: String::new(), digest, size: out.meta.size }] }))
            }
            None => Ok(Some(Manifest::default())),
        }
    }

    /// The cache of the objects of an algorithm.
    pub fn cache_of(&self, hash: HashName) -> &Cache {
        match hash {
            HashName::Md5 => &self.cache,
            HashName::Dos2Unix => &self.legacy_cache,
        }
    }

    /// Releases the lock, so that other processes can work on the project while the command of a stage runs.
    ///
    /// # Errors
    /// If the lock cannot be released.
    pub(crate) fn unlock(&self) -> Result<(), DataError> {
        self.lock.release()
    }

    /// Takes the lock again.
    ///
    /// # Errors
    /// If the lock cannot be taken.
    pub(crate) fn relock(&self, on_wait: &dyn Fn(&str)) -> Result<(), DataError> {
        self.lock.retake(on_wait)
    }

    /// Waits until no other process works on the paths of a stage. True if this waited: the stage must be read again.
    ///
    /// # Errors
    /// If the lock cannot be taken.
    pub(crate) fn wait_for_stage(&self, stage: &Stage, on_wait: &dyn Fn(&str)) -> Result<bool, DataError> {
        let (reads, writes) = paths_of(stage);
        self.lock.wait_for(&reads, &writes, on_wait)
    }

    /// Records that this process works on the paths of a stage, while it does not hold the lock. Nothing else may happen between
    /// [`Self::wait_for_stage`] and this that releases the lock.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub(crate) fn claim(&self, stage: &Stage, on_wait: &dyn Fn(&str)) -> Result<Claim, DataError> {
        let (reads, writes) = paths_of(stage);
        self.lock.claim(&reads, &writes, on_wait)
    }

    /// Withdraws the record of [`Self::claim`].
    ///
    /// # Errors
    /// If the lock cannot be written.
    pub(crate) fn withdraw(&self, claim: Claim, on_wait: &dyn Fn(&str)) -> Result<(), DataError> {
        self.lock.withdraw(claim, on_wait)
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
        let mut stages = self.search()?.stages;
        // The stages of a file stay in its order.
        stages.sort_by(|a, b| a.file.cmp(&b.file));
        self.keep_manifests(&stages);
        Ok(stages)
    }

    /// Stores the manifests of folders that are recorded as a list of their files, so that they are like those of all others.
    pub(crate) fn keep_manifests(&self, stages: &[Stage]) {
        for out in stages.iter().flat_map(|stage| &stage.outs).filter(|out| out.cached) {
            let cache = self.cache_of(out.hash);
            if let (Some(digest), true) = (&out.digest, out.files.is_some())
                && !cache.contains(digest).unwrap_or(false)
                && let Some(manifest) = out.manifest()
            {
                let _ = cache.put_manifest(&manifest); // Without it, the data counts as missing.
            }
        }
    }

    /// The paths of all `dvc.yaml` of the workspace, also of those without stages, sorted.
    ///
    /// # Errors
    /// If a file cannot be read or understood.
    pub fn pipelines(&self) -> Result<Vec<PathBuf>, DataError> {
        let mut pipelines = self.search()?.pipelines;
        pipelines.sort();
        Ok(pipelines)
    }

    fn search(&self) -> Result<Search<'_>, DataError> {
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
        let mut search = Search { project: self, stages: Vec::new(), pipelines: Vec::new(), outs: HashSet::new() };
        search.visit(&self.root, self.rules.clone(), git_rules)?;
        Ok(search)
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
            let named = target::named(self, stages, target, How { recursive, glob: false })?;
            if recursive && path.is_dir() {
                selected.extend(named.into_iter().map(|i| Selected { stage: &stages[i], filter: None }));
                continue;
            }
            let mut found: Vec<Selected<'a>> =
                named.into_iter().map(|i| Selected { stage: &stages[i], filter: None }).collect();
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

/// The paths that a stage reads and writes.
fn paths_of(stage: &Stage) -> (Vec<&Path>, Vec<&Path>) {
    let params = stage.recipe.iter().flat_map(|recipe| &recipe.params).map(|params| params.path.as_path());
    let reads = stage.deps.iter().filter_map(|dep| dep.location.as_deref()).chain(params).collect();
    (reads, stage.outs.iter().filter_map(|out| out.location.as_deref()).collect())
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
    pipelines: Vec<PathBuf>,
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
        let is_pipeline = |path: &&PathBuf| path.file_name().is_some_and(|name| name == PIPELINE_FILE);
        self.pipelines.extend(files.iter().filter(is_pipeline).cloned());
        let root = &self.project.root;
        let unpacking = pipeline::unpacking(&self.project.config);
        let loaded: Vec<Vec<Stage>> =
            files.par_iter().map(|file| load(file, root, unpacking)).collect::<Result<_, _>>()?;
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

fn load(file: &Path, root: &Path, unpacking: Unpacking) -> Result<Vec<Stage>, DataError> {
    if file.file_name().is_none_or(|name| name != PIPELINE_FILE) {
        return Ok(vec![Stage::load(file, root)?]);
    }
    let text = pipeline::read_workspace(file)?.unwrap_or_default();
    pipeline::load(file, &text, &mut Files::new(root, &pipeline::read_workspace), unpacking)
}
