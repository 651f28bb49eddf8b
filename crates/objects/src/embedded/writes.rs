//! Creating, changing and deleting objects.

use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use slipway_core::clock::{now_ms, rfc3339};
use slipway_store::sql::Connection;

use super::{Applied, Embedded, MAX_ATTEMPTS, OTHER_CHANGE, Outcome, admission, apply, with_version};
use crate::encoded::Encoded;
use crate::error::{Cause, Error, FieldError, GroupResource};
use crate::fields::Tracker;
use crate::meta::{FOREGROUND_FINALIZER, ORPHAN_FINALIZER, ObjectMeta};
use crate::object::Object;
use crate::patch::Patch;
use crate::repo::{self, Key};
use crate::resource::{FieldValidation, Resource};
use crate::store::{
    ApplyOptions, DeleteOptions, Deletion, ListOptions, ObjectStore, Page, Part, Propagation, WatchEvent, WatchOptions,
    WriteOptions, Written,
};

/// How often a name is generated until it is not taken.
const MAX_GENERATED_NAMES: usize = 8;
/// The letters and digits of generated names: none that are easily confused, and no vowels, which could form words.
const NAME_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// The number of generated letters.
const GENERATED_LETTERS: usize = 5;
/// Maximum bytes of the start of a generated name, so that a name is also a valid label.
const MAX_GENERATED_START: usize = 63 - GENERATED_LETTERS;

/// Completes the start of a name.
fn generate_name(start: &str) -> String {
    let mut bytes = [0; GENERATED_LETTERS];
    // Without random numbers the name is the same each time, and is refused if it is taken.
    let _ = SystemRandom::new().fill(&mut bytes);
    let mut end = start.len().min(MAX_GENERATED_START);
    while !start.is_char_boundary(end) {
        end -= 1;
    }
    let letters = bytes.iter().map(|b| char::from(NAME_ALPHABET[usize::from(*b) % NAME_ALPHABET.len()]));
    start[..end].chars().chain(letters).collect()
}

/// Checks in the transaction of a creation that the namespace exists and is not being deleted.
fn check_namespace(c: &Connection, key: &Key) -> Result<(), Error> {
    if key.namespace.is_empty() {
        return Ok(());
    }
    let namespaces = Key { resource: "namespaces".into(), namespace: String::new(), name: key.namespace.clone() };
    let group_resource = |name: &str| {
        let (resource, group) = name.split_once('.').unwrap_or((name, ""));
        GroupResource { group: group.to_owned(), resource: resource.to_owned() }
    };
    match repo::presence(c, &namespaces)? {
        None => Err(Error::NotFound { resource: group_resource("namespaces"), name: key.namespace.clone() }),
        Some(false) => Ok(()),
        Some(true) => Err(Error::Forbidden {
            resource: group_resource(&key.resource),
            name: key.name.clone(),
            detail: format!(
                "unable to create new content in namespace {} because it is being terminated",
                key.namespace
            ),
            cause: Some(Box::new(Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {} is being terminated", key.namespace),
                field: "metadata.namespace".into(),
            })),
        }),
    }
}

impl Embedded {
    /// Stores an object that was created elsewhere and keeps its name, unique id and times. Its fields are not checked.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if the name is taken, and those of a namespace that does not exist or is being deleted.
    pub async fn import(&self, resource: &Resource, object: Object) -> Result<Object, Error> {
        self.insert(resource, admission::imported(resource, object), false).await
    }

    async fn insert(&self, resource: &Resource, object: Object, dry_run: bool) -> Result<Object, Error> {
        let key = Self::key(resource, &object.metadata.namespace, &object.metadata.name);
        let (state, object) = self.encode_within_limit(resource, &key, object)?;
        let taken = Error::AlreadyExists { resource: resource.group_resource(), name: key.name.clone() };
        let insert = move |c: &Connection| {
            check_namespace(c, &key)?;
            if repo::presence(c, &key)?.is_some() {
                return Err(taken);
            }
            if dry_run {
                return Ok(None);
            }
            let version = repo::insert(c, &state)?;
            repo::compact(c, version)?;
            Ok(Some(version))
        };
        match self.inner.database.write(insert).await? {
            Some(version) => {
                self.inner.feed.wake();
                Ok(with_version(object, version))
            }
            None => Ok(object),
        }
    }
}

