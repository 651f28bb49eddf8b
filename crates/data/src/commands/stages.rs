//! `stage add`, `stage list`, `freeze` and `unfreeze`: edits of `dvc.yaml` that keep what people wrote around them.

use std::path::{Path, PathBuf};

use super::GitFiles;
use super::graph::Graph;
use crate::config::normalise;
use crate::error::DataError;
use crate::gitignore;
use crate::pipeline::{self, DEFAULT_PARAMS_FILE, Files, read_workspace};
use crate::project::Project;
use crate::project::target::{How, all_named};
use crate::stage::{OutputKind, PIPELINE_FILE, Stage};
use crate::yaml::{self, Value};

/// How an output of a new stage is tracked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewOutput {
    /// The path, relative to the folder of the stage.
    pub path: String,
    /// The key of the `dvc.yaml` that lists it.
    pub section: Section,
    /// Whether it is stored in the cache.
    pub cached: bool,
    /// Whether it is kept when the stage runs again.
    pub persist: bool,
}

/// The keys of outputs in a `dvc.yaml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// `outs`
    Outs,
    /// `metrics`
    Metrics,
    /// `plots`
    Plots,
}

impl Section {
    fn key(self) -> &'static str {
        match self {
            Self::Outs => "outs",
            Self::Metrics => "metrics",
            Self::Plots => "plots",
        }
    }
}

/// A stage that is added.
#[derive(Debug, Clone, Default)]
pub struct NewStage {
    /// The name.
    pub name: String,
    /// Replace a stage with this name.
    pub force: bool,
    /// The paths of the dependencies.
    pub deps: Vec<String>,
    /// The parameters: `KEY,KEY`, `FILE:KEY,KEY` or `FILE:`.
    pub params: Vec<String>,
    /// The outputs.
    pub outs: Vec<NewOutput>,
    /// The folder in which the command runs.
    pub wdir: Option<String>,
    /// Whether it counts as changed in any case.
    pub always_changed: bool,
    /// The description for people.
    pub desc: Option<String>,
    /// The command.
    pub command: String,
}

/// Adds a stage to the `dvc.yaml` of the current folder.
///
/// # Errors
/// If the stage exists, is invalid, or its outputs overlap with others.
pub fn add(project: &mut Project, new: &NewStage) -> Result<GitFiles, DataError> {
    let file = project.current.join(PIPELINE_FILE);
    check(project, new)?;
    let text = read_workspace(&file)?.unwrap_or_default();
    let parsed = yaml::parse(&text).map_err(|error| DataError::file(&file, error.line, error.reason))?;
    let old = parsed.get("stages").and_then(|stages| stages.get(&new.name));
    if old.is_some() && !new.force {
        return Err(DataError::Invalid(format!(
            "Stage '{}' already exists in '{}'. Use '--force' to overwrite.",
            new.name,
            project.display(&file)
        )));
    }
    let entry = entry(new, old)?;
    let edited = with_stage(&file, &text, &new.name, entry)?;
    // The new text is read as the next command will read it, before it replaces the old one.
    let mut files = Files::new(&project.root, &read_workspace);
    let in_file = pipeline::load(&file, &edited, &mut files, pipeline::unpacking(&project.config))?;
    let stage = in_file.iter().find(|stage| stage.name.as_ref() == Some(&new.name)).cloned();
    let mut stages = project.stages()?;
    stages.retain(|stage| stage.file != file);
    stages.extend(in_file);
    Graph::new(project, &stages)?;
    let mut git_files = GitFiles::default();
    let outs = || stage.iter().flat_map(|stage| &stage.outs);
    let in_order = new.outs.iter().filter_map(|new| outs().find(|out| out.written == new.path));
    let cached: Vec<PathBuf> = in_order.filter(|out| out.cached).filter_map(|out| out.path.clone()).collect();
    if let Some(git) = &project.git {
        let paths: Vec<&Path> = cached.iter().map(PathBuf::as_path).collect();
        if let Some(path) = git.first_tracked(&paths)? {
            return Err(DataError::TrackedByGit(project.display(path)));
        }
    }
    slipway_core::files::replace(&file, edited.as_bytes()).map_err(DataError::io(&file))?;
    git_files.push(file);
    if let Some(git) = &project.git {
        for path in &cached {
            // A folder that does not exist yet gets its entry when the stage runs.
            let has_folder = path.parent().is_some_and(Path::is_dir);
            if has_folder && git.ignored(&[path])?.is_empty() && gitignore::add(path)? {
                git_files.push(path.with_file_name(".gitignore"));
            }
        }
    }
    git_files.finish(project)
}

