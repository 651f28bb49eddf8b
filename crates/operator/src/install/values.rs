//! What an installation can be told. The same file serves the Helm chart (`deploy/helm/slipway/values.yaml`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::KubeError;

/// The values of an installation; unknown ones are refused.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Values {
    /// Helm takes it from the release.
    #[serde(skip)]
    pub namespace: String,
    pub image: Image,
    pub server: Server,
    pub runs: Runs,
    pub gateway: Gateway,
    pub node: Node,
    pub device_classes: DeviceClasses,
    pub service_monitor: ServiceMonitor,
    pub network_policy: bool,
    pub image_pull_secrets: Vec<Value>,
}

/// Where the image is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Image {
    pub repository: String,
    pub tag: String,
    pub pull_policy: String,
}

/// The control plane.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Server {
    pub enabled: bool,
    pub replicas: u32,
    pub token_secret: String,
    pub hosts: Vec<String>,
    pub tls: Tls,
    pub database: Secret,
    pub objects: Objects,
    pub storage: Storage,
    pub resources: Value,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Value>,
}

/// Runs as pods, and the controller that carries them out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Runs {
    pub namespaces: Vec<String>,
    pub resources: Value,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Value>,
}

/// The certificate of the control plane and the gateways.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Tls {
    pub secret: String,
    pub ca: String,
}

/// Gateways apart from the control plane.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Gateway {
    pub enabled: bool,
    pub replicas: u32,
    pub resources: Value,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Value>,
}

/// The name of a secret.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Secret {
    pub secret: String,
}

/// A bucket.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Objects {
    pub url: String,
    pub secret: String,
}

/// Where the control plane keeps its state.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Storage {
    pub size: String,
    pub class: String,
    pub existing_claim: String,
    pub ephemeral: bool,
}

/// The node agent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Node {
    pub enabled: bool,
    pub offer: String,
    pub driver_root: String,
    pub kubelet_dir: String,
    pub cdi_dir: String,
    pub state_dir: String,
    pub mps_root: String,
    pub dra_driver: String,
    pub recover_after: u64,
    pub config: BTreeMap<String, String>,
    pub mig_config: String,
    pub privileged: bool,
    pub runtime_class_name: String,
    pub env: BTreeMap<String, String>,
    pub resources: Value,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Value>,
}

/// Classes for resource claims.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct DeviceClasses {
    pub enabled: bool,
    pub extended_resource_name: String,
}

/// For the Prometheus operator.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct ServiceMonitor {
    pub enabled: bool,
    pub interval: String,
}

/// The chart says the same.
const NOT_SHARED: &str = "the values: server.replicas above 1 and gateway.enabled need server.database.secret and \
     server.objects.url, since SQLite and a volume serve one pod alone";

/// The chart says the same.
const HOST_NAMES: &str = "the values: server.hosts holds names alone, without a scheme, a port, a comma or a blank";

/// The chart says the same.
const RUNS_APART: &str =
    "the values: runs.namespaces names the namespace of the installation, whose secrets every run there could read";

/// The chart's file: the defaults stand there and nowhere else.
const DEFAULTS: &str = include_str!("../../../../deploy/helm/slipway/values.yaml");

impl Values {
    /// The defaults, changed by the texts of files, one after the other.
    ///
    /// # Errors
    /// [`KubeError::Invalid`] that names the mistake.
    pub fn read(namespace: &str, texts: &[String]) -> Result<Self, KubeError> {
        let parse = |text: &str| -> Result<Value, KubeError> {
            serde_saphyr::from_str(text).map_err(|e| KubeError::Invalid(format!("the values: {e}")))
        };
        let mut merged = parse(DEFAULTS)?;
        for text in texts {
            merge(&mut merged, parse(text)?);
        }
        let mut values: Self =
            serde_json::from_value(merged).map_err(|e| KubeError::Invalid(format!("the values: {e}")))?;
        values.namespace = namespace.to_owned();
        if values.runs.namespaces.iter().any(|n| n == namespace) {
            return Err(KubeError::Invalid(RUNS_APART.into()));
        }
        let is_name = |host: &String| !host.is_empty() && !host.contains([',', ':', '/', ' ']);
        if !values.server.hosts.iter().all(is_name) {
            return Err(KubeError::Invalid(HOST_NAMES.into()));
        }
        if !matches!(values.node.offer.as_str(), "device-plugin" | "dra") {
            return Err(KubeError::Invalid(format!(
                "the values: node.offer is '{}', and must be device-plugin or dra",
                values.node.offer
            )));
        }
        if !values.is_shared() && (values.server.replicas > 1 || values.gateway.enabled) {
            return Err(KubeError::Invalid(NOT_SHARED.into()));
        }
        Ok(values)
    }

    /// Whether all state is where several pods can use it.
    pub(super) fn is_shared(&self) -> bool {
        !self.server.database.secret.is_empty() && !self.server.objects.url.is_empty()
    }

    /// `repository:tag`.
    pub fn image_name(&self) -> String {
        format!("{}:{}", self.image.repository, self.image.tag)
    }
}

/// As Helm merges: maps into maps, everything else in place of what was there.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (base, over) => *base = over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_charts_file_names_every_value() {
        let values = Values::read("slipway-system", &[]).unwrap();
        let file: Value = serde_saphyr::from_str(DEFAULTS).unwrap();
        assert_eq!(serde_json::to_value(&values).unwrap(), file);
    }

    #[test]
    fn a_file_changes_what_it_names() {
        let values = Values::read("a", &["node: {offer: dra}\nimage: {tag: \"9\"}".into()]).unwrap();
        assert_eq!((values.node.offer.as_str(), values.image.tag.as_str()), ("dra", "9"));
        assert_eq!(values.node.kubelet_dir, "/var/lib/kubelet");
        assert!(Values::read("a", &["nodes: {}".into()]).unwrap_err().to_string().contains("nodes"));
        let several = "server: {replicas: 2}".to_owned();
        assert!(
            Values::read("a", std::slice::from_ref(&several))
                .unwrap_err()
                .to_string()
                .contains("server.database.secret")
        );
        let shared = "server: {database: {secret: db}, objects: {url: \"s3://b\"}}".to_owned();
        assert_eq!(Values::read("a", &[several, shared]).unwrap().server.replicas, 2);
        let own = Values::read("a", &["runs: {namespaces: [b, a]}".into()]).unwrap_err().to_string();
        assert!(own.contains("runs.namespaces"), "{own}");
        assert_eq!(Values::read("c", &["runs: {namespaces: [b, a]}".into()]).unwrap().runs.namespaces, ["b", "a"]);
        for host in ["https://ml.example.org", "ml.example.org:443", "a,b", "''"] {
            let refused = Values::read("a", &[format!("server: {{hosts: [\"{host}\"]}}").replace("\"''\"", "''")]);
            assert!(refused.unwrap_err().to_string().contains("server.hosts"), "{host}");
        }
        assert!(Values::read("a", &["node: {offer: both}".into()]).unwrap_err().to_string().contains("both"));
    }
}
