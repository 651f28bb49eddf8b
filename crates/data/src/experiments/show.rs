//! What is known of commits and their experiments: parameters, metrics, digests of data.

use std::path::Path;

use super::queue::{Info, Process, Queue, Task, TaskState};
use crate::config::relative_path;
use crate::error::DataError;
use crate::json::Json;
use crate::project::Project;
use crate::reports::changes::{Changes, compare};
use crate::reports::{Failure, Files, files_to_json, metrics, params};
use crate::revision::{Experiment, all, describe, repository, resolve};
use crate::scm::{Blobs, Commit, Git};
use crate::stage::{Output, OutputKind};
use crate::tree::Tree;

/// Which commits are shown.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The baselines.
    pub selection: crate::revision::Selection,
    /// The last commits of all branches, too.
    pub all_branches: bool,
    /// The commits of all tags, too.
    pub all_tags: bool,
    /// Leave out the workspace.
    pub hide_workspace: bool,
    /// Only parameters on which stages depend.
    pub only_dependencies: bool,
    /// Baselines are not named after branches and tags.
    pub unnamed: bool,
    /// Leave out experiments that wait in the queue.
    pub hide_queued: bool,
    /// Leave out experiments of the queue that failed.
    pub hide_failed: bool,
}

/// The recorded identity of a dependency or output.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The path relative to the root of the project.
    pub path: String,
    /// The digest, if there is one.
    pub digest: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
    /// Number of files in a folder.
    pub nfiles: Option<u64>,
    /// For an output: whether it is stored in the cache, and whether no command writes it.
    pub output: Option<(bool, bool)>,
}

/// What a version of the project contains.
#[derive(Debug, Clone)]
pub struct Content {
    /// Parameters.
    pub params: Files,
    /// Metrics.
    pub metrics: Files,
    /// Dependencies of stages.
    pub deps: Vec<Recorded>,
    /// Outputs other than metrics and plots.
    pub outs: Vec<Recorded>,
}

/// A commit, or the workspace.
#[derive(Debug, Clone)]
pub struct State {
    /// The object id, or `workspace`.
    pub revision: String,
    /// The name of the branch, tag or experiment.
    pub name: Option<String>,
    /// The commit; `None` for the workspace.
    pub commit: Option<Commit>,
    /// What it contains, or why that is not known.
    pub content: Result<Content, Failure>,
    /// The experiments that were derived from it: those that run, then the results, those that wait, those that failed; newest first.
    pub experiments: Vec<State>,
    /// The execution in the queue or elsewhere.
    pub executor: Option<Executor>,
}

/// The execution of an experiment.
#[derive(Debug, Clone)]
pub struct Executor {
    /// The state.
    pub state: TaskState,
    /// What executes it.
    pub name: Option<&'static str>,
    /// The folder, while it runs.
    root: Option<String>,
    process: Option<Process>,
    /// The id of the task.
    task: Option<String>,
}

impl Content {
    /// Reads what a version of the project contains.
    ///
    /// # Errors
    /// If a pipeline cannot be read.
    pub fn read(tree: &Tree<'_>, only_dependencies: bool) -> Result<Self, DataError> {
        let root = &tree.project().root;
        let record = |out: &Output, output| Recorded {
            path: out.path.as_ref().map_or_else(|| out.written.clone(), |path| shown(path, root)),
            digest: out.digest.map(|digest| digest.to_string()),
            size: out.meta.size,
            nfiles: out.meta.nfiles,
            output,
        };
        let (mut deps, mut outs): (Vec<Recorded>, Vec<Recorded>) = (Vec::new(), Vec::new());
        for stage in tree.stages() {
            for dep in &stage.deps {
                // One that several stages have is shown once, as the last of them recorded it.
                let dep = record(dep, None);
                deps.retain(|known| known.path != dep.path);
                deps.push(dep);
            }
            let written = stage.outs.iter().filter(|out| out.kind == OutputKind::Data);
            outs.extend(written.map(|out| record(out, Some((out.cached, stage.is_data_source())))));
        }
        Ok(Self {
            params: params::gather(tree, &[], only_dependencies)?,
            metrics: metrics::gather(tree, &[])?,
            deps,
            outs,
        })
    }
}

