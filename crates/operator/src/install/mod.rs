//! Installs slipway into a cluster: renders the objects, applies and removes them. The Helm chart renders the same objects; a conformance
//! test compares both.

mod control_plane;
mod data;
mod domains;
mod node;
mod objects;
mod runs;
mod values;

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

pub use self::values::Values;
pub use crate::names::enable_namespace;

use self::objects::object;
use crate::api::{NODE, POD};
use crate::domains::{COMPUTE_DOMAIN, without_finalizer};
use crate::names::{self, FINALIZER, INSTALLATION_LABEL, RUN_LABEL};
use crate::{Api, KubeError, Resource};

/// Field manager of the installation's objects in server-side apply.
const FIELD_MANAGER: &str = "slipway";

/// The kinds of an installation's objects, in the order of creation.
const KINDS: [Resource<'static>; 19] = [
    NAMESPACE,
    Resource {
        group: "apiextensions.k8s.io",
        version: "v1",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
    },
    Resource { group: "", version: "v1", kind: "ServiceAccount", plural: "serviceaccounts" },
    Resource { group: "rbac.authorization.k8s.io", version: "v1", kind: "ClusterRole", plural: "clusterroles" },
    Resource {
        group: "rbac.authorization.k8s.io",
        version: "v1",
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
    },
    Resource { group: "rbac.authorization.k8s.io", version: "v1", kind: "Role", plural: "roles" },
    ROLE_BINDING,
    Resource {
        group: "admissionregistration.k8s.io",
        version: "v1",
        kind: "ValidatingAdmissionPolicy",
        plural: "validatingadmissionpolicies",
    },
    Resource {
        group: "admissionregistration.k8s.io",
        version: "v1",
        kind: "ValidatingAdmissionPolicyBinding",
        plural: "validatingadmissionpolicybindings",
    },
    Resource { group: "resource.k8s.io", version: "v1", kind: "DeviceClass", plural: "deviceclasses" },
    Resource { group: "storage.k8s.io", version: "v1", kind: "CSIDriver", plural: "csidrivers" },
    Resource { group: "", version: "v1", kind: "ConfigMap", plural: "configmaps" },
    Resource { group: "", version: "v1", kind: "PersistentVolumeClaim", plural: "persistentvolumeclaims" },
    Resource { group: "networking.k8s.io", version: "v1", kind: "NetworkPolicy", plural: "networkpolicies" },
    Resource { group: "", version: "v1", kind: "Service", plural: "services" },
    Resource { group: "apps", version: "v1", kind: "DaemonSet", plural: "daemonsets" },
    Resource { group: "apps", version: "v1", kind: "Deployment", plural: "deployments" },
    Resource { group: "policy", version: "v1", kind: "PodDisruptionBudget", plural: "poddisruptionbudgets" },
    Resource { group: "monitoring.coreos.com", version: "v1", kind: "ServiceMonitor", plural: "servicemonitors" },
];
const NAMESPACE: Resource<'static> = Resource { group: "", version: "v1", kind: "Namespace", plural: "namespaces" };
const ROLE_BINDING: Resource<'static> =
    Resource { group: "rbac.authorization.k8s.io", version: "v1", kind: "RoleBinding", plural: "rolebindings" };
const SECRET: Resource<'static> = Resource { group: "", version: "v1", kind: "Secret", plural: "secrets" };
/// Name of a secret that earlier versions created in each namespace, with one token for all runs.
const LEGACY_SHARED_SECRET: &str = "slipway-run";
const SLICE: Resource<'static> =
    Resource { group: "resource.k8s.io", version: "v1", kind: "ResourceSlice", plural: "resourceslices" };

/// The kind of an object; `None` if it is not in [`KINDS`].
fn kind_of(object: &Value) -> Option<&'static Resource<'static>> {
    KINDS.iter().find(|k| object["kind"] == k.kind && object["apiVersion"] == k.api_version())
}

/// Namespace (`None` for cluster-scoped objects) and name of an object.
fn name_of(object: &Value) -> (Option<&str>, &str) {
    (object["metadata"]["namespace"].as_str(), object["metadata"]["name"].as_str().unwrap_or_default())
}

