//! Reviews of the caller itself: whether it may do something (`kubectl auth can-i`), all that it may do (`--list`), and its name (`kubectl auth whoami`).

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use slipway_access::{Access, Caller, Refusal, Resource as AccessResource, Routes, RunTokenUse, Verb};
use slipway_objects::Error;
use slipway_objects::embedded::Embedded;
use slipway_objects::error::FieldError;

use super::access_resource;
use super::request::Call;
use super::response::{Failure, json_response};

/// The kind of a review of whether the caller may do something.
const KIND: &str = "SelfSubjectAccessReview";
/// The kind of a review of all that the caller may do in a namespace.
const RULES_KIND: &str = "SelfSubjectRulesReview";

/// The verbs of resources, those of reading first.
const VERBS: [Verb; 8] =
    [Verb::Get, Verb::List, Verb::Watch, Verb::Create, Verb::Update, Verb::Patch, Verb::Delete, Verb::DeleteCollection];
/// Number of verbs of reading.
const READING: usize = 3;

pub(super) fn routes() -> Routes<Embedded> {
    Routes::new()
        .get(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            Access::Authenticated(RunTokenUse::Denied),
            super::method_not_allowed,
        )
        .post(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            Access::DecidedByHandler,
            async |axum::extract::State(store): axum::extract::State<Embedded>, call: Call| {
                access(&store, &call).await.unwrap_or_else(IntoResponse::into_response)
            },
        )
        .post(
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
            Access::DecidedByHandler,
            async |axum::extract::State(store): axum::extract::State<Embedded>, call: Call| {
                rules(&store, &call).await.unwrap_or_else(IntoResponse::into_response)
            },
        )
        .post(
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            Access::Authenticated(RunTokenUse::Denied),
            async |axum::Extension(caller): axum::Extension<Caller>| subject(&caller),
        )
}

/// The verb of a review; `None` for one that no resource has.
fn verb(name: &str) -> Option<Verb> {
    VERBS.into_iter().find(|verb| verb.name() == name)
}

async fn access(store: &Embedded, call: &Call) -> Result<Response, Failure> {
    let mut review = call.value(KIND)?;
    let attributes = &review["spec"]["resourceAttributes"];
    if !attributes.is_object() && !review["spec"]["nonResourceAttributes"].is_object() {
        let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        let errors = vec![FieldError::invalid("spec.resourceAttributes", &Value::Null, detail)];
        let (group, kind, name) = ("authorization.k8s.io".into(), String::new(), String::new());
        return Err(Error::Invalid { group, kind, name, errors }.into());
    }
    let text = |field: &str| attributes[field].as_str().unwrap_or_default();
    let resource = store.registry().find(text("group"), text("resource")).and_then(|found| access_resource(found));
    // Whoever administers the installation may also do what is no operation on one resource.
    let (verb, resource) = match (verb(text("verb")), resource) {
        (Some(verb), Some(resource)) => (verb, resource),
        _ => (Verb::Update, AccessResource::Installation),
    };
    let namespace = Some(text("namespace")).filter(|namespace| !namespace.is_empty());
    let (allowed, reason) = match call.decision().authorize(verb, resource, namespace).await {
        Ok(()) => (true, String::new()),
        Err(Refusal::Forbidden(reason)) => (false, reason),
        Err(other) => return Err(Failure::refused(other, &Default::default(), "")),
    };
    review["apiVersion"] = json!("authorization.k8s.io/v1");
    review["kind"] = json!(KIND);
    review["status"] = json!({"allowed": allowed});
    if !reason.is_empty() {
        review["status"]["reason"] = json!(reason);
    }
    Ok(json_response(StatusCode::CREATED, &review))
}

async fn rules(store: &Embedded, call: &Call) -> Result<Response, Failure> {
    let review = call.value(RULES_KIND)?;
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(Error::BadRequest("no namespace on request".into()).into());
    }
    let mut rules = Vec::new();
    for resource in store.registry().resources() {
        let Some(access) = access_resource(resource) else { continue };
        let scope = Some(namespace).filter(|_| resource.namespaced);
        let mut verbs = Vec::new();
        let served: &[Verb] = if resource.is_read_only { &VERBS[..READING] } else { &VERBS };
        for &verb in served {
            match call.decision().authorize(verb, access, scope).await {
                Ok(()) => verbs.push(verb.name()),
                Err(Refusal::Forbidden(_)) => {}
                Err(other) => return Err(Failure::refused(other, &Default::default(), "")),
            }
        }
        if !verbs.is_empty() {
            rules.push(json!({"verbs": verbs, "apiGroups": [resource.group], "resources": [resource.plural]}));
        }
    }
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": RULES_KIND,
        "metadata": {"creationTimestamp": null},
        "spec": {},
        "status": {"resourceRules": rules, "nonResourceRules": [], "incomplete": false},
    });
    Ok(json_response(StatusCode::CREATED, &review))
}

fn subject(caller: &Caller) -> Response {
    let authenticated = |name: &str| json!({"username": name, "groups": ["system:authenticated"]});
    let user = match caller {
        Caller::Anonymous => json!({"username": "system:anonymous", "groups": ["system:unauthenticated"]}),
        Caller::Owner => authenticated("owner"),
        Caller::Administrator => authenticated("administrator"),
        Caller::Run(run) => authenticated(&run.name),
        Caller::Person(person) => json!({"username": person.name, "uid": person.uid, "groups": person.groups}),
    };
    let review: Value = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "SelfSubjectReview",
        "metadata": {"creationTimestamp": null},
        "status": {"userInfo": user},
    });
    json_response(StatusCode::CREATED, &review)
}
