//! Adds an experiment to the queue: the files that Git tracks, with other parameters, become a stash. The workspace stays as it is.

use std::path::{Path, PathBuf};

use super::broker::Broker;
use super::packed;
use super::{Entry, Queue};
use crate::commands::status::output_change;
use crate::commands::{Talk, commit, repro};
use crate::error::DataError;
use crate::experiments::run::Request;
use crate::experiments::{names, overrides};
use crate::project::{DVC_DIR, Project};
use crate::revision::{QUEUE, repository};
use crate::scm::{Git, Index};
use crate::yaml::Value;

/// Queues an experiment.
///
/// # Errors
/// If the name exists, or a parameter is not known.
pub fn put(project: &mut Project, request: &Request, talk: &dyn Talk) -> Result<Entry, DataError> {
    let queue = Queue::of(project)?;
    let entry = stash(project, request, QUEUE, talk)?;
    queue.with_references(&[QUEUE], || {
        queue.git.stash(QUEUE, &entry.stash_rev, &format!("commit: {}", entry.stash_message()))
    })?;
    Broker::put(&queue.broker, &entry, &request.copy_paths, request.message.as_deref())?;
    Ok(entry)
}

/// Stores the commit of a stash with the present files and the arguments of the run.
pub(super) fn stash(
    project: &mut Project,
    request: &Request,
    stash_ref: &str,
    talk: &dyn Talk,
) -> Result<Entry, DataError> {
    let git = project.git.clone();
    let (git, head) = repository(git.as_ref())?;
    let name = names::choose(git, &head, request.name.as_deref(), request.repro.force)?;
    let texts = overrides::changed_texts(&project.current, &request.params, request.hydra(project).as_ref())?;
    let data = data_files(project)?;
    commit_data(project, &data, talk)?;
    let index = Index::copy(git, project.staging.path().join("queue-index"))?;
    index.update()?;
    // The digests of the present data belong to the experiment; the workspace keeps its own.
    for (path, text) in &data {
        slipway_core::files::replace(path, text).map_err(DataError::io(path))?;
    }
    for (path, text) in &texts {
        index.set(path, text.as_bytes())?;
    }
    let arguments = arguments(project, request, &head, &name)?;
    index.set(&project.root.join(DVC_DIR).join(packed::FILE), &packed::write(&arguments)?)?;
    let mut entry = Entry {
        dvc_root: project.root.to_string_lossy().into_owned(),
        scm_root: git.root().to_string_lossy().into_owned(),
        stash_ref: stash_ref.to_owned(),
        stash_rev: String::new(),
        baseline_rev: head.clone(),
        branch: None,
        name: Some(name),
        head_rev: Some(head.clone()),
    };
    let of_index = index.commit(&[&head], "Index stash")?;
    entry.stash_rev = index.commit(&[&head, &of_index], &entry.stash_message())?;
    Ok(entry)
}

/// The `.dvc` files of data that changed and exists, with their texts.
fn data_files(project: &Project) -> Result<Vec<(PathBuf, Vec<u8>)>, DataError> {
    let mut files = Vec::new();
    for stage in project.stages()?.iter().filter(|stage| stage.is_data_source()) {
        let mut changed = false;
        for out in &stage.outs {
            let exists = out.path.as_deref().is_some_and(Path::exists);
            changed |= exists && output_change(project, out)?.is_some();
        }
        if changed {
            let text = std::fs::read(&stage.file).map_err(DataError::io(&stage.file))?;
            files.push((stage.file.clone(), text));
        }
    }
    Ok(files)
}

fn commit_data(project: &mut Project, files: &[(PathBuf, Vec<u8>)], talk: &dyn Talk) -> Result<(), DataError> {
    let targets: Vec<String> = files.iter().map(|(path, _)| path.to_string_lossy().into_owned()).collect();
    if targets.is_empty() {
        return Ok(());
    }
    let how = commit::Options { force: true, no_relink: true, ..commit::Options::default() };
    commit::commit(project, &targets, how, talk).map(drop)
}

