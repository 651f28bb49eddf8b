//! The end of tasks, graphs, loops, and runs, and their cancellation.

use std::sync::Arc;

use crate::model::{Failure, Outputs, RunState, TaskState};

use super::machine::{Machine, Step};
use super::node::{NodeId, Progress, Slot, Waiting};
use super::record::{Cancellation, Effect, TaskKind, TaskRecord};
use super::resolve;

impl Machine {
    /// Ends a task of any kind.
    pub(super) fn end(&mut self, id: NodeId, state: TaskState, failure: Option<Failure>) {
        let now = self.now;
        let node = self.change(id);
        node.record.enter(state, now);
        node.record.failure = failure;
        match std::mem::replace(&mut node.progress, Progress::Ended) {
            // Their tasks are still needed until all records have been handed out.
            progress @ (Progress::Graph(_) | Progress::Loop(_)) => {
                node.progress = progress;
                self.ended.push(id);
            }
            Progress::Execution(waiting) => {
                let path = node.record.path.clone();
                self.live.remove(&path);
                if waiting == Waiting::Running {
                    self.running -= 1;
                }
            }
            Progress::Ended => {}
        }
        self.steps.push_back(Step::Ended(id));
    }

    /// Lets those know that wait for a task which has ended.
    pub(super) fn task_ended(&mut self, id: NodeId) {
        let node = self.node(id);
        let Some(parent) = node.parent else { return self.finish() };
        let index = node.task.map_or(0, |(_, index)| index);
        let plan = Arc::clone(&self.plan);
        let component = self.component_index(parent);
        let mut decided = Vec::new();
        match self.progress(parent) {
            Some(Progress::Graph(progress)) => {
                progress.open -= 1;
                for dependent in &plan.graph(component).tasks[index].dependents {
                    if let Slot::Waiting(missing) = &mut progress.tasks[*dependent] {
                        *missing -= 1;
                        if *missing == 0 {
                            decided.push(*dependent);
                        }
                    }
                }
            }
            Some(Progress::Loop(progress)) => progress.running -= 1,
            _ => {}
        }
        self.steps.extend(decided.into_iter().map(|task| Step::Decide(parent, task)));
        self.steps.push_back(Step::Advance(parent));
    }

    /// Starts further iterations of a loop, and ends a graph or loop that is complete.
    pub(super) fn advance(&mut self, id: NodeId) {
        let plan = Arc::clone(&self.plan);
        let node = self.node(id);
        if node.record.state.is_final() {
            return;
        }
        match &node.progress {
            Progress::Graph(progress) if progress.open == 0 => self.end_graph(id),
            Progress::Loop(progress) => {
                let parallelism =
                    node.task(&plan).and_then(|task| task.iterator.as_ref()).map_or(1, |iterator| iterator.parallelism);
                let is_canceled = self.is_canceled(node.is_exit);
                let (mut next, mut running, length) = (progress.next, progress.running, progress.iterations.len());
                let mut begun = Vec::new();
                while !is_canceled && next < length && running < parallelism {
                    if progress.iterations[next].is_none() {
                        begun.push(next);
                        running += 1;
                    }
                    next += 1;
                }
                if let Some(Progress::Loop(progress)) = self.progress(id) {
                    (progress.next, progress.running) = (next, running);
                }
                if running == 0 && (is_canceled || next == length) {
                    return self.end_loop(id);
                }
                for index in begun {
                    self.begin_iteration(id, index);
                }
            }
            _ => {}
        }
    }

    fn end_graph(&mut self, id: NodeId) {
        let plan = Arc::clone(&self.plan);
        let graph = plan.graph(self.component_index(id));
        let main = (0..graph.tasks.len())
            .filter(|index| !graph.tasks[*index].is_exit)
            .filter_map(|index| self.sibling(id, index));
        let (state, failure) = common_end(main);
        let outputs = match state {
            TaskState::Succeeded => resolve::graph_outputs(graph, &|task| self.sibling(id, task), &self.memory()),
            _ => Ok(Outputs::default()),
        };
        self.end_with(id, state, failure, outputs);
    }