fn shown(path: &Path, root: &Path) -> String {
    relative_path(path, root).to_string_lossy().into_owned()
}

/// The selected baselines with their experiments; first the workspace.
///
/// # Errors
/// If a revision does not exist. Failures of a commit are part of the result.
pub fn collect(project: &Project, options: &Options) -> Result<Vec<State>, DataError> {
    let Ok((git, _)) = repository(project.git.as_ref()) else { return Ok(Vec::new()) };
    let blobs = Blobs::open(git)?;
    let reader = Reader { project, git, blobs: &blobs, only_dependencies: options.only_dependencies };
    let names = if options.unnamed { std::collections::BTreeMap::new() } else { describe(git)? };
    let mut states = Vec::new();
    if !options.hide_workspace {
        states.push(reader.workspace());
    }
    let experiments = all(git, None)?;
    let queue = Queue::of(project)?;
    queue.recover()?;
    let mut tasks = queue.tasks()?;
    tasks.extend(queue.standalone()?);
    let in_workspace = queue.in_workspace()?;
    for baseline in baselines(git, options)? {
        let mut state = reader.at(&baseline, names.get(&baseline).cloned())?;
        for experiment in experiments.iter().filter(|experiment| experiment.baseline == baseline) {
            state.experiments.push(reader.experiment(experiment, &tasks)?);
        }
        for task in tasks.iter().filter(|task| task.entry.baseline_rev == baseline) {
            state.experiments.extend(reader.task(task, options)?);
        }
        if let Some((info, process)) = in_workspace.as_ref().filter(|(info, _)| info.baseline_rev == baseline) {
            let executor = Some(Executor::in_workspace(info, process));
            state.experiments.push(State { name: info.name.clone(), executor, ..reader.workspace() });
        }
        let order = |state: &State| {
            let rank = match state.executor.as_ref().map(|executor| executor.state) {
                Some(TaskState::Running) => 0,
                None | Some(TaskState::Success) => 1,
                Some(TaskState::Queued) => 2,
                Some(TaskState::Failed) => 3,
            };
            (rank, std::cmp::Reverse((state.commit.as_ref().map(|commit| commit.time.0), state.revision.clone())))
        };
        state.experiments.sort_by_key(order);
        states.push(state);
    }
    Ok(states)
}

fn baselines(git: &Git, options: &Options) -> Result<Vec<String>, DataError> {
    let others = options.all_branches || options.all_tags;
    let mut commits = Vec::new();
    if options.selection.all_commits {
        commits = git.commits(false, false, true)?;
    } else if !options.selection.revisions.is_empty() || !others {
        commits = options.selection.baselines(git)?.unwrap_or_default();
    }
    if others {
        for commit in git.commits(options.all_branches, options.all_tags, false)? {
            if !commits.contains(&commit) {
                commits.push(commit);
            }
        }
    }
    // Experiments are no baselines of their own.
    let experiments = all(git, None)?;
    if options.selection.all_commits {
        commits.retain(|commit| !experiments.iter().any(|experiment| experiment.commit == *commit));
    }
    Ok(commits)
}

struct Reader<'a> {
    project: &'a Project,
    git: &'a Git,
    blobs: &'a Blobs,
    only_dependencies: bool,
}

