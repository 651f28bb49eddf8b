//! Which objects a project uses, in the workspace and in commits.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::model::{Digest, HashName};
use crate::project::committed::stages_at;
use crate::project::{Project, Selected};
use crate::reports::definitions::Definitions;
use crate::stage::{Output, OutputKind, Stage};
use crate::tree::Tree;

/// Versions of the project beside the workspace.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// The last commit of every branch.
    pub all_branches: bool,
    /// The commit of every tag.
    pub all_tags: bool,
    /// All commits.
    pub all_commits: bool,
    /// Commits before a revision, with their number.
    pub revision: Option<(String, usize)>,
    /// These commits, and not the workspace.
    pub commits: Option<Vec<String>>,
    /// The commits of all experiments, and those in the queue.
    pub all_experiments: bool,
    /// The commits since a day, as `YYYY-MM-DD`.
    pub since: Option<String>,
    /// Commits whose files cannot be read are left out.
    pub skip_failed: bool,
    /// Which outputs of the versions count.
    pub only: Only,
}

/// Which outputs count.
#[derive(Debug, Clone, Default)]
pub struct Only {
    /// Those with less than this number of bytes.
    pub max_size: Option<u64>,
    /// Those that are metrics or plots; if neither is selected, all.
    pub metrics: bool,
    /// See `metrics`.
    pub plots: bool,
}

/// The outputs that pass, with the metrics and plots at the top of pipelines.
struct Filter<'a> {
    only: &'a Only,
    metrics: Vec<PathBuf>,
    plots: Vec<PathBuf>,
}

impl<'a> Filter<'a> {
    fn new(project: &Project, only: &'a Only) -> Result<Self, DataError> {
        let (mut metrics, mut plots) = (Vec::new(), Vec::new());
        if only.metrics || only.plots {
            let definitions = Definitions::read(&Tree::workspace(project)?)?;
            plots = definitions.top_plot_files();
            metrics = definitions.top_metrics;
        }
        Ok(Self { only, metrics, plots })
    }

    fn passes(&self, out: &Output) -> bool {
        let is_among = |paths: &[PathBuf]| out.path.as_ref().is_some_and(|path| paths.contains(path));
        let is_metric = || out.kind == OutputKind::Metric || is_among(&self.metrics);
        let is_plot = || matches!(out.kind, OutputKind::Plot(_)) || is_among(&self.plots);
        let is_small = match (self.only.max_size, out.meta.size) {
            (Some(limit), Some(size)) => size < limit,
            _ => true,
        };
        let any_type = !self.only.metrics && !self.only.plots;
        is_small && (any_type || (self.only.metrics && is_metric()) || (self.only.plots && is_plot()))
    }
}

impl Scope {
    /// Whether versions of commits are concerned.
    pub(super) fn has_commits(&self) -> bool {
        self.all_branches || self.all_tags || self.all_commits || self.revision.is_some() || self.commits.is_some()
    }
}

/// An object that is used.
#[derive(Debug, Clone)]
pub struct Object {
    /// The algorithm of the digest.
    pub hash: HashName,
    /// The digest.
    pub digest: Digest,
    /// The path of a file that has this content, for the user.
    pub name: String,
    /// The only remote that has it.
    pub remote: Option<String>,
    /// Whether it is imported from another repository, or from a bucket with versions, which has it, too.
    pub is_imported: bool,
}

impl Object {
    /// The algorithm and the digest, by which remotes know it.
    pub(super) fn id(&self) -> (HashName, Digest) {
        (self.hash, self.digest)
    }
}

/// The used objects.
#[derive(Debug, Default)]
pub struct Used {
    /// All of them; each once.
    pub objects: Vec<Object>,
    /// Manifests of folders that the cache lacks, so that the folders' files are not among the objects.
    pub missing_manifests: Vec<Object>,
    /// The stages among them that import from another repository, or from a bucket with versions, which have their data, too.
    pub imports: Vec<Stage>,
    seen: HashSet<(HashName, Digest, Option<String>)>,
}

impl Used {
    fn add(
        &mut self,
        project: &Project,
        selected: &Selected<'_>,
        for_push: bool,
        filter: &Filter<'_>,
    ) -> Result<(), DataError> {
        let is_imported = selected.stage.keeps_source();
        if is_imported {
            if for_push {
                return Ok(());
            }
            self.imports.push(selected.stage.clone());
        }
        for (out, part) in selected.outputs() {
            let (Some(digest), Some(path), true) = (out.digest, &out.path, out.cached) else { continue };
            if (for_push && !out.can_push) || !filter.passes(out) {
                continue;
            }
            let name = out.display(&project.current, &project.root);
            let object =
                |digest, name| Object { hash: out.hash, digest, name, remote: out.remote.clone(), is_imported };
            let is_new = self.insert(object(digest, name.clone()));
            if !digest.is_dir || (!is_new && part.is_none()) {
                continue;
            }
            let manifest = match project.cache_of(out.hash).manifest(&digest) {
                Ok(manifest) => manifest,
                Err(DataError::File { .. }) => None, // A damaged manifest counts as missing.
                Err(error) => return Err(error),
            };
            let Some(manifest) = manifest else {
                self.missing_manifests.push(object(digest, name));
                continue;
            };
            let prefix = part.map(|part| crate::config::relative_path(part, path));
            for entry in &manifest.entries {
                if prefix.as_ref().is_none_or(|prefix| Path::new(&entry.path).starts_with(prefix)) {
                    self.insert(object(entry.digest, format!("{name}/{}", entry.path)));
                }
            }
        }
        Ok(())
    }

    fn insert(&mut self, object: Object) -> bool {
        let is_new = self.seen.insert((object.hash, object.digest, object.remote.clone()));
        if is_new {
            self.objects.push(object);
        }
        is_new
    }
}

/// The objects of the targets, or of all outputs, in the workspace and in the commits of the scope.
///
/// # Errors
/// If a target does not exist, or a file cannot be read.
pub fn used_objects(
    project: &Project,
    targets: &[String],
    recursive: bool,
    scope: &Scope,
    for_push: bool,
) -> Result<Used, DataError> {
    let mut used = Used::default();
    let filter = Filter::new(project, &scope.only)?;
    if scope.commits.is_none() {
        let stages = project.stages()?;
        for selected in project.select(&stages, targets, recursive)? {
            used.add(project, &selected, for_push, &filter)?;
        }
    }
    for commit in commits(project, scope)? {
        let stages = match stages_at(project, &commit) {
            Err(_) if scope.skip_failed => continue,
            stages => stages?,
        };
        // A target need not exist in every commit.
        for selected in project.select(&stages, targets, recursive).unwrap_or_default() {
            used.add(project, &selected, for_push, &filter)?;
        }
    }
    Ok(used)
}

pub(super) fn commits(project: &Project, scope: &Scope) -> Result<Vec<String>, DataError> {
    let Some(git) = &project.git else { return Ok(Vec::new()) };
    let mut commits = scope.commits.clone().unwrap_or_default();
    if scope.all_branches || scope.all_tags || scope.all_commits {
        commits.extend(git.commits(scope.all_branches, scope.all_tags, scope.all_commits)?);
    }
    if scope.all_experiments {
        commits.extend(crate::revision::all(git, None)?.into_iter().map(|experiment| experiment.commit));
        commits.extend(git.stashed(crate::revision::QUEUE)?.into_iter().map(|stashed| stashed.commit));
    }
    if let Some(day) = &scope.since {
        commits.extend(git.commits_since(day)?);
    }
    if let Some((revision, count)) = &scope.revision {
        commits.extend(git.history(revision, *count)?);
    }
    Ok(commits)
}
