//! `data exp`: experiments.

use slipway_data::DataError;
use slipway_data::commands::Talk;
use slipway_data::experiments::share::{self, Request};
use slipway_data::experiments::{self, apply, overrides, run, save, show, table};
use slipway_data::json::Json;
use slipway_data::project::Project;
use slipway_data::reports::changes::{self, Shown};
use slipway_data::reports::python::Rounding;
use slipway_data::reports::table::Form;
use slipway_data::revision::{self, Experiment, Selection, repository};
use slipway_data::scm::{Git, Transfer};

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
            };
            let saved = save::save(project, &options.targets, &how, talk)?;
            if is_json(context, options.json) {
                let value = Json::Map(vec![("ref".into(), Json::string(saved.commit))]);
                print_text(&format!("{}\n", value.to_text()));
            } else {
                print_text(&format!("Experiment has been saved as: {}\n", saved.name));
            }
        }
        cli::Exp::Run(options) => run_pipeline(context, project, options, talk).await?,
        cli::Exp::List(options) => list(git()?, &options)?,
        cli::Exp::Show(options) => show_table(context, project, options)?,
        cli::Exp::Diff(options) => show_diff(context, project, &options)?,
        cli::Exp::Apply { experiment } => {
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
        cli::Exp::Remove(options) => remove(git()?, &options)?,
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
    }
    Ok(())
}

async fn run_pipeline(
    context: &Context,
    project: &mut Project,
    options: cli::Run,
    talk: &dyn Talk,
) -> Result<(), DataError> {
    let mut combinations = overrides::combinations(&options.set_param)?;
    let params = combinations.pop().unwrap_or_default();
    if !combinations.is_empty() {
        return Err(DataError::Invalid(
            "several values of a parameter make several experiments; run them one by one, each with '-S NAME=VALUE'"
                .into(),
        ));
    }
    if options.repro.dry {
        return Err(DataError::Invalid("an experiment cannot be run dry; `repro --dry` shows the commands".into()));
    }
    let request = run::Request {
        name: options.name,
        message: options.message,
        params,
        repro: super::pipeline::repro_options(context, project, &options.repro),
        targets: options.repro.targets,
    };
    let say = super::pipeline::say(context);
    let experiment = run::run(project, &request, talk, say).await?;
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

fn remove(git: &Git, options: &cli::Remove) -> Result<(), DataError> {
    let commits = &options.commits;
    let by_commit = commits.all_commits || !commits.rev.is_empty();
    if by_commit != options.experiments.is_empty() {
        return Err(DataError::Invalid("give either names of experiments, or '--rev' or '--all-commits'".into()));
    }
    let remote = options.git_remote.as_deref();
    let mut selected = match by_commit {
        true => revision::list(git, &selection(commits), remote)?.into_values().flatten().collect(),
        false => revision::find(git, &options.experiments, remote)?,
    };
    if options.keep {
        let kept = selected;
        selected = revision::all(git, remote)?.into_iter().filter(|experiment| !kept.contains(experiment)).collect();
    }
    experiments::remove(git, &selected, remote)?;
    let names: Vec<String> = selected.iter().map(|experiment| format!("'{}'", experiment.name)).collect();
    print_text(&match names.split_last() {
        None => "No experiments to remove.\n".to_owned(),
        Some((last, [])) => format!("Removed experiments: {last}\n"),
        Some((last, others)) => format!("Removed experiments: {} and {last}\n", others.join(", ")),
    });
    Ok(())
}