/// The finalizers of an object whose deletion is requested with this propagation.
fn finalizers(meta: &ObjectMeta, propagation: Option<Propagation>) -> Vec<String> {
    let own = meta.finalizers.iter().filter(|f| !matches!(&***f, FOREGROUND_FINALIZER | ORPHAN_FINALIZER)).cloned();
    let added = match propagation {
        Some(Propagation::Foreground) => Some(FOREGROUND_FINALIZER),
        Some(Propagation::Orphan) => Some(ORPHAN_FINALIZER),
        Some(Propagation::Background) => None,
        None => return meta.finalizers.clone(),
    };
    own.chain(added.map(str::to_owned)).collect()
}

/// Checks the preconditions of a deletion.
fn check_preconditions(resource: &Resource, meta: &ObjectMeta, options: &DeleteOptions) -> Result<(), Error> {
    let checks = [
        ("UID", &options.uid, &meta.uid, "deleted and then recreated"),
        ("ResourceVersion", &options.resource_version, &meta.resource_version, "modified"),
    ];
    for (what, expected, actual, why) in checks {
        if let Some(expected) = expected.as_ref().filter(|expected| *expected != actual) {
            let detail = format!(
                "the {what} in the precondition ({expected}) does not match the {what} in record ({actual}). The object might \
                 have been {why}"
            );
            // The API server names the kind here, and the resource in all other conflicts.
            let kind = GroupResource { resource: resource.kind.to_owned(), ..resource.group_resource() };
            return Err(Error::Conflict { resource: kind, name: meta.name.clone(), detail });
        }
    }
    Ok(())
}

/// The error of a patch whose result is not an object of its kind.
fn unpatchable(error: Error) -> Error {
    match error {
        Error::Undecodable { detail, .. } => Error::Invalid {
            group: String::new(),
            kind: String::new(),
            name: String::new(),
            errors: vec![FieldError::invalid("patch", &json!(""), detail)],
        },
        other => other,
    }
}

/// Records the fields that a client writes.
pub(super) fn tracker<'a>(resource: &'a Resource, options: &'a WriteOptions) -> Tracker<'a> {
    Tracker { resource, manager: &options.manager, part: options.part, now: now_ms() }
}

impl ObjectStore for Embedded {
    async fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Object, Error> {
        Ok(self.read(resource, &Self::key(resource, namespace, name)).await?.object)
    }

    async fn list(&self, resource: &Resource, options: &ListOptions) -> Result<Page, Error> {
        self.list_texts(resource, options).await?.try_map(Encoded::into_object)
    }

