//! Fingerprints of executions for the cache: equal fingerprints mean that the same program runs with the same settings on the same
//! inputs, so that the outputs of one may be used for the other, in whichever pipeline they are.
//!
//! Upstream's key leaves out environment variables, secrets and config maps, and names artifacts by their ids. Here everything that can
//! change what the program computes takes part, and an artifact whose content is known is represented by its digest. Settings that
//! only decide where the program runs (resources, node selectors, tolerations, pull policy) do not take part.

use std::collections::BTreeMap;

use prost::Message;
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};

use crate::executor_input;
use crate::ir::kfp_kubernetes::KubernetesExecutorConfig;
use crate::ir::ml_pipelines::ComponentSpec;
use crate::ir::ml_pipelines::pipeline_deployment_config::PipelineContainerSpec;
use crate::model::{Artifact, Inputs};

/// Changes whenever equal fingerprints would no longer mean equal executions.
const VERSION: u32 = 1;

/// The part of a fingerprint that is the same for all executions of a component: a digest of program, settings, and declared outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity(String);

impl Identity {
    /// The identity of a component that is executed by a container. Placeholders in image and command need no resolving, for the
    /// inputs are part of every fingerprint.
    pub fn new(
        component: &ComponentSpec,
        container: &PipelineContainerSpec,
        platform: Option<&KubernetesExecutorConfig>,
    ) -> Self {
        let env: Vec<_> = container.env.iter().map(|variable| (&variable.name, &variable.value)).collect();
        let inputs = component.input_definitions.as_ref();
        // An absent optional input takes its default, which therefore belongs to the program.
        let defaults: BTreeMap<_, _> = inputs
            .into_iter()
            .flat_map(|inputs| &inputs.parameters)
            .filter_map(|(name, input)| Some((name, crate::value::from_prost(input.default_value.as_ref()?))))
            .collect();
        let outputs = component.output_definitions.as_ref();
        let parameters: BTreeMap<_, _> = outputs
            .into_iter()
            .flat_map(|outputs| &outputs.parameters)
            .map(|(name, output)| (name, output.parameter_type))
            .collect();
        let artifacts: BTreeMap<_, _> = outputs
            .into_iter()
            .flat_map(|outputs| &outputs.artifacts)
            .map(|(name, output)| {
                (name, (executor_input::schema(output.artifact_type.as_ref()), output.is_artifact_list))
            })
            .collect();
        Self(digest(&json!({
            "version": VERSION,
            "image": container.image,
            "command": container.command,
            "args": container.args,
            "env": env,
            "platform": platform.map(|platform| hex(&computed_settings(platform).encode_to_vec())),
            "defaults": defaults,
            "parameters": parameters,
            "artifacts": artifacts,
        })))
    }
}

/// The settings that can change what the program computes.
fn computed_settings(platform: &KubernetesExecutorConfig) -> KubernetesExecutorConfig {
    KubernetesExecutorConfig {
        secret_as_volume: platform.secret_as_volume.clone(),
        secret_as_env: platform.secret_as_env.clone(),
        pvc_mount: platform.pvc_mount.clone(),
        config_map_as_volume: platform.config_map_as_volume.clone(),
        config_map_as_env: platform.config_map_as_env.clone(),
        field_path_as_env: platform.field_path_as_env.clone(),
        generic_ephemeral_volume: platform.generic_ephemeral_volume.clone(),
        empty_dir_mounts: platform.empty_dir_mounts.clone(),
        init_containers: platform.init_containers.clone(),
        ..KubernetesExecutorConfig::default()
    }
}

/// The fingerprint of an execution. `platform_inputs` are the values that the settings refer to, such as names of volumes.
pub fn fingerprint(identity: &Identity, inputs: &Inputs, platform_inputs: &BTreeMap<String, Value>) -> String {
    let artifacts: BTreeMap<_, Vec<_>> =
        inputs.artifacts.iter().map(|(name, artifacts)| (name, artifacts.iter().map(content).collect())).collect();
    digest(&json!({
        "identity": identity.0,
        "parameters": inputs.parameters,
        "artifacts": artifacts,
        "platform": platform_inputs,
    }))
}

/// The fingerprint of a task whose author chose the key. It holds within one pipeline, as upstream's does.
pub fn chosen(pipeline_name: &str, component_name: &str, key: &str) -> String {
    digest(&json!({ "version": VERSION, "pipeline": pipeline_name, "component": component_name, "key": key }))
}

/// What a program can see of an artifact. Without a digest its id is needed too: the content behind a URI can change.
fn content(artifact: &Artifact) -> Value {
    let identity = match &artifact.digest {
        Some(digest) => json!({ "digest": digest }),
        None => json!({ "id": artifact.id, "uri": artifact.uri }),
    };
    json!({ "content": identity, "type": artifact.schema_title, "metadata": artifact.metadata })
}

/// SHA-256 of the JSON text, in which keys are sorted, as hexadecimal digits.
fn digest(value: &Value) -> String {
    let mut context = Context::new(&SHA256);
    context.update(value.to_string().as_bytes());
    hex(context.finish().as_ref())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::kfp_kubernetes::{NodeSelector, SecretAsEnv};
    use crate::ir::ml_pipelines::pipeline_deployment_config::pipeline_container_spec::EnvVar;

    fn container() -> PipelineContainerSpec {
        PipelineContainerSpec { image: "python:3.11".to_owned(), command: vec!["run".to_owned()], ..Default::default() }
    }

    fn inputs(artifact: Artifact) -> Inputs {
        Inputs { artifacts: [("data".to_owned(), vec![artifact])].into(), ..Default::default() }
    }

    #[test]
    fn environment_and_secrets_take_part_but_placement_does_not() {
        let component = ComponentSpec::default();
        let plain = Identity::new(&component, &container(), None);
        let variable = EnvVar { name: "MODE".to_owned(), value: "train".to_owned() };
        let with_variable = PipelineContainerSpec { env: vec![variable], ..container() };
        assert_ne!(plain, Identity::new(&component, &with_variable, None));
        let empty = KubernetesExecutorConfig::default();
        let selected = KubernetesExecutorConfig { node_selector: Some(NodeSelector::default()), ..Default::default() };
        let secret = KubernetesExecutorConfig { secret_as_env: vec![SecretAsEnv::default()], ..Default::default() };
        let with = |platform| Identity::new(&component, &container(), Some(platform));
        assert_eq!(with(&empty), with(&selected));
        assert_ne!(with(&empty), with(&secret));
    }

    #[test]
    fn artifacts_are_compared_by_content_where_it_is_known() {
        let identity = Identity::new(&ComponentSpec::default(), &container(), None);
        let of = |id: &str, digest: Option<&str>| {
            let artifact = Artifact {
                id: id.to_owned(),
                uri: format!("s3://{id}"),
                digest: digest.map(str::to_owned),
                ..Default::default()
            };
            fingerprint(&identity, &inputs(artifact), &BTreeMap::new())
        };
        assert_eq!(of("a", Some("1")), of("b", Some("1")));
        assert_ne!(of("a", Some("1")), of("a", Some("2")));
        assert_ne!(of("a", None), of("b", None));
        assert_eq!(of("a", None), of("a", None));
    }

    #[test]
    fn names_of_volumes_take_part() {
        let identity = Identity::new(&ComponentSpec::default(), &container(), None);
        let with = |name: &str| fingerprint(&identity, &Inputs::default(), &[("pvc".to_owned(), json!(name))].into());
        assert_ne!(with("a"), with("b"));
    }
}
