//! What handlers read from requests.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use slipway_access::{Decision, Refusal, Resource as AccessResource, Verb};
use slipway_objects::embedded::Embedded;
use slipway_objects::error::{FieldError, RequestOptions, json_error};
use slipway_objects::name::{manager_errors, manager_of_user_agent};
use slipway_objects::patch::Patch;
use slipway_objects::resource::FieldValidation;
use slipway_objects::selector::{FieldSelector, LabelSelector};
use slipway_objects::store::{DeleteOptions, Part, Propagation, Selection, WriteOptions};
use slipway_objects::{Error, Object, Resource, protobuf};

use super::negotiation::{YAML, prefers_yaml};
use super::response::{Failure, in_yaml};
use super::text::{self, Objects, Text};
use super::{MAX_BODY_BYTES, RunExecutor};

/// What a route is about.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// The resource of the objects.
    pub(super) resource: Arc<Resource>,
    /// The permission that it requires.
    pub(super) access: AccessResource,
    /// The part of an object.
    pub(super) part: Part,
    /// Executes runs.
    pub(super) executor: RunExecutor,
}

impl Target {
    /// The handler of a route with this target.
    pub(super) fn handler<F, R>(
        &self,
        handle: F,
    ) -> impl Fn(State<Embedded>, Call) -> futures_util::future::BoxFuture<'static, Response> + Clone + Send + Sync + 'static
    where
        F: Fn(Target, Embedded, Call) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Result<Response, Failure>> + Send + 'static,
    {
        let target = self.clone();
        move |State(store), call| {
            let is_yaml = prefers_yaml(&call.headers);
            let result = handle(target.clone(), store, call);
            Box::pin(async move {
                let response = result.await.unwrap_or_else(IntoResponse::into_response);
                if is_yaml { in_yaml(response).await } else { response }
            })
        }
    }
}

/// A request about objects.
pub(super) struct Call {
    /// The namespace in the path; empty for objects of the cluster and for lists of all namespaces.
    pub(super) namespace: String,
    /// The name in the path; empty for collections.
    pub(super) name: String,
    pub(super) query: Parameters,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    decision: Decision,
}

/// The query parameters of a request.
pub(super) struct Parameters(HashMap<String, String>);

impl Parameters {
    /// The value of a parameter; empty without it.
    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Whether a parameter is given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !value.is_empty())
    }

    /// Whether a parameter is true. As in the API server, every value but `false` and `0` is.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    /// A number that is not negative; `None` without the parameter.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Error> {
        self.parsed(name)
    }

    /// A number; `None` without the parameter.
    pub(super) fn integer(&self, name: &str) -> Result<Option<i64>, Error> {
        self.parsed(name)
    }

    fn parsed<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Error> {
        match self.text(name) {
            "" => Ok(None),
            text => {
                let invalid = || Error::BadRequest(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"));
                text.parse().map(Some).map_err(|_| invalid())
            }
        }
    }
}

impl<S: Send + Sync> FromRequest<S> for Call {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let Path(mut path) = Path::<HashMap<String, String>>::from_request_parts(&mut parts, state)
            .await
            .map_err(IntoResponse::into_response)?;
        let query = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        let query = Parameters(query.into_owned().collect());
        let headers = parts.headers.clone();
        let decision = parts.extensions.get::<Decision>().cloned();
        // Routes of this module are `DecidedByHandler`, for which the guard adds a decision.
        let decision = decision.ok_or_else(|| Refusal::Unguarded.response(&headers))?;
        let body = Bytes::from_request(Request::from_parts(parts, body), state).await.map_err(|rejection| {
            let too_large = rejection.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE;
            let error =
                if too_large { Error::TooLarge(MAX_BODY_BYTES) } else { Error::BadRequest(rejection.body_text()) };
            Failure::from(error).into_response()
        })?;
        let mut take = |name: &str| path.remove(name).unwrap_or_default();
        Ok(Self { namespace: take("namespace"), name: take("name"), query, headers, body, decision })
    }
}

/// The options of a deletion in its body.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DeleteBody {
    propagation_policy: Option<String>,
    orphan_dependents: Option<bool>,
    preconditions: Option<Preconditions>,
    dry_run: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Preconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

