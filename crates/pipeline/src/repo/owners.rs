//! Servers that carry out runs: which of them live, and which run belongs to which.
//!
//! Invariant: a run has one owner, and only its owner records progress. The owner is set when the run is created, and changes only when it
//! has not beaten since another server saw its number of beats.

use slipway_store::sql::{Connection, params};

use super::runs::UNFINISHED;
use crate::Error;

/// A server, as another one sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Its name, which it keeps over restarts.
    pub(crate) name: String,
    /// How often it has reported that it lives.
    pub(crate) beats: i64,
}

/// Reports that a server lives.
pub(crate) fn beat(c: &Connection, name: &str) -> Result<(), Error> {
    c.execute(
        "INSERT INTO pipeline_owners (owner, beats) VALUES (?1, 1)
         ON CONFLICT (owner) DO UPDATE SET beats = pipeline_owners.beats + 1",
        [name],
    )?;
    Ok(())
}

/// All servers that were not taken over.
pub(crate) fn list(c: &Connection) -> Result<Vec<Owner>, Error> {
    let owner = |row: &slipway_store::sql::Row<'_>| Ok(Owner { name: row.get(0)?, beats: row.get(1)? });
    Ok(c.rows("SELECT owner, beats FROM pipeline_owners ORDER BY owner", params![], owner)?)
}

/// Gives the runs of a server that are not finished, or not tracked to their end, to another one, unless it has beaten meanwhile.
pub(crate) fn take_over(c: &Connection, from: &Owner, to: &str) -> Result<(), Error> {
    let removed =
        c.execute("DELETE FROM pipeline_owners WHERE owner = ?1 AND beats = ?2", params![from.name, from.beats])?;
    if removed == 1 {
        let sql = format!(
            "UPDATE pipeline_runs SET owner = ?2 WHERE owner = ?1 AND (state IN ({UNFINISHED}) OR is_tracked = 0)"
        );
        c.execute(&sql, params![from.name, to])?;
    }
    Ok(())
}

/// Gives a server the runs, not finished or not tracked to their end, whose owner is not known: those of an earlier version, and those of a server that was taken over.
pub(crate) fn adopt(c: &Connection, by: &str) -> Result<(), Error> {
    let sql = format!(
        "UPDATE pipeline_runs SET owner = ?1
         WHERE (state IN ({UNFINISHED}) OR is_tracked = 0) AND owner NOT IN (SELECT owner FROM pipeline_owners)"
    );
    c.execute(&sql, [by])?;
    Ok(())
}

/// Gives a server all runs that are not finished, or not tracked to their end.
pub(crate) fn adopt_all(c: &Connection, by: &str) -> Result<(), Error> {
    let sql = format!("UPDATE pipeline_runs SET owner = ?1 WHERE state IN ({UNFINISHED}) OR is_tracked = 0");
    c.execute(&sql, [by])?;
    Ok(())
}
