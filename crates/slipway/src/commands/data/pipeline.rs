//! The commands for pipelines: `stage`, `repro`, `dag`, `freeze`, and their part of `status`.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use slipway_data::DataError;
use slipway_data::commands::dag as graph;
use slipway_data::commands::repro::{self, OnError, Say};
use slipway_data::commands::stages::{self, NewOutput, NewStage, Section};
use slipway_data::commands::status::{Change, ParametersChange, StageStatus};
use slipway_data::json::Json;
use slipway_data::project::Project;
use slipway_data::scm::Git;
use slipway_data::versions::without_credentials;
use slipway_exec::data::Source;

use super::submitted::Submitter;
use super::{Context, Terminal, show_git_files};
use crate::cli::data::pipeline::{Dag, Repro, Reproduce, StageAdd, StageList};
use crate::output::print_text;

pub(super) async fn add(
    context: &Context,
    project: &mut Project,
    terminal: &Terminal<'_>,
    options: StageAdd,
) -> Result<(), DataError> {
    let output = |section, cached, persist| move |path: String| NewOutput { path, section, cached, persist };
    let groups = [
        (options.outs_persist, Section::Outs, true, true),
        (options.outs_persist_no_cache, Section::Outs, false, true),
        (options.metrics, Section::Metrics, true, false),
        (options.metrics_no_cache, Section::Metrics, false, false),
        (options.plots, Section::Plots, true, false),
        (options.plots_no_cache, Section::Plots, false, false),
        (options.outs_no_cache, Section::Outs, false, false),
        (options.outs, Section::Outs, true, false),
    ];
    let outs = groups.into_iter().flat_map(|(paths, section, cached, persist)| {
        paths.into_iter().map(output(section, cached, persist)).collect::<Vec<_>>()
    });
    let new = NewStage {
        outs: outs.collect(),
        name: options.name,
        force: options.force,
        deps: options.deps,
        params: options.params,
        wdir: options.wdir,
        always_changed: options.always_changed,
        desc: options.desc,
        command: command(&options.command),
    };
    let files = stages::add(project, &new)?;
    if !context.global.quiet {
        print_text(&format!("Added stage '{}' in 'dvc.yaml'\n", new.name));
    }
    if options.run {
        let how = repro::Options { single_item: true, ..repro::Options::default() };
        repro::repro(project, &[new.name], &how, terminal, say(context)).await?;
    }
    show_git_files(context, project, &files);
    Ok(())
}

/// Writes the option `-o` of DVC's `stage add` and `dag` in its long form: for slipway it is the format of the output. The options of the
/// command that a stage runs are not touched.
pub(super) fn use_long_form(arguments: &mut [OsString]) {
    /// Options of `stage add` without a value.
    const FLAGS: &[&str] = &["-f", "--force", "--always-changed", "--run", "-q", "--quiet", "-v", "--verbose"];
    let is = |place: usize, word: &str| arguments.get(place).is_some_and(|argument| argument == word);
    let (mut at, is_add) = match () {
        () if is(2, "stage") && is(3, "add") => (4, true),
        () if is(2, "dag") => (3, false),
        () => return,
    };
    while let Some(argument) = arguments.get_mut(at) {
        let Some(text) = argument.to_str().map(str::to_owned) else { return };
        at += 1;
        match text.strip_prefix("-o") {
            Some("") => *argument = "--outs".into(),
            Some(path) if is_add => *argument = format!("--outs={path}").into(),
            _ => {}
        }
        let is_attached = text.contains('=') || (text.len() > 2 && !text.starts_with("--"));
        match text.starts_with('-') && text != "--" {
            true if is_add && !FLAGS.contains(&text.as_str()) && !is_attached => at += 1,
            true => {}
            false if is_add => return,
            false => {}
        }
    }
}

/// The command of the arguments. As in DVC, arguments with spaces get double quotes.
fn command(arguments: &[String]) -> String {
    let quote = |argument: &String| match argument.as_str() {
        "" => "\"\"".to_owned(),
        text if text.contains(' ') && !text.contains('"') => format!("\"{text}\""),
        text => text.to_owned(),
    };
    match arguments {
        [single] => single.clone(),
        many => many.iter().map(quote).collect::<Vec<_>>().join(" "),
    }
}

/// Shows the lines of a run.
pub(super) fn say(context: &Context) -> Say {
    let quiet = context.global.quiet;
    Arc::new(move |line| {
        if !quiet {
            print_text(&format!("{line}\n"));
        }
    })
}

pub(super) fn list(project: &Project, options: &StageList) -> Result<(), DataError> {
    let listed = stages::list(project, &options.targets, options.all, options.recursive)?;
    let width = listed.iter().map(|stage| stage.address.chars().count()).max().unwrap_or(0);
    for stage in listed {
        let line = match options.name_only {
            true => stage.address,
            false => format!("{:width$}  {}", stage.address, stage.description),
        };
        print_text(&format!("{}\n", line.trim_end()));
    }
    Ok(())
}

/// How stages are run.
pub(super) fn repro_options(context: &Context, project: &Project, options: &Repro) -> repro::Options {
    repro::Options {
        force: options.force,
        single_item: options.single_item,
        pipeline: options.pipeline,
        all_pipelines: options.all_pipelines,
        recursive: options.recursive,
        downstream: options.downstream,
        force_downstream: options.force_downstream,
        pull: options.pull,
        allow_missing: options.allow_missing,
        dry: options.dry || context.global.dry_run,
        no_commit: options.no_commit,
        no_run_cache: options.no_run_cache,
        glob: options.glob,
        interactive: options.interactive || project.config.is_true("core", "interactive"),
        on_error: match () {
            () if options.keep_going => OnError::KeepGoing,
            () if options.ignore_errors => OnError::Ignore,
            () => OnError::Fail,
        },
        jobs: options.jobs.unwrap_or(1),
        runner: None,
        share: false,
        variables: Vec::new(),
    }
}

