//! Responses: objects, lists, tables and `Status` errors.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use slipway_access::Refusal;
use slipway_core::clock::now_ms;
use slipway_objects::error::{Details, GroupResource, Status};
use slipway_objects::store::{Page, Written};
use slipway_objects::table::{IncludeObject, partial_metadata, table};
use slipway_objects::{Encoded, Error, Object, Resource};

use super::negotiation::{Representation, YAML, negotiate};
use super::request::Call;

/// A failed request.
pub(super) struct Failure(Box<Status>);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if let Error::Store(_) | Error::Sealed(_) = &error {
            tracing::error!(%error, "a request to the object API failed");
        }
        Self(Box::new(error.status()))
    }
}

impl Failure {
    /// A refused request for an object of a resource.
    pub(super) fn refused(refusal: Refusal, resource: &GroupResource, name: &str) -> Self {
        match refusal {
            Refusal::Forbidden(detail) => {
                let (resource, name) = (resource.clone(), name.to_owned());
                Self::from(Error::Forbidden { resource, name, detail, cause: None })
            }
            other => {
                let status = other.status().as_u16();
                let details = Some(Details::of(resource, name));
                Self(Box::new(Status { details, ..Status::failure(status, "ServiceUnavailable", other.message()) }))
            }
        }
    }

    /// A request with a method that its resource does not have.
    pub(super) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        let details = Some(Details::default());
        Self(Box::new(Status { details, ..Status::failure(405, "MethodNotAllowed", message.into()) }))
    }

    /// A request for a representation that does not exist.
    fn not_acceptable() -> Self {
        let message = "only the following media types are accepted: application/json, application/yaml";
        Self(Box::new(Status::failure(406, "NotAcceptable", message.into())))
    }

    /// A request for a watch in YAML: its events could not be told apart.
    pub(super) fn not_acceptable_stream() -> Self {
        let message = "only the following media types are accepted: application/json;stream=watch";
        Self(Box::new(Status::failure(406, "NotAcceptable", message.into())))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = self.0.code.and_then(|code| StatusCode::from_u16(code).ok());
        json_response(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &json!(self.0))
    }
}

/// A JSON response.
pub(super) fn json_response(status: StatusCode, body: &Value) -> Response {
    json_text(status, body.to_string().into_bytes())
}

fn json_text(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The same response with its JSON as YAML.
pub(super) async fn in_yaml(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    if parts.headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind != "application/json") {
        return Response::from_parts(parts, body);
    }
    // The body is complete in memory already: watches are not served in YAML.
    let text = match axum::body::to_bytes(body, usize::MAX).await {
        Ok(text) => text,
        Err(error) => return Failure::from(Error::BadRequest(error.to_string())).into_response(),
    };
    let value = serde_json::from_slice::<Value>(&text).map_err(|error| error.to_string());
    match value.and_then(|value| serde_saphyr::to_string(&value).map_err(|error| error.to_string())) {
        Ok(yaml) => {
            parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(YAML));
            parts.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(parts, Body::from(yaml))
        }
        Err(error) => {
            tracing::error!(error, "a response cannot be written as YAML");
            Response::from_parts(parts, Body::from(text))
        }
    }
}

/// How a client wants objects to be shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub(super) representation: Representation,
    pub(super) include: IncludeObject,
}

impl View {
    /// The view that a request prefers.
    pub(super) fn of(call: &Call) -> Result<Self, Failure> {
        let offered = [Representation::Object, Representation::Table, Representation::Metadata];
        let representation = negotiate(&call.headers, &offered).ok_or_else(Failure::not_acceptable)?;
        let include = match call.query.text("includeObject") {
            "" | "Metadata" => IncludeObject::Metadata,
            "None" => IncludeObject::None,
            "Object" => IncludeObject::Object,
            other => return Err(Error::BadRequest(format!("unrecognized includeObject value: {other:?}")).into()),
        };
        Ok(Self { representation, include })
    }

    /// An object as a part of a watch; `with_columns` adds the columns to a table.
    pub(super) fn object(self, resource: &Resource, object: &Object, with_columns: bool) -> Value {
        match self.representation {
            Representation::Object | Representation::Discovery => object.to_value(),
            Representation::Metadata => partial_metadata(object),
            Representation::Table => {
                let metadata = json!({"resourceVersion": object.metadata.resource_version});
                table(resource, &[object], self.include, metadata, with_columns, now_ms())
            }
        }
    }

