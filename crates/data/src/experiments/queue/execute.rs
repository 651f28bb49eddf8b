//! The execution of one experiment in a folder of its own below `.dvc/tmp/exps`: a repository with the files of its stash, whose cache is that of the
//! project. The result is fetched into the project's repository.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::broker::Outcome;
use super::put::{read_arguments, stash};
use super::records::{Info, Process, Records, remove_folder, status};
use super::worker::Program;
use super::{Entry, Queue};
use crate::commands::repro::Say;
use crate::commands::{Talk, checkout};
use crate::config::{Files as ConfigFiles, Level, relative_path};
use crate::error::DataError;
use crate::experiments::run::{Request, reproduce};
use crate::experiments::{exists_error, save};
use crate::project::{DVC_DIR, Project, cache_dir};
use crate::revision::{Experiment, QUEUE};
use crate::scm::{Git, RefChange, Transfer};

/// Of an execution: the commit that is checked out, its baseline, and the stash.
const EXEC: &str = "refs/exps/exec";

/// What a process executes.
#[derive(Debug, Clone)]
pub struct Execution {
    /// The commit of the stash.
    pub stash: String,
    /// The id of the task, unless it is executed without the queue.
    pub task: Option<String>,
    /// Files and folders to copy that Git does not track.
    pub copy_paths: Vec<String>,
    /// The message of the commit.
    pub message: Option<String>,
}

/// Opens the project in a folder.
pub type Open<'a> = &'a dyn Fn(&Path) -> Result<Project, DataError>;

/// Runs an experiment in a folder of its own, without the queue, and waits for it. True if it succeeded; it reported why not.
///
/// # Errors
/// If it cannot be stashed, or its process cannot be started.
pub fn run_apart(
    mut project: Project,
    request: &Request,
    program: &Program,
    talk: &dyn Talk,
) -> Result<Option<Experiment>, DataError> {
    let entry = stash(&mut project, request, "refs/exps/stash", talk)?;
    let queue = Queue::of(&project)?;
    drop(project); // The lock is free while the experiment runs.
    let reference = temporary_reference(&entry.stash_rev);
    queue.git.change_references(&[RefChange::Set(reference.clone(), entry.stash_rev.clone())])?;
    let execution = Execution {
        stash: entry.stash_rev.clone(),
        task: None,
        copy_paths: request.copy_paths.clone(),
        message: request.message.clone(),
    };
    let ended = command(&queue, &entry, &execution, program)
        .and_then(|mut command| command.status().map_err(DataError::io(&program.path)));
    let records = standalone(&queue, &entry.stash_rev);
    let info = records.info();
    records.remove()?;
    queue.git.change_references(&[RefChange::Delete(reference)])?;
    if !ended?.success() {
        return Ok(None);
    }
    let name = info?.and_then(|info| info.name).or(entry.name).unwrap_or_default();
    Ok(Some(Experiment { baseline: entry.baseline_rev, name, commit: String::new() }))
}

/// The reference that keeps the stash of an execution without the queue, while it runs.
pub(super) fn temporary_reference(stash: &str) -> String {
    format!("refs/exps/temp/merge-{stash}")
}

fn standalone(queue: &Queue, stash: &str) -> Records {
    Records::new(&queue.folder.join("standalone/run"), stash)
}

/// The command that executes an experiment, with the variables that its stages get.
pub(super) fn command(
    queue: &Queue,
    entry: &Entry,
    execution: &Execution,
    program: &Program,
) -> Result<Command, DataError> {
    let arguments = read_arguments(&queue.git, &queue.root, &entry.stash_rev)?;
    let mut command = Command::new(&program.path);
    command.args(&program.arguments).args(["exp", "exec-run", &execution.stash]);
    if let Some(task) = &execution.task {
        command.args(["--task", task]);
    }
    for path in &execution.copy_paths {
        command.args(["--copy-paths", path]);
    }
    if let Some(message) = &execution.message {
        command.args(["--message", message]);
    }
    command.current_dir(&queue.root).envs(arguments.variables);
    Ok(command)
}

/// Executes an experiment in this process, and records the outcome. False if it failed; the reason is shown.
///
/// # Errors
/// If the outcome cannot be recorded.
pub async fn execute(
    root: &Path,
    execution: &Execution,
    open: Open<'_>,
    talk: &dyn Talk,
    say: Say,
) -> Result<bool, DataError> {
    let queue = Queue::at(root)?;
    let entry = entry_of(&queue, execution)?;
    let records = match &execution.task {
        Some(_) => queue.records(&entry),
        None => standalone(&queue, &entry.stash_rev),
    };
    let _held = execution.task.as_ref().map(|_| share_lock()).transpose()?;
    let mut process = Process::own(Some(&records.log()));
    records.set_process(&process)?;
    let result = run(&queue, &entry, execution, &records, (open, talk, say.clone())).await;
    if let Err(error) = &result {
        say(&format!("ERROR: {error}"));
    }
    if let Some(task) = &execution.task {
        match &result {
            Ok(()) => queue.drop_stashed(&entry, &[QUEUE])?,
            Err(_) => queue.stash_failed(&entry)?,
        }
        queue.broker.finish(task, Outcome::Ended)?;
    }
    process.returncode = Some(if result.is_ok() { 0 } else { 255 });
    records.set_process(&process)?;
    Ok(result.is_ok())
}