/// Maximum number of stages that are submitted at a time by default. The server decides how many of them run.
const MAX_SUBMITTED: usize = 64;

/// The repository and commit of the project at `root`.
fn source_of(git: &Git, root: &Path) -> Result<Source, DataError> {
    let head = git.head()?;
    let repo = head.origin.map_or_else(|| git.root().display().to_string(), |url| without_credentials(&url));
    let path = root.strip_prefix(git.root()).unwrap_or(root).display().to_string();
    let branch = head.branch.unwrap_or_default();
    Ok(Source { repo, commit: head.commit, branch, path, dirty: head.is_dirty, ..Source::default() })
}

pub(super) async fn repro(
    context: &Context,
    open: &dyn Fn() -> Result<Project, DataError>,
    terminal: &Terminal<'_>,
    options: Reproduce,
) -> Result<(), DataError> {
    let Reproduce { how: options, submission, share } = options;
    let mut project = open()?;
    let mut how = repro::Options { share, ..repro_options(context, &project, &options) };
    if submission.submit {
        let source = project.git.as_ref().map(|git| source_of(git, &project.root)).transpose()?;
        let submitter = Submitter::connect(context, submission, &project.tmp(), source).await?;
        how.jobs = options.jobs.unwrap_or(MAX_SUBMITTED);
        how.runner = Some(Arc::new(submitter));
    }
    let say = say(context);
    let report = repro::repro(&mut project, &options.targets, &how, terminal, say.clone()).await?;
    show_git_files(context, &project, &report.git_files);
    say(match report.reproduced.is_empty() {
        true => "Data and pipelines are up to date.",
        false => "Use `dvc push` to send your updates to remote storage.",
    });
    Ok(())
}

pub(super) fn dag(project: &Project, options: &Dag) -> Result<(), DataError> {
    let how = graph::Options { outs: options.outs, full: options.full, collapse: options.collapse_foreach_matrix };
    let drawing = graph::dag(project, options.target.as_deref(), how)?;
    print_text(&match () {
        () if options.dot => drawing.to_dot(),
        () if options.mermaid || options.md => drawing.to_mermaid(options.md),
        () => drawing.to_text(),
    });
    Ok(())
}

/// Freezes or unfreezes each target; false if some could not be.
pub(super) fn freeze(project: &mut Project, targets: &[String], frozen: bool) -> Result<bool, DataError> {
    let verb = if frozen { "freeze" } else { "unfreeze" };
    let mut failed = None;
    for target in targets {
        if let Err(error) = stages::freeze(project, target, frozen) {
            crate::output::print_note(format_args!("failed to {verb} '{target}': {error}"));
            failed = Some(error);
        }
    }
    failed.map_or(Ok(true), Err)
}

/// What changed of a stage, in DVC's form.
pub(super) fn changes(stage: &StageStatus) -> Vec<Json> {
    let word = |change: Change| Json::string(change.word());
    let group = |name: &str, members: Vec<(String, Json)>| {
        (!members.is_empty()).then(|| Json::Map(vec![(name.to_owned(), Json::Map(members))]))
    };
    let list = |changes: &[(String, Change)]| -> Vec<(String, Json)> {
        changes.iter().map(|(path, change)| (path.clone(), word(*change))).collect()
    };
    let mut deps = list(&stage.deps);
    deps.extend(stage.params.iter().map(|(path, change)| {
        let change = match change {
            ParametersChange::File(change) => word(*change),
            ParametersChange::Keys(keys) => Json::Map(list(keys)),
        };
        (path.clone(), change)
    }));
    let mut items: Vec<Json> = group("changed deps", deps).into_iter().collect();
    items.extend(group("changed outs", list(&stage.outs)));
    items.extend(stage.is_unsealed.then(|| Json::string("changed checksum")));
    items.extend(stage.is_always_changed.then(|| Json::string("always changed")));
    items.extend(stage.is_command_changed.then(|| Json::string("changed command")));
    items
}

/// Appends what changed as lines, indented by tabs.
pub(super) fn show_changes(lines: &mut String, depth: usize, changes: &Json) {
    let Json::Map(members) = changes else { return };
    let indent = "\t".repeat(depth);
    for (name, value) in members {
        match value {
            Json::String(word) => lines.push_str(&format!("{indent}{:20}{name}\n", format!("{word}:"))),
            map @ Json::Map(_) => {
                lines.push_str(&format!("{indent}{name}:\n"));
                show_changes(lines, depth + 1, map);
            }
            Json::List(items) => {
                lines.push_str(&format!("{indent}{name}:\n"));
                for item in items {
                    match item {
                        Json::String(text) => lines.push_str(&format!("{indent}\t{text}\n")),
                        item => show_changes(lines, depth + 1, item),
                    }
                }
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_option_of_outputs_is_written_long() {
        for (given, expected) in [
            ("stage add -n a -o x -od -f -o y cp -o z", "stage add -n a --outs x --outs=d -f --outs y cp -o z"),
            ("stage add -d -o -n a true", "stage add -d -o -n a true"),
            ("dag -o --dot a", "dag --outs --dot a"),
            ("status -o json", "status -o json"),
        ] {
            let mut arguments: Vec<OsString> = ["slipway", "data"].into_iter().map(OsString::from).collect();
            arguments.extend(given.split(' ').map(OsString::from));
            use_long_form(&mut arguments);
            let words: Vec<_> = arguments[2..].iter().map(|argument| argument.to_string_lossy()).collect();
            assert_eq!(words.join(" "), expected);
        }
    }
}