/// Checks what the form of the `dvc.yaml` does not show.
fn check(project: &Project, new: &NewStage) -> Result<(), DataError> {
    if new.command.trim().is_empty() {
        return Err(DataError::Invalid("command is not specified".into()));
    }
    if new.name.is_empty() || new.name.chars().any(|c| c.is_ascii_punctuation() && !matches!(c, '-' | '_')) {
        return Err(DataError::Invalid("Stage name cannot contain punctuation characters.".into()));
    }
    let wdir = new.wdir.as_ref().map_or_else(|| project.current.clone(), |wdir| project.absolute(wdir));
    let shown = new.wdir.as_deref().unwrap_or(".");
    let reason = match () {
        () if !wdir.exists() => Some("does not exist"),
        () if !wdir.is_dir() => Some("is not directory"),
        () if !wdir.starts_with(&project.root) => Some("is outside of DVC repo"),
        () => None,
    };
    if let Some(reason) = reason {
        return Err(DataError::Invalid(format!("stage working dir '{shown}' {reason}")));
    }
    let location = |path: &String| normalise(&wdir.join(path));
    let outs: Vec<PathBuf> = new.outs.iter().map(|out| location(&out.path)).collect();
    let deps: Vec<PathBuf> = new.deps.iter().map(location).collect();
    if let Some(path) = deps.iter().find(|path| outs.contains(path)) {
        let path = project.display(path);
        return Err(DataError::Invalid(format!("'{path}' is specified as an output and as a dependency.")));
    }
    let is_repeated = |paths: &[PathBuf], i: usize| paths[..i].contains(&paths[i]);
    for paths in [&outs, &deps] {
        if let Some(i) = (0..paths.len()).find(|i| is_repeated(paths, *i)) {
            return Err(DataError::Invalid(format!(
                "file '{}' is specified more than once.",
                project.display(&paths[i])
            )));
        }
    }
    let outside = new.outs.iter().zip(&outs).find(|(out, path)| out.cached && !path.starts_with(&project.root));
    if let Some((out, _)) = outside {
        return Err(DataError::Invalid(format!("Cached output(s) outside of DVC project: {}.", out.path)));
    }
    Ok(())
}

/// The definition of a stage in DVC's order. Descriptions and other data of people in the old definition stay.
fn entry(new: &NewStage, old: Option<&Value>) -> Result<Value, DataError> {
    let mut entries: Vec<(String, Value)> = Vec::new();
    let mut push = |key: &str, value: Option<Value>| entries.extend(value.map(|value| (key.to_owned(), value)));
    let list = |items: Vec<Value>| (!items.is_empty()).then_some(Value::List(items));
    let sorted = |mut items: Vec<String>| {
        items.sort();
        items.into_iter().map(Value::String).collect::<Vec<_>>()
    };
    let desc = match old {
        Some(old) => old.get("desc").cloned(),
        None => new.desc.as_deref().filter(|desc| !desc.is_empty()).map(Value::string),
    };
    push("desc", desc);
    push("cmd", Some(Value::string(new.command.as_str())));
    push(
        "wdir",
        new.wdir
            .as_deref()
            .map(|wdir| normalise(Path::new(wdir)))
            .filter(|wdir| wdir != Path::new("."))
            .map(|wdir| Value::string(wdir.to_string_lossy())),
    );
    push("deps", list(sorted(new.deps.clone())));
    push("params", list(parameters(&new.params)?));
    for section in [Section::Outs, Section::Metrics, Section::Plots] {
        let mut outs: Vec<&NewOutput> = new.outs.iter().filter(|out| out.section == section).collect();
        outs.sort_by(|a, b| a.path.cmp(&b.path));
        let items = outs.into_iter().map(|out| output(out, old.and_then(|old| old.get(section.key()))));
        push(section.key(), list(items.collect()));
    }
    push("always_changed", new.always_changed.then_some(Value::Bool(true)));
    push("meta", old.and_then(|old| old.get("meta")).cloned());
    Ok(Value::Map(entries))
}

fn output(out: &NewOutput, old: Option<&Value>) -> Value {
    let old = old.map_or(&[][..], Value::items).iter().find_map(|item| item.get(&out.path));
    let kept = |keys: &[&str]| -> Vec<(String, Value)> {
        let entries = old.map_or(&[][..], Value::entries).iter();
        entries.filter(|(key, _)| keys.contains(&key.as_str())).cloned().collect()
    };
    let mut options = kept(&["desc", "type", "labels", "meta"]);
    options.extend((!out.cached).then(|| ("cache".to_owned(), Value::Bool(false))));
    options.extend(out.persist.then(|| ("persist".to_owned(), Value::Bool(true))));
    options.extend(kept(&["remote", "push"]));
    let path = out.path.clone();
    if options.is_empty() { Value::String(path) } else { Value::Map(vec![(path, Value::Map(options))]) }
}

