//! What a request to the API server for objects consists of, and what its response contains.

use form_urlencoded::Serializer;
use http::header::{CONTENT_TYPE, WARNING};
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use serde_json::{Value, json};
use slipway_objects::resource::FieldValidation;
use slipway_objects::store::{DeleteOptions, Part, Propagation, Selection, WriteOptions, parse_version};
use slipway_objects::{Error, Object, Resource, Status};

use super::ApiServer;
use crate::api::{REQUEST_TIMEOUT, check_name};

/// The media type of objects.
pub(super) const JSON: &str = "application/json";
/// Maximum bytes of a response: more than a page of the largest objects that etcd stores.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024 * 1024;

/// Maximum bytes of a text in an error.
const MAX_TEXT_BYTES: usize = 500;

/// The query of a request.
#[derive(Debug, Default)]
pub(super) struct Parameters(Vec<(&'static str, String)>);

impl Parameters {
    /// Adds a parameter, unless its value is empty.
    pub(super) fn add(&mut self, name: &'static str, value: &str) {
        if !value.is_empty() {
            self.0.push((name, value.to_owned()));
        }
    }

    /// The parameters of a list or watch.
    pub(super) fn of_selection(selection: &Selection) -> Self {
        let mut parameters = Self::default();
        parameters.add("labelSelector", &selection.labels.to_string());
        parameters.add("fieldSelector", &selection.fields.to_string());
        parameters
    }

    /// The parameters of a write.
    pub(super) fn of_write(options: &WriteOptions) -> Self {
        let mut parameters = Self::default();
        parameters.add("fieldManager", &options.manager);
        parameters.add("dryRun", if options.dry_run { "All" } else { "" });
        let validation = match options.validation {
            FieldValidation::Ignore => "Ignore",
            FieldValidation::Warn => "Warn",
            FieldValidation::Strict => "Strict",
        };
        parameters.add("fieldValidation", validation);
        parameters
    }
}

/// The name of an object, if it can be a part of a path.
pub(super) fn checked(name: &str) -> Result<&str, Error> {
    check_name(name).map_err(|error| Error::BadRequest(error.to_string()))?;
    Ok(name)
}

/// The path and query of an object, or without a name of a list.
pub(super) fn uri(
    resource: &Resource,
    namespace: &str,
    name: &str,
    part: Part,
    parameters: &Parameters,
) -> Result<String, Error> {
    let mut uri = resource.base_path();
    if resource.namespaced && !namespace.is_empty() {
        uri = format!("{uri}/namespaces/{}", checked(namespace)?);
    }
    uri = format!("{uri}/{}", resource.plural);
    if !name.is_empty() {
        uri = format!("{uri}/{name}");
        uri.push_str(match part {
            Part::Main => "",
            Part::Status => "/status",
            Part::Finalizers => "/finalize",
        });
    }
    if !parameters.0.is_empty() {
        let query = Serializer::new(String::new()).extend_pairs(&parameters.0).finish();
        uri = format!("{uri}?{query}");
    }
    Ok(uri)
}

/// The body of a request with an object.
pub(super) fn body(resource: &Resource, mut object: Object) -> Value {
    object.api_version = resource.api_version();
    object.kind = resource.kind.to_owned();
    object.to_value()
}

/// The body of a deletion.
pub(super) fn deletion(options: &DeleteOptions) -> Value {
    let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
    let propagation = options.propagation.map(|propagation| match propagation {
        Propagation::Background => "Background",
        Propagation::Foreground => "Foreground",
        Propagation::Orphan => "Orphan",
    });
    if let Some(propagation) = propagation {
        body["propagationPolicy"] = json!(propagation);
    }
    if options.dry_run {
        body["dryRun"] = json!(["All"]);
    }
    for (name, value) in [("uid", &options.uid), ("resourceVersion", &options.resource_version)] {
        if let Some(value) = value {
            body["preconditions"][name] = json!(value);
        }
    }
    body
}

/// The error of a response that is not what the API promises.
pub(super) fn unreadable(error: impl std::fmt::Display) -> Error {
    Error::Unreachable(format!("the response cannot be read: {error}"))
}

/// An object in a response. Items of lists have no kind of their own.
pub(super) fn object(resource: &Resource, mut value: Value) -> Result<Object, Error> {
    let Value::Object(fields) = &mut value else { return Err(unreadable("it is not an object")) };
    fields.entry("apiVersion").or_insert_with(|| json!(resource.api_version()));
    fields.entry("kind").or_insert_with(|| json!(resource.kind));
    serde_json::from_value(value).map_err(unreadable)
}

/// The version in the metadata of a list or object.
pub(super) fn version(metadata: &Value) -> Result<i64, Error> {
    let version = parse_version(metadata["resourceVersion"].as_str().unwrap_or_default()).map_err(unreadable)?;
    version.ok_or_else(|| unreadable("it has no resource version"))
}

/// The response to a successful request.
#[derive(Debug)]
pub(super) struct Response {
    /// Whether an object was created.
    pub(super) is_created: bool,
    /// The warnings for the client.
    pub(super) warnings: Vec<String>,
    pub(super) body: Value,
}

/// The texts of warnings: `299 - "TEXT"` (RFC 9111, section 5.5).
fn warnings(headers: &HeaderMap) -> Vec<String> {
    let texts = headers.get_all(WARNING).iter().filter_map(|value| value.to_str().ok());
    let unquoted = texts.filter_map(|text| {
        let quoted = text.split_once('"')?.1.rsplit_once('"')?.0;
        Some(quoted.replace("\\\"", "\"").replace("\\\\", "\\"))
    });
    unquoted.collect()
}

/// The error of a response with a failure.
fn failure(status: StatusCode, body: &[u8]) -> Error {
    let text = || String::from_utf8_lossy(&body[..body.len().min(MAX_TEXT_BYTES)]).trim().to_owned();
    match serde_json::from_slice::<Status>(body) {
        Ok(reported) => Error::from_status(reported),
        // The API server responds with text for groups that it does not have. The message is that of client-go.
        Err(_) if status == StatusCode::NOT_FOUND => {
            let message = "the server could not find the requested resource".to_owned();
            Error::from_status(Status::failure(status.as_u16(), "NotFound", message))
        }
        Err(_) if status.is_client_error() => Error::from_status(Status::failure(status.as_u16(), "", text())),
        // A proxy in between, or an API server that is starting.
        Err(_) => Error::Unreachable(format!("HTTP status {status}: {}", text())),
    }
}

impl ApiServer {
    /// Sends a request with a body of a media type, or without one, and reads the response.
    pub(super) async fn exchange(
        &self,
        request: http::request::Builder,
        media_type: &str,
        body: &Value,
    ) -> Result<Response, Error> {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = if media_type.is_empty() { request } else { request.header(CONTENT_TYPE, media_type) };
        let request = request.body(Body::from(bytes)).map_err(|error| Error::BadRequest(error.to_string()))?;
        let exchange = async {
            let (parts, body) = self.api.respond(request).await?.into_parts();
            let body = Limited::new(body, MAX_RESPONSE_BYTES).collect().await.map_err(unreadable)?.to_bytes();
            if !parts.status.is_success() {
                return Err(failure(parts.status, &body));
            }
            Ok(Response {
                is_created: parts.status == StatusCode::CREATED,
                warnings: warnings(&parts.headers),
                body: serde_json::from_slice(&body).map_err(unreadable)?,
            })
        };
        let timeout = || Error::Unreachable(format!("no response within {} s", REQUEST_TIMEOUT.as_secs()));
        tokio::time::timeout(REQUEST_TIMEOUT, exchange).await.unwrap_or_else(|_| Err(timeout()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_objects::selector::{FieldSelector, LabelSelector};

    #[test]
    fn selectors_are_encoded_in_queries() {
        let selection = Selection {
            labels: LabelSelector::parse("a=b,!c").unwrap(),
            fields: FieldSelector::parse("metadata.name=x").unwrap(),
            ..Selection::default()
        };
        let runs = Resource::named("slipway.dev", "v1", "Run", "runs");
        let uri = uri(&runs, "team", "", Part::Main, &Parameters::of_selection(&selection)).unwrap();
        assert_eq!(
            uri,
            "/apis/slipway.dev/v1/namespaces/team/runs?labelSelector=a+in+%28b%29%2C%21c&fieldSelector=metadata.name%3Dx"
        );
        assert!(super::uri(&runs, "a/b", "", Part::Main, &Parameters::default()).is_err());
    }

    #[test]
    fn warnings_are_unquoted() {
        let mut headers = HeaderMap::new();
        headers.append(WARNING, r#"299 - "unknown field \"spec.x\"""#.parse().unwrap());
        assert_eq!(warnings(&headers), [r#"unknown field "spec.x""#]);
    }

    #[test]
    fn responses_without_a_status_are_kept_as_text() {
        assert!(failure(StatusCode::NOT_FOUND, b"404 page not found\n").is_not_found());
        assert_eq!(failure(StatusCode::BAD_REQUEST, b"odd\n").to_string(), "odd");
        let error = failure(StatusCode::BAD_GATEWAY, b"no upstream\n");
        assert_eq!(error.to_string(), "request to the API server failed: HTTP status 502 Bad Gateway: no upstream");
    }
}
