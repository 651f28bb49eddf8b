//! `slipway data`: versions data, interchangeably with DVC. Called through a link named `dvc`, the program takes DVC's command line and gives
//! its exit codes.

mod experiments;
mod external;
mod lineage;
mod pipeline;
mod plots;
mod queue;
mod reports;
mod repositories;
mod servers;
mod submitted;
mod upkeep;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{FromArgMatches, Subcommand};
use slipway_core::Explain;
use slipway_data::commands::checkout::{self, Report};
use slipway_data::commands::diff::Entry;
use slipway_data::commands::targets::{self, Expansion};
use slipway_data::commands::transfer::{self, cloud_status};
use slipway_data::commands::used::{Only, Scope};
use slipway_data::commands::{
    GitFiles, Talk, add, add_external, commit, diff, edit, gc, hooks, init, migrate, settings, status,
};
use slipway_data::config::Level;
use slipway_data::json::Json;
use slipway_data::project::{Project, find_root};
use slipway_data::{DataError, config};

use super::Context;
use crate::Failure;
use crate::cli::Format;
use crate::cli::data::experiments::Exp;
use crate::cli::data::upkeep::{GitHook, Upkeep};
use crate::cli::data::{self as cli, Data};
use crate::output::{confirm, print_note, print_text};

/// Whether the program was called through a link named `dvc`.
pub(crate) fn is_called_dvc() -> bool {
    let program = std::env::args_os().next().map(PathBuf::from);
    program.as_deref().and_then(Path::file_name).is_some_and(|name| name == "dvc")
}

/// The arguments in slipway's form: those of `dvc` become those of `slipway data`. The option `--cd PATH` changes the folder at once.
pub(crate) fn arguments() -> std::io::Result<Vec<OsString>> {
    let mut given = std::env::args_os();
    if !is_called_dvc() {
        return Ok(given.collect());
    }
    let mut arguments: Vec<OsString> = vec!["slipway".into(), "data".into()];
    given.next();
    while let Some(argument) = given.next() {
        // These letters have another meaning for all commands of slipway.
        let long = match argument.to_str() {
            Some("-o") => "--out",
            Some("-x") => "--x",
            Some("-y") => "--y",
            _ => "",
        };
        if arguments.get(2).is_some_and(|verb| verb == "plots") && !long.is_empty() {
            arguments.push(long.into());
        } else if arguments.len() == 2 && argument == "--cd" {
            std::env::set_current_dir(given.next().unwrap_or_default())?;
        } else if arguments.len() > 2 || argument != "--wait-for-lock" {
            // Waiting is what slipway always does.
            arguments.push(in_long_form(&arguments, argument));
        }
    }
    pipeline::use_long_form(&mut arguments);
    Ok(arguments)
}

/// The option `-o` of DVC's commands that copy data, in its long form: for slipway it is the format of the output.
fn in_long_form(before: &[OsString], argument: OsString) -> OsString {
    let takes_out =
        before.get(2).is_some_and(|verb| ["add", "get", "import", "artifacts"].iter().any(|name| verb == name));
    if !takes_out || before.iter().any(|argument| argument == "--") {
        return argument;
    }
    match argument.to_str().and_then(|text| text.strip_prefix("-o")) {
        Some("") => "--out".into(),
        Some(path) => format!("--out={path}").into(),
        None => argument,
    }
}

/// The user at the terminal.
struct Terminal<'a>(&'a Context);

impl Talk for Terminal<'_> {
    fn note(&self, text: &str) {
        print_note(format_args!("WARNING: {text}"));
    }

    fn tell(&self, text: &str) {
        if !self.0.global.quiet {
            print_text(&format!("{text}\n"));
        }
    }

    fn confirm(&self, question: &str) -> bool {
        confirm(&self.0.global, question)
    }
}

