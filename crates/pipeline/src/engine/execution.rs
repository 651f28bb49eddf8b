//! Tasks that execute or import something: cache, places, attempts, and retries.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::artifact::put_into_workspace;
use crate::fingerprint;
use crate::model::{Artifact, Failure, Launch, Outcome, Outputs, TaskPath, TaskState};

use super::machine::Machine;
use super::node::{NodeId, Progress, Waiting};
use super::plan::{Body, Component, Container};
use super::record::{Effect, Parameters, TaskKind};
use super::resolve;

impl Machine {
    /// Begins a task that executes a container: with the cache, if it may use it.
    pub(super) fn begin_container(&mut self, id: NodeId, container: &Container) {
        self.enqueue(id);
        let plan = Arc::clone(&self.plan);
        let Some(task) = self.node(id).task(&plan).filter(|task| self.limits.use_cache && task.use_cache) else {
            return;
        };
        let fingerprint = match &task.cache_key {
            Some(key) => fingerprint::chosen(&self.run.pipeline_name, &task.component_name, key),
            None => fingerprint::fingerprint(
                &container.identity,
                &self.node(id).record.inputs,
                &self.platform_inputs(id, container),
            ),
        };
        let node = self.change(id);
        node.record.fingerprint = Some(fingerprint.clone());
        node.progress = Progress::Execution(Waiting::Cache);
        let path = node.record.path.clone();
        let staleness = [self.limits.max_cache_staleness, container.max_cache_staleness];
        self.effects.push(Effect::LookUpCache {
            path,
            fingerprint,
            max_staleness: staleness.into_iter().flatten().min(),
        });
    }

    /// Lets an execution wait for a place.
    pub(super) fn enqueue(&mut self, id: NodeId) {
        let now = self.now;
        let node = self.change(id);
        node.record.enter(TaskState::Pending, now);
        node.progress = Progress::Execution(Waiting::Queue);
        let path = node.record.path.clone();
        self.live.insert(path, id);
        self.queue.push_back(id);
    }

    /// Starts attempts while there are places for them.
    pub(super) fn fill_places(&mut self) {
        while self.running < self.limits.max_parallel_tasks.max(1) {
            let Some(id) = self.queue.pop_front() else { return };
            // A task that was canceled meanwhile is still in the queue.
            if matches!(self.progress(id), Some(Progress::Execution(Waiting::Queue))) {
                self.start_attempt(id);
            }
        }
    }

    fn start_attempt(&mut self, id: NodeId) {
        let now = self.now;
        let node = self.change(id);
        node.record.attempt += 1;
        node.record.enter(TaskState::Running, now);
        node.record.started_at.get_or_insert(now);
        node.record.next_attempt_at = None;
        self.await_attempt(id);
    }

    /// Waits for the end of the attempt that is recorded as running, and hands it out to be executed.
    pub(super) fn await_attempt(&mut self, id: NodeId) {
        self.running += 1;
        let plan = Arc::clone(&self.plan);
        let node = self.node(id);
        let (path, component) = (node.record.path.clone(), node.component(&plan));
        if let Some(progress) = self.progress(id) {
            *progress = Progress::Execution(Waiting::Running);
        }
        self.live.insert(path.clone(), id);
        match &component.body {
            Body::Container(container) => {
                let launch = self.launch(id, component, container);
                self.effects.push(Effect::Launch(launch));
            }
            Body::Importer(importer) => {
                let node = self.node(id);
                let request = node
                    .task(&plan)
                    .ok_or_else(|| "The task is not in the pipeline.".to_owned())
                    .and_then(|task| resolve::import_request(importer, task, component, &node.record, &self.run));
                match request {
                    Ok(request) => self.effects.push(Effect::Import { path, request }),
                    Err(reason) => self.end(id, TaskState::Failed, Some(resolve::failure(reason))),
                }
            }
            Body::Graph(_) | Body::Unsupported(_) => {
                self.end(id, TaskState::Failed, Some(resolve::failure("The task executes nothing.".to_owned())));
            }
        }
    }

    fn launch(&self, id: NodeId, component: &Component, container: &Container) -> Launch {
        let record = &self.node(id).record;
        Launch {
            run: Arc::clone(&self.run),
            path: record.path.clone(),
            task_name: record.display_name.clone(),
            attempt: record.attempt,
            component: Arc::clone(&component.spec),
            executor: Arc::clone(&container.executor),
            platform: container.platform.clone(),
            inputs: (*record.inputs).clone(),
            platform_inputs: self.platform_inputs(id, container),
        }
    }

    fn platform_inputs(&self, id: NodeId, container: &Container) -> Parameters {
        let node = self.node(id);
        let is_iteration = node.record.iteration.is_some();
        let graph = node.parent.and_then(|parent| if is_iteration { self.node(parent).parent } else { Some(parent) });
        let Some(graph) = graph.filter(|_| container.platform.is_some()) else { return BTreeMap::new() };
        let plan = Arc::clone(&self.plan);
        let tasks = plan.graph(self.component_index(graph));
        self.with_scope(graph, &node.record.path, |scope| resolve::platform_inputs(&container.references, tasks, scope))
    }

