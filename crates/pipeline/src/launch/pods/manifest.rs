//! The run of the executor that executes a step: one pod, whose container executes slipway's program, which executes the user's.

use serde_json::{Value, json};
use slipway_core::ids;
use slipway_exec::Manifest;
use slipway_exec::manifest::{PARENT_RUN, VolumeMount};

use super::step::FOLDER;
use super::{Settings, volumes};
use crate::launch::{AttemptId, buckets, file_name};
use crate::model::{Launch, RunInfo};
use crate::platform::PodSettings;
use crate::tracker::tracked_id;

/// Name of the volume with slipway's program and the files of the step, and of the init container that fills it.
const STEP: &str = "slipway-step";
/// Label with the id of the run of the pipeline.
pub(super) const RUN_LABEL: &str = "slipway.dev/pipeline-run";
/// Annotation with the path of the task.
const TASK_ANNOTATION: &str = "slipway.dev/pipeline-task";
/// Maximum characters of a task's name in the name of its pod.
const MAX_TASK_CHARS: usize = 30;
/// Seconds after the end of a step until its pod, and with it its log, is deleted: one day.
const TTL_SECONDS: u32 = 24 * 3600;
/// Secret of a namespace with credentials for the buckets of its pipelines, as environment variables.
const CREDENTIALS: &str = "slipway-buckets";
/// A user without privileges, for the init container.
const USER: u32 = 65532;

/// The name of the executor's run of an attempt. It follows from the attempt, so that the attempt is found again after a restart.
pub(super) fn name(id: &AttemptId) -> String {
    let task = id.path.0.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let task: String = file_name(&task).replace(['_', '.'], "-").chars().take(MAX_TASK_CHARS).collect();
    let unique = ids::derived(&[&id.run_id, &id.path.0, &id.attempt.to_string()]);
    match task.trim_matches('-') {
        "" => format!("step-{}", &unique[..16]),
        task => format!("{task}-{}", &unique[..16]),
    }
}

/// The settings of a task's pod with what its inputs and outputs need: the workspace of the run, and credentials for buckets.
///
/// # Errors
/// The settings are not valid.
pub(super) fn completed(launch: &Launch, mut pod: PodSettings) -> Result<PodSettings, String> {
    if pod.spec.image.as_deref().is_none_or(str::is_empty) {
        return Err(format!("task '{}' has no image", launch.path));
    }
    if pod.uses_workspace {
        volumes::mount_workspace(&mut pod.spec, &launch.run)
            .map_err(|reason| format!("task '{}': {reason}", launch.path))?;
    }
    let inputs = launch.inputs.artifacts.values().flatten().map(|artifact| &artifact.uri);
    if inputs.chain([&launch.run.pipeline_root]).any(|uri| buckets::is_bucket(uri)) {
        pod.spec.env_from.push(json!({ "secretRef": { "name": CREDENTIALS, "optional": true } }));
    }
    Ok(pod)
}

/// The run of an attempt that has a pod of its own. `pod` is [`completed`].
///
/// # Errors
/// The settings are not valid.
pub(super) fn of_attempt(
    launch: &Launch,
    name: &str,
    pod: PodSettings,
    settings: &Settings,
) -> Result<Manifest, String> {
    let mut run = manifest(&launch.run, name, pod, &["pipeline", "step"], settings);
    let metadata = &mut run.metadata;
    metadata.labels.insert(RUN_LABEL.into(), launch.run.run_id.clone());
    metadata.annotations.insert(TASK_ANNOTATION.into(), launch.path.0.clone());
    metadata.annotations.insert(PARENT_RUN.into(), tracked_id(&launch.run.run_id, None));
    checked(run)
}

/// The run of a worker that executes the attempts of several tasks. `pod` is [`completed`].
///
/// # Errors
/// The settings are not valid.
pub(super) fn of_worker(run: &RunInfo, name: &str, pod: PodSettings, settings: &Settings) -> Result<Manifest, String> {
    checked(manifest(run, name, pod, &["pipeline", "step", "--worker"], settings))
}

fn checked(run: Manifest) -> Result<Manifest, String> {
    run.check().map_err(|error| error.to_string())?;
    Ok(run)
}

/// A run whose pod executes slipway's program with these arguments.
fn manifest(info: &RunInfo, name: &str, pod: PodSettings, arguments: &[&str], settings: &Settings) -> Manifest {
    let words = settings.program.iter().map(String::as_str).chain(arguments.iter().copied());
    let mut run = Manifest::new(name, words);
    let command = std::mem::take(&mut run.spec.command);
    run.metadata.namespace.clone_from(&info.namespace);
    run.metadata.labels = pod.labels;
    let spec = &mut run.spec;
    *spec = pod.spec;
    spec.command = command;
    spec.args.clear();
    spec.pod_annotations = pod.annotations;
    if !info.service_account.is_empty() {
        spec.service_account_name = Some(info.service_account.clone());
    }
    // The engine retries failures. The executor starts a step again only after a disruption.
    spec.backoff_limit = 0;
    spec.ttl_seconds_after_finished = Some(TTL_SECONDS);
    for name in &settings.pull_secrets {
        let secret = json!({ "name": name });
        if !spec.image_pull_secrets.contains(&secret) {
            spec.image_pull_secrets.push(secret);
        }
    }
    spec.volumes.push(json!({ "name": STEP, "emptyDir": {} }));
    let mount = VolumeMount { name: STEP.into(), mount_path: FOLDER.into(), other: std::collections::BTreeMap::new() };
    spec.volume_mounts.push(mount);
    spec.init_containers.push(installer(settings));
    spec.init_containers.extend(pod.init_containers);
    run
}

/// The init container that copies slipway's program into the volume of the step.
fn installer(settings: &Settings) -> Value {
    json!({
        "name": STEP,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "args": ["pipeline", "step", "--install", FOLDER],
        "volumeMounts": [{ "name": STEP, "mountPath": FOLDER }],
        "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] }, "readOnlyRootFilesystem": true,
            "runAsNonRoot": true, "runAsUser": USER, "seccompProfile": { "type": "RuntimeDefault" },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TaskPath;

    #[test]
    fn names_are_valid_and_follow_from_the_attempt() {
        let id = |path: &str, attempt| AttemptId {
            namespace: "n".into(),
            run_id: "r".into(),
            path: TaskPath(path.into()),
            attempt,
        };
        let long = "a".repeat(200);
        let paths = ["train", "for-loop-1[0]/Train_It", "é", "", "-x-", "a.b", &long];
        let names: std::collections::BTreeSet<String> = paths.iter().map(|path| name(&id(path, 1))).collect();
        assert_eq!(names.len(), paths.len());
        for name in &names {
            Manifest::new(name.as_str(), ["a"]).check().unwrap();
        }
        assert_eq!(name(&id("train", 1)), name(&id("train", 1)));
        assert_ne!(name(&id("train", 1)), name(&id("train", 2)));
    }
}