/// Lets all commands that this process starts hold the lock of the execution, which is its input, also those that get another input, such as git. It is
/// free when the last of them has ended.
fn share_lock() -> Result<std::os::fd::OwnedFd, DataError> {
    // Unlike files that Rust opens, a duplicate stays open in the programs that this process starts.
    rustix::io::dup(std::io::stdin()).map_err(|error| DataError::io("/dev/stdin")(error.into()))
}

/// The entry that the message of the stash describes.
fn entry_of(queue: &Queue, execution: &Execution) -> Result<Entry, DataError> {
    let message = queue.git.commit_message(&execution.stash)?;
    let parts: Vec<&str> = message.splitn(5, ':').collect();
    let ["dvc-exp", head, baseline, name, ..] = parts.as_slice() else {
        return Err(DataError::Invalid(format!("{} is not the stash of an experiment", execution.stash)));
    };
    Ok(Entry {
        stash_rev: execution.stash.clone(),
        baseline_rev: (*baseline).to_owned(),
        head_rev: Some((*head).to_owned()),
        name: (!name.is_empty()).then(|| (*name).to_owned()),
        branch: parts.get(4).map(|branch| (*branch).to_owned()),
        ..Entry::default()
    })
}

async fn run(
    queue: &Queue,
    entry: &Entry,
    execution: &Execution,
    records: &Records,
    (open, talk, say): (Open<'_>, &dyn Talk, Say),
) -> Result<(), DataError> {
    let (parent, location) = match execution.task {
        Some(_) => (queue.folder.clone(), "dvc-task"),
        None => (queue.folder.join("standalone"), "tempdir"),
    };
    std::fs::create_dir_all(&parent).map_err(DataError::io(&parent))?;
    let place = parent.join(format!("tmp{}", slipway_core::ids::hex32()));
    let dvc_dir = relative_path(&queue.root.join(DVC_DIR), queue.git.root());
    let continued = entry.branch.as_deref().map(|branch| continued(&queue.git, branch)).transpose()?;
    let mut info = Info::new(queue, &place, location, &entry.baseline_rev, entry.name.as_deref());
    // Recorded before the folder exists, so that the folder of a killed process is found and removed.
    records.set_info(&info)?;
    let result = async {
        std::fs::create_dir(&place).map_err(DataError::io(&place))?;
        let arguments = read_arguments(&queue.git, &queue.root, &entry.stash_rev)?;
        prepare(queue, entry, continued.as_ref(), &place, &dvc_dir)?;
        info.status = status::RUNNING;
        records.set_info(&info)?;
        if let Some(name) = &entry.name {
            say(&format!("Reproducing experiment '{name}'"));
        }
        let root = crate::config::normalise(&place.join(dvc_dir.parent().unwrap_or(Path::new(""))));
        copy_paths(&queue.root, &root, &execution.copy_paths)?;
        let mut project = open(&root)?;
        let how = checkout::Options { force: true, allow_missing: true, ..checkout::Options::default() };
        checkout::checkout(&mut project, &[], how, talk)?;
        let request = Request {
            name: continued.as_ref().map(|experiment| experiment.name.clone()).or_else(|| entry.name.clone()),
            parent: continued.as_ref().map(|experiment| experiment.commit.clone()),
            message: execution.message.clone(),
            targets: arguments.targets,
            repro: arguments.repro,
            ..Request::default()
        };
        let baseline = continued.as_ref().map_or(&entry.baseline_rev, |experiment| &experiment.baseline).clone();
        let experiment = reproduce(&mut project, baseline, &request, Vec::new(), talk, say.clone()).await?;
        info.result_hash = Some(save::identity(&project)?);
        info.result_ref = Some(experiment.reference());
        info.result_force = request.repro.force;
        info.status = status::SUCCESS;
        records.set_info(&info)?;
        collect(&queue.git, &info)
    }
    .await;
    if result.is_err() {
        // A result that could not be collected is none.
        (info.result_hash, info.result_ref) = (None, None);
    }
    info.status = if result.is_ok() { status::FINISHED } else { status::FAILED };
    records.set_info(&info)?;
    let _ = remove_place(queue, &info); // Best effort; the next command removes it otherwise.
    result
}

/// The experiment to which the result is added, by its reference.
fn continued(git: &Git, branch: &str) -> Result<Experiment, DataError> {
    let found = crate::revision::all(git, None)?.into_iter().find(|experiment| experiment.reference() == branch);
    found.ok_or_else(|| DataError::Invalid(format!("there is no experiment {branch} to continue")))
}

/// Creates the repository of an execution, with the configuration of the project. One that continues an experiment has the files of that one,
/// with the changes of the stash.
fn prepare(
    queue: &Queue,
    entry: &Entry,
    continued: Option<&Experiment>,
    place: &Path,
    dvc_dir: &Path,
) -> Result<(), DataError> {
    let head = entry.head_rev.as_ref().unwrap_or(&entry.baseline_rev);
    let clone = match continued {
        None => queue.git.clone_state(place, head, &entry.stash_rev)?,
        Some(experiment) => {
            let clone = queue.git.clone_state(place, &experiment.commit, &experiment.commit)?;
            clone.apply_stash(&entry.stash_rev)?;
            clone.change_references(&[RefChange::Set(experiment.reference(), experiment.commit.clone())])?;
            clone
        }
    };
    clone.change_references(&[
        RefChange::Set(format!("{EXEC}/EXEC_HEAD"), head.clone()),
        RefChange::Set(format!("{EXEC}/EXEC_BASELINE"), entry.baseline_rev.clone()),
        RefChange::Set(format!("{EXEC}/EXEC_MERGE"), entry.stash_rev.clone()),
    ])?;
    clone.remove_file(&dvc_dir.join(super::packed::FILE).to_string_lossy())?;
    let of_project = ConfigFiles::new(Some(queue.root.join(DVC_DIR)));
    let cache = cache_dir(&of_project.load()?, &queue.root.join(DVC_DIR));
    let local = of_project.read_resolved(Level::Local)?;
    ConfigFiles::new(Some(place.join(dvc_dir))).edit(Level::Local, |ini| {
        for section in &local.sections {
            for setting in &section.options {
                ini.section_mut(&section.name).set(&setting.name, &setting.value());
            }
        }
        ini.section_mut("cache").set("dir", &cache.to_string_lossy());
        Ok(())
    })
}

/// Copies files and folders of the project that Git does not track.
fn copy_paths(from: &Path, to: &Path, paths: &[String]) -> Result<(), DataError> {
    for path in paths {
        let source = crate::config::normalise(&from.join(path));
        let inside =
            source.strip_prefix(from).map_err(|_| DataError::Invalid(format!("'{path}' is outside of the project")))?;
        copy(&source, &to.join(inside))?;
    }
    Ok(())
}

fn copy(source: &Path, target: &Path) -> Result<(), DataError> {
    let file = std::fs::metadata(source).map_err(DataError::io(source))?;
    if file.is_dir() {
        std::fs::create_dir_all(target).map_err(DataError::io(target))?;
        for entry in std::fs::read_dir(source).map_err(DataError::io(source))? {
            let entry = entry.map_err(DataError::io(source))?;
            copy(&entry.path(), &target.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent).map_err(DataError::io(parent))?;
    }
    std::fs::copy(source, target).map(drop).map_err(DataError::io(target))
}

/// Fetches the result of an execution. Safe to repeat.
pub(super) fn collect(git: &Git, info: &Info) -> Result<(), DataError> {
    let Some(reference) = &info.result_ref else { return Ok(()) };
    let source = Git::at(&PathBuf::from(&info.root_dir));
    let found = source.references(reference)?;
    let [(_, commit)] = found.as_slice() else {
        return Err(DataError::Git(format!("{} has no {reference}", info.root_dir)));
    };
    let wanted = [(reference.clone(), commit.clone())];
    let outcomes = git.receive_references(&info.root_dir, &wanted, info.result_force)?;
    let is_other = outcomes.iter().any(|(_, outcome)| *outcome == Transfer::Diverged);
    if is_other && !git.have_same_files(reference, commit)? {
        return Err(exists_error(reference.rsplit('/').next().unwrap_or_default()));
    }
    Ok(())
}

/// Removes the folder of an execution, if it is one.
pub(super) fn remove_place(queue: &Queue, info: &Info) -> Result<(), DataError> {
    let place = Path::new(&info.root_dir);
    let is_temporary = place.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tmp"));
    if is_temporary && place.parent().is_some_and(|parent| is_inside(parent, &queue.folder)) {
        remove_folder(place)?;
    }
    Ok(())
}

/// Whether a folder is in another one. The record that names it may have come with a cloned project, with links or `..` on the way.
fn is_inside(path: &Path, folder: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    real(path).zip(real(folder)).is_some_and(|(path, folder)| path.starts_with(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_executions_are_those_of_the_queue() {
        let folder = tempfile::tempdir().unwrap();
        let queue = folder.path().join("exps");
        std::fs::create_dir_all(queue.join("own")).unwrap();
        std::os::unix::fs::symlink(folder.path(), queue.join("link")).unwrap();
        assert!(is_inside(&queue, &queue) && is_inside(&queue.join("own"), &queue));
        for path in ["..", "own/../..", "link", "missing"] {
            assert!(!is_inside(&queue.join(path), &queue), "{path}");
        }
    }
}