/// All objects of an installation, in the order of creation.
pub fn objects(values: &Values) -> Vec<Value> {
    let mut all = vec![object(values, "", ("v1", "Namespace"), &values.namespace, false, json!({}))];
    // Only what runs on each node needs more than the restricted pod security standard: it mounts folders of the host.
    let enforced = if values.node.enabled || values.data.enabled { "privileged" } else { "restricted" };
    all[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = json!(enforced);
    if values.node.enabled {
        all.extend(node::objects(values));
    }
    if values.data.enabled {
        all.extend(data::objects(values));
    }
    if values.compute_domains.enabled {
        all.push(domains::definition(values));
        all.extend(domains::objects(values));
    }
    if values.server.enabled {
        all.push(control_plane::definition(values));
        all.extend(control_plane::objects(values));
        all.extend(runs::objects(values));
    }
    if values.gateway.enabled {
        all.extend(control_plane::gateway(values));
    }
    if values.network_policy {
        // The default policy denies all ingress. Each component has another policy that allows its own ports.
        let body = json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
        all.push(object(values, "", ("networking.k8s.io/v1", "NetworkPolicy"), "slipway-default", true, body));
    }
    all
}

/// What applying or removing an installation does to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The object does not exist yet and is created.
    Create,
    /// The object differs from the desired state and is changed.
    Change,
    /// The object already has the desired state.
    Keep,
    /// The object is not part of the installation any more and is deleted.
    Delete,
}

/// One object of a plan, and the action on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // the field names are sufficient
pub struct Step {
    pub action: Action,
    pub kind: &'static str,
    pub namespace: Option<String>,
    pub name: String,
}

/// Applies all objects and deletes obsolete ones. With `dry_run` only returns what would change. Idempotent.
///
/// # Errors
/// An error of the API server. Objects applied before the error remain; applying again continues from there.
pub async fn apply(api: &Api, values: &Values, dry_run: bool) -> Result<Vec<Step>, KubeError> {
    for namespace in &values.runs.namespaces {
        if api.get(&NAMESPACE, None, namespace).await?.is_none() {
            return Err(KubeError::Invalid(format!(
                "the values: namespace '{namespace}' in runs.namespaces does not exist; create it: kubectl create namespace {namespace}"
            )));
        }
    }
    let desired = objects(values);
    let mut steps = Vec::new();
    let step = |action, resource: &Resource<'static>, object: &Value| {
        let (namespace, name) = name_of(object);
        Step { action, kind: resource.kind, namespace: namespace.map(str::to_owned), name: name.to_owned() }
    };
    for object in &desired {
        let resource = kind_of(object)
            .ok_or_else(|| KubeError::Invalid(format!("an installation has no objects of kind {}", object["kind"])))?;
        let (namespace, name) = name_of(object);
        let before = api.get(resource, namespace, name).await?;
        if dry_run && before.is_none() && namespace.is_some() {
            // If the namespace does not exist yet, the API server rejects even a dry run.
            steps.push(step(Action::Create, resource, object));
            continue;
        }
        if before.as_ref().is_some_and(|before| switches_to_recreate(before, object)) {
            if dry_run {
                steps.push(step(Action::Change, resource, object));
                continue;
            }
            api.merge(
                resource,
                namespace,
                name,
                false,
                &json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}}),
            )
            .await?;
        }
        let after = api.apply(resource, namespace, name, FIELD_MANAGER, false, object, dry_run).await?;
        let action = match &before {
            None => Action::Create,
            // Compare with the response of the API server, because its defaults make it differ from the request.
            Some(before) if is_unchanged(before, &after) => Action::Keep,
            Some(_) => Action::Change,
        };
        steps.push(step(action, resource, object));
    }
    let names: BTreeSet<(&str, Option<&str>, &str)> = desired
        .iter()
        .map(|o| {
            let (namespace, name) = name_of(o);
            (o["kind"].as_str().unwrap_or_default(), namespace, name)
        })
        .collect();
    for (resource, object) in installed_objects(api, &values.namespace).await?.into_iter().rev() {
        let (namespace, name) = name_of(&object);
        if !names.contains(&(resource.kind, namespace, name)) {
            if !dry_run {
                api.delete(resource, namespace, name).await?;
            }
            steps.push(step(Action::Delete, resource, &object));
        }
    }
    steps.extend(remove_domains(api, &steps, dry_run).await?);
    steps.extend(remove_legacy_secrets(api, &values.namespace, dry_run).await?);
    Ok(steps)
}

