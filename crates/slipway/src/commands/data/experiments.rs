//! `data exp`: experiments.

use slipway_data::DataError;
use slipway_data::commands::Talk;
use slipway_data::experiments::queue::{Queue, TaskState};
use slipway_data::experiments::share::{self, Request};
use slipway_data::experiments::{self, apply, overrides, run, save, show, table};
use slipway_data::json::Json;
use slipway_data::project::Project;
use slipway_data::reports::changes::{self, Shown};
use slipway_data::reports::python::Rounding;
use slipway_data::reports::table::Form;
use slipway_data::revision::{self, Experiment, Selection, repository};
use slipway_data::scm::{Git, Transfer};

use super::queue;
use super::reports::{PRECISION, changes_json, form, is_json, print_table};
use crate::cli::data::experiments as cli;
use crate::commands::Context;
use crate::output::{print_note, print_text};

pub(super) async fn run(
    context: &Context,
    project: &mut Project,
    verb: cli::Exp,
    talk: &dyn Talk,
) -> Result<(), DataError> {
    let git = project.git.clone();
    let git = || repository(git.as_ref()).map(|(git, _)| git);
    match verb {
        cli::Exp::Save(options) => {
            let how = save::Options {
                name: options.name,
                force: options.force,
                recursive: options.recursive,
                untracked: options.include_untracked.iter().map(|p| project.absolute(&p.to_string_lossy())).collect(),
                message: options.message,
                ..save::Options::default()
            };
            let saved = save::save(project, &options.targets, &how, talk)?;
            if is_json(context, options.json) {
                let value = Json::Map(vec![("ref".into(), Json::string(saved.commit))]);
                print_text(&format!("{}\n", value.to_text()));
            } else {
                print_text(&format!("Experiment has been saved as: {}\n", saved.name));
            }
        }
        cli::Exp::List(options) => list(git()?, &options)?,
        cli::Exp::Show(options) => show_table(context, project, options)?,
        cli::Exp::Diff(options) => show_diff(context, project, &options)?,
        cli::Exp::Apply { no_force: _, experiment } => {
            apply::apply(project, &experiment, talk)?;
            print_text(&format!(
                "Changes for experiment '{experiment}' have been applied to your current workspace.\n"
            ));
        }
        cli::Exp::Branch { experiment, branch } => {
            let (branch, name) = experiments::branch(git()?, &experiment, branch.as_deref())?;
            print_text(&format!(
                "Git branch '{branch}' has been created from experiment '{name}'.\nTo switch to the new branch run:\n\n\tgit checkout {branch}\n"
            ));
        }
        cli::Exp::Remove(options) => remove(project, git()?, &options)?,
        cli::Exp::Rename { force, experiment, name } => {
            if experiment == name {
                print_text("No experiments to rename.\n");
            } else {
                experiments::rename(git()?, &experiment, &name, force)?;
                print_text(&format!("Renamed experiments: '{experiment}'\n"));
            }
        }
        cli::Exp::Push(options) => {
            let report = share::push(project, &options.git_remote, &request(&options), talk).await?;
            note_diverged(&report, "The experiment of the remote");
            let names = |outcome| named(&report, outcome);
            let (up_to_date, pushed) = (names(Transfer::UpToDate), names(Transfer::Done));
            if let Some(names) = &up_to_date {
                print_text(&format!("Up to date on Git remote '{}': {names}\n", options.git_remote));
            }
            if let Some(names) = &pushed {
                print_text(&format!("Pushed to Git remote '{}': {names}\n", options.git_remote));
            }
            if up_to_date.is_none() && pushed.is_none() {
                print_text("No experiments to push.\n");
            }
            print_objects(report.objects, "pushed");
        }
        cli::Exp::Pull(options) => {
            let report = share::pull(project, &options.git_remote, &request(&options), talk).await?;
            note_diverged(&report, "The experiment here");
            match named(&report, Transfer::Done) {
                Some(names) => print_text(&format!("Pulled from Git remote '{}': {names}\n", options.git_remote)),
                None => print_text("No experiments to pull.\n"),
            }
            print_objects(report.objects, "fetched");
        }
        cli::Exp::Clean => {
            print_text("Cleaning up dvc-task messages...\n");
            Queue::of(project)?.clean()?;
            print_text("Done!\n");
        }
        // `dispatch` handles these, for which the lock of the project is not held.
        cli::Exp::Run(_) | cli::Exp::QueueWorker { .. } | cli::Exp::ExecRun(_) => {}
    }
    Ok(())
}

