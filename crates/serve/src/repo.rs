//! SQL for the revisions of deployments. Invariant: revisions are only appended; the newest one is active unless it is a removal.

use slipway_store::sql::{Connection, params};

use crate::Error;
use crate::manifest::Manifest;

/// One revision of a deployment.
#[derive(Debug, Clone, serde::Serialize, schemars::JsonSchema)]
#[schemars(rename = "DeploymentRevision")]
pub struct Revision {
    /// Revision number, from 1.
    pub revision: i64,
    /// The manifest; null for a removal.
    pub manifest: Option<Manifest>,
    /// Time of the change, in milliseconds since the Unix epoch.
    pub created: i64,
    /// `apply`, `split`, `rollback` or `rm`.
    pub reason: String,
}

fn decode(name: &str, text: Option<String>) -> Option<Manifest> {
    let parsed = serde_json::from_str(&text?);
    parsed.inspect_err(|error| tracing::warn!(deployment = name, %error, "a stored manifest cannot be parsed")).ok()
}

/// Adds a revision and returns its number.
pub(crate) fn add(
    c: &Connection,
    name: &str,
    manifest: Option<&Manifest>,
    now: i64,
    reason: &str,
) -> Result<i64, Error> {
    let json = manifest.map(serde_json::to_string).transpose().map_err(|e| Error::Store(e.to_string()))?;
    let newest = "SELECT coalesce(max(revision), 0) + 1 FROM deployment_revisions WHERE name = ?1";
    let revision: i64 = c.first(newest, [name], |r| r.get(0))?.unwrap_or(1);
    c.execute(
        "INSERT INTO deployment_revisions VALUES (?1, ?2, ?3, ?4, ?5)",
        params![name, revision, json, now, reason],
    )?;
    Ok(revision)
}

/// The active manifest and revision number of every deployment that is not removed.
pub(crate) fn current(c: &Connection) -> Result<Vec<(Manifest, i64)>, Error> {
    let rows = c.rows(
        "SELECT name, manifest, revision FROM deployment_revisions d WHERE manifest IS NOT NULL AND revision =
         (SELECT max(revision) FROM deployment_revisions x WHERE x.name = d.name) ORDER BY name",
        params![],
        |r| Ok((r.get::<String>(0)?, r.get::<Option<String>>(1)?, r.get::<i64>(2)?)),
    )?;
    Ok(rows.into_iter().filter_map(|(name, text, revision)| Some((decode(&name, text)?, revision))).collect())
}

/// The last 100 revisions, newest first.
pub(crate) fn history(c: &Connection, name: &str) -> Result<Vec<Revision>, Error> {
    Ok(c.rows(
        "SELECT revision, manifest, created, reason FROM deployment_revisions WHERE name = ?1 ORDER BY revision DESC LIMIT 100",
        [name],
        |r| Ok(Revision { revision: r.get(0)?, manifest: decode(name, r.get(1)?), created: r.get(2)?, reason: r.get(3)? }),
    )?)
}

/// The manifest of one revision; `None` for a removal or an unknown revision.
pub(crate) fn manifest(c: &Connection, name: &str, revision: i64) -> Result<Option<Manifest>, Error> {
    let text: Option<Option<String>> = c.first(
        "SELECT manifest FROM deployment_revisions WHERE name = ?1 AND revision = ?2",
        params![name, revision],
        |r| r.get(0),
    )?;
    Ok(decode(name, text.flatten()))
}
