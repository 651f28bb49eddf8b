//! The commands of `slipway data` about the project itself.

use std::path::Path;

use slipway_data::commands::data_status::{self, Changes, Status};
use slipway_data::commands::used::Scope;
use slipway_data::commands::{about, check_ignore, destroy, hooks, verify};
use slipway_data::json::Json;
use slipway_data::project::Project;
use slipway_data::{DataError, Digest};

use super::is_called_dvc;
use crate::cli::Format;
use crate::cli::data::upkeep as cli;
use crate::commands::Context;
use crate::output::{confirm, print_note, print_text};

/// Runs a command about the project; false if it succeeded and has findings. Hooks are run by the caller.
pub(super) async fn run(
    context: &Context,
    verb: cli::Upkeep,
    current: &Path,
    open: &dyn Fn() -> Result<Project, DataError>,
) -> Result<bool, DataError> {
    match verb {
        cli::Upkeep::Data(cli::DataVerb::Status(options)) => {
            let how = data_status::Options {
                granular: options.granular,
                untracked: options.untracked_files == "all",
                not_in_remote: options.not_in_remote,
                no_remote_refresh: options.no_remote_refresh,
                remote: options.remote.clone(),
            };
            let status = data_status::data_status(&mut open()?, &options.targets, &how).await?;
            if options.json || matches!(context.global.output.format, Format::Json) {
                print_text(&format!("{}\n", status_json(&status, options.unchanged).to_text()));
            } else if !context.global.quiet {
                print_text(&status_text(&status, options.unchanged));
            }
        }
        cli::Upkeep::Verify(options) => return verify_objects(context, options, open).await,
        cli::Upkeep::CheckIgnore(options) => return check_ignored(context, &options, &open()?),
        cli::Upkeep::Destroy { force } => {
            let project = open()?;
            let question = "This will destroy all information about your pipelines, all data files, as well as cache in .dvc/cache.\nAre you sure you want to continue?";
            if !force && !confirm(&context.global, question) {
                let reason = "cannot destroy without a confirmation from the user. Use `-f` to force.";
                return Err(DataError::Invalid(reason.into()));
            }
            destroy::destroy(project)?;
        }
        cli::Upkeep::Install { use_pre_commit_tool } => {
            let program = if is_called_dvc() { "dvc" } else { "slipway data" };
            hooks::install(&open()?, program, use_pre_commit_tool)?;
        }
        cli::Upkeep::GitHook(cli::GitHook::MergeDriver { ancestor, our, their }) => {
            hooks::merge(&open()?, &ancestor, &our, &their)?;
        }
        cli::Upkeep::GitHook(_) => {}
        cli::Upkeep::Doctor => print_text(&format!("{}\n", about::about(env!("CARGO_PKG_VERSION"), current)?)),
    }
    Ok(true)
}

fn check_ignored(context: &Context, options: &cli::CheckIgnore, project: &Project) -> Result<bool, DataError> {
    if context.global.quiet && options.details {
        return Err(DataError::Invalid("cannot use both `--details` and `--quiet`".into()));
    }
    let mut any = false;
    let mut check = |target: &str| -> Result<(), DataError> {
        let decision = check_ignore::check_ignore(project, target)?;
        if options.details {
            let rule = decision.as_ref().map(|decision| check_ignore::describe(project, decision));
            if let Some(rule) = rule.clone().or_else(|| options.non_matching.then(|| "::".to_owned())) {
                print_text(&format!("{rule}\t{target}\n"));
            }
            any |= rule.is_some();
        } else if decision.is_some_and(|decision| decision.is_ignored) {
            if !context.global.quiet {
                print_text(&format!("{target}\n"));
            }
            any = true;
        }
        Ok(())
    };
    options.targets.iter().try_for_each(|target| check(target))?;
    if options.stdin {
        for line in std::io::stdin().lines() {
            let line = line.map_err(|source| DataError::Io { path: "standard input".into(), source })?;
            if line.is_empty() {
                break;
            }
            check(&line)?;
        }
    }
    Ok(any)
}

