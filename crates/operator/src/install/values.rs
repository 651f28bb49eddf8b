//! The values (settings) of an installation. Their defaults and descriptions are in the `values.yaml` of the Helm chart
//! (`deploy/helm/slipway/values.yaml`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_core::units::parse_duration;
use slipway_exec::QueueSystem;
use slipway_exec::queueing::is_queue_name;

use crate::KubeError;

/// The values of an installation. Unknown values are rejected.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Values {
    /// Namespace of the installation. Not a value in the file: Helm takes it from the release.
    #[serde(skip)]
    pub namespace: String,
    pub image: Image,
    pub server: Server,
    pub runs: Runs,
    pub gateway: Gateway,
    pub node: Node,
    pub data: Data,
    pub device_classes: DeviceClasses,
    pub compute_domains: ComputeDomains,
    pub service_monitor: ServiceMonitor,
    pub network_policy: bool,
    pub image_pull_secrets: Vec<Value>,
}

/// The container image of all components.
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
    pub cors_origins: Vec<String>,
    pub tls: Tls,
    pub database: Secret,
    pub objects: Objects,
    pub storage: Storage,
    pub resources: Value,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Value>,
}

/// The controller that executes runs as pods.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Runs {
    pub namespaces: Vec<String>,
    pub queue: Queue,
    pub resources: Value,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Value>,
}

/// The queues of runs that name none.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Queue {
    pub name: String,
    pub system: String,
    pub namespaces: BTreeMap<String, String>,
}

/// The TLS certificate of the control plane and the gateways.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Tls {
    pub secret: String,
    pub ca: String,
}

/// Gateways in pods of their own, separate from the control plane.
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

/// A reference to a Kubernetes secret by name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Secret {
    pub secret: String,
}

/// The bucket for objects, and the secret with its credentials.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Objects {
    pub url: String,
    pub secret: String,
}

/// The volume for the state of the control plane.
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
    pub reset_on_fault: bool,
    pub config: BTreeMap<String, String>,
    pub mig_config: String,
    pub accept: Accept,
    pub amd: Amd,
    pub gpu_settings: BTreeMap<String, String>,
    pub privileged: bool,
    pub runtime_class_name: String,
    pub env: BTreeMap<String, String>,
    pub resources: Value,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Value>,
}

/// Acceptance of nodes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Accept {
    pub level: u8,
    pub every: String,
    pub limits: String,
}

/// GPUs of AMD.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Amd {
    pub enabled: bool,
    pub naming: String,
    pub rocm_dir: String,
}

/// Device classes for resource claims.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct DeviceClasses {
    pub enabled: bool,
    pub extended_resource_name: String,
}

/// ComputeDomains and their controller.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct ComputeDomains {
    pub enabled: bool,
    pub imex: String,
    pub resources: Value,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Value>,
}

/// The data driver on each node.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct Data {
    pub enabled: bool,
    pub limit: String,
    pub cache_dir: String,
    pub resources: Value,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Value>,
}

/// A `ServiceMonitor` for the Prometheus operator.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)] // values.yaml describes each
pub struct ServiceMonitor {
    pub enabled: bool,
    pub interval: String,
}

/// Error message; the chart has the same.
const STATE_NOT_SHARED: &str = "the values: server.replicas above 1 and gateway.enabled need server.database.secret and \
     server.objects.url, because SQLite on a volume supports one pod only";

/// Error message; the chart has the same.
const INVALID_HOSTS: &str =
    "the values: server.hosts must contain host names only, without a scheme, port, comma or space";

/// Error message; the chart has the same.
const INVALID_CORS_ORIGINS: &str =
    "the values: server.corsOrigins must contain origins only, such as https://app.example, without a path";

/// Error message; the chart has the same.
const INSTALLATION_NAMESPACE_FOR_RUNS: &str = "the values: runs.namespaces must not contain the namespace of the installation, because runs could read its secrets";

/// Error message; the chart has the same.
const DOMAINS_WITHOUT_CLAIMS: &str = "the values: computeDomains.enabled needs the node agent with node.offer: dra";

/// Error message; the chart has the same.
const INVALID_IMEX: &str = "the values: computeDomains.imex must be agent or host";

/// Error message; the chart has the same.
const IMEX_WITHOUT_PRIVILEGES: &str =
    "the values: computeDomains.imex: agent needs node.privileged, because IMEX opens devices of the driver";

