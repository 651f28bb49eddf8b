//! Generates the OpenAPI 3.1 document of slipway's own API (`/openapi.json`). The schemas come from the types that handlers read and write,
//! and the access of each operation from the table of routes. Only names and summaries are written by hand, in [`operations`].
//!
//! Invariant: the document describes exactly the routes of slipway's own API; a test compares the two.
//!
//! Source: OpenAPI Specification 3.1.1, whose schemas are JSON Schema 2020-12.

mod operations;

use std::sync::{Arc, LazyLock};

use axum::body::Bytes;
use axum::http::{Method, StatusCode, header};
use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use slipway_access::{Access, RouteInfo, Routes};

use crate::error_body::{ErrorBody, MlflowErrorBody};
#[cfg(test)]
pub(crate) use operations::operations;

const DESCRIPTION: &str = "slipway's own API. MLflow's REST API is at /api/2.0/mlflow, the Open Inference Protocol on the inference ports. \
    `x-slipway-access` is the access that an operation requires: `public` none; `authenticated` any known token; a verb and a resource \
    that permission (as in a Kubernetes role for the API group `slipway.dev`); `decided-by-handler` a permission in the namespace that \
    the request names. `+runs` also admits the tokens of runs.";

/// The path of the document.
const PATH: &str = "/openapi.json";

/// Generates the schema of a type.
type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Describes a route: its names, summary and types.
pub(crate) struct Operation {
    pub(crate) method: Method,
    /// The path as in the table of routes; OpenAPI uses the same syntax for path parameters.
    pub(crate) path: &'static str,
    /// The `operationId`: the function name in generated clients.
    id: &'static str,
    summary: &'static str,
    /// A type whose fields are the query parameters.
    query: Option<SchemaOf>,
    request: Option<RequestBody>,
    /// The successful response, and error responses that differ from the common ones.
    responses: Vec<(StatusCode, Content)>,
}

struct RequestBody {
    media_types: &'static [&'static str],
    required: bool,
    schema: SchemaOf,
}

enum Content {
    Empty,
    /// Text, or an SVG image, of this media type.
    Text(&'static str),
    Json(SchemaOf),
    /// Bytes, as an alternative to JSON with the same status.
    Binary,
    /// A picture of any type that consists of pixels.
    Picture,
}

/// The media type of bytes. In OpenAPI 3.1 they have no schema.
const BINARY: &str = "application/octet-stream";
/// The media types of pictures.
const PICTURE: &str = "image/*";

impl Operation {
    fn new(method: Method, path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self { method, path, id, summary, query: None, request: None, responses: Vec::new() }
    }

    fn query<T: JsonSchema>(self) -> Self {
        Self { query: Some(T::json_schema), ..self }
    }

    fn request<T: JsonSchema>(self, media_types: &'static [&'static str]) -> Self {
        Self { request: Some(RequestBody { media_types, required: true, schema: schema_of::<T> }), ..self }
    }

    fn optional_request<T: JsonSchema>(self, media_types: &'static [&'static str]) -> Self {
        Self { request: Some(RequestBody { media_types, required: false, schema: schema_of::<T> }), ..self }
    }

    fn response(mut self, status: StatusCode, content: Content) -> Self {
        self.responses.push((status, content));
        self
    }

    fn json<T: JsonSchema>(self) -> Self {
        self.response(StatusCode::OK, Content::Json(schema_of::<T>))
    }

    fn text(self, media_type: &'static str) -> Self {
        self.response(StatusCode::OK, Content::Text(media_type))
    }

    fn no_content(self) -> Self {
        self.response(StatusCode::NO_CONTENT, Content::Empty)
    }
}

/// Adds a route that serves the document of `routes`.
pub(crate) fn with_document(routes: Routes) -> Routes {
    let access = Access::Public;
    let mut table = routes.table().to_vec();
    table.push(RouteInfo { method: Some(Method::GET), path: PATH.into(), access });
    // Generated on the first request, because most servers never receive one.
    let text = Arc::new(LazyLock::new(move || Bytes::from(document(&table).to_string())));
    routes.get(PATH, access, async move || ([(header::CONTENT_TYPE, "application/json")], Bytes::clone(&text)))
}

/// Generates the document for all operations whose route is in the table.
fn document(table: &[RouteInfo]) -> Value {
    let mut schemas = Schemas::new();
    let errors = error_responses(&mut schemas);
    let mut paths = Map::new();
    for operation in operations::operations() {
        let matches = |r: &&RouteInfo| r.method.as_ref() == Some(&operation.method) && r.path == operation.path;
        let Some(route) = table.iter().find(matches) else { continue };
        // OpenAPI has no name for a parameter that takes the rest of the path.
        let methods = paths.entry(operation.path.replace("{*", "{")).or_insert_with(|| json!({}));
        methods[operation.method.as_str().to_ascii_lowercase()] = describe(&operation, route.access, &mut schemas);
    }
    json!({
        "openapi": "3.1.1",
        "info": {
            "title": "slipway",
            "version": "1",
            "description": DESCRIPTION,
        },
        "security": [{"bearer": []}, {"basic": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic", "description": "The token is the password; the user name is ignored."},
            },
            "responses": errors,
            "schemas": schemas.finish(),
        },
    })
}