/// Deletes the secrets of earlier versions: one in each namespace with runs, with a token for all runs that does not expire. Does nothing
/// if the user may not list secrets.
async fn remove_legacy_secrets(api: &Api, installation: &str, dry_run: bool) -> Result<Vec<Step>, KubeError> {
    let label = format!("{INSTALLATION_LABEL}={installation}");
    let found = match api.list(&SECRET, None, &format!("metadata.name={LEGACY_SHARED_SECRET}"), &label).await {
        Err(KubeError::Refused { code: 403, .. }) => Vec::new(),
        found => found?,
    };
    let mut steps = Vec::new();
    for secret in found {
        let (object_namespace, name) = name_of(&secret);
        if !dry_run {
            api.delete(&SECRET, object_namespace, name).await?;
        }
        steps.push(deleted(&SECRET, object_namespace, name));
    }
    Ok(steps)
}

/// Whether a Deployment changes from `RollingUpdate` to `Recreate`. Then the field `rollingUpdate`, a default of the API server, has to be
/// removed first: it is forbidden with `Recreate`, and applying cannot remove a field that no field manager owns.
fn switches_to_recreate(before: &Value, desired: &Value) -> bool {
    desired["spec"]["strategy"]["type"] == "Recreate" && before["spec"]["strategy"]["type"] == "RollingUpdate"
}

/// Whether two versions of an object are equal, apart from the status and the metadata that the API server sets.
fn is_unchanged(before: &Value, after: &Value) -> bool {
    let normalized = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            for field in ["managedFields", "resourceVersion", "generation"] {
                metadata.remove(field);
            }
        }
        if let Some(object) = object.as_object_mut() {
            object.remove("status");
        }
        object
    };
    normalized(before) == normalized(after)
}

/// Deletes all ComputeDomains if these steps delete their definition. Their controller is deleted too, so their finalizers are removed here.
async fn remove_domains(api: &Api, steps: &[Step], dry_run: bool) -> Result<Vec<Step>, KubeError> {
    if !steps.iter().any(|s| s.action == Action::Delete && s.name == domains::DEFINITION_NAME) {
        return Ok(Vec::new());
    }
    let mut removed = Vec::new();
    for domain in list_if_defined(api, &COMPUTE_DOMAIN).await? {
        let (object_namespace, name) = name_of(&domain);
        if !dry_run {
            api.delete(&COMPUTE_DOMAIN, object_namespace, name).await?;
            let patch = json!({"metadata": {"finalizers": without_finalizer(&domain)["metadata"]["finalizers"]}});
            api.merge(&COMPUTE_DOMAIN, object_namespace, name, false, &patch).await.or_else(ignore_not_found)?;
        }
        removed.push(deleted(&COMPUTE_DOMAIN, object_namespace, name));
    }
    Ok(removed)
}

/// The objects of a kind in all namespaces; none if the cluster does not have this kind.
async fn list_if_defined(api: &Api, resource: &Resource<'static>) -> Result<Vec<Value>, KubeError> {
    match api.list(resource, None, "", "").await {
        Err(KubeError::Refused { code: 404, .. }) => Ok(Vec::new()),
        found => found,
    }
}