/// A failure with the exit code of DVC if the program was called by its name. `handled` says that DVC's command handles such failures itself.
fn failure(error: &DataError, handled: bool) -> Failure {
    let exit = match error {
        _ if is_called_dvc() => error.original_exit_code(handled),
        DataError::Usage(_) => 2,
        _ => 1,
    };
    Failure::Error { message: error.to_string(), code: error.code(), hint: error.hint(), exit }
}

pub(super) async fn run(context: &Context, verb: Data) -> Result<(), Failure> {
    if let Data::Lineage(options) = &verb {
        return lineage::lineage(context, options).await;
    }
    if let Data::Repositories(verb) = &verb {
        return repositories::run(context, verb).await;
    }
    // DVC's commands that handle their failures exit with 1, the others with 255.
    let handled = !matches!(
        verb,
        Data::Init(_)
            | Data::Checkout(_)
            | Data::Gc(_)
            | Data::Config(_)
            | Data::Remote(_)
            | Data::Cache(_)
            | Data::Params(_)
            | Data::Metrics(_)
            | Data::Root
            | Data::Upkeep(Upkeep::Data(_) | Upkeep::CheckIgnore(_) | Upkeep::Doctor)
            | Data::Stage(_)
            | Data::Repro(_)
            | Data::Queue(_)
            | Data::Dag(_)
    ) && !is_unhandled(&verb);
    let is_unprotect = matches!(verb, Data::Unprotect { .. });
    match dispatch(context, verb).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::Findings),
        // DVC's `unprotect` handles only failures of its own kind.
        Err(error @ DataError::Missing(_)) if is_unprotect => Err(failure(&error, false)),
        Err(error) => Err(failure(&error, handled)),
    }
}

/// Whether DVC leaves failures of a command on experiments or other repositories to its top level.
fn is_unhandled(verb: &Data) -> bool {
    use cli::external::{Artifacts, External};
    match verb {
        Data::Exp(verb) => !matches!(verb, Exp::Save(_) | Exp::Show(_) | Exp::Diff(_)),
        Data::Plots(cli::reports::Plots::Modify { .. }) => true,
        Data::External(External::Get(options)) => options.show_url,
        Data::External(External::Artifacts(Artifacts::Get(options))) => options.show_url,
        _ => false,
    }
}

