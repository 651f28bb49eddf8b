//! Checks of the settings for Kubernetes that hold for every run.

use super::super::kfp_kubernetes::KubernetesExecutorConfig;
use super::super::ml_pipelines::task_inputs_spec::InputParameterSpec;
use super::super::read::Document;
use super::Report;
use crate::platform::{PULL_POLICIES, init_container};
use crate::{condition, workspace};

pub(super) fn check(document: &Document, report: &mut Report<'_>) {
    for (label, config) in &document.kubernetes {
        check_executor(config, &mut report.at(&["platforms", "kubernetes", "deploymentSpec", "executors", label]));
    }
    let mut pipeline = report.at(&["platforms", "kubernetes", "pipelineConfig"]);
    if let Some(Err(fault)) = document.pipeline_config.workspace.as_ref().map(workspace::claim_spec) {
        pipeline.fault(&fault.path, fault.reason);
    }
}

#[allow(deprecated)] // older files have plain names
fn check_executor(config: &KubernetesExecutorConfig, report: &mut Report<'_>) {
    let policy = config.image_pull_policy.as_str();
    if !policy.is_empty() && !PULL_POLICIES.contains(&policy) {
        report.fault(&["imagePullPolicy"], format!("'{policy}' is not one of {}", PULL_POLICIES.join(", ")));
    }
    let secrets = config.secret_as_volume.iter().map(|s| (&s.secret_name, s.secret_name_parameter.as_ref()));
    check_names("secretAsVolume", "the secret", secrets, report);
    let secrets = config.secret_as_env.iter().map(|s| (&s.secret_name, s.secret_name_parameter.as_ref()));
    check_names("secretAsEnv", "the secret", secrets, report);
    let maps = config.config_map_as_volume.iter().map(|m| (&m.config_map_name, m.config_map_name_parameter.as_ref()));
    check_names("configMapAsVolume", "the config map", maps, report);
    let maps = config.config_map_as_env.iter().map(|m| (&m.config_map_name, m.config_map_name_parameter.as_ref()));
    check_names("configMapAsEnv", "the config map", maps, report);
    let secrets = config.image_pull_secret.iter().map(|s| (&s.secret_name, s.secret_name_parameter.as_ref()));
    check_names("imagePullSecret", "the image pull secret", secrets, report);
    for (at, mount) in config.pvc_mount.iter().enumerate() {
        let mut here = report.at(&["pvcMount", &at.to_string()]);
        if mount.pvc_reference.is_none() && mount.pvc_name_parameter.is_none() {
            here.fault(&[], "the persistent volume claim has no name");
        }
        check_reference(mount.pvc_name_parameter.as_ref(), &mut here);
    }
    let paths = (config.pvc_mount.iter().map(|m| ("pvcMount", &m.mount_path)))
        .chain(config.secret_as_volume.iter().map(|m| ("secretAsVolume", &m.mount_path)))
        .chain(config.config_map_as_volume.iter().map(|m| ("configMapAsVolume", &m.mount_path)))
        .chain(config.empty_dir_mounts.iter().map(|m| ("emptyDirMounts", &m.mount_path)))
        .chain(config.generic_ephemeral_volume.iter().map(|m| ("genericEphemeralVolume", &m.mount_path)));
    for (field, path) in paths {
        if !path.starts_with('/') {
            report.fault(&[field], format!("the path of the mount is '{path}'; it must be absolute"));
        }
    }
    let mut converted = Vec::new();
    for (at, container) in config.init_containers.iter().enumerate() {
        match init_container(container, &converted) {
            Ok(container) => converted.push(container),
            Err(reason) => report.fault(&["initContainers", &at.to_string()], reason),
        }
    }
}

fn check_names<'a>(
    field: &str,
    what: &str,
    names: impl Iterator<Item = (&'a String, Option<&'a InputParameterSpec>)>,
    report: &mut Report<'_>,
) {
    for (at, (plain, reference)) in names.enumerate() {
        let mut here = report.at(&[field, &at.to_string()]);
        if plain.is_empty() && reference.is_none() {
            here.fault(&[], format!("{what} has no name"));
        }
        check_reference(reference, &mut here);
    }
}

fn check_reference(reference: Option<&InputParameterSpec>, report: &mut Report<'_>) {
    let Some(reference) = reference else { return };
    if reference.kind.is_none() {
        report.fault(&[], "the reference to a parameter has no source");
    }
    let selector = &reference.parameter_expression_selector;
    if !selector.is_empty()
        && let Err(reason) = condition::check_selector(selector)
    {
        report.fault(&[], format!("the selector is invalid: {reason}"));
    }
}
