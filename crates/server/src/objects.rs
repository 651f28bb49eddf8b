//! The Kubernetes API on one machine: routes below `/api/v1` and `/apis` for the objects of the crate `slipway-objects`. In a cluster these
//! routes do not exist, because the cluster has its own API server.
//!
//! Invariant: a handler touches objects only after it has authorized the caller for the verb, the resource and the namespace.

mod definitions;
mod documents;
mod handlers;
mod logs;
mod negotiation;
mod request;
mod response;
mod reviews;
mod text;
mod watch;

use std::sync::{Arc, OnceLock};

use slipway_access::{Access, Resource as AccessResource, Routes, RunTokenUse};
use slipway_core::home::Home;
use slipway_exec::Executor;
use slipway_objects::embedded::Embedded;
use slipway_objects::seal::Sealer;
use slipway_objects::store::Part;
use slipway_objects::{Resource, kinds};
use slipway_store::Database;

use crate::ServerError;
use crate::auth::key_from_file;
pub(crate) use documents::version;
use request::Target;
use response::Failure;

/// Maximum bytes of a request body, as in the API server.
const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;
/// The file in the state folder with the key that encrypts secrets.
const KEY_FILE: &str = "kubernetes-objects.key";

/// Opens the store of objects.
pub(crate) async fn open(database: Database, home: &Home) -> Result<Embedded, ServerError> {
    // The servers of a shared database have no common folder for a key, so they refuse secrets.
    let sealer = if database.is_shared() {
        None
    } else {
        let path = home.root().join(KEY_FILE);
        Some(Sealer::new(&key_from_file(&path).map_err(|source| ServerError::Home { path, source })?))
    };
    Ok(Embedded::open(database, kinds::registry(), sealer).await?)
}

/// The permission that the objects of a resource require; `None` for a resource that must not be served.
fn access_resource(resource: &Resource) -> Option<AccessResource> {
    match (resource.group, resource.plural) {
        ("", "namespaces") => Some(AccessResource::Namespaces),
        ("", "configmaps") => Some(AccessResource::ConfigMaps),
        ("", "secrets") => Some(AccessResource::Secrets),
        // Both are the same objects.
        ("" | "events.k8s.io", "events") => Some(AccessResource::Events),
        // The pods are those of runs, so the permission to read runs is required.
        ("", "pods") | ("slipway.dev", "runs") => Some(AccessResource::Runs),
        _ => None,
    }
}

/// The executor of runs, once it is there; `None` if runs are not executed from objects.
pub(crate) type RunExecutor = Option<Arc<OnceLock<Arc<dyn Executor>>>>;

/// All routes of the API.
pub(crate) fn routes(store: &Embedded, executor: &RunExecutor) -> Routes {
    let objects = store.registry().resources().filter_map(|resource| {
        let access = access_resource(resource)?;
        let target = Target { resource: resource.clone(), access, part: Part::Main, executor: executor.clone() };
        Some(object_routes(&target))
    });
    objects
        .fold(Routes::new(), Routes::merge)
        .merge(reviews::routes())
        .merge(definitions::routes())
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(store.clone())
        .merge(documents::routes(store.registry()))
}

/// The routes of one resource.
fn object_routes(target: &Target) -> Routes<Embedded> {
    // The namespace is a part of the path, and whether a list is a watch a part of the query, so the handlers decide.
    let access = Access::DecidedByHandler;
    let unsupported = Access::Authenticated(RunTokenUse::Denied);
    let resource = &target.resource;
    let all = format!("{}/{}", resource.base_path(), resource.plural);
    let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{}{scope}/{}", resource.base_path(), resource.plural);
    let item = format!("{collection}/{{name}}");
    if resource.is_read_only {
        return read_only_routes(target, [&all, &collection, &item]);
    }
    let mut routes = Routes::new()
        .get(&collection, access, target.handler(handlers::list))
        .post(&collection, access, target.handler(handlers::create))
        .delete(&collection, access, target.handler(handlers::delete_collection))
        .put(&collection, unsupported, method_not_allowed)
        .patch(&collection, unsupported, method_not_allowed)
        .post(&item, unsupported, method_not_allowed)
        .get(&item, access, target.handler(handlers::get))
        .put(&item, access, target.handler(handlers::update))
        .patch(&item, access, target.handler(handlers::patch))
        .delete(&item, access, target.handler(handlers::delete));
    if resource.namespaced {
        routes = routes.get(&all, access, target.handler(handlers::list));
    }
    routes = routes.merge(watch_routes(target, &collection));
    if resource.rules.has_finalize {
        let finalizers = Target { part: Part::Finalizers, ..target.clone() };
        let path = format!("{item}/finalize");
        routes =
            routes.put(&path, access, finalizers.handler(handlers::update)).get(&path, unsupported, method_not_allowed);
    }
    if resource.has_status {
        let status = Target { part: Part::Status, ..target.clone() };
        let path = format!("{item}/status");
        routes = routes
            .get(&path, access, status.handler(handlers::get))
            .put(&path, access, status.handler(handlers::update))
            .patch(&path, access, status.handler(handlers::patch));
    }
    routes
}

/// The routes of watches below `watch/`, which old clients use instead of a parameter.
fn watch_routes(target: &Target, collection: &str) -> Routes<Embedded> {
    let access = Access::DecidedByHandler;
    let resource = &target.resource;
    let base = resource.base_path();
    let below = collection.strip_prefix(&base).unwrap_or(collection);
    let collection = format!("{base}/watch{below}");
    let mut routes = Routes::new().get(&collection, access, target.handler(handlers::watch)).get(
        &format!("{collection}/{{name}}"),
        access,
        target.handler(handlers::watch),
    );
    if resource.namespaced {
        routes = routes.get(&format!("{base}/watch/{}", resource.plural), access, target.handler(handlers::watch));
    }
    routes
}

/// The routes of a resource that clients cannot change, at the paths of all objects, of those in a namespace, and of one.
fn read_only_routes(target: &Target, [all, collection, item]: [&str; 3]) -> Routes<Embedded> {
    let access = Access::DecidedByHandler;
    let unsupported = Access::Authenticated(RunTokenUse::Denied);
    let mut routes = Routes::new()
        .get(all, access, target.handler(handlers::list))
        .get(collection, access, target.handler(handlers::list))
        .get(item, access, target.handler(handlers::get))
        .merge(watch_routes(target, collection));
    for path in [collection, item] {
        routes = routes
            .post(path, unsupported, method_not_allowed)
            .put(path, unsupported, method_not_allowed)
            .patch(path, unsupported, method_not_allowed)
            .delete(path, unsupported, method_not_allowed);
    }
    if target.resource.has_log {
        let log = Target { access: AccessResource::RunLogs, ..target.clone() };
        routes = routes.get(&format!("{item}/log"), access, log.handler(logs::respond));
    }
    routes
}

/// Answers a method that the resource does not have as the API server does.
async fn method_not_allowed() -> Failure {
    Failure::method_not_allowed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_requires_a_permission_of_its_own_name_and_pods_that_of_runs() {
        for resource in kinds::registry().resources() {
            let access = access_resource(resource).unwrap();
            let stored = resource.stored_as();
            let is_same = (access.group(), access.name()) == (&*stored.group, &*stored.resource);
            assert!(is_same || (resource.plural, access) == ("pods", AccessResource::Runs), "{resource:?}");
        }
    }
}
