//! slipway in a cluster: its objects, applied and removed. The Helm chart makes the same objects; a test compares them.

mod control_plane;
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
use crate::names::{self, FINALIZER, INSTALLATION, RUN_LABEL};
use crate::{Api, KubeError, Resource};

/// The field manager of the installation's objects.
const MANAGER: &str = "slipway";

/// The kinds of an installation's objects, in the order in which they are created.
const KINDS: [Resource<'static>; 18] = [
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
/// The secret of runs' tokens of an earlier version.
const SHARED_SECRET: &str = "slipway-run";
const SLICE: Resource<'static> =
    Resource { group: "resource.k8s.io", version: "v1", kind: "ResourceSlice", plural: "resourceslices" };

fn kind_of(object: &Value) -> Option<&'static Resource<'static>> {
    KINDS.iter().find(|k| object["kind"] == k.kind && object["apiVersion"] == k.api_version())
}

fn name_of(object: &Value) -> (Option<&str>, &str) {
    (object["metadata"]["namespace"].as_str(), object["metadata"]["name"].as_str().unwrap_or_default())
}

/// All objects of an installation, in the order in which they are created.
pub fn objects(values: &Values) -> Vec<Value> {
    let mut all = vec![object(values, "", ("v1", "Namespace"), &values.namespace, false, json!({}))];
    // The node agent mounts folders of the host; everything else meets the restricted pod security standard.
    let enforced = if values.node.enabled { "privileged" } else { "restricted" };
    all[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = json!(enforced);
    if values.node.enabled {
        all.extend(node::objects(values));
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
        // Denies all ingress; each component has a policy that allows its own ports.
        let body = json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
        all.push(object(values, "", ("networking.k8s.io/v1", "NetworkPolicy"), "slipway-default", true, body));
    }
    all
}

/// What an apply or a removal does to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It does not exist yet.
    Create,
    /// It exists and differs.
    Change,
    /// It is as wanted.
    Keep,
    /// The installation does not have it any more.
    Delete,
}

/// An object and what happens to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // the names say it
pub struct Step {
    pub action: Action,
    pub kind: &'static str,
    pub namespace: Option<String>,
    pub name: String,
}

/// Applies the objects, or with `dry_run` only says what would change. Applying the same values again changes nothing.
///
/// # Errors
/// The API server's; what was applied before stays, and the next run goes on from there.
pub async fn apply(api: &Api, values: &Values, dry_run: bool) -> Result<Vec<Step>, KubeError> {
    for namespace in &values.runs.namespaces {
        if api.get(&NAMESPACE, None, namespace).await?.is_none() {
            return Err(KubeError::Invalid(format!(
                "the values: runs.namespaces names '{namespace}', which does not exist; kubectl create namespace {namespace} makes it"
            )));
        }
    }
    let wanted = objects(values);
    let mut steps = Vec::new();
    let step = |action, resource: &Resource<'static>, object: &Value| {
        let (namespace, name) = name_of(object);
        Step { action, kind: resource.kind, namespace: namespace.map(str::to_owned), name: name.to_owned() }
    };
    for object in &wanted {
        let resource = kind_of(object)
            .ok_or_else(|| KubeError::Invalid(format!("{} is no kind of an installation", object["kind"])))?;
        let (namespace, name) = name_of(object);
        let before = api.get(resource, namespace, name).await?;
        if dry_run && before.is_none() && namespace.is_some() {
            // Its namespace may not exist yet, and then the server refuses even a dry run.
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
        let after = api.apply(resource, namespace, name, MANAGER, false, object, dry_run).await?;
        let action = match &before {
            None => Action::Create,
            // What the server answered is compared, since defaults make it differ from what was sent.
            Some(before) if same(before, &after) => Action::Keep,
            Some(_) => Action::Change,
        };
        steps.push(step(action, resource, object));
    }
    let names: BTreeSet<(&str, Option<&str>, &str)> = wanted
        .iter()
        .map(|o| {
            let (namespace, name) = name_of(o);
            (o["kind"].as_str().unwrap_or_default(), namespace, name)
        })
        .collect();
    for (resource, object) in owned(api, &values.namespace).await?.into_iter().rev() {
        let (namespace, name) = name_of(&object);
        if !names.contains(&(resource.kind, namespace, name)) {
            if !dry_run {
                api.delete(resource, namespace, name).await?;
            }
            steps.push(step(Action::Delete, resource, &object));
        }
    }
    steps.extend(remove_shared_secrets(api, &values.namespace, dry_run).await?);
    Ok(steps)
}

/// Removes what an earlier version left in each namespace with runs: a secret with one token for all of them, which did not expire. Who
/// may not list secrets leaves them where they are.
async fn remove_shared_secrets(api: &Api, installation: &str, dry_run: bool) -> Result<Vec<Step>, KubeError> {
    let label = format!("{INSTALLATION}={installation}");
    let found = match api.list(&SECRET, None, &format!("metadata.name={SHARED_SECRET}"), &label).await {
        Err(KubeError::Refused { code: 403, .. }) => Vec::new(),
        found => found?,
    };
    let mut steps = Vec::new();
    for secret in found {
        let (space, name) = name_of(&secret);
        if !dry_run {
            api.delete(&SECRET, space, name).await?;
        }
        steps.push(deleted(&SECRET, space, name));
    }
    Ok(steps)
}

/// Whether a Deployment changes from `RollingUpdate` to `Recreate`. The server filled in `rollingUpdate`, which is forbidden with
/// `Recreate`, and applying cannot remove a field that no field manager owns.
fn switches_to_recreate(before: &Value, wanted: &Value) -> bool {
    wanted["spec"]["strategy"]["type"] == "Recreate" && before["spec"]["strategy"]["type"] == "RollingUpdate"
}

/// Whether two versions of an object differ in metadata of the server and in status only.
fn same(before: &Value, after: &Value) -> bool {
    let plain = |object: &Value| {
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
    plain(before) == plain(after)
}

/// All objects of an installation, in the order of their kinds.
async fn owned(api: &Api, installation: &str) -> Result<Vec<(&'static Resource<'static>, Value)>, KubeError> {
    let mut found = Vec::new();
    for resource in &KINDS {
        let label = format!("{INSTALLATION}={installation}");
        match api.list(resource, None, "", &label).await {
            Ok(objects) => found.extend(objects.into_iter().map(|o| {
                // Items of a list carry no kind and no API version.
                let mut o = o;
                o["kind"] = json!(resource.kind);
                o["apiVersion"] = json!(resource.api_version());
                (resource, o)
            })),
            // The cluster does not know this kind.
            Err(KubeError::Refused { code: 404, .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Removes an installation, with the labels, conditions and slices that its node agents published.
///
/// # Errors
/// The API server's; running it again goes on.
pub async fn remove(api: &Api, namespace: &str, dry_run: bool) -> Result<Vec<Step>, KubeError> {
    let mut steps = Vec::new();
    let mut drivers = BTreeSet::new();
    for (resource, object) in owned(api, namespace).await?.into_iter().rev() {
        let (space, name) = name_of(&object);
        if resource.kind == "DaemonSet" {
            drivers.extend(object["metadata"]["annotations"][node::DRIVER_ANNOTATION].as_str().map(str::to_owned));
        }
        if !dry_run {
            api.delete(resource, space, name).await?;
            if resource.kind == "DaemonSet" {
                wait_for_agents_to_end(api, space.unwrap_or_default()).await?;
            }
        }
        steps.push(deleted(resource, space, name));
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
    // Runs are deleted with their definition. Nobody is left to remove the finalizer from their pods.
    for pod in api.list(&POD, None, "", RUN_LABEL).await? {
        let (space, name) = name_of(&pod);
        let kept: Vec<&Value> =
            pod["metadata"]["finalizers"].as_array().into_iter().flatten().filter(|f| **f != FINALIZER).collect();
        if !dry_run {
            api.merge(&POD, space, name, false, &json!({"metadata": {"finalizers": kept}}))
                .await
                .or_else(ignore_not_found)?;
            api.delete(&POD, space, name).await?;
        }
        steps.push(deleted(&POD, space, name));
    }
    // Namespaces that were enabled for runs by hand; otherwise a later installation would find its rights there already.
    for (name, role, _) in names::runs_bindings(namespace) {
        for binding in api.list(&ROLE_BINDING, None, &format!("metadata.name={name}"), "").await? {
            let (space, name) = name_of(&binding);
            // What has the label was deleted above.
            if binding["roleRef"]["name"] != role.as_str() || binding["metadata"]["labels"][INSTALLATION] == namespace {
                continue;
            }
            if !dry_run {
                api.delete(&ROLE_BINDING, space, name).await?;
            }
            steps.push(deleted(&ROLE_BINDING, space, name));
        }
    }
    for secret in api.list(&SECRET, None, "", &format!("{INSTALLATION}={namespace}")).await? {
        let (space, name) = name_of(&secret);
        if !dry_run {
            api.delete(&SECRET, space, name).await?;
        }
        steps.push(deleted(&SECRET, space, name));
    }
    // Applying nothing as the agents' field managers removes what they applied: labels, and the condition.
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

/// Waits until the node agents have ended; one that still runs would write its labels again.
async fn wait_for_agents_to_end(api: &Api, namespace: &str) -> Result<(), KubeError> {
    for _ in 0..120 {
        if api.list(&POD, Some(namespace), "", "app.kubernetes.io/component=node").await?.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err(KubeError::Invalid(format!("node agents in {namespace} did not end within a minute; run this again")))
}

/// Waits until the installation's workloads are ready; `report` is called with what is waited for.
///
/// # Errors
/// [`KubeError::Invalid`] that names what is not ready at the end of `limit`.
pub async fn ready(api: &Api, namespace: &str, limit: Duration, report: impl Fn(&str)) -> Result<(), KubeError> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut last = String::new();
    loop {
        let mut missing = Vec::new();
        for resource in KINDS.iter().filter(|k| matches!(k.kind, "DaemonSet" | "Deployment")) {
            let label = format!("{INSTALLATION}={namespace}");
            for object in api.list(resource, Some(namespace), "", &label).await? {
                let status = |field: &str| object["status"][field].as_i64().unwrap_or(0);
                let (want, have, newest) = if resource.kind == "DaemonSet" {
                    (status("desiredNumberScheduled"), status("numberReady"), status("updatedNumberScheduled"))
                } else {
                    (
                        object["spec"]["replicas"].as_i64().unwrap_or(1),
                        status("readyReplicas"),
                        status("updatedReplicas"),
                    )
                };
                let seen = status("observedGeneration") >= object["metadata"]["generation"].as_i64().unwrap_or(0);
                // Ready pods may still be those of the previous version.
                let rolling = resource.kind == "Deployment" && status("replicas") > newest;
                if !seen || have < want || newest < want || rolling {
                    missing.push(format!("{} {}: {have} of {want} ready", resource.kind, name_of(&object).1));
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let text = missing.join(", ");
        if tokio::time::Instant::now() > deadline {
            return Err(KubeError::Invalid(format!("not ready within {} s: {text}", limit.as_secs())));
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
    async fn a_namespace_that_does_not_exist_is_named_before_anything_is_written() {
        let cluster = MockCluster::new();
        cluster.put("namespaces", namespace("team-a"));
        let values = Values::read("sys", &["runs: {namespaces: [team-a, team-b]}".into()]).unwrap();
        let error = apply(&cluster.api("me"), &values, false).await.unwrap_err().to_string();
        assert!(error.contains("team-b") && error.contains("kubectl create namespace team-b"), "{error}");
        assert!(cluster.requests().iter().all(|(method, _)| method == "GET"));
    }

    #[tokio::test]
    async fn applying_again_changes_nothing_and_removing_leaves_nothing() {
        let cluster = MockCluster::new();
        let api = cluster.api("me");
        for name in ["team-a", "team-b"] {
            cluster.put("namespaces", namespace(name));
        }
        let values = Values::read("sys", &["runs: {namespaces: [team-a]}".into()]).unwrap();
        let made = apply(&api, &values, false).await.unwrap();
        assert!(made.len() > 30 && made.iter().all(|s| s.action == Action::Create), "{made:?}");
        let again = apply(&api, &values, false).await.unwrap();
        assert!(again.len() == made.len() && again.iter().all(|s| s.action == Action::Keep), "{again:?}");
        // The shared token of an earlier version goes, and no secret of anybody else.
        let secret = |space: &str, name: &str, installation: &str| {
            json!({"apiVersion": "v1", "kind": "Secret",
                "metadata": {"name": name, "namespace": space, "labels": {INSTALLATION: installation}}})
        };
        for (space, name, installation) in [
            ("team-a", "slipway-run", "sys"),
            ("team-b", "slipway-run", "other"),
            ("team-a", "slipway-run-x-1-a", "sys"),
        ] {
            cluster.put("secrets", secret(space, name, installation));
        }
        let upgraded = apply(&api, &values, false).await.unwrap();
        let gone: Vec<&Step> = upgraded.iter().filter(|s| s.action == Action::Delete).collect();
        assert_eq!(gone, [&deleted(&SECRET, Some("team-a"), "slipway-run")]);
        assert_eq!(cluster.names("secrets"), ["slipway-run-x-1-a", "slipway-run"]);
        // A namespace that is no longer named is disabled.
        let fewer = apply(&api, &Values::read("sys", &[]).unwrap(), false).await.unwrap();
        let gone: Vec<(&str, Option<&str>)> = fewer
            .iter()
            .filter(|s| s.action == Action::Delete)
            .map(|s| (s.name.as_str(), s.namespace.as_deref()))
            .collect();
        assert_eq!(gone.len(), 2, "{gone:?}");
        assert!(gone.iter().all(|(name, space)| name.starts_with("slipway-") && *space == Some("team-a")), "{gone:?}");
        // What an administrator enabled by hand goes too; a binding of the same name that is none of ours stays.
        let binding = |space: &str, role: &str| {
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": "slipway-runs", "namespace": space}, "roleRef": {"kind": "ClusterRole", "name": role}})
        };
        cluster.put("rolebindings", binding("team-b", "slipway-runs-sys"));
        cluster.put("rolebindings", binding("team-a", "slipway-runs-other"));
        remove(&api, "sys", false).await.unwrap();
        for resource in &KINDS {
            let left = cluster.names(resource.plural);
            let expected: &[&str] = match resource.kind {
                "Namespace" => &["team-a", "team-b"],
                "RoleBinding" => &["slipway-runs"],
                _ => &[],
            };
            assert_eq!(left, expected, "{}", resource.kind);
        }
        assert!(cluster.get("rolebindings", "team-a", "slipway-runs").is_some());
    }
}