/// Runs a command; false if it succeeded and has findings.
async fn dispatch(context: &Context, verb: Data) -> Result<bool, DataError> {
    let terminal = Terminal(context);
    let current = std::env::current_dir().map_err(|source| DataError::Io { path: ".".into(), source })?;
    let open_at = |folder: &Path| -> Result<Project, DataError> {
        let mut project = Project::open(folder, &|blocker| print_note(blocker))?;
        project.config.set_servers(servers::servers(context));
        Ok(project)
    };
    let open = || open_at(&current);
    match verb {
        Data::Init(options) => start(context, &current, &options)?,
        Data::Add(options) => {
            let how = add::Options { no_commit: options.no_commit, glob: options.glob, no_relink: options.no_relink };
            let mut project = open()?;
            let files = if options.to_remote || options.out.is_some() {
                add_elsewhere(&mut project, options, &terminal).await?
            } else {
                add::add(&mut project, &options.targets, &how)?
            };
            show_git_files(context, &project, &files);
        }
        Data::Status(options) => return show_status(context, &mut open()?, &options).await,
        Data::Commit(options) => {
            let how = commit::Options {
                force: options.force || context.global.yes,
                recursive: options.recursive,
                no_relink: options.no_relink,
            };
            let mut project = open()?;
            let targets = targets::expand(&project, &options.targets, with_deps(options.with_deps, options.recursive))?;
            commit::commit(&mut project, &targets, how, &terminal)?;
        }
        Data::Checkout(options) => {
            let how = checkout::Options {
                force: options.force,
                relink: options.relink,
                recursive: options.recursive,
                allow_missing: options.allow_missing,
            };
            let mut project = open()?;
            let targets = targets::expand(&project, &options.targets, with_deps(options.with_deps, options.recursive))?;
            let report = checkout::checkout(&mut project, &targets, how, &terminal)?;
            if options.summary {
                print_text(&format!("{}\n", summary(None, &report).unwrap_or_else(|| "No changes.".into())));
            } else {
                show_changes(&report);
            }
            fail_if_missing(report)?;
            if options.relink {
                print_text("Relinked successfully\n");
            }
        }
        Data::Remove { outs, targets } => drop(edit::remove(&mut open()?, &targets, outs)?),
        Data::Move { from, to } => {
            let mut project = open()?;
            let files = edit::rename(&mut project, &from, &to)?;
            show_git_files(context, &project, &files);
        }
        Data::Unprotect { targets } => edit::unprotect(&mut open()?, &targets)?,
        Data::Gc(options) => return collect_garbage(context, options, &open).await,
        Data::Diff(options) => {
            let found = diff::diff(&mut open()?, &options.a_rev, options.b_rev.as_deref(), &options.targets)?;
            show_diff(context, &found, &options);
        }
        Data::Push(options) => {
            let mut project = open()?;
            let targets = transfer_targets(&project, &options.share.transfer, options.glob)?;
            let sent = transfer::push(&mut project, &targets, &share_options(&options.share), &terminal).await?;
            print_text(&format!("{}\n", count(sent, "pushed").unwrap_or_else(|| "Everything is up to date.".into())));
        }
        Data::Fetch(options) => {
            let mut project = open()?;
            let targets = transfer_targets(&project, &options.share.transfer, false)?;
            let mut how = share_options(&options.share);
            let is = |name: &str| options.types.iter().any(|kind| kind == name);
            how.scope.only = Only { max_size: options.max_size, metrics: is("metrics"), plots: is("plots") };
            let received = transfer::fetch(&mut project, &targets, &how, &terminal).await?;
            print_text(&format!(
                "{}\n",
                count(received, "fetched").unwrap_or_else(|| "Everything is up to date.".into())
            ));
        }
        Data::Pull(options) => {
            let mut project = open()?;
            let targets = &transfer_targets(&project, &options.share.transfer, options.glob)?;
            let received = match transfer::fetch(&mut project, targets, &share_options(&options.share), &terminal).await
            {
                // What was received comes into the workspace, also if something else failed.
                Err(error @ DataError::Transfer { .. }) => Err(error),
                outcome => Ok(outcome?),
            };
            let how = checkout::Options {
                force: options.force,
                recursive: options.share.transfer.recursive,
                allow_missing: options.allow_missing,
                ..checkout::Options::default()
            };
            let report = checkout::checkout(&mut project, targets, how, &terminal)?;
            show_changes(&report);
            let received = received?;
            print_text(&format!(
                "{}\n",
                summary(Some(received), &report).unwrap_or_else(|| "Everything is up to date.".into())
            ));
            fail_if_missing(report)?;
        }
        Data::Remote(verb) => return remote(&current, verb),
        Data::Config(options) => show_config(&current, options)?,
        Data::Lineage(_) | Data::Repositories(_) => {} // `run` handles them, since they call a server.
        Data::Cache(cli::Cache::Dir { level, unset, path }) => cache_dir(&current, &level, unset, path)?,
        Data::Cache(cli::Cache::Migrate { dvc_files, dry }) => {
            let dry = dry || context.global.dry_run;
            show_migration(&migrate::migrate(&mut open()?, dvc_files, dry)?, dry);
        }
        Data::External(verb) => external::run(context, verb, &current, &open).await?,
        Data::Upkeep(Upkeep::GitHook(hook)) if !matches!(hook, GitHook::MergeDriver { .. }) => {
            return match hook_command(&hook, &current, &open)? {
                Some(verb) => Box::pin(dispatch(context, verb)).await,
                None => Ok(true),
            };
        }
        Data::Upkeep(verb) => return upkeep::run(context, verb, &current, &open).await,
        Data::Stage(cli::pipeline::Stage::Add(options)) => {
            pipeline::add(context, &mut open()?, &terminal, *options).await?;
        }
        Data::Stage(cli::pipeline::Stage::List(options)) => pipeline::list(&open()?, &options)?,
        Data::Repro(options) => pipeline::repro(context, &open, &terminal, *options).await?,
        Data::Dag(options) => pipeline::dag(&open()?, &options)?,
        Data::Freeze { targets } => return pipeline::freeze(&mut open()?, &targets, true),
        Data::Unfreeze { targets } => return pipeline::freeze(&mut open()?, &targets, false),
        Data::Params(verb) => reports::run_params(context, &open()?, verb)?,
        Data::Metrics(verb) => reports::run_metrics(context, &open()?, verb)?,
        Data::Plots(cli::reports::Plots::Templates { template }) => plots::templates(template.as_deref())?,
        Data::Plots(verb) => plots::run(context, &open()?, verb)?,
        Data::Exp(Exp::Run(options)) => experiments::run_pipeline(context, open()?, options, &terminal).await?,
        Data::Exp(Exp::QueueWorker { number }) => queue::work(&current, number).await?,
        Data::Exp(Exp::ExecRun(options)) => {
            return queue::execute(context, &current, options, &open_at, &terminal).await;
        }
        Data::Queue(verb) => queue::run(verb, &open).await?,
        Data::Exp(verb) => experiments::run(context, &mut open()?, verb, &terminal).await?,
        Data::Root => print_text(&format!("{}\n", config::relative_path(&find_root(&current)?, &current).display())),
    }
    Ok(true)
}

