//! Compiled pipelines, each text once.

use slipway_store::sql::{Connection, params};

use crate::Error;
use crate::entity::StoredSpec;

/// Inserts a specification unless it is there.
pub(crate) fn insert(c: &Connection, spec: &StoredSpec) -> Result<(), Error> {
    c.execute(
        "INSERT INTO pipeline_specs VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        params![spec.digest, spec.text.as_ref()],
    )?;
    Ok(())
}

/// The specification with this digest.
pub(crate) fn find(c: &Connection, digest: &str) -> Result<StoredSpec, Error> {
    let text =
        c.first("SELECT document FROM pipeline_specs WHERE digest = ?1", [digest], |row| row.get::<String>(0))?;
    let text = text.ok_or_else(|| Error::NotFound(format!("PipelineSpec {digest} not found")))?;
    Ok(StoredSpec { digest: digest.to_owned(), text: text.into() })
}

/// Deletes a specification that nothing refers to any more.
pub(crate) fn delete_unused(c: &Connection, digest: &str) -> Result<(), Error> {
    c.execute(
        "DELETE FROM pipeline_specs WHERE digest = ?1
           AND NOT EXISTS (SELECT 1 FROM pipeline_versions WHERE spec = ?1)
           AND NOT EXISTS (SELECT 1 FROM pipeline_runs WHERE spec = ?1)
           AND NOT EXISTS (SELECT 1 FROM pipeline_recurring_runs WHERE spec = ?1)",
        [digest],
    )?;
    Ok(())
}
