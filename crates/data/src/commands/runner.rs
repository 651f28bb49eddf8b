//! The seam between `repro` and executors of stages that are not processes of this program: submitted runs.

use std::fmt::Debug;
use std::path::PathBuf;

use futures_util::future::BoxFuture;

use super::elsewhere::Snapshot;
use crate::error::DataError;
use crate::pipeline::process::Job;
use crate::pipeline::run_cache;
use crate::pipeline::value::to_sorted_json;
use crate::stage::Stage;

/// The key of a stage's `meta` with settings for runners.
const SETTINGS: &str = "slipway";

/// What a runner needs to know about a stage.
#[derive(Debug)]
pub struct Request {
    /// The name of the stage for the user.
    pub address: String,
    /// The commands, which run one after the other until one fails.
    pub commands: Vec<String>,
    /// The folder in which they run.
    pub folder: PathBuf,
    /// The root of the project.
    pub root: PathBuf,
    /// Variables that the commands get, such as the name of an experiment.
    pub variables: Vec<(String, String)>,
    /// The dependencies and their digests: absolute paths of files and folders.
    pub inputs: Vec<(PathBuf, String)>,
    /// The value of `meta.slipway` of the stage, as JSON.
    pub settings: Option<Vec<u8>>,
    /// Identifies commands, dependencies, parameters and outputs together: SHA-256, as the run cache uses it.
    pub key: String,
    /// The files of the project, for runners that do not have its folder.
    pub snapshot: Option<Snapshot>,
}

impl Request {
    /// The request to run a stage with its present dependencies, which are recorded in `stage`.
    pub(super) fn new(stage: &Stage, job: Job) -> Self {
        let Job { address, commands, folder, root, variables } = job;
        let settings = stage.recipe.as_ref().and_then(|recipe| recipe.meta.as_ref()).and_then(|m| m.get(SETTINGS));
        let input = |dep: &crate::stage::Output| Some((dep.path.clone()?, dep.digest?.to_string()));
        Self {
            inputs: stage.deps.iter().filter_map(input).collect(),
            settings: settings.map(to_sorted_json),
            key: run_cache::key_of(stage),
            snapshot: None,
            address,
            commands,
            folder,
            root,
            variables,
        }
    }
}

/// Runs the commands of stages.
pub trait Runner: Debug + Send + Sync {
    /// Whether the commands run where the folder of the project does not exist. The runner then gets a snapshot and the dependencies through the
    /// remote, and results come back through the remote's run cache.
    fn is_elsewhere(&self) -> bool;

    /// Whether a run of the stage that an earlier process started still goes on with the same key, so that [`Self::run`] waits for it. A run with
    /// another key is stopped first, because it would write into the same outputs.
    fn adopt<'a>(&'a self, address: &'a str, key: &'a str) -> BoxFuture<'a, Result<bool, DataError>>;

    /// Runs the commands to their end. `line` gets their output.
    fn run<'a>(
        &'a self,
        request: &'a Request,
        line: &'a (dyn Fn(&str) + Send + Sync),
    ) -> BoxFuture<'a, Result<(), DataError>>;

    /// Stops all runs.
    fn cancel(&self);
}
