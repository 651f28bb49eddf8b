//! `repro`: runs the stages whose dependencies, parameters, command or outputs changed, in the order of their dependencies, or side by side.
//!
//! One task decides, records and stores under the project's lock; only the commands of stages run beside it, without the lock. So records are
//! those of a run of one stage after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::elsewhere::{self, Snapshot};
use super::graph::Graph;
use super::run::{How as RunHow, Prepared, adopt, finish, is_changed, prepare, pull, pull_missing_dependencies};
use super::runner::{Request, Runner};
use super::{GitFiles, Talk, record, transfer};
use crate::error::DataError;
use crate::lock::Claim;
use crate::pipeline::process::Job;
use crate::project::Project;
use crate::project::target::{How, all_named};
use crate::stage::{PIPELINE_FILE, Stage};

/// What happens after the failure of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// No other stage is started.
    #[default]
    Fail,
    /// Stages that do not depend on it are run.
    KeepGoing,
    /// All stages are run.
    Ignore,
}

/// How to reproduce.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Run stages although nothing changed.
    pub force: bool,
    /// Only the targets, without their dependencies.
    pub single_item: bool,
    /// The whole pipelines of the targets.
    pub pipeline: bool,
    /// All pipelines of the project.
    pub all_pipelines: bool,
    /// The targets are folders with stages.
    pub recursive: bool,
    /// The targets and what depends on them.
    pub downstream: bool,
    /// Run what depends on a stage that ran, although nothing else changed.
    pub force_downstream: bool,
    /// Receive missing data from the remote.
    pub pull: bool,
    /// Missing data is not a change.
    pub allow_missing: bool,
    /// Show the commands only.
    pub dry: bool,
    /// Do not store outputs in the cache.
    pub no_commit: bool,
    /// Do not use recorded runs.
    pub no_run_cache: bool,
    /// Names of targets are patterns.
    pub glob: bool,
    /// Ask before each stage.
    pub interactive: bool,
    /// What happens after a failure.
    pub on_error: OnError,
    /// Maximum number of stages that run side by side; 0 counts as 1.
    pub jobs: usize,
    /// Where the commands run; in processes of this one by default.
    pub runner: Option<Arc<dyn Runner>>,
    /// Receive missing dependencies from the remote, and send results to its run cache.
    pub share: bool,
    /// Variables that the commands get, such as the name of an experiment.
    pub variables: Vec<(String, String)>,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Report {
    /// The stages that were run or restored.
    pub reproduced: Vec<String>,
    /// Files that belong into Git.
    pub git_files: GitFiles,
}

/// Shows a line of a run, from any thread.
pub type Say = Arc<dyn Fn(&str) + Send + Sync>;

/// Runs the stages that changed.
///
/// # Errors
/// [`DataError::Reproduction`] with the stages that failed.
pub async fn repro(
    project: &mut Project,
    targets: &[String],
    options: &Options,
    talk: &dyn Talk,
    say: Say,
) -> Result<Report, DataError> {
    let stages = project.stages()?;
    let mut graph = Graph::new(project, &stages)?;
    for (i, stage) in stages.iter().enumerate() {
        if stage.frozen {
            graph.disconnect(i);
        }
    }
    let steps = plan(project, &stages, &graph, targets, options)?;
    if options.pull && !options.no_run_cache && !options.dry {
        transfer::fetch_runs(project, talk).await?;
    }
    let mut run = Run {
        forced: if options.force { steps.iter().copied().collect() } else { BTreeSet::new() },
        waiting: steps.clone(),
        steps,
        stages,
        graph,
        options,
        talk,
        say,
        is_interrupted: false,
        running: BTreeMap::new(),
        failed: Vec::new(),
        new_records: BTreeSet::new(),
        report: Report::default(),
        says_newline: false,
    };
    let result = run.run(project).await;
    project.state.save()?;
    result?;
    let Report { reproduced, git_files } = run.report;
    Ok(Report { reproduced, git_files: git_files.finish(project)? })
}

/// The stages to look at, in their order.
fn plan(
    project: &Project,
    stages: &[Stage],
    graph: &Graph,
    targets: &[String],
    options: &Options,
) -> Result<Vec<usize>, DataError> {
    let all: Vec<usize> = (0..stages.len()).collect();
    if options.all_pipelines {
        return Ok(graph.sorted(&all));
    }
    let default = [PIPELINE_FILE.to_owned()];
    let targets = if targets.is_empty() { &default[..] } else { targets };
    let how = How { recursive: options.recursive, glob: options.glob };
    let selected = all_named(project, stages, targets, how)?;
    if options.single_item && !options.pipeline {
        return Ok(selected);
    }
    if selected.is_empty() {
        return Ok(graph.sorted(&all));
    }
    let reached = if options.pipeline {
        graph.connected(&selected)
    } else if options.downstream {
        graph.with_dependents(&selected)
    } else {
        graph.with_dependencies(&selected)
    };
    Ok(graph.sorted(&reached))
}