/// Runs an experiment in the workspace, elsewhere, or later.
pub(super) async fn run_pipeline(
    context: &Context,
    mut project: Project,
    options: cli::Run,
    talk: &dyn Talk,
) -> Result<(), DataError> {
    let repro = super::pipeline::repro_options(context, &project, &options.repro);
    if options.run_all {
        let queue = Queue::of(&project)?;
        drop(project); // The workers take its lock.
        return queue::run_all(&queue, repro.jobs).await;
    }
    if repro.dry {
        return Err(DataError::Invalid("an experiment cannot be run dry; `repro --dry` shows the commands".into()));
    }
    let mut combinations = overrides::combinations(&options.set_param)?;
    let mut request = run::Request {
        name: options.name,
        message: options.message,
        params: Vec::new(),
        repro,
        targets: options.repro.targets,
        copy_paths: options.copy_paths,
        no_hydra: options.no_hydra,
        ..run::Request::default()
    };
    if options.queue {
        return queue::put(&mut project, &request, combinations, talk);
    }
    request.params = combinations.pop().unwrap_or_default();
    if !combinations.is_empty() {
        return Err(DataError::Invalid(
            "several values of a parameter make several experiments, which have to be queued: add --queue".into(),
        ));
    }
    if options.temp {
        return queue::run_apart(project, &request, talk);
    }
    let experiment = run::run(&mut project, &request, talk, super::pipeline::say(context)).await?;
    print_text(&format!(
        "\nRan experiment(s): {}\nExperiment results have been applied to your workspace.\n",
        experiment.name
    ));
    Ok(())
}

fn selection(commits: &cli::Commits) -> Selection {
    Selection { all_commits: commits.all_commits, revisions: commits.rev.clone(), number: commits.num }
}

fn request(options: &cli::Share) -> Request {
    Request {
        names: options.experiments.clone(),
        selection: selection(&options.commits),
        force: options.force,
        data: (!options.no_cache).then(|| (options.remote.clone(), options.jobs)),
    }
}

