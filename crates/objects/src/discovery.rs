//! The documents by which clients find out what the API serves: the lists of groups, versions and resources, each alone or all in one
//! (aggregated discovery, `apidiscovery.k8s.io/v2`).

use serde_json::{Value, json};

use crate::resource::{Registry, Resource};

/// The verbs of every stored resource, in the order in which the API server lists them.
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// The verbs of a resource that clients cannot change.
const READ_VERBS: &[&str] = &["get", "list", "watch"];
/// The verbs of a log.
const LOG_VERBS: &[&str] = &["get"];
/// The verbs of the finalizers of a namespace.
const FINALIZE_VERBS: &[&str] = &["update"];
/// The verbs of a status.
const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

/// A resource of which no object is ever stored. All have the version `v1`, no namespace, and the verb `create`.
#[derive(Debug)]
pub struct Unstored {
    /// The API group.
    pub group: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// The name in paths.
    pub plural: &'static str,
}

/// The definitions of custom resources, which are refused.
pub const DEFINITIONS: Unstored =
    Unstored { group: "apiextensions.k8s.io", kind: "CustomResourceDefinition", plural: "customresourcedefinitions" };

/// The resources without stored objects: definitions, and reviews, which are computed from a request.
const UNSTORED: &[Unstored] = &[
    DEFINITIONS,
    Unstored { group: "authentication.k8s.io", kind: "SelfSubjectReview", plural: "selfsubjectreviews" },
    Unstored { group: "authorization.k8s.io", kind: "SelfSubjectAccessReview", plural: "selfsubjectaccessreviews" },
    Unstored { group: "authorization.k8s.io", kind: "SelfSubjectRulesReview", plural: "selfsubjectrulesreviews" },
];

/// The groups with their versions, without the core group.
fn named_groups(registry: &Registry) -> Vec<(&'static str, &'static str)> {
    let mut groups: Vec<_> = registry.groups().into_iter().filter(|(group, _)| !group.is_empty()).collect();
    groups.extend(UNSTORED.iter().map(|unstored| (unstored.group, "v1")));
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// `/api`: the versions of the core group.
pub fn core_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

fn group(name: &str, version: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/{version}"), "version": version});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

/// `/apis`: the groups.
pub fn group_list(registry: &Registry) -> Value {
    let groups: Vec<Value> = named_groups(registry).into_iter().map(|(name, version)| group(name, version)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP` of every group, by name.
pub fn group_documents(registry: &Registry) -> Vec<(&'static str, Value)> {
    let document = |(name, version)| {
        let mut document = group(name, version);
        document["kind"] = json!("APIGroup");
        document["apiVersion"] = json!("v1");
        (name, document)
    };
    named_groups(registry).into_iter().map(document).collect()
}

/// `/api/v1` and `/apis/GROUP/VERSION`: the resources of every group and version, by path.
pub fn resource_lists(registry: &Registry) -> Vec<(String, Value)> {
    let core = registry.groups().into_iter().filter(|(group, _)| group.is_empty());
    let document = |(group, version): (&str, &str)| {
        let mut resources = Vec::new();
        for resource in registry.resources().filter(|r| r.group == group && r.version == version) {
            let mut described = described(resource.plural, resource, verbs(resource));
            if !resource.short_names.is_empty() {
                described["shortNames"] = json!(resource.short_names);
            }
            if !resource.categories.is_empty() {
                described["categories"] = json!(resource.categories);
            }
            resources.push(described);
            for (part, verbs) in subresources(resource) {
                resources.push(self::described(&format!("{}/{part}", resource.plural), resource, verbs));
            }
        }
        for unstored in UNSTORED.iter().filter(|unstored| unstored.group == group) {
            resources.push(json!({
                "name": unstored.plural,
                "singularName": unstored.kind.to_lowercase(),
                "namespaced": false,
                "kind": unstored.kind,
                "verbs": ["create"],
            }));
        }
        let (prefix, name) = match group {
            "" => ("/api", version.to_owned()),
            group => ("/apis", format!("{group}/{version}")),
        };
        let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources});
        (format!("{prefix}/{name}"), list)
    };
    core.chain(named_groups(registry)).map(document).collect()
}

/// The verbs of a stored resource.
fn verbs(resource: &Resource) -> &'static [&'static str] {
    if resource.is_read_only { READ_VERBS } else { VERBS }
}

/// The parts of a resource's objects with routes of their own: name and verbs.
fn subresources(resource: &Resource) -> Vec<(&'static str, &'static [&'static str])> {
    let log = resource.has_log.then_some(("log", LOG_VERBS));
    let finalize = resource.rules.has_finalize.then_some(("finalize", FINALIZE_VERBS));
    let status = resource.has_status.then_some(("status", STATUS_VERBS));
    log.into_iter().chain(finalize).chain(status).collect()
}

fn described(name: &str, resource: &Resource, verbs: &[&str]) -> Value {
    let singular = if name == resource.plural { resource.singular } else { "" };
    json!({
        "name": name,
        "singularName": singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": verbs,
    })
}

/// The resources of the core group (`/api`) or of all others (`/apis`) in one document.
pub fn aggregated(registry: &Registry, core: bool) -> Value {
    let groups = if core { vec![("", "v1")] } else { named_groups(registry) };
    let item = |(group, version): (&str, &str)| {
        let mut resources: Vec<Value> = registry
            .resources()
            .filter(|resource| resource.group == group && resource.version == version)
            .map(|resource| aggregated_resource(resource))
            .collect();
        for unstored in UNSTORED.iter().filter(|unstored| unstored.group == group) {
            resources.push(json!({
                "resource": unstored.plural,
                "responseKind": {"group": group, "version": version, "kind": unstored.kind},
                "scope": "Cluster",
                "singularResource": unstored.kind.to_lowercase(),
                "verbs": ["create"],
            }));
        }
        let versions = json!([{"version": version, "resources": resources, "freshness": "Current"}]);
        let metadata = if group.is_empty() {
            json!({"creationTimestamp": null})
        } else {
            json!({"name": group, "creationTimestamp": null})
        };
        json!({"metadata": metadata, "versions": versions})
    };
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": groups.into_iter().map(item).collect::<Vec<_>>(),
    })
}

fn aggregated_resource(resource: &Resource) -> Value {
    let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let mut described = json!({
        "resource": resource.plural,
        "responseKind": kind,
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": verbs(resource),
    });
    if !resource.short_names.is_empty() {
        described["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        described["categories"] = json!(resource.categories);
    }
    let parts = subresources(resource);
    if !parts.is_empty() {
        let part = |(name, verbs)| json!({"subresource": name, "responseKind": kind, "verbs": verbs});
        described["subresources"] = parts.into_iter().map(part).collect();
    }
    described
}