async fn verify_objects(
    context: &Context,
    options: cli::Verify,
    open: &dyn Fn() -> Result<Project, DataError>,
) -> Result<bool, DataError> {
    let how = verify::Options {
        remote: (options.cloud || options.remote.is_some()).then_some(options.remote),
        scope: Scope {
            all_branches: options.all_branches,
            all_tags: options.all_tags,
            all_commits: options.all_commits,
            ..Scope::default()
        },
        remove: options.remove && !context.global.dry_run,
        jobs: options.jobs,
    };
    let report = verify::verify(&mut open()?, &how).await?;
    if options.json || matches!(context.global.output.format, Format::Json) {
        let list = |items: &[(Digest, String)], name: &str| {
            let item = |(digest, place): &(Digest, String)| {
                Json::Map(vec![
                    ("md5".into(), Json::string(digest.to_string())),
                    (name.to_owned(), Json::string(place)),
                ])
            };
            Json::List(items.iter().map(item).collect())
        };
        let value = Json::Map(vec![
            ("verified".into(), Json::Number(report.verified.to_string())),
            ("damaged".into(), list(&report.damaged, "place")),
            ("missing".into(), list(&report.missing, "path")),
        ]);
        print_text(&format!("{}\n", value.to_text()));
    } else {
        let word = if how.remove { "removed" } else { "damaged" };
        report.damaged.iter().for_each(|(digest, place)| print_text(&format!("{word}  {digest}  {place}\n")));
        report.missing.iter().for_each(|(digest, path)| print_text(&format!("missing  {digest}  {path}\n")));
        print_note(format_args!(
            "{} objects verified: {} damaged, {} missing",
            report.verified,
            report.damaged.len(),
            report.missing.len()
        ));
    }
    Ok(report.damaged.is_empty() && report.missing.is_empty())
}

/// The lists of changes with DVC's words.
fn lists(changes: &Changes) -> [(&'static str, &Vec<String>); 4] {
    [
        ("modified", &changes.modified),
        ("added", &changes.added),
        ("deleted", &changes.deleted),
        ("unknown", &changes.unknown),
    ]
}

fn changes_text(changes: &Changes) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (word, paths) in lists(changes) {
        lines.extend(paths.iter().map(|path| format!("{word}: {path}")));
    }
    lines.extend(changes.renamed.iter().map(|(old, new)| format!("renamed: {old} -> {new}")));
    lines
}

fn status_text(status: &Status, with_unchanged: bool) -> String {
    let mut groups = vec![
        ("Not in cache", vec!["use \"dvc fetch <file>...\" to download files"], status.not_in_cache.clone()),
        ("Not in remote", vec!["use \"dvc push <file>...\" to upload files"], status.not_in_remote.clone()),
        (
            "DVC committed changes",
            vec!["git commit the corresponding dvc files to update the repo"],
            changes_text(&status.committed),
        ),
        (
            "DVC uncommitted changes",
            vec!["use \"dvc commit <file>...\" to track changes", "use \"dvc checkout <file>...\" to discard changes"],
            changes_text(&status.uncommitted),
        ),
        (
            "Untracked files",
            vec!["use \"git add <file> ...\" or \"dvc add <file>...\" to commit to git or to dvc"],
            status.untracked.clone(),
        ),
    ];
    if with_unchanged {
        groups.push(("DVC unchanged files", Vec::new(), status.unchanged.clone()));
    }
    groups.retain(|(_, _, items)| !items.is_empty());
    let mut text = String::new();
    if groups.is_empty() {
        let is_empty = status.git.as_ref().is_some_and(|git| !git.has_commits);
        text.push_str(if is_empty { "No changes in an empty git repo.\n" } else { "No changes.\n" });
    }
    let other = if groups.is_empty() { "" } else { "other " };
    for (i, (title, hints, items)) in groups.iter().enumerate() {
        text.push_str(if i > 0 { "\n" } else { "" });
        text.push_str(&format!("{title}:\n"));
        hints.iter().for_each(|hint| text.push_str(&format!("  ({hint})\n")));
        items.iter().for_each(|item| text.push_str(&format!("        {item}\n")));
    }
    if status.git.as_ref().is_some_and(|git| git.is_dirty) {
        text.push_str(&format!("(there are {other}changes not tracked by dvc, use \"git status\" to see)\n"));
    }
    text
}

/// The parts of the status that are not empty.
fn status_json(status: &Status, with_unchanged: bool) -> Json {
    let paths = |list: &[String]| Json::List(list.iter().map(Json::string).collect());
    let changes = |changes: &Changes| {
        let mut members: Vec<(String, Json)> = lists(changes)
            .into_iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(word, list)| (word.to_owned(), paths(list)))
            .collect();
        if !changes.renamed.is_empty() {
            let pair = |(old, new): &(String, String)| {
                Json::Map(vec![("old".into(), Json::string(old)), ("new".into(), Json::string(new))])
            };
            members.push(("renamed".into(), Json::List(changes.renamed.iter().map(pair).collect())));
        }
        Json::Map(members)
    };
    let mut members = vec![
        ("not_in_cache".to_owned(), paths(&status.not_in_cache)),
        ("not_in_remote".into(), paths(&status.not_in_remote)),
        ("committed".into(), changes(&status.committed)),
        ("uncommitted".into(), changes(&status.uncommitted)),
        ("untracked".into(), paths(&status.untracked)),
    ];
    if with_unchanged {
        members.push(("unchanged".into(), paths(&status.unchanged)));
    }
    members.retain(|(_, value)| !matches!(value, Json::List(items) if items.is_empty()));
    members.retain(|(_, value)| !matches!(value, Json::Map(items) if items.is_empty()));
    Json::Map(members)
}
