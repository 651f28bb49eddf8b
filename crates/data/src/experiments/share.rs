//! `exp push` and `exp pull`: experiments of other Git repositories, and their data.

use crate::commands::transfer::{self, Options};
use crate::commands::{Talk, used::Scope};
use crate::error::DataError;
use crate::project::Project;
use crate::revision::{Experiment, Selection, all, find, list, repository};
use crate::scm::{Git, Transfer};

/// What to send or receive.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Names of experiments; by default those of the selection.
    pub names: Vec<String>,
    /// The experiments of commits.
    pub selection: Selection,
    /// Replace other experiments with the same name.
    pub force: bool,
    /// Send or receive their data, too, from or to this remote for data with this number of concurrent transfers.
    pub data: Option<(Option<String>, Option<usize>)>,
}

/// What was sent or received.
#[derive(Debug, Default)]
pub struct Report {
    /// The names of the experiments.
    pub experiments: Vec<(String, Transfer)>,
    /// Number of objects of the cache.
    pub objects: u64,
}

/// Sends experiments to a Git remote, and their data to a remote for data.
///
/// # Errors
/// If there is no such experiment, or a remote cannot be reached.
pub async fn push(
    project: &mut Project,
    remote: &str,
    request: &Request,
    talk: &dyn Talk,
) -> Result<Report, DataError> {
    let git = project.git.clone();
    let (git, _) = repository(git.as_ref())?;
    let experiments = selected(git, request, None)?;
    let references: Vec<String> = experiments.iter().map(Experiment::reference).collect();
    let outcomes = match references.as_slice() {
        [] => Vec::new(),
        references => git.send_references(remote, references, request.force, false)?,
    };
    let (mut report, shared) = report(experiments, &outcomes);
    if let (Some(options), false) = (data_options(git, request, &shared)?, shared.is_empty()) {
        report.objects = transfer::push(project, &[], &options, talk).await?;
    }
    Ok(report)
}

/// Receives experiments from a Git remote, and their data into the cache.
///
/// # Errors
/// If there is no such experiment, or a remote cannot be reached.
pub async fn pull(
    project: &mut Project,
    remote: &str,
    request: &Request,
    talk: &dyn Talk,
) -> Result<Report, DataError> {
    let git = project.git.clone();
    let (git, _) = repository(git.as_ref())?;
    let experiments = selected(git, request, Some(remote))?;
    let references: Vec<_> = experiments.iter().map(|e| (e.reference(), e.commit.clone())).collect();
    let outcomes = git.receive_references(remote, &references, request.force)?;
    let (mut report, shared) = report(experiments, &outcomes);
    if let (Some(options), false) = (data_options(git, request, &shared)?, shared.is_empty()) {
        report.objects = transfer::fetch(project, &[], &options, talk).await?;
    }
    Ok(report)
}

fn selected(git: &Git, request: &Request, remote: Option<&str>) -> Result<Vec<Experiment>, DataError> {
    if request.selection.all_commits {
        return all(git, remote);
    }
    if !request.names.is_empty() {
        return find(git, &request.names, remote);
    }
    Ok(list(git, &request.selection, remote)?.into_values().flatten().collect())
}

/// The report, and the experiments that both sides have now.
fn report(experiments: Vec<Experiment>, outcomes: &[(String, Transfer)]) -> (Report, Vec<Experiment>) {
    let mut report = Report::default();
    let mut shared = Vec::new();
    for experiment in experiments {
        let reference = experiment.reference();
        let outcome = outcomes.iter().find(|(name, _)| *name == reference).map(|(_, outcome)| *outcome);
        let outcome = outcome.unwrap_or(Transfer::UpToDate); // Only references that differ are reported.
        report.experiments.push((experiment.name.clone(), outcome));
        if outcome != Transfer::Diverged {
            shared.push(experiment);
        }
    }
    (report, shared)
}

fn data_options(git: &Git, request: &Request, experiments: &[Experiment]) -> Result<Option<Options>, DataError> {
    let Some((remote, jobs)) = &request.data else { return Ok(None) };
    let mut commits = Vec::new();
    for experiment in experiments {
        commits.extend(git.commits_between(&experiment.commit, &experiment.baseline)?);
    }
    let scope = Scope { commits: Some(commits), ..Scope::default() };
    Ok(Some(Options { remote: remote.clone(), jobs: *jobs, scope, ..Options::default() }))
}
