//! Schema migrations: each script runs once, in order, and its checksum is recorded.

use ring::digest::{SHA256, digest};

use super::dialect;
use super::sql::{Connection, Kind, params};
use crate::StoreError;
use crate::error::Result;

/// The migrations of one domain. Never edit a released script: databases to which it was applied would be rejected.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// Name of the crate that owns the tables, such as `track`.
    pub domain: &'static str,
    /// SQL scripts in SQLite's dialect; `steps[n]` migrates the schema from version n to n + 1.
    pub steps: &'static [&'static str],
}

/// `schema_version` holds the schema version of each domain, `schema_checksum` the checksum of every applied script. A database that
/// was created before checksums existed gets those of this program's scripts.
const VERSION_TABLES: &str = "
    CREATE TABLE IF NOT EXISTS schema_version (domain TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS schema_checksum (
        domain TEXT NOT NULL, version INTEGER NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (domain, version)
    ) WITHOUT ROWID;";

/// Applies the pending migrations of all domains in one transaction. So servers that start at the same time on one database do not
/// conflict, and a failing script changes nothing.
pub(super) fn migrate(connection: &Connection, migrations: &[Migration]) -> Result<()> {
    connection.begin_write()?;
    let result = run(connection, migrations);
    connection.batch(if result.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
    result
}

fn run(connection: &Connection, migrations: &[Migration]) -> Result<()> {
    let run_script = |sql: &str| match &connection.0 {
        Kind::Sqlite(_) => connection.batch(sql),
        Kind::Postgres(_) => connection.batch(&dialect::schema(sql)),
    };
    run_script(VERSION_TABLES)?;
    for Migration { domain, steps } in migrations {
        let found: Option<i64> =
            connection.first("SELECT version FROM schema_version WHERE domain = ?1", [domain], |row| row.get(0))?;
        let found = usize::try_from(found.unwrap_or(0)).unwrap_or(0);
        if found > steps.len() {
            return Err(StoreError::Newer { domain, found, known: steps.len() });
        }
        for (step, version) in steps.iter().zip(1_usize..) {
            let (checksum, number) = (checksum(step), i64::try_from(version).unwrap_or(i64::MAX));
            let recorded: Option<String> = connection.first(
                "SELECT sha256 FROM schema_checksum WHERE domain = ?1 AND version = ?2",
                params![domain, number],
                |row| row.get(0),
            )?;
            if version > found {
                run_script(step)?;
            } else if let Some(recorded) = recorded {
                if recorded != checksum {
                    return Err(StoreError::MigrationChanged { domain, version });
                }
                continue;
            }
            connection.execute("INSERT INTO schema_checksum VALUES (?1, ?2, ?3)", params![domain, number, checksum])?;
        }
        if found < steps.len() {
            connection.execute(
                "INSERT INTO schema_version VALUES (?1, ?2) ON CONFLICT (domain) DO UPDATE SET version = ?2",
                params![domain, i64::try_from(steps.len()).unwrap_or(i64::MAX)],
            )?;
        }
    }
    Ok(())
}

/// SHA-256 of a script in hexadecimal. Line endings are normalised, because a Git checkout may change them.
fn checksum(script: &str) -> String {
    slipway_core::hex::encode(digest(&SHA256, script.replace("\r\n", "\n").as_bytes()).as_ref())
}