/// The arguments in DVC's form, and the variables that the commands of the stages get.
fn arguments(project: &Project, request: &Request, head: &str, name: &str) -> Result<Value, DataError> {
    let variable = |name: &str, value: &str| (name.to_owned(), Value::string(value));
    let variables = vec![
        variable("DVC_EXP_BASELINE_REV", head),
        variable("DVC_EXP_NAME", name),
        variable("DVC_ROOT", &project.root.to_string_lossy()),
    ];
    let how = &request.repro;
    let targets = targets_from_root(project, &request.targets, how.recursive)?;
    let flag = |name: &str, value: bool| (name.to_owned(), Value::Bool(value));
    let mut all = vec![
        ("run_env".to_owned(), Value::Map(variables)),
        ("targets".to_owned(), Value::List(targets.into_iter().map(Value::String).collect())),
        flag("single_item", how.single_item),
        flag("force", how.force),
        flag("dry", false),
        flag("interactive", false),
        flag("pipeline", how.pipeline),
        flag("all_pipelines", how.all_pipelines),
        flag("downstream", how.downstream),
        flag("recursive", how.recursive),
        flag("force_downstream", how.force_downstream),
        flag("pull", how.pull),
        flag("allow_missing", how.allow_missing),
        ("on_error".to_owned(), Value::string(on_error(how.on_error))),
    ];
    // DVC's `exp run` does not have these, so they are written only if they are used.
    all.extend(how.no_run_cache.then(|| flag("run_cache", false)));
    all.extend(
        [("no_commit", how.no_commit), ("glob", how.glob)].into_iter().filter(|(_, on)| *on).map(|(n, on)| flag(n, on)),
    );
    Ok(Value::Map(all))
}

/// The targets relative to the root of the project, in which a queued experiment is run.
fn targets_from_root(project: &Project, targets: &[String], recursive: bool) -> Result<Vec<String>, DataError> {
    if project.current == project.root {
        return Ok(targets.to_vec());
    }
    let below = crate::config::relative_path(&project.current, &project.root);
    let below = below.to_string_lossy();
    let is_file = |target: &str| recursive || project.absolute(target).exists();
    let shift = |target: &String| match target.split_once(':') {
        Some((file, name)) if !file.is_empty() => format!("{below}/{file}:{name}"),
        _ if is_file(target) => format!("{below}/{target}"),
        _ => format!("{below}/{}:{}", crate::stage::PIPELINE_FILE, target.trim_start_matches(':')),
    };
    let default = [crate::stage::PIPELINE_FILE.to_owned()];
    let has_pipeline = project.current.join(&default[0]).is_file();
    let given = if targets.is_empty() && has_pipeline { &default[..] } else { targets };
    Ok(given.iter().map(shift).collect())
}

fn on_error(how: repro::OnError) -> &'static str {
    match how {
        repro::OnError::Fail => "fail",
        repro::OnError::KeepGoing => "keep-going",
        repro::OnError::Ignore => "ignore",
    }
}

/// What a stash says about how its experiment is run.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) targets: Vec<String>,
    pub(super) variables: Vec<(String, String)>,
    pub(super) repro: repro::Options,
}

/// Reads the arguments that a stash has.
pub(super) fn read_arguments(git: &Git, root: &Path, stash: &str) -> Result<Arguments, DataError> {
    let file = root.join(DVC_DIR).join(packed::FILE);
    let path = file.strip_prefix(git.root()).unwrap_or(&file).to_string_lossy().into_owned();
    let Some(bytes) = git.file_at(stash, &path)? else { return Ok(Arguments::default()) };
    let all = packed::read(&bytes).map_err(|reason| DataError::file(&file, 0, format!("in {stash}: {reason}")))?;
    let flag = |name: &str| all.get(name).and_then(Value::as_bool);
    let on = |name: &str| flag(name).unwrap_or(false);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let targets = match all.get("targets") {
        Some(Value::List(items)) => items.iter().filter_map(text).collect(),
        Some(Value::String(target)) => vec![target.clone()],
        _ => Vec::new(),
    };
    let variables = all.get("run_env").map_or(&[][..], Value::entries);
    Ok(Arguments {
        targets,
        variables: variables.iter().filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect(),
        repro: repro::Options {
            force: on("force"),
            single_item: on("single_item"),
            pipeline: on("pipeline"),
            all_pipelines: on("all_pipelines"),
            recursive: on("recursive"),
            downstream: on("downstream"),
            force_downstream: on("force_downstream"),
            pull: on("pull"),
            allow_missing: on("allow_missing"),
            dry: on("dry"),
            no_commit: on("no_commit"),
            no_run_cache: flag("run_cache") == Some(false),
            glob: on("glob"),
            interactive: false,
            on_error: match all.get("on_error").and_then(Value::as_str) {
                Some("keep-going") => repro::OnError::KeepGoing,
                Some("ignore") => repro::OnError::Ignore,
                _ => repro::OnError::Fail,
            },
            jobs: 1,
            ..repro::Options::default()
        },
    })
}