/// Tracks data that is elsewhere.
async fn add_elsewhere(
    project: &mut Project,
    options: cli::Add,
    terminal: &Terminal<'_>,
) -> Result<GitFiles, DataError> {
    let [target] = options.targets.as_slice() else {
        return Err(DataError::Invalid("--out and --to-remote take a single target".into()));
    };
    let how = add_external::Options {
        out: options.out,
        to_remote: options.to_remote.then_some(options.remote),
        jobs: options.remote_jobs,
        force: options.force,
    };
    add_external::add(project, target, &how, terminal).await
}

/// The command that a Git hook runs; `None` if there is nothing to do.
fn hook_command(
    hook: &GitHook,
    current: &Path,
    open: &dyn Fn() -> Result<Project, DataError>,
) -> Result<Option<Data>, DataError> {
    if !hooks::has_project(current) {
        return Ok(None);
    }
    let words: &[&str] = match hook {
        GitHook::PreCommit { .. } => &["status"],
        GitHook::PrePush { .. } => &["push"],
        GitHook::PostCheckout { arguments } if hooks::is_branch_checkout(&open()?, arguments) => &["checkout"],
        GitHook::PostCheckout { .. } | GitHook::MergeDriver { .. } => return Ok(None),
    };
    let parser = Data::augment_subcommands(clap::Command::new("data").no_binary_name(true));
    let matches = parser.try_get_matches_from(words).map_err(|error| DataError::Usage(error.to_string()))?;
    Data::from_arg_matches(&matches).map(Some).map_err(|error| DataError::Usage(error.to_string()))
}

fn start(context: &Context, current: &Path, options: &cli::Init) -> Result<(), DataError> {
    let folder = config::normalise(&current.join(&options.directory));
    let how = init::Options { no_scm: options.no_scm, subdir: options.subdir, force: options.force };
    init::init(&folder, how)?;
    if !context.global.quiet {
        print_text("Initialized DVC repository.\n\n");
        if !options.no_scm {
            print_text("You can now commit the changes to git.\n\n");
        }
    }
    Ok(())
}

/// Prints which files belong into Git, unless they are staged already.
fn show_git_files(context: &Context, project: &Project, files: &GitFiles) {
    if context.global.quiet || files.staged || files.files.is_empty() || project.git.is_none() {
        return;
    }
    let quote = |text: String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./-_".contains(c);
        if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\"'\"'")) }
    };
    let names: Vec<String> = files.files.iter().map(|file| quote(project.display(file))).collect();
    print_text(&format!(
        "\nTo track the changes with git, run:\n\n\tgit add {}\n\nTo enable auto staging, run:\n\n\tdvc config core.autostage true\n",
        names.join(" ")
    ));
}

