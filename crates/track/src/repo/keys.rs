//! Secret keys of this installation.

use slipway_store::sql::{Connection, params};

use super::{execute, first};
use crate::Error;

/// The key of this name, which becomes `fresh` when there is none yet.
pub(crate) fn find_or_insert(c: &Connection, name: &str, fresh: &[u8]) -> Result<Vec<u8>, Error> {
    execute(c, "INSERT INTO track_keys (name, key) VALUES (?1, ?2) ON CONFLICT DO NOTHING", params![name, fresh])?;
    Ok(first(c, "SELECT key FROM track_keys WHERE name = ?1", [name], |row| row.get(0))?.unwrap_or_default())
}
