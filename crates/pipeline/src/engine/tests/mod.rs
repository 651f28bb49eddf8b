//! A driver with a simulated launcher, for tests of the engine.

mod control_flow;
mod corpus;
mod crashes;
mod executions;
mod memory;
mod speed;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::executor_input::schema;
use crate::ir::read;
use crate::model::{Artifact, Failure, Launch, Outcome, Outputs, RunInfo, RunState, TaskPath, TaskState};
use crate::value::{Kind, kind};

/// How an attempt ends.
type Execute = Box<dyn FnMut(&Launch) -> Outcome>;

/// A run with its store, its launcher, and its clock.
struct Simulation {
    plan: Arc<Plan>,
    run: Arc<RunInfo>,
    parameters: Parameters,
    limits: Limits,
    machine: Machine,
    store: BTreeMap<TaskPath, TaskRecord>,
    /// What has been requested and has not happened.
    pending: VecDeque<Effect>,
    now: i64,
    execute: Execute,
    launches: Vec<Launch>,
    imports: Vec<ImportRequest>,
    /// Attempts that were executed; a second execution of one is an error.
    executed: BTreeMap<(TaskPath, u32), Outcome>,
    stopped: BTreeSet<(TaskPath, u32)>,
    cache: BTreeMap<String, Outputs>,
    end: Option<(RunState, Option<Failure>)>,
}

fn run_info() -> Arc<RunInfo> {
    Arc::new(RunInfo {
        run_id: "run-1".to_owned(),
        resource_name: "run-1-name".to_owned(),
        display_name: "A run".to_owned(),
        pipeline_name: "pipeline".to_owned(),
        ..RunInfo::default()
    })
}

fn plan_of(text: &str) -> Arc<Plan> {
    Arc::new(Plan::new(Arc::new(read::read(text).unwrap())).unwrap())
}

impl Simulation {
    fn new(
        plan: Arc<Plan>,
        parameters: Value,
        limits: Limits,
        execute: impl FnMut(&Launch) -> Outcome + 'static,
    ) -> Self {
        let parameters: Parameters = serde_json::from_value(parameters).unwrap();
        let run = run_info();
        let (machine, effects) =
            Machine::start(Arc::clone(&plan), Arc::clone(&run), parameters.clone(), limits.clone(), 1);
        let mut simulation = Self {
            plan,
            run,
            parameters,
            limits,
            machine,
            store: BTreeMap::new(),
            pending: VecDeque::new(),
            now: 1,
            execute: Box::new(execute),
            launches: Vec::new(),
            imports: Vec::new(),
            executed: BTreeMap::new(),
            stopped: BTreeSet::new(),
            cache: BTreeMap::new(),
            end: None,
        };
        simulation.perform(effects);
        simulation
    }

    /// Runs to the end, events in the order of their causes.
    fn finish(mut self) -> Self {
        for _ in 0..1_000_000 {
            if self.end.is_some() {
                assert!(
                    self.store.values().all(|record| record.state.is_final()),
                    "a task of a finished run has not ended"
                );
                return self;
            }
            self.step(0);
        }
        panic!("the run does not end");
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        let mut are_records_over = false;
        for effect in effects {
            match effect {
                Effect::Record(record) => {
                    assert!(!are_records_over, "records come first");
                    if record.state.has_outputs()
                        && let Some(fingerprint) = &record.fingerprint
                    {
                        self.cache.insert(fingerprint.clone(), (*record.outputs).clone());
                    }
                    self.store.insert(record.path.clone(), record);
                }
                effect => {
                    are_records_over = true;
                    match effect {
                        Effect::Finished { state, failure } => self.end = Some((state, failure)),
                        Effect::Stop { path, attempt } => {
                            self.stopped.insert((path, attempt));
                        }
                        Effect::Launch(launch) => {
                            let record = &self.store[&launch.path];
                            assert_eq!(
                                (record.state, record.attempt),
                                (TaskState::Running, launch.attempt),
                                "{}",
                                launch.path
                            );
                            self.pending.push_back(Effect::Launch(launch));
                        }
                        other => self.pending.push_back(other),
                    }
                }
            }
        }
    }

    /// Lets one of the pending things happen.
    fn step(&mut self, choice: usize) {
        let Some(event) = self.event(choice) else {
            panic!("nothing is pending, but the run has not ended: {:#?}", self.machine)
        };
        let effects = self.apply(event);
        self.perform(effects);
    }

    fn apply(&mut self, event: Event) -> Vec<Effect> {
        self.now += 1;
        self.machine.apply(event, self.now)
    }

    fn send(&mut self, event: Event) {
        let effects = self.apply(event);
        self.perform(effects);
    }

    fn event(&mut self, choice: usize) -> Option<Event> {
        let at = choice % self.pending.len().max(1);
        Some(match self.pending.remove(at)? {
            Effect::LookUpCache { path, fingerprint, max_staleness } => match self.cache.get(&fingerprint) {
                Some(outputs) if max_staleness.is_none_or(|staleness| !staleness.is_zero()) => {
                    Event::CacheFound { path, outputs: outputs.clone(), cached_from: "earlier".to_owned() }
                }
                _ => Event::CacheMissed { path },
            },
            Effect::Launch(launch) => {
                let key = (launch.path.clone(), launch.attempt);
                let outcome = if let Some(outcome) = self.executed.get(&key) {
                    outcome.clone()
                } else {
                    let outcome = if self.stopped.contains(&key) { Outcome::Canceled } else { (self.execute)(&launch) };
                    self.executed.insert(key, outcome.clone());
                    self.launches.push(launch.clone());
                    outcome
                };
                Event::Ended { path: launch.path, attempt: launch.attempt, outcome }
            }
            Effect::Import { path, request } => {
                let artifact = Artifact {
                    id: format!("artifact of {path}"),
                    uri: request.uri.clone(),
                    schema_title: request.schema_title.clone(),
                    metadata: request.metadata.clone(),
                    ..Artifact::default()
                };
                self.imports.push(request);
                Event::Imported { path, result: Ok(artifact) }
            }
            Effect::WakeAt(at) => {
                self.now = self.now.max(at);
                Event::Time
            }
            other => panic!("not to be performed: {other:?}"),
        })
    }