impl Call {
    /// Checks that the caller may do this with the resource in the namespace of the path.
    pub(super) async fn authorize(&self, target: &Target, verb: Verb) -> Result<(), Failure> {
        let namespace = Some(self.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let refused = |refusal| Failure::refused(refusal, &target.resource.group_resource(), &self.name);
        self.decision.authorize(verb, target.access, namespace).await.map_err(refused)
    }

    /// The decision about the caller.
    pub(super) fn decision(&self) -> &Decision {
        &self.decision
    }

    /// The value of a header up to the first semicolon.
    fn content_type(&self) -> &str {
        let value = self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().split(';').next().unwrap_or_default().trim()
    }

    /// The object in the body, which should be of this kind: JSON, YAML or protobuf.
    pub(super) fn value(&self, kind: &str) -> Result<Value, Error> {
        Ok(self.text(kind)?.value)
    }

    /// The object in the body, decoded as one of this resource, and warnings.
    pub(super) fn object(
        &self,
        resource: &Resource,
        validation: FieldValidation,
    ) -> Result<(Object, Vec<String>), Error> {
        let Text { value, duplicates } = self.text(resource.kind)?;
        let is_yaml = self.content_type() == YAML;
        let strict = match validation {
            _ if duplicates.is_empty() => Vec::new(),
            FieldValidation::Strict if is_yaml => vec![text::yaml_error(&duplicates)],
            _ if is_yaml => duplicates,
            _ => duplicate_fields(&duplicates),
        };
        let is_json = matches!(self.content_type(), "" | "application/json");
        resource.decode_arranged(value, validation, &strict, |messages| {
            // Of custom resources, the API server sorts unknown fields by their paths.
            if is_json && !resource.is_custom {
                text::arrange(&self.body, messages);
            }
        })
    }

    /// The text of the body.
    fn text(&self, kind: &str) -> Result<Text, Error> {
        let malformed = |detail: String| {
            Error::BadRequest(format!(
                "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; {detail} ({})",
                summary(&self.body)
            ))
        };
        match self.content_type() {
            "" | "application/json" => {
                let parsed = text::json(&self.body, Objects::Merge);
                let parsed =
                    parsed.map_err(|e| malformed(format!("json parse error: {}", json_error(&self.body, &e))))?;
                let found = match &parsed.value {
                    Value::Object(_) => return Ok(parsed),
                    Value::Array(_) => "array",
                    Value::String(_) => "string",
                    Value::Number(_) => "number",
                    Value::Bool(_) => "bool",
                    Value::Null => "null",
                };
                Err(malformed(format!("json parse error: json: cannot unmarshal {found} into Go value of type struct")))
            }
            YAML => text::yaml(&self.body).map_err(|error| malformed(error.to_string())),
            protobuf::MEDIA_TYPE => {
                let value = protobuf::decode(&self.body).map_err(malformed)?;
                Ok(Text { value, duplicates: Vec::new() })
            }
            _ => {
                let accepted = format!("application/json, application/yaml, {}", protobuf::MEDIA_TYPE);
                Err(Error::UnsupportedMediaType(accepted))
            }
        }
    }

    /// Whether the body is a configuration that is applied.
    pub(super) fn is_apply(&self) -> bool {
        self.content_type() == Patch::APPLY
    }

    /// The configuration in the body, which is applied, and the messages about keys that it has more than once.
    pub(super) fn configuration(&self) -> Result<Text, Error> {
        let malformed = |detail: &dyn std::fmt::Display| Error::BadRequest(format!("error decoding YAML: {detail}"));
        let text = text::yaml(&self.body).map_err(|error| malformed(&error))?;
        match &text.value {
            Value::Object(_) => Ok(text),
            Value::Null => Ok(Text { value: json!({}), ..text }),
            _ => Err(malformed(&"error unmarshaling JSON: the configuration is not an object")),
        }
    }

    /// The patch in the body, and warnings about fields that it has more than once.
    pub(super) fn patch(&self, resource: &Resource) -> Result<(Patch, Vec<String>), Error> {
        let kind: fn(Value) -> Patch = match self.content_type() {
            Patch::JSON => Patch::Json,
            Patch::MERGE => Patch::Merge,
            Patch::STRATEGIC if !resource.is_custom => Patch::Strategic,
            _ => {
                return Err(Error::UnsupportedMediaType(resource.patch_types().join(", ")));
            }
        };
        let malformed = |error: serde_json::Error| {
            Error::BadRequest(format!("error decoding patch: {}", json_error(&self.body, &error)))
        };
        let Text { value, duplicates } = text::json(&self.body, Objects::Replace).map_err(malformed)?;
        let mut duplicates = duplicate_fields(&duplicates);
        if self.content_type() == Patch::JSON {
            duplicates.iter_mut().for_each(|message| message.insert_str(0, "json patch "));
        }
        Ok((kind(value), duplicates))
    }

    /// Which objects a list or watch selects.
    pub(super) fn selection(&self) -> Result<Selection, Error> {
        let mut fields = FieldSelector::parse(self.query.text("fieldSelector"))?;
        if !self.name.is_empty() && fields.is_empty() {
            fields = FieldSelector::of_name(&self.name);
        } else if !self.name.is_empty() && fields.name() != Some(&self.name) {
            let message = "fieldSelector metadata.name doesn't match requested name";
            return Err(Error::BadRequest(message.into()));
        }
        Ok(Selection {
            namespace: Some(self.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            labels: LabelSelector::parse(self.query.text("labelSelector"))?,
            fields,
        })
    }

    /// How an object is written.
    pub(super) fn write_options(&self, part: Part, options: RequestOptions) -> Result<WriteOptions, Error> {
        let mut errors = Vec::new();
        let given = self.query.text("fieldManager");
        if options == RequestOptions::Patch {
            if self.is_apply() && given.is_empty() {
                errors.push(FieldError::required("fieldManager", "is required for apply patch"));
            }
            if !self.is_apply() && self.query.has("force") {
                errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
            }
        }
        errors.extend(manager_errors(given, "fieldManager"));
        let (mut dry_run, mut validation) = (false, FieldValidation::default());
        match is_dry_run(self.query.text("dryRun"), options) {
            Err(Error::Invalid { errors: more, .. }) => errors.extend(more),
            result => dry_run = result?,
        }
        match FieldValidation::parse(self.query.text("fieldValidation"), options) {
            Err(Error::Invalid { errors: more, .. }) => errors.extend(more),
            result => validation = result?,
        }
        if !errors.is_empty() {
            return Err(options.invalid(errors));
        }
        let manager = if given.is_empty() {
            let user_agent =
                self.headers.get(header::USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()));
            manager_of_user_agent(&user_agent.unwrap_or_default())
        } else {
            given.to_owned()
        };
        Ok(WriteOptions { dry_run, validation, part, manager, duplicates: Vec::new() })
    }

    /// How an object is deleted: the body, or without one the query.
    pub(super) fn delete_options(&self) -> Result<DeleteOptions, Error> {
        let body: DeleteBody = if self.body.is_empty() {
            DeleteBody::default()
        } else {
            serde_json::from_value(self.value("DeleteOptions")?)
                .map_err(|error| Error::BadRequest(error.to_string()))?
        };
        let in_query = |name: &str| Some(self.query.text(name).to_owned()).filter(|text| !text.is_empty());
        let policy = body.propagation_policy.or_else(|| in_query("propagationPolicy"));
        let propagation = match (policy.as_deref(), body.orphan_dependents) {
            (Some("Background"), None) => Some(Propagation::Background),
            (Some("Foreground"), None) => Some(Propagation::Foreground),
            (Some("Orphan"), None) | (None, Some(true)) => Some(Propagation::Orphan),
            (None, Some(false)) => Some(Propagation::Background),
            (None, None) => None,
            (Some(policy), Some(_)) => {
                let detail = "orphanDependents and deletionPropagation cannot be both set";
                let error = FieldError::invalid("propagationPolicy", &json!(policy), detail);
                return Err(RequestOptions::Delete.invalid(vec![error]));
            }
            (Some(other), None) => {
                let supported = ["Foreground", "Background", "Orphan", "nil"].map(str::to_owned);
                let error = FieldError::not_supported("propagationPolicy", &json!(other), &supported);
                return Err(RequestOptions::Delete.invalid(vec![error]));
            }
        };
        let requested = body.dry_run.unwrap_or_default();
        let mut dry_run = is_dry_run(self.query.text("dryRun"), RequestOptions::Delete)?;
        for value in &requested {
            dry_run |= is_dry_run(value, RequestOptions::Delete)?;
        }
        let Preconditions { uid, resource_version } = body.preconditions.unwrap_or_default();
        Ok(DeleteOptions { dry_run, propagation, uid, resource_version })
    }
}

/// The messages about fields that occur more than once.
fn duplicate_fields(paths: &[String]) -> Vec<String> {
    paths.iter().map(|path| text::duplicate_field(path)).collect()
}

/// Reads the parameter `dryRun`, one of the options of a request.
fn is_dry_run(value: &str, options: RequestOptions) -> Result<bool, Error> {
    match value {
        "" => Ok(false),
        "All" => Ok(true),
        other => {
            let error = FieldError::not_supported("dryRun", &json!([other]), &["All".to_owned()]);
            Err(options.invalid(vec![error]))
        }
    }
}

/// The start of a body for an error: of an object in JSON its text, and of other bytes hexadecimal digits.
fn summary(body: &[u8]) -> String {
    /// Maximum number of bytes of the body.
    const LIMIT: usize = 30;
    let end = if body.len() > LIMIT { " ..." } else { "" };
    let start = &body[..body.len().min(LIMIT)];
    match start.first() {
        None => "<empty>".into(),
        Some(b'{') => String::from_utf8_lossy(start).into_owned() + end,
        Some(_) => start.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + end,
    }
}