impl Reader<'_> {
    fn content(&self, tree: Result<Tree<'_>, DataError>) -> Result<Content, Failure> {
        let content = tree.and_then(|tree| Content::read(&tree, self.only_dependencies));
        content.map_err(|error| Failure::from_error(&error, "dvc.yaml"))
    }

    fn workspace(&self) -> State {
        let content = self.content(Tree::workspace(self.project));
        State {
            revision: "workspace".into(),
            name: None,
            commit: None,
            content,
            experiments: Vec::new(),
            executor: None,
        }
    }

    fn at(&self, commit: &str, name: Option<String>) -> Result<State, DataError> {
        let content = self.content(Tree::at(self.project, commit.to_owned(), self.blobs));
        let commit = self.git.commit_info(commit)?;
        Ok(State {
            revision: commit.id.clone(),
            name,
            commit: Some(commit),
            content,
            experiments: Vec::new(),
            executor: None,
        })
    }

    fn experiment(&self, experiment: &Experiment, tasks: &[Task]) -> Result<State, DataError> {
        let mut state = self.at(&experiment.commit, Some(experiment.name.clone()))?;
        let reference = experiment.reference();
        let is_source = |task: &&Task| task.state == TaskState::Success && task.reference() == Some(&reference);
        state.executor = tasks.iter().rev().find(is_source).map(|task| Executor::new(task, Some("dvc-task")));
        Ok(state)
    }

    /// An experiment that has no result.
    fn task(&self, task: &Task, options: &Options) -> Result<Option<State>, DataError> {
        let commit = &task.entry.stash_rev;
        let name = task.entry.name.clone();
        let mut state = match task.state {
            TaskState::Success => return Ok(None),
            TaskState::Queued if options.hide_queued => return Ok(None),
            TaskState::Failed if options.hide_failed => return Ok(None),
            // What it has written until now; while it is prepared or removed, what it began with.
            TaskState::Running => match self.content_of(task) {
                Some(content) => State { content: Ok(content), commit: None, ..self.at(commit, name)? },
                None => self.at(commit, name)?,
            },
            TaskState::Queued | TaskState::Failed => self.at(commit, name)?,
        };
        if let (TaskState::Queued, Ok(content)) = (task.state, &mut state.content) {
            content.metrics.clear();
        }
        let executor = match task.state {
            TaskState::Failed => None,
            _ => Some(if task.is_standalone() { "tempdir" } else { "dvc-task" }),
        };
        state.executor = Some(Executor::new(task, executor));
        Ok(Some(state))
    }

    fn content_of(&self, task: &Task) -> Option<Content> {
        let project = Project::open(&task.place()?, &|_| {}).ok()?;
        Content::read(&Tree::workspace(&project).ok()?, self.only_dependencies).ok()
    }
}

impl Executor {
    fn new(task: &Task, name: Option<&'static str>) -> Self {
        Self {
            state: task.state,
            name,
            root: task.place().map(|place| place.to_string_lossy().into_owned()),
            process: task.process.clone(),
            task: (!task.is_standalone()).then(|| task.entry.stash_rev.clone()),
        }
    }

    fn in_workspace(info: &Info, process: &Process) -> Self {
        Self {
            state: TaskState::Running,
            name: Some("workspace"),
            root: Some(info.root_dir.clone()),
            process: Some(process.clone()),
            task: None,
        }
    }

    fn to_json(&self) -> Json {
        let number = |number: Option<i32>| number.map_or(Json::Null, |number| Json::Number(number.to_string()));
        let process = self.process.as_ref();
        let is_running = self.state == TaskState::Running;
        let local = match process {
            None if self.state != TaskState::Queued => Json::Null,
            process => Json::Map(vec![
                ("root".into(), text(self.root.as_ref().filter(|_| is_running))),
                ("log".into(), text(process.and_then(|process| process.log.as_ref()))),
                ("pid".into(), number(process.map(|process| process.pid))),
                ("returncode".into(), number(process.and_then(|process| process.returncode))),
                ("task_id".into(), text(self.task.as_ref())),
            ]),
        };
        Json::Map(vec![
            ("state".into(), Json::string(self.state.word().to_lowercase())),
            ("name".into(), self.name.map_or(Json::Null, Json::string)),
            ("local".into(), local),
        ])
    }
}

