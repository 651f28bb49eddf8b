//! The garbage collector: deletes dependents whose owners are gone, carries out foreground and orphan deletions, empties deleted
//! namespaces, and deletes expired objects.
//!
//! Each round derives what is to be done from the stored objects, so a round can be repeated or interrupted at any moment.

use std::time::Duration;

use serde_json::Value;
use slipway_core::clock::now_ms;
use tokio::time::Instant;

use super::Embedded;
use super::feed::Change;
use crate::error::Error;
use crate::meta::{FOREGROUND_FINALIZER, NAMESPACE_FINALIZER, ORPHAN_FINALIZER};
use crate::object::Object;
use crate::repo::{self, Reference};
use crate::resource::Resource;
use crate::store::{DeleteOptions, ObjectStore, Propagation};

/// The interval of rounds without changes, for expired objects and after failures.
const INTERVAL: Duration = Duration::from_secs(30);
/// Maximum number of objects that a query returns.
const MAX_OBJECTS: i64 = 500;

/// Runs until it is aborted.
pub(super) async fn run(store: Embedded) {
    let mut head = store.inner.feed.subscribe();
    loop {
        let mut failed = false;
        let before = head.borrow_and_update().version;
        if let Err(error) = round(&store).await {
            tracing::warn!(%error, "the garbage collection of objects is delayed");
            failed = true;
        }
        let deadline = Instant::now() + INTERVAL;
        let mut cursor = before;
        // Changes that this round made begin another one, so rounds follow each other until nothing is left to be done.
        while let Ok(Ok(())) = tokio::time::timeout_at(deadline, head.changed()).await {
            let changes = store.inner.feed.after(cursor, usize::MAX);
            cursor = head.borrow_and_update().version;
            if failed || changes.is_none_or(|changes| changes.iter().any(|change| concerns(change))) {
                break;
            }
        }
    }
}

/// Whether a change can give the collector something to do.
fn concerns(change: &Change) -> bool {
    // A mention elsewhere in the object only wakes the collector for nothing.
    change.current.as_ref().is_none_or(|text| text.mentions("deletionTimestamp") || text.mentions("ownerReferences"))
}

/// Does what can be done now.
pub(super) async fn round(store: &Embedded) -> Result<(), Error> {
    let database = &store.inner.database;
    for expired in database.read(|c| repo::expired(c, now_ms(), MAX_OBJECTS)).await? {
        remove(store, &expired, None).await?;
    }
    for (dependent, owner) in database.read(|c| repo::orphans(c, MAX_OBJECTS)).await? {
        disown(store, &dependent, &owner).await?;
    }
    for deleting in database.read(repo::deleting).await? {
        advance(store, &deleting).await?;
    }
    Ok(())
}

/// Treats an object that is already gone as done.
fn unless_gone(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::NotFound { .. } | Error::Conflict { .. }) => Ok(()),
        other => other,
    }
}

/// Deletes an object, unless another one has its name by now.
async fn remove(store: &Embedded, object: &Reference, propagation: Option<Propagation>) -> Result<(), Error> {
    let Some(resource) = store.inner.registry.stored_as(&object.key.resource) else { return Ok(()) };
    let options = DeleteOptions { propagation, uid: Some(object.uid.clone()), ..DeleteOptions::default() };
    unless_gone(store.delete(resource, &object.key.namespace, &object.key.name, &options).await.map(drop))
}

/// Removes the reference to an owner that does not exist; without any other owner, deletes the dependent.
async fn disown(store: &Embedded, dependent: &Reference, owner: &str) -> Result<(), Error> {
    let Some(resource) = store.inner.registry.stored_as(&dependent.key.resource) else { return Ok(()) };
    let current = match store.get(resource, &dependent.key.namespace, &dependent.key.name).await {
        Ok(object) if object.metadata.uid == dependent.uid => object,
        Ok(_) | Err(Error::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    if current.metadata.owner_references.iter().all(|reference| reference.uid == owner) {
        return remove(store, dependent, None).await;
    }
    let forget = |object: &mut Object| object.metadata.owner_references.retain(|reference| reference.uid != owner);
    unless_gone(store.release(resource, &dependent.key, forget).await)
}

/// Brings the deletion of an object forward.
async fn advance(store: &Embedded, deleting: &Reference) -> Result<(), Error> {
    let Some(resource) = store.inner.registry.stored_as(&deleting.key.resource).cloned() else { return Ok(()) };
    let object = match store.get(&resource, &deleting.key.namespace, &deleting.key.name).await {
        Ok(object) if object.metadata.uid == deleting.uid => object,
        Ok(_) | Err(Error::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let drop_finalizer = async |name: &'static str| {
        let release = |object: &mut Object| object.metadata.finalizers.retain(|finalizer| finalizer != name);
        unless_gone(store.release(&resource, &deleting.key, release).await)
    };
    if object.metadata.has_finalizer(ORPHAN_FINALIZER) {
        for dependent in dependents(store, &deleting.uid).await? {
            let Some(kind) = store.inner.registry.stored_as(&dependent.key.resource) else { continue };
            let forget =
                |object: &mut Object| object.metadata.owner_references.retain(|owner| owner.uid != deleting.uid);
            unless_gone(store.release(kind, &dependent.key, forget).await)?;
        }
        drop_finalizer(ORPHAN_FINALIZER).await?;
    }
    if object.metadata.has_finalizer(FOREGROUND_FINALIZER) {
        let mut blocked = false;
        for dependent in dependents(store, &deleting.uid).await? {
            remove(store, &dependent, Some(Propagation::Foreground)).await?;
            blocked |= blocks(store, &dependent, &deleting.uid).await?;
        }
        if !blocked {
            drop_finalizer(FOREGROUND_FINALIZER).await?;
        }
    }
    if resource.kind == "Namespace" && resource.group.is_empty() {
        empty(store, &resource, deleting).await?;
    }
    Ok(())
}

async fn dependents(store: &Embedded, owner: &str) -> Result<Vec<Reference>, Error> {
    let owner = owner.to_owned();
    Ok(store.inner.database.read(move |c| repo::dependents(c, &owner)).await?)
}

/// Whether a dependent still exists and its owner must wait for it.
async fn blocks(store: &Embedded, dependent: &Reference, owner: &str) -> Result<bool, Error> {
    let Some(resource) = store.inner.registry.stored_as(&dependent.key.resource) else { return Ok(false) };
    match store.get(resource, &dependent.key.namespace, &dependent.key.name).await {
        Ok(object) => Ok(object
            .metadata
            .owner_references
            .iter()
            .any(|reference| reference.uid == owner && reference.block_owner_deletion == Some(true))),
        Err(Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes the objects in a namespace. Releases the namespace once it has none.
async fn empty(store: &Embedded, namespaces: &Resource, namespace: &Reference) -> Result<(), Error> {
    let name = namespace.key.name.clone();
    let members = store.inner.database.read(move |c| repo::namespace_members(c, &name, MAX_OBJECTS)).await?;
    if members.is_empty() {
        let release = |object: &mut Object| {
            if let Some(Value::Array(finalizers)) = object.body.get_mut("spec").and_then(|s| s.get_mut("finalizers")) {
                finalizers.retain(|finalizer| finalizer != NAMESPACE_FINALIZER);
            }
            (namespaces.rules.fill)(object);
        };
        return unless_gone(store.release(namespaces, &namespace.key, release).await);
    }
    for member in members {
        remove(store, &member, None).await?;
    }
    Ok(())
}
