//! Settings of a container, as fields of a run: image, environment, resources, and what is set for Kubernetes.
//!
//! The names of secrets, volumes and so on exist in two forms: as text, and as a reference to a parameter, which wins. A reference whose
//! parameter is null leaves its setting out.

mod affinity;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use slipway_core::dns;
use slipway_exec::RunSpec;
use slipway_exec::manifest::{EnvVar, Resources, VolumeMount};
use slipway_exec::quantity::Quantity;

use crate::artifact::is_in_workspace;
use crate::budget::Budget;
use crate::model::{Inputs, Launch};
use crate::placeholder::{resolve_constant, resolve_parameters, resolve_parameters_within};
use crate::proto::kfp_kubernetes::{InitContainer, KubernetesExecutorConfig, PvcMount, SecurityContext, pvc_mount};
use crate::proto::ml_pipelines::pipeline_deployment_config::PipelineContainerSpec;
use crate::proto::ml_pipelines::pipeline_deployment_config::executor_spec::Spec;
use crate::proto::ml_pipelines::task_config_passthrough_type::TaskConfigPassthroughTypeEnum as Field;
use crate::proto::ml_pipelines::task_inputs_spec::InputParameterSpec;
use crate::proto::ml_pipelines::task_inputs_spec::input_parameter_spec::Kind as Source;
use crate::proto::ml_pipelines::value_or_runtime_parameter::Value as Runtime;
use crate::value;
use crate::{condition, placeholder};

/// Values of `imagePullPolicy`.
pub(crate) const PULL_POLICIES: [&str; 3] = ["Always", "Never", "IfNotPresent"];
/// Maximum bytes of the values that node selectors, tolerations and affinities refer to.
const MAX_PLACEMENT_BYTES: usize = 1 << 20;
/// Name of the volume of shared memory, if none is set.
const SHARED_MEMORY: &str = "shm";
/// The resource of GPUs.
const GPU: &str = "nvidia.com/gpu";
/// Resources that are not accelerators.
const NO_ACCELERATORS: &[&str] = &["cpu", "memory", "ephemeral-storage"];

/// The settings of a task's pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PodSettings {
    /// Image, environment, resources, volumes and placement; the command is not set.
    pub spec: RunSpec,
    /// Init containers, as in a pod.
    pub init_containers: Vec<Value>,
    /// Labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod.
    pub annotations: BTreeMap<String, String>,
    /// Value of the component's input of type `TASK_CONFIG`: the settings that the task passes on to pods that it creates itself.
    pub task_config: Map<String, Value>,
    /// Whether the task uses the workspace of the run, which must be mounted then.
    pub uses_workspace: bool,
}

/// The settings of the task's pod, with all references to parameters resolved.
///
/// # Errors
/// A reference has no value, or a value is invalid.
pub fn pod_settings(launch: &Launch) -> Result<PodSettings, String> {
    let mut pod = Pod { launch, settings: PodSettings::default() };
    if let Some(Spec::Container(container)) = &launch.executor.spec {
        pod.container(container)?;
    }
    if let Some(config) = launch.platform.as_deref() {
        pod.kubernetes(config)?;
    }
    pod.settings.uses_workspace = uses_workspace(launch);
    pod.pass_through();
    Ok(pod.settings)
}

