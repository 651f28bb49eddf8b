//! All SQL of this crate. Each function runs in the transaction of the connection that it gets.
//!
//! Versions are assigned by the one writer that a database has, in the order of its commits. So a reader that sees a version also sees all
//! earlier ones, and a watch that has read up to a version misses nothing.

mod changes;
mod collect;

use slipway_store::Migration;
use slipway_store::sql::{Connection, Result, Row, params};

pub use changes::{Change, changes_after, compact};
pub use collect::{Reference, deleting, dependents, expired, namespace_members, orphans};

/// The database migrations of this crate, for [`slipway_store::Database::open`].
pub const MIGRATION: Migration =
    Migration { domain: "objects", steps: &[include_str!("../../migrations/001_objects.sql")] };

/// The key of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Key {
    /// The resource in its group, such as `configmaps`.
    pub resource: String,
    /// The namespace; empty for objects of the cluster.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// A stored state of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The key of the object.
    pub key: Key,
    /// The version of the state.
    pub version: i64,
    /// The encoded object.
    pub body: Vec<u8>,
}

/// A state of an object to be stored.
#[derive(Debug, Clone)]
pub struct State {
    /// The key of the object.
    pub key: Key,
    /// The unique id of the object.
    pub uid: String,
    /// Whether the deletion of the object was requested.
    pub deleting: bool,
    /// When the object is deleted by itself, in milliseconds since the Unix epoch.
    pub expires_at: Option<i64>,
    /// The unique ids of the owners.
    pub owners: Vec<String>,
    /// The encoded object.
    pub body: Vec<u8>,
}

/// The state of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Clock {
    /// The version of the last change.
    pub version: i64,
    /// Changes up to this version are no longer retained.
    pub compacted: i64,
}

/// The current version.
///
/// # Errors
/// The store's.
pub fn clock(c: &Connection) -> Result<Clock> {
    let read = |row: &Row<'_>| Ok(Clock { version: row.get(0)?, compacted: row.get(1)? });
    Ok(c.first("SELECT version, compacted FROM object_clock WHERE id = 1", params![], read)?.unwrap_or_default())
}

fn stored(row: &Row<'_>) -> Result<Stored> {
    Ok(Stored {
        key: Key { resource: row.get(0)?, namespace: row.get(1)?, name: row.get(2)? },
        version: row.get(3)?,
        body: row.get_bytes(4)?.to_vec(),
    })
}

/// The current state of an object.
///
/// # Errors
/// The store's.
pub fn get(c: &Connection, key: &Key) -> Result<Option<Stored>> {
    c.first(
        "SELECT resource, namespace, name, version, body FROM objects WHERE resource = ?1 AND namespace = ?2 AND name = ?3",
        params![key.resource, key.namespace, key.name],
        stored,
    )
}

/// Whether an object exists, and whether its deletion was requested.
///
/// # Errors
/// The store's.
pub fn presence(c: &Connection, key: &Key) -> Result<Option<bool>> {
    c.first(
        "SELECT deleting FROM objects WHERE resource = ?1 AND namespace = ?2 AND name = ?3",
        params![key.resource, key.namespace, key.name],
        |row| Ok(row.get::<i64>(0)? == 1),
    )
}

/// Advances the clock by one change that replaces a state of this size. Returns the version and the end of the log.
fn tick(c: &Connection, previous_size: usize) -> Result<(i64, i64)> {
    let size = i64::try_from(previous_size).unwrap_or(i64::MAX);
    let next = c.first(
        "UPDATE object_clock SET version = version + 1, log_end = log_end + ?1 WHERE id = 1 RETURNING version, log_end",
        params![size],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    Ok(next.expect("the migration inserts the only row of the clock, and nothing deletes it"))
}

/// Stores the first state of an object. Returns its version.
///
/// # Errors
/// The store's, also if the name is taken.
pub fn insert(c: &Connection, state: &State) -> Result<i64> {
    let (version, log_end) = tick(c, 0)?;
    c.execute(
        "INSERT INTO objects (resource, namespace, name, uid, version, deleting, expires_at, body) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            state.key.resource,
            state.key.namespace,
            state.key.name,
            state.uid,
            version,
            i64::from(state.deleting),
            state.expires_at,
            state.body
        ],
    )?;
    insert_owners(c, state)?;
    c.execute(
        "INSERT INTO object_changes (version, resource, namespace, name, deleted, previous_version, previous, log_end) \
         VALUES (?1, ?2, ?3, ?4, 0, NULL, NULL, ?5)",
        params![version, state.key.resource, state.key.namespace, state.key.name, log_end],
    )?;
    Ok(version)
}

fn insert_owners(c: &Connection, state: &State) -> Result<()> {
    for owner in &state.owners {
        c.execute(
            "INSERT INTO object_owners (owner, dependent) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            params![owner, state.uid],
        )?;
    }
    Ok(())
}