/// The entries of `params`: keys of `params.yaml` first, then the other files.
fn parameters(given: &[String]) -> Result<Vec<Value>, DataError> {
    let mut by_file: Vec<(String, Vec<Value>)> = Vec::new();
    for text in given {
        let (file, keys) = match text.rsplit_once(':') {
            Some((file, keys)) if !file.is_empty() => (file, keys),
            Some((_, keys)) => (DEFAULT_PARAMS_FILE, keys),
            None => (DEFAULT_PARAMS_FILE, text.as_str()),
        };
        let keys = keys.split(',').filter(|key| !key.is_empty()).map(Value::string);
        match by_file.iter_mut().find(|(known, _)| known == file) {
            Some((_, known)) => known.extend(keys),
            None => by_file.push((file.to_owned(), keys.collect())),
        }
    }
    let items: Vec<Value> =
        by_file.into_iter().map(|(file, keys)| Value::Map(vec![(file, Value::List(keys))])).collect();
    let mut files = pipeline::recipe::parameters(&items).map_err(DataError::Invalid)?;
    files.sort();
    let mut entries = Vec::new();
    for (file, mut keys) in files {
        keys.sort();
        let keys: Vec<Value> = keys.into_iter().map(Value::String).collect();
        if file == DEFAULT_PARAMS_FILE && !keys.is_empty() {
            entries.splice(0..0, keys);
        } else {
            let keys = if keys.is_empty() { Value::Null } else { Value::List(keys) };
            entries.push(Value::Map(vec![(file, keys)]));
        }
    }
    Ok(entries)
}

/// The text of a `dvc.yaml` in which a stage has this definition. Keys of an old definition keep their place.
fn with_stage(file: &Path, text: &str, name: &str, entry: Value) -> Result<String, DataError> {
    let invalid = |error: yaml::ParseError| DataError::file(file, error.line, error.reason);
    let mut value = yaml::parse(text).map_err(invalid)?;
    let Value::Map(sections) = &mut value else { return Err(DataError::file(file, 1, "it is not a mapping")) };
    if !sections.iter().any(|(key, _)| key == "stages") {
        sections.push(("stages".into(), Value::Map(Vec::new())));
    }
    for (_, stages) in sections.iter_mut().filter(|(key, _)| key == "stages") {
        if matches!(stages, Value::Null) {
            *stages = Value::Map(Vec::new());
        }
        let Value::Map(stages) = stages else { return Err(DataError::file(file, 1, "'stages' is not a mapping")) };
        match stages.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = merged(old, &entry),
            None => stages.push((name.to_owned(), entry.clone())),
        }
    }
    yaml::edit(text, &value).map_err(invalid)
}

/// The new mapping with its keys in the order of the old one.
fn merged(old: &Value, new: &Value) -> Value {
    let kept = old.entries().iter().filter_map(|(key, _)| Some((key.clone(), new.get(key)?.clone())));
    let added = new.entries().iter().filter(|(key, _)| old.get(key).is_none()).cloned();
    Value::Map(kept.chain(added).collect())
}

/// A stage in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name for the user.
    pub address: String,
    /// What it is for.
    pub description: String,
}

/// The stages of the targets, of the current `dvc.yaml`, or with `all` of the project.
///
/// # Errors
/// [`DataError::Target`] for a target without stages, or an error of a file.
pub fn list(project: &Project, targets: &[String], all: bool, recursive: bool) -> Result<Vec<Listed>, DataError> {
    let stages = project.stages()?;
    let default = [PIPELINE_FILE.to_owned()];
    let targets = if targets.is_empty() { &default[..] } else { targets };
    let selected = match all {
        true => (0..stages.len()).collect(),
        false => all_named(project, &stages, targets, How { recursive, glob: false })?,
    };
    let listed = selected.into_iter().map(|i| &stages[i]);
    Ok(listed
        .map(|stage| Listed { address: stage.address(&project.current), description: description(stage) })
        .collect())
}

