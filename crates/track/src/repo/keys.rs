//! Secret keys of this installation.

use slipway_store::sql::{Connection, params};

use super::{execute, first};
use crate::Error;

/// The key with this name. If there is none, stores `new_key` and returns it.
pub(crate) fn find_or_insert(c: &Connection, name: &str, new_key: &[u8]) -> Result<Vec<u8>, Error> {
    execute(c, "INSERT INTO track_keys (name, key) VALUES (?1, ?2) ON CONFLICT DO NOTHING", params![name, new_key])?;
    Ok(first(c, "SELECT key FROM track_keys WHERE name = ?1", [name], |row| row.get(0))?.unwrap_or_default())
}
