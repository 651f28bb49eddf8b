//! Tokens of runs: each attempt gets one, with which it may track. Its claims are signed with a key that only this server has
//! (HMAC with SHA-256, RFC 2104), so nothing has to be stored for it.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::SecureRandom;
use serde::{Deserialize, Serialize};
use slipway_access::RunIdentity;
use slipway_core::clock::now_ms;
use slipway_exec::TokenRequest;
use slipway_store::sql::params;
use slipway_store::{Database, Migration, StoreError};

use super::home_token::{Owned, open_secret};

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

/// What a token says; signed, not encrypted.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    /// The namespace of the run.
    ns: String,
    /// Its name.
    name: String,
    /// The id of the tracked run.
    run: String,
    /// The attempt.
    attempt: u32,
    /// When the token ends, in milliseconds since the Unix epoch.
    exp: i64,
}

/// Makes and checks the tokens of runs; cheap to clone.
///
/// A token belongs to one attempt of one run: `slipway-run.CLAIMS.TAG`, where the claims are JSON and the tag is HMAC-SHA-256 over
/// them, both in base64 for URLs.
#[derive(Clone)]
pub struct RunTokens {
    key: hmac::Key,
    isolated: bool,
}

impl RunTokens {
    /// With this key.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key), isolated: false }
    }

    /// Whether namespaces are tenants, whose runs are kept apart.
    #[must_use]
    pub fn isolated(self, isolated: bool) -> Self {
        Self { isolated, ..self }
    }

    /// With the key in a file, which is created when it is missing.
    ///
    /// # Errors
    /// The operating system's, and [`std::io::ErrorKind::PermissionDenied`] for a file whose content others may know.
    pub fn of_file(path: &Path) -> std::io::Result<Self> {
        use std::io::{Read, Write};
        use std::os::unix::fs::OpenOptionsExt;
        let mut bytes = Vec::new();
        match open_secret(path, Owned::ByThisUser) {
            Ok(file) => {
                file.take(64).read_to_end(&mut bytes)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if let Ok(key) = bytes.try_into() {
            return Ok(Self::new(key));
        }
        let key = fresh_key()?;
        let _ = std::fs::remove_file(path); // A file of another length is what a killed process left before any token was made.
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&key)?;
        file.sync_all()?;
        Ok(Self::new(key))
    }

    /// With the key of a database that several servers share, each of which must know the others' tokens; the first one creates it.
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

    /// The token of an attempt.
    pub fn mint(&self, request: &TokenRequest) -> String {
        let claims = Claims {
            ns: request.namespace.clone(),
            name: request.run.clone(),
            run: request.run_id.clone(),
            attempt: request.attempt,
            exp: request.expires_at,
        };
        let claims = URL_SAFE_NO_PAD.encode(serde_json::json!(claims).to_string());
        let tag = hmac::sign(&self.key, claims.as_bytes());
        format!("{PREFIX}{claims}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
    }

    /// Whether a token has the form of a run's, valid or not.
    pub(super) fn is_one(token: &str) -> bool {
        token.starts_with(PREFIX)
    }

    /// The run that a token was made for; `None` when it was not made here, or has expired.
    pub fn verify(&self, token: &str) -> Option<RunIdentity> {
        let (claims, tag) = token.strip_prefix(PREFIX)?.split_once('.')?;
        hmac::verify(&self.key, claims.as_bytes(), &URL_SAFE_NO_PAD.decode(tag).ok()?).ok()?;
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        (now_ms() < claims.exp).then_some(RunIdentity {
            namespace: claims.ns,
            name: claims.name,
            run_id: claims.run,
            attempt: claims.attempt,
            isolated: self.isolated,
        })
    }
}