/// The resources that a container asks for, with references to the parameters of its task resolved.
///
/// # Errors
/// A reference has no value, or an amount is invalid.
pub fn resources(container: &PipelineContainerSpec, inputs: &Inputs) -> Result<Resources, String> {
    let Some(r) = &container.resources else { return Ok(Resources::default()) };
    let amount = |name: &str, text: &str, number: f64, unit: &str| -> Result<Option<(String, Quantity)>, String> {
        let text = if !text.is_empty() {
            resolve_parameters(text, inputs)?
        } else if number != 0.0 {
            format!("{number}{unit}")
        } else {
            String::new()
        };
        // An optional parameter without a value sets nothing either.
        if text.is_empty() { Ok(None) } else { Ok(Some((name.to_owned(), quantity(name, &text)?))) }
    };
    #[allow(deprecated)] // older files have the numbers, which are in cores and in 10^9 bytes
    let (limits, requests) = (
        [
            amount("cpu", &r.resource_cpu_limit, r.cpu_limit, "")?,
            amount("memory", &r.resource_memory_limit, r.memory_limit, "G")?,
        ],
        [
            amount("cpu", &r.resource_cpu_request, r.cpu_request, "")?,
            amount("memory", &r.resource_memory_request, r.memory_request, "G")?,
        ],
    );
    let mut limits: BTreeMap<_, _> = limits.into_iter().flatten().collect();
    if let Some(accelerator) = &r.accelerator {
        #[allow(deprecated)] // older files have the plain type and the number
        let (plain_type, plain_count) = (&accelerator.r#type, accelerator.count);
        let kind = match accelerator.resource_type.as_str() {
            "" => plain_type.clone(),
            text => resolve_parameters(text, inputs)?,
        };
        let count = match accelerator.resource_count.as_str() {
            "" if plain_count > 0 => plain_count.to_string(),
            text => resolve_parameters(text, inputs)?,
        };
        if !kind.is_empty() && !count.is_empty() {
            let count = quantity(&kind, &count)?;
            limits.insert(kind, count);
        }
    }
    Ok(Resources { limits, requests: requests.into_iter().flatten().collect(), claims: Vec::new() })
}

/// An amount, rounded up.
pub(crate) fn whole(amount: f64) -> u32 {
    amount.ceil().clamp(0.0, f64::from(u32::MAX)) as u32
}

/// The accelerators among resources, and the number of each. A pipeline can also name a product, such as `NVIDIA_TESLA_T4`, for a GPU.
pub fn accelerators(resources: &Resources) -> Vec<(String, u32)> {
    let mut found: Vec<(String, u32)> = Vec::new();
    for (name, quantity) in resources.limits.iter().chain(&resources.requests) {
        let is_product = name.to_ascii_lowercase().starts_with("nvidia") && !name.contains('/');
        let name = if is_product { GPU } else { name.as_str() };
        if !NO_ACCELERATORS.contains(&name) && !found.iter().any(|(known, _)| known == name) {
            found.push((name.to_owned(), whole(quantity.value().unwrap_or(0.0))));
        }
    }
    found.retain(|(_, count)| *count > 0);
    found
}

/// Whether an input refers to the workspace, or is an artifact in it.
fn uses_workspace(launch: &Launch) -> bool {
    let parameters = launch.inputs.parameters.values();
    let mut artifacts = launch.inputs.artifacts.values().flatten();
    parameters
        .into_iter()
        .any(|value| matches!(value, Value::String(text) if text.contains(placeholder::WORKSPACE_PATH)))
        || artifacts.any(is_in_workspace)
}

/// The settings while they are collected.
struct Pod<'a> {
    launch: &'a Launch,
    settings: PodSettings,
}