    /// The text of an object as a part of a watch; `with_columns` adds the columns to a table.
    ///
    /// # Errors
    /// If the object cannot be decoded for another representation.
    pub(super) fn text<'a>(
        self,
        resource: &Resource,
        text: &'a Encoded,
        with_columns: bool,
    ) -> Result<Cow<'a, [u8]>, Error> {
        Ok(match self.representation {
            Representation::Object | Representation::Discovery => Cow::Borrowed(text.json()),
            _ => Cow::Owned(self.object(resource, text.object()?, with_columns).to_string().into_bytes()),
        })
    }

    /// The response with an object.
    pub(super) fn respond(self, status: StatusCode, resource: &Resource, object: &Object) -> Response {
        json_response(status, &self.object(resource, object, true))
    }

    /// The response to a write, with its warnings.
    pub(super) fn written(self, status: StatusCode, resource: &Resource, written: &Written) -> Response {
        let mut response = self.respond(status, resource, &written.object);
        for warning in &written.warnings {
            // A quoted string (RFC 9110, section 5.6.4).
            let text: String = warning.chars().filter(|c| (' '..='~').contains(c)).collect();
            let quoted = format!("299 - \"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            if let Ok(value) = HeaderValue::from_str(&quoted) {
                response.headers_mut().append(header::WARNING, value);
            }
        }
        response
    }

    /// The response with a list.
    ///
    /// # Errors
    /// If an object cannot be decoded.
    pub(super) fn list(self, resource: &Resource, page: &Page<Encoded>) -> Result<Response, Error> {
        let mut metadata = json!({"resourceVersion": page.resource_version.to_string()});
        if !page.continue_token.is_empty() {
            metadata["continue"] = json!(page.continue_token);
            if let Some(remaining) = page.remaining {
                metadata["remainingItemCount"] = json!(remaining);
            }
        }
        let objects = || page.items.iter().map(Encoded::object).collect::<Result<Vec<&Object>, Error>>();
        let body = match self.representation {
            Representation::Table => table(resource, &objects()?, self.include, metadata, true, now_ms()),
            Representation::Metadata => {
                let items: Vec<Value> = objects()?.into_iter().map(partial_metadata).collect();
                let kind = "PartialObjectMetadataList";
                json!({"kind": kind, "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items})
            }
            Representation::Object | Representation::Discovery => {
                return Ok(json_text(StatusCode::OK, list_text(resource, &metadata, &page.items)));
            }
        };
        Ok(json_response(StatusCode::OK, &body))
    }
}

/// The text of a list. The API server leaves the kind of the items out for its own kinds.
fn list_text(resource: &Resource, metadata: &Value, items: &[Encoded]) -> Vec<u8> {
    let kind = format!("{}List", resource.kind);
    let api_version = resource.api_version();
    let head = format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{metadata},"items":["#);
    let size: usize = items.iter().map(|item| item.json().len() + 1).sum();
    let mut text = Vec::with_capacity(head.len() + size + 2);
    text.extend_from_slice(head.as_bytes());
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            text.push(b',');
        }
        match resource.is_custom {
            true => text.extend_from_slice(item.json()),
            false => item.write_without_kind(&mut text),
        }
    }
    text.extend_from_slice(b"]}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn yaml_has_the_values_of_json() {
        let odd = [
            "",
            "true",
            "no",
            "null",
            "~",
            "1",
            "0x1",
            "1e3",
            "a: b",
            "- a",
            "#c",
            "two\nlines\n",
            " space ",
            "\u{1}",
            "\"q\"",
            "'",
            "é",
            "2026-01-01",
            "|",
            "&a",
            "*a",
            "%",
            "@",
        ];
        let value = json!({"odd": odd, "keys": odd.iter().map(|key| ((*key).to_owned(), json!(1))).collect::<serde_json::Map<_, _>>(),
            "numbers": [0, -1, 1.5, 9_007_199_254_740_993_i64], "empty": {}, "none": [], "null": null, "nested": [[{"a": []}]]});
        let response = in_yaml(json_response(StatusCode::OK, &value)).await;
        assert_eq!(response.headers()[header::CONTENT_TYPE], YAML);
        let text = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert_eq!(super::super::text::yaml(&text).unwrap().value, value);
    }
}