    async fn watch(
        &self,
        resource: &Resource,
        options: WatchOptions,
    ) -> Result<impl Stream<Item = WatchEvent> + Send + 'static, Error> {
        let found = self.inner.registry.find(resource.group, resource.plural).map(Arc::clone);
        let resource = found.ok_or_else(|| Error::BadRequest(format!("the store has no {resource:?}")))?;
        let decode = |text: Arc<Encoded>| Ok(text.object()?.clone());
        Ok(self.watch_texts(resource, options).await?.map(move |event| event.try_map(decode)))
    }

    async fn create(
        &self,
        resource: &Resource,
        namespace: &str,
        object: Object,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let mut object = object;
        resource.complete(&mut object);
        tracker(resource, options).update(None, &mut object);
        let is_generated = object.metadata.name.is_empty() && !object.metadata.generate_name.is_empty();
        let mut attempts = if is_generated { MAX_GENERATED_NAMES } else { 1 };
        loop {
            let name = generate_name(&object.metadata.generate_name);
            let complete = admission::created(resource, namespace, object.clone(), &name)?;
            attempts -= 1;
            match self.insert(resource, complete, options.dry_run).await {
                Err(Error::AlreadyExists { .. }) if attempts > 0 => {}
                result => return Ok(Written { object: result?, warnings: Vec::new(), is_created: true }),
            }
        }
    }

    async fn update(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        object: Object,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let key = Self::key(resource, namespace, name);
        let Applied { object, .. } = self
            .write(resource, &key, options.dry_run, |current| {
                let mut new = object.clone();
                resource.complete(&mut new);
                tracker(resource, options).update(Some(&current.object), &mut new);
                let new = admission::updated(resource, namespace, &current.object, new, options.part)?;
                Ok(Outcome::of(resource, &current.object, new))
            })
            .await?;
        Ok(Written { object, warnings: Vec::new(), is_created: false })
    }

    async fn patch(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        patch: &Patch,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let key = Self::key(resource, namespace, name);
        let mut warnings = Vec::new();
        let Applied { object, .. } = self
            .write(resource, &key, options.dry_run, |current| {
                let mut value = current.object.to_value();
                patch.apply(&mut value, &resource.schema)?;
                let (mut new, found) =
                    resource.decode(value, options.validation, &options.duplicates).map_err(unpatchable)?;
                warnings = found;
                resource.complete(&mut new);
                tracker(resource, options).update(Some(&current.object), &mut new);
                let new = admission::updated(resource, namespace, &current.object, new, options.part)?;
                Ok(Outcome::of(resource, &current.object, new))
            })
            .await?;
        Ok(Written { object, warnings, is_created: false })
    }

    async fn apply(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        configuration: &Value,
        options: &ApplyOptions,
    ) -> Result<Written, Error> {
        let key = Self::key(resource, namespace, name);
        let is_reported = options.write.validation == FieldValidation::Warn;
        let warnings = || if is_reported { options.write.duplicates.clone() } else { Vec::new() };
        for _ in 0..MAX_ATTEMPTS {
            let applied = self
                .write(resource, &key, options.write.dry_run, |current| {
                    let new = apply::applied(resource, Some(&current.object), name, configuration, options)?;
                    let new = admission::updated(resource, namespace, &current.object, new, options.write.part)?;
                    Ok(Outcome::of(resource, &current.object, new))
                })
                .await;
            match applied {
                Err(Error::NotFound { name: missing, .. })
                    if missing == name && options.create && options.write.part == Part::Main => {}
                applied => {
                    let object = applied?.object;
                    return Ok(Written { object, warnings: warnings(), is_created: false });
                }
            }
            let new = apply::applied(resource, None, name, configuration, options)?;
            let new = admission::created(resource, namespace, new, "")?;
            match self.insert(resource, new, options.write.dry_run).await {
                // Another request has created it first.
                Err(Error::AlreadyExists { .. }) => {}
                result => return Ok(Written { object: result?, warnings: warnings(), is_created: true }),
            }
        }
        Err(resource.conflict(name, OTHER_CHANGE))
    }

    async fn delete(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deletion, Error> {
        if let Some(detail) = (resource.rules.undeletable)(name) {
            return Err(Error::Forbidden {
                resource: resource.group_resource(),
                name: name.to_owned(),
                detail: detail.to_owned(),
                cause: None,
            });
        }
        let key = Self::key(resource, namespace, name);
        let Applied { object, deleted } = self
            .write(resource, &key, options.dry_run, |current| {
                check_preconditions(resource, &current.object.metadata, options)?;
                let mut object = current.object.clone();
                object.metadata.finalizers = finalizers(&object.metadata, options.propagation);
                if !object.metadata.is_deleting() {
                    object.metadata.deletion_timestamp = Some(rfc3339(now_ms()));
                    object.metadata.deletion_grace_period_seconds = Some(0);
                    if object.metadata.generation > 0 {
                        object.metadata.generation += 1;
                    }
                    (resource.rules.terminate)(&mut object);
                }
                Ok(match Outcome::of(resource, &current.object, object) {
                    // The last state of a deleted object is that before the request.
                    Outcome::Delete(_) => Outcome::Delete(current.object.clone()),
                    other => other,
                })
            })
            .await?;
        Ok(if deleted { Deletion::Deleted(object) } else { Deletion::Pending(object) })
    }
}