/// The names of the experiments with an outcome.
fn named(report: &share::Report, wanted: Transfer) -> Option<String> {
    let names: Vec<&str> =
        report.experiments.iter().filter(|(_, outcome)| *outcome == wanted).map(|(name, _)| name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn note_diverged(report: &share::Report, kept: &str) {
    if let Some(names) = named(report, Transfer::Diverged) {
        print_note(format_args!(
            "WARNING: another experiment has the same name: {names}. {kept} is kept; --force replaces it."
        ));
    }
}

fn print_objects(number: u64, verb: &str) {
    if let Some(text) = super::count(number, verb) {
        print_text(&format!("{text}\n"));
    }
}

fn list(git: &Git, options: &cli::List) -> Result<(), DataError> {
    let found = revision::list(git, &selection(&options.commits), options.git_remote.as_deref())?;
    let names = revision::describe(git)?;
    for (baseline, experiments) in found {
        if !options.name_only && !options.sha_only {
            let short = baseline.get(..7).unwrap_or(&baseline);
            print_text(&format!("{}:\n", names.get(&baseline).map_or(short, String::as_str)));
        }
        for Experiment { name, commit, .. } in experiments {
            let line = match (&options.git_remote, options.name_only, options.sha_only) {
                (_, true, _) => name,
                (_, _, true) => commit,
                (Some(_), ..) => format!("\t{name}"),
                _ => format!("\t{} [{name}]", &commit[..commit.len().min(7)]),
            };
            print_text(&format!("{line}\n"));
        }
    }
    Ok(())
}

fn show_table(context: &Context, project: &Project, options: cli::Show) -> Result<(), DataError> {
    let states = show::collect(
        project,
        &show::Options {
            selection: selection(&options.commits),
            all_branches: options.all_branches,
            all_tags: options.all_tags,
            hide_workspace: options.hide_workspace,
            only_dependencies: options.param_deps,
            unnamed: options.sha,
            hide_queued: options.hide_queued,
            hide_failed: options.hide_failed,
        },
    )?;
    if is_json(context, options.json) {
        print_text(&format!("{}\n", show::to_json(&states).to_text()));
        return Ok(());
    }
    let digits = options.precision.filter(|digits| *digits > 0);
    let rounding = match (options.csv, digits) {
        (true, None) => Rounding::None,
        (_, digits) => Rounding::Significant(digits.unwrap_or(PRECISION)),
    };
    let shown = table::to_table(
        &states,
        &table::Options {
            raw: options.csv,
            rounding,
            only_changed: options.only_changed,
            drop: options.drop,
            keep: options.keep,
            sort_by: options.sort_by.map(|name| (name, options.sort_order == "desc")),
        },
    )?;
    if shown.table.rows.is_empty() {
        return Ok(());
    }
    print_text(&match (options.csv, options.md) {
        (true, _) => shown.table.render(Form::Csv),
        (_, true) => shown.table.render(Form::Markdown),
        _ => shown.render(),
    });
    Ok(())
}

fn show_diff(context: &Context, project: &Project, options: &cli::Diff) -> Result<(), DataError> {
    let revisions = (options.a_rev.as_deref(), options.b_rev.as_deref());
    let Some((metrics, params)) = show::diff(project, revisions, options.all, options.param_deps)? else {
        return Ok(());
    };
    if is_json(context, options.json) {
        let value = changes_json(&[("metrics", &metrics), ("params", &params)]);
        print_text(&format!("{}\n", value.to_text()));
        return Ok(());
    }
    let digits = options.precision.filter(|digits| *digits > 0).unwrap_or(PRECISION);
    let parts = [("Metric", &metrics, Rounding::Significant(digits)), ("Param", &params, Rounding::None)];
    for (i, (title, part, rounding)) in parts.into_iter().enumerate() {
        if i > 0 {
            print_text("\n");
        }
        let revisions = (revisions.0.unwrap_or("HEAD"), revisions.1.unwrap_or("workspace"));
        let differences = Some("diff not supported");
        let shown = Shown { title, revisions, paths: !options.no_path, differences, rounding };
        print_table(&changes::to_table(part, shown), form(options.md));
    }
    Ok(())
}

fn remove(project: &Project, git: &Git, options: &cli::Remove) -> Result<(), DataError> {
    let commits = &options.commits;
    let by_commit = commits.all_commits || !commits.rev.is_empty();
    let is_any = by_commit || options.queue || !options.experiments.is_empty();
    if !is_any || (by_commit && !options.experiments.is_empty()) {
        return Err(DataError::Invalid(
            "give either names of experiments, or '--rev', '--all-commits' or '--queue'".into(),
        ));
    }
    let remote = options.git_remote.as_deref();
    let queue = Queue::of(project)?;
    let mut removed = match options.queue {
        true => queue.clear(&[TaskState::Queued])?,
        false => Vec::new(),
    };
    // A name is that of an experiment, of one in the queue, or of both.
    let tasks = if remote.is_none() { queue.named(&options.experiments)? } else { Vec::new() };
    let known = revision::all(git, remote)?;
    let is_task_only =
        |name: &&String| tasks.contains(*name) && !known.iter().any(|experiment| experiment.name == **name);
    let (only_tasks, names): (Vec<&String>, Vec<&String>) = options.experiments.iter().partition(is_task_only);
    let names: Vec<String> = names.into_iter().cloned().collect();
    let mut selected = match by_commit {
        true => revision::list(git, &selection(commits), remote)?.into_values().flatten().collect(),
        false => revision::find(git, &names, remote)?,
    };
    if options.keep {
        let kept = selected;
        selected = known.into_iter().filter(|experiment| !kept.contains(experiment)).collect();
    } else {
        removed.extend(only_tasks.into_iter().cloned());
        queue.remove(&tasks)?;
    }
    experiments::remove(git, &selected, remote)?;
    removed.extend(selected.into_iter().map(|experiment| experiment.name));
    let names: Vec<String> = removed.iter().map(|name| format!("'{name}'")).collect();
    print_text(&match names.split_last() {
        None => "No experiments to remove.\n".to_owned(),
        Some((last, [])) => format!("Removed experiments: {last}\n"),
        Some((last, others)) => format!("Removed experiments: {} and {last}\n", others.join(", ")),
    });
    Ok(())
}