/// All existing objects with the label of an installation, in the order of [`KINDS`].
async fn installed_objects(
    api: &Api,
    installation: &str,
) -> Result<Vec<(&'static Resource<'static>, Value)>, KubeError> {
    let mut found = Vec::new();
    for resource in &KINDS {
        let label = format!("{INSTALLATION_LABEL}={installation}");
        match api.list(resource, None, "", &label).await {
            Ok(objects) => found.extend(objects.into_iter().map(|o| {
                // Items of a list have no kind and no API version.
                let mut o = o;
                o["kind"] = json!(resource.kind);
                o["apiVersion"] = json!(resource.api_version());
                (resource, o)
            })),
            // The cluster does not have this kind.
            Err(KubeError::Refused { code: 404, .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Removes an installation, including the node labels, node conditions and ResourceSlices that its node agents published. With `dry_run`
/// only returns what would be removed.
///
/// # Errors
/// An error of the API server. Removing again continues from there.
pub async fn remove(api: &Api, namespace: &str, dry_run: bool) -> Result<Vec<Step>, KubeError> {
    let mut steps = Vec::new();
    let mut drivers = BTreeSet::new();
    for (resource, object) in installed_objects(api, namespace).await?.into_iter().rev() {
        let (object_namespace, name) = name_of(&object);
        if resource.kind == "DaemonSet" {
            let names = object["metadata"]["annotations"][node::DRIVER_ANNOTATION].as_str().unwrap_or_default();
            drivers.extend(names.split(',').filter(|n| !n.is_empty()).map(str::to_owned));
        }
        if !dry_run {
            api.delete(resource, object_namespace, name).await?;
            if resource.kind == "DaemonSet" {
                wait_for_agents_to_end(api, object_namespace.unwrap_or_default()).await?;
            }
        }
        steps.push(deleted(resource, object_namespace, name));
    }
    for driver in drivers {
        for slice in api.list(&SLICE, None, &format!("spec.driver={driver}"), "").await? {
            let (_, name) = name_of(&slice);
            if !dry_run {
                api.delete(&SLICE, None, name).await?;
            }
            steps.push(deleted(&SLICE, None, name));
        }
    }
    steps.extend(remove_domains(api, &steps, dry_run).await?);
    // Runs are deleted with their definition. The controller is removed too, so remove the finalizers of their pods here.
    for pod in api.list(&POD, None, "", RUN_LABEL).await? {
        let (object_namespace, name) = name_of(&pod);
        let other_finalizers: Vec<&Value> =
            pod["metadata"]["finalizers"].as_array().into_iter().flatten().filter(|f| **f != FINALIZER).collect();
        if !dry_run {
            api.merge(&POD, object_namespace, name, false, &json!({"metadata": {"finalizers": other_finalizers}}))
                .await
                .or_else(ignore_not_found)?;
            api.delete(&POD, object_namespace, name).await?;
        }
        steps.push(deleted(&POD, object_namespace, name));
    }
    // Delete the bindings of namespaces that were enabled for runs by hand. A later installation must not inherit their permissions.
    for (name, role, _) in names::runs_bindings(namespace) {
        for binding in api.list(&ROLE_BINDING, None, &format!("metadata.name={name}"), "").await? {
            let (object_namespace, name) = name_of(&binding);
            // Bindings with the label were deleted above.
            if binding["roleRef"]["name"] != role.as_str()
                || binding["metadata"]["labels"][INSTALLATION_LABEL] == namespace
            {
                continue;
            }
            if !dry_run {
                api.delete(&ROLE_BINDING, object_namespace, name).await?;
            }
            steps.push(deleted(&ROLE_BINDING, object_namespace, name));
        }
    }
    for secret in api.list(&SECRET, None, "", &format!("{INSTALLATION_LABEL}={namespace}")).await? {
        let (object_namespace, name) = name_of(&secret);
        if !dry_run {
            api.delete(&SECRET, object_namespace, name).await?;
        }
        steps.push(deleted(&SECRET, object_namespace, name));
    }
    // Applying an empty object as the field managers of the agents removes the labels and the condition that they applied.
    for node in api.list(&NODE, None, "", "").await? {
        let (_, name) = name_of(&node);
        let managers = node["metadata"]["managedFields"].as_array();
        for manager in managers.into_iter().flatten().filter_map(|m| m["manager"].as_str()) {
            if manager.starts_with("slipway-node") || manager.starts_with("slipway-mig") {
                if !dry_run {
                    let empty = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
                    let status = manager.ends_with("-status");
                    api.apply(&NODE, None, name, manager, status, &empty, false).await?;
                }
                steps.push(Step { action: Action::Change, kind: "Node", namespace: None, name: name.to_owned() });
            }
        }
    }
    Ok(steps)
}

fn deleted(resource: &Resource<'static>, namespace: Option<&str>, name: &str) -> Step {
    Step { action: Action::Delete, kind: resource.kind, namespace: namespace.map(str::to_owned), name: name.to_owned() }
}

fn ignore_not_found(error: KubeError) -> Result<Value, KubeError> {
    match error {
        KubeError::Refused { code: 404, .. } => Ok(Value::Null),
        other => Err(other),
    }
}

/// Waits until the node agents have ended, because a running agent would set its labels again.
async fn wait_for_agents_to_end(api: &Api, namespace: &str) -> Result<(), KubeError> {
    for _ in 0..120 {
        if api.list(&POD, Some(namespace), "", "app.kubernetes.io/component=node").await?.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err(KubeError::Invalid(format!("node agents in {namespace} did not end within a minute; run the command again")))
}

/// Waits until the workloads of the installation are ready. Calls `report` whenever the list of workloads that are not ready changes.
///
/// # Errors
/// [`KubeError::Invalid`] that names the workloads that are not ready after `timeout`.
pub async fn ready(api: &Api, namespace: &str, timeout: Duration, report: impl Fn(&str)) -> Result<(), KubeError> {
    let deadline = tokio::time::Instant::now() + timeout;
    let mut last = String::new();
    loop {
        let mut missing = Vec::new();
        for resource in KINDS.iter().filter(|k| matches!(k.kind, "DaemonSet" | "Deployment")) {
            let label = format!("{INSTALLATION_LABEL}={namespace}");
            for object in api.list(resource, Some(namespace), "", &label).await? {
                let status = |field: &str| object["status"][field].as_i64().unwrap_or(0);
                let (desired, ready, updated) = if resource.kind == "DaemonSet" {
                    (status("desiredNumberScheduled"), status("numberReady"), status("updatedNumberScheduled"))
                } else {
                    (
                        object["spec"]["replicas"].as_i64().unwrap_or(1),
                        status("readyReplicas"),
                        status("updatedReplicas"),
                    )
                };
                let observed = status("observedGeneration") >= object["metadata"]["generation"].as_i64().unwrap_or(0);
                // Ready pods may still be those of the previous version.
                let rolling = resource.kind == "Deployment" && status("replicas") > updated;
                if !observed || ready < desired || updated < desired || rolling {
                    missing.push(format!("{} {}: {ready} of {desired} ready", resource.kind, name_of(&object).1));
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let text = missing.join(", ");
        if tokio::time::Instant::now() > deadline {
            return Err(KubeError::Invalid(format!("not ready within {} s: {text}", timeout.as_secs())));
        }
        if text != last {
            report(&text);
            last = text;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::MockCluster;

    fn namespace(name: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    }

    #[tokio::test]
    async fn missing_namespace_is_reported_before_any_write() {
        let cluster = MockCluster::new();
        cluster.put("namespaces", namespace("team-a"));
        let values = Values::read("sys", &["runs: {namespaces: [team-a, team-b]}".into()]).unwrap();
        let error = apply(&cluster.api("admin"), &values, false).await.unwrap_err().to_string();
        assert!(error.contains("team-b") && error.contains("kubectl create namespace team-b"), "{error}");
        assert!(cluster.requests().iter().all(|(method, _)| method == "GET"));
    }

    #[tokio::test]
    async fn apply_is_idempotent_and_remove_is_complete() {
        let cluster = MockCluster::new();
        let api = cluster.api("admin");
        for name in ["team-a", "team-b"] {
            cluster.put("namespaces", namespace(name));
        }
        let text = "runs: {namespaces: [team-a]}\nnode: {offer: dra}\ncomputeDomains: {enabled: true}";
        let values = Values::read("sys", &[text.into()]).unwrap();
        let created = apply(&api, &values, false).await.unwrap();
        assert!(created.len() > 30 && created.iter().all(|s| s.action == Action::Create), "{created:?}");
        let again = apply(&api, &values, false).await.unwrap();
        assert!(again.len() == created.len() && again.iter().all(|s| s.action == Action::Keep), "{again:?}");
        // The legacy secret of this installation is deleted, and no other secret.
        let secret = |object_namespace: &str, name: &str, installation: &str| {
            json!({"apiVersion": "v1", "kind": "Secret",
                "metadata": {"name": name, "namespace": object_namespace, "labels": {INSTALLATION_LABEL: installation}}})
        };
        for (object_namespace, name, installation) in [
            ("team-a", "slipway-run", "sys"),
            ("team-b", "slipway-run", "other"),
            ("team-a", "slipway-run-x-1-a", "sys"),
        ] {
            cluster.put("secrets", secret(object_namespace, name, installation));
        }
        let upgraded = apply(&api, &values, false).await.unwrap();
        let deleted_steps: Vec<&Step> = upgraded.iter().filter(|s| s.action == Action::Delete).collect();
        assert_eq!(deleted_steps, [&deleted(&SECRET, Some("team-a"), "slipway-run")]);
        assert_eq!(cluster.names("secrets"), ["slipway-run-x-1-a", "slipway-run"]);
        // A namespace that is no longer listed is disabled.
        let without = "node: {offer: dra}\ncomputeDomains: {enabled: true}".to_owned();
        let without_runs = Values::read("sys", &[without]).unwrap();
        let fewer = apply(&api, &without_runs, false).await.unwrap();
        let deleted_steps: Vec<(&str, Option<&str>)> = fewer
            .iter()
            .filter(|s| s.action == Action::Delete)
            .map(|s| (s.name.as_str(), s.namespace.as_deref()))
            .collect();
        assert_eq!(deleted_steps.len(), 2, "{deleted_steps:?}");
        assert!(
            deleted_steps
                .iter()
                .all(|(name, object_namespace)| name.starts_with("slipway-") && *object_namespace == Some("team-a")),
            "{deleted_steps:?}"
        );
        // Bindings created by hand are deleted too; a binding of the same name for another installation is kept.
        let binding = |object_namespace: &str, role: &str| {
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": "slipway-runs", "namespace": object_namespace}, "roleRef": {"kind": "ClusterRole", "name": role}})
        };
        cluster.put("rolebindings", binding("team-b", "slipway-runs-sys"));
        cluster.put("rolebindings", binding("team-a", "slipway-runs-other"));
        // Nobody is left to remove the finalizer of a domain, or the slices of channels.
        cluster.put(
            "computedomains",
            json!({"metadata": {"name": "d", "namespace": "team-b", "finalizers": [crate::domains::FINALIZER]}}),
        );
        let slice = |name: &str, driver: &str| json!({"metadata": {"name": name}, "spec": {"driver": driver}});
        cluster.put("resourceslices", slice("n1-channels", "compute-domain.nvidia.com"));
        let no_domains = "node: {offer: dra}".to_owned();
        let disabled = Values::read("sys", &[no_domains]).unwrap();
        apply(&api, &disabled, false).await.unwrap();
        assert!(cluster.names("computedomains").is_empty(), "disabling removes them as well");
        assert!(cluster.get("customresourcedefinitions", "", domains::DEFINITION_NAME).is_none());
        apply(&api, &without_runs, false).await.unwrap();
        cluster.put(
            "computedomains",
            json!({"metadata": {"name": "d", "namespace": "team-b", "finalizers": [crate::domains::FINALIZER]}}),
        );
        remove(&api, "sys", false).await.unwrap();
        assert!(cluster.names("computedomains").is_empty() && cluster.names("resourceslices").is_empty());
        for resource in &KINDS {
            let remaining = cluster.names(resource.plural);
            let expected: &[&str] = match resource.kind {
                "Namespace" => &["team-a", "team-b"],
                "RoleBinding" => &["slipway-runs"],
                _ => &[],
            };
            assert_eq!(remaining, expected, "{}", resource.kind);
        }
        assert!(cluster.get("rolebindings", "team-a", "slipway-runs").is_some());
    }
}