/// The highest level of `slipway node accept`.
const MAX_ACCEPT_LEVEL: u8 = 4;

/// The `values.yaml` of the chart, the only place for defaults.
const DEFAULTS: &str = include_str!("../../../../deploy/helm/slipway/values.yaml");

impl Values {
    /// Merges the contents of values files over the defaults, in order, and validates the result.
    ///
    /// # Errors
    /// [`KubeError::Invalid`] that names the invalid value.
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
            return Err(KubeError::Invalid(INSTALLATION_NAMESPACE_FOR_RUNS.into()));
        }
        let is_name = |host: &String| !host.is_empty() && !host.contains([',', ':', '/', ' ']);
        if !values.server.hosts.iter().all(is_name) {
            return Err(KubeError::Invalid(INVALID_HOSTS.into()));
        }
        let is_origin = |origin: &String| {
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            host.is_some_and(|host| !host.is_empty() && !host.contains([',', '/', ' ', '*', '@']))
        };
        if !values.server.cors_origins.iter().all(is_origin) {
            return Err(KubeError::Invalid(INVALID_CORS_ORIGINS.into()));
        }
        if !matches!(values.node.offer.as_str(), "device-plugin" | "dra") {
            return Err(KubeError::Invalid(format!(
                "the values: node.offer is '{}'; it must be device-plugin or dra",
                values.node.offer
            )));
        }
        values.check_node().map_err(|message| KubeError::Invalid(format!("the values: node.{message}")))?;
        values.check_queues()?;
        values.check_compute_domains().map_err(|message| KubeError::Invalid(message.into()))?;
        if !values.is_shared() && (values.server.replicas > 1 || values.gateway.enabled) {
            return Err(KubeError::Invalid(STATE_NOT_SHARED.into()));
        }
        Ok(values)
    }

    /// Checks what would otherwise end the agent of each node at its start.
    fn check_node(&self) -> Result<(), String> {
        let Node { accept: Accept { level, every, .. }, amd, .. } = &self.node;
        if *level > MAX_ACCEPT_LEVEL {
            return Err(format!(
                "accept.level is {level}; it must be 1 to {MAX_ACCEPT_LEVEL}, or 0 to accept every node"
            ));
        }
        if !every.is_empty() {
            parse_duration(every).map_err(|reason| format!("accept.every: {reason}"))?;
        }
        if !matches!(amd.naming.as_str(), "single" | "mixed") {
            return Err("amd.naming must be single or mixed".into());
        }
        Ok(())
    }

    fn check_queues(&self) -> Result<(), KubeError> {
        let Queue { name, system, namespaces } = &self.runs.queue;
        let invalid = |what: &str, value: &str, expected: &str| {
            Err(KubeError::Invalid(format!("the values: runs.queue.{what} is '{value}'; it must be {expected}")))
        };
        if !system.is_empty() && system.parse::<QueueSystem>().is_err() {
            return invalid("system", system, "kueue, volcano or kai");
        }
        let mut names = std::iter::once(name).chain(namespaces.values()).filter(|n| !n.is_empty());
        match names.find(|name| !is_queue_name(name)) {
            Some(name) => invalid("name or runs.queue.namespaces", name, "the name of a queue"),
            None => Ok(()),
        }
    }

    fn check_compute_domains(&self) -> Result<(), &'static str> {
        let domains = &self.compute_domains;
        match domains.imex.as_str() {
            _ if !domains.enabled => Ok(()),
            _ if !self.node.enabled || self.node.offer != "dra" => Err(DOMAINS_WITHOUT_CLAIMS),
            "agent" if !self.node.privileged => Err(IMEX_WITHOUT_PRIVILEGES),
            "agent" | "host" => Ok(()),
            _ => Err(INVALID_IMEX),
        }
    }

    /// Whether several pods can share the state: it is in a database and a bucket instead of a volume.
    pub(super) fn is_shared(&self) -> bool {
        !self.server.database.secret.is_empty() && !self.server.objects.url.is_empty()
    }

    /// `repository:tag`.
    pub fn image_name(&self) -> String {
        format!("{}:{}", self.image.repository, self.image.tag)
    }
}

