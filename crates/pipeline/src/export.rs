//! A pipeline as plain manifests for Kubernetes: a volume for the artifacts, and one Job for each task, in stages. Loops and conditions over
//! values that are known before the run are carried out; what depends on the value that a task returns cannot be expressed.
//!
//! Invariant: every value in the manifests was known before the run. The engine walks through the run as if every task succeeded, and
//! [`obstacles`] has made sure that nothing reads an output parameter, whose value is made up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use slipway_core::hex;

use crate::Error;
use crate::engine::{Effect, Event, Limits, Machine, Plan};
use crate::executor_input::{executor_input, schema};
use crate::graph::Graphs;
use crate::ir::Document;
use crate::ir::ml_pipelines::component_spec::Implementation;
use crate::ir::ml_pipelines::task_inputs_spec::input_parameter_spec::Kind as Source;
use crate::model::{Artifact, Launch, Outcome, Outputs, RunInfo, RunState};
use crate::placeholder::{Paths, Place, container_command};
use crate::platform::pod_settings;

/// Where the volume with the artifacts is mounted.
const ROOT: &str = "/slipway-artifacts";
/// Name of that volume in pods.
const VOLUME: &str = "slipway-artifacts";
/// Label of Jobs with the number of their stage: a Job needs only Jobs of earlier stages.
const STAGE_LABEL: &str = "slipway.dev/stage";
const PIPELINE_LABEL: &str = "slipway.dev/pipeline";
const TASK_ANNOTATION: &str = "slipway.dev/task";
/// Image that makes the folders of a task's outputs.
const FOLDERS_IMAGE: &str = "busybox:1.37";
/// Maximum characters of a name that a Job gives to its pods as a label.
const MAX_NAME: usize = 52;
/// Images of tasks that have no program.
const STUBS: &str = "argostub/";
/// Fields of a run's specification that belong to its container; the rest belongs to the pod.
const CONTAINER_FIELDS: &[&str] =
    &["image", "imagePullPolicy", "workingDir", "env", "envFrom", "resources", "volumeMounts", "securityContext"];
/// Fields of a run's specification that a pod does not have.
const RUN_FIELDS: &[&str] = &[
    "experiment",
    "command",
    "args",
    "data",
    "source",
    "queue",
    "queueSystem",
    "workloadPriorityClass",
    "topology",
    "backoffLimit",
    "ttlSecondsAfterFinished",
    "cancel",
];

/// The manifests of a pipeline.
#[derive(Debug)]
pub struct Manifests {
    /// The volume claim, then the Jobs in an order in which they can run.
    pub objects: Vec<Value>,
    /// Number of stages.
    pub stages: usize,
}

