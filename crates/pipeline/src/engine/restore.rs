//! Going on with a run from its records: after a crash, or to retry what failed.
//!
//! A record states a decision: a task that is final, or an attempt that is running or due. A task that is only pending is decided again,
//! from the same inputs and with the same result, so that a crash between two records loses nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{RunInfo, TaskPath, TaskState};

use super::compile::topological_order;
use super::machine::{Machine, Step};
use super::node::{GraphProgress, Node, NodeId, Progress, Slot};
use super::plan::{Body, Plan};
use super::record::{Cancellation, Effect, Limits, Parameters, TaskRecord};
use super::resolve;

impl TaskRecord {
    /// Whether the record states more than that the task waits.
    fn is_decided(&self) -> bool {
        self.state != TaskState::Pending || self.next_attempt_at.is_some()
    }
}

impl Machine {
    /// Goes on with a run from what was recorded of it, which may be the records of any number of events from the first. Effects that
    /// are still due are returned again: an attempt that is recorded as running is launched with the same number, for the launcher
    /// knows whether it still runs; if the run is being canceled, that attempt is stopped again.
    pub fn restore(
        plan: Arc<Plan>,
        run: Arc<RunInfo>,
        parameters: Parameters,
        limits: Limits,
        records: Vec<TaskRecord>,
        now: i64,
    ) -> (Self, Vec<Effect>) {
        let mut machine = Self::empty(plan, run, limits, now);
        machine.known = records.into_iter().map(|record| (record.path.clone(), record)).collect();
        let count = machine.known.len();
        match machine.known.remove(&TaskPath::default()) {
            Some(root) => machine.rebuild(root),
            None => machine.begin_root(parameters),
        }
        machine.reached = machine.reached.max(count);
        let effects = machine.settle();
        (machine, effects)
    }

    /// Runs again what failed or was canceled, and what comes after it. Tasks that succeeded keep their outputs, and the graphs around
    /// what is repeated run again.
    pub fn retry(
        plan: Arc<Plan>,
        run: Arc<RunInfo>,
        parameters: Parameters,
        limits: Limits,
        records: Vec<TaskRecord>,
        now: i64,
    ) -> (Self, Vec<Effect>) {
        let mut records: BTreeMap<TaskPath, TaskRecord> =
            records.into_iter().map(|record| (record.path.clone(), record)).collect();
        let changed = reopen_run(&plan, &mut records, now);
        let mut effects: Vec<Effect> =
            changed.iter().filter_map(|path| records.get(path)).map(|record| Effect::Record(record.clone())).collect();
        let (machine, further) = Self::restore(plan, run, parameters, limits, records.into_values().collect(), now);
        effects.extend(further);
        (machine, effects)
    }

    fn rebuild(&mut self, root: TaskRecord) {
        self.cancel = root.cancel;
        let is_final = root.state.is_final();
        let root = self.add(Node {
            record: root,
            parent: None,
            task: None,
            is_exit: false,
            retry: None,
            progress: Progress::Ended,
            is_changed: false,
        });
        if is_final {
            self.steps.push_back(Step::Ended(root));
            return;
        }
        let mut open = vec![root];
        while let Some(id) = open.pop() {
            let node = self.node(id);
            let is_loop =
                node.record.iteration.is_none() && node.task(&self.plan).is_some_and(|task| task.iterator.is_some());
            if is_loop {
                self.rebuild_loop(id, &mut open);
            } else {
                self.rebuild_graph(id, &mut open);
            }
        }
        self.wake();
        if self.cancel != Cancellation::No {
            self.stop_canceled();
        }
    }

    fn rebuild_graph(&mut self, id: NodeId, open: &mut Vec<NodeId>) {
        let plan = Arc::clone(&self.plan);
        let component = self.component_index(id);
        let graph = plan.graph(component);
        let node = self.node(id);
        let (parent_path, parent_retry, parent_is_exit) = (node.record.path.clone(), node.retry, node.is_exit);
        let mut slots = Vec::with_capacity(graph.tasks.len());
        let mut has_ended = vec![false; graph.tasks.len()];
        for (index, task) in graph.tasks.iter().enumerate() {
            let path = parent_path.task(&task.name);
            let record =
                if self.known.get(&path).is_some_and(TaskRecord::is_decided) { self.known.remove(&path) } else { None };
            slots.push(record.map_or(Slot::Waiting(0), |record| {
                has_ended[index] = record.state.is_final();
                Slot::Reached(self.add(Node {
                    record,
                    parent: Some(id),
                    task: Some((component, index)),
                    is_exit: parent_is_exit || task.runs_after_failure,
                    retry: task.retry.or(parent_retry),
                    progress: Progress::Ended,
                    is_changed: false,
                }))
            }));
        }
        let mut reached = Vec::new();
        for (index, slot) in slots.iter_mut().enumerate() {
            match slot {
                Slot::Reached(id) => reached.push(*id),
                Slot::Waiting(missing) => {
                    *missing =
                        graph.tasks[index].dependencies.iter().filter(|dependency| !has_ended[**dependency]).count();
                    if *missing == 0 {
                        self.steps.push_back(Step::Decide(id, index));
                    }
                }
            }
        }
        let unfinished = has_ended.iter().filter(|ended| !**ended).count();
        if let Some(progress) = self.progress(id) {
            *progress = Progress::Graph(GraphProgress { tasks: slots, open: unfinished });
        }
        if unfinished == 0 {
            self.steps.push_back(Step::Advance(id));
        }
        for id in reached {
            self.resume(id, open);
        }
    }

