//! `data params` and `data metrics`: tables and JSON of values.

use slipway_data::DataError;
use slipway_data::config::relative_path;
use slipway_data::json::Json;
use slipway_data::project::Project;
use slipway_data::reports::changes::{self, Changes, Shown};
use slipway_data::reports::python::Rounding;
use slipway_data::reports::revisions::Covered;
use slipway_data::reports::table::{Form, Table};
use slipway_data::reports::{self, Revision, metrics, params};

use crate::cli::Format;
use crate::cli::data::reports::{Comparison, Metrics, MetricsShow, Params};
use crate::commands::Context;
use crate::output::{print_note, print_text};

/// Digits after the point of metrics in tables, as in DVC.
pub(super) const PRECISION: usize = 5;

pub(super) fn run_params(context: &Context, project: &Project, verb: Params) -> Result<(), DataError> {
    let Params::Diff { diff, deps } = verb;
    let revisions = (diff.a_rev.as_str(), diff.b_rev.as_str());
    let targets: Vec<_> = diff.targets.iter().map(|target| project.absolute(target)).collect();
    let (changes, failed) = params::diff(project, revisions, &targets, diff.all, deps)?;
    note_failures("parameters", &failed);
    show_changes(context, project, &changes, &diff, "Param", None, Rounding::None);
    Ok(())
}

pub(super) fn run_metrics(context: &Context, project: &Project, verb: Metrics) -> Result<(), DataError> {
    match verb {
        Metrics::Show(options) => show_metrics(context, project, &options),
        Metrics::Diff { diff, precision, recursive: _ } => {
            let revisions = (diff.a_rev.as_str(), diff.b_rev.as_str());
            let targets: Vec<_> = diff.targets.iter().map(|target| project.absolute(target)).collect();
            let (changes, failed) = metrics::diff(project, revisions, &targets, diff.all)?;
            note_failures("metrics", &failed);
            show_changes(context, project, &changes, &diff, "Metric", Some("-"), decimals(precision));
            Ok(())
        }
    }
}

fn decimals(precision: Option<usize>) -> Rounding {
    Rounding::Decimals(precision.filter(|digits| *digits > 0).unwrap_or(PRECISION))
}

/// Whether the command prints JSON.
pub(super) fn is_json(context: &Context, flag: bool) -> bool {
    flag || matches!(context.global.output.format, Format::Json)
}

/// Prints a table, unless it has no rows.
pub(super) fn print_table(table: &Table, form: Form) {
    if !table.rows.is_empty() {
        print_text(&table.render(form));
    }
}

/// The form of a table.
pub(super) fn form(markdown: bool) -> Form {
    if markdown { Form::Markdown } else { Form::Text }
}

/// The path for a user in the current folder, of a path relative to the root.
fn shown(project: &Project, path: &str) -> String {
    relative_path(&project.root.join(path), &project.current).to_string_lossy().into_owned()
}

/// The revisions with paths for a user in the current folder.
fn shown_revisions(project: &Project, mut revisions: Vec<Revision>) -> Vec<Revision> {
    for (path, _) in revisions.iter_mut().flat_map(|revision| revision.files.iter_mut().flatten()) {
        *path = shown(project, path);
    }
    revisions
}

fn show_metrics(context: &Context, project: &Project, options: &MetricsShow) -> Result<(), DataError> {
    let targets: Vec<_> = options.targets.iter().map(|target| project.absolute(target)).collect();
    let covered = Covered {
        named: Vec::new(),
        all_branches: options.all_branches,
        all_tags: options.all_tags,
        all_commits: options.all_commits,
    };
    let found = shown_revisions(project, metrics::show(project, &targets, &covered)?);
    let failed: Vec<String> =
        found.iter().filter(|revision| revision.has_failures()).map(|revision| revision.name.clone()).collect();
    note_failures("metrics", &failed);
    if is_json(context, options.json) {
        print_text(&format!("{}\n", reports::to_json(&found).to_text()));
    } else {
        let several = options.all_branches || options.all_tags || options.all_commits;
        print_table(&metrics::to_table(&found, several, decimals(options.precision)), form(options.md));
    }
    Ok(())
}

fn note_failures(what: &str, revisions: &[String]) {
    if !revisions.is_empty() {
        let names: Vec<&str> =
            revisions.iter().map(|name| if name.is_empty() { "the workspace" } else { name.as_str() }).collect();
        print_note(format_args!("WARNING: some {what} could not be read in {}", names.join(", ")));
    }
}

fn show_changes(
    context: &Context,
    project: &Project,
    changes: &Changes,
    options: &Comparison,
    title: &str,
    differences: Option<&str>,
    rounding: Rounding,
) {
    let changes: Changes = changes.iter().map(|(path, values)| (shown(project, path), values.clone())).collect();
    if is_json(context, options.json) {
        return print_text(&format!("{}\n", changes::to_json(&changes).to_text()));
    }
    let revisions = (options.a_rev.as_str(), options.b_rev.as_str());
    let shown = Shown { title, revisions, paths: !options.no_path, differences, rounding };
    print_table(&changes::to_table(&changes, shown), form(options.md));
}

/// The changes as JSON, or an empty object.
pub(super) fn changes_json(parts: &[(&str, &Changes)]) -> Json {
    Json::Map(parts.iter().map(|(name, part)| ((*name).to_owned(), changes::to_json(part))).collect())
}