/// Records that the current state of an object, whose version must be `expected`, is replaced or deleted. Returns the version of the
/// change; `None` if the object has another version or does not exist.
fn supersede(c: &Connection, key: &Key, expected: i64, deleted: bool) -> Result<Option<i64>> {
    let Some(current) = get(c, key)?.filter(|current| current.version == expected) else { return Ok(None) };
    let (version, log_end) = tick(c, current.body.len())?;
    c.execute(
        "INSERT INTO object_changes (version, resource, namespace, name, deleted, previous_version, previous, log_end) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![version, key.resource, key.namespace, key.name, i64::from(deleted), expected, current.body, log_end],
    )?;
    Ok(Some(version))
}

/// Replaces the state of an object whose version must be `expected`. Returns the new version; `None` if the object has another version or
/// does not exist.
///
/// # Errors
/// The store's.
pub fn replace(c: &Connection, state: &State, expected: i64) -> Result<Option<i64>> {
    let Some(version) = supersede(c, &state.key, expected, false)? else { return Ok(None) };
    c.execute(
        "UPDATE objects SET version = ?4, deleting = ?5, expires_at = ?6, body = ?7 \
         WHERE resource = ?1 AND namespace = ?2 AND name = ?3",
        params![
            state.key.resource,
            state.key.namespace,
            state.key.name,
            version,
            i64::from(state.deleting),
            state.expires_at,
            state.body
        ],
    )?;
    c.execute("DELETE FROM object_owners WHERE dependent = ?1", params![state.uid])?;
    insert_owners(c, state)?;
    Ok(Some(version))
}

/// Deletes an object whose version must be `expected`. Returns the version of the deletion; `None` if the object has another version or
/// does not exist.
///
/// # Errors
/// The store's.
pub fn delete(c: &Connection, key: &Key, uid: &str, expected: i64) -> Result<Option<i64>> {
    let Some(version) = supersede(c, key, expected, true)? else { return Ok(None) };
    c.execute(
        "DELETE FROM objects WHERE resource = ?1 AND namespace = ?2 AND name = ?3",
        params![key.resource, key.namespace, key.name],
    )?;
    c.execute("DELETE FROM object_owners WHERE dependent = ?1", params![uid])?;
    Ok(Some(version))
}

/// The query of a list at the version `?2`, of at most `?3` objects of the resource `?1` that fulfil the condition: those that have not changed
/// since the version, and the states that the first later change of each other object replaced. Each condition has a query of its own, so that the
/// database finds the first object by its key instead of reading all of the resource. Of the changes, the few since the version are read:
/// expressions instead of the bare columns keep the database from going through all changes of the resource, or all before the version.
macro_rules! list_query {
    ($condition:literal) => {
        concat!(
            "SELECT resource, namespace, name, version, body FROM objects WHERE resource = ?1 AND version <= ?2 AND ",
            $condition,
            " UNION ALL SELECT resource, namespace, name, previous_version, previous FROM object_changes \
             WHERE version > ?2 AND resource || '' = ?1 AND previous_version + 0 <= ?2 AND ",
            $condition,
            " ORDER BY 2, 3 LIMIT ?3"
        )
    };
}

/// The states of at most `limit` objects of a resource at a version that is still retained, after a key, in the order of their keys.
/// `namespace` and `name` restrict the list.
///
/// # Errors
/// The store's.
pub fn list(
    c: &Connection,
    version: i64,
    after: &Key,
    namespace: Option<&str>,
    name: Option<&str>,
    limit: i64,
) -> Result<Vec<Stored>> {
    let resource = &after.resource;
    match (namespace, name) {
        (Some(namespace), Some(name)) if (after.namespace.as_str(), after.name.as_str()) >= (namespace, name) => {
            Ok(Vec::new())
        }
        (Some(namespace), Some(name)) => c.rows(
            list_query!("namespace = ?4 AND name = ?5"),
            params![resource, version, limit, namespace, name],
            stored,
        ),
        (Some(namespace), None) => {
            let after_name = if after.namespace == namespace { after.name.as_str() } else { "" };
            c.rows(
                list_query!("namespace = ?4 AND name > ?5"),
                params![resource, version, limit, namespace, after_name],
                stored,
            )
        }
        (None, Some(name)) => c.rows(
            list_query!("(namespace, name) > (?4, ?5) AND name = ?6"),
            params![resource, version, limit, after.namespace, after.name, name],
            stored,
        ),
        (None, None) => c.rows(
            list_query!("(namespace, name) > (?4, ?5)"),
            params![resource, version, limit, after.namespace, after.name],
            stored,
        ),
    }
}

/// The number of objects of a resource after a key, now.
///
/// # Errors
/// The store's.
pub fn count(c: &Connection, after: &Key, namespace: Option<&str>) -> Result<i64> {
    let count = c.first(
        "SELECT COUNT(*) FROM objects WHERE resource = ?1 AND (namespace, name) > (?2, ?3) AND (namespace = ?4 OR ?4 IS NULL)",
        params![after.resource, after.namespace, after.name, namespace],
        |row| row.get(0),
    )?;
    Ok(count.unwrap_or_default())
}
