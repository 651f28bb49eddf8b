//! The engine: what happens next in a run is a pure function of its pipeline and of what is recorded of its tasks.
//!
//! [`Plan`] is a pipeline, compiled. [`Machine`] is the state of one run: it turns [`Event`]s into [`Effect`]s and performs nothing
//! itself, so it needs no clock and no store. The driver writes the records among the effects before it performs the others; whatever
//! prefix of the records a crash leaves, [`Machine::restore`] goes on from there, and the run ends as without it.
//!
//! | module | contents |
//! |---|---|
//! | `plan`, `compile`, `references` | pipelines, compiled |
//! | `resolve` | inputs of tasks and outputs of graphs |
//! | `node` | what the machine knows of a task |
//! | `machine`, `ending` | the start and the end of tasks, graphs, and loops; cancellation |
//! | `memory` | how much memory the values of a run take |
//! | `execution` | attempts, retries, cache, and imports of tasks that execute something |
//! | `restore` | going on after a crash, and retrying a failed run |
//! | `record` | records, events, and effects |

mod compile;
mod ending;
mod execution;
mod machine;
mod memory;
mod node;
mod plan;
mod record;
mod references;
mod resolve;
mod restore;
#[cfg(test)]
mod tests;

pub use machine::Machine;
pub use plan::{MAX_DEPTH, MAX_TASKS, Plan};
pub use record::{Cancellation, Effect, Event, ImportRequest, Limits, Parameters, TaskKind, TaskRecord};
pub use resolve::task_id;