    fn end_loop(&mut self, id: NodeId) {
        let plan = Arc::clone(&self.plan);
        let node = self.node(id);
        let Progress::Loop(progress) = &node.progress else { return };
        let iterations: Vec<&TaskRecord> =
            progress.iterations.iter().flatten().map(|id| &self.node(*id).record).collect();
        let (mut state, failure) = common_end(iterations.iter().copied());
        if iterations.len() < progress.iterations.len() && state == TaskState::Succeeded {
            state = TaskState::Canceled;
        }
        let outputs = match state {
            TaskState::Succeeded => resolve::loop_outputs(node.component(&plan), &iterations, &self.memory()),
            _ => Ok(Outputs::default()),
        };
        self.end_with(id, state, failure, outputs);
    }

    fn end_with(&mut self, id: NodeId, state: TaskState, failure: Option<Failure>, outputs: Result<Outputs, String>) {
        match outputs.and_then(|outputs| self.check_outputs(&outputs).map(|()| outputs)) {
            Ok(outputs) => {
                self.change(id).record.outputs = Arc::new(outputs);
                self.weigh(id);
                self.end(id, state, failure);
            }
            Err(reason) => self.end(id, TaskState::Failed, Some(resolve::failure(reason))),
        }
    }

    /// Ends the run. Its state is that of its main tasks; a run that was canceled is canceled, however far it came.
    fn finish(&mut self) {
        self.is_finished = true;
        let root = &self.node(0).record;
        let failure = root.failure.clone();
        let state = match root.state {
            _ if self.cancel != Cancellation::No => RunState::Canceled,
            TaskState::Failed => RunState::Failed,
            TaskState::Canceled => RunState::Canceled,
            _ => RunState::Succeeded,
        };
        self.effects.push(Effect::Finished { state, failure });
    }

    /// Stops everything that `how` covers, and starts nothing of it any more.
    pub(super) fn cancel(&mut self, how: Cancellation) {
        if how > self.cancel {
            self.cancel = how;
            self.change(0).record.cancel = how;
            self.stop_canceled();
        }
    }

    /// Ends or stops all that is canceled and has not ended.
    pub(super) fn stop_canceled(&mut self) {
        for (path, id) in self.live.clone() {
            let node = self.node(id);
            if !self.is_canceled(node.is_exit) {
                continue;
            }
            match node.progress {
                Progress::Execution(Waiting::Running) if node.record.kind != TaskKind::Importer => {
                    self.effects.push(Effect::Stop { path, attempt: node.record.attempt });
                }
                _ => self.end(id, TaskState::Canceled, None),
            }
        }
        // Loops start no further iterations, so that some are complete now.
        for id in 0..self.nodes.len() {
            if self.nodes[id].as_ref().is_some_and(|node| matches!(node.progress, Progress::Loop(_))) {
                self.steps.push_back(Step::Advance(id));
            }
        }
    }
}

/// The state of a graph or loop whose tasks have ended, and the first of their failures.
fn common_end<'a>(tasks: impl Iterator<Item = &'a TaskRecord>) -> (TaskState, Option<Failure>) {
    let mut state = TaskState::Succeeded;
    let mut failure = None;
    for task in tasks {
        match task.state {
            TaskState::Canceled => state = TaskState::Canceled,
            TaskState::Failed => {
                failure = failure.or_else(|| task.failure.as_ref().map(|failure| enclosing_failure(task, failure)));
                if state == TaskState::Succeeded {
                    state = TaskState::Failed;
                }
            }
            _ => {}
        }
    }
    (state, failure)
}

/// The failure of a graph: the one of its task, whose path is put in front once.
fn enclosing_failure(task: &TaskRecord, failure: &Failure) -> Failure {
    // A graph that failed by itself, as when an output is missing, has no path in its message.
    let names_inner_task = failure.message.strip_prefix(&task.path.0).is_some_and(|rest| rest.starts_with(['/', '[']));
    let message =
        if names_inner_task { failure.message.clone() } else { format!("{}: {}", task.path, failure.message) };
    Failure { message, ..failure.clone() }
}