fn with_deps(with_deps: bool, recursive: bool) -> Expansion {
    Expansion { glob: false, with_deps, recursive }
}

/// The targets of a transfer.
fn transfer_targets(project: &Project, options: &cli::Transfer, glob: bool) -> Result<Vec<String>, DataError> {
    let how = Expansion { glob, with_deps: options.with_deps, recursive: options.recursive };
    targets::expand(project, &options.targets, how)
}

fn transfer_options(options: &cli::Transfer) -> transfer::Options {
    let scope = Scope {
        all_branches: options.all_branches,
        all_tags: options.all_tags,
        all_commits: options.all_commits,
        ..Scope::default()
    };
    transfer::Options {
        remote: options.remote.clone(),
        jobs: options.jobs,
        recursive: options.recursive,
        run_cache: false,
        scope,
    }
}

fn share_options(options: &cli::Share) -> transfer::Options {
    transfer::Options { run_cache: options.run_cache, ..transfer_options(&options.transfer) }
}

async fn show_status(context: &Context, project: &mut Project, options: &cli::Status) -> Result<bool, DataError> {
    let json = options.json || matches!(context.global.output.format, Format::Json);
    let line = |indent: &str, word: &str, path: &str| format!("{indent}{:20}{path}\n", format!("{word}:"));
    let (text, value, is_clean, message);
    let targets = transfer_targets(project, &options.transfer, false)?;
    if options.cloud || options.transfer.remote.is_some() {
        let (changes, remote) = cloud_status(project, &targets, &transfer_options(&options.transfer)).await?;
        text = changes.iter().map(|(path, change)| line("\t", change.word(), path)).collect::<String>();
        value = Json::Map(changes.iter().map(|(path, change)| (path.clone(), Json::string(change.word()))).collect());
        is_clean = changes.is_empty();
        message = format!("Cache and remote '{remote}' are in sync.\n");
    } else {
        let (stages, total) = match options.no_updates {
            true => status::status(project, &targets, options.transfer.recursive)?,
            false => status::status_with_updates(project, &targets, options.transfer.recursive).await?,
        };
        let mut lines = String::new();
        let mut members = Vec::new();
        for stage in &stages {
            let items = pipeline::changes(stage);
            pipeline::show_changes(&mut lines, 0, &Json::Map(vec![(stage.address.clone(), Json::List(items.clone()))]));
            members.push((stage.address.clone(), Json::List(items)));
        }
        text = lines;
        value = Json::Map(members);
        is_clean = stages.is_empty();
        message = match total {
            0 => "There are no data or pipelines tracked in this project yet.\nSee <https://dvc.org/doc/start> to get started!\n".into(),
            _ => "Data and pipelines are up to date.\n".into(),
        };
    }
    if json {
        print_text(&format!("{}\n", value.to_text()));
    } else if context.global.quiet {
        return Ok(is_clean);
    } else {
        print_text(if is_clean { &message } else { &text });
    }
    Ok(true)
}

fn show_migration(report: &migrate::Report, dry: bool) {
    let count = report.objects;
    print_text(&match dry {
        true => format!("{count} files will be re-hashed and migrated to the DVC 3.0 cache location.\n"),
        false => format!("Migrated {count} files to DVC 3.0 cache location.\n"),
    });
    match report.files.as_deref() {
        None => {}
        Some([]) => print_text("No DVC files in the repo to migrate to the 3.0 format.\n"),
        Some(files) if dry => {
            print_text("Entries in following DVC files will be migrated to the 3.0 format:\n");
            files.iter().for_each(|file| print_text(&format!("\t{file}\n")));
        }
        Some(files) => files.iter().for_each(|file| print_text(&format!("Updating DVC file '{file}'\n"))),
    }
}

