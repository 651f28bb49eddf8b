//! The registered repositories in the database. This file contains all SQL of the crate.

use std::path::Path;

use md5::{Digest as _, Md5};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_store::sql::{Connection, Row, params};
use slipway_store::{Migration, StoreError};

use crate::config::is_url;
use crate::error::DataError;
use crate::external::{check_url, redact};
use crate::service::{INSTALLATION, check_name};

/// The tables of this crate.
pub const MIGRATION: Migration = Migration {
    domain: "data",
    steps: &["CREATE TABLE data_repositories (namespace TEXT NOT NULL, name TEXT NOT NULL, location TEXT NOT NULL, folder TEXT NOT NULL,
      added INTEGER NOT NULL, PRIMARY KEY (namespace, name));"],
};

/// Maximum bytes of a location or folder.
const MAX_LOCATION_BYTES: usize = 4096;

/// A repository to register.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "NewDataRepository")]
#[serde(deny_unknown_fields)]
pub struct NewRepository {
    /// The name in its namespace: up to 63 letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// The absolute path of a Git repository on the server's machine, or a URL without credentials.
    pub location: String,
    /// The folder of the DVC project in the repository; the root if empty.
    #[serde(default)]
    pub folder: String,
}

/// A registered repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DataRepository")]
pub struct Registered {
    /// The name in its namespace.
    pub name: String,
    /// The path on the server's machine, or the URL.
    pub location: String,
    /// The folder of the DVC project in the repository; the root if empty.
    pub folder: String,
    /// When it was registered, in milliseconds since the Unix epoch.
    pub added: i64,
}

impl NewRepository {
    /// The repository, if its name and location are accepted.
    pub(super) fn checked(self) -> Result<Registered, DataError> {
        let invalid = |reason: String| Err(DataError::Invalid(reason));
        check_name(&self.name)?;
        let location = self.location.trim_end_matches('/').to_owned();
        if location.len() > MAX_LOCATION_BYTES || self.folder.len() > MAX_LOCATION_BYTES {
            return invalid("a location has at most 4096 bytes".into());
        }
        check_url(&location)?;
        if redact(&location) != location {
            return invalid(format!(
                "'{}' contains credentials, which would be stored; give the server's user a Git credential helper or an SSH key",
                redact(&location)
            ));
        }
        let has_place = Path::new(&location).is_absolute() || is_url(&location) || location.contains('@');
        if !has_place {
            return invalid(format!("'{location}' is neither a URL nor an absolute path"));
        }
        let folder = self.folder.trim_matches('/').to_owned();
        if !folder.is_empty() {
            super::names::check_path(&folder)?;
        }
        let added = slipway_core::clock::now_ms();
        Ok(Registered { name: self.name, location, folder, added })
    }
}

impl Registered {
    /// Whether it is elsewhere, so that a mirror is read.
    pub(super) fn is_url(&self) -> bool {
        !Path::new(&self.location).is_absolute()
    }

    /// The name of the folder of its mirror.
    pub(super) fn mirror_name(&self) -> String {
        slipway_core::hex::encode(&Md5::digest(&self.location))
    }
}

/// The namespace in the database.
pub(super) fn key(namespace: Option<&str>) -> String {
    namespace.unwrap_or(INSTALLATION).to_owned()
}

fn parse(row: &Row<'_>) -> Result<Registered, StoreError> {
    Ok(Registered { name: row.get(0)?, location: row.get(1)?, folder: row.get(2)?, added: row.get(3)? })
}

/// The repositories of a namespace, by name.
pub(super) fn list(c: &Connection, namespace: &str) -> Result<Vec<Registered>, StoreError> {
    c.rows(
        "SELECT name, location, folder, added FROM data_repositories WHERE namespace = ?1 ORDER BY name",
        [namespace],
        parse,
    )
}

/// The repositories of all namespaces.
pub(super) fn all(c: &Connection) -> Result<Vec<Registered>, StoreError> {
    c.rows(
        "SELECT name, location, folder, added FROM data_repositories ORDER BY namespace, name",
        [] as [i64; 0],
        parse,
    )
}

/// A repository, if it is registered.
pub(super) fn find(c: &Connection, namespace: &str, name: &str) -> Result<Option<Registered>, StoreError> {
    c.first(
        "SELECT name, location, folder, added FROM data_repositories WHERE namespace = ?1 AND name = ?2",
        [namespace, name],
        parse,
    )
}

/// Adds a repository; false if the name is in use.
pub(super) fn add(c: &Connection, namespace: &str, new: &Registered) -> Result<bool, StoreError> {
    let added = c.execute(
        "INSERT INTO data_repositories (namespace, name, location, folder, added) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (namespace, name) DO NOTHING",
        params![namespace, new.name, new.location, new.folder, new.added],
    )?;
    Ok(added > 0)
}

/// Removes a repository; false if there is none.
pub(super) fn remove(c: &Connection, namespace: &str, name: &str) -> Result<bool, StoreError> {
    Ok(c.execute("DELETE FROM data_repositories WHERE namespace = ?1 AND name = ?2", [namespace, name])? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_that_run_programs_or_contain_credentials_are_rejected() {
        let check = |location: &str, folder: &str| {
            let new = NewRepository { name: "a".into(), location: location.into(), folder: folder.into() };
            new.checked().map(|found| found.location)
        };
        for location in
            ["ext::sh -c x", "--upload-pack=x", "https://me:secret@host/a", "https://token@host/a", "data", ""]
        {
            assert!(check(location, "").is_err(), "{location}");
        }
        let error = check("https://me:secret@host/a", "").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
        for folder in ["..", "a/../..", "a//b", "./a"] {
            assert!(check("/srv/a", folder).is_err(), "{folder}");
        }
        assert_eq!(check("/srv/a/", "sub/").unwrap(), "/srv/a");
        assert_eq!(check("git@host:team/data", "").unwrap(), "git@host:team/data");
    }
}