/// Makes the manifests of a pipeline with these parameters. `storage` is the size of the volume for artifacts, such as `10Gi`.
///
/// # Errors
/// [`Error::Specification`] with a line for each task that plain manifests cannot express; an error of the plan.
pub fn manifests(document: Document, parameters: BTreeMap<String, Value>, storage: &str) -> Result<Manifests, Error> {
    let obstacles = obstacles(&document);
    if !obstacles.is_empty() {
        return Err(Error::Specification(obstacles.join("\n")));
    }
    let pipeline = document.spec.pipeline_info.as_ref().map_or_else(|| "pipeline".into(), |info| info.name.clone());
    let name = object_name(&pipeline);
    let retries = retries(&document);
    let run = Arc::new(RunInfo {
        run_id: name.clone(),
        display_name: pipeline.clone(),
        resource_name: name.clone(),
        pipeline_name: pipeline,
        pipeline_root: ROOT.into(),
        ..RunInfo::default()
    });
    let plan = Arc::new(Plan::new(Arc::new(document))?);
    let limits = Limits { max_parallel_tasks: usize::MAX, use_cache: false, ..Limits::default() };
    let (mut machine, mut effects) = Machine::start(plan, run, parameters, limits, 0);
    let mut objects = vec![claim(&name, storage)];
    let mut names = BTreeSet::new();
    let mut stages = 0;
    loop {
        let mut events = Vec::new();
        let mut stage = Vec::new();
        let mut finished = None;
        for effect in effects {
            match effect {
                Effect::LookUpCache { path, .. } => events.push(Event::CacheMissed { path }),
                Effect::Launch(launch) => {
                    let (job, outputs) = job(&launch, &name, stages + 1, &retries, &mut names)
                        .map_err(|reason| Error::Specification(format!("task '{}': {reason}", launch.path)))?;
                    stage.push(job);
                    let (path, attempt) = (launch.path, launch.attempt);
                    events.push(Event::Ended { path, attempt, outcome: Outcome::Succeeded(outputs) });
                }
                Effect::Import { path, request } => {
                    if !request.uri.starts_with(ROOT) {
                        return Err(Error::Specification(format!(
                            "task '{path}' imports {}, which plain manifests do not fetch; mount a volume with it, or copy it below {ROOT}",
                            request.uri
                        )));
                    }
                    let artifact = Artifact { uri: request.uri, metadata: request.metadata, ..Artifact::default() };
                    events.push(Event::Imported { path, result: Ok(artifact) });
                }
                Effect::Finished { state, failure } => finished = Some((state, failure)),
                Effect::Record(_) | Effect::Stop { .. } | Effect::WakeAt(_) => {}
            }
        }
        if !stage.is_empty() {
            stages += 1;
            objects.append(&mut stage);
        }
        match finished {
            Some((RunState::Succeeded | RunState::Skipped, _)) => return Ok(Manifests { objects, stages }),
            Some((_, failure)) => {
                return Err(Error::Specification(failure.map_or_else(String::new, |failure| failure.message)));
            }
            None if events.is_empty() => {
                return Err(Error::Specification("the pipeline cannot be carried out to its end".into()));
            }
            None => {}
        }
        effects = events.into_iter().flat_map(|event| machine.apply(event, 0)).collect();
    }
}

