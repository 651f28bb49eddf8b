//! The store of objects in slipway's own database.
//!
//! A write reads the object, computes the new state outside of the database's writer, and stores it only if nobody else has changed the
//! object in between; otherwise it begins again. So a large object never delays the writes of others.

mod admission;
mod apply;
mod codec;
mod collector;
mod feed;
mod lists;
#[cfg(test)]
mod tests;
mod watches;
mod writes;

use std::sync::Arc;

use slipway_core::clock::now_ms;
use slipway_store::Database;
use slipway_store::sql::Connection;

use crate::error::Error;
use crate::fields::Tracker;
use crate::meta::ObjectMeta;
use crate::object::Object;
use crate::repo::{self, Key, State};
use crate::resource::{Registry, Resource};
use crate::seal::Sealer;
use crate::store::{ObjectStore, Part, WriteOptions};
use codec::Codec;
use feed::Feed;

/// What a client is told whose version of an object is not the current one.
const OTHER_CHANGE: &str =
    "the object has been modified; please apply your changes to the latest version and try again";
/// How often a write begins again because the object was changed in between.
const MAX_ATTEMPTS: usize = 32;
/// The namespace that always exists.
const DEFAULT_NAMESPACE: &str = "default";

/// The manager of fields that slipway itself sets.
const MANAGER: &str = "slipway";

/// The store of objects in slipway's own database; cheap to clone.
#[derive(Clone)]
pub struct Embedded {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    registry: Registry,
    codec: Codec,
    feed: Arc<Feed>,
    follower: tokio::task::JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").field("registry", &self.inner.registry).finish_non_exhaustive()
    }
}

/// An object and the version that it was read at.
struct Current {
    object: Object,
    version: i64,
}

/// What a write does with an object.
enum Outcome {
    Unchanged,
    Replace(Object),
    Delete(Object),
}

/// The result of a write: the object, or its last state if it was deleted.
struct Applied {
    object: Object,
    deleted: bool,
}

impl Embedded {
    /// Opens the store, and creates the namespace `default`. Without a `sealer`, objects of sealed kinds are refused.
    ///
    /// # Errors
    /// The database's.
    pub async fn open(database: Database, registry: Registry, sealer: Option<Sealer>) -> Result<Self, Error> {
        let codec = Codec::new(sealer);
        let clock = database.read_now(repo::clock)?;
        let feed = Arc::new(Feed::new(clock.version));
        let follower = feed::follow(Arc::clone(&feed), database.clone(), registry.clone(), codec.clone());
        let store = Self { inner: Arc::new(Inner { database, registry, codec, feed, follower }) };
        if let Some(namespaces) = store.inner.registry.find("", "namespaces").cloned() {
            let object = Object {
                metadata: ObjectMeta { name: DEFAULT_NAMESPACE.into(), ..ObjectMeta::default() },
                ..Object::default()
            };
            let options = WriteOptions { manager: MANAGER.into(), ..WriteOptions::default() };
            match store.create(&namespaces, "", object, &options).await {
                Ok(_) | Err(Error::AlreadyExists { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(store)
    }

    /// The resources that the store has.
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// Ends all watches.
    pub fn close(&self) {
        self.inner.feed.close();
    }

    /// Starts the garbage collector, which deletes dependents, the contents of deleted namespaces, and expired objects.
    pub fn spawn_collector(&self) -> tokio::task::JoinHandle<()> {
        tokio::spawn(collector::run(self.clone()))
    }

    fn key(resource: &Resource, namespace: &str, name: &str) -> Key {
        Key { resource: resource.stored_as().to_string(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    async fn read(&self, resource: &Resource, key: &Key) -> Result<Current, Error> {
        let wanted = key.clone();
        let stored = self.inner.database.read(move |c| repo::get(c, &wanted)).await?;
        let stored = stored.ok_or_else(|| resource.not_found(&key.name))?;
        Ok(Current { version: stored.version, object: self.inner.codec.decode(resource, &stored)? })
    }

    /// Encodes a state for the database.
    fn encode(&self, resource: &Resource, key: &Key, object: &Object) -> Result<State, Error> {
        Ok(State {
            key: key.clone(),
            uid: object.metadata.uid.clone(),
            deleting: object.metadata.is_deleting(),
            expires_at: resource.retention_ms.map(|retention| now_ms() + retention),
            owners: object.metadata.owner_references.iter().map(|owner| owner.uid.clone()).collect(),
            body: self.inner.codec.encode(resource, key, object)?,
        })
    }

    /// Encodes a state for the database. If it is too large, without the managers of its fields.
    fn encode_within_limit(
        &self,
        resource: &Resource,
        key: &Key,
        mut object: Object,
    ) -> Result<(State, Object), Error> {
        match self.encode(resource, key, &object) {
            Err(Error::TooLarge(_)) if object.metadata.managed_fields.is_some() => {
                object.metadata.managed_fields = None;
                Ok((self.encode(resource, key, &object)?, object))
            }
            result => result.map(|state| (state, object)),
        }
    }

    /// Changes an object with `change`, which is called again with the newest state if another write came in between.
    async fn write(
        &self,
        resource: &Resource,
        key: &Key,
        dry_run: bool,
        mut change: impl FnMut(&Current) -> Result<Outcome, Error> + Send,
    ) -> Result<Applied, Error> {
        for _ in 0..MAX_ATTEMPTS {
            let current = self.read(resource, key).await?;
            let outcome = change(&current)?;
            let (object, deleted) = match outcome {
                Outcome::Unchanged => return Ok(Applied { object: current.object, deleted: false }),
                Outcome::Replace(object) => (object, false),
                Outcome::Delete(object) => (object, true),
            };
            let (state, object) = self.encode_within_limit(resource, key, object)?;
            if dry_run {
                // A change that does not happen has no version of its own.
                return Ok(Applied { object: with_version(object, current.version), deleted });
            }
            let expected = current.version;
            let store = move |c: &Connection| {
                let version = match deleted {
                    true => repo::delete(c, &state.key, &state.uid, expected)?,
                    false => repo::replace(c, &state, expected)?,
                };
                version.map_or(Ok(()), |version| repo::compact(c, version))?;
                Ok::<_, Error>(version)
            };
            if let Some(version) = self.inner.database.write(store).await? {
                self.inner.feed.wake();
                return Ok(Applied { object: with_version(object, version), deleted });
            }
        }
        Err(resource.conflict(&key.name, OTHER_CHANGE))
    }

    /// Changes the reasons to retain an object, and deletes it if it is being deleted and none is left.
    async fn release(
        &self,
        resource: &Resource,
        key: &Key,
        change: impl Fn(&mut Object) + Send + Sync,
    ) -> Result<(), Error> {
        let released = self.write(resource, key, false, |current| {
            let mut object = current.object.clone();
            change(&mut object);
            Tracker { resource, manager: MANAGER, part: Part::Main, now: now_ms() }
                .update(Some(&current.object), &mut object);
            Ok(Outcome::of(resource, &current.object, object))
        });
        released.await.map(drop)
    }
}

impl Outcome {
    /// What a new state of an object leads to.
    fn of(resource: &Resource, old: &Object, new: Object) -> Self {
        if new.metadata.is_deleting() && !resource.is_held(&new) {
            Self::Delete(new)
        } else if new == *old {
            Self::Unchanged
        } else {
            Self::Replace(new)
        }
    }
}

/// An object with its version.
fn with_version(mut object: Object, version: i64) -> Object {
    object.metadata.resource_version = version.to_string();
    object
}
