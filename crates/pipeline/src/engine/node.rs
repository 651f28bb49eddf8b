//! What the machine knows of a task: its record, and how far it is.
//!
//! Nodes live in an arena and refer to each other by index. A node of a task that has ended keeps only what other tasks of its graph can
//! refer to; when a graph ends, the nodes of its tasks are freed.

use crate::model::Inputs;

use super::plan::{Component, Graph, Plan, Retry, Task};
use super::record::TaskRecord;
use super::resolve::LoopItems;

/// Index of a node.
pub(super) type NodeId = usize;

/// A task that was reached.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) record: TaskRecord,
    /// The graph or loop that it belongs to; `None` for the root.
    pub(super) parent: Option<NodeId>,
    /// The component whose graph contains the task, and the task's index there; `None` for the root.
    pub(super) task: Option<(usize, usize)>,
    /// Whether it belongs to an exit task: then canceling the run does not stop it.
    pub(super) is_exit: bool,
    /// When failed attempts are repeated: its own policy, or else that of a graph around it.
    pub(super) retry: Option<Retry>,
    pub(super) progress: Progress,
    /// Whether its record has changed since it was last handed out.
    pub(super) is_changed: bool,
}

/// How far a task is.
#[derive(Debug)]
pub(super) enum Progress {
    /// It has ended.
    Ended,
    /// It executes or imports something.
    Execution(Waiting),
    Graph(GraphProgress),
    Loop(Box<LoopProgress>),
}

/// What an execution waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// The cache.
    Cache,
    /// A place among the tasks that may run at the same time.
    Queue,
    /// The time of its next attempt.
    Backoff(i64),
    /// Its end.
    Running,
}

/// Progress of a graph.
#[derive(Debug)]
pub(super) struct GraphProgress {
    /// For each task of the graph: its node, or the number of dependencies that have not ended.
    pub(super) tasks: Vec<Slot>,
    /// Tasks that have not ended.
    pub(super) open: usize,
}

/// A task of a graph.
#[derive(Debug, Clone, Copy)]
pub(super) enum Slot {
    Waiting(usize),
    Reached(NodeId),
}

/// Progress of a loop.
pub(super) struct LoopProgress {
    pub(super) items: LoopItems,
    /// The inputs that all iterations get.
    pub(super) common: Inputs,
    /// For each item its iteration, once it was started.
    pub(super) iterations: Vec<Option<NodeId>>,
    /// First iteration that may not have been started.
    pub(super) next: usize,
    /// Iterations that were started and have not ended.
    pub(super) running: usize,
}

impl std::fmt::Debug for LoopProgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoopProgress")
            .field("iterations", &self.iterations)
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// The plan of the task; `None` for the root.
    pub(super) fn task<'a>(&self, plan: &'a Plan) -> Option<&'a Task> {
        let (component, task) = self.task?;
        plan.graph(component).tasks.get(task)
    }

    /// The component that the task executes.
    pub(super) fn component<'a>(&self, plan: &'a Plan) -> &'a Component {
        &plan.components[self.task(plan).map_or(0, |task| task.component)]
    }
}

impl Plan {
    /// The graph of a component, which is empty if the component is none.
    pub(super) fn graph(&self, component: usize) -> &Graph {
        static EMPTY: Graph = Graph::EMPTY;
        match &self.components[component].body {
            super::plan::Body::Graph(graph) => graph,
            _ => &EMPTY,
        }
    }
}
