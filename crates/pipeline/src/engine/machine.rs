//! The state machine of a run: events, and the start of tasks, graphs, and loops.
//!
//! An event changes the nodes that it concerns, and what follows from it is put on a list of steps which is worked off before `apply`
//! returns. Nothing recurses, and no step looks at more tasks than it decides.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::budget::Budget;
use crate::condition;
use crate::model::{RunInfo, TaskPath, TaskState};

use super::node::{GraphProgress, LoopProgress, Node, NodeId, Progress, Slot};
use super::plan::{Body, Component, MAX_TASKS, Plan, Task};
use super::record::{Cancellation, Effect, Event, Limits, Parameters, TaskKind, TaskRecord};
use super::resolve::{self, LoopItems, Scope};

/// The state of a run.
#[derive(Debug)]
pub struct Machine {
    pub(super) plan: Arc<Plan>,
    pub(super) run: Arc<RunInfo>,
    pub(super) limits: Limits,
    pub(super) nodes: Vec<Option<Box<Node>>>,
    free: Vec<NodeId>,
    /// Executions that have not ended: what events refer to.
    pub(super) live: BTreeMap<TaskPath, NodeId>,
    /// Executions that wait for a place, in the order in which they get one. Entries that wait no more are skipped.
    pub(super) queue: VecDeque<NodeId>,
    /// Attempts that run.
    pub(super) running: usize,
    /// When attempts are due.
    pub(super) timers: BTreeSet<(i64, NodeId)>,
    pub(super) steps: VecDeque<Step>,
    /// Records of a restored run whose tasks have not been reached again.
    pub(super) known: HashMap<TaskPath, TaskRecord>,
    changed: Vec<NodeId>,
    /// Graphs and loops that ended; their tasks are freed when the records have been handed out.
    pub(super) ended: Vec<NodeId>,
    pub(super) effects: Vec<Effect>,
    pub(super) cancel: Cancellation,
    /// Number of tasks that were reached.
    pub(super) reached: usize,
    pub(super) is_finished: bool,
    pub(super) now: i64,
    /// Bytes of the values of each node, and of all of them.
    pub(super) held: Vec<usize>,
    pub(super) live_bytes: usize,
    /// The work that is left for the expressions of the run.
    work: Budget,
}

/// Something that follows from an event.
#[derive(Debug)]
pub(super) enum Step {
    /// All dependencies of a task of this graph have ended.
    Decide(NodeId, usize),
    /// A task has ended.
    Ended(NodeId),
    /// A graph, or a loop, may be complete or go on.
    Advance(NodeId),
}

/// What becomes of a task whose dependencies have ended.
enum Decision {
    Start,
    End(TaskState),
}

impl Machine {
    /// Starts a run. The parameters have been checked by whoever accepted the run; invalid ones make it fail.
    pub fn start(
        plan: Arc<Plan>,
        run: Arc<RunInfo>,
        parameters: Parameters,
        limits: Limits,
        now: i64,
    ) -> (Self, Vec<Effect>) {
        let mut machine = Self::empty(plan, run, limits, now);
        machine.begin_root(parameters);
        let effects = machine.settle();
        (machine, effects)
    }

    pub(super) fn empty(plan: Arc<Plan>, run: Arc<RunInfo>, limits: Limits, now: i64) -> Self {
        Self {
            plan,
            run,
            limits,
            nodes: Vec::new(),
            free: Vec::new(),
            live: BTreeMap::new(),
            queue: VecDeque::new(),
            running: 0,
            timers: BTreeSet::new(),
            steps: VecDeque::new(),
            known: HashMap::new(),
            changed: Vec::new(),
            ended: Vec::new(),
            effects: Vec::new(),
            cancel: Cancellation::No,
            reached: 0,
            is_finished: false,
            now,
            held: Vec::new(),
            live_bytes: 0,
            work: condition::budget(),
        }
    }

