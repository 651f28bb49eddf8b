//! What the tasks of a run occupied: their running time, multiplied by the processors and accelerators that they reserved.
//!
//! It is a pure function of the specification and the records of the tasks, so it is the same for processes and pods. Waiting, cached
//! and imported tasks occupy nothing.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::engine::{TaskKind, TaskRecord};
use crate::ir::Document;
use crate::model::TaskState;
use crate::outline::container_at;
use crate::platform;

/// Processors of a task that reserves none: on one machine it occupies one slot, and there is one slot for each processor.
const DEFAULT_PROCESSORS: f64 = 1.0;

/// What a run occupied.
#[derive(Debug, Clone, PartialEq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "PipelineReservations")]
pub struct Usage {
    /// Seconds in which its tasks ran, of all attempts. Tasks side by side count each.
    pub task_seconds: f64,
    /// These seconds times reserved processors. A task that reserves none counts as one processor.
    pub processor_seconds: f64,
    /// These seconds times reserved accelerators, by the name of the resource, such as `nvidia.com/gpu`.
    pub accelerator_seconds: BTreeMap<String, f64>,
    /// The tasks that ran, in the order in which they began.
    pub tasks: Vec<TaskUsage>,
}

/// What a task occupied.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "PipelineTaskReservation")]
pub struct TaskUsage {
    /// Path of the task.
    pub path: String,
    /// Seconds in which its attempts ran.
    pub seconds: f64,
    /// Processors that it reserved.
    pub processors: f64,
    /// Accelerators that it reserved, by the name of the resource.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub accelerators: BTreeMap<String, u32>,
}

/// Milliseconds in which a task ran; until `now`, if it still runs.
fn running(record: &TaskRecord, now: i64) -> i64 {
    let ends = record.history.iter().skip(1).map(|(at, _)| *at).chain([now]);
    let intervals = record.history.iter().zip(ends);
    intervals.filter(|((_, state), _)| *state == TaskState::Running).map(|((from, _), to)| (to - from).max(0)).sum()
}

impl Usage {
    /// What the tasks of a run have occupied until `now`, in milliseconds since the Unix epoch.
    pub fn new(document: &Document, records: &[TaskRecord], now: i64) -> Self {
        let mut usage = Self::default();
        for record in records.iter().filter(|record| record.kind == TaskKind::Container) {
            let time = running(record, now);
            let Some(container) = container_at(document, &record.path).filter(|_| time > 0) else { continue };
            let seconds = time as f64 / 1000.0;
            // Resources that cannot be resolved have failed the task before it ran.
            let resources = platform::resources(container, &record.inputs).unwrap_or_default();
            let processors = resources.amount("cpu").filter(|amount| *amount > 0.0).unwrap_or(DEFAULT_PROCESSORS);
            let accelerators: BTreeMap<_, _> = platform::accelerators(&resources).into_iter().collect();
            usage.task_seconds += seconds;
            usage.processor_seconds += seconds * processors;
            for (name, count) in &accelerators {
                *usage.accelerator_seconds.entry(name.clone()).or_default() += seconds * f64::from(*count);
            }
            usage.tasks.push(TaskUsage { path: record.path.0.clone(), seconds, processors, accelerators });
        }
        usage
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PIPELINE: &str = r#"
pipelineInfo: {name: p}
schemaVersion: 2.1.0
deploymentSpec:
  executors:
    plain: {container: {image: python}}
    large: {container: {image: python, resources: {resourceCpuLimit: "4", accelerator: {resourceType: NVIDIA_TESLA_T4, resourceCount: "{{$.inputs.parameters['gpus']}}"}}}}
components:
  plain: {executorLabel: plain}
  large: {executorLabel: large, inputDefinitions: {parameters: {gpus: {parameterType: STRING}}}}
root: {dag: {tasks: {prepare: {componentRef: {name: plain}}, train: {componentRef: {name: large}, inputs: {parameters: {gpus: {runtimeValue: {constant: "2"}}}}}, cached: {componentRef: {name: plain}}}}}
"#;

    fn record(path: &str, history: &[(i64, &str)], parameters: serde_json::Value) -> TaskRecord {
        serde_json::from_value(json!({
            "path": path, "parent": "", "taskName": path, "displayName": path, "kind": "CONTAINER", "createdAt": 0,
            "state": history.last().unwrap().1, "history": history, "inputs": {"parameters": parameters, "artifacts": {}},
        }))
        .unwrap()
    }

    #[test]
    fn running_attempts_occupy_what_they_reserve_and_waiting_occupies_nothing() {
        let document = crate::ir::read(PIPELINE).unwrap();
        let retried =
            [(0, "PENDING"), (1000, "RUNNING"), (3000, "PENDING"), (60_000, "RUNNING"), (64_000, "SUCCEEDED")];
        let records = [
            record("prepare", &[(0, "PENDING"), (5000, "RUNNING")], json!({})),
            record("train", &retried, json!({"gpus": "2"})),
            record("cached", &[(0, "PENDING"), (9000, "CACHED")], json!({})),
        ];
        let usage = Usage::new(&document, &records, 15_000);
        let paths: Vec<_> =
            usage.tasks.iter().map(|task| (task.path.as_str(), task.seconds, task.processors)).collect();
        assert_eq!(paths, [("prepare", 10.0, 1.0), ("train", 6.0, 4.0)]);
        assert_eq!((usage.task_seconds, usage.processor_seconds), (16.0, 34.0));
        assert_eq!(usage.accelerator_seconds, [("nvidia.com/gpu".to_owned(), 12.0)].into());
    }
}
