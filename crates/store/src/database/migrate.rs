//! Schema changes: each is run once, in order, and remembered with its checksum.

use ring::digest::{SHA256, digest};

use super::dialect;
use super::sql::{Connection, Kind, params};
use crate::StoreError;
use crate::error::Result;

/// The tables of one domain: its name and its schema changes in order. Never edit a released one.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// The crate the tables belong to.
    pub domain: &'static str,
    /// SQL scripts in SQLite's dialect; the n-th takes the schema from version n to n + 1.
    pub steps: &'static [&'static str],
}

/// `schema_version` is how far a domain's schema is; `schema_checksum` is of the scripts that brought it there. Databases of versions
/// that knew no checksums get them from the scripts of the first program that does.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS schema_version (domain TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS schema_checksum (
        domain TEXT NOT NULL, version INTEGER NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (domain, version)
    ) WITHOUT ROWID;";

/// Brings every domain's tables up to date, all in one transaction, so that servers that start at once on one database do not get
/// into each other's way, and a script that fails changes nothing.
pub(super) fn migrate(connection: &Connection, migrations: &[Migration]) -> Result<()> {
    connection.begin_writing()?;
    let done = run(connection, migrations);
    connection.batch(if done.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
    done
}

fn run(connection: &Connection, migrations: &[Migration]) -> Result<()> {
    let script = |sql: &str| match &connection.0 {
        Kind::Sqlite(_) => connection.batch(sql),
        Kind::Postgres(_) => connection.batch(&dialect::schema(sql)),
    };
    script(TABLES)?;
    for Migration { domain, steps } in migrations {
        let found: Option<i64> =
            connection.first("SELECT version FROM schema_version WHERE domain = ?1", [domain], |row| row.get(0))?;
        let found = usize::try_from(found.unwrap_or(0)).unwrap_or(0);
        if found > steps.len() {
            return Err(StoreError::Newer { domain, found, known: steps.len() });
        }
        for (step, version) in steps.iter().zip(1_usize..) {
            let (checksum, number) = (checksum(step), i64::try_from(version).unwrap_or(i64::MAX));
            let known: Option<String> = connection.first(
                "SELECT sha256 FROM schema_checksum WHERE domain = ?1 AND version = ?2",
                params![domain, number],
                |row| row.get(0),
            )?;
            if version > found {
                script(step)?;
            } else if let Some(known) = known {
                if known != checksum {
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

/// SHA-256 of a script in hexadecimal; the same whichever line ends a checkout has.
fn checksum(script: &str) -> String {
    digest(&SHA256, script.replace("\r\n", "\n").as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}
