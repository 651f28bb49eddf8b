//! The OpenAPI documents of the object API, generated from the schemas of its resources. kubectl validates and explains objects with them,
//! and finds out which query parameters a resource supports.

use serde_json::{Map, Value, json};

use crate::resource::{Registry, Resource, metadata_schema};

/// The name of the schema of metadata, as upstream's clients know it.
const METADATA: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The name of the schema of a kind, as upstream names those of its own kinds.
fn schema_name(resource: &Resource) -> String {
    if !resource.is_custom {
        // `events` of `events.k8s.io`
        let group = resource.group.split('.').next().filter(|group| !group.is_empty()).unwrap_or("core");
        return format!("io.k8s.api.{group}.{}.{}", resource.version, resource.kind);
    }
    let reversed: Vec<&str> = resource.group.rsplit('.').collect();
    format!("{}.{}.{}", reversed.join("."), resource.version, resource.kind)
}

fn kind(resource: &Resource) -> Value {
    json!({"group": resource.group, "version": resource.version, "kind": resource.kind})
}

/// The schemas of resources, which refer to each other below a prefix such as `#/definitions/`.
fn schemas<'r>(resources: impl Iterator<Item = &'r Resource>, prefix: &str) -> Map<String, Value> {
    let mut schemas = Map::new();
    schemas.insert(METADATA.into(), json!(metadata_schema()));
    for resource in resources {
        let mut schema = json!(resource.schema);
        schema["properties"]["metadata"] = json!({"$ref": format!("{prefix}{METADATA}")});
        schema["x-kubernetes-group-version-kind"] = json!([kind(resource)]);
        schemas.insert(schema_name(resource), schema);
    }
    schemas
}

fn parameter(name: &str, place: &str, wrapped: bool) -> Value {
    let mut parameter = json!({"name": name, "in": place});
    if place == "path" {
        parameter["required"] = json!(true);
    }
    if wrapped {
        parameter["schema"] = json!({"type": "string"});
    } else {
        parameter["type"] = json!("string");
    }
    parameter
}

/// The operations of a resource, by path. `v3` selects the form of OpenAPI 3.
fn paths(resource: &Resource, v3: bool) -> Vec<(String, Value)> {
    let base = resource.base_path();
    let (scope, mut names) =
        if resource.namespaced { ("/namespaces/{namespace}", vec!["namespace"]) } else { ("", vec![]) };
    let collection = format!("{base}{scope}/{}", resource.plural);
    let item = format!("{collection}/{{name}}");
    let operation = |action: &str, query: &[&str], body: &[&str]| {
        let parameters: Vec<Value> = query.iter().map(|name| parameter(name, "query", v3)).collect();
        let mut operation = json!({
            "operationId": format!("{action}{}", schema_name(resource).replace('.', "_")),
            "parameters": parameters,
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": kind(resource),
        });
        if v3 && !body.is_empty() {
            let content: Map<String, Value> = body.iter().map(|media| ((*media).to_owned(), json!({}))).collect();
            operation["requestBody"] = json!({"content": content});
        } else if !body.is_empty() {
            operation["consumes"] = json!(body);
        }
        operation
    };
    let write = ["dryRun", "fieldManager", "fieldValidation"];
    let list =
        ["labelSelector", "fieldSelector", "limit", "continue", "resourceVersion", "resourceVersionMatch", "watch"];
    let object = ["application/json", "application/yaml"];
    let mut collection_paths = json!({
        "get": operation("list", &list, &[]),
        "post": operation("post", &write, &object),
        "delete": operation("deletecollection", &list, &[]),
        "parameters": names.iter().map(|name| parameter(name, "path", v3)).collect::<Vec<_>>(),
    });
    names.push("name");
    let mut item_paths = json!({
        "get": operation("get", &[], &[]),
        "put": operation("put", &write, &object),
        "patch": operation("patch", &["dryRun", "fieldManager", "fieldValidation", "force"], resource.patch_types()),
        "delete": operation("delete", &["dryRun", "propagationPolicy"], &[]),
        "parameters": names.iter().map(|name| parameter(name, "path", v3)).collect::<Vec<_>>(),
    });
    if resource.is_read_only {
        for operations in [&mut collection_paths, &mut item_paths].into_iter().filter_map(Value::as_object_mut) {
            operations.retain(|name, _| matches!(name.as_str(), "get" | "parameters"));
        }
    }
    vec![(collection, collection_paths), (item, item_paths)]
}

fn info() -> Value {
    json!({"title": "slipway", "version": env!("CARGO_PKG_VERSION")})
}

/// `/openapi/v3/...` of every group and version, by its path without the leading slash, such as `api/v1`.
pub fn v3_documents(registry: &Registry) -> Vec<(String, Value)> {
    let document = |(group, version): (&'static str, &'static str)| {
        let resources = || registry.resources().map(|r| &**r).filter(move |r| r.group == group && r.version == version);
        let paths: Map<String, Value> = resources().flat_map(|resource| paths(resource, true)).collect();
        let document = json!({
            "openapi": "3.0.0",
            "info": info(),
            "paths": paths,
            "components": {"schemas": schemas(resources(), "#/components/schemas/")},
        });
        let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
        (path, document)
    };
    registry.groups().into_iter().map(document).collect()
}

/// `/openapi/v3`: where the documents of OpenAPI 3 are.
pub fn v3_index(documents: &[(String, Value)]) -> Value {
    let paths: Map<String, Value> = documents
        .iter()
        .map(|(path, document)| {
            // Clients cache a document under its URL, so a changed document needs another one.
            let hash = slipway_core::ids::derived(&[&document.to_string()]);
            (path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}))
        })
        .collect();
    json!({"paths": paths})
}

/// `/openapi/v2` in protobuf, without any resource. kubectl validates with OpenAPI 3, and reads version 2, which it accepts only in protobuf,
/// just for kinds that the server does not have. It then reports that there is no such kind.
///
/// Source: the message `openapi.v2.Document` of gnostic; field 1 is `swagger`, 2 is `info` with `title` and `version`.
pub fn v2_protobuf() -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| {
        let length = u8::try_from(bytes.len()).expect("the fields of this document have less than 128 bytes");
        [&[number << 3 | 2, length][..], bytes].concat()
    };
    let info = [field(1, b"slipway"), field(2, env!("CARGO_PKG_VERSION").as_bytes())].concat();
    [field(1, b"2.0"), field(2, &info)].concat()
}

/// `/openapi/v2`: all resources in one document of OpenAPI 2.
pub fn v2_document(registry: &Registry) -> Value {
    let resources = || registry.resources().map(|resource| &**resource);
    let paths: Map<String, Value> = resources().flat_map(|resource| paths(resource, false)).collect();
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths,
        "definitions": schemas(resources(), "#/definitions/"),
    })
}