/// What of a pipeline depends on values that are only known when tasks have run: a line for each task.
fn obstacles(document: &Document) -> Vec<String> {
    let mut found = Vec::new();
    let components = document.spec.components.values().chain(&document.spec.root);
    for component in components {
        let Some(Implementation::Dag(dag)) = &component.implementation else { continue };
        for (name, task) in &dag.tasks {
            for input in task.inputs.iter().flat_map(|inputs| inputs.parameters.values()) {
                if let Some(Source::TaskOutputParameter(output)) = &input.kind {
                    found.push(format!(
                        "task '{name}' needs the output '{}' of task '{}', whose value is only known when that has run; pass an artifact instead",
                        output.output_parameter_key, output.producer_task
                    ));
                }
            }
        }
    }
    let graphs = Graphs::new(document);
    for node in graphs.components.values().chain([&graphs.root]).flat_map(|graph| &graph.nodes) {
        if node.runs_after_failures {
            found.push(format!("task '{}' runs after failures, which Jobs cannot express", node.name));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The number of retries of tasks, by their name for users.
fn retries(document: &Document) -> BTreeMap<String, u32> {
    let graphs = Graphs::new(document);
    let nodes = graphs.components.values().chain([&graphs.root]).flat_map(|graph| &graph.nodes);
    nodes.map(|node| (node.display_name.clone(), node.retries)).collect()
}

/// A text as the name of an object: lowercase letters, digits and hyphens. A digest makes up for what is lost.
fn object_name(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars().map(|c| c.to_ascii_lowercase()) {
        match c {
            'a'..='z' | '0'..='9' => name.push(c),
            _ if name.ends_with('-') || name.is_empty() => {}
            _ => name.push('-'),
        }
    }
    let name = name.trim_end_matches('-');
    if name.len() <= MAX_NAME && !name.is_empty() {
        return name.to_owned();
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let start = name.get(..MAX_NAME - 9).unwrap_or(name);
    format!("{}-{}", if start.is_empty() { "task" } else { start }, hex::encode(&digest.as_ref()[..4]))
}

fn claim(name: &str, storage: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": { "name": claim_name(name), "labels": { PIPELINE_LABEL: name, STAGE_LABEL: "1" } },
        // Tasks of one stage run at the same time, perhaps on several nodes.
        "spec": { "accessModes": ["ReadWriteMany"], "resources": { "requests": { "storage": storage } } },
    })
}

fn claim_name(name: &str) -> String {
    format!("{name}-artifacts")
}

/// The Job of a task, and its outputs as later tasks see them.
fn job(
    launch: &Launch,
    pipeline: &str,
    stage: usize,
    retries: &BTreeMap<String, u32>,
    names: &mut BTreeSet<String>,
) -> Result<(Value, Outputs), String> {
    let mut name = object_name(&format!("{pipeline}-{}", launch.path));
    while !names.insert(name.clone()) {
        name = object_name(&format!("{name}-{}", names.len()));
    }
    let settings = pod_settings(launch)?;
    let image = settings.spec.image.clone().unwrap_or_default();
    if image.starts_with(STUBS) {
        return Err("it makes or deletes a volume; write a PersistentVolumeClaim, and mount it by its name".into());
    }
    if settings.uses_workspace {
        return Err("it uses the workspace of the run, which only slipway and Kubeflow make".into());
    }
    let (paths, outputs) = places(launch, &format!("{ROOT}/{name}"));
    let input = executor_input(launch, &paths).to_string();
    let (command, args) = container_command(launch, &paths, &input)?;

    let Value::Object(mut fields) = serde_json::to_value(&settings.spec).map_err(|error| error.to_string())? else {
        return Err("its settings are not an object".into());
    };
    RUN_FIELDS.iter().for_each(|field| drop(fields.remove(*field)));
    let mut container = Map::from_iter([("name".to_owned(), json!("main"))]);
    for field in CONTAINER_FIELDS {
        if let Some(value) = fields.remove(*field) {
            container.insert((*field).to_owned(), value);
        }
    }
    for (field, words) in [("command", command), ("args", args)] {
        if !words.is_empty() {
            container.insert(field.into(), json!(words));
        }
    }
    let mount = json!({ "name": VOLUME, "mountPath": ROOT });
    append(&mut container, "volumeMounts", mount.clone());
    let volume = json!({ "name": VOLUME, "persistentVolumeClaim": { "claimName": claim_name(pipeline) } });
    append(&mut fields, "volumes", volume);
    let folders = json!({
        "name": "folders",
        "image": FOLDERS_IMAGE,
        "command": ["mkdir", "-p", format!("{ROOT}/{name}/outputs")],
        "volumeMounts": [mount],
    });
    let init_containers: Vec<Value> = std::iter::once(folders).chain(settings.init_containers).collect();
    fields.insert("initContainers".into(), Value::Array(init_containers));
    fields.insert("containers".into(), json!([container]));
    fields.insert("restartPolicy".into(), json!("Never"));

    let mut labels = settings.labels;
    labels.insert(PIPELINE_LABEL.into(), pipeline.to_owned());
    labels.insert(STAGE_LABEL.into(), stage.to_string());
    let mut annotations = settings.annotations;
    annotations.insert(TASK_ANNOTATION.into(), launch.path.0.clone());
    let metadata = json!({ "labels": labels, "annotations": annotations });
    let mut own = metadata.clone();
    own["name"] = json!(name);
    let job = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": own,
        "spec": {
            "backoffLimit": retries.get(&launch.task_name).copied().unwrap_or(0),
            "template": { "metadata": metadata, "spec": fields },
        },
    });
    Ok((job, outputs))
}

/// Adds an element to a list, which is made if it is missing.
fn append(fields: &mut Map<String, Value>, name: &str, element: Value) {
    match fields.get_mut(name) {
        Some(Value::Array(list)) => list.push(element),
        _ => drop(fields.insert(name.to_owned(), json!([element]))),
    }
}

