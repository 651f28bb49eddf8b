//! Tokens of runs: each namespace's runs get one, with which they may track. It is the namespace's name under a key that only this
//! server has (HMAC with SHA-256, RFC 2104), so nothing needs to be kept of it.

use std::path::Path;

use ring::hmac;
use ring::rand::SecureRandom;
use slipway_store::sql::params;
use slipway_store::{Database, Migration, StoreError};

/// The tables.
pub(crate) const MIGRATION: Migration =
    Migration { domain: "server", steps: &["CREATE TABLE server_keys (name TEXT PRIMARY KEY, key BLOB NOT NULL)"] };

fn fresh_key() -> std::io::Result<[u8; 32]> {
    let mut key = [0; 32];
    let failed = |_| std::io::Error::other("the operating system gives no random numbers");
    ring::rand::SystemRandom::new().fill(&mut key).map_err(failed)?;
    Ok(key)
}

const PREFIX: &str = "slipway-run.";

/// Makes and checks tokens of runs; cheap to clone.
#[derive(Clone)]
pub struct RunTokens(hmac::Key);

impl RunTokens {
    /// With this key.
    pub fn new(key: [u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &key))
    }

    /// With the key of a file, which is made when it is not there.
    ///
    /// # Errors
    /// The operating system's.
    pub fn of_file(path: &Path) -> std::io::Result<Self> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        if let Ok(bytes) = std::fs::read(path)
            && let Ok(key) = bytes.try_into()
        {
            return Ok(Self::new(key));
        }
        let key = fresh_key()?;
        // Begun anew: one that is too short was never used.
        drop(std::fs::remove_file(path));
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&key)?;
        file.sync_all()?;
        Ok(Self::new(key))
    }

    /// With the key of a database that several servers share, each of which must know the others' tokens; the first one makes it.
    ///
    /// # Errors
    /// The store's.
    pub async fn of_database(database: &Database) -> Result<Self, StoreError> {
        let fresh = fresh_key().map_err(|source| StoreError::Object { what: "making a key".into(), source })?;
        let kept: Option<[u8; 32]> = database
            .write(move |c| {
                c.execute(
                    "INSERT INTO server_keys (name, key) VALUES ('run-tokens', ?1) ON CONFLICT DO NOTHING",
                    [fresh.as_slice()],
                )?;
                c.first("SELECT key FROM server_keys WHERE name = 'run-tokens'", params![], |row| row.get(0))
            })
            .await?;
        Ok(Self::new(kept.unwrap_or(fresh)))
    }

    /// The token of a namespace's runs.
    pub fn mint(&self, namespace: &str) -> String {
        let tag = hmac::sign(&self.0, namespace.as_bytes());
        let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        format!("{PREFIX}{namespace}.{hex}")
    }

    /// The namespace whose runs get this token; `None` when it is none of ours.
    pub fn namespace(&self, token: &str) -> Option<String> {
        let (namespace, hex) = token.strip_prefix(PREFIX)?.split_once('.')?;
        let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
        let tag: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
        hmac::verify(&self.0, namespace.as_bytes(), &tag?).ok()?;
        Some(namespace.to_owned())
    }
}