/// The first line of the description, or what the stage reads and writes, in at most 80 characters.
fn description(stage: &Stage) -> String {
    /// Maximum number of characters.
    const MAX: usize = 80;
    let first_line =
        stage.desc().and_then(|desc| desc.lines().find(|line| !line.is_empty()).map(|l| l.trim().to_owned()));
    let paths = |report: bool| -> Vec<&str> {
        let is_report = |kind: &OutputKind| *kind != OutputKind::Data;
        stage.outs.iter().filter(|out| is_report(&out.kind) == report).map(|out| out.written.as_str()).collect()
    };
    let params = stage.recipe.iter().flat_map(|recipe| &recipe.params).map(|params| params.written.as_str());
    let inputs: Vec<&str> = stage.deps.iter().map(|dep| dep.written.as_str()).chain(params).collect();
    let text = first_line.unwrap_or_else(|| match (paths(false), paths(true)) {
        (outs, reports) if outs.is_empty() && reports.is_empty() => match inputs.is_empty() {
            true => "No outputs or dependencies".into(),
            false => format!("Depends on {}", inputs.join(", ")),
        },
        (outs, reports) => {
            let parts = [("Outputs", outs), ("Reports", reports)];
            let parts = parts.into_iter().filter(|(_, paths)| !paths.is_empty());
            parts.map(|(word, paths)| format!("{word} {}", paths.join(", "))).collect::<Vec<_>>().join("; ")
        }
    });
    if text.chars().count() <= MAX {
        return text;
    }
    text.chars().take(MAX - 1).chain(['…']).collect()
}

/// Freezes or unfreezes a stage or `.dvc` file.
///
/// # Errors
/// [`DataError::Target`] if the target is none; [`DataError::Invalid`] for a stage that templates made.
pub fn freeze(project: &Project, target: &str, frozen: bool) -> Result<GitFiles, DataError> {
    let stages = project.stages()?;
    let selected = all_named(project, &stages, &[target.to_owned()], How::default())?;
    let [stage] = selected.as_slice() else { return Err(DataError::Target(target.to_owned())) };
    let stage = &stages[*stage];
    if stage.recipe.as_ref().is_some_and(|recipe| recipe.is_parametrized) {
        let address = stage.address(&project.current);
        return Err(DataError::Invalid(format!("cannot dump a parametrized stage: '{address}'")));
    }
    let text = read_workspace(&stage.file)?.unwrap_or_default();
    let invalid = |error: yaml::ParseError| DataError::file(&stage.file, error.line, error.reason);
    let mut value = yaml::parse(&text).map_err(invalid)?;
    let entry = match &stage.name {
        None => Some(&mut value),
        Some(name) => value.get_mut("stages").and_then(|stages| stages.get_mut(name)),
    };
    if let Some(Value::Map(entries)) = entry {
        entries.retain(|(key, _)| key != "locked" && (frozen || key != "frozen"));
        match entries.iter_mut().find(|(key, _)| key == "frozen") {
            Some((_, value)) => *value = Value::Bool(true),
            None if frozen => entries.push(("frozen".into(), Value::Bool(true))),
            None => {}
        }
    }
    let edited = yaml::edit(&text, &value).map_err(invalid)?;
    let mut git_files = GitFiles::default();
    if edited != text {
        slipway_core::files::replace(&stage.file, edited.as_bytes()).map_err(DataError::io(&stage.file))?;
        git_files.push(stage.file.clone());
    }
    git_files.finish(project)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(path: &str, section: Section, cached: bool) -> NewOutput {
        NewOutput { path: path.into(), section, cached, persist: false }
    }

    #[test]
    fn definitions_are_written_in_the_order_of_dvc() {
        let new = NewStage {
            name: "train".into(),
            deps: vec!["src".into(), "data".into()],
            params: vec!["lr,epochs".into(), "o.json:".into(), "a.yaml:k".into()],
            outs: vec![out("model", Section::Outs, true), out("m.json", Section::Metrics, false)],
            command: "python train.py".into(),
            ..NewStage::default()
        };
        let text = with_stage(Path::new("dvc.yaml"), "", "train", entry(&new, None).unwrap()).unwrap();
        let expected = "stages:\n  train:\n    cmd: python train.py\n    deps:\n    - data\n    - src\n    params:\n    - epochs\n    - lr\n    - a.yaml:\n      - k\n    - o.json:\n    outs:\n    - model\n    metrics:\n    - m.json:\n        cache: false\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn comments_and_descriptions_of_a_replaced_stage_stay() {
        let text = "# ours\nstages:\n  a:\n    # how\n    cmd: x\n    desc: text\n    outs:\n    - o:\n        desc: out\n  b:\n    cmd: y # why\n";
        let new = NewStage { outs: vec![out("o", Section::Outs, true)], command: "z".into(), ..NewStage::default() };
        let parsed = yaml::parse(text).unwrap();
        let old = parsed.get("stages").unwrap().get("a");
        let edited = with_stage(Path::new("dvc.yaml"), text, "a", entry(&new, old).unwrap()).unwrap();
        assert_eq!(edited, text.replace("cmd: x", "cmd: z"));
    }
}