fn describe(operation: &Operation, access: Access, schemas: &mut Schemas) -> Value {
    let mut parameters = path_parameters(operation.path);
    if let Some(query) = operation.query {
        parameters.extend(query_parameters(&schemas.request(query)));
    }
    let mut responses = Map::new();
    for (status, content) in &operation.responses {
        let description = status.canonical_reason().unwrap_or_default();
        let response = responses.entry(status.as_str()).or_insert_with(|| json!({"description": description}));
        match content {
            Content::Empty => {}
            Content::Text(media_type) => response["content"][media_type] = json!({"schema": {"type": "string"}}),
            Content::Json(schema) => {
                response["content"]["application/json"] = json!({"schema": schemas.response(*schema)});
            }
            Content::Binary => response["content"][BINARY] = json!({}),
            Content::Picture => response["content"][PICTURE] = json!({}),
        }
    }
    let public = access == Access::Public;
    let errors = if public { &["421", "default"][..] } else { &["401", "403", "421", "503", "default"][..] };
    for status in errors {
        let shared = json!({"$ref": format!("#/components/responses/{status}")});
        responses.entry(*status).or_insert(shared);
    }
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": responses,
        "x-slipway-access": access.to_string(),
    });
    if public {
        described["security"] = json!([]);
    }
    if let Some(body) = &operation.request {
        let schema = schemas.request(body.schema);
        let content_of = |media_type: &str| if media_type == BINARY { json!({}) } else { json!({"schema": schema}) };
        let content: Map<String, Value> =
            body.media_types.iter().map(|media_type| ((*media_type).to_owned(), content_of(media_type))).collect();
        described["requestBody"] = json!({"required": body.required, "content": content});
    }
    described
}

/// Parameters of a path such as `/models/{name}/versions/{version}`.
fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'));
    let names = names.map(|name| name.trim_start_matches('*'));
    names.map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})).collect()
}

/// The fields of a type as query parameters.
fn query_parameters(fields: &Schema) -> Vec<Value> {
    let properties = fields.get("properties").and_then(Value::as_object).into_iter().flatten();
    let required = |name: &String| {
        fields.get("required").and_then(Value::as_array).is_some_and(|required| required.iter().any(|r| r == name))
    };
    let parameter = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        let description = schema.as_object_mut().and_then(|s| s.remove("description"));
        // An absent parameter is left out of the URL, where there is no null.
        let kind = schema["type"].as_array().and_then(|types| types.iter().find(|t| *t != "null")).cloned();
        if let Some(kind) = kind {
            schema["type"] = kind;
        }
        let mut parameter = json!({"name": name, "in": "query", "required": required(name), "schema": schema});
        if let Some(description) = description {
            parameter["description"] = description;
        }
        parameter
    };
    properties.map(parameter).collect()
}

/// Error responses that any operation can return.
fn error_responses(schemas: &mut Schemas) -> Value {
    let own = schemas.response(schema_of::<ErrorBody>);
    let mlflow = schemas.response(schema_of::<MlflowErrorBody>);
    let error = |description: &str, schema: Value| json!({"description": description, "content": {"application/json": {"schema": schema}}});
    let either = json!({"anyOf": [own, mlflow]});
    json!({
        "401": {
            "description": "The request has no token, or an unknown one",
            "headers": {"WWW-Authenticate": {"schema": {"type": "string"}}},
            "content": {"application/json": {"schema": mlflow}},
        },
        "403": error("The caller lacks the permission, or the request comes from a web page of another origin", either.clone()),
        "421": error("The request's host name is not a name of this server", json!(mlflow)),
        "503": error("The caller's permissions cannot be determined, or the operation is not available, right now", either.clone()),
        "default": {
            "description": "Any other error; the response to an invalid path or query is plain text",
            "content": {"application/json": {"schema": either}, "text/plain": {"schema": {"type": "string"}}},
        },
    })
}

/// The schemas under `components`. A type can have different schemas in requests and in responses (fields with a default are optional in a
/// request but always present in a response), so both are generated, and names of request schemas end in [`REQUEST_SUFFIX`].
struct Schemas {
    requests: SchemaGenerator,
    responses: SchemaGenerator,
}

/// Distinguishes the request schema of a type from its response schema.
const REQUEST_SUFFIX: &str = "Input";

impl Schemas {
    fn new() -> Self {
        let settings = || SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
        Self {
            requests: settings().for_deserialize().into_generator(),
            responses: settings().for_serialize().into_generator(),
        }
    }

    fn request(&mut self, schema: SchemaOf) -> Schema {
        let mut schema = schema(&mut self.requests);
        suffix_references(&mut schema);
        schema
    }

    fn response(&mut self, schema: SchemaOf) -> Schema {
        schema(&mut self.responses)
    }

    /// All referenced schemas, by name.
    fn finish(mut self) -> Map<String, Value> {
        let mut all = self.responses.take_definitions(true);
        for (name, schema) in self.requests.take_definitions(true) {
            if let Ok(mut schema) = Schema::try_from(schema) {
                suffix_references(&mut schema);
                let same_name = all.insert(name + REQUEST_SUFFIX, schema.to_value());
                debug_assert!(same_name.is_none(), "a response schema has the name of a request schema: {same_name:?}");
            }
        }
        all
    }
}

fn suffix_references(schema: &mut Schema) {
    if let Some(Value::String(reference)) = schema.get_mut("$ref") {
        reference.push_str(REQUEST_SUFFIX);
    }
    transform_subschemas(&mut suffix_references, schema);
}