    /// Notes an event, and returns what is to be done. Events that are late or repeated, as those of an attempt that has ended, have no
    /// effect.
    pub fn apply(&mut self, event: Event, now: i64) -> Vec<Effect> {
        if self.is_finished {
            return Vec::new();
        }
        self.now = now;
        match event {
            Event::CacheFound { path, outputs, cached_from } => self.cache_found(&path, outputs, cached_from),
            Event::CacheMissed { path } => self.cache_missed(&path),
            Event::Ended { path, attempt, outcome } => self.attempt_ended(&path, attempt, outcome),
            Event::Imported { path, result } => self.imported(&path, result),
            Event::Cancel => self.cancel(Cancellation::Graceful),
            Event::CancelEverything => self.cancel(Cancellation::Everything),
            Event::Time => self.wake(),
        }
        self.settle()
    }

    /// Whether the run has ended.
    pub fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Works off all steps, and hands out what is to be done: records first.
    pub(super) fn settle(&mut self) -> Vec<Effect> {
        loop {
            while let Some(step) = self.steps.pop_front() {
                match step {
                    Step::Decide(graph, task) => self.decide(graph, task),
                    Step::Ended(id) => self.task_ended(id),
                    Step::Advance(id) => self.advance(id),
                }
            }
            self.fill_places();
            // An import that cannot be started ends at once.
            if self.steps.is_empty() {
                break;
            }
        }
        let mut effects = Vec::with_capacity(self.changed.len() + self.effects.len());
        for id in std::mem::take(&mut self.changed) {
            let Some(node) = self.nodes[id].as_mut() else { continue };
            node.is_changed = false;
            effects.push(Effect::Record(node.record.clone()));
            if matches!(node.progress, Progress::Ended) {
                node.record.inputs = resolve::no_inputs();
                self.weigh(id);
            }
        }
        effects.append(&mut self.effects);
        for id in std::mem::take(&mut self.ended) {
            self.free_tasks_of(id);
        }
        effects
    }

    // Nodes.

    pub(super) fn node(&self, id: NodeId) -> &Node {
        self.nodes[id]
            .as_deref()
            .expect("nodes are freed only when the graph around them has ended, and nothing refers to them any more")
    }

    /// The node, to be changed; its record is handed out at the end of the event.
    pub(super) fn change(&mut self, id: NodeId) -> &mut Node {
        let node = self.nodes[id]
            .as_deref_mut()
            .expect("nodes are freed only when the graph around them has ended, and nothing refers to them any more");
        if !node.is_changed {
            node.is_changed = true;
            self.changed.push(id);
        }
        node
    }

    /// The node, to change what is not in its record.
    pub(super) fn progress(&mut self, id: NodeId) -> Option<&mut Progress> {
        self.nodes.get_mut(id)?.as_deref_mut().map(|node| &mut node.progress)
    }

    pub(super) fn add(&mut self, node: Node) -> NodeId {
        self.reached += 1;
        let node = Some(Box::new(node));
        let id = if let Some(id) = self.free.pop() {
            self.nodes[id] = node;
            id
        } else {
            self.nodes.push(node);
            self.nodes.len() - 1
        };
        self.weigh(id);
        id
    }

    fn free_tasks_of(&mut self, id: NodeId) {
        // The nodes of an inner graph are freed before it, as it ended before.
        let Some(node) = self.nodes[id].as_mut() else { return };
        node.record.inputs = resolve::no_inputs();
        let tasks: Vec<NodeId> = match std::mem::replace(&mut node.progress, Progress::Ended) {
            Progress::Graph(graph) => graph
                .tasks
                .into_iter()
                .filter_map(|slot| if let Slot::Reached(task) = slot { Some(task) } else { None })
                .collect(),
            Progress::Loop(progress) => progress.iterations.into_iter().flatten().collect(),
            Progress::Ended | Progress::Execution(_) => Vec::new(),
        };
        self.weigh(id);
        for task in tasks {
            self.nodes[task] = None;
            self.weigh(task);
            self.free.push(task);
        }
    }