impl Pod<'_> {
    fn container(&mut self, container: &PipelineContainerSpec) -> Result<(), String> {
        let inputs = &self.launch.inputs;
        let spec = &mut self.settings.spec;
        spec.image = Some(resolve_parameters(&container.image, inputs)?);
        let budget = placeholder::budget();
        for variable in &container.env {
            let value = resolve_parameters_within(&variable.value, inputs, &budget)?;
            spec.env.push(EnvVar { name: variable.name.clone(), value: Some(value), value_from: None });
        }
        spec.resources = resources(container, inputs)?;
        Ok(())
    }

    fn kubernetes(&mut self, config: &KubernetesExecutorConfig) -> Result<(), String> {
        let spec = &mut self.settings.spec;
        if !config.image_pull_policy.is_empty() {
            if !PULL_POLICIES.contains(&config.image_pull_policy.as_str()) {
                let allowed = PULL_POLICIES.join(", ");
                return Err(format!("imagePullPolicy is '{}'; allowed are {allowed}", config.image_pull_policy));
            }
            spec.image_pull_policy = Some(config.image_pull_policy.clone());
        }
        if config.active_deadline_seconds > 0 {
            spec.active_deadline_seconds = Some(u32::try_from(config.active_deadline_seconds).unwrap_or(u32::MAX));
        }
        spec.security_context = config.security_context.as_ref().map(security_context).transpose()?;
        if let Some(metadata) = &config.pod_metadata {
            self.settings.labels.clone_from(&metadata.labels);
            self.settings.annotations.clone_from(&metadata.annotations);
        }
        self.placement(config)?;
        self.environment(config)?;
        self.volumes(config)?;
        for container in &config.init_containers {
            let container = init_container(container, &self.settings.init_containers)?;
            self.settings.init_containers.push(container);
        }
        Ok(())
    }

    fn placement(&mut self, config: &KubernetesExecutorConfig) -> Result<(), String> {
        let budget = Budget::bytes(MAX_PLACEMENT_BYTES, "the values that the placement of the pod refers to");
        let resolve = |reference: &InputParameterSpec, what: &str| {
            let value = resolve(self.launch, reference, what)?;
            budget.take(value.as_ref().map_or(0, value::weight)).map(|()| value)
        };
        let launch = self.launch;
        if let Some(selector) = &config.node_selector {
            self.settings.spec.node_selector = match &selector.node_selector_json {
                None => selector.labels.clone(),
                Some(reference) => match resolve(reference, "the node selector")? {
                    None => BTreeMap::new(),
                    Some(value) => serde_json::from_value(value)
                        .map_err(|_| "the node selector is not an object with texts".to_owned())?,
                },
            };
        }
        for toleration in &config.tolerations {
            let tolerations = &mut self.settings.spec.tolerations;
            let Some(reference) = &toleration.toleration_json else {
                let mut fields = Map::new();
                for (name, text) in [
                    ("key", &toleration.key),
                    ("operator", &toleration.operator),
                    ("value", &toleration.value),
                    ("effect", &toleration.effect),
                ] {
                    if !text.is_empty() {
                        fields.insert(name.to_owned(), json!(text));
                    }
                }
                fields.extend(
                    toleration.toleration_seconds.map(|seconds| ("tolerationSeconds".to_owned(), json!(seconds))),
                );
                tolerations.push(Value::Object(fields));
                continue;
            };
            match resolve(reference, "the toleration")? {
                None => {}
                Some(Value::Object(fields)) if fields.is_empty() => {}
                Some(value @ Value::Object(_)) => tolerations.push(value),
                Some(Value::Array(values)) => tolerations.extend(values),
                Some(other) => {
                    return Err(format!(
                        "the toleration is {}; expected an object or a list",
                        value::type_name(&other)
                    ));
                }
            }
        }
        self.settings.spec.affinity = affinity::affinity(config, |reference| resolve(reference, "the node affinity"))?;
        for secret in &config.image_pull_secret {
            #[allow(deprecated)] // older files have the plain name
            let plain = &secret.secret_name;
            if let Some(name) =
                resolve_name(launch, secret.secret_name_parameter.as_ref(), plain, "the image pull secret")?
            {
                self.settings.spec.image_pull_secrets.push(json!({ "name": name }));
            }
        }
        Ok(())
    }

    fn environment(&mut self, config: &KubernetesExecutorConfig) -> Result<(), String> {
        let launch = self.launch;
        let mut add = |name: &str, source: Value| {
            self.settings.spec.env.push(EnvVar { name: name.to_owned(), value: None, value_from: Some(source) });
        };
        for secret in &config.secret_as_env {
            #[allow(deprecated)] // older files have the plain name
            let plain = &secret.secret_name;
            let Some(name) = resolve_name(launch, secret.secret_name_parameter.as_ref(), plain, "the secret")? else {
                continue;
            };
            for pair in &secret.key_to_env {
                let source = key_reference(&name, &pair.secret_key, secret.optional);
                add(&pair.env_var, json!({ "secretKeyRef": source }));
            }
        }
        for map in &config.config_map_as_env {
            #[allow(deprecated)] // older files have the plain name
            let plain = &map.config_map_name;
            let Some(name) = resolve_name(launch, map.config_map_name_parameter.as_ref(), plain, "the config map")?
            else {
                continue;
            };
            for pair in &map.key_to_env {
                let source = key_reference(&name, &pair.config_map_key, map.optional);
                add(&pair.env_var, json!({ "configMapKeyRef": source }));
            }
        }
        for field in &config.field_path_as_env {
            add(&field.name, json!({ "fieldRef": { "fieldPath": field.field_path } }));
        }
        Ok(())
    }

    fn volumes(&mut self, config: &KubernetesExecutorConfig) -> Result<(), String> {
        let launch = self.launch;
        for mount in &config.pvc_mount {
            let name = claim_name(launch, mount)?;
            let source = json!({ "persistentVolumeClaim": { "claimName": name } });
            self.mount(&name, source, &mount.mount_path, &mount.sub_path)?;
        }
        for secret in &config.secret_as_volume {
            #[allow(deprecated)] // older files have the plain name
            let plain = &secret.secret_name;
            if let Some(name) = resolve_name(launch, secret.secret_name_parameter.as_ref(), plain, "the secret")? {
                let optional = secret.optional.unwrap_or(false);
                let source = json!({ "secret": { "secretName": name, "optional": optional } });
                self.mount(&name, source, &secret.mount_path, "")?;
            }
        }
        for map in &config.config_map_as_volume {
            #[allow(deprecated)] // older files have the plain name
            let plain = &map.config_map_name;
            if let Some(name) = resolve_name(launch, map.config_map_name_parameter.as_ref(), plain, "the config map")? {
                let optional = map.optional.unwrap_or(false);
                let source = json!({ "configMap": { "name": name, "optional": optional } });
                self.mount(&name, source, &map.mount_path, "")?;
            }
        }
        for volume in &config.generic_ephemeral_volume {
            quantity("storage", &volume.size)?;
            let mut claim = json!({
                "accessModes": volume.access_modes,
                "resources": { "requests": { "storage": volume.size } },
            });
            if !volume.default_storage_class {
                claim["storageClassName"] = json!(volume.storage_class_name);
            }
            let mut template = json!({ "spec": claim });
            if let Some(metadata) = &volume.metadata {
                template["metadata"] = json!({ "labels": metadata.labels, "annotations": metadata.annotations });
            }
            let source = json!({ "ephemeral": { "volumeClaimTemplate": template } });
            self.mount(&volume.volume_name, source, &volume.mount_path, "")?;
        }
        for volume in &config.empty_dir_mounts {
            let source = empty_dir(volume.medium.as_deref().unwrap_or(""), volume.size_limit.as_deref().unwrap_or(""))?;
            self.mount(&volume.volume_name, source, &volume.mount_path, "")?;
        }
        if let Some(memory) = &config.enabled_shared_memory {
            let name = if memory.volume_name.is_empty() { SHARED_MEMORY } else { &memory.volume_name };
            self.mount(name, empty_dir("Memory", &memory.size)?, "/dev/shm", "")?;
        }
        Ok(())
    }

    /// Adds a volume, unless it is there already, and mounts it.
    fn mount(&mut self, name: &str, source: Value, path: &str, sub_path: &str) -> Result<(), String> {
        if !path.starts_with('/') {
            return Err(format!("the volume '{name}' is mounted at '{path}', which is not an absolute path"));
        }
        // Names of volumes are labels: unlike names of secrets, they have no dots.
        let label = name.replace('.', "-");
        let spec = &mut self.settings.spec;
        let mut volume = source;
        let mut unique = label.clone();
        let mut number = 1;
        let is_known = loop {
            volume["name"] = json!(unique);
            match spec.volumes.iter().find(|other| other["name"] == volume["name"]) {
                None => break false,
                Some(other) if *other == volume => break true,
                // A secret and a config map may have the same name.
                Some(_) => number += 1,
            }
            unique = format!("{label}-{number}");
        };
        if !is_known {
            spec.volumes.push(volume);
        }
        let mut other = BTreeMap::new();
        if !sub_path.is_empty() {
            other.insert("subPath".to_owned(), json!(sub_path));
        }
        spec.volume_mounts.push(VolumeMount { name: unique, mount_path: path.to_owned(), other });
        Ok(())
    }

    /// Moves or copies settings to the value of the component's input of type `TASK_CONFIG`.
    fn pass_through(&mut self) {
        for pass in &self.launch.component.task_config_passthroughs {
            let spec = &mut self.settings.spec;
            let config = &mut self.settings.task_config;
            let mut set = |name: &str, value: Value| drop(config.insert(name.to_owned(), value));
            match pass.field() {
                Field::None => {}
                Field::Resources => set("resources", json!(spec.resources)),
                Field::Env => set("env", json!(spec.env)),
                Field::KubernetesAffinity => set("affinity", json!(spec.affinity)),
                Field::KubernetesTolerations => set("tolerations", json!(spec.tolerations)),
                Field::KubernetesNodeSelector => set("nodeSelector", json!(spec.node_selector)),
                Field::KubernetesVolumes => {
                    set("volumes", json!(spec.volumes));
                    set("volumeMounts", json!(spec.volume_mounts));
                }
            }
            if pass.apply_to_task {
                continue;
            }
            match pass.field() {
                Field::None => {}
                Field::Resources => spec.resources = Resources::default(),
                Field::Env => spec.env.clear(),
                Field::KubernetesAffinity => spec.affinity = None,
                Field::KubernetesTolerations => spec.tolerations.clear(),
                Field::KubernetesNodeSelector => spec.node_selector.clear(),
                Field::KubernetesVolumes => {
                    // Volumes that live as long as the pod are always those of the task's own pod.
                    let is_own = |volume: &Value| volume.get("ephemeral").is_some() || volume.get("emptyDir").is_some();
                    spec.volumes.retain(is_own);
                    let volumes = &spec.volumes;
                    spec.volume_mounts.retain(|mount| volumes.iter().any(|volume| volume["name"] == mount.name));
                }
            }
        }
    }
}