/// Merges as Helm does: maps are merged, other values are replaced, and nulls are ignored.
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
    fn values_yaml_of_the_chart_lists_every_value() {
        let values = Values::read("slipway-system", &[]).unwrap();
        let file: Value = serde_saphyr::from_str(DEFAULTS).unwrap();
        assert_eq!(serde_json::to_value(&values).unwrap(), file);
    }

    #[test]
    fn values_files_override_defaults_and_are_validated() {
        let values = Values::read("a", &["node: {offer: dra}\nimage: {tag: \"9\"}".into()]).unwrap();
        assert_eq!((values.node.offer.as_str(), values.image.tag.as_str()), ("dra", "9"));
        assert_eq!(values.node.kubelet_dir, "/var/lib/kubelet");
        assert!(Values::read("a", &["nodes: {}".into()]).unwrap_err().to_string().contains("nodes"));
        let two_replicas = "server: {replicas: 2}".to_owned();
        assert!(
            Values::read("a", std::slice::from_ref(&two_replicas))
                .unwrap_err()
                .to_string()
                .contains("server.database.secret")
        );
        let shared = "server: {database: {secret: db}, objects: {url: \"s3://b\"}}".to_owned();
        assert_eq!(Values::read("a", &[two_replicas, shared]).unwrap().server.replicas, 2);
        let error = Values::read("a", &["runs: {namespaces: [b, a]}".into()]).unwrap_err().to_string();
        assert!(error.contains("runs.namespaces"), "{error}");
        assert_eq!(Values::read("c", &["runs: {namespaces: [b, a]}".into()]).unwrap().runs.namespaces, ["b", "a"]);
        for host in ["https://ml.example.org", "ml.example.org:443", "a,b", "''"] {
            let result = Values::read("a", &[format!("server: {{hosts: [\"{host}\"]}}").replace("\"''\"", "''")]);
            assert!(result.unwrap_err().to_string().contains("server.hosts"), "{host}");
        }
        for origin in
            ["*", "app.example", "https://app.example/", "https://*.example", "https://a,https://b", "https://"]
        {
            let result = Values::read("a", &[format!("server: {{corsOrigins: ['{origin}']}}")]);
            assert!(result.unwrap_err().to_string().contains("server.corsOrigins"), "{origin}");
        }
        for (queue, expected) in [
            ("{system: slurm}", "kueue, volcano or kai"),
            ("{name: 'a b'}", "'a b'"),
            ("{namespaces: {team: '-'}}", "'-'"),
        ] {
            let error = Values::read("a", &[format!("runs: {{queue: {queue}}}")]).unwrap_err().to_string();
            assert!(error.contains("runs.queue") && error.contains(expected), "{error}");
        }
        for (accept, expected) in [
            ("{level: 5}", "node.accept.level is 5; it must be 1 to 4"),
            ("{level: -1}", "-1"),
            ("{level: quick}", "quick"),
            ("{level: 1, every: weekly}", "node.accept.every: 'weekly' is no duration"),
        ] {
            let error = Values::read("a", &[format!("node: {{accept: {accept}}}")]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(Values::read("a", &["node: {accept: {level: 4, every: 7d}}".into()]).is_ok());
        for (text, message) in [
            ("computeDomains: {enabled: true}", DOMAINS_WITHOUT_CLAIMS),
            ("node: {offer: dra, privileged: false}\ncomputeDomains: {enabled: true}", IMEX_WITHOUT_PRIVILEGES),
            ("node: {offer: dra}\ncomputeDomains: {enabled: true, imex: none}", INVALID_IMEX),
        ] {
            assert!(Values::read("a", &[text.into()]).unwrap_err().to_string().contains(message), "{text}");
        }
        let host = "node: {offer: dra, privileged: false}\ncomputeDomains: {enabled: true, imex: host}";
        assert!(Values::read("a", &[host.into()]).unwrap().compute_domains.enabled);
        for (text, part) in [
            ("accept: {level: 5}", "must be 1 to 4"),
            ("accept: {every: 7w}", "such as 7d"),
            ("accept: {every: d}", "such as 7d"),
            ("accept: {every: 0d}", "such as 7d"),
            ("amd: {naming: triple}", "single or mixed"),
        ] {
            let error = Values::read("a", &[format!("node: {{{text}}}")]).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(Values::read("a", &["node: {accept: {every: 12h}}".into()]).unwrap().node.accept.every, "12h");
        assert!(Values::read("a", &["node: {offer: both}".into()]).unwrap_err().to_string().contains("both"));
    }
}