    /// Kills the server, and starts it again with the records that were written.
    fn kill(&mut self) {
        self.pending.clear();
        // The store gives back what it was given, in JSON.
        let records = serde_json::to_string(&self.store.values().collect::<Vec<_>>()).unwrap();
        let records: Vec<TaskRecord> = serde_json::from_str(&records).unwrap();
        let (machine, effects) = Machine::restore(
            Arc::clone(&self.plan),
            Arc::clone(&self.run),
            self.parameters.clone(),
            self.limits.clone(),
            records,
            self.now,
        );
        self.machine = machine;
        self.perform(effects);
    }

    /// Retries the run after its end.
    fn retry(&mut self, execute: impl FnMut(&Launch) -> Outcome + 'static) {
        self.execute = Box::new(execute);
        self.end = None;
        self.launches.clear();
        self.now += 1000;
        let (machine, effects) = Machine::retry(
            Arc::clone(&self.plan),
            Arc::clone(&self.run),
            self.parameters.clone(),
            self.limits.clone(),
            self.store.values().cloned().collect(),
            self.now,
        );
        self.machine = machine;
        // Records come first in both lists that a retry joins.
        let (records, others): (Vec<_>, Vec<_>) =
            effects.into_iter().partition(|effect| matches!(effect, Effect::Record(_)));
        self.perform(records.into_iter().chain(others).collect());
    }

    fn state(&self, path: &str) -> Option<TaskState> {
        self.store.get(&TaskPath(path.to_owned())).map(|record| record.state)
    }

    fn record(&self, path: &str) -> &TaskRecord {
        &self.store[&TaskPath(path.to_owned())]
    }

    fn run_state(&self) -> RunState {
        self.end.as_ref().unwrap().0
    }

    fn message(&self) -> String {
        self.end.as_ref().unwrap().1.as_ref().map_or(String::new(), |failure| failure.message.clone())
    }

    /// Paths of the executions, in the order of their ends.
    fn launched(&self) -> Vec<String> {
        self.launches.iter().map(|launch| launch.path.0.clone()).collect()
    }
}

fn failed(message: &str) -> Outcome {
    Outcome::Failed(Failure { message: message.to_owned(), exit_code: Some(1), is_permanent: false })
}

/// Outputs of every declared kind.
fn declared_outputs(launch: &Launch) -> Outputs {
    let mut outputs = Outputs::default();
    let Some(declared) = &launch.component.output_definitions else { return outputs };
    for (name, parameter) in &declared.parameters {
        let value = match kind(parameter.parameter_type) {
            Some(Kind::Integer) => json!(1),
            Some(Kind::Double) => json!(0.5),
            Some(Kind::Boolean) => json!(true),
            Some(Kind::List) => json!([{"A_a": "heads", "B_b": ["1", "2"]}, {"A_a": "tails", "B_b": ["3"]}]),
            Some(Kind::Struct) => json!({"a": 1}),
            _ => json!("1"),
        };
        outputs.parameters.insert(name.clone(), value);
    }
    for (name, artifact) in &declared.artifacts {
        let (schema_title, schema_version) = schema(artifact.artifact_type.as_ref());
        let artifact = Artifact {
            id: format!("{} {name}", launch.path),
            uri: format!("s3://{}/{name}", launch.path),
            schema_title,
            schema_version,
            ..Artifact::default()
        };
        outputs.artifacts.insert(name.clone(), vec![artifact]);
    }
    outputs
}

fn succeed(launch: &Launch) -> Outcome {
    Outcome::Succeeded(declared_outputs(launch))
}

/// Succeeds with one output parameter.
fn output(value: impl Into<Value>) -> Outcome {
    Outcome::Succeeded(Outputs { parameters: [("Output".to_owned(), value.into())].into(), ..Outputs::default() })
}

/// A pipeline with the given tasks of the root and further components. `step` executes; it takes an optional `x` and has an `Output`.
fn pipeline(root: Value, components: Value) -> Arc<Plan> {
    Arc::new(Plan::new(Arc::new(read::read_json(specification(root, components)).unwrap())).unwrap())
}

fn specification(root: Value, mut components: Value) -> Value {
    let io = json!({"parameters": {"Output": {"parameterType": "STRING"}}});
    components["step"] = json!({
        "executorLabel": "step",
        "inputDefinitions": {"parameters": {
            "x": {"parameterType": "STRING", "isOptional": true},
            "status": {"parameterType": "TASK_FINAL_STATUS", "isOptional": true},
        }},
        "outputDefinitions": io,
    });
    json!({
        "schemaVersion": "2.1.0",
        "pipelineInfo": {"name": "pipeline"},
        "root": root,
        "components": components,
        "deploymentSpec": {"executors": {"step": {"container": {"image": "image", "command": ["run"]}}}},
    })
}

/// A task with a component and further fields.
fn task(component: &str, mut fields: Value) -> Value {
    fields["componentRef"] = json!({"name": component});
    fields
}

/// A component which is a graph.
fn dag(tasks: Value) -> Value {
    json!({"dag": {"tasks": tasks}})
}