/// The value of a reference; `None` if it is null.
fn resolve(launch: &Launch, reference: &InputParameterSpec, what: &str) -> Result<Option<Value>, String> {
    let missing = |name: &str| format!("{what} refers to '{name}', which has no value");
    let value = match &reference.kind {
        None => return Err(format!("{what} refers to nothing")),
        Some(Source::RuntimeValue(runtime)) => match &runtime.value {
            Some(Runtime::Constant(constant)) => {
                let constant = value::from_prost(constant);
                resolve_constant(&constant, &launch.inputs, &launch.run, &launch.task_name, &launch.path.0)?
            }
            _ => return Err(format!("{what} refers to nothing")),
        },
        Some(Source::ComponentInputParameter(name)) => {
            let inputs = [&launch.platform_inputs, &launch.inputs.parameters];
            inputs.iter().find_map(|inputs| inputs.get(name)).cloned().ok_or_else(|| missing(name))?
        }
        Some(Source::TaskOutputParameter(output)) => {
            let name = format!("{}/{}", output.producer_task, output.output_parameter_key);
            launch.platform_inputs.get(&name).cloned().ok_or_else(|| missing(&name))?
        }
        Some(Source::TaskFinalStatus(_)) => return Err(format!("{what} cannot be the status of a task")),
    };
    let selector = &reference.parameter_expression_selector;
    let value = if selector.is_empty() { value } else { condition::select(selector, &value, &condition::budget())? };
    Ok((!value.is_null()).then_some(value))
}