fn show_changes(report: &Report) {
    for (letter, list) in [('M', &report.modified), ('A', &report.added), ('D', &report.deleted)] {
        list.iter().for_each(|path| print_text(&format!("{letter}       {path}\n")));
    }
}

fn fail_if_missing(report: Report) -> Result<(), DataError> {
    if report.failed.is_empty() { Ok(()) } else { Err(DataError::NotInCache(report.failed)) }
}

/// `3 files pushed`
fn count(number: u64, verb: &str) -> Option<String> {
    (number > 0).then(|| format!("{number} file{} {verb}", if number > 1 { "s" } else { "" }))
}

fn summary(fetched: Option<u64>, report: &Report) -> Option<String> {
    let [added, modified, deleted] = report.files;
    let counts = [(fetched.unwrap_or(0), "fetched"), (modified, "modified"), (added, "added"), (deleted, "deleted")];
    let mut parts: Vec<String> = counts.into_iter().filter_map(|(number, verb)| count(number, verb)).collect();
    let last = parts.pop()?;
    Some(if parts.is_empty() { last } else { format!("{} and {last}", parts.join(", ")) })
}

async fn collect_garbage(
    context: &Context,
    options: cli::Gc,
    open: &dyn Fn() -> Result<Project, DataError>,
) -> Result<bool, DataError> {
    let any =
        options.workspace || options.all_branches || options.all_tags || options.all_commits || options.rev.is_some();
    if !any && !options.all_experiments && options.date.is_none() {
        return Err(DataError::Invalid(
            "Either of `-w|--workspace`, `-a|--all-branches`, `-T|--all-tags`, `-A|--all-commits`, `--all-experiments`, `--date` or `--rev` needs to be set.".into(),
        ));
    }
    if options.remote.is_some() && !options.cloud && !options.not_in_remote {
        return Err(DataError::Invalid("`--remote` requires `--cloud` or `--not-in-remote`".into()));
    }
    let mut kept = String::from("the workspace");
    for (flag, what) in [
        (options.all_commits, "all git commits"),
        (options.all_branches, "all git branches"),
        (options.all_tags, "all git tags"),
        (options.rev.is_some(), "the given revision"),
        (options.date.is_some(), "the git commits since the given day"),
        (options.all_experiments, "all experiments"),
    ] {
        kept.push_str(&if flag { format!(" and {what}") } else { String::new() });
    }
    let dry = options.dry || context.global.dry_run;
    let others: String = options.projects.iter().map(|path| format!("\n  - {}", path.display())).collect();
    let of = if others.is_empty() { "repo.".to_owned() } else { format!("and the following repos:{others}") };
    print_note(format_args!("WARNING: This will remove all cache except items used in {kept} of the current {of}"));
    if !options.force && !dry && !confirm(&context.global, "Are you sure you want to proceed?") {
        return Ok(false);
    }
    let scope = Scope {
        all_branches: options.all_branches,
        all_tags: options.all_tags,
        all_commits: options.all_commits,
        revision: options.rev.map(|rev| (rev, options.num.unwrap_or(1))),
        all_experiments: options.all_experiments,
        since: options.date,
        skip_failed: options.skip_failed,
        ..Scope::default()
    };
    let how = gc::Options {
        scope,
        cloud: options.cloud,
        not_in_remote: options.not_in_remote,
        remote: options.remote,
        jobs: options.jobs,
        dry,
        projects: options.projects,
    };
    let mut project = open()?;
    let report = gc::gc(&mut project, &how, &Terminal(context)).await?;
    if context.global.quiet {
        return Ok(true);
    }
    for (name, list, cache) in
        [("repo", &report.cache, &project.cache), ("legacy", &report.legacy, &project.legacy_cache)]
    {
        if dry {
            list.iter().for_each(|digest| print_text(&format!("Removing {}\n", cache.path(digest).display())));
        }
        print_text(&match list.len() {
            0 => format!("No unused '{name}' cache to remove.\n"),
            n => format!("Removed {n} objects from {name} cache.\n"),
        });
    }
    match report.remote.as_ref().map(Vec::len) {
        Some(0) => print_text("No unused cache to remove from remote.\n"),
        Some(n) => print_text(&format!("Removed {n} objects from remote.\n")),
        None => {}
    }
    Ok(true)
}

