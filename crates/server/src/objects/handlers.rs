//! Reading and writing objects.

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;
use slipway_access::{Refusal, Resource as AccessResource, Verb};
use slipway_objects::embedded::Embedded;
use slipway_objects::error::{FieldError, RequestOptions, Status};
use slipway_objects::store::{ApplyOptions, Deletion, ListOptions, ObjectStore, Page, Part, parse_version};
use slipway_objects::{Encoded, Error, Object, Resource};

use super::request::{Call, Target};
use super::response::{Failure, View, json_response};
use super::text::Text;
use super::watch;

/// The parameter that says how the version of a list is meant.
pub(super) const MATCH: &str = "resourceVersionMatch";

type Result = std::result::Result<Response, Failure>;

pub(super) async fn get(target: Target, store: Embedded, call: Call) -> Result {
    call.authorize(&target, Verb::Get).await?;
    let view = View::of(&call)?;
    let object = store.get(&target.resource, &call.namespace, &call.name).await?;
    Ok(view.respond(StatusCode::OK, &target.resource, &object))
}

pub(super) async fn list(target: Target, store: Embedded, call: Call) -> Result {
    if call.query.flag("watch") {
        return watch(target, store, call).await;
    }
    call.authorize(&target, Verb::List).await?;
    let view = View::of(&call)?;
    let options = list_options(&call)?;
    Ok(view.list(&target.resource, &store.list_texts(&target.resource, &options).await?)?)
}

pub(super) async fn watch(target: Target, store: Embedded, call: Call) -> Result {
    call.authorize(&target, Verb::Watch).await?;
    watch::respond(target, store, call).await
}