/// A stage whose command runs.
struct Running {
    claim: Claim,
    /// What it runs with, if it runs elsewhere.
    snapshot: Option<Snapshot>,
}

/// A stage whose command has ended, with its result.
type Ended = (usize, Result<(), DataError>);

struct Run<'a> {
    stages: Vec<Stage>,
    graph: Graph,
    steps: Vec<usize>,
    waiting: Vec<usize>,
    forced: BTreeSet<usize>,
    /// The stages whose commands run.
    running: BTreeMap<usize, Running>,
    failed: Vec<(usize, DataError)>,
    /// Stages that had no record before; where their records go does not depend on which one ends first.
    new_records: BTreeSet<usize>,
    options: &'a Options,
    talk: &'a dyn Talk,
    say: Say,
    is_interrupted: bool,
    report: Report,
    says_newline: bool,
}

impl Run<'_> {
    async fn run(&mut self, project: &mut Project) -> Result<(), DataError> {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Ended>();
        let jobs = self.options.jobs.max(1);
        loop {
            while self.running.len() < jobs && !self.is_stopped() {
                let Some(stage) = self.next_ready() else { break };
                self.start(project, stage, &sender).await?;
            }
            if self.running.is_empty() {
                break;
            }
            project.unlock()?;
            // An interrupt from the terminal reaches the commands, too. What they did is recorded or reported before this ends.
            let ended = loop {
                tokio::select! {
                    ended = receiver.recv() => break ended,
                    Ok(()) = tokio::signal::ctrl_c() => {
                        self.is_interrupted = true;
                        self.options.runner.iter().for_each(|runner| runner.cancel());
                    }
                }
            };
            project.relock(&|blocker| self.talk.note(blocker))?;
            let Some((stage, result)) = ended else { break };
            let mut snapshot = None;
            if let Some(running) = self.running.remove(&stage) {
                project.withdraw(running.claim, &|blocker| self.talk.note(blocker))?;
                snapshot = running.snapshot;
            }
            let finished = self.collect(project, stage, result, snapshot.as_ref()).await;
            self.settle(project, stage, finished.map(|()| true));
        }
        self.failure(project)
    }

    fn is_stopped(&self) -> bool {
        self.is_interrupted || (self.options.on_error == OnError::Fail && !self.failed.is_empty())
    }

    /// Takes the first waiting stage whose dependencies are neither waiting nor running. Without parallel runs, that is the first.
    fn next_ready(&mut self) -> Option<usize> {
        let is_open = |stage: &usize| self.waiting.contains(stage) || self.running.contains_key(stage);
        let at = match self.options.single_item {
            // The order of the targets counts.
            true => (!self.waiting.is_empty() && self.running.is_empty()).then_some(0),
            false => self.waiting.iter().position(|stage| !self.graph.dependencies(*stage).iter().any(is_open)),
        }?;
        Some(self.waiting.remove(at))
    }

    /// Looks at a stage, and starts its command if it must run.
    async fn start(
        &mut self,
        project: &mut Project,
        index: usize,
        sender: &mpsc::UnboundedSender<Ended>,
    ) -> Result<(), DataError> {
        if std::mem::take(&mut self.says_newline) {
            (self.say)("");
        }
        let waited = project.wait_for_stage(&self.stages[index], &|blocker| self.talk.note(blocker))?;
        if waited {
            self.read_again(project, index)?;
        }
        let prepared = self.prepare(project, index).await;
        match prepared {
            Ok(Prepared::Unchanged) => self.settle(project, index, Ok(false)),
            Ok(Prepared::Shown) => self.settle(project, index, Ok(true)),
            Ok(Prepared::Restored) => {
                let finished = self.collect(project, index, Ok(()), None).await;
                self.settle(project, index, finished.map(|()| true));
            }
            Ok(Prepared::Run(job)) => self.launch(project, index, job, sender).await?,
            Err(error) => self.settle(project, index, Err(error)),
        }
        Ok(())
    }

    /// Starts the command of a stage.
    async fn launch(
        &mut self,
        project: &mut Project,
        index: usize,
        mut job: Job,
        sender: &mpsc::UnboundedSender<Ended>,
    ) -> Result<(), DataError> {
        job.variables.clone_from(&self.options.variables);
        let address = self.stages[index].address(&project.current);
        let prefix = if self.options.jobs > 1 { format!("[{address}] ") } else { String::new() };
        let Some(runner) = self.options.runner.clone() else {
            let claim = project.claim(&self.stages[index], &|blocker| self.talk.note(blocker))?;
            (self.say)(&format!("Running stage '{address}':"));
            self.spawn(index, job, prefix, sender.clone());
            self.running.insert(index, Running { claim, snapshot: None });
            return Ok(());
        };
        let request = match self.request(project, index, job, runner.as_ref()).await {
            Ok(Some(request)) => request,
            Ok(None) => {
                (self.say)(&format!("Stage '{address}' is cached - skipping run, checking out outputs"));
                let finished = self.collect(project, index, Ok(()), None).await;
                self.settle(project, index, finished.map(|()| true));
                return Ok(());
            }
            Err(error) => {
                self.settle(project, index, Err(error));
                return Ok(());
            }
        };
        let claim = project.claim(&self.stages[index], &|blocker| self.talk.note(blocker))?;
        (self.say)(&format!("Submitting stage '{address}':"));
        self.running.insert(index, Running { claim, snapshot: request.snapshot.clone() });
        let (say, sender) = (self.say.clone(), sender.clone());
        tokio::spawn(async move {
            let result = runner.run(&request, &|text| say(&format!("{prefix}{text}"))).await;
            // The receiver lives as long as stages run.
            let _ = sender.send((index, result));
        });
        Ok(())
    }

    /// What the runner of a stage needs; `None` if the run cache of the remote had the result, which is restored now.
    async fn request(
        &mut self,
        project: &mut Project,
        index: usize,
        job: Job,
        runner: &dyn Runner,
    ) -> Result<Option<Request>, DataError> {
        let is_forced = self.forced.contains(&index);
        let stage = &mut self.stages[index];
        if is_forced {
            record::dependencies(project, stage, false)?;
        }
        if !runner.is_elsewhere() {
            return Ok(Some(Request::new(stage, job)));
        }
        let uses_cache = !is_forced && !self.options.no_run_cache;
        if uses_cache && elsewhere::receive(project, stage, self.talk).await? {
            return Ok(None);
        }
        let snapshot = Some(elsewhere::publish(project, stage).await?);
        Ok(Some(Request { snapshot, ..Request::new(stage, job) }))
    }

    /// Records the result of a stage whose command has ended, or whose outputs were restored.
    async fn collect(
        &mut self,
        project: &mut Project,
        index: usize,
        result: Result<(), DataError>,
        snapshot: Option<&Snapshot>,
    ) -> Result<(), DataError> {
        if let Some(snapshot) = snapshot {
            elsewhere::withdraw(project, snapshot, self.talk);
        }
        result?;
        if snapshot.is_some() && !elsewhere::receive(project, &mut self.stages[index], self.talk).await? {
            let reason = "the stage has run, but its result is not in the run cache of the remote";
            return Err(DataError::Reproduction(reason.into()));
        }
        self.finish(project, index)?;
        if self.options.share { elsewhere::share(project, &self.stages[index], self.talk).await } else { Ok(()) }
    }

    /// Replaces a stage by what its files say now, because another process has worked on it.
    fn read_again(&mut self, project: &Project, index: usize) -> Result<(), DataError> {
        let old = &self.stages[index];
        let found = project.stages()?.into_iter().find(|stage| stage.file == old.file && stage.name == old.name);
        self.stages[index] = found.ok_or_else(|| DataError::Target(old.address(&project.current)))?;
        Ok(())
    }

    /// Runs a job in a thread. With a prefix, the lines of its output have it, so that those of several stages can be told apart.
    fn spawn(&self, index: usize, job: Job, prefix: String, sender: mpsc::UnboundedSender<Ended>) {
        let say = self.say.clone();
        std::thread::spawn(move || {
            let line = |text: &str| say(&format!("{prefix}{text}"));
            let captured: Option<&(dyn Fn(&str) + Sync)> = if prefix.is_empty() { None } else { Some(&line) };
            let result = job.run(&|command| line(&format!("> {command}")), captured);
            // The receiver lives as long as stages run.
            let _ = sender.send((index, result));
        });
    }

    async fn prepare(&mut self, project: &mut Project, index: usize) -> Result<Prepared, DataError> {
        let stage = &self.stages[index];
        let address = stage.address(&project.current);
        let shown = stage.name.as_ref().map_or_else(|| format!("'{address}'"), |_| format!("Stage '{address}'"));
        let options = self.options;
        if stage.frozen && !stage.is_import {
            self.talk.note(&format!("stage: '{address}' is frozen. Its dependencies are not going to be reproduced."));
        }
        let upstream: Vec<&Stage> = self.graph.dependencies(index).iter().map(|other| &self.stages[*other]).collect();
        if !self.forced.contains(&index) {
            if !is_changed(project, stage, options.allow_missing, &upstream)? {
                (self.say)(&format!("{shown} didn't change, skipping"));
                return Ok(Prepared::Unchanged);
            }
            if options.pull && !options.dry && !is_changed(project, stage, true, &upstream)? {
                (self.say)(&format!("Pulling data for stage: '{address}'"));
                if pull(project, std::slice::from_ref(&address), self.talk).await? {
                    return Ok(Prepared::Unchanged);
                }
                (self.say)(&format!("Unable to pull data for stage: '{address}'"));
            }
        }
        let question = format!("Going to reproduce stage: '{address}'. Are you sure you want to continue?");
        if options.interactive && !self.talk.confirm(&question) {
            return Err(DataError::Invalid("reproduction aborted by the user".into()));
        }
        let how = RunHow {
            force: self.forced.contains(&index),
            dry: options.dry,
            pull: options.pull,
            run_cache: !options.no_run_cache,
        };
        if crate::pipeline::lock::has_record(stage)? {
            self.new_records.remove(&index);
        } else {
            self.new_records.insert(index);
        }
        if let (Some(runner), false) = (&options.runner, options.dry)
            && let Some(job) = adopt(project, &mut self.stages[index], runner.as_ref()).await?
        {
            return Ok(Prepared::Run(job));
        }
        if options.share {
            pull_missing_dependencies(project, &self.stages[index], self.talk).await?;
        }
        prepare(project, &mut self.stages[index], how, self.talk, &self.say).await
    }

    /// Records a stage that has run or was restored.
    fn finish(&mut self, project: &mut Project, index: usize) -> Result<(), DataError> {
        // Of the stages of this file that come later, those that had no record before follow this one.
        let at = self.steps.iter().position(|step| *step == index).unwrap_or(0);
        let file: &PathBuf = &self.stages[index].file;
        let later: Vec<String> = self.steps[at + 1..]
            .iter()
            .filter(|step| self.new_records.contains(step) && self.stages[**step].file == *file)
            .filter_map(|step| self.stages[*step].name.clone())
            .collect();
        let git_files = &mut self.report.git_files;
        finish(project, &mut self.stages[index], !self.options.no_commit, &later, git_files, &self.say)
    }

    /// Notes the result of a stage: whether it was reproduced, or the error.
    fn settle(&mut self, project: &Project, index: usize, result: Result<bool, DataError>) {
        let address = self.stages[index].address(&project.current);
        match result {
            Ok(reproduced) => {
                if self.options.force_downstream && (reproduced || self.forced.contains(&index)) {
                    self.forced.extend(self.graph.dependents(index));
                }
                if reproduced {
                    self.says_newline = true;
                    self.report.reproduced.push(address);
                }
            }
            Err(error) => {
                let ignored = if self.options.on_error == OnError::Ignore { " (ignored)" } else { "" };
                if self.options.on_error != OnError::Fail {
                    self.talk.note(&format!("{error}{ignored}"));
                }
                if self.options.on_error == OnError::KeepGoing && !self.options.single_item {
                    self.skip_dependents(project, index);
                }
                self.failed.push((index, error));
            }
        }
    }

    fn skip_dependents(&mut self, project: &Project, index: usize) {
        let dependents: Vec<usize> =
            self.graph.with_dependents(&[index]).into_iter().filter(|stage| *stage != index).collect();
        self.waiting.retain(|stage| !dependents.contains(stage));
        if !dependents.is_empty() {
            let names = self.names(project, &dependents);
            let stages = if dependents.len() > 1 { "Stages" } else { "Stage" };
            self.talk.note(&format!("{stages} {names} will be skipped due to this failure"));
        }
    }

    fn names(&self, project: &Project, stages: &[usize]) -> String {
        let mut names: Vec<String> =
            stages.iter().map(|stage| format!("'{}'", self.stages[*stage].address(&project.current))).collect();
        let Some(last) = names.pop() else { return String::new() };
        if names.is_empty() { last } else { format!("{} and {last}", names.join(", ")) }
    }

    fn failure(&mut self, project: &Project) -> Result<(), DataError> {
        if self.failed.is_empty() && self.is_interrupted {
            return Err(DataError::Reproduction("interrupted; the stages that were finished are recorded".into()));
        }
        if self.failed.is_empty() || self.options.on_error == OnError::Ignore {
            return Ok(());
        }
        let failed: Vec<usize> = self.failed.iter().map(|(stage, _)| *stage).collect();
        let names = self.names(project, &failed);
        let many = if failed.len() > 1 { " stages:" } else { "" };
        let cause = match self.options.on_error {
            OnError::Fail => self.failed.iter().map(|(_, error)| format!(": {error}")).collect(),
            _ => String::new(),
        };
        Err(DataError::Reproduction(format!("failed to reproduce{many} {names}{cause}")))
    }
}