fn show_diff(context: &Context, found: &diff::Diff, options: &cli::Diff) {
    let hide_missing = options.b_rev.is_some() || options.hide_missing;
    let mut groups = vec![
        ("added", &found.added),
        ("deleted", &found.deleted),
        ("renamed", &found.renamed),
        ("modified", &found.modified),
    ];
    if !hide_missing {
        groups.push(("not in cache", &found.not_in_cache));
    }
    let short = |entry: &Entry| {
        let eight = |digest: &slipway_data::Digest| digest.to_string()[..8].to_owned();
        entry
            .digest
            .1
            .as_ref()
            .map_or_else(|| eight(&entry.digest.0), |new| format!("{}..{}", eight(&entry.digest.0), eight(new)))
    };
    let path = |entry: &Entry| {
        entry.path.1.as_ref().map_or_else(|| entry.path.0.clone(), |new| format!("{} -> {new}", entry.path.0))
    };
    if options.json || matches!(context.global.output.format, Format::Json) {
        return print_text(&format!("{}\n", diff_json(found, options.show_hash, hide_missing).to_text()));
    }
    if options.md {
        return print_text(&markdown(&groups, options.show_hash, &short, &path));
    }
    let mut parts = Vec::new();
    for (name, entries) in groups.into_iter().filter(|(_, entries)| !entries.is_empty()) {
        let mut title = name.to_owned();
        title[..1].make_ascii_uppercase();
        print_text(&format!("{title}:\n"));
        for entry in entries {
            let digest = if options.show_hash { format!("{}  ", short(entry)) } else { String::new() };
            print_text(&format!("    {digest}{}\n", path(entry)));
        }
        print_text("\n");
        let files = entries.iter().filter(|entry| !path(entry).ends_with('/')).count();
        if files > 0 {
            parts.push(format!("{files} {name}"));
        }
    }
    if !parts.is_empty() {
        print_text(&format!("files summary: {}\n", parts.join(", ")));
    }
}

fn diff_json(found: &diff::Diff, show_hash: bool, hide_missing: bool) -> Json {
    if found.is_empty() {
        return Json::Map(Vec::new());
    }
    let pair = |old: String, new: Option<String>| match new {
        Some(new) => Json::Map(vec![("old".into(), Json::String(old)), ("new".into(), Json::String(new))]),
        None => Json::String(old),
    };
    let list = |entries: &[Entry]| {
        let item = |entry: &Entry| {
            let mut members = vec![("path".to_owned(), pair(entry.path.0.clone(), entry.path.1.clone()))];
            if show_hash {
                members
                    .push(("hash".into(), pair(entry.digest.0.to_string(), entry.digest.1.map(|new| new.to_string()))));
            }
            Json::Map(members)
        };
        Json::List(entries.iter().map(item).collect())
    };
    let mut members = vec![
        ("added".to_owned(), list(&found.added)),
        ("deleted".into(), list(&found.deleted)),
        ("modified".into(), list(&found.modified)),
        ("renamed".into(), list(&found.renamed)),
    ];
    if !hide_missing {
        members.push(("not in cache".into(), list(&found.not_in_cache)));
    }
    Json::Map(members)
}

/// A table in the Markdown of GitHub, with columns as wide as their content.
fn markdown(
    groups: &[(&str, &Vec<Entry>)],
    show_hash: bool,
    short: &dyn Fn(&Entry) -> String,
    path: &dyn Fn(&Entry) -> String,
) -> String {
    let mut rows = vec![vec!["Status".to_owned(), "Hash".into(), "Path".into()]];
    for (name, entries) in groups {
        rows.extend(entries.iter().map(|entry| vec![(*name).to_owned(), short(entry), path(entry)]));
    }
    if !show_hash {
        rows.iter_mut().for_each(|row| drop(row.remove(1)));
    }
    let widths: Vec<usize> =
        (0..rows[0].len()).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!(" {cell:width$} ")).collect();
        text.push_str(&format!("|{}|\n", cells.join("|")));
        if i == 0 {
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
            text.push_str(&format!("|{}|\n", rules.join("|")));
        }
    }
    text + "\n"
}

