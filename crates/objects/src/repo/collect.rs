//! What the garbage collector searches for. Everything is derived from the stored objects, so nothing is lost when a server is killed.

use slipway_store::sql::{Connection, Result, Row, params};

use super::Key;

/// An object that the garbage collector must act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The key of the object.
    pub key: Key,
    /// The unique id of the object.
    pub uid: String,
}

fn reference(row: &Row<'_>) -> Result<Reference> {
    Ok(Reference { key: Key { resource: row.get(0)?, namespace: row.get(1)?, name: row.get(2)? }, uid: row.get(3)? })
}

/// Objects whose deletion was requested, the longest unchanged first.
///
/// # Errors
/// The store's.
pub fn deleting(c: &Connection) -> Result<Vec<Reference>> {
    c.rows(
        "SELECT resource, namespace, name, uid FROM objects WHERE deleting = 1 ORDER BY version",
        params![],
        reference,
    )
}

/// At most `limit` objects with an owner that does not exist, each with the unique ids of these owners.
///
/// # Errors
/// The store's.
pub fn orphans(c: &Connection, limit: i64) -> Result<Vec<(Reference, String)>> {
    c.rows(
        "SELECT d.resource, d.namespace, d.name, d.uid, r.owner FROM object_owners r \
         JOIN objects d ON d.uid = r.dependent LEFT JOIN objects o ON o.uid = r.owner \
         WHERE o.uid IS NULL AND d.deleting = 0 ORDER BY d.version LIMIT ?1",
        params![limit],
        |row| Ok((reference(row)?, row.get(4)?)),
    )
}

/// The dependents of the object with this unique id.
///
/// # Errors
/// The store's.
pub fn dependents(c: &Connection, owner: &str) -> Result<Vec<Reference>> {
    c.rows(
        "SELECT d.resource, d.namespace, d.name, d.uid FROM object_owners r JOIN objects d ON d.uid = r.dependent \
         WHERE r.owner = ?1 ORDER BY d.version",
        params![owner],
        reference,
    )
}

/// At most `limit` objects in a namespace.
///
/// # Errors
/// The store's.
pub fn namespace_members(c: &Connection, namespace: &str, limit: i64) -> Result<Vec<Reference>> {
    c.rows(
        "SELECT resource, namespace, name, uid FROM objects WHERE namespace = ?1 ORDER BY deleting, version LIMIT ?2",
        params![namespace, limit],
        reference,
    )
}

/// At most `limit` objects that expired before this time, in milliseconds since the Unix epoch.
///
/// # Errors
/// The store's.
pub fn expired(c: &Connection, now: i64, limit: i64) -> Result<Vec<Reference>> {
    c.rows(
        "SELECT resource, namespace, name, uid FROM objects WHERE expires_at IS NOT NULL AND expires_at <= ?1 \
         ORDER BY expires_at LIMIT ?2",
        params![now, limit],
        reference,
    )
}