/// A name that is a text, or a reference to a parameter. `None` if the parameter is null.
fn resolve_name(
    launch: &Launch,
    reference: Option<&InputParameterSpec>,
    plain: &str,
    what: &str,
) -> Result<Option<String>, String> {
    let Some(reference) = reference else {
        return if plain.is_empty() { Err(format!("{what} has no name")) } else { Ok(Some(plain.to_owned())) };
    };
    match resolve(launch, reference, what)? {
        None => Ok(None),
        Some(Value::String(name)) if !name.is_empty() && name.len() <= dns::MAX_SUBDOMAIN => Ok(Some(name)),
        Some(other) => {
            let other = value::to_json_text(&other);
            Err(format!("the name of {what} is {}; expected a text that is not empty", value::shortened(&other)))
        }
    }
}

fn claim_name(launch: &Launch, mount: &PvcMount) -> Result<String, String> {
    #[allow(deprecated)] // older files have these forms
    let older = mount.pvc_reference.as_ref().map(|reference| match reference {
        pvc_mount::PvcReference::Constant(name) => {
            let constant = Runtime::Constant(value::to_prost(&json!(name)));
            Source::RuntimeValue(crate::proto::ml_pipelines::ValueOrRuntimeParameter { value: Some(constant) })
        }
        pvc_mount::PvcReference::TaskOutputParameter(output) => Source::TaskOutputParameter(output.clone()),
        pvc_mount::PvcReference::ComponentInputParameter(name) => Source::ComponentInputParameter(name.clone()),
    });
    let older = older.map(|kind| InputParameterSpec { kind: Some(kind), ..InputParameterSpec::default() });
    let reference = mount.pvc_name_parameter.as_ref().or(older.as_ref());
    resolve_name(launch, reference, "", "the persistent volume claim")?
        .ok_or_else(|| "the name of the persistent volume claim is null".to_owned())
}