/// Where a task's inputs and outputs are on the volume.
fn places(launch: &Launch, folder: &str) -> (Paths, Outputs) {
    let place = |path: &str| Place { path: path.to_owned(), uri: path.to_owned() };
    let mut paths = Paths { executor_output: format!("{folder}/executor_output.json"), ..Paths::default() };
    for (name, artifacts) in &launch.inputs.artifacts {
        paths.input_artifacts.insert(name.clone(), artifacts.iter().map(|artifact| place(&artifact.uri)).collect());
    }
    let mut outputs = Outputs::default();
    let Some(declared) = &launch.component.output_definitions else { return (paths, outputs) };
    for (name, artifact) in &declared.artifacts {
        let path = format!("{folder}/{}", object_name(name));
        paths.output_artifacts.insert(name.clone(), place(&path));
        let (schema_title, schema_version) = schema(artifact.artifact_type.as_ref());
        let artifact = Artifact { id: name.clone(), schema_title, schema_version, uri: path, ..Artifact::default() };
        outputs.artifacts.insert(name.clone(), vec![artifact]);
    }
    for name in declared.parameters.keys() {
        paths.output_parameters.insert(name.clone(), format!("{folder}/outputs/{}", object_name(name)));
        outputs.parameters.insert(name.clone(), Value::Null);
    }
    (paths, outputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir;

    /// `b` and `c` (a loop over two literals) need the artifact of `a`.
    const PIPELINE: &str = r#"
pipelineInfo: {name: My Pipeline}
schemaVersion: 2.1.0
deploymentSpec:
  executors:
    ea: {container: {image: "i:1", command: [make], args: ["{{$.outputs.artifacts['m'].path}}"], resources: {resourceCpuLimit: "2"}}}
    eb: {container: {image: "i:1", command: [use, "{{$.inputs.artifacts['m'].path}}", "{{$.inputs.parameters['x']}}"]}}
components:
  ca:
    executorLabel: ea
    outputDefinitions: {artifacts: {m: {artifactType: {schemaTitle: system.Model, schemaVersion: 0.0.1}}}, parameters: {s: {parameterType: STRING}}}
  cb:
    executorLabel: eb
    inputDefinitions:
      artifacts: {m: {artifactType: {schemaTitle: system.Model, schemaVersion: 0.0.1}}}
      parameters: {x: {parameterType: STRING}}
root:
  inputDefinitions: {parameters: {p: {parameterType: STRING}}}
  dag:
    tasks:
      a: {componentRef: {name: ca}, taskInfo: {name: a}, retryPolicy: {maxRetryCount: 3}}
      b:
        componentRef: {name: cb}
        taskInfo: {name: b}
        dependentTasks: [a]
        inputs:
          artifacts: {m: {taskOutputArtifact: {producerTask: a, outputArtifactKey: m}}}
          parameters: {x: INPUT}
"#;

    fn export(input: &str) -> Result<Manifests, Error> {
        let document = ir::read(&PIPELINE.replace("INPUT", input)).unwrap();
        manifests(document, BTreeMap::from([("p".to_owned(), json!("hello"))]), "1Gi")
    }

    #[test]
    fn tasks_become_jobs_in_stages_that_share_a_volume() {
        let Manifests { objects, stages } = export("{componentInputParameter: p}").unwrap();
        assert_eq!(stages, 2);
        let [claim, a, b] = objects.as_slice() else { panic!("{objects:?}") };
        assert_eq!(claim["metadata"]["name"], "my-pipeline-artifacts");
        assert_eq!(
            (&a["metadata"]["labels"][STAGE_LABEL], &b["metadata"]["labels"][STAGE_LABEL]),
            (&json!("1"), &json!("2"))
        );
        assert_eq!(a["spec"]["backoffLimit"], 3);
        let container = |job: &Value| job["spec"]["template"]["spec"]["containers"][0].clone();
        assert_eq!(container(a)["args"], json!(["/slipway-artifacts/my-pipeline-a/m"]));
        assert_eq!(container(a)["resources"]["limits"]["cpu"], "2");
        assert_eq!(container(b)["command"], json!(["use", "/slipway-artifacts/my-pipeline-a/m", "hello"]));
    }

    #[test]
    fn a_task_that_needs_a_value_of_the_run_is_named() {
        let error = export("{taskOutputParameter: {producerTask: a, outputParameterKey: s}}").unwrap_err().to_string();
        assert!(error.contains("task 'b' needs the output 's' of task 'a'"), "{error}");
    }
}