    /// The execution at `path`, if it waits for `waiting`.
    fn waiting(&self, path: &TaskPath, waiting: Waiting) -> Option<NodeId> {
        let id = *self.live.get(path)?;
        matches!(self.node(id).progress, Progress::Execution(found) if found == waiting).then_some(id)
    }

    pub(super) fn cache_found(&mut self, path: &TaskPath, outputs: Outputs, cached_from: String) {
        let Some(id) = self.waiting(path, Waiting::Cache) else { return };
        self.change(id).record.cached_from = Some(cached_from);
        self.succeed(id, TaskState::Cached, outputs);
    }

    /// Ends an execution with its outputs.
    fn succeed(&mut self, id: NodeId, state: TaskState, outputs: Outputs) {
        match self.check_outputs(&outputs) {
            Ok(()) => {
                self.change(id).record.outputs = Arc::new(outputs);
                self.weigh(id);
                self.end(id, state, None);
            }
            Err(reason) => self.end(id, TaskState::Failed, Some(resolve::failure(reason))),
        }
    }

    pub(super) fn cache_missed(&mut self, path: &TaskPath) {
        let Some(id) = self.waiting(path, Waiting::Cache) else { return };
        if let Some(progress) = self.progress(id) {
            *progress = Progress::Execution(Waiting::Queue);
        }
        // The place in the queue that it got before the cache was asked may have been passed over.
        self.queue.push_back(id);
    }

    pub(super) fn attempt_ended(&mut self, path: &TaskPath, attempt: u32, outcome: Outcome) {
        let Some(id) = self.waiting(path, Waiting::Running) else { return };
        let record = &self.node(id).record;
        if record.attempt != attempt || record.kind == TaskKind::Importer {
            return;
        }
        match outcome {
            Outcome::Succeeded(outputs) => self.succeed(id, TaskState::Succeeded, outputs),
            Outcome::Failed(failure) => self.attempt_failed(id, failure),
            Outcome::Canceled if self.is_canceled(self.node(id).is_exit) => self.end(id, TaskState::Canceled, None),
            Outcome::Canceled => {
                let message = "The attempt was stopped from outside, although the run was not canceled.".to_owned();
                self.attempt_failed(id, Failure { message, ..Failure::default() });
            }
        }
    }

    pub(super) fn imported(&mut self, path: &TaskPath, result: Result<Artifact, Failure>) {
        let Some(id) = self.waiting(path, Waiting::Running) else { return };
        if self.node(id).record.kind != TaskKind::Importer {
            return;
        }
        match result {
            Ok(mut artifact) => {
                let plan = Arc::clone(&self.plan);
                let component = self.node(id).component(&plan);
                if matches!(&component.body, Body::Importer(importer) if importer.download_to_workspace) {
                    put_into_workspace(&mut artifact);
                }
                let output = resolve::import_output(component).to_owned();
                let outputs = Outputs { artifacts: [(output, vec![artifact])].into(), ..Outputs::default() };
                self.succeed(id, TaskState::Succeeded, outputs);
            }
            Err(failure) => self.attempt_failed(id, failure),
        }
    }

    /// Plans another attempt, or ends the task.
    fn attempt_failed(&mut self, id: NodeId, failure: Failure) {
        let node = self.node(id);
        let due = match node.retry {
            Some(retry) if !failure.is_permanent && !self.is_canceled(node.is_exit) => {
                let attempts = node.record.attempt.saturating_sub(node.record.earlier_attempts);
                retry.next_attempt(attempts, node.record.started_at.unwrap_or(self.now), self.now)
            }
            _ => None,
        };
        let Some(due) = due else { return self.end(id, TaskState::Failed, Some(failure)) };
        self.running -= 1;
        let now = self.now;
        let node = self.change(id);
        node.record.enter(TaskState::Pending, now);
        node.record.failure = Some(failure);
        node.record.next_attempt_at = Some(due);
        self.await_backoff(id, due);
        self.wake();
    }

    /// Waits for the time of the next attempt.
    pub(super) fn await_backoff(&mut self, id: NodeId, due: i64) {
        let path = self.node(id).record.path.clone();
        self.live.insert(path, id);
        if let Some(progress) = self.progress(id) {
            *progress = Progress::Execution(Waiting::Backoff(due));
        }
        self.timers.insert((due, id));
        if due > self.now {
            self.effects.push(Effect::WakeAt(due));
        }
    }

    /// Lets attempts that are due wait for a place.
    pub(super) fn wake(&mut self) {
        while let Some(&(due, id)) = self.timers.first().filter(|(due, _)| *due <= self.now) {
            self.timers.remove(&(due, id));
            // A task that was canceled meanwhile still has its timer.
            if let Some(progress @ Progress::Execution(Waiting::Backoff(_))) = self.progress(id)
                && matches!(progress, Progress::Execution(Waiting::Backoff(at)) if *at == due)
            {
                *progress = Progress::Execution(Waiting::Queue);
                self.queue.push_back(id);
            }
        }
    }
}