/// The differences of metrics and parameters between two revisions or experiments; by default `HEAD` and the workspace.
///
/// # Errors
/// If a revision does not exist, or its pipelines cannot be read.
pub fn diff(
    project: &Project,
    (old, new): (Option<&str>, Option<&str>),
    unchanged: bool,
    only_dependencies: bool,
) -> Result<Option<(Changes, Changes)>, DataError> {
    let Ok((git, _)) = repository(project.git.as_ref()) else { return Ok(None) };
    let blobs = Blobs::open(git)?;
    let content = |revision: Option<&str>| {
        let tree = match revision {
            Some(revision) => Tree::at(project, resolve(git, revision)?, &blobs)?,
            None => Tree::workspace(project)?,
        };
        Content::read(&tree, only_dependencies)
    };
    let (old, new) = (content(Some(old.unwrap_or("HEAD")))?, content(new)?);
    Ok(Some((compare(&old.metrics, &new.metrics, unchanged), compare(&old.params, &new.params, unchanged))))
}

/// The states as JSON.
pub fn to_json(states: &[State]) -> Json {
    Json::List(states.iter().map(|state| state_json(state, &state.experiments)).collect())
}

fn text(text: Option<&String>) -> Json {
    text.map_or(Json::Null, Json::string)
}

fn state_json(state: &State, experiments: &[State]) -> Json {
    let range = |experiment: &State| {
        Json::Map(vec![
            ("revs".into(), Json::List(vec![state_json(experiment, &[])])),
            ("executor".into(), experiment.executor.as_ref().map_or(Json::Null, Executor::to_json)),
            ("name".into(), text(experiment.name.as_ref())),
        ])
    };
    let experiments = match experiments {
        [] => Json::Null,
        list => Json::List(list.iter().map(range).collect()),
    };
    let is_failed = state.executor.as_ref().is_some_and(|executor| executor.state == TaskState::Failed);
    let (data, error) = match &state.content {
        Ok(content) if is_failed => (
            content_json(state, content),
            Json::Map(vec![("msg".into(), Json::string("Experiment run failed")), ("type".into(), Json::string(""))]),
        ),
        Ok(content) => (content_json(state, content), Json::Null),
        Err(failure) => (
            Json::Null,
            Json::Map(vec![
                ("msg".into(), Json::string(&failure.message)),
                ("type".into(), Json::string(failure.kind)),
            ]),
        ),
    };
    Json::Map(vec![
        ("rev".into(), Json::string(&state.revision)),
        ("name".into(), text(state.name.as_ref())),
        ("data".into(), data),
        ("error".into(), error),
        ("experiments".into(), experiments),
    ])
}

fn content_json(state: &State, content: &Content) -> Json {
    let number = |value: Option<u64>| value.map_or(Json::Null, |value| Json::Number(value.to_string()));
    let recorded = |list: &[Recorded]| {
        let entry = |item: &Recorded| {
            let mut members = vec![
                ("hash".to_owned(), text(item.digest.as_ref())),
                ("size".into(), number(item.size)),
                ("nfiles".into(), number(item.nfiles)),
            ];
            if let Some((cached, source)) = item.output {
                members.push(("use_cache".into(), Json::Bool(cached)));
                members.push(("is_data_source".into(), Json::Bool(source)));
            }
            (item.path.clone(), Json::Map(members))
        };
        Json::Map(list.iter().map(entry).collect())
    };
    Json::Map(vec![
        ("rev".into(), Json::string(&state.revision)),
        ("timestamp".into(), text(state.commit.as_ref().map(|commit| &commit.time.1))),
        ("params".into(), files_to_json(&content.params)),
        ("metrics".into(), files_to_json(&content.metrics)),
        ("deps".into(), recorded(&content.deps)),
        ("outs".into(), recorded(&content.outs)),
        ("meta".into(), Json::Map(Vec::new())),
    ])
}