    fn rebuild_loop(&mut self, id: NodeId, open: &mut Vec<NodeId>) {
        let progress = match self.loop_progress(id) {
            Ok(progress) => progress,
            Err(reason) => return self.end(id, TaskState::Failed, Some(resolve::failure(reason))),
        };
        let count = progress.iterations.len();
        if let Some(node) = self.progress(id) {
            *node = Progress::Loop(Box::new(progress));
        }
        let path = self.node(id).record.path.clone();
        for index in 0..count {
            let iteration = path.iteration(index);
            if !self.known.get(&iteration).is_some_and(TaskRecord::is_decided) {
                continue;
            }
            let record = self.known.remove(&iteration);
            let is_final = record.as_ref().is_some_and(|record| record.state.is_final());
            let iteration = self.add_iteration(id, index, record);
            if let (false, Some(Progress::Loop(progress))) = (is_final, self.progress(id)) {
                progress.running += 1;
            }
            self.resume(iteration, open);
        }
        self.steps.push_back(Step::Advance(id));
    }

    /// Goes on with a task that was reached before.
    fn resume(&mut self, id: NodeId, open: &mut Vec<NodeId>) {
        let plan = Arc::clone(&self.plan);
        let node = self.node(id);
        let is_loop = node.record.iteration.is_none() && node.task(&plan).is_some_and(|task| task.iterator.is_some());
        match (node.record.state, node.record.next_attempt_at) {
            (state, _) if state.is_final() => {}
            (TaskState::Pending, Some(due)) => self.await_backoff(id, due),
            _ if is_loop || matches!(node.component(&plan).body, Body::Graph(_)) => open.push(id),
            _ => self.await_attempt(id),
        }
    }
}

/// Resets the records of a run for its retry, and returns the paths of those that changed. Graphs that are entered again are running,
/// and tasks that are done again are pending with no attempt due, which means that they are still to be decided.
fn reopen_run(plan: &Plan, records: &mut BTreeMap<TaskPath, TaskRecord>, now: i64) -> Vec<TaskPath> {
    let mut changed = Vec::new();
    let root = TaskPath::default();
    match records.get_mut(&root) {
        // Its parameters were refused, so it starts from the beginning.
        Some(record) if record.started_at.is_none() => {
            records.remove(&root);
            return changed;
        }
        Some(record) => reopen(record, now),
        None => return changed,
    }
    changed.push(root.clone());
    let mut graphs = vec![(root, 0)];
    while let Some((path, component)) = graphs.pop() {
        let graph = plan.graph(component);
        let mut is_kept = vec![false; graph.tasks.len()];
        for index in topological_order(&graph.tasks) {
            let task = &graph.tasks[index];
            let follows_kept = task.dependencies.iter().all(|dependency| is_kept[*dependency]);
            let path = path.task(&task.name);
            let Some(record) = records.get_mut(&path) else { continue };
            let is_good = matches!(record.state, TaskState::Succeeded | TaskState::Cached | TaskState::Skipped);
            if is_good && follows_kept {
                is_kept[index] = true;
            } else if !is_good && follows_kept && record.started_at.is_some() && task.iterator.is_some() {
                reopen(record, now);
                let iterations = record.iterations.unwrap_or(0);
                changed.push(path.clone());
                for index in 0..iterations {
                    let path = path.iteration(index);
                    let Some(record) = records.get_mut(&path) else { continue };
                    if record.state.has_outputs() {
                        continue;
                    }
                    if record.started_at.is_some() && matches!(plan.components[task.component].body, Body::Graph(_)) {
                        reopen(record, now);
                        graphs.push((path.clone(), task.component));
                    } else {
                        redo(record, now);
                    }
                    changed.push(path);
                }
            } else if !is_good
                && follows_kept
                && record.started_at.is_some()
                && matches!(plan.components[task.component].body, Body::Graph(_))
            {
                reopen(record, now);
                changed.push(path.clone());
                graphs.push((path, task.component));
            } else {
                redo_all(&path, records, now, &mut changed);
            }
        }
    }
    changed
}

/// Lets a graph or a loop run again with the tasks that it has.
fn reopen(record: &mut TaskRecord, now: i64) {
    record.enter(TaskState::Running, now);
    record.cancel = Cancellation::No;
    forget_end(record);
}

fn forget_end(record: &mut TaskRecord) {
    record.finished_at = None;
    record.failure = None;
    record.outputs = Arc::default();
}

/// Forgets what came of a task, but not the number of its attempts, for a number stands for one attempt forever.
fn redo(record: &mut TaskRecord, now: i64) {
    record.enter(TaskState::Pending, now);
    forget_end(record);
    record.earlier_attempts = record.attempt;
    record.started_at = None;
    record.next_attempt_at = None;
    record.fingerprint = None;
    record.cached_from = None;
    record.iterations = None;
}

/// Does the task at `path` again, and all that it contains.
fn redo_all(path: &TaskPath, records: &mut BTreeMap<TaskPath, TaskRecord>, now: i64, changed: &mut Vec<TaskPath>) {
    let is_inside = |other: &TaskPath| {
        other.0.strip_prefix(&path.0).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '[']))
    };
    for (path, record) in records.range_mut(path.clone()..).take_while(|(other, _)| other.0.starts_with(&path.0)) {
        if is_inside(path) {
            redo(record, now);
            changed.push(path.clone());
        }
    }
}
