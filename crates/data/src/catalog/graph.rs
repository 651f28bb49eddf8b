//! The graph of stages at a revision, and which of them are stale: what they would read from this commit is not what their last run recorded.

use std::path::Path;

use md5::{Digest as _, Md5};
use schemars::JsonSchema;
use serde::Serialize;

use super::objects::below;
use super::opened::Opened;
use crate::commands::graph::Graph;
use crate::commands::status::{ParametersChange, difference_of};
use crate::error::DataError;
use crate::manifest::{Entry, Manifest};
use crate::model::{Digest, HashName};
use crate::pipeline::params::parse;
use crate::reports::python::{self, Rounding};
use crate::scm::{Blobs, Object};
use crate::stage::{Output, Parameters, Stage};

/// Maximum number of stages in a drawing.
const MAX_STAGES: usize = 1000;
/// Maximum number of files of a folder in Git whose digest is computed.
const MAX_GIT_FILES: usize = 500;
/// Maximum number of paths of a stage that are listed.
const MAX_PATHS: usize = 20;

/// A stage or `.dvc` file.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataStage")]
pub struct StageNode {
    /// The name for the user.
    pub name: String,
    /// The `.dvc` file or `dvc.yaml`.
    pub file: String,
    /// Whether it has a command, instead of only tracking data.
    pub has_command: bool,
    /// The command.
    pub command: Option<String>,
    /// The first 20 paths that it depends on.
    pub deps: Vec<String>,
    /// The first 20 paths that it writes.
    pub outs: Vec<String>,
    /// Whether changes of its dependencies are ignored.
    pub is_frozen: bool,
    /// Why its outputs are not those of this commit's inputs; empty if they are.
    pub reasons: Vec<String>,
    /// Whether it depends on a stage with such a reason, so that running that stage may change its inputs.
    pub is_behind: bool,
}

/// The graph of stages.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataStages")]
pub struct StageGraph {
    /// The commit.
    pub commit: String,
    /// The stages.
    pub stages: Vec<StageNode>,
    /// Edges from a stage to one that depends on it, as indices of `stages`.
    pub edges: Vec<(usize, usize)>,
}

impl Opened {
    /// The graph of stages.
    ///
    /// # Errors
    /// If the stages cannot be read, overlap or form a cycle; [`DataError::Limit`] for more than 1000.
    pub fn stage_graph(&self) -> Result<StageGraph, DataError> {
        let stages = self.stages()?;
        if stages.len() > MAX_STAGES {
            return Err(DataError::Limit(format!("a graph shows at most {MAX_STAGES} stages")));
        }
        let graph = Graph::new(&self.project, &stages)?;
        let blobs = Blobs::open(&self.git)?;
        let inputs = Inputs { opened: self, stages: &stages, blobs: &blobs };
        let reasons: Vec<Vec<String>> =
            stages.iter().map(|stage| inputs.reasons(stage)).collect::<Result<_, DataError>>()?;
        let stale: Vec<usize> = (0..stages.len()).filter(|i| !reasons[*i].is_empty()).collect();
        let behind = graph.with_dependents(&stale);
        let mut edges = Vec::new();
        for i in 0..stages.len() {
            edges.extend(graph.dependencies(i).iter().map(|dependency| (*dependency, i)));
        }
        let node = |(i, (stage, reasons)): (usize, (&Stage, Vec<String>))| StageNode {
            name: stage.address(&self.project.root),
            file: self.shown(&stage.file),
            has_command: stage.recipe.is_some(),
            command: stage.recipe.as_ref().map(|recipe| python::text(&recipe.command, Rounding::None)),
            deps: self.paths(&stage.deps),
            outs: self.paths(&stage.outs),
            is_frozen: stage.frozen,
            is_behind: reasons.is_empty() && !stage.frozen && behind.contains(&i),
            reasons,
        };
        let nodes = stages.iter().zip(reasons).enumerate().map(node).collect();
        Ok(StageGraph { commit: self.commit.clone(), stages: nodes, edges })
    }

    fn paths(&self, outputs: &[Output]) -> Vec<String> {
        let path = |output: &Output| output.path.as_deref().map_or_else(|| output.written.clone(), |p| self.shown(p));
        outputs.iter().take(MAX_PATHS).map(path).collect()
    }
}

/// What stages would read from the commit.
struct Inputs<'a> {
    opened: &'a Opened,
    stages: &'a [Stage],
    blobs: &'a Blobs,
}