    /// Whether the node is to be stopped.
    pub(super) fn is_canceled(&self, is_exit: bool) -> bool {
        match self.cancel {
            Cancellation::No => false,
            Cancellation::Graceful => !is_exit,
            Cancellation::Everything => true,
        }
    }

    /// The node of a task of the graph `graph`.
    pub(super) fn sibling(&self, graph: NodeId, task: usize) -> Option<&TaskRecord> {
        match &self.node(graph).progress {
            Progress::Graph(progress) => match progress.tasks[task] {
                Slot::Reached(id) => Some(&self.node(id).record),
                Slot::Waiting(_) => None,
            },
            _ => None,
        }
    }

    /// Calls `f` with what the task at `path` in the graph `graph` can refer to.
    pub(super) fn with_scope<T>(&self, graph: NodeId, path: &TaskPath, f: impl FnOnce(&Scope<'_>) -> T) -> T {
        f(&Scope {
            run: &self.run,
            path,
            graph: &self.node(graph).record.inputs,
            task: &|task| self.sibling(graph, task),
            memory: &self.memory(),
            work: &self.work,
        })
    }

    // Tasks.

    pub(super) fn begin_root(&mut self, parameters: Parameters) {
        let plan = Arc::clone(&self.plan);
        let path = TaskPath::default();
        let mut record = self.new_record(path, None, "root", "root", TaskKind::Root);
        let inputs = resolve::root_inputs(&plan.components[0], parameters);
        record.inputs = inputs.as_ref().map_or_else(|_| resolve::no_inputs(), |inputs| Arc::new(inputs.clone()));
        let id = self.add(Node {
            record,
            parent: None,
            task: None,
            is_exit: false,
            retry: None,
            progress: Progress::Ended,
            is_changed: false,
        });
        match inputs {
            Ok(_) => self.begin_graph(id),
            Err(reason) => self.end(id, TaskState::Failed, Some(resolve::failure(reason))),
        }
    }

    /// A record for a task that is reached. What an earlier life of the run recorded of it is kept.
    fn new_record(
        &mut self,
        path: TaskPath,
        parent: Option<TaskPath>,
        name: &str,
        display_name: &str,
        kind: TaskKind,
    ) -> TaskRecord {
        let known = self.known.remove(&path);
        let (attempt, earlier_attempts, created_at, history) = known.map_or((0, 0, self.now, Vec::new()), |known| {
            (known.attempt, known.earlier_attempts, known.created_at, known.history)
        });
        TaskRecord {
            path,
            parent,
            task_name: name.to_owned(),
            display_name: display_name.to_owned(),
            kind,
            state: TaskState::Pending,
            attempt,
            earlier_attempts,
            inputs: resolve::no_inputs(),
            outputs: Arc::default(),
            created_at,
            started_at: None,
            finished_at: None,
            failure: None,
            fingerprint: None,
            cached_from: None,
            history,
            iteration: None,
            iterations: None,
            next_attempt_at: None,
            cancel: Cancellation::No,
        }
    }

    /// Decides on a task whose dependencies have all ended.
    fn decide(&mut self, graph: NodeId, index: usize) {
        let plan = Arc::clone(&self.plan);
        let component = self.component_index(graph);
        let task = &plan.graph(component).tasks[index];
        let decision = self.decision(graph, task);
        let parent = self.node(graph);
        let (parent_path, parent_retry, parent_is_exit) = (parent.record.path.clone(), parent.retry, parent.is_exit);
        let path = parent_path.task(&task.name);
        let kind = kind(task.iterator.is_some(), &plan.components[task.component], false);
        let record = self.new_record(path, Some(parent_path), &task.name, &task.display_name, kind);
        let id = self.add(Node {
            record,
            parent: Some(graph),
            task: Some((component, index)),
            is_exit: parent_is_exit || task.runs_after_failure,
            retry: task.retry.or(parent_retry),
            progress: Progress::Ended,
            is_changed: false,
        });
        if let Some(Progress::Graph(progress)) = self.progress(graph) {
            progress.tasks[index] = Slot::Reached(id);
        }
        match decision {
            Decision::End(state) => self.end(id, state, None),
            Decision::Start => self.begin(id, graph, task, &plan),
        }
    }

    /// The component of a graph's node.
    pub(super) fn component_index(&self, graph: NodeId) -> usize {
        self.node(graph).task(&self.plan).map_or(0, |task| task.component)
    }

    fn decision(&self, graph: NodeId, task: &Task) -> Decision {
        let states = || task.dependencies.iter().filter_map(|dependency| self.sibling(graph, *dependency));
        let is_canceled = self.is_canceled(self.node(graph).is_exit);
        if task.runs_after_failure {
            // A task for the end of others has nothing to do if none of them has begun.
            let has_begun = task.dependencies.is_empty() && !is_canceled
                || states().any(|record| {
                    matches!(record.state, TaskState::Succeeded | TaskState::Cached | TaskState::Failed)
                        || record.started_at.is_some()
                });
            return match has_begun {
                true if self.cancel == Cancellation::Everything => Decision::End(TaskState::Canceled),
                true => Decision::Start,
                false if is_canceled => Decision::End(TaskState::Canceled),
                false => Decision::End(TaskState::Skipped),
            };
        }
        if is_canceled {
            Decision::End(TaskState::Canceled)
        } else if states().all(|record| record.state.has_outputs()) {
            Decision::Start
        } else {
            Decision::End(TaskState::Skipped)
        }
    }

    /// Resolves the inputs of a task, evaluates its condition, and starts it.
    fn begin(&mut self, id: NodeId, graph: NodeId, task: &Task, plan: &Plan) {
        let component = &plan.components[task.component];
        let inputs =
            self.with_scope(graph, &self.node(id).record.path, |scope| resolve::inputs(task, component, scope));
        let inputs = match inputs {
            Ok(inputs) => inputs,
            Err(reason) => return self.end(id, TaskState::Failed, Some(resolve::failure(reason))),
        };
        let is_triggered =
            task.condition.as_ref().map_or(Ok(true), |condition| condition.evaluate(&inputs, &self.work));
        self.change(id).record.inputs = Arc::new(inputs);
        self.weigh(id);
        match is_triggered {
            Ok(true) if self.reached > MAX_TASKS => self.end_too_many(id),
            Ok(true) if task.iterator.is_some() => self.begin_loop(id),
            Ok(true) => self.begin_body(id),
            Ok(false) => self.end(id, TaskState::Skipped, None),
            Err(reason) => self.end(id, TaskState::Failed, Some(resolve::failure(format!("condition: {reason}")))),
        }
    }

    fn end_too_many(&mut self, id: NodeId) {
        let reason = format!(
            "The run has more than {MAX_TASKS} tasks, iterations of loops included. Split the items over several runs."
        );
        self.end(id, TaskState::Failed, Some(resolve::failure(reason)));
    }

    /// Starts what the component of a task or an iteration is, with inputs that are known.
    pub(super) fn begin_body(&mut self, id: NodeId) {
        let plan = Arc::clone(&self.plan);
        match &self.node(id).component(&plan).body {
            Body::Graph(_) => self.begin_graph(id),
            Body::Container(container) => self.begin_container(id, container),
            Body::Importer(_) => self.enqueue(id),
            Body::Unsupported(what) => {
                let reason = format!("The executor is a {what}, which only exists on Google Cloud.");
                self.end(id, TaskState::Failed, Some(resolve::failure(reason)));
            }
        }
    }

    fn begin_graph(&mut self, id: NodeId) {
        let now = self.now;
        let node = self.change(id);
        node.record.enter(TaskState::Running, now);
        node.record.started_at.get_or_insert(now);
        let plan = Arc::clone(&self.plan);
        let graph = plan.graph(self.component_index(id));
        let tasks: Vec<Slot> = graph.tasks.iter().map(|task| Slot::Waiting(task.dependencies.len())).collect();
        self.change(id).progress = Progress::Graph(GraphProgress { open: tasks.len(), tasks });
        for (index, task) in graph.tasks.iter().enumerate() {
            if task.dependencies.is_empty() {
                self.steps.push_back(Step::Decide(id, index));
            }
        }
        if graph.tasks.is_empty() {
            self.steps.push_back(Step::Advance(id));
        }
    }

    fn begin_loop(&mut self, id: NodeId) {
        let items = match self.loop_progress(id) {
            Ok(progress) => progress,
            Err(reason) => return self.end(id, TaskState::Failed, Some(resolve::failure(reason))),
        };
        if self.reached.saturating_add(items.iterations.len()) > MAX_TASKS {
            return self.end_too_many(id);
        }
        let now = self.now;
        let node = self.change(id);
        node.record.enter(TaskState::Running, now);
        node.record.started_at.get_or_insert(now);
        node.record.iterations = Some(items.iterations.len());
        node.progress = Progress::Loop(Box::new(items));
        self.steps.push_back(Step::Advance(id));
    }

    /// The progress of a loop of which no iteration has been started.
    pub(super) fn loop_progress(&self, id: NodeId) -> Result<LoopProgress, String> {
        let node = self.node(id);
        let iterator = node
            .task(&self.plan)
            .and_then(|task| task.iterator.as_ref())
            .ok_or_else(|| "The task is recorded as a loop, but the pipeline has none there.".to_owned())?;
        let items = LoopItems::new(iterator, &node.record.inputs)?;
        let common = resolve::common_inputs(iterator, &node.record.inputs);
        Ok(LoopProgress { iterations: vec![None; items.len()], items, common, next: 0, running: 0 })
    }

    /// Makes the node of an iteration, without starting it.
    pub(super) fn add_iteration(&mut self, of: NodeId, index: usize, record: Option<TaskRecord>) -> NodeId {
        let plan = Arc::clone(&self.plan);
        let node = self.node(of);
        let (task, is_exit, retry, path) = (node.task, node.is_exit, node.retry, node.record.path.clone());
        let (name, display_name) = (node.record.task_name.clone(), node.record.display_name.clone());
        let kind = kind(false, node.component(&plan), true);
        let mut record =
            record.unwrap_or_else(|| self.new_record(path.iteration(index), Some(path), &name, &display_name, kind));
        record.iteration = Some(index);
        let id = self.add(Node {
            record,
            parent: Some(of),
            task,
            is_exit,
            retry,
            progress: Progress::Ended,
            is_changed: false,
        });
        if let Some(Progress::Loop(progress)) = self.progress(of) {
            progress.iterations[index] = Some(id);
        }
        id
    }

    pub(super) fn begin_iteration(&mut self, of: NodeId, index: usize) {
        let plan = Arc::clone(&self.plan);
        let id = self.add_iteration(of, index, None);
        let node = self.node(of);
        let component = node.component(&plan);
        let inputs = match (&node.progress, node.task(&plan).and_then(|task| task.iterator.as_ref())) {
            (Progress::Loop(progress), Some(iterator)) => {
                let memory = self.memory();
                resolve::iteration_inputs(iterator, component, &progress.common, &progress.items, index, &memory)
            }
            _ => Err("The task is not a loop.".to_owned()),
        };
        match inputs {
            Ok(inputs) => {
                self.change(id).record.inputs = Arc::new(inputs);
                self.weigh(id);
                self.begin_body(id);
            }
            Err(reason) => self.end(id, TaskState::Failed, Some(resolve::failure(reason))),
        }
    }
}

/// The kind of a task that executes a component.
fn kind(is_loop: bool, component: &Component, is_iteration: bool) -> TaskKind {
    match &component.body {
        _ if is_loop => TaskKind::Loop,
        Body::Graph(_) if is_iteration => TaskKind::Iteration,
        Body::Graph(_) => TaskKind::Dag,
        Body::Importer(_) => TaskKind::Importer,
        Body::Container(_) | Body::Unsupported(_) => TaskKind::Container,
    }
}