fn key_reference(name: &str, key: &str, optional: Option<bool>) -> Value {
    let mut reference = json!({ "name": name, "key": key });
    if let Some(optional) = optional {
        reference["optional"] = json!(optional);
    }
    reference
}

fn empty_dir(medium: &str, size: &str) -> Result<Value, String> {
    let mut source = Map::new();
    if !medium.is_empty() {
        source.insert("medium".to_owned(), json!(medium));
    }
    if !size.is_empty() {
        quantity("sizeLimit", size)?;
        source.insert("sizeLimit".to_owned(), json!(size));
    }
    Ok(json!({ "emptyDir": source }))
}

fn quantity(what: &str, text: &str) -> Result<Quantity, String> {
    let quantity = Quantity::Text(text.to_owned());
    if quantity.value().is_some() { Ok(quantity) } else { Err(format!("'{text}' is not a valid quantity of {what}")) }
}

/// As Kubeflow does, all capabilities are dropped.
fn security_context(context: &SecurityContext) -> Result<Value, String> {
    if context.run_as_user == Some(0) && context.run_as_non_root == Some(true) {
        return Err("securityContext: runAsUser is 0 although runAsNonRoot is true".into());
    }
    let mut fields = Map::new();
    fields.insert("capabilities".into(), json!({ "drop": ["ALL"] }));
    fields.extend(context.run_as_user.map(|id| ("runAsUser".to_owned(), json!(id))));
    fields.extend(context.run_as_group.map(|id| ("runAsGroup".to_owned(), json!(id))));
    fields.extend(context.run_as_non_root.map(|value| ("runAsNonRoot".to_owned(), json!(value))));
    Ok(Value::Object(fields))
}

/// Checks and converts an init container; `others` come before it.
pub(crate) fn init_container(container: &InitContainer, others: &[Value]) -> Result<Value, String> {
    let name = &container.name;
    let invalid = |reason: String| Err(format!("the init container '{name}' {reason}"));
    if name.is_empty() {
        return Err("an init container has no name".into());
    }
    if others.iter().any(|other| other["name"] == *name) {
        return invalid("exists twice".into());
    }
    if container.image.is_empty() {
        return invalid("has no image".into());
    }
    let mut out = json!({
        "name": name,
        "image": container.image,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    });
    for (field, words) in [("command", &container.command), ("args", &container.args)] {
        if !words.is_empty() {
            out[field] = json!(words);
        }
    }
    match container.restart_policy.as_deref() {
        None | Some("") => {}
        Some("Always") => out["restartPolicy"] = json!("Always"),
        Some(other) => return invalid(format!("has the restart policy '{other}'; only 'Always' is possible")),
    }
    let mut env = Vec::new();
    for variable in &container.env {
        if variable.name.is_empty() {
            return invalid("has a variable without a name".into());
        }
        env.push(json!({ "name": variable.name, "value": variable.value }));
    }
    let mut mounts = Vec::new();
    for mount in &container.volume_mounts {
        if mount.volume_name.is_empty() || !mount.mount_path.starts_with('/') {
            return invalid(format!(
                "mounts '{}' at '{}', which is not a volume at an absolute path",
                mount.volume_name, mount.mount_path
            ));
        }
        mounts.push(json!({ "name": mount.volume_name, "mountPath": mount.mount_path }));
    }
    if !env.is_empty() {
        out["env"] = Value::Array(env);
    }
    if !mounts.is_empty() {
        out["volumeMounts"] = Value::Array(mounts);
    }
    if let Some(resources) = &container.resources {
        for (resource, text) in resources.limits.iter().chain(&resources.requests) {
            quantity(resource, text)?;
        }
        out["resources"] = json!({ "limits": resources.limits, "requests": resources.requests });
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