/// Replaces tabs by spaces up to the next multiple of eight columns, as DVC's library for terminals does.
fn expand_tabs(line: &str) -> String {
    let mut text = String::new();
    for (i, part) in line.split('\t').enumerate() {
        if i > 0 {
            text.extend(std::iter::repeat_n(' ', 8 - text.chars().count() % 8));
        }
        text.push_str(part);
    }
    text
}

fn level(level: &cli::Level) -> Option<Level> {
    let levels = [
        (level.system, Level::System),
        (level.global, Level::Global),
        (level.project, Level::Project),
        (level.local, Level::Local),
    ];
    levels.into_iter().find(|(given, _)| *given).map(|(_, level)| level)
}

fn remote(current: &Path, verb: cli::Remote) -> Result<bool, DataError> {
    let files = settings::files(current);
    match verb {
        cli::Remote::Add { level: at, default, force, name, url } => {
            if default {
                print_text(&format!("Setting '{}' as a default remote.\n", name.to_lowercase()));
            }
            settings::add_remote(&files, &name, &url, default, force, level(&at))?;
        }
        cli::Remote::List { level: at } => {
            let default = settings::default_remote(&files, level(&at))?;
            for (name, url) in settings::remotes(&files, level(&at))? {
                let mark = if default.as_deref() == Some(&name) { "\t(default)" } else { "" };
                print_text(&format!("{}\n", expand_tabs(&format!("{name}\t{url}{mark}"))));
            }
        }
        cli::Remote::Modify { level: at, unset, name, option, value } => {
            let value = if unset { None } else { value };
            settings::modify_remote(&files, &name, &option, value.as_deref(), level(&at))?;
        }
        cli::Remote::Remove { level: at, name } => settings::remove_remote(&files, &name, level(&at))?,
        cli::Remote::Rename { level: at, name, new } => settings::rename_remote(&files, &name, &new, level(&at))?,
        cli::Remote::Default { level: at, unset, name } if unset || name.is_some() => {
            settings::set_default_remote(&files, name.as_deref(), level(&at))?;
        }
        cli::Remote::Default { level: at, .. } => match settings::default_remote(&files, level(&at))? {
            Some(name) => print_text(&format!("{name}\n")),
            None => {
                print_text("No default remote set\n");
                return Ok(false);
            }
        },
    }
    Ok(true)
}

fn show_config(current: &Path, options: cli::Config) -> Result<(), DataError> {
    let files = settings::files(current);
    let at = level(&options.level);
    let origin = |path: &Path| {
        let root = find_root(current).unwrap_or_default();
        let shown = path.strip_prefix(&root).unwrap_or(path).display();
        if options.show_origin { format!("{shown}\t") } else { String::new() }
    };
    if options.list {
        for (name, value, path) in settings::list(&files, at)? {
            print_text(&format!("{}{name}={value}\n", origin(&path)));
        }
        return Ok(());
    }
    let Some(name) = options.name else { return Ok(()) };
    if options.unset || options.value.is_some() {
        return settings::set(&files, &name, options.value.as_deref(), at);
    }
    if let Some((value, path)) = settings::get(&files, &name, at)? {
        print_text(&format!("{}{value}\n", origin(&path)));
    }
    Ok(())
}

fn cache_dir(current: &Path, at: &cli::Level, unset: bool, path: Option<String>) -> Result<(), DataError> {
    if unset || path.is_some() {
        return settings::set(&settings::files(current), "cache.dir", path.as_deref(), level(at));
    }
    print_text(&format!("{}\n", settings::cache_folder(current, level(at))?.display()));
    Ok(())
}