impl Inputs<'_> {
    fn reasons(&self, stage: &Stage) -> Result<Vec<String>, DataError> {
        self.opened.project.allowance.check()?;
        let mut reasons = Vec::new();
        let Some(recipe) = &stage.recipe else {
            if stage.outs.iter().any(|out| out.cached && out.digest.is_none()) {
                reasons.push("no digest is recorded".into());
            }
            return Ok(reasons);
        };
        if stage.frozen {
            return Ok(reasons);
        }
        let all = || stage.deps.iter().chain(&stage.outs);
        if all().next().is_some() && all().all(|path| path.digest.is_none()) {
            return Ok(vec!["it was never run".into()]);
        }
        if stage.is_always_changed() {
            reasons.push("it always runs".into());
        }
        if recipe.command_changed {
            reasons.push("the command changed".into());
        }
        for dep in &stage.deps {
            let Some(path) = &dep.path else { continue };
            let present = self.digest(path)?;
            let shown = self.opened.shown(path);
            match (present, dep.digest) {
                // DVC 2 converted line ends before it computed the digest.
                _ if dep.hash == HashName::Dos2Unix => {}
                (Present::Unknown, _) => {}
                (Present::Missing, _) => reasons.push(format!("'{shown}' is missing")),
                (Present::Digest(_), None) => reasons.push(format!("'{shown}' is new")),
                (Present::Digest(present), Some(recorded)) if present != recorded => {
                    reasons.push(format!("'{shown}' changed"));
                }
                _ => {}
            }
        }
        for parameters in &recipe.params {
            reasons.extend(self.parameters(parameters)?);
        }
        for out in stage.outs.iter().filter(|out| out.digest.is_none() && out.path.is_some()) {
            reasons.push(format!("'{}' is not recorded", self.opened.paths(std::slice::from_ref(out)).concat()));
        }
        Ok(reasons)
    }

    fn parameters(&self, parameters: &Parameters) -> Result<Option<String>, DataError> {
        let shown = self.opened.shown(&parameters.path);
        let values = match self.blobs.get(&self.opened.commit, &parameters.path)? {
            Some(Object::Blob(bytes)) => Some(parse(&parameters.path, &String::from_utf8_lossy(&bytes))?),
            _ => None,
        };
        Ok(difference_of(parameters, values.as_ref()).map(|change| match change {
            ParametersChange::File(change) => format!("'{shown}' is {}", change.word()),
            ParametersChange::Keys(keys) => {
                let names: Vec<&str> = keys.iter().map(|(name, _)| name.as_str()).collect();
                format!("parameters of '{shown}' changed: {}", names.join(", "))
            }
        }))
    }

    /// The digest of a file or folder in the commit: as DVC tracks it, or as it is in Git.
    fn digest(&self, path: &Path) -> Result<Present, DataError> {
        if let Ok((_, output, part)) = self.opened.output(self.stages, path) {
            let Some(digest) = output.digest else { return Ok(Present::Missing) };
            if part.is_empty() {
                return Ok(Present::Digest(digest));
            }
            // A part of a folder is compared if the list of its files is here.
            let cache = self.opened.project.cache_of(output.hash);
            let is_here = cache.path(&digest).is_file();
            let manifest = is_here.then(|| self.opened.manifest(output, &digest)).and_then(Result::ok);
            let Some(manifest) = manifest else { return Ok(Present::Unknown) };
            let entry = |(path, digest): (&str, &Digest)| Entry { path: path.into(), digest: *digest, size: None };
            let files: Vec<Entry> = below(&manifest, &part).map(entry).collect();
            return Ok(match files.as_slice() {
                [] => Present::Missing,
                [only] if only.path.is_empty() => Present::Digest(only.digest),
                _ => Present::Digest(Manifest::new(files).digest()),
            });
        }
        let read = |path: &Path| self.blobs.get(&self.opened.commit, path);
        match read(path)? {
            None => Ok(Present::Missing),
            Some(Object::Blob(bytes)) => Ok(Present::Digest(Digest::of_file(Md5::digest(&bytes).into()))),
            Some(Object::Tree) => {
                let files = self.opened.git.paths_below(&self.opened.commit, path)?;
                if files.len() > MAX_GIT_FILES {
                    return Ok(Present::Unknown);
                }
                let mut entries = Vec::new();
                for file in files {
                    let Some(Object::Blob(bytes)) = read(&file)? else { return Ok(Present::Unknown) };
                    let below = file.strip_prefix(path).unwrap_or(&file).to_string_lossy().into_owned();
                    let digest = Digest::of_file(Md5::digest(&bytes).into());
                    entries.push(Entry { path: below, digest, size: None });
                }
                Ok(Present::Digest(Manifest::new(entries).digest()))
            }
        }
    }
}

/// What a commit has at a path.
enum Present {
    Digest(Digest),
    Missing,
    /// It would cost too much to know.
    Unknown,
}