fn list_options(call: &Call) -> std::result::Result<ListOptions, Error> {
    let limit = call.query.number("limit")?.unwrap_or_default();
    let version = parse_version(call.query.text("resourceVersion"))?.filter(|version| *version > 0);
    let continue_token = call.query.text("continue").to_owned();
    let exact_version = match (call.query.text(MATCH), version) {
        (given, _) if !given.is_empty() && call.query.text("resourceVersion").is_empty() => {
            let detail = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            return Err(RequestOptions::List.invalid(vec![FieldError::forbidden(MATCH, detail)]));
        }
        ("Exact", None) => {
            let detail = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            return Err(RequestOptions::List.invalid(vec![FieldError::forbidden(MATCH, detail)]));
        }
        ("Exact", version) => version,
        // A page of a certain version was exact before there was this parameter.
        ("", version) if limit > 0 && continue_token.is_empty() => version,
        // Lists are never older than the latest version, so `NotOlderThan` always holds.
        ("" | "NotOlderThan", _) => None,
        (other, _) => {
            let supported = ["Exact", "NotOlderThan", ""].map(str::to_owned);
            return Err(RequestOptions::List.invalid(vec![FieldError::not_supported(
                MATCH,
                &json!(other),
                &supported,
            )]));
        }
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    Ok(ListOptions { selection: call.selection()?, limit, continue_token, exact_version })
}

pub(super) async fn create(target: Target, store: Embedded, call: Call) -> Result {
    call.authorize(&target, Verb::Create).await?;
    check_executor(&target)?;
    let view = View::of(&call)?;
    let options = call.write_options(target.part, RequestOptions::Create)?;
    let (object, warnings) = call.object(&target.resource, options.validation)?;
    let mut written = store.create(&target.resource, &call.namespace, object, &options).await?;
    written.warnings = warnings;
    Ok(view.written(StatusCode::CREATED, &target.resource, &written))
}

/// Refuses runs that nothing would execute.
fn check_executor(target: &Target) -> std::result::Result<(), Failure> {
    let detail = match &target.executor {
        _ if target.access != AccessResource::Runs => return Ok(()),
        Some(executor) if executor.get().is_some() => return Ok(()),
        Some(_) => "runs need a running server with authentication",
        None => "servers that share a database do not execute objects of the kind Run; use `slipway run submit`",
    };
    Err(Failure::refused(Refusal::Unavailable(detail.to_owned()), &target.resource.group_resource(), ""))
}

pub(super) async fn update(target: Target, store: Embedded, call: Call) -> Result {
    call.authorize(&target, Verb::Update).await?;
    let view = View::of(&call)?;
    let options = call.write_options(target.part, RequestOptions::Update)?;
    let (object, warnings) = call.object(&target.resource, options.validation)?;
    let (resource, namespace, name) = (&target.resource, &call.namespace, &call.name);
    let mut written = match store.update(resource, namespace, name, object.clone(), &options).await {
        Err(Error::NotFound { name: missing, .. })
            if missing == *name && resource.rules.creates_on_update && target.part == Part::Main =>
        {
            call.authorize(&target, Verb::Create).await?;
            let object = named(object, name)?;
            if !object.metadata.uid.is_empty() {
                return Err(resource.uid_conflict(namespace, name, &object.metadata.uid, "").into());
            }
            store.create(resource, namespace, object, &options).await?
        }
        result => result?,
    };
    written.warnings = warnings;
    let status = if written.is_created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(view.written(status, resource, &written))
}

/// An object with the name in the path of a request.
fn named(mut object: Object, name: &str) -> std::result::Result<Object, Error> {
    let given = &mut object.metadata.name;
    if given.is_empty() {
        name.clone_into(given);
    } else if given != name {
        let message = format!("the name of the object ({given}) does not match the name on the URL ({name})");
        return Err(Error::BadRequest(message));
    }
    Ok(object)
}

pub(super) async fn patch(target: Target, store: Embedded, call: Call) -> Result {
    call.authorize(&target, Verb::Patch).await?;
    let view = View::of(&call)?;
    let mut write = call.write_options(target.part, RequestOptions::Patch)?;
    let (resource, namespace, name) = (&target.resource, &call.namespace, &call.name);
    if call.is_apply() {
        let Text { value, duplicates } = call.configuration()?;
        write.duplicates = duplicates;
        let creation = call.authorize(&target, Verb::Create).await.and_then(|()| check_executor(&target));
        let options = ApplyOptions { write, force: call.query.flag("force"), create: creation.is_ok() };
        let written = match store.apply(resource, namespace, name, &value, &options).await {
            Err(Error::NotFound { name: missing, .. }) if missing == *name && target.part == Part::Main => {
                creation?;
                return Err(resource.not_found(name).into());
            }
            result => result?,
        };
        let status = if written.is_created { StatusCode::CREATED } else { StatusCode::OK };
        return Ok(view.written(status, resource, &written));
    }
    let (patch, duplicates) = call.patch(resource)?;
    write.duplicates = duplicates;
    let written = store.patch(resource, namespace, name, &patch, &write).await?;
    Ok(view.written(StatusCode::OK, resource, &written))
}

pub(super) async fn delete(target: Target, store: Embedded, call: Call) -> Result {
    call.authorize(&target, Verb::Delete).await?;
    let view = View::of(&call)?;
    let options = call.delete_options()?;
    Ok(match store.delete(&target.resource, &call.namespace, &call.name, &options).await? {
        Deletion::Deleted(object) => deleted(&target.resource, &object),
        Deletion::Pending(object) => view.respond(StatusCode::OK, &target.resource, &object),
    })
}

fn deleted(resource: &Resource, object: &Object) -> Response {
    let status = Status::deleted(&resource.group_resource(), &object.metadata.name, &object.metadata.uid);
    json_response(StatusCode::OK, &json!(status))
}

pub(super) async fn delete_collection(target: Target, store: Embedded, call: Call) -> Result {
    call.authorize(&target, Verb::DeleteCollection).await?;
    let view = View::of(&call)?;
    let options = call.delete_options()?;
    let page = store.list(&target.resource, &list_options(&call)?).await?;
    let mut items = Vec::with_capacity(page.items.len());
    for object in page.items {
        let meta = &object.metadata;
        match store.delete(&target.resource, &meta.namespace, &meta.name, &options).await {
            Ok(Deletion::Deleted(object) | Deletion::Pending(object)) => items.push(Encoded::from(object)),
            // Another request deleted it first.
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let Page { resource_version, continue_token, remaining, .. } = page;
    Ok(view.list(&target.resource, &Page { items, resource_version, continue_token, remaining })?)
}
